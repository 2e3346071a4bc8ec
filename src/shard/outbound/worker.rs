//! One connection to a next hop: transaction after transaction, an idle moment, QUIT.

use super::content::{Body, Content, Unreadable};
use super::link::{Event, Idle, Link, Lost};
use super::settle::{self, pending_places};
use super::{Context, Pool, give_slot_back, has_next_hop_up, next_job, pump_next_hop};
use crate::delivery::{Availability, NextHopId};
use crate::limits::{
    NEXT_HOP_CONNECTION_AGE_MS, NEXT_HOP_CROWDED_MS, NEXT_HOP_IDLE_MS, READ_MAX_OCTETS, TRANSACTION_RECIPIENTS_MAX,
};
use crate::queue::outcome::Status;
use crate::queue::schedule::Job;
use crate::queue::stored::StoredEnvelope;
use crate::shard::net::Nudge;
use crate::shard::records::Attempt;
use crate::shard::shared::{NextHop, Stage as Life};
use crate::shard::storage::SpillReader;
use crate::smtp::QueueId;
use crate::smtp::client::{Cause, Disposition, Recipient, Stage, Transaction};
use crate::smtp::envelope::BodyType;
use crate::stderr;
use futures_lite::FutureExt;
use std::cell::Cell;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// An idle connection's place in its pool.
pub struct Seat {
    job: Cell<Option<Job>>,
    nudge: Nudge,
}

impl Seat {
    /// Gives the connection something to do. Its slot is taken already.
    pub fn give(&self, job: Job) {
        self.job.set(Some(job));
        self.nudge.nudge();
    }
}

/// Connects for a job. The slot of the next hop's window is taken already.
pub fn spawn(context: &Rc<Context>, next_hop: NextHopId, job: Job) {
    let worker = Worker {
        context: context.clone(),
        next_hop,
        job: Cell::new(Some(job)),
        has_slot: Cell::new(true),
        is_open: Cell::new(false),
        has_served: Cell::new(false),
    };
    context.outbound.workers.set(context.outbound.workers.get() + 1);
    context.net.spawn(async move {
        if AssertUnwindSafe(worker.run()).catch_unwind().await.is_err() {
            worker.context.metrics.worker_panics.increment(1);
            if !worker.is_open.get() {
                // Else nobody would know of its probe until the lease has run out.
                worker.report_unreachable(&"a defect of this server");
            }
        }
    });
}

struct Worker {
    context: Rc<Context>,
    next_hop: NextHopId,
    /// The job at hand.
    job: Cell<Option<Job>>,
    has_slot: Cell<bool>,
    /// The next hop has answered the hello.
    is_open: Cell<bool>,
    /// It has answered a transaction.
    has_served: Cell<bool>,
}

/// What a message at hand is, apart from its octets.
struct Subject {
    id: QueueId,
    octets: u64,
    content: Rc<Content>,
    began: Instant,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let context = &self.context;
        if let Some(job) = self.job.take() {
            // Only a defect ends a worker in the middle of a job.
            settle::defer(context, job);
        }
        if self.is_open.get() {
            context.metrics.next_hop_open.decrement(1.0);
            self.state().closed(context.now_ms());
            self.pool().connections.update(|count| count - 1);
        }
        self.give_slot_back();
        context.outbound.workers.set(context.outbound.workers.get() - 1);
        context.stop_if_drained();
    }
}

impl Worker {
    async fn run(&self) {
        let (opened, began_ms) = (self.context.net.now(), self.context.now_ms());
        let mut link = match Link::open(&self.context, self.next_hop).await {
            Ok(link) => link,
            Err(lost) => return self.unreachable(&lost, began_ms),
        };
        self.context.metrics.next_hop_connections.opened.increment(1);
        self.context.metrics.next_hop_open.increment(1.0);
        self.is_open.set(true);
        self.state().opened(self.context.now_ms());
        self.pool().connections.update(|count| count + 1);
        if self.state().state.reached() {
            stderr::say(format_args!("next hop {} can be reached again", self.state().name));
        }
        // Others may have waited for that.
        pump_next_hop(&self.context, self.next_hop);
        loop {
            while let Some(job) = self.job.get() {
                if !self.attempt(&mut link, job).await {
                    return;
                }
                let is_old = self.context.net.now() - opened > Duration::from_millis(NEXT_HOP_CONNECTION_AGE_MS);
                let ends = is_old || self.gives_way();
                self.job.set(if ends { None } else { next_job(&self.context, self.next_hop) });
                if ends {
                    return link.quit().await;
                }
            }
            if !self.idle(&mut link).await {
                return link.quit().await;
            }
        }
    }

    fn state(&self) -> &NextHop {
        self.context.shared.next_hop(self.next_hop)
    }

    fn pool(&self) -> &Pool {
        &self.context.outbound.pools[self.next_hop.index()]
    }

    /// Whether this connection ends because a shard that has none wants its place, which this
    /// shard leaves free until that one has tried again.
    fn gives_way(&self) -> bool {
        let (pool, now_ms) = (self.pool(), self.context.now_ms());
        let gives_way = now_ms >= pool.gave_way_until_ms.get() && self.state().take_request();
        if gives_way {
            let until_ms = now_ms + 2 * NEXT_HOP_CROWDED_MS;
            pool.gave_way_until_ms.set(until_ms);
            pool.crowded_until_ms.set(until_ms);
        }
        gives_way
    }

    fn give_slot_back(&self) {
        if self.has_slot.replace(false) {
            give_slot_back(&self.context, self.next_hop);
        }
    }

    /// Waits for the next job without a slot. False: none came.
    async fn idle(&self, link: &mut Link) -> bool {
        let seat = Rc::new(Seat { job: Cell::new(None), nudge: link.nudge() });
        let pool = self.pool();
        // In the pool first: what waits for the slot may be for this connection.
        pool.idle.borrow_mut().push(seat.clone());
        self.give_slot_back();
        let last = self.context.net.now() + Duration::from_millis(NEXT_HOP_IDLE_MS);
        // Other shards have no nudge for this one.
        let look_again = Duration::from_millis(NEXT_HOP_CROWDED_MS);
        let mut usable = true;
        while seat.job.get().is_none() {
            let left = last.saturating_duration_since(self.context.net.now());
            let may_wait = !left.is_zero() && self.context.shared.stage() == Life::Serving && !self.gives_way();
            usable = may_wait && !matches!(link.idle(left.min(look_again)).await, Idle::Over);
            if !usable {
                break;
            }
        }
        pool.idle.borrow_mut().retain(|other| !Rc::ptr_eq(other, &seat));
        let job = seat.job.take();
        self.has_slot.set(job.is_some());
        match job {
            Some(job) if usable => {
                self.job.set(Some(job));
                true
            }
            Some(job) => {
                // It was given at the very moment that the connection ended.
                self.context.outbound.schedule.borrow_mut().put_back(job);
                false
            }
            None => false,
        }
    }

    /// The next hop could not be reached: its mail waits, and no attempt is counted.
    fn unreachable(&self, lost: &Lost, began_ms: u64) {
        let context = &self.context;
        if matches!(lost, Lost::Ending) {
            self.job.set(None);
            return;
        }
        context.metrics.next_hop_connections.failed.increment(1);
        let state = self.state();
        let is_up = state.availability(context.now_ms()) == Availability::Up;
        let is_refused = matches!(lost, Lost::Dialogue(failure) if failure.is_refusal_for_now());
        // Another connection, begun later, got its hello answered: what befalls this one is old news.
        let is_late = matches!(lost, Lost::Dialogue(_)) && state.was_opened_after(began_ms);
        let (pool, now_ms) = (self.pool(), context.now_ms());
        // A next hop that refuses this connection while others work, or did a moment ago, has
        // enough of them, if only of another shard's idle ones: it is busy, not down.
        if is_up && is_refused && state.is_connected(now_ms) {
            // Once for all attempts that are refused together.
            if pool.connections.get() == 0 && pool.crowded_until_ms.get() <= now_ms {
                state.ask_for_connection();
            }
            pool.crowded_until_ms.set(pool.crowded_until_ms.get().max(now_ms + NEXT_HOP_CROWDED_MS));
        } else if is_up && (lost.is_our_shortage() || (is_late && !is_refused)) {
            pool.crowded_until_ms.set(now_ms + NEXT_HOP_CROWDED_MS);
        } else {
            self.report_unreachable(lost);
        }
        let Some(job) = self.job.take() else { return };
        let mut schedule = context.outbound.schedule.borrow_mut();
        schedule.put_back(job);
        if has_next_hop_up(context, job.lane) {
            return;
        }
        // A session does not wait for a next hop that is down.
        settle::acknowledge(schedule.cool(job.message), &context.metrics.ack_delays.next_hop_down);
    }

    /// Takes the next hop down, or says that its probe failed; the first that does tells why.
    fn report_unreachable(&self, reason: &dyn fmt::Display) {
        let (context, state) = (&self.context, self.state());
        if state.state.unreachable(context.now_ms(), &context.backoff(), context.outbound.random()) {
            stderr::say(format_args!(
                "next hop {} cannot be reached: {reason}; its mail waits in the queue",
                state.name
            ));
        }
    }

    /// Tries to deliver a job. False: the connection is of no more use.
    async fn attempt(&self, link: &mut Link, job: Job) -> bool {
        if settle::is_expired(&self.context, job) {
            self.job.set(None);
            settle::expire(&self.context, job).await;
            return true;
        }
        let subject = match self.subject(job).await {
            Ok(Some(subject)) => subject,
            Ok(None) => {
                self.job.set(None);
                return true;
            }
            Err(reason) => {
                self.job.set(None);
                settle::unreadable(&self.context, job, reason);
                return true;
            }
        };
        let transactions = &self.context.metrics.next_hop_transactions;
        let is_reused = self.has_served.get();
        if is_reused {
            transactions.reused.increment(1)
        } else {
            transactions.new.increment(1)
        }
        let good = self.transact(link, job, &subject).await;
        self.context.metrics.delivery_seconds.record(subject.began.elapsed().as_secs_f64());
        good
    }

    /// The job's message, from memory or read back.
    async fn subject(&self, job: Job) -> Result<Option<Subject>, Unreadable> {
        let (id, octets, location, hot) = {
            let schedule = self.context.outbound.schedule.borrow();
            let Some(message) = schedule.message(job.message) else { return Ok(None) };
            (message.id, message.octets, message.location, message.hot.clone())
        };
        let content = match hot {
            Some(content) => content,
            None => Rc::new(Content::read(&self.context, id, location).await?),
        };
        Ok(Some(Subject { id, octets, content, began: Instant::now() }))
    }

    async fn transact(&self, link: &mut Link, job: Job, subject: &Subject) -> bool {
        let context = &self.context;
        let content = &*subject.content;
        let places: Vec<u32> = pending_places(context, job, content).take(TRANSACTION_RECIPIENTS_MAX).collect();
        let Some(envelope) = StoredEnvelope::decode(&content.envelope) else {
            self.job.set(None);
            settle::unreadable(context, job, Unreadable::Damaged);
            return true;
        };
        if places.is_empty() {
            self.job.set(None);
            settle::conclude(context, job, content, &[], &[]);
            return true;
        }
        let eight_bit = match self.has_eight_bit(link, &envelope, subject).await {
            Ok(eight_bit) => eight_bit,
            Err(reason) => {
                self.job.set(None);
                settle::unreadable(context, job, reason);
                return true;
            }
        };
        let begun = {
            let mut wanted = places.iter().copied().peekable();
            let recipients: Vec<Recipient<'_>> = (0_u32..)
                .zip(envelope.recipients())
                .filter(|(place, _)| wanted.next_if_eq(place).is_some())
                .map(|(_, recipient)| Recipient {
                    path: recipient.path,
                    notify: recipient.notify,
                    orcpt: recipient.orcpt,
                })
                .collect();
            link.begin(&Transaction {
                reverse_path: envelope.reverse_path(),
                octets: subject.octets,
                body_type: envelope.body_type(),
                eight_bit,
                ret: envelope.ret(),
                envid: envelope.envid(),
                auth: envelope.auth(),
                recipients: &recipients,
            })
        };
        if let Err(unsendable) = begun {
            self.job.set(None);
            settle::give_up(context, job, content, Status::Failed, &unsendable.answer());
            return true;
        }
        let lost = loop {
            match link.turn().await {
                Event::SendBody => {
                    if let Err(lost) = self.send_body(link, subject).await {
                        break Some(lost);
                    }
                }
                Event::Answered => break None,
                Event::Lost(lost) => break Some(lost),
                Event::Ready | Event::Nudged | Event::StartTls => {}
            }
        };
        self.finish(link, job, subject, &places, lost)
    }

    /// Counts and records what an attempt came to.
    fn tell(&self, link: &mut Link, job: Job, subject: &Subject, places: &[u32], of: &[Disposition], is_lost: bool) {
        self.context.metrics.count_attempt(of, is_lost);
        let attempt = Attempt {
            id: subject.id,
            octets: subject.octets,
            envelope: &subject.content.envelope,
            relay: Some((&self.state().name, link.address())),
            tls: link.tls_parameters(),
            duration: subject.began.elapsed(),
            attempts: job.attempts + 1,
        };
        self.context.records.attempted(&attempt, places, of, link.session().acceptance());
    }

    /// The transaction is over, one way or the other.
    fn finish(&self, link: &mut Link, job: Job, subject: &Subject, places: &[u32], lost: Option<Lost>) -> bool {
        let (context, content) = (&self.context, &*subject.content);
        self.job.set(None);
        let Some(lost) = lost else {
            self.has_served.set(true);
            self.state().state.answered();
            let dispositions = link.session().take_dispositions();
            self.tell(link, job, subject, places, &dispositions, false);
            settle::conclude(context, job, content, places, &dispositions);
            return !link.session().must_close();
        };
        let failure = match &lost {
            Lost::Dialogue(failure) => failure,
            Lost::Content(_) => {
                let dispositions = link.session().take_dispositions();
                self.tell(link, job, subject, places, &dispositions, true);
                settle::conclude(context, job, content, places, &dispositions);
                return false;
            }
            // The process ends: the message stays in the queue.
            _ => return false,
        };
        // A next hop may end a connection between two messages. When that crosses with the next
        // one, the message was not tried.
        let is_stale = self.has_served.get()
            && matches!(failure.stage, Stage::Idle | Stage::Mail)
            && matches!(&failure.cause, Cause::Closed | Cause::Refused(_));
        if is_stale {
            context.outbound.schedule.borrow_mut().put_back(job);
            return false;
        }
        if failure.maybe_delivered() {
            context.metrics.possible_duplicates.next_hop_silent.increment(1);
        }
        let state = self.state();
        if state.state.disturbed(context.now_ms(), &context.backoff(), context.outbound.random()) {
            stderr::say(format_args!(
                "next hop {} breaks its dialogues: {lost}; its mail waits in the queue",
                state.name
            ));
        }
        let dispositions = link.session().take_dispositions();
        self.tell(link, job, subject, places, &dispositions, true);
        settle::conclude(context, job, content, places, &dispositions);
        false
    }

    /// Whether the content has octets above 127; looked at only where it matters.
    async fn has_eight_bit(
        &self,
        link: &mut Link,
        envelope: &StoredEnvelope<'_>,
        subject: &Subject,
    ) -> Result<bool, Unreadable> {
        if link.session().capabilities().eight_bit_mime || envelope.body_type() != BodyType::EightBitMime {
            return Ok(true);
        }
        match &subject.content.body {
            Body::Memory(octets, range) => Ok(!octets[range.clone()].is_ascii()),
            Body::Spilled { .. } => {
                let mut spill = self.context.storage.open_spill(subject.id).await.map_err(Unreadable::Io)?;
                let mut found = Ok(false);
                loop {
                    match spill.next().await {
                        Ok(piece) if piece.is_empty() => break,
                        Ok(piece) if piece.is_ascii() => {}
                        Ok(_) => {
                            found = Ok(true);
                            break;
                        }
                        Err(error) => {
                            found = Err(Unreadable::Io(error));
                            break;
                        }
                    }
                }
                spill.close().await;
                found
            }
        }
    }

    /// Sends the content. What cannot be read to its end is not ended: the connection is dropped.
    async fn send_body(&self, link: &mut Link, subject: &Subject) -> Result<(), Lost> {
        match &subject.content.body {
            Body::Memory(octets, range) => {
                for (number, piece) in octets[range.clone()].chunks(READ_MAX_OCTETS).enumerate() {
                    if number > 0 {
                        link.check_silence()?;
                    }
                    link.session().body(piece);
                    link.flush().await?;
                }
            }
            Body::Spilled { crc } => {
                let mut spill = match self.context.storage.open_spill(subject.id).await {
                    Ok(spill) => spill,
                    Err(error) => return Err(self.cut_off(link, subject, &error.to_string())),
                };
                let sent = self.send_spill(link, subject, &mut spill, *crc).await;
                spill.close().await;
                sent?;
            }
        }
        let now = self.context.net.now();
        link.session().body_end(now);
        Ok(())
    }

    async fn send_spill(
        &self,
        link: &mut Link,
        subject: &Subject,
        spill: &mut SpillReader,
        crc: u32,
    ) -> Result<(), Lost> {
        let mut sum = 0;
        let mut left = subject.octets;
        loop {
            let piece = match spill.next().await {
                Ok(piece) => piece,
                Err(error) => return Err(self.cut_off(link, subject, &error.to_string())),
            };
            left = left.saturating_sub(piece.len() as u64);
            sum = crc32c::crc32c_append(sum, &piece);
            let is_last = piece.is_empty() || left == 0;
            if is_last && (sum != crc || left > 0) {
                return Err(self.cut_off(link, subject, "it is damaged"));
            }
            link.check_silence()?;
            link.session().body(&piece);
            link.flush().await?;
            if is_last {
                return Ok(());
            }
        }
    }

    fn cut_off(&self, link: &mut Link, subject: &Subject, reason: &str) -> Lost {
        stderr::say(format_args!("message {}: its spill file cannot be read: {reason}; it is kept", subject.id));
        // Defers the recipients.
        let _ = link.session().handle_end();
        Lost::Content(reason.to_owned())
    }
}
