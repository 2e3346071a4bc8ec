//! Reading messages back: records from their segments, larger messages from their spill files.

use super::{Directory, into_io};
use crate::limits::{OPEN_SEGMENTS_MAX, SPILL_WRITE_OCTETS};
use crate::queue::disk::{segment_name, spill_name};
use crate::queue::spool::Location;
use crate::shard::net::Net;
use crate::smtp::QueueId;
use glommio::io::{BufferedFile, OpenOptions};
use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;

/// Segments that are open for reading, the one used last at the end.
#[derive(Default)]
pub(super) struct OpenSegments(RefCell<Vec<(u64, Rc<BufferedFile>)>>);

impl OpenSegments {
    pub(super) async fn read(&self, directory: &Directory, location: Location) -> io::Result<Vec<u8>> {
        let file = self.open(directory, location.generation).await?;
        let octets = location.octets as usize;
        let result = file.read_at(u64::from(location.offset), octets).await.map_err(into_io);
        release(file).await;
        let read = result?;
        if read.len() < octets {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} of {octets} octets read", read.len()),
            ));
        }
        Ok(read.to_vec())
    }

    async fn open(&self, directory: &Directory, generation: u64) -> io::Result<Rc<BufferedFile>> {
        {
            let mut open = self.0.borrow_mut();
            if let Some(place) = open.iter().position(|(number, _)| *number == generation) {
                open[place..].rotate_left(1);
                return open.last().map(|(_, file)| file.clone()).ok_or_else(|| io::ErrorKind::NotFound.into());
            }
        }
        let file = Rc::new(open_read(&directory.file(&segment_name(generation))).await?);
        let oldest = {
            let mut open = self.0.borrow_mut();
            // Another task may have opened it meanwhile: then both are kept, and one goes soon.
            open.push((generation, file.clone()));
            (open.len() > OPEN_SEGMENTS_MAX).then(|| open.remove(0).1)
        };
        if let Some(oldest) = oldest {
            release(oldest).await;
        }
        Ok(file)
    }

    /// Closes a segment that is to be removed.
    pub(super) async fn forget(&self, generation: u64) {
        let gone: Vec<_> = self.0.borrow_mut().extract_if(.., |(number, _)| *number == generation).collect();
        for (_, file) in gone {
            release(file).await;
        }
    }

    /// Closes all.
    pub(super) async fn close(&self) {
        let open = self.0.take();
        for (_, file) in open {
            release(file).await;
        }
    }
}

/// Closes a file unless others still use it.
async fn release(file: Rc<BufferedFile>) {
    if let Some(file) = Rc::into_inner(file) {
        // It was only read.
        let _ = file.close().await;
    }
}

async fn open_read(path: &Path) -> io::Result<BufferedFile> {
    OpenOptions::new().read(true).buffered_open(path).await.map_err(into_io)
}

/// A spill file that is being read from its beginning.
pub struct SpillReader {
    net: Net,
    file: BufferedFile,
    at: u64,
}

impl SpillReader {
    pub(super) async fn open(net: &Net, directory: &Directory, id: QueueId) -> io::Result<Self> {
        let _operation = net.ring_operation();
        let file = open_read(&directory.file(&spill_name(id))).await?;
        Ok(SpillReader { net: net.clone(), file, at: 0 })
    }

    /// The next octets; empty at the file's end.
    pub async fn next(&mut self) -> io::Result<Vec<u8>> {
        let _operation = self.net.ring_operation();
        let read = self.file.read_at(self.at, SPILL_WRITE_OCTETS).await.map_err(into_io)?;
        self.at += read.len() as u64;
        Ok(read.to_vec())
    }

    /// Closes the file.
    pub async fn close(self) {
        let _operation = self.net.ring_operation();
        let _ = self.file.close().await;
    }
}
