//! The arithmetic of an audit: what was received against what was acknowledged.
//!
//! `received` counts messages, `duplicated` those whose id had come before, `lost` the acknowledged ids that never
//! came, `unexpected` the ids that came without having been acknowledged (a sender that got no reply to its final dot
//! makes those, and they are no fault), `altered` the messages that differ from what their id says they must be, and
//! `foreign` those without an id. An audit fails when anything was lost or altered, or when ids had to be left out of
//! it.
//!
//! A message is expected once, however many recipients it has: a relay that splits it by recipient makes duplicates.

pub mod files;

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::fault::Fault;
use crate::id::{IdSet, Inserted, format_id, parse_id};
use crate::message::verify::{Condition, Verdict};

/// Ids of a kind that a report lists.
pub const EXAMPLES_MAX: usize = 20;
/// Longest line read of a list of ids.
const LIST_LINE_OCTETS_MAX: u64 = 4096;

/// What has been received.
#[derive(Debug, Default)]
pub struct Tally {
    ids: IdSet,
    messages: u64,
    octets: u64,
    duplicated: u64,
    altered: u64,
    foreign: u64,
    left_out: u64,
    duplicated_ids: Vec<String>,
    altered_ids: Vec<String>,
}

impl Tally {
    /// Messages so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Counts a message of `octets`.
    pub fn note(&mut self, verdict: Verdict<'_>, octets: u64) {
        self.messages += 1;
        self.octets += octets;
        let Verdict::Ours { run, number, condition } = verdict else {
            self.foreign += 1;
            return;
        };
        if condition != Condition::Intact {
            self.altered += 1;
            example(&mut self.altered_ids, run, number);
        }
        self.insert(run, number);
    }

    /// Adds what another thread has received.
    pub fn merge(&mut self, other: Self) {
        self.messages += other.messages;
        self.octets += other.octets;
        self.duplicated += other.duplicated;
        self.altered += other.altered;
        self.foreign += other.foreign;
        self.left_out += other.left_out;
        self.duplicated_ids.extend(other.duplicated_ids);
        self.altered_ids.extend(other.altered_ids);
        other.ids.for_each(|run, number| self.insert(run, number));
        self.duplicated_ids.truncate(EXAMPLES_MAX);
        self.altered_ids.truncate(EXAMPLES_MAX);
    }

    fn insert(&mut self, run: &str, number: u64) {
        match self.ids.insert(run, number) {
            Inserted::New => {}
            Inserted::Duplicate => {
                self.duplicated += 1;
                example(&mut self.duplicated_ids, run, number);
            }
            Inserted::Full => self.left_out += 1,
        }
    }

    /// Compares with what was acknowledged, if that is known.
    pub fn report(&self, expected: Option<&Expected>) -> Report {
        let mut report = Report {
            received: self.messages,
            octets: self.octets,
            expected: None,
            lost: 0,
            duplicated: self.duplicated,
            unexpected: 0,
            altered: self.altered,
            foreign: self.foreign,
            left_out: self.left_out,
            lost_ids: Vec::new(),
            duplicated_ids: self.duplicated_ids.clone(),
            altered_ids: self.altered_ids.clone(),
        };
        if let Some(expected) = expected {
            report.expected = Some(expected.ids.len());
            report.left_out += expected.left_out;
            expected.ids.for_each(|run, number| {
                if !self.ids.contains(run, number) {
                    report.lost += 1;
                    example(&mut report.lost_ids, run, number);
                }
            });
            report.unexpected = self.ids.len() - (expected.ids.len() - report.lost);
        }
        report
    }
}

fn example(list: &mut Vec<String>, run: &str, number: u64) {
    if list.len() < EXAMPLES_MAX {
        list.push(format_id(run, number));
    }
}

/// The ids that were acknowledged.
#[derive(Debug, Default)]
pub struct Expected {
    ids: IdSet,
    left_out: u64,
}

impl Expected {
    /// Reads lists as written by `--acked-file`; None when there are none.
    pub fn read(paths: &[PathBuf]) -> Result<Option<Self>, Fault> {
        if paths.is_empty() {
            return Ok(None);
        }
        let mut expected = Self::default();
        for path in paths {
            expected.read_file(path)?;
        }
        Ok(Some(expected))
    }

    fn read_file(&mut self, path: &Path) -> Result<(), Fault> {
        let file = std::fs::File::open(path).map_err(|error| Fault::file(path, error))?;
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let limited = &mut (&mut lines).take(LIST_LINE_OCTETS_MAX);
            if limited.read_until(b'\n', &mut line).map_err(|error| Fault::file(path, error))? == 0 {
                return Ok(());
            }
            let id = line.split(|octet| octet.is_ascii_whitespace()).next().unwrap_or_default();
            match parse_id(id) {
                Some((run, number)) if self.ids.insert(run, number) != Inserted::Full => {}
                // A line that cannot be read may be an acknowledgement: an audit without it would prove nothing.
                _ => self.left_out += 1,
            }
        }
    }
}

/// The outcome of an audit, as text or JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Messages received.
    pub received: u64,
    /// Their size in octets.
    pub octets: u64,
    /// Ids acknowledged, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
    /// Ids acknowledged and never received.
    pub lost: u64,
    /// Messages whose id had been received before.
    pub duplicated: u64,
    /// Ids received and never acknowledged.
    pub unexpected: u64,
    /// Messages that are not as they were sent.
    pub altered: u64,
    /// Messages without an id.
    pub foreign: u64,
    /// Lines and ids that could not be taken into account.
    pub left_out: u64,
    /// The first of the lost.
    pub lost_ids: Vec<String>,
    /// The first of the duplicated.
    pub duplicated_ids: Vec<String>,
    /// The first of the altered.
    pub altered_ids: Vec<String>,
}

impl Report {
    /// Whether nothing was lost or altered and nothing left out.
    pub fn passed(&self) -> bool {
        self.lost == 0 && self.altered == 0 && self.left_out == 0
    }

    /// Prints the report and turns it into an exit code.
    pub fn conclude(&self, json: bool) -> ExitCode {
        print(self, json);
        self.exit_code()
    }

    /// 0 when it passed, 1 when not.
    pub fn exit_code(&self) -> ExitCode {
        if self.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Prints a report as text or as one JSON object.
pub fn print(report: &(impl fmt::Display + Serialize), json: bool) {
    match json {
        true => println!("{}", serde_json::to_string(report).unwrap_or_default()),
        false => println!("{report}"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "received {}", self.received)?;
        if let Some(expected) = self.expected {
            write!(f, ", expected {expected}, lost {}", self.lost)?;
        }
        write!(f, ", duplicated {}", self.duplicated)?;
        if self.expected.is_some() {
            write!(f, ", unexpected {}", self.unexpected)?;
        }
        write!(f, ", altered {}, foreign {}", self.altered, self.foreign)?;
        if self.left_out > 0 {
            write!(f, ", left out {}", self.left_out)?;
        }
        for (what, ids) in
            [("lost", &self.lost_ids), ("duplicated", &self.duplicated_ids), ("altered", &self.altered_ids)]
        {
            for id in ids {
                write!(f, "\n{what} {id}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(ids: &[u64]) -> Tally {
        let mut tally = Tally::default();
        for number in ids {
            tally.note(Verdict::Ours { run: "r", number: *number, condition: Condition::Intact }, 100);
        }
        tally
    }

    fn expected(ids: &[u64]) -> Expected {
        let mut expected = Expected::default();
        for number in ids {
            expected.ids.insert("r", *number);
        }
        expected
    }

    #[test]
    fn counts() {
        let mut tally = tally(&[1, 2, 2, 2, 5, 6]);
        tally.note(Verdict::Foreign, 7);
        tally.note(Verdict::Ours { run: "r", number: 3, condition: Condition::BodyAltered }, 1);
        let report = tally.report(Some(&expected(&[1, 2, 3, 4, 7])));
        assert_eq!((report.received, report.octets, report.expected), (8, 608, Some(5)));
        assert_eq!((report.lost, report.duplicated, report.unexpected), (2, 2, 2));
        assert_eq!((report.altered, report.foreign, report.left_out), (1, 1, 0));
        assert_eq!(report.lost_ids, ["r-0000000004", "r-0000000007"]);
        assert!(!report.passed());
        let text = report.to_string();
        assert!(text.starts_with("received 8, expected 5, lost 2, duplicated 2, unexpected 2, altered 1, foreign 1\n"));
        assert!(text.contains("\nlost r-0000000004\n") && text.ends_with("\naltered r-0000000003"));
    }

    #[test]
    fn a_complete_audit_passes_in_spite_of_duplicates_and_unexpected_ids() {
        assert!(tally(&[1, 2, 2, 9]).report(Some(&expected(&[1, 2]))).passed());
        assert!(tally(&[]).report(Some(&expected(&[]))).passed());
        let report = tally(&[1]).report(None);
        assert!(report.passed());
        assert_eq!(report.to_string(), "received 1, duplicated 0, altered 0, foreign 0");
    }

    #[test]
    fn merging_finds_duplicates_between_threads() {
        let mut left = tally(&[1, 2, 3]);
        left.merge(tally(&[3, 4, 4]));
        let report = left.report(Some(&expected(&[1, 2, 3, 4, 5])));
        assert_eq!((report.received, report.lost, report.duplicated, report.unexpected), (6, 1, 2, 0));
    }

    #[test]
    fn examples_are_bounded() {
        let many: Vec<_> = (0..1000).collect();
        let report = tally(&[]).report(Some(&expected(&many)));
        assert_eq!((report.lost, report.lost_ids.len()), (1000, EXAMPLES_MAX));
    }

    #[test]
    fn a_list_with_an_unreadable_line_cannot_pass() {
        let path = std::env::temp_dir().join(format!("gatepost-load-list-{}", std::process::id()));
        std::fs::write(&path, "r-0000000001 4XYZ\nr-0000000002 -\nr-00000\n").unwrap();
        let expected = Expected::read(std::slice::from_ref(&path)).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        let report = tally(&[1, 2]).report(Some(&expected));
        assert_eq!((report.expected, report.lost, report.left_out), (Some(2), 0, 1));
        assert!(!report.passed());
    }
}
