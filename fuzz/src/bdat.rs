//! Sessions with CHUNKING against a model of CONFORMANCE G4 and RFC 3030: every chunk consumes
//! exactly its octets and gets exactly one reply, in any state, and what is stored is what was sent.
//!
//! Input: an octet of settings, three sizes of pieces, then what a client sends. BDAT is taken as
//! it stands there, arguments and all; other lines are taken for the command that they begin with,
//! so that the model need not know the rest of the protocol.

use super::data::{NAMES, naive_header};
use super::driver::{Driver, Policy};
use super::{oracle, pieces, replies};
use gatepost::smtp::reply::Reply;
use gatepost::smtp::server::{Extensions, Profile, Query, Revision, Verdict};
use std::time::Instant;

const HOSTNAME: &str = "mx.example.org";
const HEADER_MAX: u64 = 40;
const MESSAGE_MAX: u64 = 60;
const HOPS_MAX: u32 = 1;
const LOCAL_HOPS_MAX: u32 = 0;

pub fn run(input: &[u8]) {
    let (head, input) = input.split_at(input.len().min(4));
    let settings = head.first().copied().unwrap_or(0);
    let profile = Profile {
        hostname: HOSTNAME.to_owned(),
        extensions: Extensions { chunking: settings & 1 == 0, binary_mime: settings & 3 == 0, ..Extensions::default() },
        header_size_max: (settings & 4 != 0).then_some(HEADER_MAX),
        message_size_max: (settings & 8 != 0).then_some(MESSAGE_MAX),
        hops_max: (settings & 16 != 0).then_some(HOPS_MAX),
        local_hops_max: (settings & 32 != 0).then_some(LOCAL_HOPS_MAX),
        local_names: NAMES.iter().map(|name| (*name).to_owned()).collect(),
        revision: if settings & 64 != 0 { Revision::V4 } else { Revision::V13 },
        ..Profile::default()
    };
    let mut model = Model::new(&profile);
    model.read(input);
    for sizes in [head.get(1..).unwrap_or_default(), &[1], &[0]] {
        let mut driver = Driver::connect(profile.clone(), [192, 0, 2, 1].into(), false, Instant::now(), policy());
        pieces(&model.sent, sizes).into_iter().for_each(|piece| driver.feed(piece));
        let said: Vec<String> = replies(&driver.take_replies()).iter().map(|reply| reduced(reply)).collect();
        let shown = model.sent.escape_ascii();
        assert_eq!(said, model.replies, "{shown} in pieces of {sizes:?}");
        let stored: Vec<&[u8]> = driver.stored().iter().map(|stored| &stored.content[..]).collect();
        assert_eq!(stored, model.stored, "{shown} in pieces of {sizes:?}");
        assert_eq!(driver.is_closed(), model.closed, "{shown} in pieces of {sizes:?}");
        driver.finish();
    }
}

/// A reply as the model writes it.
fn reduced(reply: &str) -> String {
    if reply.ends_with(" Queued mail for delivery") {
        return "queued".to_owned();
    }
    if reply.starts_with(&format!("250-{HOSTNAME} Hello")) { "hello".to_owned() } else { reply.to_owned() }
}

fn policy() -> Policy {
    Box::new(|_: Instant, query: &Query<'_>| match query {
        Query::Recipient(mailbox) if mailbox.local_part() == b"no" => Verdict::Refuse(Reply::UnableToRelay),
        _ => Verdict::Accept,
    })
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Mail,
    Recipients,
    Chunks(Vec<u8>),
    Failed,
}

/// What a session owes its client, by the rules.
struct Model<'p> {
    profile: &'p Profile,
    hello: bool,
    binary: bool,
    phase: Phase,
    closed: bool,
    sent: Vec<u8>,
    replies: Vec<String>,
    stored: Vec<Vec<u8>>,
}

impl<'p> Model<'p> {
    fn new(profile: &'p Profile) -> Self {
        Model {
            profile,
            hello: false,
            binary: false,
            phase: Phase::Idle,
            closed: false,
            sent: Vec::new(),
            replies: vec![format!("220 {HOSTNAME} ESMTP Gatepost ready")],
            stored: Vec::new(),
        }
    }

    fn read(&mut self, mut input: &[u8]) {
        while !self.closed && !input.is_empty() {
            let end = input.iter().position(|&octet| octet == b'\n').map_or(input.len(), |end| end + 1);
            let (line, rest) = input.split_at(end);
            let line: Vec<u8> = line.iter().copied().filter(|octet| !b"\r\n\0".contains(octet)).take(1000).collect();
            input = rest;
            let (verb, arguments) = oracle::command(&line);
            if verb == b"BDAT" {
                self.send(&line);
                let Some((octets, last)) = oracle::chunk(arguments) else {
                    self.say("501 5.5.4 Invalid arguments");
                    self.closed = true;
                    return;
                };
                let Some(chunk) = usize::try_from(octets).ok().and_then(|octets| input.get(..octets)) else {
                    // A chunk that does not end: no reply, whatever is in it.
                    self.sent.extend_from_slice(input);
                    return;
                };
                self.sent.extend_from_slice(chunk);
                input = &input[chunk.len()..];
                self.chunk(chunk, last);
            } else {
                self.command(&verb, arguments);
            }
        }
    }

    fn send(&mut self, line: &[u8]) {
        self.sent.extend_from_slice(line);
        self.sent.extend_from_slice(b"\r\n");
    }

    fn say(&mut self, reply: &str) {
        self.replies.push(reply.to_owned());
    }

    fn chunk(&mut self, octets: &[u8], last: bool) {
        if !self.profile.extensions.chunking {
            return self.say("502 5.5.1 Command not implemented");
        }
        if !self.hello {
            return self.say("503 5.5.2 Send hello first");
        }
        let mut content = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => return self.say("503 5.5.2 Need mail command"),
            Phase::Mail => return self.fail("503 5.5.2 Need rcpt command", last),
            Phase::Failed => return self.fail("503 5.5.1 Bad sequence of commands", last),
            Phase::Recipients => Vec::new(),
            Phase::Chunks(content) => content,
        };
        content.extend_from_slice(octets);
        if let Some(reply) = self.event(&content, last) {
            self.fail(reply, last);
            //= [MS-OXSMTP] 4.0 section 3.2.7: these events end the session.
            self.closed = self.profile.revision == Revision::V4;
        } else if last {
            self.say("queued");
            self.stored.push(content);
        } else {
            self.say(&format!("250 2.6.0 CHUNK received OK, {} octets", octets.len()));
            self.phase = Phase::Chunks(content);
        }
    }

    /// E5, E1, E2, E6, in this order; hops are judged at the end only.
    fn event(&self, content: &[u8], last: bool) -> Option<&'static str> {
        let (header, hops, local_hops) = naive_header(content, last);
        let profile = self.profile;
        if profile.header_size_max.is_some_and(|max| header > max) {
            Some("552 5.3.4 Header size exceeds fixed maximum size")
        } else if last
            && (profile.hops_max.is_some_and(|max| hops > max)
                || profile.local_hops_max.is_some_and(|max| local_hops > max))
        {
            Some("554 5.4.6 Hop count exceeded - possible mail loop")
        } else if profile.message_size_max.is_some_and(|max| content.len() as u64 > max) {
            Some("552 5.3.4 Message size exceeds fixed maximum message size")
        } else {
            None
        }
    }

    fn fail(&mut self, reply: &str, last: bool) {
        self.say(reply);
        self.phase = if last { Phase::Idle } else { Phase::Failed };
    }

    fn command(&mut self, verb: &[u8], arguments: &[u8]) {
        const BAD: &str = "503 5.5.1 Bad sequence of commands";
        let begun = matches!(self.phase, Phase::Chunks(_) | Phase::Failed);
        match verb {
            b"EHLO" => {
                self.send(b"EHLO client.example");
                self.hello = true;
                self.phase = Phase::Idle;
                self.say("hello");
            }
            b"MAIL" => {
                let binary = arguments.windows(6).any(|word| word.eq_ignore_ascii_case(b"BINARY"));
                self.send(if binary { b"MAIL FROM:<> BODY=BINARYMIME" } else { b"MAIL FROM:<>" });
                if !self.hello {
                    self.say("503 5.5.2 Send hello first");
                } else if begun {
                    self.say(BAD);
                } else if self.phase != Phase::Idle {
                    self.say("503 5.5.2 Sender already specified");
                } else if binary && !self.profile.extensions.binary_mime {
                    self.say("501 5.5.4 Invalid arguments");
                } else {
                    self.binary = binary;
                    self.phase = Phase::Mail;
                    self.say("250 2.1.0 Sender OK");
                }
            }
            b"RCPT" => {
                let refused = arguments.starts_with(b"TO:<no@");
                self.send(if refused { b"RCPT TO:<no@example.org>" } else { b"RCPT TO:<yes@example.org>" });
                if !self.hello {
                    self.say("503 5.5.2 Send hello first");
                } else if begun {
                    self.say(BAD);
                } else if self.phase == Phase::Idle {
                    self.say("503 5.5.2 Need mail command");
                } else if refused {
                    self.say("550 5.7.1 Unable to relay");
                } else {
                    self.phase = Phase::Recipients;
                    self.say("250 2.1.5 Recipient OK");
                }
            }
            b"DATA" => {
                self.send(b"DATA");
                if !self.hello {
                    self.say("503 5.5.2 Send hello first");
                } else if begun {
                    self.say(BAD);
                } else if self.phase == Phase::Idle {
                    self.say("503 5.5.2 Need mail command");
                } else if self.phase == Phase::Mail {
                    self.say("503 5.5.2 Need rcpt command");
                } else if self.binary {
                    self.say(BAD);
                } else {
                    self.say("354 Start mail input; end with <CRLF>.<CRLF>");
                    self.send(b"A: b\r\n\r\nBDAT 5\r\n.");
                    self.say("queued");
                    self.stored.push(b"A: b\r\n\r\nBDAT 5\r\n".to_vec());
                    self.phase = Phase::Idle;
                }
            }
            b"RSET" => {
                self.send(b"RSET");
                self.phase = Phase::Idle;
                self.say("250 2.0.0 Resetting");
            }
            b"QUIT" => {
                self.send(b"QUIT");
                self.say("221 2.0.0 Service closing transmission channel");
                self.closed = true;
            }
            _ => {
                self.send(b"NOOP");
                self.say("250 2.0.0 OK");
            }
        }
    }
}
