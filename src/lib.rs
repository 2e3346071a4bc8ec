//! Gatepost, a mail edge gateway: it accepts SMTP at high rate, enforces limits, spools every
//! message durably before it says 250, and hands it to the next hop.
//!
//! # The map
//!
//! | room | what lives there | may use |
//! |---|---|---|
//! | [`limits`] | every bound and default, with its source | nothing |
//! | [`smtp`] | the protocol, pure: lines, commands, addresses, replies, the receiving and the sending session | `limits` |
//! | [`policy`] | decisions, pure: shared tables, accepted domains, address ranges, DNS block lists | `smtp`, `limits` |
//! | [`users`] | who may log in, pure: the users file, its hashes, what a user may do | `smtp` (addresses), `policy` (domains, addresses), `limits` |
//! | [`queue`] | the durable queue, pure: records and outcomes, group commit, recovery, the schedule | `smtp`, `limits` |
//! | [`delivery`] | delivery, pure: routes, what is known of next hops, backoff | `queue`, `smtp`, `policy` (map by domain, atomics), `limits` |
//! | [`config`] | options of flags, environment and file, validated once | `smtp`, `policy`, `users`, `delivery`, `log` (settings), `limits` |
//! | [`metrics`] | the table of metrics, handles to them | `smtp`, `queue` (figures) |
//! | [`shard`] | a core's sockets, sessions and files: the only room with glommio, a clock and `.await` | all of these |
//! | [`control`] | preflight, what `check` finds, signals, the metrics endpoint, the admin socket, reloads, watermarks, next hops' names, DNS block lists, certificates and passwords, the users file, certificates of this server, files that change, threads for password hashes; recovery of the spool, the start of the shards; the watchdog, who waits for the shards | `shard`, `policy`, `users`, `config`, `metrics` |
//! | [`log`] | records of what happens, in text or JSON: tables of events and fields, a sender for each shard, the thread that writes | `limits`, `stderr` |
//! | [`stderr`], [`stdout`] | lines for operators | `log` |
//! | [`cmd`] | the other subcommands | `queue`, `users`, `config`, the spool's directories, `control`'s exit codes, admin socket, users file and `check` |
//!
//! # The flow of a message
//!
//! ```text
//! client ── TCP ──> shard::listener   permits: total, per source          (policy::ConnectionTable)
//!                     │               a proxy's header between the two     (shard::proxied)
//!                     │ 220
//!                   shard::inbound    reads into the shard's scratch buffer
//!                     │ slices
//!                   smtp::server      Session::step: commands, replies, data decoder
//!                     │ Decide ──────> policy   rate, accepted domains ──> verdict
//!                     │ Body
//!                   shard::message    buffer, or a spill file beyond 256 KB
//!                     │ Commit
//!                   shard::storage    batch ─> segment, written through  (queue::Spool, record)
//!                     │ Durable
//!                   queue::Schedule   a job in the lane of each route
//!                     │ a slot of the next hop's window (delivery::NextHopState, WindowShare)
//!                   shard::outbound   content from memory, or read back from the spool
//!                     │
//!                   smtp::client      Session::step ──────────── TCP ──> next hop
//!                     │ dispositions
//!                   shard::outbound   outcome ─> segment; retry with delivery::Backoff
//!                     │ verdict, if the session waits for it
//! client <── 250 ── smtp::server      only with the proof of Durable
//! ```
//!
//! # To change X, edit Y
//!
//! | X | Y |
//! |---|---|
//! | a reply's text, or whether it ends the session | `smtp::reply`, the table |
//! | what a verb does, the order of checks | `smtp::server`, `verbs` |
//! | a limit or default | [`limits`]; its option in `config::options`, which makes it a key of files and a variable too |
//! | what is accepted from whom | `policy::verdict`, asked in `shard::inbound` |
//! | DNS block lists | `policy::dnsbl`, names and answers; `control::dnsbl`, who asks; `shard::dnsbl`, who waits |
//! | what is said in AUTH | `smtp::sasl`, the mechanisms; `smtp::server`, `auth` |
//! | whose connection a proxy brings | `smtp::proxy`, the header; `shard::proxied` |
//! | who is let in by AUTH | `shard::logon`, and `users` |
//! | TLS | `shard::stream`; certificates in `control::tls` |
//! | what a users file may say, and how it is read and written | `users`; `control::users_file` |
//! | what a reload changes, and what needs a restart | `config::restart`, the table; `control::reload`; `shard::current` |
//! | which files are loaded again when they change | `control::watched`, and `control::reload`, `read_files` |
//! | what is said to a next hop, what its replies mean | `smtp::client` |
//! | how connections to next hops are protected | `smtp::client` (`opening`, `logon`), `control::next_hops` (files), `shard::outbound::security` |
//! | what follows from an attempt | `shard::outbound::settle` |
//! | where mail goes, when it is tried again | `config::next_hop` (options), `delivery` |
//! | what is stored | `queue::record`, `queue::stored`, `queue::outcome`: raise the format version |
//! | what a start makes of the spool's directories | `control::recovery` |
//! | what follows when a shard stalls or dies | `control::watchdog`, `control::supervisor` |
//! | a metric | [`metrics`], the table |
//! | a record of the log, or a field | `log::table`; `docs/log.md` is written from it |
//! | a command to a running gateway | `control::admin`: `wire`, and its handler; `cmd` |
//! | what counts as too little disk or memory | `control::resources` |

pub mod cmd;
pub mod config;
pub mod control;
pub mod delivery;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod policy;
pub mod queue;
pub mod shard;
pub mod smtp;
pub mod stderr;
pub mod stdout;
pub mod users;
