//! What wakes a shard from any thread, and what shows other threads that it lives.
//!
//! Four kinds of waking share one eventfd. A ring is news for everybody: all tasks that wait for a
//! socket look up. A call is news for one of them. What is told is news for the shard itself, whoever
//! waits in `Net::bell`: there is another configuration. Being asked for a beat is news for nobody: the
//! dispatcher counts it and goes back to its park, so that a watched shard with thousands of idle
//! sessions costs two system calls a turn, not thousands of wakeups. A beat is proof of the whole way:
//! eventfd, epoll, ring, executor, dispatcher.

use crate::limits::CALLS_MAX;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The stages of a shard's life, in order; there is no way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    /// It does not serve yet.
    Starting = 0,
    /// It serves: who asks gets a beat.
    Beating = 1,
    /// It has drained and ends: no more beats are due.
    Leaving = 2,
    /// Its thread has ended as it should.
    Ended = 3,
    /// Its thread has ended by a defect.
    Failed = 4,
}

/// Wakes a shard from any thread.
#[derive(Clone, Debug)]
pub struct Doorbell(Arc<Bell>);

#[derive(Debug)]
struct Bell {
    eventfd: OwnedFd,
    /// It was rung, not only asked for a beat.
    rung: AtomicBool,
    /// The shard itself was told to look up.
    told: AtomicBool,
    calls: Calls,
    beats: AtomicU32,
    /// The number of the configuration that its shard goes by.
    edition: AtomicU64,
    life: AtomicU8,
    /// The shard has closed its listening sockets.
    closed: AtomicBool,
    #[cfg(feature = "fault-injection")]
    fault: super::fault::Order,
}

impl Doorbell {
    /// A doorbell nobody hears yet.
    pub fn new() -> io::Result<Self> {
        Ok(Doorbell(Arc::new(Bell {
            eventfd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            rung: AtomicBool::new(false),
            told: AtomicBool::new(false),
            calls: Calls::default(),
            beats: AtomicU32::new(0),
            edition: AtomicU64::new(0),
            life: AtomicU8::new(Life::Starting as u8),
            closed: AtomicBool::new(false),
            #[cfg(feature = "fault-injection")]
            fault: super::fault::Order::default(),
        })))
    }

    /// Wakes the shard: every task that waits for a socket gets `Ready::Bell`
    /// once, and `Net::bell` returns.
    pub fn ring(&self) {
        self.0.rung.store(true, Ordering::Release);
        self.ask();
    }

    /// Tells the shard itself that there is news: `Net::bell` returns, and no session is woken.
    pub fn tell(&self) {
        self.0.told.store(true, Ordering::Release);
        self.ask();
    }

    /// Whether it was told; to be asked after [`Self::hear`].
    pub(super) fn take_told(&self) -> bool {
        self.0.told.swap(false, Ordering::AcqRel)
    }

    /// Wakes the task that this token stands for.
    pub(super) fn call(&self, token: u64) {
        if self.0.calls.add(token) { self.ask() } else { self.ring() }
    }

    /// Who was called; to be asked after [`Self::hear`].
    pub(super) fn take_calls(&self) -> Vec<u64> {
        self.0.calls.take()
    }

    /// Asks for a beat; no task is woken.
    pub fn ask(&self) {
        // Fails only when the counter is full, and then it is ringing already.
        let _ = write(&self.0.eventfd, &1_u64.to_ne_bytes());
    }

    /// Counts a beat and takes what was rung; false when nobody is to be woken.
    pub fn hear(&self) -> bool {
        // Read first: what is rung from here on makes the eventfd readable again.
        let _ = read(&self.0.eventfd, &mut [0; 8]);
        self.0.beats.fetch_add(1, Ordering::Release);
        #[cfg(feature = "fault-injection")]
        self.0.fault.obey();
        self.0.rung.swap(false, Ordering::AcqRel)
    }

    /// How often it was heard; wraps around.
    pub fn beats(&self) -> u32 {
        self.0.beats.load(Ordering::Acquire)
    }

    /// The stage of its shard's life.
    pub fn life(&self) -> Life {
        match self.0.life.load(Ordering::Acquire) {
            0 => Life::Starting,
            1 => Life::Beating,
            2 => Life::Leaving,
            3 => Life::Ended,
            _ => Life::Failed,
        }
    }

    /// Its shard enters a stage.
    pub fn enter(&self, life: Life) {
        self.0.life.fetch_max(life as u8, Ordering::AcqRel);
    }

    /// The number of the configuration that connections its shard accepts from now on begin with.
    pub fn edition(&self) -> u64 {
        self.0.edition.load(Ordering::Acquire)
    }

    /// Its shard goes by this one from now on.
    pub fn took(&self, edition: u64) {
        self.0.edition.store(edition, Ordering::Release);
    }

    /// Whether its shard has closed its listening sockets.
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Its shard has closed its listening sockets.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
    }

    /// Makes its shard suffer a fault.
    #[cfg(feature = "fault-injection")]
    pub fn inject(&self, fault: super::fault::Fault) {
        self.0.fault.give(fault);
        self.ask();
    }
}

/// Tokens of tasks that are called. No lock: who calls may be a thread of low priority, and a shard
/// that waited for it to be scheduled would stand still (seen: for seconds, on a busy machine).
#[derive(Debug)]
struct Calls {
    /// 0 is none.
    tokens: [AtomicU64; CALLS_MAX],
    /// There are some: the shard does not look otherwise.
    some: AtomicBool,
}

impl Default for Calls {
    fn default() -> Self {
        Calls { tokens: [const { AtomicU64::new(0) }; CALLS_MAX], some: AtomicBool::new(false) }
    }
}

impl Calls {
    /// False: there is no place for one more.
    fn add(&self, token: u64) -> bool {
        // No slot has the token that would overflow: it is another's in the epoll.
        let taken = token.wrapping_add(1);
        let free = |place: &AtomicU64| place.compare_exchange(0, taken, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let added = self.tokens.iter().any(free);
        self.some.store(true, Ordering::Release);
        added
    }

    fn take(&self) -> Vec<u64> {
        if !self.some.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        let tokens = self.tokens.iter().map(|place| place.swap(0, Ordering::AcqRel));
        tokens.filter(|&taken| taken != 0).map(|taken| taken.wrapping_sub(1)).collect()
    }
}

impl AsFd for Doorbell {
    /// Readable while it was rung or asked and has not been heard.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.eventfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_wakes_nobody() {
        let bell = Doorbell::new().expect("an eventfd");
        bell.ask();
        assert!(!bell.hear());
        bell.ring();
        bell.ask();
        assert!(bell.hear() && !bell.hear());
        assert_eq!(bell.beats(), 3);
    }

    #[test]
    fn telling_wakes_no_session() {
        let bell = Doorbell::new().expect("an eventfd");
        bell.tell();
        assert!(!bell.hear());
        assert!(bell.take_told() && !bell.take_told());
    }

    #[test]
    fn a_call_is_for_one() {
        let bell = Doorbell::new().expect("an eventfd");
        assert!(bell.take_calls().is_empty());
        bell.call(7);
        bell.call(8);
        assert!(!bell.hear());
        assert_eq!((bell.take_calls(), bell.take_calls()), (vec![7, 8], vec![]));
        // Where there is no place for one more, all are woken.
        let tokens = 0..CALLS_MAX as u64;
        tokens.clone().for_each(|token| bell.call(token));
        assert!(!bell.hear());
        bell.call(9);
        assert!(bell.hear());
        assert!(bell.take_calls().into_iter().eq(tokens));
    }

    #[test]
    fn life_goes_one_way() {
        let bell = Doorbell::new().expect("an eventfd");
        let stages = [Life::Starting, Life::Beating, Life::Leaving, Life::Ended, Life::Failed];
        for stage in stages {
            bell.enter(stage);
            bell.enter(Life::Starting);
            assert_eq!(bell.life(), stage);
        }
    }
}
