//! Finding command lines in the input.
//!
//! A line ends only at CRLF (RFC 5321 section 2.3.8); a command has at most
//! [`COMMAND_LINE_MAX_OCTETS`](crate::limits::COMMAND_LINE_MAX_OCTETS) with it, a line of AUTH's
//! exchange [`SASL_LINE_MAX_OCTETS`](crate::limits::SASL_LINE_MAX_OCTETS). A longer one is discarded to its end and its tail is never
//! parsed; a bare CR, bare LF or NUL inside spoils the whole line. So nothing that one server
//! takes for two commands can be one here, or the other way round.

use memchr::{memchr, memchr3};

/// What stands at the beginning of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'b> {
    /// A whole line, without its CRLF; `consumed` counts the CRLF.
    Whole {
        /// The line without CRLF.
        text: &'b [u8],
        /// Octets to take off the input.
        consumed: usize,
    },
    /// A whole line with a bare CR, bare LF or NUL inside.
    Spoiled {
        /// Octets to take off the input.
        consumed: usize,
    },
    /// No line end yet, and the line may still become one.
    Partial,
    /// More octets than a line may have, and no end among them.
    TooLong,
}

/// Looks for a line of at most `max` octets, with its CRLF, at the beginning of `input`.
pub fn scan(input: &[u8], max: usize) -> Line<'_> {
    let window = &input[..input.len().min(max)];
    match find_crlf(window) {
        Some(end) => {
            let text = &window[..end];
            let consumed = end + 2;
            if memchr3(b'\r', b'\n', 0, text).is_some() {
                Line::Spoiled { consumed }
            } else {
                Line::Whole { text, consumed }
            }
        }
        None if input.len() >= max => Line::TooLong,
        None => Line::Partial,
    }
}

/// The index of the first CRLF.
fn find_crlf(input: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(offset) = memchr(b'\n', &input[from..]) {
        let lf = from + offset;
        if lf > 0 && input[lf - 1] == b'\r' {
            return Some(lf - 1);
        }
        from = lf + 1;
    }
    None
}

/// Throws an overlong line away, however its octets are cut into pieces of input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard {
    after_cr: bool,
}

impl Discard {
    /// Takes octets off `input`; returns how many, and whether the line's end was among them.
    pub fn step(&mut self, input: &[u8]) -> (usize, bool) {
        if self.after_cr && input.first() == Some(&b'\n') {
            return (1, true);
        }
        match find_crlf(input) {
            Some(end) => (end + 2, true),
            None => {
                if let Some(last) = input.last() {
                    self.after_cr = *last == b'\r';
                }
                (input.len(), false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::COMMAND_LINE_MAX_OCTETS;

    fn scan(input: &[u8]) -> Line<'_> {
        super::scan(input, COMMAND_LINE_MAX_OCTETS)
    }

    #[test]
    fn ends_only_at_crlf() {
        assert_eq!(scan(b"NOOP\r\nX"), Line::Whole { text: b"NOOP", consumed: 6 });
        assert_eq!(scan(b"\r\n"), Line::Whole { text: b"", consumed: 2 });
        assert_eq!(scan(b"NOOP\nQUIT\r\n"), Line::Spoiled { consumed: 11 });
        assert_eq!(scan(b"NO\rOP\r\n"), Line::Spoiled { consumed: 7 });
        assert_eq!(scan(b"NO\0OP\r\n"), Line::Spoiled { consumed: 7 });
        assert_eq!(scan(b"NOOP\r\r\n"), Line::Spoiled { consumed: 7 });
        assert_eq!(scan(b"\n\r\n"), Line::Spoiled { consumed: 3 });
        assert_eq!(scan(b"NOOP\r"), Line::Partial);
        assert_eq!(scan(b"NOOP\n"), Line::Partial);
        assert_eq!(scan(b""), Line::Partial);
    }

    #[test]
    fn longest_line() {
        let mut line = vec![b'x'; COMMAND_LINE_MAX_OCTETS - 2];
        line.extend_from_slice(b"\r\n");
        assert!(matches!(scan(&line), Line::Whole { consumed: COMMAND_LINE_MAX_OCTETS, .. }));
        line.insert(0, b'x');
        assert_eq!(scan(&line), Line::TooLong);
        assert_eq!(scan(&line[..COMMAND_LINE_MAX_OCTETS]), Line::TooLong);
        assert_eq!(scan(&line[..COMMAND_LINE_MAX_OCTETS - 1]), Line::Partial);
    }

    #[test]
    fn discards_to_the_end_at_every_split() {
        let input = b"aaa\rb\nb\r\r\nNEXT";
        for split in 0..=input.len() {
            let mut discard = Discard::default();
            let mut consumed = 0;
            let mut ended = false;
            for piece_end in [split, input.len()] {
                if !ended {
                    let (n, end) = discard.step(&input[consumed..piece_end]);
                    consumed += n;
                    ended = end;
                }
            }
            assert!(ended);
            assert_eq!(&input[consumed..], b"NEXT", "split at {split}");
        }
    }
}
