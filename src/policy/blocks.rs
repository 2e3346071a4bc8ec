//! The dynamic block list: ranges that an operator blocks for some time.

use super::source::canonical;
use ahash::HashMap;
use ipnet::IpNet;
use std::net::IpAddr;

/// Ranges with an expiry on the caller's steady clock, in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct DynamicBlocks {
    expiries: HashMap<IpNet, u64>,
}

/// The list is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlocksFull;

impl DynamicBlocks {
    /// Blocks a range, without host bits, until `until_ms`; one that is there gets the new expiry.
    ///
    /// # Errors
    /// [`BlocksFull`].
    pub fn add(&mut self, range: IpNet, until_ms: u64) -> Result<(), BlocksFull> {
        self.expiries.insert(range, until_ms);
        Ok(())
    }

    /// Whether a range that has not expired holds `ip`.
    #[must_use]
    pub fn contains(&self, ip: IpAddr, now_ms: u64) -> bool {
        let ip = canonical(ip);
        self.expiries.iter().any(|(range, &until_ms)| now_ms < until_ms && range.contains(&ip))
    }
}
