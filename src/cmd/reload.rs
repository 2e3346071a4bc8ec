//! `gatepost reload`: has a running gateway load its configuration again.

use super::{gateway, output_failure};
use crate::config::options::GatewayOption;
use crate::control::admin::wire::{Answer, Request};
use crate::control::preflight::{ExitCode, Failure};
use std::io::Write;

/// Runs the subcommand; what it prints goes to `out`.
pub fn run(gateway: &GatewayOption, out: &mut impl Write) -> Result<(), Failure> {
    let Answer::Reloaded { lines, late } = gateway::ask(gateway, &Request::Reload)? else {
        return Err(gateway::unexpected(&gateway.path(), "no record"));
    };
    let mut printed = lines.iter().map(|line| writeln!(out, "{line}"));
    printed.try_for_each(|result| result).and_then(|()| out.flush()).map_err(|error| output_failure(&error))?;
    if late.is_empty() {
        return Ok(());
    }
    let shards: Vec<String> = late.iter().map(usize::to_string).collect();
    let message = format!(
        "shard {} does not answer: its connections begin under the configuration before until it does",
        shards.join(", ")
    );
    Err(Failure::new(ExitCode::TempFail, message))
}
