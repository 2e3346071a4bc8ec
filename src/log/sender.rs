//! Where a shard writes its records: into a ring of octets that the log's thread empties.

use super::bell::Bell;
use super::clock::Clock;
use super::line::Line;
use super::table::{Event, Field, Format};
use super::{Losses, Threshold};
use rtrb::Producer;
use std::cell::{Cell, RefCell};
use std::fmt::{self, Display};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Writes a shard's records. Never waits: a record that does not fit is lost, and counted.
pub struct Sender {
    format: Format,
    threshold: Arc<Threshold>,
    /// Borrowed only where a record is published.
    ring: RefCell<Producer<u8>>,
    /// Not here while a record is made of it.
    line: Cell<Line>,
    clock: Cell<Clock>,
    bell: Arc<Bell>,
    losses: Losses,
}

impl Sender {
    pub(super) fn new(
        format: Format,
        threshold: Arc<Threshold>,
        ring: Producer<u8>,
        bell: Arc<Bell>,
        losses: Losses,
    ) -> Self {
        let (ring, line, clock) = (RefCell::new(ring), Cell::default(), Cell::new(Clock::new()));
        Sender { format, threshold, ring, line, clock, bell, losses }
    }

    /// Begins a record of what happened at `time`; `None` where its level is not written.
    pub fn record(&self, event: Event, time: SystemTime) -> Option<Record<'_>> {
        if !self.threshold.admits(event.level()) {
            return None;
        }
        // A second record beside this one has new buffers, and one of the two pairs is kept.
        let mut line = self.line.take();
        let mut clock = self.clock.get();
        line.begin(self.format, event, event.level(), time, &mut clock);
        self.clock.set(clock);
        Some(Record { sender: self, event, line })
    }

    fn publish(&self, octets: &[u8]) {
        let is_published = self.ring.try_borrow_mut().is_ok_and(|mut ring| ring.push_entire_slice(octets).is_ok());
        if !is_published {
            self.losses.count(1);
        }
        self.bell.ring();
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("format", &self.format)
            .field("threshold", &self.threshold)
            .finish_non_exhaustive()
    }
}

/// A record that is being made; dropped, it is written.
///
/// A field that its event does not have in the table, or a value of another kind, is a defect that
/// debug builds panic at.
#[derive(Debug)]
pub struct Record<'a> {
    sender: &'a Sender,
    event: Event,
    line: Line,
}

impl Record<'_> {
    /// Adds a text from anywhere: it is escaped, and cut if it is too long.
    pub fn text(&mut self, field: Field, value: &[u8]) -> &mut Self {
        self.check(field);
        self.line.text(field, value);
        self
    }

    /// Adds a text, likewise.
    pub fn str(&mut self, field: Field, value: &str) -> &mut Self {
        self.text(field, value.as_bytes())
    }

    /// Adds a text as it shows itself, likewise.
    pub fn display(&mut self, field: Field, value: &dyn Display) -> &mut Self {
        self.check(field);
        self.line.display(field, value);
        self
    }

    /// Adds an IP address; one that IPv6 maps as IPv4.
    pub fn address(&mut self, field: Field, value: IpAddr) -> &mut Self {
        self.check(field);
        self.line.address(field, value);
        self
    }

    /// Adds a number.
    pub fn number(&mut self, field: Field, value: u64) -> &mut Self {
        self.check(field);
        self.line.number(field, value);
        self
    }

    /// Adds a time span.
    pub fn seconds(&mut self, field: Field, value: Duration) -> &mut Self {
        self.check(field);
        self.line.seconds(field, value);
        self
    }

    /// Writes the record.
    pub fn end(self) {}

    fn check(&self, field: Field) {
        debug_assert!(self.event.fields().contains(&field), "{:?} has no {field:?}", self.event);
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let mut line = mem::take(&mut self.line);
        self.sender.publish(line.end());
        self.sender.line.set(line);
    }
}
