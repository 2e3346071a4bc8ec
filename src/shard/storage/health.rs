//! Whether storage works: who finds out that it does not, and what finds out that it does again.
//!
//! From the first failure on, connections and transactions are refused (E8, C6) until a probe
//! succeeds: a file of its own, which takes the space of a small segment, is written through to the
//! device, and removed. It is tried a second after the last failure and then each second, so that
//! service resumes by itself, whether mail comes or not. What is open meanwhile goes on: a batch is
//! written whatever is known, and fails or succeeds by itself; deliveries stop only where what became
//! of them cannot be written, for they may be what makes room. (Rejected: to let a transaction
//! through now and then to see how it fares. For each second of an outage some client would send a
//! message in vain, and without mail nobody would know that storage works.)

use super::segment::reserve;
use super::{CommitError, Storage, create, into_io, sync_directory, write_all};
use crate::limits::{SEGMENT_MIN_OCTETS, SPILL_WRITE_OCTETS};
use crate::queue::disk::PROBE_NAME;
use crate::shard::shared::Stage;
use crate::stderr;
use std::io;
use std::time::Duration;

/// How long storage is left alone after a failure.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

impl Storage {
    /// Whether storage has failed, and no probe has succeeded since.
    pub fn is_failing(&self) -> bool {
        self.0.failed_at.get().is_some()
    }

    /// Counts a failure and tells the operator of the first one.
    pub fn report(&self, error: &io::Error) -> CommitError {
        let inner = &*self.0;
        inner.metrics.storage_failures.increment(1);
        // One session's want of a descriptor is no reason to turn all others away.
        if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
            return CommitError;
        }
        if error.kind() == io::ErrorKind::StorageFull {
            self.give_up_spares();
        }
        if inner.failed_at.replace(Some(inner.net.now())).is_none() {
            inner.shared.storage_fails();
            inner.metrics.storage_short.set(1.0);
            stderr::say(format_args!(
                "cannot write to {}: {error}; mail is refused with 452 until storage works again",
                inner.directory.path().display()
            ));
            inner.alarm.nudge().nudge();
        }
        CommitError
    }

    /// Probes storage that has failed, until the process drains.
    pub async fn probe(self) {
        let inner = &*self.0;
        while inner.shared.stage() == Stage::Serving {
            let failed_at = inner.failed_at.get();
            let due = failed_at.map(|failed_at| failed_at + FAILURE_PAUSE);
            if due.is_none_or(|due| inner.net.now() < due) {
                inner.alarm.wait(due).await;
                continue;
            }
            let tried = self.try_out().await;
            inner.net.refresh_now();
            if tried.is_err() {
                inner.failed_at.set(Some(inner.net.now()));
            } else if inner.failed_at.get() == failed_at {
                self.resume();
            }
        }
    }

    fn resume(&self) {
        self.0.failed_at.set(None);
        self.0.shared.storage_works();
        self.0.metrics.storage_short.set(0.0);
        stderr::say(format_args!("{}: storage works again", self.0.directory.path().display()));
    }

    /// Does what segments and spill files need.
    async fn try_out(&self) -> io::Result<()> {
        let _operation = self.0.net.ring_operation();
        let path = self.0.directory.file(PROBE_NAME);
        // There is one if it could not be removed.
        let _ = glommio::io::remove(&path).await;
        let file = create(&path, libc::O_DSYNC).await?;
        let tried = async {
            reserve(&file, SEGMENT_MIN_OCTETS).await?;
            write_all(&file, vec![0; SPILL_WRITE_OCTETS], 0).await?;
            sync_directory(self.0.directory.path()).await
        }
        .await;
        let removed = glommio::io::remove(&path).await.map_err(into_io);
        let _ = file.close().await;
        tried.and(removed)
    }
}
