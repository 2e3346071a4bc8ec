//! The sink's report: the audit, and what the connections were like.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::books::{ByVerb, Counts};
use super::faults::Verb;
use crate::audit::Report;

/// The report, as text or JSON. All counts are messages unless said otherwise.
#[derive(Debug, Serialize)]
pub struct SinkReport {
    /// The audit.
    #[serde(flatten)]
    pub audit: Report,
    /// Taken without their reply being written.
    pub unanswered: u64,
    /// Duplicates whose last copy before had been taken without its reply.
    pub duplicates_after_unanswered: u64,
    /// All other duplicates.
    pub duplicates_other: u64,
    /// Connections.
    pub connections: u64,
    /// Accepted MAIL commands.
    pub transactions: u64,
    /// The same, on average over all connections and on the busiest.
    pub transactions_per_connection: PerConnection,
    /// Replies 4yz and 5yz by what they answered.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Faults that acted by where.
    pub faults: BTreeMap<&'static str, u64>,
}

/// Transactions per connection.
#[derive(Debug, Serialize)]
pub struct PerConnection {
    /// On average.
    pub mean: f64,
    /// At most.
    pub max: u64,
}

impl SinkReport {
    /// Puts a report together.
    pub fn new(audit: Report, counts: &Counts, connections: u64) -> Self {
        Self {
            unanswered: counts.unanswered,
            duplicates_after_unanswered: counts.after_unanswered,
            duplicates_other: audit.duplicated.saturating_sub(counts.after_unanswered),
            connections,
            transactions: counts.transactions,
            transactions_per_connection: PerConnection {
                mean: counts.transactions as f64 / connections.max(1) as f64,
                max: counts.transactions_max,
            },
            refusals: named(&counts.refusals),
            faults: named(&counts.faults),
            audit,
        }
    }
}

fn named(counts: &ByVerb) -> BTreeMap<&'static str, u64> {
    let names = Verb::ALL.map(Verb::name).into_iter().chain(["other"]);
    names.zip(counts.iter().copied()).filter(|(_, count)| *count > 0).collect()
}

impl fmt::Display for SinkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PerConnection { mean, max } = self.transactions_per_connection;
        write!(f, "connections {}, transactions {}", self.connections, self.transactions)?;
        writeln!(f, " (per connection {mean:.1}, at most {max})")?;
        for (what, counts) in [("refusals", &self.refusals), ("faults", &self.faults)] {
            if !counts.is_empty() {
                let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
                writeln!(f, "{what} {}", counts.join(", "))?;
            }
        }
        if self.unanswered > 0 || self.duplicates_after_unanswered > 0 {
            write!(f, "taken without a reply {}, ", self.unanswered)?;
            write!(f, "duplicates after that {}, ", self.duplicates_after_unanswered)?;
            writeln!(f, "other duplicates {}", self.duplicates_other)?;
        }
        self.audit.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Tally;

    #[test]
    fn only_what_happened_is_told() {
        let mut counts = Counts { transactions: 5, transactions_max: 4, ..Counts::default() };
        let report = |counts: &Counts| SinkReport::new(Tally::default().report(None), counts, 2);
        let quiet = "connections 2, transactions 5 (per connection 2.5, at most 4)\n\
                     received 0, duplicated 0, altered 0, foreign 0";
        assert_eq!(report(&counts).to_string(), quiet);
        counts.refusals[Verb::Rcpt as usize] = 3;
        counts.refusals[Verb::ALL.len()] = 1;
        counts.faults[Verb::End as usize] = 2;
        counts.unanswered = 2;
        let text = report(&counts).to_string();
        assert!(text.contains("\nrefusals other 1, rcpt 3\nfaults end 2\ntaken without a reply 2, "), "{text}");
        let json = serde_json::to_value(report(&counts)).unwrap();
        assert_eq!(
            (&json["received"], &json["refusals"]["rcpt"], &json["unanswered"]),
            (&0.into(), &3.into(), &2.into())
        );
    }
}
