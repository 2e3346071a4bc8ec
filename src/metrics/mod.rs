//! Metrics: the table of their names, and handles to them.
//!
//! `table` is the one place where a metric's name, kind, labels and help text stand; `handles` has
//! the handles that shards and the watchdog keep. What is read from elsewhere at a scrape (the
//! process, the queue's figures) is set there, in `control::endpoint`.

mod handles;
mod table;

pub use handles::{ReloadMetrics, ShardMetrics, TlsFailure, WatchdogMetrics};
pub use table::*;
