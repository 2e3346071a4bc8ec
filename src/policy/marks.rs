//! Tarpit marks: whose next banner is to be late (CONFORMANCE E17).
//!
//! Another of the shared tables (`table`): an array of atomics, one per [`Slot`], written and read
//! by every shard, never full, and without allocation once it is made. A mark is one swap; looking
//! for one is a load, and taking it one compare-and-swap more.
//!
//! Where two sources share a slot the newest mark wins: the older one is forgotten, and its
//! source's banner is on time. The mark carries a [`Fingerprint`] of its source, so that an
//! innocent source in the same slot is not made to wait; the hash is keyed, so that a peer cannot
//! choose an address to wipe another's mark, nor to be taken for another.
//!
//! Guarantees, modelled in `tests/loom_tables.rs`: a mark is taken once at most, however many
//! connections of its source are being admitted at the moment, and a mark that is set while
//! another is taken is not lost.
//!
//! All accesses are `Relaxed`, for the reason that `table` gives.

use super::atomic::{AtomicU64, Ordering, zeroed};
use super::table::{Slot, SlotCount};
use crate::limits::TARPIT_MARK_MS;
use std::fmt;

/// High bits of a mark: its source's fingerprint.
const FINGERPRINT_BITS: u32 = 24;
/// Low bits of a mark: when it expires in milliseconds, modulo 2^40 (34.8 years).
const EXPIRY_BITS: u32 = 40;
/// The bits of a time that a mark keeps; the time left is computed within them.
const EXPIRY_MASK: u64 = (1 << EXPIRY_BITS) - 1;
/// Times left from here on are negative (serial numbers as in RFC 1982): the mark has expired. One
/// that nobody took or overwrote for 17.4 years would be taken for a fresh one.
const LEFT_NEGATIVE: u64 = 1 << (EXPIRY_BITS - 1);

const _: () = {
    assert!(FINGERPRINT_BITS + EXPIRY_BITS == u64::BITS);
    assert!(0 < TARPIT_MARK_MS && TARPIT_MARK_MS < LEFT_NEGATIVE);
};

/// What tells the sources of one slot apart: 24 bits of the hash that the slot was not made of.
/// Never zero, so that no mark is an empty slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u32);

impl Fingerprint {
    /// The fingerprint of a hash: its highest bits, while slots are its lowest.
    pub(super) const fn of_hash(hash: u64) -> Self {
        let high = (hash >> EXPIRY_BITS) as u32;
        // One value in 16 million stands for two.
        Self(if high == 0 { 1 } else { high })
    }
}

const _: () = assert!(SlotCount::MAX as u64 <= 1 << EXPIRY_BITS, "slots and fingerprints share no bits of the hash");

/// The marks of all sources, all shards. 8 octets of address space per slot; a page of memory is
/// taken when a slot in it is first marked.
pub struct TarpitMarks {
    /// Fingerprint and expiry; 0 is empty.
    marks: Box<[AtomicU64]>,
}

impl TarpitMarks {
    /// A table without marks.
    ///
    /// # Panics
    /// When there is no memory for it.
    #[must_use]
    pub fn new(slots: SlotCount) -> Self {
        Self { marks: zeroed(slots.get() as usize) }
    }

    /// Marks a source from `now_ms` on for [`TARPIT_MARK_MS`], in the place of whatever mark its
    /// slot holds. `now_ms` is a steady clock as for `RateTable::try_count`.
    pub fn mark(&self, slot: Slot, fingerprint: Fingerprint, now_ms: u64) {
        let expiry_ms = now_ms.wrapping_add(TARPIT_MARK_MS) & EXPIRY_MASK;
        let mark = u64::from(fingerprint.0) << EXPIRY_BITS | expiry_ms;
        // A swap, whose old value nobody needs, because all accesses of the word then have one
        // order: loom lets a plain store and a compare-and-swap beside it change places.
        slot.of(&self.marks).swap(mark, Ordering::Relaxed);
    }

    /// Takes the mark of a source off, and says whether there was one that had not expired at
    /// `now_ms`. Of two that take at once one gets it.
    #[must_use]
    pub fn take(&self, slot: Slot, fingerprint: Fingerprint, now_ms: u64) -> bool {
        slot.of(&self.marks)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |mark| {
                let left_ms = (mark & EXPIRY_MASK).wrapping_sub(now_ms) & EXPIRY_MASK;
                let is_its = mark >> EXPIRY_BITS == u64::from(fingerprint.0);
                (is_its && (1..LEFT_NEGATIVE).contains(&left_ms)).then_some(0)
            })
            .is_ok()
    }
}

impl fmt::Debug for TarpitMarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TarpitMarks").field("slots", &self.marks.len()).finish()
    }
}
