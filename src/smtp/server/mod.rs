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
//! Methods in order: construction, getters, `step`, `handle_*`; the verbs are in [`verbs`].

mod profile;
mod verbs;

use super::address::Mailbox;
use super::command;
use super::data::{Decoder, Piece};
use super::envelope::Envelope;
use super::header::Trace;
use super::line::{self, Discard, Line};
use super::reply::{self, After, Reply, Weight};
use crate::limits::REPLIES_MAX_OCTETS;
pub use profile::{Extensions, Profile, Revision, Role};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

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
    /// Send the replies, then end the session; what was kept of a message is thrown away.
    Close,
}

/// A question for the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query<'b> {
    /// End of MAIL: may this client submit one more message now? A yes counts (E4).
    Sender,
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
    /// The data's end was read; the driver owes the outcome.
    Committing(Envelope),
    /// The last reply is in the buffer.
    Closed,
}

/// The content of a message in DATA.
#[derive(Debug, Default)]
struct Content {
    decoder: Decoder,
    /// The reply at the end of data, once something spoilt the message.
    refusal: Option<Reply>,
}

/// What the input is, outside DATA.
#[derive(Debug)]
enum Input {
    Lines,
    /// The rest of an overlong line.
    Overlong(Discard),
    /// A refused chunk: its octets, then the reply (RFC 3030; BDAT must never be read as commands).
    Chunk {
        remaining: u64,
        reply: Reply,
    },
}

#[derive(Debug)]
struct Hello {
    extended: bool,
    name: Box<[u8]>,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    profile: Rc<Profile>,
    client: IpAddr,
    hello: Option<Hello>,
    state: State,
    input: Input,
    /// The envelope's buffers between transactions.
    spare: Envelope,
    replies: Vec<u8>,
    refusals: Vec<Reply>,
    protocol_errors: u32,
    /// The last MAIL was refused: a 503 that only follows from it is no error of its own (E7).
    mail_refused: bool,
    /// The same for the recipients of this transaction.
    recipients_refused: bool,
    /// Storage or memory is short (C6).
    resources_short: bool,
    connected_at: Instant,
    /// The last piece of input, or the last reply the server owed.
    last_input: Instant,
}

impl Session {
    /// A session that begins now, with its banner in the reply buffer.
    pub fn new(profile: Rc<Profile>, client: IpAddr, now: Instant) -> Self {
        let mut session = Session {
            profile,
            client,
            hello: None,
            state: State::Idle,
            input: Input::Lines,
            spare: Envelope::default(),
            replies: Vec::new(),
            refusals: Vec::new(),
            protocol_errors: 0,
            mail_refused: false,
            recipients_refused: false,
            resources_short: false,
            connected_at: now,
            last_input: now,
        };
        reply::banner(&mut session.replies, &session.profile.hostname);
        session
    }

    /// Replies that wait to be sent.
    pub fn replies(&self) -> &[u8] {
        &self.replies
    }

    /// The first `sent` octets of the replies have left.
    pub fn replies_sent(&mut self, sent: usize) {
        if sent >= self.replies.len() {
            self.replies.clear();
        } else {
            self.replies.drain(..sent);
        }
    }

    /// The refusals since the last call, for the driver to count.
    pub fn take_refusals(&mut self) -> impl Iterator<Item = Reply> {
        self.refusals.drain(..)
    }

    /// The envelope of the message that is being received or committed.
    pub fn envelope(&self) -> Option<&Envelope> {
        match &self.state {
            State::Data(envelope, _) | State::Committing(envelope) => Some(envelope),
            _ => None,
        }
    }

    /// What the Received field tells.
    pub fn trace(&self) -> Trace<'_> {
        let (hello, extended) = self.hello.as_ref().map_or((&b""[..], false), |hello| (&*hello.name, hello.extended));
        Trace { hello, client: self.client, hostname: &self.profile.hostname, extended }
    }

    /// Whether message content is being read: the driver may then read in large pieces.
    pub fn in_data(&self) -> bool {
        matches!(self.state, State::Data(..))
    }

    /// Whether a transaction is open, which a drain lets finish.
    pub fn in_transaction(&self) -> bool {
        !matches!(self.state, State::Idle | State::Closed)
    }

    /// Whether the last reply is in the buffer.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// When [`Self::handle_time`] must be called. None while the server owes a reply, or after
    /// the end.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.owes_reply() || self.is_closed() {
            return None;
        }
        let connection = self.profile.connection_timeout.map(|timeout| self.connected_at + timeout);
        let inactivity = self.profile.inactivity_timeout.map(|timeout| self.last_input + timeout);
        match (connection, inactivity) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// Takes a step on the beginning of `input`; returns the octets consumed and what to do.
    pub fn step<'b>(&mut self, now: Instant, input: &'b [u8]) -> (usize, Step<'b>) {
        if !input.is_empty() {
            self.last_input = now;
        }
        //= [MS-OXSMTP] 3.2.2 ConnectionTimeOut: it acts right after a reply that was owed meanwhile,
        //= before the commands behind it, and whether or not a client keeps the driver busy.
        if self.connection_expired(now) && !self.owes_reply() && !self.is_closed() {
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
            if rest.is_empty() || self.owes_reply() {
                return (at, Step::NeedMore);
            }
            let (consumed, step) = self.step_once(rest);
            at += consumed;
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
                    self.reply(Reply::LineTooLong);
                }
                (consumed, None)
            }
            Input::Chunk { remaining, reply } => {
                let consumed = usize::try_from(*remaining).unwrap_or(usize::MAX).min(input.len());
                *remaining -= consumed as u64;
                if *remaining == 0 {
                    let reply = *reply;
                    self.input = Input::Lines;
                    self.reply(reply);
                }
                (consumed, None)
            }
            Input::Lines => match line::scan(input) {
                Line::Whole { text, consumed } => (consumed, self.handle_command(command::parse(text))),
                Line::Spoiled { consumed } => {
                    self.reply(Reply::SyntaxError);
                    (consumed, None)
                }
                Line::TooLong => {
                    self.input = Input::Overlong(Discard::default());
                    (0, None)
                }
                Line::Partial => (0, Some(Step::NeedMore)),
            },
        }
    }

    fn handle_piece<'b>(&mut self, piece: Piece<'b>) -> Option<Step<'b>> {
        let State::Data(_, content) = &mut self.state else { return None };
        match piece {
            Piece::NeedMore => Some(Step::NeedMore),
            Piece::Content(octets) => {
                //= [MS-OXSMTP] 3.2.7 MessageSizeExceeded: more octets than allowed. Overrides a
                //= failure to keep the content: sending it again would not help.
                let refused = content.refusal.is_some();
                if self.profile.message_size_max.is_some_and(|max| content.decoder.octets() > max) {
                    content.refusal = Some(Reply::MessageTooLarge);
                }
                match content.refusal {
                    None => Some(Step::Body(octets)),
                    Some(_) if refused => None,
                    Some(_) => Some(Step::Abandon),
                }
            }
            Piece::End => {
                if let Some(refusal) = content.refusal {
                    self.end_transaction();
                    self.reply(refusal);
                    return None;
                }
                if let State::Data(envelope, _) = self.take_state() {
                    self.state = State::Committing(envelope);
                }
                Some(Step::Commit)
            }
        }
    }

    /// The answer to [`Step::Decide`].
    pub fn handle_verdict(&mut self, now: Instant, verdict: Verdict) {
        self.last_input = now;
        match (self.take_state(), verdict) {
            (State::SenderPending(envelope), Verdict::Accept) => {
                self.mail_refused = false;
                self.recipients_refused = false;
                self.state = State::Mail(envelope);
                self.reply(Reply::SenderOk);
            }
            (State::SenderPending(envelope), Verdict::Refuse(reply)) => {
                self.spare = envelope;
                self.refuse_mail(reply);
            }
            (State::RecipientPending { mut envelope, added }, verdict) => {
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
                if added {
                    envelope.remove_last_recipient();
                }
                self.refuse_recipient(envelope, refusal);
            }
            (state, _) => self.state = state,
        }
    }

    /// The message is on stable storage under the proof's queue id. The proof is the only way to
    /// the 250 after DATA.
    pub fn handle_durable(&mut self, now: Instant, durable: &super::Durable) {
        if matches!(self.state, State::Committing(_)) {
            self.last_input = now;
            self.end_transaction();
            reply::queued(&mut self.replies, durable.queue_id().text().as_str());
        }
    }

    /// The next hop has refused the message for all its recipients, and it is not kept: passes the
    /// refusal on, a reply line without its line end. It is not the client's error (E7).
    ///
    //= [MS-OXSMTP] AcknowledgementDelay
    pub fn handle_refusal(&mut self, now: Instant, line: &str) {
        if matches!(self.state, State::Committing(_)) {
            self.last_input = now;
            self.end_transaction();
            self.replies.extend_from_slice(line.as_bytes());
            self.replies.extend_from_slice(b"\r\n");
        }
    }

    /// The message could not be made durable and is not kept.
    pub fn handle_commit_failure(&mut self, now: Instant) {
        if matches!(self.state, State::Committing(_)) {
            self.last_input = now;
            self.end_transaction();
            self.reply(Reply::InsufficientResources);
        }
    }

    /// Content that was passed on could not be kept: the message is refused at its end, and no
    /// more of it is passed on. Acts in DATA only.
    pub fn handle_body_failure(&mut self) {
        if let State::Data(_, content) = &mut self.state {
            content.refusal = Some(Reply::InsufficientResources);
        }
    }

    /// Whether system resources are short (C6), from now on.
    pub fn handle_resources(&mut self, short: bool) {
        self.resources_short = short;
    }

    /// Ends the session if a timer has run out.
    pub fn handle_time(&mut self, now: Instant) {
        if self.next_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        //= [MS-OXSMTP] 3.2.2 ConnectionTimeOut, ConnectionInactivityTimeOut: the envelope and any
        //= unfinished message are discarded.
        let reply = if self.connection_expired(now) { Reply::ConnectionTimedOut } else { Reply::InactivityTimedOut };
        self.reply(reply);
    }

    fn connection_expired(&self, now: Instant) -> bool {
        self.profile.connection_timeout.is_some_and(|timeout| self.connected_at + timeout <= now)
    }

    /// The server is shutting down: ends the session if no transaction is open, or at once when
    /// it can wait no longer. A message being committed is answered first.
    pub fn handle_shutdown(&mut self, at_once: bool) {
        if !self.is_closed() && !self.owes_reply() && (at_once || !self.in_transaction()) {
            self.reply(Reply::ShuttingDown);
        }
    }

    fn owes_reply(&self) -> bool {
        matches!(self.state, State::SenderPending(_) | State::RecipientPending { .. } | State::Committing(_))
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
            | State::Committing(envelope) => self.spare = envelope,
            State::Idle => {}
            State::Closed => self.state = State::Closed,
        }
        self.spare.clear();
    }

    /// Says `reply`, counts it, and ends the session where the table says so.
    fn reply(&mut self, mut reply: Reply) {
        if reply.row().weight == Weight::ProtocolError {
            self.protocol_errors = self.protocol_errors.saturating_add(1);
            //= [MS-OXSMTP] 3.2.7 ProtocolViolationCount: sent instead of the command's own reply.
            if self.profile.protocol_errors_max.is_some_and(|max| self.protocol_errors > max) {
                reply = Reply::TooManyErrors;
            }
        }
        let row = reply.row();
        if row.reason.is_some() {
            self.refusals.push(reply);
        }
        reply.write(&mut self.replies, self.client);
        if row.after == After::Close {
            self.end_transaction();
            self.state = State::Closed;
        }
    }
}

#[cfg(test)]
mod tests;
