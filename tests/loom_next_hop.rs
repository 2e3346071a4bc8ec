//! The state of a next hop under every interleaving, by loom.
//!
//! `src/delivery/next_hop.rs` and `share.rs` are compiled here a second time, with this file's
//! `atomic` in the place of the crate's own, as `tests/loom_tables.rs` does it with the tables.

#[allow(dead_code, reason = "the models use a part of the state")]
#[path = "../src/delivery/next_hop.rs"]
mod next_hop;

#[allow(dead_code, reason = "the models use a part of it")]
#[path = "../src/delivery/share.rs"]
mod share;

/// Stands for `src/policy/atomic.rs`.
mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

/// Stands for `src/delivery/backoff.rs`, which has no atomics.
mod backoff {
    pub(crate) use gatepost::delivery::Backoff;
}

use backoff::Backoff;
use gatepost::limits;
use loom::sync::Arc;
use loom::thread;
use next_hop::{Availability, NextHopState};
use share::{Window, WindowShare};
use std::time::Duration;

const BACKOFF: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(1) };
const LEASE_MS: u64 = 50;
/// The random number that takes a fifth off the wait.
const SHORTEST: u64 = 0;

/// Runs `model` under every interleaving of at most `preemptions` preemptions.
fn model_bounded(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Runs `each` on two threads with 0 and 1, and returns what they returned.
fn on_two_threads<T: 'static>(
    next_hop: &Arc<NextHopState>,
    each: impl Fn(&NextHopState, usize) -> T + Send + Sync + 'static,
) -> [T; 2] {
    let each = Arc::new(each);
    let other = {
        let (each, next_hop) = (Arc::clone(&each), Arc::clone(next_hop));
        thread::spawn(move || each(&next_hop, 1))
    };
    let one = each(next_hop, 0);
    [one, other.join().expect("a thread that ends")]
}

fn count(events: impl IntoIterator<Item = bool>) -> usize {
    events.into_iter().filter(|&happened| happened).count()
}

/// Down since 0, to be probed at 80.
fn down() -> Arc<NextHopState> {
    let next_hop = Arc::new(NextHopState::new());
    assert!(next_hop.unreachable(0, &BACKOFF, SHORTEST));
    next_hop
}

fn down_until(probe_at_ms: u64) -> Availability {
    Availability::Down { probe_at_ms }
}

/// Two transactions come and go where there is room for one, and a third looks on.
#[test]
fn the_window_is_never_exceeded() {
    model_bounded(2, || {
        let next_hop = Arc::new(NextHopState::new());
        let inside = Arc::new(atomic::AtomicU32::new(0));
        let watcher = {
            let next_hop = Arc::clone(&next_hop);
            thread::spawn(move || assert!(next_hop.in_flight() <= 1))
        };
        let acquired = on_two_threads(&next_hop, move |next_hop, _| {
            let attempts = (0..2).map(|_| {
                let acquired = next_hop.try_acquire(1);
                if acquired {
                    let others = inside.fetch_add(1, atomic::Ordering::Relaxed);
                    assert_eq!(others, 0, "two hold the one slot");
                    inside.fetch_sub(1, atomic::Ordering::Relaxed);
                    next_hop.release();
                }
                acquired
            });
            count(attempts)
        });
        watcher.join().expect("a count within the window");
        assert!(acquired[0] + acquired[1] > 0);
        assert_eq!(next_hop.in_flight(), 0);
    });
}

/// Of two that find the probe due one gets it, the first time and when the lease has run out.
#[test]
fn one_claims_the_probe() {
    loom::model(|| {
        let next_hop = down();
        for now_ms in [80, 80 + LEASE_MS] {
            let claimed = on_two_threads(&next_hop, move |next_hop, _| next_hop.try_claim_probe(now_ms, LEASE_MS));
            assert!(claimed[0] ^ claimed[1], "{claimed:?}");
            assert_eq!(next_hop.availability(now_ms), down_until(now_ms + LEASE_MS));
        }
    });
}

/// A prober that reports when its lease has just run out meets the one that takes over: whoever
/// comes first, the next hop is then up, and no probe is left claimed.
#[test]
fn late_good_news_end_the_probing() {
    loom::model(|| {
        let next_hop = down();
        assert!(next_hop.try_claim_probe(80, LEASE_MS));
        let [rose, _] = on_two_threads(&next_hop, |next_hop, thread| match thread {
            0 => next_hop.reached(),
            _ => next_hop.try_claim_probe(80 + LEASE_MS, LEASE_MS),
        });
        assert!(rose);
        assert_eq!(next_hop.availability(80 + LEASE_MS), Availability::Up);
    });
}

/// Two notice one outage: it falls once, and the wait is that of one failure.
#[test]
fn one_outage_is_one_failure() {
    loom::model(|| {
        let next_hop = Arc::new(NextHopState::new());
        let fell =
            on_two_threads(&next_hop, |next_hop, thread| next_hop.unreachable(thread as u64, &BACKOFF, SHORTEST));
        assert!(fell[0] ^ fell[1], "{fell:?}");
        assert_eq!(next_hop.availability(2), down_until(if fell[0] { 80 } else { 81 }));
    });
}

/// The same of two that report the failure of one probe: the prober, and one of before.
#[test]
fn one_probe_is_one_failure() {
    loom::model(|| {
        let next_hop = down();
        assert!(next_hop.try_claim_probe(80, LEASE_MS));
        let fell = on_two_threads(&next_hop, |next_hop, _| next_hop.unreachable(80, &BACKOFF, SHORTEST));
        assert_eq!(fell, [false, false], "it was down");
        assert_eq!(next_hop.availability(80), down_until(240), "the wait of the second failure");
    });
}

/// Falls and recoveries that meet: what was returned adds up to how it ends, so that each is
/// logged once and none is lost.
#[test]
fn no_transition_is_lost() {
    loom::model(|| {
        let next_hop = Arc::new(NextHopState::new());
        let events = on_two_threads(&next_hop, |next_hop, thread| {
            let fell = next_hop.unreachable(thread as u64, &BACKOFF, SHORTEST);
            (fell, next_hop.reached())
        });
        let falls = count(events.iter().map(|(fell, _)| *fell));
        let rises = count(events.iter().map(|(_, rose)| *rose));
        assert!(falls > 0);
        // Each ends with good news.
        assert_eq!((falls, next_hop.availability(2)), (rises, Availability::Up));
    });
}

/// A report of each kind at once, from up and from probing.
#[test]
fn good_and_bad_news_at_once() {
    for probing in [false, true] {
        loom::model(move || {
            let next_hop = if probing { down() } else { Arc::new(NextHopState::new()) };
            assert_eq!(next_hop.try_claim_probe(80, LEASE_MS), probing);
            let [rose, fell] = on_two_threads(&next_hop, |next_hop, thread| match thread {
                0 => next_hop.reached(),
                _ => next_hop.unreachable(80, &BACKOFF, SHORTEST),
            });
            let is_up = next_hop.availability(80) == Availability::Up;
            assert_eq!(i32::from(is_up), i32::from(!probing) + i32::from(rose) - i32::from(fell));
        });
    }
}

/// Strikes of two shards are all counted, and the last one takes it down, once.
#[test]
fn no_strike_is_lost() {
    const STRIKES_MAX: usize = limits::NEXT_HOP_STRIKES_MAX as usize;
    loom::model(|| {
        let next_hop = Arc::new(NextHopState::new());
        let falls = on_two_threads(&next_hop, |next_hop, thread| {
            let strikes = if thread == 0 { 1 } else { STRIKES_MAX - 1 };
            count((0..strikes).map(|_| next_hop.disturbed(0, &BACKOFF, SHORTEST)))
        });
        assert_eq!(falls[0] + falls[1], 1);
        assert_eq!(next_hop.availability(0), down_until(80));
    });
}

/// A strike that meets an answer: forgotten or the first of a new row, never lost with the fall.
#[test]
fn an_answer_between_strikes() {
    loom::model(|| {
        let next_hop = Arc::new(NextHopState::new());
        assert_eq!(count((1..limits::NEXT_HOP_STRIKES_MAX).map(|_| next_hop.disturbed(0, &BACKOFF, SHORTEST))), 0);
        let [fell, _] = on_two_threads(&next_hop, |next_hop, thread| match thread {
            0 => next_hop.disturbed(0, &BACKOFF, SHORTEST),
            _ => {
                next_hop.answered();
                false
            }
        });
        assert_eq!(next_hop.availability(0) == Availability::Up, !fell);
    });
}

/// Two shards use one slot between them, each giving it back after each message: the slot and the
/// mark of starving are always given back, and a shard that starves gets it when it asks again.
#[test]
fn shares_come_back() {
    const WINDOW: Window = Window { slots: 1, shards: 2 };
    model_bounded(3, || {
        let next_hop = Arc::new(NextHopState::new());
        let served = on_two_threads(&next_hop, |next_hop, _| {
            let mut share = WindowShare::new();
            let attempts = (0..2).map(|_| {
                let taken = share.try_take(next_hop, WINDOW);
                assert!(next_hop.in_flight() <= 1 && next_hop.starving() <= 2);
                if taken {
                    share.give_back(next_hop);
                }
                taken
            });
            let served = count(attempts);
            share.leave(next_hop);
            served
        });
        assert!(served[0] + served[1] > 0);
        assert_eq!((next_hop.in_flight(), next_hop.starving()), (0, 0));
        assert!(WindowShare::new().try_take(&next_hop, WINDOW));
    });
}

/// The busy shard holds the whole window while the other begins to want a slot: when the busy one
/// has seen that it owes one, the other gets it, whatever the busy one asks for meanwhile.
#[test]
fn what_was_given_back_is_for_the_starving() {
    const WINDOW: Window = Window { slots: 2, shards: 2 };
    model_bounded(3, || {
        let next_hop = Arc::new(NextHopState::new());
        let mut busy = WindowShare::new();
        assert!(busy.try_take(&next_hop, WINDOW) && busy.try_take(&next_hop, WINDOW));
        let starving = {
            let next_hop = Arc::clone(&next_hop);
            thread::spawn(move || {
                let mut late = WindowShare::new();
                (late.try_take(&next_hop, WINDOW), late)
            })
        };
        // A transaction ends.
        if busy.owes(&next_hop, WINDOW) {
            busy.give_back(&next_hop);
        }
        let (taken, mut late) = starving.join().expect("a thread that ends");
        if !taken {
            assert!(late.is_starving());
            // The next one ends.
            if busy.owes(&next_hop, WINDOW) {
                busy.give_back(&next_hop);
            }
            assert!(!busy.try_take(&next_hop, WINDOW));
            assert!(late.try_take(&next_hop, WINDOW));
        }
        assert_eq!((busy.held(), late.held()), (1, 1));
        assert_eq!((next_hop.in_flight(), next_hop.starving()), (2, 0));
    });
}
