//! The durable queue: what is stored, in which form, and when it is safe.
//!
//! Lives here: the record format, the machine that batches writes, recovery, and the schedule of what
//! is to be delivered. May use `smtp` and `limits`; the disk is behind a trait or in the driver (`shard::storage`), so that all of it runs
//! against a disk in memory. On failure nobody is acknowledged: [`crate::smtp::Durable`] is made
//! here, after a successful sync, and nowhere else.
//!
//! A spool is a directory:
//!
//! ```text
//! SPOOL/format               "gatepost-spool 2"
//! SPOOL/lock                 flock of the running process
//! SPOOL/shard-N/segment-G    log segment: messages up to 256 KB, envelopes of larger ones, outcomes
//! SPOOL/shard-N/spill-ID     a larger message, as it will be sent
//! SPOOL/shard-N/quarantine-segment-G   a segment with damage that holds nothing else any more
//! ```
//!
//! | state of a message | on disk | after a crash |
//! |---|---|---|
//! | arriving | nothing, or a spill file without a record | the spill file is removed; the client was told nothing |
//! | committing | a record, synced or not | kept if it is whole: the client may have been told |
//! | queued | a synced record, and its synced spill file | kept, tried again |
//! | partly delivered | the same, and outcomes of the recipients that are settled | kept; only the rest is tried again |
//! | delivered, outcome not synced | the same, and an outcome or none | without it: delivered once more |
//! | undeliverable | the same, and outcomes of which one is a failure | kept, listed as failed |
//! | delivered, or withdrawn | a record, and outcomes that settle all | gone; the spill file is removed |
//!
//! Rejected: a file per message (1.2k messages/s instead of 100k+: a journal commit each); a
//! database (its log, then ours); syncing on a timer (adds latency when idle, and no batching when busy).

pub mod disk;
pub mod outcome;
pub mod record;
pub mod recover;
pub mod schedule;
pub mod spool;
pub mod stored;
