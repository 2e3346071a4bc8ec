//! A next hop's state: its table of transitions, its counts, and any order of reports.

use super::{Availability, Backoff, NextHopState};
use crate::limits::NEXT_HOP_STRIKES_MAX;
use proptest::prelude::*;
use std::time::Duration;

const BACKOFF: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_millis(1000) };
const LEASE_MS: u64 = 50;
/// The random number that takes a fifth off the wait.
const SHORTEST: u64 = 0;

fn down_until(probe_at_ms: u64) -> Availability {
    Availability::Down { probe_at_ms }
}

#[test]
fn an_outage() {
    let next_hop = NextHopState::new();
    assert_eq!(next_hop.availability(0), Availability::Up);
    assert!(!next_hop.try_claim_probe(u64::MAX, LEASE_MS), "nothing to probe");
    assert!(next_hop.unreachable(1000, &BACKOFF, SHORTEST));
    // Others notice the same outage.
    assert!(!next_hop.unreachable(1010, &BACKOFF, SHORTEST));
    assert!(!next_hop.disturbed(1020, &BACKOFF, SHORTEST));
    assert_eq!(next_hop.availability(1079), down_until(1080));
    assert!(!next_hop.try_claim_probe(1079, LEASE_MS));

    let mut now_ms = 1080;
    for wait_ms in [160, 320, 640, 800, 800] {
        assert_eq!(next_hop.availability(now_ms), Availability::ProbeDue);
        assert!(next_hop.try_claim_probe(now_ms, LEASE_MS));
        assert!(!next_hop.try_claim_probe(now_ms, LEASE_MS), "one prober");
        assert_eq!(next_hop.availability(now_ms), down_until(now_ms + LEASE_MS));
        assert!(!next_hop.unreachable(now_ms, &BACKOFF, SHORTEST), "it was down before");
        assert!(!next_hop.unreachable(now_ms, &BACKOFF, SHORTEST));
        assert_eq!(next_hop.availability(now_ms), down_until(now_ms + wait_ms));
        now_ms += wait_ms;
    }

    assert!(next_hop.try_claim_probe(now_ms, LEASE_MS));
    assert!(next_hop.reached() && !next_hop.reached());
    assert_eq!(next_hop.availability(now_ms), Availability::Up);
    next_hop.answered();
    assert!(next_hop.unreachable(0, &BACKOFF, SHORTEST));
    assert_eq!(next_hop.availability(0), down_until(80), "the wait is short again");
}

#[test]
fn a_prober_that_never_reports_is_replaced() {
    let next_hop = NextHopState::new();
    assert!(next_hop.unreachable(0, &BACKOFF, SHORTEST));
    assert!(next_hop.try_claim_probe(80, LEASE_MS));
    assert!(!next_hop.try_claim_probe(129, LEASE_MS));
    assert_eq!(next_hop.availability(130), Availability::ProbeDue);
    assert!(next_hop.try_claim_probe(130, LEASE_MS));
    assert_eq!(next_hop.availability(131), down_until(180));
    // The lost one turns up after all, with good news.
    assert!(next_hop.reached());
    assert!(!next_hop.try_claim_probe(1000, LEASE_MS));
}

#[test]
fn strikes_in_a_row_take_it_down() {
    let next_hop = NextHopState::new();
    for _ in 1..NEXT_HOP_STRIKES_MAX {
        assert!(!next_hop.disturbed(0, &BACKOFF, SHORTEST));
    }
    next_hop.answered();
    for _ in 1..NEXT_HOP_STRIKES_MAX {
        assert!(!next_hop.disturbed(0, &BACKOFF, SHORTEST));
        // A hello alone is no success of a transaction.
        assert!(!next_hop.reached());
    }
    assert_eq!(next_hop.availability(0), Availability::Up);
    assert!(next_hop.disturbed(0, &BACKOFF, SHORTEST));
    assert!(!next_hop.disturbed(0, &BACKOFF, SHORTEST));
    assert_eq!(next_hop.availability(0), down_until(80));
}

/// A next hop that greets and breaks each transaction is left alone for longer each time.
#[test]
fn failures_count_until_a_transaction_is_answered() {
    let next_hop = NextHopState::new();
    let fall = || {
        let falls = (0..NEXT_HOP_STRIKES_MAX).filter(|_| next_hop.disturbed(0, &BACKOFF, SHORTEST)).count();
        assert_eq!(falls, 1);
        let Availability::Down { probe_at_ms } = next_hop.availability(0) else { panic!("up") };
        // A transaction that outlived the fall says nothing of new connections.
        next_hop.answered();
        assert_eq!(next_hop.availability(0), down_until(probe_at_ms));
        assert!(next_hop.try_claim_probe(probe_at_ms, LEASE_MS) && next_hop.reached());
        probe_at_ms
    };
    assert_eq!([fall(), fall(), fall()], [80, 160, 320]);
    next_hop.answered();
    assert_eq!(fall(), 80);
}

#[test]
fn times_and_failures_stop_at_their_ends() {
    let next_hop = NextHopState::new();
    let endless = Backoff { min: Duration::from_millis(1), max: Duration::MAX };
    assert!(next_hop.unreachable(u64::MAX, &endless, u64::MAX));
    for _ in 0..300 {
        assert!(next_hop.try_claim_probe(u64::MAX, u64::MAX));
        assert!(!next_hop.unreachable(0, &BACKOFF, SHORTEST));
        assert_eq!(next_hop.availability(0), down_until(next_hop_wait(&next_hop)));
    }
    assert_eq!(next_hop_wait(&next_hop), 800);
    assert!(next_hop.reached());
}

fn next_hop_wait(next_hop: &NextHopState) -> u64 {
    match next_hop.availability(0) {
        Availability::Down { probe_at_ms } => probe_at_ms,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_window() {
    let next_hop = NextHopState::new();
    assert!(!next_hop.try_acquire(0));
    assert!(next_hop.try_acquire(2) && next_hop.try_acquire(2) && !next_hop.try_acquire(2));
    assert_eq!(next_hop.in_flight(), 2);
    assert!(next_hop.try_acquire(3), "the window has grown");
    next_hop.release();
    assert!(!next_hop.try_acquire(1) && !next_hop.try_acquire(2), "and shrunk");
    next_hop.release();
    next_hop.release();
    assert_eq!(next_hop.in_flight(), 0);
}

#[test]
fn next_hops_share_no_cache_line() {
    assert_eq!((size_of::<NextHopState>(), align_of::<NextHopState>()), (64, 64));
}

#[derive(Clone, Copy, Debug)]
enum Report {
    Claim,
    Reached,
    Unreachable,
    Disturbed,
    Answered,
    Wait(u64),
}

fn report() -> impl Strategy<Value = Report> {
    prop_oneof![
        Just(Report::Claim),
        Just(Report::Reached),
        Just(Report::Unreachable),
        Just(Report::Disturbed),
        Just(Report::Answered),
        (0_u64..400).prop_map(Report::Wait),
    ]
}

proptest! {
    /// Falls and recoveries alternate and agree with what is seen; probes are claimed only when
    /// due; a wait is within the backoff's bounds, and never longer for want of a prober.
    #[test]
    fn any_order_of_reports(reports in prop::collection::vec((report(), any::<u64>()), 0..200)) {
        let next_hop = NextHopState::new();
        let (mut now_ms, mut up, mut strikes) = (0, true, 0);
        for (report, random) in reports {
            let before = next_hop.availability(now_ms);
            match report {
                Report::Claim => {
                    let claimed = next_hop.try_claim_probe(now_ms, LEASE_MS);
                    prop_assert_eq!(claimed, before == Availability::ProbeDue);
                }
                Report::Reached => {
                    prop_assert_eq!(next_hop.reached(), !up);
                    strikes = if up { strikes } else { 0 };
                    up = true;
                }
                Report::Unreachable => {
                    prop_assert_eq!(next_hop.unreachable(now_ms, &BACKOFF, random), up);
                    up = false;
                }
                Report::Disturbed => {
                    let falls = up && strikes + 1 == NEXT_HOP_STRIKES_MAX;
                    prop_assert_eq!(next_hop.disturbed(now_ms, &BACKOFF, random), falls);
                    strikes = if up { strikes + 1 } else { strikes };
                    up &= !falls;
                }
                Report::Answered => {
                    next_hop.answered();
                    strikes = if up { 0 } else { strikes };
                }
                Report::Wait(ms) => now_ms += ms,
            }
            let after = next_hop.availability(now_ms);
            prop_assert_eq!(after == Availability::Up, up);
            if let Availability::Down { probe_at_ms } = after {
                prop_assert!(probe_at_ms > now_ms && probe_at_ms <= now_ms + 1200, "{:?}", after);
            }
        }
        // However it went, waiting brings a probe, and the probe brings it back.
        now_ms += 1200;
        prop_assert!(up || next_hop.try_claim_probe(now_ms, LEASE_MS));
        prop_assert_eq!(next_hop.reached(), !up);
        prop_assert_eq!(next_hop.availability(now_ms), Availability::Up);
    }
}
