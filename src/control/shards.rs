//! Starting the shards, each with its directory, its listening sockets and its core, and the watchdog
//! that looks after them.

use super::preflight::{ExitCode, Failure, Sockets};
use super::recovery::Recovered;
use super::supervisor::{self, Supervisor};
use super::watchdog::{Ward, Watchdog};
use crate::log::Log;
use crate::shard::{Doorbell, Lookups, PasswordChecks, Shared, Start};
use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc;
use tokio::sync::Notify;

/// What the shards are started with.
#[derive(Debug)]
pub struct Launch {
    /// Their directories.
    pub recovered: Recovered,
    /// Their doorbells, by their numbers.
    pub doorbells: BTreeMap<usize, Doorbell>,
    /// The watchdog's doorbell.
    pub watchdog: Doorbell,
    /// Listening sockets of each binding, one for each shard that serves.
    pub sockets: Vec<Sockets>,
    /// The cores that this process may use.
    pub cores: Vec<usize>,
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// Where passwords are looked at.
    pub logons: Arc<PasswordChecks>,
    /// Where clients are looked up in DNS block lists.
    pub lookups: Arc<Lookups>,
    /// Where they write their records.
    pub log: Log,
    /// Makes the control thread begin to drain.
    pub drain: Arc<Notify>,
    /// Gives what a thread took from the allocator, and has let go of, back to the system.
    pub give_back_memory: fn(),
}

/// A doorbell for each of these directories' shards.
pub fn doorbells(recovered: &Recovered) -> io::Result<BTreeMap<usize, Doorbell>> {
    let numbers = recovered.directories.iter().map(|(directory, _)| directory.number());
    numbers.map(|number| Ok((number, Doorbell::new()?))).collect()
}

impl Launch {
    /// Starts all threads; returns who waits for them.
    pub fn start(self) -> Result<Supervisor, Failure> {
        let shards = self.recovered.shards().count();
        let numbers = self.doorbells.keys().copied().collect();
        let mut sockets: Vec<_> = self.sockets.into_iter().map(|binding| binding.sockets.into_iter()).collect();
        let (sender, news) = mpsc::channel();
        let mut wards = Vec::with_capacity(shards);
        // Both are in the order of the shards' numbers.
        let places = self.recovered.directories.into_iter().zip(self.doorbells.into_values());
        for (((directory, found), doorbell), &core) in places.zip(self.cores.iter().cycle()) {
            // None are left when the turn of those comes that only deliver.
            let listeners: Vec<TcpListener> = sockets.iter_mut().filter_map(Iterator::next).collect();
            let duplicates = listeners.iter().map(TcpListener::try_clone).collect::<io::Result<_>>();
            let duplicates = duplicates.map_err(|error| os_failure(&error))?;
            wards.push(Ward::new(directory.number(), doorbell.clone(), duplicates));
            let start = Start {
                core,
                listeners,
                directory,
                found,
                shards,
                key: getrandom::u64()
                    .map_err(|error| Failure::new(ExitCode::OsError, format!("no random numbers: {error}")))?,
                shared: self.shared.clone(),
                doorbell,
                logons: self.logons.clone(),
                lookups: self.lookups.clone(),
                log: self.log.sender(),
            };
            let watchdog = self.watchdog.clone();
            let started = supervisor::start_shard(start, sender.clone(), watchdog, self.give_back_memory);
            started.map_err(|error| os_failure(&error))?;
        }
        let watchdog = Watchdog { shared: self.shared.clone(), doorbell: self.watchdog, wards, news: sender };
        supervisor::start_watchdog(watchdog, self.log.sender()).map_err(|error| os_failure(&error))?;
        Ok(Supervisor { news, shared: self.shared, shards: numbers, drain: self.drain })
    }
}

fn os_failure(error: &io::Error) -> Failure {
    Failure::new(ExitCode::OsError, error.to_string())
}
