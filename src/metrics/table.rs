//! The one table of metrics: name, kind, unit, labels, help, buckets.
//!
//! Units are base units and stand last in the name (Prometheus' conventions); labels are bounded:
//! never an address, a domain or a user. Everything else refers to a name of this table: the
//! handles, the documentation, and by test the dashboards and the alert rules.

use crate::smtp::reply::Reply;
use metrics::Unit;
use std::fmt::Write as _;

/// What a metric counts or measures.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Samples in buckets with these upper bounds, and one without: `_bucket`, `_sum`, `_count`.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As Prometheus calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, with the unit.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it is measured in.
    pub unit: Unit,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says, and what the labels' values are.
    pub help: &'static str,
}

/// Milliseconds to minutes: what clients and next hops make wait.
const DIALOGUE: &[f64] =
    &[500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Tens of microseconds to seconds: the disk, the processor.
const MACHINE: &[f64] = &[
    50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.5e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0,
    3.0,
];
/// Powers of two.
const NUMBERS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// Octets of a message, powers of four.
const SIZES: &[f64] = &[1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0, 67108864.0];

macro_rules! kind {
    (counter) => {
        Kind::Counter
    };
    (gauge) => {
        Kind::Gauge
    };
    (histogram $buckets:ident) => {
        Kind::Histogram($buckets)
    };
}

macro_rules! metrics_table {
    ($($name:ident = $text:literal, ($($kind:tt)+), $unit:ident, [$($label:literal),*], $help:literal;)*) => {
        $(#[doc = $help] pub const $name: &str = $text;)*

        /// Every metric.
        pub const ALL: &[Metric] = &[$(
            Metric { name: $text, kind: kind!($($kind)+), unit: Unit::$unit, labels: &[$($label),*], help: $help },
        )*];
    };
}

metrics_table! {
    // Connections and sessions.
    CONNECTIONS = "gatepost_connections", (gauge), Count, [], "Inbound connections now.";
    CONNECTIONS_ACCEPTED = "gatepost_connections_accepted_total", (counter), Count, [], "Inbound connections that were given a session.";
    CONNECTIONS_REFUSED = "gatepost_connections_refused_total", (counter), Count, ["reason"], "Inbound connections refused in place of a banner, by reason.";
    SESSIONS_ENDED = "gatepost_sessions_ended_total", (counter), Count, ["reason"], "Sessions that have ended, by reason: quit, client_gone (its end or a reset came first), tls_failed, or that of the refusal which ended it.";
    SESSION_SECONDS = "gatepost_session_seconds", (histogram DIALOGUE), Seconds, [], "Time from the accept of a connection to its end.";
    ACCEPT_PAUSES = "gatepost_accept_pauses_total", (counter), Count, [], "Times a listener paused for want of descriptors or memory.";
    SESSION_PANICS = "gatepost_session_panics_total", (counter), Count, [], "Sessions ended by a defect of this program.";
    COMMANDS = "gatepost_commands_total", (counter), Count, ["verb"], "Commands read, by verb; unknown is every verb that is none.";
    REPLIES = "gatepost_replies_total", (counter), Count, ["code"], "Replies said to clients, by code; other is a next hop's refusal, passed on.";

    // Messages.
    MESSAGES_ACCEPTED = "gatepost_messages_accepted_total", (counter), Count, [], "Messages acknowledged with 250, each on stable storage.";
    MESSAGE_BYTES_ACCEPTED = "gatepost_message_accepted_bytes_total", (counter), Bytes, [], "Octets of those messages, with our Received field.";
    MESSAGE_SIZE = "gatepost_message_size_bytes", (histogram SIZES), Bytes, [], "Octets of an accepted message, with our Received field.";
    MESSAGES_REFUSED = "gatepost_messages_refused_total", (counter), Count, ["reason"], "Messages refused after their content was read, in whole or in part, by reason; next_hop is a refusal that was passed on.";
    MESSAGE_BYTES_REFUSED = "gatepost_message_refused_bytes_total", (counter), Bytes, ["reason"], "Octets of those messages that were read, by reason.";
    ACK_DELAYS = "gatepost_ack_delays_total", (counter), Count, ["reason"], "Why acknowledgements waited no longer for the next hop, by reason: delivered, refused, deferred, limit, drain; or never waited: queued (no slot was free), next_hop_down.";
    ACK_DELAY_SECONDS = "gatepost_ack_delay_seconds", (histogram DIALOGUE), Seconds, [], "Time that an acknowledgement waited for the next hop, of those that did.";
    POSSIBLE_DUPLICATES = "gatepost_possible_duplicates_total", (counter), Count, ["window"], "Times a message may be delivered twice, by window: next_hop_silent (its last reply was lost), client_gone (our 250 could not be sent).";
    BODY_MEMORY = "gatepost_body_memory_bytes", (gauge), Bytes, [], "Memory taken by messages that are arriving.";

    // Limits and abuse.
    REFUSALS = "gatepost_refusals_total", (counter), Count, ["reason"], "Commands and messages refused, and sessions ended by the server, by reason.";
    LIMIT_HITS = "gatepost_limit_hits_total", (counter), Count, ["limit"], "Times a limit was what refused a connection, command or message, by the option that sets it.";
    TARPIT_WAITS = "gatepost_tarpit_waits_total", (counter), Count, ["what"], "Times something was held back by --tarpit, by what: replies (of one input), banner, connection (a refusal in place of the banner).";
    TARPIT_SKIPS = "gatepost_tarpit_skips_total", (counter), Count, ["reason"], "Times something that is due late was not held back, by reason: crowded (too many connections wait already), drain.";
    TARPITTED = "gatepost_tarpitted_sessions", (gauge), Count, [], "Sessions whose replies are held back now.";
    DNSBL_LOOKUPS = "gatepost_dnsbl_lookups_total", (counter), Count, ["result"], "Clients looked up in the block lists of --dnsbl, by result: listed, clean, failed (a list did not answer in time, or with an error; the client is taken as clean), skipped (too many waited, or the client went; likewise).";
    PROXY_HEADERS = "gatepost_proxy_headers_total", (counter), Count, ["result"], "Headers of the PROXY protocol, by result: accepted, local (without an address: the proxy's own counts), malformed, timeout, closed (the proxy went without a word: a health check), not_allowed (from no proxy, or behind another header).";

    // TLS and AUTH.
    TLS_HANDSHAKES = "gatepost_tls_handshakes_total", (counter), Count, ["result"], "TLS handshakes of inbound connections, by result: completed or failed.";
    TLS_SESSIONS = "gatepost_tls_sessions_total", (counter), Count, ["version", "resumed"], "Completed handshakes, by protocol version, and by whether an earlier session was resumed: yes or no.";
    TLS_HANDSHAKE_SECONDS = "gatepost_tls_handshake_seconds", (histogram DIALOGUE), Seconds, [], "Time of a completed handshake, with what the client took of it.";
    TLS_FAILURES = "gatepost_tls_failures_total", (counter), Count, ["reason"], "Failed handshakes, by reason: protocol (no common ground, or no TLS at all), client_gone, timeout, drain.";
    LOGONS = "gatepost_logons_total", (counter), Count, ["mechanism", "result"], "Proofs of inbound AUTH, by mechanism and result: accepted, refused, not_here (the user may not use the binding), unavailable (nobody could judge, or the source has failed too often).";

    // Spool.
    APPEND_SECONDS = "gatepost_spool_append_seconds", (histogram MACHINE), Seconds, [], "Time from the first message of a batch to the begin of the batch's write.";
    COMMIT_SECONDS = "gatepost_spool_commit_seconds", (histogram MACHINE), Seconds, [], "Time from the write of a batch to the end of its sync.";
    SYNC_SECONDS = "gatepost_spool_sync_seconds", (histogram MACHINE), Seconds, [], "Time of the write of a batch to stable storage (a write and its sync are one operation), without what a new segment takes.";
    COMMIT_MESSAGES = "gatepost_spool_commit_messages", (histogram NUMBERS), Count, [], "Messages made durable by one sync.";
    SPOOL_BYTES = "gatepost_spool_written_bytes_total", (counter), Bytes, [], "Octets written to segments of the spool.";
    SEGMENTS = "gatepost_spool_segments", (gauge), Count, ["shard"], "Segments of the spool that are needed or written to, by shard.";
    SEGMENT_BYTES = "gatepost_spool_segment_bytes", (gauge), Bytes, ["shard"], "Octets of these segments' files, by shard. At most four times gatepost_spool_live_bytes and four segments (of 64 MB; less where space is short); up to two spare segments, spill files and quarantine files are beside them.";
    LIVE_BYTES = "gatepost_spool_live_bytes", (gauge), Bytes, ["shard"], "Octets of the records of queued messages in these segments, by shard.";
    REWRITTEN_BYTES = "gatepost_spool_rewritten_bytes_total", (counter), Bytes, [], "Octets of records that were written again, so that an old segment could go.";
    DAMAGE = "gatepost_spool_damage_total", (counter), Count, [], "Places in the spool that were found damaged, at the start or when a message was to be read; each is in the log.";
    STORAGE_FAILURES = "gatepost_spool_failures_total", (counter), Count, [], "Batches that could not be made durable; nobody was told otherwise.";
    POISONED_SEGMENTS = "gatepost_spool_poisoned_segments_total", (counter), Count, [], "Segments given up because a write or a sync failed.";
    STORAGE_SHORT = "gatepost_spool_unavailable", (gauge), Count, ["shard"], "1 while the shard's storage fails and mail is refused, 0 otherwise.";
    FREE_DISK = "gatepost_free_disk_bytes", (gauge), Bytes, [], "Free space on the spool's filesystem, for all but root.";
    FREE_MEMORY = "gatepost_free_memory_bytes", (gauge), Bytes, [], "Free memory: the lower of what the machine has available and what its control groups' limits leave.";
    RESOURCES_SHORT = "gatepost_resources_short", (gauge), Count, [], "1 while disk or memory is below its watermark and mail is refused, 0 otherwise.";

    // Queue and delivery.
    QUEUE_MESSAGES = "gatepost_queue_messages", (gauge), Count, [], "Messages in the queue.";
    QUEUE_BYTES = "gatepost_queue_bytes", (gauge), Bytes, [], "Octets of the messages in the queue.";
    QUEUE_DELIVERIES = "gatepost_queue_deliveries", (gauge), Count, ["shard", "state"], "Deliveries that are to be made (a message by a route is one), by shard and state: ready (waits for its turn), active (on its way now), deferred (waits for its next try).";
    QUEUE_IDLE_MESSAGES = "gatepost_queue_idle_messages", (gauge), Count, ["shard"], "Messages in the queue for which nothing is tried (without a route, or with a report owed), by shard.";
    QUEUE_OLDEST_SECONDS = "gatepost_queue_oldest_seconds", (gauge), Seconds, [], "Age of the oldest message in the queue; 0 where there is none.";
    ATTEMPTS = "gatepost_delivery_attempts_total", (counter), Count, ["outcome"], "Transactions with next hops, by outcome: delivered (all recipients), mixed, deferred, failed, lost (the connection broke).";
    RECIPIENTS = "gatepost_delivery_recipients_total", (counter), Count, ["outcome"], "What attempts came to, by recipient and outcome: delivered, deferred (tried again), failed (refused for good), expired (too old).";
    DELIVERY_SECONDS = "gatepost_delivery_seconds", (histogram DIALOGUE), Seconds, [], "Time from the first command of an outgoing transaction to its last reply.";
    DELIVERY_DELAY_SECONDS = "gatepost_delivery_delay_seconds", (histogram DELAYS), Seconds, [], "Age of a message when a transaction has delivered it to recipients.";
    NEXT_HOP_TRANSACTIONS = "gatepost_next_hop_transactions_total", (counter), Count, ["connection"], "Transactions begun with next hops, by connection: new (its first one) or reused.";
    NEXT_HOP_OPEN = "gatepost_next_hop_open_connections", (gauge), Count, [], "Connections to next hops that are past their hello.";
    NEXT_HOP_CONNECTIONS = "gatepost_next_hop_connections_total", (counter), Count, ["result"], "Connections to next hops, by result: opened (the hello was answered) or failed.";
    NEXT_HOPS = "gatepost_next_hops", (gauge), Count, ["state"], "Next hops, by state: up or down.";
    NEXT_HOP_TLS_HANDSHAKES = "gatepost_next_hop_tls_handshakes_total", (counter), Count, ["result"], "TLS handshakes with next hops, by result: ok, failed (also where the certificate could not be verified).";
    NEXT_HOP_LOGONS = "gatepost_next_hop_logons_total", (counter), Count, ["mechanism", "result"], "AUTH at next hops, by mechanism and result: ok, failed.";
    WORKER_PANICS = "gatepost_delivery_panics_total", (counter), Count, [], "Outgoing connections ended by a defect of this program.";

    // The process.
    LOOP_LAG_SECONDS = "gatepost_shard_loop_lag_seconds", (histogram MACHINE), Seconds, ["shard"], "Time from one look at the sockets to the next, by shard, while it is at work: how late it may answer.";
    SHARD_STALLS = "gatepost_shard_stalls_total", (counter), Count, [], "Times a shard did not answer for a second, so that its new connections were refused.";
    SHARDS = "gatepost_shards", (gauge), Count, [], "Shards of this process, those included that only deliver what a run with more has left.";
    LOG_RECORDS_LOST = "gatepost_log_records_lost_total", (counter), Count, [], "Records of the log that could not be written, or found its buffer full.";
    CONFIG_RELOADS = "gatepost_config_reloads_total", (counter), Count, ["result"], "Reloads of the configuration, by result: applied, unchanged, failed (the old one stays).";
    CONFIG_RELOADED = "gatepost_config_reload_timestamp_seconds", (gauge), Seconds, [], "When the configuration was loaded, in seconds since the Unix epoch.";
    READY = "gatepost_ready", (gauge), Count, [], "1 while /readyz says that mail is accepted, 0 otherwise.";
    BUILD_INFO = "gatepost_build_info", (gauge), Count, ["version"], "1, labelled with the version.";
}

/// A reason of [`SESSIONS_ENDED`]: the client said QUIT.
pub const QUIT: &str = "quit";
/// The client ended or reset the connection.
pub const CLIENT_GONE: &str = "client_gone";
/// The TLS handshake failed.
pub const TLS_FAILED: &str = "tls_failed";

/// Seconds to days: what waits in a queue.
const DELAYS: &[f64] = &[0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0, 172800.0];

/// Registers kinds, units and help texts with the recorder.
pub fn describe() {
    for &Metric { name, kind, unit, help, .. } in ALL {
        match kind {
            Kind::Counter => metrics::describe_counter!(name, unit, help),
            Kind::Gauge => metrics::describe_gauge!(name, unit, help),
            Kind::Histogram(_) => metrics::describe_histogram!(name, unit, help),
        }
    }
}

/// The documentation's table of metrics, in Markdown.
pub fn metrics_markdown() -> String {
    let mut out = String::from("| metric | kind | labels | |\n|---|---|---|---|\n");
    for metric in ALL {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} |",
            metric.name,
            metric.kind.name(),
            labels.join(", "),
            metric.help.replace('|', "\\|")
        );
    }
    out
}

/// The documentation's table of reasons, in Markdown: every refusal, and the limit that it tells of.
pub fn reasons_markdown() -> String {
    let mut rows = Vec::new();
    for reply in Reply::ALL {
        let Some(reason) = reply.row().reason else { continue };
        let limit = limit(*reply).map(|limit| format!("`{limit}`")).unwrap_or_default();
        let row = format!("| `{reason}` | `{}` | {limit} |\n", reply.text());
        // Some differ only in what follows from them.
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    format!("| reason | reply | limit |\n|---|---|---|\n{}", rows.concat())
}

/// The option whose limit a refusal tells of, without its dashes.
pub const fn limit(reply: Reply) -> Option<&'static str> {
    Some(match reply {
        Reply::TooManyHops => "max-hops",
        Reply::TooManyLocalHops => "max-local-hops",
        Reply::TooManyRecipients => "max-recipients",
        Reply::RateExceeded => "message-rate",
        Reply::UserRateExceeded => "relay-message-rate",
        Reply::HeaderTooLarge => "max-header-size",
        Reply::MessageTooLarge | Reply::SizeTooLarge => "max-message-size",
        Reply::TooManyErrors => "max-protocol-errors",
        Reply::TooManyLogonFailures => "max-logon-failures",
        Reply::OutOfResources => "min-free",
        Reply::NotConfigured => "allow",
        Reply::TooManyConnections => "max-connections",
        Reply::TooManyConnectionsFromSource => "max-connections-per-source",
        Reply::BlockedSource | Reply::BlockedSourceForATime => "block",
        Reply::OnBlockList => "dnsbl",
        Reply::ConnectionTimedOut => "connection-timeout",
        Reply::InactivityTimedOut => "inactivity-timeout",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for Metric { name, help, kind, labels, .. } in ALL {
            assert!(
                name.starts_with("gatepost_") && name.bytes().all(|octet| octet.is_ascii_lowercase() || octet == b'_'),
                "{name}"
            );
            assert!(help.ends_with('.'), "{name}");
            assert_eq!(name.ends_with("_total"), matches!(kind, Kind::Counter), "{name}");
            assert!(labels.iter().all(|label| help.contains(label)), "{name} says what its labels are");
            if let Kind::Histogram(buckets) = kind {
                assert!(buckets.is_sorted() && !buckets.is_empty(), "{name}");
            }
            assert_eq!(ALL.iter().filter(|other| other.name == *name).count(), 1, "{name}");
        }
    }
}
