//! `gatepost block`: the list of ranges that a running gateway blocks for some time.

use super::{gateway, output_failure};
use crate::config::options::{BlockCommand, GatewayOption};
use crate::config::units;
use crate::control::admin::wire::{Answer, Request};
use crate::control::preflight::Failure;
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;

/// Runs the subcommand; what it prints goes to `out`.
pub fn run(command: BlockCommand, out: &mut impl Write) -> Result<(), Failure> {
    let printed = match command {
        BlockCommand::Add { range, duration, gateway } => {
            let for_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            gateway::ask(&gateway, &Request::BlockAdd { cidr: range.to_string(), for_ms })?;
            writeln!(out, "{range} is blocked for {}", units::show(duration))
        }
        BlockCommand::List { json, gateway } => return list(&gateway, json, out),
        BlockCommand::Remove { range, gateway } => {
            gateway::ask(&gateway, &Request::BlockRemove { cidr: range.to_string() })?;
            writeln!(out, "{range} is no longer blocked")
        }
    };
    printed.and_then(|()| out.flush()).map_err(|error| output_failure(&error))
}

/// A line of `block list --json`.
#[derive(Serialize)]
struct Entry<'a> {
    cidr: &'a str,
    seconds_left: u64,
}

fn list(gateway: &GatewayOption, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let Answer::Blocks(blocks) = gateway::ask(gateway, &Request::BlockList)? else {
        return Err(gateway::unexpected(&gateway.path(), "no list"));
    };
    let mut print = || -> io::Result<()> {
        for block in &blocks {
            // Rounded up: what is on the list is blocked.
            let seconds_left = block.left_ms.div_ceil(1000);
            if json {
                serde_json::to_writer(&mut *out, &Entry { cidr: &block.cidr, seconds_left })?;
                writeln!(out)?;
            } else {
                let left = humantime::format_duration(Duration::from_secs(seconds_left));
                writeln!(out, "{}\t{left}", block.cidr)?;
            }
        }
        out.flush()
    };
    print().map_err(|error| output_failure(&error))
}
