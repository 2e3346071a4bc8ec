//! A receiving session without a socket: input in any pieces, replies into a buffer that leaves once per read.
//!
//! Everything well-formed is accepted; order of commands is enforced as far as a relay's mistakes would otherwise go
//! unseen (503), and so is what was offered. Replies to pipelined commands gather in order. What a peer sends can end
//! its session, nothing else.
//!
//! Where a fault is due ([`super::faults`]) the session stops taking input and tells the connection how to go on: its
//! [`Pace`]. A refused command changes nothing; any other fault touches the reply only, so that a message whose
//! final reply is withheld has been taken.

use std::time::Duration;

use super::books::Books;
use super::content::Content;
use super::dump::Envelope;
use super::faults::{Action, Verb, noise};
use super::offer::{Extension, TOO_LARGE};

/// Longest command line with its line end. Generous: parameters of extensions add up.
const LINE_OCTETS_MAX: usize = 4096;
/// Most recipients of one message.
const RECIPIENTS_MAX: usize = 100_000;
/// Commands that make no sense before a session is closed.
const ERRORS_MAX: u32 = 100;

/// How a connection goes on once what was said so far is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// It reads on.
    Go,
    /// It waits, then writes [`Session::resume`].
    Wait(Duration),
    /// It never writes again; content that has begun is not read either.
    Hang {
        /// Whether it reads.
        reads: bool,
    },
    /// It is reset.
    Reset,
    /// It is closed in order.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Refused at the greeting: nothing but QUIT makes sense.
    Refused,
    /// No HELO or EHLO yet.
    Fresh,
    /// Between transactions.
    Ready,
    /// Behind MAIL, with so many recipients.
    Envelope(usize),
    /// Behind 354.
    Data,
    /// Within a chunk.
    Chunk(Chunk),
    /// Between chunks.
    Chunks,
    /// Behind a chunk that was refused: until RSET or a last chunk (RFC 3030 section 2).
    Failed,
    /// Behind QUIT or too many errors.
    Closed,
}

/// Octets of BDAT that are still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    left: u64,
    last: bool,
    /// Its reply, when it is refused whatever it holds.
    refusal: Option<&'static [u8]>,
    /// Whether a refusal is that of a transaction, which then has failed.
    fails: bool,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    state: State,
    /// Where a refused chunk outside a transaction leads back to.
    before_chunk: State,
    /// Greeted by EHLO.
    esmtp: bool,
    /// The start of a command line whose end has not come.
    line: Vec<u8>,
    /// The line is too long: the rest is skipped up to its end.
    skipping: bool,
    errors: u32,
    transactions: u64,
    content: Content,
    /// The content has had its reply before its end: it is not taken, and gets no other.
    replied: bool,
    envelope: Envelope,
    pace: Pace,
    /// What is to be said behind a wait, and the messages answered by it.
    late: Vec<u8>,
    late_owed: Vec<u8>,
    /// Ids of the messages whose replies are said and not written.
    owed: Vec<u8>,
}

impl Session {
    /// A session with a client that has just connected, on the so manieth connection.
    pub fn new(client: String, connection: u64) -> Self {
        Self {
            state: State::Fresh,
            before_chunk: State::Fresh,
            esmtp: false,
            line: Vec::new(),
            skipping: false,
            errors: 0,
            transactions: 0,
            content: Content::default(),
            replied: false,
            envelope: Envelope::new(client, connection),
            pace: Pace::Go,
            late: Vec::new(),
            late_owed: Vec::new(),
            owed: Vec::new(),
        }
    }

    /// Whether the session has said its last word.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Greets the client.
    pub fn greet(&mut self, greeting: &[u8], books: &mut Books, out: &mut Vec<u8>) -> Pace {
        let action = books.faults().pick(Verb::Connect);
        if !self.reply(Verb::Connect, action, greeting, books, out) && self.state != State::Closed {
            self.state = State::Refused;
        }
        std::mem::replace(&mut self.pace, Pace::Go)
    }

    /// Takes input, appends the replies to it, and tells how to go on. What is left of the input, when it is not to
    /// go on at once, is to be given again later.
    pub fn feed(&mut self, input: &[u8], books: &mut Books, out: &mut Vec<u8>) -> (usize, Pace) {
        let mut at = 0;
        while at < input.len() && self.pace == Pace::Go && self.state != State::Closed {
            let rest = &input[at..];
            at += match self.state {
                State::Data => self.stuffed(rest, books, out),
                State::Chunk(chunk) => self.chunk(chunk, rest, books, out),
                _ => self.command_line(rest, books, out),
            };
        }
        (at, std::mem::replace(&mut self.pace, Pace::Go))
    }

    /// What is to be written behind [`Pace::Wait`].
    pub fn resume(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.late);
        self.owed.append(&mut self.late_owed);
    }

    /// What was said is about to be written.
    pub fn writing(&self, books: &Books) {
        books.answered(&self.owed);
    }

    /// All that was said has been written.
    pub fn written(&mut self) {
        self.owed.clear();
    }

    /// What was said cannot be written any more.
    pub fn unwritten(&mut self, books: &mut Books) {
        self.owed.append(&mut self.late_owed);
        books.unanswered(&mut self.owed, &self.envelope);
    }

    fn stuffed(&mut self, input: &[u8], books: &mut Books, out: &mut Vec<u8>) -> usize {
        let (taken, ended) = self.content.take_stuffed(input, books);
        if ended {
            self.end(books, out);
        } else {
            self.amid(books, out);
        }
        taken
    }

    fn chunk(&mut self, mut chunk: Chunk, input: &[u8], books: &mut Books, out: &mut Vec<u8>) -> usize {
        let here = usize::try_from(chunk.left).map_or(input.len(), |left| left.min(input.len()));
        let taken = match chunk.refusal {
            Some(_) => here,
            None => self.content.take(&input[..here], books),
        };
        chunk.left -= taken as u64;
        self.state = State::Chunk(chunk);
        if chunk.left == 0 {
            self.chunk_end(chunk, books, out);
        } else if chunk.refusal.is_none() {
            self.amid(books, out);
        }
        taken
    }

    fn chunk_end(&mut self, chunk: Chunk, books: &mut Books, out: &mut Vec<u8>) {
        if let Some(refusal) = chunk.refusal {
            self.refuse(Some(Verb::Data), refusal, books, out);
            if self.state != State::Closed {
                self.fail_chunk(chunk);
            }
        } else if chunk.last {
            self.end(books, out);
        } else if books.offer().is_too_large(self.content.octets()) {
            self.refuse(Some(Verb::Data), TOO_LARGE, books, out);
            self.state = State::Failed;
        } else if std::mem::take(&mut self.replied) {
            self.state = State::Failed;
        } else {
            let action = books.faults().pick(Verb::Data);
            let done = self.reply(Verb::Data, action, b"250 2.0.0 Chunk received\r\n", books, out);
            if self.state != State::Closed {
                self.state = if done { State::Chunks } else { State::Failed };
            }
        }
    }

    fn fail_chunk(&mut self, chunk: Chunk) {
        match (chunk.fails, chunk.last) {
            (false, _) => self.state = self.before_chunk,
            (true, false) => self.state = State::Failed,
            (true, true) => self.reset(),
        }
    }

    /// Something may go wrong amid the content.
    fn amid(&mut self, books: &mut Books, out: &mut Vec<u8>) {
        let Some(action) = self.content.reached(books).and_then(|at| books.faults().pick_body(at)) else { return };
        books.note_action(Verb::Body, &action);
        match action {
            Action::Reply { ref lines, literal } => {
                say(books, lines, literal, out);
                self.content.spare();
                self.replied = true;
                if action.closes() {
                    (self.state, self.pace) = (State::Closed, Pace::Close);
                }
            }
            Action::Hang => self.pace = Pace::Hang { reads: false },
            Action::Reset => self.pace = Pace::Reset,
            Action::Close => self.pace = Pace::Close,
            Action::Garbage => noise(out),
            Action::Early => books.offer().say(RECEIVED, out),
            Action::Slow(time) => self.pace = Pace::Wait(time),
        }
    }

    /// The content is complete.
    fn end(&mut self, books: &mut Books, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.replied) {
            return self.reset();
        }
        if books.offer().is_too_large(self.content.octets()) {
            self.reset();
            return self.refuse(Some(Verb::End), TOO_LARGE, books, out);
        }
        let action = books.faults().pick(Verb::End);
        if !matches!(action, Some(Action::Reply { .. })) {
            let by_chunks = matches!(self.state, State::Chunk(_));
            self.envelope.line(if by_chunks { b"BDAT" } else { b"DATA" });
            let mut owed = Vec::new();
            match action {
                None | Some(Action::Early) => self.content.finish(&self.envelope, books, &mut self.owed),
                Some(Action::Slow(_)) => {
                    self.content.finish(&self.envelope, books, &mut self.late_owed);
                    books.delay(&self.late_owed);
                }
                _ => {
                    self.content.finish(&self.envelope, books, &mut owed);
                    books.unanswered(&mut owed, &self.envelope);
                }
            }
        }
        self.reset();
        self.reply(Verb::End, action, RECEIVED, books, out);
    }

    fn command_line(&mut self, input: &[u8], books: &mut Books, out: &mut Vec<u8>) -> usize {
        let Some(end) = memchr::memchr(b'\n', input) else {
            self.hold(input);
            return input.len();
        };
        let taken = end + 1;
        if self.skipping || self.line.len() + taken > LINE_OCTETS_MAX {
            self.skipping = false;
            self.line.clear();
            self.refuse(None, b"500 5.5.6 Line too long\r\n", books, out);
        } else if self.line.is_empty() {
            self.command(trim(&input[..end]), books, out);
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&input[..end]);
            self.command(trim(&line), books, out);
            line.clear();
            self.line = line;
        }
        taken
    }

    fn hold(&mut self, input: &[u8]) {
        if self.skipping || self.line.len() + input.len() > LINE_OCTETS_MAX {
            self.skipping = true;
            self.line.clear();
        } else {
            self.line.extend_from_slice(input);
        }
    }

    fn command(&mut self, line: &[u8], books: &mut Books, out: &mut Vec<u8>) {
        let verb_len = memchr::memchr(b' ', line).unwrap_or(line.len());
        let (verb, rest) = line.split_at(verb_len);
        let is = |name: &[u8]| verb.eq_ignore_ascii_case(name);
        if is(b"BDAT") {
            return self.bdat(rest, books, out);
        }
        if self.is_ahead(books, out) {
            return self.refuse(None, NOT_PIPELINED, books, out);
        }
        if is(b"QUIT") {
            let action = books.faults().pick(Verb::Quit);
            if self.reply(Verb::Quit, action, b"221 2.0.0 Bye\r\n", books, out) {
                self.state = State::Closed;
            }
        } else if self.state == State::Refused {
            self.refuse(None, b"503 5.5.1 Not served\r\n", books, out);
        } else if is(b"MAIL") {
            self.mail(line, books, out);
        } else if is(b"RCPT") {
            self.rcpt(line, books, out);
        } else if is(b"DATA") {
            self.data(books, out);
        } else if is(b"EHLO") || is(b"HELO") {
            self.hello(is(b"EHLO"), rest, books, out);
        } else if is(b"RSET") {
            let action = books.faults().pick(Verb::Rset);
            if self.reply(Verb::Rset, action, b"250 2.0.0 Reset\r\n", books, out) && self.is_greeted() {
                self.reset();
            }
        } else if is(b"NOOP") {
            books.offer().say(b"250 2.0.0 OK\r\n", out);
        } else if is(b"VRFY") {
            books.offer().say(b"252 2.5.0 Cannot verify\r\n", out);
        } else {
            self.refuse(None, b"500 5.5.1 Unknown command\r\n", books, out);
        }
    }

    fn hello(&mut self, esmtp: bool, name: &[u8], books: &mut Books, out: &mut Vec<u8>) {
        let verb = if esmtp { Verb::Ehlo } else { Verb::Helo };
        let action = books.faults().pick(verb);
        let reply = if esmtp { books.offer().ehlo_reply() } else { books.offer().helo_reply() }.to_vec();
        if self.reply(verb, action, &reply, books, out) {
            self.esmtp = esmtp;
            self.envelope.greet(esmtp, name, books.dumps());
            self.reset();
        }
    }

    fn mail(&mut self, line: &[u8], books: &mut Books, out: &mut Vec<u8>) {
        const VERB: Option<Verb> = Some(Verb::Mail);
        if self.state != State::Ready {
            return self.refuse(VERB, b"503 5.5.1 MAIL out of order\r\n", books, out);
        }
        let Some((_, parameters)) = path(line, b"MAIL FROM:<") else {
            return self.refuse(VERB, b"501 5.5.4 Use MAIL FROM:<path>\r\n", books, out);
        };
        if let Some(refusal) = books.offer().refuse_mail(self.esmtp, parameters) {
            return self.refuse(VERB, refusal, books, out);
        }
        let action = books.faults().pick(Verb::Mail);
        if self.reply(Verb::Mail, action, b"250 2.1.0 Sender OK\r\n", books, out) {
            self.transactions += 1;
            books.note_transaction(self.transactions);
            self.envelope.begin(self.transactions);
            self.envelope.line(line);
            self.state = State::Envelope(0);
        }
    }

    fn rcpt(&mut self, line: &[u8], books: &mut Books, out: &mut Vec<u8>) {
        const VERB: Option<Verb> = Some(Verb::Rcpt);
        let State::Envelope(recipients) = self.state else {
            return self.refuse(VERB, b"503 5.5.1 RCPT out of order\r\n", books, out);
        };
        let Some((recipient, parameters)) = path(line, b"RCPT TO:<") else {
            return self.refuse(VERB, b"501 5.5.4 Use RCPT TO:<path>\r\n", books, out);
        };
        if let Some(refusal) = books.offer().refuse_rcpt(self.esmtp, parameters) {
            return self.refuse(VERB, refusal, books, out);
        }
        if recipients == RECIPIENTS_MAX {
            return self.refuse(VERB, b"452 4.5.3 Too many recipients\r\n", books, out);
        }
        let action = books.faults().pick_recipient(recipient);
        if self.reply(Verb::Rcpt, action, b"250 2.1.5 Recipient OK\r\n", books, out) {
            self.envelope.recipient(line);
            self.state = State::Envelope(recipients + 1);
        }
    }

    fn data(&mut self, books: &mut Books, out: &mut Vec<u8>) {
        if !matches!(self.state, State::Envelope(1..)) {
            return self.refuse(Some(Verb::Data), b"503 5.5.1 DATA out of order\r\n", books, out);
        }
        let action = books.faults().pick(Verb::Data);
        if self.reply(Verb::Data, action, b"354 End with CRLF.CRLF\r\n", books, out) {
            self.content.begin(books);
            self.state = State::Data;
        }
    }

    /// `BDAT n [LAST]`. Its octets follow whatever becomes of it; only when their number cannot be read the session
    /// has to end.
    fn bdat(&mut self, arguments: &[u8], books: &mut Books, out: &mut Vec<u8>) {
        let mut words = arguments.split(|octet| *octet == b' ').filter(|word| !word.is_empty());
        let size = words.next().filter(|word| word.iter().all(u8::is_ascii_digit));
        let size = size.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let last = words.next().map(|word| word.eq_ignore_ascii_case(b"LAST"));
        let (Some(left), None | Some(true), None) = (size, last, words.next()) else {
            self.refuse(Some(Verb::Data), b"501 5.5.4 Use BDAT size [LAST]\r\n", books, out);
            (self.state, self.pace) = (State::Closed, Pace::Close);
            return;
        };
        let offered = self.has(Extension::Chunking, books);
        let refusal: Option<&[u8]> = match self.state {
            _ if !offered => Some(b"502 5.5.1 CHUNKING was not offered\r\n"),
            _ if self.is_ahead(books, out) => Some(NOT_PIPELINED),
            State::Envelope(1..) | State::Chunks => None,
            _ => Some(b"503 5.5.1 BDAT out of order\r\n"),
        };
        let fails = offered && matches!(self.state, State::Envelope(_) | State::Chunks | State::Failed);
        if refusal.is_none() && self.state != State::Chunks {
            self.content.begin(books);
        }
        self.before_chunk = self.state;
        let chunk = Chunk { left, last: last.is_some(), refusal, fails };
        self.state = State::Chunk(chunk);
        if left == 0 {
            self.chunk_end(chunk, books, out);
        }
    }

    /// Back to a state without a transaction.
    fn reset(&mut self) {
        self.state = State::Ready;
        self.envelope.reset();
        self.content.reset();
        self.replied = false;
    }

    fn is_greeted(&self) -> bool {
        !matches!(self.state, State::Fresh | State::Refused)
    }

    /// Whether the client did not wait for a reply, which it may not unless that was offered: one has not left yet.
    fn is_ahead(&self, books: &Books, out: &[u8]) -> bool {
        !out.is_empty() && self.is_greeted() && !self.has(Extension::Pipelining, books)
    }

    fn has(&self, extension: Extension, books: &Books) -> bool {
        self.esmtp && books.offer().has(extension)
    }

    /// Replies to a command that can be accepted, or does what goes wrong instead. False when it is refused by that.
    fn reply(
        &mut self,
        verb: Verb,
        action: Option<Action>,
        reply: &[u8],
        books: &mut Books,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some(action) = action else {
            say(books, reply, is_whole(verb), out);
            return true;
        };
        books.note_action(verb, &action);
        match action {
            Action::Reply { ref lines, literal } => {
                say(books, lines, literal, out);
                if action.closes() {
                    (self.state, self.pace) = (State::Closed, Pace::Close);
                }
                return false;
            }
            Action::Hang => self.pace = Pace::Hang { reads: true },
            Action::Reset => self.pace = Pace::Reset,
            Action::Close => self.pace = Pace::Close,
            Action::Garbage => noise(out),
            Action::Early => (0..2).for_each(|_| say(books, reply, is_whole(verb), out)),
            Action::Slow(time) => {
                say(books, reply, is_whole(verb), &mut self.late);
                self.pace = Pace::Wait(time);
            }
        }
        true
    }

    fn refuse(&mut self, verb: Option<Verb>, reply: &[u8], books: &mut Books, out: &mut Vec<u8>) {
        books.note_refusal(verb);
        self.errors += 1;
        if self.errors < ERRORS_MAX {
            books.offer().say(reply, out);
        } else {
            (self.state, self.pace) = (State::Closed, Pace::Close);
            books.offer().say(b"421 4.7.0 Too many errors\r\n", out);
        }
    }
}

const NOT_PIPELINED: &[u8] = b"503 5.5.1 Pipelining was not offered\r\n";
const RECEIVED: &[u8] = b"250 2.0.0 Message received\r\n";

/// Whether replies of this kind have no enhanced code to leave out (RFC 2034 section 4), or never had one.
fn is_whole(verb: Verb) -> bool {
    matches!(verb, Verb::Connect | Verb::Ehlo | Verb::Helo)
}

fn say(books: &Books, reply: &[u8], whole: bool, out: &mut Vec<u8>) {
    // 354 is a reply of ours without an enhanced code.
    if whole || reply.starts_with(b"354") {
        out.extend_from_slice(reply);
    } else {
        books.offer().say(reply, out);
    }
}

fn trim(line: &[u8]) -> &[u8] {
    line.trim_ascii_end()
}

/// The path and the parameters of a command that begins so; a `>` in a quoted local part is part of the path.
fn path<'a>(line: &'a [u8], prefix: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (start, rest) = line.split_at_checked(prefix.len())?;
    let (mut quoted, mut escaped) = (false, false);
    let end = rest.iter().position(|octet| {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return true,
            _ => {}
        }
        false
    })?;
    let parameters = &rest[end + 1..];
    let valid = start.eq_ignore_ascii_case(prefix) && (parameters.is_empty() || parameters.starts_with(b" "));
    valid.then_some((&rest[..end], parameters))
}
