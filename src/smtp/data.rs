//! The content of DATA as it streams in: end of data, transparency, line ends.
//!
//! RFC 5321 sections 4.1.1.4 and 4.5.2, read strictly where servers have been fooled
//! ("SMTP smuggling"): only CRLF.CRLF ends the data, and a dot is taken off only after CRLF; the
//! first line counts as after CRLF. What is stored has CRLF line ends only: a bare LF becomes CRLF,
//! a bare CR a space. A line end that came as bare LF is no CRLF for what follows it.
//!
//! Unchanged runs are passed on as slices of the input; what is put in comes as slices of its own.
//! No state needs the octets that came before, so a cut between two reads may be anywhere.

use memchr::memchr2;

/// One step of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'b> {
    /// The input is used up.
    NeedMore,
    /// Octets of the content.
    Content(&'b [u8]),
    /// CRLF.CRLF was consumed; what follows is the next command.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// After CRLF: a dot here is transparency or the end.
    LineStart,
    InLine,
    /// A CR was consumed and not passed on: it may belong to CRLF.
    Cr,
    /// A dot at a line's start was consumed and not passed on.
    Dot,
    /// The same and a CR.
    DotCr,
}

/// The decoder of one message.
#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
    octets: u64,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { state: State::LineStart, octets: 0 }
    }
}

impl Decoder {
    /// The message's size so far: octets received without the dots of transparency and without
    /// the final dot line, before line ends are mended ([MS-OXSMTP] MessageSizeExceeded).
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// Decodes the beginning of `input`; returns the octets consumed and what they gave.
    pub fn step<'b>(&mut self, input: &'b [u8]) -> (usize, Piece<'b>) {
        let mut at = 0;
        while let Some(&octet) = input.get(at) {
            match (self.state, octet) {
                (State::LineStart, b'.') => {
                    self.state = State::Dot;
                    at += 1;
                }
                (State::Dot, b'\r') => {
                    self.state = State::DotCr;
                    at += 1;
                }
                (State::DotCr, b'\n') => return (at + 1, Piece::End),
                (State::Cr, b'\n') => return self.put(at + 1, b"\r\n", 2, State::LineStart),
                (State::Cr | State::DotCr, _) => return self.put(at, b" ", 1, State::InLine),
                (State::LineStart | State::Dot, _) => self.state = State::InLine,
                (State::InLine, b'\n') => return self.put(at + 1, b"\r\n", 1, State::InLine),
                (State::InLine, b'\r') => {
                    // Alone at the end of the input, or followed by a LF or something else: the
                    // state for a pending CR tells them apart.
                    if input.get(at + 1) != Some(&b'\n') {
                        self.state = State::Cr;
                        at += 1;
                    } else {
                        return self.run(input, at);
                    }
                }
                (State::InLine, _) => return self.run(input, at),
            }
        }
        (at, Piece::NeedMore)
    }

    /// Passes on something that does not stand in the input as it is; `counted` octets did.
    fn put(&mut self, consumed: usize, content: &'static [u8], counted: u64, next: State) -> (usize, Piece<'static>) {
        self.octets += counted;
        self.state = next;
        (consumed, Piece::Content(content))
    }

    /// Passes on the longest unchanged run that begins at `from`, in the middle of a line.
    fn run<'b>(&mut self, input: &'b [u8], from: usize) -> (usize, Piece<'b>) {
        let mut at = from;
        let end = loop {
            let Some(offset) = memchr2(b'\r', b'\n', &input[at..]) else { break input.len() };
            let found = at + offset;
            match input[found..] {
                [b'\r', b'\n', b'.', ..] | [b'\r', b'\n'] => {
                    self.state = State::LineStart;
                    break found + 2;
                }
                [b'\r', b'\n', ..] => at = found + 2,
                // A bare LF, a bare CR, or a CR whose LF is still to come.
                _ => break found,
            }
        };
        self.octets += (end - from) as u64;
        (end, Piece::Content(&input[from..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds pieces of input; returns the content, its counted size and what follows the end.
    fn decode(pieces: &[&[u8]]) -> Option<(Vec<u8>, u64, Vec<u8>)> {
        let mut decoder = Decoder::default();
        let mut content = Vec::new();
        let mut rest = Vec::new();
        let mut ended = false;
        for piece in pieces {
            let mut piece = *piece;
            while !ended {
                let (consumed, result) = decoder.step(piece);
                piece = &piece[consumed..];
                match result {
                    Piece::NeedMore => {
                        assert!(piece.is_empty());
                        break;
                    }
                    Piece::Content(octets) => content.extend_from_slice(octets),
                    Piece::End => ended = true,
                }
            }
            if ended {
                rest.extend_from_slice(piece);
            }
        }
        ended.then_some((content, decoder.octets(), rest))
    }

    /// The rules, one octet at a time, with all that came before at hand.
    fn naive(input: &[u8]) -> Option<(Vec<u8>, u64, Vec<u8>)> {
        let mut content = Vec::new();
        let mut octets = 0;
        let mut at = 0;
        let mut after_crlf = true;
        loop {
            let rest = &input[at..];
            if after_crlf && rest.starts_with(b".\r\n") {
                return Some((content, octets, rest[3..].to_vec()));
            }
            if after_crlf && rest.first() == Some(&b'.') {
                // Could still become the end: undecided input is no end.
                at += 1;
                after_crlf = false;
                continue;
            }
            after_crlf = false;
            match rest {
                [] => return None,
                [b'\r', b'\n', ..] => {
                    content.extend_from_slice(b"\r\n");
                    octets += 2;
                    at += 2;
                    after_crlf = true;
                }
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
            }
        }
    }

    #[test]
    fn table() {
        let cases: &[(&[u8], &[u8])] = &[
            (b".\r\n", b""),
            (b"\r\n.\r\n", b"\r\n"),
            (b"a\r\n.\r\n", b"a\r\n"),
            (b"..\r\n.\r\n", b".\r\n"),
            (b".a\r\n.\r\n", b"a\r\n"),
            (b"a\r\n..\r\n..b\r\n.\r\n", b"a\r\n.\r\n.b\r\n"),
            (b"a\nb\r\n.\r\n", b"a\r\nb\r\n"),
            (b"a\rb\r\n.\r\n", b"a b\r\n"),
            (b"a\r\r\n.\r\n", b"a \r\n"),
            // What must not end the data.
            (b"a\n.\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n"),
            (b"a\n.\r\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n"),
            (b"a\r\n.\nb\r\n.\r\n", b"a\r\n\r\nb\r\n"),
            (b"a\r\n.\rb\r\n.\r\n", b"a\r\n b\r\n"),
            (b"a\r.\r\nb\r\n.\r\n", b"a .\r\nb\r\n"),
            (b"a\r\n.\r\r\nb\r\n.\r\n", b"a\r\n \r\nb\r\n"),
            (b"\n.\r\n\r\n.\r\n", b"\r\n.\r\n\r\n"),
        ];
        for (input, want) in cases {
            for split in 0..=input.len() {
                let (head, tail) = input.split_at(split);
                let (content, octets, rest) = decode(&[head, tail]).expect("the end is reached");
                assert_eq!(content, *want, "{:?} cut at {split}", input.escape_ascii().to_string());
                assert_eq!((octets, rest.len()), (naive(input).expect("an end").1, 0));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn agrees_with_the_naive_reading(
            picks in prop::collection::vec(prop::sample::select(b"\r\n.ab".to_vec()), 0..40),
            cuts in prop::collection::vec(0_usize..48, 0..6),
        ) {
            let mut input = picks;
            input.extend_from_slice(b"\r\n.\r\nNOOP\r\n");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(input.len())).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            prop_assert_eq!(decode(&pieces), naive(&input));
        }
    }
}
