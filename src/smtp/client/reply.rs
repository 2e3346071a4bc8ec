//! Replies of the next hop, line by line, and what is kept of them.
//!
//! Read strictly (RFC 5321 section 4.2): three digits, one code for all lines of a reply, bounded
//! lines and replies. What is not such a reply is [`Malformed`], and the connection is given up:
//! there is no way back into step with a server that says something else. Only a bare LF is
//! forgiven as a line's end. Text is untrusted: what is kept of it is printable ASCII.

use crate::limits::{
    ANSWER_TEXT_MAX_OCTETS, NEXT_HOP_REPLY_LINE_MAX_OCTETS, NEXT_HOP_REPLY_LINES_MAX, NEXT_HOP_REPLY_MAX_OCTETS,
};
use memchr::memchr;
use std::fmt;

/// A reply of the next hop, or one made up for want of it: the last line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The reply code, 200 to 599.
    pub code: u16,
    /// What follows the code: printable ASCII, at most [`ANSWER_TEXT_MAX_OCTETS`].
    pub text: String,
}

impl Answer {
    /// Reduces `text` to printable ASCII and to its bound.
    pub fn new(code: u16, text: &[u8]) -> Self {
        let printable = |octet: u8| if matches!(octet, 32..=126) { char::from(octet) } else { '?' };
        let text = text.trim_ascii_end();
        Answer { code, text: text.iter().take(ANSWER_TEXT_MAX_OCTETS).map(|&octet| printable(octet)).collect() }
    }

    /// 5yz: trying again does not help (RFC 5321 section 4.2.1).
    pub fn is_permanent(&self) -> bool {
        self.code >= 500
    }

    /// The enhanced status code the text begins with, of the reply code's class (RFC 2034, RFC 3463).
    pub fn enhanced_code(&self) -> Option<&str> {
        let word = self.text.split(' ').next()?;
        let mut numbers = word.split('.');
        let class = numbers.next()?;
        let is_number = |digits: &str| {
            matches!(digits.len(), 1..=3)
                && digits.bytes().all(|octet| octet.is_ascii_digit())
                && (digits.len() == 1 || !digits.starts_with('0'))
        };
        let valid = class.parse() == Ok(self.code / 100)
            && class.len() == 1
            && numbers.next().is_some_and(is_number)
            && numbers.next().is_some_and(is_number)
            && numbers.next().is_none();
        valid.then_some(word)
    }

    /// The reply line as it is passed on to a client, without CRLF: `code SP enhanced-code SP text`.
    pub fn passed_on(&self) -> String {
        //= [MS-OXSMTP] 3.2.7 AcknowledgementDelay: the last line, and without an enhanced code
        //= 5.0.0 inserted (CONFORMANCE E16).
        if self.enhanced_code().is_some() {
            return self.to_string();
        }
        let line = format!("{} {}.0.0 {}", self.code, self.code / 100, self.text);
        line.trim_end().to_owned()
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.text)
    }
}

/// One line of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'b> {
    /// 200 to 599.
    pub code: u16,
    /// What follows the code and its separator, without the line's end.
    pub text: &'b [u8],
    /// The reply's first line.
    pub first: bool,
    /// The reply's last line.
    pub last: bool,
    /// Octets to take off the input.
    pub consumed: usize,
}

/// This is no reply, or an endless one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads replies line by line.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The code of the lines so far, when there are some.
    code: Option<u16>,
    lines: usize,
    octets: usize,
}

impl Reader {
    /// Takes the next line off the beginning of `input`. `None`: it has no end yet.
    pub fn line<'b>(&mut self, input: &'b [u8]) -> Result<Option<Line<'b>>, Malformed> {
        let window = &input[..input.len().min(NEXT_HOP_REPLY_LINE_MAX_OCTETS)];
        let Some(end) = memchr(b'\n', window) else {
            let endless = input.len() >= NEXT_HOP_REPLY_LINE_MAX_OCTETS;
            return if endless || !may_begin_reply(window) { Err(Malformed) } else { Ok(None) };
        };
        let consumed = end + 1;
        let (code, more, text) = split(&window[..end]).ok_or(Malformed)?;
        if self.code.is_some_and(|before| before != code) {
            return Err(Malformed);
        }
        let first = self.code.is_none();
        self.lines += 1;
        self.octets += consumed;
        if self.lines > NEXT_HOP_REPLY_LINES_MAX || self.octets > NEXT_HOP_REPLY_MAX_OCTETS {
            return Err(Malformed);
        }
        if more {
            self.code = Some(code);
        } else {
            *self = Reader::default();
        }
        Ok(Some(Line { code, text, first, last: !more, consumed }))
    }
}

/// Takes a line without its LF apart: code, whether more lines follow, text.
fn split(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (digits, rest) = line.split_at_checked(3)?;
    let [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9'] = digits else { return None };
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    match rest {
        [] => Some((code, false, rest)),
        [b' ', text @ ..] => Some((code, false, text)),
        [b'-', text @ ..] => Some((code, true, text)),
        _ => None,
    }
}

/// Whether a line that has no end yet can become one of a reply.
fn may_begin_reply(line: &[u8]) -> bool {
    line.iter().zip(0..4).all(|(octet, place)| match place {
        0 => matches!(octet, b'2'..=b'5'),
        1 | 2 => octet.is_ascii_digit(),
        _ => matches!(octet, b' ' | b'-' | b'\r'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8]) -> Result<Vec<(u16, String, bool)>, Malformed> {
        let mut reader = Reader::default();
        let mut at = 0;
        let mut lines = Vec::new();
        while let Some(line) = reader.line(&input[at..])? {
            at += line.consumed;
            lines.push((line.code, String::from_utf8_lossy(line.text).into_owned(), line.last));
        }
        Ok(lines)
    }

    #[test]
    fn lines() {
        let line = |code, text: &str, last| (code, text.to_owned(), last);
        assert_eq!(read(b"250 OK\r\n"), Ok(vec![line(250, "OK", true)]));
        assert_eq!(read(b"250\r\n"), Ok(vec![line(250, "", true)]));
        assert_eq!(read(b"250 \n"), Ok(vec![line(250, "", true)]));
        assert_eq!(read(b"599-a\r\n599-\n599 b"), Ok(vec![line(599, "a", false), line(599, "", false)]));
        assert_eq!(
            read(b"250-a\r\n250 b\r\n354 c\r\n"),
            Ok(vec![line(250, "a", false), line(250, "b", true), line(354, "c", true)])
        );
        assert_eq!(read(b"250 a\rb\r\r\n"), Ok(vec![line(250, "a\rb\r", true)]));
        for partial in [&b""[..], b"2", b"25", b"250", b"250 ", b"250-a", b"250\r"] {
            assert_eq!(read(partial), Ok(vec![]), "{}", partial.escape_ascii());
        }
    }

    #[test]
    fn malformed() {
        let cases: &[&[u8]] = &[
            b"\r\n",
            b"\n",
            b"1",
            b"150 x\r\n",
            b"650 x\r\n",
            b"25\r\n",
            b"2 0 x\r\n",
            b"2500 x\r\n",
            b"250x",
            b"250_x\r\n",
            b"250\rx\r\n",
            b" 250 x\r\n",
            b"abc",
            b"\xff",
            b"250-a\r\n251 b\r\n",
            b"250-a\r\nb\r\n",
        ];
        for input in cases {
            assert_eq!(read(input), Err(Malformed), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn bounds() {
        let mut longest = b"250 ".to_vec();
        longest.resize(NEXT_HOP_REPLY_LINE_MAX_OCTETS - 2, b'x');
        longest.extend_from_slice(b"\r\n");
        assert_eq!(read(&longest).map(|lines| lines.len()), Ok(1));
        longest.insert(4, b'x');
        assert_eq!(read(&longest), Err(Malformed));
        assert_eq!(read(&longest[..NEXT_HOP_REPLY_LINE_MAX_OCTETS]), Err(Malformed));
        assert_eq!(read(&longest[..NEXT_HOP_REPLY_LINE_MAX_OCTETS - 1]), Ok(vec![]));

        let most = [b"250-x\r\n".repeat(NEXT_HOP_REPLY_LINES_MAX - 1), b"250 x\r\n".to_vec()].concat();
        assert_eq!(read(&most).map(|lines| lines.len()), Ok(NEXT_HOP_REPLY_LINES_MAX));
        assert_eq!(read(&[&b"250-x\r\n"[..], &most].concat()), Err(Malformed));
        // Each reply has its own bounds.
        assert_eq!(read(&most.repeat(3)).map(|lines| lines.len()), Ok(3 * NEXT_HOP_REPLY_LINES_MAX));

        let wide = format!("250-{}\r\n", "x".repeat(1018));
        assert!(read(wide.repeat(NEXT_HOP_REPLY_MAX_OCTETS / wide.len()).as_bytes()).is_ok());
        assert_eq!(read(wide.repeat(NEXT_HOP_REPLY_MAX_OCTETS / wide.len() + 1).as_bytes()), Err(Malformed));
    }

    #[test]
    fn answers_are_harmless() {
        assert_eq!(Answer::new(550, b"a\r\x1b[1m\xc3\xa9\0 b  ").text, "a??[1m??? b");
        assert_eq!(Answer::new(550, &[b'x'; 2000]).text.len(), ANSWER_TEXT_MAX_OCTETS);
        assert_eq!(Answer::new(550, &[b'x'; 2000]).passed_on().len(), 510);
    }

    #[test]
    fn passing_on() {
        let cases = [
            ("5.1.1 No such user", "550 5.1.1 No such user"),
            ("5.1.1", "550 5.1.1"),
            ("5.100.999 x", "550 5.100.999 x"),
            ("No such user", "550 5.0.0 No such user"),
            ("", "550 5.0.0"),
            ("4.1.1 No such user", "550 5.0.0 4.1.1 No such user"),
            ("5.1.1. x", "550 5.0.0 5.1.1. x"),
            ("5.1 x", "550 5.0.0 5.1 x"),
            ("5.1.1: x", "550 5.0.0 5.1.1: x"),
            ("5.1.1.1 x", "550 5.0.0 5.1.1.1 x"),
            ("5..1 x", "550 5.0.0 5..1 x"),
            ("5.01.1 x", "550 5.0.0 5.01.1 x"),
            ("5.1.1000 x", "550 5.0.0 5.1.1000 x"),
            ("05.1.1 x", "550 5.0.0 05.1.1 x"),
            ("+5.1.1 x", "550 5.0.0 +5.1.1 x"),
        ];
        for (text, want) in cases {
            assert_eq!(Answer::new(550, text.as_bytes()).passed_on(), want);
        }
    }
}
