//! The octets of a segment: its header, and the records behind it.
//!
//! All numbers are little-endian. Every record begins at a multiple of 8 and carries the
//! generation of its segment and a sequence number that only grows, both under a checksum: what an
//! earlier use of the file or of the disk left behind is never taken for a record.
//!
//! ```text
//! segment header, 72 octets          record header, 72 octets
//!  0  4  "GPsg"                       0  4  "GPrc"
//!  4  4  CRC32C of 8..72              4  4  CRC32C of 8..72
//!  8  4  format version               8  1  kind: 1 message, 2 message with a spill file, 3 outcome
//! 12  4  shard                        9  3  zero
//! 16  8  generation                  12  4  length of the envelope
//! 24  8  highest queue id so far     16  8  generation
//! 32  8  void: generation, or 0      24  8  sequence
//! 40  8  void: from this offset on   32  8  queue id
//! 48 16  zero
//! 64  8  key
//!                                    40  8  time of arrival, ms since the Unix epoch
//!                                    48  8  length of the message
//!                                    56  4  CRC32C of the message
//!                                    60  4  CRC32C of the envelope
//!                                    64  8  key
//! ```
//!
//! Behind the records stands an end mark, 8 octets: "GPen", and the CRC32C of key, generation and
//! offset. Each batch of records begins where the mark of the last one stood and ends with a mark of
//! its own, in one write: what is behind it was never part of the segment, unless a record says that
//! it is; and where none is, the last batch is not whole. At a multiple of 8 a mark is never torn.
//!
//! The void of a segment's header says that the records of an earlier segment, from this offset on,
//! are none: their batch failed, and who waited for it was told so, but they may be there.
//!
//! The key is a random number that the process drew at its start. A sender who puts octets shaped
//! like a record into a message cannot know it, so they are never taken for one, whatever damage
//! makes recovery look for the next record inside a message.
//!
//! Behind a record header: the envelope ([`super::stored`]), the message for kind 1, and zeros up
//! to a multiple of 8. An outcome ([`super::outcome`]) has its recipients in the envelope's place,
//! the message's id, the time it was known, and no message.

use super::stored::{StoredEnvelope, encode_again, encode_envelope, envelope_octets};
use crate::limits::{ENVELOPE_MAX_OCTETS, RECORD_MAX_OCTETS};
use crate::smtp::QueueId;
use crate::smtp::envelope::Envelope;

/// Version of everything in this file; a spool with another one is refused.
pub const FORMAT_VERSION: u32 = 4;
/// Octets of a segment's header, and of a record's.
pub const HEADER_OCTETS: usize = 72;
/// Octets of an end mark.
pub const END_MARK_OCTETS: usize = 8;

const SEGMENT_MAGIC: [u8; 4] = *b"GPsg";
const RECORD_MAGIC: [u8; 4] = *b"GPrc";
const END_MAGIC: [u8; 4] = *b"GPen";
const KIND_MESSAGE: u8 = 1;
const KIND_SPILLED: u8 = 2;
const KIND_OUTCOME: u8 = 3;

/// Where the octets of a message are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// In the record.
    Inline(&'a [u8]),
    /// In a spill file that is already on stable storage.
    Spilled {
        /// Octets of the file.
        octets: u64,
        /// CRC32C of the file.
        crc: u32,
    },
}

/// A message on its way into the spool.
#[derive(Clone, Copy, Debug)]
pub struct NewMessage<'a> {
    /// Its id.
    pub id: QueueId,
    /// Time of arrival, milliseconds since the Unix epoch.
    pub arrived_unix_ms: u64,
    /// Its envelope.
    pub envelope: &'a Envelope,
    /// The client's address.
    pub client: std::net::IpAddr,
    /// The argument of EHLO or HELO.
    pub hello: &'a [u8],
    /// The message: Received field and content.
    pub body: Body<'a>,
}

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The shard that wrote it.
    pub shard: u32,
    /// Its generation: unique in the shard's directory, and growing.
    pub generation: u64,
    /// No lower id may be given out once this segment exists.
    pub highest_id: QueueId,
    /// The key of the process that wrote it.
    pub key: u64,
    /// Records of an earlier segment that are none.
    pub void: Option<Void>,
}

/// The records of a segment from an offset on: their batch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Void {
    /// The segment's generation.
    pub generation: u64,
    /// Where they begin.
    pub offset: u64,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message, whole.
    Message,
    /// A message in a spill file, and its envelope.
    Spilled,
    /// What became of a message's recipients.
    Outcome,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Kind::Message => KIND_MESSAGE,
            Kind::Spilled => KIND_SPILLED,
            Kind::Outcome => KIND_OUTCOME,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Kind::Message, Kind::Spilled, Kind::Outcome].into_iter().find(|kind| kind.number() == number)
    }
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is.
    pub kind: Kind,
    /// Octets of the envelope, or of an outcome's recipients.
    pub envelope_octets: usize,
    /// Generation of the segment it was written to.
    pub generation: u64,
    /// Its place in the shard's sequence of records.
    pub sequence: u64,
    /// The message's id.
    pub id: QueueId,
    /// Time of arrival, or of the outcome, milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// Octets of the message.
    pub message_octets: u64,
    /// CRC32C of the message.
    pub message_crc: u32,
    /// The key of the process that wrote it.
    pub key: u64,
    envelope_crc: u32,
}

/// A whole record whose checksums are right.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Its header.
    pub header: RecordHeader,
    /// The encoded envelope.
    pub envelope: &'a [u8],
    /// The message; empty for a spilled one.
    pub message: &'a [u8],
}

impl SegmentHeader {
    /// The header's octets.
    pub fn encode(&self) -> [u8; HEADER_OCTETS] {
        let mut out = [0; HEADER_OCTETS];
        out[..4].copy_from_slice(&SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.shard.to_le_bytes());
        out[16..24].copy_from_slice(&self.generation.to_le_bytes());
        out[24..32].copy_from_slice(&self.highest_id.number().to_le_bytes());
        if let Some(void) = self.void {
            out[32..40].copy_from_slice(&void.generation.to_le_bytes());
            out[40..48].copy_from_slice(&void.offset.to_le_bytes());
        }
        out[64..72].copy_from_slice(&self.key.to_le_bytes());
        seal(&mut out);
        out
    }

    /// Reads a header; `None` where none is, or a damaged one.
    pub fn decode(input: &[u8]) -> Option<Self> {
        let header = checked_header(input, SEGMENT_MAGIC)?;
        (u32_at(header, 8) == FORMAT_VERSION).then(|| SegmentHeader {
            shard: u32_at(header, 12),
            generation: u64_at(header, 16),
            highest_id: QueueId::from_number(u64_at(header, 24)),
            key: u64_at(header, 64),
            void: match u64_at(header, 32) {
                0 => None,
                generation => Some(Void { generation, offset: u64_at(header, 40) }),
            },
        })
    }
}

/// The mark that ends a segment at `offset`.
pub fn end_mark(key: u64, generation: u64, offset: u64) -> [u8; END_MARK_OCTETS] {
    let mut crc = 0;
    for number in [key, generation, offset] {
        crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
    }
    let mut mark = [0; END_MARK_OCTETS];
    mark[..4].copy_from_slice(&END_MAGIC);
    mark[4..].copy_from_slice(&crc.to_le_bytes());
    mark
}

/// Where the first end mark of this key and generation stands, at or after `from`.
pub fn find_end_mark(segment: &[u8], key: u64, generation: u64, from: usize) -> Option<usize> {
    let from = from.max(HEADER_OCTETS);
    memchr::memmem::find_iter(segment.get(from..)?, &END_MAGIC)
        .map(|offset| from + offset)
        .filter(|at| at.is_multiple_of(8))
        .find(|&at| segment[at..].starts_with(&end_mark(key, generation, at as u64)))
}

impl RecordHeader {
    /// Reads a header; `None` where none is, or a damaged one.
    pub fn decode(input: &[u8]) -> Option<Self> {
        let header = checked_header(input, RECORD_MAGIC)?;
        let header = RecordHeader {
            kind: Kind::from_number(header[8])?,
            envelope_octets: u32_at(header, 12) as usize,
            generation: u64_at(header, 16),
            sequence: u64_at(header, 24),
            id: QueueId::from_number(u64_at(header, 32)),
            unix_ms: u64_at(header, 40),
            message_octets: u64_at(header, 48),
            message_crc: u32_at(header, 56),
            envelope_crc: u32_at(header, 60),
            key: u64_at(header, 64),
        };
        (header.octets() <= RECORD_MAX_OCTETS as u64).then_some(header)
    }

    fn inline_octets(&self) -> u64 {
        if self.kind == Kind::Message { self.message_octets } else { 0 }
    }

    /// Octets of the whole record with its padding.
    pub fn octets(&self) -> u64 {
        (HEADER_OCTETS as u64 + self.envelope_octets as u64).saturating_add(self.inline_octets()).next_multiple_of(8)
    }
}

impl<'a> Record<'a> {
    /// Reads the record whose header was found at the beginning of `input`; `None`: the record is
    /// cut off or a checksum is wrong.
    pub fn decode(header: RecordHeader, input: &'a [u8]) -> Option<Self> {
        let envelope_end = HEADER_OCTETS + header.envelope_octets;
        let message_end = envelope_end + usize::try_from(header.inline_octets()).ok()?;
        let envelope = input.get(HEADER_OCTETS..envelope_end)?;
        let message = input.get(envelope_end..message_end)?;
        let intact = crc32c::crc32c(envelope) == header.envelope_crc
            && (header.kind != Kind::Message || crc32c::crc32c(message) == header.message_crc);
        intact.then_some(Record { header, envelope, message })
    }

    /// Takes the envelope apart; `None`: it is not what this version writes.
    pub fn stored_envelope(&self) -> Option<StoredEnvelope<'a>> {
        StoredEnvelope::decode(self.envelope)
    }
}

/// Where and under which numbers a record is written.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// The key of the process.
    pub key: u64,
    /// Generation of the segment.
    pub generation: u64,
    /// Its place in the shard's sequence of records.
    pub sequence: u64,
}

impl NewMessage<'_> {
    /// Appends the record to `out`, whose length must be a multiple of 8 (as records leave it), and
    /// counts the stamp on.
    pub fn encode(&self, out: &mut Vec<u8>, stamp: &mut Stamp) {
        let start = begin_record(out);
        encode_envelope(out, self);
        let envelope_octets = out.len() - start - HEADER_OCTETS;
        debug_assert!(envelope_octets <= 2 * ENVELOPE_MAX_OCTETS, "the session bounds its envelope");
        let (kind, message_octets, message_crc) = match self.body {
            Body::Inline(message) => {
                out.extend_from_slice(message);
                (Kind::Message, message.len() as u64, crc32c::crc32c(message))
            }
            Body::Spilled { octets, crc } => (Kind::Spilled, octets, crc),
        };
        let header = Unsealed { kind, id: self.id, unix_ms: self.arrived_unix_ms, message_octets, message_crc };
        header.end_record(out, start, envelope_octets, stamp);
    }
}

impl Record<'_> {
    /// Appends a copy of the record to `out`, in another place of the log, with these outcomes.
    pub fn encode_copy(&self, out: &mut Vec<u8>, stamp: &mut Stamp, outcomes: &[u8]) {
        let RecordHeader { kind, id, unix_ms, message_octets, message_crc, .. } = self.header;
        let start = begin_record(out);
        encode_again(out, self.envelope, outcomes);
        let envelope_octets = out.len() - start - HEADER_OCTETS;
        out.extend_from_slice(self.message);
        let header = Unsealed { kind, id, unix_ms, message_octets, message_crc };
        header.end_record(out, start, envelope_octets, stamp);
    }
}

/// What a record's header says of its content.
pub(super) struct Unsealed {
    pub kind: Kind,
    pub id: QueueId,
    pub unix_ms: u64,
    pub message_octets: u64,
    pub message_crc: u32,
}

/// Makes room for a record's header; returns where it begins.
pub(super) fn begin_record(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    debug_assert_eq!(start % 8, 0, "records are aligned");
    out.resize(start + HEADER_OCTETS, 0);
    start
}

impl Unsealed {
    /// Pads the record that began at `start`, fills its header, and counts the stamp on.
    pub(super) fn end_record(&self, out: &mut Vec<u8>, start: usize, envelope_octets: usize, stamp: &mut Stamp) {
        let envelope_crc = crc32c::crc32c(&out[start + HEADER_OCTETS..start + HEADER_OCTETS + envelope_octets]);
        out.resize(out.len().next_multiple_of(8), 0);
        let header = &mut out[start..start + HEADER_OCTETS];
        header[..4].copy_from_slice(&RECORD_MAGIC);
        header[8] = self.kind.number();
        header[12..16].copy_from_slice(&u32::try_from(envelope_octets).unwrap_or(u32::MAX).to_le_bytes());
        header[16..24].copy_from_slice(&stamp.generation.to_le_bytes());
        header[24..32].copy_from_slice(&stamp.sequence.to_le_bytes());
        header[32..40].copy_from_slice(&self.id.number().to_le_bytes());
        header[40..48].copy_from_slice(&self.unix_ms.to_le_bytes());
        header[48..56].copy_from_slice(&self.message_octets.to_le_bytes());
        header[56..60].copy_from_slice(&self.message_crc.to_le_bytes());
        header[60..64].copy_from_slice(&envelope_crc.to_le_bytes());
        header[64..72].copy_from_slice(&stamp.key.to_le_bytes());
        seal(header);
        stamp.sequence += 1;
    }
}

/// Octets that a record of these parts takes at most, for planning.
pub fn record_octets(message: &NewMessage<'_>) -> usize {
    let body = if let Body::Inline(body) = message.body { body.len() } else { 0 };
    HEADER_OCTETS + envelope_octets(message) + body + 7
}

fn seal(header: &mut [u8]) {
    let crc = crc32c::crc32c(&header[8..HEADER_OCTETS]);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn checked_header(input: &[u8], magic: [u8; 4]) -> Option<&[u8; HEADER_OCTETS]> {
    let header = input.first_chunk::<HEADER_OCTETS>()?;
    (header[..4] == magic && u32_at(header, 4) == crc32c::crc32c(&header[8..])).then_some(header)
}

/// Where the next thing that looks like a record header begins, at or after `from`.
pub fn find_record(segment: &[u8], from: usize) -> Option<usize> {
    let from = from.next_multiple_of(8);
    let finder = memchr::memmem::Finder::new(&RECORD_MAGIC);
    let mut candidates = finder.find_iter(segment.get(from..)?).map(|offset| from + offset);
    candidates.find(|at| at % 8 == 0 && RecordHeader::decode(&segment[*at..]).is_some())
}

fn u32_at(header: &[u8; HEADER_OCTETS], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

fn u64_at(header: &[u8; HEADER_OCTETS], at: usize) -> u64 {
    u64::from(u32_at(header, at)) | u64::from(u32_at(header, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::address::mailbox;
    use crate::smtp::envelope::{RecipientParameters, SenderParameters};

    fn envelope() -> Envelope {
        let mut envelope = Envelope::default();
        envelope.begin(mailbox(b"s@a.b").as_ref(), None, SenderParameters::default());
        assert!(envelope.add_recipient(&mailbox(b"one@c.d").expect("valid"), None, RecipientParameters::default()));
        assert!(envelope.add_recipient(&mailbox(b"two@e.f").expect("valid"), None, RecipientParameters::default()));
        envelope
    }

    fn encoded(body: Body<'_>) -> Vec<u8> {
        let message = NewMessage {
            id: QueueId::from_number(7),
            arrived_unix_ms: 8,
            envelope: &envelope(),
            client: "192.0.2.1".parse().expect("an address"),
            hello: b"client",
            body,
        };
        let mut out = Vec::new();
        message.encode(&mut out, &mut Stamp { key: 5, generation: 3, sequence: 4 });
        assert!(out.len() <= record_octets(&message));
        out
    }

    #[test]
    fn record_is_read_back() {
        let octets = encoded(Body::Inline(b"Received: x\r\n\r\nbody\r\n"));
        assert_eq!(octets.len() % 8, 0);
        let header = RecordHeader::decode(&octets).expect("a header");
        assert_eq!((header.generation, header.sequence, header.id.number(), header.unix_ms), (3, 4, 7, 8));
        assert_eq!(header.octets(), octets.len() as u64);
        let record = Record::decode(header, &octets).expect("a record");
        assert_eq!(record.message, b"Received: x\r\n\r\nbody\r\n");
        let stored = record.stored_envelope().expect("an envelope");
        assert_eq!((stored.reverse_path(), stored.recipient_count()), (&b"s@a.b"[..], 2));
    }

    #[test]
    fn spilled_record_holds_no_message() {
        let octets = encoded(Body::Spilled { octets: 1 << 30, crc: 9 });
        let header = RecordHeader::decode(&octets).expect("a header");
        assert_eq!((header.kind, header.message_octets, header.message_crc), (Kind::Spilled, 1 << 30, 9));
        assert_eq!(header.octets(), octets.len() as u64);
        assert!(Record::decode(header, &octets).is_some());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let octets = encoded(Body::Inline(b"a message of some octets\r\n"));
        let intact =
            |octets: &[u8]| RecordHeader::decode(octets).and_then(|header| Record::decode(header, octets)).is_some();
        assert!(intact(&octets));
        let header = RecordHeader::decode(&octets).expect("a header");
        let padding = octets.len() - (HEADER_OCTETS + header.envelope_octets + 26);
        for bit in 0..(octets.len() - padding) * 8 {
            let mut damaged = octets.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!intact(&damaged), "bit {bit}");
        }
        for cut in 0..octets.len() - padding {
            assert!(!intact(&octets[..cut]), "cut at {cut}");
        }
    }

    #[test]
    fn segment_header_is_read_back() {
        let mut header =
            SegmentHeader { shard: 1, generation: 2, highest_id: QueueId::from_number(3), key: 4, void: None };
        assert_eq!(SegmentHeader::decode(&header.encode()), Some(header));
        header.void = Some(Void { generation: 1, offset: 80 });
        let mut octets = header.encode();
        assert_eq!(SegmentHeader::decode(&octets), Some(header));
        octets[20] ^= 1;
        assert_eq!(SegmentHeader::decode(&octets), None);
        assert_eq!(SegmentHeader::decode(&octets[..10]), None);
    }

    #[test]
    fn a_copy_is_the_same_in_another_place() {
        for body in [Body::Inline(b"a message\r\n"), Body::Spilled { octets: 1 << 30, crc: 9 }] {
            let octets = encoded(body);
            let record = Record::decode(RecordHeader::decode(&octets).expect("a header"), &octets).expect("a record");
            let (mut copied, mut stamp) = (Vec::new(), Stamp { key: 6, generation: 9, sequence: 10 });
            record.encode_copy(&mut copied, &mut stamp, b"");
            assert_eq!((copied.len(), stamp.sequence), (octets.len(), 11));
            let header = RecordHeader::decode(&copied).expect("a header");
            let copy = Record::decode(header, &copied).expect("a record");
            assert_eq!((copy.envelope, copy.message), (record.envelope, record.message));
            assert_eq!(RecordHeader { key: 5, generation: 3, sequence: 4, ..header }, record.header);
        }
    }

    #[test]
    fn an_end_mark_is_of_its_place() {
        let mut segment = vec![0; 1000];
        let put = |segment: &mut Vec<u8>, at: usize, mark: [u8; 8]| segment[at..at + 8].copy_from_slice(&mark);
        put(&mut segment, 104, end_mark(1, 2, 112));
        put(&mut segment, 204, end_mark(1, 2, 204));
        put(&mut segment, 304, end_mark(1, 3, 304));
        put(&mut segment, 404, end_mark(2, 2, 404));
        assert_eq!(find_end_mark(&segment, 1, 2, 0), None, "elsewhere, askew, of others");
        put(&mut segment, 504, end_mark(1, 2, 504));
        put(&mut segment, 904, end_mark(1, 2, 904));
        assert_eq!(find_end_mark(&segment, 1, 2, 0), Some(504));
        assert_eq!(find_end_mark(&segment, 1, 2, 505), Some(904));
        segment[507] ^= 1;
        assert_eq!(find_end_mark(&segment, 1, 2, 0), Some(904));
        assert_eq!(find_end_mark(&segment[..911], 1, 2, 0), None, "cut off");
    }
}
