//! The atomics of the state that shards share, and how an array of them is allocated.
//!
//! `table.rs` and `delivery`'s `next_hop.rs` take them from here and from nowhere else: the models
//! in `tests/loom_*.rs` put a module of the same shape in this one's place and run the same code
//! over loom's atomics.

use zerocopy::{FromZeros, KnownLayout};

pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// An array of `count` zeros that costs no memory until a slot is written: it is asked of the allocator as zeroed
/// memory, which the kernel maps on first touch. (Rejected, measured at 2^20 slots: collecting `AtomicU32::new(0)` maps
/// all 4 MB unless the optimiser sees through it; `vec![0; count]` turned into atomics in place maps them always.)
///
/// # Panics
/// When the allocator has no room. Tables are made at start-up only.
pub(crate) fn zeroed<T>(count: usize) -> Box<[T]>
where
    [T]: FromZeros + KnownLayout<PointerMetadata = usize>,
{
    <[T]>::new_box_zeroed_with_elems(count).unwrap_or_else(|_| panic!("no memory for a table of {count} slots"))
}
