//! Names, help texts and cached handles of every metric.
//!
//! One table below; everything else refers to it. Units are base units and stand last in the name
//! (Prometheus' conventions); labels are bounded: never an address, a domain or a user. Handles
//! are looked up once per shard, since a lookup costs ten times an increment.

use crate::smtp::reply::Reply;
use crate::smtp::sasl::Mechanism;
use crate::smtp::server::LogonVerdict;
use metrics::{Counter, Gauge, Histogram, Unit};

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $kind:ident, $unit:ident, $help:literal;)*) => {
        $($(#[$doc])* #[doc = $help] pub const $name: &str = $text;)*

        /// Registers the help texts with the recorder.
        pub fn describe() {
            $(metrics::$kind!($name, Unit::$unit, $help);)*
        }

        /// Every metric: name and help text.
        pub const ALL: &[(&str, &str)] = &[$(($name, $help),)*];
    };
}

names! {
    CONNECTIONS = "gatepost_connections", describe_gauge, Count, "Inbound connections now.";
    CONNECTIONS_ACCEPTED = "gatepost_connections_accepted_total", describe_counter, Count, "Inbound connections that were given a session.";
    CONNECTIONS_REFUSED = "gatepost_connections_refused_total", describe_counter, Count, "Inbound connections refused in place of a banner, by reason.";
    ACCEPT_PAUSES = "gatepost_accept_pauses_total", describe_counter, Count, "Times a listener paused for want of descriptors or memory.";
    SHARD_STALLS = "gatepost_shard_stalls_total", describe_counter, Count, "Times a shard did not answer for a second, so that its new connections were refused.";
    SESSION_PANICS = "gatepost_session_panics_total", describe_counter, Count, "Sessions ended by a defect of this program.";
    REFUSALS = "gatepost_refusals_total", describe_counter, Count, "Commands and messages refused, and sessions ended by the server, by reason.";
    TLS_HANDSHAKES = "gatepost_tls_handshakes_total", describe_counter, Count, "TLS handshakes of inbound connections, by result: completed or failed.";
    LOGONS = "gatepost_logons_total", describe_counter, Count, "Proofs of inbound AUTH, by mechanism and result: accepted, refused, not_here (the user may not use the binding), unavailable (nobody could judge, or the source has failed too often).";
    MESSAGES_ACCEPTED = "gatepost_messages_accepted_total", describe_counter, Count, "Messages acknowledged with 250, each on stable storage.";
    MESSAGE_BYTES_ACCEPTED = "gatepost_message_accepted_bytes_total", describe_counter, Bytes, "Octets of those messages, with our Received field.";
    COMMIT_SECONDS = "gatepost_spool_commit_seconds", describe_histogram, Seconds, "Time from the write of a batch to the end of its sync.";
    COMMIT_MESSAGES = "gatepost_spool_commit_messages", describe_histogram, Count, "Messages made durable by one sync.";
    STORAGE_FAILURES = "gatepost_spool_failures_total", describe_counter, Count, "Batches that could not be made durable; nobody was told otherwise.";
    RECIPIENTS = "gatepost_delivery_recipients_total", describe_counter, Count, "What attempts came to, by recipient and outcome: delivered, deferred (tried again), failed (refused for good), expired (too old).";
    DELIVERY_SECONDS = "gatepost_delivery_seconds", describe_histogram, Seconds, "Time from the first command of an outgoing transaction to its last reply.";
    NEXT_HOP_CONNECTIONS = "gatepost_next_hop_connections_total", describe_counter, Count, "Connections to next hops, by result: opened (the hello was answered) or failed.";
    NEXT_HOP_TLS_HANDSHAKES = "gatepost_next_hop_tls_handshakes_total", describe_counter, Count, "TLS handshakes with next hops, by result: ok, failed (also where the certificate could not be verified).";
    NEXT_HOP_LOGONS = "gatepost_next_hop_logons_total", describe_counter, Count, "AUTH at next hops, by mechanism and result: ok, failed.";
    WORKER_PANICS = "gatepost_delivery_panics_total", describe_counter, Count, "Outgoing connections ended by a defect of this program.";
    ACK_DELAYS = "gatepost_ack_delays_total", describe_counter, Count, "Why acknowledgements waited no longer for the next hop, by reason: delivered, refused, deferred, limit, drain; or never waited: queued (no slot was free), next_hop_down.";
    POSSIBLE_DUPLICATES = "gatepost_possible_duplicates_total", describe_counter, Count, "Times a message may be delivered twice, by window: next_hop_silent (its last reply was lost), client_gone (our 250 could not be sent).";
    QUEUE_MESSAGES = "gatepost_queue_messages", describe_gauge, Count, "Messages in the queue.";
    QUEUE_BYTES = "gatepost_queue_bytes", describe_gauge, Bytes, "Octets of the messages in the queue.";
    BODY_MEMORY = "gatepost_body_memory_bytes", describe_gauge, Bytes, "Memory taken by messages that are arriving.";
    FREE_DISK = "gatepost_free_disk_bytes", describe_gauge, Bytes, "Free space on the spool's filesystem, for all but root.";
    FREE_MEMORY = "gatepost_free_memory_bytes", describe_gauge, Bytes, "Free memory: the lower of what the machine has available and what its control groups' limits leave.";
    RESOURCES_SHORT = "gatepost_resources_short", describe_gauge, Count, "1 while disk or memory is below its watermark and mail is refused, 0 otherwise.";
    BUILD_INFO = "gatepost_build_info", describe_gauge, Count, "1, labelled with the version.";
}

/// Bucket bounds of [`COMMIT_SECONDS`]: 50 us to 3 s.
const COMMIT_SECONDS_BUCKETS: &[f64] = &[
    50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.5e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0,
    3.0,
];
/// Bucket bounds of [`COMMIT_MESSAGES`].
const COMMIT_MESSAGES_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Bucket bounds of [`DELIVERY_SECONDS`]: 500 us to 5 min.
const DELIVERY_SECONDS_BUCKETS: &[f64] =
    &[500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// The histograms and their buckets.
pub const BUCKETS: &[(&str, &[f64])] = &[
    (COMMIT_SECONDS, COMMIT_SECONDS_BUCKETS),
    (COMMIT_MESSAGES, COMMIT_MESSAGES_BUCKETS),
    (DELIVERY_SECONDS, DELIVERY_SECONDS_BUCKETS),
];

/// Counters that differ in one label.
macro_rules! labelled {
    ($(#[$doc:meta])* $name:ident, $metric:ident, $label:literal: $($value:ident),*) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[allow(missing_docs, reason = "each is named after its label")]
        pub struct $name { $(pub $value: Counter,)* }

        impl $name {
            fn new() -> Self {
                $name { $($value: metrics::counter!($metric, $label => stringify!($value)),)* }
            }
        }
    };
}

labelled! {
    /// [`RECIPIENTS`] by outcome.
    Recipients, RECIPIENTS, "outcome": delivered, deferred, failed, expired
}
labelled! {
    /// [`NEXT_HOP_CONNECTIONS`] by result.
    NextHopConnections, NEXT_HOP_CONNECTIONS, "result": opened, failed
}
labelled! {
    /// [`TLS_HANDSHAKES`] by result.
    TlsHandshakes, TLS_HANDSHAKES, "result": completed, failed
}
labelled! {
    /// [`NEXT_HOP_TLS_HANDSHAKES`] by result.
    NextHopTlsHandshakes, NEXT_HOP_TLS_HANDSHAKES, "result": ok, failed
}
labelled! {
    /// [`ACK_DELAYS`] by reason.
    AckDelays, ACK_DELAYS, "reason": delivered, refused, deferred, limit, drain, queued, next_hop_down
}
labelled! {
    /// [`POSSIBLE_DUPLICATES`] by window.
    PossibleDuplicates, POSSIBLE_DUPLICATES, "window": next_hop_silent, client_gone
}

/// [`NEXT_HOP_LOGONS`] by mechanism and result.
#[derive(Debug)]
pub struct NextHopLogons {
    ok: [Counter; Mechanism::ALL.len()],
    failed: [Counter; Mechanism::ALL.len()],
}

impl NextHopLogons {
    fn new() -> Self {
        let with = |result: &'static str| {
            Mechanism::ALL.map(
                |mechanism| metrics::counter!(NEXT_HOP_LOGONS, "mechanism" => mechanism.name(), "result" => result),
            )
        };
        NextHopLogons { ok: with("ok"), failed: with("failed") }
    }

    /// Counts a logon by this mechanism.
    pub fn count(&self, mechanism: Mechanism, is_ok: bool) {
        let counters = if is_ok { &self.ok } else { &self.failed };
        let place = Mechanism::ALL.iter().position(|&other| other == mechanism);
        if let Some(counter) = place.and_then(|place| counters.get(place)) {
            counter.increment(1);
        }
    }
}

/// The handles of one shard.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is named after its metric")]
pub struct ShardMetrics {
    pub connections_accepted: Counter,
    pub accept_pauses: Counter,
    pub session_panics: Counter,
    pub tls_handshakes: TlsHandshakes,
    pub messages_accepted: Counter,
    pub message_bytes_accepted: Counter,
    pub commit_seconds: Histogram,
    pub commit_messages: Histogram,
    pub storage_failures: Counter,
    pub queue_messages: Gauge,
    pub queue_bytes: Gauge,
    pub recipients: Recipients,
    pub delivery_seconds: Histogram,
    pub next_hop_connections: NextHopConnections,
    pub next_hop_tls_handshakes: NextHopTlsHandshakes,
    pub next_hop_logons: NextHopLogons,
    pub worker_panics: Counter,
    pub ack_delays: AckDelays,
    pub possible_duplicates: PossibleDuplicates,
    refusals: Vec<Counter>,
    connections_refused: Vec<Counter>,
}

impl ShardMetrics {
    /// Looks the handles up with the installed recorder.
    pub fn new() -> Self {
        let by_reason = |name: &'static str| {
            let counter = |reply: &Reply| match reply.row().reason {
                Some(reason) => metrics::counter!(name, "reason" => reason),
                None => Counter::noop(),
            };
            Reply::ALL.iter().map(counter).collect()
        };
        ShardMetrics {
            connections_accepted: metrics::counter!(CONNECTIONS_ACCEPTED),
            accept_pauses: metrics::counter!(ACCEPT_PAUSES),
            session_panics: metrics::counter!(SESSION_PANICS),
            tls_handshakes: TlsHandshakes::new(),
            messages_accepted: metrics::counter!(MESSAGES_ACCEPTED),
            message_bytes_accepted: metrics::counter!(MESSAGE_BYTES_ACCEPTED),
            commit_seconds: metrics::histogram!(COMMIT_SECONDS),
            commit_messages: metrics::histogram!(COMMIT_MESSAGES),
            storage_failures: metrics::counter!(STORAGE_FAILURES),
            queue_messages: metrics::gauge!(QUEUE_MESSAGES),
            queue_bytes: metrics::gauge!(QUEUE_BYTES),
            recipients: Recipients::new(),
            delivery_seconds: metrics::histogram!(DELIVERY_SECONDS),
            next_hop_connections: NextHopConnections::new(),
            next_hop_tls_handshakes: NextHopTlsHandshakes::new(),
            next_hop_logons: NextHopLogons::new(),
            worker_panics: metrics::counter!(WORKER_PANICS),
            ack_delays: AckDelays::new(),
            possible_duplicates: PossibleDuplicates::new(),
            refusals: by_reason(REFUSALS),
            connections_refused: Reply::ALL
                .iter()
                .map(|reply| match reply {
                    Reply::BlockedSource
                    | Reply::BlockedSourceForATime
                    | Reply::NotConfigured
                    | Reply::OutOfResources
                    | Reply::TooManyConnections
                    | Reply::TooManyConnectionsFromSource
                    | Reply::ShuttingDown => {
                        metrics::counter!(CONNECTIONS_REFUSED, "reason" => reply.row().reason.unwrap_or_default())
                    }
                    _ => Counter::noop(),
                })
                .collect(),
        }
    }

    /// Counts a judgement on a proof of AUTH: rare enough for a lookup.
    pub fn count_logon(&self, mechanism: Mechanism, verdict: LogonVerdict<'_>) {
        let result = match verdict {
            LogonVerdict::Accept(_) => "accepted",
            LogonVerdict::Refuse => "refused",
            LogonVerdict::NotHere => "not_here",
            LogonVerdict::Unavailable => "unavailable",
        };
        metrics::counter!(LOGONS, "mechanism" => mechanism.name(), "result" => result).increment(1);
    }

    /// Counts a refusal inside a session.
    pub fn count_refusal(&self, reply: Reply) {
        self.refusals[reply as usize].increment(1);
    }

    /// Counts a connection refused in place of a banner.
    pub fn count_refused_connection(&self, reply: Reply) {
        self.connections_refused[reply as usize].increment(1);
    }
}

/// The handles of the watchdog.
#[derive(Debug)]
pub struct WatchdogMetrics {
    /// [`SHARD_STALLS`].
    pub shard_stalls: Counter,
    dropped: Counter,
    shutting_down: Counter,
}

impl WatchdogMetrics {
    /// Looks the handles up with the installed recorder.
    pub fn new() -> Self {
        let refused =
            |reply: Reply| metrics::counter!(CONNECTIONS_REFUSED, "reason" => reply.row().reason.unwrap_or_default());
        WatchdogMetrics {
            shard_stalls: metrics::counter!(SHARD_STALLS),
            dropped: refused(Reply::ConnectionDropped),
            shutting_down: refused(Reply::ShuttingDown),
        }
    }

    /// Counts a connection refused in place of a banner.
    pub fn count_refused_connection(&self, reply: Reply) {
        match reply {
            Reply::ConnectionDropped => self.dropped.increment(1),
            _ => self.shutting_down.increment(1),
        }
    }
}

impl Default for WatchdogMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for ShardMetrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for (name, help) in ALL {
            assert!(
                name.starts_with("gatepost_") && name.bytes().all(|octet| octet.is_ascii_lowercase() || octet == b'_'),
                "{name}"
            );
            assert!(help.ends_with('.'), "{name}");
            assert_eq!(ALL.iter().filter(|(other, _)| other == name).count(), 1, "{name}");
        }
    }
}
