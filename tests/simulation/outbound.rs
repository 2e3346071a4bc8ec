//! Deliveries of the process: the steps of `shard::outbound`: which job goes when, over which
//! connection.

use crate::judge::Taken;
use crate::process::{Body, Content};
use crate::world::{Event, World};
use gatepost::delivery::{Availability, NextHopId, RouteId, Routes, Window, WindowShare, expired, recipient_domain};
use gatepost::limits::{
    KEEPER_MAX_MS, KEEPER_TICK_MS, NEXT_HOP_CONNECTION_AGE_MS, NEXT_HOP_CROWDED_MS, NEXT_HOP_IDLE_MS,
    NEXT_HOP_PROBE_LEASE_MS, NEXT_HOP_STARVED_RETRY_MS,
};
use gatepost::queue::disk::{segment_name, spill_name};
use gatepost::queue::record::{Kind, Record, RecordHeader};
use gatepost::queue::schedule::Job;
use gatepost::queue::spool::Location;
use gatepost::queue::stored::StoredEnvelope;
use gatepost::smtp::QueueId;
use gatepost::smtp::client::{Cause, Failure, Recipient, Session, Stage, Step, Timeouts, Transaction, Wants};
use std::rc::Rc;

/// A next hop's connections.
#[derive(Default)]
pub struct Pool {
    share: WindowShare,
    /// Idle workers, the one used last at the end.
    idle: Vec<u64>,
    lanes: Vec<u16>,
    connections: usize,
    crowded_until_ms: u64,
    worked_until_ms: u64,
    opened_ms: u64,
    turn: usize,
    slot_turn: usize,
}

impl Pool {
    pub fn new(routes: &Routes, next_hop: usize) -> Self {
        let uses = |lane: &u16| routes.next_hops(RouteId::from_number(*lane)).iter().any(|id| id.index() == next_hop);
        Pool { lanes: (0..routes.len() as u16).filter(uses).collect(), ..Pool::default() }
    }
}

/// One connection to a next hop.
pub struct Worker {
    next_hop: NextHopId,
    connection: u64,
    session: Session,
    left: Vec<u8>,
    job: Option<Job>,
    subject: Option<Subject>,
    has_slot: bool,
    is_open: bool,
    has_served: bool,
    began_ms: u64,
    idle_until_ms: Option<u64>,
}

/// What it is at.
struct Subject {
    octets: u64,
    id: QueueId,
    content: Rc<Content>,
    places: Vec<u32>,
}

impl World {
    /// Takes a message that is durable into the queue, and starts its delivery if that can be now.
    pub fn accept(
        &mut self,
        id: QueueId,
        location: Location,
        octets: u64,
        spilled: bool,
        recipients: u32,
        content: Content,
    ) {
        let Some(envelope) = StoredEnvelope::decode(&content.envelope) else { return };
        let mut lanes = Vec::new();
        for recipient in envelope.recipients() {
            if let Some(route) = self.routes.route(recipient_domain(recipient.path))
                && !lanes.contains(&route.number())
            {
                lanes.push(route.number());
            }
        }
        let stays_hot = self.random.percent(50);
        let process = self.process();
        let key = process.schedule.add(id, location, octets, spilled, recipients, Some(Rc::new(content)));
        process.schedule.enqueue(key, &lanes);
        process.schedule.unhold(location.generation);
        for &lane in &lanes {
            self.pump(lane);
        }
        if !stays_hot {
            self.process().schedule.cool(key);
        }
    }

    /// The keeper looks again after this time, or sooner.
    pub fn wake_keeper(&mut self, wait_ms: u64) {
        let at_ms = self.now_ms + wait_ms;
        let process = self.process();
        if at_ms < process.keeper_at_ms {
            process.keeper_at_ms = at_ms;
            self.after(wait_ms, Event::Keeper { life: self.life });
        }
    }

    /// What comes with time.
    pub fn keep(&mut self) {
        let now_ms = self.now_ms;
        if self.process.is_none() || self.process().keeper_at_ms > now_ms {
            return;
        }
        let process = self.process();
        process.keeper_at_ms = u64::MAX;
        process.schedule.release_due(now_ms);
        if now_ms >= process.lost_until_ms {
            self.write_lost();
        }
        for lane in 0..self.routes.len() as u16 {
            while let Some(job) = self.next_expired(lane) {
                self.expire(job);
            }
            self.pump(lane);
        }
        self.tidy_segments();
        let process = self.process();
        let lanes = process.schedule.lanes() as u16;
        let waits = (0..lanes).any(|lane| process.schedule.waiting(lane) > 0);
        let longest = if process.pools.iter().any(|pool| pool.share.is_starving()) {
            NEXT_HOP_STARVED_RETRY_MS
        } else if waits || !process.lost.is_empty() {
            KEEPER_TICK_MS
        } else {
            KEEPER_MAX_MS
        };
        let due = process.schedule.next_due_ms().map(|due_ms| due_ms.saturating_sub(now_ms));
        self.wake_keeper(due.unwrap_or(longest).min(longest));
    }

    fn next_expired(&mut self, lane: u16) -> Option<Job> {
        let job = self.process().schedule.peek(lane)?;
        self.is_expired(job).then(|| self.process().schedule.next(lane))?
    }

    fn is_expired(&mut self, job: Job) -> bool {
        let (unix_ms, lifetime) = (self.unix_ms(), self.settings.lifetime);
        let message = self.process().schedule.message(job.message);
        message.is_some_and(|message| expired(message.arrived_unix_ms(), unix_ms, lifetime))
    }

    fn may_begin(&mut self) -> bool {
        self.process().lost.is_empty()
    }

    fn availability(&mut self, next_hop: NextHopId) -> Availability {
        let now_ms = self.now_ms;
        self.process().states[next_hop.index()].availability(now_ms)
    }

    /// Starts as many jobs of a lane as there are slots for.
    fn pump(&mut self, lane: u16) {
        while self.may_begin() {
            if self.process().schedule.waiting(lane) == 0 {
                return self.leave(lane);
            }
            let Some(next_hop) = self.take_slot(lane) else { return self.wake_keeper(KEEPER_TICK_MS) };
            let Some(job) = self.process().schedule.next(lane) else { return };
            let is_up = self.availability(next_hop) == Availability::Up;
            let seat = if is_up { self.process().pools[next_hop.index()].idle.pop() } else { None };
            match seat {
                Some(worker) => {
                    if let Some(entry) = self.process().workers.get_mut(&worker) {
                        entry.job = Some(job);
                        entry.has_slot = true;
                        entry.idle_until_ms = None;
                    }
                    self.attempt(worker);
                }
                None => self.spawn(next_hop, job),
            }
        }
    }

    fn take_slot(&mut self, lane: u16) -> Option<NextHopId> {
        let now_ms = self.now_ms;
        let window = Window { slots: self.settings.window, shards: 1 };
        let routes = self.routes.clone();
        for &next_hop in routes.next_hops(RouteId::from_number(lane)) {
            let availability = self.availability(next_hop);
            let process = self.process();
            let (pool, state) = (&mut process.pools[next_hop.index()], &process.states[next_hop.index()]);
            let is_crowded = now_ms < pool.crowded_until_ms && pool.idle.is_empty();
            match availability {
                Availability::Up => return (!is_crowded && pool.share.try_take(state, window)).then_some(next_hop),
                Availability::Down { .. } => {}
                Availability::ProbeDue => {
                    if !is_crowded && pool.share.try_take(state, window) {
                        if state.try_claim_probe(now_ms, NEXT_HOP_PROBE_LEASE_MS) {
                            return Some(next_hop);
                        }
                        pool.share.give_back(state);
                    }
                }
            }
        }
        None
    }

    fn leave(&mut self, lane: u16) {
        let routes = self.routes.clone();
        for &next_hop in routes.next_hops(RouteId::from_number(lane)) {
            let process = self.process();
            let (pool, state) = (&mut process.pools[next_hop.index()], &process.states[next_hop.index()]);
            if pool.share.is_starving() && pool.lanes.iter().all(|&lane| process.schedule.waiting(lane) == 0) {
                pool.share.leave(state);
            }
        }
    }

    fn give_slot_back(&mut self, next_hop: NextHopId) {
        let process = self.process();
        let (pool, state) = (&mut process.pools[next_hop.index()], &process.states[next_hop.index()]);
        pool.share.give_back(state);
        self.pump_next_hop(next_hop);
    }

    fn pump_next_hop(&mut self, next_hop: NextHopId) {
        let pool = &self.process().pools[next_hop.index()];
        let (lanes, begin) = (pool.lanes.clone(), pool.slot_turn);
        let mut is_first = true;
        for step in 0..lanes.len() {
            let place = (begin + step) % lanes.len();
            if self.process().schedule.waiting(lanes[place]) > 0 {
                if std::mem::take(&mut is_first) {
                    self.process().pools[next_hop.index()].slot_turn = place + 1;
                }
                self.pump(lanes[place]);
            }
        }
    }

    /// The next job for a connection whose transaction has ended.
    fn next_job(&mut self, next_hop: NextHopId) -> Option<Job> {
        if !self.may_begin() {
            return None;
        }
        let pool = &self.process().pools[next_hop.index()];
        let (lanes, begin) = (pool.lanes.clone(), pool.turn);
        let routes = self.routes.clone();
        for step in 0..lanes.len() {
            let place = (begin + step) % lanes.len();
            let lane = lanes[place];
            let preferred = routes
                .next_hops(RouteId::from_number(lane))
                .iter()
                .copied()
                .find(|&next_hop| self.availability(next_hop) == Availability::Up);
            if self.process().schedule.waiting(lane) > 0 && preferred == Some(next_hop) {
                self.process().pools[next_hop.index()].turn = place + 1;
                return self.process().schedule.next(lane);
            }
        }
        None
    }

    /// Connects for a job.
    fn spawn(&mut self, next_hop: NextHopId, job: Job) {
        let (now, now_ms, life) = (self.now(), self.now_ms, self.life);
        self.last_connection += 1;
        let connection = self.last_connection;
        let timeouts = Timeouts::from_reply(self.settings.next_hop_timeout);
        let worker = Worker {
            next_hop,
            connection,
            session: Session::new("gateway.test".into(), timeouts, Wants::default(), now),
            left: Vec::new(),
            job: Some(job),
            subject: None,
            has_slot: true,
            is_open: false,
            has_served: false,
            began_ms: now_ms,
            idle_until_ms: None,
        };
        let process = self.process();
        process.last_worker += 1;
        let number = process.last_worker;
        process.workers.insert(number, worker);
        let wait_ms = self.random.below(20);
        self.after(wait_ms, Event::Call { next_hop: next_hop.index(), connection, worker: number, life });
        self.watch(number);
    }

    /// Looks after a worker when its time is up.
    fn watch(&mut self, worker: u64) {
        let (now, life) = (self.now(), self.life);
        let Some(entry) = self.process().workers.get(&worker) else { return };
        if let Some(deadline) = entry.session.next_deadline() {
            let wait_ms = deadline.saturating_duration_since(now).as_millis() as u64;
            self.after(wait_ms, Event::Worker { life, worker });
        }
    }

    pub fn worker_wakes(&mut self, worker: u64) {
        let (now, now_ms) = (self.now(), self.now_ms);
        if self.process.is_none() {
            return;
        }
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        if let Some(until_ms) = entry.idle_until_ms {
            if until_ms <= now_ms {
                self.quit(worker);
            }
            return;
        }
        match entry.session.handle_time(now) {
            Some(failure) => self.lose(worker, Some(failure)),
            None if entry.session.next_deadline().is_some_and(|deadline| deadline <= now) => self.watch(worker),
            None => {}
        }
    }

    pub fn worker_hears(&mut self, worker: u64, connection: u64, input: Option<Vec<u8>>, taken: Option<Taken>) {
        let now = self.now();
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        if entry.connection != connection {
            return;
        }
        let Some(input) = input else {
            let failure = entry.session.handle_end();
            return self.lose(worker, Some(failure));
        };
        if let Some(taken) = taken {
            self.judge.heard(&taken);
        }
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        entry.left.extend_from_slice(&input);
        loop {
            let Some(entry) = self.process().workers.get_mut(&worker) else { return };
            let input = std::mem::take(&mut entry.left);
            let (consumed, step) = entry.session.step(now, &input);
            entry.left = input[consumed..].to_vec();
            match step {
                Step::NeedMore => break,
                Step::Ready => self.opened(worker),
                Step::SendBody => self.send_body(worker),
                Step::Answered => {
                    self.finish_transaction(worker);
                }
                Step::Failed(failure) => return self.lose(worker, Some(failure)),
                Step::Closed | Step::StartTls => return self.lose(worker, None),
            }
            self.flush(worker);
        }
        self.flush(worker);
        self.watch(worker);
    }

    /// Sends what there is to send.
    fn flush(&mut self, worker: u64) {
        let now = self.now();
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        let octets = entry.session.output().to_vec();
        if octets.is_empty() {
            return;
        }
        entry.session.output_sent(now, octets.len());
        let (next_hop, connection) = (entry.next_hop.index(), entry.connection);
        let cut = self.random.place(octets.len());
        for piece in [&octets[..cut], &octets[cut..]] {
            if !piece.is_empty() {
                self.send_to_next_hop(next_hop, connection, Some(piece.to_vec()));
            }
        }
    }

    fn opened(&mut self, worker: u64) {
        let now_ms = self.now_ms;
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        entry.is_open = true;
        let next_hop = entry.next_hop;
        let process = self.process();
        let pool = &mut process.pools[next_hop.index()];
        pool.connections += 1;
        pool.opened_ms = now_ms;
        process.states[next_hop.index()].reached();
        self.pump_next_hop(next_hop);
        self.attempt(worker);
    }

    /// The connection is of no more use.
    fn lose(&mut self, worker: u64, failure: Option<Failure>) {
        let Some(entry) = self.process().workers.get(&worker) else { return };
        if !entry.is_open {
            self.unreachable(worker, failure);
        } else if entry.subject.is_some() {
            self.break_off(worker, failure);
        } else if let Some(job) = entry.job {
            self.process().schedule.put_back(job);
        }
        self.drop_worker(worker);
    }

    fn drop_worker(&mut self, worker: u64) {
        let now_ms = self.now_ms;
        let Some(entry) = self.process().workers.remove(&worker) else { return };
        let pool = &mut self.process().pools[entry.next_hop.index()];
        pool.idle.retain(|&idle| idle != worker);
        if entry.is_open {
            pool.connections -= 1;
            pool.worked_until_ms = pool.worked_until_ms.max(now_ms + NEXT_HOP_CROWDED_MS);
        }
        self.send_to_next_hop(entry.next_hop.index(), entry.connection, None);
        if entry.has_slot {
            self.give_slot_back(entry.next_hop);
        }
    }

    /// The next hop could not be reached: its mail waits, and no attempt is counted.
    fn unreachable(&mut self, worker: u64, failure: Option<Failure>) {
        let (now_ms, random, backoff) = (self.now_ms, self.random.next(), self.settings.backoff);
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        let (next_hop, job, began_ms) = (entry.next_hop, entry.job.take(), entry.began_ms);
        let is_up = self.availability(next_hop) == Availability::Up;
        let is_refused = failure.as_ref().is_some_and(Failure::is_refusal_for_now);
        let process = self.process();
        let pool = &mut process.pools[next_hop.index()];
        let is_late = failure.is_some() && pool.opened_ms > began_ms;
        let is_connected = pool.connections > 0 || now_ms < pool.worked_until_ms;
        if is_up && (is_refused && is_connected || is_late && !is_refused) {
            pool.crowded_until_ms = pool.crowded_until_ms.max(now_ms + NEXT_HOP_CROWDED_MS);
        } else {
            process.states[next_hop.index()].unreachable(now_ms, &backoff, random);
        }
        if let Some(job) = job {
            process.schedule.put_back(job);
        }
        self.note(|| format!("next hop {} cannot be reached: {failure:?}", next_hop.index()));
        self.wake_keeper(KEEPER_TICK_MS);
    }

    /// Tries to deliver a worker's job, or what there is to be done.
    fn attempt(&mut self, worker: u64) {
        loop {
            let Some(entry) = self.process().workers.get(&worker) else { return };
            let Some(job) = entry.job else { return self.idle(worker) };
            if !self.begin_transaction(worker, job) {
                let Some(entry) = self.process().workers.get_mut(&worker) else { return };
                let next_hop = entry.next_hop;
                entry.job = None;
                let next = self.next_job(next_hop);
                if let Some(entry) = self.process().workers.get_mut(&worker) {
                    entry.job = next;
                }
                continue;
            }
            self.flush(worker);
            return self.watch(worker);
        }
    }

    /// False: there is nothing to be sent.
    fn begin_transaction(&mut self, worker: u64, job: Job) -> bool {
        let now = self.now();
        if self.is_expired(job) {
            self.expire(job);
            return false;
        }
        let Some(content) = self.content(job) else { return false };
        let Some(message) = self.process().schedule.message(job.message) else { return false };
        let (id, octets) = (message.id, message.octets);
        let places = self.pending_places(job, &content);
        let Some(envelope) = StoredEnvelope::decode(&content.envelope) else {
            self.defer(job);
            return false;
        };
        if places.is_empty() {
            self.conclude(job, &[], &[]);
            return false;
        }
        let wanted = (0_u32..).zip(envelope.recipients()).filter(|(place, _)| places.contains(place));
        let recipients: Vec<Recipient<'_>> = wanted
            .map(|(_, recipient)| Recipient { path: recipient.path, notify: recipient.notify, orcpt: recipient.orcpt })
            .collect();
        let transaction = Transaction {
            reverse_path: envelope.reverse_path(),
            octets,
            body_type: envelope.body_type(),
            eight_bit: false,
            ret: envelope.ret(),
            envid: envelope.envid(),
            auth: envelope.auth(),
            recipients: &recipients,
        };
        self.note(|| format!("{id} is tried for {places:?}"));
        let Some(entry) = self.process().workers.get_mut(&worker) else { return false };
        let begun = entry.session.begin(now, &transaction);
        if begun.is_err() {
            self.judge.blame(format!("{id} cannot be sent: {begun:?}"));
            return false;
        }
        entry.subject = Some(Subject { id, octets, content: content.clone(), places });
        true
    }

    /// A job's message, from memory or read back. `None`: it is gone, or deferred.
    pub fn content(&mut self, job: Job) -> Option<Rc<Content>> {
        let message = self.process().schedule.message(job.message)?;
        if let Some(content) = &message.hot {
            return Some(content.clone());
        }
        let (id, location) = (message.id, message.location);
        let content = self.read_back(id, location);
        if content.is_none() {
            self.note(|| format!("{id} cannot be read back"));
            self.defer(job);
        }
        content.map(Rc::new)
    }

    fn read_back(&self, id: QueueId, location: Location) -> Option<Content> {
        let name = segment_name(location.generation);
        let octets = self.disk.read_at(&name, u64::from(location.offset), location.octets as usize).ok()?;
        let header = RecordHeader::decode(&octets).filter(|header| header.id == id)?;
        let record = Record::decode(header, &octets)?;
        let body = match header.kind {
            Kind::Message => Body::Memory(record.message.to_vec()),
            Kind::Spilled => Body::Spilled { crc: header.message_crc },
            Kind::Outcome => return None,
        };
        Some(Content { envelope: record.envelope.to_vec(), body })
    }

    fn send_body(&mut self, worker: u64) {
        let now = self.now();
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        let Some(subject) = &entry.subject else { return };
        let (id, octets, content) = (subject.id, subject.octets, subject.content.clone());
        let spilled;
        let octets = match &content.body {
            Body::Memory(octets) => octets,
            Body::Spilled { crc } => {
                let read = self.disk.read_at(&spill_name(id), 0, octets as usize);
                match read {
                    Ok(read) if crc32c::crc32c(&read) == *crc => spilled = read,
                    _ => {
                        self.note(|| format!("{id}: its spill file cannot be read"));
                        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
                        let _ = entry.session.handle_end();
                        self.settle_transaction(worker);
                        return self.drop_worker(worker);
                    }
                }
                &spilled
            }
        };
        for piece in octets.chunks(1000) {
            let Some(entry) = self.process().workers.get_mut(&worker) else { return };
            entry.session.body(piece);
            self.flush(worker);
        }
        if let Some(entry) = self.process().workers.get_mut(&worker) {
            entry.session.body_end(now);
        }
    }

    /// The transaction has its answers.
    fn finish_transaction(&mut self, worker: u64) {
        let now_ms = self.now_ms;
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        entry.has_served = true;
        let next_hop = entry.next_hop;
        self.process().states[next_hop.index()].answered();
        self.settle_transaction(worker);
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        if entry.session.must_close() {
            return self.drop_worker(worker);
        }
        if now_ms - entry.began_ms > NEXT_HOP_CONNECTION_AGE_MS {
            return self.quit(worker);
        }
        let next = self.next_job(next_hop);
        if let Some(entry) = self.process().workers.get_mut(&worker) {
            entry.job = next;
        }
        self.attempt(worker);
    }

    /// Settles what the transaction came to.
    fn settle_transaction(&mut self, worker: u64) {
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        let (Some(job), Some(subject)) = (entry.job.take(), entry.subject.take()) else { return };
        let dispositions = entry.session.take_dispositions();
        self.note(|| format!("{}: {dispositions:?}", subject.id));
        self.conclude(job, &subject.places, &dispositions);
    }

    /// The dialogue failed inside a transaction.
    fn break_off(&mut self, worker: u64, failure: Option<Failure>) {
        let (now_ms, random, backoff) = (self.now_ms, self.random.next(), self.settings.backoff);
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        let is_stale = entry.has_served
            && failure.as_ref().is_some_and(|failure| {
                matches!(failure.stage, Stage::Idle | Stage::Mail)
                    && matches!(&failure.cause, Cause::Closed | Cause::Refused(_))
            });
        let next_hop = entry.next_hop;
        if is_stale {
            let job = entry.job.take();
            entry.subject = None;
            if let Some(job) = job {
                self.process().schedule.put_back(job);
            }
            return;
        }
        self.process().states[next_hop.index()].disturbed(now_ms, &backoff, random);
        self.settle_transaction(worker);
    }

    /// Waits for the next job without a slot.
    fn idle(&mut self, worker: u64) {
        let (now_ms, life) = (self.now_ms, self.life);
        let Some(entry) = self.process().workers.get_mut(&worker) else { return };
        entry.idle_until_ms = Some(now_ms + NEXT_HOP_IDLE_MS);
        let (next_hop, had_slot) = (entry.next_hop, std::mem::take(&mut entry.has_slot));
        self.process().pools[next_hop.index()].idle.push(worker);
        self.after(NEXT_HOP_IDLE_MS, Event::Worker { life, worker });
        if had_slot {
            self.give_slot_back(next_hop);
        }
    }

    fn quit(&mut self, worker: u64) {
        let now = self.now();
        if let Some(entry) = self.process().workers.get_mut(&worker) {
            entry.session.quit(now);
        }
        self.flush(worker);
        self.drop_worker(worker);
    }
}
