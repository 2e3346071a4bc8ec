//! What a start finds in the spool: the directories of its shards, and those of a run with more.
//!
//! All of them are recovered, each on a thread of its own. A directory beyond today's shards that holds
//! messages gets a shard too, without listeners: its mail is delivered, and outcomes are written, where
//! the messages lie. One without messages is removed. It stays if something else is in it (quarantined
//! files, files that are not ours), or if no other directory knows that its ids were given out: it has
//! to say so to a start with as many shards, whatever has become of the clock.
//!
//! On failure: a directory that cannot be read ends the start; one that cannot be removed is left to
//! the next.

use super::preflight::{ExitCode, Failure, Shards};
use crate::config::Config;
use crate::metrics::DAMAGE;
use crate::queue::record::Record;
use crate::queue::recover::{self, Found};
use crate::shard;
use crate::shard::storage::{Directory, SpoolDirectory, shard_directories};
use crate::stderr;
use std::thread;

/// A spool that was recovered.
#[derive(Debug)]
pub struct Recovered {
    /// The directories of all shards in the order of their numbers, and what each holds. Those behind
    /// `serving` are drained.
    pub directories: Vec<(Directory, Found)>,
    /// How many shards serve.
    pub serving: usize,
}

impl Recovered {
    /// The shards that are to be started.
    pub fn shards(&self) -> Shards {
        Shards { serving: self.serving, draining: self.directories.len() - self.serving }
    }

    /// The messages in the queue, and their octets.
    pub fn in_queue(&self) -> (u64, u64) {
        let all = self.directories.iter().map(|(_, found)| (found.messages, found.octets));
        all.fold((0, 0), |(messages, octets), found| (messages + found.0, octets + found.1))
    }

    /// The messages of shards that are no more and the names of their directories, if there are some, as
    /// told to operators.
    pub fn left_over(&self) -> Option<String> {
        let (_, draining) = self.directories.split_at_checked(self.serving)?;
        let messages: u64 = draining.iter().map(|(_, found)| found.messages).sum();
        let names: Vec<String> = draining.iter().map(|(directory, _)| directory.name()).collect();
        let from = match names.len() {
            0 => return None,
            1..=5 => names.join(", "),
            count => format!("{count} directories"),
        };
        Some(format!("{messages} messages of a run with more shards from {from}"))
    }
}

/// Recovers every shard directory of the spool, and removes those that nobody needs.
pub fn recover(spool: &SpoolDirectory, serving: usize, config: &Config) -> Result<Recovered, Failure> {
    for shard in 0..serving {
        spool.make_shard(shard)?;
    }
    let mut directories = recover_all(shard_directories(spool.path())?, config)?;
    retire(&mut directories, serving);
    Ok(Recovered { directories, serving })
}

fn recover_all(directories: Vec<Directory>, config: &Config) -> Result<Vec<(Directory, Found)>, Failure> {
    let lanes = |record: &Record<'_>| {
        let mut lanes = Vec::new();
        if let Some(envelope) = record.stored_envelope() {
            shard::lanes_of(&config.delivery.routes, &envelope, &mut lanes);
        }
        lanes.into()
    };
    let recover_one = |mut directory: Directory| {
        let found = recover::recover(&mut directory, lanes);
        (directory, found)
    };
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = directories.into_iter().map(|directory| scope.spawn(|| recover_one(directory))).collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    let mut recovered = Vec::new();
    for result in results {
        let (directory, found) =
            result.map_err(|_| Failure::new(ExitCode::Software, "recovery of the spool panicked, see above"))?;
        let path = directory.path().display();
        let found =
            found.map_err(|error| Failure::new(ExitCode::IoError, format!("cannot recover {path}: {error}")))?;
        metrics::counter!(DAMAGE).increment(found.damage.len() as u64);
        for damage in &found.damage {
            match damage.kept_as() {
                Some(name) => stderr::say(format_args!("{path}/{damage}; a copy is kept in {name}")),
                None => stderr::say(format_args!("{path}/{damage}")),
            }
        }
        recovered.push((directory, found));
    }
    Ok(recovered)
}

/// Takes the directories without messages that are behind the first `serving` out of the list, and
/// removes those that nobody needs.
fn retire(directories: &mut Vec<(Directory, Found)>, serving: usize) {
    // The serving ones have been made, so they come first.
    let behind = directories.split_off(serving);
    let (draining, empty): (Vec<_>, Vec<_>) = behind.into_iter().partition(|(_, found)| found.messages > 0);
    let known = directories.iter().map(|(_, found)| found.resume.highest_id.unix_us()).max();
    for (directory, found) in empty {
        let highest = found.resume.highest_id;
        if Some(highest.unix_us()) > known {
            // Their next segments tell it too.
            for (_, serving) in directories.iter_mut() {
                serving.resume.highest_id = serving.resume.highest_id.max(highest);
            }
            continue;
        }
        let path = directory.path().to_owned();
        if let Err(error) = directory.retire(found) {
            let path = path.display();
            stderr::say(format_args!("{path} is empty and cannot be removed: {error}; the next start tries again"));
        }
    }
    directories.extend(draining);
}
