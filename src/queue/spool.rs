//! The writing half of a shard's spool: what to write where, and who may be told that it is safe.
//!
//! A machine without a disk. Messages are appended to a batch; the driver takes the oldest batch,
//! writes it in one piece, syncs, and says how that went. While it does so the next batch fills:
//! that is the group commit, with no timer. Batches succeed or fail whole.
//!
//! A failed or short write, or a failed sync, poisons the segment: nothing of that batch or of the
//! batches already stamped for that segment is acknowledged, and what comes later goes to a new
//! segment. A failed sync is never tried again and believed: the kernel may have dropped the
//! octets it could not write (seen with io_uring as with write(2)). Or it may not: so the header of
//! the next segment says that what failed is void, lest it come back at the next start beside what
//! its clients have sent again.

use super::outcome::{NewOutcome, Statuses};
use super::record::{
    END_MARK_OCTETS, HEADER_OCTETS, NewMessage, Record, SegmentHeader, Stamp, Void, end_mark, record_octets,
};
use super::stored::FIELD_OCTETS;
use crate::limits::{BATCH_MAX_OCTETS, RECORD_MAX_OCTETS, SEGMENT_MAX_OCTETS};
use crate::smtp::{Durable, QUEUE_ID_SHARD_BITS, QueueId};
use std::collections::VecDeque;

/// Makes queue ids: growing, and unlike any that this spool has seen.
#[derive(Debug)]
pub struct IdSource {
    shard: u64,
    last_us: u64,
}

impl IdSource {
    /// Ids of `shard`, all greater than `highest`.
    pub fn new(shard: u32, highest: QueueId) -> Self {
        IdSource { shard: u64::from(shard), last_us: highest.number() >> QUEUE_ID_SHARD_BITS }
    }

    /// The next id; `unix_us` is microseconds since the Unix epoch. A clock that stands still or
    /// goes back does no harm.
    pub fn next(&mut self, unix_us: u64) -> QueueId {
        self.last_us = unix_us.max(self.last_us + 1);
        QueueId::from_number(self.last_us << QUEUE_ID_SHARD_BITS | self.shard)
    }

    /// The highest id given out.
    pub fn highest(&self) -> QueueId {
        QueueId::from_number(self.last_us << QUEUE_ID_SHARD_BITS | self.shard)
    }
}

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Generation of its segment.
    pub generation: u64,
    /// Where in the segment it begins.
    pub offset: u32,
    /// Its octets, padding included.
    pub octets: u32,
}

/// What stands for an appended message until its batch is synced.
#[derive(Debug, PartialEq, Eq)]
pub struct Receipt {
    id: QueueId,
    batch: u64,
    location: Location,
}

impl Receipt {
    /// Where the message's record is, once its batch is synced.
    pub fn location(&self) -> Location {
        self.location
    }
}

/// The number of a batch; batches are synced, or fail, in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchNumber(u64);

/// The fact that a batch was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced(BatchNumber);

impl Synced {
    /// The batch.
    pub fn batch(self) -> BatchNumber {
        self.0
    }

    /// The proof for one message of the batch; `None` for a message of another batch.
    pub fn prove(self, receipt: &Receipt) -> Option<Durable> {
        (receipt.batch == self.0.0).then(|| Durable::attest(receipt.id))
    }
}

/// A batch to be written.
#[derive(Debug)]
pub struct Batch {
    number: u64,
    /// Generation of the segment it belongs to.
    pub generation: u64,
    /// Where in the segment it begins.
    pub offset: u64,
    /// Records, one behind the other, and an end mark.
    pub octets: Vec<u8>,
    /// How many messages they are.
    pub messages: usize,
}

impl Batch {
    /// Its number.
    pub fn number(&self) -> BatchNumber {
        BatchNumber(self.number)
    }
}

/// The writing half of one shard's spool.
#[derive(Debug)]
pub struct Spool {
    shard: u32,
    key: u64,
    ids: IdSource,
    next_sequence: u64,
    next_batch: u64,
    /// Generation that new records are stamped for.
    generation: u64,
    /// Where the next batch of that generation begins.
    offset: u64,
    capacity: u64,
    waiting: VecDeque<Batch>,
    in_flight: Option<InFlight>,
    /// The last segment that was made.
    made: Option<u64>,
    /// What failed, until a segment says so.
    void: Option<Void>,
    /// Length of the last batch: the next one is likely to be as long.
    last_batch_octets: usize,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    batch: u64,
    generation: u64,
    offset: u64,
}

/// Where a spool goes on: what recovery found, or nothing for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Greater than every generation in the directory.
    pub next_generation: u64,
    /// Greater than every sequence in the directory.
    pub next_sequence: u64,
    /// No lower id may be given out.
    pub highest_id: QueueId,
}

impl Default for Resume {
    fn default() -> Self {
        Resume { next_generation: 1, next_sequence: 1, highest_id: QueueId::from_number(0) }
    }
}

impl Spool {
    /// A spool that goes on behind what recovery found. `key` is random, and new at every start.
    pub fn new(shard: u32, resume: Resume, key: u64) -> Self {
        Spool {
            shard,
            key,
            ids: IdSource::new(shard, resume.highest_id),
            next_sequence: resume.next_sequence,
            next_batch: 0,
            generation: resume.next_generation,
            offset: HEADER_OCTETS as u64,
            capacity: SEGMENT_MAX_OCTETS,
            waiting: VecDeque::new(),
            in_flight: None,
            made: None,
            void: None,
            last_batch_octets: 0,
        }
    }

    /// An id for a message that begins to arrive.
    pub fn next_id(&mut self, unix_us: u64) -> QueueId {
        self.ids.next(unix_us)
    }

    /// What a segment with this generation begins with: its header, and the mark that nothing follows.
    pub fn segment_beginning(&self, generation: u64) -> Vec<u8> {
        let header = SegmentHeader {
            shard: self.shard,
            generation,
            highest_id: self.ids.highest(),
            key: self.key,
            void: self.void,
        };
        let mut octets = header.encode().to_vec();
        octets.extend_from_slice(&end_mark(self.key, generation, HEADER_OCTETS as u64));
        octets
    }

    /// The segment was made, with so many octets, and its beginning is on stable storage. Returns
    /// the segment of which it says that records in it are void: it must outlive that one.
    pub fn segment_made(&mut self, generation: u64, capacity: u64) -> Option<u64> {
        if generation == self.generation {
            self.capacity = capacity;
        }
        self.made = Some(generation);
        self.void.take().map(|void| void.generation)
    }

    /// Octets of the segment that is written to.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Appends a message to the batch that is filling.
    pub fn append(&mut self, message: &NewMessage<'_>) -> Receipt {
        let (batch, location) = self.append_records(record_octets(message), |out, stamp| message.encode(out, stamp));
        if let Some(batch) = self.waiting.back_mut() {
            batch.messages += 1;
        }
        Receipt { id: message.id, batch, location }
    }

    /// Appends an outcome to the batch that is filling. Returns the batch, and the generation of
    /// the segment that will hold it.
    pub fn append_outcome<R: AsRef<str>>(&mut self, outcome: &NewOutcome<'_, R>) -> (BatchNumber, u64) {
        let (batch, location) = self.append_records(outcome.octets(), |out, stamp| outcome.encode(out, stamp));
        (BatchNumber(batch), location.generation)
    }

    /// Appends the record of a message of an older segment again, with what is known of its recipients:
    /// under one checksum, so that a copy that is found whole brings along all that went before it.
    pub fn append_again(&mut self, record: &Record<'_>, statuses: &Statuses, recipients: usize) -> Receipt {
        let octets = HEADER_OCTETS + record.envelope.len() + record.message.len() + FIELD_OCTETS + 8;
        let mut outcomes = Vec::new();
        statuses.encode(&mut outcomes, recipients, RECORD_MAX_OCTETS.saturating_sub(octets));
        let (batch, location) = self.append_records(octets + outcomes.len(), |out, stamp| {
            record.encode_copy(out, stamp, &outcomes);
        });
        Receipt { id: record.header.id, batch, location }
    }

    /// Appends records that stay together. `octets` is the most that `encode` appends.
    fn append_records(&mut self, octets: usize, encode: impl FnOnce(&mut Vec<u8>, &mut Stamp)) -> (u64, Location) {
        let end = self.offset + (octets + END_MARK_OCTETS) as u64;
        if end > self.capacity && self.offset > HEADER_OCTETS as u64 {
            self.start_segment();
        }
        let fits =
            |batch: &Batch| batch.generation == self.generation && batch.octets.len() + octets <= BATCH_MAX_OCTETS;
        if !self.waiting.back().is_some_and(fits) {
            let capacity = octets.max(self.last_batch_octets) + END_MARK_OCTETS;
            self.waiting.push_back(Batch {
                number: self.next_batch,
                generation: self.generation,
                offset: self.offset,
                octets: Vec::with_capacity(capacity),
                messages: 0,
            });
            self.next_batch += 1;
        }
        let Some(batch) = self.waiting.back_mut() else { unreachable!("a batch was pushed if there was none") };
        let before = batch.octets.len();
        let mut stamp = Stamp { key: self.key, generation: batch.generation, sequence: self.next_sequence };
        encode(&mut batch.octets, &mut stamp);
        let octets = (batch.octets.len() - before) as u64;
        // A segment has at most 64 MB.
        let location = Location { generation: batch.generation, offset: self.offset as u32, octets: octets as u32 };
        self.offset += octets;
        self.next_sequence = stamp.sequence;
        (batch.number, location)
    }

    /// The oldest generation that is still written to: segments from it on are in use.
    pub fn oldest_in_use(&self) -> u64 {
        let in_flight = self.in_flight.map(|batch| batch.generation);
        in_flight.or(self.waiting.front().map(|batch| batch.generation)).unwrap_or(self.generation)
    }

    fn start_segment(&mut self) {
        self.generation += 1;
        self.offset = HEADER_OCTETS as u64;
        self.capacity = SEGMENT_MAX_OCTETS;
    }

    /// The oldest batch, to be written and synced; one at a time.
    pub fn take_batch(&mut self) -> Option<Batch> {
        if self.in_flight.is_some() {
            return None;
        }
        let mut batch = self.waiting.pop_front()?;
        let Batch { number, generation, offset, .. } = batch;
        self.in_flight = Some(InFlight { batch: number, generation, offset });
        self.last_batch_octets = batch.octets.len();
        let end = offset + batch.octets.len() as u64;
        batch.octets.extend_from_slice(&end_mark(self.key, generation, end));
        Some(batch)
    }

    /// Whether a batch waits to be taken.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The batch in flight was written whole and a sync begun after that has succeeded.
    pub fn synced(&mut self) -> Option<Synced> {
        self.in_flight.take().map(|flown| Synced(BatchNumber(flown.batch)))
    }

    /// The batch in flight could not be made durable. Returns the numbers of all batches that fail
    /// with it: those stamped for the same segment.
    pub fn failed(&mut self) -> Vec<BatchNumber> {
        let Some(InFlight { batch, generation, offset }) = self.in_flight.take() else { return Vec::new() };
        let mut failed = vec![BatchNumber(batch)];
        if self.made == Some(generation) {
            self.void = Some(Void { generation, offset });
        }
        self.waiting.retain(|batch| {
            let poisoned = batch.generation == generation;
            if poisoned {
                failed.push(BatchNumber(batch.number));
            }
            !poisoned
        });
        if self.generation == generation {
            self.start_segment();
        }
        failed
    }

    /// The number of the batch that a receipt waits for.
    pub fn batch_of(receipt: &Receipt) -> BatchNumber {
        BatchNumber(receipt.batch)
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Status;
    use super::super::record::{Body, RecordHeader};
    use super::*;
    use crate::smtp::envelope::{Envelope, SenderParameters};

    fn append(spool: &mut Spool, body: &[u8]) -> Receipt {
        let mut envelope = Envelope::default();
        envelope.begin(None, None, SenderParameters::default());
        let id = spool.next_id(0);
        let client = "192.0.2.1".parse().expect("an address");
        spool.append(&NewMessage {
            id,
            arrived_unix_ms: 0,
            envelope: &envelope,
            client,
            hello: b"",
            body: Body::Inline(body),
        })
    }

    #[test]
    fn ids_grow_whatever_the_clock_does() {
        let mut ids = IdSource::new(5, QueueId::from_number(1000 << 10));
        let given: Vec<QueueId> = [2000, 2000, 1, 5000].map(|unix_us| ids.next(unix_us)).to_vec();
        assert!(given.is_sorted());
        assert_eq!(
            given.iter().map(|id| (id.number() >> 10, id.number() & 1023)).collect::<Vec<_>>(),
            [(2000, 5), (2001, 5), (2002, 5), (5000, 5)]
        );
    }

    #[test]
    fn what_is_appended_during_a_write_goes_with_the_next() {
        let mut spool = Spool::new(0, Resume::default(), 1);
        let first = append(&mut spool, b"one");
        let batch = spool.take_batch().expect("a batch");
        assert_eq!((batch.offset, batch.messages), (HEADER_OCTETS as u64, 1));
        let second = append(&mut spool, b"two");
        let third = append(&mut spool, b"three");
        assert!(spool.take_batch().is_none(), "one batch at a time");
        let synced = spool.synced().expect("a batch was in flight");
        assert!(synced.prove(&first).is_some());
        assert!(synced.prove(&second).is_none(), "not covered by that sync");
        let next = spool.take_batch().expect("a batch");
        assert_eq!(next.messages, 2);
        assert_eq!(next.offset + END_MARK_OCTETS as u64, batch.offset + batch.octets.len() as u64);
        let synced = spool.synced().expect("in flight");
        assert!(synced.prove(&second).is_some() && synced.prove(&third).is_some());
        assert!(spool.synced().is_none());
    }

    #[test]
    fn a_failure_poisons_the_segment() {
        let mut spool = Spool::new(0, Resume::default(), 1);
        append(&mut spool, b"one");
        let batch = spool.take_batch().expect("a batch");
        append(&mut spool, b"two");
        assert_eq!(spool.failed(), [BatchNumber(0), BatchNumber(1)]);
        assert!(!spool.has_waiting());
        let third = append(&mut spool, b"three");
        let next = spool.take_batch().expect("a batch");
        assert_eq!((next.generation, next.offset), (batch.generation + 1, HEADER_OCTETS as u64));
        assert!(spool.synced().expect("in flight").prove(&third).is_some());
    }

    #[test]
    fn segments_and_batches_are_bounded() {
        let mut spool = Spool::new(0, Resume::default(), 1);
        let body = vec![b'x'; 256 * 1024];
        let total = 3 * SEGMENT_MAX_OCTETS / body.len() as u64;
        let mut expected_sequence = 1;
        let mut generations = Vec::new();
        for _ in 0..total {
            append(&mut spool, &body);
        }
        while let Some(batch) = spool.take_batch() {
            assert!(batch.octets.len() <= BATCH_MAX_OCTETS + END_MARK_OCTETS);
            assert!(batch.offset + batch.octets.len() as u64 <= SEGMENT_MAX_OCTETS);
            if generations.last() != Some(&batch.generation) {
                assert_eq!(batch.offset, HEADER_OCTETS as u64);
                generations.push(batch.generation);
            }
            let mut at = 0;
            let end = batch.octets.len() - END_MARK_OCTETS;
            assert_eq!(batch.octets[end..], end_mark(1, batch.generation, batch.offset + end as u64));
            while at < end {
                let header = RecordHeader::decode(&batch.octets[at..]).expect("a record");
                assert!(Record::decode(header, &batch.octets[at..]).is_some());
                assert_eq!((header.generation, header.sequence), (batch.generation, expected_sequence));
                expected_sequence += 1;
                at += header.octets() as usize;
            }
            spool.synced();
        }
        assert_eq!(expected_sequence, total + 1);
        assert_eq!(generations, [1, 2, 3, 4]);
    }

    #[test]
    fn a_small_segment_is_left_sooner() {
        let mut spool = Spool::new(0, Resume::default(), 1);
        append(&mut spool, &[b'x'; 1000]);
        let batch = spool.take_batch().expect("a batch");
        assert_eq!(spool.segment_made(batch.generation, 2000), None);
        spool.synced();
        append(&mut spool, &[b'x'; 1000]);
        assert_eq!(spool.take_batch().expect("a batch").generation, batch.generation + 1);
    }

    #[test]
    fn what_failed_is_void_in_the_next_segment_that_is_made() {
        let mut spool = Spool::new(0, Resume::default(), 1);
        let void = |spool: &Spool, generation| {
            SegmentHeader::decode(&spool.segment_beginning(generation)).expect("a header").void
        };
        append(&mut spool, b"one");
        let first = spool.take_batch().expect("a batch");
        assert_eq!(void(&spool, first.generation), None);
        spool.segment_made(first.generation, 1000);
        spool.synced();
        append(&mut spool, b"two");
        let failing = spool.take_batch().expect("a batch");
        spool.failed();
        let expected = Void { generation: first.generation, offset: failing.offset };
        // The next one cannot be made: nothing of it is anywhere.
        append(&mut spool, b"three");
        let unmade = spool.take_batch().expect("a batch");
        assert_eq!(void(&spool, unmade.generation), Some(expected));
        spool.failed();
        append(&mut spool, b"four");
        let made = spool.take_batch().expect("a batch");
        assert_eq!(void(&spool, made.generation), Some(expected));
        assert_eq!(spool.segment_made(made.generation, 1000), Some(first.generation));
        spool.failed();
        let expected = Void { generation: made.generation, offset: HEADER_OCTETS as u64 };
        assert_eq!(void(&spool, made.generation + 1), Some(expected), "said of the first already");
    }

    #[test]
    fn a_record_is_appended_again_with_what_is_known_of_it() {
        let mut spool = Spool::new(0, Resume::default(), 1);
        let receipt = append(&mut spool, b"one");
        let batch = spool.take_batch().expect("a batch");
        spool.synced();
        let header = RecordHeader::decode(&batch.octets).expect("a record");
        let record = Record::decode(header, &batch.octets).expect("a record");
        for statuses in [Statuses::default(), {
            let mut known = Statuses::default();
            known.settle(3, 1, Status::Failed, "550 no");
            known
        }] {
            let again = spool.append_again(&record, &statuses, 3);
            let batch = spool.take_batch().expect("a batch");
            spool.synced();
            assert_eq!((again.id, u64::from(again.location().offset)), (receipt.id, batch.offset));
            let header = RecordHeader::decode(&batch.octets).expect("a record");
            assert_eq!((header.id, header.octets()), (receipt.id, u64::from(again.location().octets)));
            let copy = Record::decode(header, &batch.octets).expect("a record");
            let mut known = Statuses::default();
            assert!(known.add(copy.stored_envelope().expect("an envelope").outcomes(), 3));
            assert_eq!((known, copy.message), (statuses, record.message));
        }
    }
}
