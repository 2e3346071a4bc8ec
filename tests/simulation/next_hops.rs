//! Next hops: small servers that fail in every way, and tell the judge what they took.

use crate::judge::Taken;
use crate::random::Random;
use crate::world::{Event, World};
use std::collections::BTreeMap;

/// How a next hop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Healthy,
    /// So many of a hundred of its replies are wrong.
    Flaky(u64),
    /// Connections are refused.
    Refusing,
    /// Connections are answered by nobody.
    Silent,
    /// The greeting is a 554.
    Unwelcoming,
    /// Takes two recipients at once.
    Narrow,
}

/// What goes wrong at one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Temporary,
    Permanent,
    /// 421, and the end.
    ShuttingDown,
    /// The connection ends.
    Drop,
    /// Nothing more is said.
    Hang,
    /// What is said is no reply.
    Garbage,
}

/// A next hop.
pub struct NextHop {
    pub mood: Mood,
    extensions: Vec<&'static str>,
    pub connections: BTreeMap<u64, Connection>,
}

/// One of its connections.
#[derive(Default)]
pub struct Connection {
    pub worker: u64,
    pub life: u64,
    input: Vec<u8>,
    reading: Reading,
    sender: Option<Vec<u8>>,
    recipients: Vec<String>,
    content: Vec<u8>,
    /// The reply to MAIL was given.
    is_greeted: bool,
    /// It reads and says nothing more.
    is_dead: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Commands,
    Data,
    Chunk(usize, bool),
}

impl NextHop {
    pub fn new(random: &mut Random) -> Self {
        let all = ["PIPELINING", "CHUNKING", "SIZE 10000000", "8BITMIME", "DSN"];
        let extensions =
            if random.percent(15) { Vec::new() } else { all.into_iter().filter(|_| random.percent(70)).collect() };
        NextHop { mood: Mood::Healthy, extensions, connections: BTreeMap::new() }
    }

    /// Whether it has a connection that works, as far as the other end can know: then one that it refuses
    /// is one too many, and is no sign that it is down.
    pub fn is_serving(&self) -> bool {
        self.connections.values().any(|connection| connection.is_greeted)
    }
}

impl World {
    /// Somebody connects.
    pub fn next_hop_is_called(&mut self, next_hop: usize, connection: u64, worker: u64, life: u64) {
        let mood = self.next_hops[next_hop].mood;
        if !matches!(mood, Mood::Healthy | Mood::Flaky(_) | Mood::Narrow) && !self.next_hops[next_hop].is_serving() {
            self.judge.failed_connect(self.now_ms, next_hop);
        }
        if mood == Mood::Refusing {
            return self.send_to_worker(life, worker, connection, None, None);
        }
        let entry = Connection { worker, life, is_dead: mood == Mood::Silent, ..Connection::default() };
        self.next_hops[next_hop].connections.insert(connection, entry);
        match mood {
            Mood::Silent => {}
            Mood::Unwelcoming => {
                self.next_hop_says(next_hop, connection, "554 5.3.2 not now", None);
                self.next_hop_drops(next_hop, connection);
            }
            _ => match self.fault(next_hop) {
                None => self.next_hop_says(next_hop, connection, "220 hop.test ESMTP", None),
                Some(fault) => self.next_hop_fails(next_hop, connection, fault),
            },
        }
    }

    fn fault(&mut self, next_hop: usize) -> Option<Fault> {
        let Mood::Flaky(percent) = self.next_hops[next_hop].mood else { return None };
        if !self.random.percent(percent) {
            return None;
        }
        use Fault::*;
        Some(self.random.pick(&[Temporary, Temporary, Temporary, Permanent, ShuttingDown, Drop, Drop, Hang, Garbage]))
    }

    fn next_hop_fails(&mut self, next_hop: usize, connection: u64, fault: Fault) {
        match fault {
            Fault::Temporary => self.next_hop_says(next_hop, connection, "451 4.3.0 not now", None),
            Fault::Permanent => self.next_hop_says(next_hop, connection, "550 5.1.1 never", None),
            Fault::ShuttingDown => {
                self.next_hop_says(next_hop, connection, "421 4.3.2 going down", None);
                self.next_hop_drops(next_hop, connection);
            }
            Fault::Drop => self.next_hop_drops(next_hop, connection),
            Fault::Hang => {
                if let Some(entry) = self.next_hops[next_hop].connections.get_mut(&connection) {
                    entry.is_dead = true;
                }
            }
            Fault::Garbage => {
                self.next_hop_says(next_hop, connection, "what?", None);
                self.next_hop_drops(next_hop, connection);
            }
        }
    }

    fn next_hop_says(&mut self, next_hop: usize, connection: u64, line: &str, taken: Option<Taken>) {
        let Some(entry) = self.next_hops[next_hop].connections.get(&connection) else { return };
        let (life, worker) = (entry.life, entry.worker);
        self.send_to_worker(life, worker, connection, Some(format!("{line}\r\n").into_bytes()), taken);
    }

    fn next_hop_drops(&mut self, next_hop: usize, connection: u64) {
        if let Some(entry) = self.next_hops[next_hop].connections.remove(&connection) {
            self.send_to_worker(entry.life, entry.worker, connection, None, None);
        }
    }

    /// Octets from a worker, or the end of its connection.
    pub fn next_hop_hears(&mut self, next_hop: usize, connection: u64, input: Option<Vec<u8>>) {
        let Some(input) = input else {
            self.next_hops[next_hop].connections.remove(&connection);
            return;
        };
        if let Some(entry) = self.next_hops[next_hop].connections.get_mut(&connection) {
            entry.input.extend_from_slice(&input);
        }
        while self.next_hop_reads(next_hop, connection) {}
    }

    /// Takes one line or chunk. False: there is none.
    fn next_hop_reads(&mut self, next_hop: usize, connection: u64) -> bool {
        let Some(entry) = self.next_hops[next_hop].connections.get_mut(&connection) else { return false };
        if entry.is_dead {
            return false;
        }
        if let Reading::Chunk(left, is_last) = entry.reading {
            let length = left.min(entry.input.len());
            entry.content.extend(entry.input.drain(..length));
            entry.reading = Reading::Chunk(left - length, is_last);
            if length < left {
                return false;
            }
            entry.reading = Reading::Commands;
            if is_last {
                self.next_hop_has_all(next_hop, connection);
            } else {
                self.next_hop_says(next_hop, connection, "250 2.0.0 more", None);
            }
            return true;
        }
        let Some(end) = entry.input.windows(2).position(|pair| pair == b"\r\n") else { return false };
        let line: Vec<u8> = entry.input.drain(..end + 2).collect();
        if entry.reading == Reading::Data {
            if line == b".\r\n" {
                entry.reading = Reading::Commands;
                self.next_hop_has_all(next_hop, connection);
            } else {
                entry.content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
            }
            return true;
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        self.next_hop_obeys(next_hop, connection, &text);
        true
    }

    fn next_hop_obeys(&mut self, next_hop: usize, connection: u64, text: &str) {
        let fault = self.fault(next_hop);
        let verb = text.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let extensions = self.next_hops[next_hop].extensions.clone();
        let is_calm = self.settings.is_calm;
        let is_narrow = self.next_hops[next_hop].mood == Mood::Narrow;
        let Some(entry) = self.next_hops[next_hop].connections.get_mut(&connection) else { return };
        let path = text.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| path.to_owned());
        let life = entry.life;
        match (&*verb, fault) {
            ("RCPT", fault) => {
                let (Some(path), sender) = (path, entry.sender.clone()) else { return };
                let Some(sender) = sender else {
                    return self.next_hop_says(next_hop, connection, "503 5.5.1 MAIL first", None);
                };
                // There is always somebody whom nobody knows.
                let fault = if is_calm && path.starts_with("r5@") { Some(Fault::Permanent) } else { fault };
                let is_full = is_narrow && entry.recipients.len() >= 2;
                if !is_full && fault.is_none() {
                    entry.recipients.push(path.clone());
                }
                self.judge.attempted(self.now_ms, life, &sender, &path);
                match fault {
                    _ if is_full => {
                        self.judge.may_repeat(&sender, &path);
                        self.next_hop_says(next_hop, connection, "452 4.5.3 too many", None);
                    }
                    Some(fault) => {
                        if fault == Fault::Permanent {
                            self.judge.refused_by_next_hop(&sender, &path);
                        }
                        self.next_hop_fails(next_hop, connection, fault);
                    }
                    None => self.next_hop_says(next_hop, connection, "250 2.1.5 ok", None),
                }
            }
            ("MAIL", fault) => {
                let sender = path.unwrap_or_default().into_bytes();
                entry.recipients.clear();
                entry.content.clear();
                // A refusal of MAIL is one of all its recipients: those that are read are remembered.
                entry.sender = (fault.is_none()).then(|| sender.clone());
                match fault {
                    Some(Fault::Permanent) => {
                        self.next_hop_refuses_all(&sender);
                        self.next_hop_says(next_hop, connection, "550 5.7.1 not from you", None);
                    }
                    Some(fault) => self.next_hop_fails(next_hop, connection, fault),
                    None => self.next_hop_says(next_hop, connection, "250 2.1.0 ok", None),
                }
            }
            ("EHLO" | "HELO", Some(fault)) => self.next_hop_fails(next_hop, connection, fault),
            ("EHLO", None) if extensions.is_empty() => {
                self.next_hop_says(next_hop, connection, "502 5.5.1 what?", None)
            }
            ("EHLO", None) => {
                entry.is_greeted = true;
                let mut lines = String::from("250-hop.test");
                for (place, extension) in extensions.iter().enumerate() {
                    let between = if place + 1 == extensions.len() { ' ' } else { '-' };
                    lines.push_str(&format!("\r\n250{between}{extension}"));
                }
                self.next_hop_says(next_hop, connection, &lines, None);
            }
            ("HELO", None) => {
                entry.is_greeted = true;
                self.next_hop_says(next_hop, connection, "250 hop.test", None);
            }
            ("RSET", _) => {
                entry.sender = None;
                self.next_hop_says(next_hop, connection, "250 2.0.0 ok", None);
            }
            ("QUIT", _) => {
                self.next_hop_says(next_hop, connection, "221 2.0.0 bye", None);
                self.next_hop_drops(next_hop, connection);
            }
            ("DATA", fault) => {
                if entry.sender.is_none() || entry.recipients.is_empty() {
                    return self.next_hop_says(next_hop, connection, "503 5.5.1 no recipients", None);
                }
                match fault {
                    Some(fault) => {
                        if fault == Fault::Permanent {
                            self.next_hop_refuses_transaction(next_hop, connection);
                        }
                        self.next_hop_fails(next_hop, connection, fault);
                    }
                    None => {
                        entry.reading = Reading::Data;
                        self.next_hop_says(next_hop, connection, "354 go on", None);
                    }
                }
            }
            ("BDAT", _) => {
                let mut words = text.split(' ').skip(1);
                let octets = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                entry.reading = Reading::Chunk(octets, words.next().is_some());
            }
            _ => self.next_hop_says(next_hop, connection, "500 5.5.2 what?", None),
        }
    }

    fn next_hop_refuses_all(&mut self, sender: &[u8]) {
        let recipients: Vec<String> = self.judge.recipients_of(sender);
        for recipient in recipients {
            self.judge.refused_by_next_hop(sender, &recipient);
        }
    }

    fn next_hop_refuses_transaction(&mut self, next_hop: usize, connection: u64) {
        let Some(entry) = self.next_hops[next_hop].connections.get(&connection) else { return };
        let Some(sender) = entry.sender.clone() else { return };
        for recipient in entry.recipients.clone() {
            self.judge.refused_by_next_hop(&sender, &recipient);
        }
    }

    /// The whole message is there.
    fn next_hop_has_all(&mut self, next_hop: usize, connection: u64) {
        let fault = self.fault(next_hop);
        let takes_it = fault.is_none() || matches!(fault, Some(Fault::Drop | Fault::Hang) if self.random.percent(50));
        let Some(entry) = self.next_hops[next_hop].connections.get_mut(&connection) else { return };
        let life = entry.life;
        let Some(sender) = entry.sender.take() else { return };
        let recipients = std::mem::take(&mut entry.recipients);
        let content = std::mem::take(&mut entry.content);
        if fault == Some(Fault::Permanent) {
            for recipient in &recipients {
                self.judge.refused_by_next_hop(&sender, recipient);
            }
        }
        let mut taken = None;
        if takes_it {
            taken = self.judge.delivered(life, &sender, &recipients, &content);
            self.note(|| format!("next hop {next_hop} takes {} for {recipients:?}", sender.escape_ascii()));
            self.delivery_happened();
        }
        match fault {
            Some(fault) => self.next_hop_fails(next_hop, connection, fault),
            None if self.random.percent(5) && self.next_hops[next_hop].mood != Mood::Healthy => {
                // It takes its time.
                let wait_ms = self.random.between(10_000, 70_000);
                self.after(wait_ms, Event::LateReply { next_hop, connection, taken });
            }
            None => self.next_hop_says(next_hop, connection, "250 2.0.0 taken", taken),
        }
    }

    /// The reply that took its time.
    pub fn next_hop_replies_late(&mut self, next_hop: usize, connection: u64, taken: Option<Taken>) {
        self.next_hop_says(next_hop, connection, "250 2.0.0 taken at last", taken);
    }
}
