//! The bodies of the fuzz targets: each takes octets, and panics where a promise is broken.
//!
//! They are a library so that `tests/fuzz_corpus.rs` can run them in plain `cargo test`, over the
//! committed corpora and a bounded number of mutations of them.

#![allow(missing_docs, reason = "not a library for others")]

pub mod bdat;
pub mod command;
pub mod data;
#[path = "../../tests/transcripts/harness/driver.rs"]
pub mod driver;
pub mod ntlm;
pub mod oracle;
pub mod proxy;
pub mod proxy_oracle;
pub mod sasl;
pub mod session;

/// The replies in `octets`: a multi-line one is one, its lines joined by a line feed. Panics where
/// one is malformed (RFC 5321 section 4.2.1).
fn replies(octets: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(octets).expect("replies are ASCII");
    let mut replies = Vec::new();
    let mut reply = String::new();
    for line in text.split_inclusive("\r\n") {
        let line = line.strip_suffix("\r\n").unwrap_or_else(|| panic!("{line:?} does not end"));
        assert!(line.len() <= 510 && line.bytes().all(|octet| matches!(octet, b' '..=b'~')), "{line:?}");
        assert!(line.len() >= 4 && line[..3].bytes().all(|digit| digit.is_ascii_digit()), "{line:?}");
        assert!(matches!(line.as_bytes()[0], b'2'..=b'5'), "{line:?}");
        assert!(reply.is_empty() || reply[..3] == line[..3], "{reply:?} goes on as {line:?}");
        reply.push_str(line);
        match line.as_bytes()[3] {
            b'-' => reply.push('\n'),
            b' ' => replies.push(std::mem::take(&mut reply)),
            _ => panic!("{line:?}"),
        }
    }
    assert!(reply.is_empty(), "{reply:?} does not end");
    replies
}

/// Cuts `input` into pieces of these sizes, in turn; 0 stands for all the rest.
fn pieces<'b>(mut input: &'b [u8], sizes: &[u8]) -> Vec<&'b [u8]> {
    let mut pieces = Vec::new();
    let mut sizes = sizes.iter().copied().cycle();
    while !input.is_empty() {
        let size = match sizes.next() {
            None | Some(0) => input.len(),
            Some(size) => input.len().min(size.into()),
        };
        let (piece, rest) = input.split_at(size);
        pieces.push(piece);
        input = rest;
    }
    pieces
}
