//! What an attempt came to: outcomes, retries, and the verdict for a session that waits.

use super::content::{Content, Unreadable};
use super::notice::Notice;
use super::recorder::{Said, Settlement, release, write};
use super::{Context, show_queue};
use crate::delivery::{RouteId, expired, recipient_domain};
use crate::limits::TRANSACTION_RECIPIENTS_MAX;
use crate::log::Event;
use crate::queue::outcome::{Settled, Status};
use crate::queue::schedule::Job;
use crate::queue::stored::StoredEnvelope;
use crate::shard::records::Attempt;
use crate::smtp::client::{Answer, Disposition};
use crate::stderr;
use metrics::Counter;
use std::rc::Rc;
use std::time::Duration;

/// What became of a transaction: one disposition for each of these places in the envelope.
pub fn conclude(context: &Rc<Context>, job: Job, content: &Content, places: &[u32], dispositions: &[Disposition]) {
    let mut settled = Vec::new();
    let (mut delivered, mut failed, mut deferred, mut at_once) = (0_u32, 0_u32, 0_u32, false);
    let notice = content.notice.borrow().clone().filter(|notice| notice.is_waiting());
    for (&place, disposition) in places.iter().zip(dispositions) {
        match disposition {
            Disposition::Delivered => {
                delivered += 1;
                settled.push(Settled { recipient: place, status: Status::Delivered, reply: Said::default() });
            }
            Disposition::Failed(answer) => {
                failed += 1;
                if let Some(notice) = &notice {
                    notice.refused(place, || answer.passed_on());
                }
                let reply = Said::line(answer);
                settled.push(Settled { recipient: place, status: Status::Failed, reply });
            }
            Disposition::Deferred(_) => deferred += 1,
            Disposition::TooMany(_) => {
                deferred += 1;
                at_once = true;
            }
        }
    }
    let metrics = &context.metrics.recipients;
    metrics.delivered.increment(u64::from(delivered));
    metrics.failed.increment(u64::from(failed));
    metrics.deferred.increment(u64::from(deferred));
    let more = places.len() == TRANSACTION_RECIPIENTS_MAX
        && pending_places(context, job, content).nth(TRANSACTION_RECIPIENTS_MAX).is_some();
    if delivered > 0
        && let Some(message) = context.outbound.schedule.borrow().message(job.message)
    {
        let age_ms = context.unix_ms().saturating_sub(message.arrived_unix_ms());
        context.metrics.delivery_delay_seconds.record(Duration::from_millis(age_ms).as_secs_f64());
    }
    settle(context, job, settled, deferred > 0 || more, notice);
    if deferred == 0 && !more {
        end(context, job);
    } else if (at_once || more) && delivered > 0 {
        // The next hop takes only so many at once: the rest is sent in the next transaction.
        context.outbound.schedule.borrow_mut().put_back(job);
    } else {
        defer(context, job);
    }
}

/// The places in the envelope of a job's recipients that are still pending.
pub fn pending_places<'a>(context: &'a Context, job: Job, content: &'a Content) -> impl Iterator<Item = u32> + 'a {
    let envelope = StoredEnvelope::decode(&content.envelope).unwrap_or_default();
    let routes = &context.outbound.routes;
    let lane = RouteId::from_number(job.lane);
    (0_u32..).zip(envelope.recipients()).filter_map(move |(place, recipient)| {
        let schedule = context.outbound.schedule.borrow();
        let is_pending = schedule.message(job.message)?.status(place as usize) == Status::Pending;
        (is_pending && routes.route(recipient_domain(recipient.path)) == Some(lane)).then_some(place)
    })
}

/// Settles recipients in memory and in the spool; `pending`: others of the job are not settled.
fn settle(context: &Rc<Context>, job: Job, settled: Vec<Settled<Said>>, pending: bool, notice: Option<Rc<Notice>>) {
    let key = job.message;
    if let (true, Some(notice)) = (pending, &notice) {
        // One of them must be tried again: that is the queue's business, and the client need not
        // wait for it.
        notice.accept();
        context.metrics.ack_delays.deferred.increment(1);
    }
    if settled.is_empty() {
        return;
    }
    let (all_settled, all_refused, is_whole) = {
        let mut schedule = context.outbound.schedule.borrow_mut();
        schedule.settle(key, &settled);
        let Some(message) = schedule.message(key) else { return };
        let all = |status| (0..message.recipients as usize).all(|place| message.status(place) == status);
        let has_pending = (0..message.recipients as usize).any(|place| message.status(place) == Status::Pending);
        (!has_pending, all(Status::Failed), settled.len() == message.recipients as usize)
    };
    if let Some(notice) = notice.filter(|notice| all_settled && notice.is_waiting()) {
        if all_refused && notice.withdraw() {
            context.metrics.ack_delays.refused.increment(1);
            context.outbound.schedule.borrow_mut().withdraw(key);
            let last = settled.last().map_or(Said::default(), |last| last.reply.clone());
            return write(context, key, Settlement::Rest(Status::Withdrawn, last), Some(notice));
        }
        context.metrics.ack_delays.delivered.increment(1);
        notice.accept();
    }
    let same = settled.iter().all(|one| one.status == settled[0].status && one.reply == settled[0].reply);
    let settlement = if is_whole && same {
        Settlement::Rest(settled[0].status, settled[0].reply.clone())
    } else {
        Settlement::These(settled)
    };
    write(context, key, settlement, None);
}

fn end(context: &Rc<Context>, job: Job) {
    let finished = context.outbound.schedule.borrow_mut().end(job);
    release(context, finished);
    show_queue(context);
}

/// A session that waits for this message's delivery waits no longer, for this reason.
pub fn acknowledge(content: Option<Rc<Content>>, reason: &Counter) {
    let notice = content.and_then(|content| content.notice.take());
    if let Some(notice) = notice.filter(|notice| notice.is_waiting()) {
        reason.increment(1);
        notice.accept();
    }
}

/// Lets a job wait before its next attempt, but not beyond its message's lifetime. What is older
/// and could not be given up waits like the rest. A session waits no longer.
pub fn defer(context: &Context, job: Job) {
    let outbound = &context.outbound;
    let current = context.current();
    let delivery = &current.config.delivery;
    let random = outbound.random();
    let mut schedule = outbound.schedule.borrow_mut();
    // What is read back for the next attempt need not wait in memory.
    acknowledge(schedule.cool(job.message), &context.metrics.ack_delays.deferred);
    let Some(message) = schedule.message(job.message) else { return };
    let age = Duration::from_millis(context.unix_ms().saturating_sub(message.arrived_unix_ms()));
    let left = delivery.queue_lifetime.saturating_sub(age);
    let wait = delivery.backoff().delay(u32::from(job.attempts) + 1, random);
    let wait = if left.is_zero() { wait } else { wait.min(left) };
    schedule.defer(job, context.now_ms() + wait.as_millis() as u64);
    drop(schedule);
    show_queue(context);
    outbound.wake_keeper();
}

/// Settles what is left of a job for good, with this status and reply.
pub fn give_up(context: &Rc<Context>, job: Job, content: &Content, status: Status, reply: &Answer) {
    let said = Said::line(reply);
    let notice = content.notice.borrow().clone().filter(|notice| notice.is_waiting());
    let settled: Vec<Settled<Said>> = pending_places(context, job, content)
        .map(|recipient| {
            if let Some(notice) = &notice {
                notice.refused(recipient, || reply.passed_on());
            }
            Settled { recipient, status, reply: said.clone() }
        })
        .collect();
    let metrics = &context.metrics.recipients;
    let counter = if status == Status::Expired { &metrics.expired } else { &metrics.failed };
    counter.increment(settled.len() as u64);
    tell(context, job, content, &settled, status, reply);
    settle(context, job, settled, false, notice);
    end(context, job);
}

/// Records that these recipients were given up, without a transaction.
fn tell(context: &Context, job: Job, content: &Content, settled: &[Settled<Said>], status: Status, reply: &Answer) {
    let schedule = context.outbound.schedule.borrow();
    let Some(message) = schedule.message(job.message) else { return };
    let attempt = Attempt {
        id: message.id,
        octets: message.octets,
        envelope: &content.envelope,
        relay: None,
        tls: None,
        duration: Duration::ZERO,
        attempts: job.attempts,
    };
    let places: Vec<u32> = settled.iter().map(|one| one.recipient).collect();
    let event = if status == Status::Expired { Event::Expired } else { Event::Failed };
    context.records.settled(event, &attempt, &places, Some(reply));
}

/// Settles the recipients of a job whose message is too old.
pub async fn expire(context: &Rc<Context>, job: Job) {
    let at_hand = {
        let schedule = context.outbound.schedule.borrow();
        let Some(message) = schedule.message(job.message) else { return };
        match &message.hot {
            Some(content) => Ok(content.clone()),
            None => Err((message.id, message.location)),
        }
    };
    let content = match at_hand {
        Ok(content) => content,
        Err((id, location)) => match Content::read(context, id, location).await {
            Ok(content) => Rc::new(content),
            Err(reason) => return unreadable(context, job, reason),
        },
    };
    // RFC 3463 section 3.5: X.4.7, delivery time expired.
    let reply = Answer::new(451, b"4.4.7 The next hop did not take this message within the queue's lifetime");
    give_up(context, job, &content, Status::Expired, &reply);
}

/// Whether a job's message is too old to be tried.
pub fn is_expired(context: &Context, job: Job) -> bool {
    let schedule = context.outbound.schedule.borrow();
    let arrived_ms = schedule.message(job.message).map(|message| message.arrived_unix_ms());
    let lifetime = context.current().config.delivery.queue_lifetime;
    arrived_ms.is_some_and(|arrived_ms| expired(arrived_ms, context.unix_ms(), lifetime))
}

/// A message could not be read back: it is tried again, but given up where it is damaged. Then it
/// stays in the queue as undeliverable.
pub fn unreadable(context: &Rc<Context>, job: Job, reason: Unreadable) {
    let (id, pending) = {
        let schedule = context.outbound.schedule.borrow();
        let Some(message) = schedule.message(job.message) else { return };
        let pending = (0..message.recipients).filter(|place| message.status(*place as usize) == Status::Pending);
        (message.id, pending.collect::<Vec<_>>())
    };
    if let Unreadable::Io(error) = reason {
        stderr::say(format_args!("message {id} cannot be read back: {error}; it is tried again"));
        return defer(context, job);
    }
    stderr::say(format_args!("message {id} is damaged in the spool; it is not tried any more, and kept as it is"));
    // RFC 3463 section 3.4: X.3.0, a mail system's fault that is not further known.
    let said = Said::line(&Answer::new(554, b"5.3.0 The message was damaged on this server"));
    let settled: Vec<Settled<Said>> = pending
        .into_iter()
        .map(|recipient| Settled { recipient, status: Status::Failed, reply: said.clone() })
        .collect();
    context.metrics.damage.increment(1);
    context.metrics.recipients.failed.increment(settled.len() as u64);
    let waits = context.outbound.schedule.borrow_mut().cool(job.message);
    acknowledge(waits, &context.metrics.ack_delays.deferred);
    settle(context, job, settled, false, None);
    end(context, job);
}
