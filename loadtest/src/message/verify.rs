//! Tells whether a received message is one of ours and whether it is whole, while it streams by.
//!
//! Only the header section is kept, up to [`HEADER_OCTETS_MAX`]; the body is compared block by block with what the id
//! says it must be. Everything here comes from the network: what cannot be read is foreign or altered, never an error.

use memchr::memmem;

use super::body::{BLOCK_OCTETS, BLOCK_OCTETS_MAX, Shape};
use super::{BODY_FIELD, ID_FIELD, OCTETS_DIGITS};
use crate::id::{ID_OCTETS_MAX, NUMBER_DIGITS, parse_id};

/// Header sections above this are not searched: the message counts as foreign.
pub const HEADER_OCTETS_MAX: usize = 256 * 1024;

/// The state of a received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Every octet is as it was sent.
    Intact,
    /// The header differs behind the id, or a field was put between ours.
    HeaderAltered,
    /// The body differs, ends early or goes on.
    BodyAltered,
}

/// What is known of a message at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It carries no id of ours.
    Foreign,
    /// It carries this id.
    Ours {
        /// Name of the run.
        run: &'a str,
        /// Number in the run.
        number: u64,
        /// Whether it is whole.
        condition: Condition,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Header,
    Body,
    /// Nothing more to learn: foreign, or found to be altered.
    Rest,
}

/// Verifies one message after another.
#[derive(Debug)]
pub struct Verifier {
    part: Part,
    header: Vec<u8>,
    id: [u8; ID_OCTETS_MAX],
    id_len: usize,
    condition: Condition,
    shape: Shape,
    /// Octets of the body seen so far.
    seen: u64,
    block: Box<[u8; BLOCK_OCTETS_MAX]>,
    block_index: u64,
    block_len: usize,
    block_at: usize,
}

impl Default for Verifier {
    fn default() -> Self {
        Self {
            part: Part::Header,
            header: Vec::new(),
            id: [0; ID_OCTETS_MAX],
            id_len: 0,
            condition: Condition::Intact,
            shape: Shape::new(0, false),
            seen: 0,
            block: Box::new([0; BLOCK_OCTETS_MAX]),
            block_index: 0,
            block_len: 0,
            block_at: 0,
        }
    }
}

impl Verifier {
    /// Prepares for the next message.
    pub fn reset(&mut self) {
        self.part = Part::Header;
        self.header.clear();
        self.id_len = 0;
        self.condition = Condition::Intact;
        self.seen = 0;
    }

    /// Takes the next octets of the message, cut anywhere.
    pub fn feed(&mut self, mut input: &[u8]) {
        while self.part == Part::Header && !input.is_empty() {
            let line_end = memchr::memchr(b'\n', input).map_or(input.len(), |end| end + 1);
            let (line, rest) = input.split_at(line_end);
            input = rest;
            if self.header.len() + line.len() > HEADER_OCTETS_MAX {
                self.part = Part::Rest;
                return;
            }
            self.header.extend_from_slice(line);
            if self.header.ends_with(b"\r\n\r\n") || self.header == b"\r\n" {
                self.end_of_header();
            }
        }
        if self.part == Part::Body {
            self.compare(input);
        }
    }

    /// Ends the message and says what it was.
    pub fn finish(&mut self) -> Verdict<'_> {
        if self.part == Part::Header {
            // A message cut within its header: with an id it is ours and altered.
            self.end_of_header();
            self.condition = Condition::HeaderAltered;
        }
        if self.part == Part::Body && self.seen != self.shape.octets() {
            self.condition = Condition::BodyAltered;
        }
        match parse_id(&self.id[..self.id_len]) {
            Some((run, number)) => Verdict::Ours { run, number, condition: self.condition },
            None => Verdict::Foreign,
        }
    }

    fn end_of_header(&mut self) {
        self.part = Part::Rest;
        let Some((id, after_id)) = find_id(&self.header) else { return };
        self.id[..id.len()].copy_from_slice(id);
        self.id_len = id.len();
        match shape(after_id, id) {
            Some(shape) => {
                self.shape = shape;
                self.block_index = 0;
                self.load_block();
                self.part = Part::Body;
            }
            None => self.condition = Condition::HeaderAltered,
        }
    }

    fn load_block(&mut self) {
        self.block_len = self.shape.block(&self.id[..self.id_len], self.block_index, &mut self.block);
        self.block_at = 0;
    }

    fn compare(&mut self, mut input: &[u8]) {
        while !input.is_empty() {
            let expected = &self.block[self.block_at..self.block_len];
            let len = expected.len().min(input.len());
            if len == 0 || expected[..len] != input[..len] {
                self.condition = Condition::BodyAltered;
                self.part = Part::Rest;
                return;
            }
            input = &input[len..];
            self.seen += len as u64;
            self.block_at += len;
            if self.block_at == self.block_len {
                self.block_index = self.seen.div_ceil(BLOCK_OCTETS);
                self.load_block();
            }
        }
    }
}

/// The id and the header behind its line.
fn find_id(header: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memmem::find_iter(header, ID_FIELD).find(|at| *at == 0 || header[at - 1] == b'\n')?;
    let value = &header[at + ID_FIELD.len()..];
    let end = memmem::find(value, b"\r\n")?;
    let id = &value[..end];
    parse_id(id)?;
    Some((id, &value[end + 2..]))
}

/// The body's shape, if the field that says it follows at once and its CRC fits the rest of the header.
fn shape(after_id: &[u8], id: &[u8]) -> Option<Shape> {
    let value = after_id.strip_prefix(BODY_FIELD)?;
    let end = memmem::find(value, b"\r\n")?;
    let text = std::str::from_utf8(&value[..end]).ok()?;
    let mut words = text.split(' ');
    let (octets, kind, crc) = (words.next()?, words.next()?, words.next()?);
    // The words must be written as the sender writes them: a field that merely means the same was altered.
    if octets.len() != OCTETS_DIGITS || !["plain", "dots"].contains(&kind) || crc.len() != 8 || words.next().is_some() {
        return None;
    }
    let octets = octets.parse().ok()?;
    let shape = Shape::new(octets, kind == "dots");
    let crc = u32::from_str_radix(crc, 16).ok()?;
    (crc == crc_without_number(&value[end + 2..], id) && shape.octets() == octets).then_some(shape)
}

fn crc_without_number(fields: &[u8], id: &[u8]) -> u32 {
    let digits_at = id.len() - NUMBER_DIGITS;
    let (mut crc, mut done) = (0, 0);
    for place in memmem::find_iter(fields, id) {
        crc = crc32c::crc32c_append(crc, &fields[done..place + digits_at]);
        crc = crc32c::crc32c_append(crc, &[b'0'; NUMBER_DIGITS]);
        done = place + id.len();
    }
    crc32c::crc32c_append(crc, &fields[done..])
}

#[cfg(test)]
mod tests {
    use super::super::template::tests::message;
    use super::*;

    fn judge(verifier: &mut Verifier, pieces: &[&[u8]]) -> Option<(u64, Condition)> {
        verifier.reset();
        for piece in pieces {
            verifier.feed(piece);
        }
        match verifier.finish() {
            Verdict::Foreign => None,
            Verdict::Ours { run, number, condition } => {
                assert_eq!(run, "run7");
                Some((number, condition))
            }
        }
    }

    #[test]
    fn whole_messages_of_any_length_are_intact() {
        let mut verifier = Verifier::default();
        for dots in [false, true] {
            for octets in 0..2_500 {
                let message = message(octets, dots, 42);
                assert_eq!(judge(&mut verifier, &[&message]), Some((42, Condition::Intact)), "{octets}");
            }
        }
    }

    #[test]
    fn every_split_gives_the_same_verdict() {
        let mut verifier = Verifier::default();
        let message = message(2_000, true, 7);
        for at in 0..=message.len() {
            let (head, tail) = message.split_at(at);
            assert_eq!(judge(&mut verifier, &[head, tail]), Some((7, Condition::Intact)), "{at}");
        }
        let octets: Vec<_> = message.chunks(1).collect();
        assert_eq!(judge(&mut verifier, &octets), Some((7, Condition::Intact)));
    }

    #[test]
    fn every_altered_octet_is_found() {
        let mut verifier = Verifier::default();
        let whole = message(1_600, true, 99);
        let body_at = memmem::find(&whole, b"\r\n\r\n").unwrap() + 4;
        for at in 0..whole.len() {
            let mut message = whole.clone();
            message[at] ^= 1;
            let verdict = judge_any_run(&mut verifier, &message);
            assert_ne!(verdict, Some((99, Condition::Intact)), "{at}");
            if at >= body_at {
                assert_eq!(verdict, Some((99, Condition::BodyAltered)), "{at}");
            }
        }
    }

    fn judge_any_run(verifier: &mut Verifier, message: &[u8]) -> Option<(u64, Condition)> {
        verifier.reset();
        verifier.feed(message);
        match verifier.finish() {
            // A flipped bit in the id can make another valid id; its body then gives it away.
            Verdict::Ours { number, condition, .. } => Some((number, condition)),
            Verdict::Foreign => None,
        }
    }

    #[test]
    fn cut_and_grown_messages_are_altered() {
        let mut verifier = Verifier::default();
        let whole = message(1_600, false, 3);
        let id_end = memmem::find(&whole, b"\r\n").unwrap() + 2;
        for len in id_end..whole.len() {
            let (number, condition) = judge(&mut verifier, &[&whole[..len]]).unwrap();
            assert!(number == 3 && condition != Condition::Intact, "{len}");
        }
        assert_eq!(judge(&mut verifier, &[&whole, b"\r\n"]), Some((3, Condition::BodyAltered)));
        assert_eq!(judge(&mut verifier, &[&whole[..id_end - 2]]), None);
    }

    #[test]
    fn trace_fields_before_the_header_are_allowed_but_none_within() {
        let mut verifier = Verifier::default();
        let whole = message(1_600, false, 3);
        let received: &[u8] = b"Received: from a by b;\r\n\tWed, 01 Jan 2025 00:00:00 +0000\r\n";
        assert_eq!(judge(&mut verifier, &[received, &whole]), Some((3, Condition::Intact)));
        let within = memmem::find(&whole, b"Subject").unwrap();
        let verdict = judge(&mut verifier, &[&whole[..within], received, &whole[within..]]);
        assert_eq!(verdict, Some((3, Condition::HeaderAltered)));
    }

    #[test]
    fn foreign_messages_are_foreign() {
        let mut verifier = Verifier::default();
        let quoted = [b"Subject: report\r\n\r\n", &message(900, false, 1)[..]].concat();
        for message in [&b""[..], b"\r\n", b"no header", b"Subject: hello\r\n\r\nbody\r\n", &quoted] {
            assert_eq!(judge(&mut verifier, &[message]), None);
        }
        let endless = vec![b'a'; HEADER_OCTETS_MAX + 1];
        assert_eq!(judge(&mut verifier, &[&endless, b"\r\n", &message(900, false, 1)]), None);
    }
}
