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
//! SPOOL/format               "gatepost-spool 4"
//! SPOOL/lock                 flock of the running process
//! SPOOL/shard-N/segment-G    log segment: messages up to 256 KB, envelopes of larger ones, outcomes
//! SPOOL/shard-N/spare-G      a segment to be used again, or being made
//! SPOOL/shard-N/spill-ID     a larger message, as it will be sent
//! SPOOL/shard-N/quarantine-G-OFFSET   a copy of octets of segment G that are damaged
//! SPOOL/shard-N/quarantine-spill-ID   a larger message whose record may have been among them
//! ```
//!
//! What a crash or a power cut can leave, and what recovery makes of it:
//!
//! | state of a message | on disk | after a crash |
//! |---|---|---|
//! | arriving | nothing, or a spill file without a record | the spill file is removed; the client was told nothing |
//! | committing | a record, synced or not | kept if it is whole: the client may have been told |
//! | refused, since its batch failed | perhaps a record, void by the next segment's header | gone; kept if no next segment was begun, and the client sends it again |
//! | queued | a synced record, and its synced spill file | kept, tried again |
//! | partly delivered | the same, and outcomes of the recipients that are settled | kept; only the rest is tried again |
//! | delivered, outcome not synced | the same, and an outcome or none | without it: delivered once more |
//! | undeliverable | the same, and outcomes of which one is a failure | kept, listed as failed |
//! | written again | two records; the later one has all that was known in it | the later one counts, with all outcomes |
//! | delivered, or withdrawn | a record, and outcomes that settle all | gone; the spill file is removed |
//!
//! | state of a segment | on disk | after a crash |
//! |---|---|---|
//! | being made | a spare, with anything in it | kept as a spare if it is whole, else removed |
//! | made | its name, its header and an end mark, synced before its first batch | removed if no batch came |
//! | written to | the same, records, an end mark behind the last batch that was synced | kept up to its mark |
//! | cut off in a batch | the same, but some sectors of a batch instead of the mark | kept up to the last whole record; the rest is put aside, told, and a mark written |
//! | poisoned | the same; the next segment's header says from where on it is void | kept up to there, and a mark written |
//! | full | the same as written to; nothing is written to it any more | kept |
//! | needed by nobody | the same, and outcomes in others for all its messages | kept, and removed when the gateway runs |
//! | removed | a spare, or nothing | kept as a spare if it is whole |
//! | damaged | octets before the mark that are no record, or no header | its other records count; the octets are put aside and told at each start |
//!
//! The segments of a shard take at most four times the octets of the live records in them and four
//! segments more ([`schedule`]); beside them there may be two spares, the spill files of queued
//! messages, and what was put aside, which an operator removes.
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
