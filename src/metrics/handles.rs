//! Cached handles: a lookup costs ten times an increment, so each shard looks its handles up once.

use super::table::*;
use crate::queue::schedule::Figures;
use crate::smtp::client::Disposition;
use crate::smtp::command::Verb;
use crate::smtp::header::{TLS_1_2, TLS_1_3};
use crate::smtp::reply::{BANNER_CODE, Reply};
use crate::smtp::sasl::Mechanism;
use crate::smtp::server::{LogonVerdict, Revision};
use metrics::{Counter, Gauge, Histogram};
use std::time::Duration;

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
    /// [`ATTEMPTS`] by outcome.
    Attempts, ATTEMPTS, "outcome": delivered, mixed, deferred, failed, lost
}
labelled! {
    /// [`NEXT_HOP_CONNECTIONS`] by result.
    NextHopConnections, NEXT_HOP_CONNECTIONS, "result": opened, failed
}
labelled! {
    /// [`NEXT_HOP_TRANSACTIONS`] by connection.
    NextHopTransactions, NEXT_HOP_TRANSACTIONS, "connection": new, reused
}
labelled! {
    /// [`DNSBL_LOOKUPS`] by result.
    DnsblLookups, DNSBL_LOOKUPS, "result": listed, clean, failed, skipped
}
labelled! {
    /// [`PROXY_HEADERS`] by result.
    ProxyHeaders, PROXY_HEADERS, "result": accepted, local, malformed, timeout, closed, not_allowed
}
labelled! {
    /// [`TLS_HANDSHAKES`] by result.
    TlsHandshakes, TLS_HANDSHAKES, "result": completed, failed
}
labelled! {
    /// [`TLS_FAILURES`] by reason.
    TlsFailures, TLS_FAILURES, "reason": protocol, client_gone, timeout, drain
}
labelled! {
    /// [`NEXT_HOP_TLS_HANDSHAKES`] by result.
    NextHopTlsHandshakes, NEXT_HOP_TLS_HANDSHAKES, "result": ok, failed
}
labelled! {
    /// [`CONFIG_RELOADS`] by result.
    ConfigReloads, CONFIG_RELOADS, "result": applied, unchanged, failed
}
labelled! {
    /// [`ACK_DELAYS`] by reason.
    AckDelays, ACK_DELAYS, "reason": delivered, refused, deferred, limit, drain, queued, next_hop_down
}
labelled! {
    /// [`POSSIBLE_DUPLICATES`] by window.
    PossibleDuplicates, POSSIBLE_DUPLICATES, "window": next_hop_silent, client_gone
}
labelled! {
    /// [`TARPIT_WAITS`] by what is held back.
    TarpitWaits, TARPIT_WAITS, "what": replies, banner, connection
}
labelled! {
    /// [`TARPIT_SKIPS`] by reason.
    TarpitSkips, TARPIT_SKIPS, "reason": crowded, drain
}

/// Counters that differ in the reply they are about.
#[derive(Debug)]
struct ByReply(Box<[Counter]>);

impl ByReply {
    /// Those of the replies that `value` has a label's value for; the others count nothing.
    fn new(metric: &'static str, label: &'static str, value: impl Fn(Reply) -> Option<&'static str>) -> Self {
        let counter =
            |&reply: &Reply| value(reply).map_or_else(Counter::noop, |value| metrics::counter!(metric, label => value));
        ByReply(Reply::ALL.iter().map(counter).collect())
    }

    fn count(&self, reply: Reply, by: u64) {
        if let Some(counter) = self.0.get(reply as usize) {
            counter.increment(by);
        }
    }
}

fn reason(reply: Reply) -> Option<&'static str> {
    reply.row().reason
}

/// [`REPLIES`] by code.
#[derive(Debug)]
struct Replies {
    /// From [`Replies::FIRST`] on; those that this server does not say are the last one's.
    by_code: Box<[Counter]>,
    other: Counter,
}

impl Replies {
    const FIRST: u16 = 200;
    const LAST: u16 = 559;

    fn new() -> Self {
        let other = metrics::counter!(REPLIES, "code" => "other");
        let is_said = |code| code == BANNER_CODE || Reply::ALL.iter().any(|reply| reply.code() == code);
        let counter = |code: u16| {
            if is_said(code) { metrics::counter!(REPLIES, "code" => code.to_string()) } else { other.clone() }
        };
        Replies { by_code: (Self::FIRST..=Self::LAST).map(counter).collect(), other }
    }

    fn count(&self, code: u16) {
        let place = code.checked_sub(Self::FIRST).and_then(|place| self.by_code.get(usize::from(place)));
        place.unwrap_or(&self.other).increment(1);
    }
}

/// A shard's share of the queue: [`QUEUE_DELIVERIES`], [`QUEUE_IDLE_MESSAGES`], [`SEGMENTS`],
/// [`SEGMENT_BYTES`], [`LIVE_BYTES`].
#[derive(Debug)]
struct Queue {
    ready: Gauge,
    active: Gauge,
    deferred: Gauge,
    idle_messages: Gauge,
    segments: Gauge,
    segment_bytes: Gauge,
    live_bytes: Gauge,
}

impl Queue {
    fn new(shard: &str) -> Self {
        let state =
            |state: &'static str| metrics::gauge!(QUEUE_DELIVERIES, "shard" => shard.to_owned(), "state" => state);
        Queue {
            ready: state("ready"),
            active: state("active"),
            deferred: state("deferred"),
            idle_messages: metrics::gauge!(QUEUE_IDLE_MESSAGES, "shard" => shard.to_owned()),
            segments: metrics::gauge!(SEGMENTS, "shard" => shard.to_owned()),
            segment_bytes: metrics::gauge!(SEGMENT_BYTES, "shard" => shard.to_owned()),
            live_bytes: metrics::gauge!(LIVE_BYTES, "shard" => shard.to_owned()),
        }
    }
}

/// What becomes of a TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFailure {
    /// The peers have no common ground, or one does not speak TLS.
    Protocol,
    /// The client ended the connection.
    ClientGone,
    /// One of the session's timers ran out.
    Timeout,
    /// The process drains.
    Drain,
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
    pub session_seconds: Histogram,
    pub messages_accepted: Counter,
    pub message_bytes_accepted: Counter,
    pub message_size: Histogram,
    pub ack_delays: AckDelays,
    pub ack_delay_seconds: Histogram,
    pub possible_duplicates: PossibleDuplicates,
    pub tarpit_waits: TarpitWaits,
    pub tarpit_skips: TarpitSkips,
    pub tarpitted: Gauge,
    pub dnsbl_lookups: DnsblLookups,
    pub proxy_headers: ProxyHeaders,
    pub tls_handshake_seconds: Histogram,
    pub append_seconds: Histogram,
    pub commit_seconds: Histogram,
    pub sync_seconds: Histogram,
    pub commit_messages: Histogram,
    pub spool_bytes: Counter,
    pub rewritten_bytes: Counter,
    pub damage: Counter,
    pub storage_failures: Counter,
    pub poisoned_segments: Counter,
    pub storage_short: Gauge,
    pub queue_messages: Gauge,
    pub queue_bytes: Gauge,
    pub recipients: Recipients,
    pub delivery_seconds: Histogram,
    pub delivery_delay_seconds: Histogram,
    pub next_hop_transactions: NextHopTransactions,
    pub next_hop_open: Gauge,
    pub next_hop_connections: NextHopConnections,
    pub next_hop_tls_handshakes: NextHopTlsHandshakes,
    pub next_hop_logons: NextHopLogons,
    pub worker_panics: Counter,
    pub loop_lag_seconds: Histogram,
    attempts: Attempts,
    queue: Queue,
    tls_handshakes: TlsHandshakes,
    tls_failures: TlsFailures,
    refusals: ByReply,
    connections_refused: ByReply,
    sessions_ended: ByReply,
    messages_refused: ByReply,
    message_bytes_refused: ByReply,
    limit_hits: ByReply,
    commands: [Counter; Verb::ALL.len()],
    replies: Replies,
}

const ACCEPTED: &str = "accepted";
const REFUSED: &str = "refused";
const NOT_HERE: &str = "not_here";
const UNAVAILABLE: &str = "unavailable";

/// [`LOGONS`] with these labels.
fn logons(mechanism: Mechanism, result: &'static str) -> Counter {
    metrics::counter!(LOGONS, "mechanism" => mechanism.name(), "result" => result)
}

/// [`TLS_SESSIONS`] with these labels.
fn tls_sessions(version: &'static str, is_resumed: bool) -> Counter {
    metrics::counter!(TLS_SESSIONS, "version" => version, "resumed" => if is_resumed { "yes" } else { "no" })
}

/// [`MESSAGES_REFUSED`] and [`MESSAGE_BYTES_REFUSED`] of refusals that were passed on.
fn refused_by_next_hop() -> [Counter; 2] {
    [MESSAGES_REFUSED, MESSAGE_BYTES_REFUSED].map(|metric| metrics::counter!(metric, "reason" => "next_hop"))
}

/// Has the counters that are looked up where they are needed begin at 0: of one that appears with its first
/// count, Prometheus sees no increase.
fn register_rare() {
    for mechanism in Mechanism::ALL {
        let _ = [ACCEPTED, REFUSED, NOT_HERE, UNAVAILABLE].map(|result| logons(mechanism, result));
    }
    for version in [TLS_1_2, TLS_1_3] {
        let _ = [true, false].map(|is_resumed| tls_sessions(version, is_resumed));
    }
    for reason in [CLIENT_GONE, TLS_FAILED] {
        let _ = metrics::counter!(SESSIONS_ENDED, "reason" => reason);
    }
    let _ = refused_by_next_hop();
}

impl ShardMetrics {
    /// Looks the handles up with the installed recorder.
    pub fn new(shard: usize) -> Self {
        register_rare();
        let shard = shard.to_string();
        // What can be refused in place of a banner, and while content is read.
        let at_connect = |reply: Reply| reason(reply).filter(|_| reply.is_said_at_connect());
        let of_content = |reply: Reply| reason(reply).filter(|_| reply.is_said_of_content());
        let at_the_end = |reply: Reply| match reply {
            Reply::Closing => Some(QUIT),
            _ => reason(reply).filter(|_| reply.closes(Revision::V4)),
        };
        ShardMetrics {
            connections_accepted: metrics::counter!(CONNECTIONS_ACCEPTED),
            accept_pauses: metrics::counter!(ACCEPT_PAUSES),
            session_panics: metrics::counter!(SESSION_PANICS),
            session_seconds: metrics::histogram!(SESSION_SECONDS),
            messages_accepted: metrics::counter!(MESSAGES_ACCEPTED),
            message_bytes_accepted: metrics::counter!(MESSAGE_BYTES_ACCEPTED),
            message_size: metrics::histogram!(MESSAGE_SIZE),
            ack_delays: AckDelays::new(),
            ack_delay_seconds: metrics::histogram!(ACK_DELAY_SECONDS),
            possible_duplicates: PossibleDuplicates::new(),
            tarpit_waits: TarpitWaits::new(),
            tarpit_skips: TarpitSkips::new(),
            tarpitted: metrics::gauge!(TARPITTED),
            dnsbl_lookups: DnsblLookups::new(),
            proxy_headers: ProxyHeaders::new(),
            tls_handshake_seconds: metrics::histogram!(TLS_HANDSHAKE_SECONDS),
            append_seconds: metrics::histogram!(APPEND_SECONDS),
            commit_seconds: metrics::histogram!(COMMIT_SECONDS),
            sync_seconds: metrics::histogram!(SYNC_SECONDS),
            commit_messages: metrics::histogram!(COMMIT_MESSAGES),
            spool_bytes: metrics::counter!(SPOOL_BYTES),
            rewritten_bytes: metrics::counter!(REWRITTEN_BYTES),
            damage: metrics::counter!(DAMAGE),
            storage_failures: metrics::counter!(STORAGE_FAILURES),
            poisoned_segments: metrics::counter!(POISONED_SEGMENTS),
            storage_short: metrics::gauge!(STORAGE_SHORT, "shard" => shard.clone()),
            queue_messages: metrics::gauge!(QUEUE_MESSAGES),
            queue_bytes: metrics::gauge!(QUEUE_BYTES),
            attempts: Attempts::new(),
            recipients: Recipients::new(),
            delivery_seconds: metrics::histogram!(DELIVERY_SECONDS),
            delivery_delay_seconds: metrics::histogram!(DELIVERY_DELAY_SECONDS),
            next_hop_transactions: NextHopTransactions::new(),
            next_hop_open: metrics::gauge!(NEXT_HOP_OPEN),
            next_hop_connections: NextHopConnections::new(),
            next_hop_tls_handshakes: NextHopTlsHandshakes::new(),
            next_hop_logons: NextHopLogons::new(),
            worker_panics: metrics::counter!(WORKER_PANICS),
            queue: Queue::new(&shard),
            loop_lag_seconds: metrics::histogram!(LOOP_LAG_SECONDS, "shard" => shard),
            tls_handshakes: TlsHandshakes::new(),
            tls_failures: TlsFailures::new(),
            refusals: ByReply::new(REFUSALS, "reason", reason),
            connections_refused: ByReply::new(CONNECTIONS_REFUSED, "reason", at_connect),
            sessions_ended: ByReply::new(SESSIONS_ENDED, "reason", at_the_end),
            messages_refused: ByReply::new(MESSAGES_REFUSED, "reason", of_content),
            message_bytes_refused: ByReply::new(MESSAGE_BYTES_REFUSED, "reason", of_content),
            limit_hits: ByReply::new(LIMIT_HITS, "limit", limit),
            commands: Verb::ALL.map(|verb| metrics::counter!(COMMANDS, "verb" => verb.name())),
            replies: Replies::new(),
        }
    }

    /// Shows how much there is in the shard's queue.
    pub fn show_queue(&self, figures: Figures) {
        self.queue.ready.set(figures.ready as f64);
        self.queue.active.set(figures.active as f64);
        self.queue.deferred.set(figures.deferred as f64);
        self.queue.idle_messages.set(figures.idle_messages as f64);
        self.queue.segments.set(figures.segments as f64);
        self.queue.segment_bytes.set(figures.segment_octets as f64);
        self.queue.live_bytes.set(figures.live_octets as f64);
    }

    /// Counts a transaction with a next hop by what has become of its recipients; `is_lost`: the connection
    /// broke.
    pub fn count_attempt(&self, dispositions: &[Disposition], is_lost: bool) {
        let is_delivered = |disposition: &&Disposition| matches!(disposition, Disposition::Delivered);
        let is_failed = |disposition: &&Disposition| matches!(disposition, Disposition::Failed(_));
        let delivered = dispositions.iter().filter(is_delivered).count();
        let failed = dispositions.iter().filter(is_failed).count();
        let outcome = match dispositions.len() {
            _ if is_lost => &self.attempts.lost,
            all if delivered == all => &self.attempts.delivered,
            all if failed == all => &self.attempts.failed,
            _ if delivered + failed == 0 => &self.attempts.deferred,
            _ => &self.attempts.mixed,
        };
        outcome.increment(1);
    }

    /// Counts a judgement on a proof of AUTH: rare enough for a lookup.
    pub fn count_logon(&self, mechanism: Mechanism, verdict: LogonVerdict<'_>) {
        let result = match verdict {
            LogonVerdict::Accept(_) => ACCEPTED,
            LogonVerdict::Refuse => REFUSED,
            LogonVerdict::NotHere => NOT_HERE,
            LogonVerdict::Unavailable => UNAVAILABLE,
        };
        logons(mechanism, result).increment(1);
    }

    /// Counts a completed handshake of an inbound connection: rare beside its cost.
    pub fn count_handshake(&self, version: &'static str, is_resumed: bool, duration: Duration) {
        tls_sessions(version, is_resumed).increment(1);
        self.tls_handshakes.completed.increment(1);
        self.tls_handshake_seconds.record(duration.as_secs_f64());
    }

    /// Counts a handshake that has failed.
    pub fn count_failed_handshake(&self, failure: TlsFailure) {
        self.tls_handshakes.failed.increment(1);
        let counter = match failure {
            TlsFailure::Protocol => &self.tls_failures.protocol,
            TlsFailure::ClientGone => &self.tls_failures.client_gone,
            TlsFailure::Timeout => &self.tls_failures.timeout,
            TlsFailure::Drain => &self.tls_failures.drain,
        };
        counter.increment(1);
    }

    /// Counts a command that was read.
    pub fn count_command(&self, verb: Verb) {
        self.commands[verb as usize].increment(1);
    }

    /// Counts a reply that was said.
    pub fn count_reply(&self, code: u16) {
        self.replies.count(code);
    }

    /// Counts a refusal inside a session; `octets`: what was read of the content that it refuses.
    pub fn count_refusal(&self, reply: Reply, octets: Option<u64>) {
        self.refusals.count(reply, 1);
        self.limit_hits.count(reply, 1);
        if reply == Reply::ProxyHeaderNotAllowed {
            self.proxy_headers.not_allowed.increment(1);
        }
        if let Some(octets) = octets {
            self.messages_refused.count(reply, 1);
            self.message_bytes_refused.count(reply, octets);
        }
    }

    /// Counts a message that a next hop refused while its client waited.
    pub fn count_passed_on_refusal(&self, octets: u64) {
        let [messages, bytes] = refused_by_next_hop();
        messages.increment(1);
        bytes.increment(octets);
    }

    /// Counts a connection refused in place of a banner.
    pub fn count_refused_connection(&self, reply: Reply) {
        debug_assert!(reply.is_said_at_connect(), "{reply:?} would not be counted");
        self.connections_refused.count(reply, 1);
        self.limit_hits.count(reply, 1);
        self.replies.count(reply.code());
    }

    /// Counts the end of a session by this reply.
    pub fn count_end(&self, reply: Reply) {
        self.sessions_ended.count(reply, 1);
    }

    /// Counts the end of a session by something else: rare enough for a lookup.
    pub fn count_other_end(&self, reason: &'static str) {
        metrics::counter!(SESSIONS_ENDED, "reason" => reason).increment(1);
    }
}

/// The handles of who loads the configuration.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is named after its metric")]
pub struct ReloadMetrics {
    pub reloads: ConfigReloads,
    pub reloaded: Gauge,
}

impl ReloadMetrics {
    /// Looks the handles up with the installed recorder.
    pub fn new() -> Self {
        ReloadMetrics { reloads: ConfigReloads::new(), reloaded: metrics::gauge!(CONFIG_RELOADED) }
    }
}

impl Default for ReloadMetrics {
    fn default() -> Self {
        Self::new()
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
