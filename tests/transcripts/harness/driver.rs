//! A driver of `smtp::server` in memory: what `shard::inbound` is with sockets, a clock and a disk.
//!
//! Whom the session asks is the test's. The disk is a real `queue::spool::Spool` whose batches are
//! decoded again instead of written, so what a test sees as stored is what recovery would read. TLS is
//! only that a handshake is done or fails, when the test says so; until then what the client sends is
//! thrown away. Whatever the test, the driver asserts what a session owes every driver:
//!
//! - it consumes no more than it was given, and nothing while it waits for an answer;
//! - what it leaves for later is less than a command line, or in AUTH a line of its exchange;
//! - replies are bounded, whatever the input;
//! - a commit has an envelope with a recipient, a body comes in DATA and chunks only;
//! - what is held back comes in its time, and nothing is read meanwhile;
//! - after its end it takes everything, says nothing, and has no deadline.

#![allow(dead_code, reason = "two test crates share this module; neither needs all of it")]

mod outside;

use gatepost::limits::{BODY_IN_MEMORY_MAX_OCTETS, COMMAND_LINE_MAX_OCTETS, REPLIES_MAX_OCTETS, SASL_LINE_MAX_OCTETS};
use gatepost::policy;
use gatepost::queue::record::{Body, END_MARK_OCTETS, NewMessage, Record, RecordHeader};
use gatepost::queue::spool::{Resume, Spool};
use gatepost::queue::stored::StoredEnvelope;
use gatepost::smtp::QueueId;
use gatepost::smtp::command::Verb;
use gatepost::smtp::header::TlsParameters;
use gatepost::smtp::reply::Reply;
use gatepost::smtp::server::{LogonVerdict, Observer, Profile, Session, Step, Verdict};
pub use outside::{Judgement, Outside, Policy};
use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The date in every Received field.
pub const DATE: &str = "Sat, 21 Nov 2026 09:36:24 +0000";
/// What every handshake comes to.
const TLS: TlsParameters = TlsParameters { version: "TLSv1.3", cipher: "TLS_AES_256_GCM_SHA384" };
/// The nonces in a session's challenges of NTLM, which are so the same each time, but no two alike.
const fn nonce(challenge: u8) -> [u8; 8] {
    [b'g', b'a', b't', b'e', b'p', b'o', b's', challenge]
}
/// The time in every challenge: that of [`DATE`].
const FILETIME: u64 = 134_397_273_840_000_000;
/// Most that a single reply adds to the buffer once it is full.
const REPLY_MAX_OCTETS: usize = 1024;

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

/// How the next logon goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NextLogon {
    /// Nobody can judge it.
    pub is_unavailable: bool,
    pub takes: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Read,
    Flush,
    Commit,
    Handshake,
    Authenticate,
    Close,
}

pub struct Driver {
    session: Session,
    /// There is nobody to talk to: the client was refused before there was a session, or TLS has
    /// failed.
    is_gone: bool,
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
    next_logon: NextLogon,
    /// Challenges of NTLM so far.
    challenges: u8,
    /// Shutting down; at once, or after the transaction.
    shutdown: Option<bool>,
    replies: Vec<u8>,
    /// The last reply that was sent is a challenge of AUTH.
    has_challenged: bool,
    writes: usize,
    refusals: Rc<Refusals>,
    /// A refusal was held back: the address is to be marked.
    was_tarpitted: bool,
    stored: Vec<Stored>,
}

/// Every refusal of a session.
#[derive(Debug, Default)]
struct Refusals(RefCell<Vec<Reply>>);

impl Observer for Refusals {
    fn command(&self, _: Verb) {}

    fn reply(&self, _: u16) {}

    fn refusal(&self, _: &Session, reply: Reply) {
        self.0.borrow_mut().push(reply);
    }
}

impl Driver {
    /// A client has just connected; the banner is sent, or held back.
    pub fn connect(profile: Profile, client: IpAddr, is_marked: bool, now: Instant, policy: Policy) -> Self {
        let mut driver = Self::before_banner(profile, client, is_marked, now, policy);
        driver.asked = Turn::Read;
        driver.flush();
        driver
    }

    /// A client has just connected where TLS comes first.
    pub fn connect_tls(profile: Profile, client: IpAddr, is_marked: bool, now: Instant, policy: Policy) -> Self {
        Self::before_banner(profile, client, is_marked, now, policy)
    }

    fn before_banner(profile: Profile, client: IpAddr, is_marked: bool, now: Instant, policy: Policy) -> Self {
        let mut driver = Self::new(profile, client, now, policy);
        if is_marked {
            driver.session.hold_banner();
        }
        driver.asked = Turn::Handshake;
        driver
    }

    /// A client was refused in place of the banner.
    pub fn refused(profile: Profile, client: IpAddr, reply: Reply, now: Instant, policy: Policy) -> Self {
        let mut driver = Self::new(profile, client, now, policy);
        driver.is_gone = true;
        driver.writes = 1;
        driver.refusals.0.borrow_mut().push(reply);
        reply.write(&mut driver.replies, client);
        driver
    }

    fn new(profile: Profile, client: IpAddr, now: Instant, policy: Policy) -> Self {
        let mut session = Session::new(Rc::new(profile), client, now);
        session.offer_mechanisms(policy.mechanisms());
        let refusals = Rc::new(Refusals::default());
        session.observe(1, refusals.clone());
        Driver {
            session,
            is_gone: false,
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
            next_logon: NextLogon::default(),
            challenges: 0,
            shutdown: None,
            replies: Vec::new(),
            has_challenged: false,
            writes: 0,
            refusals,
            was_tarpitted: false,
            stored: Vec::new(),
        }
    }

    pub fn is_closed(&self) -> bool {
        self.is_gone || self.session.is_closed()
    }

    /// How long until the session wants to be told of the time; zero if that is due.
    pub fn time_to_deadline(&self) -> Option<Duration> {
        let deadline = self.session.next_deadline().filter(|_| !self.is_gone)?;
        Some(deadline.saturating_duration_since(self.now))
    }

    pub fn is_held(&self) -> bool {
        self.session.is_held()
    }

    pub fn in_data(&self) -> bool {
        self.session.in_data()
    }

    /// Whether TLS is being negotiated.
    pub fn in_handshake(&self) -> bool {
        self.asked == Turn::Handshake && !self.is_closed()
    }

    /// The user that the client has proved to be.
    pub fn user(&self) -> Option<&str> {
        self.session.user()
    }

    pub fn stored(&self) -> &[Stored] {
        &self.stored
    }

    /// Every refusal so far.
    pub fn refusals(&self) -> Vec<Reply> {
        self.refusals.0.borrow().clone()
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

    pub fn set_next_logon(&mut self, next: NextLogon) {
        self.next_logon = next;
    }

    pub fn set_resources_short(&mut self, short: bool) {
        self.resources_short = short;
    }

    pub fn fail_next_body(&mut self) {
        self.body_fails = true;
    }

    /// The server begins to shut down: sessions end after their transaction, or at once.
    pub fn shut_down(&mut self, at_once: bool) {
        if self.is_gone {
            return;
        }
        self.shutdown = Some(at_once);
        if self.in_handshake() {
            self.is_gone = at_once;
            return;
        }
        if at_once {
            self.session.release(self.now);
            self.run();
        }
        self.before_wait();
    }

    /// The client sent a piece of input.
    pub fn feed(&mut self, piece: &[u8]) {
        if self.is_gone {
            return;
        }
        let said_last = self.is_closed().then_some(self.replies.len());
        self.unread.extend_from_slice(piece);
        self.run();
        assert!(said_last.is_none_or(|octets| octets == self.replies.len()), "a reply after the last one");
    }

    /// The handshake is done, or has failed.
    pub fn handshake(&mut self, is_done: bool) {
        assert!(self.in_handshake(), "there is no handshake");
        if !is_done {
            self.is_gone = true;
            return;
        }
        self.session.handle_tls(self.now, TLS);
        self.asked = Turn::Read;
        self.run();
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
                Turn::Handshake => {
                    assert!(self.left.is_empty(), "what is pipelined behind STARTTLS is thrown away");
                    if !self.unread.is_empty() {
                        self.unread.clear();
                        self.session.handle_input(self.now);
                    }
                    return;
                }
                Turn::Authenticate => {
                    self.authenticate();
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
        if self.is_gone {
            return;
        }
        while let Some(deadline) = self.session.next_deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            let was_held = self.session.is_held();
            self.session.handle_time(self.now);
            let came_of_it = if was_held { !self.session.is_held() } else { self.is_closed() };
            assert!(came_of_it, "a deadline was kept, and nothing came of it");
            if self.in_handshake_until_now() {
                return;
            }
            if self.is_closed() {
                self.asked = Turn::Flush;
            }
            self.run();
        }
        self.now = end;
        self.session.handle_time(end);
        let is_told = self.in_handshake() || self.session.replies().is_empty();
        assert!(is_told, "something fell due that no deadline told of");
    }

    /// A timer has run out during a handshake, of which nobody can be told.
    fn in_handshake_until_now(&mut self) -> bool {
        let ended = self.asked == Turn::Handshake && self.session.is_closed();
        if ended {
            self.is_gone = true;
        }
        ended
    }

    /// The end of the client: nothing more may be said if the session has ended, whatever happens.
    pub fn finish(&mut self) {
        if self.is_closed() && !self.session.is_held() && !self.is_gone {
            self.session.handle_verdict(self.now, Verdict::Accept);
            self.session.handle_commit_failure(self.now);
            self.session.handle_challenge(self.now, nonce(0), FILETIME);
            self.session.handle_logon(self.now, LogonVerdict::Accept("nobody"));
            self.session.handle_tls(self.now, TLS);
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
                    let most = if self.may_be_in_exchange() { SASL_LINE_MAX_OCTETS } else { COMMAND_LINE_MAX_OCTETS };
                    assert!(input.len() - at < most, "{} octets left", input.len() - at);
                    break Turn::Read;
                }
                Step::Flush => {
                    let has_some = self.session.is_held() || !self.session.replies().is_empty();
                    assert!(has_some, "a flush of nothing");
                    break Turn::Flush;
                }
                Step::Close => break Turn::Close,
                Step::StartTls => break Turn::Handshake,
                Step::Challenge => {
                    assert!(self.session.next_deadline().is_none_or(|_| self.session.is_held()));
                    self.challenges = self.challenges.wrapping_add(1);
                    self.session.handle_challenge(self.now, nonce(self.challenges), FILETIME);
                }
                Step::Authenticate => break Turn::Authenticate,
                Step::Abandon => self.abandon(),
                Step::Decide(query) => {
                    let verdict = self.policy.decide(self.now, &query);
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

    /// Whether the next line is perhaps one of AUTH's exchange: the last reply is a challenge, or it
    /// is held back.
    fn may_be_in_exchange(&self) -> bool {
        let replies = self.session.replies();
        self.session.is_held() || if replies.is_empty() { self.has_challenged } else { ends_in_challenge(replies) }
    }

    fn authenticate(&mut self) {
        let next = std::mem::take(&mut self.next_logon);
        let logon = self.session.take_logon().expect("a proof to be judged");
        assert!(self.session.take_logon().is_none(), "one proof, once");
        self.assert_waiting(b"NOOP\r\n");
        let judgement = match next.is_unavailable {
            true => Judgement::Unavailable,
            false => self.policy.judge(self.now, logon),
        };
        self.now += next.takes;
        self.session.handle_logon(self.now, judgement.verdict());
        let accepted = if let Judgement::Accept(name) = &judgement { Some(&name[..]) } else { None };
        assert_eq!(self.session.user(), accepted);
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
        let Some(mut message) = self.arriving.take() else { unreachable!("one was begun") };
        let missing = self.session.missing_fields().expect("the header has ended");
        let mut fields = Vec::new();
        missing.write(&mut fields, message.id.text().as_str(), self.session.trace().hostname, DATE);
        let at = message.received_octets;
        message.received_octets += fields.len();
        message.octets.splice(at..at, fields);
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
        let records = batch.octets.len() - END_MARK_OCTETS;
        assert_eq!(header.octets(), records as u64, "one message, one record");
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
        let replies = self.session.replies();
        assert!(replies.len() < REPLIES_MAX_OCTETS + REPLY_MAX_OCTETS, "{} octets of replies", replies.len());
        if !replies.is_empty() {
            self.writes += 1;
            self.has_challenged = ends_in_challenge(replies);
            self.replies.extend_from_slice(replies);
            self.session.replies_sent(replies.len());
        }
    }
}

fn ends_in_challenge(replies: &[u8]) -> bool {
    let last = replies.trim_ascii_end().rsplit(|&octet| octet == b'\n').next();
    last.is_some_and(|line| line.starts_with(b"334"))
}
