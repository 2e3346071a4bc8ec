//! Faults on order, to test what follows from them: only with the feature `fault-injection`.
//!
//! They strike in the dispatcher's own task, where no session's containment reaches, as a defect
//! of this program or of the ring would.

use rustix::event::{Timespec, poll};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What happens to a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its thread stands still for this long.
    Stall(Duration),
    /// Its dispatcher panics.
    Kill,
}

const NONE: u64 = 0;
const KILL: u64 = u64::MAX;

/// The fault that a shard is to suffer next.
#[derive(Debug, Default)]
pub(super) struct Order(AtomicU64);

impl Order {
    pub(super) fn give(&self, fault: Fault) {
        let order = match fault {
            Fault::Stall(pause) => pause.as_millis().clamp(1, u128::from(KILL - 1)) as u64,
            Fault::Kill => KILL,
        };
        self.0.store(order, Ordering::Release);
    }

    pub(super) fn obey(&self) {
        match self.0.swap(NONE, Ordering::AcqRel) {
            NONE => {}
            KILL => panic!("killed by fault injection"),
            pause_ms => stand_still(Duration::from_millis(pause_ms)),
        }
    }
}

fn stand_still(pause: Duration) {
    let end = Instant::now() + pause;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        // A signal ends it early: again.
        let _ = poll(&mut [], Some(&timeout));
    }
}
