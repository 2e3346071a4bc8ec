//! The control thread: signals, the metrics endpoint, the admin socket, next hops' names,
//! DNS block lists, watermarks, the configuration when it is loaded again, files that change; the watchdog; the users
//! file; who recovers the spool, starts the shards and waits for them; what happens before any thread runs; and what
//! `check` finds.
//!
//! Runs tokio's single-threaded executor, so that nothing here ever takes a shard's time. Speaks
//! to the shards through [`Shared`] and their doorbells. On failure: a broken scrape connection
//! ends alone; a signal handler that cannot be installed ends the process before it serves.

pub mod admin;
pub mod check;
mod dnsbl;
mod endpoint;
pub mod logons;
mod memory;
pub mod next_hops;
pub mod preflight;
pub mod recovery;
pub mod reload;
mod resolver;
pub mod resources;
pub mod shards;
pub mod supervisor;
pub mod tls;
pub mod users_file;
pub mod watchdog;
pub mod watched;

use crate::config::Host;
use crate::limits::{BLOCKS_SWEEP_MS, METRICS_UPKEEP_MS};
use crate::shard::{Doorbell, Lookups, Shared, Stage};
use crate::stdout;
use metrics_exporter_prometheus::PrometheusHandle;
use reload::{Reloader, Reloads};
use resources::Resources;
use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

/// What the control thread is started with.
pub struct Control {
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// The shards' doorbells, by their numbers.
    pub doorbells: BTreeMap<usize, Doorbell>,
    /// The watchdog's doorbell.
    pub watchdog: Doorbell,
    /// Begins the drain: a shard has failed.
    pub drain: Arc<Notify>,
    /// The metrics endpoint's socket.
    pub metrics_listener: Option<TcpListener>,
    /// The admin socket.
    pub admin_listener: Option<UnixListener>,
    /// Clients that the shards want looked up.
    pub lookups: Arc<Lookups>,
    /// Disk and memory.
    pub resources: Resources,
    /// Renders the metrics.
    pub recorder: PrometheusHandle,
    /// Loads the configuration again.
    pub reloader: Reloader,
}

impl Control {
    /// Serves until the process ends. `started` is called once signals are handled.
    pub fn run(self, started: impl FnOnce()) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let terminate = signal(SignalKind::terminate())?;
            let interrupt = signal(SignalKind::interrupt())?;
            let hangup = signal(SignalKind::hangup())?;
            started();
            if let Some(listener) = self.metrics_listener {
                tokio::spawn(endpoint::serve(listener, self.recorder.clone(), self.shared.clone()));
            }
            let (reloads, requests) = Reloads::new();
            let commands = Arc::new(admin::Commands {
                shared: self.shared.clone(),
                reloads,
                #[cfg(feature = "fault-injection")]
                doorbells: self.doorbells.clone(),
            });
            if let Some(listener) = self.admin_listener {
                tokio::spawn(admin::serve(listener, commands.clone()));
            }
            tokio::spawn(sweep(commands));
            tokio::spawn(self.reloader.run(hangup, requests));
            tokio::spawn(dnsbl::serve(self.lookups, self.shared.config().resolvers.clone()));
            tokio::spawn(self.resources.watch());
            tokio::spawn(upkeep(self.recorder));
            for (index, next_hop) in self.shared.config().delivery.next_hops.iter().enumerate() {
                if let Host::Name(name) = &next_hop.address.host {
                    let port = next_hop.address.port;
                    tokio::spawn(resolver::resolve(self.shared.clone(), index, name.clone(), port));
                }
            }
            let drain = Drain {
                terminate,
                interrupt,
                fault: self.drain,
                shared: &self.shared,
                bells: self.doorbells.values().chain([&self.watchdog]).collect(),
            };
            drain.run().await;
            // The main thread ends the process when the shards have ended.
            std::future::pending().await
        })
    }
}

/// How the process comes to its end.
struct Drain<'a> {
    terminate: Signal,
    interrupt: Signal,
    fault: Arc<Notify>,
    shared: &'a Shared,
    bells: Vec<&'a Doorbell>,
}

impl Drain<'_> {
    /// Waits for a signal or a fault, then lets the shards drain; a second signal, or the time
    /// limit, ends the wait.
    async fn run(mut self) {
        let mut signals = 0;
        let fault = self.fault.clone();
        tokio::select! {
            () = self.signalled() => signals += 1,
            () = fault.notified() => {}
        }
        let timeout = self.shared.config().drain_timeout;
        stdout::say(format_args!("draining: transactions may go on for {}", humantime::format_duration(timeout)));
        self.enter(Stage::Draining);
        let signalled_again = async {
            while signals < 2 {
                self.signalled().await;
                signals += 1;
            }
        };
        // The time is up, or somebody was told twice.
        let _ = tokio::time::timeout(timeout, signalled_again).await;
        self.enter(Stage::Ending);
    }

    async fn signalled(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    fn enter(&self, stage: Stage) {
        self.shared.enter(stage);
        self.bells.iter().for_each(|bell| bell.ring());
    }
}

/// Histograms gather samples until they are rendered or tidied.
async fn upkeep(recorder: PrometheusHandle) {
    let mut ticks = interval(Duration::from_millis(METRICS_UPKEEP_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        recorder.run_upkeep();
    }
}

/// Ranges whose time is over must not be kept by a list that nobody changes.
async fn sweep(commands: Arc<admin::Commands>) {
    let mut ticks = interval(Duration::from_millis(BLOCKS_SWEEP_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        commands.sweep_blocks();
    }
}
