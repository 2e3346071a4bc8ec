//! AUTH: which mechanism is taken, what is said, and every way in which it fails. Dialogues like
//! those in [`tests`](super::tests).

use super::logon::{Credentials, Exchange, Logon};
use super::opening::Channel;
use super::tests::{TIMEOUTS, wanting};
use super::{Session, StartTls, Step, Wants};
use crate::smtp::sasl::ntlm::client::Randomness;
use crate::smtp::sasl::ntlm::{self, ServerExchange, nt_hash};
use crate::smtp::sasl::{Mechanisms, decode, encode};
use std::sync::Arc;
use std::time::Instant;

const HELLO: &str = "S: 220 mx.example\nC: EHLO gw.example\n";
/// `\0tim\0tanstaaf`
const PLAIN: &str = "AHRpbQB0YW5zdGFhZg==";
/// `tim`
const NAME: &str = "dGlt";
/// `tanstaaf`
const PASSWORD: &str = "dGFuc3RhYWY=";

fn logon(name: &str, password: &str, in_clear: bool) -> Logon {
    Logon {
        credentials: Arc::new(Credentials::new(name, password).expect("valid")),
        in_clear,
        randomness: Randomness { nonce: [0xaa; 8], session_key: [0x55; 16] },
        filetime: 0,
    }
}

fn wants(starttls: StartTls, in_clear: bool) -> Wants {
    Wants { starttls, logon: Some(logon("tim", "tanstaaf", in_clear)) }
}

/// A dialogue without TLS, where the operator lets the password go in clear.
fn in_clear(offers: &str, dialogue: &str) {
    wanting(&wants(StartTls::Never, true), &format!("{HELLO}S: 250-mx\nS: 250 AUTH {offers}\n{dialogue}"));
}

/// The same under TLS.
fn under_tls(starttls: StartTls, offers: &str, dialogue: &str) {
    let begin = format!("{HELLO}S: 250-AUTH X\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\n= tls\n! tls\n");
    wanting(
        &wants(starttls, false),
        &format!("{begin}C: EHLO gw.example\nS: 250-mx\nS: 250 AUTH {offers}\n{dialogue}"),
    );
}

fn encoded(octets: &[u8]) -> String {
    let mut line = Vec::new();
    encode(octets, &mut line);
    String::from_utf8(line).expect("ASCII")
}

#[test]
fn plain() {
    in_clear(
        "PLAIN",
        &format!(
            "C: AUTH PLAIN {PLAIN}\nS: 235 2.7.0 ok\n= ready\n! begin\nC: MAIL FROM:<s@a.example>\nS: 250 ok\nC: RCPT TO:<a@b.example>"
        ),
    );
    // What does not fit into a command is said after the empty challenge.
    let password = "x".repeat(400);
    let message = encoded(format!("\0tim\0{password}").as_bytes());
    let wants = Wants { starttls: StartTls::Never, logon: Some(logon("tim", &password, true)) };
    let dialogue =
        format!("{HELLO}S: 250-mx\nS: 250 AUTH PLAIN\nC: AUTH PLAIN\nS: 334\nC: {message}\nS: 235 ok\n= ready");
    wanting(&wants, &dialogue);
}

#[test]
fn plain_fills_a_line() {
    // "AUTH PLAIN ", 496 octets of base64 from 372, CRLF: 509; the next step has 513.
    for (octets, fits) in [(367, true), (368, false)] {
        let logon = logon("tim", &"x".repeat(octets), true);
        let exchange =
            Exchange::begin(&logon, Channel::Clear, Mechanisms { plain: true, ..Mechanisms::default() }, None);
        let exchange = exchange.expect("a mechanism");
        assert_eq!(exchange.line().len() > "AUTH PLAIN".len(), fits, "{octets}");
        assert!(exchange.line().len() + 2 <= 512);
    }
}

#[test]
fn login_answers_whatever_is_asked() {
    for (first, second) in [("VXNlcm5hbWU6", "UGFzc3dvcmQ6"), ("UGFzc3dvcmQ6", "VXNlcm5hbWU6"), ("", ""), ("!", "who?")]
    {
        in_clear(
            "LOGIN",
            &format!("C: AUTH LOGIN\nS: 334 {first}\nC: {NAME}\nS: 334 {second}\nC: {PASSWORD}\nS: 235 ok\n= ready"),
        );
    }
}

/// The messages of NTLM as this client makes them, with the server's CHALLENGE.
fn ntlm_messages(name: &str, domain: Option<&str>) -> [String; 3] {
    let client = ntlm::ClientExchange::new(name, domain, "tanstaaf");
    let server =
        ServerExchange::new(&client.negotiate(), "mx.example", [7; 8], 132_000_000_000_000_000).expect("valid");
    let random = Randomness { nonce: [0xaa; 8], session_key: [0x55; 16] };
    let message = client.authenticate(server.challenge(), &random, 0).expect("valid");
    let told = server.authenticate(&message).expect("valid");
    assert!(told.verify(&nt_hash("tanstaaf")) && !told.verify(&nt_hash("x")));
    assert_eq!((told.name(), told.domain()), (name, domain.unwrap_or_default()));
    [&client.negotiate()[..], server.challenge(), &message].map(encoded)
}

#[test]
fn ntlm() {
    let [negotiate, challenge, authenticate] = ntlm_messages("tim", None);
    for word in ["NTLM supported", "ntlm SUPPORTED", "NTLM", ""] {
        in_clear(
            "NTLM",
            &format!(
                "C: AUTH NTLM\nS: 334 {word}\nC: {negotiate}\nS: 334 {challenge}\nC: {authenticate}\nS: 235 ok\n= ready"
            ),
        );
    }
    let [negotiate, challenge, authenticate] = ntlm_messages("tim", Some("EXAMPLE"));
    let wants = Wants { starttls: StartTls::Never, logon: Some(logon("EXAMPLE\\tim", "tanstaaf", false)) };
    wanting(
        &wants,
        &format!(
            "{HELLO}S: 250-mx\nS: 250 AUTH NTLM\nC: AUTH NTLM\nS: 334 NTLM supported\nC: {negotiate}\nS: 334 {challenge}\nC: {authenticate}\nS: 235 ok\n= ready"
        ),
    );
}

#[test]
fn the_channel_decides() {
    let all = "LOGIN PLAIN X NTLM";
    let asked =
        |command: &str| format!("C: {command}\n! eof\n= failed connection lost at {}", &command[..10].trim_end());
    let (plain, ntlm) =
        (asked(&format!("AUTH PLAIN {PLAIN}")), "C: AUTH NTLM\n! eof\n= failed connection lost at AUTH NTLM");
    in_clear(all, &plain);
    in_clear("NTLM LOGIN", "C: AUTH LOGIN\n! eof\n= failed connection lost at AUTH LOGIN");
    under_tls(StartTls::Always, all, &plain);
    under_tls(StartTls::IfOffered, all, ntlm);
    under_tls(StartTls::IfOffered, "LOGIN PLAIN", &plain);
    let no_mechanism = "= failed no mechanism of AUTH is offered that may be used";
    // Without TLS, the password goes nowhere unless the operator says so; after a refused STARTTLS neither.
    for (starttls, more) in
        [(StartTls::Never, ""), (StartTls::IfOffered, ""), (StartTls::IfOffered, "S: 250-STARTTLS\n")]
    {
        let refused = if more.is_empty() { "" } else { "C: STARTTLS\nS: 454 no\n" };
        let dialogue = |offers: &str| format!("{HELLO}S: 250-mx\n{more}S: 250 AUTH {offers}\n{refused}");
        wanting(&wants(starttls, false), &format!("{}{ntlm}", dialogue(all)));
        wanting(&wants(starttls, false), &format!("{}{no_mechanism}", dialogue("LOGIN PLAIN")));
    }
    in_clear("X CRAM-MD5", no_mechanism);
    wanting(&wants(StartTls::Never, true), &format!("{HELLO}S: 250 mx\n{no_mechanism}"));
    // HELO offers nothing.
    wanting(&wants(StartTls::Never, true), &format!("{HELLO}S: 502 what\n= failed refused at EHLO: 502 what"));
    // What was offered before TLS does not count.
    under_tls(StartTls::Always, "X", no_mechanism);
}

#[test]
fn a_mechanism_makes_room_for_the_next() {
    for refusal in ["504 no", "504 5.7.4 no", "501 5.5.4 no", "500 5.5.4 no"] {
        in_clear(
            "LOGIN PLAIN NTLM",
            &format!(
                "C: AUTH PLAIN {PLAIN}\nS: {refusal}\nC: AUTH LOGIN\nS: {refusal}\nC: AUTH NTLM\nS: {refusal}\n= failed refused at AUTH NTLM: {refusal}"
            ),
        );
    }
    in_clear(
        "LOGIN PLAIN",
        &format!(
            "C: AUTH PLAIN {PLAIN}\nS: 504 no\nC: AUTH LOGIN\nS: 334\nC: {NAME}\nS: 334\nC: {PASSWORD}\nS: 235 ok\n= ready"
        ),
    );
}

#[test]
fn refusals_and_mishaps() {
    let [negotiate, ..] = ntlm_messages("tim", None);
    let stages = [
        ("PLAIN", format!("C: AUTH PLAIN {PLAIN}\n")),
        ("LOGIN", "C: AUTH LOGIN\n".to_owned()),
        ("LOGIN", format!("C: AUTH LOGIN\nS: 334\nC: {NAME}\n")),
        ("LOGIN", format!("C: AUTH LOGIN\nS: 334\nC: {NAME}\nS: 334\nC: {PASSWORD}\n")),
        ("NTLM", "C: AUTH NTLM\n".to_owned()),
        ("NTLM", format!("C: AUTH NTLM\nS: 334 NTLM supported\nC: {negotiate}\n")),
    ];
    for (mechanism, said) in stages {
        for refusal in
            ["535 5.7.3 Authentication unsuccessful", "454 4.7.0 later", "534 5.7.9 too weak", "421 bye", "503 no"]
        {
            in_clear(mechanism, &format!("{said}S: {refusal}\n= failed refused at AUTH {mechanism}: {refusal}"));
        }
        for (done, told) in [
            ("S: 250 ok", "senseless reply"),
            ("S: 354 ok", "senseless reply"),
            ("S: what", "senseless reply"),
            ("! eof", "connection lost"),
            ("! pass 299\n! pass 1", "timed out"),
        ] {
            in_clear(mechanism, &format!("{said}{done}\n= failed {told} at AUTH {mechanism}"));
        }
    }
    // Nobody has logged on who has not said everything; and nobody is heard before that has left.
    in_clear("LOGIN", &format!("C: AUTH LOGIN\nS: 334\nC: {NAME}\nS: 235 ok\n= failed senseless reply at AUTH LOGIN"));
    in_clear("NTLM", "C: AUTH NTLM\nS: 235 ok\n= failed senseless reply at AUTH NTLM");
    in_clear("LOGIN", "C: AUTH LOGIN\n! hold\nS: 334\nS: 334\n= failed senseless reply at AUTH LOGIN");
}

#[test]
fn a_senseless_challenge_is_cancelled() {
    let [negotiate, ..] = ntlm_messages("tim", None);
    let cancelled = |mechanism: &str, said: &str| {
        for (end, told) in [("S: 501 5.7.0 cancelled", "challenge"), ("S: 334", "reply"), ("S: 235 ok", "reply")] {
            in_clear(mechanism, &format!("{said}C: *\n{end}\n= failed senseless {told} at AUTH {mechanism}"));
        }
    };
    for word in ["LOGIN supported", "GSSAPI supported", "NTLMv2", "TlRMTVNTUAACAAAA"] {
        cancelled("NTLM", &format!("C: AUTH NTLM\nS: 334 {word}\n"));
    }
    for challenge in ["", "!", "TlRMTVNTUAACAAAA", &negotiate] {
        cancelled("NTLM", &format!("C: AUTH NTLM\nS: 334 NTLM supported\nC: {negotiate}\nS: 334 {challenge}\n"));
    }
    cancelled("PLAIN", &format!("C: AUTH PLAIN {PLAIN}\nS: 334\n"));
    cancelled("LOGIN", &format!("C: AUTH LOGIN\nS: 334\nC: {NAME}\nS: 334\nC: {PASSWORD}\nS: 334\n"));
}

#[test]
fn what_was_sent_does_not_come_back() {
    let withheld = |code: &str| format!("= failed refused at AUTH PLAIN: {code} (it repeats what was sent)");
    let said = format!("C: AUTH PLAIN {PLAIN}\n");
    for text in [format!("unknown command: AUTH PLAIN {PLAIN}"), PLAIN[..14].to_owned(), "tanstaaf is wrong".to_owned()]
    {
        in_clear("PLAIN", &format!("{said}S: 535 {text}\n{}", withheld("535")));
        in_clear("PLAIN", &format!("{said}S: 421 {text}\n{}", withheld("421")));
    }
    // Nor does it keep the next mechanism from its turn.
    in_clear(
        "PLAIN NTLM",
        &format!(
            "{said}S: 501 5.5.4 {PLAIN}\nC: AUTH NTLM\nS: 535 AUTH NTLM?\n= failed refused at AUTH NTLM: 535 AUTH NTLM?"
        ),
    );
    in_clear(
        "PLAIN",
        &format!("{said}S: 535 AUTH PLAIN: no, tim\n= failed refused at AUTH PLAIN: 535 AUTH PLAIN: no, tim"),
    );
}

/// Debug, of whatever, has neither the password nor what stands for it.
#[test]
fn nothing_shows_the_password() {
    let now = Instant::now();
    let wants = wants(StartTls::Never, true);
    for (offers, replies) in [("PLAIN", 0), ("LOGIN", 2)] {
        let mut session = Session::new("gw.example".into(), TIMEOUTS, wants.clone(), now);
        let hello = format!("250-mx\r\n250 AUTH {offers}\r\n");
        for said in ["220 mx\r\n", &hello].into_iter().chain(["334\r\n"; 2].into_iter().take(replies)) {
            session.output_sent(now, usize::MAX);
            assert_eq!(session.step(now, said.as_bytes()), (said.len(), Step::NeedMore));
        }
        let line = String::from_utf8(session.output().to_vec()).expect("ASCII");
        let argument = line.trim_end().rsplit(' ').next().expect("an argument");
        assert!(decode(argument.as_bytes()).is_some_and(|said| said.ends_with(b"tanstaaf")));
        let shown = format!("{session:?} {wants:?}");
        let octets = format!("{:?}", argument.as_bytes());
        for secret in ["tanstaaf", argument, octets.trim_matches(['[', ']'])] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
