//! A message that is arriving: in memory, then in a spill file.

use super::Context;
use super::outbound::{self, Accepted, Content, Hold};
use super::shared::BodyMemory;
use super::storage::{CommitError, Spill};
use crate::limits::{
    BODIES_IN_MEMORY_MAX_OCTETS, BODY_FIRST_OCTETS, BODY_IN_MEMORY_MAX_OCTETS, READ_MAX_OCTETS, SPILL_WRITE_OCTETS,
};
use crate::queue::record::{Body, NewMessage};
use crate::queue::stored::{encode_envelope, envelope_octets};
use crate::smtp::header::MissingFields;
use crate::smtp::server::Session;
use crate::smtp::{Durable, QueueId};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Capacities a body's buffer takes one after the other: known steps instead of doubling, so that
/// a session's memory is bounded by a constant.
/// The read that crosses a limit is taken whole.
const BUFFER_STEPS: [usize; 4] = [
    BODY_FIRST_OCTETS,
    4 * BODY_FIRST_OCTETS,
    SPILL_WRITE_OCTETS + READ_MAX_OCTETS,
    BODY_IN_MEMORY_MAX_OCTETS + READ_MAX_OCTETS,
];
/// A message that has begun to spill starts here.
const SPILLING_STEP: usize = 2;

/// A message from its first octet to its commit.
pub struct Message {
    id: QueueId,
    arrived: SystemTime,
    buffer: Vec<u8>,
    /// Where fields are added that the client's header lacks: behind the Received field. `None` once
    /// that was seen to.
    fields_at: Option<usize>,
    memory: BodyMemory,
    spill: Option<Spill>,
}

impl Message {
    /// A message that begins to arrive: gives it an id and the Received field.
    pub fn begin(context: &Context, session: &Session) -> Self {
        let arrived = SystemTime::now();
        let id = context.storage.next_id(arrived);
        let mut message = Message {
            id,
            arrived,
            buffer: Vec::new(),
            fields_at: None,
            memory: BodyMemory::new(context.shared.clone()),
            spill: None,
        };
        message.reserve(BODY_FIRST_OCTETS);
        context
            .with_date(arrived, |date| session.trace().write_received(&mut message.buffer, id.text().as_str(), date));
        message.fields_at = Some(message.buffer.len());
        message
    }

    /// Appends content. At most one read's worth may come between two looks at
    /// [`Self::must_spill`].
    pub fn append(&mut self, octets: &[u8]) {
        self.reserve(octets.len());
        self.buffer.extend_from_slice(octets);
    }

    fn reserve(&mut self, additional: usize) {
        let needed = self.buffer.len() + additional;
        if needed > self.buffer.capacity() {
            let steps = if self.spill.is_some() { &BUFFER_STEPS[SPILLING_STEP..] } else { &BUFFER_STEPS };
            let capacity = steps.iter().copied().find(|&step| step >= needed).unwrap_or(needed);
            self.buffer.reserve_exact(capacity - self.buffer.len());
            self.memory.set(self.buffer.capacity());
        }
    }

    /// Adds what the header lacks, if that is known and was not done before.
    fn complete(&mut self, context: &Context, session: &Session) {
        let Some(missing) = session.missing_fields() else { return };
        let Some(at) = self.fields_at.take().filter(|_| missing != MissingFields::default()) else { return };
        let mut fields = Vec::new();
        let id = self.id.text();
        context.with_date(self.arrived, |date| missing.write(&mut fields, id.as_str(), &context.hostname, date));
        self.reserve(fields.len());
        self.buffer.splice(at..at, fields);
    }

    /// Whether what is in memory must go to the spill file before more is read.
    pub fn must_spill(&self, context: &Context, session: &Session) -> bool {
        // Not before its header has ended, to which fields may have to be added.
        let may_spill = self.buffer.len() >= READ_MAX_OCTETS / 2 && session.missing_fields().is_some();
        let is_pressed = || context.shared.body_octets() > BODIES_IN_MEMORY_MAX_OCTETS;
        self.buffer.len() >= BODY_IN_MEMORY_MAX_OCTETS || may_spill && is_pressed()
    }

    /// Writes what is in memory to the spill file.
    pub async fn spill(&mut self, context: &Context, session: &Session) -> io::Result<()> {
        self.complete(context, session);
        // What has left memory cannot be completed any more.
        self.fields_at = None;
        if self.spill.is_none() {
            self.spill = Some(context.storage.spill(self.id).await?);
        }
        if let Some(spill) = &mut self.spill {
            spill.write(std::mem::take(&mut self.buffer)).await?;
        }
        self.memory.set(0);
        Ok(())
    }

    /// Makes the message durable with the session's envelope.
    pub async fn commit(
        mut self,
        context: &Rc<Context>,
        session: &Session,
        client: IpAddr,
    ) -> Result<(Durable, Accepted), CommitError> {
        self.complete(context, session);
        if self.spill.is_some() {
            self.spill(context, session).await.map_err(|error| context.storage.report(&error))?;
        }
        let body = match &self.spill {
            Some(spill) => spill.sync().await.map_err(|error| context.storage.report(&error))?,
            None => Body::Inline(&self.buffer),
        };
        let octets = match body {
            Body::Inline(octets) => octets.len() as u64,
            Body::Spilled { octets, .. } => octets,
        };
        let arrived_unix_ms = self.arrived.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let mut stored = Vec::new();
        let spilled = match body {
            Body::Inline(_) => None,
            Body::Spilled { crc, .. } => Some(crc),
        };
        let commit = {
            let Some(envelope) = session.envelope() else { return Err(CommitError) };
            let hello = session.trace().hello;
            let message = NewMessage { id: self.id, arrived_unix_ms, envelope, client, hello, body };
            stored.reserve_exact(envelope_octets(&message));
            encode_envelope(&mut stored, &message);
            context.storage.append(&message)
        };
        // The batch has a copy of its own until it is durable; this one may be sent on from here.
        self.memory.set(2 * self.buffer.capacity());
        let location = commit.location();
        let hold = Hold::new(context, location.generation);
        let spill = self.spill.take();
        let result = commit.durable().await;
        if let Some(spill) = spill {
            spill.keep().await;
        }
        self.memory.set(self.buffer.capacity());
        let body = match spilled {
            Some(crc) => outbound::Body::Spilled { crc },
            None => outbound::Body::Memory(self.buffer, 0..octets as usize),
        };
        let content = Content::hot(stored, body, self.memory);
        result.map(|durable| (durable, Accepted { id: self.id, location, hold, octets, content }))
    }
}
