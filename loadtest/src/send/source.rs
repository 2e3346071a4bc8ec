//! Source addresses: many clients from one machine.
//!
//! Every connection takes the next address of all ranges, round robin over the whole run. Network and broadcast address
//! of an IPv4 block are left out, as they are no hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Addresses `first`, `first + 1`, ... of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRange {
    first: IpAddr,
    count: u64,
}

impl SourceRange {
    fn nth(self, index: u64) -> IpAddr {
        // `index` is below `count`, which keeps both sums within the block.
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits().wrapping_add(index as u32)).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().wrapping_add(u128::from(index))).into(),
        }
    }
}

impl FromStr for SourceRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("'{text}' is not an address or a block such as 127.1.0.0/16");
        let Some((address, prefix)) = text.split_once('/') else {
            return Ok(Self { first: text.parse().map_err(|_| fault())?, count: 1 });
        };
        let address: IpAddr = address.parse().map_err(|_| fault())?;
        let prefix: u32 = prefix.parse().map_err(|_| fault())?;
        let bits: u32 = if address.is_ipv4() { 32 } else { 128 };
        let host_bits = bits.checked_sub(prefix).ok_or_else(fault)?;
        // A block of more addresses than can be counted through in a lifetime need not be exact.
        let count = 1u64.checked_shl(host_bits).unwrap_or(u64::MAX);
        match address {
            IpAddr::V4(address) => {
                let network = (u64::from(address.to_bits()) >> host_bits << host_bits) as u32;
                let skip = u32::from(host_bits >= 2);
                let first = Ipv4Addr::from_bits(network + skip);
                Ok(Self { first: first.into(), count: count - 2 * u64::from(skip) })
            }
            IpAddr::V6(address) => {
                let network = address.to_bits().checked_shr(host_bits).unwrap_or(0).checked_shl(host_bits).unwrap_or(0);
                Ok(Self { first: Ipv6Addr::from_bits(network).into(), count })
            }
        }
    }
}

/// The sources of a run.
#[derive(Debug)]
pub struct Sources {
    ranges: Vec<SourceRange>,
    total: u64,
    next: AtomicU64,
}

impl Sources {
    /// The addresses of `ranges`, one after the other.
    pub fn new(ranges: &[SourceRange]) -> Self {
        let total = ranges.iter().fold(0u64, |sum, range| sum.saturating_add(range.count));
        Self { ranges: ranges.to_vec(), total, next: AtomicU64::new(0) }
    }

    /// Whether all addresses are of the family of `target`.
    pub fn fit(&self, target: IpAddr) -> bool {
        self.ranges.iter().all(|range| range.first.is_ipv4() == target.is_ipv4())
    }

    /// The address of the next connection; None leaves the choice to the kernel.
    pub fn next(&self) -> Option<IpAddr> {
        if self.total == 0 {
            return None;
        }
        let mut index = self.next.fetch_add(1, Ordering::Relaxed) % self.total;
        for range in &self.ranges {
            if index < range.count {
                return Some(range.nth(index));
            }
            index -= range.count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> SourceRange {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_hold_the_hosts_of_a_block() {
        for (text, first, last, count) in [
            ("127.0.0.1", "127.0.0.1", "127.0.0.1", 1),
            ("127.1.2.3/32", "127.1.2.3", "127.1.2.3", 1),
            ("127.1.2.3/31", "127.1.2.2", "127.1.2.3", 2),
            ("127.1.2.3/30", "127.1.2.1", "127.1.2.2", 2),
            ("127.1.0.0/16", "127.1.0.1", "127.1.255.254", 65_534),
            ("0.0.0.0/0", "0.0.0.1", "255.255.255.254", (1 << 32) - 2),
            ("::1", "::1", "::1", 1),
            ("fd00::7/126", "fd00::4", "fd00::7", 4),
        ] {
            let range = range(text);
            assert_eq!((range.nth(0).to_string(), range.count), (first.to_owned(), count), "{text}");
            assert_eq!(range.nth(range.count - 1).to_string(), last, "{text}");
        }
        assert_eq!(range("::/0").count, u64::MAX);
        for text in ["", "127.0.0.1/33", "127.0.0.1/-1", "127.0.0/8", "::1/129", "localhost", "127.0.0.1/"] {
            assert!(text.parse::<SourceRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn connections_take_turns_over_all_ranges() {
        let sources = Sources::new(&[range("127.1.0.0/30"), range("127.2.0.9")]);
        let taken: Vec<_> = (0..5).filter_map(|_| sources.next()).map(|address| address.to_string()).collect();
        assert_eq!(taken, ["127.1.0.1", "127.1.0.2", "127.2.0.9", "127.1.0.1", "127.1.0.2"]);
        assert_eq!(Sources::new(&[]).next(), None);
        assert!(sources.fit("127.0.0.1".parse().unwrap()) && !sources.fit("::1".parse().unwrap()));
    }
}
