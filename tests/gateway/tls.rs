//! TLS as a server: STARTTLS and implicit TLS, what is said before and behind a handshake, and mail
//! under it (RFC 3207, RFC 8314; CONFORMANCE C3, G5).

use crate::harness::tls_client::{ClientTls, Kind, Pair};
use crate::harness::{
    BANNER, Client, D2, End, Gateway, PER_SOURCE, SHUTDOWN, Scratch, Setup, TOTAL, assert_stored, cat, list, queue_id,
    stuffed, until,
};
use rustix::process::Signal;
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, ProtocolVersion};
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

const HANDSHAKES: &str = "gatepost_tls_handshakes_total";
const STARTTLS_READY: &str = "220 2.0.0 SMTP server ready";
const HELLO_FIRST: &str = "503 5.5.2 Send hello first";
const BAD_SEQUENCE: &str = "503 5.5.1 Bad sequence of commands";
const MAIL: &str = "MAIL FROM:<a@b.example>";
const RCPT: &str = "RCPT TO:<rcpt@test.example>";
const ACCEPTED: &str = "250 2.1.0 Sender OK";

/// The type of a record (RFC 8446 section 5.1).
const ALERT: u8 = 0x15;

/// A gateway with a certificate: STARTTLS where `listening[0]` is, TLS first where `listening[1]` is.
struct Site {
    _scratch: Scratch,
    gateway: Gateway,
}

impl Site {
    fn new(options: &[&str]) -> Self {
        let scratch = Scratch::new();
        let pair = Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]);
        let own = pair.options();
        let mut all: Vec<&str> = own.iter().map(String::as_str).collect();
        all.extend(["--listen=127.0.0.1:0", "--listen=127.0.0.1:0,tls=implicit"]);
        all.extend(options);
        let gateway = Setup::new(&scratch.join("spool"), &all).start();
        Site { _scratch: scratch, gateway }
    }

    fn implicit(&self) -> SocketAddr {
        self.gateway.listening[1]
    }

    /// A session under TLS, after EHLO.
    #[track_caller]
    fn session(&self, is_implicit: bool, tls: &ClientTls) -> Client {
        let mut client = if is_implicit { Client::connect(self.implicit(), None) } else { self.gateway.session() };
        if is_implicit {
            client.secure(tls);
            client.hello();
        } else {
            client.starttls(tls);
        }
        client
    }

    #[track_caller]
    fn assert_handshakes(&self, completed: f64, failed: f64) {
        let count = |result| self.gateway.metric_with(HANDSHAKES, "result", result);
        assert_eq!((count("completed"), count("failed")), (completed, failed));
    }
}

#[track_caller]
fn begin_data(client: &mut Client) {
    client.expect(MAIL, ACCEPTED);
    client.expect(RCPT, "250 2.1.5 Recipient OK");
    client.expect("DATA", "354 Start mail input; end with <CRLF>.<CRLF>");
}

/// Content with everything that a line can begin with.
fn content(octets: usize) -> Vec<u8> {
    let mut content = b"Subject: long\r\n\r\n".to_vec();
    for number in 0_u64.. {
        if content.len() >= octets {
            break;
        }
        let dots = ".".repeat((number % 4) as usize);
        content.extend_from_slice(format!("{dots}line {number} {}\r\n", number.wrapping_mul(0x9e37_79b9)).as_bytes());
    }
    content
}

#[test]
fn both_ways_with_both_versions() {
    let site = Site::new(&[]);
    for (version, number, name) in
        [(&TLS12, ProtocolVersion::TLSv1_2, "TLSv1.2"), (&TLS13, ProtocolVersion::TLSv1_3, "TLSv1.3")]
    {
        let tls = ClientTls::of(&[version]);
        let mut starttls = site.gateway.connect();
        assert_eq!(starttls.reply(), BANNER);
        assert!(starttls.ehlo().lines().any(|line| line == "250-STARTTLS"));
        assert!(!starttls.starttls(&tls).contains("STARTTLS"), "not under TLS");
        let mut implicit = Client::connect(site.implicit(), None);
        implicit.secure(&tls);
        assert_eq!(implicit.reply(), BANNER);
        assert!(!implicit.ehlo().contains("STARTTLS"), "not under TLS");
        for mut client in [starttls, implicit] {
            assert_eq!(client.tls().protocol_version(), Some(number));
            let suite = client.tls().negotiated_cipher_suite().expect("a cipher").suite();
            let suite = format!("{suite:?}").replace("TLS13_", "TLS_");
            let id = client.deliver("a@b.example", &["rcpt@test.example"], b"Subject: x\r\n\r\nbody\r\n");
            assert_stored(&site.gateway.spool, &id, b"Subject: x\r\n\r\nbody\r\n");
            let (field, _) = cat(&site.gateway.spool, &id);
            let told =
                format!("\r\n\t(using {name} with cipher {suite})\r\n\tby mx.test.example (Gatepost) with ESMTPS id");
            assert!(field.contains(&told), "{field}");
            client.quit();
        }
    }
    site.assert_handshakes(4.0, 0.0);
    site.gateway.until_empty();
    site.gateway.stop();
}

//= RFC 3207 section 4.2
#[test]
fn starttls_forgets_what_was_said_and_counts_on() {
    let site = Site::new(&[]);
    let mut client = site.gateway.connect();
    assert_eq!(client.reply(), BANNER);
    // Four protocol errors in clear.
    client.expect("STARTTLS", HELLO_FIRST);
    client.ehlo();
    client.expect("STARTTLS now", "501 5.5.4 Invalid arguments");
    client.expect(MAIL, ACCEPTED);
    client.expect("STARTTLS", BAD_SEQUENCE);
    client.expect("RSET", "250 2.0.0 Resetting");
    client.expect("FOO", "500 5.3.3 Unrecognized command");
    client.expect("STARTTLS", STARTTLS_READY);
    client.secure(&ClientTls::default());
    // The fifth is still served; a hello does not make up for any.
    client.expect(MAIL, HELLO_FIRST);
    client.ehlo();
    client.expect(MAIL, ACCEPTED);
    client.expect("RSET", "250 2.0.0 Resetting");
    client.expect("STARTTLS", "421 4.7.0 Too many errors on this connection, closing transmission channel");
    client.assert_ended();

    let mut client = site.session(false, &ClientTls::default());
    client.expect("STARTTLS", BAD_SEQUENCE);
    client.expect("STARTTLS now", "501 5.5.4 Invalid arguments");
    client.quit();
    let mut client = site.session(true, &ClientTls::default());
    client.expect("STARTTLS", BAD_SEQUENCE);
    client.quit();
}

#[test]
fn without_a_certificate_there_is_no_starttls() {
    let scratch = Scratch::new();
    let gateway = Setup::new(&scratch.join("spool"), &[]).start();
    let mut client = gateway.connect();
    assert_eq!(client.reply(), BANNER);
    assert!(!client.ehlo().contains("STARTTLS"));
    client.expect("STARTTLS", "502 5.5.1 Command not implemented");
    // With one, and switched off: by extension, by binding.
    let site = Site::new(&["--listen=127.0.0.1:0,tls=off"]);
    let switched_off = Site::new(&["--disable-extension=starttls"]);
    for address in [site.gateway.listening[2], switched_off.gateway.address()] {
        let mut client = Client::connect(address, None);
        assert_eq!(client.reply(), BANNER);
        assert!(!client.ehlo().contains("STARTTLS"));
        client.expect("STARTTLS", "502 5.5.1 Command not implemented");
    }
    switched_off.session(true, &ClientTls::default()).quit();
}

/// Commands that an attacker put behind STARTTLS are not the client's.
#[test]
fn what_comes_behind_starttls_is_thrown_away() {
    let site = Site::new(&[]);
    let evil = "MAIL FROM:<evil@b.example>\r\nRCPT TO:<rcpt@test.example>\r\n";
    for behind in [
        "NOOP\r\n".to_owned(),
        "EHLO evil.example\r\n".to_owned(),
        format!("EHLO evil.example\r\n{evil}"),
        // Part of a command, to be completed by the client's first.
        "MAIL FROM:<evil@b.example> BODY=8BITMIME\r\nRC".to_owned(),
        "STARTTLS\r\nSTARTTLS\r\n".to_owned(),
        format!("EHLO evil.example\r\n{evil}").repeat(40),
    ] {
        let mut client = site.gateway.session();
        client.send(format!("STARTTLS\r\n{behind}"));
        // Exactly one reply: the handshake would fail on any other.
        assert_eq!(client.reply(), STARTTLS_READY);
        client.secure(&ClientTls::default());
        client.expect("NOOP", "250 2.0.0 OK");
        client.expect(MAIL, HELLO_FIRST);
        client.ehlo();
        client.expect(MAIL, ACCEPTED);
        client.expect("DATA", "503 5.5.2 Need rcpt command");
        client.quit();
    }
    // Also what came before it in the segment is still answered.
    let mut client = site.gateway.session();
    client.send("MAIL FROM:<a@b.example>\r\nRSET\r\nSTARTTLS\r\nNOOP\r\n");
    for reply in [ACCEPTED, "250 2.0.0 Resetting", STARTTLS_READY] {
        assert_eq!(client.reply(), reply);
    }
    client.secure(&ClientTls::default());
    client.ehlo();
    client.quit();
    assert_eq!(list(&site.gateway.spool), []);
}

#[test]
fn clear_text_in_place_of_a_handshake_is_not_executed() {
    let site = Site::new(&[]);
    let message = "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<rcpt@test.example>\r\nBDAT 3 LAST\r\nx\r\nQUIT\r\n";
    let mut starttls = site.gateway.session();
    starttls.expect("STARTTLS", STARTTLS_READY);
    let implicit = Client::connect(site.implicit(), None);
    for mut client in [starttls, implicit] {
        client.send(message);
        let mut answer = Vec::new();
        match client.stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        // An alert, if it was not lost with the connection; no reply of SMTP.
        assert!(matches!(answer[..], [] | [0x15, ..]), "{answer:?}");
    }
    site.gateway.until_empty();
    site.assert_handshakes(0.0, 2.0);
    assert_eq!(list(&site.gateway.spool), []);
}

/// A client's last octets of a handshake and its first command may come in one segment.
#[test]
fn commands_right_behind_the_handshake_are_answered() {
    let site = Site::new(&[]);
    for version in [&TLS13, &TLS12] {
        let tls = ClientTls::of(&[version]);
        for resumed in [false, true, true] {
            let mut client = site.gateway.session();
            client.expect("STARTTLS", STARTTLS_READY);
            client.try_secure(&tls, b"EHLO x\r\nNOOP\r\n").expect("a handshake");
            assert_eq!(client.tls().handshake_kind() == Some(HandshakeKind::Resumed), resumed);
            assert!(client.reply().starts_with("250-mx.test.example Hello ["));
            assert_eq!(client.reply(), "250 2.0.0 OK");
            client.quit();
            let mut client = Client::connect(site.implicit(), None);
            client.try_secure(&tls, b"EHLO x\r\nNOOP\r\n").expect("a handshake");
            assert_eq!(client.reply(), BANNER);
            assert!(client.reply().starts_with("250-mx.test.example Hello ["));
            assert_eq!(client.reply(), "250 2.0.0 OK");
            client.quit();
        }
    }
}

#[test]
fn required_tls_comes_before_mail() {
    let site = Site::new(&["--listen=127.0.0.1:0,tls=required"]);
    let must = "451 5.7.3 Must issue a STARTTLS command first";
    let mut client = Client::connect(site.gateway.listening[2], None);
    client.hello();
    client.expect(MAIL, must);
    client.expect(RCPT, "503 5.5.2 Need mail command");
    client.expect(MAIL, must);
    client.starttls(&ClientTls::default());
    let id = client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    assert_stored(&site.gateway.spool, &id, b"x\r\n");
    client.quit();
    assert_eq!(site.gateway.refusals("gatepost_refusals_total", "tls_required"), 2.0);
}

#[test]
fn refusals_at_connect_come_under_tls_where_it_comes_first() {
    for (options, source, reply) in [
        (&["--max-connections-per-source=1"][..], None, PER_SOURCE),
        (&["--max-connections=1"], Some("127.9.0.1"), TOTAL),
        (
            &["--block=127.9.0.2"],
            Some("127.9.0.2"),
            "550 5.7.1 External client with IP address 127.9.0.2 does not have permissions to submit to this server. \
             Visit http://support.microsoft.com/kb/928123 for more information",
        ),
    ] {
        let site = Site::new(options);
        let mut first = site.session(true, &ClientTls::default());
        let source = source.map(|source| source.parse().expect("an address"));
        let mut refused = Client::connect(site.implicit(), source);
        refused.secure(&ClientTls::default());
        assert_eq!(refused.reply(), reply);
        refused.assert_ended();
        let mut in_clear = Client::connect(site.gateway.address(), source);
        assert_eq!(in_clear.reply(), reply);
        in_clear.assert_ended();
        first.expect("NOOP", "250 2.0.0 OK");
        first.quit();
    }
}

/// D1 and D2 hold through handshakes; a session on another binding, whose timers are long, is served
/// meanwhile.
#[test]
fn a_handshake_that_never_ends_is_ended() {
    for (options, reason) in [
        (["--connection-timeout=500ms", "--inactivity-timeout=0"], "connection_timeout"),
        (["--connection-timeout=0", "--inactivity-timeout=500ms"], "inactivity_timeout"),
    ] {
        let [one, two] = options;
        let site = Site::new(&[one, two, "--listen=127.0.0.1:0,role=relay", "--shards=1"]);
        let mut other = Client::connect(site.gateway.listening[2], None);
        other.hello();
        let implicit = Client::connect(site.implicit(), None);
        let mut starttls = site.gateway.connect();
        // On a machine that is slow, its time is over before.
        starttls.send("EHLO x\r\nSTARTTLS\r\n");
        let replies = [BANNER, "250-"].map(|begin| starttls.try_line().is_ok_and(|line| line.starts_with(begin)));
        let may_begin = replies == [true; 2] && (0..20).any(|_| starttls.try_line().as_deref() == Ok(STARTTLS_READY));
        let mut waiting = vec![implicit];
        waiting.extend(may_begin.then_some(starttls));
        let count = waiting.len() as f64;
        for mut client in waiting {
            client.stream.set_read_timeout(Some(Duration::from_millis(10))).expect("a socket");
            // The beginning of a ClientHello of 16,380 octets.
            let mut is_gone = client.stream.write_all(&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc]).is_err();
            until("the connection is ended", || {
                other.expect("NOOP", "250 2.0.0 OK");
                // Every piece of input restarts D2, and nothing restarts D1.
                is_gone |= reason == "connection_timeout" && client.stream.write_all(&[0]).is_err();
                let mut said = [0; 64];
                match client.stream.read(&mut said) {
                    Ok(0) => true,
                    Ok(_) if said[0] == ALERT => false,
                    Ok(_) => panic!("there is nobody to talk to"),
                    Err(error) => is_gone || error.kind() == ErrorKind::ConnectionReset,
                }
            });
        }
        site.assert_handshakes(0.0, count);
        site.gateway.until_connections(1.0);
        assert_eq!(site.gateway.refusals("gatepost_refusals_total", reason), 2.0);
        other.quit();
    }
}

#[test]
fn silence_under_tls_is_answered_under_tls() {
    let site = Site::new(&["--inactivity-timeout=3s"]);
    for is_implicit in [false, true] {
        let mut client = site.session(is_implicit, &ClientTls::default());
        begin_data(&mut client);
        client.send("half of a message\r\n");
        assert_eq!(client.reply(), D2);
        client.assert_ended();
    }
    assert_eq!(list(&site.gateway.spool), []);
}

#[test]
fn an_end_in_mid_message_keeps_nothing_of_it() {
    let site = Site::new(&[]);
    for version in [&TLS12, &TLS13] {
        for is_implicit in [false, true] {
            let mut client = site.session(is_implicit, &ClientTls::of(&[version]));
            begin_data(&mut client);
            client.send("half of a message\r\n");
            client.close_notify();
            // It says so too (RFC 8446 section 6.1), and nothing else.
            assert_eq!(client.try_line(), Err(End::Fin));

            // By TCP alone, as an attacker can do it.
            let mut client = site.session(is_implicit, &ClientTls::of(&[version]));
            begin_data(&mut client);
            client.send("half of a message\r\n.");
            client.half_close();
            assert!(client.try_line().is_err());
        }
    }
    site.gateway.until_empty();
    assert_eq!(list(&site.gateway.spool), []);
    assert_eq!(site.gateway.metric("gatepost_queue_messages"), 0.0);
    site.gateway.stop();
}

#[test]
fn messages_of_all_sizes_arrive_octet_by_octet() {
    let site = Site::new(&[]);
    for version in [&TLS12, &TLS13] {
        for is_implicit in [false, true] {
            let mut client = site.session(is_implicit, &ClientTls::of(&[version]));
            // In memory, in a spill file, in a long one.
            for octets in [100, 200 << 10, 1 << 20, 5 << 20] {
                let content = content(octets);
                let id = client.deliver("a@b.example", &["rcpt@test.example"], &content);
                assert_stored(&site.gateway.spool, &id, &content);
            }
            client.expect(MAIL, ACCEPTED);
            client.expect(RCPT, "250 2.1.5 Recipient OK");
            let content = content(300 << 10);
            client.send([format!("BDAT {} LAST\r\n", content.len()).as_bytes(), &content, b"NOOP\r\n"].concat());
            let id = queue_id(&client.reply());
            assert_eq!(client.reply(), "250 2.0.0 OK");
            assert_stored(&site.gateway.spool, &id, &content);
            client.quit();
        }
    }
    site.gateway.stop();
}

#[test]
fn keys_may_change_in_mid_message() {
    let site = Site::new(&[]);
    let mut client = site.session(true, &ClientTls::of(&[&TLS13]));
    begin_data(&mut client);
    let content = content(100 << 10);
    for piece in stuffed(&content).chunks(10_000) {
        client.tls_mut().refresh_traffic_keys().expect("TLS 1.3");
        client.send(piece);
    }
    let id = queue_id(&client.reply());
    assert_stored(&site.gateway.spool, &id, &content);
    client.quit();
}

/// Somebody between client and server who changes what is sent ends the session, and nothing else.
#[test]
fn a_record_that_was_changed_ends_the_session() {
    let site = Site::new(&[]);
    for version in [&TLS12, &TLS13] {
        let mut client = site.session(false, &ClientTls::of(&[version]));
        begin_data(&mut client);
        client.send("half of a message\r\n");
        client.stream.write_all(&[&[0x17, 3, 3, 0, 32][..], &[0; 32]].concat()).expect("a server that reads");
        client.try_line().expect_err("an alert, or a reset");
    }
    site.gateway.until_empty();
    assert_eq!(list(&site.gateway.spool), []);
    site.session(false, &ClientTls::default()).quit();
    site.gateway.stop();
}

#[test]
fn a_handshake_octet_by_octet() {
    let site = Site::new(&["--shards=1"]);
    for version in [&TLS12, &TLS13] {
        let mut client = Client::connect(site.implicit(), None);
        client.secure_by_octets(&ClientTls::of(&[version]));
        client.hello();
        client.quit();
    }
    site.assert_handshakes(2.0, 0.0);
}

/// D2: each of a record's octets is input, though none of them is a command before the last.
#[test]
fn a_slow_record_is_no_silence() {
    let site = Site::new(&["--inactivity-timeout=4s"]);
    let mut client = site.session(true, &ClientTls::default());
    client.tls_mut().writer().write_all(b"NOOP\r\n").expect("memory");
    let mut record = Vec::new();
    client.tls_mut().write_tls(&mut record).expect("memory");
    for octet in record {
        client.stream.write_all(&[octet]).expect("a server that reads");
        // Six seconds in all.
        sleep(Duration::from_millis(220));
    }
    assert_eq!(client.reply(), "250 2.0.0 OK");
    client.quit();
}

/// E17: what is pipelined waits once, in however many records it comes. Once for each read, it would
/// outlast D1.
#[test]
fn a_pipelined_group_of_many_records_waits_once() {
    const COMMANDS: usize = 2000;
    let site = Site::new(&["--tarpit=2s", "--connection-timeout=20s", "--max-protocol-errors=0", "--shards=1"]);
    let mut client = site.session(true, &ClientTls::default());
    let mut records = Vec::new();
    for _ in 0..COMMANDS {
        client.tls_mut().writer().write_all(b"BOGUS\r\n").expect("memory");
        client.tls_mut().write_tls(&mut records).expect("memory");
    }
    client.stream.write_all(&records).expect("a server that reads");
    for number in 0..COMMANDS {
        assert_eq!(client.reply(), "500 5.3.3 Unrecognized command", "the reply {number}");
    }
    client.quit();
}

/// Nothing is lost with a handshake: the process ends at once, whatever a drain may take, and though the
/// end had come before the handshake began.
#[test]
fn a_drain_waits_for_no_handshake() {
    for (tarpit, drain) in [("0", "1h"), ("3s", "100ms")] {
        let options = [format!("--tarpit={tarpit}"), format!("--drain-timeout={drain}")];
        let mut site = Site::new(&options.each_ref().map(String::as_str));
        let _silent = Client::connect(site.implicit(), None);
        let mut client = site.gateway.session();
        if tarpit == "0" {
            client.expect("STARTTLS", STARTTLS_READY);
        } else {
            // The end comes while the replies are held back.
            client.send("BOGUS\r\nSTARTTLS\r\n");
            site.gateway.until_connections(2.0);
        }
        site.gateway.signal(Signal::TERM);
        assert_eq!(site.gateway.wait().0, Some(0));
    }
}

/// An alert must not be lost to the reset that unread input would cause.
#[test]
fn what_is_no_handshake_ends_in_order() {
    let site = Site::new(&[]);
    for is_implicit in [false, true] {
        let mut client = if is_implicit { Client::connect(site.implicit(), None) } else { site.gateway.session() };
        if !is_implicit {
            client.expect("STARTTLS", STARTTLS_READY);
        }
        client.stream.write_all(&[b'x'; 9000]).expect("a server that reads");
        client.stream.shutdown(std::net::Shutdown::Write).expect("a connection");
        let mut said = Vec::new();
        client.stream.read_to_end(&mut said).expect("an end in order");
        assert_eq!(said.first(), Some(&ALERT), "{}", said.escape_ascii());
    }
    site.assert_handshakes(0.0, 2.0);
}

#[test]
fn a_record_for_every_octet() {
    let site = Site::new(&[]);
    let mut client = site.session(true, &ClientTls::default());
    for command in [MAIL, RCPT, "DATA"] {
        for octet in format!("{command}\r\n").bytes() {
            client.send([octet]);
        }
        assert!(matches!(client.reply().as_bytes().first(), Some(b'2' | b'3')));
    }
    let content = content(3000);
    for octet in stuffed(&content) {
        client.send([octet]);
    }
    let id = queue_id(&client.reply());
    assert_stored(&site.gateway.spool, &id, &content);
    client.quit();
}

#[test]
fn a_client_that_reads_late_gets_every_reply() {
    const COUNT: usize = 5000;
    let site = Site::new(&["--shards=1"]);
    let mut client = site.session(true, &ClientTls::default());
    let mut other = site.session(false, &ClientTls::default());
    SockRef::from(&client.stream).set_recv_buffer_size(4096).expect("a small buffer");
    client.send("HELP\r\n".repeat(COUNT));
    client.send("FOO\r\n");
    // Whether it is late by then makes no difference to what is right.
    sleep(Duration::from_secs(1));
    other.expect("NOOP", "250 2.0.0 OK");
    for _ in 0..COUNT {
        assert!(client.reply().starts_with("214 2.0.0 "));
    }
    assert_eq!(client.reply(), "500 5.3.3 Unrecognized command");
    client.quit();
    other.quit();
}

#[test]
fn a_drain_says_goodbye_under_tls() {
    let site = Site::new(&["--drain-timeout=1h"]);
    let mut idle: Vec<Client> =
        [false, true, false, true].into_iter().map(|way| site.session(way, &ClientTls::default())).collect();
    let mut sending = site.session(false, &ClientTls::default());
    begin_data(&mut sending);
    sending.send("half of a message\r\n");
    let mut gateway = site.gateway;
    gateway.signal(Signal::TERM);
    for client in &mut idle {
        assert_eq!(client.reply(), SHUTDOWN);
        client.assert_ended();
    }
    sending.send("and the rest\r\n.\r\n");
    let id = queue_id(&sending.reply());
    assert_eq!(sending.reply(), SHUTDOWN);
    sending.assert_ended();
    assert_eq!(gateway.wait(), (Some(0), String::new()));
    assert_stored(&gateway.spool, &id, b"half of a message\r\nand the rest\r\n");
}
