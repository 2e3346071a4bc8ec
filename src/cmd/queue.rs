//! `gatepost queue`: reads a spool where it lies, beside a running gateway or without one. It
//! changes nothing, and may miss what is being written at that moment.

use super::output_failure;
use crate::config::options::QueueCommand;
use crate::control::preflight::{ExitCode, Failure};
use crate::queue::disk::{Disk, spill_name};
use crate::queue::outcome::{Status, Statuses};
use crate::queue::record::{Kind, Record};
use crate::queue::recover;
use crate::queue::stored::StoredRecipient;
use crate::shard::storage::{Directory, shard_directories};
use crate::smtp::QueueId;
use crate::smtp::dsn::Ret;
use crate::smtp::envelope::BodyType;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// Runs the subcommand; what it prints goes to `out`.
pub fn run(command: QueueCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        QueueCommand::List { spool, json } => list(&spool.spool, json, out),
        QueueCommand::Cat { spool, all: true, .. } => cat_all(&spool.spool, out),
        QueueCommand::Cat { spool, ids, .. } => cat(&spool.spool, &ids, out),
    }
}

/// A line of `queue list --json`.
#[derive(Serialize)]
struct Entry<'a> {
    id: &'a str,
    /// RFC 3339, UTC.
    arrived: String,
    octets: u64,
    /// Paths without brackets; an empty `from` is the null reverse-path.
    from: Cow<'a, str>,
    to: Vec<Cow<'a, str>>,
    body: &'a str,
    client: Cow<'a, str>,
    helo: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ret: Option<&'a str>,
    /// As the client wrote it: xtext.
    #[serde(skip_serializing_if = "Option::is_none")]
    envid: Option<Cow<'a, str>>,
    /// `queued`, or `failed`: nothing is tried any more, and the sender is owed a report.
    status: &'a str,
    /// The recipients that are settled, in the order of `to`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outcomes: Vec<RecipientOutcome<'a>>,
    /// The recipients for which the client asked for something, in the order of `to`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dsn: Vec<Asked<'a>>,
}

/// What became of a recipient.
#[derive(Serialize)]
struct RecipientOutcome<'a> {
    to: Cow<'a, str>,
    /// `delivered`, `failed` (refused by the next hop) or `expired`.
    status: &'a str,
    /// The reply that said so.
    #[serde(skip_serializing_if = "str::is_empty")]
    reply: &'a str,
}

impl<'a> RecipientOutcome<'a> {
    fn new(to: &[u8], (status, reply): (Status, &'a str)) -> Option<RecipientOutcome<'a>> {
        let status = match status {
            Status::Pending => return None,
            Status::Delivered => "delivered",
            Status::Failed => "failed",
            Status::Expired => "expired",
            Status::Withdrawn => "withdrawn",
        };
        Some(RecipientOutcome { to: text(to).into_owned().into(), status, reply })
    }
}

/// What a client asked for with a recipient.
#[derive(Serialize)]
struct Asked<'a> {
    to: Cow<'a, str>,
    /// As in the parameter: `NEVER`, or a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    notify: Option<String>,
    /// As the client wrote it: address type and xtext.
    #[serde(skip_serializing_if = "Option::is_none")]
    orcpt: Option<Cow<'a, str>>,
}

impl<'a> Asked<'a> {
    fn new(recipient: StoredRecipient<'a>) -> Option<Self> {
        if recipient.notify.is_none() && recipient.orcpt.is_none() {
            return None;
        }
        let notify = recipient.notify.map(|notify| {
            let mut written = Vec::new();
            notify.write(&mut written);
            text(&written).into_owned()
        });
        Some(Asked { to: text(recipient.path), notify, orcpt: recipient.orcpt.map(text) })
    }
}

/// What a client sent, as text.
fn text(octets: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(octets)
}

fn list(spool: &Path, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let (mut messages, mut octets) = (0_u64, 0_u64);
    for directory in shard_directories(spool)? {
        read(&directory, |record, statuses| {
            messages += 1;
            octets += record.header.message_octets;
            let envelope = record.stored_envelope().unwrap_or_default();
            let arrived = UNIX_EPOCH + Duration::from_millis(record.header.unix_ms);
            let id = record.header.id.text();
            let entry = Entry {
                id: id.as_str(),
                arrived: humantime::format_rfc3339_millis(arrived).to_string(),
                octets: record.header.message_octets,
                from: text(envelope.reverse_path()),
                to: envelope.recipients().map(|recipient| text(recipient.path)).collect(),
                body: match envelope.body_type() {
                    BodyType::SevenBit => "7BIT",
                    BodyType::EightBitMime => "8BITMIME",
                    BodyType::BinaryMime => "BINARYMIME",
                },
                client: text(envelope.client()),
                helo: text(envelope.hello()),
                ret: envelope.ret().map(Ret::as_str),
                envid: envelope.envid().map(text),
                status: if statuses.are_all_settled() { "failed" } else { "queued" },
                outcomes: (envelope.recipients().enumerate())
                    .filter_map(|(place, recipient)| RecipientOutcome::new(recipient.path, statuses.of(place)))
                    .collect(),
                dsn: envelope.recipients().filter_map(Asked::new).collect(),
            };
            if json { entry.write_json(out) } else { entry.write_text(out) }
        })?;
    }
    out.flush().map_err(|error| output_failure(&error))?;
    eprintln!("{messages} messages, {octets} octets");
    Ok(())
}

impl Entry<'_> {
    fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        writeln!(out)
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        write!(out, "{} {} {} from=<{}> to=", self.id, self.arrived, self.octets, self.from)?;
        for (index, recipient) in self.to.iter().enumerate() {
            write!(out, "{}<{recipient}>", if index == 0 { "" } else { "," })?;
        }
        if !self.outcomes.is_empty() {
            write!(out, " status={}", self.status)?;
        }
        for outcome in &self.outcomes {
            write!(out, " {}=<{}>", outcome.status, outcome.to)?;
            if !outcome.reply.is_empty() {
                write!(out, " ({})", outcome.reply)?;
            }
        }
        writeln!(out)
    }
}

fn cat(spool: &Path, ids: &[String], out: &mut impl Write) -> Result<(), Failure> {
    let parse = |id: &String| {
        QueueId::parse(id).ok_or_else(|| {
            Failure::new(ExitCode::Usage, format!("{id:?} is not a queue id; gatepost queue list shows them"))
        })
    };
    let mut wanted = ids.iter().map(parse).collect::<Result<HashSet<QueueId>, Failure>>()?;
    for directory in shard_directories(spool)? {
        read(
            &directory,
            |record, _| if wanted.remove(&record.header.id) { print(&directory, record, out) } else { Ok(()) },
        )?;
    }
    out.flush().map_err(|error| output_failure(&error))?;
    match wanted.iter().min() {
        None => Ok(()),
        Some(id) => {
            Err(Failure::new(ExitCode::NoInput, format!("message {id} is not in the queue at {}", spool.display())))
        }
    }
}

fn cat_all(spool: &Path, out: &mut impl Write) -> Result<(), Failure> {
    for directory in shard_directories(spool)? {
        read(&directory, |record, _| {
            print(&directory, record, out)?;
            out.write_all(&[0])
        })?;
    }
    out.flush().map_err(|error| output_failure(&error))
}

/// Shows every message of a shard to `visit`, and tells of damage.
fn read(directory: &Directory, mut visit: impl FnMut(&Record<'_>, &Statuses) -> io::Result<()>) -> Result<(), Failure> {
    let mut result = Ok(());
    let found = recover::read(directory, |record, statuses| {
        if result.is_ok() {
            result = visit(record, statuses);
        }
    });
    let path = directory.path().display();
    let found = found.map_err(|error| Failure::new(ExitCode::IoError, format!("cannot read {path}: {error}")))?;
    for damage in &found.damage {
        eprintln!("gatepost: {path}/{damage}");
    }
    result.map_err(|error| output_failure(&error))
}

fn print(directory: &Directory, record: &Record<'_>, out: &mut impl Write) -> io::Result<()> {
    if record.header.kind != Kind::Spilled {
        return out.write_all(record.message);
    }
    let mut message = Vec::new();
    match directory.read(&spill_name(record.header.id), &mut message) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("gatepost: message {}: its spill file is gone: delivered meanwhile, or damage", record.header.id);
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    if crc32c::crc32c(&message) != record.header.message_crc {
        eprintln!("gatepost: message {}: its spill file is damaged", record.header.id);
    }
    out.write_all(&message)
}
