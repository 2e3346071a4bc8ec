//! One thread of the sender: its sessions, its counts, its list of accepted ids.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::plan::Plan;
use super::run::Run;
use super::session::Session;
use super::stats::Stats;
use crate::fault::Fault;
use crate::id::NUMBER_DIGITS;
use crate::ledger::Ledger;

/// How long accepted ids may wait in memory.
const LEDGER_TICK: Duration = Duration::from_millis(3);
/// How often counts are shown without a list of ids.
const TICK: Duration = Duration::from_millis(50);
/// What sessions get to finish their message when the run is stopped.
const GRACE: Duration = Duration::from_secs(2);

/// What a lane keeps for its sessions.
pub struct Lane {
    /// Counts so far.
    pub stats: Stats,
    ledger: Option<Ledger>,
    shown: u64,
}

thread_local! {
    static LANE: RefCell<Option<Lane>> = const { RefCell::new(None) };
}

/// Lets a session at its lane. Never across an await.
pub fn with<R>(visit: impl FnOnce(&mut Lane) -> R) -> R {
    LANE.with_borrow_mut(|lane| visit(lane.as_mut().expect("sessions run on lanes only")))
}

impl Lane {
    /// Counts a message that got 2yz for its final dot.
    pub fn accepted<'a>(
        &mut self,
        run_id: &str,
        number: &[u8; NUMBER_DIGITS],
        queue_id: impl FnOnce() -> Option<&'a [u8]>,
    ) {
        self.stats.accepted += 1;
        if let Some(ledger) = &mut self.ledger {
            ledger.note_id(run_id, number, queue_id().unwrap_or(b"-"));
        }
    }
}

/// What a lane is started with.
pub struct Input {
    /// The plan of all.
    pub plan: Arc<Plan>,
    /// The run of all.
    pub run: Arc<Run>,
    /// Sessions of this lane.
    pub sessions: u64,
    /// Its end of the list of accepted ids.
    pub ledger: Option<Ledger>,
    /// Its counts, none yet.
    pub stats: Stats,
}

/// Runs the sessions to their end and returns the counts.
pub async fn run(input: Input) -> Result<Stats, Fault> {
    let Input { plan, run, sessions, ledger, stats } = input;
    let tick = if ledger.is_some() { LEDGER_TICK } else { TICK };
    LANE.set(Some(Lane { stats, ledger, shown: 0 }));
    let mut tasks = JoinSet::new();
    for _ in 0..sessions {
        tasks.spawn(Session::new(plan.clone(), run.clone()).work());
    }
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopped = None;
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Some(_) => {}
                None => break,
            },
            _ = ticks.tick() => {
                with(|lane| lane.tick(&run));
                if run.stopped().is_some() && stopped.get_or_insert_with(Instant::now).elapsed() >= GRACE {
                    break;
                }
            }
        }
    }
    tasks.shutdown().await;
    let mut lane = LANE.take().expect("set above");
    lane.tick(&run);
    if let (Some(ledger), Some(path)) = (lane.ledger, &plan.acked_file) {
        ledger.close().map_err(|error| Fault::file(path, error))?;
    }
    let mut stats = lane.stats;
    // Messages of sessions that were cut off: nobody knows how far they came.
    let settled = stats.accepted + stats.refused + stats.interrupted + stats.unacknowledged;
    stats.unacknowledged += stats.sent.saturating_sub(settled);
    Ok(stats)
}

impl Lane {
    fn tick(&mut self, run: &Run) {
        if let Some(ledger) = &mut self.ledger {
            ledger.flush();
        }
        run.note_accepted(self.stats.accepted - self.shown, Instant::now());
        self.shown = self.stats.accepted;
    }
}
