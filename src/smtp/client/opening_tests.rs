//! STARTTLS: where it is said, what it means, and that nothing said before TLS is heard after it.
//! Dialogues like those in [`tests`](super::tests).

use super::tests::wanting;
use super::{StartTls, Wants};

const HELLO: &str = "S: 220 mx.example\nC: EHLO gw.example\n";
const OFFER: &str = "S: 250-mx.example\nS: 250-PIPELINING\nS: 250-CHUNKING\nS: 250 STARTTLS\n";

fn wants(starttls: StartTls) -> Wants {
    Wants { starttls, logon: None }
}

fn both(dialogue: &str) {
    for starttls in [StartTls::IfOffered, StartTls::Always] {
        wanting(&wants(starttls), dialogue);
    }
}

#[test]
fn tls_where_it_is_offered() {
    // What was offered before is forgotten.
    both(&format!(
        "{HELLO}{OFFER}
        C: STARTTLS
        S: 220-go
        S: 220 ahead
        = tls
        ! tls
        C: EHLO gw.example
        S: 250 mx.example
        = ready
        ! begin
        C: MAIL FROM:<s@a.example>
        S: 250 ok
        C: RCPT TO:<a@b.example>"
    ));
    // Once is enough; HELO is good enough under TLS.
    both(&format!("{HELLO}{OFFER}C: STARTTLS\nS: 220 go\n= tls\n! tls\nC: EHLO gw.example\n{OFFER}= ready"));
    both(&format!(
        "{HELLO}{OFFER}C: STARTTLS\nS: 220 go\n= tls\n! tls\nC: EHLO gw.example\nS: 502 no\nC: HELO gw.example\nS: 250 hi\n= ready"
    ));
    wanting(&wants(StartTls::Never), &format!("{HELLO}{OFFER}= ready"));
}

#[test]
fn without_tls_what_requires_it_ends() {
    for (answer, failure) in [
        ("S: 250 mx.example", "STARTTLS is required and not offered"),
        ("S: 250-mx.example\nS: 250 STARTTLS2", "STARTTLS is required and not offered"),
        ("S: 502 what", "refused at EHLO: 502 what"),
        (&format!("{OFFER}C: STARTTLS\nS: 454 4.7.0 not now"), "refused at STARTTLS: 454 4.7.0 not now"),
        (&format!("{OFFER}C: STARTTLS\nS: 502 5.5.1 no"), "refused at STARTTLS: 502 5.5.1 no"),
    ] {
        wanting(&wants(StartTls::Always), &format!("{HELLO}{answer}\n= failed {failure}"));
    }
    wanting(&wants(StartTls::IfOffered), &format!("{HELLO}S: 250 mx.example\n= ready"));
    wanting(&wants(StartTls::IfOffered), &format!("{HELLO}S: 502 what\nC: HELO gw.example\nS: 250 hi\n= ready"));
    for refusal in ["454 4.7.0 not now", "502 5.5.1 no"] {
        wanting(
            &wants(StartTls::IfOffered),
            &format!(
                "{HELLO}{OFFER}C: STARTTLS\nS: {refusal}\n= ready\n! begin\nC: MAIL FROM:<s@a.example>\nC: RCPT TO:<a@b.example>\nC: RCPT TO:<c@d.example>"
            ),
        );
    }
}

#[test]
fn what_is_injected_before_tls_is_not_heard_after_it() {
    for injected in ["S: 250-mx\nS: 250 AUTH PLAIN", "S: 250 mx", "S: x", "S: 421 bye", "S: 250-mx\\", "S: 2\\"] {
        both(&format!(
            "{HELLO}{OFFER}C: STARTTLS\nS: 220 go\n{injected}\n= tls\n! tls\nC: EHLO gw.example\nS: 250 mx.example\n= ready"
        ));
    }
    // Before the command has left, together with the answer to EHLO or behind it.
    both(&format!("{HELLO}! hold\n{OFFER}S: 220 go\n= failed senseless reply at STARTTLS"));
}

#[test]
fn mishaps() {
    let asked = format!("{HELLO}{OFFER}C: STARTTLS\n");
    for (done, told) in [
        ("S: 421 bye", "refused at STARTTLS: 421 bye"),
        ("S: 250 ok", "senseless reply at STARTTLS"),
        ("S: 221 ok", "senseless reply at STARTTLS"),
        ("S: 354 ok", "senseless reply at STARTTLS"),
        ("S: what", "senseless reply at STARTTLS"),
        ("! eof", "connection lost at STARTTLS"),
        ("! pass 299\n! pass 1", "timed out at STARTTLS"),
        ("S: 220 go\n= tls\n! eof", "connection lost at TLS handshake"),
        ("S: 220 go\n= tls\n! pass 299\n! pass 1", "timed out at TLS handshake"),
        ("S: 220 go\n= tls\n! quit", ""),
        ("S: 220 go\n= tls\n! tls\nC: EHLO gw.example\nS: 421 bye", "refused at EHLO: 421 bye"),
        ("S: 220 go\n= tls\n! tls\nC: EHLO gw.example\n! pass 300", "timed out at EHLO"),
    ] {
        let told = if told.is_empty() { String::new() } else { format!("= failed {told}") };
        both(&format!("{asked}{done}\n{told}"));
    }
}
