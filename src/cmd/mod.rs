//! The subcommands that are not the gateway itself.
//!
//! May use `queue`, `users`, `config`, of `shard` only the spool's directories, of `control` the exit codes, what
//! is said on the admin socket, the users file, and what `check` finds. Errors are for the operator: one line with cause and remedy.

pub mod block;
pub mod check;
#[cfg(feature = "fault-injection")]
pub mod fault;
mod gateway;
mod password;
pub mod queue;
pub mod reload;
pub mod user;

use crate::control::preflight::{ExitCode, Failure};
use std::io;

fn output_failure(error: &io::Error) -> Failure {
    Failure::new(ExitCode::IoError, format!("cannot print: {error}"))
}
