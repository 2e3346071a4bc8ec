//! Clients: each has messages to send, and sends each until it has a 250 for it, as RFC 1047
//! says; in pieces, pipelined or not, with DATA or BDAT; and hangs up where it likes.

use crate::judge::{Message, Submission, reverse_path};
use crate::world::{Event, World};
use std::collections::VecDeque;

/// What a reply is awaited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Banner,
    Hello,
    /// Of the envelope, or a chunk that is not the last.
    Envelope,
    Data,
    /// The message's own reply.
    Final,
    Reset,
    Quit,
}

/// A whim, at one point of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whim {
    None,
    /// Hangs up when so many octets have left.
    HangUpAfter(usize),
    /// Hangs up when all has left, without waiting for the reply.
    HangUpAtEnd,
    /// Says RSET in the place of the content, then begins again.
    Reset,
    /// Says QUIT there.
    Quit,
}

/// A client.
pub struct Client {
    to_send: VecDeque<u64>,
    connection: Option<u64>,
    submissions: u64,
    awaited: VecDeque<Awaited>,
    input: Vec<u8>,
    /// What is to be said when the awaited replies have come.
    next: VecDeque<(Vec<u8>, Vec<Awaited>)>,
    content: Vec<u8>,
    whim: Whim,
    sent: usize,
}

impl Client {
    pub fn new(to_send: VecDeque<u64>) -> Self {
        Client {
            to_send,
            connection: None,
            submissions: 0,
            awaited: VecDeque::new(),
            input: Vec::new(),
            next: VecDeque::new(),
            content: Vec::new(),
            whim: Whim::None,
            sent: 0,
        }
    }

    /// Whether it has a 250 for all.
    pub fn is_done(&self) -> bool {
        self.to_send.is_empty()
    }
}

impl World {
    /// A client's time has come: it connects.
    pub fn client_wakes(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if client.connection.is_some() || client.is_done() {
            return;
        }
        self.last_connection += 1;
        let connection = self.last_connection;
        client.connection = Some(connection);
        client.awaited = [Awaited::Banner].into();
        client.next.clear();
        client.input.clear();
        client.whim = Whim::None;
        self.connect_client(number, connection);
    }

    /// The connection has ended, or octets came.
    pub fn client_hears(&mut self, number: usize, connection: u64, input: Option<Vec<u8>>) {
        if self.clients[number].connection != Some(connection) {
            return;
        }
        let Some(input) = input else { return self.client_pauses(number) };
        self.clients[number].input.extend_from_slice(&input);
        while let Some(line) = self.next_reply_line(number) {
            // Of a reply with several lines the last one counts.
            if line.get(3) != Some(&b'-') && !self.client_is_answered(number, &line) {
                return;
            }
        }
    }

    fn next_reply_line(&mut self, number: usize) -> Option<Vec<u8>> {
        let input = &mut self.clients[number].input;
        let end = input.windows(2).position(|pair| pair == b"\r\n")?;
        Some(input.drain(..end + 2).collect())
    }

    /// False: the connection is gone.
    fn client_is_answered(&mut self, number: usize, line: &[u8]) -> bool {
        let client = &mut self.clients[number];
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        let Some(awaited) = client.awaited.pop_front() else {
            if !text.starts_with('4') {
                self.judge.blame(format!("client {number} was told {text:?}, and had asked nothing"));
            }
            self.client_hangs_up(number);
            return false;
        };
        let is_good = matches!(line[0], b'2' | b'3');
        if !is_good {
            // A sound client's commands are refused only for now.
            if line[0] != b'4' && !text.starts_with("503") {
                self.judge.blame(format!("client {number} was told {text:?}"));
            }
            self.client_hangs_up(number);
            return false;
        }
        match awaited {
            Awaited::Banner => self.client_says(number, b"EHLO client.test\r\n".to_vec(), &[Awaited::Hello]),
            Awaited::Hello | Awaited::Reset => self.client_begins(number),
            Awaited::Data => {
                let content = std::mem::take(&mut self.clients[number].content);
                self.client_says(number, content, &[Awaited::Final]);
            }
            Awaited::Envelope => {}
            Awaited::Final => {
                self.clients[number].to_send.pop_front();
                let goes_on =
                    self.random.percent(if self.settings.is_calm { 20 } else { 70 }) && !self.clients[number].is_done();
                if goes_on {
                    self.client_begins(number);
                } else {
                    self.client_says(number, b"QUIT\r\n".to_vec(), &[Awaited::Quit]);
                }
            }
            Awaited::Quit => {
                self.client_hangs_up(number);
                return false;
            }
        }
        let client = &mut self.clients[number];
        if client.awaited.is_empty()
            && let Some((octets, awaited)) = client.next.pop_front()
        {
            self.client_says(number, octets, &awaited);
        }
        self.clients[number].connection.is_some()
    }

    /// Begins a transaction.
    fn client_begins(&mut self, number: usize) {
        let Some(&token) = self.clients[number].to_send.front() else { return };
        let client = &mut self.clients[number];
        client.submissions += 1;
        let submission = (token, client.submissions * 100 + number as u64);
        let message = self.judge.messages[&token].clone();
        let total = message.content.len() + 200;
        client.sent = 0;
        client.whim = match self.random.below(100) {
            _ if self.is_healing => Whim::None,
            0..8 => Whim::HangUpAfter(self.random.place(total)),
            8..13 => Whim::HangUpAtEnd,
            13..17 => Whim::Reset,
            17..20 => Whim::Quit,
            _ => Whim::None,
        };
        let mut commands = self.commands(submission, &message);
        if let Whim::Reset | Whim::Quit = self.clients[number].whim {
            let (verb, awaited) = if self.clients[number].whim == Whim::Reset {
                (&b"RSET\r\n"[..], Awaited::Reset)
            } else {
                (&b"QUIT\r\n"[..], Awaited::Quit)
            };
            let kept = 1 + self.random.place(commands.len() - 2);
            commands.truncate(kept);
            commands.push((verb.to_vec(), vec![awaited]));
        }
        self.note(|| format!("client {number} submits {submission:?}"));
        let is_pipelined = self.random.percent(50);
        let client = &mut self.clients[number];
        client.next = commands.into();
        if is_pipelined {
            // One group: up to DATA, or all of it with BDAT.
            let mut octets = Vec::new();
            let mut awaited = Vec::new();
            for (command, replies) in client.next.drain(..) {
                octets.extend_from_slice(&command);
                awaited.extend(replies);
            }
            self.client_says(number, octets, &awaited);
        } else if let Some((octets, awaited)) = self.clients[number].next.pop_front() {
            self.client_says(number, octets, &awaited);
        }
    }

    /// A transaction's commands, each with the replies it will have. The content that follows 354
    /// is put aside.
    fn commands(&mut self, submission: Submission, message: &Message) -> Vec<(Vec<u8>, Vec<Awaited>)> {
        let mut commands =
            vec![(format!("MAIL FROM:<{}>\r\n", reverse_path(submission)).into_bytes(), vec![Awaited::Envelope])];
        for recipient in &message.recipients {
            commands.push((format!("RCPT TO:<{recipient}>\r\n").into_bytes(), vec![Awaited::Envelope]));
        }
        let number = (submission.1 % 100) as usize;
        if self.random.percent(40) {
            let mut rest = &message.content[..];
            while !rest.is_empty() {
                let length = if self.random.percent(50) { rest.len() } else { 1 + self.random.place(rest.len() - 1) };
                let (chunk, after) = rest.split_at(length);
                let (last, awaited) =
                    if after.is_empty() { (" LAST", Awaited::Final) } else { ("", Awaited::Envelope) };
                let mut octets = format!("BDAT {length}{last}\r\n").into_bytes();
                octets.extend_from_slice(chunk);
                commands.push((octets, vec![awaited]));
                rest = after;
            }
        } else {
            commands.push((b"DATA\r\n".to_vec(), vec![Awaited::Data]));
            self.clients[number].content = stuffed(&message.content);
        }
        commands
    }

    /// Sends octets in pieces, or a part of them, then hangs up.
    fn client_says(&mut self, number: usize, octets: Vec<u8>, awaited: &[Awaited]) {
        let client = &mut self.clients[number];
        let Some(connection) = client.connection else { return };
        client.awaited.extend(awaited);
        let is_end = awaited.contains(&Awaited::Final);
        let (sent, hangs_up) = match client.whim {
            Whim::HangUpAfter(after) if client.sent + octets.len() > after => (after - client.sent.min(after), true),
            Whim::HangUpAtEnd if is_end => (octets.len(), true),
            _ => (octets.len(), false),
        };
        client.sent += sent;
        let mut rest = &octets[..sent];
        while !rest.is_empty() {
            let length = if self.random.percent(50) { rest.len() } else { 1 + self.random.place(rest.len() - 1) };
            let (piece, after) = rest.split_at(length);
            self.send_to_server(connection, Some(piece.to_vec()));
            rest = after;
        }
        if hangs_up {
            self.note(|| format!("client {number} hangs up in the middle"));
            self.client_hangs_up(number);
        }
    }

    fn client_hangs_up(&mut self, number: usize) {
        if let Some(connection) = self.clients[number].connection {
            self.send_to_server(connection, None);
        }
        self.client_pauses(number);
    }

    /// It has no connection: it comes again later.
    fn client_pauses(&mut self, number: usize) {
        self.clients[number].connection = None;
        let longest_ms = if self.settings.is_calm { 60_000 } else { 15_000 };
        let wait_ms = self.random.between(500, longest_ms);
        self.after(wait_ms, Event::Client(number));
    }
}

/// The content as it stands behind DATA, with its end.
fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 16);
    for line in content.split_inclusive(|&octet| octet == b'\n') {
        if line.first() == Some(&b'.') {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    out.extend_from_slice(b".\r\n");
    out
}
