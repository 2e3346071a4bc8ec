//! Lists of addresses: who may relay, who is blocked, who may use a binding.
//!
//! An item is an address or an address and a prefix (`10.0.0.0/8`, `2001:db8::1`). Bits beyond the
//! prefix are ignored: `127.0.0.1/8` is `127.0.0.0/8`. An IPv4-mapped IPv6 item is the IPv4 one
//! (`::ffff:10.0.0.0/104` is `10.0.0.0/8`). No other IPv6 range holds any IPv4 address, not even
//! `::/0`: who opens a relay to all of IPv6 has not opened it to IPv4.

use super::source::canonical;
use ipnet::{IpNet, Ipv4Net};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Prefix of the IPv4-mapped addresses, `::ffff:0:0/96` (RFC 4291 section 2.5.5.2).
const MAPPED_PREFIX: u8 = 96;

/// A set of addresses, made once and asked often: by binary search over sorted ranges that neither
/// overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressRanges {
    ipv4: Ranges<Ipv4Addr>,
    ipv6: Ranges<Ipv6Addr>,
}

/// First and last address of each range, sorted.
type Ranges<T> = Box<[(T, T)]>;

impl AddressRanges {
    /// Whether a range holds `ip`, or the IPv4 address that it maps.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match canonical(ip) {
            IpAddr::V4(ip) => holds(&self.ipv4, ip),
            IpAddr::V6(ip) => holds(&self.ipv6, ip),
        }
    }

    /// The number of ranges that neither overlap nor touch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ipv4.len() + self.ipv6.len()
    }

    /// Whether there is no range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }
}

impl FromIterator<IpNet> for AddressRanges {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for net in nets {
            match canonical_net(net) {
                IpNet::V4(net) => ipv4.push((net.network(), net.broadcast())),
                IpNet::V6(net) => ipv6.push((net.network(), net.broadcast())),
            }
        }
        Self {
            ipv4: merged(ipv4, |ip| ip.to_bits().checked_add(1).map(Ipv4Addr::from_bits)),
            ipv6: merged(ipv6, |ip| ip.to_bits().checked_add(1).map(Ipv6Addr::from_bits)),
        }
    }
}

fn holds<T: Ord + Copy>(ranges: &[(T, T)], ip: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= ip);
    let nearest = after.checked_sub(1).and_then(|index| ranges.get(index));
    nearest.is_some_and(|(_, last)| ip <= *last)
}

/// The ranges sorted, with those that overlap or touch made one. `next` is the address after one,
/// none after the last there is.
fn merged<T: Ord + Copy>(mut ranges: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Ranges<T> {
    ranges.sort_unstable();
    ranges.dedup_by(|(first, last), (_, kept_last)| {
        let touches = next(*kept_last).is_none_or(|after| *first <= after);
        if touches {
            *kept_last = (*kept_last).max(*last);
        }
        touches
    });
    ranges.into()
}

/// `net` without its host bits, and as IPv4 if all of it is IPv4-mapped.
fn canonical_net(net: IpNet) -> IpNet {
    let prefix_in_ipv4 = net.prefix_len().checked_sub(MAPPED_PREFIX);
    let ipv4 = match (canonical(net.addr()), prefix_in_ipv4) {
        (IpAddr::V4(ip), Some(prefix)) if net.addr().is_ipv6() => Ipv4Net::new(ip, prefix).ok(),
        _ => None,
    };
    ipv4.map_or(net, IpNet::V4).trunc()
}

/// An item that is no address range: the operator's fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeError {
    /// The item as it was written.
    pub item: String,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = "expected ADDRESS or ADDRESS/PREFIX, like 192.0.2.1 or 2001:db8::/32";
        write!(f, "{:?} is not an address range: {expected}", self.item)
    }
}

impl std::error::Error for RangeError {}

/// One item of a list: `10.0.0.0/8`, or an address for itself alone. The result has no host bits
/// and is IPv4 where the item is IPv4-mapped.
///
/// # Errors
/// [`RangeError`], which names the item.
pub fn parse_range(item: &str) -> Result<IpNet, RangeError> {
    parse(item).map(canonical_net).ok_or_else(|| RangeError { item: item.to_owned() })
}

/// Not ipnet's own parser, which takes `010.0.0.0` for 10.0.0.0; for others it is 8.0.0.0.
fn parse(item: &str) -> Option<IpNet> {
    let Some((ip, prefix)) = item.split_once('/') else {
        return item.parse::<IpAddr>().ok().map(IpNet::from);
    };
    if !prefix.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    IpNet::new(ip.parse().ok()?, prefix.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnet::Ipv6Net;
    use proptest::prelude::*;

    fn ranges(items: &[&str]) -> AddressRanges {
        let parse = |item: &&str| parse_range(item).expect("a range");
        items.iter().map(parse).collect()
    }

    #[test]
    fn membership() {
        // (items, inside, outside)
        let table: &[(&[&str], &[&str], &[&str])] = &[
            (&[], &[], &["0.0.0.0", "::", "::ffff:0.0.0.0"]),
            (
                &["10.0.0.0/8", "192.0.2.7"],
                &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3", "192.0.2.7"],
                &["9.255.255.255", "11.0.0.0", "192.0.2.6", "192.0.2.8", "::10.0.0.0"],
            ),
            (&["127.0.0.1/8"], &["127.0.0.0", "127.9.9.9"], &["128.0.0.0"]),
            (&["0.0.0.0/0"], &["0.0.0.0", "255.255.255.255"], &["::", "::1"]),
            (&["::/0"], &["::", "2001:db8::1"], &["0.0.0.0", "::ffff:10.0.0.1"]),
            (
                &["::ffff:10.0.0.0/104", "::ffff:192.0.2.1"],
                &["10.0.0.0", "10.255.255.255", "::ffff:10.0.0.1", "192.0.2.1"],
                &["11.0.0.0", "192.0.2.2", "::"],
            ),
            (&["::ffff:0:0/96"], &["0.0.0.0", "255.255.255.255"], &["::"]),
            (&["::ffff:0:0/95"], &["::fffe:0:0"], &["0.0.0.0", "255.255.255.255"]),
            (
                &["2001:db8::/32", "fe80::1"],
                &["2001:db8::", "2001:db8:ffff::1", "fe80::1"],
                &["2001:db9::", "fe80::", "fe80::2"],
            ),
        ];
        for (items, inside, outside) in table {
            let ranges = ranges(items);
            assert_eq!(ranges.is_empty(), items.is_empty());
            for ip in *inside {
                assert!(ranges.contains(ip.parse().expect("an address")), "{items:?} {ip}");
            }
            for ip in *outside {
                assert!(!ranges.contains(ip.parse().expect("an address")), "{items:?} {ip}");
            }
        }
    }

    #[test]
    fn neighbours_and_overlaps_merge() {
        let table: &[(&[&str], usize)] = &[
            (&["10.0.0.0/9", "10.128.0.0/9"], 1),
            (&["10.128.0.0/9", "10.0.0.0/9", "10.3.0.0/16"], 1),
            (&["0.0.0.0/1", "128.0.0.0/1", "255.255.255.255"], 1),
            (&["10.0.0.0", "10.0.0.2"], 2),
        ];
        for (items, count) in table {
            assert_eq!(ranges(items).ipv4.len(), *count, "{items:?}");
        }
        assert_eq!(ranges(&["::/1", "8000::/1", "ffff::", "::"]).ipv6.len(), 1);
    }

    #[test]
    fn items() {
        let table = [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ];
        for (item, shown) in table {
            assert_eq!(parse_range(item).map(|net| net.to_string()).as_deref(), Ok(shown));
        }
        let bad = [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0/8",
            "::/129",
            " ::1",
            "10.0.0.0/255.0.0.0",
            "010.0.0.0/8",
            "010.0.0.1",
            "localhost",
            "[::1]",
            "10.0.0.0/8/8",
        ];
        for item in bad {
            let error = parse_range(item).expect_err(item);
            assert!(error.to_string().contains(&format!("{item:?}")), "{error}");
        }
    }

    /// Addresses that lie close together, so that ranges meet: in 10.0.0.0/24, its mapped form,
    /// at both ends of the address spaces, and anywhere.
    fn address() -> impl Strategy<Value = IpAddr> {
        let near = prop_oneof![
            (0..256u32).prop_map(|n| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n))),
            (0..256u32).prop_map(|n| { IpAddr::V6(Ipv4Addr::from_bits(0x0a00_0000 + n).to_ipv6_mapped()) }),
            (0..8u32).prop_map(|n| IpAddr::V4(Ipv4Addr::from_bits(u32::MAX - n))),
            (0..8u128).prop_map(|n| IpAddr::V6(Ipv6Addr::from_bits(u128::MAX - n))),
            (0..256u128).prop_map(|n| IpAddr::V6(Ipv6Addr::from_bits(n))),
        ];
        prop_oneof![8 => near, 1 => any::<IpAddr>()]
    }

    fn net() -> impl Strategy<Value = IpNet> {
        (address(), 0..10u8, 0..=128u8, prop::bool::weighted(0.1)).prop_map(|(ip, host_bits, anywhere, any)| {
            let width = if ip.is_ipv4() { 32 } else { 128 };
            let prefix = if any { anywhere.min(width) } else { width - host_bits };
            IpNet::new(ip, prefix).expect("a prefix within the width")
        })
    }

    /// One net, one address, no cleverness. Mapped addresses are compared as IPv6 with nets in
    /// the mapped range and as IPv4 with IPv4 nets.
    fn net_holds(net: &IpNet, ip: IpAddr) -> bool {
        let mapped_range: Ipv6Net = "::ffff:0:0/96".parse().expect("a net");
        let mapped = match ip {
            IpAddr::V4(ip) => Some(ip.to_ipv6_mapped()),
            IpAddr::V6(ip) => mapped_range.contains(&ip).then_some(ip),
        };
        match (net, mapped, ip) {
            (IpNet::V4(net), Some(mapped), _) => mapped.to_ipv4_mapped().is_some_and(|ip| net.contains(&ip)),
            (IpNet::V6(net), Some(mapped), _) => mapped_range.contains(&net.trunc()) && net.contains(&mapped),
            (IpNet::V6(net), None, IpAddr::V6(ip)) => net.contains(&ip),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_scan(
            nets in prop::collection::vec(net(), 0..8),
            ips in prop::collection::vec(address(), 1..32),
        ) {
            let ranges: AddressRanges = nets.iter().copied().collect();
            let edges = nets.iter().flat_map(|net| [net.network(), net.broadcast()]);
            for ip in ips.into_iter().chain(edges) {
                let expected = nets.iter().any(|net| net_holds(net, ip));
                prop_assert_eq!(ranges.contains(ip), expected, "{} in {:?}", ip, &nets);
            }
        }

        #[test]
        fn ranges_are_apart(nets in prop::collection::vec(net(), 0..8)) {
            let ranges: AddressRanges = nets.into_iter().collect();
            for pair in ranges.ipv4.windows(2) {
                prop_assert!(u64::from(pair[0].1.to_bits()) + 1 < pair[1].0.to_bits().into());
            }
            for pair in ranges.ipv6.windows(2) {
                prop_assert!(pair[0].1.to_bits() + 1 < pair[1].0.to_bits());
            }
        }

        #[test]
        fn parsing_is_total(item in "[0-9a-f:./]{0,24}") {
            if let Ok(net) = parse_range(&item) {
                prop_assert_eq!(parse_range(&net.to_string()), Ok(net));
            }
        }
    }
}
