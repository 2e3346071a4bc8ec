//! The atomics of the bell and what its waiting thread is woken by. `tests/loom_bell.rs` puts a module
//! of the same shape in this one's place.

pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
pub(super) use std::thread::Thread;
