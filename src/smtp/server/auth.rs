//! STARTTLS and AUTH: RFC 3207, RFC 4954; CONFORMANCE F, G5.
//!
//! The session speaks the mechanisms' dialogue. Who somebody is it does not know: what a client has
//! proved of itself is a [`Logon`], which the driver judges ([`Step::Authenticate`](super::Step::Authenticate)). Whatever is wrong
//! with a proof, the driver judges it too, so that all failures take one way.

use super::{Session, State};
use crate::smtp::command::{Verb, words};
use crate::smtp::header::TlsParameters;
use crate::smtp::reply::{self, Reply};
use crate::smtp::sasl::{self, Mechanism, Mechanisms, Password, login, ntlm, plain};
use std::time::Instant;
use zeroize::Zeroizing;

/// What a line of the exchange stands for. It may hold a password.
type Message = Zeroizing<Vec<u8>>;

/// What the client says next in its exchange.
#[derive(Debug)]
pub(super) enum Exchange {
    /// NTLM's first message.
    Negotiate,
    /// Its answer to the challenge.
    Ntlm(ntlm::ServerExchange),
    /// PLAIN's only message.
    Plain,
    /// LOGIN's name.
    LoginName,
    /// LOGIN's password.
    LoginPassword(login::ServerExchange),
}

/// Who a client says it is, and its proof.
#[derive(Debug)]
pub enum Logon {
    /// A password, of PLAIN or LOGIN.
    Password(Mechanism, Password),
    /// An answer to a challenge.
    Ntlm(Box<ntlm::Logon>),
    /// A message of this mechanism that proves nothing: it must be refused.
    Malformed(Mechanism),
}

impl Logon {
    fn plain(password: Password) -> Self {
        Logon::Password(Mechanism::Plain, password)
    }

    fn login(password: Password) -> Self {
        Logon::Password(Mechanism::Login, password)
    }

    fn ntlm(logon: ntlm::Logon) -> Self {
        Logon::Ntlm(Box::new(logon))
    }

    /// The mechanism.
    pub fn mechanism(&self) -> Mechanism {
        match self {
            Logon::Password(mechanism, _) | Logon::Malformed(mechanism) => *mechanism,
            Logon::Ntlm(_) => Mechanism::Ntlm,
        }
    }
}

/// What the driver says to a [`Logon`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogonVerdict<'a> {
    /// It is this user.
    Accept(&'a str),
    /// The proof is wrong, or there is no such user.
    Refuse,
    /// It is a user that may not use this binding (A3).
    NotHere,
    /// Nobody can judge now.
    Unavailable,
}

impl Session {
    /// The mechanisms by which users can be verified at all. None, unless this is called.
    pub fn offer_mechanisms(&mut self, mechanisms: Mechanisms) {
        self.mechanisms = mechanisms;
    }

    /// The mechanisms that may be used now.
    ///
    //= [MS-OXSMTP] 4.0 3.2.5 EHLO; RFC 4954 section 4: passwords are for TLS.
    pub(super) fn usable_mechanisms(&self) -> Mechanisms {
        let secure = self.tls.is_some();
        if !self.profile.offers_auth || (self.profile.requires_tls && !secure) {
            return Mechanisms::default();
        }
        let may_show_passwords = secure || self.profile.plaintext_auth;
        let mut usable = Mechanisms::default();
        let mechanisms = self.mechanisms.iter().filter(|mechanism| may_show_passwords || !mechanism.is_plaintext());
        mechanisms.for_each(|mechanism| usable.insert(mechanism));
        usable
    }

    /// Whether this binding has users at all.
    pub(super) fn knows_auth(&self) -> bool {
        self.profile.offers_auth && self.mechanisms != Mechanisms::default()
    }

    /// The user that the client has proved to be.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The proof that [`Step::Authenticate`](super::Step::Authenticate) is about.
    pub fn take_logon(&mut self) -> Option<Logon> {
        self.logon.take().map(|logon| *logon)
    }

    pub(super) fn starttls(&mut self, arguments: &[u8], illegal: Option<Reply>) {
        let refusal = if !self.profile.offers_tls {
            Some(Reply::NotImplemented)
        } else if !arguments.is_empty() {
            Some(Reply::InvalidArguments)
        } else if self.tls.is_some() || self.user.is_some() {
            Some(Reply::BadSequence)
        } else {
            illegal
        };
        if let Some(refusal) = refusal {
            return self.reply(refusal);
        }
        self.reply(Reply::StartTls);
        self.state = State::Handshake;
    }

    /// The handshake that [`Step::StartTls`](super::Step::StartTls) asked for, or that came before the banner, is done.
    ///
    //= RFC 3207 section 4.2: what was learned before is forgotten. Error counts and timers are not:
    //= they are not the client's to reset.
    pub fn handle_tls(&mut self, now: Instant, parameters: TlsParameters) {
        if self.is_closed() {
            return;
        }
        self.timers.answered(now);
        self.reset();
        self.state = State::Idle;
        self.hello = None;
        self.tls = Some(parameters);
    }

    pub(super) fn auth(&mut self, arguments: &[u8], illegal: Option<Reply>) {
        match self.begin_exchange(arguments, illegal) {
            Ok((exchange, None)) => {
                self.reply(match exchange {
                    Exchange::Negotiate | Exchange::Ntlm(_) => Reply::NtlmSupported,
                    Exchange::Plain => Reply::EmptyChallenge,
                    Exchange::LoginName | Exchange::LoginPassword(_) => Reply::AskUsername,
                });
                self.state = State::Auth(Box::new(exchange));
            }
            Ok((exchange, Some(message))) => self.handle_response(exchange, message),
            Err(reply) => self.reply(reply),
        }
    }

    /// What AUTH begins, and its initial response.
    fn begin_exchange(&self, arguments: &[u8], illegal: Option<Reply>) -> Result<(Exchange, Option<Message>), Reply> {
        if !self.knows_auth() {
            return Err(Reply::NotImplemented);
        }
        if let Some(reply) = illegal.or(self.user.is_some().then_some(Reply::BadSequence)) {
            return Err(reply);
        }
        if self.profile.requires_tls && self.tls.is_none() {
            return Err(Reply::MustStartTls);
        }
        let mut words = words(arguments);
        let name = words.next().ok_or(Reply::InvalidArguments)?;
        let response = words.next();
        if words.next().is_some() {
            return Err(Reply::InvalidArguments);
        }
        let usable = self.usable_mechanisms();
        let mechanism = Mechanism::parse(name).filter(|&mechanism| usable.contains(mechanism));
        let exchange = match mechanism.ok_or(Reply::UnrecognizedMechanism)? {
            Mechanism::Ntlm => Exchange::Negotiate,
            Mechanism::Login => Exchange::LoginName,
            Mechanism::Plain => Exchange::Plain,
        };
        let message = match response {
            None => None,
            //= RFC 4954 section 4: an initial response of no octets.
            Some(b"=") => Some(Zeroizing::default()),
            Some(line) => Some(sasl::decode(line).ok_or(Reply::CannotDecode)?),
        };
        Ok((exchange, message))
    }

    /// A line of the exchange.
    pub(super) fn handle_response_line(&mut self, line: &[u8]) {
        let State::Auth(exchange) = self.take_state() else { return };
        self.begin_command(Verb::Auth);
        if line == b"*" {
            return self.reply(Reply::AuthenticationCancelled);
        }
        match sasl::decode(line) {
            Some(message) => self.handle_response(*exchange, message),
            None => self.reply(Reply::CannotDecode),
        }
    }

    /// A line of the exchange that is no line: it ends the exchange.
    pub(super) fn refuse_response(&mut self, reply: Reply) {
        self.state = State::Idle;
        self.begin_command(Verb::Auth);
        self.reply(reply);
    }

    fn handle_response(&mut self, exchange: Exchange, message: Message) {
        let (mechanism, logon) = match exchange {
            Exchange::Negotiate => {
                self.state = State::ChallengePending(message);
                return;
            }
            Exchange::LoginName => {
                self.reply(Reply::AskPassword);
                self.state = State::Auth(Box::new(Exchange::LoginPassword(login::ServerExchange::new(&message))));
                return;
            }
            Exchange::Ntlm(exchange) => (Mechanism::Ntlm, exchange.authenticate(&message).map(Logon::ntlm)),
            Exchange::Plain => (Mechanism::Plain, plain::parse(&message).map(Logon::plain)),
            Exchange::LoginPassword(exchange) => (Mechanism::Login, exchange.password(&message).map(Logon::login)),
        };
        self.authenticate(logon.unwrap_or(Logon::Malformed(mechanism)));
    }

    fn authenticate(&mut self, logon: Logon) {
        self.logon = Some(Box::new(logon));
        self.state = State::LogonPending;
    }

    /// The answer to [`Step::Challenge`](super::Step::Challenge): eight random octets, and the time in units of 100 ns since
    /// 1601.
    pub fn handle_challenge(&mut self, now: Instant, nonce: [u8; 8], filetime: u64) {
        let negotiate = match self.take_state() {
            State::ChallengePending(negotiate) => negotiate,
            state => return self.state = state,
        };
        self.timers.answered(now);
        match ntlm::ServerExchange::new(&negotiate, &self.profile.hostname, nonce, filetime) {
            Some(exchange) => {
                reply::challenge(&mut self.replies, exchange.challenge());
                self.observe_reply(334);
                self.state = State::Auth(Box::new(Exchange::Ntlm(exchange)));
            }
            None => self.authenticate(Logon::Malformed(Mechanism::Ntlm)),
        }
    }

    /// The answer to [`Step::Authenticate`](super::Step::Authenticate).
    pub fn handle_logon(&mut self, now: Instant, verdict: LogonVerdict<'_>) {
        if !matches!(self.state, State::LogonPending) {
            return;
        }
        self.state = State::Idle;
        self.timers.answered(now);
        match verdict {
            LogonVerdict::Accept(name) => {
                self.user = Some(name.into());
                self.reply(Reply::Authenticated);
            }
            LogonVerdict::Refuse => self.reply(Reply::AuthenticationFailed),
            LogonVerdict::NotHere => self.reply(Reply::NotConfigured),
            LogonVerdict::Unavailable => self.reply(Reply::AuthenticationUnavailable),
        }
    }
}
