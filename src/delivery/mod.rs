//! Delivery: where accepted mail goes, and when.
//!
//! Lives here: which next hops a domain's mail goes to (`route`), what all shards know of a next
//! hop (`next_hop`: up or down, the one probe, the transactions in flight), a shard's fair part
//! of its window (`share`), and how long to wait between tries (`backoff`).
//!
//! May use `queue`, `smtp`, `limits`, and of `policy` the map by domain and the atomics. No
//! socket, no clock, no configuration: time and randomness are arguments. `next_hop` and
//! `share` are compiled a second time by `tests/loom_next_hop.rs`, over loom's atomics.
//!
//! On failure: nothing here can fail once it is made. A domain without a route has none, and its
//! mail is held; a prober that never reports is replaced when its lease has run out; a next hop
//! that is down is probed until it is up, with ever longer waits up to `--retry-max`.

mod backoff;
mod next_hop;
mod route;
mod share;

#[cfg(test)]
mod next_hop_tests;
#[cfg(test)]
mod share_tests;

// `next_hop` takes its atomics from `super`, as it does in the loom models.
use crate::policy::atomic;

pub use backoff::{Backoff, expired};
pub use next_hop::{Availability, NextHopState};
pub use route::{NextHopId, RouteId, RoutePattern, Routes, TooManyRoutes, recipient_domain};
pub use share::{Window, WindowShare};
