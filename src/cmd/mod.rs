//! The subcommands that are not the gateway itself.
//!
//! May use `queue`, and of `shard` only the spool's directories. Errors are for the operator: one
//! line with cause and remedy.

pub mod queue;
