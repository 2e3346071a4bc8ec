//! Properties of the receiving session, whatever a client, the policy, the disk and the clock do.
//!
//! Lists of operations, not octets alone: commands valid and broken, data with odd line ends,
//! chunks, commits that fail or take long, handshakes, logons with every verdict, jumps in time, a
//! shutdown. The driver in memory asserts
//! what a session owes every driver (see its module); here stands what it owes the client:
//!
//! - every command line, and every message, gets exactly one reply, well formed and at once, but for empty
//!   lines that come first: they could be a proxy's header, and are answered with what follows;
//! - what is stored is what was sent, to the recipients that were accepted since MAIL, and only
//!   what was acknowledged is stored;
//! - what follows STARTTLS gets none, until TLS is there; a line of AUTH's exchange gets one that
//!   goes on with the exchange or ends it;
//! - a client that has authenticated never waits for a refusal;
//! - after the last reply there is silence;
//! - how the octets are cut into pieces changes nothing.

#[path = "transcripts/harness/driver.rs"]
mod driver;
#[path = "session/operations.rs"]
mod operations;

use driver::{Driver, Judgement, NextCommit, NextLogon, Outside, Stored};
use gatepost::smtp::reply::{After, Reply};
use gatepost::smtp::sasl::{self, Mechanisms};
use gatepost::smtp::server::{Logon, Profile, Query, Verdict};
use operations::{Op, USER, ops};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const HOSTNAME: &str = "mx.example.org";

/// The verdicts of a policy with a mind of its own, one question after the other.
fn verdicts() -> impl Strategy<Value = Vec<Verdict>> {
    let verdict = prop_oneof![
        12 => Just(Verdict::Accept),
        3 => Just(Verdict::Refuse(Reply::UnableToRelay)),
        1 => Just(Verdict::Refuse(Reply::RateExceeded)),
    ];
    vec(verdict, 1..8)
}

/// Those of the users that there are, one logon after the other.
fn judgements() -> impl Strategy<Value = Vec<Judgement>> {
    let judgement = prop_oneof![
        6 => Just(Judgement::Accept(USER.to_owned())),
        4 => Just(Judgement::Refuse),
        1 => Just(Judgement::NotHere),
        1 => Just(Judgement::Unavailable),
    ];
    vec(judgement, 1..8)
}

/// What a session is made with: its profile, and who answers its questions.
#[derive(Clone, Debug)]
struct World {
    profile: Profile,
    mechanisms: Mechanisms,
    verdicts: Vec<Verdict>,
    judgements: Vec<Judgement>,
}

impl World {
    fn connect(&self) -> Driver {
        let policy = Box::new(Scripted { world: self.clone(), asked: 0, judged: 0 });
        Driver::connect(self.profile.clone(), [192, 0, 2, 1].into(), false, Instant::now(), policy)
    }
}

fn world() -> impl Strategy<Value = World> {
    let mechanisms = prop_oneof![
        1 => Just(Mechanisms::default()),
        3 => any::<[bool; 3]>().prop_map(|[ntlm, login, plain]| Mechanisms { ntlm, login, plain }),
        6 => Just(Mechanisms { ntlm: true, login: true, plain: true }),
    ];
    (profile(), mechanisms, verdicts(), judgements()).prop_map(|(profile, mechanisms, verdicts, judgements)| World {
        profile,
        mechanisms,
        verdicts,
        judgements,
    })
}

fn profile() -> impl Strategy<Value = Profile> {
    let weighted = |weight| prop::bool::weighted(weight);
    let security = (weighted(0.6), weighted(0.8), weighted(0.7), weighted(0.1), weighted(0.1), option::of(1..4_u32));
    (bounds(), security).prop_map(|(profile, security)| {
        let (offers_tls, offers_auth, plaintext_auth, requires_tls, requires_auth, logon_failures_max) = security;
        Profile { offers_tls, offers_auth, plaintext_auth, requires_tls, requires_auth, logon_failures_max, ..profile }
    })
}

fn bounds() -> impl Strategy<Value = Profile> {
    let timeout = || option::weighted(0.8, (1..400_u64).prop_map(Duration::from_secs));
    (
        option::of(Just("default.example".to_owned())),
        option::of(0..200_u64),
        option::of(1..4_u32),
        option::of(1..12_u32),
        timeout(),
        timeout(),
    )
        .prop_map(|(default_domain, size, recipients_max, protocol_errors_max, connection, inactivity)| Profile {
            hostname: HOSTNAME.to_owned(),
            default_domain,
            message_size_max: size,
            recipients_max,
            protocol_errors_max,
            connection_timeout: connection,
            inactivity_timeout: inactivity,
            ..Profile::default()
        })
}

/// RFC 5321 section 4.5.2, client side: dots doubled after CRLF, the end appended. The result ends
/// the data at its end and nowhere else.
fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut line_start = true;
    for (index, &octet) in content.iter().enumerate() {
        if line_start && octet == b'.' {
            out.push(b'.');
        }
        out.push(octet);
        line_start = octet == b'\n' && index > 0 && content[index - 1] == b'\r';
    }
    if !line_start {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

/// What is stored of it: CRLF line ends only.
fn mended(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = content;
    while let Some((&octet, tail)) = rest.split_first() {
        match octet {
            b'\r' if tail.first() == Some(&b'\n') => {
                out.extend_from_slice(b"\r\n");
                rest = &tail[1..];
                continue;
            }
            // The client's CRLF before the final dot makes a whole line end of a CR at the end.
            b'\r' => out.push(b' '),
            b'\n' => out.extend_from_slice(b"\r\n"),
            _ => out.push(octet),
        }
        rest = tail;
    }
    if !(content.is_empty() || content.ends_with(b"\r\n")) {
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Splits replies at the end of each (RFC 5321 section 4.2.1); panics where one is malformed.
fn replies(mut octets: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut reply = String::new();
    while !octets.is_empty() {
        let end = octets.windows(2).position(|pair| pair == b"\r\n").expect("a whole line");
        let line = std::str::from_utf8(&octets[..end]).expect("ASCII");
        octets = &octets[end + 2..];
        assert!(
            line.len() >= 4 && line.len() <= 510 && line.is_ascii() && !line.contains(['\r', '\n', '\0']),
            "{line}"
        );
        assert!(reply.is_empty() || reply[..3] == line[..3], "{reply} goes on as {line}");
        reply.push_str(line);
        match line.as_bytes()[3] {
            b'-' => reply.push('\n'),
            b' ' => found.push(std::mem::take(&mut reply)),
            _ => panic!("{line}"),
        }
    }
    assert!(reply.is_empty(), "{reply} does not end");
    found.iter().for_each(|reply| assert_known(reply));
    found
}

/// A row of the table, or one of the replies that tell something.
fn assert_known(reply: &str) {
    let fixed = Reply::ALL.iter().any(|row| row.text() == reply);
    let banner = reply == format!("220 {HOSTNAME} ESMTP Gatepost ready");
    let hello = reply.starts_with(&format!("250-{HOSTNAME} Hello [192.0.2.1]\n250-SIZE "))
        || reply == format!("250 {HOSTNAME} Hello [192.0.2.1]");
    let challenge = reply.strip_prefix("334 ").and_then(|line| sasl::decode(line.as_bytes()));
    let challenge = challenge.is_some_and(|message| message.starts_with(b"NTLMSSP\0\x02"));
    let chunk = reply.strip_prefix("250 2.6.0 CHUNK received OK, ").and_then(|rest| rest.strip_suffix(" octets"));
    let chunk = chunk.is_some_and(|octets| octets.parse::<u64>().is_ok());
    assert!(challenge || fixed || banner || hello || chunk || queued_id(reply).is_some(), "{reply}");
}

fn chunk_reply(octets: usize) -> String {
    format!("250 2.6.0 CHUNK received OK, {octets} octets")
}

/// The id in an acknowledgement.
fn queued_id(reply: &str) -> Option<&str> {
    let id = reply.strip_prefix("250 2.6.0 ")?.strip_suffix(" Queued mail for delivery")?;
    (!id.contains(' ')).then_some(id)
}

/// Whether no reply with this text lets the session go on.
fn is_last(reply: &str) -> bool {
    let mut rows = Reply::ALL.iter().filter(|row| row.text() == reply).peekable();
    rows.peek().is_some() && rows.all(|row| row.row().after == After::Close)
}

struct Scripted {
    world: World,
    asked: usize,
    judged: usize,
}

impl Outside for Scripted {
    fn mechanisms(&self) -> Mechanisms {
        self.world.mechanisms
    }

    fn decide(&mut self, _now: Instant, query: &Query<'_>) -> Verdict {
        self.asked += 1;
        match self.world.verdicts[self.asked % self.world.verdicts.len()] {
            // Each question has refusals of its own.
            Verdict::Refuse(Reply::UnableToRelay) if matches!(query, Query::Sender(_)) => Verdict::Accept,
            Verdict::Refuse(Reply::RateExceeded) if !matches!(query, Query::Sender(_)) => Verdict::Accept,
            verdict => verdict,
        }
    }

    fn judge(&mut self, _now: Instant, logon: Logon) -> Judgement {
        if let Logon::Malformed(_) = logon {
            return Judgement::Refuse;
        }
        self.judged += 1;
        self.world.judgements[self.judged % self.world.judgements.len()].clone()
    }
}

/// What happened in a run, to be run again: input as it was sent, other operations as they were.
enum Event {
    Input(Vec<u8>),
    Other(Op),
}

/// A client that knows what it is owed.
struct Client {
    driver: Driver,
    said: Vec<String>,
    /// RCPTs accepted since MAIL was.
    accepted: usize,
    /// The chunks accepted since then.
    chunks: Vec<u8>,
    events: Vec<Event>,
    /// Whether the commands so far can be counted: octets of any kind were not sent.
    counts: bool,
    draining: bool,
    has_authenticated: bool,
}

impl Client {
    fn connect(world: &World) -> Self {
        let mut client = Client {
            driver: world.connect(),
            said: Vec::new(),
            accepted: 0,
            chunks: Vec::new(),
            events: Vec::new(),
            counts: true,
            draining: false,
            has_authenticated: false,
        };
        client.hear();
        client
    }

    fn hear(&mut self) -> usize {
        let replies = replies(&self.driver.take_replies());
        let count = replies.len();
        self.said.extend(replies);
        if let Some(last) = self.said.iter().position(|reply| is_last(reply)) {
            assert_eq!(last + 1, self.said.len(), "a reply after the last one");
            assert!(self.driver.is_closed(), "the last reply, and no end");
        }
        count
    }

    /// Whether the client's next line is one of AUTH's exchange.
    fn in_exchange(&self) -> bool {
        self.said.last().is_some_and(|reply| reply.starts_with("334"))
    }

    /// Sends something that is owed one reply, and perhaps a farewell behind it; or nothing, where it
    /// is in the way of a handshake.
    fn send(&mut self, input: &[u8]) {
        let open = !self.driver.is_closed() && !self.driver.in_handshake();
        let in_exchange = open && self.in_exchange();
        self.driver.feed(input);
        self.events.push(Event::Input(input.to_vec()));
        let before = self.said.len();
        let count = self.hear();
        if self.counts {
            let farewell = self.driver.is_closed() && count == 2 && is_last(&self.said[before + 1]);
            assert!(count == usize::from(open) || farewell, "{count} replies to {}", input.escape_ascii());
            if let Some(reply) = self.said.get(before) {
                self.check_exchange(in_exchange, reply, input);
            }
        }
        match self.said.get(before).map(String::as_str) {
            Some("250 2.1.0 Sender OK") => {
                self.accepted = 0;
                self.chunks.clear();
            }
            Some("250 2.1.5 Recipient OK") => self.accepted += 1,
            Some("235 2.7.0 Authentication successful") => self.has_authenticated = true,
            _ => {}
        }
        assert!(!self.counts || self.driver.user().is_some() == self.has_authenticated);
    }

    /// An exchange goes on by a 334, or ends by one of its own replies; a handshake begins by the reply
    /// to STARTTLS alone.
    fn check_exchange(&self, in_exchange: bool, reply: &str, input: &[u8]) {
        let code = reply.split(' ').next().unwrap_or_default();
        let ends = [
            Reply::Authenticated,
            Reply::AuthenticationFailed,
            Reply::AuthenticationUnavailable,
            Reply::AuthenticationCancelled,
            Reply::CannotDecode,
            Reply::ResponseTooLong,
            Reply::NotConfigured,
            Reply::TooManyErrors,
            Reply::ConnectionTimedOut,
        ];
        let is_of_exchange = code == "334" || ends.iter().any(|end| end.text() == reply);
        assert!(!in_exchange || is_of_exchange, "{reply} to {}", input.escape_ascii());
        let asks = input.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH"));
        let is_its_own = matches!(code, "334" | "235" | "535" | "454");
        assert!(!is_its_own || in_exchange || asks, "{reply} to {}", input.escape_ascii());
        assert_eq!(self.driver.in_handshake(), reply == Reply::StartTls.text() && !self.driver.is_closed());
    }

    fn perform(&mut self, op: &Op) {
        match op {
            Op::Line(line) => {
                if self.driver.in_data() {
                    // In DATA it is content: end it first.
                    self.send_content(b"");
                }
                let is_first = !self.events.iter().any(|event| matches!(event, Event::Input(_)));
                if is_first && line == b"\r\n" {
                    self.send_empty_line();
                } else {
                    self.send(line);
                }
            }
            Op::Chunk { last, octets } => {
                if !self.driver.in_data() && !self.in_exchange() {
                    let mut input =
                        format!("BDAT {}{}\r\n", octets.len(), if *last { " LAST" } else { "" }).into_bytes();
                    input.extend_from_slice(octets);
                    self.send_chunk(&input, octets);
                }
            }
            Op::Content(content) => {
                if self.driver.in_data() {
                    self.send_content(content);
                }
            }
            Op::Octets(octets) => {
                self.counts = false;
                self.driver.feed(octets);
                self.events.push(Event::Input(octets.clone()));
                self.hear();
            }
            other => {
                apply(&mut self.driver, other);
                self.events.push(Event::Other(other.clone()));
                self.draining |= matches!(other, Op::Shutdown { .. });
                let count = self.hear();
                assert!(count == 0 || self.driver.is_closed(), "a reply to nothing");
            }
        }
    }

    /// Sends an empty line as the first input, and a line behind it.
    fn send_empty_line(&mut self) {
        let open = !self.driver.is_closed();
        for (line, replies) in [(&b"\r\n"[..], 0), (b"NOOP\r\n", 2)] {
            self.driver.feed(line);
            self.events.push(Event::Input(line.to_vec()));
            let count = self.hear();
            assert!(count == if open { replies } else { 0 } || open && self.driver.is_closed(), "{count} replies");
        }
    }

    fn send_chunk(&mut self, input: &[u8], octets: &[u8]) {
        let before = (self.driver.stored().len(), self.said.len());
        self.send(input);
        if !self.counts {
            return;
        }
        let reply = self.said.get(before.1);
        if reply.is_some_and(|reply| *reply == chunk_reply(octets.len()) || queued_id(reply).is_some()) {
            self.chunks.extend_from_slice(octets);
        }
        let id = reply.and_then(|reply| queued_id(reply));
        let stored = &self.driver.stored()[before.0..];
        assert_eq!(id, stored.first().map(|stored| stored.id.text()).as_ref().map(|id| id.as_str()));
        if let [stored] = stored {
            assert_eq!(stored.content, self.chunks, "{}", input.escape_ascii());
            assert_eq!(stored.envelope().recipient_count(), self.accepted);
            assert!(self.accepted > 0);
        }
    }

    fn send_content(&mut self, content: &[u8]) {
        let before = (self.driver.stored().len(), self.said.len());
        self.send(&stuffed(content));
        if !self.counts {
            return;
        }
        let stored = &self.driver.stored()[before.0..];
        let id = self.said.get(before.1).and_then(|reply| queued_id(reply));
        assert_eq!(id, stored.first().map(|stored| stored.id.text()).as_ref().map(|id| id.as_str()));
        if let [stored] = stored {
            assert_eq!(stored.content, mended(content), "{}", content.escape_ascii());
            assert_eq!(stored.envelope().recipient_count(), self.accepted);
            assert!(self.accepted > 0);
        }
    }
}

/// Operations that are not the client's.
fn apply(driver: &mut Driver, op: &Op) {
    match op {
        Op::Pass(time) => driver.pass(*time),
        Op::NextCommit { fails, takes } => driver.set_next_commit(NextCommit { fails: *fails, takes: *takes }),
        Op::NextBodyFails => driver.fail_next_body(),
        Op::NextLogonTakes(takes) => driver.set_next_logon(NextLogon { is_unavailable: false, takes: *takes }),
        Op::Handshake { is_done } => {
            if driver.in_handshake() {
                driver.handshake(*is_done);
            }
        }
        Op::ResourcesShort(short) => driver.set_resources_short(*short),
        Op::Shutdown { at_once } => driver.shut_down(*at_once),
        Op::Line(_) | Op::Chunk { .. } | Op::Content(_) | Op::Octets(_) => unreachable!("the client's"),
    }
}

/// The same events with the input between two others in pieces of these sizes, in turn.
fn run_again(world: &World, events: &[Event], sizes: &[usize]) -> (Vec<u8>, Vec<Stored>, bool) {
    let mut driver = world.connect();
    let mut pending = Vec::new();
    let mut sizes = sizes.iter().cycle();
    let mut send = |driver: &mut Driver, pending: &mut Vec<u8>| {
        let mut rest = &pending[..];
        while !rest.is_empty() {
            let size = *sizes.next().unwrap_or(&1);
            let (piece, tail) = rest.split_at(size.clamp(1, rest.len()));
            driver.feed(piece);
            rest = tail;
        }
        pending.clear();
    };
    for event in events {
        match event {
            Event::Input(input) => pending.extend_from_slice(input),
            Event::Other(op) => {
                send(&mut driver, &mut pending);
                apply(&mut driver, op);
            }
        }
    }
    send(&mut driver, &mut pending);
    driver.finish();
    (driver.take_replies(), driver.stored().to_vec(), driver.is_closed())
}

/// xtext of printable octets, more of them encoded than must be.
fn xtext(octets: usize) -> impl Strategy<Value = String> {
    vec((b' '..=b'~', any::<bool>()), 1..octets).prop_map(|octets| {
        let encoded = octets.into_iter().map(|(octet, encode)| {
            let must = b" +=".contains(&octet);
            if encode || must { format!("+{octet:02X}") } else { char::from(octet).to_string() }
        });
        encoded.collect()
    })
}

const MAIL: &str = "MAIL FROM:<a@b.c>";
const RCPT: &str = "RCPT TO:<d@e.f>";

/// MAIL and RCPT with valid parameters of RFC 3461, without CRLF.
fn dsn_commands() -> impl Strategy<Value = [String; 2]> {
    let ret = option::of(select(vec![" RET=FULL", " ret=hdrs"])).prop_map(Option::unwrap_or_default);
    let envid = option::of(xtext(34)).prop_map(|envid| envid.map_or(String::new(), |envid| format!(" ENVID={envid}")));
    let list = subsequence(vec!["SUCCESS", "failure", "Delay"], 1..=3).prop_shuffle();
    let notify = prop_oneof![Just("NEVER".to_owned()), list.prop_map(|list| list.join(","))];
    let notify =
        option::of(notify).prop_map(|notify| notify.map_or(String::new(), |notify| format!(" Notify={notify}")));
    let orcpt = option::of((select(vec!["rfc822", "X-own", "utf-8", "!#$%&'*+-/?^_`{|}~"]), xtext(160)));
    let orcpt = orcpt.prop_map(|orcpt| orcpt.map_or(String::new(), |(of, address)| format!(" ORCPT={of};{address}")));
    (ret, envid, notify, orcpt, any::<bool>()).prop_map(|(ret, envid, notify, orcpt, swapped)| {
        let [sender, recipient] = if swapped {
            [format!("{envid}{ret}"), format!("{orcpt}{notify}")]
        } else {
            [format!("{ret}{envid}"), format!("{notify}{orcpt}")]
        };
        [format!("{MAIL}{sender}"), format!("{RCPT}{recipient}")]
    })
}

/// The value of a command's parameter, as written.
fn value(command: &str, keyword: &str) -> Option<String> {
    let mut parameters = command.trim_ascii().split(' ').filter_map(|word| word.split_once('='));
    parameters.find(|(word, _)| word.eq_ignore_ascii_case(keyword)).map(|(_, value)| value.to_owned())
}

/// The names in a NOTIFY, in a fixed order and case.
fn names(notify: &str) -> BTreeSet<String> {
    notify.split(',').map(str::to_ascii_uppercase).collect()
}

/// What is stored of the parameters of these two commands is what stands in them.
fn assert_kept(stored: &Stored, mail: &str, rcpt: &str) {
    let envelope = stored.envelope();
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
    let ret = value(mail, "RET").map(|ret| ret.to_ascii_uppercase());
    assert_eq!(envelope.ret().map(|ret| ret.as_str().to_owned()), ret, "{mail}");
    assert_eq!(envelope.envid().map(text), value(mail, "ENVID"), "{mail}");
    let recipients: Vec<_> = envelope.recipients().collect();
    let [recipient] = recipients[..] else { panic!("one recipient: {recipients:?}") };
    let notify = recipient.notify.map(|notify| {
        let mut octets = Vec::new();
        notify.write(&mut octets);
        names(&text(&octets))
    });
    assert_eq!(notify, value(rcpt, "NOTIFY").map(|notify| names(&notify)), "{rcpt}");
    assert_eq!(recipient.orcpt.map(text), value(rcpt, "ORCPT"), "{rcpt}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn a_session_keeps_its_promises(
        world in world(),
        ops in ops(),
        sizes in vec(1..200_usize, 1..12),
    ) {
        let mut client = Client::connect(&world);
        ops.iter().for_each(|op| client.perform(op));
        client.driver.finish();
        let stored = client.driver.stored().to_vec();
        let acknowledged: Vec<&str> = client.said.iter().filter_map(|reply| queued_id(reply)).collect();
        let ids: Vec<String> = stored.iter().map(|stored| stored.id.to_string()).collect();
        prop_assert_eq!(&acknowledged, &ids, "only what is stored is acknowledged, and all of it");
        // While the server drains, the end comes with the first pause: pieces matter then.
        if !client.draining {
            let said = client.said.iter().map(|reply| reply.replace('\n', "\r\n") + "\r\n").collect::<String>();
            for sizes in [&sizes[..], &[1], &[usize::MAX]] {
                let (octets, again, closed) = run_again(&world, &client.events, sizes);
                prop_assert_eq!(String::from_utf8_lossy(&octets), &said[..]);
                prop_assert_eq!(&again, &stored);
                prop_assert_eq!(closed, client.driver.is_closed());
            }
        }
    }

    /// Who has authenticated never waits for a refusal, whatever the interval (E17).
    #[test]
    fn an_authenticated_client_is_never_held_back(world in world(), ops in ops()) {
        let mechanisms = Mechanisms { plain: true, ..world.mechanisms };
        let judgements = vec![Judgement::Accept(USER.to_owned())];
        let tarpit = Some(Duration::from_secs(5));
        let profile = Profile { offers_auth: true, plaintext_auth: true, requires_tls: false, tarpit, ..world.profile };
        let mut client = Client::connect(&World { profile, mechanisms, judgements, ..world });
        client.send(b"EHLO client.example\r\n");
        client.send(b"AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n");
        prop_assert!(client.has_authenticated);
        for op in &ops {
            client.perform(op);
            prop_assert!(!client.driver.is_held() && !client.driver.take_tarpitted());
        }
    }

    /// What the parameters of RFC 3461 ask for is stored as it was asked. With an octet changed they
    /// are refused, or stored as they then are.
    #[test]
    fn dsn_parameters_are_kept(
        commands in dsn_commands(),
        change in option::of((any::<Index>(), any::<bool>(), prop_oneof![any::<u8>(), select(b"+=;, 0Aa".to_vec())])),
    ) {
        let profile = Profile {
            hostname: HOSTNAME.to_owned(),
            default_domain: None,
            message_size_max: None,
            recipients_max: None,
            protocol_errors_max: None,
            connection_timeout: None,
            inactivity_timeout: None, ..Profile::default() };
        let mut client = Client::connect(&World {
            profile,
            mechanisms: Mechanisms::default(),
            verdicts: vec![Verdict::Accept],
            judgements: vec![Judgement::Refuse],
        });
        client.send(b"EHLO x\r\n");
        let mut commands = commands.map(String::into_bytes);
        if let Some((place, replace, octet)) = change {
            // Behind the paths.
            let paths = [MAIL.len(), RCPT.len()];
            let [mail, rcpt] = [0, 1].map(|command: usize| commands[command].len() - paths[command] + 1);
            let place = place.index(mail + rcpt);
            let (command, place) = if place < mail { (0, place) } else { (1, place - mail) };
            let at = paths[command] + place;
            if replace && at < commands[command].len() {
                commands[command][at] = octet;
            } else {
                commands[command].insert(at, octet);
            }
        }
        for command in &commands {
            client.send(&[command, &b"\r\n"[..]].concat());
        }
        if client.accepted == 1 {
            client.send(b"DATA\r\n");
            client.send_content(b"");
            let [mail, rcpt] = commands.map(|command| String::from_utf8(command).expect("it was accepted"));
            assert_kept(&client.driver.stored()[0], &mail, &rcpt);
        }
        prop_assert!(change.is_some() || client.accepted == 1, "{:?}", client.said);
    }

    /// Octets without any sense: no panic, bounded replies, and cuts change nothing.
    #[test]
    fn noise(
        world in world(),
        noise in vec(prop_oneof![any::<u8>(), select(b"\r\n\r\n. ".to_vec())], 0..600),
        begun in any::<bool>(),
        sizes in vec(1..50_usize, 1..8),
    ) {
        let mut input = if begun {
            b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<Postmaster>\r\nDATA\r\n".to_vec()
        } else {
            Vec::new()
        };
        input.extend_from_slice(&noise);
        let events = [Event::Input(input)];
        let whole = run_again(&world, &events, &[usize::MAX]);
        replies(&whole.0);
        prop_assert_eq!(&run_again(&world, &events, &sizes), &whole);
        prop_assert_eq!(&run_again(&world, &events, &[1]), &whole);
    }
}
