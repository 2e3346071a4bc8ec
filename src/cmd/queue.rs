//! `gatepost queue`: reads a spool where it lies, beside a running gateway or without one. It
//! changes nothing, and may miss what is being written at that moment.

use crate::config::options::QueueCommand;
use crate::control::preflight::{ExitCode, Failure};
use crate::queue::disk::{Disk, spill_name};
use crate::queue::record::Record;
use crate::queue::recover;
use crate::shard::storage::{Directory, shard_directories};
use crate::smtp::QueueId;
use crate::smtp::envelope::BodyType;
use serde::Serialize;
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
    from: &'a str,
    to: &'a [String],
    body: &'a str,
    client: &'a str,
    helo: &'a str,
}

fn list(spool: &Path, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let (mut messages, mut octets) = (0_u64, 0_u64);
    for directory in shard_directories(spool)? {
        read(&directory, |record| {
            messages += 1;
            octets += record.header.message_octets;
            let envelope = record.stored_envelope().unwrap_or_default();
            let arrived = UNIX_EPOCH + Duration::from_millis(record.header.arrived_unix_ms);
            let id = record.header.id.text();
            let entry = Entry {
                id: id.as_str(),
                arrived: humantime::format_rfc3339_millis(arrived).to_string(),
                octets: record.header.message_octets,
                from: &envelope.reverse_path,
                to: &envelope.recipients,
                body: match envelope.body_type {
                    BodyType::SevenBit => "7BIT",
                    BodyType::EightBitMime => "8BITMIME",
                },
                client: &envelope.client,
                helo: &envelope.hello,
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
            |record| if wanted.remove(&record.header.id) { print(&directory, record, out) } else { Ok(()) },
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
        read(&directory, |record| {
            print(&directory, record, out)?;
            out.write_all(&[0])
        })?;
    }
    out.flush().map_err(|error| output_failure(&error))
}

/// Shows every message of a shard to `visit`, and tells of damage.
fn read(directory: &Directory, mut visit: impl FnMut(&Record<'_>) -> io::Result<()>) -> Result<(), Failure> {
    let mut result = Ok(());
    let found = recover::read(directory, |record| {
        if result.is_ok() {
            result = visit(record);
        }
    });
    let path = directory.path().display();
    let found = found.map_err(|error| Failure::new(ExitCode::IoError, format!("cannot read {path}: {error}")))?;
    for damage in &found.damage {
        eprintln!("gatepost: {path}/{damage}");
    }
    result.map_err(|error| output_failure(&error))
}

fn output_failure(error: &io::Error) -> Failure {
    Failure::new(ExitCode::IoError, format!("cannot print: {error}"))
}

fn print(directory: &Directory, record: &Record<'_>, out: &mut impl Write) -> io::Result<()> {
    if !record.header.spilled {
        return out.write_all(record.message);
    }
    let mut message = Vec::new();
    directory.read(&spill_name(record.header.id), &mut message)?;
    if crc32c::crc32c(&message) != record.header.message_crc {
        eprintln!("gatepost: message {}: its spill file is damaged", record.header.id);
    }
    out.write_all(&message)
}
