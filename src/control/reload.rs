//! Loading the configuration again while the gateway runs: on SIGHUP, and for `gatepost reload`.
//!
//! One at a time, and on a thread of the runtime's pool, since files may be slow. Everything is read and
//! checked first, the users file and the certificates too; on failure nothing changes, and the reason is
//! told. Then connections from now on begin under the new configuration, while sessions go on under
//! theirs (`shard::current`). What was changed is told line by line. The answer is given when every shard
//! goes by the new configuration.
//!
//! The same task looks whether the users file or certificates have changed by themselves
//! ([`super::watched`]), so that the two never load a file against each other.

use super::preflight::{self, ExitCode, Failure, Shards};
use super::tls::TlsLoader;
use super::users_file;
use super::watched::{Prepared, Watched};
use crate::config::{self, Change, Config, NEEDS_RESTART, Settings, Sources};
use crate::limits::{FILES_LOOK_MS, RELOAD_TICK_MS, RELOAD_WAIT_MS, RELOADS_WAITING_MAX};
use crate::metrics::ReloadMetrics;
use crate::shard::{Doorbell, Life, Shared, Stage};
use crate::{log, stderr, stdout};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// What a reload came to.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// What was changed, and what needs a restart; a line each.
    pub lines: Vec<String>,
    /// The shards that do not go by it yet: their new connections begin under the configuration before.
    pub late: Vec<usize>,
}

type Answer = oneshot::Sender<Result<Reloaded, Failure>>;

/// Asks for reloads.
#[derive(Clone, Debug)]
pub struct Reloads(mpsc::Sender<Answer>);

/// What was asked for.
pub type Requests = mpsc::Receiver<Answer>;

impl Reloads {
    /// Who asks, and who is asked.
    pub fn new() -> (Self, Requests) {
        let (sender, requests) = mpsc::channel(RELOADS_WAITING_MAX);
        (Reloads(sender), requests)
    }

    /// Has the configuration loaded again, and waits for what comes of it.
    pub async fn ask(&self) -> Result<Reloaded, Failure> {
        let (answer, answered) = oneshot::channel();
        let ended =
            |_| Failure::new(ExitCode::Software, "the configuration can no longer be loaded; restart the gateway");
        self.0.send(answer).await.map_err(|_| ()).map_err(ended)?;
        answered.await.map_err(|_| ()).map_err(ended)?
    }
}

/// Reads the files that a configuration names and that are watched from then on.
pub fn read_files(config: &Config, tls: &TlsLoader, shared: &Arc<Shared>) -> Result<Vec<Prepared>, Failure> {
    let mut files = Vec::new();
    if let Some(path) = &config.users {
        files.push(users_file::prepare(path, shared)?);
    }
    if !config.certificates.is_empty() {
        files.push(tls.prepare(&config.certificates, shared)?);
    }
    Ok(files)
}

/// Who loads the configuration again.
#[derive(Debug)]
pub struct Reloader {
    sources: Sources,
    /// The options that the process was started with.
    started: Settings,
    /// Those that were loaded last.
    newest: Settings,
    shared: Arc<Shared>,
    shards: Shards,
    doorbells: BTreeMap<usize, Doorbell>,
    /// Keeps the keys of tickets.
    tls: TlsLoader,
    /// The files of the configuration in use.
    watched: Vec<Watched>,
    metrics: ReloadMetrics,
}

/// A reload that went well.
struct Done {
    /// The number of the configuration that is in use now.
    edition: u64,
    /// What was loaded of files, a line each.
    loaded: Vec<String>,
    /// What was changed, and what needs a restart.
    changed: Vec<String>,
    /// Nothing was changed.
    is_unchanged: bool,
}

impl Reloader {
    /// Goes on from a start with these options and files. The metrics recorder is installed.
    pub fn new(
        sources: Sources,
        started: Settings,
        shared: Arc<Shared>,
        shards: Shards,
        doorbells: BTreeMap<usize, Doorbell>,
        tls: TlsLoader,
        watched: Vec<Watched>,
    ) -> Self {
        let metrics = ReloadMetrics::new();
        metrics.reloaded.set(unix_seconds());
        Reloader { newest: started.clone(), sources, started, shared, shards, doorbells, tls, watched, metrics }
    }

    /// Loads what changes by itself, and all when SIGHUP or a request asks for it, as long as the process
    /// lives.
    pub async fn run(self, mut hangup: Signal, mut requests: Requests) {
        let mut reloader = self;
        let mut ticks = interval(Duration::from_millis(FILES_LOOK_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut asker = None;
            let is_asked = tokio::select! {
                _ = ticks.tick() => false,
                Some(()) = hangup.recv() => true,
                Some(answer) = requests.recv() => {
                    asker = Some(answer);
                    true
                }
            };
            if is_asked {
                // It was renamed, perhaps.
                log::reopen();
            }
            // Reading may take a while, and this thread has scrapes and commands to answer.
            let act = move || {
                let result = is_asked.then(|| reloader.reload());
                if !is_asked {
                    reloader.watched.iter_mut().for_each(Watched::look);
                }
                (reloader, result)
            };
            let result = match spawn_blocking(act).await {
                Ok((back, result)) => {
                    reloader = back;
                    result
                }
                Err(error) => {
                    let what = "the configuration and changed files are no longer loaded";
                    return stderr::say(format_args!("{what} ({error}); restart the gateway"));
                }
            };
            let Some(result) = result else { continue };
            let answer = match result {
                Ok(Done { edition, loaded, changed, .. }) => {
                    let lines = loaded.into_iter().chain(changed).collect();
                    Ok(Reloaded { lines, late: await_shards(&reloader.doorbells, edition).await })
                }
                Err(failure) => Err(failure),
            };
            if let Some(asker) = asker {
                // Who does not stay for the answer does without.
                let _ = asker.send(answer);
            }
        }
    }

    /// Loads the configuration and all of its files, and tells what came of it.
    fn reload(&mut self) -> Result<Done, Failure> {
        let result = self.load();
        match &result {
            Ok(Done { loaded, changed, is_unchanged, .. }) => {
                let reloads = &self.metrics.reloads;
                if *is_unchanged {
                    reloads.unchanged.increment(1)
                } else {
                    reloads.applied.increment(1)
                }
                self.metrics.reloaded.set(unix_seconds());
                loaded.iter().for_each(|line| stdout::say(format_args!("{line}")));
                changed.iter().for_each(|line| stdout::say(format_args!("reload: {line}")));
            }
            Err(failure) => {
                self.metrics.reloads.failed.increment(1);
                failure.message.lines().for_each(|line| stderr::say(format_args!("reload: {line}")));
            }
        }
        result
    }

    fn load(&mut self) -> Result<Done, Failure> {
        if self.shared.stage() != Stage::Serving {
            let message = "the gateway is draining; its next start reads the configuration";
            return Err(Failure::new(ExitCode::Unavailable, message));
        }
        // A line for each fault, with its place, and one for what follows.
        let failed = |error: &dyn fmt::Display| {
            Failure::new(ExitCode::Config, format!("{error}\nnothing has changed, the configuration is as it was"))
        };
        let loaded = config::load(&self.sources).map_err(|error| failed(&error))?;
        let running = self.shared.config();
        let (config, moved) = loaded.config.succeeding(&running).map_err(|error| failed(&error))?;
        preflight::check_descriptors(&config, self.shards).map_err(|error| failed(&error))?;
        let files = read_files(&config, &self.tls, &self.shared).map_err(|error| failed(&error))?;

        // Nothing can fail from here on.
        for warning in new_warnings(&running, &config) {
            stderr::say(format_args!("{warning}"));
        }
        let mut changed = changes(&self.newest, &loaded.settings);
        changed.extend(list_changes(&running, &config, &loaded.settings));
        let is_unchanged = changed.is_empty() && self.are_watched(&files);
        if is_unchanged {
            changed.push("nothing has changed".to_owned());
        }
        changed.extend(pending(&self.started, &loaded.settings, &moved));
        let (watched, loaded_files) = files.into_iter().map(Prepared::apply).unzip();
        self.watched = watched;
        self.newest = loaded.settings;
        let edition = if is_unchanged { self.shared.edition().number } else { self.apply(config) };
        Ok(Done { edition, loaded: loaded_files, changed, is_unchanged })
    }

    /// Whether these files are those in use, and have not changed.
    fn are_watched(&self, files: &[Prepared]) -> bool {
        let mut pairs = files.iter().zip(&self.watched);
        files.len() == self.watched.len() && pairs.all(|(file, watched)| file.watched.is_like(watched))
    }

    /// Has all go by this configuration from now on, and returns its number.
    fn apply(&self, config: Config) -> u64 {
        if config.users.is_none() {
            self.shared.set_users(None);
        }
        // Where there are no certificates any more, the last ones stay: sessions that were offered
        // STARTTLS may ask for it.
        log::set_level(config.log.level);
        let edition = self.shared.set_config(Arc::new(config));
        self.doorbells.values().for_each(Doorbell::tell);
        edition
    }
}

/// Waits until the shards go by this configuration; returns those that do not in time.
async fn await_shards(doorbells: &BTreeMap<usize, Doorbell>, edition: u64) -> Vec<usize> {
    let deadline = Instant::now() + Duration::from_millis(RELOAD_WAIT_MS);
    loop {
        let is_late = |bell: &Doorbell| bell.edition() < edition && bell.life() <= Life::Beating;
        let late: Vec<usize> = doorbells.iter().filter(|(_, bell)| is_late(bell)).map(|(&number, _)| number).collect();
        if late.is_empty() || Instant::now() >= deadline {
            return late;
        }
        sleep(Duration::from_millis(RELOAD_TICK_MS)).await;
    }
}

/// A line for each option that was given otherwise before.
fn changes(before: &Settings, now: &Settings) -> Vec<String> {
    let shown = |values: &[String]| if values.is_empty() { "none".to_owned() } else { values.join(", ") };
    let line = |Change { name, from, to }| format!("{name}: {} -> {}", shown(&from), shown(&to));
    before.changes(now).into_iter().map(line).collect()
}

/// A line for each list that a file is part of and that holds something else than before.
fn list_changes(before: &Config, now: &Config, settings: &Settings) -> Vec<String> {
    let is_given = |name: &str| settings.iter().any(|setting| setting.name == name && !setting.values.is_empty());
    let mut lines = Vec::new();
    let (domains, ranges) = (&now.accepted_domains, &now.blocked);
    if is_given("accept-domains-file") && !before.accepted_domains.iter().eq(domains.iter()) {
        lines.push(format!("accept-domains-file: {} domains -> {}", before.accepted_domains.len(), domains.len()));
    }
    if is_given("block-file") && before.blocked != *ranges {
        lines.push(format!("block-file: {} ranges -> {}", before.blocked.len(), ranges.len()));
    }
    lines
}

/// A line for each option that the process would follow if it were started again; `moved`: the
/// addresses that it would begin or cease to listen on.
fn pending(started: &Settings, now: &Settings, moved: &[SocketAddr]) -> Vec<String> {
    let changes = started.changes(now).into_iter().filter(|change| NEEDS_RESTART.contains(&change.name));
    let options = changes.map(|change| format!("{}: needs a restart", change.name));
    let addresses = moved.iter().map(|address| format!("listen: {address}: needs a restart"));
    addresses.chain(options).collect()
}

/// What is to be warned of now and was not before.
fn new_warnings(before: &Config, now: &Config) -> Vec<String> {
    let known = before.warnings();
    now.warnings().into_iter().filter(|warning| !known.contains(warning)).collect()
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;

    fn loaded(arguments: &[&str]) -> Loaded {
        let sources = Sources {
            arguments: arguments.iter().map(Into::into).collect(),
            environment: Vec::new(),
            machine_name: "host.example".to_owned(),
            read_file: |path| match path.to_str() {
                Some("two") => Ok("a.example\nb.example\n".to_owned()),
                Some("others") => Ok("a.example\nc.example\n".to_owned()),
                Some("range") => Ok("192.0.2.0/24\n".to_owned()),
                _ => Ok(String::new()),
            },
        };
        config::load(&sources).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    #[test]
    fn what_is_told_of_options() {
        let before = loaded(&["--max-connections=5000", "--accept-domain=a.example", "--shards=2"]).settings;
        let domains = ["--accept-domain=a.example", "--accept-domain=b.example"];
        let now = loaded(&["--max-connections=100", domains[0], domains[1], "--tarpit=1s"]).settings;
        let mut told = changes(&before, &now);
        told.sort();
        let expected = [
            "accept-domain: a.example -> a.example, b.example",
            "max-connections: 5000 -> 100",
            "shards: 2 -> none",
            "tarpit: 5s -> 1s",
        ];
        assert_eq!(told, expected);
        assert_eq!(pending(&before, &now, &[]), ["shards: needs a restart"]);
        let moved = [SocketAddr::from(([192, 0, 2, 1], 25))];
        assert_eq!(pending(&before, &before, &moved), ["listen: 192.0.2.1:25: needs a restart"]);
    }

    #[test]
    fn what_is_told_of_lists() {
        let (none, two, others) =
            ("--accept-domains-file=none", "--accept-domains-file=two", "--accept-domains-file=others");
        let (range, half) = ("--block-file=range", "--block=192.0.2.0/25");
        for (before, now, expected) in [
            (&[none][..], &[two][..], &["accept-domains-file: 0 domains -> 2"][..]),
            // As many, but others.
            (&[two], &[others], &["accept-domains-file: 2 domains -> 2"]),
            (&[two], &[two], &[]),
            (&["--accept-domain=a.example"], &[], &[]),
            (&[], &[range], &["block-file: 0 ranges -> 1"]),
            (&[half], &[half, range], &["block-file: 1 ranges -> 1"]),
        ] {
            let (before, now) = (loaded(before), loaded(now));
            assert_eq!(list_changes(&before.config, &now.config, &now.settings), expected);
        }
    }
}
