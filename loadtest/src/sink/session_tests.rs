//! Sessions from their input to their replies.

use std::time::Duration;

use super::books::tests::books;
use super::books::{Books, Counts};
use super::faults::{Faults, Verb};
use super::offer::{Extension, Offer};
use super::session::{Pace, Session};
use crate::audit::Report;
use crate::message::template::tests::{message, wire};

/// A sink with one session. Every pause is over at once; any other end of the session is kept.
struct Rig {
    books: Books,
    session: Session,
    out: Vec<u8>,
    paces: Vec<Pace>,
}

impl Rig {
    fn new(disabled: &[Extension], max: u64, rules: &[&str]) -> Self {
        let rules: Vec<_> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let mut books = books(Offer::new("sink.example", disabled, max), Faults::new(&rules, 0));
        let (mut session, mut out) = (Session::new("test".to_owned(), 1), Vec::new());
        let pace = session.greet(b"220 sink.example\r\n", &mut books, &mut out);
        let mut rig = Self { books, session, out: Vec::new(), paces: Vec::new() };
        if out != b"220 sink.example\r\n" {
            rig.out = out;
        }
        rig.go_on(pace);
        rig
    }

    fn go_on(&mut self, pace: Pace) {
        if pace != Pace::Go {
            self.paces.push(pace);
        }
        self.session.resume(&mut self.out);
    }

    fn ended(&self) -> bool {
        self.session.is_closed() || self.paces.iter().any(|pace| !matches!(pace, Pace::Wait(_)))
    }

    fn feed(&mut self, mut input: &[u8]) -> &mut Self {
        while !input.is_empty() && !self.ended() {
            let (taken, pace) = self.session.feed(input, &mut self.books, &mut self.out);
            input = &input[taken..];
            self.go_on(pace);
        }
        self
    }

    /// One line at a time, each answered before the next.
    fn lines(&mut self, input: &str) -> String {
        let mut all = Vec::new();
        for line in input.split_inclusive('\n') {
            self.feed(line.as_bytes());
            self.session.writing(&self.books);
            self.session.written();
            all.append(&mut self.out);
        }
        codes(&all)
    }

    fn end(self) -> (Report, Counts) {
        let (tally, counts) = self.books.close().unwrap();
        (tally.report(None), counts)
    }
}

/// The codes of the last lines of all replies; `?` for what is none.
fn codes(out: &[u8]) -> String {
    let lines = out.split(|octet| *octet == b'\n').filter(|line| !line.is_empty());
    let codes = lines.filter(|line| line.get(3) != Some(&b'-')).map(|line| match line {
        [code @ .., _] if line.len() > 3 && line[..3].iter().all(u8::is_ascii_digit) => {
            String::from_utf8_lossy(&code[..3]).into_owned()
        }
        _ => "?".to_owned(),
    });
    codes.collect::<Vec<_>>().join(" ")
}

fn replies(pieces: &[&[u8]]) -> (String, Report) {
    let mut rig = Rig::new(&[], 0, &[]);
    for piece in pieces {
        rig.feed(piece);
    }
    (codes(&rig.out), rig.end().0)
}

fn dialogue() -> Vec<u8> {
    let mut input = b"EHLO c\r\nMAIL FROM:<> SIZE=1\r\nRCPT TO:<a@b>\r\nrcpt to:<c@d>\r\nDATA\r\n".to_vec();
    input.extend_from_slice(&wire(900, true, 1));
    input.extend_from_slice(b"mail FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\n");
    input.extend_from_slice(&wire(700, false, 2));
    input.extend_from_slice(b"MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\n");
    chunked(&message(800, true, 3), 300, &mut input);
    input.extend_from_slice(b"MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nbdat 801 last\r\n");
    input.extend_from_slice(&message(801, false, 4));
    input.extend_from_slice(b"NOOP\r\nQUIT\r\nNOOP\r\n");
    input
}

/// As two chunks and an empty last one.
fn chunked(message: &[u8], first: usize, input: &mut Vec<u8>) {
    for (chunk, last) in [(&message[..first], ""), (&message[first..], ""), (&[], " LAST")] {
        input.extend_from_slice(format!("BDAT {}{last}\r\n", chunk.len()).as_bytes());
        input.extend_from_slice(chunk);
    }
}

#[test]
fn a_pipelined_session_is_the_same_at_every_split() {
    let input = dialogue();
    let expected = "250 250 250 250 354 250 250 250 354 250 250 250 250 250 250 250 250 250 250 221";
    for at in 0..=input.len() {
        let (codes, report) = replies(&[&input[..at], &input[at..]]);
        assert_eq!(codes, expected, "{at}");
        assert_eq!((report.received, report.octets, report.altered, report.foreign), (4, 3201, 0, 0), "{at}");
    }
    let octets: Vec<_> = input.chunks(1).collect();
    assert_eq!(replies(&octets).1.received, 4);
}

#[test]
fn commands_out_of_order_are_refused() {
    for (input, codes) in [
        ("MAIL FROM:<a>\r\n", "503"),
        ("EHLO c\r\nRCPT TO:<a>\r\nDATA\r\n", "250 503 503"),
        ("EHLO c\r\nMAIL FROM:<a>\r\nDATA\r\nMAIL FROM:<b>\r\n", "250 250 503 503"),
        ("HELO c\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nRSET\r\nDATA\r\n", "250 250 250 250 503"),
        ("RSET\r\nMAIL FROM:<a>\r\n", "250 503"),
        ("EHLO c\r\nMAIL FROM:a\r\nMAIL\r\nFOO\r\n\r\nVRFY a\r\n", "250 501 501 500 500 252"),
        ("EHLO c\r\nMAIL FROM:<a\r\nMAIL FROM:<\"a>\\\">\"@b>\r\nRCPT TO:<a>x\r\n", "250 501 250 501"),
    ] {
        assert_eq!(Rig::new(&[], 0, &[]).lines(input), codes, "{input:?}");
    }
}

#[test]
fn chunks_out_of_order_are_refused_and_read_over() {
    const MAIL: &str = "EHLO c\r\nMAIL FROM:<a>\r\n";
    for (input, expected) in [
        ("BDAT 6\r\nQUIT\r\nNOOP\r\n".to_owned(), "502 250"),
        ("EHLO c\r\nBDAT 6 LAST\r\nQUIT\r\nMAIL FROM:<a>\r\n".to_owned(), "250 503 250"),
        (
            format!("{MAIL}BDAT 6\r\nQUIT\r\nRCPT TO:<a>\r\nBDAT 0\r\nRSET\r\nMAIL FROM:<a>\r\n"),
            "250 250 503 503 503 250 250",
        ),
        (format!("{MAIL}BDAT 0\r\nBDAT 6 LAST\r\nQUIT\r\nMAIL FROM:<a>\r\n"), "250 250 503 503 250"),
        (
            format!("{MAIL}RCPT TO:<a>\r\nBDAT 3\r\na\r\nDATA\r\nRCPT TO:<b>\r\nMAIL FROM:<b>\r\nBDAT 0 LAST\r\n"),
            "250 250 250 250 503 503 503 250",
        ),
        (format!("{MAIL}RCPT TO:<a>\r\nBDAT -1\r\nNOOP\r\n"), "250 250 250 501"),
        (format!("{MAIL}RCPT TO:<a>\r\nBDAT 1 FIRST\r\n"), "250 250 250 501"),
        (format!("{MAIL}RCPT TO:<a>\r\nBDAT 1 LAST x\r\n"), "250 250 250 501"),
        (format!("{MAIL}RCPT TO:<a>\r\nBDAT 99999999999999999999\r\n"), "250 250 250 501"),
    ] {
        assert_eq!(Rig::new(&[], 0, &[]).lines(&input), expected, "{input:?}");
    }
    assert_eq!(Rig::new(&[Extension::Chunking], 0, &[]).lines("EHLO c\r\nBDAT 6\r\nQUIT\r\nNOOP\r\n"), "250 502 250");
}

#[test]
fn what_was_not_offered_is_refused() {
    const INPUT: &str = "EHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nNOOP\r\n";
    for (disabled, expected) in [(&[][..], "250 250 250 250"), (&[Extension::Pipelining], "250 503 503 503")] {
        let mut rig = Rig::new(disabled, 0, &[]);
        rig.feed(INPUT.as_bytes());
        assert_eq!(codes(&rig.out), expected);
        // One after the other they are fine.
        assert_eq!(Rig::new(disabled, 0, &[]).lines(INPUT), "250 250 250 250");
    }
    let mut rig = Rig::new(&[], 0, &[]);
    assert_eq!(
        rig.feed(b"HELO c\r\nMAIL FROM:<a>\r\n").out,
        b"250 sink.example\r\n503 5.5.1 Pipelining was not offered\r\n"
    );
    let parameters = "HELO c\r\nMAIL FROM:<a> SIZE=1\r\nEHLO c\r\nMAIL FROM:<a> SIZE=1\r\nRCPT TO:<a> NOTIFY=NEVER\r\n";
    assert_eq!(Rig::new(&[], 0, &[]).lines(parameters), "250 555 250 250 250");
    let mut rig = Rig::new(&[Extension::EnhancedStatusCodes], 0, &["rcpt[b]=550 5.1.1 told", "rcpt[c]=550"]);
    rig.lines("EHLO c\r\nMAIL FROM:<a>\r\n");
    rig.feed(b"RCPT TO:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\nDATA\r\n");
    let expected = "250 Recipient OK\r\n550 5.1.1 told\r\n550 Refused as told\r\n354 End with CRLF.CRLF\r\n";
    assert_eq!(String::from_utf8_lossy(&rig.out), expected);
}

#[test]
fn messages_are_held_to_the_size() {
    for (octets, code, received) in [(900, "250", 1), (901, "552", 0)] {
        let mut rig = Rig::new(&[], 900, &[]);
        rig.feed(b"EHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n").out.clear();
        rig.feed(&wire(octets, true, 1));
        assert_eq!(codes(&rig.out), code);
        rig.feed(b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\n").out.clear();
        let mut chunks = Vec::new();
        chunked(&message(octets, false, 2), 500, &mut chunks);
        rig.feed(&chunks);
        assert_eq!(codes(&rig.out), if received == 1 { "250 250 250" } else { "250 552 503" });
        assert_eq!(rig.end().0.received, 2 * received);
    }
}

#[test]
fn long_lines_and_floods_of_errors_are_bounded() {
    let long = [&vec![b'a'; 12 * 1024][..], b"\r\nNOOP\r\n"].concat();
    assert_eq!(replies(&[&long]).0, "500 250");
    let pieces: Vec<_> = long.chunks(100).collect();
    assert_eq!(replies(&pieces).0, "500 250");
    let flood = b"FOO\r\n".repeat(1000);
    assert!(replies(&[&flood]).0.ends_with(" 500 421"));
}

/// A session with one message by DATA, with a rule that acts once.
fn with_fault(rule: &str) -> (String, Vec<Pace>, Report, Counts) {
    let mut rig = Rig::new(&[], 0, &[&format!("{rule},first:1")]);
    for piece in
        [&b"EHLO c\r\n"[..], b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n", &wire(900, true, 1), b"RSET\r\nQUIT\r\n"]
    {
        rig.feed(piece);
    }
    let (codes, paces) = (codes(&rig.out), rig.paces.clone());
    let (report, counts) = rig.end();
    (codes, paces, report, counts)
}

#[test]
fn refusals_change_nothing_but_what_they_refuse() {
    for (rule, expected, taken) in [
        ("connect=421 4.3.2 no", "421", 0),
        ("connect=554", "554 503 503 503 503", 0),
        ("ehlo=502", "502 503 503 503", 0),
        ("mail=451", "250 451 503 503", 0),
        ("rcpt=550", "250 250 550 503", 0),
        ("rcpt[b]=550", "250 250 550 503", 0),
        ("rcpt[a]=550", "250 250 250 354 250 250 221", 1),
        ("data=452", "250 250 250 452", 0),
        ("body=451", "250 250 250 354 451 250 221", 0),
        ("body=421", "250 250 250 354 421", 0),
        ("body@500=451", "250 250 250 354 451 250 221", 0),
        ("body@1MB=451", "250 250 250 354 250 250 221", 1),
        ("end=554 5.7.1 one\\ntwo", "250 250 250 354 554 250 221", 0),
        ("end=421", "250 250 250 354 421", 0),
        ("rset=451", "250 250 250 354 250 451 221", 1),
        ("quit=451", "250 250 250 354 250 250 451", 1),
    ] {
        let (codes, paces, report, counts) = with_fault(rule);
        // Without DATA the message is commands, and all kinds of refusals.
        assert!(codes.starts_with(expected), "{rule}: {codes}");
        assert_eq!((report.received, counts.unanswered), (taken, 0), "{rule}");
        let closes = expected.ends_with("421");
        assert_eq!(paces, if closes { vec![Pace::Close] } else { vec![] }, "{rule}");
        let verb = Verb::ALL.into_iter().find(|verb| rule.starts_with(verb.name())).unwrap();
        let acted = u64::from(expected != "250 250 250 354 250 250 221");
        assert_eq!(counts.faults[verb as usize], acted, "{rule}");
        assert!(counts.refusals[verb as usize] >= acted, "{rule}");
    }
}

#[test]
fn silence_comes_when_it_is_due() {
    for (verb, before, taken) in [
        ("connect", "", 0),
        ("ehlo", "", 0),
        ("mail", "250", 0),
        ("rcpt", "250 250", 0),
        ("data", "250 250 250", 0),
        ("body", "250 250 250 354", 0),
        ("body@300", "250 250 250 354", 0),
        ("end", "250 250 250 354", 1),
        ("rset", "250 250 250 354 250", 1),
        ("quit", "250 250 250 354 250 250", 1),
    ] {
        let reads = !verb.starts_with("body");
        for (action, pace) in [("hang", Pace::Hang { reads }), ("reset", Pace::Reset), ("close", Pace::Close)] {
            let (codes, paces, report, counts) = with_fault(&format!("{verb}={action}"));
            assert_eq!((codes.as_str(), paces), (before, vec![pace]), "{verb}={action}");
            assert_eq!(report.received, taken, "{verb}={action}");
            assert_eq!(counts.unanswered, u64::from(verb == "end"), "{verb}={action}");
        }
        let (codes, paces, report, counts) = with_fault(&format!("{verb}=slow:7s"));
        let greeting = if verb == "connect" { "220 " } else { "" };
        assert_eq!(codes, format!("{greeting}250 250 250 354 250 250 221"), "{verb}");
        assert_eq!(report.received, 1, "{verb}");
        assert_eq!((paces, counts.unanswered), (vec![Pace::Wait(Duration::from_secs(7))], 0), "{verb}");
    }
}

#[test]
fn noise_and_early_replies_do_not_stop_the_session() {
    for (verb, noisy, early) in [
        ("connect", "? 250 250 250 354 250 250 221", "220 220 250 250 250 354 250 250 221"),
        ("ehlo", "? 250 250 354 250 250 221", "250 250 250 250 354 250 250 221"),
        ("mail", "250 ? 250 354 250 250 221", "250 250 250 250 354 250 250 221"),
        ("rcpt", "250 250 ? 354 250 250 221", "250 250 250 250 354 250 250 221"),
        ("data", "250 250 250 ? 250 250 221", "250 250 250 354 354 250 250 221"),
        ("body", "250 250 250 354 ? 250 250 221", "250 250 250 354 250 250 250 221"),
        ("end", "250 250 250 354 ? 250 221", "250 250 250 354 250 250 250 221"),
        ("rset", "250 250 250 354 250 ? 221", "250 250 250 354 250 250 250 221"),
        ("quit", "250 250 250 354 250 250 ?", "250 250 250 354 250 250 221 221"),
    ] {
        for (action, expected) in [("garbage", noisy), ("early", early)] {
            let (codes, paces, report, counts) = with_fault(&format!("{verb}={action}"));
            assert_eq!((codes.as_str(), paces), (expected, vec![]), "{verb}={action}");
            assert_eq!(report.received, 1, "{verb}={action}");
            assert_eq!(counts.unanswered, u64::from((verb, action) == ("end", "garbage")), "{verb}={action}");
        }
    }
}

#[test]
fn chunks_go_wrong_like_data() {
    for (rule, expected, taken) in [
        ("data=451", "250 250 250 451 503 503", 0),
        ("body=451", "250 250 250 451 503 503", 0),
        ("body@600=451", "250 250 250 250 451 503", 0),
        ("end=451", "250 250 250 250 250 451", 0),
        ("end=garbage", "250 250 250 250 250 ?", 1),
        ("data=garbage", "250 250 250 ? 250 250", 1),
    ] {
        let mut rig = Rig::new(&[], 0, &[&format!("{rule},first:1")]);
        let mut input = b"EHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\n".to_vec();
        chunked(&message(900, true, 1), 500, &mut input);
        for pieces in [vec![&input[..]], input.chunks(1).collect()] {
            let mut rig = Rig::new(&[], 0, &[&format!("{rule},first:1")]);
            for piece in pieces {
                rig.feed(piece);
            }
            assert_eq!(codes(&rig.out), expected, "{rule}");
        }
        // The session is of use behind it.
        rig.feed(&input).out.clear();
        let before = rig.books.messages();
        assert_eq!(before, taken, "{rule}");
        rig.feed(b"RSET\r\n").feed(&input);
        assert_eq!(
            (codes(&rig.out).as_str(), rig.books.messages()),
            ("250 250 250 250 250 250 250", before + 1),
            "{rule}"
        );
    }
}

#[test]
fn transactions_and_refusals_are_counted() {
    let mut rig = Rig::new(&[], 0, &["rcpt[x]=550"]);
    rig.lines("FOO\r\nEHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<x>\r\nRCPT TO:<x>\r\nRSET\r\nMAIL FROM:<a>\r\nDATA\r\n");
    let (_, counts) = rig.end();
    assert_eq!((counts.transactions, counts.transactions_max), (2, 2));
    let refused = [Verb::Rcpt as usize, Verb::Data as usize, Verb::ALL.len()].map(|index| counts.refusals[index]);
    assert_eq!((refused, counts.faults[Verb::Rcpt as usize]), ([2, 1, 1], 2));
}
