//! What became of a message's recipients: the outcome record.
//!
//! A record of kind 3 has, in the envelope's place, one field per recipient that is settled: tag,
//! 1 octet; length, 4; value. All numbers are little-endian.
//!
//! | tag | value | means |
//! |---|---|---|
//! | 1 | status, 1 octet; reply | all recipients that no other outcome has settled |
//! | 2 | place in the envelope, 4 octets; status, 1; reply | this recipient |
//!
//! The reply is the next hop's last line, printable ASCII, or empty. A recipient is settled once;
//! of two outcomes for one recipient the first holds. But a message that is withdrawn is so for
//! all its recipients, whatever was written before.
//!
//! One that settles very many recipients takes several records, one behind the other. The same fields
//! stand in the envelope of a record that was written again ([`super::stored`]).

use super::record::{HEADER_OCTETS, Kind, Stamp, Unsealed, begin_record};
use crate::limits::OUTCOME_RECIPIENTS_MAX;
use crate::smtp::QueueId;

const TAG_ALL: u8 = 1;
const TAG_ONE: u8 = 2;
/// Octets of a field before its reply, at most.
const FIELD_OCTETS: usize = 10;

/// What has become of a recipient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Still to be delivered.
    #[default]
    Pending = 0,
    /// The next hop took the message.
    Delivered = 1,
    /// The next hop refused it for good.
    Failed = 2,
    /// `--queue-lifetime` passed.
    Expired = 3,
    /// The refusal was passed on to the client, which so keeps the message ([MS-OXSMTP]
    /// AcknowledgementDelay).
    Withdrawn = 4,
}

impl Status {
    /// Whether the sender is still owed a report.
    pub fn is_undeliverable(self) -> bool {
        matches!(self, Status::Failed | Status::Expired)
    }

    fn from_number(number: u8) -> Option<Self> {
        [Status::Delivered, Status::Failed, Status::Expired, Status::Withdrawn]
            .into_iter()
            .find(|status| *status as u8 == number)
    }
}

/// One recipient that is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled<R> {
    /// Its place in the envelope.
    pub recipient: u32,
    /// What became of it.
    pub status: Status,
    /// The next hop's reply, or what this server says instead.
    pub reply: R,
}

/// An outcome on its way into the spool.
#[derive(Clone, Copy, Debug)]
pub struct NewOutcome<'a, R> {
    /// The message.
    pub id: QueueId,
    /// When it was known, milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// Whom it settles.
    pub settles: Settles<'a, R>,
}

/// Whom an outcome settles.
#[derive(Clone, Copy, Debug)]
pub enum Settles<'a, R> {
    /// All recipients that are not settled yet.
    Rest(Status, R),
    /// These.
    These(&'a [Settled<R>]),
}

impl<R: AsRef<str>> NewOutcome<'_, R> {
    /// Octets that the records take at most.
    pub fn octets(&self) -> usize {
        let (records, fields) = match &self.settles {
            Settles::Rest(_, reply) => (1, FIELD_OCTETS + reply.as_ref().len()),
            Settles::These(settled) => (
                settled.len().div_ceil(OUTCOME_RECIPIENTS_MAX),
                settled.iter().map(|one| FIELD_OCTETS + one.reply.as_ref().len()).sum(),
            ),
        };
        records * (HEADER_OCTETS + 8) + fields
    }

    /// Appends the records to `out`, whose length must be a multiple of 8, and counts the stamp on.
    pub fn encode(&self, out: &mut Vec<u8>, stamp: &mut Stamp) {
        match &self.settles {
            Settles::Rest(status, reply) => {
                self.encode_record(out, stamp, |out| put(out, TAG_ALL, &[], *status, reply.as_ref()));
            }
            Settles::These(settled) => {
                for some in settled.chunks(OUTCOME_RECIPIENTS_MAX) {
                    self.encode_record(out, stamp, |out| {
                        for one in some {
                            put(out, TAG_ONE, &one.recipient.to_le_bytes(), one.status, one.reply.as_ref());
                        }
                    });
                }
            }
        }
    }

    fn encode_record(&self, out: &mut Vec<u8>, stamp: &mut Stamp, encode_fields: impl FnOnce(&mut Vec<u8>)) {
        let start = begin_record(out);
        let fields = out.len();
        encode_fields(out);
        let octets = out.len() - fields;
        Unsealed { kind: Kind::Outcome, id: self.id, unix_ms: self.unix_ms, message_octets: 0, message_crc: 0 }
            .end_record(out, start, octets, stamp);
    }
}

fn put(out: &mut Vec<u8>, tag: u8, place: &[u8], status: Status, reply: &str) {
    out.push(tag);
    let octets = u32::try_from(place.len() + 1 + reply.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&octets.to_le_bytes());
    out.extend_from_slice(place);
    out.push(status as u8);
    out.extend_from_slice(reply.as_bytes());
}

/// What is known of each recipient of a message, from its outcomes. Most messages are settled
/// whole and without a word: that takes no memory of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statuses(Known);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Known {
    #[default]
    Nothing,
    /// This of all recipients, with an empty reply.
    All(Status),
    /// By place in the envelope.
    #[expect(clippy::box_collection, reason = "each message of the queue has one of these: a word, not three")]
    Each(Box<Vec<(Status, Box<str>)>>),
}

impl Statuses {
    /// Adds what the fields of an outcome say of a message with so many recipients. False: they are not
    /// what this version writes.
    pub fn add(&mut self, fields: &[u8], recipients: usize) -> bool {
        let mut rest = fields;
        while let Some((&tag, after)) = rest.split_first() {
            let Some((length, after)) = after.split_first_chunk::<4>() else { return false };
            let Some((value, after)) = after.split_at_checked(u32::from_le_bytes(*length) as usize) else {
                return false;
            };
            let (place, value) = match (tag, value.split_first_chunk::<4>()) {
                (TAG_ALL, _) => (None, value),
                (TAG_ONE, Some((place, value))) => (Some(u32::from_le_bytes(*place) as usize), value),
                _ => return false,
            };
            let Some((&status, reply)) = value.split_first() else { return false };
            let Some(status) = Status::from_number(status) else { return false };
            let reply = String::from_utf8_lossy(reply);
            match place {
                None => self.settle_rest(recipients, status, &reply),
                Some(place) if place < recipients => self.settle(recipients, place, status, &reply),
                Some(_) => return false,
            }
            rest = after;
        }
        true
    }

    /// Appends the fields that say all this, at most so many octets: else without replies.
    pub fn encode(&self, out: &mut Vec<u8>, recipients: usize, octets_max: usize) {
        let start = out.len();
        for with_replies in [true, false] {
            out.truncate(start);
            for one in self.settled(recipients) {
                let reply = if with_replies { one.reply } else { "" };
                put(out, TAG_ONE, &one.recipient.to_le_bytes(), one.status, reply);
            }
            if out.len() - start <= octets_max {
                return;
            }
        }
    }

    /// Settles one of so many recipients, unless it was settled before.
    pub fn settle(&mut self, recipients: usize, place: usize, status: Status, reply: &str) {
        if recipients == 1 && place == 0 {
            return self.settle_rest(recipients, status, reply);
        }
        if let Some(one) = self.each(recipients).get_mut(place) {
            settle_one(one, status, reply);
        }
    }

    /// Settles those of so many recipients that were not settled before.
    pub fn settle_rest(&mut self, recipients: usize, status: Status, reply: &str) {
        if matches!(self.0, Known::Nothing) && reply.is_empty() {
            self.0 = Known::All(status);
            return;
        }
        self.each(recipients).iter_mut().for_each(|one| settle_one(one, status, reply));
    }

    fn each(&mut self, recipients: usize) -> &mut Vec<(Status, Box<str>)> {
        let before = match &self.0 {
            Known::Nothing => Some(Status::Pending),
            Known::All(status) => Some(*status),
            Known::Each(_) => None,
        };
        if let Some(before) = before {
            self.0 = Known::Each(Box::new(vec![(before, Box::default()); recipients]));
        }
        match &mut self.0 {
            Known::Each(each) => each,
            Known::Nothing | Known::All(_) => unreachable!("it was made so"),
        }
    }

    /// What has become of a recipient, and the reply that said so.
    pub fn of(&self, recipient: usize) -> (Status, &str) {
        match &self.0 {
            Known::Nothing => (Status::Pending, ""),
            Known::All(status) => (*status, ""),
            Known::Each(each) => each.get(recipient).map_or((Status::Pending, ""), |(status, reply)| (*status, reply)),
        }
    }

    /// Those that are settled, of so many recipients.
    pub fn settled(&self, recipients: usize) -> impl Iterator<Item = Settled<&str>> {
        (0..recipients).filter_map(|recipient| {
            let (status, reply) = self.of(recipient);
            (status != Status::Pending).then_some(Settled { recipient: recipient as u32, status, reply })
        })
    }

    /// Whether nothing is settled.
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Known::Nothing)
    }

    /// Whether every recipient is settled and nobody is owed a report: the message is done with.
    pub fn is_finished(&self) -> bool {
        self.are_all(|status| matches!(status, Status::Delivered | Status::Withdrawn))
    }

    /// Whether nothing is left to be tried.
    pub fn are_all_settled(&self) -> bool {
        self.are_all(|status| status != Status::Pending)
    }

    /// Whether a report is owed for a recipient.
    pub fn is_undeliverable(&self) -> bool {
        !self.are_all(|status| !status.is_undeliverable()) && !self.is_empty()
    }

    fn are_all(&self, is: impl Fn(Status) -> bool) -> bool {
        match &self.0 {
            Known::Nothing => false,
            Known::All(status) => is(*status),
            Known::Each(each) => each.iter().all(|(status, _)| is(*status)),
        }
    }
}

fn settle_one(one: &mut (Status, Box<str>), status: Status, reply: &str) {
    if one.0 == Status::Pending || status == Status::Withdrawn {
        *one = (status, reply.into());
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Record, RecordHeader};
    use super::*;

    fn stored(settles: Settles<'_, &str>) -> Vec<u8> {
        let outcome = NewOutcome { id: QueueId::from_number(7), unix_ms: 8, settles };
        let mut out = Vec::new();
        outcome.encode(&mut out, &mut Stamp { key: 1, generation: 2, sequence: 3 });
        assert!(out.len() <= outcome.octets() && out.len().is_multiple_of(8));
        out
    }

    fn statuses(outcomes: &[Vec<u8>], recipients: usize) -> Option<Statuses> {
        let mut statuses = Statuses::default();
        for octets in outcomes {
            let (mut rest, mut sequence) = (&octets[..], 3);
            while !rest.is_empty() {
                let header = RecordHeader::decode(rest).expect("a header");
                assert_eq!((header.kind, header.id.number(), header.unix_ms), (Kind::Outcome, 7, 8));
                assert_eq!(header.sequence, sequence);
                let record = Record::decode(header, rest).expect("a record");
                if !statuses.add(record.envelope, recipients) {
                    return None;
                }
                rest = &rest[header.octets() as usize..];
                sequence += 1;
            }
        }
        Some(statuses)
    }

    fn one(recipient: u32, status: Status, reply: &str) -> Settled<&str> {
        Settled { recipient, status, reply }
    }

    #[test]
    fn outcomes_add_up() {
        let first = stored(Settles::These(&[one(2, Status::Failed, "550 no"), one(0, Status::Delivered, "")]));
        let second = stored(Settles::Rest(Status::Expired, "too old"));
        let after_first = statuses(std::slice::from_ref(&first), 3).expect("readable");
        assert_eq!(after_first.of(0), (Status::Delivered, ""));
        assert_eq!(after_first.of(1), (Status::Pending, ""));
        assert_eq!(after_first.of(2), (Status::Failed, "550 no"));
        assert!(!after_first.is_finished());
        let after_both = statuses(&[first, second], 3).expect("readable");
        assert_eq!(after_both.of(1), (Status::Expired, "too old"));
        assert_eq!(after_both.of(2), (Status::Failed, "550 no"), "the first outcome holds");
        assert!(!after_both.is_finished(), "a report is owed");
    }

    #[test]
    fn delivered_to_all_is_finished() {
        assert!(statuses(&[stored(Settles::Rest(Status::Delivered, ""))], 5).expect("readable").is_finished());
        assert!(statuses(&[stored(Settles::Rest(Status::Withdrawn, "550 no"))], 1).expect("readable").is_finished());
        let half = stored(Settles::These(&[one(0, Status::Delivered, "")]));
        assert!(!statuses(std::slice::from_ref(&half), 2).expect("readable").is_finished());
        assert!(!Statuses::default().is_finished());
    }

    #[test]
    fn very_many_recipients_take_several_records() {
        let reply = "550 ".to_owned() + &"x".repeat(500);
        let recipients = 3 * OUTCOME_RECIPIENTS_MAX + 1;
        let settled: Vec<_> = (0..recipients as u32).map(|place| one(place, Status::Failed, &reply)).collect();
        let all = statuses(&[stored(Settles::These(&settled))], recipients).expect("readable");
        assert!(all.settled(recipients).eq(settled) && all.is_undeliverable());
    }

    #[test]
    fn what_is_known_is_written_down_whole_or_without_replies() {
        let mut known = Statuses::default();
        known.settle(4, 1, Status::Failed, "550 no");
        known.settle(4, 3, Status::Delivered, "");
        for (octets_max, reply) in [(1000, "550 no"), (20, "")] {
            let mut fields = Vec::new();
            known.encode(&mut fields, 4, octets_max);
            assert!(fields.len() <= octets_max);
            let mut read = Statuses::default();
            assert!(read.add(&fields, 4));
            assert_eq!((read.of(1), read.of(3)), ((Status::Failed, reply), (Status::Delivered, "")));
            assert_eq!(read.settled(4).count(), 2);
        }
    }

    #[test]
    fn what_is_known_adds_up_however_it_is_kept() {
        let mut known = Statuses::default();
        assert!(known.is_empty() && !known.is_undeliverable() && known.settled(2).next().is_none());
        known.settle_rest(2, Status::Delivered, "");
        assert!(known.is_finished() && known.settled(2).count() == 2);
        known.settle(2, 1, Status::Failed, "550 late");
        assert_eq!(known.of(1), (Status::Delivered, ""), "the first word holds");
        known.settle_rest(2, Status::Withdrawn, "550 no");
        assert_eq!((known.of(0), known.of(1)), ((Status::Withdrawn, "550 no"), (Status::Withdrawn, "550 no")));
        let mut single = Statuses::default();
        single.settle(1, 0, Status::Delivered, "");
        assert_eq!(single, Statuses(Known::All(Status::Delivered)));
        let mut half = Statuses::default();
        half.settle(3, 1, Status::Expired, "");
        assert!(half.is_undeliverable() && !half.are_all_settled());
        half.settle_rest(3, Status::Delivered, "");
        assert!(half.are_all_settled() && !half.is_finished());
    }

    #[test]
    fn what_does_not_fit_is_told() {
        assert_eq!(statuses(&[stored(Settles::These(&[one(3, Status::Delivered, "")]))], 3), None);
    }
}
