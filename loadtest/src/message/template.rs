//! A generated message in wire form, prepared once per run: dot-stuffed, ended by the final dot, with the places of the
//! number noted. Sending one is copying it and writing ten digits at each place.
//!
//! The template is shared by all sessions and read only. Large messages leave in chunks, so that a session's buffer is
//! bounded by [`CHUNK_OCTETS_MAX`] whatever the size of the message.

use memchr::memmem;

use super::body::{BLOCK_OCTETS_MAX, Shape};
use super::{BODY_FIELD, ID_FIELD, OCTETS_DIGITS};
use crate::id::{NUMBER_DIGITS, format_id};

/// Largest piece of a message handed to the kernel at once. Larger ones gain nothing on loopback.
pub const CHUNK_OCTETS_MAX: usize = 64 * 1024;

/// What the header of every message of a run says.
pub struct Header<'a> {
    /// Name of the run.
    pub run: &'a str,
    /// Reverse-path, empty for the null one.
    pub from: &'a str,
    /// First forward-path.
    pub to: &'a str,
    /// Date field.
    pub date: &'a str,
    /// Domain of the Message-ID.
    pub domain: &'a str,
}

/// A message without its number.
#[derive(Debug)]
pub struct Template {
    wire: Vec<u8>,
    /// Offsets in `wire` at which the number stands, ascending.
    places: Vec<usize>,
    octets: u64,
}

impl Template {
    /// Prepares messages of `octets`, header included; the result is larger when the header alone needs more.
    pub fn new(header: &Header<'_>, octets: u64, dots: bool) -> Self {
        let id = format_id(header.run, 0);
        let fields = fields(header, &id);
        let head_len = |crc: u32, shape: Shape| head(&id, shape, crc).len() as u64 + fields.len() as u64;
        let shape = Shape::new(octets.saturating_sub(head_len(0, Shape::new(0, dots))), dots);
        let mut wire = head(&id, shape, crc32c::crc32c(fields.as_bytes())).into_bytes();
        wire.extend_from_slice(fields.as_bytes());
        let octets = wire.len() as u64 + shape.octets();
        let mut block = [0; BLOCK_OCTETS_MAX];
        for index in 0.. {
            let len = shape.block(id.as_bytes(), index, &mut block);
            if len == 0 {
                break;
            }
            stuff(&block[..len], &mut wire);
        }
        wire.extend_from_slice(b".\r\n");
        let digits_at = id.len() - NUMBER_DIGITS;
        let places = memmem::find_iter(&wire, id.as_bytes()).map(|place| place + digits_at).collect();
        Self { wire, places, octets }
    }

    /// Length of the message in octets, without dot-stuffing and final dot: what the SIZE parameter says.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// Writes the next chunk of message `number` into `out`, which it clears first. Returns whether it is the last one,
    /// which ends with the final dot.
    pub fn chunk(&self, number: &[u8; NUMBER_DIGITS], cursor: &mut Cursor, out: &mut Vec<u8>) -> bool {
        let start = cursor.octet;
        let mut end = self.wire.len().min(start + CHUNK_OCTETS_MAX);
        out.clear();
        out.extend_from_slice(&self.wire[start..end]);
        while let Some(place) = self.places.get(cursor.place).copied().filter(|place| *place < end) {
            if place + NUMBER_DIGITS > end {
                // A number is never cut: the chunk ends before it.
                end = place;
                out.truncate(end - start);
                break;
            }
            out[place - start..place - start + NUMBER_DIGITS].copy_from_slice(number);
            cursor.place += 1;
        }
        cursor.octet = end;
        end == self.wire.len()
    }
}

/// How far a message has been written.
#[derive(Debug, Default)]
pub struct Cursor {
    octet: usize,
    place: usize,
}

fn head(id: &str, shape: Shape, crc: u32) -> String {
    let (id_field, body_field) = (String::from_utf8_lossy(ID_FIELD), String::from_utf8_lossy(BODY_FIELD));
    format!("{id_field}{id}\r\n{body_field}{:0OCTETS_DIGITS$} {} {crc:08x}\r\n", shape.octets(), shape.kind())
}

fn fields(header: &Header<'_>, id: &str) -> String {
    let Header { from, to, date, domain, .. } = header;
    format!(
        "From: <{from}>\r\nTo: <{to}>\r\nSubject: Load message {id}\r\nDate: {date}\r\nMessage-ID: <{id}@{domain}>\r\n\r\n"
    )
}

/// Appends whole lines with a dot before each leading dot (RFC 5321 section 4.5.2).
fn stuff(lines: &[u8], wire: &mut Vec<u8>) {
    for line in lines.split_inclusive(|octet| *octet == b'\n') {
        if line.first() == Some(&b'.') {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::id::digits;

    pub const HEADER: Header<'static> = Header {
        run: "run7",
        from: "sender@load.example",
        to: "recipient@load.example",
        date: "Wed, 01 Jan 2025 00:00:00 +0000",
        domain: "client.load.example",
    };

    /// A message as it leaves, in one piece.
    pub fn wire(octets: u64, dots: bool, number: u64) -> Vec<u8> {
        let template = Template::new(&HEADER, octets, dots);
        let (mut cursor, mut chunk, mut wire) = (Cursor::default(), Vec::new(), Vec::new());
        loop {
            let last = template.chunk(&digits(number), &mut cursor, &mut chunk);
            wire.extend_from_slice(&chunk);
            if last {
                return wire;
            }
        }
    }

    /// A message as its receiver should see it.
    pub fn message(octets: u64, dots: bool, number: u64) -> Vec<u8> {
        let wire = wire(octets, dots, number);
        let mut message = Vec::new();
        for line in wire[..wire.len() - 3].split_inclusive(|octet| *octet == b'\n') {
            message.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        }
        message
    }

    #[test]
    fn messages_have_the_length_asked_for() {
        for dots in [false, true] {
            let smallest = message(0, dots, 1).len() as u64;
            for octets in [smallest, smallest + 2, 1000, 4096, 4097, 65_536, 300_001] {
                assert_eq!(message(octets, dots, 1).len() as u64, octets);
                assert_eq!(Template::new(&HEADER, octets, dots).octets(), octets);
            }
        }
    }

    #[test]
    fn chunks_never_cut_a_number() {
        // Header lengths move the places over every offset from the end of a chunk.
        for extra in 0..600 {
            let wire = wire(CHUNK_OCTETS_MAX as u64 + extra + 2_000, false, 1_234_567_890);
            assert_eq!(
                memmem::find_iter(&wire, b"run7-").count(),
                memmem::find_iter(&wire, b"run7-1234567890").count()
            );
        }
        let to = "r".repeat(500);
        for len in 0..500 {
            let header = Header { to: &to[..len], ..HEADER };
            let template = Template::new(&header, 200_000, true);
            let (mut cursor, mut chunk, mut found) = (Cursor::default(), Vec::new(), 0);
            while !template.chunk(&digits(1_234_567_890), &mut cursor, &mut chunk) {
                found += memmem::find_iter(&chunk, b"1234567890").count();
            }
            found += memmem::find_iter(&chunk, b"1234567890").count();
            assert_eq!(found, template.places.len());
        }
    }
}
