//! A message to be sent: still in memory, or read back from the spool.

use super::notice::Notice;
use super::{Context, Hold};
use crate::queue::record::{HEADER_OCTETS, Kind, Record, RecordHeader};
use crate::queue::spool::Location;
use crate::shard::shared::BodyMemory;
use crate::smtp::QueueId;
use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;

/// Where a message's octets are.
pub enum Body {
    /// In memory, this part of the buffer.
    Memory(Vec<u8>, Range<usize>),
    /// In its spill file, with this CRC32C.
    Spilled {
        /// CRC32C of the file.
        crc: u32,
    },
}

/// A message at hand.
pub struct Content {
    /// The stored envelope.
    pub envelope: Vec<u8>,
    /// The message.
    pub body: Body,
    /// The session that waits for this message's delivery.
    pub notice: RefCell<Option<Rc<Notice>>>,
    /// What the body takes, in the process's sum; none for what was read back, which lives only
    /// as long as its transaction.
    _memory: Option<BodyMemory>,
}

/// Why a message cannot be read back.
pub enum Unreadable {
    /// It may be later.
    Io(io::Error),
    /// What is there is not what was written.
    Damaged,
}

impl Content {
    /// A message that has just arrived.
    pub fn hot(envelope: Vec<u8>, body: Body, memory: BodyMemory) -> Self {
        Content { envelope, body, notice: RefCell::default(), _memory: Some(memory) }
    }

    /// Reads a message back; of a spilled one only the envelope.
    pub async fn read(context: &Rc<Context>, id: QueueId, location: Location) -> Result<Self, Unreadable> {
        let octets = Self::read_record(context, id, location).await?;
        let record = octets.record().ok_or(Unreadable::Damaged)?;
        let envelope = record.envelope.to_vec();
        let body = match record.header.kind {
            Kind::Spilled => Body::Spilled { crc: record.header.message_crc },
            Kind::Message | Kind::Outcome => {
                let start = HEADER_OCTETS + envelope.len();
                let range = start..start + record.message.len();
                Body::Memory(octets.octets, range)
            }
        };
        Ok(Content { envelope, body, notice: RefCell::default(), _memory: None })
    }

    /// Reads a message's record back. Meanwhile its segment stays.
    pub async fn read_record(
        context: &Rc<Context>,
        id: QueueId,
        location: Location,
    ) -> Result<RecordOctets, Unreadable> {
        if location.octets == 0 {
            // It was damaged before, and put aside.
            return Err(Unreadable::Damaged);
        }
        let _hold = Hold::new(context, location.generation);
        let octets = context.storage.read_record(location).await.map_err(Unreadable::Io)?;
        let header = RecordHeader::decode(&octets)
            .filter(|header| (header.id, header.generation) == (id, location.generation))
            .filter(|header| header.kind != Kind::Outcome)
            .filter(|header| Record::decode(*header, &octets).is_some())
            .ok_or(Unreadable::Damaged)?;
        Ok(RecordOctets { header, octets })
    }
}

/// A record that was read back and is intact.
pub struct RecordOctets {
    header: RecordHeader,
    octets: Vec<u8>,
}

impl RecordOctets {
    /// The record.
    pub fn record(&self) -> Option<Record<'_>> {
        Record::decode(self.header, &self.octets)
    }
}
