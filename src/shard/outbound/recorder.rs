//! Outcomes on their way to the spool, and what follows once they are there.
//!
//! A settled recipient is settled in memory at once, and nothing is sent to it again while this
//! process lives. Its outcome goes into the spool's next batch; should the process end before that
//! batch is on stable storage, the message is delivered once more: the one window for duplicates
//! on this side. Outcomes whose batch failed are written again until storage works.

use super::notice::Notice;
use super::{Context, Hold, show_queue};
use crate::limits::OUTCOMES_AGAIN_MS;
use crate::queue::outcome::{NewOutcome, Settled, Settles, Status};
use crate::queue::schedule::{Finished, MessageKey};
use crate::queue::spool::BatchNumber;
use crate::shard::storage::Watcher;
use crate::smtp::client::Answer;
use std::rc::{Rc, Weak};

/// A stored reply; none for a delivered recipient.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(Option<Rc<str>>);

impl Said {
    /// Owns what a stored outcome says.
    pub fn settled(one: Settled<&str>) -> Settled<Self> {
        let reply = Said((!one.reply.is_empty()).then(|| one.reply.into()));
        Settled { recipient: one.recipient, status: one.status, reply }
    }

    /// The line of an answer.
    pub fn line(answer: &Answer) -> Self {
        Said(Some(format!("{} {}", answer.code, answer.text).into()))
    }
}

impl AsRef<str> for Said {
    fn as_ref(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

/// An outcome that is not on stable storage yet.
pub struct Unrecorded {
    batch: BatchNumber,
    message: MessageKey,
    settlement: Settlement,
    /// The session that is told when the message is withdrawn.
    withdraws: Option<Rc<Notice>>,
    /// A segment that must stay until then.
    hold: Option<Rc<Hold>>,
}

/// Whom an outcome settles: [`Settles`] that owns what it says.
pub enum Settlement {
    /// All recipients that are not settled yet.
    Rest(Status, Said),
    /// These.
    These(Vec<Settled<Said>>),
}

/// Makes outcomes count once they are on stable storage.
pub struct Recorder(pub Weak<Context>);

impl Watcher for Recorder {
    fn segment_made(&self, generation: u64, octets: u64, voids: Option<u64>) {
        let Some(context) = self.0.upgrade() else { return };
        context.outbound.schedule.borrow_mut().segment_is_made(generation, octets, voids);
        // There is one more: an old one may have to go.
        context.outbound.wake_keeper();
    }

    fn synced(&self, batch: BatchNumber) {
        let Some(context) = self.0.upgrade() else { return };
        let outbound = &context.outbound;
        loop {
            let next = outbound.unrecorded.borrow_mut().pop_front_if(|outcome| outcome.batch <= batch);
            let Some(outcome) = next else { return };
            if let Some(notice) = outcome.withdraws {
                notice.withdrawn();
            }
            let finished = outbound.schedule.borrow_mut().recorded(outcome.message);
            release(&context, finished);
        }
    }

    fn failed(&self, batches: &[BatchNumber]) {
        let Some(context) = self.0.upgrade() else { return };
        let outbound = &context.outbound;
        let mut lost = outbound.lost.borrow_mut();
        let mut kept = outbound.unrecorded.take();
        while let Some(at) = kept.iter().position(|outcome| batches.contains(&outcome.batch)) {
            let Some(mut outcome) = kept.remove(at) else { break };
            if let Some(notice) = outcome.withdraws.take() {
                // Octets of a batch that failed may be on the disk all the same: after a 250 the
                // next start would find the message withdrawn, and it would be lost. After the
                // refusal the worst is a second attempt, should the process end before the
                // withdrawal is written again.
                notice.withdrawn();
            }
            lost.push(outcome);
        }
        outbound.unrecorded.replace(kept);
        outbound.lost_until_ms.set(context.now_ms() + OUTCOMES_AGAIN_MS);
        outbound.wake_keeper();
    }
}

/// Writes outcomes again whose batch failed, once storage may work.
pub fn write_lost_if_due(context: &Context) {
    let outbound = &context.outbound;
    if context.now_ms() >= outbound.lost_until_ms.get() {
        write_lost(context);
    }
}

/// Writes them now: at the end of the process there is no later.
pub fn write_lost(context: &Context) {
    for lost in context.outbound.lost.take() {
        append(context, lost.message, lost.settlement, None, lost.hold);
    }
}

/// Gives back what a finished message took.
pub fn release(context: &Rc<Context>, finished: Option<Finished>) {
    let Some(finished) = finished else { return };
    context.metrics.queue_messages.decrement(1.0);
    context.metrics.queue_bytes.decrement(finished.octets as f64);
    if finished.spilled {
        let storage = context.storage.clone();
        context.net.spawn(async move { storage.remove_spill(finished.id).await });
    }
    if finished.emptied_segment {
        context.outbound.wake_keeper();
    }
    show_queue(context);
}

/// Puts an outcome into the spool's next batch. `withdraws`: who is told when it is there.
pub fn write(context: &Context, message: MessageKey, settlement: Settlement, withdraws: Option<Rc<Notice>>) {
    append(context, message, settlement, withdraws, None);
}

/// Puts what is known already into the spool's next batch, of a message whose place is another now.
pub fn write_again(context: &Context, message: MessageKey, settlement: Settlement, hold: Rc<Hold>) {
    append(context, message, settlement, None, Some(hold));
}

fn append(
    context: &Context,
    message: MessageKey,
    settlement: Settlement,
    withdraws: Option<Rc<Notice>>,
    hold: Option<Rc<Hold>>,
) {
    let outbound = &context.outbound;
    let mut schedule = outbound.schedule.borrow_mut();
    let Some(id) = schedule.message(message).map(|message| message.id) else { return };
    let settles = match &settlement {
        Settlement::Rest(status, said) => Settles::Rest(*status, said.clone()),
        Settlement::These(settled) => Settles::These(settled),
    };
    let outcome = NewOutcome { id, unix_ms: context.unix_ms(), settles };
    let (batch, generation) = context.storage.append_outcome(&outcome);
    schedule.outcome_is_in(message, generation);
    outbound.unrecorded.borrow_mut().push_back(Unrecorded { batch, message, settlement, withdraws, hold });
}
