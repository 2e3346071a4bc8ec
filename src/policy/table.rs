//! The shared tables: connections in all, connections per source, messages per source and minute.
//!
//! Each table is an array of atomics that every shard reads and writes directly; a source's place
//! in it is a [`Slot`], a keyed hash of its address. Nothing is inserted or evicted, a table is
//! never full, never allocates after it is made, and reading it is wait-free. An admission is one
//! compare-and-swap; a refusal is a load, so a flood from a source at its cap writes nothing.
//!
//! Guarantees, modelled in `tests/loom_tables.rs`: a connection count never passes the cap it was
//! asked with and never falls below zero; a rate window never holds more than its cap, also when
//! shards read clocks that differ.
//!
//! Two sources may share a slot. Then they share its cap; that harms only while their sum exceeds
//! it. With 2^20 slots and 5000 connections at most 250 slots can hold 20 connections, so the
//! chance for an innocent source to meet a full one is below 0.03 %. Which sources meet is decided
//! by random keys, so a peer cannot aim at another's slot.
//!
//! Rejected: two-word set-associative entries (key and count). Two shards that insert one key
//! while an earlier way frees put it in two ways, and then admit more than the cap. Rejected:
//! `fetch_add` and taking it back when over the cap: for a moment the count is too high, and
//! another shard refuses a connection that was due.
//!
//! All accesses are `Relaxed`: every decision is made by one read-modify-write of one word, and no
//! other memory is published through these words.

use super::atomic::{AtomicU32, AtomicU64, Ordering, zeroed};
use std::fmt;

/// Length of a rate window in milliseconds: the fixed minute of CONFORMANCE E4
/// (`[MS-OXSMTP]` 3.2.7, MessageRateLimitExceeded counts messages per minute). A definition, not
/// an option.
pub const RATE_WINDOW_MS: u32 = 60_000;

/// How many slots a table has: a power of two from [`SlotCount::MIN`] to [`SlotCount::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotCount(u32);

impl SlotCount {
    /// Fewest slots, 2^10. With fewer, sources share slots too often for caps to be fair.
    pub const MIN: u32 = 1 << 10;
    /// Most slots, 2^26: 1280 MB of address space for the three tables.
    pub const MAX: u32 = 1 << 26;

    /// `slots` as a count of slots, if it is one.
    ///
    /// # Errors
    /// [`SlotCountError`] when it is not a power of two or out of range.
    pub const fn new(slots: u32) -> Result<Self, SlotCountError> {
        if slots.is_power_of_two() && Self::MIN <= slots && slots <= Self::MAX {
            Ok(Self(slots))
        } else {
            Err(SlotCountError { slots })
        }
    }

    /// The number of slots.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A number that cannot be a table's count of slots: the operator's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotCountError {
    slots: u32,
}

impl fmt::Display for SlotCountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slots } = self;
        let (min, max) = (SlotCount::MIN, SlotCount::MAX);
        write!(f, "{slots} table slots: not a power of two from {min} to {max}")
    }
}

impl std::error::Error for SlotCountError {}

/// A source's place in the tables, made by `SourceHasher`. The same source has the same slot in
/// every table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot(u32);

impl Slot {
    /// The slot with this index. A table reduces it to its own length, so that a slot made for
    /// another count of slots is a wrong place, never a panic.
    pub(super) const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The word of `table` that is this slot's; lengths are powers of two ([`SlotCount`]).
    pub(super) fn of<T>(self, table: &[T]) -> &T {
        &table[self.0 as usize & (table.len() - 1)]
    }
}

/// Adds one connection if fewer than `cap` are counted; 0 is unlimited, and counted.
fn acquire(count: &AtomicU32, cap: u32) -> bool {
    // Unlimited still stops where one more would wrap around to zero.
    let cap = if cap == 0 { u32::MAX } else { cap };
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |connections| (connections < cap).then(|| connections + 1))
        .is_ok()
}

/// Takes one connection off. At zero it stays there: wrapping around would refuse everyone until
/// a restart, while one release too many admits one connection too many.
fn release(count: &AtomicU32) {
    let released = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |connections| connections.checked_sub(1));
    debug_assert!(released.is_ok(), "a connection was released that was never acquired");
}

/// Inbound connections of the whole process, all shards (CONFORMANCE E11).
#[derive(Debug, Default)]
pub struct ConnectionCounter {
    connections: AtomicU32,
}

impl ConnectionCounter {
    /// A counter at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one more connection if fewer than `cap` are open; false refuses it and counts
    /// nothing. 0 is unlimited. Every true is owed one [`release`](Self::release).
    ///
    /// The cap may change between calls (reload): a lower one closes nothing, and admits again
    /// once the count has fallen below it.
    #[must_use]
    pub fn try_acquire(&self, cap: u32) -> bool {
        acquire(&self.connections, cap)
    }

    /// Gives back one connection that [`try_acquire`](Self::try_acquire) admitted.
    pub fn release(&self) {
        release(&self.connections);
    }

    /// Connections open now.
    #[must_use]
    pub fn current(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Inbound connections per source, all shards (CONFORMANCE E12). 4 octets of address space per
/// slot; a page of memory is taken when a slot in it is first counted.
pub struct ConnectionTable {
    connections: Box<[AtomicU32]>,
}

impl ConnectionTable {
    /// A table with nothing counted.
    ///
    /// # Panics
    /// When there is no memory for it.
    #[must_use]
    pub fn new(slots: SlotCount) -> Self {
        Self { connections: zeroed(slots.get() as usize) }
    }

    /// Counts one more connection at `slot` if fewer than `cap` are open there; false refuses it
    /// and counts nothing. 0 is unlimited. Every true is owed one [`release`](Self::release).
    ///
    /// The cap may change between calls, as for [`ConnectionCounter::try_acquire`].
    #[must_use]
    pub fn try_acquire(&self, slot: Slot, cap: u32) -> bool {
        acquire(slot.of(&self.connections), cap)
    }

    /// Gives back one connection that [`try_acquire`](Self::try_acquire) admitted at `slot`.
    pub fn release(&self, slot: Slot) {
        release(slot.of(&self.connections));
    }

    /// Connections open at `slot` now.
    #[must_use]
    pub fn current(&self, slot: Slot) -> u32 {
        slot.of(&self.connections).load(Ordering::Relaxed)
    }
}

impl fmt::Debug for ConnectionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The slots themselves would be a million lines, and reading them would map them.
        f.debug_struct("ConnectionTable").field("slots", &self.connections.len()).finish()
    }
}

/// Messages per source in a fixed window (CONFORMANCE E4): the window begins with the first one
/// counted and ends [`RATE_WINDOW_MS`] later; the next one counted after that begins another.
/// Only admitted messages are counted, so a refused client does not prolong its own refusal.
///
/// 8 octets of address space per slot; a page of memory is taken when a slot in it is first
/// counted.
pub struct RateTable {
    /// Packed [`Window`]s. A slot never counted is zero, which is a window with a count of zero.
    windows: Box<[AtomicU64]>,
    window_ms: u64,
}

impl RateTable {
    /// A table with nothing counted.
    ///
    /// # Panics
    /// When there is no memory for it.
    #[must_use]
    pub fn new(slots: SlotCount) -> Self {
        Self::with_window(slots, RATE_WINDOW_MS)
    }

    /// The same with windows of `window_ms` milliseconds, for tests.
    pub(super) fn with_window(slots: SlotCount, window_ms: u32) -> Self {
        Self { windows: zeroed(slots.get() as usize), window_ms: u64::from(window_ms) }
    }

    /// Counts one more message at `slot` if fewer than `cap` are counted in its window at
    /// `now_ms`; false refuses it and counts nothing. 0 is unlimited, and not counted. A cap over
    /// 16,777,215 (280,000 messages a second, from one source) acts as that.
    ///
    /// `now_ms` is a steady clock with the same origin on every shard; which origin does not
    /// matter. Shards that cache their clocks may lag behind each other: a message whose time
    /// lies before the window's start is counted in that window, because beginning an older one
    /// would forget what the newer has counted.
    #[must_use]
    pub fn try_count(&self, slot: Slot, now_ms: u64, cap: u32) -> bool {
        if cap == 0 {
            return true;
        }
        let cap = cap.min(COUNT_MAX);
        slot.of(&self.windows)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                let window = Window::unpack(word);
                if window.count == 0 || window.is_over(now_ms, self.window_ms) {
                    Some(Window::first(now_ms).pack())
                } else if window.count < cap {
                    Some(window.and_one_more().pack())
                } else {
                    None
                }
            })
            .is_ok()
    }
}

impl RateTable {
    /// Takes back what [`Self::try_count`] counted under a `cap` other than 0.
    pub fn uncount(&self, slot: Slot) {
        // A window that began meanwhile may have nothing to give back.
        let _ = slot.of(&self.windows).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let window = Window::unpack(word);
            (window.count > 0).then(|| Window { count: window.count - 1, ..window }.pack())
        });
    }
}

impl fmt::Debug for RateTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateTable").field("slots", &self.windows.len()).field("window_ms", &self.window_ms).finish()
    }
}

/// Low bits of a packed window: its count.
const COUNT_BITS: u32 = 24;
/// High bits of a packed window: its start in milliseconds, modulo 2^40 (34.8 years).
const START_BITS: u32 = 40;
/// Most messages a window can count.
const COUNT_MAX: u32 = (1 << COUNT_BITS) - 1;
/// The bits of a time that a packed window keeps; ages are computed within them.
const START_MASK: u64 = (1 << START_BITS) - 1;
/// Ages from here on are negative (serial numbers as in RFC 1982): the reader's clock lags behind
/// the window's start. A slot left alone for 17.4 years is misread so once, as not yet over.
const AGE_NEGATIVE: u64 = 1 << (START_BITS - 1);

const _: () = {
    assert!(START_BITS + COUNT_BITS == u64::BITS);
    // Any window a u32 can express ends long before ages turn negative.
    assert!((u32::MAX as u64) < AGE_NEGATIVE);
    assert!(RATE_WINDOW_MS > 0);
};

/// When a window began and how many messages it holds.
#[derive(Clone, Copy)]
struct Window {
    /// On the caller's clock; modulo 2^40 once unpacked.
    start_ms: u64,
    /// At most [`COUNT_MAX`].
    count: u32,
}

impl Window {
    /// A window that begins now, with its first message.
    fn first(now_ms: u64) -> Self {
        Self { start_ms: now_ms, count: 1 }
    }

    /// The caller has compared the count with a cap of at most [`COUNT_MAX`].
    fn and_one_more(self) -> Self {
        Self { count: self.count + 1, ..self }
    }

    fn is_over(self, now_ms: u64, window_ms: u64) -> bool {
        let age_ms = now_ms.wrapping_sub(self.start_ms) & START_MASK;
        (window_ms..AGE_NEGATIVE).contains(&age_ms)
    }

    fn pack(self) -> u64 {
        // The shift drops what the start has beyond its 40 bits.
        self.start_ms << COUNT_BITS | u64::from(self.count)
    }

    fn unpack(word: u64) -> Self {
        Self { start_ms: word >> COUNT_BITS, count: (word & u64::from(COUNT_MAX)) as u32 }
    }
}
