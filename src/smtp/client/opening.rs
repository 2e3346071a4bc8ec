//! From the greeting to the first transaction: EHLO, STARTTLS, EHLO again, AUTH.
//!
//! With [`StartTls::Always`], nothing but EHLO, STARTTLS and QUIT is said before TLS is up: no HELO
//! either, since behind it nothing is offered.

use super::failure::Cause;
use super::logon::{Exchange, Logon};
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
    /// AUTH, after it; what does not accept it is of no use.
    pub logon: Option<Logon>,
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
        let needs_tls = self.channel == Channel::Clear && self.wants.starttls == StartTls::Always;
        !needs_tls && self.wants.logon.is_none()
    }

    /// The hello was answered.
    pub(super) fn hello_answered(&mut self) -> Option<Step> {
        if self.channel != Channel::Clear {
            return self.log_on();
        }
        match self.wants.starttls {
            StartTls::Never => self.log_on(),
            StartTls::IfOffered | StartTls::Always if self.capabilities.starttls => {
                self.output.say(b"STARTTLS\r\n");
                self.state = State::StartTls;
                None
            }
            StartTls::IfOffered => self.log_on(),
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
            Some(_) => self.log_on(),
        }
    }

    fn log_on(&mut self) -> Option<Step> {
        let Some(logon) = &self.wants.logon else { return self.ready() };
        match Exchange::begin(logon, self.channel, self.capabilities.auth, None) {
            Some(exchange) => self.say_auth(exchange),
            None => Some(self.failed(Cause::NoMechanism)),
        }
    }

    fn say_auth(&mut self, exchange: Exchange) -> Option<Step> {
        self.output.say_secret(exchange.line());
        self.state = State::Auth(Box::new(exchange));
        None
    }

    /// The reply to AUTH or to an answer in its exchange.
    pub(super) fn auth_answered(&mut self, code: u16, text: &[u8]) -> Option<Step> {
        let is_sent = self.output().is_empty();
        let (State::Auth(exchange), Some(logon)) = (&mut self.state, &self.wants.logon) else { return None };
        let cause = match code {
            // What is not sent yet cannot have been answered.
            _ if !is_sent => Cause::Garbage,
            400.. if exchange.is_cancelled() => Cause::Challenge,
            400.. => {
                let answer = exchange.shown(logon, code, text);
                if Exchange::is_of_mechanism(code, text)
                    && let Some(next) = Exchange::begin(logon, self.channel, self.capabilities.auth, Some(exchange))
                {
                    return self.say_auth(next);
                }
                Cause::Refused(Rc::new(answer))
            }
            334 if !exchange.is_cancelled() => {
                exchange.challenge(logon, text);
                self.output.say_secret(exchange.line());
                return None;
            }
            235 if exchange.may_succeed() => {
                self.logged_on = Some(exchange.mechanism);
                return self.ready();
            }
            _ => Cause::Garbage,
        };
        Some(self.failed(cause))
    }

    fn ready(&mut self) -> Option<Step> {
        self.state = State::Ready;
        Some(Step::Ready)
    }
}
