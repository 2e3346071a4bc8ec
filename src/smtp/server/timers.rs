//! The one table of a session's timers. The driver arms one: the earliest.

use super::profile::Profile;
use crate::smtp::reply::Reply;
use std::time::Instant;

/// When things happened that timers count from.
#[derive(Debug)]
pub struct Timers {
    /// The TCP connection was established.
    connected_at: Instant,
    /// The last piece of input arrived, or the last reply that the server owed was given.
    active_at: Instant,
    /// The last piece of input arrived.
    read_at: Instant,
    /// Until when replies are held back (E17).
    held_until: Option<Instant>,
}

impl Timers {
    /// Timers of a connection that was established at `now`.
    pub fn new(now: Instant) -> Self {
        Timers { connected_at: now, active_at: now, read_at: now, held_until: None }
    }

    /// Input has arrived.
    pub fn input(&mut self, now: Instant) {
        self.active_at = now;
        self.read_at = now;
    }

    /// A reply was given that the server owed: the client's silence begins here.
    pub fn answered(&mut self, now: Instant) {
        self.active_at = now;
    }

    /// Replies to what was read last are held back.
    pub fn hold(&mut self, profile: &Profile) {
        self.held_until = profile.tarpit.map(|tarpit| self.read_at + tarpit);
    }

    /// Until when replies are held back.
    pub fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// Held replies may leave.
    pub fn release(&mut self, now: Instant) {
        self.held_until = None;
        self.active_at = now;
    }

    /// When one of the session's two timers runs out next.
    pub fn deadline(&self, profile: &Profile) -> Option<Instant> {
        let connection = profile.connection_timeout.map(|timeout| self.connected_at + timeout);
        let inactivity = profile.inactivity_timeout.map(|timeout| self.active_at + timeout);
        match (connection, inactivity) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// Whether the session has lasted too long.
    pub fn connection_expired(&self, profile: &Profile, now: Instant) -> bool {
        profile.connection_timeout.is_some_and(|timeout| self.connected_at + timeout <= now)
    }

    /// What is said when a timer has run out at `now`.
    ///
    //= [MS-OXSMTP] 3.2.6 ConnectionTimeOut, ConnectionInactivityTimeOut
    pub fn expired(&self, profile: &Profile, now: Instant) -> Option<Reply> {
        if self.connection_expired(profile, now) {
            Some(Reply::ConnectionTimedOut)
        } else if self.deadline(profile).is_some_and(|deadline| deadline <= now) {
            Some(Reply::InactivityTimedOut)
        } else {
            None
        }
    }
}
