//! Limits under concurrency, and timers under load: the real program with two shards.
//!
//! Rounds of clients that connect at the same time from one address, and then die in every way:
//! the count of connections must be exact in each round, whatever happened in those before. The
//! rates of messages likewise. Then thousands of idle sessions, whose timers must not be late and
//! which must cost nothing while they wait.
//!
//! `GATEPOST_CONCURRENCY_ROUNDS` sets the number of rounds that end by clients (500),
//! `GATEPOST_CONCURRENCY_TIMEOUTS` that of rounds that end by a timer (10),
//! `GATEPOST_CONCURRENCY_RATES` that of rounds of messages (100), `GATEPOST_IDLE_SESSIONS` how many
//! sessions idle (5000, or what the limit of open files allows). `GATEPOST_CRASH_SEED` repeats the
//! random choices of a run (not its timing). Cases that take minutes are ignored by default.

mod connections;
mod crowd;
#[path = "../gateway/harness.rs"]
mod harness;
mod idle;
#[path = "../gateway/load.rs"]
mod load;
mod rates;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One case at a time: each takes all the descriptors and the processors there are.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
