//! What a disk may hold after a power cut: all that was written up to its last flush, and of what
//! came then, until the cut, each write or none of it, or some of its sectors.
//!
//! Two things are never torn, because the filesystem itself relies on it: its superblock, and the
//! blocks of its journal.

use crate::device::{BLOCK_OCTETS, JOURNAL};
use crate::load::Random;
use crate::write_log::{Operation, SECTOR_OCTETS, WriteLog};
use std::ops::Range;

/// Of the writes that are kept, one in so many is torn.
const TORN_ONE_IN: u64 = 4;

/// What became of the writes behind the last flush.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fates {
    pub kept: u64,
    pub torn: u64,
    pub dropped: u64,
}

impl Fates {
    pub fn add(&mut self, other: Fates) {
        self.kept += other.kept;
        self.torn += other.torn;
        self.dropped += other.dropped;
    }
}

/// Makes the images of a log, in the order of their cuts.
pub struct Images<'a> {
    log: &'a WriteLog,
    /// The disk with all entries before `next`, which end with a flush.
    durable: Vec<u8>,
    next: usize,
}

impl<'a> Images<'a> {
    /// `disk` is what it held before the log.
    pub fn new(log: &'a WriteLog, disk: Vec<u8>) -> Self {
        Images { log, durable: disk, next: 0 }
    }

    /// The disk after a cut behind the first `entries` of the log.
    pub fn cut(&mut self, entries: usize, random: &mut Random) -> (Vec<u8>, Fates) {
        assert!(entries >= self.next, "cuts come in their order");
        let flushed = self.log.flush_before(entries).max(self.next);
        write_all(&mut self.durable, self.log, self.next..flushed);
        self.next = flushed;
        let (mut disk, mut fates) = (self.durable.clone(), Fates::default());
        for entry in &self.log.entries[self.next..entries] {
            let Operation::Write { offset, content, through } = &entry.operation else { continue };
            let octets = self.log.content(content);
            let range = *offset..*offset + octets.len() as u64;
            if *through {
                write(&mut disk, *offset, &octets);
            } else if random.below(2) == 0 {
                fates.dropped += 1;
            } else if random.below(TORN_ONE_IN) == 0 && can_be_torn(&range) {
                fates.torn += 1;
                for (sector, octets) in (0..).zip(octets.chunks(SECTOR_OCTETS as usize)) {
                    if random.below(2) == 0 {
                        write(&mut disk, *offset + sector * SECTOR_OCTETS, octets);
                    }
                }
            } else {
                fates.kept += 1;
                write(&mut disk, *offset, &octets);
            }
        }
        (disk, fates)
    }
}

/// The disk after all of its log.
pub fn whole(log: &WriteLog, mut disk: Vec<u8>) -> Vec<u8> {
    write_all(&mut disk, log, 0..log.entries.len());
    disk
}

fn can_be_torn(range: &Range<u64>) -> bool {
    let is_apart = |other: &Range<u64>| range.end <= other.start || other.end <= range.start;
    is_apart(&(0..BLOCK_OCTETS)) && is_apart(&JOURNAL)
}

fn write_all(disk: &mut [u8], log: &WriteLog, entries: Range<usize>) {
    for entry in &log.entries[entries] {
        if let Operation::Write { offset, content, .. } = &entry.operation {
            write(disk, *offset, &log.content(content));
        }
    }
}

fn write(disk: &mut [u8], offset: u64, octets: &[u8]) {
    let start = offset as usize;
    disk[start..start + octets.len()].copy_from_slice(octets);
}
