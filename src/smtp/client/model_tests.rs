//! The session against a next hop that accepts, refuses, breaks off and falls silent at random,
//! and that knows what it took for whom. And against noise.
//!
//! - Nobody is delivered to whom the next hop did not accept with its final 2yz; everybody is whom
//!   it did accept, when the reply could be read.
//! - What it took is what was sent, octet for octet.
//! - A failure after which the next hop may have the message says so.
//! - Commands come when they may: one at a time without PIPELINING, RSET before MAIL where a
//!   transaction is open, BDAT for somebody; and none of them before TLS is up and the logon accepted
//!   where that is wanted.

use super::tests::{TIMEOUTS, in_words, message, recipient};
use super::*;
use crate::smtp::command::chunk;
use crate::smtp::data::{Decoder, Piece};
use crate::smtp::envelope::BodyType;
use crate::smtp::sasl::ntlm::client::Randomness;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// What the next hop does with a command, or with a whole message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Whim {
    Accept,
    Refuse(u16),
    /// Accepts, and says something that makes no sense.
    Babble,
    /// Accepts, and says nothing any more.
    Hang,
    /// Accepts, and closes without a word.
    Close,
    /// Accepts, and says so twice.
    Stutter,
}

enum Mode {
    Commands,
    Data(Decoder),
    Chunk(u64),
}

/// A message the next hop took: for these recipients, with this content.
#[derive(Debug, Default, PartialEq)]
struct Taken {
    recipients: Vec<String>,
    content: Vec<u8>,
    /// Whether the acceptance was said.
    told: bool,
}

struct NextHop {
    pipelining: bool,
    chunking: bool,
    starttls: bool,
    auth: bool,
    /// TLS is up.
    tls: bool,
    logged_on: bool,
    /// Says 354 and takes messages although it accepted nobody.
    odd: bool,
    whims: Vec<Whim>,
    whim: usize,
    input: Vec<u8>,
    replies: Vec<u8>,
    mode: Mode,
    in_transaction: bool,
    recipients: Vec<String>,
    content: Vec<u8>,
    taken: Vec<Taken>,
    silent: bool,
    closed: bool,
}

impl NextHop {
    fn whim(&mut self) -> Whim {
        let whim = self.whims[self.whim % self.whims.len()];
        self.whim += 1;
        whim
    }

    fn say(&mut self, reply: &str) {
        if !self.silent && !self.closed {
            self.replies.extend_from_slice(reply.as_bytes());
        }
    }

    /// Carries a whim out; true if what was asked for is done.
    fn answer(&mut self, whim: Whim, accepted: &str) -> bool {
        match whim {
            Whim::Accept => self.say(accepted),
            Whim::Stutter => self.say(&accepted.repeat(2)),
            Whim::Babble => self.say("*** ERROR ***\r\n"),
            Whim::Hang => self.silent = true,
            Whim::Close => self.closed = true,
            Whim::Refuse(code) => {
                self.say(&format!("{code}-no\r\n{code} really\r\n"));
                self.closed |= code == 421;
                return false;
            }
        }
        true
    }

    fn read(&mut self, octets: &[u8]) {
        self.input.extend_from_slice(octets);
        while !self.closed {
            let input = std::mem::take(&mut self.input);
            let consumed = match &mut self.mode {
                Mode::Commands => match memchr::memmem::find(&input, b"\r\n") {
                    Some(end) => {
                        let line = String::from_utf8(input[..end].to_vec()).expect("ASCII");
                        self.input = input[end + 2..].to_vec();
                        let alone = self.pipelining || self.input.is_empty();
                        assert!(alone || line.starts_with("BDAT"), "a group behind {line}");
                        self.command(&line);
                        continue;
                    }
                    None => 0,
                },
                Mode::Data(decoder) => {
                    let (consumed, piece) = decoder.step(&input);
                    match piece {
                        Piece::NeedMore => {}
                        Piece::Content(octets) => self.content.extend_from_slice(octets),
                        Piece::End => self.end_of_data(),
                    }
                    consumed
                }
                Mode::Chunk(remaining) => {
                    let take = input.len().min(usize::try_from(*remaining).expect("small"));
                    *remaining -= take as u64;
                    let done = *remaining == 0;
                    self.content.extend_from_slice(&input[..take]);
                    if done {
                        self.end_of_data();
                    }
                    take
                }
            };
            self.input = input[consumed..].to_vec();
            if consumed == 0 {
                break;
            }
        }
    }

    fn command(&mut self, line: &str) {
        let whim = self.whim();
        match line.split_once([' ', ':']).unwrap_or((line, "")) {
            ("EHLO", _) => {
                let pipelining = if self.pipelining { "250-PIPELINING\r\n" } else { "" };
                let chunking = if self.chunking { "250-CHUNKING\r\n" } else { "" };
                let starttls = if self.starttls && !self.tls { "250-STARTTLS\r\n" } else { "" };
                let auth = if self.auth { "250-AUTH PLAIN\r\n" } else { "" };
                self.answer(
                    whim,
                    &format!("250-mx\r\n{pipelining}{chunking}{starttls}{auth}250-SIZE 1000\r\n250 8BITMIME\r\n"),
                );
            }
            ("HELO", _) => {
                (self.pipelining, self.chunking) = (false, false);
                self.answer(whim, "250 mx\r\n");
            }
            ("STARTTLS", "") => {
                assert!(self.starttls && !self.tls && self.input.is_empty());
                self.answer(whim, "220 go\r\n");
            }
            ("AUTH", "PLAIN AHRpbQB0YW5zdGFhZg==") => {
                assert!(self.auth && !self.logged_on && self.input.is_empty());
                self.logged_on = self.answer(whim, "235 ok\r\n");
            }
            ("MAIL", _) => {
                assert!(!self.in_transaction, "MAIL in a transaction");
                self.in_transaction = self.answer(whim, "250 ok\r\n");
            }
            ("RCPT", path) => {
                let path =
                    path.strip_prefix("TO:<").and_then(|rest| rest.strip_suffix('>')).expect("a path").to_owned();
                if !self.in_transaction {
                    let reply = if self.odd { "250 odd\r\n" } else { "503 no\r\n" };
                    self.say(reply);
                } else if self.answer(whim, "250 ok\r\n") {
                    self.recipients.push(path);
                }
            }
            ("DATA", _) => {
                assert!(!self.chunking);
                if self.recipients.is_empty() && !self.odd {
                    self.say("503 nobody\r\n");
                } else if self.answer(whim, "354 go\r\n") {
                    self.mode = Mode::Data(Decoder::default());
                }
            }
            ("BDAT", arguments) => {
                assert!(self.chunking && !self.recipients.is_empty(), "BDAT for nobody");
                let (octets, last) = chunk(arguments.as_bytes()).expect("a chunk");
                assert!(last);
                self.mode = Mode::Chunk(octets);
                // The whim of a chunk is that of its end.
                self.whim -= 1;
                if octets == 0 {
                    self.end_of_data();
                }
            }
            ("RSET", _) => {
                self.forget();
                self.answer(whim, "250 ok\r\n");
            }
            ("QUIT", _) => {
                self.answer(whim, "221 bye\r\n");
            }
            (verb, _) => panic!("no such command: {verb}"),
        }
    }

    fn end_of_data(&mut self) {
        self.mode = Mode::Commands;
        let whim = self.whim();
        if self.answer(whim, "250 taken\r\n") {
            self.taken.push(Taken {
                recipients: std::mem::take(&mut self.recipients),
                content: std::mem::take(&mut self.content),
                told: matches!(whim, Whim::Accept | Whim::Stutter) && !self.silent,
            });
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.recipients.clear();
        self.content.clear();
        self.in_transaction = false;
    }
}

/// A message to be sent: recipients, content, whether it is declared 8BITMIME.
type Letter = (Vec<String>, Vec<u8>, bool);

/// A session, the next hop, and how the octets between them are cut.
struct Run {
    session: Session,
    next_hop: NextHop,
    now: Instant,
    cuts: Vec<usize>,
    cut: usize,
    unread: Vec<u8>,
}

impl Run {
    fn new(next_hop: NextHop, wants: Wants, cuts: Vec<usize>) -> Self {
        let now = Instant::now();
        let session = Session::new("gw.example".into(), TIMEOUTS, wants, now);
        Run { session, next_hop, now, cuts, cut: 0, unread: Vec::new() }
    }

    fn cut(&mut self, length: usize) -> usize {
        self.cut += 1;
        self.cuts[self.cut % self.cuts.len()].min(length)
    }

    /// Sends a piece, reads a piece; what the session makes of it.
    fn exchange(&mut self) -> Option<Step> {
        let length = self.cut(self.session.output().len());
        self.next_hop.read(&self.session.output()[..length]);
        self.session.output_sent(self.now, length);
        let length = self.cut(self.next_hop.replies.len());
        self.unread.extend(self.next_hop.replies.drain(..length));
        let mut told = None;
        loop {
            let (consumed, step) = self.session.step(self.now, &self.unread);
            self.unread.drain(..consumed);
            match step {
                Step::NeedMore => return told,
                Step::StartTls => {
                    assert!(self.unread.is_empty() && self.session.output().is_empty());
                    // What else it said would break the handshake.
                    self.next_hop.replies.clear();
                    self.next_hop.tls = true;
                    self.session.handle_tls(self.now);
                }
                // An answer stands, whatever comes behind it.
                Step::Failed(_) | Step::Closed if told == Some(Step::Answered) => return told,
                Step::Failed(_) | Step::Closed => return Some(step),
                step => assert_eq!(told.replace(step), None),
            }
        }
    }

    /// Goes on until something happens.
    fn go(&mut self) -> Step {
        loop {
            if let Some(told) = self.exchange() {
                return told;
            }
            if !self.next_hop.replies.is_empty() || !self.session.output().is_empty() {
                continue;
            }
            if self.next_hop.closed {
                return Step::Failed(self.session.handle_end());
            }
            self.now = self.session.next_deadline().expect("a deadline, for the next hop is silent");
            if let Some(failure) = self.session.handle_time(self.now) {
                return Step::Failed(failure);
            }
        }
    }

    /// Sends one message; false if the session is over.
    fn send(&mut self, (paths, content, declared): &Letter) -> bool {
        let recipients: Vec<Recipient<'_>> = paths.iter().map(|path| recipient(path)).collect();
        let body_type = if *declared { BodyType::EightBitMime } else { BodyType::SevenBit };
        let eight_bit = !content.is_ascii();
        let message = Transaction { body_type, eight_bit, ..message(content.len() as u64, &recipients) };
        let taken_before = self.next_hop.taken.len();
        match self.session.begin(self.now, &message) {
            Ok(()) => {}
            Err(Unsendable::TooLarge { limit: 1000 }) => {
                assert!(content.len() > 1000 && self.session.is_idle());
                return true;
            }
            Err(Unsendable::EightBit) => {
                assert!(*declared && eight_bit && !self.session.capabilities().eight_bit_mime);
                return true;
            }
            Err(other) => panic!("{other}"),
        }
        let mut handed_out = false;
        let mut step = self.go();
        if step == Step::SendBody {
            let (mut at, mut told) = (0, None);
            while told.is_none() && at < content.len() {
                let length = self.cut(content.len() - at).max(1);
                self.session.body(&content[at..at + length]);
                at += length;
                told = self.exchange();
            }
            handed_out = at == content.len();
            self.session.body_end(self.now);
            step = told.unwrap_or_else(|| self.go());
        }
        let dispositions = self.session.take_dispositions();
        let words = in_words(&dispositions);
        assert_eq!(dispositions.len(), paths.len(), "{words}");
        assert!(self.session.take_dispositions().is_empty());
        let delivered: Vec<&String> = paths
            .iter()
            .zip(&dispositions)
            .filter(|(_, is)| **is == Disposition::Delivered)
            .map(|(path, _)| path)
            .collect();

        let taken = &self.next_hop.taken[taken_before..];
        assert!(taken.len() <= 1);
        let taken = taken.first().filter(|taken| !taken.recipients.is_empty());
        let stutters = self.next_hop.whims.contains(&Whim::Stutter);
        match taken {
            Some(taken) => {
                let mut want = content.clone();
                if !self.next_hop.chunking && !want.is_empty() && !want.ends_with(b"\r\n") {
                    want.extend_from_slice(b"\r\n");
                }
                assert_eq!(taken.content, want);
                if taken.told && !stutters {
                    assert_eq!(delivered, taken.recipients.iter().collect::<Vec<_>>(), "{words}");
                } else if !taken.told {
                    assert_eq!(delivered.len(), 0, "{words}");
                }
                assert!(delivered.iter().all(|path| taken.recipients.contains(path)), "{words}");
            }
            None => assert_eq!(delivered.len(), 0, "{words}"),
        }
        let failed = dispositions.iter().filter(|is| matches!(is, Disposition::Failed(_))).count();
        for disposition in &dispositions {
            match disposition {
                Disposition::Delivered => {}
                Disposition::Deferred(answer) => assert!((400..500).contains(&answer.code) || answer.code == 552),
                Disposition::Failed(answer) => assert!(answer.code >= 500),
                Disposition::TooMany(answer) => {
                    assert!(matches!(answer.code, 452 | 552) && !delivered.is_empty(), "{words}");
                }
            }
        }
        match step {
            Step::Answered => {
                if !stutters && self.session.must_close() {
                    // Only when something was refused before all of it was sent.
                    assert!(handed_out && delivered.is_empty());
                }
                self.session.is_idle()
            }
            Step::Failed(failure) => {
                assert!(delivered.is_empty() && self.session.output().is_empty());
                if taken.is_some() {
                    assert!(failure.maybe_delivered(), "{failure}: {words}");
                }
                assert!(!failure.maybe_delivered() || handed_out);
                assert!(failed < paths.len() || !failure.maybe_delivered());
                false
            }
            step => panic!("{step:?}: {words}"),
        }
    }
}

fn whims(stutter: u32) -> impl Strategy<Value = Vec<Whim>> {
    let whim = prop_oneof![
        24 => Just(Whim::Accept),
        6 => select(vec![450, 451, 452, 550, 552, 554]).prop_map(Whim::Refuse),
        1 => Just(Whim::Refuse(421)),
        1 => select(vec![Whim::Babble, Whim::Hang, Whim::Close]),
        stutter => Just(Whim::Stutter),
    ];
    vec(whim, 1..60)
}

fn letter() -> impl Strategy<Value = Letter> {
    let line = vec(select(b".ab \xff".to_vec()), 0..6);
    let content = (vec(line, 0..8), any::<bool>()).prop_map(|(lines, ended)| {
        let mut content = lines.join(&b"\r\n"[..]);
        if ended {
            content.extend_from_slice(b"\r\n");
        }
        content
    });
    let content = prop_oneof![30 => content, 1 => Just(vec![b'x'; 1001])];
    (1..5_usize, content, any::<bool>()).prop_map(|(count, content, declared)| {
        ((0..count).map(|number| format!("r{number}@b.example")).collect(), content, declared)
    })
}

fn next_hop(stutter: u32) -> impl Strategy<Value = NextHop> {
    let offers = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (offers, any::<bool>(), whims(stutter)).prop_map(|((pipelining, chunking, starttls, auth), odd, whims)| NextHop {
        pipelining,
        chunking,
        starttls,
        auth,
        tls: false,
        logged_on: false,
        odd,
        whims,
        whim: 0,
        input: Vec::new(),
        replies: b"220 mx\r\n".to_vec(),
        mode: Mode::Commands,
        in_transaction: false,
        recipients: Vec::new(),
        content: Vec::new(),
        taken: Vec::new(),
        silent: false,
        closed: false,
    })
}

impl std::fmt::Debug for NextHop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let NextHop { pipelining, chunking, starttls, auth, odd, whims, .. } = self;
        write!(
            f,
            "pipelining {pipelining}, chunking {chunking}, STARTTLS {starttls}, AUTH {auth}, odd {odd}, {whims:?}"
        )
    }
}

fn wants() -> impl Strategy<Value = Wants> {
    let starttls = select(vec![StartTls::Never, StartTls::IfOffered, StartTls::Always]);
    let wants = |(starttls, logs_on, in_clear)| {
        let logon = Logon {
            credentials: Credentials::new("tim", "tanstaaf").expect("valid").into(),
            in_clear,
            randomness: Randomness { nonce: [0; 8], session_key: [0; 16] },
            filetime: 0,
        };
        Wants { starttls, logon: Some(logon).filter(|_| logs_on) }
    };
    (starttls, prop::bool::weighted(0.3), any::<bool>()).prop_map(wants)
}

fn converse(next_hop: NextHop, wants: Wants, letters: &[Letter], cuts: Vec<usize>) {
    let mut run = Run::new(next_hop, wants.clone(), cuts);
    match run.go() {
        Step::Ready => {
            assert!(run.next_hop.tls || wants.starttls != StartTls::Always);
            assert_eq!(run.next_hop.logged_on, wants.logon.is_some());
            assert!(!run.next_hop.logged_on || run.next_hop.tls || wants.logon.is_some_and(|logon| logon.in_clear));
        }
        Step::Failed(failure) => return assert!(failure.is_before_transaction()),
        step => panic!("{step:?}"),
    }
    if !letters.iter().all(|letter| run.send(letter)) {
        return;
    }
    assert_eq!(run.session.next_deadline(), None);
    run.session.quit(run.now);
    let step = run.go();
    assert!(step == Step::Closed || matches!(step, Step::Failed(Failure { stage: Stage::Quit, .. })), "{step:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn delivered_is_what_was_taken(
        next_hop in next_hop(0),
        wants in wants(),
        letters in vec(letter(), 1..6),
        cuts in prop_oneof![Just(vec![usize::MAX]), vec(1..40_usize, 1..6)],
    ) {
        converse(next_hop, wants, &letters, cuts);
    }

    /// Whatever it says too often, before or behind what is due, is never taken for a delivery.
    #[test]
    fn a_stutter_delivers_nothing(next_hop in next_hop(4), wants in wants(), letters in vec(letter(), 1..4)) {
        converse(next_hop, wants, &letters, vec![usize::MAX]);
    }
}

/// Something that happens to a session fed with noise.
#[derive(Clone, Debug)]
enum Op {
    Read(Vec<u8>),
    Begin(usize),
    Body(usize),
    BodyEnd,
    Sent(usize),
    Pass(u64),
    Quit,
    End,
}

fn op() -> impl Strategy<Value = Op> {
    let said = select(vec![
        "220 mx\r\n",
        "250 ok\r\n",
        "250-PIPELINING\r\n",
        "250-CHUNKING\r\n",
        "250-STARTTLS\r\n",
        "250-AUTH PLAIN LOGIN NTLM\r\n",
        "235 ok\r\n",
        "334 \r\n",
        "334 NTLM supported\r\n",
        "504 no\r\n",
        "250-ok\n",
        "354 go\r\n",
        "421 bye\r\n",
        "450 no\r\n",
        "550 no\r\n",
        "25",
        "0 ",
        "-",
        "\r\n",
        "\r",
        "\n",
        "x",
        "\0\u{ff}",
        "150 \r\n",
        "599\r\n",
    ]);
    let said = said.prop_map(|said| said.as_bytes().to_vec());
    let read = prop_oneof![20 => said, 1 => vec(any::<u8>(), 0..20), 1 => (1..3000_usize).prop_map(|length| vec![b'2'; length])];
    prop_oneof![
        20 => read.prop_map(Op::Read),
        6 => (0..4_usize).prop_map(Op::Begin),
        3 => (0..4_usize).prop_map(Op::Body),
        3 => Just(Op::BodyEnd),
        6 => (0..200_usize).prop_map(Op::Sent),
        1 => (0..700_u64).prop_map(Op::Pass),
        1 => Just(Op::Quit),
        1 => Just(Op::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// No panic, no endless loop; every transaction is settled once; after the end there is silence.
    #[test]
    fn noise(ops in vec(op(), 0..60), wants in wants(), greeted in any::<bool>()) {
        let mut now = Instant::now();
        let mut session = Session::new("gw.example".into(), TIMEOUTS, wants, now);
        let paths = [recipient("a@b.example"), recipient("c@d.example"), recipient("e@f.example")];
        let mut unread = if greeted { b"220 mx\r\n".to_vec() } else { Vec::new() };
        let (mut begun, mut settled, mut over) = (0, 0, false);
        for op in ops {
            let mut failure = None;
            match op {
                Op::Read(octets) => unread.extend(octets),
                Op::Begin(count) if session.is_idle() => {
                    let recipients = &paths[..count];
                    session.begin(now, &message(3, recipients)).expect("sendable");
                    begun += count;
                }
                Op::Begin(_) => {}
                Op::Body(length) => session.body(&b"abc"[..length.min(3)]),
                Op::BodyEnd => session.body_end(now),
                Op::Sent(count) => session.output_sent(now, count),
                Op::Pass(seconds) => {
                    now += Duration::from_secs(seconds);
                    failure = session.handle_time(now);
                }
                Op::Quit => {
                    session.quit(now);
                    over |= session.must_close();
                }
                Op::End => failure = Some(session.handle_end()),
            }
            over |= failure.is_some();
            let mut steps = 0;
            loop {
                let (consumed, step) = session.step(now, &unread);
                prop_assert!(consumed <= unread.len());
                unread.drain(..consumed);
                steps += 1;
                prop_assert!(steps < 100);
                match step {
                    Step::NeedMore => break,
                    Step::StartTls => {
                        prop_assert!(unread.is_empty() && session.output().is_empty() && !over);
                        session.handle_tls(now);
                    }
                    Step::Closed => { over = true; break }
                    Step::Failed(_) => { prop_assert!(!over); over = true }
                    _ => prop_assert!(!over),
                }
            }
            settled += session.take_dispositions().len();
            if over {
                prop_assert!(session.output().is_empty() && session.next_deadline().is_none());
            }
            let open = begun - settled;
            prop_assert!(open == 0 || !(over || session.is_idle()), "{} open", open);
            prop_assert_eq!(session.next_deadline().is_none(), over || session.is_idle());
        }
    }
}
