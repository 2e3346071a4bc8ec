//! Every bound and every default, each with its source.
//!
//! A limit exists here and nowhere else; the relations between limits that the rest of the
//! program relies on are asserted at compile time at the foot of this file. Units stand last in
//! the names: `_OCTETS`, `_MS`, `_PER_MINUTE`; a count has none.

use std::time::Duration;

/// One kilobyte: [MS-OXSMTP] and this program count in powers of 1024.
pub const KB: usize = 1024;
/// One megabyte, 1024 KB.
pub const MB: usize = 1024 * KB;

// --- the wire -----------------------------------------------------------------------------------

/// Longest command line with its CRLF. RFC 5321 section 4.5.3.1.4 asks for 512 at least;
/// extensions add to it (RFC 3461: 500 for ORCPT, 4954: 12288 for AUTH, which has its own limit).
pub const COMMAND_LINE_MAX_OCTETS: usize = 4096;
/// Longest local part, RFC 5321 section 4.5.3.1.1.
pub const LOCAL_PART_MAX_OCTETS: usize = 64;
/// Longest domain, RFC 5321 section 4.5.3.1.2.
pub const DOMAIN_MAX_OCTETS: usize = 255;
/// Longest label of a domain, RFC 1035 section 2.3.4.
pub const LABEL_MAX_OCTETS: usize = 63;
/// Longest path without its angle brackets, RFC 5321 section 4.5.3.1.3.
pub const PATH_MAX_OCTETS: usize = 256;
/// Longest argument of EHLO or HELO.
pub const HELLO_MAX_OCTETS: usize = 255;
/// Most digits of a number on the wire: RFC 1870 section 6.1 (SIZE), RFC 3030 (BDAT).
pub const NUMBER_MAX_DIGITS: usize = 20;

// --- the session --------------------------------------------------------------------------------

/// Most octets read from a socket at once: the size of a shard's scratch buffer.
pub const READ_MAX_OCTETS: usize = 64 * KB;
/// Reads of one session, of up to 64 KB each, before the shard's others have a turn.
pub const READS_IN_A_ROW_MAX: u32 = 16;
/// Replies that may wait unsent; a session with more is not read from until they have left.
pub const REPLIES_MAX_OCTETS: usize = 8 * KB;
/// A message's octets held in memory before they go to a spill file of their own.
pub const BODY_IN_MEMORY_MAX_OCTETS: usize = 256 * KB;
/// First allocation for a message of unknown size.
pub const BODY_FIRST_OCTETS: usize = 8 * KB;
/// Sum of the bodies held in memory, all sessions of all shards. Beyond it bodies spill early.
pub const BODIES_IN_MEMORY_MAX_OCTETS: usize = 256 * MB;
/// The largest envelope: reverse-path and recipients together. Beyond it recipients are refused
/// like those beyond `--max-recipients` (about 1,000 of the longest, 8,000 usual ones).
pub const ENVELOPE_MAX_OCTETS: usize = 256 * KB;
/// Most that one session may hold in memory, whatever its message's size: a body up to the spill
/// limit and the read that crossed it, input that arrived behind it, replies, and the envelope.
pub const SESSION_MEMORY_MAX_OCTETS: usize =
    BODY_IN_MEMORY_MAX_OCTETS + 2 * READ_MAX_OCTETS + REPLIES_MAX_OCTETS + ENVELOPE_MAX_OCTETS;
/// The session keeps its buffers between messages up to this capacity.
pub const KEPT_BUFFER_OCTETS: usize = KB;

/// Default of `--max-message-size`, [MS-OXSMTP] 3.2.4 (4.0: 10 MB).
pub const MESSAGE_SIZE_MAX_DEFAULT_OCTETS: u64 = 10 * MB as u64;
/// Default of `--max-recipients`, [MS-OXSMTP] 4.0 section 3.2.7; 0 is unlimited.
pub const RECIPIENTS_MAX_DEFAULT: u32 = 200;
/// Default of `--max-protocol-errors`, [MS-OXSMTP] 4.0 section 3.2.7.
pub const PROTOCOL_ERRORS_MAX_DEFAULT: u32 = 5;
/// Default of `--connection-timeout` (gateway role), [MS-OXSMTP] 3.2.2.
pub const CONNECTION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// Default of `--inactivity-timeout` (gateway role), [MS-OXSMTP] 3.2.2.
pub const INACTIVITY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

// --- connections and rates ----------------------------------------------------------------------

/// Default of `--max-connections`, [MS-OXSMTP] 4.0 section 3.2.7.
pub const CONNECTIONS_MAX_DEFAULT: u32 = 5000;
/// Default of `--max-connections-per-source`, [MS-OXSMTP] 4.0 section 3.2.7.
pub const CONNECTIONS_PER_SOURCE_MAX_DEFAULT: u32 = 20;
/// Default of `--message-rate` (gateway role), [MS-OXSMTP] 4.0 section 3.2.7.
pub const MESSAGE_RATE_DEFAULT_PER_MINUTE: u32 = 600;
/// Default of `--ipv6-prefix`: a site's customary delegation to one network.
pub const IPV6_PREFIX_DEFAULT: u8 = 64;
/// Default of `--table-slots`.
pub const TABLE_SLOTS_DEFAULT: u32 = 1 << 20;
/// Pending connections a listener's kernel queue may hold (capped by net.core.somaxconn).
pub const LISTEN_BACKLOG: i32 = 4096;
/// Connections accepted in one turn of the dispatcher before sessions get theirs.
pub const ACCEPT_BATCH_MAX: usize = 64;
/// How long an ended session's socket is drained so that its last reply is not lost to a reset.
pub const LINGER_MAX_MS: u64 = 1000;
/// Most sockets being drained per shard; beyond it the socket is closed at once.
pub const LINGERING_MAX: usize = 256;
/// Pause of a listener after accept failed for want of descriptors or memory.
pub const ACCEPT_PAUSE_MS: u64 = 100;
/// Descriptors a shard needs besides its sessions: rings, epoll, segments, spill files.
pub const DESCRIPTORS_PER_SHARD: u64 = 256;
/// Descriptors the process needs besides its shards and sessions.
pub const DESCRIPTORS_BASE: u64 = 256;
/// Most shards: a queue id has 10 bits for its shard.
pub const SHARDS_MAX: usize = 1 << 10;

// --- the spool ----------------------------------------------------------------------------------

/// Size of a log segment.
pub const SEGMENT_MAX_OCTETS: u64 = 64 * MB as u64;
/// Smallest segment that is made when space is short.
pub const SEGMENT_MIN_OCTETS: u64 = MB as u64;
/// Octets gathered for one write and sync; what comes later waits for the next.
pub const BATCH_MAX_OCTETS: usize = 4 * MB;
/// Octets written to a spill file at once.
pub const SPILL_WRITE_OCTETS: usize = 128 * KB;
/// Largest record: envelope and body of a message held in memory, plus headers.
pub const RECORD_MAX_OCTETS: usize = MB;

// --- the machine --------------------------------------------------------------------------------

/// What glommio asks of RLIMIT_MEMLOCK, whoever runs it.
pub const MEMLOCK_MIN_OCTETS: u64 = 512 * KB as u64;
/// What the three rings of a shard take of it.
pub const MEMLOCK_PER_SHARD_OCTETS: u64 = MB as u64;
/// Scrapes served at once.
pub const METRICS_CONNECTIONS_MAX: usize = 32;
/// How long a scraper may take to send its request.
pub const METRICS_REQUEST_MS: u64 = 10_000;
/// How often gathered histogram samples are tidied.
pub const METRICS_UPKEEP_MS: u64 = 5_000;

// --- drain --------------------------------------------------------------------------------------

/// How long sessions in a transaction may go on after SIGTERM.
pub const DRAIN_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

const _: () = {
    assert!(COMMAND_LINE_MAX_OCTETS <= READ_MAX_OCTETS / 2);
    assert!(4 * BODY_FIRST_OCTETS <= SPILL_WRITE_OCTETS && SPILL_WRITE_OCTETS <= BODY_IN_MEMORY_MAX_OCTETS);
    assert!(PATH_MAX_OCTETS >= LOCAL_PART_MAX_OCTETS);
    assert!(BODY_IN_MEMORY_MAX_OCTETS + ENVELOPE_MAX_OCTETS + READ_MAX_OCTETS < RECORD_MAX_OCTETS);
    assert!(RECORD_MAX_OCTETS as u64 <= SEGMENT_MIN_OCTETS);
    assert!(RECORD_MAX_OCTETS <= BATCH_MAX_OCTETS);
    assert!(SEGMENT_MIN_OCTETS <= SEGMENT_MAX_OCTETS);
};
