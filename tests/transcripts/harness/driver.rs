//! A driver of `smtp::server` in memory: what `shard::inbound` is with sockets, a clock and a disk.
//!
//! The policy is made of the real parts of `gatepost::policy`, the disk is a real
//! `queue::spool::Spool` whose batches are decoded again instead of written, so what a test sees as
//! stored is what recovery would read. Whatever the test, the driver asserts what a session owes
//! every driver:
//!
//! - it consumes no more than it was given, and nothing while it waits for an answer;
//! - what it leaves for later is less than a command line;
//! - replies are bounded, whatever the input;
//! - a commit has an envelope with a recipient, a body comes in DATA and chunks only;
//! - what is held back comes in its time, and nothing is read meanwhile;
//! - after its end it takes everything, says nothing, and has no deadline.

#![allow(dead_code, reason = "two test crates share this module; neither needs all of it")]

use gatepost::limits::{BODY_IN_MEMORY_MAX_OCTETS, COMMAND_LINE_MAX_OCTETS, REPLIES_MAX_OCTETS};
use gatepost::policy::{
    self, AcceptedDomains, AddressRanges, BindingRules, Door, DynamicBlocks, RateTable, RecipientVerdict, SlotCount,
    SourceHasher, Sources,
};
use gatepost::queue::record::{Body, NewMessage, Record, RecordHeader};
use gatepost::queue::spool::{Resume, Spool};
use gatepost::queue::stored::StoredEnvelope;
use gatepost::smtp::QueueId;
use gatepost::smtp::reply::Reply;
use gatepost::smtp::server::{Profile, Query, Session, Step, Verdict};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The date in every Received field.
pub const DATE: &str = "Sat, 21 Nov 2026 09:36:24 +0000";
/// Most that a single reply adds to the buffer once it is full.
const REPLY_MAX_OCTETS: usize = 1024;

/// Answers the session's questions.
pub type Policy = Box<dyn FnMut(Instant, &Query<'_>) -> Verdict>;

/// The options that a session and its policy are made with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub profile: Profile,
    pub client: IpAddr,
    pub accepted_domains: AcceptedDomains,
    pub relay_from: AddressRanges,
    pub message_rate_per_minute: u32,
    pub door: DoorSettings,
}

/// What a client that connects is met with, before the banner.
#[derive(Clone, Debug)]
pub struct DoorSettings {
    pub allow: Option<AddressRanges>,
    pub blocked: AddressRanges,
    pub blocked_for_a_time: DynamicBlocks,
    pub resources_short: bool,
    pub connections_max: u32,
    pub connections_per_source_max: u32,
    /// Clients that are there, each with so many connections.
    pub open: Vec<(IpAddr, u32)>,
    /// An address that was refused something when the clock began (E17).
    pub marked: Option<IpAddr>,
    /// When the client connects, by that clock.
    pub now_ms: u64,
}

impl DoorSettings {
    /// What the gateway's `Shared::admit` does, over the same parts: whether the client's banner is
    /// to be late, or the refusal.
    pub fn admit(&self, client: IpAddr, profile: &Profile) -> Result<bool, Reply> {
        let rules = BindingRules { role: profile.role, allow: self.allow.clone() };
        let door = Door {
            rules: &rules,
            blocked: &self.blocked,
            blocked_for_a_time: &self.blocked_for_a_time,
            resources_short: self.resources_short,
            now_ms: self.now_ms,
        };
        if let Some(reply) = door.refusal(client) {
            return Err(reply);
        }
        let sources = Sources::new(SlotCount::new(SlotCount::MIN).expect("a count of slots"), 64);
        for (address, count) in &self.open {
            for _ in 0..*count {
                sources.try_connect(*address, 0, 0).expect("there is no limit yet");
            }
        }
        if let Some(marked) = self.marked {
            let source = sources.try_connect(marked, 0, 0).expect("there is no limit yet");
            sources.mark(source, 0);
            sources.disconnect(source);
        }
        let source = sources.try_connect(client, self.connections_max, self.connections_per_source_max)?;
        Ok(profile.tarpit.is_some() && sources.take_mark(source, self.now_ms))
    }
}

/// What the gateway's `inbound::decide` does, over the same parts.
pub fn policy(settings: &Settings, started: Instant) -> Policy {
    let settings = settings.clone();
    let slots = SlotCount::new(SlotCount::MIN).expect("a count of slots");
    let rates = RateTable::new(slots);
    let slot = SourceHasher::with_seeds(slots, 64, [1, 2, 3, 4]).slot(settings.client);
    Box::new(move |now, query| match query {
        Query::Sender(_) => {
            let now_ms = now.duration_since(started).as_millis() as u64;
            if rates.try_count(slot, now_ms, settings.message_rate_per_minute) {
                Verdict::Accept
            } else {
                Verdict::Refuse(Reply::RateExceeded)
            }
        }
        Query::Recipient(mailbox) => {
            let postmaster = mailbox.is_postmaster();
            let default = settings.profile.default_domain.as_deref().filter(|_| !postmaster);
            let domain = mailbox.domain().or(default.map(str::as_bytes));
            let relay_allowed = settings.relay_from.contains(settings.client);
            match policy::recipient(&settings.accepted_domains, relay_allowed, domain, postmaster) {
                RecipientVerdict::Accept => Verdict::Accept,
                RecipientVerdict::RelayDenied => Verdict::Refuse(Reply::UnableToRelay),
            }
        }
    })
}

/// A message that was committed, decoded from its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub id: QueueId,
    pub received: Vec<u8>,
    pub content: Vec<u8>,
    /// As in the record.
    pub envelope: Vec<u8>,
}

impl Stored {
    pub fn envelope(&self) -> StoredEnvelope<'_> {
        StoredEnvelope::decode(&self.envelope).expect("an envelope")
    }
}

/// A message that is arriving.
struct Arriving {
    id: QueueId,
    received_octets: usize,
    octets: Vec<u8>,
}

/// How the next commit goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NextCommit {
    pub fails: bool,
    pub takes: Duration,
}

#[derive(Clone, Copy)]
enum Turn {
    Read,
    Flush,
    Commit,
    Close,
}

pub struct Driver {
    session: Session,
    /// The client was refused before there was a session.
    is_refused: bool,
    policy: Policy,
    spool: Spool,
    client: IpAddr,
    now: Instant,
    /// Input that is not read yet: replies are held back.
    unread: Vec<u8>,
    /// Input that the session has not consumed.
    left: Vec<u8>,
    /// What the last turn asked for.
    asked: Turn,
    arriving: Option<Arriving>,
    /// The id of a message that was abandoned: whether one had begun to arrive depends on the
    /// pieces of input, and the ids in the replies must not.
    spare_id: Option<QueueId>,
    resources_short: bool,
    /// The next piece of a body cannot be kept.
    body_fails: bool,
    next_commit: NextCommit,
    /// Shutting down; at once, or after the transaction.
    shutdown: Option<bool>,
    replies: Vec<u8>,
    writes: usize,
    refusals: Vec<Reply>,
    /// A refusal was held back: the address is to be marked.
    was_tarpitted: bool,
    stored: Vec<Stored>,
}

impl Driver {
    /// A client has just connected; the banner is sent, or held back.
    pub fn connect(profile: Profile, client: IpAddr, is_marked: bool, now: Instant, policy: Policy) -> Self {
        let mut driver = Self::new(profile, client, now, policy);
        if is_marked {
            driver.session.hold_banner();
        }
        driver.flush();
        driver
    }

    /// A client was refused in place of the banner.
    pub fn refused(profile: Profile, client: IpAddr, reply: Reply, now: Instant, policy: Policy) -> Self {
        let mut driver = Self::new(profile, client, now, policy);
        driver.is_refused = true;
        driver.writes = 1;
        driver.refusals.push(reply);
        reply.write(&mut driver.replies, client);
        driver
    }

    fn new(profile: Profile, client: IpAddr, now: Instant, policy: Policy) -> Self {
        Driver {
            session: Session::new(Rc::new(profile), client, now),
            is_refused: false,
            policy,
            spool: Spool::new(0, Resume::default(), 7),
            client,
            now,
            unread: Vec::new(),
            left: Vec::new(),
            asked: Turn::Read,
            arriving: None,
            spare_id: None,
            resources_short: false,
            body_fails: false,
            next_commit: NextCommit::default(),
            shutdown: None,
            replies: Vec::new(),
            writes: 0,
            refusals: Vec::new(),
            was_tarpitted: false,
            stored: Vec::new(),
        }
    }

    pub fn is_closed(&self) -> bool {
        self.is_refused || self.session.is_closed()
    }

    /// How long until the session wants to be told of the time; zero if that is due.
    pub fn time_to_deadline(&self) -> Option<Duration> {
        self.session.next_deadline().map(|deadline| deadline.saturating_duration_since(self.now))
    }

    pub fn is_held(&self) -> bool {
        self.session.is_held()
    }

    pub fn in_data(&self) -> bool {
        self.session.in_data()
    }

    pub fn stored(&self) -> &[Stored] {
        &self.stored
    }

    /// Every refusal so far.
    pub fn refusals(&self) -> &[Reply] {
        &self.refusals
    }

    /// Whether the client's address was to be marked since the last call (E17).
    pub fn take_tarpitted(&mut self) -> bool {
        std::mem::take(&mut self.was_tarpitted)
    }

    /// What was sent since the last call.
    pub fn take_replies(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.replies)
    }

    /// In how many writes it was sent, since the last call.
    pub fn take_writes(&mut self) -> usize {
        std::mem::take(&mut self.writes)
    }

    pub fn set_next_commit(&mut self, next: NextCommit) {
        self.next_commit = next;
    }

    pub fn set_resources_short(&mut self, short: bool) {
        self.resources_short = short;
    }

    pub fn fail_next_body(&mut self) {
        self.body_fails = true;
    }

    /// The server begins to shut down: sessions end after their transaction, or at once.
    pub fn shut_down(&mut self, at_once: bool) {
        if self.is_refused {
            return;
        }
        self.shutdown = Some(at_once);
        if at_once {
            self.session.release(self.now);
            self.run();
        }
        self.before_wait();
    }

    /// The client sent a piece of input.
    pub fn feed(&mut self, piece: &[u8]) {
        if self.is_refused {
            return;
        }
        let said_last = self.is_closed().then_some(self.replies.len());
        self.unread.extend_from_slice(piece);
        self.run();
        assert!(said_last.is_none_or(|octets| octets == self.replies.len()), "a reply after the last one");
    }

    /// Takes turns until the session waits for input, for what it holds back, or for nothing.
    fn run(&mut self) {
        loop {
            self.flush();
            if self.session.is_held() {
                return;
            }
            match self.asked {
                Turn::Read if self.unread.is_empty() => {
                    self.before_wait();
                    return;
                }
                Turn::Read => {
                    self.left.append(&mut self.unread);
                    self.session.handle_input(self.now);
                    self.asked = self.turn();
                }
                Turn::Flush => self.asked = self.turn(),
                Turn::Commit => {
                    self.commit();
                    self.asked = self.turn();
                }
                Turn::Close => {
                    self.unread.clear();
                    assert!(self.left.is_empty(), "an ended session takes everything");
                    assert!(self.session.next_deadline().is_none(), "an ended session has no deadline");
                    return;
                }
            }
        }
    }

    /// Time passes; deadlines on the way are kept to the instant.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        if self.is_refused {
            return;
        }
        while let Some(deadline) = self.session.next_deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            let was_held = self.session.is_held();
            self.session.handle_time(self.now);
            let came_of_it = if was_held { !self.session.is_held() } else { self.is_closed() };
            assert!(came_of_it, "a deadline was kept, and nothing came of it");
            if self.is_closed() {
                self.asked = Turn::Flush;
            }
            self.run();
        }
        self.now = end;
        self.session.handle_time(end);
        assert!(self.session.replies().is_empty(), "something fell due that no deadline told of");
    }

    /// The end of the client: nothing more may be said if the session has ended, whatever happens.
    pub fn finish(&mut self) {
        if self.is_closed() && !self.session.is_held() && !self.is_refused {
            self.session.handle_verdict(self.now, Verdict::Accept);
            self.session.handle_commit_failure(self.now);
            self.session.handle_body_failure();
            self.session.handle_shutdown(true);
            self.session.handle_time(self.now + Duration::from_secs(86_400));
            self.feed(b"NOOP\r\n.\r\nQUIT\r\n");
            assert!(self.is_closed() && self.session.replies().is_empty());
        }
        let most = REPLIES_MAX_OCTETS + REPLY_MAX_OCTETS;
        assert!(self.session.replies().len() <= most);
    }

    /// Steps through what is left, and sends the replies.
    fn turn(&mut self) -> Turn {
        let input = std::mem::take(&mut self.left);
        self.session.handle_resources(self.resources_short);
        let mut at = 0;
        let turn = loop {
            let (consumed, step) = self.session.step(self.now, &input[at..]);
            assert!(consumed <= input.len() - at, "more consumed than there was");
            at += consumed;
            match step {
                Step::NeedMore => {
                    assert!(input.len() - at < COMMAND_LINE_MAX_OCTETS, "{} octets left", input.len() - at);
                    break Turn::Read;
                }
                Step::Flush => {
                    let has_some = self.session.is_held() || !self.session.replies().is_empty();
                    assert!(has_some, "a flush of nothing");
                    break Turn::Flush;
                }
                Step::Close => break Turn::Close,
                Step::StartTls | Step::Challenge | Step::Authenticate => panic!("{step:?} was not offered"),
                Step::Abandon => self.abandon(),
                Step::Decide(query) => {
                    let verdict = (self.policy)(self.now, &query);
                    self.assert_waiting(&input[at..]);
                    self.session.handle_verdict(self.now, verdict);
                }
                Step::Body(octets) => {
                    assert!(self.session.in_data() && !octets.is_empty());
                    if std::mem::take(&mut self.body_fails) {
                        self.abandon();
                        self.session.handle_body_failure();
                    } else {
                        self.arriving().octets.extend_from_slice(octets);
                    }
                }
                Step::Commit => {
                    self.assert_waiting(&input[at..]);
                    break Turn::Commit;
                }
            }
        };
        self.left.extend_from_slice(&input[at..]);
        turn
    }

    /// While an answer is owed, input stays where it is and no timer runs.
    fn assert_waiting(&mut self, rest: &[u8]) {
        let replies = self.session.replies().len();
        if replies < REPLIES_MAX_OCTETS {
            assert_eq!(self.session.step(self.now, rest), (0, Step::NeedMore), "no answer, and yet a step");
        }
        if self.session.is_held() {
            return;
        }
        assert!(self.session.next_deadline().is_none(), "a timer runs while the server owes a reply");
        self.session.handle_time(self.now + Duration::from_secs(86_400));
        self.session.handle_shutdown(true);
        assert_eq!(self.session.replies().len(), replies, "a reply before the one that is owed");
    }

    fn abandon(&mut self) {
        if let Some(message) = self.arriving.take() {
            self.spare_id = Some(message.id);
        }
    }

    fn arriving(&mut self) -> &mut Arriving {
        let (spool, session, spare_id) = (&mut self.spool, &self.session, &mut self.spare_id);
        self.arriving.get_or_insert_with(|| {
            let id = spare_id.take().unwrap_or_else(|| spool.next_id(0));
            let mut octets = Vec::new();
            session.trace().write_received(&mut octets, id.text().as_str(), DATE);
            Arriving { id, received_octets: octets.len(), octets }
        })
    }

    fn commit(&mut self) {
        let next = std::mem::take(&mut self.next_commit);
        self.arriving();
        let Some(message) = self.arriving.take() else { unreachable!("one was begun") };
        let envelope = self.session.envelope().expect("a commit has an envelope");
        assert!(envelope.recipient_count() > 0, "a commit without a recipient");
        // The memory bound of a session, and what it means for the record.
        let spilled = message.octets.len() > BODY_IN_MEMORY_MAX_OCTETS;
        let body = if spilled {
            Body::Spilled { octets: message.octets.len() as u64, crc: crc32c::crc32c(&message.octets) }
        } else {
            Body::Inline(&message.octets)
        };
        let receipt = self.spool.append(&NewMessage {
            id: message.id,
            arrived_unix_ms: 0,
            envelope,
            client: policy::canonical(self.client),
            hello: self.session.trace().hello,
            body,
        });
        let batch = self.spool.take_batch().expect("what was appended");
        self.now += next.takes;
        if next.fails {
            self.spool.failed();
            self.session.handle_commit_failure(self.now);
            return;
        }
        let header = RecordHeader::decode(&batch.octets).expect("a record's header");
        let record = Record::decode(header, &batch.octets).expect("a record");
        assert_eq!(header.octets(), batch.octets.len() as u64, "one message, one record");
        let octets = if spilled { &message.octets[..] } else { record.message };
        let (received, content) = octets.split_at(message.received_octets);
        self.stored.push(Stored {
            id: header.id,
            received: received.to_vec(),
            content: content.to_vec(),
            envelope: record.envelope.to_vec(),
        });
        let durable = self.spool.synced().and_then(|synced| synced.prove(&receipt)).expect("a proof");
        assert_eq!(durable.queue_id(), header.id);
        self.session.handle_durable(self.now, &durable);
    }

    /// What the gateway does each time before it waits for input.
    fn before_wait(&mut self) {
        if let Some(at_once) = self.shutdown {
            self.session.handle_shutdown(at_once);
            if self.is_closed() {
                self.asked = Turn::Close;
                self.left.clear();
            }
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.was_tarpitted |= self.session.take_tarpitted();
        self.refusals.extend(self.session.take_refusals());
        let replies = self.session.replies();
        assert!(replies.len() < REPLIES_MAX_OCTETS + REPLY_MAX_OCTETS, "{} octets of replies", replies.len());
        if !replies.is_empty() {
            self.writes += 1;
            self.replies.extend_from_slice(replies);
            self.session.replies_sent(replies.len());
        }
    }
}
