//! The watchdog: a thread of its own that answers for shards that do not.
//!
//! It asks every shard for beats through its doorbell. One that owes a beat for a second is
//! stalled: the watchdog, which holds duplicates of all listening sockets, accepts on that shard's
//! and answers E9, until the shard beats again; the shard's epoll has nothing armed in the ring
//! that would take a connection meanwhile. The same where a shard's thread has ended by a defect,
//! for as long as the process lives. A shard that owes a beat for half a minute is reported to the
//! [supervisor](super::supervisor), which lets the others drain.
//!
//! It does nothing but look at atomics, poll, accept, write and read. On failure: a connection
//! that cannot be answered is closed; without descriptors or memory it pauses; should it panic, the
//! process drains and ends. That it did not run for a while is no shard's fault.

mod pulse;

use super::supervisor::News;
use crate::config::{Binding, Tls};
use crate::limits::{
    ACCEPT_BATCH_MAX, ACCEPT_PAUSE_MS, ENDING_MAX_MS, LINGER_MAX_MS, WATCHDOG_ASK_MS, WATCHDOG_DRAIN_TICK_MS,
    WATCHDOG_GIVE_UP_MS, WATCHDOG_LATE_MS, WATCHDOG_LINGERING_MAX,
};
use crate::log;
use crate::metrics::WatchdogMetrics;
use crate::policy::canonical;
use crate::shard::{Doorbell, Life, Origin, Records, Shared, Stage};
use crate::smtp::reply::Reply;
use crate::stderr::say;
use pulse::{Finding, Look, Pulse};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

/// What the watchdog is started with.
#[derive(Debug)]
pub struct Watchdog {
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// Wakes it when the stage of the process's life changes or a shard has ended.
    pub doorbell: Doorbell,
    /// The shards.
    pub wards: Vec<Ward>,
    /// Where it reports shards that it gives up.
    pub news: Sender<News>,
}

/// A shard as the watchdog sees it.
#[derive(Debug)]
pub struct Ward {
    number: usize,
    doorbell: Doorbell,
    listeners: Vec<TcpListener>,
    pulse: Option<Pulse>,
}

impl Ward {
    /// The shard with this number and doorbell, and duplicates of its listening sockets.
    pub fn new(number: usize, doorbell: Doorbell, listeners: Vec<TcpListener>) -> Self {
        Ward { number, doorbell, listeners, pulse: None }
    }

    /// Whether its connections are the watchdog's to answer.
    fn is_refused(&self) -> bool {
        match self.doorbell.life() {
            Life::Failed => true,
            Life::Beating => self.pulse.is_some_and(|pulse| pulse.is_stalled()),
            Life::Starting | Life::Leaving | Life::Ended => false,
        }
    }

    /// Whether it has closed its own listening sockets, so that the duplicates are to go too.
    fn is_closed(&self) -> bool {
        let life = self.doorbell.life();
        self.doorbell.is_closed() && life != Life::Failed || matches!(life, Life::Leaving | Life::Ended)
    }
}

/// An answered connection, until its peer ends it.
#[derive(Debug)]
struct Lingering {
    stream: TcpStream,
    until_ms: u64,
}

/// The watchdog at work.
struct Watch {
    watchdog: Watchdog,
    metrics: WatchdogMetrics,
    records: Records,
    epoch: Instant,
    now_ms: u64,
    lingering: Vec<Lingering>,
    /// No descriptors: nothing is accepted before.
    paused_until_ms: u64,
}

impl Watchdog {
    /// Watches until the process ends.
    pub fn run(self, log: log::Sender) -> ! {
        let mut watch = Watch {
            watchdog: self,
            metrics: WatchdogMetrics::new(),
            records: Records::new(log),
            epoch: Instant::now(),
            now_ms: 0,
            lingering: Vec::with_capacity(WATCHDOG_LINGERING_MAX),
            paused_until_ms: 0,
        };
        let mut planned_ms = 0;
        loop {
            watch.now_ms = watch.epoch.elapsed().as_millis() as u64;
            let late_ms = watch.now_ms.saturating_sub(planned_ms);
            watch.look(if late_ms > WATCHDOG_LATE_MS { late_ms } else { 0 });
            watch.answer();
            watch.drain();
            planned_ms = watch.next_look_ms();
            watch.wait(Duration::from_millis(planned_ms - watch.now_ms));
        }
    }
}

impl Watch {
    /// Looks at every shard.
    fn look(&mut self, late_ms: u64) {
        let give_up_ms = match self.watchdog.shared.stage() {
            Stage::Serving | Stage::Draining => WATCHDOG_GIVE_UP_MS,
            Stage::Ending => ENDING_MAX_MS,
        };
        let now_ms = self.now_ms;
        for ward in &mut self.watchdog.wards {
            if ward.doorbell.life() != Life::Beating {
                continue;
            }
            let beats = ward.doorbell.beats();
            let pulse = ward.pulse.get_or_insert_with(|| Pulse::new(now_ms, beats));
            let number = ward.number;
            match pulse.look(Look { now_ms, late_ms, beats, give_up_ms }) {
                Finding::Nothing => {}
                Finding::Ask => ward.doorbell.ask(),
                Finding::Stalled => {
                    self.metrics.shard_stalls.increment(1);
                    say(format_args!("shard {number} does not answer: its new connections are refused until it does"));
                }
                Finding::Recovered { after_ms } => {
                    say(format_args!("shard {number} answers again, after {}", seconds(after_ms)));
                }
                // The receiver lives as long as the process.
                Finding::GivenUp { after_ms } => {
                    let _ = self.watchdog.news.send(News::GivenUp(number, seconds(after_ms)));
                }
            }
        }
    }

    /// Answers what waits for shards that do not; lets go of the listeners of those that have
    /// closed theirs.
    fn answer(&mut self) {
        if self.now_ms < self.paused_until_ms {
            return;
        }
        for index in 0..self.watchdog.wards.len() {
            let ward = &self.watchdog.wards[index];
            if ward.is_closed() && !ward.listeners.is_empty() {
                // What came after the shard had closed, and before this: nobody else has it.
                let listeners = std::mem::take(&mut self.watchdog.wards[index].listeners);
                self.accept_all(&listeners, Reply::ShuttingDown);
            } else if ward.is_refused() {
                let listeners = std::mem::take(&mut self.watchdog.wards[index].listeners);
                self.accept_all(&listeners, Reply::ConnectionDropped);
                self.watchdog.wards[index].listeners = listeners;
            }
        }
    }

    /// Answers some of what waits on a shard's listeners; what is left makes them ready again.
    fn accept_all(&mut self, listeners: &[TcpListener], reply: Reply) {
        let config = self.watchdog.shared.config();
        for (listener, binding) in listeners.iter().zip(&config.bindings) {
            self.accept(listener, binding, reply);
        }
    }

    /// Who begins with TLS would take a reply for a broken record, and is closed without one: the
    /// watchdog keeps no keys.
    fn accept(&mut self, listener: &TcpListener, binding: &Binding, reply: Reply) {
        for _ in 0..ACCEPT_BATCH_MAX {
            match listener.accept() {
                Ok((stream, client)) => {
                    let client = canonical(client.ip());
                    self.metrics.count_refused_connection(reply);
                    let listener = binding.address.to_string();
                    let origin = Origin { listener: &listener, proxy: None };
                    self.records.refused_connection(origin, client, reply);
                    if binding.tls != Some(Tls::Implicit) {
                        self.refuse(stream, client, reply);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => {
                    self.paused_until_ms = self.now_ms + ACCEPT_PAUSE_MS;
                    return;
                }
            }
        }
    }

    /// Answers in place of the banner. The socket is new: the reply fits into its buffer.
    fn refuse(&mut self, mut stream: TcpStream, client: IpAddr, reply: Reply) {
        let mut line = Vec::with_capacity(64);
        reply.write(&mut line, client);
        // A peer that is gone already needs no reply.
        let answered = stream.set_nonblocking(true).is_ok()
            && stream.write(&line).is_ok()
            && stream.shutdown(Shutdown::Write).is_ok();
        // Closing at once might reset the connection, and the reply might be lost with it.
        if answered && self.lingering.len() < WATCHDOG_LINGERING_MAX {
            self.lingering.push(Lingering { stream, until_ms: self.now_ms + LINGER_MAX_MS });
        }
    }

    /// Reads what answered peers still send, and closes those that have ended or had their time.
    fn drain(&mut self) {
        let now_ms = self.now_ms;
        self.lingering.retain_mut(|lingering| now_ms < lingering.until_ms && is_open(&mut lingering.stream));
    }

    fn next_look_ms(&self) -> u64 {
        let now_ms = self.now_ms;
        let wards = &self.watchdog.wards;
        let looks = wards.iter().filter(|ward| ward.doorbell.life() == Life::Beating).filter_map(|ward| ward.pulse);
        let looks = looks.map(|pulse| pulse.next_look_ms(now_ms));
        let ends = self.lingering.iter().map(|lingering| lingering.until_ms);
        let pause = (self.paused_until_ms > now_ms).then_some(self.paused_until_ms);
        let next_ms = looks.chain(ends).chain(pause).min().unwrap_or(u64::MAX);
        let closing = self.watchdog.shared.stage() != Stage::Serving
            && wards.iter().any(|ward| !ward.listeners.is_empty() && !ward.is_refused());
        let starting = wards.iter().any(|ward| ward.doorbell.life() == Life::Starting);
        let latest_ms = if closing || starting { WATCHDOG_DRAIN_TICK_MS } else { WATCHDOG_ASK_MS };
        next_ms.min(now_ms + latest_ms)
    }

    /// Waits for a connection to answer, for one that ends, for the doorbell, at most this long.
    fn wait(&self, timeout: Duration) {
        let bell = &self.watchdog.doorbell;
        let mut fds = vec![PollFd::new(bell, PollFlags::IN)];
        if self.now_ms >= self.paused_until_ms {
            let refused = self.watchdog.wards.iter().filter(|ward| ward.is_refused());
            fds.extend(refused.flat_map(|ward| &ward.listeners).map(|it| PollFd::new(it, PollFlags::IN)));
        }
        fds.extend(self.lingering.iter().map(|lingering| PollFd::new(&lingering.stream, PollFlags::IN)));
        let timeout_spec = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        match poll(&mut fds, Some(&timeout_spec)) {
            Ok(_) if !fds[0].revents().is_empty() => _ = bell.hear(),
            Ok(_) | Err(Errno::INTR) => {}
            // No memory.
            Err(_) => thread::sleep(timeout),
        }
    }
}

/// Whether accept failed for one connection only, so that the next may be taken.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset)
}

/// Reads what is there; false when the peer has ended or the connection is broken.
fn is_open(stream: &mut TcpStream) -> bool {
    let mut scratch = [0; 4096];
    // A peer that sends faster than this loop reads waits for the next turn.
    for _ in 0..16 {
        match stream.read(&mut scratch) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
    true
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}
