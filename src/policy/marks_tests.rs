//! Tests of `marks.rs`, in a file of their own for the reason that `table_tests.rs` gives.

use super::marks::*;
use super::table::{Slot, SlotCount};
use crate::limits::TARPIT_MARK_MS;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

const SLOTS: SlotCount = match SlotCount::new(SlotCount::MIN) {
    Ok(slots) => slots,
    Err(_) => panic!(),
};
const SLOT: Slot = Slot::new(7);

/// The source whose hash has these highest bits.
fn source(high: u64) -> Fingerprint {
    Fingerprint::of_hash(high << 40)
}

#[test]
fn once_by_the_same_source() {
    let marks = TarpitMarks::new(SLOTS);
    assert!(!marks.take(SLOT, source(1), 0), "nobody is marked");
    marks.mark(SLOT, source(1), 1_000);
    assert!(!marks.take(SLOT, source(2), 1_000), "another source in its slot");
    assert!(!marks.take(Slot::new(8), source(1), 1_000), "another slot");
    assert!(marks.take(SLOT, source(1), 1_000));
    assert!(!marks.take(SLOT, source(1), 1_000), "once");
    marks.mark(SLOT, source(1), 2_000);
    marks.mark(SLOT, source(1), 2_001);
    assert!(marks.take(SLOT, source(1), 2_001));
    assert!(!marks.take(SLOT, source(1), 2_001), "two refused commands, one late banner");
}

#[test]
fn the_newest_wins() {
    let marks = TarpitMarks::new(SLOTS);
    marks.mark(SLOT, source(1), 0);
    marks.mark(SLOT, source(2), 1);
    assert!(!marks.take(SLOT, source(1), 2));
    assert!(marks.take(SLOT, source(2), 2));
}

#[test]
fn within_its_time() {
    // (marked, taken, whether it is still there)
    let wrap_ms = 1 << 40;
    let table = [
        (0, 0, true),
        (0, TARPIT_MARK_MS - 1, true),
        (0, TARPIT_MARK_MS, false),
        (0, TARPIT_MARK_MS + 1, false),
        (0, 1_000 * TARPIT_MARK_MS, false),
        // The taker's clock lags behind the marker's.
        (5_000, 4_990, true),
        // Wherever the kept bits wrap.
        (wrap_ms - 1, wrap_ms + TARPIT_MARK_MS - 2, true),
        (wrap_ms - 1, wrap_ms + TARPIT_MARK_MS - 1, false),
        (wrap_ms - TARPIT_MARK_MS, wrap_ms - 1, true),
        (wrap_ms - TARPIT_MARK_MS, wrap_ms, false),
        (u64::MAX - 10, u64::MAX, true),
    ];
    for (marked_ms, taken_ms, expected) in table {
        let marks = TarpitMarks::new(SLOTS);
        marks.mark(SLOT, source(3), marked_ms);
        assert_eq!(marks.take(SLOT, source(3), taken_ms), expected, "{marked_ms} {taken_ms}");
    }
}

/// An empty slot is nobody's mark: a hash whose highest bits are zero has a fingerprint, too.
#[test]
fn no_source_owns_the_empty_slots() {
    let marks = TarpitMarks::new(SLOTS);
    // To these clocks a zero expiry would lie ahead.
    for now_ms in [(1 << 40) - 1, (1 << 40) - TARPIT_MARK_MS] {
        assert!(!marks.take(SLOT, source(0), now_ms));
    }
    marks.mark(SLOT, source(0), (1 << 40) - TARPIT_MARK_MS);
    assert!(marks.take(SLOT, source(0), (1 << 40) - 1));
}

#[test]
fn any_slot_is_in_the_table() {
    let marks = TarpitMarks::new(SLOTS);
    marks.mark(Slot::new(u32::MAX), source(1), 0);
    assert!(marks.take(Slot::new(SLOTS.get() - 1), source(1), 0));
}

/// Threads that mark and take at one slot: no more are taken than were set.
#[test]
fn no_mark_is_taken_twice_under_contention() {
    const ROUNDS: u32 = 20_000;
    let marks = TarpitMarks::new(SLOTS);
    let (set, taken) = (AtomicU32::new(0), AtomicU32::new(0));
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for marker in [true, false, false, false] {
            let (marks, set, taken, start) = (&marks, &set, &taken, &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..ROUNDS {
                    if marker {
                        // Counted before it can be taken.
                        set.fetch_add(1, Ordering::SeqCst);
                        marks.mark(SLOT, source(1), 0);
                    } else if marks.take(SLOT, source(1), 1) {
                        taken.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    let left = u32::from(marks.take(SLOT, source(1), 1));
    let taken = taken.into_inner() + left;
    assert!((1..=set.into_inner()).contains(&taken), "{taken}");
}

proptest! {
    /// The oracle keeps who was marked last in each slot, and when, and knows nothing of packing.
    #[test]
    fn marks_agree_with_a_map(
        ops in prop::collection::vec((0..2u32, 0..3u64, any::<bool>(), 0..TARPIT_MARK_MS / 2), 0..200),
        origin_ms in prop_oneof![Just(0), Just((1u64 << 40) - 100_000), 0..u64::MAX / 2],
    ) {
        let marks = TarpitMarks::new(SLOTS);
        let mut map: HashMap<u32, (u64, u64)> = HashMap::new();
        let mut now_ms = origin_ms;
        for (index, high, marks_it, later_ms) in ops {
            now_ms += later_ms;
            if marks_it {
                marks.mark(Slot::new(index), source(1 + high), now_ms);
                map.insert(index, (high, now_ms));
            } else {
                let is_there = map
                    .get(&index)
                    .is_some_and(|&(marked, marked_ms)| marked == high && now_ms < marked_ms + TARPIT_MARK_MS);
                if is_there {
                    map.remove(&index);
                }
                prop_assert_eq!(marks.take(Slot::new(index), source(1 + high), now_ms), is_there);
            }
        }
    }
}
