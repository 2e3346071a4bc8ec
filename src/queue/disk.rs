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
    /// A file's length in octets; `None`: there is no such file.
    fn length(&self, name: &str) -> io::Result<Option<u64>>;
    /// Cuts a file to `octets`.
    fn truncate(&mut self, name: &str, octets: u64) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
}

/// The name of a segment's file.
pub fn segment_name(generation: u64) -> String {
    format!("segment-{generation:016x}")
}

/// The generation in a segment's file name.
pub fn segment_generation(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// The name under which a segment is put aside that holds something that is no record.
pub fn quarantine_name(generation: u64) -> String {
    format!("quarantine-{}", segment_name(generation))
}

/// The generation of a segment that was put aside.
pub fn quarantined_generation(name: &str) -> Option<u64> {
    segment_generation(name.strip_prefix("quarantine-")?)
}

/// The name of a message's spill file.
pub fn spill_name(id: crate::smtp::QueueId) -> String {
    format!("spill-{id}")
}

/// The id in a spill file's name.
pub fn spill_id(name: &str) -> Option<crate::smtp::QueueId> {
    crate::smtp::QueueId::parse(name.strip_prefix("spill-")?)
}
