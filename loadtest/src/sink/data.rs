//! The end-of-data automaton (RFC 5321 section 4.5.2).
//!
//! It starts behind a CRLF, so that a dot on the first line counts; only CRLF, dot, CRLF ends a message; a leading dot
//! is removed behind CRLF and nowhere else. Bare CR and LF are content. The result is the same however the input is
//! cut.

use memchr::memmem::Finder;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start of a line.
    Line,
    /// Within a line.
    Text,
    /// Within a line, behind a CR.
    Cr,
    /// Behind a dot at the start of a line, which is held back.
    Dot,
    /// Behind such a dot and a CR, which are held back.
    DotCr,
}

/// Turns the octets behind 354 into the message.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    line_dot: Finder<'static>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: State::Line, line_dot: Finder::new(b"\r\n.") }
    }
}

impl Decoder {
    /// Prepares for the next message.
    pub fn reset(&mut self) {
        self.state = State::Line;
    }

    /// Takes input and hands the message's octets to `content`. Returns how much of the input belongs to the message,
    /// and whether it ended there.
    pub fn feed(&mut self, input: &[u8], mut content: impl FnMut(&[u8])) -> (usize, bool) {
        let mut at = 0;
        while let Some(octet) = input.get(at).copied() {
            self.state = match (self.state, octet) {
                (State::DotCr, b'\n') => {
                    self.reset();
                    return (at + 1, true);
                }
                (State::Line, b'.') => {
                    at += 1;
                    State::Dot
                }
                (State::Dot, b'\r') => {
                    at += 1;
                    State::DotCr
                }
                (State::DotCr, _) => {
                    // The dot is gone, as before any other text; the CR was bare, or the next octet tells.
                    content(b"\r");
                    State::Cr
                }
                (State::Cr, b'\n') => {
                    content(b"\n");
                    at += 1;
                    State::Line
                }
                _ => {
                    let (len, state) = self.run(&input[at..]);
                    content(&input[at..at + len]);
                    at += len;
                    state
                }
            };
        }
        (at, false)
    }

    /// The longest run of content at the start of `input`, which is not empty, and the state behind it.
    fn run(&self, input: &[u8]) -> (usize, State) {
        match self.line_dot.find(input) {
            Some(end) => (end + 2, State::Line),
            None if input.ends_with(b"\r\n") => (input.len(), State::Line),
            None if input.ends_with(b"\r") => (input.len(), State::Cr),
            None => (input.len(), State::Text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(pieces: &[&[u8]]) -> (Vec<u8>, Option<usize>) {
        let (mut decoder, mut message, mut before) = (Decoder::default(), Vec::new(), 0);
        for piece in pieces {
            let (len, ended) = decoder.feed(piece, |content| message.extend_from_slice(content));
            if ended {
                return (message, Some(before + len));
            }
            assert_eq!(len, piece.len());
            before += len;
        }
        (message, None)
    }

    /// What RFC 5321 says, without a thought for speed or for splits.
    fn oracle(input: &[u8]) -> (Vec<u8>, Option<usize>) {
        let (mut message, mut at) = (Vec::new(), 0);
        loop {
            let rest = &input[at..];
            if rest.starts_with(b".\r\n") {
                return (message, Some(at + 3));
            }
            let end = rest.windows(2).position(|pair| pair == b"\r\n").map(|end| end + 2);
            let line = &rest[..end.unwrap_or(rest.len())];
            message.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
            match end {
                Some(end) => at += end,
                None => return (message, None),
            }
        }
    }

    const CASES: [&[u8]; 12] = [
        b".\r\n",
        b"..\r\n.\r\nrest",
        b".first\r\n..second\r\n...\r\n.\r\nQUIT\r\n",
        b"a\n.\nb\r.\rc\n.\r\nd\r\n.\n\r\n.\r\n",
        b"\r\n\r\n.\r\n",
        b"\r\r\n.\r\n",
        b".\r\r\n.\r\n",
        b".\rx\r\n.\r\n",
        b"..\r\n..\r\n.\r\n",
        b"a\r\n.b\r\n.\r\n.\r\n",
        b"a\r\n.\r.\r\n\r\n.\r\n",
        b"x\r\r\r\n..\r\r\n\r\n.\r\nx",
    ];

    #[test]
    fn the_dot_ends_a_message_behind_crlf_only() {
        assert_eq!(decode(&[CASES[1]]), (b".\r\n".to_vec(), Some(7)));
        assert_eq!(decode(&[CASES[2]]), (b"first\r\n.second\r\n..\r\n".to_vec(), Some(26)));
        for case in CASES {
            let expected = oracle(case);
            assert!(expected.1.is_some());
            assert_eq!(decode(&[case]), expected, "{:?}", String::from_utf8_lossy(case));
        }
    }

    #[test]
    fn every_split_gives_the_same_message() {
        for case in CASES {
            let expected = decode(&[case]);
            for first in 0..=case.len() {
                for second in first..=case.len() {
                    let pieces = [&case[..first], &case[first..second], &case[second..]];
                    assert_eq!(decode(&pieces), expected, "{:?} at {first}, {second}", String::from_utf8_lossy(case));
                }
            }
            let octets: Vec<_> = case.chunks(1).collect();
            assert_eq!(decode(&octets), expected);
        }
    }

    #[test]
    fn all_short_inputs_agree_with_the_oracle() {
        // Every string of up to seven octets over the alphabet that matters, followed by a proper end.
        for len in 0..=7u32 {
            for code in 0..4usize.pow(len) {
                let mut input: Vec<u8> = (0..len).map(|digit| b"\r\n.x"[code >> (2 * digit) & 3]).collect();
                input.extend_from_slice(b"\r\n.\r\n");
                let expected = oracle(&input);
                assert_eq!(decode(&[&input]), expected, "{:?}", String::from_utf8_lossy(&input));
                let octets: Vec<_> = input.chunks(1).collect();
                assert_eq!(decode(&octets), expected, "{:?}", String::from_utf8_lossy(&input));
            }
        }
    }
}
