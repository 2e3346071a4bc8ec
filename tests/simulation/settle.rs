//! What an attempt came to, and how that is written down: the steps of `shard::outbound::settle` and
//! `recorder`.

use crate::process::Content;
use crate::world::World;
use gatepost::delivery::{RouteId, recipient_domain};
use gatepost::limits::OUTCOMES_AGAIN_MS;
use gatepost::queue::outcome::{NewOutcome, Settled, Settles, Status};
use gatepost::queue::schedule::{Job, MessageKey};
use gatepost::queue::spool::BatchNumber;
use gatepost::queue::stored::StoredEnvelope;
use gatepost::smtp::client::{Answer, Disposition};
use std::time::Duration;

/// An outcome that is not on stable storage yet.
pub struct Unrecorded {
    batch: BatchNumber,
    message: MessageKey,
    settlement: Settlement,
    /// A segment that must stay until then.
    holds: Option<u64>,
}

/// Whom it settles.
pub enum Settlement {
    Rest(Status, String),
    These(Vec<Settled<String>>),
}

impl Settlement {
    /// What it says of each place, of so many.
    pub fn places(&self, recipients: usize) -> Vec<(usize, Status)> {
        match self {
            Settlement::Rest(status, _) => (0..recipients).map(|place| (place, *status)).collect(),
            Settlement::These(settled) => settled.iter().map(|one| (one.recipient as usize, one.status)).collect(),
        }
    }
}

impl World {
    /// The places in the envelope of a job's recipients that are still pending.
    pub fn pending_places(&mut self, job: Job, content: &Content) -> Vec<u32> {
        let envelope = StoredEnvelope::decode(&content.envelope).unwrap_or_default();
        let (routes, lane) = (self.routes.clone(), RouteId::from_number(job.lane));
        let Some(message) = self.process().schedule.message(job.message) else { return Vec::new() };
        (0_u32..)
            .zip(envelope.recipients())
            .filter(|(place, recipient)| {
                message.status(*place as usize) == Status::Pending
                    && routes.route(recipient_domain(recipient.path)) == Some(lane)
            })
            .map(|(place, _)| place)
            .collect()
    }

    /// What became of a transaction.
    pub fn conclude(&mut self, job: Job, places: &[u32], dispositions: &[Disposition]) {
        let mut settled = Vec::new();
        let (mut delivered, mut deferred, mut at_once) = (0, 0, false);
        for (&recipient, disposition) in places.iter().zip(dispositions) {
            match disposition {
                Disposition::Delivered => {
                    delivered += 1;
                    settled.push(Settled { recipient, status: Status::Delivered, reply: String::new() });
                }
                Disposition::Failed(answer) => {
                    settled.push(Settled { recipient, status: Status::Failed, reply: line(answer) });
                }
                Disposition::Deferred(_) => deferred += 1,
                Disposition::TooMany(_) => {
                    deferred += 1;
                    at_once = true;
                }
            }
        }
        self.settle(job, settled);
        if deferred == 0 {
            self.end(job);
        } else if at_once && delivered > 0 {
            self.process().schedule.put_back(job);
        } else {
            self.defer(job);
        }
    }

    /// Settles recipients in memory and in the spool.
    fn settle(&mut self, job: Job, settled: Vec<Settled<String>>) {
        if settled.is_empty() {
            return;
        }
        let process = self.process();
        process.schedule.settle(job.message, &settled);
        let Some(message) = process.schedule.message(job.message) else { return };
        let is_whole = settled.len() == message.recipients as usize;
        let same = settled.iter().all(|one| one.status == settled[0].status && one.reply == settled[0].reply);
        let settlement = if is_whole && same {
            Settlement::Rest(settled[0].status, settled[0].reply.clone())
        } else {
            Settlement::These(settled)
        };
        self.write(job.message, settlement, None);
    }

    fn end(&mut self, job: Job) {
        let finished = self.process().schedule.end(job);
        self.release(finished);
    }

    /// Lets a job wait before its next attempt, but not beyond its message's lifetime.
    pub fn defer(&mut self, job: Job) {
        let (random, unix_ms, now_ms) = (self.random.next(), self.unix_ms(), self.now_ms);
        let (lifetime, backoff) = (self.settings.lifetime, self.settings.backoff);
        let process = self.process();
        process.schedule.cool(job.message);
        let Some(message) = process.schedule.message(job.message) else { return };
        let age = Duration::from_millis(unix_ms.saturating_sub(message.arrived_unix_ms()));
        let left = lifetime.saturating_sub(age);
        let wait = backoff.delay(u32::from(job.attempts) + 1, random);
        let wait = if left.is_zero() { wait } else { wait.min(left) };
        process.schedule.defer(job, now_ms + wait.as_millis() as u64);
        self.wake_keeper(wait.as_millis() as u64);
    }

    /// Settles the recipients of a job whose message is too old.
    pub fn expire(&mut self, job: Job) {
        let Some(content) = self.content(job) else { return };
        let reply = line(&Answer::new(451, b"4.4.7 too old"));
        let places = self.pending_places(job, &content);
        let settled =
            places.into_iter().map(|recipient| Settled { recipient, status: Status::Expired, reply: reply.clone() });
        self.settle(job, settled.collect());
        self.end(job);
    }

    /// Puts an outcome into the spool's next batch. Until it is on stable storage it holds this segment.
    pub fn write(&mut self, message: MessageKey, settlement: Settlement, holds: Option<u64>) {
        let unix_ms = self.unix_ms();
        let process = self.process();
        let Some(id) = process.schedule.message(message).map(|message| message.id) else { return };
        let settles = match &settlement {
            Settlement::Rest(status, reply) => Settles::Rest(*status, reply.clone()),
            Settlement::These(settled) => Settles::These(settled),
        };
        let (batch, generation) = process.spool.append_outcome(&NewOutcome { id, unix_ms, settles });
        process.schedule.outcome_is_in(message, generation);
        process.unrecorded.push_back(Unrecorded { batch, message, settlement, holds });
        self.commit();
    }

    /// Writes outcomes again whose batch failed.
    pub fn write_lost(&mut self) {
        for Unrecorded { message, settlement, holds, .. } in std::mem::take(&mut self.process().lost) {
            self.write(message, settlement, holds);
        }
    }

    /// Outcomes up to this batch are on stable storage.
    pub fn outcomes_are_synced(&mut self, batch: BatchNumber) {
        while let Some(outcome) = self.process().unrecorded.pop_front_if(|outcome| outcome.batch <= batch) {
            if let Some(generation) = outcome.holds {
                self.process().schedule.unhold(generation);
            }
            let Some(message) = self.process().schedule.message(outcome.message) else { continue };
            let (id, recipients) = (message.id, message.recipients as usize);
            for (place, status) in outcome.settlement.places(recipients) {
                self.judge.recorded(id, place, status);
            }
            self.note(|| format!("an outcome of {id} is recorded"));
            let finished = self.process().schedule.recorded(outcome.message);
            self.release(finished);
        }
    }

    /// These batches are lost, and the outcomes in them.
    pub fn outcomes_are_lost(&mut self, batches: &[BatchNumber]) {
        let now_ms = self.now_ms;
        let process = self.process();
        let (lost, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut process.unrecorded).into_iter().partition(|outcome| batches.contains(&outcome.batch));
        process.unrecorded = kept.into();
        process.lost.extend(lost);
        process.lost_until_ms = now_ms + OUTCOMES_AGAIN_MS;
        self.wake_keeper(OUTCOMES_AGAIN_MS);
    }
}

fn line(answer: &Answer) -> String {
    format!("{} {}", answer.code, answer.text)
}
