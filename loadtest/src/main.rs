//! `gatepost-load`: load for an SMTP server, and the proof of what became of it.
//!
//! | room | what lives there |
//! |---|---|
//! | [`cli`] | the options of `send`, `sink` and `audit` |
//! | [`send`] | the sender: sessions, connections, figures |
//! | [`sink`] | the server that accepts everything, and goes wrong when told to |
//! | [`audit`] | what was received against what was acknowledged |
//! | [`message`] | the shape of a generated message, and its verification |
//! | [`id`], [`ledger`] | message ids, sets of them, lists of them in files |
//! | [`lanes`] | threads with a runtime each, and the limit of open files |
//! | [`units`], [`fault`] | sizes, durations, dates; what ends a command early |
//!
//! Exit codes: 0 when every message was accepted (`send`) or nothing was lost or altered (`sink`, `audit`), 1
//! otherwise, 64 for a usage error, 71 when the operating system refused a resource, 74 for a file that cannot be read
//! or written.
//!
//! To add a pace (open loop), change `send::run`: it alone says when the next message is due. To add TLS, change
//! `send::wire`: it alone touches the socket. To add AUTH, extend the handshake in `send::session`; to add BDAT, its
//! content step. Plans of several kinds of messages are several `send::plan::Plan`s. Another way for the sink to go wrong
//! is another `sink::faults::Action`.

#![forbid(unsafe_code)]

mod audit;
mod cli;
mod fault;
mod id;
mod lanes;
mod ledger;
mod message;
mod send;
mod sink;
mod units;

use std::process::ExitCode;

use clap::Parser;

/// Sessions allocate when they begin and when a map grows, but threads never free each other's memory: an allocator
/// with heaps per thread keeps the generator out of the measurement.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done when even this cannot be printed.
            let _ = error.print();
            // EX_USAGE; help and version go to standard output and are no error.
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    let result = match &cli.command {
        cli::Command::Send(args) => send::run(args),
        cli::Command::Sink(args) => sink::run(args),
        cli::Command::Audit(args) => audit::files::run(args),
    };
    result.unwrap_or_else(|fault| {
        eprintln!("gatepost-load: {fault}");
        ExitCode::from(fault.exit_code())
    })
}
