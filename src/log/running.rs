//! The log of this process, for those who have no sender: what operators are told.

use super::{Format, Level, Log, Said};
use crate::limits::LOG_FLUSH_MS;
use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::Duration;

static RUNNING: OnceLock<Log> = OnceLock::new();

/// Makes this the process's log. The first one stays.
pub fn install(log: Log) {
    let _ = RUNNING.set(log);
}

/// Opens its file again.
pub fn reopen() {
    if let Some(log) = RUNNING.get() {
        log.reopen();
    }
}

/// Writes what matters as much as this, and more, from now on.
pub fn set_level(level: Level) {
    if let Some(log) = RUNNING.get() {
        log.set_level(level);
    }
}

/// Waits until all is written, for a moment: the process ends.
pub fn flush() {
    if let Some(log) = RUNNING.get() {
        log.flush(Duration::from_millis(LOG_FLUSH_MS));
    }
}

/// A line that was said on standard error. It is a record too, but not beside it: where both streams
/// lead to one place, text would tell it twice.
pub(crate) fn notice(line: fmt::Arguments<'_>) {
    if let Some(log) = RUNNING.get()
        && (log.0.is_to_file || log.0.format == Format::Json)
    {
        log.notice(Level::Warn, line);
    }
}

/// A line for standard output, in order with the records there; with a log file it is a record too.
pub(crate) fn tell(line: fmt::Arguments<'_>) {
    let Some(log) = RUNNING.get() else { return print(line) };
    match log.0.format {
        _ if log.0.is_to_file => {
            print(line);
            log.notice(Level::Info, line);
        }
        Format::Text => log.push(Said::Plain(line.to_string())),
        Format::Json => log.notice(Level::Info, line),
    }
}

/// Nobody may be reading any more: then the line is lost, and nothing else.
fn print(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}
