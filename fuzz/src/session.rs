//! Whole sessions: what a client sends, and what happens meanwhile.
//!
//! Input: five octets of settings, then what the client sends, in which the octet FF stands before
//! an operation: FF itself for an FF that is sent, or one of [`Op`]. So a seed is a dialogue as it
//! is, and a mutation of it mostly stays one.
//!
//! The driver asserts what a session owes every driver (see its module). Here: replies are well
//! formed, no more than the lines that could ask for them, and none after the last; only what is
//! acknowledged is stored; deadlines are where the timers say; and, where time does not depend on
//! it, the same octets in other pieces give the same replies and messages.

use super::driver::{Driver, Judgement, NextCommit, NextLogon, Outside, Stored};
use super::{pieces, replies};
use gatepost::smtp::reply::{After, Reply};
use gatepost::smtp::sasl::Mechanisms;
use gatepost::smtp::server::{Extensions, Logon, Profile, Query, Revision, Role, Verdict};
use std::time::{Duration, Instant};

const OP: u8 = 0xff;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    /// What the client sends in one piece; between two of them is a cut (`c`).
    Input(Vec<u8>),
    /// `t`, and an octet that says how long.
    Pass(Duration),
    /// `f`
    NextCommitFails,
    /// `l`, and an octet that says how long.
    NextCommitTakes(Duration),
    /// `b`
    NextBodyFails,
    /// `k`, and an octet that says how long.
    NextLogonTakes(Duration),
    /// `h` and `H`, where there is a handshake
    Handshake { is_done: bool },
    /// `r` and `R`
    Resources { short: bool },
    /// `s` and `S`
    Shutdown { at_once: bool },
}

/// Up to 43 minutes, in steps that grow.
fn time(octet: u8) -> Duration {
    Duration::from_millis(u64::from(octet).pow(2) * 40)
}

fn operations(input: &[u8]) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut piece = Vec::new();
    let mut octets = input.iter().copied();
    while let Some(octet) = octets.next() {
        if octet != OP {
            piece.push(octet);
            continue;
        }
        let op = match octets.next() {
            Some(OP) => {
                piece.push(OP);
                continue;
            }
            Some(b'c') => None,
            Some(b't') => octets.next().map(|octet| Op::Pass(time(octet))),
            Some(b'f') => Some(Op::NextCommitFails),
            Some(b'l') => octets.next().map(|octet| Op::NextCommitTakes(time(octet))),
            Some(b'k') => octets.next().map(|octet| Op::NextLogonTakes(time(octet))),
            Some(b'h') => Some(Op::Handshake { is_done: true }),
            Some(b'H') => Some(Op::Handshake { is_done: false }),
            Some(b'b') => Some(Op::NextBodyFails),
            Some(b'r') => Some(Op::Resources { short: true }),
            Some(b'R') => Some(Op::Resources { short: false }),
            Some(b's') => Some(Op::Shutdown { at_once: false }),
            Some(b'S') => Some(Op::Shutdown { at_once: true }),
            _ => continue,
        };
        if !piece.is_empty() {
            ops.push(Op::Input(std::mem::take(&mut piece)));
        }
        ops.extend(op);
    }
    if !piece.is_empty() {
        ops.push(Op::Input(piece));
    }
    ops
}

fn profile(settings: [u8; 5]) -> Profile {
    let [one, two, three, _, five] = settings;
    let bit = |octet: u8, bit: u8| octet & 1 << bit != 0;
    let limit = |octet: u8, of: [Option<u64>; 4]| of[usize::from(octet & 3)];
    let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
    Profile {
        hostname: "mx.example.org".to_owned(),
        local_names: vec!["mx.example.org".to_owned(), "mx".to_owned()],
        default_domain: bit(one, 0).then(|| "default.example".to_owned()),
        role: if bit(one, 1) { Role::Relay } else { Role::Gateway },
        revision: if bit(one, 2) { Revision::V4 } else { Revision::V13 },
        extensions: Extensions {
            pipelining: !bit(one, 3),
            eight_bit_mime: !bit(one, 4),
            binary_mime: !bit(one, 5) && !bit(one, 6),
            chunking: !bit(one, 6),
        },
        offers_tls: bit(five, 4),
        offers_auth: bit(five, 5),
        plaintext_auth: bit(five, 6),
        requires_auth: bit(one, 7) && bit(two, 0),
        requires_tls: bit(one, 7) && bit(two, 1),
        message_size_max: limit(two >> 2, [None, Some(10 << 20), Some(100), Some(0)]),
        header_size_max: limit(two >> 4, [None, Some(64 << 10), Some(50), Some(0)]),
        hops_max: bit(two, 6).then_some(2),
        local_hops_max: bit(two, 7).then_some(1),
        recipients_max: limit(three, [None, Some(200), Some(1), Some(2)]).map(|max| max as u32),
        protocol_errors_max: limit(three >> 2, [None, Some(5), Some(1), Some(50)]).map(|max| max as u32),
        logon_failures_max: limit(three >> 6, [None, Some(3), Some(1), Some(50)]).map(|max| max as u32),
        tarpit: seconds(limit(three >> 4, [None, None, Some(5), Some(300)])),
        connection_timeout: seconds(limit(five, [None, Some(300), Some(20), Some(600)])),
        inactivity_timeout: seconds(limit(five >> 2, [None, Some(60), Some(10), Some(300)])),
    }
}

/// Yes or no by the bits of a pattern, one question after the other.
struct Pattern {
    bits: u8,
    /// Questions so far.
    asked: u32,
    /// Logons so far.
    judged: u32,
    passwords: bool,
}

impl Pattern {
    fn new(settings: [u8; 5]) -> Box<Self> {
        Box::new(Pattern { bits: settings[3], asked: 0, judged: 0, passwords: settings[4] & 1 << 7 == 0 })
    }
}

impl Outside for Pattern {
    fn mechanisms(&self) -> Mechanisms {
        Mechanisms { ntlm: true, login: self.passwords, plain: self.passwords }
    }

    fn decide(&mut self, _now: Instant, query: &Query<'_>) -> Verdict {
        self.asked += 1;
        match (self.bits >> (self.asked % 8) & 1, query) {
            (0, _) => Verdict::Accept,
            // The rate ends sessions: not too often.
            (_, Query::Sender(_)) if !self.asked.is_multiple_of(16) => Verdict::Accept,
            (_, Query::Sender(_)) => Verdict::Refuse(Reply::RateExceeded),
            (_, Query::Recipient(_)) => Verdict::Refuse(Reply::UnableToRelay),
        }
    }

    fn judge(&mut self, _now: Instant, logon: Logon) -> Judgement {
        if matches!(logon, Logon::Malformed(_)) {
            return Judgement::Refuse;
        }
        self.judged += 1;
        match self.bits >> (2 * self.judged % 8) & 3 {
            0 => Judgement::Accept("alice".to_owned()),
            1 => Judgement::Refuse,
            2 => Judgement::Unavailable,
            _ => Judgement::NotHere,
        }
    }
}

/// What came of a run.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    replies: Vec<String>,
    stored: Vec<Stored>,
    closed: bool,
}

fn perform(profile: &Profile, settings: [u8; 5], ops: &[Op], sizes: Option<&[u8]>) -> Outcome {
    let marked = settings[3] == 0x7f;
    let client = [192, 0, 2, 1].into();
    let mut driver = Driver::connect(profile.clone(), client, marked, Instant::now(), Pattern::new(settings));
    let mut next_commit = NextCommit::default();
    let mut pending: Vec<u8> = Vec::new();
    for op in ops {
        if let (Op::Input(octets), Some(_)) = (op, sizes) {
            pending.extend_from_slice(octets);
            continue;
        }
        pieces(&pending, sizes.unwrap_or_default()).into_iter().for_each(|piece| driver.feed(piece));
        pending.clear();
        match op {
            Op::Input(octets) => driver.feed(octets),
            Op::Pass(time) => driver.pass(*time),
            Op::NextCommitFails => {
                next_commit.fails = true;
                driver.set_next_commit(next_commit);
            }
            Op::NextCommitTakes(time) => {
                next_commit.takes = *time;
                driver.set_next_commit(next_commit);
            }
            Op::NextLogonTakes(takes) => driver.set_next_logon(NextLogon { is_unavailable: false, takes: *takes }),
            Op::Handshake { is_done } => {
                if driver.in_handshake() {
                    driver.handshake(*is_done);
                }
            }
            Op::NextBodyFails => driver.fail_next_body(),
            Op::Resources { short } => driver.set_resources_short(*short),
            Op::Shutdown { at_once } => driver.shut_down(*at_once),
        }
        check_deadline(&driver, profile);
    }
    pieces(&pending, sizes.unwrap_or_default()).into_iter().for_each(|piece| driver.feed(piece));
    // What is held back comes out.
    driver.pass(Duration::from_secs(1));
    driver.finish();
    Outcome { replies: replies(&driver.take_replies()), stored: driver.stored().to_vec(), closed: driver.is_closed() }
}

/// While the driver waits, the next deadline is that of a timer which runs.
fn check_deadline(driver: &Driver, profile: &Profile) {
    let time = driver.time_to_deadline();
    let latest = match (driver.is_held(), driver.is_closed()) {
        (true, _) => profile.tarpit,
        (false, true) => None,
        (false, false) => match (profile.connection_timeout, profile.inactivity_timeout) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        },
    };
    assert_eq!(time.is_some(), latest.is_some(), "{time:?}, at most {latest:?}");
    assert!(time <= latest, "{time:?}, at most {latest:?}");
}

pub fn run(input: &[u8]) {
    let (head, input) = input.split_at(input.len().min(5));
    let mut settings = [0; 5];
    settings[..head.len()].copy_from_slice(head);
    let profile = profile(settings);
    let ops = operations(input);
    let outcome = perform(&profile, settings, &ops, None);
    check(&outcome, &ops);
    // How long a refusal is held back, and when a drain ends a session, depends on the pieces.
    let cuts_matter = profile.tarpit.is_some() || ops.iter().any(|op| matches!(op, Op::Shutdown { .. }));
    if !cuts_matter {
        for sizes in [&[0][..], &[1], &[3, 50, 7]] {
            assert_eq!(perform(&profile, settings, &ops, Some(sizes)), outcome, "in pieces of {sizes:?}");
        }
    }
}

fn check(outcome: &Outcome, ops: &[Op]) {
    let replies = &outcome.replies;
    // Every reply but the banner and a farewell answers something that ends in CRLF, or the octets
    // of a chunk, whose BDAT does.
    let sent: Vec<u8> = ops
        .iter()
        .filter_map(|op| if let Op::Input(octets) = op { Some(&octets[..]) } else { None })
        .collect::<Vec<_>>()
        .concat();
    let asked = sent.windows(2).filter(|pair| pair == b"\r\n").count();
    // XEXCH50 has two.
    let more = replies.iter().filter(|reply| *reply == Reply::SendBinaryData.text()).count();
    let most = asked + more + 1 + usize::from(outcome.closed);
    assert!(replies.len() <= most, "{replies:?} to {}", sent.escape_ascii());
    let ends = |text: &String| {
        let mut rows = Reply::ALL.iter().filter(|row| row.text() == text).peekable();
        rows.peek().is_some() && rows.all(|row| row.row().after == After::Close)
    };
    if let Some(last) = replies.iter().position(ends) {
        assert!(last + 1 == replies.len() && outcome.closed, "something after {:?}", replies[last]);
    }
    let acknowledged: Vec<&str> = replies
        .iter()
        .filter_map(|reply| reply.strip_prefix("250 2.6.0 ")?.strip_suffix(" Queued mail for delivery"))
        .collect();
    let ids: Vec<String> = outcome.stored.iter().map(|stored| stored.id.to_string()).collect();
    assert_eq!(acknowledged, ids, "only what is stored is acknowledged, and all of it");
    for stored in &outcome.stored {
        assert!(stored.envelope().recipient_count() > 0);
    }
}
