//! What a run came to, as text or JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::plan::Plan;
use super::run::{Run, Stop};
use super::stats::Stats;

const MB_OCTETS: f64 = 1_048_576.0;

/// Percentiles of a latency in microseconds.
#[derive(Debug, Serialize)]
pub struct Latency {
    count: u64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max(),
        }
    }
}

/// The outcome of a run.
#[derive(Debug, Serialize)]
pub struct Summary {
    run: String,
    target: String,
    threads: u64,
    sessions: u64,
    message_octets: u64,
    /// Every message was accepted for all its recipients.
    complete: bool,
    stopped: Option<&'static str>,
    sent: u64,
    accepted: u64,
    refused: u64,
    interrupted: u64,
    unacknowledged: u64,
    /// Asked for and never begun.
    unsent: u64,
    retries: u64,
    recipients_refused: u64,
    connections: u64,
    /// Negative replies by step and code.
    refusals: BTreeMap<String, u64>,
    /// Broken connections by step and kind.
    errors: BTreeMap<String, u64>,
    elapsed_s: f64,
    messages_per_s: f64,
    mb_per_s: f64,
    connect: Latency,
    transaction: Latency,
    final_dot: Latency,
}

impl Summary {
    /// Sums up `stats`, which took `elapsed`.
    pub fn new(plan: &Plan, run: &Run, stats: &Stats, elapsed: Duration, threads: u64, sessions: u64) -> Self {
        let elapsed_s = elapsed.as_secs_f64();
        let messages_per_s = stats.accepted as f64 / elapsed_s.max(f64::MIN_POSITIVE);
        let asked = if plan.limits.duration.is_some() { run.claimed() } else { plan.limits.messages };
        Self {
            run: plan.run_id.clone(),
            target: plan.target.to_string(),
            threads,
            sessions,
            message_octets: plan.template.octets(),
            complete: plan.complete(stats.accepted, run.claimed()) && stats.recipients_refused == 0,
            stopped: run.stopped().map(|stop| match stop {
                Stop::Signal => "signal",
                Stop::Errors => "too many errors",
                Stop::GivenUp => "server gone",
            }),
            sent: stats.sent,
            accepted: stats.accepted,
            refused: stats.refused,
            interrupted: stats.interrupted,
            unacknowledged: stats.unacknowledged,
            unsent: asked.saturating_sub(stats.sent),
            retries: stats.retries,
            recipients_refused: stats.recipients_refused,
            connections: stats.connections,
            refusals: stats
                .refusals
                .iter()
                .map(|((step, code), count)| (format!("{} {code}", step.name()), *count))
                .collect(),
            errors: stats
                .breakages
                .iter()
                .map(|((step, kind), count)| (format!("{}: {}", step.name(), kind.name()), *count))
                .collect(),
            elapsed_s,
            messages_per_s,
            mb_per_s: messages_per_s * plan.template.octets() as f64 / MB_OCTETS,
            connect: (&stats.connect).into(),
            transaction: (&stats.transaction).into(),
            final_dot: (&stats.final_dot).into(),
        }
    }

    /// Whether every message was accepted for all its recipients.
    pub fn is_complete(&self) -> bool {
        self.complete
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "run {} to {}: {} sessions on {} threads, {} octets a message",
            self.run, self.target, self.sessions, self.threads, self.message_octets
        )?;
        write!(f, "sent {}, accepted {}, refused {}", self.sent, self.accepted, self.refused)?;
        write!(
            f,
            ", interrupted {}, unacknowledged {}, unsent {}",
            self.interrupted, self.unacknowledged, self.unsent
        )?;
        for (what, count) in [("retries", self.retries), ("recipients refused", self.recipients_refused)] {
            if count > 0 {
                write!(f, ", {what} {count}")?;
            }
        }
        writeln!(f, ", connections {}", self.connections)?;
        for (kind, counts) in [("refusal", &self.refusals), ("error", &self.errors)] {
            for (what, count) in counts {
                writeln!(f, "{kind} {what}: {count}")?;
            }
        }
        if let Some(reason) = self.stopped {
            writeln!(f, "stopped: {reason}")?;
        }
        writeln!(f, "{:.3} s, {:.1} messages/s, {:.2} MB/s", self.elapsed_s, self.messages_per_s, self.mb_per_s)?;
        write!(f, "latency in ms   p50      p90      p99    p99.9      max")?;
        for (name, latency) in
            [("connect", &self.connect), ("transaction", &self.transaction), ("final dot", &self.final_dot)]
        {
            write!(f, "\n{name:<11}")?;
            for us in [latency.p50_us, latency.p90_us, latency.p99_us, latency.p999_us, latency.max_us] {
                write!(f, " {:8.3}", us as f64 / 1e3)?;
            }
        }
        Ok(())
    }
}
