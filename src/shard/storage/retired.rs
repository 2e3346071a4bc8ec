//! The end of a directory whose shard is no more: run with fewer shards, a gateway has drained it.

use super::Directory;
use super::directory::sync_directory;
use crate::queue::disk::{Disk, segment_name, spare_generation};
use crate::queue::recover::Found;
use crate::queue::schedule::Schedule;
use std::fs;
use std::io;

impl Directory {
    /// Removes what a directory without messages has been written with, and the directory, if nothing
    /// else is in it: quarantined files stay, and files that are not ours.
    ///
    /// Each step is on stable storage before the next: a start that is interrupted here finds no message
    /// whose outcome is gone.
    pub fn retire(mut self, found: Found) -> io::Result<()> {
        debug_assert_eq!(found.messages, 0, "mail would be lost");
        let next_generation = found.resume.next_generation;
        let newest = found.segments.iter().map(|segment| segment.generation).max();
        let mut schedule = Schedule::<()>::new(0);
        schedule.resume(found.live, found.segments);
        while let Some(segment) = schedule.removable_segment(next_generation) {
            self.remove_segment(segment.generation)?;
            schedule.segment_is_gone(segment.generation);
        }
        // The schedule keeps it, for what it says of ids.
        newest.map_or(Ok(()), |generation| self.remove_segment(generation))?;
        for name in self.names()? {
            if spare_generation(&name).is_some() {
                self.remove(&name)?;
            }
        }
        match fs::remove_dir(self.path()) {
            Ok(()) => self.path().parent().map_or(Ok(()), sync_directory),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn remove_segment(&mut self, generation: u64) -> io::Result<()> {
        self.remove(&segment_name(generation))?;
        sync_directory(self.path())
    }
}
