//! One life of the process: what it has in memory, its start, and its way with the disk.
//!
//! The steps are those of `shard::storage`, `shard::message` and `shard::outbound` in their order;
//! what decides is the product's own: [`Spool`], [`recover`], [`Schedule`].

use crate::disk::{FileId, Operation, OperationId};
use crate::inbound::Inbound;
use crate::outbound::{Pool, Settlement, Unrecorded, Worker};
use crate::world::{Event, World};
use gatepost::delivery::{NextHopState, RouteId, recipient_domain};
use gatepost::queue::disk::{quarantine_name, segment_name, spill_name};
use gatepost::queue::record::{Record, RecordHeader, find_record};
use gatepost::queue::recover::recover;
use gatepost::queue::schedule::{Finished, Schedule};
use gatepost::queue::spool::{Batch, BatchNumber, Receipt, Spool};
use gatepost::smtp::server::Profile;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;

/// How long new transactions are kept away after a failure.
const FAILURE_PAUSE_MS: u64 = 1_000;

/// A message at hand.
pub struct Content {
    pub envelope: Vec<u8>,
    pub body: Body,
}

/// Where its octets are.
pub enum Body {
    Memory(Vec<u8>),
    Spilled { crc: u32 },
}

/// A life of the process.
pub struct Process {
    pub spool: Spool,
    pub schedule: Schedule<Content>,
    pub profile: Rc<Profile>,
    segment: Option<Segment>,
    commit: Option<Commit>,
    /// Sessions that wait for a batch.
    awaited: VecDeque<(BatchNumber, u64, Receipt)>,
    pub waiting: BTreeMap<OperationId, Waiter>,
    failed_at_ms: Option<u64>,
    pub unrecorded: VecDeque<Unrecorded>,
    pub lost: Vec<Unrecorded>,
    pub lost_until_ms: u64,
    removing: bool,
    pub keeper_at_ms: u64,
    pub sessions: BTreeMap<u64, Inbound>,
    pub workers: BTreeMap<u64, Worker>,
    pub last_worker: u64,
    pub pools: Vec<Pool>,
    pub states: Vec<NextHopState>,
}

/// Who waits for an operation of the disk.
pub enum Waiter {
    Committer,
    Session(u64),
    /// A segment's name is to be gone.
    Removal(u64),
    RemovalSync(u64),
    Nobody,
}

struct Segment {
    generation: u64,
    file: FileId,
}

/// What the committer is at.
enum Commit {
    Making(Batch),
    Header(Batch, Segment),
    Directory(Batch, Segment),
    Writing,
    /// A segment that could not be made is removed.
    Clearing,
}

impl Process {
    /// Whether nothing is left to be done.
    pub fn is_idle(&self) -> bool {
        let figures = self.schedule.figures();
        let jobs = figures.ready + figures.active + figures.deferred;
        jobs == 0
            && self.commit.is_none()
            && !self.spool.has_waiting()
            && self.unrecorded.is_empty()
            && self.lost.is_empty()
            && self.sessions.is_empty()
            && self.waiting.is_empty()
    }

    pub fn is_short(&self, now_ms: u64) -> bool {
        self.failed_at_ms.is_some_and(|at_ms| now_ms - at_ms < FAILURE_PAUSE_MS)
    }
}

impl World {
    /// Starts the process: recovery first. Where it fails, the service manager tries again.
    pub fn start(&mut self) {
        if self.process.is_some() {
            return;
        }
        let routes = self.routes.clone();
        let lanes = |record: &Record<'_>| -> Box<[u16]> {
            let mut lanes = Vec::new();
            for recipient in record.stored_envelope().iter().flat_map(|envelope| envelope.recipients()) {
                let lane = routes.route(recipient_domain(recipient.path)).map(RouteId::number);
                lanes.extend(lane.filter(|lane| !lanes.contains(lane)));
            }
            lanes.into()
        };
        let found = match recover(&mut self.disk, lanes) {
            Ok(found) => found,
            Err(error) => {
                self.note(|| format!("the start fails: {error}"));
                return self.after(1_000, Event::Start);
            }
        };
        let life = self.life;
        self.note(|| {
            let live: Vec<String> = found
                .live
                .iter()
                .map(|live| format!("{}@{:x}+{}", live.id, live.location.generation, live.location.offset))
                .collect();
            format!("life {life} begins: {live:?} damage {:?} unfinished {:?}", found.damage, found.unfinished)
        });
        self.judge_recovery(&found);
        let routes = self.routes.clone();
        let spool = Spool::new(0, found.resume, self.random.next());
        let mut schedule = Schedule::new(routes.len());
        schedule.resume(found.live, found.segments);
        let profile = Profile { hostname: "gateway.test".to_owned(), ..Profile::default() };
        self.process = Some(Process {
            spool,
            schedule,
            profile: Rc::new(profile),
            segment: None,
            commit: None,
            awaited: VecDeque::new(),
            waiting: BTreeMap::new(),
            failed_at_ms: None,
            unrecorded: VecDeque::new(),
            lost: Vec::new(),
            lost_until_ms: 0,
            removing: false,
            keeper_at_ms: u64::MAX,
            sessions: BTreeMap::new(),
            workers: BTreeMap::new(),
            last_worker: 0,
            pools: (0..self.next_hops.len()).map(|next_hop| Pool::new(&routes, next_hop)).collect(),
            states: (0..self.next_hops.len()).map(|_| NextHopState::new()).collect(),
        });
        self.doom();
        self.wake_keeper(0);
    }

    /// The process, which lives while its events are handled.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("events of a process come while it lives")
    }

    pub fn begin(&mut self, waiter: Waiter, operation: Operation) {
        let id = self.disk.begin(operation);
        self.process().waiting.insert(id, waiter);
        self.operation_begins(id);
    }

    /// An operation of the disk has ended.
    pub fn operation_ends(&mut self, id: OperationId) {
        if self.process.is_none() {
            return;
        }
        let Some(waiter) = self.process().waiting.remove(&id) else { return };
        let result = self.disk.end(id);
        if result.is_err() {
            self.judge.tally.disk_failures += 1;
        }
        match waiter {
            Waiter::Committer => self.committer_goes_on(result),
            Waiter::Session(session) => self.session_goes_on(session, result),
            Waiter::Removal(generation) => match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => self.process().removing = false,
                _ => self.begin(Waiter::RemovalSync(generation), Operation::SyncDirectory),
            },
            Waiter::RemovalSync(generation) => {
                let process = self.process();
                process.removing = false;
                if result.is_ok() {
                    process.schedule.segment_is_gone(generation);
                    self.remove_segments();
                }
            }
            Waiter::Nobody => {}
        }
    }

    /// A session waits for the batch of this receipt.
    pub fn await_batch(&mut self, session: u64, receipt: Receipt) {
        let batch = Spool::batch_of(&receipt);
        self.process().awaited.push_back((batch, session, receipt));
        self.commit();
    }

    /// Takes the next batch, if none is being written.
    pub fn commit(&mut self) {
        let process = self.process();
        if process.commit.is_some() {
            return;
        }
        let Some(batch) = process.spool.take_batch() else { return };
        match &process.segment {
            Some(segment) if segment.generation == batch.generation => self.write_batch(batch),
            _ => {
                process.segment = None;
                let name = segment_name(batch.generation);
                process.commit = Some(Commit::Making(batch));
                let octets = self.settings.segment_octets;
                self.begin(Waiter::Committer, Operation::Create { name, octets });
            }
        }
    }

    fn write_batch(&mut self, batch: Batch) {
        let process = self.process();
        process.commit = Some(Commit::Writing);
        let Some(segment) = &process.segment else { return };
        let operation =
            Operation::Write { file: segment.file, offset: batch.offset, octets: batch.octets, through: true };
        self.begin(Waiter::Committer, operation);
    }

    fn committer_goes_on(&mut self, result: io::Result<Option<FileId>>) {
        let segment_octets = self.settings.segment_octets;
        let process = self.process();
        match (process.commit.take(), result) {
            (Some(Commit::Making(batch)), Ok(Some(file))) => {
                let header = process.spool.segment_header(batch.generation).encode();
                let segment = Segment { generation: batch.generation, file };
                process.commit = Some(Commit::Header(batch, segment));
                let operation = Operation::Write { file, offset: 0, octets: header.to_vec(), through: true };
                self.begin(Waiter::Committer, operation);
            }
            (Some(Commit::Header(batch, segment)), Ok(_)) => {
                process.commit = Some(Commit::Directory(batch, segment));
                self.begin(Waiter::Committer, Operation::SyncDirectory);
            }
            (Some(Commit::Directory(batch, segment)), Ok(_)) => {
                process.spool.segment_opened(segment.generation, segment_octets);
                process.segment = Some(segment);
                self.write_batch(batch);
            }
            (Some(Commit::Writing), Ok(_)) => self.batch_succeeds(),
            (Some(Commit::Header(batch, _) | Commit::Directory(batch, _)), Err(_)) => {
                process.commit = Some(Commit::Clearing);
                self.begin(Waiter::Committer, Operation::Remove { name: segment_name(batch.generation) });
            }
            _ => self.batch_fails(),
        }
    }

    fn batch_succeeds(&mut self) {
        let process = self.process();
        let Some(synced) = process.spool.synced() else { return };
        process.failed_at_ms = None;
        let batch = synced.batch();
        let mut proven = Vec::new();
        while let Some((_, session, receipt)) = process.awaited.pop_front_if(|(number, ..)| *number == batch) {
            proven.push((session, synced.prove(&receipt)));
        }
        self.outcomes_are_synced(batch);
        for (session, durable) in proven {
            self.session_is_told(session, durable);
        }
        self.commit();
    }

    fn batch_fails(&mut self) {
        let now_ms = self.now_ms;
        let process = self.process();
        process.segment = None;
        let failed = process.spool.failed();
        process.failed_at_ms = Some(now_ms);
        let mut told = Vec::new();
        process.awaited.retain(|(number, session, _)| {
            let is_lost = failed.contains(number);
            if is_lost {
                told.push(*session);
            }
            !is_lost
        });
        self.note(|| format!("a batch fails: {failed:?}"));
        for session in told {
            self.session_is_told(session, None);
        }
        self.outcomes_are_lost(&failed);
        self.commit();
    }

    /// Something of one session's failed.
    pub fn report_failure(&mut self) {
        let now_ms = self.now_ms;
        self.process().failed_at_ms = Some(now_ms);
    }

    /// Removes segments that nothing needs, one after the other.
    pub fn remove_segments(&mut self) {
        let process = self.process();
        if process.removing {
            return;
        }
        let oldest_in_use = process.spool.oldest_in_use();
        let Some((generation, is_damaged)) = process.schedule.removable_segment(oldest_in_use) else { return };
        process.removing = true;
        let name = segment_name(generation);
        self.note(|| format!("{name} is needed no more"));
        let operation = if is_damaged {
            Operation::Rename { from: name, to: quarantine_name(generation) }
        } else {
            Operation::Remove { name }
        };
        self.begin(Waiter::Removal(generation), operation);
    }

    /// Gives back what a finished message took.
    pub fn release(&mut self, finished: Option<Finished>) {
        let Some(finished) = finished else { return };
        if finished.spilled {
            self.begin(Waiter::Nobody, Operation::Remove { name: spill_name(finished.id) });
        }
        if finished.emptied_segment {
            self.wake_keeper(0);
        }
    }

    /// Damages a file at a random place of what is in it. False: it holds nothing.
    pub fn damage(&mut self, name: &str) -> bool {
        let length = self.disk.list().into_iter().find(|(known, _)| known == name).map_or(0, |(_, length)| length);
        let Ok(octets) = self.disk.read_at(name, 0, length as usize) else { return false };
        let used = octets.iter().rposition(|&octet| octet != 0).map_or(0, |last| last + 1);
        if used == 0 {
            return false;
        }
        let place = self.random.below(used as u64) as usize;
        let mut at = 0;
        while let Some(start) = find_record(&octets, at) {
            let Some(header) = RecordHeader::decode(&octets[start..]) else { break };
            let end = start + header.octets() as usize;
            if (start..end).contains(&place) {
                self.judge.damaged.insert(header.id);
            }
            at = end;
        }
        if let Some(id) = gatepost::queue::disk::spill_id(name) {
            self.judge.damaged.insert(id);
        }
        self.note(|| format!("octet {place} of {name} rots"));
        self.disk.flip(name, place * 8 + 3);
        true
    }

    /// What recovery says of the disk: damage only where there is some.
    fn judge_recovery(&mut self, found: &gatepost::queue::recover::Found) {
        let _ = found;
    }
}

impl Settlement {
    /// What it says of each place, of so many.
    pub fn places(&self, recipients: usize) -> Vec<(usize, gatepost::queue::outcome::Status)> {
        match self {
            Settlement::Rest(status, _) => (0..recipients).map(|place| (place, *status)).collect(),
            Settlement::These(settled) => settled.iter().map(|one| (one.recipient as usize, one.status)).collect(),
        }
    }
}
