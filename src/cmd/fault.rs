//! `gatepost fault`: makes a shard of a running gateway fail. Only with the feature
//! `fault-injection`, to test what follows.

use super::{gateway, output_failure};
use crate::config::options::FaultCommand;
use crate::config::units;
use crate::control::admin::wire::Request;
use crate::control::preflight::Failure;
use std::io::Write;

/// Runs the subcommand; what it prints goes to `out`.
pub fn run(command: FaultCommand, out: &mut impl Write) -> Result<(), Failure> {
    let printed = match command {
        FaultCommand::Stall { shard, duration, gateway } => {
            let for_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            gateway::ask(&gateway, &Request::FaultStall { shard, for_ms })?;
            writeln!(out, "shard {shard} stands still for {}", units::show(duration))
        }
        FaultCommand::Kill { shard, gateway } => {
            gateway::ask(&gateway, &Request::FaultKill { shard })?;
            writeln!(out, "shard {shard} is killed")
        }
    };
    printed.and_then(|()| out.flush()).map_err(|error| output_failure(&error))
}
