//! Who counts as one source: an address, or the network it stands for, and its slot.

use super::marks::Fingerprint;
use super::table::{Slot, SlotCount};
use ahash::RandomState;
use std::net::IpAddr;

/// `ip`, or the IPv4 address inside an IPv4-mapped IPv6 one (`::ffff:a.b.c.d`). The mapped form is
/// that IPv4 address everywhere: in replies, limits, lists and logs (CONFORMANCE, preamble).
/// Dual-stack sockets report IPv4 peers in it.
#[must_use]
pub const fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// What the tables know of a source: where it is counted, and what tells it from the others there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// Its place in the tables.
    pub slot: Slot,
    /// Its own, as far as 24 bits go.
    pub fingerprint: Fingerprint,
}

/// Turns a client's address into its [`Source`].
///
/// A source is one IPv4 address, or one IPv6 network of `--ipv6-prefix` bits: a site is delegated
/// 2^64 IPv6 addresses or more, and must not be that many sources. Prefix 0 makes all of IPv6 one
/// source. The hash is keyed, so that a peer who knows this code cannot choose addresses that meet
/// in a slot. The same hasher must serve all shards, or the caps would hold per shard only.
pub struct SourceHasher {
    keys: RandomState,
    slots: SlotCount,
    /// The bits of an IPv6 address that name its source.
    ipv6_mask: u128,
}

impl SourceHasher {
    /// A hasher with random keys. `ipv6_prefix` is in bits, 0 to 128; more is 128.
    #[must_use]
    pub fn new(slots: SlotCount, ipv6_prefix: u8) -> Self {
        Self::with_keys(RandomState::new(), slots, ipv6_prefix)
    }

    /// The same with known keys, for tests and simulations that must repeat. Never where a peer
    /// could know them.
    #[must_use]
    pub fn with_seeds(slots: SlotCount, ipv6_prefix: u8, [a, b, c, d]: [u64; 4]) -> Self {
        Self::with_keys(RandomState::with_seeds(a, b, c, d), slots, ipv6_prefix)
    }

    fn with_keys(keys: RandomState, slots: SlotCount, ipv6_prefix: u8) -> Self {
        let host_bits = u128::BITS.saturating_sub(u32::from(ipv6_prefix));
        Self {
            keys,
            slots,
            // Shifting by all 128 bits has no value; prefix 0 keeps none of them.
            ipv6_mask: u128::MAX.checked_shl(host_bits).unwrap_or(0),
        }
    }

    /// The slot of a client's address.
    #[must_use]
    pub fn slot(&self, ip: IpAddr) -> Slot {
        self.source(ip).slot
    }

    /// The slot of a user, in a table of its own.
    #[must_use]
    pub fn slot_of_user(&self, name: &str) -> Slot {
        self.slot_of_hash(self.keys.hash_one(name))
    }

    fn slot_of_hash(&self, hash: u64) -> Slot {
        // At most 2^26 slots: the masked hash fits.
        Slot::new((hash & u64::from(self.slots.get() - 1)) as u32)
    }

    /// The source that a client's address belongs to.
    #[must_use]
    pub fn source(&self, ip: IpAddr) -> Source {
        // IPv4 hashes in its mapped form. No IPv6 source can equal it: clearing low bits of an
        // address outside ::ffff:0:0/96 never yields one inside.
        let network = match canonical(ip) {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits() & self.ipv6_mask,
        };
        let hash = self.keys.hash_one(network);
        Source { slot: self.slot_of_hash(hash), fingerprint: Fingerprint::of_hash(hash) }
    }
}

impl std::fmt::Debug for SourceHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the keys: whoever reads a log must not learn which addresses meet.
        f.debug_struct("SourceHasher").field("slots", &self.slots).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const SLOTS: SlotCount = match SlotCount::new(1 << 20) {
        Ok(slots) => slots,
        Err(_) => panic!(),
    };

    fn hasher(ipv6_prefix: u8) -> SourceHasher {
        SourceHasher::with_seeds(SLOTS, ipv6_prefix, [1, 2, 3, 4])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn sources() {
        // (prefix, one, other, whether they are the same source)
        let table = [
            (64, "192.0.2.1", "192.0.2.1", true),
            (64, "192.0.2.1", "192.0.2.2", false),
            (64, "192.0.2.1", "::ffff:192.0.2.1", true),
            (64, "192.0.2.1", "::192.0.2.1", false),
            (0, "::ffff:192.0.2.1", "::ffff:192.0.2.2", false),
            (64, "2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            (64, "2001:db8::1", "2001:db8:0:1::1", false),
            (48, "2001:db8::1", "2001:db8:0:1::1", true),
            (63, "2001:db8::1", "2001:db8:0:1::1", true),
            (63, "2001:db8::1", "2001:db8:0:2::1", false),
            (128, "2001:db8::1", "2001:db8::2", false),
            (127, "2001:db8::2", "2001:db8::3", true),
            (255, "2001:db8::2", "2001:db8::3", false),
            (0, "2001:db8::1", "fe80::1", true),
            (0, "::1", "0.0.0.0", false),
        ];
        for (prefix, one, other, same) in table {
            let hasher = hasher(prefix);
            let [one, other] = [one, other].map(|text| hasher.source(ip(text)));
            assert_eq!(one.slot == other.slot, same, "/{prefix} {one:?} {other:?}");
            assert_eq!(one.fingerprint == other.fingerprint, same, "/{prefix} {one:?} {other:?}");
        }
    }

    #[test]
    fn keys_are_random_unless_given() {
        let some: Vec<IpAddr> = (0..64).map(|n| Ipv4Addr::from_bits(n).into()).collect();
        let slots = |hasher: &SourceHasher| some.iter().map(|ip| hasher.slot(*ip)).collect();
        let slots: [Vec<Slot>; 4] = [
            slots(&SourceHasher::new(SLOTS, 64)),
            slots(&SourceHasher::new(SLOTS, 64)),
            slots(&hasher(64)),
            slots(&hasher(64)),
        ];
        assert_ne!(slots[0], slots[1]);
        assert_eq!(slots[2], slots[3]);
    }

    /// Sources that meet in a slot are told apart: a fingerprint has no bits of the slot.
    #[test]
    fn fingerprints_differ_within_a_slot() {
        let hasher = SourceHasher::with_seeds(SlotCount::new(SlotCount::MIN).expect("a count"), 64, [1, 2, 3, 4]);
        let sources = (0..100_000).map(|n| hasher.source(Ipv4Addr::from_bits(n).into()));
        let of_one_slot: Vec<Source> = sources.filter(|source| source.slot == Slot::new(5)).collect();
        let fingerprints: HashSet<_> = of_one_slot.iter().map(|source| source.fingerprint).collect();
        // About 98; any two are the same with a chance of 2^-24.
        assert!(of_one_slot.len() > 50 && fingerprints.len() == of_one_slot.len(), "{}", of_one_slot.len());
    }

    /// Neighbouring addresses spread as chance would have it: n balls in m bins leave
    /// m (1 - e^(-n/m)) bins occupied, here 95,345 of 2^20 by 100,000.
    #[test]
    fn neighbours_spread() {
        let hasher = hasher(64);
        let v4: HashSet<_> = (0..100_000).map(|n| hasher.slot(Ipv4Addr::from_bits(0x0a00_0000 + n).into())).collect();
        let v6: HashSet<_> =
            (0..100_000).map(|n| hasher.slot(Ipv6Addr::from_bits((0x2001_0db8 << 96) + (n << 64)).into())).collect();
        for occupied in [v4.len(), v6.len()] {
            assert!((94_800..95_900).contains(&occupied), "{occupied}");
        }
    }

    proptest! {
        /// Below the prefix no bit matters, at any prefix, and every slot is in the table.
        #[test]
        fn host_bits_do_not_matter(bits: u128, host: u128, prefix in 0..=128u8) {
            let host = host & u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            let (one, other) = (Ipv6Addr::from_bits(bits), Ipv6Addr::from_bits(bits ^ host));
            prop_assume!(one.to_ipv4_mapped().is_none() && other.to_ipv4_mapped().is_none());
            let hasher = hasher(prefix);
            prop_assert_eq!(hasher.source(one.into()), hasher.source(other.into()));
        }
    }
}
