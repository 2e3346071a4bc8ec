//! The dynamic block list: ranges that an operator blocks for some time.
//!
//! A map of networks for each prefix length that occurs: a lookup costs one hash for each of them,
//! one to three as lists are, 33 or 129 at most. Bounded by
//! [`BLOCKS_MAX`](crate::limits::BLOCKS_MAX); beyond it [`BlocksFull`], and nothing is pushed out.
//!
//! Rejected: sorted ranges with binary search, as in `ranges`: those may not overlap, and here each
//! range has an expiry of its own.

use super::source::canonical;
use crate::limits::BLOCKS_MAX;
use ahash::HashMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ranges with an expiry on the caller's steady clock, in milliseconds. A clone is a snapshot.
#[derive(Clone, Debug, Default)]
pub struct DynamicBlocks {
    ipv4: Networks,
    ipv6: Networks,
    len: usize,
}

/// Expiry by prefix length and network. An address stands in the high bits, so that one mask does
/// for both families. No map is empty.
type Networks = BTreeMap<u8, HashMap<u128, u64>>;

/// The list is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlocksFull;

impl DynamicBlocks {
    /// Blocks a range until `until_ms`; one that is there gets the new expiry.
    ///
    /// # Errors
    /// [`BlocksFull`]; ranges that have expired count until they are dropped.
    pub fn add(&mut self, range: IpNet, until_ms: u64) -> Result<(), BlocksFull> {
        let (prefix, network) = key(range);
        let is_full = self.len >= BLOCKS_MAX;
        let networks = self.networks_mut(range);
        if let Some(expiry) = networks.get_mut(&prefix).and_then(|networks| networks.get_mut(&network)) {
            *expiry = until_ms;
            return Ok(());
        }
        if is_full {
            return Err(BlocksFull);
        }
        networks.entry(prefix).or_default().insert(network, until_ms);
        self.len += 1;
        Ok(())
    }

    /// Blocks a range no longer. Whether it was there.
    pub fn remove(&mut self, range: IpNet) -> bool {
        let (prefix, network) = key(range);
        let networks = self.networks_mut(range);
        let Some(of_length) = networks.get_mut(&prefix) else { return false };
        let was_there = of_length.remove(&network).is_some();
        if of_length.is_empty() {
            networks.remove(&prefix);
        }
        self.len -= usize::from(was_there);
        was_there
    }

    /// Drops what has expired.
    pub fn drop_expired(&mut self, now_ms: u64) {
        for networks in [&mut self.ipv4, &mut self.ipv6] {
            for of_length in networks.values_mut() {
                of_length.retain(|_, until_ms| now_ms < *until_ms);
                // A list that was long once must not be copied at that size for ever.
                of_length.shrink_to_fit();
            }
            networks.retain(|_, of_length| !of_length.is_empty());
        }
        self.len = self.iter().count();
    }

    /// Whether a range that has not expired holds `ip`, or the IPv4 address that it maps.
    #[must_use]
    pub fn contains(&self, ip: IpAddr, now_ms: u64) -> bool {
        let ip = canonical(ip);
        let networks = if ip.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        let bits = high_bits(ip);
        networks.iter().any(|(&prefix, of_length)| {
            of_length.get(&(bits & mask(prefix))).is_some_and(|&until_ms| now_ms < until_ms)
        })
    }

    /// All ranges with their expiries, expired ones too, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, u64)> {
        let ipv4 = each(&self.ipv4).filter_map(|(prefix, network, until_ms)| {
            let range = Ipv4Net::new(Ipv4Addr::from_bits((network >> 96) as u32), prefix).ok()?;
            Some((IpNet::V4(range), until_ms))
        });
        let ipv6 = each(&self.ipv6).filter_map(|(prefix, network, until_ms)| {
            let range = Ipv6Net::new(Ipv6Addr::from_bits(network), prefix).ok()?;
            Some((IpNet::V6(range), until_ms))
        });
        ipv4.chain(ipv6)
    }

    fn networks_mut(&mut self, range: IpNet) -> &mut Networks {
        if range.network().is_ipv4() { &mut self.ipv4 } else { &mut self.ipv6 }
    }
}

fn each(networks: &Networks) -> impl Iterator<Item = (u8, u128, u64)> {
    networks
        .iter()
        .flat_map(|(&prefix, of_length)| of_length.iter().map(move |(&network, &until_ms)| (prefix, network, until_ms)))
}

fn key(range: IpNet) -> (u8, u128) {
    (range.prefix_len(), high_bits(range.network()))
}

fn high_bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The bits that count in a network of this prefix length.
fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128_u32.saturating_sub(u32::from(prefix))).unwrap_or(0)
}
