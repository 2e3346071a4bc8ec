//! What all shards know of a next hop, in plain atomics: whether it is up, who probes it, and how
//! many transactions it has in flight. One [`NextHopState`] per next hop, shared by the process.
//!
//! | state | entered by | left by |
//! |---|---|---|
//! | up | the start; `reached` | `unreachable`, or the last of the strikes (`disturbed`): down |
//! | down until its probe | those; a probe's `unreachable` | `try_claim_probe` once that is due: probing |
//! | probing, with a lease | `try_claim_probe` | `reached`: up. `unreachable`: down. Its lease running out: another claim |
//!
//! The wait before a probe grows with each failure that *began* a wait: of the many reports of
//! one outage the first takes the next hop down, and the others find it down and change nothing;
//! after that only a probe can fail. It is short again when a transaction has got regular
//! replies, not at the first hello: a next hop that greets and then breaks every transaction
//! is left alone for longer each time, like one that does not greet.
//!
//! A report may be late, of a connection begun before the last probe. Late good news are good
//! news; late bad news cost at most one wait, because a probe ends it.
//!
//! Guarantees, modelled in `tests/loom_next_hop.rs`: the window is never exceeded, a due probe is
//! claimed by exactly one, each fall and each recovery is returned to exactly one caller (so that
//! it is logged once).
//!
//! All accesses are `Relaxed`: every decision is made by one read-modify-write of one word, and no
//! other memory is published through these words. Rejected: state, failures and time in atomics of
//! their own: a probe claimed between two stores would be claimed of a state that never was.

use super::atomic::{AtomicU32, AtomicU64, Ordering};
use super::backoff::Backoff;
use crate::limits::NEXT_HOP_STRIKES_MAX;

/// Whether a next hop may be sent to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It may.
    Up,
    /// Not before that time, when the next probe is due (or the prober's lease runs out).
    Down {
        /// On the caller's clock.
        probe_at_ms: u64,
    },
    /// By the one that claims the probe.
    ProbeDue,
}

/// What the process knows of a next hop. Aligned so that next hops share no cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct NextHopState {
    /// A packed [`Health`]; zero is up without a failure.
    health: AtomicU64,
    in_flight: AtomicU32,
    starving: AtomicU32,
}

impl NextHopState {
    /// Up, nothing in flight.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it may be sent to at `now_ms`. Times are milliseconds of one clock for all shards,
    /// which may lag behind each other a little.
    #[must_use]
    pub fn availability(&self, now_ms: u64) -> Availability {
        match self.health() {
            Health::Up { .. } => Availability::Up,
            Health::Down { until_ms, .. } | Health::Probing { until_ms, .. } if now_ms < until_ms => {
                Availability::Down { probe_at_ms: until_ms }
            }
            Health::Down { .. } | Health::Probing { .. } => Availability::ProbeDue,
        }
    }

    /// Takes the probe that is due; of all that ask one gets it. That one connects, and reports
    /// [`reached`](Self::reached) or [`unreachable`](Self::unreachable). If it has not within
    /// `lease_ms`, another may take the probe.
    #[must_use]
    pub fn try_claim_probe(&self, now_ms: u64, lease_ms: u64) -> bool {
        let claim = |health| match health {
            Health::Down { failures, until_ms } | Health::Probing { failures, until_ms } if until_ms <= now_ms => {
                Some(Health::Probing { failures, until_ms: now_ms.saturating_add(lease_ms) })
            }
            _ => None,
        };
        self.change(claim).is_some()
    }

    /// A connection got its reply to EHLO or HELO: it is up. True: it was not until now.
    pub fn reached(&self) -> bool {
        let rise = |health| match health {
            Health::Up { .. } => None,
            Health::Down { failures, .. } | Health::Probing { failures, .. } => {
                Some(Health::Up { failures, strikes: 0 })
            }
        };
        self.change(rise).is_some()
    }

    /// Connecting, the greeting or the hello failed: down until a probe is due, after `backoff`
    /// by the number of failures without a transaction between. True: it was up until now.
    pub fn unreachable(&self, now_ms: u64, backoff: &Backoff, random: u64) -> bool {
        let fall = |health| match health {
            Health::Up { failures, .. } | Health::Probing { failures, .. } => {
                Some(down(failures, now_ms, backoff, random))
            }
            // Another report of the same outage.
            Health::Down { .. } => None,
        };
        matches!(self.change(fall), Some(Health::Up { .. }))
    }

    /// A transaction broke: silence, a reset, octets that are no reply, 421. The last of
    /// [`NEXT_HOP_STRIKES_MAX`] in a row takes it down as [`unreachable`](Self::unreachable) does.
    /// True: this one did.
    pub fn disturbed(&self, now_ms: u64, backoff: &Backoff, random: u64) -> bool {
        let is_last = |strikes: u8| strikes >= NEXT_HOP_STRIKES_MAX - 1;
        let strike = |health| match health {
            Health::Up { failures, strikes } if is_last(strikes) => Some(down(failures, now_ms, backoff, random)),
            Health::Up { failures, strikes } => Some(Health::Up { failures, strikes: strikes + 1 }),
            // A transaction of before: whether it can be reached again is the prober's to say.
            Health::Down { .. } | Health::Probing { .. } => None,
        };
        matches!(self.change(strike), Some(Health::Up { strikes, .. }) if is_last(strikes))
    }

    /// A transaction got regular replies, whether they took the message or refused it: earlier
    /// strikes and failures are forgotten. A next hop that is down stays so until `reached`.
    /// Costs a load when there is nothing to forget.
    pub fn answered(&self) {
        let forgive = |health| match health {
            Health::Up { failures: 0, strikes: 0 } | Health::Down { .. } | Health::Probing { .. } => None,
            Health::Up { .. } => Some(Health::Up { failures: 0, strikes: 0 }),
        };
        self.change(forgive);
    }

    /// Counts one more transaction in flight if fewer than `window` are; false counts nothing.
    /// Every true is owed one [`release`](Self::release). The window may change between calls.
    #[must_use]
    pub fn try_acquire(&self, window: u32) -> bool {
        self.in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < window).then(|| count + 1))
            .is_ok()
    }

    /// Gives back what [`try_acquire`](Self::try_acquire) counted.
    pub fn release(&self) {
        // At zero it stays there: wrapping around would fill the window until a restart.
        let released = self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
        debug_assert!(released.is_ok(), "a transaction was released that was never acquired");
    }

    /// Transactions in flight, all shards.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// A shard says that it has less than its share and found the window full; once until it says
    /// [`fed`](Self::fed). `WindowShare` keeps that book.
    pub fn starve(&self) {
        self.starving.fetch_add(1, Ordering::Relaxed);
    }

    /// A shard that starved has a slot, or wants none any more.
    pub fn fed(&self) {
        let fed = self.starving.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
        debug_assert!(fed.is_ok(), "a shard was fed that did not starve");
    }

    /// How many shards starve.
    #[must_use]
    pub fn starving(&self) -> u32 {
        self.starving.load(Ordering::Relaxed)
    }

    fn health(&self) -> Health {
        Health::unpack(self.health.load(Ordering::Relaxed))
    }

    /// Applies `next` to the state as it is at that moment, and returns that; `None`: `next` left
    /// it as it was.
    fn change(&self, next: impl Fn(Health) -> Option<Health>) -> Option<Health> {
        let changed = self
            .health
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| next(Health::unpack(word)).map(Health::pack));
        changed.ok().map(Health::unpack)
    }
}

/// Down for the wait that one failure more than `failures` brings.
fn down(failures: u8, now_ms: u64, backoff: &Backoff, random: u64) -> Health {
    let failures = failures.saturating_add(1);
    let wait = backoff.delay(u32::from(failures), random);
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    Health::Down { failures, until_ms: now_ms.saturating_add(wait_ms) }
}

/// The states of the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// `failures`: those before it was last reached, until a transaction is answered.
    Up {
        failures: u8,
        strikes: u8,
    },
    Down {
        failures: u8,
        until_ms: u64,
    },
    Probing {
        failures: u8,
        until_ms: u64,
    },
}

/// Low bits of the packed form: which state.
const STATE_BITS: u32 = 2;
/// Then the number of failures, which stays at the highest when it is reached.
const FAILURES_BITS: u32 = 8;
/// The rest: when down or probing, the time until when in milliseconds (584 thousand years of
/// them in 54 bits); when up, the strikes.
const REST_SHIFT: u32 = STATE_BITS + FAILURES_BITS;
const REST_MAX: u64 = u64::MAX >> REST_SHIFT;

const UP: u64 = 0;
const DOWN: u64 = 1;
const PROBING: u64 = 2;

impl Health {
    fn pack(self) -> u64 {
        let (state, failures, rest) = match self {
            Health::Up { failures, strikes } => (UP, failures, u64::from(strikes)),
            Health::Down { failures, until_ms } => (DOWN, failures, until_ms),
            Health::Probing { failures, until_ms } => (PROBING, failures, until_ms),
        };
        state | u64::from(failures) << STATE_BITS | rest.min(REST_MAX) << REST_SHIFT
    }

    fn unpack(word: u64) -> Self {
        let failures = (word >> STATE_BITS) as u8;
        let rest = word >> REST_SHIFT;
        match word & ((1 << STATE_BITS) - 1) {
            UP => Health::Up { failures, strikes: rest as u8 },
            DOWN => Health::Down { failures, until_ms: rest },
            _ => Health::Probing { failures, until_ms: rest },
        }
    }
}
