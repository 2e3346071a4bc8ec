//! What a session tells as it goes, for counts and the log.

use super::{Session, State};
use crate::smtp::command::Verb;
use crate::smtp::reply::{self, Reply};
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

/// Hears what the sessions of a binding read and say, at the moment that they do.
pub trait Observer: fmt::Debug {
    /// A command was read.
    fn command(&self, verb: Verb);
    /// A reply with this code was said.
    fn reply(&self, code: u16);
    /// That reply refuses something. The session is still as it was when it came to that: its envelope,
    /// the recipient at hand, the content that was read.
    fn refusal(&self, session: &Session, reply: Reply);
}

/// What an observer may ask of a session, and what is told to it.
impl Session {
    /// Tells `observer` from now on what it reads and says, and of its banner. `number` tells the session
    /// from others.
    pub fn observe(&mut self, number: u64, observer: Rc<dyn Observer>) {
        self.number = number;
        self.observer = Some(observer);
        self.observe_reply(reply::BANNER_CODE);
    }

    /// The client's address, canonical.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The reply that has ended it.
    pub fn last_reply(&self) -> Option<Reply> {
        self.last
    }

    /// The reverse-path of the transaction; empty for the null one.
    pub fn reverse_path(&self) -> Option<&[u8]> {
        match &self.state {
            State::Mail(envelope)
            | State::Recipients(envelope)
            | State::SenderPending(envelope)
            | State::RecipientPending { envelope, .. }
            | State::Data(envelope, _)
            | State::Chunks(envelope, _)
            | State::ChunkFailed(envelope)
            | State::Committing(envelope, _) => Some(envelope.reverse_path()),
            State::Idle
            | State::Handshake
            | State::Auth(_)
            | State::ChallengePending(_)
            | State::LogonPending
            | State::Closed => None,
        }
    }

    /// The recipient that is being judged.
    pub fn recipient_at_hand(&self) -> Option<&[u8]> {
        match &self.state {
            State::RecipientPending { envelope, added: true } => envelope.last_recipient(),
            _ => None,
        }
    }

    /// Octets of content that were read of the message at hand.
    pub fn content_octets(&self) -> Option<u64> {
        match &self.state {
            State::Data(_, content) | State::Chunks(_, content) => Some(content.octets()),
            State::Committing(_, complete) => Some(complete.octets),
            _ => None,
        }
    }

    pub(super) fn observe_command(&self, verb: Verb) {
        if let Some(observer) = &self.observer {
            observer.command(verb);
        }
    }

    pub(super) fn observe_reply(&self, code: u16) {
        if let Some(observer) = &self.observer {
            observer.reply(code);
        }
    }

    /// Tells of a reply of the table, before what follows from it.
    pub(super) fn observe_row(&self, reply: Reply) {
        let Some(observer) = &self.observer else { return };
        observer.reply(reply.code());
        if reply.row().reason.is_some() {
            observer.refusal(self, reply);
        }
    }
}
