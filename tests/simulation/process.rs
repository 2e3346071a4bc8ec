//! One life of the process: what it has in memory, its start, and its way with the disk.
//!
//! The steps are those of `shard::storage`, `shard::message` and `shard::outbound` in their order;
//! what decides is the product's own: [`Spool`], [`recover`], [`Schedule`].

use crate::disk::{FileId, Operation, OperationId};
use crate::inbound::Inbound;
use crate::outbound::{Pool, Worker};
use crate::rewriter::Rewrite;
use crate::settle::Unrecorded;
use crate::world::{Event, World};
use gatepost::delivery::{NextHopState, RouteId, recipient_domain};
use gatepost::limits::SPARE_SEGMENTS_MAX;
use gatepost::queue::disk::{PROBE_NAME, segment_name, spare_name, spill_id, spill_name};
use gatepost::queue::record::{Record, RecordHeader, find_record};
use gatepost::queue::recover::{Damage, Found, Spare, recover};
use gatepost::queue::schedule::{Finished, MessageKey, Schedule};
use gatepost::queue::spool::{Batch, BatchNumber, Receipt, Spool};
use gatepost::smtp::server::Profile;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;

/// How long storage is left alone after a failure.
const FAILURE_PAUSE_MS: u64 = 1_000;
/// Octets by which it is probed then.
const PROBE_OCTETS: u64 = 2_048;

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
    /// Who waits for a batch.
    awaited: VecDeque<(BatchNumber, Awaiter, Receipt)>,
    /// Segments to be used again.
    spares: Vec<Spare>,
    pub waiting: BTreeMap<OperationId, Waiter>,
    failed_at_ms: Option<u64>,
    /// Why the batch at hand fails.
    failure: Option<io::ErrorKind>,
    pub unrecorded: VecDeque<Unrecorded>,
    pub lost: Vec<Unrecorded>,
    pub lost_until_ms: u64,
    retiring: bool,
    pub rewrite: Option<Rewrite>,
    pub rewrite_again_ms: u64,
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
    /// A segment gets another name, or none. `keeps`: it is to be used again.
    Retirement {
        segment: Spare,
        keeps: bool,
    },
    RetirementSync {
        segment: Spare,
        keeps: bool,
    },
    Probe {
        failed_at_ms: u64,
        step: Probe,
    },
    Nobody,
}

/// How far a probe of storage is.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    Clearing,
    Creating,
    Writing,
    SyncingDirectory,
    Removing,
}

/// Who waits for a batch.
#[derive(Clone, Copy, Debug)]
pub enum Awaiter {
    Session(u64),
    /// A message's record that is written again, with the outcomes of so many recipients.
    Rewrite {
        key: MessageKey,
        settled: usize,
    },
}

struct Segment {
    generation: u64,
    octets: u64,
    file: FileId,
}

/// A segment that is being made, for a batch.
struct Making {
    batch: Batch,
    /// The name it is made under.
    name: String,
    segment: Option<Segment>,
}

/// What the committer is at.
enum Commit {
    Creating(Making),
    Beginning(Making),
    Renaming(Making),
    SyncingDirectory(Making),
    Writing,
    /// A segment that could not be made is removed, under the one name and the other.
    Clearing(Option<String>),
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
            && self.rewrite.is_none()
            && self.sessions.is_empty()
            && self.waiting.is_empty()
            && self.failed_at_ms.is_none()
    }

    /// Whether storage has failed, and no probe has succeeded since.
    pub fn is_failing(&self) -> bool {
        self.failed_at_ms.is_some()
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
        self.disk.left_until_crash = (!self.is_healing && self.random.percent(20)).then(|| self.random.below(12));
        let found = recover(&mut self.disk, lanes);
        let has_crashed = self.disk.left_until_crash.take() == Some(0);
        let found = match found {
            Ok(found) => found,
            Err(error) if has_crashed => {
                self.note(|| format!("the start is cut off: {error}"));
                return self.crash_somehow();
            }
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
            format!("life {life} begins: {live:?} damage {:?}", found.damage)
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
            failure: None,
            unrecorded: VecDeque::new(),
            lost: Vec::new(),
            lost_until_ms: 0,
            retiring: false,
            rewrite: None,
            rewrite_again_ms: 0,
            spares: found.spares,
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
        let is_write = matches!(operation, Operation::Write { .. });
        let id = self.disk.begin(operation);
        self.process().waiting.insert(id, waiter);
        self.operation_begins(id, is_write);
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
            Waiter::Retirement { segment, keeps } => match result {
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.segment_is_retired(segment, Ok(false)),
                Err(error) => self.segment_is_retired(segment, Err(error)),
                Ok(_) => self.begin(Waiter::RetirementSync { segment, keeps }, Operation::SyncDirectory),
            },
            Waiter::RetirementSync { segment, keeps } => self.segment_is_retired(segment, result.map(|_| keeps)),
            Waiter::Probe { failed_at_ms, step } => self.probe_goes_on(failed_at_ms, step, result),
            Waiter::Nobody => {}
        }
    }

    /// Somebody waits for the batch of this receipt.
    pub fn await_batch(&mut self, awaiter: Awaiter, receipt: Receipt) {
        let batch = Spool::batch_of(&receipt);
        self.process().awaited.push_back((batch, awaiter, receipt));
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
                match process.spares.pop() {
                    Some(Spare { generation, octets }) => {
                        self.judge.tally.used_again += 1;
                        let name = spare_name(generation);
                        let file = self.disk.open(&name);
                        let segment = file.map(|file| Segment { generation: batch.generation, octets, file });
                        self.begin_segment(Making { batch, name, segment });
                    }
                    None => {
                        let name = spare_name(batch.generation);
                        process.commit = Some(Commit::Creating(Making { batch, name: name.clone(), segment: None }));
                        let octets = self.settings.segment_octets;
                        self.begin(Waiter::Committer, Operation::Create { name, octets });
                    }
                }
            }
        }
    }

    /// Writes the beginning of a segment that still has a spare's name.
    fn begin_segment(&mut self, making: Making) {
        let Some(file) = making.segment.as_ref().map(|segment| segment.file) else { return self.batch_fails() };
        let process = self.process();
        let octets = process.spool.segment_beginning(making.batch.generation);
        process.commit = Some(Commit::Beginning(making));
        self.begin(Waiter::Committer, Operation::Write { file, offset: 0, octets, through: true });
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
        let (segment_octets, life) = (self.settings.segment_octets, self.life);
        let process = self.process();
        match (process.commit.take(), result) {
            (Some(Commit::Creating(making)), Ok(Some(file))) => {
                let segment = Some(Segment { generation: making.batch.generation, octets: segment_octets, file });
                self.begin_segment(Making { segment, ..making });
            }
            (Some(Commit::Beginning(making)), Ok(_)) => {
                let (from, to) = (making.name.clone(), segment_name(making.batch.generation));
                process.commit = Some(Commit::Renaming(making));
                self.begin(Waiter::Committer, Operation::Rename { from, to });
            }
            (Some(Commit::Renaming(making)), Ok(_)) => {
                process.commit = Some(Commit::SyncingDirectory(making));
                self.begin(Waiter::Committer, Operation::SyncDirectory);
            }
            (Some(Commit::SyncingDirectory(Making { batch, segment: Some(segment), .. })), Ok(_)) => {
                let voids = process.spool.segment_made(segment.generation, segment.octets);
                process.schedule.segment_is_made(segment.generation, segment.octets, voids);
                process.segment = Some(segment);
                if voids.is_some() {
                    self.judge.voided(life);
                }
                self.wake_keeper(0);
                self.write_batch(batch);
            }
            (Some(Commit::Writing), Ok(_)) => self.batch_succeeds(),
            (
                Some(Commit::Beginning(making) | Commit::Renaming(making) | Commit::SyncingDirectory(making)),
                Err(error),
            ) => {
                process.failure = Some(error.kind());
                process.commit = Some(Commit::Clearing(Some(segment_name(making.batch.generation))));
                self.begin(Waiter::Committer, Operation::Remove { name: making.name });
            }
            (Some(Commit::Clearing(Some(name))), _) => {
                process.commit = Some(Commit::Clearing(None));
                self.begin(Waiter::Committer, Operation::Remove { name });
            }
            (_, Err(error)) => {
                process.failure = Some(error.kind());
                self.batch_fails();
            }
            _ => self.batch_fails(),
        }
    }

    fn batch_succeeds(&mut self) {
        let process = self.process();
        let Some(synced) = process.spool.synced() else { return };
        let batch = synced.batch();
        let mut proven = Vec::new();
        while let Some((_, awaiter, receipt)) = process.awaited.pop_front_if(|(number, ..)| *number == batch) {
            proven.push((awaiter, receipt.location(), synced.prove(&receipt)));
        }
        self.outcomes_are_synced(batch);
        for (awaiter, location, durable) in proven {
            match awaiter {
                Awaiter::Session(session) => self.session_is_told(session, durable),
                Awaiter::Rewrite { key, settled } => self.record_is_rewritten(key, Some(location), settled),
            }
        }
        self.commit();
    }

    fn batch_fails(&mut self) {
        let process = self.process();
        process.segment = None;
        let failed = process.spool.failed();
        let is_full = process.failure.take() == Some(io::ErrorKind::StorageFull);
        let mut told = Vec::new();
        process.awaited.retain(|(number, awaiter, _)| {
            let is_lost = failed.contains(number);
            if is_lost {
                told.push(*awaiter);
            }
            !is_lost
        });
        if is_full {
            self.give_up_spares();
        }
        self.report_failure();
        self.note(|| format!("a batch fails: {failed:?}"));
        for awaiter in told {
            match awaiter {
                Awaiter::Session(session) => self.session_is_told(session, None),
                Awaiter::Rewrite { key, settled } => self.record_is_rewritten(key, None, settled),
            }
        }
        self.outcomes_are_lost(&failed);
        self.commit();
    }

    /// Something failed: mail is refused until a probe succeeds.
    pub fn report_failure(&mut self) {
        let (now_ms, life) = (self.now_ms, self.life);
        if self.process().failed_at_ms.replace(now_ms).is_none() {
            self.after(FAILURE_PAUSE_MS, Event::Probe { life });
        }
    }

    /// Probes storage that has failed, when it was left alone for long enough.
    pub fn probe(&mut self) {
        let (now_ms, life) = (self.now_ms, self.life);
        if self.process.is_none() {
            return;
        }
        let Some(failed_at_ms) = self.process().failed_at_ms else { return };
        match (failed_at_ms + FAILURE_PAUSE_MS).checked_sub(now_ms) {
            None | Some(0) => {
                let name = PROBE_NAME.to_owned();
                let waiter = Waiter::Probe { failed_at_ms, step: Probe::Clearing };
                self.begin(waiter, Operation::Remove { name });
            }
            Some(wait_ms) => self.after(wait_ms, Event::Probe { life }),
        }
    }

    /// Does what segments and spill files need, step by step.
    fn probe_goes_on(&mut self, failed_at_ms: u64, step: Probe, result: io::Result<Option<FileId>>) {
        let (now_ms, life) = (self.now_ms, self.life);
        let name = PROBE_NAME.to_owned();
        let (next, operation) = match (step, result) {
            (Probe::Clearing, _) => (Probe::Creating, Operation::Create { name, octets: PROBE_OCTETS }),
            (Probe::Creating, Ok(Some(file))) => {
                let octets = vec![0; PROBE_OCTETS as usize];
                (Probe::Writing, Operation::Write { file, offset: 0, octets, through: true })
            }
            (Probe::Writing, Ok(_)) => (Probe::SyncingDirectory, Operation::SyncDirectory),
            (Probe::SyncingDirectory, Ok(_)) => (Probe::Removing, Operation::Remove { name }),
            (Probe::Removing, Ok(_)) if self.process().failed_at_ms == Some(failed_at_ms) => {
                self.process().failed_at_ms = None;
                return self.note(|| "storage works again".to_owned());
            }
            (_, result) => {
                if result.is_err() {
                    self.process().failed_at_ms = Some(now_ms);
                }
                return self.after(FAILURE_PAUSE_MS, Event::Probe { life });
            }
        };
        self.begin(Waiter::Probe { failed_at_ms, step: next }, operation);
    }

    fn give_up_spares(&mut self) {
        for spare in std::mem::take(&mut self.process().spares) {
            self.begin(Waiter::Nobody, Operation::Remove { name: spare_name(spare.generation) });
        }
    }

    /// Takes away what nothing needs, and sees to it that there is always something to take away.
    pub fn tidy_segments(&mut self) {
        let process = self.process();
        if process.retiring {
            return;
        }
        let oldest_in_use = process.spool.oldest_in_use();
        let Some(segment) = process.schedule.removable_segment(oldest_in_use) else {
            return self.rewrite(oldest_in_use);
        };
        process.retiring = true;
        let keeps = segment.octets >= process.spool.capacity()
            && process.spares.len() < SPARE_SEGMENTS_MAX
            && process.failed_at_ms.is_none();
        let name = segment_name(segment.generation);
        self.note(|| format!("{name} is needed no more, {}", if keeps { "and kept" } else { "and removed" }));
        let operation = if keeps {
            Operation::Rename { from: name, to: spare_name(segment.generation) }
        } else {
            Operation::Remove { name }
        };
        self.begin(Waiter::Retirement { segment, keeps }, operation);
    }

    /// `Ok(true)`: it is to be used again.
    fn segment_is_retired(&mut self, segment: Spare, result: io::Result<bool>) {
        let process = self.process();
        process.retiring = false;
        match result {
            Ok(keeps) => {
                if keeps {
                    process.spares.push(segment);
                }
                process.schedule.segment_is_gone(segment.generation);
                if matches!(process.commit, Some(Commit::Writing)) {
                    self.tempt_fate();
                }
                self.tidy_segments();
            }
            Err(_) => {
                process.schedule.segment_stays(segment.generation);
                self.report_failure();
            }
        }
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
        if let Some(id) = spill_id(name) {
            self.judge.damaged.insert(id);
        }
        self.judge.has_rot = true;
        self.note(|| format!("octet {place} of {name} rots"));
        self.disk.flip(name, place * 8 + 3);
        true
    }

    /// What recovery says of the disk. A batch that the power cut may look like damage in the middle, but
    /// the rest is damaged only by what rots.
    fn judge_recovery(&mut self, found: &Found) {
        let is_strange = |damage: &&Damage| matches!(damage, Damage::SegmentHeader { .. } | Damage::Spill { .. });
        if let Some(damage) = found.damage.iter().find(is_strange)
            && !self.judge.has_rot
        {
            self.judge.blame(format!("recovery finds damage where there is none: {damage}"));
        }
    }
}
