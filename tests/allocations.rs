//! What the paths that every client can take again and again ask of the allocator.
//!
//! The rule: from accept to the banner, and for every command, nothing is allocated per event.
//! What is allocated is counted here exactly, so that one allocation more fails:
//!
//! - **A connection to its banner: 1**, the buffer of its replies, which the session then keeps.
//!   The checks before it allocate nothing. (The shard adds its own for a connection, which are
//!   not run here for want of a kernel: the session's state, its task, its socket's slot.)
//! - **A session's first transaction** fills buffers that it keeps: the name in EHLO, the
//!   envelope's texts and recipients. They are [`FIRST`].
//! - **Every later command: 0**, whatever it is and however it is refused, as long as the envelope
//!   stays within `limits::KEPT_BUFFER_OCTETS`. A larger one grows its buffers by doubling and
//!   gives them back at its end: a few allocations per large message, never one per recipient.
//! - **A logon**: what it takes, for each mechanism, is in [`LOGONS`]. It comes once in a session, and
//!   its number is bounded by those that may fail (E7).
//! - **A record of the log: 0**, in text and JSON, once the sender's buffers have grown.
//! - **Content: 0**, in DATA and in chunks. What is kept of it, is kept by the driver.
//!
//! Allocations are counted per thread, so tests may run side by side.

use gatepost::limits::COMMAND_LINE_MAX_OCTETS;
use gatepost::log::{Event, Field, Format, Level, Log, Settings};
use gatepost::policy::{
    AcceptedDomains, AddressRanges, BindingRules, Door, DynamicBlocks, SlotCount, Sources, parse_range, recipient,
};
use gatepost::queue::record::{Body, NewMessage};
use gatepost::queue::spool::{Resume, Spool};
use gatepost::smtp::Durable;
use gatepost::smtp::command::Verb;
use gatepost::smtp::envelope::Envelope;
use gatepost::smtp::reply::Reply;
use gatepost::smtp::sasl::ntlm::{ClientExchange, ServerExchange, client::Randomness};
use gatepost::smtp::sasl::{self, Mechanisms};
use gatepost::smtp::server::{LogonVerdict, Observer, Profile, Query, Session, Step, Verdict};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Allocations of a session's first transaction, EHLO to the end of data: the name 1, the envelope's
/// texts 5 (18 to 144 octets, doubling), its recipients 2 (4, 8).
const FIRST: usize = 8;

/// The system's allocator, counted.
struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

fn count_one() {
    // A thread that is ending has no count any more, and no test either.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on as it is to the system's allocator, which keeps the contract;
// counting touches a cell of the thread and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, octets: usize) -> *mut u8 {
        count_one();
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, octets) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread while `act` runs.
fn allocations<T>(act: impl FnOnce() -> T) -> usize {
    let before = COUNT.get();
    let result = act();
    let count = COUNT.get() - before;
    drop(black_box(result));
    count
}

fn profile() -> Rc<Profile> {
    Rc::new(Profile {
        hostname: "mx.example.org".to_owned(),
        local_names: vec!["mx.example.org".to_owned(), "mail.example.org".to_owned()],
        default_domain: Some("default.example".to_owned()),
        message_size_max: Some(10 << 20),
        header_size_max: Some(64 << 10),
        hops_max: Some(60),
        local_hops_max: Some(12),
        recipients_max: Some(200),
        offers_auth: true,
        plaintext_auth: true,
        connection_timeout: Some(Duration::from_secs(300)),
        inactivity_timeout: Some(Duration::from_secs(60)),
        ..Profile::default()
    })
}

fn client() -> IpAddr {
    [192, 0, 2, 1].into()
}

/// A proof, of any message: sessions ask only for its id.
fn durable() -> Durable {
    let mut spool = Spool::new(0, Resume::default(), 1);
    let id = spool.next_id(0);
    let message = NewMessage {
        id,
        arrived_unix_ms: 0,
        envelope: &Envelope::default(),
        client: client(),
        hello: b"x",
        body: Body::Inline(b""),
    };
    let receipt = spool.append(&message);
    spool.take_batch().expect("a batch");
    spool.synced().and_then(|synced| synced.prove(&receipt)).expect("a proof")
}

/// Counts refusals, and looks at what they are about as the log does.
#[derive(Debug, Default)]
struct Refusals(Cell<u32>);

impl Observer for Refusals {
    fn command(&self, verb: Verb) {
        black_box(verb);
    }

    fn reply(&self, code: u16) {
        black_box(code);
    }

    fn refusal(&self, session: &Session, reply: Reply) {
        black_box((reply, session.reverse_path(), session.recipient_at_hand(), session.content_octets()));
        self.0.update(|count| count + 1);
    }
}

/// A session and the driver's part of it; only the session allocates, if at all.
struct Driven {
    session: Session,
    now: Instant,
    durable: Durable,
    committed: u32,
    refusals: Rc<Refusals>,
    /// What is said to every logon.
    verdict: LogonVerdict<'static>,
}

impl Driven {
    fn new() -> Self {
        let now = Instant::now();
        let mut session = Session::new(profile(), client(), now);
        session.offer_mechanisms(Mechanisms { ntlm: true, login: true, plain: true });
        let refusals = Rc::new(Refusals::default());
        session.observe(1, refusals.clone());
        Driven { session, now, durable: durable(), committed: 0, refusals, verdict: LogonVerdict::Refuse }
    }

    fn refused(&self) -> u32 {
        self.refusals.0.get()
    }

    /// Its buffers are filled as a transaction and some refusals fill them.
    fn warm() -> Self {
        let mut driven = Driven::new();
        driven.transaction();
        // A full buffer of replies, the last of which crosses its limit, and refusals to be counted.
        driven.feed(&b"WHAT\r\n".repeat(400));
        driven.feed(&b"RSET x\r\n".repeat(400));
        driven
    }

    fn transaction(&mut self) {
        for input in TRANSACTION {
            self.feed(input);
        }
    }

    fn feed(&mut self, input: &[u8]) {
        self.session.handle_input(self.now);
        let mut at = 0;
        loop {
            let (consumed, step) = self.session.step(self.now, &input[at..]);
            at += consumed;
            match step {
                Step::Decide(Query::Recipient(mailbox)) if mailbox.domain() == Some(b"foreign.example") => {
                    self.session.handle_verdict(self.now, Verdict::Refuse(Reply::UnableToRelay));
                }
                Step::Decide(_) => self.session.handle_verdict(self.now, Verdict::Accept),
                Step::Body(octets) => _ = black_box(octets),
                Step::Commit => {
                    self.committed += 1;
                    self.session.handle_durable(self.now, &self.durable);
                }
                Step::Flush => self.send(),
                Step::Challenge => self.session.handle_challenge(self.now, NONCE, 0),
                Step::Authenticate => {
                    let logon = self.session.take_logon().expect("a proof");
                    drop(black_box(logon));
                    self.session.handle_logon(self.now, self.verdict);
                }
                Step::Abandon | Step::StartTls => {}
                Step::NeedMore | Step::Close => break,
            }
        }
        assert_eq!(at, input.len(), "only whole pieces are fed");
        self.send();
    }

    fn send(&mut self) {
        let sent = black_box(self.session.replies()).len();
        self.session.replies_sent(sent);
    }
}

const TRANSACTION: &[&[u8]] = &[
    b"EHLO client.example\r\n",
    b"MAIL FROM:<sender@example.com> SIZE=1000 BODY=8BITMIME RET=HDRS ENVID=QQ314159\r\n",
    b"RCPT TO:<one@example.org> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;one@example.org\r\n",
    b"RCPT TO:<two@example.org>\r\n",
    b"RCPT TO:<three@example.org>\r\n",
    b"RCPT TO:<four@example.org>\r\n",
    b"RCPT TO:<no@foreign.example>\r\n",
    b"DATA\r\n",
    b"Received: from a by mx.example.org with SMTP; now\r\nSubject: x\r\n\r\n..\r\na\nb\rc\r\n.\r\n",
];

/// A pipelined group.
const GROUP: &[u8] =
    b"MAIL FROM:<a@b.example>\r\nRCPT TO:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA x\r\nRSET\r\n\
NOOP\r\nVRFY x\r\nWHAT\r\n";

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| Box::new(1_u64)), 1);
    assert_eq!(allocations(|| vec![0_u8; 100]), 1);
    let mut grows = Vec::with_capacity(1);
    assert_eq!(allocations(|| grows.extend_from_slice(&[1_u64, 2, 3])), 1);
    assert_eq!(allocations(|| 1), 0);
}

#[test]
fn a_connection_to_its_banner() {
    let (profile, client, now) = (profile(), client(), Instant::now());
    let session = allocations(|| {
        let session = Session::new(profile.clone(), client, now);
        assert!(black_box(session.replies()).starts_with(b"220 "));
        session
    });
    assert_eq!(session, 1, "the buffer of its replies");
    // The answer to EHLO fits into it: only the name is new.
    let mut session = Session::new(profile.clone(), client, now);
    let sent = session.replies().len();
    session.replies_sent(sent);
    assert_eq!(allocations(|| session.step(now, b"EHLO client.example\r\n").0), 1);
    assert!(session.replies().ends_with(b"250 ENHANCEDSTATUSCODES\r\n"));
}

#[test]
fn the_first_transaction() {
    let mut driven = Driven::new();
    let count = allocations(|| driven.transaction());
    assert_eq!(driven.committed, 1);
    assert_eq!(count, FIRST);
}

#[test]
fn every_later_command() {
    let (longest, overlong) = {
        let longest = [&vec![b'x'; COMMAND_LINE_MAX_OCTETS - 2][..], b"\r\n"].concat();
        let overlong = [&vec![b'x'; 3 * COMMAND_LINE_MAX_OCTETS][..], b"\r\n"].concat();
        (longest, overlong)
    };
    let commands: &[&[u8]] = &[
        b"EHLO client.example\r\n",
        b"EHLO [192.0.2.1]\r\n",
        b"HELO x\r\n",
        b"EHLO\r\n",
        b"EHLO client.example\r\n",
        b"MAIL FROM:<a@b.example>\r\n",
        b"MAIL FROM:<a@b.example>\r\n",
        b"RCPT TO:<one@example.org>\r\n",
        b"RCPT TO:<two@example.org> NOTIFY=NEVER\r\n",
        b"RCPT TO:<unqualified>\r\n",
        b"RCPT TO:<Postmaster>\r\n",
        b"RCPT TO:<@relay.example:\"a b\"@[IPv6:2001:db8::1]>\r\n",
        b"RCPT TO:<no@foreign.example>\r\n",
        b"RCPT TO:<@>\r\n",
        b"RCPT TO:<>\r\n",
        b"RCPT TO:<a@b.example> X=Y\r\n",
        b"RCPT FROM:<a@b.example>\r\n",
        b"DATA x\r\n",
        b"DATA\r\n",
        b"Subject: x\r\n\r\nbody\r\n.\r\n",
        b"DATA\r\n",
        b"MAIL FROM:<> SIZE=99999999999999999999\r\n",
        b"MAIL FROM:<a b>\r\n",
        b"MAIL\r\n",
        b"MAIL FROM:<>\r\n",
        b"RSET\r\n",
        b"RSET x\r\n",
        b"NOOP\r\n",
        b"NOOP x\r\n",
        b"VRFY\r\n",
        b"VRFY x\r\n",
        b"EXPN x\r\n",
        b"HELP\r\n",
        b"AUTH X\r\n",
        b"AUTH\r\n",
        b"STARTTLS\r\n",
        b"XEXCH50 2 2\r\n",
        b"BDAT 4\r\nNOOP",
        b"MAIL FROM:<a@b.example> BODY=BINARYMIME\r\n",
        b"BDAT 2 LAST\r\nxx",
        b"MAIL FROM:<a@b.example> BODY=BINARYMIME\r\n",
        b"RCPT TO:<one@example.org>\r\n",
        b"DATA\r\n",
        b"BDAT 10\r\n0123456789",
        b"BDAT 0\r\n",
        b"BDAT 12 LAST\r\nA: b\n\n\0\r\n.\r\n",
        b"WHAT\r\n",
        b"\r\n",
        b"NO\0OP\r\n",
        b"NO\nOP\r\n",
        GROUP,
        TRANSACTION[0],
        &longest,
        &overlong,
    ];
    let mut driven = Driven::warm();
    // Twice: what a command leaves behind must not cost the next one either.
    for _ in 0..2 {
        for command in commands {
            let count = allocations(|| driven.feed(command));
            let start = &command[..command.len().min(80)];
            assert_eq!(count, 0, "{count} allocations for {}", start.escape_ascii());
        }
    }
    assert!(driven.committed >= 5 && driven.refused() > 50, "{} {}", driven.committed, driven.refused());
    assert!(!driven.session.is_closed());
}

/// Allocations of a logon that is refused, by what the client says: each message decoded, the name and
/// the password of it, the logon for the driver, and the exchange for each line that is waited for.
/// LOGIN has the name once more, between its two lines.
const LOGONS: &[(&str, &[&str], usize)] = &[
    ("PLAIN, initial response", &["AUTH PLAIN AGFsaWNlAHNlY3JldA=="], 4),
    ("PLAIN", &["AUTH PLAIN", "AGFsaWNlAHNlY3JldA=="], 5),
    ("LOGIN", &["AUTH LOGIN", "YWxpY2U=", "c2VjcmV0"], 8),
    ("LOGIN, initial response", &["AUTH LOGIN YWxpY2U=", "c2VjcmV0"], 7),
    ("cancelled", &["AUTH LOGIN", "*"], 1),
    ("not base64", &["AUTH PLAIN !"], 1),
];

/// Of NTLM, most of them for the fields of the challenge.
const NTLM: usize = 31;
const NONCE: [u8; 8] = [1; 8];

#[test]
fn logons() {
    let mut driven = Driven::warm();
    // Twice: nothing is kept of the first.
    for _ in 0..2 {
        for (name, lines, wanted) in LOGONS {
            let lines: Vec<String> = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let count = allocations(|| lines.iter().for_each(|line| driven.feed(line.as_bytes())));
            assert_eq!(count, *wanted, "{name}");
        }
        let lines = ntlm_lines();
        let count = allocations(|| lines.iter().for_each(|line| driven.feed(line)));
        assert_eq!(count, NTLM, "NTLM");
    }
    // A success keeps the name.
    let line = format!("{}\r\n", LOGONS[0].1[0]);
    driven.verdict = LogonVerdict::Accept("alice");
    assert_eq!(allocations(|| driven.feed(line.as_bytes())), LOGONS[0].2 + 1);
    assert_eq!(driven.session.user(), Some("alice"));
    assert_eq!(allocations(|| (0..100).for_each(|_| driven.transaction())), 0);
}

/// What a client of NTLM says, with CRLF; as octets, so that nothing else is counted.
fn ntlm_lines() -> [Vec<u8>; 2] {
    let client = ClientExchange::new("alice", None, "secret");
    let server = ServerExchange::new(&client.negotiate(), "mx.example.org", NONCE, 0).expect("a challenge");
    let random = Randomness { nonce: [2; 8], session_key: [3; 16] };
    let authenticate = client.authenticate(server.challenge(), &random, 0).expect("an answer");
    [(&b"AUTH NTLM "[..], client.negotiate()), (b"", authenticate)].map(|(command, message)| {
        let mut line = command.to_vec();
        sasl::encode(&message, &mut line);
        line.extend_from_slice(b"\r\n");
        line
    })
}

#[test]
fn every_later_transaction() {
    let mut driven = Driven::warm();
    assert_eq!(allocations(|| (0..100).for_each(|_| driven.transaction())), 0);
    assert_eq!(driven.committed, 101);
}

#[test]
fn a_group_in_one_piece() {
    let group = GROUP.repeat(64);
    let mut driven = Driven::warm();
    assert_eq!(allocations(|| driven.feed(&group)), 0);
    assert!(driven.refused() >= 64);
}

#[test]
fn content() {
    let mut driven = Driven::warm();
    let text = b"\r\nA line of text.\r\n..\r\na bare\nline end\r\n".repeat(2000);
    for input in [&b"MAIL FROM:<>\r\n"[..], b"RCPT TO:<a@example.org>\r\n", b"DATA\r\n"] {
        driven.feed(input);
    }
    assert_eq!(allocations(|| text.chunks(1000).for_each(|piece| driven.feed(piece))), 0);
    driven.feed(b"\r\n.\r\n");
    for input in [&b"MAIL FROM:<>\r\n"[..], b"RCPT TO:<a@example.org>\r\n"] {
        driven.feed(input);
    }
    driven.feed(format!("BDAT {} LAST\r\n", text.len()).as_bytes());
    assert_eq!(allocations(|| text.chunks(1000).for_each(|piece| driven.feed(piece))), 0);
    assert_eq!(driven.committed, 3);
}

/// Buffers that one large envelope filled are not kept, and cost the few steps of doubling.
#[test]
fn a_large_envelope() {
    let mut driven = Driven::warm();
    let local = "x".repeat(60);
    let recipients: Vec<String> = (0..150).map(|n| format!("RCPT TO:<{local}{n}@example.org>\r\n")).collect();
    // Two buffers, each from nothing to its size.
    let doublings = 2 * recipients.iter().map(String::len).sum::<usize>().ilog2() as usize;
    for _ in 0..3 {
        driven.feed(b"MAIL FROM:<>\r\n");
        let count = allocations(|| recipients.iter().for_each(|rcpt| driven.feed(rcpt.as_bytes())));
        assert!((1..=doublings).contains(&count), "{count} allocations");
        assert!(allocations(|| driven.feed(b"RSET\r\n")) <= 2, "back to the kept size");
    }
}

#[test]
fn the_policy() {
    let ranges =
        |items: &[&str]| -> AddressRanges { items.iter().map(|item| parse_range(item).expect("a range")).collect() };
    let blocked = ranges(&["198.51.100.0/24", "2001:db8:bad::/48"]);
    let mut for_a_time = DynamicBlocks::default();
    for item in ["203.0.113.0/24", "2001:db8:bad:1::/64"] {
        for_a_time.add(parse_range(item).expect("a range"), 1_000_000).expect("room");
    }
    let rules = BindingRules { allow: Some(ranges(&["192.0.2.0/24", "2001:db8::/32"])), ..BindingRules::default() };
    let accepted: AcceptedDomains =
        ["example.org", ".example.net"].iter().map(|item| item.parse().expect("an item")).collect();
    let sources = Sources::new(SlotCount::new(SlotCount::MIN).expect("a count"), 64);
    let clients: Vec<IpAddr> =
        ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "203.0.113.9", "198.51.100.1", "10.1.1.1"]
            .iter()
            .map(|client| client.parse().expect("an address"))
            .collect();
    let mut reply = Vec::with_capacity(512);
    let mut refused = 0;
    let count = allocations(|| {
        for now_ms in 0..1000 {
            for &client in &clients {
                let door = Door {
                    rules: &rules,
                    blocked: &blocked,
                    blocked_for_a_time: &for_a_time,
                    resources_short: now_ms % 10 == 9,
                    now_ms,
                };
                reply.clear();
                if let Some(refusal) = door.refusal(client) {
                    refusal.write(&mut reply, client);
                    refused += 1;
                    continue;
                }
                assert_eq!(sources.try_enter(100), Ok(()));
                match sources.try_connect(client, u32::from(now_ms % 2 == 0)) {
                    Err(refusal) => refusal.write(&mut reply, client),
                    Ok(source) => {
                        let _ = sources.try_count_message(source, now_ms, 10);
                        sources.mark(source, now_ms);
                        assert!(sources.take_mark(source, now_ms));
                        assert_eq!(sources.try_enter(1), Err(Reply::TooManyConnections));
                        sources.disconnect(source);
                    }
                }
                sources.leave();
            }
            for domain in [&b"example.org"[..], b"EXAMPLE.ORG", b"a.b.example.net", b"[192.0.2.1]", b"foreign.example"]
            {
                black_box(accepted.contains(domain));
                let _ = black_box(recipient(&accepted, false, Some(domain), false));
            }
        }
    });
    assert_eq!(count, 0);
    assert!(refused > 3000);
}

#[test]
fn every_reply() {
    let mut out = Vec::with_capacity(64 << 10);
    let clients: [IpAddr; 2] = [client(), "2001:db8:1111:2222:3333:4444:5555:6666".parse().expect("an address")];
    let count = allocations(|| {
        for reply in Reply::ALL {
            clients.iter().for_each(|&client| reply.write(&mut out, client));
        }
    });
    assert_eq!(count, 0);
    assert!(out.len() > 2 * 20 * Reply::ALL.len());
}

#[test]
fn a_record_of_the_log_allocates_nothing() {
    for format in [Format::Text, Format::Json] {
        let settings = Settings { format, level: Level::Info, file: Some("/dev/null".into()) };
        let sender = Log::start(&settings, metrics::Counter::noop()).expect("a log").sender();
        let write = |octets: &[u8]| {
            let mut record = sender.record(Event::Refused, std::time::SystemTime::now()).expect("written");
            record.address(Field::Client, IpAddr::from([192, 0, 2, 1])).text(Field::Helo, octets);
            record.display(Field::Reply, &octets.escape_ascii()).number(Field::Nrcpt, 3);
        };
        let longest = [0xff; 1000];
        write(&longest);
        // Of a second that begins, the date is made.
        let least = (0..3).map(|_| allocations(|| (0..100).for_each(|_| write(&longest)))).min();
        assert_eq!(least, Some(0));
    }
}
