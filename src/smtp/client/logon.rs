//! AUTH (RFC 4954) as a client: who logs on, by which mechanism, and what is said to each challenge.
//!
//! | channel | mechanisms, the first offered one is taken |
//! |---|---|
//! | TLS with the next hop; in clear where the operator wants it so | PLAIN, LOGIN, NTLM |
//! | TLS with somebody | NTLM, PLAIN, LOGIN |
//! | in clear | NTLM |
//!
//! A mechanism that is refused as such (504, 5.5.4) makes room for the next one; any other refusal is
//! the end. A challenge that is none of its mechanism is answered by `*`, and the session ends.

use super::opening::Channel;
use super::reply::Answer;
use crate::limits::NEXT_HOP_COMMAND_LINE_MAX_OCTETS;
use crate::smtp::sasl::login::Prompt;
use crate::smtp::sasl::ntlm::ClientExchange;
use crate::smtp::sasl::ntlm::client::Randomness;
use crate::smtp::sasl::{Mechanism, Mechanisms, decode, encode, plain};
use memchr::{memchr, memmem};
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Name and password at a next hop: neither is empty or has a NUL. Its Debug does not show the
/// password.
pub struct Credentials {
    name: String,
    password: Zeroizing<String>,
}

impl Credentials {
    /// `None` if a part is empty or has a NUL (RFC 4616 section 2).
    pub fn new(name: &str, password: &str) -> Option<Self> {
        let is_text = |text: &str| !text.is_empty() && !text.contains('\0');
        let valid = is_text(name) && is_text(password);
        valid.then(|| Credentials { name: name.to_owned(), password: Zeroizing::new(password.to_owned()) })
    }

    /// The name as NTLM has it: `DOMAIN\NAME` is a name in a domain.
    fn ntlm(&self) -> ClientExchange {
        match self.name.split_once('\\') {
            Some((domain, name)) => ClientExchange::new(name, Some(domain), &self.password),
            None => ClientExchange::new(&self.name, None, &self.password),
        }
    }

    fn login(&self, prompt: Prompt) -> Zeroizing<Vec<u8>> {
        encoded(prompt.answer(&self.name, &self.password).as_bytes())
    }

    fn plain(&self) -> Zeroizing<Vec<u8>> {
        let mut message = with_room(self.name.len() + self.password.len() + 2);
        plain::write(&self.name, &self.password, &mut message);
        encoded(&message)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A logon that a session wants. Its Debug shows nothing that must not be known.
#[derive(Clone)]
pub struct Logon {
    /// Who logs on.
    pub credentials: Arc<Credentials>,
    /// The password may go in clear where there is no TLS.
    pub in_clear: bool,
    /// For NTLM; never used before.
    pub randomness: Randomness,
    /// The time in units of 100 ns since the beginning of 1601.
    pub filetime: u64,
}

impl fmt::Debug for Logon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Logon { credentials, in_clear, filetime, randomness: _ } = self;
        let mut shown = f.debug_struct("Logon");
        shown.field("credentials", credentials).field("in_clear", in_clear).field("filetime", filetime);
        shown.finish_non_exhaustive()
    }
}

impl Logon {
    /// The mechanisms that may be used here, the best first.
    fn preferred(&self, channel: Channel) -> &'static [Mechanism] {
        use Mechanism::{Login, Ntlm, Plain};
        match channel {
            Channel::Verified => &[Plain, Login, Ntlm],
            Channel::Clear if self.in_clear => &[Plain, Login, Ntlm],
            // Whoever it is should not simply be told the password.
            Channel::Unverified => &[Ntlm, Plain, Login],
            // STARTTLS may have been taken out of what was offered.
            Channel::Clear => &[Ntlm],
        }
    }
}

/// What the next challenge, or the next reply, must be.
#[derive(Debug)]
enum Due {
    /// The empty challenge of PLAIN: its message did not fit into the command.
    Empty,
    Prompt(Prompt),
    /// The word that NTLM will do.
    Supported(ClientExchange),
    /// NTLM's CHALLENGE.
    Challenge(ClientExchange),
    /// Everything was said.
    Outcome,
    /// The exchange was cancelled.
    Cancelled,
}

/// An AUTH in progress.
pub(super) struct Exchange {
    pub mechanism: Mechanism,
    /// This one too.
    tried: Mechanisms,
    due: Due,
    /// The last line that was sent, for it not to come back in words of the next hop.
    said: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("mechanism", &self.mechanism).field("due", &self.due).finish_non_exhaustive()
    }
}

impl Exchange {
    /// Begins with the best mechanism that is offered, may be used and was not tried before. `None`:
    /// there is none.
    pub fn begin(logon: &Logon, channel: Channel, offered: Mechanisms, before: Option<&Exchange>) -> Option<Self> {
        let mut tried = before.map_or_else(Mechanisms::default, |exchange| exchange.tried);
        let is_usable = |mechanism: &&Mechanism| offered.contains(**mechanism) && !tried.contains(**mechanism);
        let mechanism = *logon.preferred(channel).iter().find(is_usable)?;
        tried.insert(mechanism);
        let mut said = command(mechanism);
        let due = match mechanism {
            Mechanism::Login => Due::Prompt(Prompt::Username),
            // Its servers want no message in the command (CONFORMANCE F8).
            Mechanism::Ntlm => Due::Supported(logon.credentials.ntlm()),
            Mechanism::Plain => {
                let message = logon.credentials.plain();
                let fits = said.len() + 1 + message.len() + 2 <= NEXT_HOP_COMMAND_LINE_MAX_OCTETS;
                if fits {
                    said = joined(&[&said, b" ", &message]);
                }
                if fits { Due::Outcome } else { Due::Empty }
            }
        };
        Some(Exchange { mechanism, tried, due, said })
    }

    /// The line to be sent, without CRLF.
    pub fn line(&self) -> &[u8] {
        &self.said
    }

    /// Takes a challenge; the answer is in [`Self::line`].
    pub fn challenge(&mut self, logon: &Logon, text: &[u8]) {
        let text = text.trim_ascii();
        (self.due, self.said) = match std::mem::replace(&mut self.due, Due::Cancelled) {
            Due::Empty => (Due::Outcome, logon.credentials.plain()),
            Due::Prompt(prompt) => (prompt.next().map_or(Due::Outcome, Due::Prompt), logon.credentials.login(prompt)),
            Due::Supported(client) if is_ntlm(text) => {
                let message = encoded(&client.negotiate());
                (Due::Challenge(client), message)
            }
            Due::Challenge(client) => {
                let message = decode(text)
                    .and_then(|challenge| client.authenticate(&challenge, &logon.randomness, logon.filetime));
                match message {
                    Some(message) => (Due::Outcome, encoded(&message)),
                    None => cancelled(),
                }
            }
            Due::Supported(_) | Due::Outcome | Due::Cancelled => cancelled(),
        };
    }

    /// Whether everything was said: now it can have succeeded.
    pub fn may_succeed(&self) -> bool {
        matches!(self.due, Due::Outcome)
    }

    /// Whether it was cancelled: now nothing but its end is due.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.due, Due::Cancelled)
    }

    /// Whether this refusal is of the mechanism, not of who logs on.
    pub fn is_of_mechanism(code: u16, text: &[u8]) -> bool {
        code == 504 || Answer::new(code, text).enhanced_code() == Some("5.5.4")
    }

    /// A refusal as it may be shown: next hops that repeat what they do not understand would put the
    /// password into logs.
    pub fn shown(&self, logon: &Logon, code: u16, text: &[u8]) -> Answer {
        /// So much of a message that comes back is more than a coincidence.
        const TELLING_OCTETS: usize = 12;
        let message = match self.said.strip_prefix(b"AUTH ") {
            Some(command) => memchr(b' ', command).and_then(|space| command.get(space + 1..)),
            None => Some(&self.said[..]),
        };
        let begin = message.map(|message| message.get(..TELLING_OCTETS).unwrap_or(message));
        let secrets = begin.into_iter().chain([logon.credentials.password.as_bytes()]);
        let is_secret = secrets.into_iter().any(|secret| memmem::find(text, secret).is_some());
        Answer::new(code, if is_secret { b"(it repeats what was sent)" } else { text })
    }
}

/// The word in a first challenge that NTLM will do. Servers of RFC 4954 send an empty one.
fn is_ntlm(text: &[u8]) -> bool {
    let word = text.split(|&octet| octet == b' ').next().unwrap_or_default();
    word.is_empty() || Mechanism::parse(word) == Some(Mechanism::Ntlm)
}

//= RFC 4954 section 4: a client cancels with a single `*`.
fn cancelled() -> (Due, Zeroizing<Vec<u8>>) {
    (Due::Cancelled, Zeroizing::new(b"*".to_vec()))
}

fn command(mechanism: Mechanism) -> Zeroizing<Vec<u8>> {
    joined(&[b"AUTH ", mechanism.name().as_bytes()])
}

fn encoded(octets: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut line = with_room(octets.len().div_ceil(3) * 4);
    encode(octets, &mut line);
    line
}

fn joined(parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let mut line = with_room(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| line.extend_from_slice(part));
    line
}

/// What grows leaves a copy behind; what has room does not.
fn with_room(octets: usize) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(Vec::with_capacity(octets))
}
