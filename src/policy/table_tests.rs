//! Tests of `table.rs`. They stand in a file of their own because `tests/loom_tables.rs` compiles
//! `table.rs` over loom's atomics, which exist only inside a model.

use super::table::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

const SLOTS: SlotCount = match SlotCount::new(SlotCount::MIN) {
    Ok(slots) => slots,
    Err(_) => panic!(),
};
const THREADS: u32 = 4;
const ROUNDS: u32 = 20_000;

fn slot(index: u32) -> Slot {
    Slot::new(index)
}

#[test]
fn slot_counts() {
    for slots in [1 << 10, 1 << 20, 1 << 26] {
        assert_eq!(SlotCount::new(slots).map(SlotCount::get), Ok(slots));
    }
    for slots in [0, 1, 512, 1000, (1 << 20) + 1, 1 << 27, u32::MAX] {
        let error = SlotCount::new(slots).expect_err("no count");
        assert!(error.to_string().starts_with(&slots.to_string()), "{error}");
    }
}

#[test]
fn the_twentieth_is_served_the_next_is_not() {
    let table = ConnectionTable::new(SLOTS);
    for _ in 0..20 {
        assert!(table.try_acquire(slot(7), 20));
    }
    assert!(!table.try_acquire(slot(7), 20));
    assert_eq!(table.current(slot(7)), 20);
    assert!(table.try_acquire(slot(8), 20), "another source is not concerned");
    table.release(slot(7));
    assert!(table.try_acquire(slot(7), 20));
    assert!(!table.try_acquire(slot(7), 10), "a lower cap closes nothing and admits nothing");
    assert!(table.try_acquire(slot(7), 0), "unlimited");
    assert_eq!(table.current(slot(7)), 21, "unlimited is counted");
}

#[test]
fn the_total_counts_likewise() {
    let total = ConnectionCounter::new();
    assert!(total.try_acquire(2));
    assert!(total.try_acquire(2));
    assert!(!total.try_acquire(2));
    assert!(total.try_acquire(0));
    assert_eq!(total.current(), 3);
    for _ in 0..3 {
        total.release();
    }
    assert_eq!(total.current(), 0);
}

/// A slot made for a larger table is a place in a smaller one.
#[test]
fn any_slot_is_in_any_table() {
    let (connections, rate) = (ConnectionTable::new(SLOTS), RateTable::new(SLOTS));
    for index in [0, SLOTS.get() - 1, SLOTS.get(), u32::MAX] {
        assert!(connections.try_acquire(slot(index), 0));
        assert!(rate.try_count(slot(index), 0, 2));
    }
    assert_eq!(connections.current(slot(0)), 2);
    assert_eq!(connections.current(slot(SLOTS.get() - 1)), 2);
}

#[test]
#[cfg_attr(debug_assertions, should_panic = "never acquired")]
fn one_release_too_many_stays_at_zero() {
    let total = ConnectionCounter::new();
    total.release();
    assert_eq!(total.current(), 0);
}

#[test]
fn the_minute_begins_with_the_first_one_counted() {
    let table = RateTable::new(SLOTS);
    let start_ms = 123_456;
    for age_ms in [0, 1, 59_000] {
        assert!(table.try_count(slot(1), start_ms + age_ms, 3));
    }
    for age_ms in [59_000, 59_999] {
        assert!(!table.try_count(slot(1), start_ms + age_ms, 3));
    }
    assert!(table.try_count(slot(2), start_ms, 3), "another source is not concerned");
    // Not prolonged by the refused; a full cap from here on, until 60 s after this one.
    for age_ms in [60_000, 119_000, 119_999] {
        assert!(table.try_count(slot(1), start_ms + age_ms, 3));
    }
    assert!(!table.try_count(slot(1), start_ms + 119_999, 3));
    assert!(table.try_count(slot(1), start_ms + 120_000, 3));
}

#[test]
fn a_lagging_clock_counts_in_the_newer_window() {
    let table = RateTable::with_window(SLOTS, 10);
    assert!(table.try_count(slot(1), 1_000, 2));
    assert!(table.try_count(slot(1), 995, 2));
    assert!(!table.try_count(slot(1), 990, 2), "no older window begins");
    assert!(!table.try_count(slot(1), 0, 2), "however far behind");
    assert!(!table.try_count(slot(1), 1_009, 2));
    assert!(table.try_count(slot(1), 1_010, 2));
}

#[test]
fn rates_without_a_cap_and_with_changing_ones() {
    let table = RateTable::with_window(SLOTS, 10);
    for _ in 0..5 {
        assert!(table.try_count(slot(1), 0, 0), "unlimited");
    }
    assert!(table.try_count(slot(1), 3, 2), "unlimited was not counted");
    assert!(table.try_count(slot(1), 3, 2));
    assert!(!table.try_count(slot(1), 12, 2), "the window began at 3");
    assert!(table.try_count(slot(1), 12, u32::MAX));
    assert!(!table.try_count(slot(1), 12, 3));
    assert!(!table.try_count(slot(1), 12, 1), "a lower cap refuses");
}

/// The start is kept modulo 2^40 ms; neither its wrap nor a clock of any origin matters.
#[test]
fn any_origin_of_the_clock_will_do() {
    let wrap_ms = 1 << 40;
    for start_ms in [0, wrap_ms - 5, wrap_ms, 1_790_000_000_000, u64::MAX - 20] {
        let table = RateTable::with_window(SLOTS, 10);
        assert!(table.try_count(slot(1), start_ms, 1));
        assert!(!table.try_count(slot(1), start_ms + 9, 1), "{start_ms}");
        assert!(!table.try_count(slot(1), start_ms.saturating_sub(9), 1), "{start_ms}");
        assert!(table.try_count(slot(1), start_ms + 10, 1), "{start_ms}");
    }
}

/// The count's 24 bits end at the cap and never run into the start's.
#[test]
fn the_largest_count_is_a_cap() {
    let most = (1 << 24) - 1;
    let table = RateTable::with_window(SLOTS, 10);
    for _ in 0..most {
        assert!(table.try_count(slot(1), 7, u32::MAX));
    }
    for _ in 0..3 {
        assert!(!table.try_count(slot(1), 16, u32::MAX));
    }
    assert!(table.try_count(slot(1), 17, u32::MAX));
}

/// Threads that open and close at one slot: at no time are more than the cap inside.
#[test]
fn connections_under_contention() {
    const CAP: u32 = 3;
    let (total, table) = (ConnectionCounter::new(), ConnectionTable::new(SLOTS));
    let (inside, admitted) = (AtomicU32::new(0), AtomicU32::new(0));
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                for round in 0..ROUNDS {
                    if !total.try_acquire(CAP) {
                        continue;
                    }
                    assert!(table.try_acquire(slot(5), CAP), "never fuller than the total");
                    // Entered after the acquire and left before the release, so this never
                    // counts more than the table does.
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < CAP);
                    admitted.fetch_add(1, Ordering::Relaxed);
                    if round % 64 == 0 {
                        // Keep it across other threads' turns, also on one core.
                        thread::yield_now();
                    }
                    inside.fetch_sub(1, Ordering::SeqCst);
                    table.release(slot(5));
                    total.release();
                }
            });
        }
    });
    assert!(admitted.into_inner() > 0);
    assert_eq!((total.current(), table.current(slot(5))), (0, 0));
}

/// Without releases the admitted are exactly the cap, whoever they are.
#[test]
fn exactly_the_cap_under_contention() {
    const CAP: u32 = THREADS * ROUNDS / 2;
    let (connections, rate) = (ConnectionTable::new(SLOTS), RateTable::new(SLOTS));
    let (opened, counted) = (AtomicU32::new(0), AtomicU32::new(0));
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                for _ in 0..ROUNDS {
                    let open = connections.try_acquire(slot(9), CAP);
                    opened.fetch_add(open.into(), Ordering::Relaxed);
                    let count = rate.try_count(slot(9), 1, CAP);
                    counted.fetch_add(count.into(), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!((opened.into_inner(), counted.into_inner()), (CAP, CAP));
    assert_eq!(connections.current(slot(9)), CAP);
}

/// Threads with clocks of their own that differ by less than a window: windows begin at least
/// their length apart, so a span of time holds no more than so many full ones.
#[test]
fn rates_under_contention_with_unequal_clocks() {
    const CAP: u32 = 5;
    const WINDOW_MS: u32 = 50;
    let rate = RateTable::with_window(SLOTS, WINDOW_MS);
    let counted = AtomicU32::new(0);
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for lag_ms in 0..THREADS {
            let (rate, counted, start) = (&rate, &counted, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..ROUNDS {
                    let now_ms = u64::from(1000 + round / 4 - lag_ms * 7);
                    let count = rate.try_count(slot(1), now_ms, CAP);
                    counted.fetch_add(count.into(), Ordering::Relaxed);
                }
            });
        }
    });
    let span_ms = ROUNDS / 4 + THREADS * 7;
    let windows = span_ms / WINDOW_MS + 1;
    let counted = counted.into_inner();
    assert!(counted <= windows * CAP, "{counted} in {windows} windows");
    assert!(counted >= CAP * 2);
}

proptest! {
    #[test]
    fn connections_agree_with_a_map(
        ops in prop::collection::vec((0..4u32, 0..5u32, any::<bool>()), 0..200),
    ) {
        let table = ConnectionTable::new(SLOTS);
        let mut map: HashMap<u32, u32> = HashMap::new();
        for (index, cap, open) in ops {
            let count = map.entry(index).or_default();
            if open {
                let admitted = cap == 0 || *count < cap;
                *count += u32::from(admitted);
                prop_assert_eq!(table.try_acquire(slot(index), cap), admitted);
            } else if *count > 0 {
                *count -= 1;
                table.release(slot(index));
            }
            prop_assert_eq!(table.current(slot(index)), *count);
        }
    }

    /// The oracle keeps every admitted message's time and knows nothing of packing.
    #[test]
    fn rates_agree_with_a_list(
        ops in prop::collection::vec((0..3u32, 0..8u64, 0..4u64, 0..4u32), 0..200),
        origin_ms in prop_oneof![Just(0), Just((1u64 << 40) - 50), 0..u64::MAX / 2],
    ) {
        const WINDOW_MS: u32 = 10;
        let table = RateTable::with_window(SLOTS, WINDOW_MS);
        let mut admitted: HashMap<u32, Vec<u64>> = HashMap::new();
        let mut time_ms = 10;
        for (index, later_ms, lag_ms, cap) in ops {
            time_ms += later_ms;
            let now_ms = time_ms - lag_ms;
            if cap == 0 {
                prop_assert!(table.try_count(slot(index), origin_ms + now_ms, cap));
                continue;
            }
            let window = admitted.entry(index).or_default();
            if window.first().is_some_and(|start_ms| now_ms >= start_ms + u64::from(WINDOW_MS)) {
                window.clear();
            }
            let expected = window.len() < cap as usize;
            if expected {
                window.push(now_ms);
            }
            let counted = table.try_count(slot(index), origin_ms + now_ms, cap);
            prop_assert_eq!(counted, expected, "at {} with {:?}", now_ms, window);
        }
    }
}
