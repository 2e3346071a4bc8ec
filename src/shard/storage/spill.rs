//! A message too large for the log, in a file of its own, written as its octets arrive.

use super::{Directory, create, sync_directory, sync_file, write_all};
use crate::queue::disk::spill_name;
use crate::queue::record::Body;
use crate::shard::net::Net;
use crate::smtp::QueueId;
use glommio::io::BufferedFile;
use std::io;
use std::path::PathBuf;

/// A spill file that is being written. Dropping it before [`Spill::keep`] removes the file.
pub struct Spill {
    net: Net,
    directory: PathBuf,
    /// None once it was kept.
    file: Option<BufferedFile>,
    octets: u64,
    crc: u32,
}

impl Spill {
    pub(super) async fn create(net: &Net, directory: &Directory, id: QueueId) -> io::Result<Self> {
        let _operation = net.ring_operation();
        let file = create(&directory.file(&spill_name(id)), 0).await?;
        Ok(Spill { net: net.clone(), directory: directory.path().to_owned(), file: Some(file), octets: 0, crc: 0 })
    }

    /// Appends octets of the message.
    pub async fn write(&mut self, octets: Vec<u8>) -> io::Result<()> {
        let _operation = self.net.ring_operation();
        let Some(file) = &self.file else { return Ok(()) };
        let length = octets.len() as u64;
        let crc = crc32c::crc32c_append(self.crc, &octets);
        write_all(file, octets, self.octets).await?;
        self.octets += length;
        self.crc = crc;
        Ok(())
    }

    /// Puts the file and its name on stable storage; a record may then refer to it.
    pub async fn sync(&self) -> io::Result<Body<'static>> {
        let _operation = self.net.ring_operation();
        if let Some(file) = &self.file {
            sync_file(file).await?;
            sync_directory(&self.directory).await?;
        }
        Ok(Body::Spilled { octets: self.octets, crc: self.crc })
    }

    /// A record that names the file was appended: the file stays, whatever becomes of the record.
    /// (If the record's sync fails, recovery finds either both or an orphan.)
    pub async fn keep(mut self) {
        if let Some(file) = self.file.take() {
            let _operation = self.net.ring_operation();
            // It is synced: nothing is lost if closing fails.
            let _ = file.close().await;
        }
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        // Held from now on: the shard must not end while the removal is on its way.
        let operation = self.net.ring_operation();
        self.net.spawn(async move {
            // What stays behind is removed by the next recovery: no record names it.
            let _ = file.remove().await;
            let _ = file.close().await;
            drop(operation);
        });
    }
}
