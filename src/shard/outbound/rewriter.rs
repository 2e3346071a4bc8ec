//! Writes the live records of the oldest segment again, so that it can go: what keeps the spool
//! within its bound (see `queue::schedule`).
//!
//! A little at a time, each time waiting until it is on stable storage: new mail goes into the same
//! batches and is not kept waiting. On failure, and where the process drains, what was not written
//! stays where it is; the keeper begins again after a while. A record that is damaged is put aside.

use super::content::{Content, Unreadable};
use super::recorder::{self, Said, Settlement, release};
use super::{Context, Hold};
use crate::limits::KEEPER_MAX_MS;
use crate::queue::outcome::Settled;
use crate::queue::schedule::MessageKey;
use crate::queue::spool::Location;
use crate::shard::shared::Stage;
use crate::shard::storage::Commit;
use crate::stderr;
use std::cell::Cell;
use std::rc::Rc;

/// Begins where the segments take more than they may, unless that is under way already.
pub fn start(context: &Rc<Context>, oldest_in_use: u64) {
    let outbound = &context.outbound;
    if outbound.is_rewriting.get() || context.now_ms() < outbound.rewrite_again_ms.get() {
        return;
    }
    let capacity = context.storage.capacity();
    let oldest = outbound.schedule.borrow().segment_to_rewrite(oldest_in_use, capacity);
    let Some(generation) = oldest else { return };
    outbound.is_rewriting.set(true);
    let rewriter = Rewriter { context: context.clone(), generation, written: Cell::new(0) };
    context.net.spawn(async move { rewriter.run().await });
}

struct Rewriter {
    context: Rc<Context>,
    generation: u64,
    /// Messages that are elsewhere now.
    written: Cell<usize>,
}

/// A record on its way to another place.
struct Written {
    key: MessageKey,
    commit: Commit,
    /// Recipients whose outcome it brings along.
    settled: usize,
}

impl Drop for Rewriter {
    fn drop(&mut self) {
        let outbound = &self.context.outbound;
        outbound.is_rewriting.set(false);
        if self.written.get() == 0 {
            // It would come to nothing again.
            outbound.rewrite_again_ms.set(self.context.now_ms() + KEEPER_MAX_MS);
        }
        outbound.wake_keeper();
        self.context.stop_if_drained();
    }
}

impl Rewriter {
    async fn run(&self) {
        let context = &self.context;
        let mut keys = Vec::new();
        let mut next = Some(0);
        while let Some(from) = next {
            if context.shared.stage() != Stage::Serving || context.storage.is_failing() {
                return;
            }
            keys.clear();
            next = context.outbound.schedule.borrow().messages_in(self.generation, from, &mut keys);
            if keys.is_empty() {
                context.net.next_turn().await;
            } else if !self.write_again(&keys).await {
                return;
            }
        }
    }

    /// Writes these messages' records again. False: storage fails.
    async fn write_again(&self, keys: &[MessageKey]) -> bool {
        let context = &self.context;
        let hold = Rc::new(Hold::new(context, self.generation));
        let mut works = true;
        let mut written = Vec::with_capacity(keys.len());
        for &key in keys {
            context.outbound.schedule.borrow_mut().begin_rewrite(key);
            match self.append_again(key).await {
                Ok(Some(one)) => written.push(one),
                Ok(None) => self.release(key),
                Err(error) => {
                    self.release(key);
                    context.storage.report(&error);
                    works = false;
                    break;
                }
            }
        }
        for Written { key, commit, settled } in written {
            let location = commit.location();
            match commit.durable().await {
                Ok(_) => self.relocate(key, location, settled, &hold),
                Err(_) => works = false,
            }
            self.release(key);
        }
        works
    }

    /// Appends a message's record again; `None`: it is there no more, or damaged.
    async fn append_again(&self, key: MessageKey) -> std::io::Result<Option<Written>> {
        let context = &self.context;
        let place = |message: &super::Queued| (message.id, message.location);
        let Some((id, location)) = context.outbound.schedule.borrow().message(key).map(place) else { return Ok(None) };
        let octets = match Content::read_record(context, id, location).await {
            Ok(octets) => octets,
            Err(Unreadable::Io(error)) => return Err(error),
            Err(Unreadable::Damaged) => {
                let name = context.storage.put_aside(location).await?;
                stderr::say(format_args!("message {id} is damaged in the spool; a copy is kept in {name}"));
                context.metrics.damage.increment(1);
                context.outbound.schedule.borrow_mut().lose(key);
                return Ok(None);
            }
        };
        let schedule = context.outbound.schedule.borrow();
        let (Some(message), Some(record)) = (schedule.message(key), octets.record()) else { return Ok(None) };
        let settled = message.statuses.settled(message.recipients as usize).count();
        let commit = context.storage.append_again(&record, &message.statuses, message.recipients);
        Ok(Some(Written { key, commit, settled }))
    }

    /// The record is on stable storage in another place. What became of recipients meanwhile is said
    /// again: it was said of the old place, and is needed as long as the new one. Until that is on
    /// stable storage the old segment stays.
    fn relocate(&self, key: MessageKey, location: Location, settled: usize, hold: &Rc<Hold>) {
        let context = &self.context;
        self.written.set(self.written.get() + 1);
        context.metrics.rewritten_bytes.increment(u64::from(location.octets));
        let all_settled: Vec<Settled<Said>> = {
            let mut schedule = context.outbound.schedule.borrow_mut();
            schedule.relocate(key, location);
            let Some(message) = schedule.message(key) else { return };
            message.statuses.settled(message.recipients as usize).map(Said::settled).collect()
        };
        if all_settled.len() > settled {
            context.outbound.schedule.borrow_mut().begin_rewrite(key);
            recorder::write_again(context, key, Settlement::These(all_settled), hold.clone());
        }
    }

    fn release(&self, key: MessageKey) {
        let finished = self.context.outbound.schedule.borrow_mut().recorded(key);
        release(&self.context, finished);
    }
}
