//! DNS block lists (E15), asked of a name server that these tests are.
//!
//! The gateway waits three seconds for an answer, and lets the client pass when none comes: where a test
//! needs the answer it asks again until it was in time.

use crate::harness::{Client, Gateway, SHUTDOWN, Scratch, Setup, start, until};
use rustix::process::Signal;
use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const MAIL: &str = "MAIL FROM:<a@b.example>";
const RCPT: &str = "RCPT TO:<rcpt@test.example>";
const POSTMASTER: &str = "RCPT TO:<Postmaster>";
const SENDER_OK: &str = "250 2.1.0 Sender OK";
const RECIPIENT_OK: &str = "250 2.1.5 Recipient OK";
const LISTED: &str = "550 5.7.1 Recipient not authorized, your IP has been found on a block list";
const UNABLE: &str = "550 5.7.1 Unable to relay";

/// What is said of a name.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Address([u8; 4]),
    NoSuchName,
    ServerFailure,
    Nothing,
}

/// A name server that knows what it was told.
struct NameServer {
    address: SocketAddr,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    /// One that knows no name. Its thread ends with the tests.
    fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = socket.local_addr().expect("an address");
        let server = NameServer { address, answers: Arc::default(), asked: Arc::default() };
        let (answers, asked) = (server.answers.clone(), server.asked.clone());
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok((octets, client)) = socket.recv_from(&mut buffer) {
                let (name, question) = question(&buffer[12..octets]);
                let answer = answers.lock().expect("no panic").get(&name).copied().unwrap_or(Answer::NoSuchName);
                asked.lock().expect("no panic").push(name);
                if let Some(response) = response(&buffer[..2], question, answer) {
                    socket.send_to(&response, client).expect("loopback");
                }
            }
        });
        server
    }

    fn say(&self, name: &str, answer: Answer) {
        self.answers.lock().expect("no panic").insert(name.to_owned(), answer);
    }

    #[track_caller]
    fn until_asked(&self, name: &str) {
        until("the name server is asked", || self.asked.lock().expect("no panic").iter().any(|other| other == name));
    }

    fn option(&self) -> String {
        format!("--resolver={}", self.address)
    }
}

/// The name that is asked for, and the whole question (RFC 1035 section 4.1.2).
fn question(octets: &[u8]) -> (String, &[u8]) {
    let (mut name, mut at) = (String::new(), 0);
    while octets[at] > 0 {
        let label = &octets[at + 1..at + 1 + usize::from(octets[at])];
        name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
        name.push('.');
        at += 1 + label.len();
    }
    (name, &octets[..at + 5])
}

/// RFC 1035 section 4.1.
fn response(id: &[u8], question: &[u8], answer: Answer) -> Option<Vec<u8>> {
    let (code, addresses) = match answer {
        Answer::Address(address) => (0, Some(address)),
        Answer::NoSuchName => (3, None),
        Answer::ServerFailure => (2, None),
        Answer::Nothing => return None,
    };
    let mut response = id.to_vec();
    response.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(addresses.is_some()), 0, 0, 0, 0]);
    response.extend(question);
    if let Some(address) = addresses {
        // The name of the question, A, IN, an hour, four octets.
        response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4]);
        response.extend(address);
    }
    Some(response)
}

fn serve(scratch: &Scratch, server: &NameServer, options: &[&str]) -> Gateway {
    let resolver = server.option();
    let options: Vec<&str> = ["--dnsbl=bl.example", &resolver].into_iter().chain(options.iter().copied()).collect();
    start(&scratch.join("spool"), &options)
}

fn lookups(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric_with("gatepost_dnsbl_lookups_total", "result", result)
}

fn all_lookups(gateway: &Gateway) -> f64 {
    gateway.metric("gatepost_dnsbl_lookups_total")
}

/// A session after MAIL.
fn in_mail(gateway: &Gateway, source: &str) -> Client {
    let mut client = gateway.session_from(source);
    client.expect(MAIL, SENDER_OK);
    client
}

/// Comes from `source` until lookups of its sessions had this result.
#[track_caller]
fn until_looked_up(gateway: &Gateway, source: &str, result: &str) {
    until(result, || {
        let before = lookups(gateway, result);
        let reply = in_mail(gateway, source).command(RCPT);
        let is_so = lookups(gateway, result) > before;
        assert_eq!(reply, if is_so && result == "listed" { LISTED } else { RECIPIENT_OK });
        is_so
    });
}

#[test]
fn a_listed_client() {
    let (scratch, server) = (Scratch::new(), NameServer::start());
    server.say("1.15.8.127.bl.example.", Answer::Address([127, 0, 0, 2]));
    let log = scratch.join("log");
    let gateway = serve(&scratch, &server, &[&format!("--log-file={}", log.display())]);
    until_looked_up(&gateway, "127.8.15.1", "listed");
    // The answer is remembered, and a session looks up once.
    server.say("1.15.8.127.bl.example.", Answer::Nothing);
    let before = all_lookups(&gateway);
    let mut client = in_mail(&gateway, "127.8.15.1");
    client.expect(POSTMASTER, RECIPIENT_OK);
    assert_eq!(all_lookups(&gateway), before, "Postmaster is for all");
    client.expect(RCPT, LISTED);
    client.expect("RCPT TO:<Postmaster@test.example>", RECIPIENT_OK);
    client.expect("RCPT TO:<rcpt@foreign.example>", LISTED);
    client.expect("RCPT TO:<Postmaster@foreign.example>", LISTED);
    assert!(client.data(b"why?\r\n").starts_with("250 2.6.0 "));
    client.expect(MAIL, SENDER_OK);
    client.expect(RCPT, LISTED);
    client.quit();
    assert_eq!(all_lookups(&gateway), before + 1.0);
    assert!(gateway.refusals("gatepost_refusals_total", "dnsbl") >= 5.0);
    assert!(gateway.metric_with("gatepost_limit_hits_total", "limit", "dnsbl") >= 5.0);
    let record = format!(" to=rcpt@foreign.example reply=\"{LISTED}\" reason=dnsbl\n");
    until("a record", || fs::read_to_string(&log).is_ok_and(|text| text.contains(&record)));
    gateway.stop();
}

#[test]
fn pipelined_recipients() {
    let (scratch, server) = (Scratch::new(), NameServer::start());
    server.say("1.15.8.127.bl.example.", Answer::Address([127, 0, 0, 2]));
    let gateway = serve(&scratch, &server, &[]);
    until_looked_up(&gateway, "127.8.15.1", "listed");
    let before = all_lookups(&gateway);
    for (source, expected) in [("127.8.15.1", LISTED), ("127.8.15.2", RECIPIENT_OK)] {
        let mut client = gateway.session_from(source);
        let group = [MAIL, RCPT, POSTMASTER, RCPT, "DATA", "x\r\n.", "NOOP", MAIL, RCPT, "QUIT"];
        client.send(format!("{}\r\n", group.join("\r\n")));
        for reply in [SENDER_OK, expected, RECIPIENT_OK, expected] {
            assert_eq!(client.reply(), reply, "{source}");
        }
        assert!(client.reply().starts_with("354 "));
        assert!(client.reply().starts_with("250 2.6.0 "));
        for reply in ["250 2.0.0 OK", SENDER_OK, expected] {
            assert_eq!(client.reply(), reply, "{source}");
        }
        assert!(client.reply().starts_with("221 "));
        client.assert_ended();
    }
    assert_eq!(all_lookups(&gateway), before + 2.0);
    gateway.stop();
}

#[test]
fn who_is_not_looked_up() {
    let (scratch, server) = (Scratch::new(), NameServer::start());
    server.say("1.15.8.127.bl.example.", Answer::Address([127, 0, 0, 2]));
    let listen = ["--listen=127.0.0.1:0", "--listen=127.0.0.1:0,role=relay", "--relay-from=127.8.15.1"];
    let gateway = serve(&scratch, &server, &listen);
    let mut trusted = in_mail(&gateway, "127.8.15.1");
    trusted.expect(RCPT, RECIPIENT_OK);
    trusted.expect("RCPT TO:<rcpt@foreign.example>", RECIPIENT_OK);
    let mut of_relay = Client::connect(gateway.listening[1], Some(Ipv4Addr::new(127, 8, 15, 1).into()));
    of_relay.hello();
    of_relay.expect(MAIL, SENDER_OK);
    of_relay.expect(RCPT, RECIPIENT_OK);
    [trusted, of_relay].into_iter().for_each(Client::quit);
    assert_eq!(all_lookups(&gateway), 0.0);
    assert_eq!(*server.asked.lock().expect("no panic"), [""; 0]);
    gateway.stop();
}

#[test]
fn without_a_list_nobody_is_asked() {
    let (scratch, server) = (Scratch::new(), NameServer::start());
    let gateway = start(&scratch.join("spool"), &[&server.option()]);
    in_mail(&gateway, "127.8.15.1").expect(RCPT, RECIPIENT_OK);
    assert_eq!(all_lookups(&gateway), 0.0);
    assert_eq!(*server.asked.lock().expect("no panic"), [""; 0]);
    gateway.stop();
}

#[test]
fn what_answers_say() {
    let (scratch, server) = (Scratch::new(), NameServer::start());
    let table = [
        ("127.8.15.1", "1.15.8.127", Answer::NoSuchName, "clean"),
        ("127.8.15.2", "2.15.8.127", Answer::Address([192, 0, 2, 1]), "clean"),
        ("127.8.15.3", "3.15.8.127", Answer::ServerFailure, "failed"),
        ("127.8.15.4", "4.15.8.127", Answer::Address([127, 255, 255, 254]), "failed"),
        ("127.8.15.5", "5.15.8.127", Answer::Nothing, "failed"),
        ("127.8.15.6", "6.15.8.127", Answer::Address([127, 1, 2, 3]), "listed"),
    ];
    let gateway = serve(&scratch, &server, &[]);
    for (source, name, answer, result) in table {
        server.say(&format!("{name}.bl.example."), answer);
        until_looked_up(&gateway, source, result);
    }
    // Who is on no list, or cannot be looked up, is refused what everybody is.
    in_mail(&gateway, "127.8.15.3").expect("RCPT TO:<rcpt@foreign.example>", UNABLE);
    gateway.stop();
}

#[test]
fn the_first_hit_of_several_lists_decides() {
    let (scratch, server) = (Scratch::new(), NameServer::start());
    server.say("1.15.8.127.bl.example.", Answer::Nothing);
    server.say("1.15.8.127.second_list.example.", Answer::Address([127, 0, 0, 4]));
    server.say("2.15.8.127.bl.example.", Answer::ServerFailure);
    let gateway = serve(&scratch, &server, &["--dnsbl=second_list.example"]);
    until_looked_up(&gateway, "127.8.15.1", "listed");
    // What one list says does not make up for one that fails.
    until_looked_up(&gateway, "127.8.15.2", "failed");
    gateway.stop();
}

#[test]
fn ipv6() {
    let (scratch, server) = (Scratch::new(), NameServer::start());
    let name = format!("1.{}bl.example.", "0.".repeat(31));
    server.say(&name, Answer::Address([127, 0, 0, 2]));
    let gateway = serve(&scratch, &server, &["--listen=[::1]:0"]);
    until("it is listed", || {
        let mut client = gateway.session();
        client.expect(MAIL, SENDER_OK);
        client.command(RCPT) == LISTED
    });
    server.until_asked(&name);
    gateway.stop();
}

#[test]
fn the_refusal_is_late_and_marks_the_client() {
    const TARPIT: Duration = Duration::from_millis(300);
    let (scratch, server) = (Scratch::new(), NameServer::start());
    server.say("1.15.8.127.bl.example.", Answer::Address([127, 0, 0, 2]));
    let gateway = serve(&scratch, &server, &["--tarpit=300ms"]);
    until_looked_up(&gateway, "127.8.15.1", "listed");
    let waits = |what| gateway.metric_with("gatepost_tarpit_waits_total", "what", what);
    let (replies, banners) = (waits("replies"), waits("banner"));
    let mut client = in_mail(&gateway, "127.8.15.1");
    assert_eq!(waits("banner"), banners + 1.0, "of the refusal before");
    let sent = Instant::now();
    client.expect(RCPT, LISTED);
    assert!(sent.elapsed() >= TARPIT);
    client.expect(POSTMASTER, RECIPIENT_OK);
    client.quit();
    assert_eq!(waits("replies"), replies + 1.0);
    gateway.stop();
}

#[test]
fn a_reload_concerns_new_sessions() {
    let (scratch, server) = (Scratch::new(), NameServer::start());
    server.say("1.15.8.127.bl.example.", Answer::Address([127, 0, 0, 2]));
    let file = scratch.join("gatepost.toml");
    let write = |zones: &str| {
        let options = [
            "hostname = 'mx.test.example'",
            "listen = ['127.0.0.1:0']",
            "metrics-listen = '127.0.0.1:0'",
            "accept-domain = ['test.example']",
            "max-connections = 400",
            "shards = 2",
            "min-free-disk = 0",
            "min-free-memory = 0",
            "tarpit = 0",
            &format!("resolver = ['{}']", server.address),
            &format!("dnsbl = [{zones}]"),
        ];
        fs::write(&file, options.join("\n")).expect("a writable directory");
    };
    write("");
    let gateway = Setup::of_file(&scratch.join("spool"), &file).start();
    let mut old = in_mail(&gateway, "127.8.15.1");
    write("'bl.example'");
    assert!(gateway.tell(&["reload"]).starts_with("dnsbl: "));
    until_looked_up(&gateway, "127.8.15.1", "listed");
    let mut listed = in_mail(&gateway, "127.8.15.1");
    old.expect(RCPT, RECIPIENT_OK);
    write("");
    gateway.tell(&["reload"]);
    in_mail(&gateway, "127.8.15.1").expect(RCPT, RECIPIENT_OK);
    listed.expect(RCPT, LISTED);
    [old, listed].into_iter().for_each(Client::quit);
    gateway.stop();
}

#[test]
fn a_client_that_goes_meanwhile() {
    let (scratch, server) = (Scratch::new(), NameServer::start());
    server.say("1.15.8.127.bl.example.", Answer::Nothing);
    let gateway = serve(&scratch, &server, &[]);
    let mut client = in_mail(&gateway, "127.8.15.1");
    client.send(format!("{RCPT}\r\n"));
    server.until_asked("1.15.8.127.bl.example.");
    client.reset();
    gateway.until_empty();
    assert_eq!(all_lookups(&gateway), 1.0);
    // One that only says no more gets its replies.
    let mut client = in_mail(&gateway, "127.8.15.1");
    client.send(format!("{RCPT}\r\n"));
    client.half_close();
    assert_eq!(client.reply(), RECIPIENT_OK);
    client.assert_ended();
    gateway.stop();
}

#[test]
fn a_drain_meanwhile() {
    for signals in [1, 2] {
        let (scratch, server) = (Scratch::new(), NameServer::start());
        server.say("1.15.8.127.bl.example.", Answer::Nothing);
        let mut gateway = serve(&scratch, &server, &["--drain-timeout=1h"]);
        let mut client = in_mail(&gateway, "127.8.15.1");
        client.send(format!("{RCPT}\r\n"));
        server.until_asked("1.15.8.127.bl.example.");
        gateway.signal(Signal::TERM);
        assert!(gateway.line().starts_with("draining: "));
        if signals == 1 {
            // The transaction may go on.
            assert_eq!(client.reply(), RECIPIENT_OK);
            assert!(client.data(b"x\r\n").starts_with("250 2.6.0 "));
        } else {
            gateway.signal(Signal::TERM);
            assert_eq!(client.reply(), RECIPIENT_OK);
        }
        assert_eq!(client.reply(), SHUTDOWN);
        client.assert_ended();
        assert_eq!(gateway.wait(), (Some(0), String::new()));
    }
}
