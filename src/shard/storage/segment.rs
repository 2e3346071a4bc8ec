//! The files of segments: made, used again, removed.
//!
//! A segment is made under a spare's name, from a spare or as a new file, and gets its own once its
//! beginning is on stable storage: what has a segment's name has a right header, and what an earlier
//! use left behind it does not count. It is written to once its name is on stable storage.
//!
//! Only the committer makes segments, one at a time, and a generation is never tried twice: nobody
//! can remove or empty one that is in use. (A batch waits for it once in 64 MB; a segment made in
//! advance would need just that care.)

use super::{Storage, create, into_io, sync_directory, write_all, write_through};
use crate::limits::{SEGMENT_MAX_OCTETS, SEGMENT_MIN_OCTETS, SPARE_SEGMENTS_MAX};
use crate::queue::disk::{segment_name, spare_name};
use crate::queue::recover::Spare;
use glommio::io::{BufferedFile, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// A segment that is written to.
pub(super) struct Segment {
    pub generation: u64,
    /// Octets reserved for it.
    pub capacity: u64,
    pub file: BufferedFile,
}

impl Storage {
    /// Makes the segment with this generation.
    pub(super) async fn make_segment(&self, generation: u64) -> io::Result<Segment> {
        let spare = self.0.spares.borrow_mut().pop();
        let path = self.0.directory.file(&spare_name(spare.map_or(generation, |spare| spare.generation)));
        let file = match spare {
            Some(_) => OpenOptions::new()
                .custom_flags(write_through())
                .write(true)
                .buffered_open(&path)
                .await
                .map_err(into_io)?,
            None => create(&path, write_through()).await?,
        };
        match self.lay_out(&file, &path, spare, generation).await {
            Ok(capacity) => Ok(Segment { generation, capacity, file }),
            Err(error) => {
                // One is tried each second while the disk is full: they must not pile up. What
                // cannot be removed now goes at the next start.
                for path in [path, self.segment_path(generation)] {
                    let _ = glommio::io::remove(path).await;
                }
                let _ = file.close().await;
                Err(error)
            }
        }
    }

    /// Reserves a segment's space, puts its beginning and then its name on stable storage, and
    /// returns its capacity.
    async fn lay_out(
        &self,
        file: &BufferedFile,
        path: &Path,
        spare: Option<Spare>,
        generation: u64,
    ) -> io::Result<u64> {
        let capacity = match spare {
            Some(spare) => spare.octets,
            None => allocate(file, self.0.directory.path()).await?,
        };
        let beginning = self.0.spool.borrow().segment_beginning(generation);
        write_all(file, beginning, 0).await?;
        glommio::io::rename(path, self.segment_path(generation)).await.map_err(into_io)?;
        sync_directory(self.0.directory.path()).await?;
        Ok(capacity)
    }

    fn segment_path(&self, generation: u64) -> PathBuf {
        self.0.directory.file(&segment_name(generation))
    }

    /// Takes a segment away that nothing needs: keeps it to be used again, or removes it. Its name
    /// is off the disk for good when this returns.
    pub async fn retire_segment(&self, segment: Spare) -> io::Result<()> {
        let Spare { generation, octets } = segment;
        let _operation = self.0.net.ring_operation();
        self.0.segments_read.forget(generation).await;
        let is_useful = octets >= self.capacity()
            && self.0.spares.borrow().len() < SPARE_SEGMENTS_MAX
            && self.0.failed_at.get().is_none()
            && !self.0.shared.resources_short();
        let from = self.segment_path(generation);
        let gone = if is_useful {
            glommio::io::rename(from, self.0.directory.file(&spare_name(generation))).await
        } else {
            glommio::io::remove(from).await
        };
        match gone.map_err(into_io) {
            // The segment could not be made, and what was written for it failed; or another try got so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return sync_directory(self.0.directory.path()).await;
            }
            result => result?,
        }
        sync_directory(self.0.directory.path()).await?;
        if is_useful {
            self.0.spares.borrow_mut().push(segment);
        }
        Ok(())
    }

    /// Removes the spares: their space is needed.
    pub(super) fn give_up_spares(&self) {
        let spares = self.0.spares.take();
        if spares.is_empty() {
            return;
        }
        let storage = self.clone();
        let operation = self.0.net.ring_operation();
        self.0.net.spawn(async move {
            for spare in spares {
                // What cannot be removed goes at the next start.
                let _ = glommio::io::remove(storage.0.directory.file(&spare_name(spare.generation))).await;
            }
            drop(operation);
        });
    }
}

/// Reserves a segment's space and returns how much: at most a quarter of what is free, so that
/// spill files and the other shards find room too, and less when that is not to be had.
async fn allocate(file: &BufferedFile, directory: &Path) -> io::Result<u64> {
    let statistics = rustix::fs::statvfs(directory)?;
    let quarter = statistics.f_bavail.saturating_mul(statistics.f_frsize) / 4;
    let mut capacity = SEGMENT_MAX_OCTETS;
    while capacity > quarter && capacity > SEGMENT_MIN_OCTETS {
        capacity /= 2;
    }
    loop {
        match reserve(file, capacity).await {
            Ok(()) => return Ok(capacity),
            Err(error) if error.kind() == io::ErrorKind::StorageFull && capacity > SEGMENT_MIN_OCTETS => capacity /= 2,
            Err(error) => return Err(error),
        }
    }
}

/// Reserves space for so many octets. On a filesystem that cannot, files grow as they are written.
pub(super) async fn reserve(file: &BufferedFile, octets: u64) -> io::Result<()> {
    match file.pre_allocate(octets, false).await.map_err(into_io) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        result => result,
    }
}
