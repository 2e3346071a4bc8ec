//! Dialogues with a next hop, each run again with the server's octets cut in two at every place.
//!
//! A dialogue is a list of lines. `S:` is what the server says, `C:` what must have been said to it
//! by then; `!` is the driver's doing, and `=` what the session must have told, with dispositions
//! where there are some. The driver here sends all output at once unless told otherwise.

use super::*;
use crate::smtp::dsn::{Notify, Ret};
use crate::smtp::envelope::BodyType;

pub(super) const TIMEOUTS: Timeouts =
    Timeouts { reply: Duration::from_secs(300), body: Duration::from_secs(180), end_of_data: Duration::from_secs(600) };

pub(super) fn recipient(path: &str) -> Recipient<'_> {
    Recipient { path: path.as_bytes(), notify: None, orcpt: None }
}

pub(super) fn message<'a>(octets: u64, recipients: &'a [Recipient<'a>]) -> Transaction<'a> {
    Transaction {
        reverse_path: b"s@a.example",
        octets,
        body_type: BodyType::SevenBit,
        eight_bit: false,
        ret: None,
        envid: None,
        auth: None,
        recipients,
    }
}

pub(super) fn in_words(dispositions: &[Disposition]) -> String {
    let words = dispositions.iter().map(|disposition| match disposition {
        Disposition::Delivered => "delivered".to_owned(),
        Disposition::Deferred(answer) => format!("deferred {answer}"),
        Disposition::Failed(answer) => format!("failed {answer}"),
        Disposition::TooMany(answer) => format!("too many {answer}"),
    });
    words.collect::<Vec<_>>().join("; ")
}

/// The driver of a dialogue.
struct Driver {
    session: Session,
    now: Instant,
    /// Read and not consumed.
    input: Vec<u8>,
    /// Sent and not yet looked at.
    sent: Vec<u8>,
    /// Told and not yet looked at.
    told: Vec<String>,
    sending: bool,
    /// What is read is the handshake's, not the session's.
    handshaking: bool,
    over: bool,
}

impl Driver {
    fn new(wants: Wants) -> Self {
        let now = Instant::now();
        Driver {
            session: Session::new("gw.example".into(), TIMEOUTS, wants, now),
            now,
            input: Vec::new(),
            sent: Vec::new(),
            told: Vec::new(),
            sending: true,
            handshaking: false,
            over: false,
        }
    }

    fn send(&mut self) {
        if self.sending && !self.session.output().is_empty() {
            self.sent.extend_from_slice(self.session.output());
            self.session.output_sent(self.now, usize::MAX);
            assert!(self.session.output().is_empty());
        }
    }

    fn tell(&mut self, what: String) {
        let dispositions = in_words(&self.session.take_dispositions());
        self.told.push(if dispositions.is_empty() { what } else { format!("{what}: {dispositions}") });
    }

    fn read(&mut self, octets: &[u8]) {
        if self.handshaking {
            return;
        }
        self.input.extend_from_slice(octets);
        loop {
            let (consumed, step) = self.session.step(self.now, &self.input);
            self.input.drain(..consumed);
            self.send();
            match step {
                Step::NeedMore => break,
                Step::Closed => {
                    assert!(self.input.is_empty());
                    if !std::mem::replace(&mut self.over, true) {
                        self.tell("closed".to_owned());
                    }
                    break;
                }
                Step::StartTls => {
                    assert!(self.input.is_empty() && self.session.output().is_empty());
                    self.handshaking = true;
                    self.tell("tls".to_owned());
                    break;
                }
                Step::Ready => self.tell("ready".to_owned()),
                Step::SendBody => self.tell("body".to_owned()),
                Step::Answered => self.tell("answered".to_owned()),
                Step::Failed(failure) => {
                    assert!(!std::mem::replace(&mut self.over, true));
                    self.tell(format!("failed {failure}"));
                }
            }
        }
        assert!(self.input.len() < 2048);
        if self.session.must_close() {
            assert!(self.session.output().is_empty());
        }
    }

    /// What a driver does.
    fn act(&mut self, action: &str, transaction: &Transaction<'_>) {
        let (verb, argument) = action.split_once(' ').unwrap_or((action, ""));
        let argument = argument.replace("\\r", "\r").replace("\\n", "\n");
        match verb {
            "begin" => {
                if let Err(unsendable) = self.session.begin(self.now, transaction) {
                    self.tell(format!("unsendable {unsendable:?}"));
                }
            }
            "body" => self.session.body(argument.as_bytes()),
            "end" => self.session.body_end(self.now),
            "tls" => {
                self.handshaking = false;
                self.session.handle_tls(self.now);
            }
            "quit" => self.session.quit(self.now),
            "hold" => self.sending = false,
            "eof" => {
                let failure = self.session.handle_end();
                self.tell(format!("failed {failure}"));
            }
            "pass" => {
                self.now += Duration::from_secs(argument.parse().expect("seconds"));
                if let Some(failure) = self.session.handle_time(self.now) {
                    self.tell(format!("failed {failure}"));
                }
            }
            _ => panic!("no such action: {action}"),
        }
        self.send();
    }
}

/// Runs a dialogue with the server's octet number `cut` beginning a new piece of input.
pub(super) fn run_cut(dialogue: &str, wants: &Wants, transaction: &Transaction<'_>, cut: usize) -> usize {
    let mut driver = Driver::new(wants.clone());
    let mut octets = 0;
    let mut lines = dialogue.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
    let context = |driver: &Driver, line: &str| {
        format!("at `{line}`, cut at {cut}\nsent: {}\ntold: {:?}", driver.sent.escape_ascii(), driver.told)
    };
    while let Some(line) = lines.next() {
        let (mark, rest) = line.split_at(1);
        match mark {
            "S" => {
                let mut said = octets_of(rest);
                while let Some(next) = lines.next_if(|line| line.starts_with("S:")) {
                    said.extend(octets_of(&next[1..]));
                }
                let at = cut.saturating_sub(octets).min(said.len());
                octets += said.len();
                driver.read(&said[..at]);
                if at < said.len() {
                    driver.read(&said[at..]);
                }
            }
            "C" => {
                let want = octets_of(rest);
                assert!(driver.sent.starts_with(&want), "{}", context(&driver, line));
                driver.sent.drain(..want.len());
            }
            "=" => {
                assert!(!driver.told.is_empty(), "{}", context(&driver, line));
                let told = driver.told.remove(0);
                assert_eq!(told, rest.trim(), "{}", context(&driver, line));
            }
            "!" => {
                // Nothing may have been said or told that the dialogue does not have. A piece of
                // content may stand together with the next in a line.
                let looked_at = driver.sent.is_empty() || rest.starts_with(" body") || rest.starts_with(" end");
                assert!(looked_at && driver.told.is_empty(), "{}", context(&driver, line));
                driver.act(rest.trim(), transaction);
            }
            _ => panic!("no such line: {line}"),
        }
    }
    assert!(driver.sent.is_empty() && driver.told.is_empty(), "{}", context(&driver, "the end"));
    octets
}

/// ` text` with CRLF; `\n` at the end for a bare LF, `\` at the end for no line end.
fn octets_of(line: &str) -> Vec<u8> {
    let text = line.trim_start_matches(':').trim_start();
    if let Some(text) = text.strip_suffix("\\n") {
        format!("{text}\n").into_bytes()
    } else if let Some(text) = text.strip_suffix('\\') {
        text.as_bytes().to_vec()
    } else {
        format!("{text}\r\n").into_bytes()
    }
}

fn run_all(dialogue: &str, wants: &Wants, transaction: &Transaction<'_>) {
    let octets = run_cut(dialogue, wants, transaction, 0);
    for cut in 1..=octets {
        run_cut(dialogue, wants, transaction, cut);
    }
}

fn run_with(dialogue: &str, transaction: &Transaction<'_>) {
    run_all(dialogue, &Wants::default(), transaction);
}

/// A dialogue of a session that wants this before its first transaction.
pub(super) fn wanting(wants: &Wants, dialogue: &str) {
    run_all(dialogue, wants, &message(5, &[recipient("a@b.example"), recipient("c@d.example")]));
}

pub(super) fn run(dialogue: &str) {
    wanting(&Wants::default(), dialogue);
}

/// A dialogue that begins with a hello that offers `offers`.
pub(super) fn after_hello(offers: &str, dialogue: &str) -> String {
    let offers: String = offers.split_whitespace().map(|offer| format!("S: 250-{offer}\n")).collect();
    let offers = offers.replace('_', " ");
    format!(
        "S: 220 mx.example\nC: EHLO gw.example\nS: 250-mx.example at your service\n{offers}S: 250 HELP\n= ready\n{dialogue}"
    )
}

pub(super) fn offering(offers: &str, dialogue: &str) {
    run(&after_hello(offers, dialogue));
}

pub(super) const ENVELOPE: &str = "
    ! begin
    C: MAIL FROM:<s@a.example>
    C: RCPT TO:<a@b.example>
    C: RCPT TO:<c@d.example>
";

#[test]
fn one_command_at_a_time() {
    offering(
        "",
        "! begin
        C: MAIL FROM:<s@a.example>
        S: 250 2.1.0 ok
        C: RCPT TO:<a@b.example>
        S: 250 2.1.5 ok
        C: RCPT TO:<c@d.example>
        S: 251 2.1.5 will forward
        C: DATA
        S: 354 go
        = body
        ! body a\\r\\n.
        ! body b
        ! end
        C: a
        C: ..b
        C: .
        S: 250 2.0.0 taken
        = answered: delivered; delivered
        ! begin
        C: MAIL FROM:<s@a.example>
        S: 250 ok
        C: RCPT TO:<a@b.example>
        S: 550 no
        C: RCPT TO:<c@d.example>
        S: 250 ok
        C: DATA
        S: 354 go
        = body
        ! end
        C: .
        S: 250 taken
        = answered: failed 550 no; delivered
        ! quit
        C: QUIT
        S: 221 bye
        = closed",
    );
}

#[test]
fn in_one_group() {
    offering(
        "PIPELINING",
        &format!(
            "{ENVELOPE}
            C: DATA
            S: 250 ok
            S: 250-ok
            S: 250 ok
            S: 250 ok
            S: 354 go
            = body
            ! body a
            ! end
            C: a
            C: .
            S: 250 taken
            = answered: delivered; delivered
            {ENVELOPE}
            C: DATA"
        ),
    );
}

#[test]
fn in_a_chunk() {
    offering(
        "PIPELINING CHUNKING",
        &format!(
            "{ENVELOPE}
            S: 250 ok
            S: 250 ok
            S: 450 later
            = body
            C: BDAT 5 LAST
            ! body .\\r
            ! body \\n.\\n
            ! end
            C: .
            C: .\\n
            S: 250 taken
            = answered: delivered; deferred 450 later"
        ),
    );
}

#[test]
fn parameters() {
    let recipients = [
        Recipient { path: b"a@b.example", notify: Some(Notify::NEVER), orcpt: None },
        Recipient {
            path: b"\"c d\"@e.example",
            notify: Some(Notify::SUCCESS.and(Notify::DELAY)),
            orcpt: Some(b"rfc822;c+20d@x"),
        },
    ];
    let message = Transaction {
        reverse_path: b"",
        octets: 1000,
        body_type: BodyType::EightBitMime,
        eight_bit: true,
        ret: Some(Ret::Headers),
        envid: Some(b"QQ+2B314"),
        auth: None,
        recipients: &recipients,
    };
    let all = "PIPELINING CHUNKING SIZE_1000 8BITMIME DSN";
    run_with(
        &after_hello(
            all,
            "! begin
            C: MAIL FROM:<> SIZE=1000 BODY=8BITMIME RET=HDRS ENVID=QQ+2B314
            C: RCPT TO:<a@b.example> NOTIFY=NEVER
            C: RCPT TO:<\"c d\"@e.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;c+20d@x",
        ),
        &message,
    );
    let bare = "! begin
        C: MAIL FROM:<>
        C: RCPT TO:<a@b.example>
        C: RCPT TO:<\"c d\"@e.example>";
    run_with(&after_hello("PIPELINING CHUNKING", bare), &Transaction { eight_bit: false, ..message });
    // Never declared, and sent as it came.
    run_with(&after_hello("PIPELINING CHUNKING", bare), &Transaction { body_type: BodyType::SevenBit, ..message });
    run_with(&after_hello("PIPELINING", "! begin\n= unsendable EightBit"), &message);
    run_with(&after_hello("SIZE_999 8BITMIME", "! begin\n= unsendable TooLarge { limit: 999 }"), &message);
}

#[test]
fn hello_falls_back() {
    run("S: 220 old
        C: EHLO gw.example
        S: 500-what
        S: 500 PIPELINING
        C: HELO gw.example
        S: 250-hi
        S: 250 PIPELINING
        = ready
        ! begin
        C: MAIL FROM:<s@a.example>");
    run("S: 220 old
        C: EHLO gw.example
        S: 502 what
        C: HELO gw.example
        S: 502 what
        = failed refused at EHLO: 502 what");
    run("S: 220 new
        C: EHLO gw.example
        S: 450 busy
        = failed refused at EHLO: 450 busy");
    // A bare LF ends a line too; a greeting may have many.
    run("S: 220-a\\n
        S: 220 b\\n
        C: EHLO gw.example
        S: 250-PIPELINING\\n
        S: 250 ok\\n
        = ready
        ! begin
        C: MAIL FROM:<s@a.example>");
}

#[test]
fn deadlines_restart_at_progress() {
    let group = after_hello("PIPELINING", &format!("{ENVELOPE}C: DATA\n"));
    run(&format!(
        "{group}! pass 299\nS: 250 a\n! pass 299\nS: 250 b\n! pass 299\nS: 250 c\n! pass 299\nS: 354 d\n= body\n! pass 1000"
    ));
    let (mut session, mut now) =
        (Session::new("gw.example".into(), TIMEOUTS, Wants::default(), Instant::now()), Instant::now());
    let recipients = [recipient("a@b.example")];
    for said in ["220 mx\r\n", "250-mx\r\n250 PIPELINING\r\n"] {
        assert_eq!(session.step(now, said.as_bytes()).0, said.len());
    }
    assert_eq!(session.next_deadline(), None);
    session.begin(now, &message(1, &recipients)).expect("sendable");
    // Octets that leave are progress; lines that never end, and no octets, are none.
    now += Duration::from_secs(200);
    session.output_sent(now, 1);
    assert_eq!(session.next_deadline(), Some(now + TIMEOUTS.reply));
    session.output_sent(now + Duration::from_secs(9), 0);
    session.step(now + Duration::from_secs(9), b"250-a\r\n250");
    assert_eq!(session.next_deadline(), Some(now + TIMEOUTS.reply));
    session.output_sent(now, usize::MAX);
    assert_eq!(session.step(now, b"250 a\r\n250 b\r\n354 c\r\n"), (21, Step::SendBody));
    session.body(&[b'x'; 1000]);
    for _ in 0..100 {
        now += Duration::from_secs(179);
        assert_eq!(session.handle_time(now), None);
        session.output_sent(now, 1);
        assert_eq!(session.next_deadline(), Some(now + TIMEOUTS.body));
    }
    session.body_end(now);
    assert_eq!(session.next_deadline(), Some(now + TIMEOUTS.body));
    session.output_sent(now, usize::MAX);
    assert_eq!(session.next_deadline(), Some(now + TIMEOUTS.end_of_data));
}

#[test]
fn hundreds_of_recipients() {
    let paths: Vec<String> = (0..3000).map(|number| format!("recipient-{number}@b.example")).collect();
    let recipients: Vec<Recipient<'_>> = paths.iter().map(|path| recipient(path)).collect();
    for offers in ["PIPELINING", "PIPELINING CHUNKING", ""] {
        let mut driver = Driver::new(Wants::default());
        driver.read(b"220 mx\r\n");
        driver.read(format!("250-mx\r\n250-{}\r\n250 HELP\r\n", offers.replace(' ', "\r\n250-")).as_bytes());
        driver.sent.clear();
        driver.session.begin(driver.now, &message(0, &recipients)).expect("sendable");
        driver.send();
        let mut commands = 0;
        while driver.told.last().is_none_or(|told| told != "body") {
            let sent = String::from_utf8(std::mem::take(&mut driver.sent)).expect("ASCII");
            assert!(!sent.is_empty(), "no command after {commands}");
            for command in sent.lines() {
                commands += 1;
                driver.read(if command == "DATA" { b"354 go\r\n" } else { b"250 ok\r\n" });
            }
        }
        assert_eq!(commands, 3001 + usize::from(!offers.contains("CHUNKING")));
        driver.session.body_end(driver.now);
        driver.send();
        driver.read(b"250 ok\r\n");
        assert_eq!(driver.told.last().map(|told| told.matches("delivered").count()), Some(3000));
        assert!(driver.session.output.tail().capacity() <= crate::limits::NEXT_HOP_OUTPUT_KEPT_OCTETS);
    }
}
