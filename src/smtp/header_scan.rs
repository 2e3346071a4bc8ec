//! What a message's header says, found while the message streams by: how large it is, how often the
//! message was received before, here and elsewhere, and which fields it lacks.
//!
//! The header ends at the first empty line; a message without one is all header. Fields are found
//! as RFC 5322 allows them: names in any case, white space before the colon, values folded over
//! lines. Input may be cut anywhere: everything is remembered in a few words, nothing is kept.

use super::header::MissingFields;
use crate::limits::LOCAL_NAMES_MAX;
use memchr::memchr;

/// Reads a header piece by piece.
#[derive(Debug, Default)]
pub struct HeaderScan {
    place: Place,
    octets: u64,
    hops: u32,
    local_hops: u32,
    has_date: bool,
    has_message_id: bool,
    clauses: Clauses,
}

/// A field that is looked for. Their names differ in the first letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Received,
    Date,
    MessageId,
}

impl Field {
    /// That whose name begins with this letter.
    fn beginning_with(letter: u8) -> Option<Self> {
        match letter.to_ascii_lowercase() {
            b'r' => Some(Field::Received),
            b'd' => Some(Field::Date),
            b'm' => Some(Field::MessageId),
            _ => None,
        }
    }

    const fn name(self) -> &'static [u8] {
        match self {
            Field::Received => b"received",
            Field::Date => b"date",
            Field::MessageId => b"message-id",
        }
    }
}

/// Where in the header the next octet stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// At the beginning of a line.
    #[default]
    LineStart,
    /// Behind a CR at the beginning of a line: a LF makes it the empty line.
    LineStartCr,
    /// In a field's name, of which this many octets are those of this field's.
    Name(Field, usize),
    /// Behind the name, before its colon.
    Colon(Field),
    /// In the value of a Received field.
    Received,
    /// In a line that needs no look.
    Other,
    /// Behind the header.
    Body,
}

impl HeaderScan {
    /// Octets of the header so far, through its last line end; the empty line is none of it.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// Received fields so far.
    pub fn hops(&self) -> u32 {
        self.hops
    }

    /// Those of them that a server of one of the `names` given to [`Self::step`] added.
    pub fn local_hops(&self) -> u32 {
        self.local_hops
    }

    /// The fields that the header lacks; `None` while it has not ended.
    pub fn missing_fields(&self) -> Option<MissingFields> {
        let missing = MissingFields { date: !self.has_date, message_id: !self.has_message_id };
        (self.place == Place::Body).then_some(missing)
    }

    /// Reads on. `names`: what this server calls itself, at most 64.
    pub fn step(&mut self, mut input: &[u8], names: &[String]) {
        while self.place != Place::Body && !input.is_empty() {
            let consumed = self.step_once(input, names);
            input = &input[consumed..];
        }
    }

    /// The message has ended, perhaps in the middle of a field.
    pub fn end(&mut self, names: &[String]) {
        // A CR without its LF ends no line, and so not the header.
        if self.place == Place::LineStartCr {
            self.octets += 1;
            self.place = Place::Other;
        }
        if self.place == Place::Received {
            self.local_hops += u32::from(self.clauses.step(b'\n', names));
        }
        self.place = Place::Body;
    }

    fn step_once(&mut self, input: &[u8], names: &[String]) -> usize {
        let octet = input[0];
        let mut consumed = 1;
        self.place = match self.place {
            Place::LineStart => match octet {
                b'\n' => Place::Body,
                b'\r' => Place::LineStartCr,
                b' ' | b'\t' if self.clauses.are_open => Place::Received,
                _ => {
                    self.clauses = Clauses::default();
                    Field::beginning_with(octet).map_or(other(octet), |field| Place::Name(field, 1))
                }
            },
            Place::LineStartCr => {
                if octet == b'\n' {
                    Place::Body
                } else {
                    // A bare CR, in a chunk: it begins a line like any other octet.
                    self.octets += 1;
                    self.clauses = Clauses::default();
                    consumed = 0;
                    Place::Other
                }
            }
            Place::Name(field, matched) => match field.name().get(matched) {
                Some(expected) if octet.eq_ignore_ascii_case(expected) && matched + 1 == field.name().len() => {
                    Place::Colon(field)
                }
                Some(expected) if octet.eq_ignore_ascii_case(expected) => Place::Name(field, matched + 1),
                _ => other(octet),
            },
            Place::Colon(field) => match octet {
                b' ' | b'\t' => Place::Colon(field),
                b':' => self.begin_value(field),
                _ => other(octet),
            },
            Place::Received => {
                self.local_hops += u32::from(self.clauses.step(octet, names));
                if octet == b'\n' { Place::LineStart } else { Place::Received }
            }
            Place::Other => match memchr(b'\n', input) {
                Some(end) => {
                    consumed = end + 1;
                    Place::LineStart
                }
                None => {
                    consumed = input.len();
                    Place::Other
                }
            },
            Place::Body => return input.len(),
        };
        if !matches!(self.place, Place::Body | Place::LineStartCr) {
            self.octets += consumed as u64;
        }
        consumed
    }

    fn begin_value(&mut self, field: Field) -> Place {
        match field {
            Field::Received => {
                self.hops = self.hops.saturating_add(1);
                self.clauses.are_open = true;
                return Place::Received;
            }
            Field::Date => self.has_date = true,
            Field::MessageId => self.has_message_id = true,
        }
        Place::Other
    }
}

fn other(octet: u8) -> Place {
    if octet == b'\n' { Place::LineStart } else { Place::Other }
}

/// The clauses of a Received field (RFC 5321 section 4.4): keywords, each with a value, comments
/// anywhere between.
#[derive(Debug, Default)]
struct Clauses {
    /// Whether the field's value is being read, up to its semicolon.
    are_open: bool,
    comments: u32,
    is_quoted: bool,
    is_escaped: bool,
    /// Octets of the current word.
    octets: usize,
    word: Word,
    /// The beginning of a keyword.
    keyword: [u8; KEYWORD_MAX],
    /// Which of this server's names begin with what was read of the `by` clause's value.
    candidates: u64,
}

const _: () = assert!(LOCAL_NAMES_MAX <= u64::BITS as usize, "a bit for each name");

/// No keyword is longer.
const KEYWORD_MAX: usize = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Word {
    /// A keyword, or something that is none.
    #[default]
    Keyword,
    /// The value behind `by`.
    By,
    /// The value behind another keyword.
    Value,
}

impl Clauses {
    /// Takes the next octet; true when a `by` clause with one of `names` has ended.
    fn step(&mut self, octet: u8, names: &[String]) -> bool {
        if !self.are_open {
            return false;
        }
        if self.is_escaped {
            self.is_escaped = false;
            if self.comments == 0 {
                self.push(octet, names);
            }
            return false;
        }
        if octet == b'\\' && (self.comments > 0 || self.is_quoted) {
            self.is_escaped = true;
            return false;
        }
        if self.comments > 0 {
            match octet {
                b'(' => self.comments = self.comments.saturating_add(1),
                b')' => self.comments -= 1,
                _ => {}
            }
            return false;
        }
        match octet {
            b'"' => self.is_quoted = !self.is_quoted,
            _ if self.is_quoted => self.push(octet, names),
            b' ' | b'\t' | b'\r' | b'\n' => return self.end_word(names),
            b'(' => {
                self.comments = 1;
                return self.end_word(names);
            }
            b';' => {
                let is_local = self.end_word(names);
                self.are_open = false;
                return is_local;
            }
            _ => self.push(octet, names),
        }
        false
    }

    fn push(&mut self, octet: u8, names: &[String]) {
        if self.word == Word::Keyword
            && let Some(place) = self.keyword.get_mut(self.octets)
        {
            *place = octet.to_ascii_lowercase();
        }
        if self.word == Word::By {
            for (bit, name) in names.iter().enumerate().take(u64::BITS as usize) {
                if name.as_bytes().get(self.octets).is_none_or(|expected| !expected.eq_ignore_ascii_case(&octet)) {
                    self.candidates &= !(1 << bit);
                }
            }
        }
        self.octets += 1;
    }

    fn end_word(&mut self, names: &[String]) -> bool {
        if self.octets == 0 {
            return false;
        }
        let octets = std::mem::take(&mut self.octets);
        match self.word {
            Word::Keyword => {
                self.word = match self.keyword.get(..octets) {
                    Some(b"by") => {
                        self.candidates = u64::MAX;
                        Word::By
                    }
                    Some(b"from" | b"via" | b"with" | b"id" | b"for") => Word::Value,
                    _ => Word::Keyword,
                };
                false
            }
            Word::Value => {
                self.word = Word::Keyword;
                false
            }
            Word::By => {
                // One field is one hop, whatever else it says.
                self.are_open = false;
                names
                    .iter()
                    .enumerate()
                    .take(u64::BITS as usize)
                    .any(|(bit, name)| name.len() == octets && self.candidates & (1 << bit) != 0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names() -> Vec<String> {
        ["mx.example.org", "mx", "mx.example.net"].map(str::to_owned).to_vec()
    }

    /// Octets of the header, hops, local hops.
    fn scan(pieces: &[&[u8]]) -> (u64, u32, u32) {
        let names = names();
        let mut scan = HeaderScan::default();
        for piece in pieces {
            scan.step(piece, &names);
        }
        scan.end(&names);
        (scan.octets(), scan.hops(), scan.local_hops())
    }

    #[test]
    fn table() {
        // The header, what stands behind it, hops, local hops.
        let cases: &[(&[u8], &[u8], u32, u32)] = &[
            (b"", b"", 0, 0),
            (b"", b"\r\nbody\r\n", 0, 0),
            (b"A: b\r\n", b"\r\nReceived: x\r\n", 0, 0),
            (b"A: b\r\nC: d\r\n", b"", 0, 0),
            (b"A: b\n", b"\nReceived: x\n", 0, 0),
            (b"A: b\r\n", b"\n", 0, 0),
            (b"no colon\r\nReceived: by x\r\n", b"", 1, 0),
            (b"\rReceived: x\r\n", b"\r\n", 0, 0),
            (b"Received: by mx.example.org; d\r\n", b"\r\n", 1, 1),
            (b"rEcEiVeD: from a by MX.Example.ORG with x; d\r\n", b"\r\n", 1, 1),
            (b"Received \t : by mx\r\n", b"\r\n", 1, 1),
            (b"Received: by mx.example.orgs\r\n", b"\r\n", 1, 0),
            (b"Received: by mx.example.or\r\n", b"\r\n", 1, 0),
            (b"Receive: by mx\r\n", b"\r\n", 0, 0),
            (b"Receiveds: by mx\r\n", b"\r\n", 0, 0),
            (b"Received-SPF: by mx\r\n", b"\r\n", 0, 0),
            (b" Received: by mx\r\n", b"\r\n", 0, 0),
            (b"X: a\r\n Received: by mx\r\n", b"\r\n", 0, 0),
            (b"Received\r\n: by mx\r\n", b"\r\n", 0, 0),
            (b"Received:\r\n\tfrom a\r\n\tby\r\n\tmx\r\n\t; d\r\n", b"\r\n", 1, 1),
            (b"Received:from a(by mx)by b;by mx\r\n", b"\r\n", 1, 0),
            (b"Received: from a (x (y) \\) by mx) by(c)mx.example.net(d)\r\n", b"\r\n", 1, 1),
            // Only what stands where a keyword stands is one.
            (b"Received: from by (a) by mx\r\n", b"\r\n", 1, 1),
            (b"Received: from a id by for mx; by mx\r\n", b"\r\n", 1, 0),
            (b"Received: from a b c by mx\r\n", b"\r\n", 1, 1),
            (b"Received: by a by mx\r\n", b"\r\n", 1, 0),
            (b"Received: by mx by mx\r\n", b"\r\n", 1, 1),
            (b"Received: from \"a by mx\" by b\r\n", b"\r\n", 1, 0),
            (b"Received: from \"a\\\" by mx\" by mx\r\n", b"\r\n", 1, 1),
            (b"Received: ; by mx\r\n by mx\r\n", b"\r\n", 1, 0),
            // The message may end anywhere.
            (b"Received: by mx", b"", 1, 1),
            (b"Received: by mx.", b"", 1, 0),
            (b"Received: by mx\r", b"", 1, 1),
            (b"Received", b"", 0, 0),
            (b"A: b\r\n\r", b"", 0, 0),
            (b"Received: by mx\r\nReceived: by mx\r\n", b"\r\n", 2, 2),
        ];
        for (header, rest, hops, local_hops) in cases {
            let input = [*header, *rest].concat();
            let expected = (header.len() as u64, *hops, *local_hops);
            for cut in 0..=input.len() {
                let (head, tail) = input.split_at(cut);
                assert_eq!(scan(&[head, tail]), expected, "{:?} cut at {cut}", input.escape_ascii().to_string());
            }
            let single: Vec<&[u8]> = input.chunks(1).collect();
            assert_eq!(scan(&single), expected, "{:?} octet by octet", input.escape_ascii().to_string());
        }
    }

    #[test]
    fn exchange_says_more_than_pairs() {
        let field =
            b"Received: from a.example (192.0.2.1) by mx.example.net\r\n (2001:db8::1) with Microsoft SMTP Server \
                      (version=TLS1_2) id 15.1; Sat, 21 Nov 2026 09:36:24 +0000\r\n\r\n";
        assert_eq!((scan(&[field]).1, scan(&[field]).2), (1, 1));
    }

    /// The header as a text: lines, unfolded, fields by name.
    fn naive(input: &[u8]) -> (u64, u32) {
        let (mut octets, mut hops, mut at) = (0, 0, 0);
        while at < input.len() {
            let end = input[at..].iter().position(|&octet| octet == b'\n').map_or(input.len(), |end| at + end + 1);
            let line = &input[at..end];
            if line == b"\n" || line == b"\r\n" {
                break;
            }
            octets += line.len() as u64;
            let name: Vec<u8> = line.iter().take_while(|&&octet| octet != b':').map(u8::to_ascii_lowercase).collect();
            let trimmed = String::from_utf8_lossy(&name).trim_end_matches([' ', '\t']).to_owned();
            hops += u32::from(line.contains(&b':') && trimmed == "received");
            at = end;
        }
        (octets, hops)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn agrees_with_the_naive_reading(
            words in prop::collection::vec(prop::sample::select(vec![
                "Received", "received", ":", " ", "\t", "\r\n", "\n", "by mx", ";", "(", ")", "\"", "\\", "x", "\r\n\r\n",
            ]), 0..40),
            cut in 0_usize..200,
        ) {
            let text = words.concat().into_bytes();
            let (head, tail) = text.split_at(cut.min(text.len()));
            let (octets, hops, local) = scan(&[head, tail]);
            prop_assert_eq!((octets, hops), naive(&text));
            prop_assert!(local <= hops);
            prop_assert_eq!(scan(&[&text]), (octets, hops, local));
        }
    }
}
