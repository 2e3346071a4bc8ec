//! The subcommands that are not the gateway itself.
//!
//! May use `queue`, `users`, of `shard` only the spool's directories, of `control` the exit codes, what
//! is said on the admin socket, and the users file. Errors are for the operator: one line with cause and remedy.

pub mod block;
#[cfg(feature = "fault-injection")]
pub mod fault;
mod gateway;
mod password;
pub mod queue;
pub mod user;

use crate::control::preflight::{ExitCode, Failure};
use std::io;

fn output_failure(error: &io::Error) -> Failure {
    Failure::new(ExitCode::IoError, format!("cannot print: {error}"))
}
