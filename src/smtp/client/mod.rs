//! The sending session: replies in, commands and content out; no socket, no clock.
//!
//! The driver connects, sends [`Session::output`] whenever there is some and feeds what it reads
//! to [`Session::step`], both at once: if each side waited for the other to read a long pipelined
//! group, or its replies, neither would go on. Octets that a step does not consume are the driver's
//! to keep and to present again with what arrived meanwhile behind them; they are less than a
//! reply's line. Between transactions the driver reads too: a next hop may close, or say why.
//!
//! ```text
//! new ──> Ready ── begin ──> SendBody ── body, body_end ──> Answered (take_dispositions) ──┐
//!  │        ^ ^                  └───────── nobody accepted ───^                           │
//!  │        │ └────────────────────────────── unless must_close ──────────────────────────┘
//!  └─> StartTls: handshake, handle_tls (then AUTH, if there is to be one)
//! ```
//!
//! Every failure is the session's end: [`Step::Failed`], [`Session::handle_time`] or
//! [`Session::handle_end`] tell it once, the output is empty from then on, and the connection is to
//! be dropped. If a transaction was open, [`Session::take_dispositions`] says what became of each
//! recipient: nobody is delivered to without a final 2yz.
//!
//! # Staying in step
//!
//! Whoever can make a client take one reply for another can make it lose mail. So:
//!
//! - An octet that comes while no reply is due, or behind the last one due, is never kept for a
//!   later command: the session fails, and says [`Cause::Refused`] if the octets turn out to be an
//!   error reply (servers shut down with a 421 at any time; some say 451), else [`Cause::Garbage`].
//! - What comes before the content was handed out is never the final reply: before
//!   [`Session::body_end`], or, in a chunk, before its last octet.
//! - A reply whose class its command does not have is [`Cause::Garbage`].
//! - BDAT is sent only to a server that accepted a recipient: the content is not read as commands
//!   by one that refuses BDAT without taking its octets. Rejected: MAIL, RCPT and BDAT in one
//!   group, one round trip less.
//! - RSET precedes MAIL, in the same group, unless the transaction before it had its final reply.
//! - What came behind the reply to STARTTLS in the same input is thrown away, and no other input is
//!   taken until the handshake is done: whatever was put there before it is not heard after it. What
//!   was offered before it is forgotten.
//! - A reply to STARTTLS or in an AUTH exchange that comes before what it answers has left is
//!   [`Cause::Garbage`], and so is a 235 before everything of the mechanism was said.
//! - STARTTLS, AUTH and each answer in its exchange are sent alone.

mod capabilities;
mod failure;
mod logon;
mod opening;
mod output;
mod reply;
mod transaction;

pub use capabilities::Capabilities;
pub use failure::{Cause, Failure, Stage};
pub use logon::{Credentials, Logon};
pub use opening::{StartTls, Wants};
pub use reply::Answer;
pub use transaction::{Disposition, Recipient, Transaction, Unsendable};

use super::encoder::Encoder;
use super::sasl::Mechanism;
use logon::Exchange;
use opening::Channel;
use output::Output;
use reply::{Malformed, Reader};
use std::rc::Rc;
use std::time::{Duration, Instant};
use transaction::Ledger;

/// Time limits of RFC 5321 section 4.5.3.2.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the greeting and the reply to each command, since the last octet sent or reply read.
    pub reply: Duration,
    /// For any progress while content is being sent.
    pub body: Duration,
    /// For the final reply, since the last octet of the content was sent.
    pub end_of_data: Duration,
}

impl Timeouts {
    /// All of them from the one for a reply, in RFC 5321's proportions: 5 minutes for most replies,
    /// 10 for the final one, since the next hop may have work to do before it.
    pub fn from_reply(reply: Duration) -> Self {
        Timeouts { reply, body: reply, end_of_data: 2 * reply }
    }
}

/// What the driver is to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the output, read more input behind what was not consumed.
    NeedMore,
    /// Do the TLS handshake as its client, then call [`Session::handle_tls`]. Nothing is to be sent
    /// and nothing was left of the input; what comes now is the handshake's.
    StartTls,
    /// The hello is done: [`Session::begin`] may be called.
    Ready,
    /// Give the content to [`Session::body`], then call [`Session::body_end`].
    SendBody,
    /// The transaction is over: [`Session::take_dispositions`]. The next one may begin unless
    /// [`Session::must_close`].
    Answered,
    /// The session is over: drop the connection. If a transaction was open, it is over too:
    /// [`Session::take_dispositions`].
    Failed(Failure),
    /// QUIT was answered, or the end was told before: drop the connection.
    Closed,
}

/// The command whose reply comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Reset,
    Mail,
    /// RCPT of the recipient with this index.
    Recipient(usize),
    Data,
}

/// How the content is sent.
#[derive(Debug)]
enum Framing {
    Dots(Encoder),
    /// In one last chunk of which so many octets, not zero, have not been handed out.
    Chunk {
        remaining: u64,
    },
}

#[derive(Debug)]
enum State {
    /// Nothing was said; the greeting comes next.
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    /// The driver does the handshake; its octets are not for this session.
    Handshake,
    Auth(Box<Exchange>),
    /// No transaction and no reply due.
    Ready,
    /// The envelope is being sent; with PIPELINING, DATA with it. `octets` are the content's.
    Envelope {
        next: Command,
        octets: u64,
    },
    /// The content is being handed out, and no reply is due.
    Body(Framing),
    /// The final reply is due.
    EndOfData,
    /// 354 came although nobody was accepted: an empty message was sent, its reply is due.
    Nothing,
    /// Something came that was not due; its first line will tell what it is.
    Unsolicited(Stage),
    Quit,
    /// Nothing more is said or heard. A failure that no call has told yet.
    Over(Option<Failure>),
}

/// One connection to a next hop.
#[derive(Debug)]
pub struct Session {
    hostname: Rc<str>,
    timeouts: Timeouts,
    wants: Wants,
    channel: Channel,
    logged_on: Option<Mechanism>,
    state: State,
    capabilities: Capabilities,
    reader: Reader,
    output: Output,
    ledger: Ledger,
    acceptance: Option<Answer>,
    dispositions: Vec<Disposition>,
    /// The last transaction had no final reply: the next hop may still be in it.
    reset_needed: bool,
    /// The last command, reply or progress: deadlines count from here.
    since: Instant,
}

impl Session {
    /// A session on a connection just made, waiting for the greeting. `hostname` is EHLO's argument.
    pub fn new(hostname: Rc<str>, timeouts: Timeouts, wants: Wants, now: Instant) -> Self {
        Session {
            hostname,
            timeouts,
            wants,
            channel: Channel::Clear,
            logged_on: None,
            state: State::Greeting,
            capabilities: Capabilities::default(),
            reader: Reader::default(),
            output: Output::default(),
            ledger: Ledger::default(),
            acceptance: None,
            dispositions: Vec::new(),
            reset_needed: false,
            since: now,
        }
    }

    /// What is to be sent.
    pub fn output(&self) -> &[u8] {
        self.output.ready()
    }

    /// The first `sent` octets of the output have left. To be told before input that was read
    /// later is given to [`Self::step`].
    pub fn output_sent(&mut self, now: Instant, sent: usize) {
        if sent > 0 && !self.output().is_empty() {
            self.output.sent(sent);
            self.since = now;
        }
    }

    /// What the next hop offered in its last answer to EHLO; all of it once [`Step::Ready`] was told.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The mechanism by which the next hop has accepted the logon.
    pub fn logged_on(&self) -> Option<Mechanism> {
        self.logged_on
    }

    /// Whether a transaction may begin.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    /// Whether the connection cannot be used for anything more. To be asked after
    /// [`Step::Answered`]: something stood behind the reply that ended the transaction, or the
    /// reply came before the content's last octet was sent.
    pub fn must_close(&self) -> bool {
        matches!(self.state, State::Unsolicited(_) | State::Over(_))
    }

    /// What became of each recipient, in order; after [`Step::Answered`], and after a failure
    /// inside a transaction. Empty otherwise, and when asked again.
    pub fn take_dispositions(&mut self) -> Vec<Disposition> {
        std::mem::take(&mut self.dispositions)
    }

    /// What the next hop said at the end of the transaction that it took last.
    pub fn acceptance(&self) -> Option<&Answer> {
        self.acceptance.as_ref()
    }

    /// When [`Self::handle_time`] must be called. None between transactions and after the end.
    pub fn next_deadline(&self) -> Option<Instant> {
        let timeout = match &self.state {
            State::Ready | State::Over(None) => return None,
            State::Over(Some(_)) => Duration::ZERO,
            State::Body(_) => self.timeouts.body,
            State::EndOfData if !self.output().is_empty() => self.timeouts.body,
            State::EndOfData => self.timeouts.end_of_data,
            _ => self.timeouts.reply,
        };
        self.since.checked_add(timeout)
    }

    /// Begins a transaction: its commands are in the output, all at once with PIPELINING (the bounds
    /// of the envelope bound them). Only when [`Self::is_idle`]; else the
    /// next call of [`Self::step`] or [`Self::handle_time`] tells its failure.
    /// [`Unsendable`]: this next hop cannot take the message, and nothing was begun.
    pub fn begin(&mut self, now: Instant, transaction: &Transaction<'_>) -> Result<(), Unsendable> {
        debug_assert!(!self.ledger.is_open(), "a transaction inside a transaction");
        transaction.check(&self.capabilities)?;
        self.ledger.begin(transaction.recipients.len());
        if !self.is_idle() {
            self.break_off(Cause::Closed);
            return Ok(());
        }
        self.since = now;
        let out = self.output.tail();
        if self.reset_needed {
            out.extend_from_slice(b"RSET\r\n");
        }
        transaction.write(&self.capabilities, self.logged_on.is_some(), out);
        if !self.capabilities.chunking {
            out.extend_from_slice(b"DATA\r\n");
        }
        if self.capabilities.pipelining {
            self.output.release_all();
        } else {
            self.output.release_line();
        }
        let next = if self.reset_needed { Command::Reset } else { Command::Mail };
        self.reset_needed = true;
        self.state = State::Envelope { next, octets: transaction.octets };
        Ok(())
    }

    /// The next piece of the content, after [`Step::SendBody`]. The output should have left before:
    /// it grows by the piece. After a failure the piece is thrown away.
    ///
    /// Content that cannot be had to its end must not be ended: drop the connection and call
    /// [`Self::handle_end`].
    pub fn body(&mut self, octets: &[u8]) {
        match &mut self.state {
            State::Body(Framing::Dots(encoder)) => {
                encoder.encode(octets, self.output.tail());
                self.output.release_all();
            }
            State::Body(Framing::Chunk { remaining }) => match remaining.checked_sub(octets.len() as u64) {
                Some(left) => {
                    *remaining = left;
                    self.output.say(octets);
                    if left == 0 {
                        self.state = State::EndOfData;
                    }
                }
                // The octets beyond the chunk would be read as commands.
                None => self.break_off(Cause::Miscounted),
            },
            State::EndOfData if !octets.is_empty() => self.break_off(Cause::Miscounted),
            _ => {}
        }
    }

    /// The content is complete. In a chunk its last octet said so already, and the final reply may
    /// have been read before this call.
    pub fn body_end(&mut self, now: Instant) {
        match &mut self.state {
            State::Body(Framing::Dots(encoder)) => {
                encoder.finish(self.output.tail());
                self.output.release_all();
            }
            State::Body(Framing::Chunk { .. }) => return self.break_off(Cause::Miscounted),
            _ => return,
        }
        self.since = now;
        self.state = State::EndOfData;
    }

    /// Says QUIT; [`Step::Closed`] when it is answered. Unless [`Self::is_idle`] nothing is said
    /// and the session is over.
    pub fn quit(&mut self, now: Instant) {
        match self.state {
            State::Ready => {
                self.since = now;
                self.output.say(b"QUIT\r\n");
                self.state = State::Quit;
            }
            State::Over(_) => {}
            _ => {
                self.fail(Cause::Closed);
            }
        }
    }

    /// The deadline passed. Tells a failure if it really did.
    pub fn handle_time(&mut self, now: Instant) -> Option<Failure> {
        if self.next_deadline().is_none_or(|deadline| deadline > now) {
            return None;
        }
        match &mut self.state {
            State::Over(untold) => untold.take(),
            // The next hop took everything; it is the content that is late.
            State::Body(_) if self.output.ready().is_empty() => {
                self.since = now;
                None
            }
            _ => Some(self.fail(Cause::Timeout)),
        }
    }

    /// The next hop has closed or reset the connection, or the driver gives it up.
    pub fn handle_end(&mut self) -> Failure {
        let untold = if let State::Over(untold) = &mut self.state { untold.take() } else { None };
        untold.unwrap_or_else(|| self.fail(Cause::Closed))
    }

    /// Takes a step on the beginning of `input`; returns the octets consumed and what to do.
    pub fn step(&mut self, now: Instant, input: &[u8]) -> (usize, Step) {
        let mut at = 0;
        loop {
            if let State::Over(untold) = &mut self.state {
                return (input.len(), untold.take().map_or(Step::Closed, Step::Failed));
            }
            let rest = &input[at..];
            if rest.is_empty() {
                return (at, Step::NeedMore);
            }
            match self.state {
                State::Ready | State::Body(_) => self.distrust(now),
                State::Handshake => return (input.len(), self.failed(Cause::Garbage)),
                _ => {}
            }
            let line = match self.reader.line(rest) {
                Ok(Some(line)) => line,
                Ok(None) => return (at, Step::NeedMore),
                Err(Malformed) => return (input.len(), self.failed(Cause::Garbage)),
            };
            at += line.consumed;
            if matches!(self.state, State::Ehlo) && line.code / 100 == 2 && !line.first {
                self.capabilities.add(line.text);
            }
            if !line.last {
                continue;
            }
            let pipelined = self.is_pipelined();
            let step = self.handle_reply(now, line.code, line.text);
            if step == Some(Step::StartTls) {
                return (input.len(), Step::StartTls);
            }
            if at < input.len() && !pipelined && !self.must_close() {
                self.distrust(now);
            }
            match step {
                None => {}
                // The rest of the input will tell what is wrong. No content was handed out, even
                // if there was none.
                Some(Step::SendBody) if self.must_close() => self.state = State::Unsolicited(Stage::Body),
                Some(Step::Ready) if self.must_close() => {}
                Some(step) => return (at, step),
            }
        }
    }
}

/// The machine behind `step`.
impl Session {
    /// What the session is doing.
    fn stage(&self) -> Stage {
        match &self.state {
            State::Greeting => Stage::Greeting,
            State::Ehlo | State::Helo => Stage::Hello,
            State::StartTls => Stage::StartTls,
            State::Handshake => Stage::Handshake,
            State::Auth(exchange) => Stage::Auth(exchange.mechanism),
            State::Ready | State::Over(_) => Stage::Idle,
            State::Envelope { next: Command::Reset | Command::Mail, .. } => Stage::Mail,
            State::Envelope { next: Command::Recipient(_), .. } => Stage::Rcpt,
            State::Envelope { next: Command::Data, .. } | State::Nothing => Stage::Data,
            State::EndOfData => Stage::EndOfData,
            State::Body(_) => Stage::Body,
            State::Unsolicited(stage) => *stage,
            State::Quit => Stage::Quit,
        }
    }

    /// The session is over; an open transaction too.
    fn fail(&mut self, cause: Cause) -> Failure {
        let failure = Failure { stage: self.stage(), cause };
        if self.ledger.is_open() {
            self.dispositions = self.ledger.settle(Some(&failure.answer()));
        }
        self.output.clear();
        self.state = State::Over(None);
        failure
    }

    fn failed(&mut self, cause: Cause) -> Step {
        Step::Failed(self.fail(cause))
    }

    /// The session is over, and the next call will tell it.
    fn break_off(&mut self, cause: Cause) {
        let failure = self.fail(cause);
        self.state = State::Over(Some(failure));
    }

    /// There are octets that answer nothing. The session cannot go on, whatever they are.
    fn distrust(&mut self, now: Instant) {
        self.since = now;
        self.output.clear();
        self.state = State::Unsolicited(self.stage());
    }

    /// Whether the reply after the next one is due already.
    fn is_pipelined(&self) -> bool {
        match self.state {
            State::Envelope { next, .. } => self.capabilities.pipelining && self.command_after(next).is_some(),
            _ => false,
        }
    }

    /// The command that follows `command` in the transaction; written already with PIPELINING.
    fn command_after(&self, command: Command) -> Option<Command> {
        let pipelining = self.capabilities.pipelining;
        let index = match command {
            Command::Reset => return Some(Command::Mail),
            Command::Mail if !pipelining && self.ledger.is_mail_refused() => return None,
            Command::Mail => 0,
            Command::Recipient(index) => index + 1,
            Command::Data => return None,
        };
        if index < self.ledger.recipient_count() {
            Some(Command::Recipient(index))
        } else {
            let data = !self.capabilities.chunking && (pipelining || self.ledger.has_accepted());
            data.then_some(Command::Data)
        }
    }

    /// A whole reply: its code, and the text of its last line.
    fn handle_reply(&mut self, now: Instant, code: u16, text: &[u8]) -> Option<Step> {
        self.since = now;
        if matches!(self.state, State::Auth(_)) {
            return self.auth_answered(code, text);
        }
        let class = code / 100;
        let refusal = (class >= 4).then(|| Rc::new(Answer::new(code, text)));
        if let (421, Some(answer)) = (code, &refusal)
            && !matches!(self.state, State::Quit)
        {
            return Some(self.failed(Cause::Refused(Rc::clone(answer))));
        }
        match (&self.state, refusal) {
            (State::Greeting, None) if code == 220 => self.say_hello("EHLO", State::Ehlo),
            (State::Ehlo | State::Helo, None) if class == 2 => self.hello_answered(),
            (State::Ehlo, Some(answer)) if answer.is_permanent() && self.may_say_helo() => {
                self.say_hello("HELO", State::Helo)
            }
            (State::StartTls, refusal) => self.starttls_answered(code, refusal),
            (State::Greeting | State::Ehlo | State::Helo | State::Unsolicited(_), Some(answer)) => {
                Some(self.failed(Cause::Refused(answer)))
            }
            (&State::Envelope { next, octets }, refusal) => self.handle_envelope(next, octets, class, refusal),
            (State::EndOfData, refusal) if class != 3 => {
                self.reset_needed = false;
                self.acceptance = refusal.is_none().then(|| Answer::new(code, text));
                Some(self.answered(refusal.as_ref()))
            }
            (State::Nothing, _) if class != 3 => Some(self.answered(None)),
            (State::Quit, _) => {
                self.output.clear();
                self.state = State::Over(None);
                Some(Step::Closed)
            }
            _ => Some(self.failed(Cause::Garbage)),
        }
    }

    fn handle_envelope(
        &mut self,
        command: Command,
        octets: u64,
        class: u16,
        refusal: Option<Rc<Answer>>,
    ) -> Option<Step> {
        let wanted = if command == Command::Data { 3 } else { 2 };
        if refusal.is_none() && class != wanted {
            return Some(self.failed(Cause::Garbage));
        }
        match (command, refusal) {
            (Command::Reset, Some(answer)) => return Some(self.failed(Cause::Refused(answer))),
            (Command::Mail, Some(answer)) => self.ledger.refuse_mail(answer),
            (Command::Recipient(index), refusal) => self.ledger.answer_recipient(index, refusal),
            (Command::Data, Some(answer)) => return Some(self.answered(Some(&answer))),
            (Command::Data, None) if self.ledger.has_accepted() => {
                self.state = State::Body(Framing::Dots(Encoder::default()));
                return Some(Step::SendBody);
            }
            (Command::Data, None) => {
                //= RFC 2920 section 3.1: a client that finds a DATA accepted without a recipient
                //= sends a single dot.
                self.output.say(b".\r\n");
                self.state = State::Nothing;
                return None;
            }
            (Command::Reset | Command::Mail, None) => {}
        }
        if let Some(next) = self.command_after(command) {
            if !self.capabilities.pipelining {
                self.output.release_line();
            }
            self.state = State::Envelope { next, octets };
            return None;
        }
        if !self.ledger.has_accepted() {
            return Some(self.answered(None));
        }
        self.output.say(format!("BDAT {octets} LAST\r\n").as_bytes());
        self.state = match octets {
            0 => State::EndOfData,
            remaining => State::Body(Framing::Chunk { remaining }),
        };
        Some(Step::SendBody)
    }

    /// The transaction is over. `refusal` applies to all who were not refused before; without one,
    /// those accepted are delivered to.
    fn answered(&mut self, refusal: Option<&Rc<Answer>>) -> Step {
        self.dispositions = self.ledger.settle(refusal);
        // What could be sent and was not when the answer came is content that was refused early.
        // The next hop may or may not wait for the rest of it: the two are out of step. Commands
        // that were not released are not needed any more.
        let in_step = self.output.ready().is_empty();
        self.output.clear();
        self.output.shrink();
        self.state = if in_step { State::Ready } else { State::Over(None) };
        Step::Answered
    }
}

#[cfg(test)]
mod failure_tests;
#[cfg(test)]
mod logon_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod next_hop_tests;
#[cfg(test)]
mod opening_tests;
#[cfg(test)]
mod tests;
