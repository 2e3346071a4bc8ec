//! The command line.
//!
//! Only shapes are checked here; what depends on several options is checked where they are resolved
//! ([`crate::send::plan`], [`crate::sink`]). A usage error exits with 64.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::id::{NUMBERS_MAX, parse_run};
use crate::send::source::SourceRange;
use crate::sink::faults::Rule;
use crate::sink::offer::Extension;
use crate::units::{parse_duration, parse_size};

/// Largest message that can be generated.
pub const MESSAGE_OCTETS_MAX: u64 = 1 << 30;
/// Most sessions of one sender.
pub const SESSIONS_MAX: u64 = 100_000;
/// Most recipients of one message.
pub const RECIPIENTS_MAX: u64 = 10_000;
/// Most threads.
pub const THREADS_MAX: u64 = 256;

const FAULT_HELP: &str = "\
Go wrong: VERB=ACTION or VERB=ACTION,WHEN (repeatable). Rules of one verb are asked in their order until one acts, and \
each counts the times it was asked: first:N behind first:N is a script.

VERB
  connect, ehlo, helo, mail, rcpt, rset, quit
                the reply to it
  rcpt[PREFIX]  the reply to recipients that begin so
  data          the reply to DATA, or to a BDAT that is not the last
  body          amid the content, at its first octet; body@64KB at that one
  end           the reply to the final dot, or to BDAT LAST

ACTION
  451, 550, ... this reply instead; with words of your own: 451 4.7.1 try again
                (\\n begins another line of it; 421 closes the connection)
  hang          no reply, ever; with body nothing is read either
  reset         the connection is reset
  close         the connection is closed in order
  garbage       binary noise in place of the reply
  early         the reply twice; with body the final reply before its time
  slow:TIME     the reply that much later

WHEN
  first:N       only the first N times
  %N            each Nth time
  p=0.1         with this probability, see --seed

A message is taken, and stored, unless it gets a refusal: also with end=hang, reset, close and garbage, where nobody \
but the sink knows. Its copy then counts as duplicates_after_unanswered.";

/// Load generator, auditing sink and auditor for SMTP servers.
#[derive(Debug, Parser)]
#[command(name = "gatepost-load", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send messages, each with its own id, and report what became of them. Exits 0 when all were accepted for all
    /// their recipients, 1 otherwise, 64 on a usage error.
    Send(Box<SendArgs>),
    /// Accept everything, count and verify; store messages and go wrong when told to. Exits 1 when messages were lost
    /// or altered.
    Sink(Box<SinkArgs>),
    /// Verify messages from files or standard input against a list of acknowledged ids. Exits 1 when messages were lost
    /// or altered.
    Audit(AuditArgs),
}

/// Options of `send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// Server to send to, ADDR:PORT.
    #[arg(default_value = "127.0.0.1:2525")]
    pub target: SocketAddr,
    /// Allow a target that is not a loopback address.
    #[arg(long)]
    pub allow_remote: bool,
    /// Concurrent sessions.
    #[arg(long, short = 's', default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=SESSIONS_MAX))]
    pub sessions: u64,
    /// Messages to send in all [default: 1 without --duration, else no limit].
    #[arg(long, short = 'm', value_parser = clap::value_parser!(u64).range(1..=NUMBERS_MAX))]
    pub messages: Option<u64>,
    /// Begin no message after this time.
    #[arg(long, value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Threads [default: number of cores, at most one per session].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    pub threads: Option<u64>,
    /// Size of a message in octets, header included.
    #[arg(long, default_value = "4KB", value_parser = parse_size)]
    pub size: u64,
    /// Put lines that start with dots into the body.
    #[arg(long)]
    pub dots: bool,
    /// Messages per connection.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub messages_per_connection: u64,
    /// Keep connections for all messages.
    #[arg(long, conflicts_with = "messages_per_connection")]
    pub persistent: bool,
    /// Recipients per message.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=RECIPIENTS_MAX))]
    pub recipients: u64,
    /// Reverse-path; empty for the null one.
    #[arg(long, default_value = "sender@load.example")]
    pub from: String,
    /// Forward-path; with several recipients a number is appended to the local part.
    #[arg(long, default_value = "recipient@load.example")]
    pub to: String,
    /// Name given in EHLO.
    #[arg(long, value_name = "NAME", default_value = "client.load.example")]
    pub helo: String,
    /// Send MAIL, RCPT and DATA in one write when the server offers PIPELINING.
    #[arg(long)]
    pub pipelining: bool,
    /// Address or CIDR block to connect from, round robin (repeatable).
    #[arg(long, value_name = "ADDR|CIDR")]
    pub source: Vec<SourceRange>,
    /// Time allowed for a connection and for each reply.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Send a message again, under its id, when it was refused with 4yz or its connection broke before the final dot.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub retries: u64,
    /// Wait before connecting again after a connection that failed; doubles up to --retry-delay-max.
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = parse_duration)]
    pub retry_delay: Duration,
    /// Longest wait before connecting again.
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = parse_duration)]
    pub retry_delay_max: Duration,
    /// End when no session could be opened (greeting and EHLO included) and no message was accepted for this long.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub give_up_after: Duration,
    /// End at the first refusal or error.
    #[arg(long)]
    pub stop_on_error: bool,
    /// End after this many refusals and errors.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_errors: Option<u64>,
    /// Append the id of each accepted message to this file as it happens: id, space, queue id or a dash.
    #[arg(long, value_name = "FILE")]
    pub acked_file: Option<PathBuf>,
    /// Name of this run, the first part of every id [default: random].
    #[arg(long, value_name = "NAME", value_parser = parse_run)]
    pub run_id: Option<String>,
    /// Print the summary as one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Print progress to standard error each second.
    #[arg(long)]
    pub progress: bool,
}

/// Options of `sink`.
#[derive(Debug, Args)]
pub struct SinkArgs {
    /// Address to listen on (repeatable); port 0 takes a free one. The bound addresses are printed first.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:2526")]
    pub listen: Vec<SocketAddr>,
    /// Threads [default: number of cores].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    pub threads: Option<u64>,
    /// Name given in the greeting.
    #[arg(long, value_name = "NAME", default_value = "sink.load.example")]
    pub hostname: String,
    /// Lists of ids that must arrive, read at the end (repeatable).
    #[arg(long, value_name = "FILE")]
    pub expect: Vec<PathBuf>,
    /// Append the id of each received message to this file: whether it is intact or altered, when it came (Unix time),
    /// the connection's number, the client's name, and how many recipients it had. A second line of an id says "taken,
    /// unanswered" when the reply was not written.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Store each message in this directory, with its envelope beside it.
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    /// Extension that is not offered (repeatable).
    #[arg(long, value_name = "NAME", ignore_case = true)]
    pub disable_extension: Vec<Extension>,
    /// Largest message that is taken, offered with SIZE; 0 for no limit.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    pub max_message_size: u64,
    /// Go wrong: VERB=ACTION or VERB=ACTION,WHEN (repeatable; the first that applies acts).
    #[arg(long, value_name = "RULE", long_help = FAULT_HELP)]
    pub fault: Vec<Rule>,
    /// File of further rules, one on a line, read again at SIGHUP; all counts then begin anew.
    #[arg(long, value_name = "FILE")]
    pub faults_file: Option<PathBuf>,
    /// Seed of the rules with a probability.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// End after this many messages, when their clients have left. With --expect, a signal is the better end: a list
    /// may not be complete yet when the last message is.
    #[arg(long, short = 'm', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: Option<u64>,
    /// End when nothing has arrived for this long, counted from the first connection.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub idle_exit: Option<Duration>,
    /// Time a connection may be silent.
    #[arg(long, default_value = "5m", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Print the report as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Options of `audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Lists of ids that must be there (repeatable).
    #[arg(long, value_name = "FILE", required = true)]
    pub acked: Vec<PathBuf>,
    /// Directory in which each file is one message (repeatable).
    #[arg(long, value_name = "DIR", required_unless_present = "stdin0")]
    pub dir: Vec<PathBuf>,
    /// Read messages from standard input, each ended by a NUL.
    #[arg(long)]
    pub stdin0: bool,
    /// Lines end in LF instead of CRLF, as mail stores on Unix keep them.
    #[arg(long)]
    pub lf: bool,
    /// Print the report as one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
