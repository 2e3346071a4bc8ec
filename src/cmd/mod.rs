//! The subcommands that are not the gateway itself.
//!
//! May use `queue`, of `shard` only the spool's directories, of `control` the exit codes and what is
//! said on the admin socket. Errors are for the operator: one line with cause and remedy.

pub mod block;
#[cfg(feature = "fault-injection")]
pub mod fault;
mod gateway;
pub mod queue;

use crate::control::preflight::{ExitCode, Failure};
use std::io;

fn output_failure(error: &io::Error) -> Failure {
    Failure::new(ExitCode::IoError, format!("cannot print: {error}"))
}
