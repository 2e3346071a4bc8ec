//! The options of `send`, resolved once into what sessions need: prepared commands, the message, sources, times.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::run::Limits;
use super::source::Sources;
use crate::cli::{MESSAGE_OCTETS_MAX, SendArgs};
use crate::fault::Fault;
use crate::id::{NUMBERS_MAX, random_run};
use crate::message::template::{Header, Template};
use crate::units::date_time;

/// Longest path or name given on the command line (RFC 5321 section 4.5.3.1).
const PATH_OCTETS_MAX: usize = 254;

/// MAIL, RCPTs and DATA, ready to send.
#[derive(Debug)]
pub struct Envelope {
    commands: Vec<u8>,
    /// Where each command ends.
    ends: Vec<usize>,
}

impl Envelope {
    fn new(from: &str, recipients: &[String], size: Option<u64>) -> Self {
        let mut envelope = Self { commands: Vec::new(), ends: Vec::new() };
        let size = size.map_or(String::new(), |octets| format!(" SIZE={octets}"));
        envelope.push(&format!("MAIL FROM:<{from}>{size}\r\n"));
        for recipient in recipients {
            envelope.push(&format!("RCPT TO:<{recipient}>\r\n"));
        }
        envelope.push("DATA\r\n");
        envelope
    }

    fn push(&mut self, command: &str) {
        self.commands.extend_from_slice(command.as_bytes());
        self.ends.push(self.commands.len());
    }

    /// All commands in one piece.
    pub fn all(&self) -> &[u8] {
        &self.commands
    }

    /// The MAIL command.
    pub fn mail(&self) -> &[u8] {
        self.nth(0)
    }

    /// Number of recipients.
    pub fn recipients(&self) -> usize {
        self.ends.len().saturating_sub(2)
    }

    /// The RCPT command of one recipient, counted from 0.
    pub fn rcpt(&self, index: usize) -> &[u8] {
        self.nth(index + 1)
    }

    fn nth(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.commands[start..self.ends[index]]
    }
}

/// Everything a session needs to know.
#[derive(Debug)]
pub struct Plan {
    /// Where to connect.
    pub target: SocketAddr,
    /// Where from.
    pub sources: Sources,
    /// Name of the run.
    pub run_id: String,
    /// EHLO with its name.
    pub ehlo: Vec<u8>,
    /// HELO with its name.
    pub helo: Vec<u8>,
    /// For servers that offer SIZE.
    pub envelope_with_size: Envelope,
    /// For those that do not.
    pub envelope: Envelope,
    /// The message.
    pub template: Template,
    /// Use PIPELINING when offered.
    pub pipelining: bool,
    /// Messages before QUIT.
    pub messages_per_connection: u64,
    /// For a connection and each reply.
    pub timeout: Duration,
    /// Sends again of one message.
    pub retries: u64,
    /// First wait after a session could not be opened.
    pub retry_delay: Duration,
    /// Longest wait.
    pub retry_delay_max: Duration,
    /// List of accepted ids.
    pub acked_file: Option<PathBuf>,
    /// When the run ends.
    pub limits: Limits,
}

impl Plan {
    /// Resolves the options; contradictions are usage errors.
    pub fn new(args: &SendArgs) -> Result<Self, Fault> {
        let ip = args.target.ip().to_canonical();
        refuse(!ip.is_loopback() && !args.allow_remote, || {
            format!("{} is not a loopback address: give --allow-remote to send there", args.target)
        })?;
        let sources = Sources::new(&args.source);
        refuse(!sources.fit(args.target.ip()), || {
            format!("a --source is not of the address family of {}", args.target)
        })?;
        refuse(args.size > MESSAGE_OCTETS_MAX, || "a message is at most 1GB".to_owned())?;
        refuse(args.timeout.is_zero(), || "--timeout must not be zero".to_owned())?;
        for (option, value) in [("--from", &args.from), ("--to", &args.to), ("--helo", &args.helo)] {
            let fits = value.len() <= PATH_OCTETS_MAX
                && value.bytes().all(|octet| octet.is_ascii_graphic() && !b"<>".contains(&octet));
            refuse(!fits, || {
                format!("{option} is at most {PATH_OCTETS_MAX} printable characters without space, < and >")
            })?;
        }
        refuse(args.to.is_empty() || args.helo.is_empty(), || "--to and --helo must not be empty".to_owned())?;

        let run_id = args.run_id.clone().unwrap_or_else(random_run);
        let recipients = recipients(&args.to, args.recipients);
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let header = Header {
            run: &run_id,
            from: &args.from,
            to: recipients.first().map_or("", String::as_str),
            date: &date_time(unix_s),
            domain: &args.helo,
        };
        let template = Template::new(&header, args.size, args.dots);
        let unlimited = if args.duration.is_some() { NUMBERS_MAX } else { 1 };
        Ok(Self {
            target: args.target,
            sources,
            ehlo: format!("EHLO {}\r\n", args.helo).into_bytes(),
            helo: format!("HELO {}\r\n", args.helo).into_bytes(),
            envelope_with_size: Envelope::new(&args.from, &recipients, Some(template.octets())),
            envelope: Envelope::new(&args.from, &recipients, None),
            template,
            pipelining: args.pipelining,
            messages_per_connection: if args.persistent { u64::MAX } else { args.messages_per_connection },
            timeout: args.timeout,
            retries: args.retries,
            retry_delay: args.retry_delay,
            retry_delay_max: args.retry_delay_max,
            acked_file: args.acked_file.clone(),
            limits: Limits {
                messages: args.messages.unwrap_or(unlimited),
                duration: args.duration,
                errors: if args.stop_on_error { 1 } else { args.max_errors.unwrap_or(u64::MAX) },
                give_up_after: args.give_up_after,
            },
            run_id,
        })
    }

    /// Whether all messages were accepted, when `accepted` were and `claimed` were begun.
    pub fn complete(&self, accepted: u64, claimed: u64) -> bool {
        match self.limits.duration {
            None => accepted == self.limits.messages,
            Some(_) => accepted == claimed && accepted > 0,
        }
    }
}

fn refuse(wrong: bool, text: impl FnOnce() -> String) -> Result<(), Fault> {
    if wrong { Err(Fault::Usage(text())) } else { Ok(()) }
}

/// One recipient as given, several with 1, 2, ... behind the local part.
fn recipients(to: &str, count: u64) -> Vec<String> {
    if count == 1 {
        return vec![to.to_owned()];
    }
    let (local, domain) =
        to.rsplit_once('@').map_or((to, String::new()), |(local, domain)| (local, format!("@{domain}")));
    (1..=count).map(|number| format!("{local}{number}{domain}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn plan(options: &[&str]) -> Result<Plan, Fault> {
        let cli = crate::cli::Cli::try_parse_from(["gatepost-load", "send"].iter().chain(options)).unwrap();
        match cli.command {
            crate::cli::Command::Send(args) => Plan::new(&args),
            _ => unreachable!("send was asked for"),
        }
    }

    #[test]
    fn envelopes_name_every_recipient() {
        let plan = plan(&["--recipients", "3", "--from", "", "--to", "a@b.example", "--size", "4KB"]).unwrap();
        let envelope = &plan.envelope_with_size;
        assert_eq!(envelope.recipients(), 3);
        assert_eq!(envelope.mail(), b"MAIL FROM:<> SIZE=4096\r\n");
        assert_eq!(envelope.rcpt(2), b"RCPT TO:<a3@b.example>\r\n");
        assert_eq!(
            plan.envelope.all(),
            b"MAIL FROM:<>\r\nRCPT TO:<a1@b.example>\r\nRCPT TO:<a2@b.example>\r\nRCPT TO:<a3@b.example>\r\nDATA\r\n"
        );
    }

    #[test]
    fn only_loopback_targets_without_leave() {
        for target in ["127.0.0.1:25", "127.255.0.9:25", "[::1]:25", "[::ffff:127.0.0.1]:25"] {
            assert!(plan(&[target]).is_ok(), "{target}");
        }
        for target in ["192.0.2.1:25", "0.0.0.0:25", "[2001:db8::1]:25", "[::]:25", "128.0.0.1:25"] {
            assert!(matches!(plan(&[target]), Err(Fault::Usage(_))), "{target}");
            assert!(plan(&[target, "--allow-remote"]).is_ok(), "{target}");
        }
    }

    #[test]
    fn what_could_inject_commands_is_refused() {
        for option in ["--from", "--to", "--helo"] {
            for value in ["a b", "a\r\nQUIT", "a>", &"a".repeat(300)] {
                assert!(matches!(plan(&[option, value]), Err(Fault::Usage(_))), "{option} {value}");
            }
        }
        assert!(matches!(plan(&["--to", ""]), Err(Fault::Usage(_))));
        assert!(matches!(plan(&["--source", "::1"]), Err(Fault::Usage(_))));
    }

    #[test]
    fn a_run_is_complete_when_all_it_began_was_accepted() {
        let counted = plan(&["--messages", "3"]).unwrap();
        assert!(counted.complete(3, 3) && !counted.complete(2, 2));
        let timed = plan(&["--duration", "1s"]).unwrap();
        assert!(timed.complete(3, 3) && !timed.complete(2, 3) && !timed.complete(0, 0));
    }
}
