//! The log's thread: it empties the rings, and writes. It alone waits for whoever reads the log.

use super::batch::Batch;
use super::clock::Clock;
use super::line::Line;
use super::output::Output;
use super::table::{Event, Field};
use super::{Said, Shared};
use crate::limits::{LOG_GATHER_MS, LOG_RETRY_MS, LOG_WRITE_OCTETS};
use crate::stderr;
use rtrb::Consumer;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// What the thread has.
pub(super) struct Writer {
    shared: Arc<Shared>,
    rings: Vec<Consumer<u8>>,
    output: Output,
    batch: Batch,
    line: Line,
    clock: Clock,
    /// How many records are lost by the record that says so, and where that one begins in the batch.
    reported: Option<(u64, usize)>,
    /// Nothing could be written the last time.
    is_failing: bool,
    /// The file could not be opened again the last time.
    is_stuck: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, output: Output) -> Self {
        Writer {
            shared,
            rings: Vec::new(),
            output,
            batch: Batch::default(),
            line: Line::default(),
            clock: Clock::new(),
            reported: None,
            is_failing: false,
            is_stuck: false,
        }
    }

    /// Writes for as long as the process lives.
    pub(super) fn run(mut self) {
        loop {
            self.wait();
            self.turn();
            self.gather();
        }
    }

    /// Until there is something to do.
    fn wait(&self) {
        let again = Instant::now() + Duration::from_millis(LOG_RETRY_MS);
        while self.is_idle() {
            // What was lost is to be told as soon as that works.
            let is_owing = self.is_failing && self.shared.losses.unreported() > 0;
            let left = again.saturating_duration_since(Instant::now());
            if is_owing && left.is_zero() {
                return;
            }
            let park = || if is_owing { thread::park_timeout(left) } else { thread::park() };
            self.shared.bell.wait(|| self.is_idle(), park);
        }
    }

    fn is_idle(&self) -> bool {
        let shared = &self.shared;
        shared.said.is_empty()
            && shared.flushes.is_empty()
            && shared.rings.is_empty()
            && !shared.must_reopen.load(Ordering::Relaxed)
            && (self.is_failing || shared.losses.unreported() == 0)
            && self.rings.iter().all(|ring| ring.is_empty())
    }

    /// Lets records come together, so that a busy gateway has few writes. A flush is not kept waiting.
    fn gather(&self) {
        let until = Instant::now() + Duration::from_millis(LOG_GATHER_MS);
        while self.shared.flushes.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::park_timeout(left);
        }
    }

    /// Writes all that is there.
    fn turn(&mut self) {
        // Taken before the rings are looked at: what was published before a flush is written before it ends.
        let mut flushes: Vec<SyncSender<()>> = Vec::new();
        flushes.extend(std::iter::from_fn(|| self.shared.flushes.pop()));
        if self.shared.must_reopen.swap(false, Ordering::Relaxed) | self.output.is_rotated(Instant::now()) {
            self.reopen();
        }
        self.report_losses();
        let shared = self.shared.clone();
        // Looked at first, written last: what is told of the end comes behind the records before it. Who
        // says something meanwhile has the next turn.
        let said = self.shared.said.len();
        let mut rings = std::mem::take(&mut self.rings);
        rings.extend(std::iter::from_fn(|| shared.rings.pop()));
        for ring in &mut rings {
            // There are as many.
            if let Ok(chunk) = ring.read_chunk(ring.slots()) {
                let (one, two) = chunk.as_slices();
                self.batch.push(one);
                self.batch.push(two);
                chunk.commit_all();
            }
            if self.batch.octets().len() >= LOG_WRITE_OCTETS {
                self.write();
            }
        }
        self.rings = rings;
        for said in std::iter::from_fn(|| shared.said.pop()).take(said) {
            self.push_said(said);
        }
        self.write();
        for flush in flushes {
            // Who asked may wait no longer.
            let _ = flush.try_send(());
        }
    }

    fn reopen(&mut self) {
        match self.output.reopen() {
            Ok(()) => {
                self.is_stuck = false;
                if self.batch.give_up() {
                    self.shared.losses.count(1);
                }
            }
            Err(error) if !self.is_stuck => {
                self.is_stuck = true;
                let name = self.output.name();
                stderr::only(format_args!("log: cannot open {name} again: {error}; the file that is open is written"));
            }
            Err(_) => {}
        }
    }

    fn report_losses(&mut self) {
        let lost = self.shared.losses.take();
        if lost == 0 || !self.shared.threshold.admits(Event::Lost.level()) {
            return;
        }
        self.reported = Some((lost, self.batch.octets().len()));
        self.line.begin(self.shared.format, Event::Lost, Event::Lost.level(), SystemTime::now(), &mut self.clock);
        self.line.number(Field::Lost, lost);
        self.batch.push(self.line.end());
    }

    fn push_said(&mut self, said: Said) {
        match said {
            Said::Plain(line) => {
                self.batch.push(line.as_bytes());
                self.batch.push(b"\n");
            }
            Said::Notice(level, time, message) => {
                self.line.begin(self.shared.format, Event::Notice, level, time, &mut self.clock);
                self.line.text(Field::Message, message.as_bytes());
                self.batch.push(self.line.end());
            }
        }
    }

    fn write(&mut self) {
        if self.batch.octets().is_empty() {
            return;
        }
        let reported = self.reported.take();
        match self.output.write(self.batch.octets()) {
            Ok(()) => {
                self.batch.clear();
                if self.is_failing {
                    self.is_failing = false;
                    stderr::only(format_args!("log: {} is written again", self.output.name()));
                }
            }
            Err((written, error)) => self.fail(written, &error, reported),
        }
    }

    fn fail(&mut self, written: usize, error: &io::Error, reported: Option<(u64, usize)>) {
        let lost = self.batch.fail(written);
        match reported {
            // The record that tells of losses is none of them, and they are still to be told.
            Some((untold, begin)) if written <= begin => {
                self.shared.losses.put_back(untold);
                self.shared.losses.count(lost.saturating_sub(1));
            }
            _ => self.shared.losses.count(lost),
        }
        if !self.is_failing {
            self.is_failing = true;
            let name = self.output.name();
            stderr::only(format_args!("log: {name} cannot be written ({error}); records are lost until it can"));
        }
    }
}
