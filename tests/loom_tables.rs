//! The shared tables under every interleaving, by loom.
//!
//! `src/policy/table.rs` and `marks.rs` are compiled here a second time, with this file's `atomic`
//! in the place of the crate's own: loom's atomics, which let a model choose each load, store and exchange. The
//! models run in plain `cargo test`. Where three threads would make the choices too many, the
//! preemptions per run are bounded (two find nearly all faults of this kind).

#[allow(dead_code, reason = "the models use a part of the tables")]
#[path = "../src/policy/table.rs"]
mod table;

#[path = "../src/policy/marks.rs"]
mod marks;

/// Stands for `src/policy/atomic.rs`.
mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    /// Two slots, whatever is asked for: loom follows each atomic through each run, and the models
    /// need one slot and a neighbour.
    pub(crate) fn zeroed<T: Default>(_count: usize) -> Box<[T]> {
        Box::new([T::default(), T::default()])
    }
}

use gatepost::limits;
use loom::sync::Arc;
use loom::thread;
use marks::{Fingerprint, TarpitMarks};
use table::{ConnectionCounter, ConnectionTable, RateTable, Slot, SlotCount};

const SLOT: Slot = Slot::new(1);
const WINDOW_MS: u32 = 10;

fn slots() -> SlotCount {
    SlotCount::new(SlotCount::MIN).expect("a count")
}

/// The source whose hash has these highest bits.
fn source(high: u64) -> Fingerprint {
    Fingerprint::of_hash(high << 40)
}

/// Runs `model` under every interleaving of at most `preemptions` preemptions.
fn model_bounded(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Runs `each` on two threads with 0 and 1, and returns what they returned.
fn on_two_threads<T: 'static>(each: impl Fn(usize) -> T + Send + Sync + 'static) -> [T; 2] {
    let each = Arc::new(each);
    let other = {
        let each = Arc::clone(&each);
        thread::spawn(move || each(1))
    };
    let one = each(0);
    [one, other.join().expect("a thread that ends")]
}

#[test]
fn of_two_that_want_the_last_place_one_gets_it() {
    loom::model(|| {
        let table = Arc::new(ConnectionTable::new(slots()));
        let admitted = on_two_threads({
            let table = Arc::clone(&table);
            move |_| table.try_acquire(SLOT, 1)
        });
        assert!(admitted[0] ^ admitted[1], "{admitted:?}");
        assert_eq!(table.current(SLOT), 1);
    });
}

#[test]
fn the_total_admits_its_cap() {
    model_bounded(2, || {
        let total = Arc::new(ConnectionCounter::new());
        let admitted = on_two_threads({
            let total = Arc::clone(&total);
            move |_| u32::from(total.try_acquire(3)) + u32::from(total.try_acquire(3))
        });
        assert_eq!(admitted[0] + admitted[1], 3);
        assert_eq!(total.current(), 3);
    });
}

/// Two connections take a place in the total, and only then say that they are of one source, which has
/// room for one: that one keeps both places, the other gives its own back, and nobody else is refused.
#[test]
fn of_two_in_the_total_the_source_gets_one() {
    model_bounded(3, || {
        let (total, per_source) = (Arc::new(ConnectionCounter::new()), Arc::new(ConnectionTable::new(slots())));
        let admitted = on_two_threads({
            let (total, per_source) = (Arc::clone(&total), Arc::clone(&per_source));
            move |_| {
                assert!(total.try_acquire(2), "there is room for two");
                let is_admitted = per_source.try_acquire(SLOT, 1);
                if !is_admitted {
                    total.release();
                }
                is_admitted
            }
        });
        assert!(admitted[0] ^ admitted[1], "{admitted:?}");
        assert_eq!((total.current(), per_source.current(SLOT)), (1, 1));
        per_source.release(SLOT);
        total.release();
        assert_eq!((total.current(), per_source.current(SLOT)), (0, 0));
    });
}

/// Two connections come and go while a third looks on: it never sees more than the cap, nobody
/// holds a place that another holds, no release is lost and none takes the count below zero
/// (`release` asserts that).
#[test]
fn coming_and_going_stays_within_the_cap() {
    model_bounded(2, || {
        let table = Arc::new(ConnectionTable::new(slots()));
        let inside = Arc::new(atomic::AtomicU32::new(0));
        let watcher = {
            let table = Arc::clone(&table);
            thread::spawn(move || assert!(table.current(SLOT) <= 1))
        };
        on_two_threads({
            let table = Arc::clone(&table);
            move |_| {
                for _ in 0..2 {
                    if table.try_acquire(SLOT, 1) {
                        let others = inside.fetch_add(1, atomic::Ordering::Relaxed);
                        assert_eq!(others, 0, "two hold the one place");
                        inside.fetch_sub(1, atomic::Ordering::Relaxed);
                        table.release(SLOT);
                    }
                }
            }
        });
        watcher.join().expect("a count within the cap");
        assert_eq!(table.current(SLOT), 0);
    });
}

/// Releases that meet each other, and an acquire that meets a release, are all counted.
#[test]
fn no_release_is_lost() {
    loom::model(|| {
        let table = Arc::new(ConnectionTable::new(slots()));
        assert!(table.try_acquire(SLOT, 2) && table.try_acquire(SLOT, 2));
        let admitted = on_two_threads({
            let table = Arc::clone(&table);
            move |_| {
                table.release(SLOT);
                table.try_acquire(SLOT, 2)
            }
        });
        assert_eq!(admitted, [true, true], "each released before it asked");
        assert_eq!(table.current(SLOT), 2);
    });
}

#[test]
fn a_window_admits_its_cap() {
    loom::model(|| {
        let rate = Arc::new(RateTable::with_window(slots(), WINDOW_MS));
        let admitted = on_two_threads({
            let rate = Arc::clone(&rate);
            move |_| rate.try_count(SLOT, 5, 1)
        });
        assert!(admitted[0] ^ admitted[1], "{admitted:?}");
    });
}

/// Both find the old window full and over: one begins the next, and the other is counted in it.
#[test]
fn at_the_edge_one_window_begins() {
    for cap in 1..=3 {
        model_bounded(3, move || {
            let rate = Arc::new(RateTable::with_window(slots(), WINDOW_MS));
            for _ in 0..cap {
                assert!(rate.try_count(SLOT, 0, cap));
            }
            let admitted = on_two_threads({
                let rate = Arc::clone(&rate);
                move |_| {
                    let counted = [10, 11].map(|now_ms| rate.try_count(SLOT, now_ms, cap));
                    counted.into_iter().map(u32::from).sum::<u32>()
                }
            });
            assert_eq!(admitted[0] + admitted[1], cap);
        });
    }
}

/// One clock has passed the edge, the other lags behind it: the lagging one is refused by the old
/// window or counted in the new one, and never begins an older one anew.
#[test]
fn at_the_edge_with_clocks_that_differ() {
    for cap in 1..=2 {
        model_bounded(3, move || {
            let rate = Arc::new(RateTable::with_window(slots(), WINDOW_MS));
            for _ in 0..cap {
                assert!(rate.try_count(SLOT, 0, cap));
            }
            let admitted = on_two_threads({
                let rate = Arc::clone(&rate);
                move |thread| {
                    let times_ms = if thread == 0 { [10, 11] } else { [8, 9] };
                    let counted = times_ms.map(|now_ms| rate.try_count(SLOT, now_ms, cap));
                    counted.into_iter().map(u32::from).sum::<u32>()
                }
            });
            // The one past the edge fills the new window as far as its two messages go, but for
            // what the other put there.
            assert_eq!(admitted[0] + admitted[1], cap);
        });
    }
}

/// Two connections of a marked source are admitted at once: one of them waits.
#[test]
fn of_two_that_take_a_mark_one_gets_it() {
    loom::model(|| {
        let marks = Arc::new(TarpitMarks::new(slots()));
        marks.mark(SLOT, source(1), 0);
        let taken = on_two_threads({
            let marks = Arc::clone(&marks);
            move |_| marks.take(SLOT, source(1), 1)
        });
        assert!(taken[0] ^ taken[1], "{taken:?}");
    });
}

/// Two take while a third marks anew: never more than were set, and the new mark, if nobody took
/// it, is there for the next connection.
#[test]
fn no_mark_is_taken_twice_or_lost() {
    loom::model(|| {
        let marks = Arc::new(TarpitMarks::new(slots()));
        marks.mark(SLOT, source(1), 0);
        let marker = {
            let marks = Arc::clone(&marks);
            thread::spawn(move || marks.mark(SLOT, source(1), 5))
        };
        let taken = on_two_threads({
            let marks = Arc::clone(&marks);
            move |_| marks.take(SLOT, source(1), 6)
        });
        marker.join().expect("a mark");
        let left = marks.take(SLOT, source(1), 6);
        let taken: u32 = [taken[0], taken[1], left].map(u32::from).into_iter().sum();
        // One if the new mark was set over the old one, two if it came after that was taken.
        assert!(taken == 1 || taken == 2, "{taken}");
        assert!(!marks.take(SLOT, source(1), 6));
    });
}

/// A mark of another source in the same slot, set at any moment, makes nobody else wait.
#[test]
fn a_neighbour_is_not_taken_for_the_marked() {
    loom::model(|| {
        let marks = Arc::new(TarpitMarks::new(slots()));
        marks.mark(SLOT, source(1), 0);
        let marker = {
            let marks = Arc::clone(&marks);
            thread::spawn(move || marks.mark(SLOT, source(2), 5))
        };
        let taken = on_two_threads({
            let marks = Arc::clone(&marks);
            move |thread| marks.take(SLOT, source(1 + 2 * thread as u64), 6)
        });
        marker.join().expect("a mark");
        assert!(!taken[1], "a third source");
        assert!(marks.take(SLOT, source(2), 6), "the newest stays until its source takes it");
    });
}
