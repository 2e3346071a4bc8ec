//! What dialogues (`tests/transcripts`) and properties (`tests/session.rs`) cannot show: methods
//! called out of turn, bounds that take many octets to reach, and pieces of output.

use super::*;
use crate::limits::ENVELOPE_MAX_OCTETS;
use crate::smtp::sasl::Mechanism;
use std::cell::RefCell;
use std::time::Duration;

/// All that a session tells.
#[derive(Debug, Default)]
struct Heard {
    commands: RefCell<Vec<Verb>>,
    replies: RefCell<Vec<u16>>,
    refusals: RefCell<Vec<Reply>>,
    /// Reverse-path, recipient and octets of content at each refusal.
    subjects: RefCell<Vec<Subject>>,
}

type Subject = (Option<String>, Option<String>, Option<u64>);

impl Observer for Heard {
    fn command(&self, verb: Verb) {
        self.commands.borrow_mut().push(verb);
    }

    fn reply(&self, code: u16) {
        self.replies.borrow_mut().push(code);
    }

    fn refusal(&self, session: &Session, reply: Reply) {
        self.refusals.borrow_mut().push(reply);
        let text = |path: Option<&[u8]>| path.map(|path| String::from_utf8_lossy(path).into_owned());
        let subject = (text(session.reverse_path()), text(session.recipient_at_hand()), session.content_octets());
        self.subjects.borrow_mut().push(subject);
    }
}

fn session() -> (Session, Instant) {
    let profile = Profile {
        hostname: "mx.example.org".to_owned(),
        default_domain: None,
        message_size_max: None,
        recipients_max: None,
        protocol_errors_max: None,
        connection_timeout: Some(Duration::from_secs(300)),
        inactivity_timeout: Some(Duration::from_secs(60)),
        ..Profile::default()
    };
    let now = Instant::now();
    (Session::new(Rc::new(profile), [192, 0, 2, 1].into(), now), now)
}

/// Gives the session `input` with `verdict` for every question; returns the replies.
fn say(session: &mut Session, now: Instant, input: &str, verdict: Verdict) -> String {
    let mut rest = input.as_bytes();
    if !rest.is_empty() {
        session.handle_input(now);
    }
    loop {
        let (consumed, step) = session.step(now, rest);
        rest = &rest[consumed..];
        match step {
            Step::Decide(_) => session.handle_verdict(now, verdict),
            Step::Flush => panic!("{step:?}"),
            Step::Body(_) | Step::Abandon => {}
            Step::NeedMore | Step::Commit | Step::Close => break,
            Step::StartTls | Step::Challenge | Step::Authenticate => break,
        }
    }
    let replies = String::from_utf8(session.replies().to_vec()).expect("ASCII");
    session.replies_sent(replies.len());
    replies
}

/// The envelope's own bound answers like the limit on recipients, and in the same place in the
/// order of checks: a recipient that is not ours is told so, however full the envelope is (C19
/// before C17).
#[test]
fn a_full_envelope_refuses_last() {
    let (mut session, now) = session();
    say(&mut session, now, "HELO x\r\nMAIL FROM:<>\r\n", Verdict::Accept);
    let domain = ["d".repeat(60), "d".repeat(60), "d".repeat(60)].join(".");
    let rcpt = format!("RCPT TO:<{}@{domain}>\r\n", "l".repeat(64));
    let mut accepted = 0;
    while say(&mut session, now, &rcpt, Verdict::Accept) == "250 2.1.5 Recipient OK\r\n" {
        accepted += 1;
        assert!(accepted * 247 < ENVELOPE_MAX_OCTETS, "the envelope is not bounded");
    }
    assert_eq!(say(&mut session, now, &rcpt, Verdict::Accept), "452 4.5.3 Too many recipients\r\n");
    let refused = say(&mut session, now, &rcpt, Verdict::Refuse(Reply::UnableToRelay));
    assert_eq!(refused, "550 5.7.1 Unable to relay\r\n");
    // Those accepted before are all there.
    say(&mut session, now, "DATA\r\n", Verdict::Accept);
    let envelope = session.envelope().expect("an envelope");
    assert_eq!(envelope.recipient_count(), accepted);
    assert!(envelope.recipients().all(|recipient| recipient.path.len() == 64 + 1 + domain.len()));
}

#[test]
fn answers_nobody_asked_for_change_nothing() {
    let (mut session, now) = session();
    for input in ["", "HELO x\r\n", "MAIL FROM:<>\r\n", "RCPT TO:<a@b>\r\n", "DATA\r\n", "x\r\n"] {
        say(&mut session, now, input, Verdict::Accept);
        session.handle_verdict(now, Verdict::Refuse(Reply::RateExceeded));
        session.handle_commit_failure(now);
        session.handle_challenge(now, [0; 8], 0);
        session.handle_logon(now, LogonVerdict::Accept("nobody"));
        assert!(session.replies().is_empty() && !session.is_closed(), "after {input:?}");
        assert!(session.user().is_none() && session.take_logon().is_none());
    }
    assert!(session.in_data());
    let (consumed, step) = session.step(now, b".\r\nNOOP\r\n");
    assert_eq!((consumed, step), (3, Step::Commit));
    session.handle_verdict(now, Verdict::Accept);
    session.handle_body_failure();
    session.handle_shutdown(true);
    assert!(session.replies().is_empty());
    session.handle_commit_failure(now);
    assert_eq!(session.replies(), b"452 4.3.1 Insufficient system resources\r\n");
}

const TLS: TlsParameters = TlsParameters { version: "TLSv1.3", cipher: "TLS_AES_256_GCM_SHA384" };

/// A session that offers all there is, in clear.
fn secured() -> (Session, Instant) {
    let (mut session, now) = session();
    let profile = Profile { offers_tls: true, offers_auth: true, plaintext_auth: true, ..(*session.profile).clone() };
    session.profile = Rc::new(profile);
    session.offer_mechanisms(Mechanisms { ntlm: true, login: true, plain: true });
    say(&mut session, now, "EHLO x\r\n", Verdict::Accept);
    (session, now)
}

/// However often it is stepped, and whatever comes: everything behind STARTTLS goes, nothing is said.
#[test]
fn nothing_is_read_until_tls_is_there() {
    let (mut session, now) = secured();
    let input = b"STARTTLS\r\nEHLO forged\r\nMAIL FROM:<>\r\n";
    assert_eq!(session.step(now, input), (input.len(), Step::StartTls));
    assert_eq!(session.step(now, b"QUIT\r\n"), (6, Step::StartTls));
    assert_eq!(session.replies(), b"220 2.0.0 SMTP server ready\r\n");
    session.replies_sent(session.replies().len());
    session.handle_tls(now, TLS);
    assert!(session.replies().is_empty() && !session.in_transaction());
    let said = say(&mut session, now, "MAIL FROM:<>\r\n", Verdict::Accept);
    assert_eq!(said, "503 5.5.2 Send hello first\r\n");
}

/// A session that has ended does not begin anew with TLS, nor with an answer that comes too late.
#[test]
fn what_has_ended_stays_so() {
    let (mut session, now) = secured();
    say(&mut session, now, "STARTTLS\r\n", Verdict::Accept);
    session.handle_time(now + Duration::from_secs(60));
    assert!(session.is_closed());
    session.handle_tls(now, TLS);
    session.handle_challenge(now, [0; 8], 0);
    session.handle_logon(now, LogonVerdict::Accept("nobody"));
    assert!(session.is_closed() && session.user().is_none());
}

/// While a challenge or a verdict is owed nothing is consumed, and no timer runs. A proof is given
/// out once.
#[test]
fn a_logon_waits_for_its_answers() {
    let (mut session, now) = secured();
    let negotiate = "AUTH NTLM TlRMTVNTUAABAAAABoIIAAAAAAAAAAAAAAAAAAAAAAA=\r\n";
    say(&mut session, now, negotiate, Verdict::Accept);
    assert_eq!(session.step(now, b"NOOP\r\n"), (0, Step::Challenge));
    assert!(session.next_deadline().is_none() && session.replies().is_empty());
    session.handle_challenge(now, [1; 8], 0);
    assert!(session.replies().starts_with(b"334 TlRMTVNTUAAC") && session.next_deadline().is_some());
    say(&mut session, now, "AAAA\r\n", Verdict::Accept);
    assert_eq!(session.step(now, b"NOOP\r\n"), (0, Step::Authenticate));
    assert!(matches!(session.take_logon(), Some(Logon::Malformed(Mechanism::Ntlm))) && session.take_logon().is_none());
    assert_eq!(session.step(now, b"NOOP\r\n"), (0, Step::NeedMore));
    session.handle_time(now + Duration::from_secs(3600));
    session.handle_shutdown(true);
    assert!(session.next_deadline().is_none() && session.replies().is_empty());
    session.handle_logon(now, LogonVerdict::Refuse);
    assert_eq!(session.replies(), b"535 5.7.3 Authentication unsuccessful\r\n");
}

/// What a client said of itself is not shown by the session that has it.
#[test]
fn a_session_does_not_show_passwords() {
    for lines in [&["AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n"][..], &["AUTH LOGIN\r\n", "YWxpY2U=\r\n", "c2VjcmV0\r\n"]] {
        let (mut session, now) = secured();
        for line in lines {
            say(&mut session, now, line, Verdict::Accept);
        }
        let shown = format!("{session:?}");
        assert!(shown.contains("alice") && !shown.contains("secret") && !shown.contains("c2VjcmV0"), "{shown}");
    }
}

#[test]
fn a_body_failure_outside_data_is_no_failure() {
    let (mut session, now) = session();
    session.handle_body_failure();
    say(&mut session, now, "HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\n", Verdict::Accept);
    session.handle_body_failure();
    say(&mut session, now, "DATA\r\n", Verdict::Accept);
    assert_eq!(session.step(now, b".\r\n"), (3, Step::Commit));
}

/// After a refusal is certain no content is passed on, and the driver is told once.
#[test]
fn too_much_is_abandoned_once() {
    let (mut session, now) = session();
    let profile = Profile { message_size_max: Some(4), ..(*session.profile).clone() };
    session.profile = Rc::new(profile);
    say(&mut session, now, "HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n", Verdict::Accept);
    assert_eq!(session.step(now, b"ab"), (2, Step::Body(b"ab")));
    assert_eq!(session.step(now, b"cde"), (3, Step::Abandon));
    assert_eq!(session.step(now, b"fgh\n\r\ni"), (7, Step::NeedMore));
    assert_eq!(say(&mut session, now, "\r\n.\r\n", Verdict::Accept), format!("{}\r\n", Reply::MessageTooLarge.text()));
}

#[test]
fn replies_leave_in_pieces() {
    let (mut session, now) = session();
    let banner = session.replies().to_vec();
    session.replies_sent(4);
    assert_eq!(session.replies(), &banner[4..]);
    session.replies_sent(0);
    session.step(now, b"NOOP\r\n");
    session.replies_sent(banner.len() - 4);
    assert_eq!(session.replies(), b"250 2.0.0 OK\r\n");
    session.replies_sent(14);
    assert!(session.replies().is_empty());
}

#[test]
fn a_full_reply_buffer_stops_the_reading() {
    let (mut session, now) = session();
    let input = "NOOP\r\n".repeat(REPLIES_MAX_OCTETS);
    let (consumed, step) = session.step(now, input.as_bytes());
    assert_eq!(step, Step::Flush);
    assert!(consumed < input.len() && session.replies().len() < REPLIES_MAX_OCTETS + 512);
    // Nothing more until they have left.
    assert_eq!(session.step(now, &input.as_bytes()[consumed..]), (0, Step::Flush));
    let sent = session.replies().len();
    session.replies_sent(sent);
    assert!(session.step(now, &input.as_bytes()[consumed..]).0 > 0);
}

#[test]
fn refusals_are_told_once() {
    let (mut session, now) = session();
    let heard = Rc::new(Heard::default());
    session.observe(7, heard.clone());
    say(&mut session, now, "WHAT\r\nNOOP\r\nRSET x\r\n", Verdict::Accept);
    assert_eq!(*heard.refusals.borrow(), [Reply::UnrecognizedCommand, Reply::InvalidArguments]);
    assert_eq!(*heard.commands.borrow(), [Verb::Unknown, Verb::Noop, Verb::Rset]);
    assert_eq!(*heard.replies.borrow(), [220, 500, 250, 501]);
    assert_eq!(session.number(), 7);
}

#[test]
fn refusals_know_what_they_are_about() {
    let (mut session, now) = session();
    let heard = Rc::new(Heard::default());
    session.observe(1, heard.clone());
    let refuse = Verdict::Refuse(Reply::UnableToRelay);
    say(&mut session, now, "EHLO a\r\nMAIL FROM:<a@b.example>\r\n", Verdict::Refuse(Reply::SenderNotPermitted));
    say(&mut session, now, "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n", Verdict::Accept);
    say(&mut session, now, "RCPT TO:<e@f.example>\r\nRCPT TO:<>\r\n", refuse);
    say(&mut session, now, "DATA\r\n", Verdict::Accept);
    say(&mut session, now, "12345678\r\n.\r\n", Verdict::Accept);
    session.handle_commit_failure(now);
    let own = |text: &str| Some(text.to_owned());
    let from = || own("a@b.example");
    let expected: [Subject; 4] =
        [(from(), None, None), (from(), own("e@f.example"), None), (from(), None, None), (from(), None, Some(10))];
    assert_eq!(*heard.subjects.borrow(), expected);
    assert_eq!(session.reverse_path(), None, "the transaction is over");
    say(&mut session, now, "MAIL FROM:<g@h.example>\r\nRCPT TO:<c@d.example>\r\n", Verdict::Accept);
    assert_eq!(session.reverse_path(), Some(&b"g@h.example"[..]));
}

#[test]
fn deadlines() {
    let (mut session, now) = session();
    let seconds = |seconds| now + Duration::from_secs(seconds);
    assert_eq!(session.next_deadline(), Some(seconds(60)));
    say(&mut session, seconds(50), "N", Verdict::Accept);
    assert_eq!(session.next_deadline(), Some(seconds(110)));
    // Looking again at the same place without new octets is no input.
    say(&mut session, seconds(60), "", Verdict::Accept);
    assert_eq!(session.next_deadline(), Some(seconds(110)));
    say(&mut session, seconds(290), "N", Verdict::Accept);
    assert_eq!(session.next_deadline(), Some(seconds(300)));
    session.handle_time(seconds(299));
    assert!(!session.is_closed());
    session.handle_time(seconds(300));
    assert!(session.is_closed() && session.next_deadline().is_none());
}

/// A client that always has input ready may keep a driver from looking at its deadlines.
#[test]
fn the_connection_timer_needs_no_deadline_event() {
    let (mut session, now) = session();
    let late = now + Duration::from_secs(300);
    say(&mut session, late - Duration::from_millis(1), "HELO x\r\n", Verdict::Accept);
    let said = say(&mut session, late, "MAIL FROM:<>\r\n", Verdict::Accept);
    assert_eq!(said, format!("{}\r\n", Reply::ConnectionTimedOut.text()));
    assert!(session.is_closed());
}
