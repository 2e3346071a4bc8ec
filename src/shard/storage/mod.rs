//! The real disk: group commit of a shard's log, and spill files.
//!
//! [`Storage::append`] puts a message into the batch that is filling; the committer task writes one
//! batch after the other to the segment and syncs each, and only then do its messages' futures
//! give out their [`Durable`]. Which batch, which segment, and who is told what is decided by
//! [`Spool`]; here are the files.
//!
//! A segment is open with O_DSYNC: a write completes when its octets, and what is needed to read
//! them back, are on stable storage, or it fails. That is write and fdatasync in one operation of
//! the ring instead of two (3 to 5 % of the CPU per message), with one completion to check.
//!
//! Outcomes of messages ([`Storage::append_outcome`]) go the same way; nobody waits for one, but
//! the shard's [`Watcher`] is told which batches are on stable storage and which failed. Messages
//! are read back by `reader`, and what is not needed any more is removed here too.
//!
//! On failure the whole batch fails, the segment is left as it is, and the next batch tries a new one.
//! New transactions are kept away until storage is found to work again, and the operator is told when
//! that begins and when it ends: see `health`. Segments' files are made, used again and removed in
//! `segment`.

mod directory;
#[cfg(feature = "fault-injection")]
mod fault;
mod health;
mod reader;
mod retired;
mod segment;
mod spill;

pub use directory::{Directory, SpoolDirectory, SpoolError, SpoolState, shard_directories};
pub use reader::SpillReader;
pub use spill::Spill;

use super::net::{Alarm, Net};
use super::shared::Shared;
use crate::metrics::ShardMetrics;
use crate::queue::disk::{quarantine_name, spill_name};
use crate::queue::outcome::{NewOutcome, Statuses};
use crate::queue::record::{NewMessage, Record};
use crate::queue::recover::Spare;
use crate::queue::spool::{Batch, BatchNumber, Location, Receipt, Spool, Synced};
use crate::smtp::{Durable, QueueId};
use glommio::GlommioError;
use glommio::io::{BufferedFile, Directory as RingDirectory, OpenOptions};
use segment::Segment;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The files of one shard's spool; clones are the same.
#[derive(Clone)]
pub struct Storage(Rc<Inner>);

struct Inner {
    net: Net,
    directory: Directory,
    spool: RefCell<Spool>,
    /// Batches that somebody waits for.
    awaited: RefCell<VecDeque<(BatchNumber, Rc<Fate>)>>,
    watcher: RefCell<Option<Rc<dyn Watcher>>>,
    segments_read: reader::OpenSegments,
    /// Segments to be used again.
    spares: RefCell<Vec<Spare>>,
    committer: Cell<Option<Waker>>,
    stopped: Cell<bool>,
    /// When storage failed last; `None`: it works, for all that is known.
    failed_at: Cell<Option<Instant>>,
    /// Wakes the probe.
    alarm: Alarm,
    shared: Arc<Shared>,
    metrics: Rc<ShardMetrics>,
}

/// Learns what becomes of batches and segments.
pub trait Watcher {
    /// A segment was made, with so many octets; it must outlive the one that it says has void records.
    fn segment_made(&self, generation: u64, octets: u64, voids: Option<u64>);
    /// All batches up to this one that did not fail are on stable storage.
    fn synced(&self, batch: BatchNumber);
    /// These batches are lost.
    fn failed(&self, batches: &[BatchNumber]);
}

/// What becomes of a batch, for all who wait for it.
struct Fate {
    /// When the first of them began to wait.
    since: Instant,
    result: Cell<Option<Result<Synced, CommitError>>>,
    wakers: RefCell<Vec<Waker>>,
}

/// The message could not be made durable and is not kept; the operator was told why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitError;

/// A message that was appended and is not yet durable.
#[must_use]
pub struct Commit {
    receipt: Receipt,
    fate: Rc<Fate>,
}

impl Commit {
    /// Where the message's record is going to be.
    pub fn location(&self) -> Location {
        self.receipt.location()
    }

    /// Waits for the sync that covers the message.
    pub async fn durable(self) -> Result<Durable, CommitError> {
        let Commit { receipt, fate } = self;
        poll_fn(|cx| match fate.result.get() {
            None => {
                fate.wakers.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
            Some(result) => Poll::Ready(result.and_then(|synced| synced.prove(&receipt).ok_or(CommitError))),
        })
        .await
    }
}

impl Storage {
    /// Storage in `directory`, whose recovery gave `spool` and `spares`. Serves after [`Self::run`] is
    /// spawned.
    pub fn new(
        net: Net,
        directory: Directory,
        spool: Spool,
        spares: Vec<Spare>,
        shared: Arc<Shared>,
        metrics: Rc<ShardMetrics>,
    ) -> Self {
        Storage(Rc::new(Inner {
            alarm: Alarm::new(&net),
            net,
            directory,
            spool: RefCell::new(spool),
            awaited: RefCell::default(),
            watcher: RefCell::default(),
            segments_read: reader::OpenSegments::default(),
            spares: RefCell::new(spares),
            committer: Cell::new(None),
            stopped: Cell::new(false),
            failed_at: Cell::new(None),
            shared,
            metrics,
        }))
    }

    /// An id for a message that begins to arrive at `unix`.
    pub fn next_id(&self, unix: SystemTime) -> QueueId {
        let unix_us = unix.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        self.0.spool.borrow_mut().next_id(u64::try_from(unix_us).unwrap_or(u64::MAX))
    }

    /// Puts a message into the batch that is filling.
    pub fn append(&self, message: &NewMessage<'_>) -> Commit {
        let receipt = self.0.spool.borrow_mut().append(message);
        self.await_batch(receipt)
    }

    /// Puts a message's record into the batch that is filling, again, with what is known of its
    /// recipients.
    pub fn append_again(&self, record: &Record<'_>, statuses: &Statuses, recipients: u32) -> Commit {
        let receipt = self.0.spool.borrow_mut().append_again(record, statuses, recipients as usize);
        self.await_batch(receipt)
    }

    fn await_batch(&self, receipt: Receipt) -> Commit {
        let inner = &*self.0;
        let batch = Spool::batch_of(&receipt);
        let fate = {
            let mut awaited = inner.awaited.borrow_mut();
            match awaited.back() {
                Some((number, fate)) if *number == batch => fate.clone(),
                _ => {
                    let fate =
                        Rc::new(Fate { since: inner.net.now(), result: Cell::default(), wakers: RefCell::default() });
                    awaited.push_back((batch, fate.clone()));
                    fate
                }
            }
        };
        inner.wake_committer();
        Commit { receipt, fate }
    }

    /// Puts an outcome into the batch that is filling. Returns the batch, and the generation of
    /// the segment that will hold it.
    pub fn append_outcome<R: AsRef<str>>(&self, outcome: &NewOutcome<'_, R>) -> (BatchNumber, u64) {
        let appended = self.0.spool.borrow_mut().append_outcome(outcome);
        self.0.wake_committer();
        appended
    }

    /// Who is told what becomes of batches from now on.
    pub fn set_watcher(&self, watcher: Rc<dyn Watcher>) {
        self.0.watcher.replace(Some(watcher));
    }

    /// The oldest generation that is still written to.
    pub fn oldest_in_use(&self) -> u64 {
        self.0.spool.borrow().oldest_in_use()
    }

    /// Octets of the segment that is written to.
    pub fn capacity(&self) -> u64 {
        self.0.spool.borrow().capacity()
    }

    /// Removes the spill file of a message whose outcome is on stable storage. Should that fail,
    /// the next start removes it.
    pub async fn remove_spill(&self, id: QueueId) {
        let _operation = self.0.net.ring_operation();
        let path = self.0.directory.file(&spill_name(id));
        let _ = glommio::io::remove(path).await;
    }

    /// Reads a record back; the octets are those of the whole record.
    pub async fn read_record(&self, location: Location) -> io::Result<Vec<u8>> {
        let _operation = self.0.net.ring_operation();
        self.0.segments_read.read(&self.0.directory, location).await
    }

    /// Copies octets that are no record to a file of its own, as recovery does; returns its name.
    pub async fn put_aside(&self, location: Location) -> io::Result<String> {
        let _operation = self.0.net.ring_operation();
        let octets = self.0.segments_read.read(&self.0.directory, location).await?;
        let name = quarantine_name(location.generation, u64::from(location.offset));
        let path = self.0.directory.file(&name);
        match create(&path, libc::O_DSYNC).await {
            Ok(file) => {
                let written = write_all(&file, octets, 0).await;
                let _ = file.close().await;
                written?;
                sync_directory(self.0.directory.path()).await?;
            }
            // It was found before.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(name)
    }

    /// Opens a message's spill file to read it back.
    pub async fn open_spill(&self, id: QueueId) -> io::Result<SpillReader> {
        SpillReader::open(&self.0.net, &self.0.directory, id).await
    }

    /// A file for a message that is too large for the log.
    pub async fn spill(&self, id: QueueId) -> io::Result<Spill> {
        Spill::create(&self.0.net, &self.0.directory, id).await
    }

    /// Ends [`Self::run`] once nothing waits.
    pub fn stop(&self) {
        self.0.stopped.set(true);
        if let Some(waker) = self.0.committer.take() {
            waker.wake();
        }
    }

    /// Commits batches, one after the other.
    pub async fn run(self) {
        let mut segment: Option<Segment> = None;
        while let Some(batch) = self.next_batch().await {
            let started = Instant::now();
            let (messages, octets) = (batch.messages, batch.octets.len());
            self.count_wait(&batch, started);
            let result = self.write(&mut segment, batch).await;
            self.0.net.refresh_now();
            match result {
                Ok(()) => {
                    self.0.metrics.commit_seconds.record(started.elapsed().as_secs_f64());
                    self.0.metrics.commit_messages.record(messages as f64);
                    self.0.metrics.spool_bytes.increment(octets as u64);
                    self.succeed();
                }
                Err(error) => {
                    if segment.take().is_some() {
                        self.0.metrics.poisoned_segments.increment(1);
                    }
                    self.fail(&error);
                }
            }
        }
        if let Some(segment) = segment {
            // Everything acknowledged was synced: nothing is lost if closing fails.
            let _ = segment.file.close().await;
        }
        self.0.watcher.take();
        self.0.segments_read.close().await;
    }

    /// How long the messages of a batch have waited for it to be written, at most.
    fn count_wait(&self, batch: &Batch, now: Instant) {
        if let Some((number, fate)) = self.0.awaited.borrow().front()
            && *number == batch.number()
        {
            self.0.metrics.append_seconds.record(now.saturating_duration_since(fate.since).as_secs_f64());
        }
    }

    async fn next_batch(&self) -> Option<Batch> {
        poll_fn(|cx| {
            let batch = self.0.spool.borrow_mut().take_batch();
            if batch.is_some() || self.0.stopped.get() {
                return Poll::Ready(batch);
            }
            self.0.committer.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    fn succeed(&self) {
        let Some(synced) = self.0.spool.borrow_mut().synced() else { return };
        let batch = synced.batch();
        // Batches are committed in order: the oldest one awaited is this one, if anybody waits.
        let front = {
            let mut awaited = self.0.awaited.borrow_mut();
            awaited.pop_front_if(|(number, _)| *number == batch)
        };
        if let Some((_, fate)) = front {
            self.settle(&fate, Ok(synced));
        }
        let watcher = self.0.watcher.borrow().clone();
        if let Some(watcher) = watcher {
            watcher.synced(batch);
        }
    }

    fn fail(&self, error: &io::Error) {
        let failed = self.0.spool.borrow_mut().failed();
        let _ = self.report(error);
        let mut fates = Vec::new();
        self.0.awaited.borrow_mut().retain(|(number, fate)| {
            let lost = failed.contains(number);
            if lost {
                fates.push(fate.clone());
            }
            !lost
        });
        for fate in fates {
            self.settle(&fate, Err(CommitError));
        }
        let watcher = self.0.watcher.borrow().clone();
        if let Some(watcher) = watcher {
            watcher.failed(&failed);
        }
    }

    fn settle(&self, fate: &Fate, result: Result<Synced, CommitError>) {
        fate.result.set(Some(result));
        self.0.net.note_runnable();
        for waker in fate.wakers.take() {
            waker.wake();
        }
    }

    /// Writes a batch to its segment, and through to the device.
    async fn write(&self, segment: &mut Option<Segment>, batch: Batch) -> io::Result<()> {
        let _operation = self.0.net.ring_operation();
        if segment.as_ref().is_none_or(|segment| segment.generation != batch.generation) {
            if let Some(full) = segment.take() {
                let _ = full.file.close().await;
            }
            let made = self.make_segment(batch.generation).await?;
            let voids = self.0.spool.borrow_mut().segment_made(made.generation, made.capacity);
            let watcher = self.0.watcher.borrow().clone();
            if let Some(watcher) = watcher {
                watcher.segment_made(made.generation, made.capacity, voids);
            }
            *segment = Some(made);
        }
        let Some(segment) = segment else { return Err(io::ErrorKind::NotFound.into()) };
        let began = Instant::now();
        write_all(&segment.file, batch.octets, batch.offset).await?;
        self.0.metrics.sync_seconds.record(began.elapsed().as_secs_f64());
        Ok(())
    }
}

impl Inner {
    fn wake_committer(&self) {
        if let Some(waker) = self.committer.take() {
            self.net.note_runnable();
            waker.wake();
        }
    }
}

/// Makes a file that must not exist, for this user alone, and opens it with more `flags` of open(2).
async fn create(path: &Path, flags: i32) -> io::Result<BufferedFile> {
    OpenOptions::new()
        .custom_flags(flags)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .buffered_open(path)
        .await
        .map_err(into_io)
}

async fn write_all(file: &BufferedFile, octets: Vec<u8>, offset: u64) -> io::Result<()> {
    let length = octets.len();
    let written = file.write_at(octets, offset).await.map_err(into_io)?;
    // Happens when space runs out in the middle.
    if written == length {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::StorageFull, format!("{written} of {length} octets written")))
    }
}

/// The flags of open(2) for a file whose writes complete on stable storage.
fn write_through() -> i32 {
    #[cfg(feature = "fault-injection")]
    if fault::leaves_out(fault::SEGMENTS) {
        return 0;
    }
    libc::O_DSYNC
}

async fn sync_file(file: &BufferedFile) -> io::Result<()> {
    #[cfg(feature = "fault-injection")]
    if fault::leaves_out(fault::SPILLS) {
        return Ok(());
    }
    file.fdatasync().await.map_err(into_io)
}

async fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = RingDirectory::open(path).await.map_err(into_io)?;
    directory.sync().await.map_err(into_io)?;
    directory.close().await.map_err(into_io)
}

/// glommio wraps errors together with paths; the callers name the path themselves.
fn into_io(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::IoError(error) | GlommioError::EnhancedIoError { source: error, .. } => error,
        other => io::Error::other(other.to_string()),
    }
}
