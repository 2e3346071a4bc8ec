//! Stored content in the wire form of DATA: line ends, transparency, end of data.
//!
//! The reverse of [`data`](super::data) (RFC 5321 section 4.5.2, CONFORMANCE G8). Content that was
//! stored verbatim may hold bare LF and bare CR: they are mended as on arrival, LF to CRLF and CR
//! to a space, *before* dots are doubled. So a dot is doubled after every CRLF that stands on the
//! wire, whatever the content had there, and no next hop, however lenient its reading of line ends,
//! sees an end of data before ours.
//!
//! Unchanged runs are copied as a whole. No state needs the octets that came before, so a cut
//! between two pieces may be anywhere.

use memchr::memchr2;

/// Where the content stands between two octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// At the beginning, or after a CRLF on the wire: a dot here is doubled.
    #[default]
    LineStart,
    InLine,
    /// A CR was taken and not written: it may belong to CRLF.
    Cr,
}

/// The encoder of one message.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    state: State,
}

impl Encoder {
    /// Appends the wire form of the next piece of content.
    pub fn encode(&mut self, content: &[u8], out: &mut Vec<u8>) {
        // Octets before `written` are done with; those up to `at` have been looked at.
        let (mut written, mut at) = (0, 0);
        match (self.state, content.first()) {
            (_, None) => return,
            (State::Cr, Some(b'\n')) => {
                out.extend_from_slice(b"\r\n");
                (written, at) = (1, 1);
                self.state = State::LineStart;
            }
            (State::Cr, Some(_)) => {
                out.push(b' ');
                self.state = State::InLine;
            }
            _ => {}
        }
        while let Some(&octet) = content.get(at) {
            if self.state == State::LineStart && octet == b'.' {
                out.extend_from_slice(&content[written..at]);
                out.push(b'.');
                written = at;
            }
            self.state = State::InLine;
            let Some(offset) = memchr2(b'\r', b'\n', &content[at..]) else { break };
            let found = at + offset;
            let (mended, next): (&[u8], State) = match content[found..] {
                [b'\r', b'\n', ..] => {
                    at = found + 2;
                    self.state = State::LineStart;
                    continue;
                }
                [b'\r'] => (b"", State::Cr),
                [b'\r', ..] => (b" ", State::InLine),
                _ => (b"\r\n", State::LineStart),
            };
            out.extend_from_slice(&content[written..found]);
            out.extend_from_slice(mended);
            (written, at) = (found + 1, found + 1);
            self.state = next;
        }
        out.extend_from_slice(&content[written..]);
    }

    /// Appends the end of data, behind a CRLF where the content has none at its end. The encoder
    /// is ready for the next message.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(match std::mem::take(self).state {
            State::LineStart => b".\r\n",
            State::InLine => b"\r\n.\r\n",
            State::Cr => b" \r\n.\r\n",
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::data::{Decoder, Piece};
    use proptest::prelude::*;

    fn encode(pieces: &[&[u8]]) -> Vec<u8> {
        let mut encoder = Encoder::default();
        let mut out = Vec::new();
        for piece in pieces {
            encoder.encode(piece, &mut out);
        }
        encoder.finish(&mut out);
        assert_eq!(encoder.state, State::LineStart);
        out
    }

    /// Line ends mended, and a last one added where it is missing; one octet at a time.
    fn normalised(content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, &octet) in content.iter().enumerate() {
            let after_cr = at > 0 && content[at - 1] == b'\r';
            match octet {
                b'\r' if content.get(at + 1) == Some(&b'\n') => out.push(b'\r'),
                b'\r' => out.push(b' '),
                b'\n' if after_cr => out.push(b'\n'),
                b'\n' => out.extend_from_slice(b"\r\n"),
                octet => out.push(octet),
            }
        }
        if !out.is_empty() && !out.ends_with(b"\r\n") {
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    /// The wire form, line by line.
    fn naive(content: &[u8]) -> Vec<u8> {
        let text = normalised(content);
        let mut out = Vec::new();
        for line in text.split_inclusive(|&octet| octet == b'\n') {
            if line.starts_with(b".") {
                out.push(b'.');
            }
            out.extend_from_slice(line);
        }
        out.extend_from_slice(b".\r\n");
        out
    }

    fn decode(wire: &[u8]) -> (Vec<u8>, usize) {
        let mut decoder = Decoder::default();
        let mut content = Vec::new();
        let mut at = 0;
        loop {
            let (consumed, piece) = decoder.step(&wire[at..]);
            at += consumed;
            match piece {
                Piece::Content(octets) => content.extend_from_slice(octets),
                Piece::End => return (content, at),
                Piece::NeedMore => panic!("no end of data in {:?}", wire.escape_ascii().to_string()),
            }
        }
    }

    #[test]
    fn table() {
        let cases: &[(&[u8], &[u8])] = &[
            (b"", b".\r\n"),
            (b"\r\n", b"\r\n.\r\n"),
            (b"a", b"a\r\n.\r\n"),
            (b"a\r\n", b"a\r\n.\r\n"),
            (b"a\r\nb\r\n", b"a\r\nb\r\n.\r\n"),
            (b".", b"..\r\n.\r\n"),
            (b".\r\n", b"..\r\n.\r\n"),
            (b"..\r\n", b"...\r\n.\r\n"),
            (b".a\r\n.b\r\nc.\r\n", b"..a\r\n..b\r\nc.\r\n.\r\n"),
            (b"a\r\n.\r\nMAIL FROM:<>\r\n", b"a\r\n..\r\nMAIL FROM:<>\r\n.\r\n"),
            // What is mended makes line starts too.
            (b"a\n.\nb", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\n.\r\nb", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\r\n.\nb", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\r.\r\n", b"a .\r\n.\r\n"),
            (b"a\r\r\n.", b"a \r\n..\r\n.\r\n"),
            (b"\r.\r", b" . \r\n.\r\n"),
            (b"a\r", b"a \r\n.\r\n"),
            (b"\n\n", b"\r\n\r\n.\r\n"),
            (b"\n\r", b"\r\n \r\n.\r\n"),
        ];
        for (content, want) in cases {
            assert_eq!(naive(content), *want, "the oracle, {:?}", content.escape_ascii().to_string());
            for split in 0..=content.len() {
                let (head, tail) = content.split_at(split);
                assert_eq!(encode(&[head, tail]), *want, "{:?} cut at {split}", content.escape_ascii().to_string());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn agrees_with_the_naive_writing_and_is_decoded_to_it(
            content in prop::collection::vec(prop::sample::select(b"\r\n.ab".to_vec()), 0..40),
            cuts in prop::collection::vec(0_usize..40, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(content.len())).collect();
            cuts.extend([0, content.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &content[pair[0]..pair[1]]).collect();
            let wire = encode(&pieces);
            prop_assert_eq!(&wire, &naive(&content));
            prop_assert_eq!(decode(&wire), (normalised(&content), wire.len()));
            // To the most lenient reader too, a dot stands alone on the last line only.
            let lines: Vec<&[u8]> = wire.split(|octet| matches!(octet, b'\r' | b'\n')).collect();
            prop_assert_eq!(lines.iter().filter(|line| **line == b".").count(), 1);
        }
    }
}
