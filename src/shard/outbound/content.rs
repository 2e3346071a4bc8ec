//! A message to be sent: still in memory, or read back from the spool.

use super::notice::Notice;
use crate::queue::record::{Kind, Record, RecordHeader};
use crate::queue::spool::Location;
use crate::shard::shared::BodyMemory;
use crate::shard::storage::Storage;
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
    pub async fn read(storage: &Storage, id: QueueId, location: Location) -> Result<Self, Unreadable> {
        let octets = storage.read_record(location).await.map_err(Unreadable::Io)?;
        let (envelope, body) = take_apart(id, &octets).ok_or(Unreadable::Damaged)?;
        let body = match body {
            Found::Spilled { crc } => Body::Spilled { crc },
            Found::Here(range) => Body::Memory(octets, range),
        };
        Ok(Content { envelope, body, notice: RefCell::default(), _memory: None })
    }
}

enum Found {
    Here(Range<usize>),
    Spilled { crc: u32 },
}

fn take_apart(id: QueueId, octets: &[u8]) -> Option<(Vec<u8>, Found)> {
    let header = RecordHeader::decode(octets).filter(|header| header.id == id)?;
    let record = Record::decode(header, octets)?;
    let found = match header.kind {
        Kind::Message => {
            let start = crate::queue::record::HEADER_OCTETS + header.envelope_octets;
            Found::Here(start..start + record.message.len())
        }
        Kind::Spilled => Found::Spilled { crc: header.message_crc },
        Kind::Outcome => return None,
    };
    Some((record.envelope.to_vec(), found))
}
