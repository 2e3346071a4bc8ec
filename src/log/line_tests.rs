//! A record as it is written: whatever is in it, it is one line, and can be read back.

use super::clock::Clock;
use super::line::Line;
use super::{Event, Field, Format, Level};
use crate::limits::LOG_VALUE_MAX_OCTETS;
use proptest::prelude::*;
use serde_json::Value;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn time() -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(1_795_300_827_123_456)
}

#[test]
fn addresses() {
    let mut line = Line::default();
    for (address, shown) in [
        ("192.0.2.1", "192.0.2.1"),
        ("0.10.200.255", "0.10.200.255"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::", "::"),
    ] {
        for (format, before, behind) in [(Format::Text, " client=", "\n"), (Format::Json, ",\"client\":\"", "\"}\n")] {
            line.begin(format, Event::Refused, Level::Warn, time(), &mut Clock::new());
            line.address(Field::Client, address.parse().expect("an address"));
            let line = String::from_utf8_lossy(line.end());
            assert!(line.ends_with(&[before, shown, behind].concat()), "{line}");
        }
    }
}

#[test]
fn what_shows_itself_at_length_is_cut() {
    let mut line = Line::default();
    for (text, ends_with) in [("x".repeat(512), "x\n"), ("x".repeat(513), "x...\n"), ("é".repeat(300_000), "é...\"\n")]
    {
        line.begin(Format::Text, Event::Refused, Level::Warn, time(), &mut Clock::new());
        // In pieces, too.
        line.display(
            Field::Helo,
            &format_args!("{}{}", &text[..text.len() / 2 / 2 * 2], &text[text.len() / 2 / 2 * 2..]),
        );
        let shown = String::from_utf8(line.end().to_vec()).expect("text");
        assert!(shown.ends_with(ends_with) && shown.len() < 600, "{shown}");
    }
}

/// What a reader of logfmt makes of a line: written for this, from the description alone.
fn read_logfmt(line: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut fields = Vec::new();
    let mut rest = line.strip_suffix(b"\n").expect("a whole line").iter().copied().peekable();
    while rest.peek().is_some() {
        let name: Vec<u8> = rest.by_ref().take_while(|octet| *octet != b'=').collect();
        let mut value = Vec::new();
        if rest.next_if_eq(&b'"').is_some() {
            loop {
                match rest.next().expect("a quote at the end") {
                    b'"' => break,
                    b'\\' => value.push(match rest.next().expect("what is escaped") {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'x' => {
                            let digits: Vec<u8> = rest.by_ref().take(2).collect();
                            u8::from_str_radix(std::str::from_utf8(&digits).expect("digits"), 16).expect("digits")
                        }
                        octet => octet,
                    }),
                    octet => value.push(octet),
                }
            }
            assert!(matches!(rest.next(), None | Some(b' ')), "a value ends with its quote");
        } else {
            value.extend(rest.by_ref().take_while(|octet| *octet != b' '));
            assert!(
                !value.is_empty() && value.iter().all(|octet| octet.is_ascii_graphic() && !b"\"\\=".contains(octet))
            );
        }
        fields.push((String::from_utf8(name).expect("a name"), value));
    }
    fields
}

/// Octets that are likely to do harm, and any others.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        any::<char>().prop_map(|character| character.to_string().into_bytes()),
        any::<u8>().prop_map(|octet| vec![octet]),
        prop::sample::select(vec![
            "\n",
            "\r\n",
            "\"",
            "\\",
            "=",
            " ",
            "\\x",
            "\u{85}",
            "\u{2028}",
            "\u{202e}",
            " client=192.0.2.1 ",
            "}",
            "...",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn whatever_comes_is_one_line_and_comes_back(helo in hostile(), from in hostile(), reply in hostile()) {
        let values = [(Field::Helo, &helo), (Field::From, &from), (Field::Reply, &reply)];
        let mut line = Line::default();
        for format in [Format::Text, Format::Json] {
            line.begin(format, Event::Refused, Level::Warn, time(), &mut Clock::new());
            for (field, value) in values {
                line.text(field, value);
            }
            line.number(Field::Size, 1);
            let octets = line.end();
            let shown = std::str::from_utf8(octets).expect("UTF-8");
            prop_assert_eq!(shown.trim_end_matches('\n').len() + 1, octets.len());
            let is_harmful = |character: char| character.is_control() || "\u{2028}\u{2029}\u{202e}".contains(character);
            prop_assert!(!shown.trim_end_matches('\n').contains(is_harmful), "{:?}", shown);
            if format == Format::Text {
                let fields = shown.split_once(" refused ").expect("a head").1.as_bytes();
                let expected: Vec<_> = values.iter().map(|(field, value)| (field.name().to_owned(), value.to_vec())).collect();
                let mut read = read_logfmt(fields);
                prop_assert_eq!(read.pop(), Some(("size".to_owned(), b"1".to_vec())));
                prop_assert_eq!(read, expected);
            } else {
                let record: Value = serde_json::from_str(shown).expect("JSON");
                for (field, value) in values {
                    let text = String::from_utf8_lossy(value);
                    prop_assert_eq!(record[field.name()].as_str(), Some(text.as_ref()));
                }
                prop_assert_eq!(record.as_object().map(|object| object.len()), Some(7));
            }
        }
    }

    #[test]
    fn long_values_are_bounded(value in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut line = Line::default();
        for format in [Format::Text, Format::Json] {
            line.begin(format, Event::Refused, Level::Warn, time(), &mut Clock::new());
            line.text(Field::Helo, &value);
            let octets = line.end();
            prop_assert!(octets.len() <= 100 + 6 * LOG_VALUE_MAX_OCTETS);
            if value.len() > LOG_VALUE_MAX_OCTETS {
                let end = if format == Format::Text { "...\"\n" } else { "...\"}\n" };
                prop_assert!(octets.ends_with(end.as_bytes()));
            }
        }
    }
}
