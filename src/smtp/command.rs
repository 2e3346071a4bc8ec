//! From a line to a verb with its arguments, and from arguments to their parts.
//!
//! Parsing is split in two because replies depend on the order of checks: the session judges the
//! verb's place in the dialogue first and looks at the arguments only then.

use super::address::{self, Path};
use crate::limits::NUMBER_MAX_DIGITS;

/// The verbs this server knows, implemented or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the verbs of RFC 5321, 3030, 3207, 4954 and [MS-XEXCH50]")]
pub enum Verb {
    Ehlo,
    Helo,
    Mail,
    Rcpt,
    Data,
    Bdat,
    Rset,
    Noop,
    Vrfy,
    Expn,
    Help,
    Quit,
    Auth,
    StartTls,
    Xexch50,
    Unknown,
}

impl Verb {
    /// Every verb, in the order of their numbers.
    pub const ALL: [Verb; 16] = [
        Verb::Ehlo,
        Verb::Helo,
        Verb::Mail,
        Verb::Rcpt,
        Verb::Data,
        Verb::Bdat,
        Verb::Rset,
        Verb::Noop,
        Verb::Vrfy,
        Verb::Expn,
        Verb::Help,
        Verb::Quit,
        Verb::Auth,
        Verb::StartTls,
        Verb::Xexch50,
        Verb::Unknown,
    ];

    /// Its name, in capitals; `unknown` for what is none.
    pub const fn name(self) -> &'static str {
        match self {
            Verb::Ehlo => "EHLO",
            Verb::Helo => "HELO",
            Verb::Mail => "MAIL",
            Verb::Rcpt => "RCPT",
            Verb::Data => "DATA",
            Verb::Bdat => "BDAT",
            Verb::Rset => "RSET",
            Verb::Noop => "NOOP",
            Verb::Vrfy => "VRFY",
            Verb::Expn => "EXPN",
            Verb::Help => "HELP",
            Verb::Quit => "QUIT",
            Verb::Auth => "AUTH",
            Verb::StartTls => "STARTTLS",
            Verb::Xexch50 => "XEXCH50",
            Verb::Unknown => "unknown",
        }
    }
}

/// A command line taken apart: the verb, and the rest without the spaces around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'b> {
    /// The verb, in any case.
    pub verb: Verb,
    /// What follows the verb, without spaces and tabs at both ends.
    pub arguments: &'b [u8],
}

/// Takes a line apart. Never fails: a verb nobody knows is [`Verb::Unknown`].
pub fn parse(line: &[u8]) -> Command<'_> {
    let end = memchr::memchr(b' ', line).unwrap_or(line.len());
    let (word, rest) = line.split_at(end);
    Command { verb: verb(word), arguments: trim(rest) }
}

/// Without spaces and tabs at both ends. (`trim_ascii` takes form feeds too.)
fn trim(mut octets: &[u8]) -> &[u8] {
    while let [head @ .., b' ' | b'\t'] = octets {
        octets = head;
    }
    trim_start(octets)
}

/// Without spaces and tabs at the beginning.
pub(super) fn trim_start(mut octets: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', tail @ ..] = octets {
        octets = tail;
    }
    octets
}

fn verb(word: &[u8]) -> Verb {
    let is = |verb: &Verb| verb.name().as_bytes().eq_ignore_ascii_case(word);
    Verb::ALL.into_iter().find(is).unwrap_or(Verb::Unknown)
}

/// Why the arguments of MAIL or RCPT are no good, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// Not `FROM:` or `TO:` (C5, C15).
    Keyword,
    /// The path does not parse (C8, C16).
    Address,
}

/// Takes `FROM:` or `TO:` and the path off the arguments; returns the path and the parameters.
pub fn path_argument<'b>(arguments: &'b [u8], keyword: &[u8]) -> Result<(Path<'b>, &'b [u8]), PathError> {
    match arguments.split_at_checked(keyword.len()) {
        Some((head, rest)) if head.eq_ignore_ascii_case(keyword) => address::path(rest).ok_or(PathError::Address),
        _ => Err(PathError::Keyword),
    }
}

/// `KEYWORD` or `KEYWORD=value` (RFC 5321 section 4.1.2, esmtp-param).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter<'b> {
    /// The keyword, in any case.
    pub keyword: &'b [u8],
    /// The value, when there is a `=`.
    pub value: Option<&'b [u8]>,
}

/// The parameters behind a path; `None` stands for one that does not parse.
pub fn parameters(input: &[u8]) -> impl Iterator<Item = Option<Parameter<'_>>> {
    words(input).map(parameter)
}

fn parameter(word: &[u8]) -> Option<Parameter<'_>> {
    let (keyword, value) = match memchr::memchr(b'=', word) {
        Some(equals) => (&word[..equals], Some(&word[equals + 1..])),
        None => (word, None),
    };
    let keyword_is_valid = keyword.first().is_some_and(u8::is_ascii_alphanumeric)
        && keyword.iter().all(|octet| octet.is_ascii_alphanumeric() || *octet == b'-');
    let value_is_valid =
        value.is_none_or(|value| !value.is_empty() && value.iter().all(|&octet| matches!(octet, 33..=60 | 62..=126)));
    (keyword_is_valid && value_is_valid).then_some(Parameter { keyword, value })
}

/// The words between spaces.
pub fn words(arguments: &[u8]) -> impl Iterator<Item = &[u8]> {
    arguments.split(|&octet| octet == b' ').filter(|word| !word.is_empty())
}

/// A number on the wire: 1 to 20 digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// It fits.
    Value(u64),
    /// Digits, not too many of them, but more than a u64 holds.
    Overflow,
}

/// Parses a number; `None`: not 1 to 20 digits.
pub fn number(digits: &[u8]) -> Option<Number> {
    if digits.is_empty() || digits.len() > NUMBER_MAX_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value =
        digits.iter().try_fold(0_u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
    Some(value.map_or(Number::Overflow, Number::Value))
}

/// The arguments of XEXCH50 ([MS-XEXCH50]): the octets that follow; of the second number nothing
/// depends here.
pub fn exchange_data(arguments: &[u8]) -> Option<Number> {
    let mut words = words(arguments);
    let octets = number(words.next()?)?;
    number(words.next()?)?;
    words.next().is_none().then_some(octets)
}

/// The arguments of BDAT (RFC 3030 section 2): the chunk's octets, and whether it is the last.
pub fn chunk(arguments: &[u8]) -> Option<(u64, bool)> {
    let mut words = words(arguments);
    let Some(Number::Value(octets)) = number(words.next()?) else { return None };
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case(b"LAST") => true,
        Some(_) => return None,
    };
    words.next().is_none().then_some((octets, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs() {
        assert_eq!(parse(b"QUIT"), Command { verb: Verb::Quit, arguments: b"" });
        assert_eq!(parse(b"quit  "), Command { verb: Verb::Quit, arguments: b"" });
        assert_eq!(parse(b"Mail  FROM:<a@b> "), Command { verb: Verb::Mail, arguments: b"FROM:<a@b>" });
        assert_eq!(parse(b"RSET \t \x0c\t "), Command { verb: Verb::Rset, arguments: b"\x0c" });
        assert_eq!(parse(b"starttls").verb, Verb::StartTls);
        for (number, expected) in Verb::ALL.into_iter().enumerate() {
            assert_eq!(expected as usize, number);
            assert_eq!(parse(expected.name().as_bytes()).verb, expected);
        }
        for unknown in [&b""[..], b" NOOP", b"NOOPS", b"MAIL\tFROM:<>", b"\xff\xff\xff\xff"] {
            assert_eq!(parse(unknown).verb, Verb::Unknown, "{unknown:?}");
        }
    }

    #[test]
    fn path_arguments() {
        assert_eq!(path_argument(b"FROM:<>", b"FROM:"), Ok((Path::Null, &b""[..])));
        assert_eq!(path_argument(b"from: <> X", b"FROM:"), Ok((Path::Null, &b" X"[..])));
        for (arguments, error) in [
            (&b""[..], PathError::Keyword),
            (b"FROM", PathError::Keyword),
            (b"FROM <a@b>", PathError::Keyword),
            (b"FROM :<a@b>", PathError::Keyword),
            (b"TO:<a@b>", PathError::Keyword),
            (b"FROM:", PathError::Address),
            (b"FROM:<", PathError::Address),
        ] {
            assert_eq!(path_argument(arguments, b"FROM:"), Err(error), "{arguments:?}");
        }
    }

    #[test]
    fn parameters_of_mail() {
        let all = |text: &'static str| parameters(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(all(""), []);
        assert_eq!(
            all(" SIZE=1  X-Y"),
            [Some(Parameter { keyword: b"SIZE", value: Some(b"1") }), Some(Parameter { keyword: b"X-Y", value: None })]
        );
        for bad in [" =1", " SIZE=", " -A=1", " A=b=c", " A_B=1", " A=\x07"] {
            assert_eq!(all(bad), [None], "{bad}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(number(b"0"), Some(Number::Value(0)));
        assert_eq!(number(b"18446744073709551615"), Some(Number::Value(u64::MAX)));
        assert_eq!(number(b"18446744073709551616"), Some(Number::Overflow));
        assert_eq!(number(b"00000000000000000001"), Some(Number::Value(1)));
        for bad in [&b""[..], b"000000000000000000001", b"+1", b"-1", b"0x1", b"1 "] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn chunks() {
        assert_eq!(chunk(b"0"), Some((0, false)));
        assert_eq!(chunk(b"86  last"), Some((86, true)));
        for bad in [&b""[..], b"LAST", b"1 LAS", b"1 LAST 2", b"99999999999999999999", b"-1", b"0x10"] {
            assert_eq!(chunk(bad), None, "{bad:?}");
        }
    }
}
