//! The log: a record for what happens to sessions and messages, and what operators are told.
//!
//! Lives here: the tables of events and fields ([`table`]), how a record is written (`line`,
//! `escape`), and the thread that writes them (`writer`). May use `limits` and `stderr`. It has a
//! clock, a thread and files; it takes no locks.
//!
//! A shard writes its records through a [`Sender`] of its own into a ring of octets, and never
//! waits. The log's thread empties the rings at most every
//! [`LOG_GATHER_MS`](crate::limits::LOG_GATHER_MS), and sleeps when they are empty. What operators
//! are told goes the same way, through a queue: nobody but that thread writes to a pipe whose reader
//! may stand still.
//!
//! On failure: a record that does not fit into its ring, or cannot be written, is lost and counted;
//! the next that can be written is preceded by one that says how many were. A file that cannot be
//! written is told of once on standard error, and tried again. Text from outside is escaped and
//! bounded: it is never more than a value.
//!
//! Rejected: a logging facade with formatting at the call (it allocates, takes locks, and knows no
//! stable field names); a channel of records (an allocation for each); dropping the oldest records
//! of a full ring (the first ones of a storm tell how it began).

mod atomic;
mod batch;
mod bell;
mod clock;
mod escape;
mod line;
#[cfg(test)]
mod line_tests;
mod output;
mod running;
mod sender;
pub mod table;
#[cfg(test)]
mod tests;
mod writer;

pub use running::{flush, install, reopen, set_level};
pub(crate) use running::{notice, tell};
pub use sender::{Record, Sender};
pub use table::{Event, Field, Format, Level};

use crate::limits::{LOG_FLUSHES_MAX, LOG_RING_OCTETS, LOG_SAID_MAX, LOG_SENDERS_MAX};
use bell::Bell;
use crossbeam_queue::ArrayQueue;
use metrics::Counter;
use output::Output;
use rtrb::{Consumer, RingBuffer};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::{Duration, SystemTime};
use writer::Writer;

/// What is written, how and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How records are written.
    pub format: Format,
    /// What matters less is not written.
    pub level: Level,
    /// The file; `None`: standard output.
    pub file: Option<PathBuf>,
}

/// Why the log cannot be started.
#[derive(Debug)]
pub enum StartError {
    /// The file cannot be opened.
    File(PathBuf, io::Error),
    /// There is no standard output, or no thread.
    Os(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::File(path, error) => write!(f, "--log-file {}: {error}", path.display()),
            StartError::Os(error) => write!(f, "cannot start the log: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// The running log. It runs for as long as the process does.
#[derive(Clone, Debug)]
pub struct Log(Arc<Shared>);

/// What the log's thread shares with everybody.
#[derive(Debug)]
struct Shared {
    format: Format,
    threshold: Arc<Threshold>,
    is_to_file: bool,
    bell: Arc<Bell>,
    losses: Losses,
    /// Those of new senders, for the thread to take.
    rings: ArrayQueue<Consumer<u8>>,
    said: ArrayQueue<Said>,
    /// Who waits until all is written.
    flushes: ArrayQueue<SyncSender<()>>,
    must_reopen: AtomicBool,
}

/// What is written at least; it may change at any time.
#[derive(Debug)]
struct Threshold(AtomicU8);

impl Threshold {
    fn new(level: Level) -> Self {
        Threshold(AtomicU8::new(level as u8))
    }

    fn set(&self, level: Level) {
        self.0.store(level as u8, Ordering::Relaxed);
    }

    fn admits(&self, level: Level) -> bool {
        level as u8 <= self.0.load(Ordering::Relaxed)
    }
}

/// What operators are told.
#[derive(Debug)]
enum Said {
    /// A line as it is, among records of text on standard output.
    Plain(String),
    /// A record.
    Notice(Level, SystemTime, String),
}

/// Records that were lost.
#[derive(Clone, Debug)]
struct Losses {
    total: Counter,
    unreported: Arc<AtomicU64>,
}

impl Losses {
    fn count(&self, records: u64) {
        self.total.increment(records);
        self.put_back(records);
    }

    /// They are counted, but nobody could be told.
    fn put_back(&self, records: u64) {
        self.unreported.fetch_add(records, Ordering::Relaxed);
    }

    fn unreported(&self) -> u64 {
        self.unreported.load(Ordering::Relaxed)
    }

    /// Those that are still to be told.
    fn take(&self) -> u64 {
        self.unreported.swap(0, Ordering::Relaxed)
    }
}

/// Whether the log could be started with these settings; changes nothing.
pub fn check(settings: &Settings) -> Result<(), StartError> {
    let Some(path) = &settings.file else { return Ok(()) };
    output::check(path).map_err(|error| StartError::File(path.clone(), error))
}

impl Log {
    /// Starts it; `lost` counts the records that are lost.
    pub fn start(settings: &Settings, lost: Counter) -> Result<Log, StartError> {
        let output = match &settings.file {
            Some(path) => Output::file(path).map_err(|error| StartError::File(path.clone(), error))?,
            None => Output::stdout().map_err(StartError::Os)?,
        };
        Self::with_output(settings, output, lost).map_err(StartError::Os)
    }

    fn with_output(settings: &Settings, output: Output, lost: Counter) -> io::Result<Log> {
        let (start, started) = mpsc::sync_channel::<Writer>(1);
        // The bell needs the thread, and the thread the bell.
        let run = move || started.recv().map(Writer::run).unwrap_or_default();
        let thread = thread::Builder::new().name("log".to_owned()).spawn(run)?;
        let bell = Arc::new(Bell::new(thread.thread().clone()));
        let threshold = Arc::new(Threshold::new(settings.level));
        let losses = Losses { total: lost, unreported: Arc::default() };
        let shared = Arc::new(Shared {
            format: settings.format,
            threshold,
            is_to_file: settings.file.is_some(),
            bell,
            losses,
            rings: ArrayQueue::new(LOG_SENDERS_MAX),
            said: ArrayQueue::new(LOG_SAID_MAX),
            flushes: ArrayQueue::new(LOG_FLUSHES_MAX),
            must_reopen: AtomicBool::new(false),
        });
        // It waits for this, and for nothing else.
        let _ = start.send(Writer::new(shared.clone(), output));
        Ok(Log(shared))
    }

    /// One more sender. Beyond [`LOG_SENDERS_MAX`] at once, what it writes may be lost, and is counted.
    pub fn sender(&self) -> Sender {
        let (producer, consumer) = RingBuffer::new(LOG_RING_OCTETS);
        let shared = &*self.0;
        let _ = shared.rings.push(consumer);
        shared.bell.ring();
        Sender::new(shared.format, shared.threshold.clone(), producer, shared.bell.clone(), shared.losses.clone())
    }

    /// Writes what matters as much as this, and more, from now on.
    pub fn set_level(&self, level: Level) {
        self.0.threshold.set(level);
    }

    /// Opens the file again: it was renamed. Standard output stays.
    pub fn reopen(&self) {
        self.0.must_reopen.store(true, Ordering::Relaxed);
        self.0.bell.ring();
    }

    /// Waits until all that was written into the log before is written out or lost, but no longer than
    /// `timeout`: whether it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        let (flushed, done) = mpsc::sync_channel(1);
        if self.0.flushes.push(flushed).is_err() {
            return false;
        }
        self.0.bell.wake();
        done.recv_timeout(timeout).is_ok()
    }

    /// Writes a record with a line for operators.
    pub fn notice(&self, level: Level, line: fmt::Arguments<'_>) {
        if self.0.threshold.admits(level) {
            self.push(Said::Notice(level, SystemTime::now(), line.to_string()));
        }
    }

    fn push(&self, said: Said) {
        if self.0.said.push(said).is_err() {
            self.0.losses.count(1);
        }
        self.0.bell.ring();
    }
}
