//! From the greeting to the first transaction: EHLO, STARTTLS, EHLO again.
//!
//! With [`StartTls::Always`], nothing but EHLO, STARTTLS and QUIT is said before TLS is up: no HELO
//! either, since behind it nothing is offered.

use super::failure::Cause;
use super::reply::Answer;
use super::{Capabilities, Session, State, Step};
use std::rc::Rc;
use std::time::Instant;

/// When a session says STARTTLS (RFC 3207).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartTls {
    /// Never.
    #[default]
    Never,
    /// Where it is offered: it is not known whom the session talks to (RFC 7435).
    IfOffered,
    /// Before anything else; what does not offer it is of no use. The driver verifies whom it
    /// talks to.
    Always,
}

/// What a session asks of the next hop before the first transaction.
#[derive(Clone, Debug, Default)]
pub struct Wants {
    /// TLS.
    pub starttls: StartTls,
}

/// What protects the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// Nothing.
    Clear,
    /// TLS with somebody.
    Unverified,
    /// TLS with the next hop.
    Verified,
}

impl Session {
    /// TLS is up, after [`Step::StartTls`]: what was known of the next hop is forgotten, and EHLO
    /// said again. A handshake that fails is the driver's to tell; the connection is to be dropped.
    //= RFC 3207 section 4.2
    pub fn handle_tls(&mut self, now: Instant) {
        if !matches!(self.state, State::Handshake) {
            return;
        }
        self.since = now;
        self.channel = match self.wants.starttls {
            StartTls::Always => Channel::Verified,
            StartTls::Never | StartTls::IfOffered => Channel::Unverified,
        };
        self.say_hello("EHLO", State::Ehlo);
    }

    /// Says EHLO or HELO.
    pub(super) fn say_hello(&mut self, verb: &str, next: State) -> Option<Step> {
        self.capabilities = Capabilities::default();
        self.output.say(format!("{verb} {}\r\n", self.hostname).as_bytes());
        self.state = next;
        None
    }

    /// Whether a next hop that knows no EHLO is of use.
    pub(super) fn may_say_helo(&self) -> bool {
        self.channel != Channel::Clear || self.wants.starttls != StartTls::Always
    }

    /// The hello was answered.
    pub(super) fn hello_answered(&mut self) -> Option<Step> {
        if self.channel != Channel::Clear {
            return self.opened();
        }
        match self.wants.starttls {
            StartTls::Never => self.opened(),
            StartTls::IfOffered | StartTls::Always if self.capabilities.starttls => {
                self.output.say(b"STARTTLS\r\n");
                self.state = State::StartTls;
                None
            }
            StartTls::IfOffered => self.opened(),
            StartTls::Always => Some(self.failed(Cause::NoTls)),
        }
    }

    /// The reply to STARTTLS, which does not end the session.
    pub(super) fn starttls_answered(&mut self, code: u16, refusal: Option<Rc<Answer>>) -> Option<Step> {
        match refusal {
            // What is not sent yet cannot have been answered.
            _ if !self.output().is_empty() => Some(self.failed(Cause::Garbage)),
            None if code == 220 => {
                self.state = State::Handshake;
                Some(Step::StartTls)
            }
            None => Some(self.failed(Cause::Garbage)),
            Some(answer) if self.wants.starttls == StartTls::Always => Some(self.failed(Cause::Refused(answer))),
            Some(_) => self.opened(),
        }
    }

    fn opened(&mut self) -> Option<Step> {
        self.state = State::Ready;
        Some(Step::Ready)
    }
}
