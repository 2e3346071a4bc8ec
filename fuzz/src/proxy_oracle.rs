//! The PROXY protocol's header, written down once more from its specification, octet by octet, and the
//! product's parser against it.

use gatepost::limits::{PROXY_HEADER_MAX_OCTETS, PROXY_LINE_MAX_OCTETS};
use gatepost::smtp::proxy::{self, Beginning, Parsed};
use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
const WORD: [u8; 6] = [0x50, 0x52, 0x4f, 0x58, 0x59, 0x20];

/// Compares what both make of `input`, and of what it begins with.
pub fn compare(input: &[u8]) -> Parsed {
    let shown = input.escape_ascii();
    let found = proxy::parse(input);
    assert_eq!(found, header(input), "{shown}");
    assert_eq!(proxy::beginning(input), beginning(input), "{shown}");
    if let Parsed::Done { consumed, .. } = found {
        assert!((15..=PROXY_HEADER_MAX_OCTETS).contains(&consumed) && consumed <= input.len(), "{shown}");
    }
    // A header that is long enough has every length below it.
    let step = 1 + input.len() / 256;
    for cut in (0..input.len()).step_by(step) {
        match (proxy::parse(&input[..cut]), found) {
            (Parsed::NeedMore { octets_max }, Parsed::Done { consumed, .. }) => {
                assert!(cut < consumed && consumed <= octets_max, "{cut} {shown}");
            }
            (Parsed::NeedMore { octets_max }, _) => {
                assert!(cut < octets_max && octets_max <= PROXY_HEADER_MAX_OCTETS, "{cut} {shown}");
            }
            (settled, _) => assert_eq!(settled, found, "{cut} {shown}"),
        }
    }
    found
}

fn beginning(input: &[u8]) -> Beginning {
    let agrees = |start: &[u8]| input.iter().zip(start).all(|(one, other)| one == other);
    match (agrees(&WORD), agrees(&SIGNATURE)) {
        (true, _) if input.len() >= WORD.len() => Beginning::Line,
        (_, true) if input.len() >= SIGNATURE.len() => Beginning::Binary,
        (true, _) | (_, true) => Beginning::Unclear,
        (false, false) => Beginning::Other,
    }
}

fn header(input: &[u8]) -> Parsed {
    let told = match beginning(input) {
        Beginning::Other => Err(None),
        Beginning::Unclear => Err(Some(PROXY_HEADER_MAX_OCTETS)),
        Beginning::Line => line(input),
        Beginning::Binary => binary(input),
    };
    match told {
        Ok((consumed, source)) => Parsed::Done { consumed, source },
        Err(Some(octets_max)) => Parsed::NeedMore { octets_max },
        Err(None) => Parsed::Malformed,
    }
}

/// Octets and source; or how many there will be at most, if it is not malformed.
type Told = Result<(usize, Option<SocketAddr>), Option<usize>>;

fn line(input: &[u8]) -> Told {
    let mut text = String::new();
    let mut after_cr = false;
    for (at, &octet) in input.iter().enumerate() {
        match (after_cr, octet) {
            _ if at == PROXY_LINE_MAX_OCTETS => return Err(None),
            (true, b'\n') => return words(&text).map(|source| (at + 1, source)).ok_or(None),
            (true, _) | (false, b'\n') => return Err(None),
            (false, b'\r') => after_cr = true,
            // Latin-1, which no address is: what the octets stand for is nobody's business.
            (false, octet) => text.push(char::from(octet)),
        }
    }
    if input.len() < PROXY_LINE_MAX_OCTETS { Err(Some(PROXY_LINE_MAX_OCTETS)) } else { Err(None) }
}

fn words(text: &str) -> Option<Option<SocketAddr>> {
    let words: Vec<&str> = text.split(' ').collect();
    let address = match words[1] {
        "UNKNOWN" => return Some(None),
        "TCP4" => ipv4,
        "TCP6" => ipv6,
        _ => return None,
    };
    let &[_, _, source, destination, source_port, destination_port] = words.as_slice() else { return None };
    address(destination)?;
    port(destination_port)?;
    Some(Some(SocketAddr::new(address(source)?, port(source_port)?)))
}

/// A number that is written as this program would write it.
fn number(text: &str, max: u32) -> Option<u32> {
    (0..=max).find(|number| number.to_string() == text)
}

fn port(text: &str) -> Option<u16> {
    number(text, 65535).map(|port| port as u16)
}

fn ipv4(text: &str) -> Option<IpAddr> {
    let numbers: Option<Vec<u8>> = text.split('.').map(|word| number(word, 255).map(|octet| octet as u8)).collect();
    Some(<[u8; 4]>::try_from(numbers?).ok()?.into())
}

/// Groups of up to four hexadecimal digits, the last two perhaps as an IPv4 address.
fn groups(text: &str, may_end_in_ipv4: bool) -> Option<Vec<u16>> {
    let mut groups = Vec::new();
    if text.is_empty() {
        return Some(groups);
    }
    let words: Vec<&str> = text.split(':').collect();
    for (at, word) in words.iter().enumerate() {
        if word.contains('.') {
            let Some(IpAddr::V4(ipv4)) = ipv4(word).filter(|_| may_end_in_ipv4 && at + 1 == words.len()) else {
                return None;
            };
            let [a, b, c, d] = ipv4.octets().map(u16::from);
            groups.extend([a << 8 | b, c << 8 | d]);
        } else {
            let is_group = (1..=4).contains(&word.len()) && word.chars().all(|digit| digit.is_ascii_hexdigit());
            groups.push(u16::from_str_radix(word, 16).ok().filter(|_| is_group)?);
        }
    }
    Some(groups)
}

fn ipv6(text: &str) -> Option<IpAddr> {
    let groups = match text.split_once("::") {
        None => groups(text, true)?,
        Some((head, tail)) => {
            let (mut all, tail) = (groups(head, false)?, groups(tail, true)?);
            let zeros = 8_usize.checked_sub(all.len() + tail.len()).filter(|&zeros| zeros > 0)?;
            all.extend(vec![0; zeros]);
            all.extend(tail);
            all
        }
    };
    Some(<[u16; 8]>::try_from(groups).ok()?.into())
}

fn binary(input: &[u8]) -> Told {
    if input.len() < 16 {
        return Err(Some(PROXY_HEADER_MAX_OCTETS));
    }
    let octets = 16 + 256 * usize::from(input[14]) + usize::from(input[15]);
    let (is_local, family, protocol) = (input[12] == 0x20, input[13] / 16, input[13] % 16);
    if octets > PROXY_HEADER_MAX_OCTETS || !(is_local || input[12] == 0x21) {
        return Err(None);
    }
    if !is_local && (family > 3 || protocol > 2) {
        return Err(None);
    }
    if input.len() < octets {
        return Err(Some(octets));
    }
    if is_local || family == 0 || protocol == 0 {
        return Ok((octets, None));
    }
    let tlvs = 16 + [12, 36, 216][usize::from(family) - 1];
    if octets < tlvs || !are_sound(&input[..octets], tlvs) {
        return Err(None);
    }
    let port = |at: usize| 256 * u16::from(input[at]) + u16::from(input[at + 1]);
    let ipv4 = || <[u8; 4]>::try_from(&input[16..20]).expect("four octets");
    let ipv6 = || <[u8; 16]>::try_from(&input[16..32]).expect("sixteen octets");
    let source = match (family, protocol) {
        (1, 1) => Some(SocketAddr::new(ipv4().into(), port(24))),
        (2, 1) => Some(SocketAddr::new(ipv6().into(), port(48))),
        _ => None,
    };
    Ok((octets, source))
}

/// Whether the TLVs fill the header, with one checksum at most, which is right.
fn are_sound(header: &[u8], mut at: usize) -> bool {
    let mut checksums = Vec::new();
    while at != header.len() {
        if at + 3 > header.len() {
            return false;
        }
        let end = at + 3 + 256 * usize::from(header[at + 1]) + usize::from(header[at + 2]);
        if end > header.len() {
            return false;
        }
        if header[at] == 3 {
            checksums.push(at + 3..end);
        }
        at = end;
    }
    match checksums.as_slice() {
        [] => true,
        [place] if place.len() == 4 => {
            let mut without = header.to_vec();
            without[place.clone()].fill(0);
            header[place.clone()] == checksum(&without).to_be_bytes()
        }
        _ => false,
    }
}

/// CRC32C, bit by bit (RFC 9260 appendix A).
pub fn checksum(octets: &[u8]) -> u32 {
    !octets.iter().fold(u32::MAX, |sum, &octet| {
        (0..8).fold(sum ^ u32::from(octet), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}
