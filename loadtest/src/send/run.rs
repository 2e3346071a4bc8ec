//! The run that all lanes share: which message is next, and when it is over.
//!
//! Closed loop: a message is due as soon as a session is free, until all are taken, the time is up, or somebody stops
//! the run. An open loop would give each number a due time here and nowhere else. Everything is a plain atomic; besides
//! [`Run::claim`], once per message, only failures and new connections touch them.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Why a run ended before its messages or its time did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// A signal.
    Signal = 1,
    /// `--max-errors` or `--stop-on-error`.
    Errors = 2,
    /// `--give-up-after`.
    GivenUp = 3,
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Messages in all.
    pub messages: u64,
    /// No message begins after this long.
    pub duration: Option<Duration>,
    /// Refusals and errors allowed.
    pub errors: u64,
    /// Longest time without a session opened or a message accepted.
    pub give_up_after: Duration,
}

/// The state of a run.
#[derive(Debug)]
pub struct Run {
    limits: Limits,
    started: Instant,
    next: AtomicU64,
    errors: AtomicU64,
    stop: AtomicU8,
    /// Milliseconds from the start to the server's last sign of life.
    alive_ms: AtomicU64,
    accepted: AtomicU64,
}

impl Run {
    /// Starts the clock.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            started: Instant::now(),
            next: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            stop: AtomicU8::new(0),
            alive_ms: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
        }
    }

    /// The next message's number, if there is one.
    pub fn claim(&self, now: Instant) -> Option<u64> {
        if self.stopped().is_some() || self.limits.duration.is_some_and(|duration| now - self.started >= duration) {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.limits.messages).then_some(number)
    }

    /// Messages that have been claimed.
    pub fn claimed(&self) -> u64 {
        self.next.load(Ordering::Relaxed).min(self.limits.messages)
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Notes that a session was opened.
    pub fn note_opened(&self, now: Instant) {
        self.alive_ms.fetch_max(millis(now - self.started), Ordering::Relaxed);
    }

    /// Notes that a session could not be opened, and gives up when the server has not been alive for too long.
    pub fn note_unopened(&self, now: Instant) {
        let alive = Duration::from_millis(self.alive_ms.load(Ordering::Relaxed));
        if (now - self.started).saturating_sub(alive) >= self.limits.give_up_after {
            self.stop(Stop::GivenUp);
        }
    }

    /// Counts a refusal or an error.
    pub fn note_error(&self) {
        if self.errors.fetch_add(1, Ordering::Relaxed) + 1 >= self.limits.errors {
            self.stop(Stop::Errors);
        }
    }

    /// Adds to the count of accepted messages. They are a sign of life too: persistent sessions open no new ones.
    pub fn note_accepted(&self, messages: u64, now: Instant) {
        if messages > 0 {
            self.accepted.fetch_add(messages, Ordering::Relaxed);
            self.note_opened(now);
        }
    }

    /// Progress: accepted messages and errors so far, some milliseconds late.
    pub fn progress(&self) -> (u64, u64) {
        (self.accepted.load(Ordering::Relaxed), self.errors.load(Ordering::Relaxed))
    }

    /// Ends the run; the first reason stays.
    pub fn stop(&self, reason: Stop) {
        let _ = self.stop.compare_exchange(0, reason as u8, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Why the run was stopped, if it was.
    pub fn stopped(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Stop::Signal),
            2 => Some(Stop::Errors),
            _ => Some(Stop::GivenUp),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { messages: 3, duration: None, errors: 2, give_up_after: Duration::from_secs(2) };

    #[test]
    fn every_message_is_claimed_once() {
        let run = Run::new(LIMITS);
        let now = Instant::now();
        let claimed: Vec<_> = std::iter::from_fn(|| run.claim(now)).collect();
        assert_eq!(claimed, [0, 1, 2]);
        assert_eq!(run.claim(now), None);
        assert_eq!(run.claimed(), 3);
    }

    #[test]
    fn no_message_begins_after_the_time() {
        let run = Run::new(Limits { duration: Some(Duration::from_secs(10)), ..LIMITS });
        assert_eq!(run.claim(run.started + Duration::from_secs(9)), Some(0));
        assert_eq!(run.claim(run.started + Duration::from_secs(10)), None);
    }

    #[test]
    fn errors_and_silence_end_the_run_and_the_first_reason_stays() {
        let run = Run::new(LIMITS);
        run.note_error();
        assert_eq!(run.stopped(), None);
        run.note_error();
        run.stop(Stop::Signal);
        assert_eq!(run.stopped(), Some(Stop::Errors));
        assert_eq!(run.claim(run.started), None);

        let run = Run::new(LIMITS);
        run.note_opened(run.started + Duration::from_millis(400));
        run.note_accepted(1, run.started + Duration::from_millis(500));
        run.note_accepted(0, run.started + Duration::from_millis(900));
        run.note_unopened(run.started + Duration::from_millis(2_499));
        assert_eq!(run.stopped(), None);
        run.note_unopened(run.started + Duration::from_millis(2_500));
        assert_eq!(run.stopped(), Some(Stop::GivenUp));
    }
}
