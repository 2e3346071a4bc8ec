//! The writes that a block device saw, in their order: the log of `blklogwrites`, in the format of
//! Linux's dm-log-writes. A sector with the head of the log, then the entries, each one sector, and
//! behind it the sectors that were written. Numbers are little-endian.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub const SECTOR_OCTETS: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;

/// What a device was told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// All that was written before is on stable storage when this is done.
    Flush,
    Write {
        /// Where on the device it begins.
        offset: u64,
        /// Where its octets are in the log.
        content: Range<u64>,
        /// It is on stable storage itself when it is done (forced unit access).
        through: bool,
    },
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub operation: Operation,
    /// The octets of the log up to its end.
    pub end: u64,
}

impl Entry {
    fn is_flush(&self) -> bool {
        self.operation == Operation::Flush
    }
}

/// A log that is complete.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    pub entries: Vec<Entry>,
}

impl WriteLog {
    pub fn read(path: &Path) -> Self {
        let file = File::open(path).expect("a log");
        let length = file.metadata().expect("a log").len();
        let [magic, version, _, _] = numbers(&file, 0);
        assert_eq!((magic, version), (MAGIC, VERSION), "{}", path.display());
        let (mut entries, mut at) = (Vec::new(), SECTOR_OCTETS);
        while at < length {
            let [sector, sectors, flags, _] = numbers(&file, at);
            let start = at + SECTOR_OCTETS;
            at = start + sectors * SECTOR_OCTETS;
            let write = |through| Operation::Write { offset: sector * SECTOR_OCTETS, content: start..at, through };
            let operation = match flags {
                0 => write(false),
                FUA => write(true),
                FLUSH if sectors == 0 => Operation::Flush,
                // Filesystems are mounted so that they discard nothing.
                _ => panic!("an entry with flags {flags:#x} and {sectors} sectors"),
            };
            entries.push(Entry { operation, end: at });
        }
        assert_eq!(at, length, "the log ends with a whole entry");
        WriteLog { file, entries }
    }

    /// How many entries are in the first `octets` of the log.
    pub fn entries_in(&self, octets: u64) -> usize {
        self.entries.partition_point(|entry| entry.end <= octets)
    }

    /// How long the log is with so many entries.
    pub fn octets_of(&self, entries: usize) -> u64 {
        entries.checked_sub(1).map_or(SECTOR_OCTETS, |last| self.entries[last].end)
    }

    /// The entries up to the last flush among the first `entries`, it included.
    pub fn flush_before(&self, entries: usize) -> usize {
        self.entries[..entries].iter().rposition(Entry::is_flush).map_or(0, |flush| flush + 1)
    }

    /// The entries before the next flush that is not among the first `entries`.
    pub fn flush_behind(&self, entries: usize) -> usize {
        let behind = &self.entries[entries..];
        entries + behind.iter().position(Entry::is_flush).unwrap_or(behind.len())
    }

    /// The octets of a write.
    pub fn content(&self, content: &Range<u64>) -> Vec<u8> {
        let mut octets = vec![0; (content.end - content.start) as usize];
        self.file.read_exact_at(&mut octets, content.start).expect("what the log's entry says");
        octets
    }
}

/// The first four numbers of a sector.
fn numbers(file: &File, at: u64) -> [u64; 4] {
    let mut octets = [0; 32];
    file.read_exact_at(&mut octets, at).expect("a whole sector");
    let mut numbers = octets.chunks_exact(8).map(|number| u64::from_le_bytes(number.try_into().expect("8 octets")));
    std::array::from_fn(|_| numbers.next().expect("32 octets"))
}
