//! Gatepost, a mail edge gateway: accepts SMTP at high rate, enforces limits, spools durably.
#![warn(missing_docs)]

pub mod cmd;
pub mod config;
pub mod control;
pub mod limits;
pub mod metrics;
pub mod policy;
pub mod queue;
pub mod shard;
pub mod smtp;
