//! The content of DATA: the decoder and the header scanner, however the input is cut, against a
//! reading of the whole.
//!
//! Input: three octets, which are sizes of pieces, then what a client sends after DATA.

use super::pieces;
use gatepost::smtp::data::{Decoder, Piece};
use gatepost::smtp::header_scan::HeaderScan;

/// What this server calls itself.
pub const NAMES: &[&str] = &["mx.example.org", "mx", "a"];

pub fn run(input: &[u8]) {
    let (sizes, input) = input.split_at(input.len().min(3));
    let expected = naive_data(input);
    let expected_header = naive_header(&expected.content, true);
    for sizes in [sizes, &[1], &[0]] {
        let found = decode(&pieces(input, sizes));
        let header = found.header;
        assert_eq!(found.data, expected, "{} in pieces of {sizes:?}", input.escape_ascii());
        assert_eq!(header, expected_header, "{} in pieces of {sizes:?}", input.escape_ascii());
        // The same octets as a chunk, which is verbatim: line ends of any kind.
        let header = scan(pieces(input, sizes));
        assert_eq!(header, naive_header(input, true), "{} in pieces of {sizes:?}", input.escape_ascii());
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Data {
    content: Vec<u8>,
    octets: u64,
    /// What follows the end, if that was there.
    rest: Option<Vec<u8>>,
}

struct Decoded {
    data: Data,
    header: Header,
}

fn decode(pieces: &[&[u8]]) -> Decoded {
    let mut decoder = Decoder::default();
    let mut content = Vec::new();
    let mut rest: Option<Vec<u8>> = None;
    let mut runs = Vec::new();
    for piece in pieces {
        if let Some(rest) = &mut rest {
            rest.extend_from_slice(piece);
            continue;
        }
        let mut at = 0;
        loop {
            let (consumed, found) = decoder.step(&piece[at..]);
            at += consumed;
            assert!(at <= piece.len(), "more consumed than there was");
            match found {
                Piece::NeedMore => {
                    assert_eq!(at, piece.len(), "input is left");
                    break;
                }
                Piece::Content(octets) => {
                    assert!(!octets.is_empty());
                    content.extend_from_slice(octets);
                    runs.push(octets.to_vec());
                }
                Piece::End => {
                    rest = Some(piece[at..].to_vec());
                    break;
                }
            }
        }
    }
    let header = scan(runs.iter().map(Vec::as_slice).collect());
    // A CR or a dot that waits for its neighbour is counted with it.
    let data = Data { content, octets: decoder.octets(), rest };
    Decoded { data, header }
}

/// RFC 5321 section 4.5.2 and CONFORMANCE G8, with everything at hand.
fn naive_data(input: &[u8]) -> Data {
    let mut content = Vec::new();
    let mut octets = 0;
    let mut at = 0;
    while at < input.len() {
        let rest = &input[at..];
        let line_start = at == 0 || input[..at].ends_with(b"\r\n");
        if line_start && rest.starts_with(b".\r\n") {
            return Data { content, octets, rest: Some(rest[3..].to_vec()) };
        }
        if line_start && (b".\r\n".starts_with(rest)) {
            // Could become the end.
            break;
        }
        match rest {
            [b'.', ..] if line_start => at += 1,
            [b'\r', b'\n', ..] => {
                content.extend_from_slice(b"\r\n");
                octets += 2;
                at += 2;
            }
            // Could become a line end.
            [b'\r'] => break,
            [b'\r', ..] => {
                content.push(b' ');
                octets += 1;
                at += 1;
            }
            [b'\n', ..] => {
                content.extend_from_slice(b"\r\n");
                octets += 1;
                at += 1;
            }
            [octet, ..] => {
                content.push(*octet);
                octets += 1;
                at += 1;
            }
            [] => break,
        }
    }
    Data { content, octets, rest: None }
}

/// Octets, Received fields, those of this server.
type Header = (u64, u32, u32);

fn scan(pieces: Vec<&[u8]>) -> Header {
    let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    let mut scan = HeaderScan::default();
    pieces.iter().for_each(|piece| scan.step(piece, &names));
    scan.end(&names);
    (scan.octets(), scan.hops(), scan.local_hops())
}

/// The same of a message that is there as a whole, or as far as it has come: lines, then fields,
/// then words.
pub fn naive_header(message: &[u8], ended: bool) -> Header {
    let mut header = Vec::new();
    for line in message.split_inclusive(|&octet| octet == b'\n') {
        if line == b"\n" || line == b"\r\n" {
            break;
        }
        header.push(line);
    }
    // A CR may still become an empty line.
    if !ended && header.last() == Some(&&b"\r"[..]) {
        header.pop();
    }
    let octets = header.iter().map(|line| line.len() as u64).sum();
    let (mut hops, mut local_hops) = (0, 0);
    for (index, line) in header.iter().enumerate() {
        let Some(colon) = line.iter().position(|&octet| octet == b':') else { continue };
        let mut name = &line[..colon];
        while let [head @ .., b' ' | b'\t'] = name {
            name = head;
        }
        if !name.eq_ignore_ascii_case(b"received") {
            continue;
        }
        hops += 1;
        let mut value = line[colon + 1..].to_vec();
        for folded in &header[index + 1..] {
            if !matches!(folded[0], b' ' | b'\t') {
                break;
            }
            value.extend_from_slice(folded);
        }
        value.push(b'\n');
        let by = by_clause(&value);
        local_hops +=
            u32::from(by.is_some_and(|by| NAMES.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(&by))));
    }
    (octets, hops, local_hops)
}

/// The value of the first `by` clause of a Received field.
fn by_clause(value: &[u8]) -> Option<Vec<u8>> {
    let words = words(value);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match &word.to_ascii_lowercase()[..] {
            b"by" => return words.next().cloned(),
            b"from" | b"via" | b"with" | b"id" | b"for" => _ = words.next(),
            _ => {}
        }
    }
    None
}

/// The words before the semicolon, without comments and quotes.
fn words(value: &[u8]) -> Vec<Vec<u8>> {
    let mut words = vec![Vec::new()];
    let mut depth = 0;
    let mut quoted = false;
    let mut octets = value.iter();
    while let Some(&octet) = octets.next() {
        let escapes = octet == b'\\' && (quoted || depth > 0);
        let octet = match octets.clone().next() {
            Some(&next) if escapes => {
                octets.next();
                next
            }
            _ => octet,
        };
        let special = |wanted: u8| octet == wanted && !escapes;
        if depth > 0 {
            depth += i32::from(special(b'(')) - i32::from(special(b')'));
        } else if special(b'"') {
            quoted = !quoted;
        } else if quoted {
            words.last_mut().expect("one").push(octet);
        } else if special(b';') {
            break;
        } else if special(b'(') {
            depth = 1;
            words.push(Vec::new());
        } else if b" \t\r\n".contains(&octet) {
            words.push(Vec::new());
        } else {
            words.last_mut().expect("one").push(octet);
        }
    }
    // A quoted string that does not end is no word.
    if quoted {
        words.pop();
    }
    words.retain(|word| !word.is_empty());
    words
}
