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
/// Longest line of an authentication exchange with its CRLF, RFC 4954 section 4.
pub const SASL_LINE_MAX_OCTETS: usize = 12 * KB;
/// Longest local part, RFC 5321 section 4.5.3.1.1.
pub const LOCAL_PART_MAX_OCTETS: usize = 64;
/// Longest domain, RFC 5321 section 4.5.3.1.2.
pub const DOMAIN_MAX_OCTETS: usize = 255;
/// Longest label of a domain, RFC 1035 section 2.3.4.
pub const LABEL_MAX_OCTETS: usize = 63;
/// Longest path without its angle brackets, RFC 5321 section 4.5.3.1.3.
pub const PATH_MAX_OCTETS: usize = 256;
/// Longest ENVID as written, RFC 3461 section 4.4.
pub const ENVID_MAX_OCTETS: usize = 100;
/// Longest ORCPT as written, RFC 3461 section 4.2.
pub const ORCPT_MAX_OCTETS: usize = 500;
/// Longest AUTH= of MAIL as written, RFC 4954 section 3.
pub const AUTH_PARAMETER_MAX_OCTETS: usize = 500;
/// Longest argument of EHLO or HELO.
pub const HELLO_MAX_OCTETS: usize = 255;
/// Most digits of a number on the wire: RFC 1870 section 6.1 (SIZE), RFC 3030 (BDAT).
pub const NUMBER_MAX_DIGITS: usize = 20;

/// Longest header of the PROXY protocol's version 1 with its CRLF (proxy-protocol.txt section 2.1).
pub const PROXY_LINE_MAX_OCTETS: usize = 107;
/// Longest header of its version 2: the 16 octets before the addresses, the longest addresses (216, of
/// Unix sockets) and 2 KB for what else a proxy tells. Senders are to keep it below 536 (section 2).
pub const PROXY_HEADER_MAX_OCTETS: usize = 16 + 216 + 2 * KB;

// --- the session --------------------------------------------------------------------------------

/// Most octets read from a socket at once: the size of a shard's scratch buffer.
pub const READ_MAX_OCTETS: usize = 64 * KB;
/// Reads of one session, of up to 64 KB each, before the shard's others have a turn.
pub const READS_IN_A_ROW_MAX: u32 = 16;
/// Replies that may wait unsent; a session with more is not read from until they have left.
pub const REPLIES_MAX_OCTETS: usize = 8 * KB;
/// First allocation for them, with the session: the banner, later the answer to EHLO, fit into it.
pub const REPLIES_FIRST_OCTETS: usize = 256;
/// A message's octets held in memory before they go to a spill file of their own.
pub const BODY_IN_MEMORY_MAX_OCTETS: usize = 256 * KB;
/// First allocation for a message of unknown size.
pub const BODY_FIRST_OCTETS: usize = 8 * KB;
/// Sum of the bodies held in memory, all sessions of all shards. Beyond it bodies spill early.
pub const BODIES_IN_MEMORY_MAX_OCTETS: usize = 256 * MB;
/// The largest envelope: paths and parameters together. Beyond it recipients are refused
/// like those beyond `--max-recipients` (about 1,000 of the longest paths, 7,500 usual ones).
pub const ENVELOPE_MAX_OCTETS: usize = 256 * KB;
/// Most that one session may hold in memory, whatever its message's size: a body up to the spill
/// limit and the read that crossed it, input that arrived behind it, replies (the one that fills the
/// buffer doubles it), and the envelope.
pub const SESSION_MEMORY_MAX_OCTETS: usize =
    BODY_IN_MEMORY_MAX_OCTETS + 2 * READ_MAX_OCTETS + 2 * REPLIES_MAX_OCTETS + ENVELOPE_MAX_OCTETS;
/// Octets that a session under TLS may have encrypted and not sent.
pub const TLS_WRITE_OCTETS: usize = 2 * REPLIES_MAX_OCTETS;
/// The session keeps its buffers between messages up to this capacity.
pub const KEPT_BUFFER_OCTETS: usize = KB;

/// Default of `--max-message-size`, [MS-OXSMTP] 4.0 section 3.2.7 (MessageSizeExceeded).
pub const MESSAGE_SIZE_MAX_DEFAULT_OCTETS: u64 = 10 * MB as u64;
/// Default of `--max-header-size`, [MS-OXSMTP] 4.0 section 3.2.7 (HeaderSizeExceeded).
pub const HEADER_SIZE_MAX_DEFAULT_OCTETS: u64 = 64 * KB as u64;
/// Default of `--max-hops`, [MS-OXSMTP] 4.0 section 3.2.7 (MaxHopCount).
pub const HOPS_MAX_DEFAULT: u32 = 60;
/// Default of `--max-local-hops`, [MS-OXSMTP] 4.0 section 3.2.7 (MaxLocalHopCount).
pub const LOCAL_HOPS_MAX_DEFAULT: u32 = 12;
/// Most names of this server: a Received field is compared with all of them at once.
pub const LOCAL_NAMES_MAX: usize = 64;
/// Default of `--max-recipients`, [MS-OXSMTP] 4.0 section 3.2.7; 0 is unlimited.
pub const RECIPIENTS_MAX_DEFAULT: u32 = 200;
/// Default of `--max-protocol-errors`, [MS-OXSMTP] 4.0 section 3.2.7.
pub const PROTOCOL_ERRORS_MAX_DEFAULT: u32 = 5;
/// Default of `--max-logon-failures`, [MS-OXSMTP] 4.0 section 3.2.7.
pub const LOGON_FAILURES_MAX_DEFAULT: u32 = 3;
/// Threads that compute password hashes: each takes its memory (19 MB by default) and a core's time.
pub const LOGON_THREADS: usize = 2;
/// Logons that may wait for them, in the whole process; more are told to come back later.
pub const LOGONS_WAITING_MAX: usize = 256;
/// Tasks of a shard that other threads may call at once; beyond it all tasks look up.
pub const CALLS_MAX: usize = 512;
/// A logon that has waited for so long is told to come back later.
pub const LOGON_WAIT_MS: u64 = 30_000;
/// How long a refused connection on a binding with implicit TLS has for its handshake.
pub const REFUSED_HANDSHAKE_MS: u64 = 5000;
/// How long a proxy has for its header (proxy-protocol.txt section 2: a few seconds, 3 at least).
pub const PROXY_HEADER_MS: u64 = 5000;
/// Default of `--connection-timeout` (gateway role), [MS-OXSMTP] 3.2.7 (ConnectionEstablished).
pub const CONNECTION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// Default of `--inactivity-timeout` (gateway role), [MS-OXSMTP] 4.0 section 3.2.6.
pub const INACTIVITY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// Default of `--relay-connection-timeout`, [MS-OXSMTP] 3.2.7 (ConnectionEstablished).
pub const RELAY_CONNECTION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10 * 60);
/// Default of `--relay-inactivity-timeout`, [MS-OXSMTP] 4.0 section 3.2.6.
pub const RELAY_INACTIVITY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// Default of `--tarpit`, [MS-OXSMTP] 4.0 section 3.2.7 (Tarpit).
pub const TARPIT_DEFAULT: Duration = Duration::from_secs(5);
/// Longest that `--tarpit` may be: a client waits 5 minutes for most replies (RFC 5321 section
/// 4.5.3.2).
pub const TARPIT_LONGEST: Duration = Duration::from_secs(5 * 60);
/// How long an address is remembered whose next banner is to be late (E17).
pub const TARPIT_MARK_MS: u64 = 60_000;
/// The port of message submission, RFC 6409 section 3.1.
pub const SUBMISSION_PORT: u16 = 587;

// --- connections and rates ----------------------------------------------------------------------

/// Default of `--max-connections`, [MS-OXSMTP] 4.0 section 3.2.7.
pub const CONNECTIONS_MAX_DEFAULT: u32 = 5000;
/// Default of `--max-connections-per-source`, [MS-OXSMTP] 4.0 section 3.2.7.
pub const CONNECTIONS_PER_SOURCE_MAX_DEFAULT: u32 = 20;
/// Default of `--message-rate` (gateway role), [MS-OXSMTP] 4.0 section 3.2.7.
pub const MESSAGE_RATE_DEFAULT_PER_MINUTE: u32 = 600;
/// Default of `--relay-message-rate`, [MS-OXSMTP] 4.0 section 3.2.7.
pub const RELAY_MESSAGE_RATE_DEFAULT_PER_MINUTE: u32 = 5;
/// Default of `--logon-failure-rate`: a site behind one address mistypes now and then, a guesser
/// needs millions.
pub const LOGON_FAILURE_RATE_DEFAULT_PER_MINUTE: u32 = 60;
/// Default of `--ipv6-prefix`: a site's customary delegation to one network.
pub const IPV6_PREFIX_DEFAULT: u8 = 64;
/// Default of `--table-slots`.
pub const TABLE_SLOTS_DEFAULT: u32 = 1 << 20;
/// Most ranges of the dynamic block list (E14).
pub const BLOCKS_MAX: usize = 100_000;
/// Default of `gatepost block add --for`.
pub const BLOCK_DEFAULT: Duration = Duration::from_secs(60 * 60);
/// Longest that a range can be blocked at run time; `--block` is for ever.
pub const BLOCK_LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How often ranges whose time is over are dropped from the list.
pub const BLOCKS_SWEEP_MS: u64 = 10_000;
/// Octets of a client in a name of a DNS block list: 32 nibbles with their dots (RFC 5782 section 2.4).
pub const DNSBL_CLIENT_OCTETS: usize = 64;
/// Longest zone of a DNS block list: a name has 255 octets on the wire, which as text are 253 and a dot.
pub const DNSBL_ZONE_MAX_OCTETS: usize = DOMAIN_MAX_OCTETS - 2 - DNSBL_CLIENT_OCTETS;
/// Most zones: each is asked about each client.
pub const DNSBL_ZONES_MAX: usize = 16;
/// How long a session waits to learn whether its client is on a DNS block list: a client waits 5 minutes
/// for the reply to RCPT (RFC 5321 section 4.5.3.2.3), but holds its connection meanwhile.
pub const DNSBL_WAIT_MS: u64 = 3_000;
/// How long a name server is given for an answer: two tries fit into the wait.
pub const DNSBL_TRY_MS: u64 = 1_400;
/// Clients that may wait to be looked up, in the whole process; more are not.
pub const DNSBL_WAITING_MAX: usize = 1_024;
/// Clients that are looked up at once.
pub const DNSBL_LOOKUPS_MAX: usize = 256;
/// Questions to name servers that are open at once, each of them to two servers.
pub const DNSBL_QUESTIONS_MAX: usize = 128;
/// Answers of name servers that are remembered as long as they allow.
pub const DNSBL_CACHE_ANSWERS: u64 = 65_536;
/// Most name servers of `--resolver`.
pub const RESOLVERS_MAX: usize = 8;
/// Pending connections a listener's kernel queue may hold (capped by net.core.somaxconn).
pub const LISTEN_BACKLOG: i32 = 4096;
/// Connections accepted in one turn of the dispatcher before sessions get theirs.
pub const ACCEPT_BATCH_MAX: usize = 64;
/// How long an ended session's socket is drained so that its last reply is not lost to a reset.
pub const LINGER_MAX_MS: u64 = 1000;
/// Most sockets being drained per shard; beyond it the socket is closed at once.
pub const LINGERING_MAX: usize = 256;
/// Most connections per shard whose refusal is held back; beyond it refusals are given at once.
pub const LATE_REFUSALS_MAX: usize = 256;
/// Pause of a listener after accept failed for want of descriptors or memory.
pub const ACCEPT_PAUSE_MS: u64 = 100;
/// Descriptors a shard needs besides its sessions: rings, epoll, segments, spill files.
pub const DESCRIPTORS_PER_SHARD: u64 = 256;
/// Descriptors the process needs besides its shards and sessions.
pub const DESCRIPTORS_BASE: u64 = 256;
/// Most shards: a queue id has 10 bits for its shard.
pub const SHARDS_MAX: usize = 1 << 10;

// --- users --------------------------------------------------------------------------------------

/// Longest name of a user.
pub const USER_NAME_MAX_OCTETS: usize = 254;
/// Longest password that `gatepost user add` takes.
pub const PASSWORD_MAX_OCTETS: usize = 256;
/// Most memory that verifying a password may take, in KB: each login that is under way takes it.
pub const PASSWORD_HASH_MEMORY_MAX_KB: u32 = 256 * 1024;
/// Most passes over that memory.
pub const PASSWORD_HASH_PASSES_MAX: u32 = 64;
/// Largest users file.
pub const USERS_FILE_MAX_OCTETS: u64 = 64 * MB as u64;
/// How long `gatepost user` waits for another one that changes a file in the same directory.
pub const USERS_FILE_LOCK_MS: u64 = 30_000;
/// How often that is tried.
pub const USERS_FILE_LOCK_TICK_MS: u64 = 10;

// --- the spool ----------------------------------------------------------------------------------

/// Size of a log segment.
pub const SEGMENT_MAX_OCTETS: u64 = 64 * MB as u64;
/// Smallest segment that is made when space is short.
pub const SEGMENT_MIN_OCTETS: u64 = MB as u64;
/// Segments that nothing needs any more and that a shard keeps to be used again: their space is
/// reserved and was written, so a sync has no metadata to write.
pub const SPARE_SEGMENTS_MAX: usize = 2;
/// A shard's segments take at most so many times what is live in them, and [`SEGMENTS_SLACK`]
/// segments; what is beyond is given back by writing the oldest live records again.
pub const SEGMENTS_PER_LIVE_MAX: u64 = 4;
/// See [`SEGMENTS_PER_LIVE_MAX`]; one of them is being written to.
pub const SEGMENTS_SLACK: u64 = 4;
/// Octets of records that are written again in one go.
pub const REWRITE_STEP_OCTETS: u64 = MB as u64;
/// Messages looked at in one go to find those of a segment.
pub const REWRITE_STEP_MESSAGES: usize = 4096;
/// Octets gathered for one write and sync; what comes later waits for the next.
pub const BATCH_MAX_OCTETS: usize = 4 * MB;
/// Segments a shard keeps open for reading: mail waits in the oldest ones, and is taken in its order.
pub const OPEN_SEGMENTS_MAX: usize = 8;
/// Octets written to a spill file at once.
pub const SPILL_WRITE_OCTETS: usize = 128 * KB;
/// Most recipients that one outcome record settles.
pub const OUTCOME_RECIPIENTS_MAX: usize = 1000;
/// Largest record: envelope and body of a message held in memory, plus headers.
pub const RECORD_MAX_OCTETS: usize = 2 * MB;

// --- delivery -----------------------------------------------------------------------------------

/// Default of `--retry-min`: the first retry. RFC 5321 section 4.5.4.1 asks for 30 minutes between
/// tries at a destination; the next hop here is the site's own, and sooner is customary.
pub const RETRY_MIN_DEFAULT: Duration = Duration::from_secs(60);
/// Default of `--retry-max`: the longest wait between two tries.
pub const RETRY_MAX_DEFAULT: Duration = Duration::from_secs(60 * 60);
/// Longest that `--retry-max` may be.
pub const RETRY_LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A wait between tries is spread by this part of it either way (a fifth).
pub const RETRY_JITTER_DIVISOR: u64 = 5;
/// Default of `--queue-lifetime`.
pub const QUEUE_LIFETIME_DEFAULT: Duration = Duration::from_secs(2 * 24 * 60 * 60);
/// Longest that `--queue-lifetime` may be.
pub const QUEUE_LIFETIME_LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Default of `--ack-delay`, [MS-OXSMTP] 4.0 section 3.2.7 (AcknowledgementDelay).
pub const ACK_DELAY_DEFAULT: Duration = Duration::from_secs(30);
/// Longest that `--ack-delay` may be: clients wait 10 minutes for the reply to a message
/// (RFC 5321 section 4.5.3.2.6), and send it again when that has passed (RFC 1047).
pub const ACK_DELAY_LONGEST: Duration = Duration::from_secs(5 * 60);
/// Default of `--next-hop-timeout`: most commands' in RFC 5321 section 4.5.3.2.
pub const NEXT_HOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// Longest that `--next-hop-timeout` may be.
pub const NEXT_HOP_TIMEOUT_LONGEST: Duration = Duration::from_secs(60 * 60);
/// Most connections to one next hop with a transaction on them, all shards: what a peer with
/// [MS-OXSMTP]'s limits allows one source.
pub const NEXT_HOP_WINDOW_DEFAULT: u32 = CONNECTIONS_PER_SOURCE_MAX_DEFAULT;
/// Transactions that may break in a row before the next hop counts as down.
pub const NEXT_HOP_STRIKES_MAX: u8 = 3;
/// How long the shard that probes a next hop has for it before another may. A probe that takes
/// longer costs a second one beside it.
pub const NEXT_HOP_PROBE_LEASE_MS: u64 = 2 * 60 * 1000;
/// How soon a shard that found the window full, and has less than its share, asks again.
pub const NEXT_HOP_STARVED_RETRY_MS: u64 = 20;
/// How long connecting to a next hop may take.
pub const NEXT_HOP_CONNECT_MS: u64 = 30_000;
/// How long a connection to a next hop may be silent before its kernel is asked whether it knows of
/// it, and how often it is asked again. One that was forgotten (see `shard::net`) is reset at once.
pub const NEXT_HOP_KEEPALIVE: Duration = Duration::from_secs(10);
/// How often in vain before the connection is given up: after ten minutes, the longest that
/// RFC 5321 section 4.5.3.2 waits. Silence is for the time limits of the dialogue to judge; a
/// final reply that is given up too soon makes a duplicate.
pub const NEXT_HOP_KEEPALIVES_MAX: u32 = 60;
/// Longest command line of an AUTH with its initial response, RFC 4954 section 4: that of RFC 5321
/// section 4.5.3.1.4.
pub const NEXT_HOP_COMMAND_LINE_MAX_OCTETS: usize = 512;
/// Largest file with name and password for a next hop: as one line of an AUTH exchange, it is still one.
pub const AUTH_FILE_MAX_OCTETS: usize = 4 * KB;
/// How long connections go without TLS to a next hop where it is optional and has failed.
pub const NEXT_HOP_CLEAR_MS: u64 = 60 * 60 * 1000;
/// How long a connection to a next hop is kept without a transaction.
pub const NEXT_HOP_IDLE_MS: u64 = 10_000;
/// Age at which a connection to a next hop is given up between two transactions.
pub const NEXT_HOP_CONNECTION_AGE_MS: u64 = 5 * 60 * 1000;
/// Most recipients of one outgoing transaction (RFC 5321 section 4.5.3.1.8 asks servers for 100;
/// one with a lower limit answers 452, and the rest is sent in the next).
pub const TRANSACTION_RECIPIENTS_MAX: usize = 1000;
/// Jobs in a lane beyond which messages are not kept in memory for their turn.
pub const HOT_JOBS_MAX: usize = 256;
/// Messages of a lane given up in a row for their age, before other lanes have a turn.
pub const EXPIRED_IN_A_ROW_MAX: usize = 64;
/// How soon outcomes are written again whose batch failed.
pub const OUTCOMES_AGAIN_MS: u64 = 1_000;
/// How often mail that waits for a next hop is looked at.
pub const KEEPER_TICK_MS: u64 = 100;
/// How often an idle queue is looked at.
pub const KEEPER_MAX_MS: u64 = 60_000;
/// How often the name of a next hop is looked up.
pub const NEXT_HOP_LOOKUP_MS: u64 = 60_000;
/// How soon a name is looked up again that could not be.
pub const NEXT_HOP_LOOKUP_AGAIN_MS: u64 = 5_000;
/// How long no more connections are made to a next hop that refused one in its greeting while
/// others work.
pub const NEXT_HOP_CROWDED_MS: u64 = 1_000;
/// Most next hops.
pub const NEXT_HOPS_MAX: usize = 1 << 10;
/// Most next hops of one route.
pub const NEXT_HOPS_PER_ROUTE_MAX: usize = 16;
/// Most routes with different next hops.
pub const ROUTES_MAX: usize = 1 << 12;
/// Longest line of a next hop's reply with its line end. RFC 5321 section 4.5.3.1.5 allows 512.
pub const NEXT_HOP_REPLY_LINE_MAX_OCTETS: usize = 2 * KB;
/// Largest reply of a next hop, all its lines.
pub const NEXT_HOP_REPLY_MAX_OCTETS: usize = 64 * KB;
/// Most lines of a next hop's reply.
pub const NEXT_HOP_REPLY_LINES_MAX: usize = 256;
/// Octets kept of a reply's text: with code and an enhanced code before it, it is still a reply
/// line of 512 octets (RFC 5321 section 4.5.3.1.5).
pub const ANSWER_TEXT_MAX_OCTETS: usize = 500;
/// A sending session keeps its output buffer between messages up to this capacity: a piece of
/// content, and as much for its dots.
pub const NEXT_HOP_OUTPUT_KEPT_OCTETS: usize = 128 * KB;

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
pub const METRICS_UPKEEP_MS: u64 = 1_000;

/// Commands that the admin socket serves at once.
pub const ADMIN_CONNECTIONS_MAX: usize = 16;
/// Commands that may wait for their turn there.
pub const ADMIN_BACKLOG: i32 = 64;
/// Longest request on the admin socket.
pub const ADMIN_REQUEST_MAX_OCTETS: usize = 64 * KB;
/// Longest answer on the admin socket, for the command that reads it.
pub const ADMIN_ANSWER_MAX_OCTETS: usize = 16 * MB;
/// How long a request or an answer may be on its way on the admin socket.
pub const ADMIN_TRANSFER_MS: u64 = 10_000;
/// How long a command waits for its answer: for its turn, the work and the transfer.
pub const ADMIN_ANSWER_MS: u64 = 30_000;
/// Pause of the admin socket after accept failed for want of descriptors or memory.
pub const ADMIN_PAUSE_MS: u64 = 100;

/// Default of `--min-free-disk`.
pub const FREE_DISK_MIN_DEFAULT_OCTETS: u64 = 500 * MB as u64;
/// Default of `--min-free-memory`.
pub const FREE_MEMORY_MIN_DEFAULT_OCTETS: u64 = 100 * MB as u64;
/// How often free disk and memory are looked at.
pub const RESOURCES_SAMPLE_MS: u64 = 1_000;
/// How late a sample may be before it counts as one that is short.
pub const RESOURCES_LATE_MS: u64 = 5_000;

/// How often files are looked at that are loaded again when they change.
pub const FILES_LOOK_MS: u64 = 2_000;
/// How long a reload waits for the shards to go by the new configuration.
pub const RELOAD_WAIT_MS: u64 = 5_000;
/// How often it looks whether they do.
pub const RELOAD_TICK_MS: u64 = 2;
/// Reloads that wait for their turn.
pub const RELOADS_WAITING_MAX: usize = ADMIN_CONNECTIONS_MAX;

// --- the log ------------------------------------------------------------------------------------

/// A shard's records that wait to be written, in octets: some 4,000, of 200,000 a second with
/// [`LOG_GATHER_MS`]. A record that does not fit is lost and counted.
pub const LOG_RING_OCTETS: usize = MB;
/// Most senders of records: the shards, and the watchdog.
pub const LOG_SENDERS_MAX: usize = SHARDS_MAX + 1;
/// Longest value of a field before it is escaped: a reply line (RFC 5321 section 4.5.3.1.5). Paths and
/// names are shorter.
pub const LOG_VALUE_MAX_OCTETS: usize = 512;
/// Longest line for operators in the log: it may name a file (PATH_MAX).
pub const LOG_MESSAGE_MAX_OCTETS: usize = 4 * KB;
/// Lines for operators that wait to be written: those at the start tell of every binding.
pub const LOG_SAID_MAX: usize = 1024;
/// Threads that may wait at once until the log is written.
pub const LOG_FLUSHES_MAX: usize = 16;
/// How long records gather between two writes.
pub const LOG_GATHER_MS: u64 = 20;
/// Octets of which a write is made at once, while more are gathered.
pub const LOG_WRITE_OCTETS: usize = 256 * KB;
/// How often a log that is written is looked for at its path, at most.
pub const LOG_ROTATION_LOOK_MS: u64 = 1_000;
/// How soon a log that cannot be written is tried again when nothing new is to be written.
pub const LOG_RETRY_MS: u64 = 1_000;
/// How long the end of the process waits for its last records to be written.
pub const LOG_FLUSH_MS: u64 = 1_000;

// --- the watchdog -------------------------------------------------------------------------------

/// How often each shard is asked for a beat. A stall is found this and [`WATCHDOG_STALL_MS`] after
/// it began, at the latest: within the 2 s in which a client is to have its answer.
pub const WATCHDOG_ASK_MS: u64 = 400;
/// How long a shard may owe a beat before its new connections are refused (E9). Nothing that a
/// shard does takes a tenth of it; a machine that cannot run a thread for this long serves nobody.
pub const WATCHDOG_STALL_MS: u64 = 1_000;
/// How long a shard may owe a beat before it counts as dead: the other shards drain, and the
/// process is started again. Clients give a greeting 5 minutes (RFC 5321 section 4.5.3.2.1).
pub const WATCHDOG_GIVE_UP_MS: u64 = 30_000;
/// The watchdog itself did not run for this long: the process was stopped, or the machine slept.
/// No shard is judged by such a pause.
pub const WATCHDOG_LATE_MS: u64 = 250;
/// Most sockets the watchdog drains at once, of the descriptors of [`DESCRIPTORS_BASE`]; beyond it a
/// socket is closed when it is answered.
pub const WATCHDOG_LINGERING_MAX: usize = 128;
/// How often the watchdog looks whether shards have begun to serve, or closed their listeners.
pub const WATCHDOG_DRAIN_TICK_MS: u64 = 20;

// --- drain --------------------------------------------------------------------------------------

/// How long sessions in a transaction may go on after SIGTERM.
pub const DRAIN_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// How long shards have for their last commits when the time of the drain is up and one of them
/// has failed. Then the process ends: what it has not acknowledged, it does not owe.
pub const ENDING_MAX_MS: u64 = 2_000;
/// How often that is looked at.
pub const ENDING_TICK_MS: u64 = 50;

const _: () = {
    assert!(COMMAND_LINE_MAX_OCTETS <= READ_MAX_OCTETS / 2);
    assert!(PROXY_LINE_MAX_OCTETS <= PROXY_HEADER_MAX_OCTETS && PROXY_HEADER_MAX_OCTETS <= READ_MAX_OCTETS);
    // A session may wait for the rest of what looks like a header.
    assert!(PROXY_HEADER_MAX_OCTETS < COMMAND_LINE_MAX_OCTETS && PROXY_HEADER_MS >= 3000);
    assert!(LOGONS_WAITING_MAX + LOGON_THREADS <= CALLS_MAX);
    assert!(4 * BODY_FIRST_OCTETS <= SPILL_WRITE_OCTETS && SPILL_WRITE_OCTETS <= BODY_IN_MEMORY_MAX_OCTETS);
    assert!(PATH_MAX_OCTETS >= LOCAL_PART_MAX_OCTETS);
    // An envelope takes up to twice its octets in a record.
    assert!(BODY_IN_MEMORY_MAX_OCTETS + 2 * ENVELOPE_MAX_OCTETS + READ_MAX_OCTETS < RECORD_MAX_OCTETS);
    // Code, enhanced code, the spaces behind them, CRLF.
    assert!(10 + ANSWER_TEXT_MAX_OCTETS + 2 <= 512);
    assert!(AUTH_FILE_MAX_OCTETS.div_ceil(3) * 4 + 6 <= SASL_LINE_MAX_OCTETS);
    assert!(NEXT_HOP_REPLY_LINE_MAX_OCTETS <= NEXT_HOP_REPLY_MAX_OCTETS);
    assert!(NEXT_HOP_REPLY_LINE_MAX_OCTETS <= READ_MAX_OCTETS / 2);
    assert!(RECORD_MAX_OCTETS <= BATCH_MAX_OCTETS);
    // Place, tag and the like, and "550 ".
    assert!(OUTCOME_RECIPIENTS_MAX * (ANSWER_TEXT_MAX_OCTETS + 16) < RECORD_MAX_OCTETS);
    assert!(SEGMENT_MIN_OCTETS <= SEGMENT_MAX_OCTETS);
    // A blocked range as JSON takes up to 90 octets.
    assert!(128 * BLOCKS_MAX <= ADMIN_ANSWER_MAX_OCTETS && ADMIN_TRANSFER_MS < ADMIN_ANSWER_MS);
    assert!(RELOAD_WAIT_MS < ADMIN_ANSWER_MS / 2);
    assert!(WATCHDOG_ASK_MS + WATCHDOG_STALL_MS <= 1_500 && WATCHDOG_LATE_MS < WATCHDOG_ASK_MS);
    assert!(ENDING_MAX_MS > WATCHDOG_STALL_MS && WATCHDOG_GIVE_UP_MS > ENDING_MAX_MS);
    assert!(WATCHDOG_LINGERING_MAX as u64 <= DESCRIPTORS_BASE / 2);
    assert!(2 * DNSBL_TRY_MS < DNSBL_WAIT_MS && DNSBL_LOOKUPS_MAX <= CALLS_MAX);
    // NextHopId and RouteId are 16 bits wide.
    assert!(NEXT_HOPS_MAX <= 1 << 16 && ROUTES_MAX <= 1 << 16);
    // A record of all fields, each at its longest and escaped sixfold (JSON), is a small part of the ring.
    assert!(32 * 6 * LOG_VALUE_MAX_OCTETS + 6 * LOG_MESSAGE_MAX_OCTETS <= LOG_RING_OCTETS / 4);
    assert!(NEXT_HOPS_PER_ROUTE_MAX <= NEXT_HOPS_MAX && NEXT_HOP_STRIKES_MAX > 0 && NEXT_HOP_WINDOW_DEFAULT > 0);
};
