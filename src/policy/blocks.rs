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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_range;
    use proptest::prelude::*;

    fn range(item: &str) -> IpNet {
        parse_range(item).expect("a range")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn blocked_until_then() {
        let mut blocks = DynamicBlocks::default();
        for item in ["192.0.2.0/24", "2001:db8::/32", "::ffff:198.51.100.0/120", "203.0.113.7"] {
            blocks.add(range(item), 100).expect("room");
        }
        for (client, blocked) in [
            ("192.0.2.0", true),
            ("192.0.2.255", true),
            ("::ffff:192.0.2.1", true),
            ("192.0.3.0", false),
            ("198.51.100.9", true),
            ("::ffff:198.51.100.9", true),
            ("203.0.113.7", true),
            ("203.0.113.6", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
            ("::192.0.2.1", false),
        ] {
            assert_eq!(blocks.contains(ip(client), 99), blocked, "{client}");
            assert!(!blocks.contains(ip(client), 100), "{client}");
        }
    }

    #[test]
    fn everything_can_be_blocked() {
        let mut blocks = DynamicBlocks::default();
        blocks.add(range("0.0.0.0/0"), 100).expect("room");
        assert!(blocks.contains(ip("255.255.255.255"), 0) && !blocks.contains(ip("ffff::"), 0));
        blocks.add(range("::/0"), 100).expect("room");
        assert!(blocks.contains(ip("ffff::"), 0) && blocks.contains(ip("::"), 0));
        assert!(blocks.remove(range("0.0.0.0/0")) && !blocks.contains(ip("10.0.0.1"), 0));
    }

    #[test]
    fn a_new_expiry_replaces_the_old() {
        let mut blocks = DynamicBlocks::default();
        for until_ms in [100, 50, 200] {
            blocks.add(range("192.0.2.1"), until_ms).expect("room");
            assert_eq!(blocks.iter().collect::<Vec<_>>(), [(range("192.0.2.1/32"), until_ms)]);
        }
        // Of two ranges that overlap, the longer block holds.
        blocks.add(range("192.0.2.0/24"), 300).expect("room");
        assert!(blocks.contains(ip("192.0.2.1"), 250) && blocks.contains(ip("192.0.2.2"), 250));
        assert!(blocks.remove(range("192.0.2.0/24")));
        assert!(blocks.contains(ip("192.0.2.1"), 150) && !blocks.contains(ip("192.0.2.2"), 150));
    }

    #[test]
    fn full() {
        let mut blocks = DynamicBlocks::default();
        let item = |number: usize| {
            let number = u32::try_from(number).expect("not that many");
            IpNet::V4(Ipv4Net::new(Ipv4Addr::from_bits(number << 1), 31).expect("a range"))
        };
        for number in 0..BLOCKS_MAX {
            blocks.add(item(number), 100 + number as u64).expect("room");
        }
        assert_eq!(blocks.add(item(BLOCKS_MAX), 1000), Err(BlocksFull));
        assert!(!blocks.contains(item(BLOCKS_MAX).network(), 0));
        // One that is there takes no room; one that has gone gives some.
        blocks.add(item(0), 101).expect("it is there");
        assert!(blocks.remove(item(7)));
        blocks.add(item(BLOCKS_MAX), 1000).expect("room");
        assert_eq!(blocks.add(item(7), 1000), Err(BlocksFull));
        // The first two have expired.
        blocks.drop_expired(101);
        assert_eq!(blocks.iter().count(), BLOCKS_MAX - 2);
        blocks.add(item(7), 1000).expect("room");
        blocks.add(item(0), 1000).expect("room");
        assert_eq!(blocks.add(item(1), 1000), Err(BlocksFull));
    }

    /// A list, searched from one end to the other.
    #[derive(Default)]
    struct Naive(Vec<(IpNet, u64)>);

    impl Naive {
        fn add(&mut self, range: IpNet, until_ms: u64) {
            self.remove(range);
            self.0.push((range, until_ms));
        }

        fn remove(&mut self, range: IpNet) -> bool {
            let before = self.0.len();
            self.0.retain(|(other, _)| *other != range);
            self.0.len() < before
        }

        fn contains(&self, ip: IpAddr, now_ms: u64) -> bool {
            self.0.iter().any(|(range, until_ms)| now_ms < *until_ms && range.contains(&ip.to_canonical()))
        }
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Add(IpNet, u64),
        Remove(IpNet),
        DropExpired(u64),
        Ask(IpAddr, u64),
    }

    /// Few addresses, so that ranges and questions meet; the other families' too, and the ends.
    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..8u32).prop_map(|n| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n))),
            (0..8u32).prop_map(|n| IpAddr::V6(Ipv4Addr::from_bits(0x0a00_0000 + n).to_ipv6_mapped())),
            (0..8u128).prop_map(|n| IpAddr::V6(Ipv6Addr::from_bits((0x0a00_0000 + n) << 96))),
            (0..4u32).prop_map(|n| IpAddr::V4(Ipv4Addr::from_bits(u32::MAX - n))),
            (0..4u128).prop_map(|n| IpAddr::V6(Ipv6Addr::from_bits(u128::MAX - n))),
        ]
    }

    fn net() -> impl Strategy<Value = IpNet> {
        (address(), 0..4u8, prop::bool::weighted(0.1)).prop_map(|(ip, host_bits, all)| {
            let width = if ip.is_ipv4() { 32 } else { 128 };
            range(&format!("{ip}/{}", if all { 0 } else { width - host_bits }))
        })
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            4 => (net(), 0..20u64).prop_map(|(range, until_ms)| Operation::Add(range, until_ms)),
            2 => net().prop_map(Operation::Remove),
            1 => (0..20u64).prop_map(Operation::DropExpired),
            8 => (address(), 0..20u64).prop_map(|(ip, now_ms)| Operation::Ask(ip, now_ms)),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_list(operations in prop::collection::vec(operation(), 0..64)) {
            let mut blocks = DynamicBlocks::default();
            let mut naive = Naive::default();
            for operation in operations {
                match operation {
                    Operation::Add(range, until_ms) => {
                        prop_assert_eq!(blocks.add(range, until_ms), Ok(()));
                        naive.add(range, until_ms);
                    }
                    Operation::Remove(range) => prop_assert_eq!(blocks.remove(range), naive.remove(range)),
                    Operation::DropExpired(now_ms) => {
                        blocks.drop_expired(now_ms);
                        naive.0.retain(|(_, until_ms)| now_ms < *until_ms);
                    }
                    Operation::Ask(ip, now_ms) => {
                        prop_assert_eq!(blocks.contains(ip, now_ms), naive.contains(ip, now_ms), "{}", ip);
                    }
                }
                prop_assert_eq!(blocks.len, naive.0.len());
                prop_assert!([&blocks.ipv4, &blocks.ipv6].into_iter().flat_map(BTreeMap::values).all(|of| !of.is_empty()));
            }
            let mut left: Vec<_> = blocks.iter().collect();
            left.sort_unstable();
            naive.0.sort_unstable();
            prop_assert_eq!(left, naive.0);
        }
    }
}
