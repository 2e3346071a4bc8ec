//! Lines, commands and addresses: the product's reading against the oracle's.

use super::oracle;
use gatepost::limits::COMMAND_LINE_MAX_OCTETS;
use gatepost::smtp::address::{self, Path};
use gatepost::smtp::command::{self, Number, PathError, Verb};
use gatepost::smtp::line::{self, Discard, Line};

const VERBS: &[(&str, Verb)] = &[
    ("EHLO", Verb::Ehlo),
    ("HELO", Verb::Helo),
    ("MAIL", Verb::Mail),
    ("RCPT", Verb::Rcpt),
    ("DATA", Verb::Data),
    ("BDAT", Verb::Bdat),
    ("RSET", Verb::Rset),
    ("NOOP", Verb::Noop),
    ("VRFY", Verb::Vrfy),
    ("EXPN", Verb::Expn),
    ("HELP", Verb::Help),
    ("QUIT", Verb::Quit),
    ("AUTH", Verb::Auth),
    ("STARTTLS", Verb::StartTls),
    ("XEXCH50", Verb::Xexch50),
];

/// The input as a stream of commands, and each line in every place where a parser could meet it.
pub fn run(input: &[u8]) {
    let mut rest = input;
    loop {
        let found = line::scan(rest, COMMAND_LINE_MAX_OCTETS);
        let expected = oracle::line(rest);
        match (found, expected) {
            (Line::Whole { text, consumed }, oracle::Line::Whole(octets)) => {
                assert_eq!(consumed, octets);
                assert_eq!(text, &rest[..octets - 2]);
                line_of_a_command(text);
                rest = &rest[octets..];
            }
            (Line::Spoiled { consumed }, oracle::Line::Spoiled(octets)) => {
                assert_eq!(consumed, octets);
                rest = &rest[octets..];
            }
            (Line::TooLong, oracle::Line::TooLong) => match discard(rest) {
                Some(octets) => rest = &rest[octets..],
                None => break,
            },
            (Line::Partial, oracle::Line::Partial) => {
                assert!(rest.len() < COMMAND_LINE_MAX_OCTETS);
                break;
            }
            (found, expected) => panic!("{found:?}, but {expected:?}"),
        }
    }
    // What is left, and what was no line, is looked at all the same: parsers are total.
    line_of_a_command(input);
    arguments(input);
}

/// Throws a line away in pieces of any size; the octets that took.
fn discard(input: &[u8]) -> Option<usize> {
    let expected = oracle::through_crlf(input);
    for size in [1, 2, 3, 1000, usize::MAX] {
        let mut state = Discard::default();
        let mut taken = 0;
        let mut ended = false;
        while taken < input.len() && !ended {
            let piece = &input[taken..input.len().min(taken.saturating_add(size))];
            let (consumed, end) = state.step(piece);
            assert!(end || consumed == piece.len(), "a piece is used up before the end");
            taken += consumed;
            ended = end;
        }
        assert_eq!(ended.then_some(taken), expected, "in pieces of {size}");
    }
    expected
}

/// A line without its CRLF.
pub fn line_of_a_command(text: &[u8]) {
    let found = command::parse(text);
    let (verb, rest) = oracle::command(text);
    let expected = VERBS.iter().find(|(name, _)| name.as_bytes() == verb).map_or(Verb::Unknown, |(_, verb)| *verb);
    assert_eq!((found.verb, found.arguments), (expected, rest), "{}", text.escape_ascii());
    arguments(rest);
}

/// The arguments of any command.
pub fn arguments(input: &[u8]) {
    for keyword in ["FROM:", "TO:"] {
        path_argument(input, keyword);
    }
    path_argument(&[b"TO:", input].concat(), "TO:");
    parameters(input);
    for word in input.split(|&octet| octet == b' ' || octet == b'=') {
        number(word);
    }
    let found = command::chunk(input);
    assert_eq!(found, oracle::chunk(input), "{}", input.escape_ascii());
}

fn path_argument(input: &[u8], keyword: &str) {
    let shown = input.escape_ascii();
    match (command::path_argument(input, keyword.as_bytes()), oracle::path_argument(input, keyword)) {
        (Ok((found, rest)), Ok((expected, left))) => {
            assert_eq!(rest.len(), left, "{shown}");
            assert!(input.ends_with(rest), "{shown}");
            match (found, expected) {
                (Path::Null, oracle::Path::Null) => {}
                (Path::Mailbox(mailbox), oracle::Path::Mailbox(local_part, domain)) => {
                    assert_eq!(mailbox.local_part(), local_part, "{shown}");
                    assert_eq!(mailbox.domain(), domain.as_deref(), "{shown}");
                    // What is written down of it is the same address when it is read again.
                    let whole = match &domain {
                        Some(domain) => [&local_part[..], b"@", domain].concat(),
                        None => local_part,
                    };
                    assert_eq!(address::mailbox(&whole), Some(mailbox), "{shown}");
                }
                (found, expected) => panic!("{found:?}, but {expected:?}: {shown}"),
            }
            parameters(rest);
        }
        (Err(PathError::Keyword), Err(oracle::PathError::Keyword)) => {}
        (Err(PathError::Address), Err(oracle::PathError::Address)) => {}
        (found, expected) => panic!("{found:?}, but {expected:?}: {shown}"),
    }
}

fn parameters(input: &[u8]) {
    let found: Vec<_> = command::parameters(input)
        .map(|found| found.map(|found| (found.keyword.to_vec(), found.value.map(<[u8]>::to_vec))))
        .collect();
    assert_eq!(found, oracle::parameters(input), "{}", input.escape_ascii());
}

fn number(word: &[u8]) {
    let found = command::number(word).map(|number| match number {
        Number::Value(value) => Some(value),
        Number::Overflow => None,
    });
    assert_eq!(found, oracle::number(word), "{}", word.escape_ascii());
}
