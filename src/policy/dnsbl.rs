//! DNS block lists (RFC 5782): the names that are asked for, and what the answers mean.
//!
//! A list is a zone. A client is on it when the zone has an address in 127.0.0.0/8 for the client's
//! name there. Who asks, and how long that may take, is `control`'s and `shard`'s business.

use super::source::canonical;
use crate::limits::{DNSBL_CLIENT_OCTETS, DNSBL_ZONE_MAX_OCTETS};
use crate::smtp::address::is_domain;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// A block list's zone: a domain name that has room for a client before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockListZone(Box<str>);

/// What is no zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZoneError {
    /// It is no domain name.
    NotADomain(String),
    /// With an IPv6 address before it, it would be longer than a domain name can be.
    TooLong(String),
}

impl fmt::Display for ZoneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ZoneError::NotADomain(zone) => write!(f, "{zone:?} is not a domain name; write one like bl.example.org"),
            ZoneError::TooLong(zone) => write!(f, "{zone:?}: longer than {DNSBL_ZONE_MAX_OCTETS} octets"),
        }
    }
}

impl std::error::Error for ZoneError {}

impl FromStr for BlockListZone {
    type Err = ZoneError;

    fn from_str(zone: &str) -> Result<Self, ZoneError> {
        if !is_domain(zone.as_bytes()) || zone.starts_with('[') {
            return Err(ZoneError::NotADomain(zone.to_owned()));
        }
        if zone.len() > DNSBL_ZONE_MAX_OCTETS {
            return Err(ZoneError::TooLong(zone.to_owned()));
        }
        Ok(BlockListZone(zone.into()))
    }
}

impl BlockListZone {
    /// The client's name in this zone, absolute.
    ///
    //= RFC 5782 section 2.1: the octets of an IPv4 address in reverse, in decimal.
    //= RFC 5782 section 2.4: the nibbles of an IPv6 address in reverse, in hexadecimal.
    #[must_use]
    pub fn name_of(&self, client: IpAddr) -> String {
        let mut name = String::with_capacity(DNSBL_CLIENT_OCTETS + self.0.len() + 1);
        // Writing to a String cannot fail.
        match canonical(client) {
            IpAddr::V4(client) => client.octets().iter().rev().for_each(|octet| {
                let _ = write!(name, "{octet}.");
            }),
            IpAddr::V6(client) => client.octets().iter().rev().for_each(|octet| {
                let _ = write!(name, "{:x}.{:x}.", octet & 0xf, octet >> 4);
            }),
        }
        name.push_str(&self.0);
        name.push('.');
        name
    }
}

/// What is known of a client by block lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// It is on one.
    Listed,
    /// It is on none.
    Clean,
    /// A list did not answer, and it is on none of those that did.
    Failed,
}

/// What a zone's answer says, by the addresses in it.
///
//= RFC 5782 section 2.1: an address in 127.0.0.0/8; what is no such address is no answer of a list,
//= but that of a parked domain or of a resolver that invents some.
#[must_use]
pub fn judge_answer(addresses: impl IntoIterator<Item = Ipv4Addr>) -> Listing {
    let mut listing = Listing::Clean;
    for address in addresses {
        match address.octets() {
            // By custom a list that does not serve who asks says so in this range: the question was
            // wrong, came through a public resolver, or was one too many. It says nothing of the client.
            [127, 255, 255, _] => listing = Listing::Failed,
            [127, ..] => return Listing::Listed,
            _ => {}
        }
    }
    listing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(text: &str) -> BlockListZone {
        text.parse().expect("a zone")
    }

    #[test]
    fn names() {
        for (client, expected) in [
            // The examples of RFC 5782 sections 2.1 and 2.4.
            ("192.0.2.99", "99.2.0.192.bad.example.com."),
            ("127.0.0.2", "2.0.0.127.bad.example.com."),
            (
                "2001:db8:1:2:3:4:567:89ab",
                "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.bad.example.com.",
            ),
            ("::FFFF:7F00:2", "2.0.0.127.bad.example.com."),
        ] {
            let name = zone("bad.example.com").name_of(client.parse().expect("an address"));
            assert_eq!(name, expected, "{client}");
        }
    }

    #[test]
    fn zones() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{}", "b".repeat(DNSBL_ZONE_MAX_OCTETS - 128));
        // RFC 1035 section 2.3.4: 255 octets on the wire are 253 and a dot as text.
        assert_eq!(zone(&longest).name_of(IpAddr::from([0; 16])).len(), 254);
        for (text, error) in [
            ("", ZoneError::NotADomain(String::new())),
            ("bl.example.", ZoneError::NotADomain("bl.example.".to_owned())),
            ("b l.example", ZoneError::NotADomain("b l.example".to_owned())),
            ("[192.0.2.1]", ZoneError::NotADomain("[192.0.2.1]".to_owned())),
            (&format!("{longest}b"), ZoneError::TooLong(format!("{longest}b"))),
        ] {
            assert_eq!(text.parse::<BlockListZone>(), Err(error));
        }
    }

    #[test]
    fn answers() {
        for (addresses, expected) in [
            (&[][..], Listing::Clean),
            (&[[127, 0, 0, 2]], Listing::Listed),
            (&[[127, 0, 0, 10], [127, 0, 0, 4]], Listing::Listed),
            (&[[127, 255, 254, 1]], Listing::Listed),
            // A parked domain, a resolver that leads to advertisements.
            (&[[192, 0, 2, 1]], Listing::Clean),
            (&[[126, 255, 255, 255], [128, 0, 0, 1]], Listing::Clean),
            (&[[192, 0, 2, 1], [127, 0, 0, 2]], Listing::Listed),
            // "You may not ask."
            (&[[127, 255, 255, 254]], Listing::Failed),
            (&[[127, 255, 255, 254], [127, 0, 0, 2]], Listing::Listed),
        ] {
            assert_eq!(judge_answer(addresses.iter().copied().map(Ipv4Addr::from)), expected, "{addresses:?}");
        }
    }
}
