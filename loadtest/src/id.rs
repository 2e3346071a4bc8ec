//! Message ids, `<run>-<number>`, and sets of them.
//!
//! A run names one start of the sender; a number is ten digits, so that every id of a run has the same length and can
//! be written into a prepared message in place. Sets are bitmaps in chunks: a run of ten million messages costs about a
//! megabyte and never pauses to rehash them. Ids come from the network: a set is bounded, and what does not fit is
//! reported as such by its user, never dropped silently.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

use ahash::AHashMap;

/// Digits of a message's number.
pub const NUMBER_DIGITS: usize = 10;
/// Largest number of messages in a run.
pub const NUMBERS_MAX: u64 = 10u64.pow(NUMBER_DIGITS as u32);
/// Longest run name in octets.
pub const RUN_OCTETS_MAX: usize = 32;
/// Longest id in octets.
pub const ID_OCTETS_MAX: usize = RUN_OCTETS_MAX + 1 + NUMBER_DIGITS;

const RUNS_MAX: usize = 1024;
const CHUNK_WORDS: usize = 64;
const CHUNK_NUMBERS: u64 = CHUNK_WORDS as u64 * 64;
/// 128 MB of bitmaps: a thousand million ids without gaps.
const CHUNKS_MAX: usize = 1 << 18;

/// The ten digits of a message's number.
pub fn digits(mut number: u64) -> [u8; NUMBER_DIGITS] {
    let mut text = [b'0'; NUMBER_DIGITS];
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    text
}

/// Formats an id.
pub fn format_id(run: &str, number: u64) -> String {
    format!("{run}-{number:010}")
}

/// Splits an id into its run and its number; None for anything the sender would not have written.
pub fn parse_id(text: &[u8]) -> Option<(&str, u64)> {
    let dash = text.len().checked_sub(NUMBER_DIGITS + 1)?;
    let (run, rest) = text.split_at(dash);
    let number = rest.strip_prefix(b"-")?;
    if !valid_run(run) || !number.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = number.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some((std::str::from_utf8(run).ok()?, number))
}

fn valid_run(run: &[u8]) -> bool {
    (1..=RUN_OCTETS_MAX).contains(&run.len()) && run.iter().all(u8::is_ascii_alphanumeric)
}

/// Checks a run name given by the operator.
pub fn parse_run(text: &str) -> Result<String, String> {
    match valid_run(text.as_bytes()) {
        true => Ok(text.to_owned()),
        false => Err(format!("a run id is 1 to {RUN_OCTETS_MAX} letters and digits")),
    }
}

/// A run name nobody has used before, in all likelihood.
pub fn random_run() -> String {
    // RandomState is seeded by the operating system: enough to tell runs apart, and no crate for it.
    format!("{:08x}", RandomState::new().hash_one(std::process::id()) as u32)
}

/// What became of an id given to [`IdSet::insert`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It was not in the set.
    New,
    /// It was.
    Duplicate,
    /// The set has reached a bound and did not take it.
    Full,
}

type Chunk = Box<[u64; CHUNK_WORDS]>;

/// A set of ids.
#[derive(Debug, Default)]
pub struct IdSet {
    runs: AHashMap<Box<str>, AHashMap<u64, Chunk>>,
    chunks: usize,
    len: u64,
}

impl IdSet {
    /// Number of ids in the set.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Adds an id.
    pub fn insert(&mut self, run: &str, number: u64) -> Inserted {
        if !self.runs.contains_key(run) {
            if self.runs.len() == RUNS_MAX {
                return Inserted::Full;
            }
            self.runs.insert(run.into(), AHashMap::new());
        }
        let Some(chunks) = self.runs.get_mut(run) else { return Inserted::Full };
        let key = number / CHUNK_NUMBERS;
        if !chunks.contains_key(&key) {
            if self.chunks == CHUNKS_MAX {
                return Inserted::Full;
            }
            self.chunks += 1;
            chunks.insert(key, Box::new([0; CHUNK_WORDS]));
        }
        let Some(chunk) = chunks.get_mut(&key) else { return Inserted::Full };
        let (word, bit) = position(number);
        if chunk[word] & bit != 0 {
            return Inserted::Duplicate;
        }
        chunk[word] |= bit;
        self.len += 1;
        Inserted::New
    }

    /// Takes an id out.
    pub fn remove(&mut self, run: &str, number: u64) {
        let (word, bit) = position(number);
        let chunk = self.runs.get_mut(run).and_then(|chunks| chunks.get_mut(&(number / CHUNK_NUMBERS)));
        if let Some(chunk) = chunk.filter(|chunk| chunk[word] & bit != 0) {
            chunk[word] &= !bit;
            self.len -= 1;
        }
    }

    /// Whether the set holds an id.
    pub fn contains(&self, run: &str, number: u64) -> bool {
        let (word, bit) = position(number);
        self.runs
            .get(run)
            .and_then(|chunks| chunks.get(&(number / CHUNK_NUMBERS)))
            .is_some_and(|chunk| chunk[word] & bit != 0)
    }

    /// Calls `visit` with every id, runs and numbers in order.
    pub fn for_each(&self, mut visit: impl FnMut(&str, u64)) {
        for run in self.runs.keys().collect::<BTreeSet<_>>() {
            let chunks = &self.runs[run];
            for key in chunks.keys().collect::<BTreeSet<_>>() {
                for (index, word) in chunks[key].iter().enumerate() {
                    let mut rest = *word;
                    while rest != 0 {
                        let bit = u64::from(rest.trailing_zeros());
                        visit(run, key * CHUNK_NUMBERS + index as u64 * 64 + bit);
                        rest &= rest - 1;
                    }
                }
            }
        }
    }
}

fn position(number: u64) -> (usize, u64) {
    ((number % CHUNK_NUMBERS / 64) as usize, 1 << (number % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_the_round_trip() {
        for (run, number) in [("a", 0), ("1f2e3d4c", 42), ("Crash7", NUMBERS_MAX - 1)] {
            let text = format_id(run, number);
            assert_eq!(parse_id(text.as_bytes()), Some((run, number)));
            assert!(text.as_bytes().ends_with(&digits(number)));
        }
    }

    #[test]
    fn foreign_ids_are_refused() {
        for text in ["", "-", "-0000000001", "a-1", "a-00000000010", "a0000000001", "a b-0000000001", "a-000000000x"] {
            assert_eq!(parse_id(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_id(format_id(&"r".repeat(RUN_OCTETS_MAX + 1), 1).as_bytes()), None);
    }

    #[test]
    fn random_runs_are_valid() {
        assert!(parse_run(&random_run()).is_ok());
        assert!(parse_run("").is_err());
        assert!(parse_run("a-b").is_err());
    }

    #[test]
    fn a_set_counts_each_id_once_and_visits_in_order() {
        let mut set = IdSet::default();
        for number in [70_000, 5, 63, 64, 4095, 4096, 5] {
            set.insert("b", number);
        }
        assert_eq!(set.insert("a", 5), Inserted::New);
        assert_eq!(set.insert("a", 5), Inserted::Duplicate);
        assert_eq!(set.len(), 7);
        assert!(set.contains("b", 4096) && !set.contains("b", 4097) && !set.contains("c", 5));
        set.insert("b", 6);
        for (run, number) in [("b", 6), ("b", 6), ("b", 9000), ("c", 5)] {
            set.remove(run, number);
        }
        assert_eq!(set.len(), 7);
        let mut seen = Vec::new();
        set.for_each(|run, number| seen.push((run.to_owned(), number)));
        let expected = [("a", 5), ("b", 5), ("b", 63), ("b", 64), ("b", 4095), ("b", 4096), ("b", 70_000)];
        assert_eq!(seen, expected.map(|(run, number)| (run.to_owned(), number)));
    }

    #[test]
    fn a_flood_of_runs_is_bounded() {
        let mut set = IdSet::default();
        for run in 0..RUNS_MAX {
            assert_eq!(set.insert(&run.to_string(), 1), Inserted::New);
        }
        assert_eq!(set.insert("straw", 1), Inserted::Full);
        assert_eq!(set.insert("7", 1), Inserted::Duplicate);
    }
}
