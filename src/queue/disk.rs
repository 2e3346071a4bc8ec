//! What the queue asks of a directory when it reads and tidies it.
//!
//! The writing half needs no trait: [`super::spool::Spool`] says what to write and is told how it
//! went. A real directory is `shard::storage::Directory`; tests bring one in memory.

use std::io;

/// A shard's directory.
pub trait Disk {
    /// Names of the files in it, in no order.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Reads a whole file into `out`, replacing what was there.
    fn read(&self, name: &str, out: &mut Vec<u8>) -> io::Result<()>;
    /// Reads at most the first `octets` of a file into `out`, replacing what was there.
    fn read_beginning(&self, name: &str, octets: usize, out: &mut Vec<u8>) -> io::Result<()>;
    /// A file's length in octets; `None`: there is no such file.
    fn length(&self, name: &str) -> io::Result<Option<u64>>;
    /// Makes a file with this content that is on stable storage, as its name is. There is none yet,
    /// or one that a former start did not finish.
    fn create(&mut self, name: &str, octets: &[u8]) -> io::Result<()>;
    /// Writes these octets at `offset`, through to stable storage, and ends the file behind them.
    fn write_end(&mut self, name: &str, offset: u64, octets: &[u8]) -> io::Result<()>;
    /// Gives a file another name.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
}

/// The name of a segment's file.
pub fn segment_name(generation: u64) -> String {
    format!("segment-{generation:016x}")
}

/// The generation in a segment's file name.
pub fn segment_generation(name: &str) -> Option<u64> {
    hexadecimal(name.strip_prefix("segment-")?)
}

fn hexadecimal(digits: &str) -> Option<u64> {
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// The name of a segment that is made, or waits to be used again: what it holds does not count.
/// Each segment has had a generation, under which no other was or will be.
pub fn spare_name(generation: u64) -> String {
    format!("spare-{generation:016x}")
}

/// The generation in a spare segment's file name.
pub fn spare_generation(name: &str) -> Option<u64> {
    hexadecimal(name.strip_prefix("spare-")?)
}

/// The name of the file by which storage that has failed is probed; it holds nothing.
pub const PROBE_NAME: &str = "probe";

/// The name of the copy of octets that are no record.
pub fn quarantine_name(generation: u64, offset: u64) -> String {
    format!("quarantine-{generation:016x}-{offset:08x}")
}

/// The generation in such a name.
pub fn quarantined_generation(name: &str) -> Option<u64> {
    let (generation, _) = name.strip_prefix("quarantine-")?.split_once('-')?;
    hexadecimal(generation)
}

/// The name under which a spill file is put aside whose record may be damaged.
pub fn quarantined_spill_name(id: crate::smtp::QueueId) -> String {
    format!("quarantine-{}", spill_name(id))
}

/// The name of a message's spill file.
pub fn spill_name(id: crate::smtp::QueueId) -> String {
    format!("spill-{id}")
}

/// The id in a spill file's name.
pub fn spill_id(name: &str) -> Option<crate::smtp::QueueId> {
    crate::smtp::QueueId::parse(name.strip_prefix("spill-")?)
}
