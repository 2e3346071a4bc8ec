//! The receiving session: octets in, replies and decisions out; no socket, no clock.
//!
//! The driver feeds input to [`Session::step`] until it says [`Step::NeedMore`], does what the
//! other steps ask for, and answers with the `handle_*` methods. Octets that a step does not
//! consume are the driver's to keep and to present again, with what arrived meanwhile behind them:
//! they are always less than a command line while commands are read. Replies gather in a buffer
//! that the driver sends when the input is used up, so a pipelined group is answered in one write
//! (RFC 2920).
//!
//! While a verdict or a commit is awaited no input is taken: that is the back-pressure.
//! [`Session::next_deadline`] says when [`Session::handle_time`] must be called.
//!
//! Replies that are held back (E17) are not given out before their time: the driver reads nothing
//! meanwhile, and calls [`Session::handle_time`] when [`Session::next_deadline`] says so.
//!
//! Methods in order: construction, getters, `step`, `handle_*`; the verbs are in `verbs`, STARTTLS
//! and AUTH in `auth`, a message's content in `body`; which verb is legal where is in `legality`,
//! timers are in `timers`.

mod auth;
mod body;
mod content;
mod legality;
mod observer;
mod profile;
mod timers;
mod verbs;

use super::address::Mailbox;
use super::address::Path;
use super::command::{self, Verb};
use super::envelope::Envelope;
use super::header::{MissingFields, TlsParameters, Trace};
use super::line::{self, Discard, Line};
use super::proxy::{self, Beginning};
use super::reply::{self, Reply, Weight};
use super::sasl::Mechanisms;
use crate::limits::{COMMAND_LINE_MAX_OCTETS, REPLIES_FIRST_OCTETS, REPLIES_MAX_OCTETS, SASL_LINE_MAX_OCTETS};
use auth::Exchange;
pub use auth::{Logon, LogonVerdict};
use content::Content;
use legality::Phase;
pub use observer::Observer;
pub use profile::{Extensions, Profile, Revision, Role};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;
use timers::Timers;
use zeroize::Zeroizing;

/// What the driver is to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'b> {
    /// Send the replies, then read more input behind what was not consumed.
    NeedMore,
    /// Send the replies before taking more of this input: their buffer is full.
    Flush,
    /// Octets of the message's content, to be kept for [`Step::Commit`].
    Body(&'b [u8]),
    /// Throw away what was kept of the message: it will be refused at its end.
    Abandon,
    /// A policy question; answer with [`Session::handle_verdict`].
    Decide(Query<'b>),
    /// The message is complete: make it durable, then call [`Session::handle_durable`] or
    /// [`Session::handle_commit_failure`].
    Commit,
    /// Send the replies, throw away all input that has come, and begin TLS as its server; then call
    /// [`Session::handle_tls`]. A handshake that fails is the session's end.
    StartTls,
    /// A challenge is needed: call [`Session::handle_challenge`].
    Challenge,
    /// Judge [`Session::take_logon`], then call [`Session::handle_logon`].
    Authenticate,
    /// Send the replies, then end the session; what was kept of a message is thrown away.
    Close,
}

/// A question for the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query<'b> {
    /// End of MAIL: may this client use this sender (C10), and submit one more message now? A yes
    /// counts (E4).
    Sender(Path<'b>),
    /// RCPT: is this recipient accepted here (C19)?
    Recipient(Mailbox<'b>),
}

/// The policy's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Accept,
    /// Refuse with this reply.
    Refuse(Reply),
}

/// Where the transaction stands. Data can be reached only with an envelope that has a recipient.
#[derive(Debug)]
enum State {
    /// No transaction.
    Idle,
    /// The reply to STARTTLS was given; TLS comes next.
    Handshake,
    /// The client's next line belongs to AUTH.
    Auth(Box<Exchange>),
    /// NTLM's first message was read, and awaits a challenge.
    ChallengePending(Zeroizing<Vec<u8>>),
    /// A proof awaits its verdict.
    LogonPending,
    /// MAIL was accepted.
    Mail(Envelope),
    /// And a recipient.
    Recipients(Envelope),
    /// MAIL awaits its verdict.
    SenderPending(Envelope),
    /// A recipient awaits its verdict: the envelope's last one, unless the envelope was too full
    /// to take it; that is said only when nothing else speaks against the recipient (C19, C17).
    RecipientPending { envelope: Envelope, added: bool },
    /// 354 was sent.
    Data(Envelope, Content),
    /// A chunk has begun or was taken.
    Chunks(Envelope, Content),
    /// A chunk was refused: what follows of the message is too.
    ChunkFailed(Envelope),
    /// The data's end was read; the driver owes the outcome.
    Committing(Envelope, Complete),
    /// The last reply is in the buffer.
    Closed,
}

/// A message that has come to its end.
#[derive(Clone, Copy, Debug)]
struct Complete {
    /// What its header lacks.
    missing: MissingFields,
    /// Its size as the client counts it.
    octets: u64,
}

/// What the input is, outside DATA.
#[derive(Debug)]
enum Input {
    /// Nothing has come yet.
    First,
    Lines,
    /// The rest of an overlong line.
    Overlong(Discard),
    /// A chunk, which is never read as commands (RFC 3030).
    Chunk(Chunk),
    /// What follows XEXCH50: so many octets more, which nobody needs.
    ExchangeData(u64),
}

/// The chunk that is being read.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    octets: u64,
    remaining: u64,
    is_last: bool,
    /// Its reply, when it is refused; its octets are thrown away.
    refusal: Option<Reply>,
}

#[derive(Debug, Default)]
struct Hello {
    extended: bool,
    /// Its buffer serves the next one too.
    name: Vec<u8>,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    profile: Rc<Profile>,
    observer: Option<Rc<dyn Observer>>,
    client: IpAddr,
    /// Tells it from others.
    number: u64,
    hello: Option<Hello>,
    state: State,
    input: Input,
    /// The envelope's buffers between transactions.
    spare: Envelope,
    replies: Vec<u8>,
    /// The reply that ended the session.
    last: Option<Reply>,
    protocol_errors: u32,
    logon_failures: u32,
    /// The TLS that the session is under.
    tls: Option<TlsParameters>,
    /// Those by which users can be verified.
    mechanisms: Mechanisms,
    /// Who the client has proved to be.
    user: Option<Box<str>>,
    /// What the driver is to judge.
    logon: Option<Box<Logon>>,
    /// XEXCH50 was accepted in this transaction (C14).
    has_exchange_data: bool,
    /// The last MAIL was refused: a 503 that only follows from it is no error of its own (E7).
    mail_refused: bool,
    /// The same for the recipients of this transaction.
    recipients_refused: bool,
    /// Storage or memory is short (C6).
    resources_short: bool,
    /// What was passed on of a message is to be thrown away.
    abandon: bool,
    timers: Timers,
    /// Replies from this octet on are held back, until the timers let them go.
    held_from: usize,
    /// Whether a refusal of the current command is held back.
    tarpits: bool,
    /// A refusal was held back since the driver asked.
    was_tarpitted: bool,
}

impl Session {
    /// A session of a connection that was established at `now`, with its banner in the reply
    /// buffer.
    pub fn new(profile: Rc<Profile>, client: IpAddr, now: Instant) -> Self {
        let mut session = Session {
            profile,
            // An IPv4 address mapped into IPv6 is that IPv4 address in every reply and field.
            client: client.to_canonical(),
            observer: None,
            number: 0,
            hello: None,
            state: State::Idle,
            input: Input::First,
            spare: Envelope::default(),
            replies: Vec::with_capacity(REPLIES_FIRST_OCTETS),
            last: None,
            protocol_errors: 0,
            logon_failures: 0,
            tls: None,
            mechanisms: Mechanisms::default(),
            user: None,
            logon: None,
            has_exchange_data: false,
            mail_refused: false,
            recipients_refused: false,
            resources_short: false,
            abandon: false,
            timers: Timers::new(now),
            held_from: 0,
            tarpits: false,
            was_tarpitted: false,
        };
        reply::banner(&mut session.replies, &session.profile.hostname);
        session
    }

    /// Holds the banner back: the client was refused something a moment ago.
    ///
    //= [MS-OXSMTP] 3.2.7 Tarpit
    pub fn hold_banner(&mut self) {
        self.held_from = 0;
        self.timers.hold(&self.profile);
    }

    /// Replies to be sent now: all but those that are held back.
    pub fn replies(&self) -> &[u8] {
        if self.is_held() { &self.replies[..self.held_from] } else { &self.replies }
    }

    /// The first `sent` octets of the replies have left.
    pub fn replies_sent(&mut self, sent: usize) {
        self.held_from = self.held_from.saturating_sub(sent);
        if sent >= self.replies.len() {
            self.replies.clear();
        } else {
            self.replies.drain(..sent);
        }
    }

    /// Whether replies are held back. No input may be read meanwhile.
    pub fn is_held(&self) -> bool {
        self.timers.held_until().is_some()
    }

    /// Whether a refusal was held back since the last call: the client's next banner is to be late.
    pub fn take_tarpitted(&mut self) -> bool {
        std::mem::take(&mut self.was_tarpitted)
    }

    /// The envelope of the message that is being received or committed.
    pub fn envelope(&self) -> Option<&Envelope> {
        match &self.state {
            State::Data(envelope, _) | State::Chunks(envelope, _) | State::Committing(envelope, _) => Some(envelope),
            _ => None,
        }
    }

    /// Fields to be added to the message that is being received or committed; `None` while its header
    /// has not ended.
    ///
    //= RFC 6409 section 8: of what is submitted, not of what is relayed.
    pub fn missing_fields(&self) -> Option<MissingFields> {
        let missing = match &self.state {
            State::Data(_, content) | State::Chunks(_, content) => content.missing_fields()?,
            State::Committing(_, complete) => complete.missing,
            _ => return None,
        };
        let is_submission = self.user.is_some() || self.profile.requires_auth;
        Some(if is_submission { missing } else { MissingFields::default() })
    }

    /// What the Received field tells.
    pub fn trace(&self) -> Trace<'_> {
        let (hello, extended) = self.hello.as_ref().map_or((&b""[..], false), |hello| (&*hello.name, hello.extended));
        let hostname = &self.profile.hostname;
        Trace { hello, client: self.client, hostname, extended, tls: self.tls, authenticated: self.user.is_some() }
    }

    /// Whether message content is being read: the driver may then read in large pieces.
    pub fn in_data(&self) -> bool {
        matches!(self.state, State::Data(..)) || matches!(self.input, Input::Chunk(_) | Input::ExchangeData(_))
    }

    /// Where in the dialogue the next command stands.
    fn phase(&self) -> Phase {
        match self.state {
            _ if self.hello.is_none() => Phase::Connected,
            State::Mail(_) => Phase::Mail,
            State::Recipients(_) => Phase::Recipients,
            State::Chunks(..) => Phase::Chunks,
            State::ChunkFailed(_) => Phase::ChunkFailed,
            // No command is read in the others.
            _ => Phase::Ready,
        }
    }

    /// Whether a transaction is open, which a drain lets finish.
    pub fn in_transaction(&self) -> bool {
        !matches!(self.state, State::Idle | State::Handshake | State::Auth(_) | State::Closed)
    }

    /// Whether the last reply is in the buffer.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// When [`Self::handle_time`] must be called. None while the server owes a reply, or after
    /// the end.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.is_held() {
            return self.timers.held_until();
        }
        if self.owes_reply() || self.is_closed() {
            return None;
        }
        self.timers.deadline(&self.profile)
    }

    /// Input has arrived, which the driver presents to [`Self::step`] next, behind what it has.
    pub fn handle_input(&mut self, now: Instant) {
        self.timers.input(now);
    }

    /// Takes a step on the beginning of `input`; returns the octets consumed and what to do.
    pub fn step<'b>(&mut self, now: Instant, input: &'b [u8]) -> (usize, Step<'b>) {
        //= [MS-OXSMTP] 3.2.6 ConnectionTimeOut: it acts right after a reply that was owed meanwhile,
        //= before the commands behind it, and whether or not a client keeps the driver busy.
        let owes = self.owes_reply() || self.is_held();
        if self.timers.connection_expired(&self.profile, now) && !owes && !self.is_closed() {
            self.reply(Reply::ConnectionTimedOut);
        }
        let mut at = 0;
        loop {
            let rest = &input[at..];
            if self.is_closed() {
                return (input.len(), Step::Close);
            }
            if self.replies.len() >= REPLIES_MAX_OCTETS {
                return (at, Step::Flush);
            }
            let (consumed, step) = match self.input {
                //= RFC 3207 section 4.2: what is pipelined behind STARTTLS is thrown away.
                _ if matches!(self.state, State::Handshake) => return (input.len(), Step::StartTls),
                _ if matches!(self.state, State::ChallengePending(_)) => return (at, Step::Challenge),
                _ if self.logon.is_some() => return (at, Step::Authenticate),
                _ if self.owes_reply() => return (at, Step::NeedMore),
                Input::Chunk(chunk) if chunk.remaining == 0 => (0, self.end_of_chunk(chunk)),
                Input::ExchangeData(0) => {
                    self.input = Input::Lines;
                    self.reply(Reply::Xexch50Ok);
                    (0, None)
                }
                _ if rest.is_empty() => return (at, Step::NeedMore),
                _ => self.step_once(rest),
            };
            at += consumed;
            if std::mem::take(&mut self.abandon) {
                return (at, Step::Abandon);
            }
            if let Some(step) = step {
                return (at, step);
            }
        }
    }

    /// One line, one piece of content, or one piece of something thrown away. `None`: go on.
    fn step_once<'b>(&mut self, input: &'b [u8]) -> (usize, Option<Step<'b>>) {
        if let State::Data(_, content) = &mut self.state {
            let (consumed, piece) = content.decoder.step(input);
            return (consumed, self.handle_piece(piece));
        }
        match &mut self.input {
            Input::Overlong(discard) => {
                let (consumed, ended) = discard.step(input);
                if ended {
                    self.input = Input::Lines;
                    self.refuse_line(Reply::LineTooLong, Reply::ResponseTooLong);
                }
                (consumed, None)
            }
            Input::ExchangeData(remaining) => {
                let consumed = usize::try_from(*remaining).unwrap_or(usize::MAX).min(input.len());
                *remaining -= consumed as u64;
                (consumed, None)
            }
            Input::Chunk(chunk) => {
                let consumed = usize::try_from(chunk.remaining).unwrap_or(usize::MAX).min(input.len());
                chunk.remaining -= consumed as u64;
                let refused = chunk.refusal.is_some();
                (consumed, self.handle_chunk_piece(&input[..consumed], refused))
            }
            Input::Lines => self.handle_line(input),
            Input::First => self.handle_first(input),
        }
    }

    /// The first octets: not to be commands are those by which who is no proxy says whom it brings.
    /// Those that could become such a header, an empty line too, wait for what follows.
    fn handle_first<'b>(&mut self, input: &'b [u8]) -> (usize, Option<Step<'b>>) {
        match proxy::beginning(input) {
            Beginning::Other => {
                self.input = Input::Lines;
                self.handle_line(input)
            }
            Beginning::Unclear => (0, Some(Step::NeedMore)),
            Beginning::Line | Beginning::Binary => {
                self.reply(Reply::ProxyHeaderNotAllowed);
                (input.len(), None)
            }
        }
    }

    /// A line: a command, or a part of AUTH's exchange.
    fn handle_line<'b>(&mut self, input: &'b [u8]) -> (usize, Option<Step<'b>>) {
        let in_exchange = matches!(self.state, State::Auth(_));
        let max = if in_exchange { SASL_LINE_MAX_OCTETS } else { COMMAND_LINE_MAX_OCTETS };
        match line::scan(input, max) {
            Line::Whole { text, consumed } if in_exchange => {
                self.handle_response_line(text);
                (consumed, None)
            }
            Line::Whole { text, consumed } => (consumed, self.handle_command(command::parse(text))),
            Line::Spoiled { consumed } => {
                self.refuse_line(Reply::SyntaxError, Reply::CannotDecode);
                (consumed, None)
            }
            Line::TooLong => {
                self.input = Input::Overlong(Discard::default());
                (0, None)
            }
            Line::Partial => (0, Some(Step::NeedMore)),
        }
    }

    /// Refuses what is no line: of a command, or of AUTH's exchange, which ends by it.
    fn refuse_line(&mut self, command: Reply, response: Reply) {
        if matches!(self.state, State::Auth(_)) {
            return self.refuse_response(response);
        }
        self.observe_command(Verb::Unknown);
        self.begin_command(Verb::Unknown);
        self.reply(command);
    }

    /// The answer to [`Step::Decide`].
    pub fn handle_verdict(&mut self, now: Instant, verdict: Verdict) {
        self.timers.answered(now);
        match (self.take_state(), verdict) {
            (State::SenderPending(envelope), Verdict::Accept) => {
                self.mail_refused = false;
                self.recipients_refused = false;
                self.state = State::Mail(envelope);
                self.reply(Reply::SenderOk);
            }
            (state @ State::SenderPending(_), Verdict::Refuse(reply)) => {
                self.state = state;
                self.refuse_mail(reply);
                self.end_transaction();
            }
            (State::RecipientPending { envelope, added }, verdict) => {
                //= [MS-OXSMTP] 3.2.7 TooManyRecipients: more accepted recipients than allowed.
                let count = u32::try_from(envelope.recipient_count()).unwrap_or(u32::MAX);
                let fits = added && self.profile.recipients_max.is_none_or(|max| count <= max);
                let refusal = match verdict {
                    Verdict::Accept => (!fits).then_some(Reply::TooManyRecipients),
                    Verdict::Refuse(reply) => Some(reply),
                };
                let Some(refusal) = refusal else {
                    self.state = State::Recipients(envelope);
                    return self.reply(Reply::RecipientOk);
                };
                self.state = State::RecipientPending { envelope, added };
                self.refuse_recipient(refusal);
            }
            (state, _) => self.state = state,
        }
    }

    /// The message is on stable storage under the proof's queue id. The proof is the only way to
    /// the 250 after DATA.
    pub fn handle_durable(&mut self, now: Instant, durable: &super::Durable) {
        if matches!(self.state, State::Committing(..)) {
            self.timers.answered(now);
            self.end_transaction();
            reply::queued(&mut self.replies, durable.queue_id().text().as_str());
            self.observe_reply(250);
        }
    }

    /// The next hop has refused the message for all its recipients, and it is not kept: passes the
    /// refusal on, a reply line without its line end. It is not the client's error (E7).
    ///
    //= [MS-OXSMTP] 3.2.7 AcknowledgementDelay
    pub fn handle_refusal(&mut self, now: Instant, line: &str) {
        if matches!(self.state, State::Committing(..)) {
            self.timers.answered(now);
            self.end_transaction();
            if line.starts_with('5') {
                self.begin_command(Verb::Data);
                self.hold();
            }
            self.replies.extend_from_slice(line.as_bytes());
            self.replies.extend_from_slice(b"\r\n");
            self.observe_reply(line.get(..3).and_then(|code| code.parse().ok()).unwrap_or_default());
        }
    }

    /// The message could not be made durable and is not kept.
    pub fn handle_commit_failure(&mut self, now: Instant) {
        if matches!(self.state, State::Committing(..)) {
            self.timers.answered(now);
            self.reply(Reply::InsufficientResources);
            self.end_transaction();
        }
    }

    /// Content that was passed on could not be kept: the message is refused at its end, or that of
    /// the chunk, and no more of it is passed on.
    pub fn handle_body_failure(&mut self) {
        if let State::Data(_, content) | State::Chunks(_, content) = &mut self.state {
            content.lose();
        }
    }

    /// Whether system resources are short (C6), from now on.
    pub fn handle_resources(&mut self, short: bool) {
        self.resources_short = short;
    }

    /// Lets go what was held back for long enough, or ends the session if a timer has run out.
    pub fn handle_time(&mut self, now: Instant) {
        if let Some(until) = self.timers.held_until() {
            if until <= now {
                self.timers.release(now);
            }
            return;
        }
        if self.owes_reply() || self.is_closed() {
            return;
        }
        //= [MS-OXSMTP] 4.0 3.2.2 ConnectionTimer, ConnectionInactivityTimer: the envelope and any
        //= unfinished message are discarded.
        if let Some(reply) = self.timers.expired(&self.profile, now) {
            self.reply(reply);
        }
    }

    /// The server is shutting down: ends the session if no transaction is open, or at once when
    /// it can wait no longer. A message being committed is answered first.
    pub fn handle_shutdown(&mut self, at_once: bool) {
        if !self.is_closed() && !self.owes_reply() && (at_once || !self.in_transaction()) {
            self.reply(Reply::ShuttingDown);
        }
    }

    /// What is held back may leave now: there is no time to wait.
    pub fn release(&mut self, now: Instant) {
        if self.is_held() {
            self.timers.release(now);
        }
    }

    fn owes_reply(&self) -> bool {
        matches!(
            self.state,
            State::SenderPending(_)
                | State::RecipientPending { .. }
                | State::Committing(..)
                | State::ChallengePending(_)
                | State::LogonPending
        )
    }

    /// Takes the state out, to be put back or replaced.
    fn take_state(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Idle)
    }

    /// Back to no transaction; the envelope's buffers are kept.
    fn end_transaction(&mut self) {
        match self.take_state() {
            State::Mail(envelope)
            | State::Recipients(envelope)
            | State::SenderPending(envelope)
            | State::RecipientPending { envelope, .. }
            | State::Data(envelope, _)
            | State::ChunkFailed(envelope)
            | State::Committing(envelope, _) => self.spare = envelope,
            State::Chunks(envelope, _) => {
                self.spare = envelope;
                self.abandon = true;
            }
            State::Idle | State::Handshake | State::Auth(_) | State::ChallengePending(_) | State::LogonPending => {}
            State::Closed => self.state = State::Closed,
        }
        self.spare.clear();
        self.has_exchange_data = false;
    }

    /// A command was read, whose refusal may be held back.
    ///
    //= [MS-OXSMTP] 4.0 3.2.7 Tarpit: of the commands, only MAIL.
    fn begin_command(&mut self, verb: Verb) {
        self.tarpits = self.profile.revision == Revision::V13 || verb == Verb::Mail;
    }

    /// Holds back what is said from now on, until the interval after the command was read.
    ///
    //= [MS-OXSMTP] 3.2.7 Tarpit: who has authenticated is not kept waiting.
    fn hold(&mut self) {
        if !self.tarpits || self.profile.tarpit.is_none() || self.user.is_some() {
            return;
        }
        if !self.is_held() {
            self.held_from = self.replies.len();
        }
        self.timers.hold(&self.profile);
        self.was_tarpitted = true;
    }

    /// Says `reply`, counts it, and ends the session where the table says so.
    fn reply(&mut self, reply: Reply) {
        let (count, max, last) = match reply.row().weight {
            Weight::None => return self.say(reply),
            Weight::ProtocolError => {
                (&mut self.protocol_errors, self.profile.protocol_errors_max, Reply::TooManyErrors)
            }
            Weight::LogonFailure => {
                (&mut self.logon_failures, self.profile.logon_failures_max, Reply::TooManyLogonFailures)
            }
        };
        *count = count.saturating_add(1);
        //= [MS-OXSMTP] 3.2.7 ProtocolViolationCount: sent instead of the command's own reply.
        let is_too_many = max.is_some_and(|max| *count > max);
        self.say(if is_too_many { last } else { reply });
    }

    /// Says `reply`, whatever it counts for, and ends the session where the table says so.
    fn say(&mut self, reply: Reply) {
        self.observe_row(reply);
        let closes = reply.closes(self.profile.revision);
        //= [MS-OXSMTP] 3.2.7 Tarpit: a refusal for good that does not end the session.
        if reply.is_permanent() && !closes {
            self.hold();
        }
        reply.write(&mut self.replies, self.client);
        if closes {
            self.end_transaction();
            self.state = State::Closed;
            self.last = Some(reply);
        }
    }
}

#[cfg(test)]
mod tests;
