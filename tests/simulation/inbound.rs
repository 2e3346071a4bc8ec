//! Receiving sessions of the process: the steps of `shard::inbound` and `shard::message`.

use crate::disk::{FileId, Operation};
use crate::process::{Awaiter, Body, Content, Waiter};
use crate::world::World;
use gatepost::queue::disk::spill_name;
use gatepost::queue::record::{Body as StoredBody, NewMessage};
use gatepost::queue::spool::Location;
use gatepost::queue::stored::encode_envelope;
use gatepost::smtp::server::{Session, Step, Verdict};
use gatepost::smtp::{Durable, QueueId};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const DATE: &str = "Thu, 1 Jan 2027 00:00:00 +0000";

/// A session.
pub struct Inbound {
    session: Session,
    left: Vec<u8>,
    message: Option<Arriving>,
    doing: Doing,
    /// The client has ended the connection.
    is_gone: bool,
}

/// A message that is arriving.
struct Arriving {
    id: QueueId,
    buffer: Vec<u8>,
    spill: Option<Spill>,
}

struct Spill {
    file: FileId,
    octets: u64,
    crc: u32,
}

/// What a session waits for; meanwhile it reads nothing.
enum Doing {
    Nothing,
    MakingSpill,
    /// `commits`: it was the last of the message.
    WritingSpill {
        commits: bool,
        octets: Vec<u8>,
    },
    SyncingSpill,
    SyncingDirectory,
    Committing(Box<Committing>),
}

struct Committing {
    id: QueueId,
    location: Location,
    octets: u64,
    content: Content,
    spilled: bool,
    recipients: u32,
}

/// What the session needs before its next turn.
enum Turn {
    Read,
    Flush,
    Commit,
    Close,
}

impl World {
    pub fn session_begins(&mut self, session: u64) {
        let now = self.now();
        let profile = self.process().profile.clone();
        let inbound = Inbound {
            session: Session::new(profile, CLIENT, now),
            left: Vec::new(),
            message: None,
            doing: Doing::Nothing,
            is_gone: false,
        };
        self.process().sessions.insert(session, inbound);
        self.session_turns(session);
    }

    pub fn session_hears(&mut self, session: u64, input: Option<Vec<u8>>) {
        let now = self.now();
        if self.process.is_none() {
            return;
        }
        let Some(inbound) = self.process().sessions.get_mut(&session) else { return };
        match input {
            None => {
                inbound.is_gone = true;
                if let Doing::Nothing = inbound.doing {
                    self.session_ends(session);
                }
            }
            Some(octets) => {
                inbound.left.extend_from_slice(&octets);
                inbound.session.handle_input(now);
                if let Doing::Nothing = inbound.doing {
                    self.session_turns(session);
                }
            }
        }
    }

    fn session_ends(&mut self, session: u64) {
        if let Some(inbound) = self.process().sessions.remove(&session) {
            self.abandon(inbound.message);
        }
        self.send_to_client(session, None);
    }

    /// What was kept of a message is thrown away.
    fn abandon(&mut self, message: Option<Arriving>) {
        if let Some(Arriving { id, spill: Some(_), .. }) = message {
            self.begin(Waiter::Nobody, Operation::Remove { name: spill_name(id) });
        }
    }

    /// Steps a session through what has come, until it waits for something.
    fn session_turns(&mut self, session: u64) {
        loop {
            let Some(mut inbound) = self.process().sessions.remove(&session) else { return };
            let input = std::mem::take(&mut inbound.left);
            let (consumed, turn) = self.turn(&mut inbound, &input);
            inbound.left = input[consumed..].to_vec();
            let replies = inbound.session.replies().to_vec();
            inbound.session.replies_sent(replies.len());
            if !replies.is_empty() && !inbound.is_gone {
                self.send_to_client(session, Some(replies));
            }
            let must_spill =
                inbound.message.as_ref().is_some_and(|message| message.buffer.len() >= self.settings.spill_octets);
            self.process().sessions.insert(session, inbound);
            match turn {
                Turn::Close => return self.session_ends(session),
                Turn::Commit => return self.session_commits(session),
                _ if must_spill => return self.session_spills(session, false),
                Turn::Flush => {}
                Turn::Read => return,
            }
        }
    }

    fn turn(&mut self, inbound: &mut Inbound, input: &[u8]) -> (usize, Turn) {
        let now = self.now();
        let is_short = self.process().is_failing();
        inbound.session.handle_resources(is_short);
        let mut at = 0;
        loop {
            let (consumed, step) = inbound.session.step(now, &input[at..]);
            at += consumed;
            match step {
                Step::NeedMore => return (at, Turn::Read),
                Step::Flush => return (at, Turn::Flush),
                Step::Commit => return (at, Turn::Commit),
                Step::Close | Step::StartTls | Step::Challenge | Step::Authenticate => return (at, Turn::Close),
                Step::Abandon => {
                    let message = inbound.message.take();
                    self.abandon(message);
                }
                Step::Decide(_) => inbound.session.handle_verdict(now, Verdict::Accept),
                Step::Body(octets) => {
                    if inbound.message.is_none() {
                        inbound.message = Some(self.message_begins(&inbound.session));
                    }
                    if let Some(message) = &mut inbound.message {
                        message.buffer.extend_from_slice(octets);
                    }
                }
            }
        }
    }

    fn message_begins(&mut self, session: &Session) -> Arriving {
        let unix_us = self.unix_ms() * 1000;
        let id = self.process().spool.next_id(unix_us);
        let mut buffer = Vec::new();
        session.trace().write_received(&mut buffer, id.text().as_str(), DATE);
        Arriving { id, buffer, spill: None }
    }

    /// Writes what is in memory to the message's file.
    fn session_spills(&mut self, session: u64, commits: bool) {
        let Some(inbound) = self.process().sessions.get_mut(&session) else { return };
        let Some(message) = &mut inbound.message else { return };
        let operation = match &message.spill {
            None => {
                inbound.doing = Doing::MakingSpill;
                Operation::Create { name: spill_name(message.id), octets: 0 }
            }
            Some(spill) => {
                let octets = std::mem::take(&mut message.buffer);
                inbound.doing = Doing::WritingSpill { commits, octets: octets.clone() };
                Operation::Write { file: spill.file, offset: spill.octets, octets, through: false }
            }
        };
        self.begin(Waiter::Session(session), operation);
    }

    fn session_commits(&mut self, session: u64) {
        let Some(mut inbound) = self.process().sessions.remove(&session) else { return };
        if inbound.message.is_none() {
            inbound.message = Some(self.message_begins(&inbound.session));
        }
        let is_spilled = inbound.message.as_ref().is_some_and(|message| message.spill.is_some());
        self.process().sessions.insert(session, inbound);
        if is_spilled {
            self.session_spills(session, true);
        } else {
            self.session_appends(session);
        }
    }

    /// An operation of the disk for this session has ended.
    pub fn session_goes_on(&mut self, session: u64, result: io::Result<Option<FileId>>) {
        let Some(inbound) = self.process().sessions.get_mut(&session) else { return };
        let doing = std::mem::replace(&mut inbound.doing, Doing::Nothing);
        let Some(message) = &mut inbound.message else { return };
        let Ok(file) = result else {
            self.report_failure();
            return self.session_loses(
                session,
                !matches!(doing, Doing::MakingSpill | Doing::WritingSpill { commits: false, .. }),
            );
        };
        match doing {
            Doing::MakingSpill => {
                message.spill = file.map(|file| Spill { file, octets: 0, crc: 0 });
                self.session_spills(session, false);
            }
            Doing::WritingSpill { commits, octets } => {
                let Some(spill) = &mut message.spill else { return };
                spill.octets += octets.len() as u64;
                spill.crc = crc32c::crc32c_append(spill.crc, &octets);
                if commits {
                    inbound.doing = Doing::SyncingSpill;
                    let file = spill.file;
                    self.begin(Waiter::Session(session), Operation::Sync { file });
                } else if inbound.is_gone {
                    self.session_ends(session);
                } else {
                    self.session_turns(session);
                }
            }
            Doing::SyncingSpill => {
                inbound.doing = Doing::SyncingDirectory;
                self.begin(Waiter::Session(session), Operation::SyncDirectory);
            }
            Doing::SyncingDirectory => self.session_appends(session),
            Doing::Nothing | Doing::Committing(_) => {}
        }
    }

    /// The message's file failed.
    fn session_loses(&mut self, session: u64, commits: bool) {
        let now = self.now();
        let Some(mut inbound) = self.process().sessions.remove(&session) else { return };
        let message = inbound.message.take();
        self.abandon(message);
        if commits {
            inbound.session.handle_commit_failure(now);
        } else {
            inbound.session.handle_body_failure();
        }
        let is_gone = inbound.is_gone;
        self.process().sessions.insert(session, inbound);
        if is_gone { self.session_ends(session) } else { self.session_turns(session) }
    }

    /// Puts the message into the batch that is filling.
    fn session_appends(&mut self, session: u64) {
        let unix_ms = self.unix_ms();
        let Some(mut inbound) = self.process().sessions.remove(&session) else { return };
        let (Some(message), Some(envelope)) = (inbound.message.take(), inbound.session.envelope()) else { return };
        let body = match &message.spill {
            None => StoredBody::Inline(&message.buffer),
            Some(spill) => StoredBody::Spilled { octets: spill.octets, crc: spill.crc },
        };
        let hello = inbound.session.trace().hello;
        let new = NewMessage { id: message.id, arrived_unix_ms: unix_ms, envelope, client: CLIENT, hello, body };
        let mut stored = Vec::new();
        encode_envelope(&mut stored, &new);
        let receipt = self.process().spool.append(&new);
        let location = receipt.location();
        self.process().schedule.hold(location.generation);
        let recipients: Vec<String> =
            envelope.recipients().map(|recipient| String::from_utf8_lossy(recipient.path).into_owned()).collect();
        let count = recipients.len() as u32;
        let life = self.life;
        self.judge.taken(message.id, life, envelope.reverse_path(), recipients);
        self.note(|| format!("{} of {} goes to {location:?}", message.id, envelope.reverse_path().escape_ascii()));
        let (octets, body) = match message.spill {
            None => (message.buffer.len() as u64, Body::Memory(message.buffer)),
            Some(spill) => (spill.octets, Body::Spilled { crc: spill.crc }),
        };
        let spilled = matches!(body, Body::Spilled { .. });
        let content = Content { envelope: stored, body };
        let committing = Committing { id: message.id, location, octets, content, spilled, recipients: count };
        inbound.doing = Doing::Committing(Box::new(committing));
        self.process().sessions.insert(session, inbound);
        self.await_batch(Awaiter::Session(session), receipt);
    }

    /// The message is durable, or not kept.
    pub fn session_is_told(&mut self, session: u64, durable: Option<Durable>) {
        let now: Instant = self.now();
        let Some(inbound) = self.process().sessions.get_mut(&session) else { return };
        let Doing::Committing(committing) = std::mem::replace(&mut inbound.doing, Doing::Nothing) else { return };
        let Committing { id, location, octets, content, spilled, recipients } = *committing;
        match durable {
            Some(durable) => {
                inbound.session.handle_durable(now, &durable);
                self.judge.acknowledged(durable.queue_id());
                self.note(|| format!("{id} is acknowledged"));
                self.accept(id, location, octets, spilled, recipients, content);
            }
            None => {
                inbound.session.handle_commit_failure(now);
                self.judge.refused(id);
                self.note(|| format!("{id} is refused"));
                self.process().schedule.unhold(location.generation);
            }
        }
        let Some(inbound) = self.process().sessions.get(&session) else { return };
        if inbound.is_gone { self.session_ends(session) } else { self.session_turns(session) }
    }
}
