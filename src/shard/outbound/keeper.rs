//! What comes with time: retries that are due, mail that is too old, next hops to be probed,
//! outcomes to be written again, segments that nothing needs any more.

use super::{Context, pump, recorder, rewriter, settle, show_queue};
use crate::delivery::expired;
use crate::limits::{EXPIRED_IN_A_ROW_MAX, KEEPER_MAX_MS, KEEPER_TICK_MS, NEXT_HOP_STARVED_RETRY_MS};
use crate::queue::schedule::Job;
use crate::shard::shared::Stage;
use std::rc::Rc;
use std::time::Duration;

/// Keeps the queue until the process drains.
pub async fn keep(context: Rc<Context>) {
    let outbound = &context.outbound;
    while context.shared.stage() == Stage::Serving {
        outbound.schedule.borrow_mut().release_due(context.now_ms());
        recorder::write_lost_if_due(&context);
        let lanes = outbound.schedule.borrow().lanes() as u16;
        let mut is_behind = false;
        for lane in 0..lanes {
            is_behind |= expire_some(&context, lane).await;
            pump(&context, lane);
        }
        tidy_segments(&context).await;
        show_queue(&context);
        if is_behind {
            continue;
        }
        let wait = next_look(&context);
        outbound.keeper_is_near.set(wait <= Duration::from_millis(KEEPER_TICK_MS));
        outbound.alarm.wait(Some(context.net.now() + wait)).await;
    }
}

/// Gives up what is too old in a lane, but not so much at once that other lanes, or the end of the
/// process, wait for it: after a long outage that may be all there is. True: there is more.
async fn expire_some(context: &Rc<Context>, lane: u16) -> bool {
    for _ in 0..EXPIRED_IN_A_ROW_MAX {
        if context.shared.stage() != Stage::Serving {
            return false;
        }
        let Some(job) = next_expired(context, lane) else { return false };
        settle::expire(context, job).await;
    }
    true
}

/// Takes the first job of a lane if its message is too old. They wait in the order of their
/// arrival, save for retries, which are looked at when they are due.
fn next_expired(context: &Context, lane: u16) -> Option<Job> {
    let mut schedule = context.outbound.schedule.borrow_mut();
    let job = schedule.peek(lane)?;
    let arrived_ms = schedule.message(job.message)?.arrived_unix_ms();
    let is_old = expired(arrived_ms, context.unix_ms(), context.current().config.delivery.queue_lifetime);
    is_old.then(|| schedule.next(lane))?
}

fn next_look(context: &Context) -> Duration {
    let outbound = &context.outbound;
    let schedule = outbound.schedule.borrow();
    let waits = (0..schedule.lanes() as u16).any(|lane| schedule.waiting(lane) > 0);
    let starves = outbound.pools.iter().any(|pool| pool.share.borrow().is_starving());
    let longest = if starves {
        NEXT_HOP_STARVED_RETRY_MS
    } else if waits || !outbound.lost.borrow().is_empty() {
        // Another shard may find a next hop up again.
        KEEPER_TICK_MS
    } else {
        KEEPER_MAX_MS
    };
    let due = schedule.next_due_ms().map(|due_ms| due_ms.saturating_sub(context.now_ms()));
    Duration::from_millis(due.unwrap_or(longest).min(longest))
}

/// Takes away what nothing needs, and sees to it that there is always something to take away.
async fn tidy_segments(context: &Rc<Context>) {
    while context.shared.stage() == Stage::Serving {
        let oldest_in_use = context.storage.oldest_in_use();
        let removable = context.outbound.schedule.borrow_mut().removable_segment(oldest_in_use);
        let Some(segment) = removable else { return rewriter::start(context, oldest_in_use) };
        let result = context.storage.retire_segment(segment).await;
        let mut schedule = context.outbound.schedule.borrow_mut();
        match result {
            Ok(()) => schedule.segment_is_gone(segment.generation),
            Err(error) => {
                schedule.segment_stays(segment.generation);
                context.storage.report(&error);
                return;
            }
        }
    }
}
