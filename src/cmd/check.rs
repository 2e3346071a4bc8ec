//! `gatepost check`: whether `serve` would start, and with what.
//!
//! Standard output has the effective configuration and nothing else, so that it can be kept as a file;
//! warnings and faults are on standard error.

use super::output_failure;
use crate::config::{self, Sources};
use crate::control::check::Findings;
use crate::control::preflight::{ExitCode, Failure};
use crate::stderr;
use std::io::Write;

/// Runs the subcommand; what it prints goes to `out`. The failure has a line for each fault, and the exit
/// code of the one that would end `serve`.
pub fn run(sources: &Sources, out: &mut impl Write) -> Result<(), Failure> {
    let loaded = config::load(sources).map_err(|error| Failure::new(ExitCode::Config, error.to_string()))?;
    write!(out, "{}", loaded.settings).and_then(|()| out.flush()).map_err(|error| output_failure(&error))?;
    let findings = Findings::of(&loaded.config);
    for line in loaded.config.warnings().iter().chain(&findings.notes) {
        stderr::say(format_args!("{line}"));
    }
    let Some(code) = findings.failures.first().map(|failure| failure.code) else { return Ok(()) };
    let lines: Vec<String> = findings.failures.into_iter().map(|failure| failure.message).collect();
    Err(Failure::new(code, lines.join("\n")))
}
