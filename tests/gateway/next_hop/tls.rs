//! STARTTLS with next hops: who is trusted, and what leaves without it.

use super::secure::{Authority, Behaviour, Secure, Tls};
use crate::harness::{GATEPOST, Gateway, Scratch, Setup, gatepost, run_to_end, start, until};
use rustix::process::Signal;
use rustls::ALL_VERSIONS;
use rustls::version::{TLS12, TLS13};
use std::fs;

const FROM: &str = "sender@client.example";
const TO: &str = "rcpt@test.example";
const CONTENT: &[u8] = b"Subject: test\r\n\r\nnothing for others\r\n";
const NAME: &str = "mx.next-hop.example";

/// A next hop that does this at STARTTLS.
fn with(tls: Tls) -> Secure {
    Secure::start(Behaviour { tls, ..Behaviour::default() })
}

/// A gateway with one shard and this next hop, which was given a message.
fn sending(scratch: &Scratch, next_hop: &Secure, attributes: &str) -> Gateway {
    let option = format!("--next-hop={}{attributes}", next_hop.address);
    let options = [&option, "--ack-delay=0", "--retry-min=200ms", "--retry-max=1s", "--shards=1"];
    let gateway = start(&scratch.join("spool"), &options);
    gateway.session().deliver(FROM, &[TO], CONTENT);
    gateway
}

/// Whether all that was said in clear is what must be.
#[track_caller]
fn assert_nothing_left_in_clear(next_hop: &Secure) {
    for line in next_hop.lines().iter().filter_map(|line| line.strip_prefix("clear ")) {
        assert!(matches!(line, "EHLO mx.test.example" | "STARTTLS" | "QUIT"), "in clear: {line}");
    }
}

#[test]
fn a_verified_next_hop_gets_its_mail() {
    let (scratch, authority) = (Scratch::new(), Authority::new());
    let ca = scratch.join("ca.pem");
    fs::write(&ca, &authority.pem).expect("space");
    let ca = ca.display();
    for (names, versions, attributes) in [
        (&[NAME][..], ALL_VERSIONS, format!(",tls=required,ca={ca},tls-name={NAME}")),
        (&["127.0.0.1"], ALL_VERSIONS, format!(",tls=required,ca={ca}")),
        (&["127.0.0.1"], &[&TLS12], format!(",tls=required,ca={ca}")),
        // Nothing is verified.
        (&["other.example"], ALL_VERSIONS, String::new()),
        (&["other.example"], &[&TLS12], String::new()),
        (&[NAME], &[&TLS13], ",tls=optional".to_owned()),
    ] {
        let next_hop = with(Tls::Works(authority.server_of(names, versions)));
        let scratch = Scratch::new();
        let gateway = sending(&scratch, &next_hop, &attributes);
        let messages = next_hop.wait(1);
        assert!(messages[0].0 && messages[0].1.contains("nothing for others"), "{attributes}: {messages:?}");
        assert_nothing_left_in_clear(&next_hop);
        gateway.until_delivered();
        let scrape = gateway.scrape();
        assert!(scrape.contains("gatepost_next_hop_tls_handshakes_total{result=\"ok\"} 1\n"), "{scrape}");
        assert!(scrape.contains("gatepost_next_hop_tls_handshakes_total{result=\"failed\"} 0\n"), "{scrape}");
        gateway.stop();
    }
}

#[test]
fn who_cannot_be_verified_gets_nothing() {
    let (scratch, authority) = (Scratch::new(), Authority::new());
    let ca = scratch.join("ca.pem");
    fs::write(&ca, &authority.pem).expect("space");
    let ca = ca.display();
    for (tls, name, reason) in [
        (Tls::Works(authority.server(&["other.example"])), NAME, "invalid peer certificate"),
        (Tls::Works(authority.server(&["127.0.0.2"])), "127.0.0.1", "invalid peer certificate"),
        (Tls::Works(Authority::new().server(&[NAME])), NAME, "invalid peer certificate: UnknownIssuer"),
        (Tls::None, NAME, "STARTTLS is required and not offered"),
        (Tls::Broken, NAME, "TLS with 127.0.0.1:"),
    ] {
        let next_hop = with(tls);
        let scratch = Scratch::new();
        let gateway = sending(&scratch, &next_hop, &format!(",tls=required,ca={ca},tls-name={name}"));
        until(reason, || {
            gateway.stderr().lines().any(|line| line.contains("cannot be reached: ") && line.contains(reason))
        });
        // It is tried again, and nothing else comes of that.
        until("a probe", || next_hop.count("clear EHLO mx.test.example") >= 2);
        assert_nothing_left_in_clear(&next_hop);
        assert!(next_hop.lines().iter().all(|line| line.starts_with("clear ")), "{:?}", next_hop.lines());
        assert_eq!(gateway.metric("gatepost_queue_messages"), 1.0);
        gateway.stop();
    }
}

#[test]
fn where_tls_is_optional_and_fails_mail_goes_in_clear() {
    let scratch = Scratch::new();
    let next_hop = with(Tls::Broken);
    let gateway = sending(&scratch, &next_hop, "");
    let messages = next_hop.wait(1);
    assert!(!messages[0].0 && messages[0].1.contains("nothing for others"), "{messages:?}");
    assert!(gateway.stderr().contains("its mail goes in clear for an hour"), "{}", gateway.stderr());
    assert_eq!(next_hop.count("clear STARTTLS"), 1);
    assert!(gateway.scrape().contains("gatepost_next_hop_tls_handshakes_total{result=\"failed\"} 1\n"));
    gateway.until_delivered();
    gateway.stop();
    // Nobody was asked for TLS who does not offer it.
    let (scratch, next_hop) = (Scratch::new(), with(Tls::None));
    let gateway = sending(&scratch, &next_hop, "");
    assert!(!next_hop.wait(1)[0].0);
    gateway.stop();
    // And nobody at all who may not.
    let (scratch, next_hop) = (Scratch::new(), with(Tls::Broken));
    let gateway = sending(&scratch, &next_hop, ",tls=off");
    assert!(!next_hop.wait(1)[0].0);
    assert_eq!(next_hop.count("clear STARTTLS"), 0);
    gateway.stop();
}

#[test]
fn sessions_are_resumed() {
    let (scratch, authority) = (Scratch::new(), Authority::new());
    let tls = Tls::Works(authority.server(&["127.0.0.1"]));
    let next_hop = Secure::start(Behaviour { tls, is_curt: true, ..Behaviour::default() });
    let gateway = sending(&scratch, &next_hop, "");
    next_hop.wait(1);
    gateway.until_delivered();
    gateway.session().deliver(FROM, &[TO], CONTENT);
    next_hop.wait(2);
    assert_eq!(next_hop.resumed(), 1);
    gateway.stop();
}

#[test]
fn what_is_injected_before_tls_is_not_heard() {
    let authority = Authority::new();
    let ca = Scratch::new();
    fs::write(ca.join("ca.pem"), &authority.pem).expect("space");
    let required = format!(",tls=required,ca={}", ca.join("ca.pem").display());
    for attributes in ["", &required] {
        for injected in ["\r\n250-x\r\n250-CHUNKING\r\n250 PIPELINING", "\r\n421 4.3.2 Go away", "\r\nwhat"] {
            let next_hop = with(Tls::Injected(authority.server(&["127.0.0.1"]), injected));
            let scratch = Scratch::new();
            let gateway = sending(&scratch, &next_hop, attributes);
            assert!(next_hop.wait(1)[0].0, "under TLS");
            assert!(next_hop.count("tls DATA") == 1, "{:?}", next_hop.lines());
            gateway.stop();
        }
    }
}

#[test]
fn a_drain_waits_for_no_handshake() {
    let scratch = Scratch::new();
    let next_hop = with(Tls::Hangs);
    let option = format!("--next-hop={}", next_hop.address);
    let mut gateway = start(&scratch.join("spool"), &[&option, "--ack-delay=0", "--drain-timeout=1h"]);
    gateway.session().deliver(FROM, &[TO], CONTENT);
    until("a handshake", || next_hop.count("clear STARTTLS") == 1);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait().0, Some(0));
}

#[test]
fn a_system_that_trusts_nobody_prevents_the_start() {
    let scratch = Scratch::new();
    let mut command = gatepost(&GATEPOST);
    command.args(["serve", "--next-hop=mx.example:25,tls=required"]).arg("--spool").arg(scratch.join("spool"));
    command.envs(["SSL_CERT_FILE", "SSL_CERT_DIR"].map(|name| (name, scratch.join("nowhere"))));
    let ended = run_to_end(command);
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    let words = ["next hop mx.example:25: ", "install ca-certificates", "ca=FILE"];
    assert!(words.iter().all(|word| ended.stderr.contains(word)), "{}", ended.stderr);
}

#[test]
fn certificates_that_cannot_be_read_prevent_the_start() {
    let scratch = Scratch::new();
    let (missing, broken) = (scratch.join("missing.pem"), scratch.join("broken.pem"));
    fs::write(&broken, "no certificate\n").expect("space");
    for (path, reason) in [(missing, "No such file"), (broken, "there is no certificate in it")] {
        let option = format!("--next-hop=mx.example:25,tls=required,ca={}", path.display());
        let ended = Setup::new(&scratch.join("spool"), &[&option]).fail();
        assert_eq!(ended.code, Some(78), "{}", ended.stderr);
        let words = ["next hop mx.example:25: ca=", &path.display().to_string(), reason];
        assert!(words.iter().all(|word| ended.stderr.contains(word)), "{}", ended.stderr);
    }
}
