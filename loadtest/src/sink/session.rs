//! A receiving session without a socket: input in any pieces, replies into a buffer that leaves once per read.
//!
//! Everything well-formed is accepted; order of commands is enforced as far as a relay's mistakes would otherwise go
//! unseen (503). Replies to pipelined commands gather in order. What a peer sends can end its session, nothing else.

use super::data::Decoder;
use super::dump::{Dump, Envelope};
use super::lane::Books;
use crate::message::verify::Verifier;

/// Longest command line with its line end. Generous: parameters of extensions add up.
const LINE_OCTETS_MAX: usize = 4096;
/// Most recipients of one message.
const RECIPIENTS_MAX: usize = 100_000;
/// Commands that make no sense before a session is closed.
const ERRORS_MAX: u32 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No HELO or EHLO yet.
    Fresh,
    /// Between transactions.
    Ready,
    /// Behind MAIL, with so many recipients.
    Envelope(usize),
    /// Behind 354.
    Data,
    /// Behind QUIT or too many errors.
    Closed,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    state: State,
    /// The start of a command line whose end has not come.
    line: Vec<u8>,
    /// The line is too long: the rest is skipped up to its end.
    skipping: bool,
    errors: u32,
    decoder: Decoder,
    verifier: Verifier,
    octets: u64,
    envelope: Envelope,
    dump: Option<Dump>,
}

impl Session {
    /// A session with a client that has just connected.
    pub fn new(client: String) -> Self {
        Self {
            state: State::Fresh,
            line: Vec::new(),
            skipping: false,
            errors: 0,
            decoder: Decoder::default(),
            verifier: Verifier::default(),
            octets: 0,
            envelope: Envelope::new(client),
            dump: None,
        }
    }

    /// Whether the session has said its last word.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Takes input and appends the replies to it.
    pub fn feed(&mut self, mut input: &[u8], books: &mut Books, out: &mut Vec<u8>) {
        while !input.is_empty() && self.state != State::Closed {
            let taken = match self.state {
                State::Data => self.content(input, books, out),
                _ => self.command_line(input, books, out),
            };
            input = &input[taken..];
        }
    }

    fn content(&mut self, input: &[u8], books: &mut Books, out: &mut Vec<u8>) -> usize {
        let Self { decoder, verifier, octets, dump, .. } = self;
        let (taken, ended) = decoder.feed(input, |content| {
            *octets += content.len() as u64;
            verifier.feed(content);
            if let Some(dump) = dump {
                books.note_fault(dump.write(content));
            }
        });
        if ended {
            books.note(verifier.finish(), *octets);
            if let Some(dump) = dump.take() {
                books.note_fault(dump.finish(&self.envelope));
            }
            self.reset();
            out.extend_from_slice(b"250 2.0.0 Message received\r\n");
        }
        taken
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
            self.refuse(b"500 5.5.6 Line too long\r\n", out);
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
        if is(b"MAIL") {
            self.mail(line, out);
        } else if is(b"RCPT") {
            self.rcpt(line, out);
        } else if is(b"DATA") {
            self.data(books, out);
        } else if is(b"EHLO") || is(b"HELO") {
            self.state = State::Ready;
            self.envelope.greet(rest, books.dumps());
            self.reset();
            out.extend_from_slice(if is(b"EHLO") { books.ehlo_reply() } else { books.helo_reply() });
        } else if is(b"RSET") {
            if self.state != State::Fresh {
                self.reset();
            }
            out.extend_from_slice(b"250 2.0.0 Reset\r\n");
        } else if is(b"NOOP") {
            out.extend_from_slice(b"250 2.0.0 OK\r\n");
        } else if is(b"VRFY") {
            out.extend_from_slice(b"252 2.5.0 Cannot verify\r\n");
        } else if is(b"QUIT") {
            self.state = State::Closed;
            out.extend_from_slice(b"221 2.0.0 Bye\r\n");
        } else {
            self.refuse(b"500 5.5.1 Unknown command\r\n", out);
        }
    }

    fn mail(&mut self, line: &[u8], out: &mut Vec<u8>) {
        if self.state != State::Ready {
            return self.refuse(b"503 5.5.1 MAIL out of order\r\n", out);
        }
        if !starts_with(line, b"MAIL FROM:<") || !line.contains(&b'>') {
            return self.refuse(b"501 5.5.4 Use MAIL FROM:<path>\r\n", out);
        }
        self.envelope.line(line);
        self.state = State::Envelope(0);
        out.extend_from_slice(b"250 2.1.0 Sender OK\r\n");
    }

    fn rcpt(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let State::Envelope(recipients) = self.state else {
            return self.refuse(b"503 5.5.1 RCPT out of order\r\n", out);
        };
        if !starts_with(line, b"RCPT TO:<") || !line.contains(&b'>') {
            return self.refuse(b"501 5.5.4 Use RCPT TO:<path>\r\n", out);
        }
        if recipients == RECIPIENTS_MAX {
            return self.refuse(b"452 4.5.3 Too many recipients\r\n", out);
        }
        self.envelope.line(line);
        self.state = State::Envelope(recipients + 1);
        out.extend_from_slice(b"250 2.1.5 Recipient OK\r\n");
    }

    fn data(&mut self, books: &mut Books, out: &mut Vec<u8>) {
        match self.state {
            State::Envelope(1..) => {
                self.dump = books.begin_dump();
                self.state = State::Data;
                out.extend_from_slice(b"354 End with CRLF.CRLF\r\n");
            }
            _ => self.refuse(b"503 5.5.1 DATA out of order\r\n", out),
        }
    }

    /// Back to a state without a transaction.
    fn reset(&mut self) {
        self.state = State::Ready;
        self.envelope.reset();
        self.decoder.reset();
        self.verifier.reset();
        self.octets = 0;
    }

    fn refuse(&mut self, reply: &[u8], out: &mut Vec<u8>) {
        self.errors += 1;
        if self.errors < ERRORS_MAX {
            out.extend_from_slice(reply);
        } else {
            self.state = State::Closed;
            out.extend_from_slice(b"421 4.7.0 Too many errors\r\n");
        }
    }
}

fn trim(line: &[u8]) -> &[u8] {
    line.trim_ascii_end()
}

fn starts_with(line: &[u8], prefix: &[u8]) -> bool {
    line.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::template::tests::wire;

    fn replies(pieces: &[&[u8]]) -> (String, crate::audit::Report) {
        let mut books = Books::new("sink.example", None, None);
        let mut session = Session::new("test".to_owned());
        let mut out = Vec::new();
        for piece in pieces {
            session.feed(piece, &mut books, &mut out);
        }
        let codes = String::from_utf8(out).unwrap();
        let codes: Vec<_> = codes.lines().filter(|line| line.as_bytes()[3] == b' ').map(|line| &line[..3]).collect();
        (codes.join(" "), books.close().unwrap().report(None))
    }

    fn dialogue() -> Vec<u8> {
        let mut input = b"EHLO c\r\nMAIL FROM:<> SIZE=1\r\nRCPT TO:<a@b>\r\nrcpt to:<c@d>\r\nDATA\r\n".to_vec();
        input.extend_from_slice(&wire(900, true, 1));
        input.extend_from_slice(b"mail FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\n");
        input.extend_from_slice(&wire(700, false, 2));
        input.extend_from_slice(b"NOOP\r\nQUIT\r\nNOOP\r\n");
        input
    }

    #[test]
    fn a_pipelined_session_is_the_same_at_every_split() {
        let input = dialogue();
        for at in 0..=input.len() {
            let (codes, report) = replies(&[&input[..at], &input[at..]]);
            assert_eq!(codes, "250 250 250 250 354 250 250 250 354 250 250 221", "{at}");
            assert_eq!((report.received, report.octets, report.altered, report.foreign), (2, 1600, 0, 0), "{at}");
        }
        let octets: Vec<_> = input.chunks(1).collect();
        assert_eq!(replies(&octets).1.received, 2);
    }

    #[test]
    fn commands_out_of_order_are_refused() {
        for (input, codes) in [
            ("MAIL FROM:<a>\r\n", "503"),
            ("EHLO c\r\nRCPT TO:<a>\r\nDATA\r\n", "250 503 503"),
            ("EHLO c\r\nMAIL FROM:<a>\r\nDATA\r\nMAIL FROM:<b>\r\n", "250 250 503 503"),
            ("HELO c\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nRSET\r\nDATA\r\n", "250 250 250 250 503"),
            ("RSET\r\nMAIL FROM:<a>\r\n", "250 503"),
            ("EHLO c\r\nMAIL FROM:a\r\nMAIL\r\nFOO\r\n\r\nVRFY a\r\n", "250 501 501 500 500 252"),
        ] {
            assert_eq!(replies(&[input.as_bytes()]).0, codes, "{input:?}");
        }
    }

    #[test]
    fn long_lines_and_floods_of_errors_are_bounded() {
        let long = [&vec![b'a'; 3 * LINE_OCTETS_MAX][..], b"\r\nNOOP\r\n"].concat();
        assert_eq!(replies(&[&long]).0, "500 250");
        let pieces: Vec<_> = long.chunks(100).collect();
        assert_eq!(replies(&pieces).0, "500 250");
        let flood = b"FOO\r\n".repeat(1000);
        assert!(replies(&[&flood]).0.ends_with(" 500 421"));
    }
}
