//! What a disk owes after a power cut: the messages that were acknowledged before it and that no
//! next hop had taken.
//!
//! The moments of the log and those of the lists are brought together by samples. An
//! acknowledgement is in a list only after the sync that it waited for, so what a list holds, read
//! before the log's length, is owed by every prefix of the log that is at least so long. What the
//! next hop has taken is in its record before the gateway hears of it, so what led to a prefix of
//! the log is in a record that is read after the log had its length.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The id of a message: run and number.
pub type Id = String;

/// The time between two samples is a little more.
const PAUSE: Duration = Duration::from_micros(300);

/// Where everything is written down.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The lists of acknowledged ids; such as are not there yet are empty.
    pub lists: Vec<PathBuf>,
    pub log: PathBuf,
    /// What the next hop has taken.
    pub record: PathBuf,
}

/// The lengths of all files, taken in the order of the fields.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sample {
    lists: Vec<u64>,
    log: u64,
    record: u64,
}

impl Sample {
    fn take(sources: &Sources) -> Self {
        let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        Sample {
            lists: sources.lists.iter().map(|list| length(list)).collect(),
            log: length(&sources.log),
            record: length(&sources.record),
        }
    }
}

/// Takes samples until it is stopped.
#[derive(Debug)]
pub struct Sampler {
    sources: Sources,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Sampler {
    pub fn start(sources: Sources) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (watched, over) = (sources.clone(), is_over.clone());
        let thread = thread::spawn(move || {
            let mut samples: Vec<Sample> = Vec::new();
            loop {
                // Asked first: the last sample sees all there is.
                let is_last = over.load(Ordering::Acquire);
                let sample = Sample::take(&watched);
                if samples.last() != Some(&sample) {
                    samples.push(sample);
                }
                if is_last {
                    return samples;
                }
                thread::sleep(PAUSE);
            }
        });
        Sampler { sources, is_over, thread }
    }

    /// What it saw; the log, the lists and the record must be complete. `inherited` is what the disk
    /// owed before the log began.
    pub fn stop(self, inherited: BTreeSet<Id>) -> Evidence {
        self.is_over.store(true, Ordering::Release);
        let samples = self.thread.join().expect("it does not panic");
        Evidence { inherited, sources: self.sources, samples }
    }
}

/// What is known of a disk's log.
#[derive(Debug)]
pub struct Evidence {
    inherited: BTreeSet<Id>,
    sources: Sources,
    samples: Vec<Sample>,
}

impl Evidence {
    /// What the disk owes after so many octets of its log.
    pub fn owed(&self, log_octets: u64) -> BTreeSet<Id> {
        let mut owed = self.inherited.clone();
        let before = self.samples.partition_point(|sample| sample.log <= log_octets);
        if let Some(sample) = before.checked_sub(1).map(|place| &self.samples[place]) {
            for (list, &octets) in self.sources.lists.iter().zip(&sample.lists) {
                owed.extend(lines(list, octets).into_iter().map(|line| first_word(&line).to_owned()));
            }
        }
        let behind = self.samples.partition_point(|sample| sample.log < log_octets);
        let sample = self.samples.get(behind).expect("the last sample saw the whole log");
        for line in lines(&self.sources.record, sample.record) {
            // Another line says the same of messages for which no reply was written.
            let condition = line.split(' ').nth(1).expect("several words");
            assert!(matches!(condition, "intact" | "taken,"), "at the next hop: {line}");
            owed.remove(first_word(&line));
        }
        owed
    }
}

/// The whole lines in the first octets of a file.
fn lines(path: &Path, octets: u64) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let text = &text[..octets as usize];
    text[..text.rfind('\n').map_or(0, |end| end + 1)].lines().map(str::to_owned).collect()
}

fn first_word(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}
