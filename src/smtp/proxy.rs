//! The header of the PROXY protocol, versions 1 and 2: whose connection a proxy brings.
//!
//! The source is HAProxy's specification, `proxy-protocol.txt`; section numbers here are its own. The
//! parser is total: what begins like a header and is cut off needs more octets, of which there is a
//! bound; everything that the specification does not allow is malformed, and the connection's end
//! (2.1: "any sequence which does not exactly match the protocol must be discarded").
//!
//! Where the specification leaves a choice:
//! - UNKNOWN, LOCAL and UNSPEC, and the kinds of connection that mail does not come by (UDP, Unix
//!   sockets), are headers without an address: the proxy's own counts (2.2: a receiver falls back to
//!   UNSPEC "for the valid combinations above that it does not support").
//! - What follows UNKNOWN in version 1 is ignored, but no lone CR or LF is: it ends a line for some.
//! - Of the TLVs of version 2 the lengths are checked, and CRC32C is verified, once; the others are
//!   skipped. Where the length of the addresses is not known (LOCAL, UNSPEC) all of the block is.

use crate::limits::{PROXY_HEADER_MAX_OCTETS, PROXY_LINE_MAX_OCTETS};
use memchr::memchr2;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// What version 1 begins with (2.1).
const LINE_START: &[u8] = b"PROXY ";
/// What version 2 begins with (2.2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and protocol, length (2.2).
const FIXED_OCTETS: usize = 16;
/// Two addresses of 4 octets and two ports.
const IPV4_OCTETS: usize = 12;
/// Two addresses of 16 octets and two ports.
const IPV6_OCTETS: usize = 36;
/// Two paths of 108 octets.
const UNIX_OCTETS: usize = 216;

/// The kind of a TLV (2.2.3).
const CRC32C: u8 = 0x03;

/// What was made of the first octets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header, which will have so many octets at most.
    NeedMore {
        /// Always more than there were.
        octets_max: usize,
    },
    /// No header, whatever follows.
    Malformed,
    /// A header.
    Done {
        /// Its octets. What follows them is the client's.
        consumed: usize,
        /// Where the connection comes from; `None`: from the proxy itself, or it cannot tell.
        source: Option<SocketAddr>,
    },
}

/// What the first octets of a connection look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// No header.
    Other,
    /// A header perhaps: it depends on what follows.
    Unclear,
    /// A header of version 1, valid or not.
    Line,
    /// A header of version 2, valid or not.
    Binary,
}

/// Looks whether `input`, the first octets of a connection, begins a header.
#[must_use]
pub fn beginning(input: &[u8]) -> Beginning {
    if input.starts_with(LINE_START) {
        Beginning::Line
    } else if input.starts_with(SIGNATURE) {
        Beginning::Binary
    } else if LINE_START.starts_with(input) || SIGNATURE.starts_with(input) {
        Beginning::Unclear
    } else {
        Beginning::Other
    }
}

/// Parses the header at the beginning of `input`.
#[must_use]
pub fn parse(input: &[u8]) -> Parsed {
    match beginning(input) {
        Beginning::Other => Parsed::Malformed,
        Beginning::Unclear => Parsed::NeedMore { octets_max: PROXY_HEADER_MAX_OCTETS },
        Beginning::Line => parse_line(input),
        Beginning::Binary => parse_binary(input),
    }
}

/// Version 1 (2.1).
fn parse_line(input: &[u8]) -> Parsed {
    let window = &input[..input.len().min(PROXY_LINE_MAX_OCTETS)];
    let (line, line_end) = match memchr2(b'\r', b'\n', window) {
        Some(end) => window.split_at(end),
        None => (window, &b""[..]),
    };
    match line_end {
        [b'\r', b'\n', ..] => match source_of_line(line) {
            Some(source) => Parsed::Done { consumed: line.len() + 2, source },
            None => Parsed::Malformed,
        },
        [] | [b'\r'] if window.len() < PROXY_LINE_MAX_OCTETS => Parsed::NeedMore { octets_max: PROXY_LINE_MAX_OCTETS },
        _ => Parsed::Malformed,
    }
}

/// The source that a line without its end tells; the outer `None`: it is malformed.
fn source_of_line(line: &[u8]) -> Option<Option<SocketAddr>> {
    let told = line.strip_prefix(LINE_START)?;
    if told == b"UNKNOWN" || told.starts_with(b"UNKNOWN ") {
        return Some(None);
    }
    let mut fields = std::str::from_utf8(told).ok()?.split(' ');
    let source = match fields.next()? {
        "TCP4" => source_of_fields::<Ipv4Addr>(&mut fields),
        "TCP6" => source_of_fields::<Ipv6Addr>(&mut fields),
        _ => None,
    }?;
    fields.next().is_none().then_some(Some(source))
}

/// Both addresses and both ports, of which the source is kept.
fn source_of_fields<'l, A: FromStr + Into<IpAddr>>(fields: &mut impl Iterator<Item = &'l str>) -> Option<SocketAddr> {
    // These parsers take no leading zeros in IPv4, and nothing but the forms of RFC 4291 section 2.2.
    let source: A = fields.next()?.parse().ok()?;
    let _destination: A = fields.next()?.parse().ok()?;
    let port = parse_port(fields.next()?)?;
    parse_port(fields.next()?)?;
    Some(SocketAddr::new(source.into(), port))
}

/// A port in decimal digits, without leading zeros.
fn parse_port(text: &str) -> Option<u16> {
    let is_canonical = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| is_canonical)
}

/// What a header of version 2 is about (its 13th and 14th octets).
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A connection whose addresses are not told, or not here.
    Unspecified,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// Something else, with so many octets of addresses.
    Foreign(usize),
}

impl Kind {
    fn of(version_command: u8, family_protocol: u8) -> Option<Self> {
        match version_command {
            0x20 => return Some(Kind::Unspecified),
            0x21 => {}
            _ => return None,
        }
        match (family_protocol >> 4, family_protocol & 0xf) {
            (1, 1) => Some(Kind::Tcp4),
            (2, 1) => Some(Kind::Tcp6),
            (0, 0..=2) | (1..=3, 0) => Some(Kind::Unspecified),
            (1, 2) => Some(Kind::Foreign(IPV4_OCTETS)),
            (2, 2) => Some(Kind::Foreign(IPV6_OCTETS)),
            (3, 1 | 2) => Some(Kind::Foreign(UNIX_OCTETS)),
            _ => None,
        }
    }

    /// Octets of its addresses; `None`: nobody knows.
    fn addresses_octets(self) -> Option<usize> {
        match self {
            Kind::Unspecified => None,
            Kind::Tcp4 => Some(IPV4_OCTETS),
            Kind::Tcp6 => Some(IPV6_OCTETS),
            Kind::Foreign(octets) => Some(octets),
        }
    }

    fn source(self, addresses: &[u8]) -> Option<SocketAddr> {
        match self {
            Kind::Tcp4 => source::<4>(addresses),
            Kind::Tcp6 => source::<16>(addresses),
            Kind::Unspecified | Kind::Foreign(_) => None,
        }
    }
}

/// Both addresses of `N` octets, then both ports.
fn source<const N: usize>(addresses: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; N]>,
{
    let address = *addresses.first_chunk::<N>()?;
    let port = *addresses.get(2 * N..)?.first_chunk()?;
    Some(SocketAddr::new(address.into(), u16::from_be_bytes(port)))
}

/// Version 2 (2.2).
fn parse_binary(input: &[u8]) -> Parsed {
    let Some((&[.., version_command, family_protocol, high, low], _)) = input.split_first_chunk::<FIXED_OCTETS>()
    else {
        return Parsed::NeedMore { octets_max: PROXY_HEADER_MAX_OCTETS };
    };
    let octets = FIXED_OCTETS + usize::from(u16::from_be_bytes([high, low]));
    let kind = Kind::of(version_command, family_protocol).filter(|_| octets <= PROXY_HEADER_MAX_OCTETS);
    let Some(kind) = kind else { return Parsed::Malformed };
    let Some(header) = input.get(..octets) else { return Parsed::NeedMore { octets_max: octets } };
    match source_of_header(kind, header) {
        Some(source) => Parsed::Done { consumed: octets, source },
        None => Parsed::Malformed,
    }
}

/// The source that a whole header tells; the outer `None`: it is malformed.
fn source_of_header(kind: Kind, header: &[u8]) -> Option<Option<SocketAddr>> {
    let Some(addresses_octets) = kind.addresses_octets() else { return Some(None) };
    let tlvs_at = FIXED_OCTETS + addresses_octets;
    let addresses = header.get(FIXED_OCTETS..tlvs_at)?;
    is_sound(header, tlvs_at)?.then(|| kind.source(addresses))
}

/// Whether the header's checksum is right, if it has one; `None`: its TLVs, from `at` on, do not fit into it.
fn is_sound(header: &[u8], mut at: usize) -> Option<bool> {
    let mut checksum = None;
    while at < header.len() {
        let &[kind, high, low] = header.get(at..)?.first_chunk()?;
        let value_at = at + 3;
        at = value_at + usize::from(u16::from_be_bytes([high, low]));
        let value = header.get(value_at..at)?;
        if kind == CRC32C && checksum.replace((value_at, value)).is_some() {
            // Each of two would have to be reckoned with the other.
            return None;
        }
    }
    let Some((at, value)) = checksum else { return Some(true) };
    let told = u32::from_be_bytes(value.try_into().ok()?);
    // Of the header with zeros in the checksum's place.
    let (before, after) = (header.get(..at)?, header.get(at + 4..)?);
    let reckoned = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]), after);
    Some(told == reckoned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED_LINE: Parsed = Parsed::NeedMore { octets_max: PROXY_LINE_MAX_OCTETS };

    fn done(consumed: usize, source: Option<&str>) -> Parsed {
        Parsed::Done { consumed, source: source.map(|source| source.parse().expect("an address and a port")) }
    }

    /// A header of version 2.
    fn binary(version_command: u8, family_protocol: u8, block: &[u8]) -> Vec<u8> {
        let octets = u16::try_from(block.len()).expect("a block").to_be_bytes();
        [SIGNATURE, &[version_command, family_protocol], &octets, block].concat()
    }

    /// Of this kind, with addresses of zeros and these TLVs.
    fn with_tlvs(family_protocol: u8, addresses_octets: usize, tlvs: &[&[u8]]) -> Vec<u8> {
        binary(0x21, family_protocol, &[&vec![0; addresses_octets][..], &tlvs.concat()].concat())
    }

    /// Puts the header's checksum into its last four octets.
    fn sealed(mut header: Vec<u8>) -> Vec<u8> {
        let checksum = crc32c::crc32c(&header).to_be_bytes();
        let at = header.len() - checksum.len();
        header.splice(at.., checksum);
        header
    }

    fn ipv4() -> Vec<u8> {
        binary(0x21, 0x11, &[192, 0, 2, 1, 198, 51, 100, 2, 0xdd, 0xd4, 0, 25])
    }

    fn ipv6() -> Vec<u8> {
        let mut block = vec![0x20, 0x01, 0x0d, 0xb8];
        block.resize(32, 7);
        block.extend([0, 1, 0, 25]);
        binary(0x21, 0x21, &block)
    }

    /// What the lines come to, with CRLF behind each.
    #[test]
    fn lines() {
        let longest = format!("PROXY UNKNOWN {}", "x".repeat(PROXY_LINE_MAX_OCTETS - 16));
        let table: &[(&str, Option<&str>)] = &[
            ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 25", Some("192.0.2.1:56324")),
            ("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0", Some("255.255.255.255:65535")),
            ("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535", Some("0.0.0.0:0")),
            ("PROXY TCP6 2001:db8::1 ::1 1 25", Some("[2001:db8::1]:1")),
            ("PROXY TCP6 2001:DB8:0:0:0:0:0:1 :: 1 25", Some("[2001:db8::1]:1")),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.2 1 25", Some("[::ffff:192.0.2.1]:1")),
            ("PROXY UNKNOWN", None),
            ("PROXY UNKNOWN ", None),
            ("PROXY UNKNOWN 192.0.2.1 whatever \0 \u{e9}", None),
            (&longest, None),
        ];
        for (line, source) in table {
            let header = format!("{line}\r\n");
            for behind in ["", "EHLO x\r\n", "\r\n", "\n", "PROXY UNKNOWN\r\n"] {
                let input = header.clone() + behind;
                assert_eq!(parse(input.as_bytes()), done(header.len(), *source), "{input:?}");
            }
            for cut in 1..header.len() {
                let octets_max = if cut < LINE_START.len() { PROXY_HEADER_MAX_OCTETS } else { PROXY_LINE_MAX_OCTETS };
                assert_eq!(parse(&header.as_bytes()[..cut]), Parsed::NeedMore { octets_max }, "{line:?} {cut}");
            }
        }
    }

    #[test]
    fn malformed_lines() {
        let addresses = "192.0.2.1 198.51.100.2";
        for line in [
            "PROXY ",
            "PROXY  TCP4 192.0.2.1 198.51.100.2 1 25",
            "PROXY TCP4",
            "PROXY TCP4 ",
            "PROXY TCP4 192.0.2.1",
            &format!("PROXY TCP4 {addresses}"),
            &format!("PROXY TCP4 {addresses} 1"),
            &format!("PROXY TCP4 {addresses} 1 "),
            &format!("PROXY TCP4 {addresses} 1 25 "),
            &format!("PROXY TCP4 {addresses} 1 25 3"),
            &format!("PROXY TCP4  {addresses} 1 25"),
            &format!("PROXY TCP4 {addresses}  1 25"),
            &format!("PROXY TCP4\t{addresses} 1 25"),
            &format!("PROXY TCP4 {addresses} 01 25"),
            &format!("PROXY TCP4 {addresses} 1 025"),
            &format!("PROXY TCP4 {addresses} 00 25"),
            &format!("PROXY TCP4 {addresses} +1 25"),
            &format!("PROXY TCP4 {addresses} -1 25"),
            &format!("PROXY TCP4 {addresses} 0x1 25"),
            &format!("PROXY TCP4 {addresses} 65536 25"),
            &format!("PROXY TCP4 {addresses} 1 65536"),
            &format!("PROXY TCP4 {addresses} 99999999999999999999 25"),
            &format!("PROXY TCP6 {addresses} 1 25"),
            &format!("PROXY TCP {addresses} 1 25"),
            &format!("PROXY TCP5 {addresses} 1 25"),
            &format!("PROXY UDP4 {addresses} 1 25"),
            &format!("PROXY tcp4 {addresses} 1 25"),
            "PROXY TCP4 2001:db8::1 ::1 1 25",
            "PROXY TCP4 ::ffff:192.0.2.1 198.51.100.2 1 25",
            "PROXY TCP4 192.0.2.01 198.51.100.2 1 25",
            "PROXY TCP4 192.0.2 198.51.100.2 1 25",
            "PROXY TCP4 192.0.2.256 198.51.100.2 1 25",
            "PROXY TCP4 192.0.2.1 198.51.100.2.3 1 25",
            "PROXY TCP4 192.0.2.1/32 198.51.100.2 1 25",
            "PROXY TCP4 0xc0000201 198.51.100.2 1 25",
            "PROXY TCP4 3221225985 198.51.100.2 1 25",
            "PROXY TCP6 2001:db8::1 192.0.2.1 1 25",
            "PROXY TCP6 2001:db8::1::2 ::1 1 25",
            "PROXY TCP6 1:2:3:4:5:6:7 ::1 1 25",
            "PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 25",
            "PROXY TCP6 1:2:3:4:5:6:7::8:9 ::1 1 25",
            "PROXY TCP6 00001::1 ::1 1 25",
            "PROXY TCP6 [2001:db8::1] ::1 1 25",
            "PROXY TCP6 fe80::1%eth0 ::1 1 25",
            "PROXY TCP6 g::1 ::1 1 25",
            "PROXY unknown",
            "PROXY UNKNOWNS",
            "PROXY UNKNOWN\t1",
            "PROXY \u{e9}",
        ] {
            assert_eq!(parse(format!("{line}\r\n").as_bytes()), Parsed::Malformed, "{line:?}");
        }
        // Line ends that are none, with and without more behind them.
        for octets in [
            &b"PROXY UNKNOWN\n"[..],
            b"PROXY UNKNOWN\n\r\n",
            b"PROXY UNKNOWN\r\r\n",
            b"PROXY UNKNOWN \r x\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 1 25\nEHLO x\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 1 25\rEHLO x\r\n",
            b"PROXY \n",
        ] {
            assert_eq!(parse(octets), Parsed::Malformed, "{}", octets.escape_ascii());
        }
        assert_eq!(parse(b"PROXY UNKNOWN\r"), NEED_LINE);
    }

    #[test]
    fn a_line_ends_within_its_limit() {
        let longer = format!("PROXY UNKNOWN {}\r\n", "x".repeat(PROXY_LINE_MAX_OCTETS - 15));
        assert_eq!(longer.len(), PROXY_LINE_MAX_OCTETS + 1);
        assert_eq!(parse(longer.as_bytes()), Parsed::Malformed);
        // As soon as that is clear: its CR is where the LF should be.
        assert_eq!(parse(&longer.as_bytes()[..PROXY_LINE_MAX_OCTETS]), Parsed::Malformed);
        assert_eq!(parse(&longer.as_bytes()[..PROXY_LINE_MAX_OCTETS - 1]), NEED_LINE);
    }

    #[test]
    fn binary_headers() {
        let ssl: &[u8] = &[0x20, 0, 5, 1, 0, 0, 0, 0];
        let table = [
            (ipv4(), Some("192.0.2.1:56788")),
            (ipv6(), Some("[2001:db8:707:707:707:707:707:707]:1")),
            (with_tlvs(0x11, IPV4_OCTETS, &[&[4, 0, 0], ssl, &[0xea, 0, 1, 9]]), Some("0.0.0.0:0")),
            (with_tlvs(0x21, IPV6_OCTETS, &[ssl]), Some("[::]:0")),
            (sealed(with_tlvs(0x11, IPV4_OCTETS, &[ssl, &[3, 0, 4, 0, 0, 0, 0]])), Some("0.0.0.0:0")),
            // LOCAL, whatever else it says.
            (binary(0x20, 0x00, b""), None),
            (binary(0x20, 0x11, &[1; 12]), None),
            (binary(0x20, 0xff, &[3; 7]), None),
            // Nothing is told, or nothing that mail comes by.
            (binary(0x21, 0x00, b""), None),
            (binary(0x21, 0x00, &[3; 100]), None),
            (binary(0x21, 0x01, b""), None),
            (binary(0x21, 0x02, b""), None),
            (binary(0x21, 0x10, b""), None),
            (binary(0x21, 0x20, &[9; 5]), None),
            (binary(0x21, 0x30, b""), None),
            (with_tlvs(0x12, IPV4_OCTETS, &[]), None),
            (with_tlvs(0x22, IPV6_OCTETS, &[ssl]), None),
            (with_tlvs(0x31, UNIX_OCTETS, &[]), None),
            (sealed(with_tlvs(0x32, UNIX_OCTETS, &[&[3, 0, 4, 0, 0, 0, 0]])), None),
            (binary(0x20, 0x00, &vec![0; PROXY_HEADER_MAX_OCTETS - FIXED_OCTETS]), None),
        ];
        for (header, source) in table {
            for behind in [&b""[..], b"EHLO x\r\n", b"\x16\x03\x01", &header] {
                let input = [&header, behind].concat();
                assert_eq!(parse(&input), done(header.len(), source), "{}", input.escape_ascii());
            }
            for cut in 1..header.len() {
                let octets_max = if cut < FIXED_OCTETS { PROXY_HEADER_MAX_OCTETS } else { header.len() };
                assert_eq!(parse(&header[..cut]), Parsed::NeedMore { octets_max }, "{cut}");
            }
        }
    }

    #[test]
    fn malformed_binary_headers() {
        let checksum: &[u8] = &[3, 0, 4, 0, 0, 0, 0];
        let mut altered = sealed(with_tlvs(0x11, IPV4_OCTETS, &[checksum]));
        altered[FIXED_OCTETS] ^= 1;
        let mut table = vec![
            binary(0x11, 0x11, &[0; 12]),
            binary(0x31, 0x11, &[0; 12]),
            binary(0x01, 0x11, &[0; 12]),
            binary(0x22, 0x11, &[0; 12]),
            binary(0x2f, 0x00, b""),
            binary(0x21, 0x41, &[0; 12]),
            binary(0x21, 0xf0, b""),
            binary(0x21, 0x13, &[0; 12]),
            binary(0x21, 0x0f, b""),
            binary(0x21, 0x11, &[0; 11]),
            binary(0x21, 0x11, b""),
            binary(0x21, 0x21, &[0; 35]),
            binary(0x21, 0x22, &[0; 12]),
            binary(0x21, 0x31, &[0; 215]),
            // TLVs that do not fit.
            with_tlvs(0x11, IPV4_OCTETS, &[&[4]]),
            with_tlvs(0x11, IPV4_OCTETS, &[&[4, 0]]),
            with_tlvs(0x11, IPV4_OCTETS, &[&[4, 0, 1]]),
            with_tlvs(0x11, IPV4_OCTETS, &[&[4, 0xff, 0xff, 0]]),
            with_tlvs(0x21, IPV6_OCTETS, &[&[4, 0, 0], &[1, 0]]),
            // Checksums.
            with_tlvs(0x11, IPV4_OCTETS, &[checksum]),
            altered,
            with_tlvs(0x11, IPV4_OCTETS, &[&[3, 0, 0]]),
            with_tlvs(0x11, IPV4_OCTETS, &[&[3, 0, 3, 0, 0, 0]]),
            with_tlvs(0x11, IPV4_OCTETS, &[&[3, 0, 5, 0, 0, 0, 0, 0]]),
            sealed(with_tlvs(0x11, IPV4_OCTETS, &[checksum, checksum])),
            binary(0x20, 0x00, &vec![0; PROXY_HEADER_MAX_OCTETS - FIXED_OCTETS + 1]),
            binary(0x21, 0x00, &vec![0; 0xffff]),
        ];
        // The text of one protocol, the beginning of the other.
        table.extend([b"EHLO x\r\n".to_vec(), b"PROXX ".to_vec(), b"proxy TCP4".to_vec(), b"\r\nEHLO".to_vec()]);
        for at in 0..SIGNATURE.len() {
            let mut header = ipv4();
            header[at] ^= 0x20;
            table.push(header);
        }
        for header in table {
            assert_eq!(parse(&header), Parsed::Malformed, "{}", header.escape_ascii());
        }
    }

    /// As HAProxy 2.6 writes them, asked for a checksum and an id of the connection.
    #[test]
    fn headers_of_haproxy() {
        let line = b"PROXY TCP4 127.5.6.7 127.0.0.1 43925 36523\r\n";
        assert_eq!(parse(line), done(line.len(), Some("127.5.6.7:43925")));
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x1c\x7f\x05\x06\x07\x7f\0\0\x01\xb9\x01\x96\x01\
            \x03\x00\x04\xbd\x8c\xcd\x8d\x05\x00\x062696-3"
            .to_vec();
        assert_eq!(parse(&header), done(header.len(), Some("127.5.6.7:47361")));
        // One of another type is no checksum that anybody could verify.
        let type_of_checksum = FIXED_OCTETS + 12;
        for at in (FIXED_OCTETS..header.len()).filter(|&at| at != type_of_checksum) {
            header[at] ^= 4;
            assert_eq!(parse(&header), Parsed::Malformed, "{at}");
            header[at] ^= 4;
        }
    }

    #[test]
    fn beginnings() {
        for (input, expected) in [
            (&b""[..], Beginning::Unclear),
            (b"P", Beginning::Unclear),
            (b"PROXY", Beginning::Unclear),
            (b"PROXY ", Beginning::Line),
            (b"PROXY nonsense", Beginning::Line),
            (b"PROXY\r", Beginning::Other),
            (b"PROX ", Beginning::Other),
            (b"proxy ", Beginning::Other),
            (b" PROXY ", Beginning::Other),
            (b"\r", Beginning::Unclear),
            (b"\r\n\r\n", Beginning::Unclear),
            (b"\r\n\r\n\0\r\nQUIT", Beginning::Unclear),
            (b"\r\n\r\n\0\r\nQUIT\n", Beginning::Binary),
            (b"\r\n\r\n\0\r\nQUIT\n\xff", Beginning::Binary),
            (b"\r\n\r\n\0\r\nQUIT\r\n", Beginning::Other),
            (b"\r\nEHLO x\r\n", Beginning::Other),
            (b"EHLO x\r\n", Beginning::Other),
        ] {
            assert_eq!(beginning(input), expected, "{}", input.escape_ascii());
        }
    }
}
