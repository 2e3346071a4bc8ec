//! Append-only lists of ids in a file: what the sender saw acknowledged, what the sink received.
//!
//! Every thread has a ledger of its own on the same file, opened for appending, and hands over whole lines in one
//! write, so that lines of several threads never mix and no lock is needed. Lines wait in memory until their owner
//! flushes them (the sender every few milliseconds, the sink before it replies) or until the buffer is full. A failed
//! or short write is kept and reported by [`Ledger::close`]; the run then ends with a fault, because a list that lacks
//! ids would hide losses.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::id::NUMBER_DIGITS;

/// Lines held back at most, in octets.
const PENDING_OCTETS_MAX: usize = 32 * 1024;
/// Room for the line that fills the buffer; longer ones only cost an allocation.
const LINE_OCTETS_MAX: usize = 512;

/// One thread's end of a list of ids.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    pending: Vec<u8>,
    failed: Option<io::Error>,
}

impl Ledger {
    /// Opens the file at `path` for appending and creates it if need be.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { file, pending: Vec::with_capacity(PENDING_OCTETS_MAX + LINE_OCTETS_MAX), failed: None })
    }

    /// Notes one line: the id of message `number` of `run`, a space, and what is said of it.
    pub fn note_id(&mut self, run: &str, number: &[u8; NUMBER_DIGITS], remark: &[u8]) {
        for part in [run.as_bytes(), b"-", number, b" ", remark, b"\n"] {
            self.pending.extend_from_slice(part);
        }
        if self.pending.len() >= PENDING_OCTETS_MAX {
            self.flush();
        }
    }

    /// Writes what waits.
    pub fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        if let Err(error) = self.file.write_all(&self.pending) {
            self.failed.get_or_insert(error);
        }
        self.pending.clear();
    }

    /// Writes what waits and returns the first failure there ever was.
    pub fn close(mut self) -> io::Result<()> {
        self.flush();
        self.failed.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_is_reported_at_the_end() {
        let Ok(mut ledger) = Ledger::open(Path::new("/dev/full")) else { return };
        ledger.note_id("r", b"0000000001", b"-");
        ledger.flush();
        assert!(ledger.close().is_err());
    }
}
