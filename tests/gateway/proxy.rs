//! Connections that proxies bring (`proxy=`): the PROXY protocol's header, and the client that it tells
//! of in all that is decided and recorded by address.

use crate::harness::tls_client::{ClientTls, Kind, Pair};
use crate::harness::{
    BANNER, Client, End, Gateway, NOT_CONFIGURED, PER_SOURCE, RATE, SHUTDOWN, Scratch, TOTAL, cat, start, until,
};
use rustix::process::Signal;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The proxies of every gateway here.
const PROXIES: &str = "proxy=127.20.0.0/24+::1";
const ONE: &str = "127.20.0.1";
const OTHER: &str = "127.20.0.2";

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const EHLO: &[u8] = b"EHLO client.test.example\r\n";

/// A header of version 1.
fn line(client: &str) -> Vec<u8> {
    let (family, server) = if client.contains(':') { ("TCP6", "2001:db8::25") } else { ("TCP4", "192.0.2.25") };
    format!("PROXY {family} {client} {server} 56324 25\r\n").into_bytes()
}

/// A header of version 2, with a TLV.
fn binary(client: &str) -> Vec<u8> {
    let (family, mut block) = match client.parse().expect("an address") {
        IpAddr::V4(client) => (0x11, [client.octets(), [192, 0, 2, 25]].concat()),
        IpAddr::V6(client) => (0x21, [client.octets(), [25; 16]].concat()),
    };
    block.extend([0xdc, 4, 0, 25]);
    block.extend([0xea, 0, 3, 1, 2, 3]);
    [SIGNATURE, &[0x21, family, 0, block.len() as u8], &block].concat()
}

/// LOCAL, version 2.
fn local() -> Vec<u8> {
    [SIGNATURE, &[0x20, 0, 0, 0]].concat()
}

fn from(to: SocketAddr, source: &str) -> Client {
    Client::connect(to, Some(source.parse().expect("an address")))
}

/// A connection that a proxy brings.
fn brought(gateway: &Gateway, proxy: &str, header: &[u8]) -> Client {
    let mut client = gateway.connect_from(proxy);
    client.send(header);
    client
}

fn headers(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric_with("gatepost_proxy_headers_total", "result", result)
}

fn refused(gateway: &Gateway, reason: &str) -> f64 {
    gateway.refusals("gatepost_connections_refused_total", reason)
}

#[track_caller]
fn assert_refused(mut client: Client, text: &str) {
    assert_eq!(client.reply(), text);
    client.assert_ended();
}

#[track_caller]
fn assert_served(mut client: Client, as_whom: &str) {
    assert_eq!(client.hello(), format!("250-mx.test.example Hello [{as_whom}]"));
    client.quit();
}

fn site(options: &[&str]) -> (Scratch, Gateway) {
    let scratch = Scratch::new();
    let listen = format!("--listen=127.0.0.1:0,{PROXIES}");
    let gateway = start(&scratch.join("spool"), &[&[listen.as_str()], options].concat());
    (scratch, gateway)
}

/// Each header in one piece, by octets, and in one piece with what the client says: who it tells of is
/// in the replies, and in the Received field of the mail that came.
#[test]
fn the_header_tells_whose_connection_it_is() {
    let (_scratch, gateway) = site(&[]);
    let unspecified = [SIGNATURE, &[0x21, 0, 0, 2, 1, 2]].concat();
    let unix = [SIGNATURE, &[0x21, 0x31, 0, 216], &[b'/'; 216][..]].concat();
    for (header, client) in [
        (line("192.0.2.7"), "192.0.2.7"),
        (line("2001:db8::7"), "2001:db8::7"),
        (line("::ffff:192.0.2.7"), "192.0.2.7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), ONE),
        (b"PROXY UNKNOWN 192.0.2.7 192.0.2.25 1 25\r\n".to_vec(), ONE),
        (binary("192.0.2.7"), "192.0.2.7"),
        (binary("2001:db8::7"), "2001:db8::7"),
        (binary("::ffff:192.0.2.7"), "192.0.2.7"),
        (local(), ONE),
        (unspecified, ONE),
        (unix, ONE),
    ] {
        let hello = format!("250-mx.test.example Hello [{client}]");
        let mut session = brought(&gateway, ONE, &header);
        assert_eq!(session.hello(), hello);
        let id = session.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
        let (received, _) = cat(&gateway.spool, &id);
        let literal = if client.contains(':') { format!("[IPv6:{client}]") } else { format!("[{client}]") };
        assert!(received.starts_with(&format!("Received: from client.test.example ({literal})")), "{received}");
        session.quit();

        let mut by_octets = gateway.connect_from(ONE);
        header.iter().for_each(|octet| by_octets.send([*octet]));
        assert_eq!(by_octets.hello(), hello);

        let mut at_once = brought(&gateway, ONE, &[&header, EHLO, b"QUIT\r\n"].concat());
        assert_eq!(at_once.reply(), BANNER);
        assert!(at_once.reply().starts_with(&hello));
        assert_eq!(at_once.reply(), "221 2.0.0 Service closing transmission channel");
        at_once.assert_ended();
    }
    assert_eq!((headers(&gateway, "accepted"), headers(&gateway, "local")), (18.0, 15.0));
    assert_eq!(gateway.metric("gatepost_connections_accepted_total"), 33.0);
    gateway.until_empty();
    gateway.stop();
}

#[test]
fn a_proxy_may_be_one_of_ipv6() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[&format!("--listen=[::1]:0,{PROXIES}")]);
    for (header, client) in [(line("192.0.2.7"), "192.0.2.7"), (binary("2001:db8::7"), "2001:db8::7"), (local(), "::1")]
    {
        assert_served(brought(&gateway, "::1", &header), client);
    }
    gateway.stop();
}

#[test]
fn tls_begins_right_behind_the_header() {
    let scratch = Scratch::new();
    let pair = Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]);
    let [certificate, key] = pair.options();
    let implicit = format!("--listen=127.0.0.1:0,tls=implicit,{PROXIES}");
    let starttls = format!("--listen=127.0.0.1:0,{PROXIES}");
    let options = [&implicit, &starttls, &certificate, &key, "--max-connections=3", "--block=192.0.2.9"];
    let gateway = start(&scratch.join("spool"), &options.map(|option: &str| option));
    let tls = ClientTls::default();
    for header in [line("192.0.2.7"), binary("192.0.2.7")] {
        let mut client = gateway.connect_from(ONE);
        client.secure_behind(&header, &tls);
        assert_served(client, "192.0.2.7");
        let mut client = gateway.connect_from(ONE);
        header.iter().for_each(|octet| client.send([*octet]));
        client.secure_by_octets(&tls);
        assert_served(client, "192.0.2.7");
        let mut client = from(gateway.listening[1], ONE);
        client.send(&header);
        client.hello();
        client.starttls(&tls);
        client.quit();
    }
    // Whom the header tells of is refused under TLS.
    let mut blocked = gateway.connect_from(ONE);
    blocked.secure_behind(&line("192.0.2.9"), &tls);
    assert!(blocked.reply().starts_with("550 5.7.1 External client with IP address 192.0.2.9 "));
    blocked.assert_ended();
    // Who is refused before it is told gets no words that no TLS client would understand.
    gateway.until_empty();
    let silent: Vec<Client> = (0..3).map(|_| gateway.connect_from(ONE)).collect();
    gateway.until_connections(3.0);
    let mut one_too_many = brought(&gateway, ONE, &line("192.0.2.7"));
    one_too_many.assert_ended();
    drop(silent);
    gateway.until_empty();
    let mut none = brought(&gateway, ONE, b"\x16\x03\x01\x02\x00\x01");
    none.assert_ended();
    assert_eq!((refused(&gateway, "connections_total"), refused(&gateway, "proxy_header")), (1.0, 1.0));
    gateway.until_empty();
    gateway.stop();
}

#[test]
fn limits_count_the_client_through_all_proxies() {
    let (_scratch, gateway) = site(&["--max-connections-per-source=4", "--message-rate=3", "--shards=2"]);
    let bring = |number: usize, client: &str| {
        let header = if number.is_multiple_of(2) { line(client) } else { binary(client) };
        brought(&gateway, if number % 4 < 2 { ONE } else { OTHER }, &header)
    };
    let mut clients: Vec<Client> = (0..4).map(|number| bring(number, "192.0.2.7")).collect();
    for client in &mut clients {
        client.hello();
    }
    for number in 0..4 {
        assert_refused(bring(number, "192.0.2.7"), PER_SOURCE);
        // A proxy brings as many as it has clients, and is no source.
        assert_served(bring(number, &format!("192.0.2.{}", 10 + number)), &format!("192.0.2.{}", 10 + number));
    }
    assert_eq!(refused(&gateway, "connections_per_source"), 4.0);
    let begun = Instant::now();
    for client in &mut clients[..3] {
        client.expect("MAIL FROM:<a@b.example>", "250 2.1.0 Sender OK");
    }
    if begun.elapsed() < Duration::from_secs(50) {
        clients[3].expect("MAIL FROM:<a@b.example>", RATE);
        assert!(begun.elapsed() < Duration::from_secs(60), "the machine is too slow to tell");
    }
    let mut other = bring(0, "192.0.2.8");
    other.hello();
    other.expect("MAIL FROM:<a@b.example>", "250 2.1.0 Sender OK");
    drop((clients, other));
    gateway.until_empty();
    gateway.stop();
}

#[test]
fn lists_name_the_client() {
    let allowed = "allow=192.0.2.0/24+198.51.100.0/24";
    let scratch = Scratch::new();
    let open = format!("--listen=127.0.0.1:0,{PROXIES}");
    let closed = format!("--listen=127.0.0.1:0,{PROXIES},{allowed}");
    // The proxy's own address is on a list, too, which concerns who comes from there itself.
    let options = [&open, &closed, "--block=192.0.2.7", "--block=127.20.0.0/24", "--relay-from=192.0.2.8"];
    let gateway = start(&scratch.join("spool"), &options.map(|option: &str| option));
    let blocked = |client: &str| {
        format!(
            "550 5.7.1 External client with IP address {client} does not have permissions to submit to this server. Visit http://support.microsoft.com/kb/928123 for more information"
        )
    };
    assert_refused(brought(&gateway, ONE, &line("192.0.2.7")), &blocked("192.0.2.7"));
    assert_refused(brought(&gateway, ONE, &binary("::ffff:192.0.2.7")), &blocked("192.0.2.7"));
    assert_refused(brought(&gateway, ONE, &local()), &blocked(ONE));
    assert_served(brought(&gateway, ONE, &line("203.0.113.1")), "203.0.113.1");
    gateway.tell(&["block", "add", "198.51.100.0/24", "--for", "1h"]);
    let for_a_time =
        "550 5.7.1 External client with IP address 198.51.100.9 does not have permissions to submit to this server";
    assert_refused(brought(&gateway, OTHER, &binary("198.51.100.9")), for_a_time);
    for (client, is_allowed) in [("192.0.2.8", true), ("203.0.113.1", false)] {
        let mut client_there = from(gateway.listening[1], ONE);
        client_there.send(line(client));
        if is_allowed {
            client_there.hello();
            client_there.expect("MAIL FROM:<a@b.example>", "250 2.1.0 Sender OK");
            client_there.expect("RCPT TO:<c@foreign.example>", "250 2.1.5 Recipient OK");
        } else {
            assert_refused(client_there, NOT_CONFIGURED);
        }
    }
    assert_eq!((refused(&gateway, "blocked"), refused(&gateway, "blocked_for_a_time")), (3.0, 1.0));
    assert_eq!(refused(&gateway, "binding_not_configured"), 1.0);
    gateway.stop();
}

#[test]
fn the_tarpit_marks_the_client() {
    let interval = Duration::from_secs(1);
    let (_scratch, gateway) = site(&["--tarpit=1s"]);
    let mut client = brought(&gateway, ONE, &line("192.0.2.7"));
    client.hello();
    client.expect("WHAT", "500 5.3.3 Unrecognized command");
    let begun = Instant::now();
    let mut returned = brought(&gateway, OTHER, &binary("192.0.2.7"));
    returned.hello();
    assert!(begun.elapsed() >= interval, "{:?}", begun.elapsed());
    gateway.stop();
}

#[test]
fn a_header_from_elsewhere_ends_the_session() {
    let scratch = Scratch::new();
    let options = [&format!("--listen=127.0.0.1:0,{PROXIES}"), "--listen=127.0.0.1:0"];
    let gateway = start(&scratch.join("spool"), &options.map(|option: &str| option));
    let [proxied, plain] = gateway.listening[..] else { panic!("{:?}", gateway.listening) };
    for (to, source) in [(proxied, "127.20.1.1"), (plain, "127.20.1.1"), (plain, ONE)] {
        assert_served(from(to, source), source);
        for header in [line("192.0.2.7"), binary("192.0.2.7"), local(), b"PROXY UNKNOWN\r\n".to_vec()] {
            let mut client = from(to, source);
            client.send([&header, EHLO].concat());
            assert_eq!(client.reply(), BANNER);
            assert_refused(client, NOT_CONFIGURED);
        }
    }
    // Nor may who comes through a proxy say that it is another.
    let mut client = from(proxied, ONE);
    client.send([line("192.0.2.7"), line("192.0.2.8")].concat());
    assert_eq!(client.reply(), BANNER);
    assert_refused(client, NOT_CONFIGURED);
    assert_eq!(headers(&gateway, "not_allowed"), 13.0);
    assert_eq!(gateway.refusals("gatepost_refusals_total", "proxy_not_allowed"), 13.0);
    assert_eq!((headers(&gateway, "accepted"), headers(&gateway, "malformed")), (1.0, 0.0));
    gateway.until_empty();
    gateway.stop();
}

#[test]
fn without_a_header_a_proxy_is_not_served() {
    let (_scratch, gateway) = site(&[]);
    let mut wrong_checksum = binary("192.0.2.7");
    wrong_checksum.splice(28.., [3, 0, 4, 1, 2, 3, 4]);
    wrong_checksum[15] += 1;
    let beginnings = [
        EHLO,
        b"\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.25 1 025\r\nEHLO x\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.25 1 25\nEHLO x\r\n",
        &[SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat(),
        &wrong_checksum,
        &[b'x'; 100_000],
    ];
    for (number, beginning) in beginnings.iter().enumerate() {
        let client = brought(&gateway, ONE, beginning);
        if beginning.len() < 3 {
            // It could be a header, but for its end.
            client.half_close();
        }
        assert_refused(client, NOT_CONFIGURED);
        assert_eq!(
            headers(&gateway, "malformed"),
            (number + 1) as f64,
            "{}",
            beginning[..20.min(beginning.len())].escape_ascii()
        );
    }
    // One that was cut off.
    for header in [line("192.0.2.7"), binary("192.0.2.7")] {
        let client = brought(&gateway, ONE, &header[..header.len() - 1]);
        client.half_close();
        assert_refused(client, NOT_CONFIGURED);
    }
    let wrong = beginnings.len() as f64 + 2.0;
    assert_eq!((headers(&gateway, "malformed"), refused(&gateway, "proxy_header")), (wrong, wrong));
    gateway.until_empty();
    gateway.stop();
}

#[test]
fn a_header_has_its_time() {
    let (_scratch, gateway) = site(&[]);
    let begun = Instant::now();
    let mut silent = gateway.connect_from(ONE);
    let mut slow = gateway.connect_from(ONE);
    // Octets that come meanwhile give it no more of it.
    let header = line("192.0.2.7");
    for octet in &header[..20] {
        slow.send([*octet]);
        std::thread::sleep(Duration::from_millis(100));
    }
    for client in [&mut silent, &mut slow] {
        assert_eq!(client.reply(), NOT_CONFIGURED);
        client.assert_ended();
    }
    assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!((headers(&gateway, "timeout"), refused(&gateway, "proxy_header")), (2.0, 2.0));
    gateway.until_empty();
    gateway.stop();
}

#[test]
fn a_proxy_may_look_whether_the_server_is_there() {
    let (_scratch, gateway) = site(&[]);
    gateway.connect_from(ONE).reset();
    drop(gateway.connect_from(ONE));
    let mut half = gateway.connect_from(ONE);
    half.half_close();
    half.assert_ended();
    drop(brought(&gateway, ONE, &local()));
    brought(&gateway, ONE, &line(ONE)).reset();
    gateway.until_empty();
    // A connection that was reset before it was accepted was none.
    until("they are counted", || headers(&gateway, "closed") >= 2.0);
    assert_eq!(gateway.metric("gatepost_connections_refused_total"), 0.0);
    assert_eq!(gateway.metric("gatepost_refusals_total"), 0.0);
    assert_eq!((headers(&gateway, "malformed"), headers(&gateway, "timeout")), (0.0, 0.0));
    gateway.stop();
}

#[test]
fn who_says_nothing_is_counted_in_the_total() {
    let scratch = Scratch::new();
    let options = [&format!("--listen=127.0.0.1:0,{PROXIES}"), "--listen=127.0.0.1:0", "--max-connections=3"];
    let gateway = start(&scratch.join("spool"), &options.map(|option: &str| option));
    let mut silent: Vec<Client> = (0..3).map(|_| gateway.connect_from(ONE)).collect();
    gateway.until_connections(3.0);
    // The header is not waited for.
    assert_refused(gateway.connect_from(ONE), TOTAL);
    assert_refused(brought(&gateway, OTHER, &line("192.0.2.7")), TOTAL);
    assert_refused(from(gateway.listening[1], "127.20.1.1"), TOTAL);
    assert_eq!(gateway.metric("gatepost_connections"), 3.0);
    drop(silent.pop());
    gateway.until_connections(2.0);
    let mut served = brought(&gateway, ONE, &line("192.0.2.7"));
    served.hello();
    assert_refused(from(gateway.listening[1], "127.20.1.1"), TOTAL);
    // Who is refused by the client's address gives the place back.
    drop((silent, served));
    gateway.until_empty();
    gateway.stop();
}

#[test]
fn refused_clients_keep_no_place() {
    let (_scratch, gateway) = site(&["--max-connections=1", "--max-connections-per-source=1", "--block=192.0.2.7"]);
    for round in 0..50 {
        let header = if round % 2 == 0 { line("192.0.2.7") } else { binary("192.0.2.7") };
        let mut blocked = brought(&gateway, ONE, &header);
        assert!(blocked.reply().starts_with("550 5.7.1 "));
        let mut bad = brought(&gateway, ONE, b"EHLO x\r\n");
        assert_eq!(bad.reply(), NOT_CONFIGURED);
        let mut served = brought(&gateway, ONE, &line("192.0.2.8"));
        served.hello();
        served.quit();
    }
    assert_eq!(refused(&gateway, "connections_total"), 0.0);
    gateway.until_empty();
    gateway.stop();
}

#[test]
fn a_drain_waits_for_no_header() {
    let scratch = Scratch::new();
    let pair = Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]);
    let [certificate, key] = pair.options();
    let plain = format!("--listen=127.0.0.1:0,{PROXIES}");
    let implicit = format!("--listen=127.0.0.1:0,tls=implicit,{PROXIES}");
    let options = [&plain, &implicit, &certificate, &key, "--drain-timeout=1h"];
    let mut gateway = start(&scratch.join("spool"), &options.map(|option: &str| option));
    let silent = gateway.connect_from(ONE);
    let begun = brought(&gateway, ONE, b"PROXY TCP4 ");
    let mut under_tls = from(gateway.listening[1], ONE);
    gateway.until_connections(3.0);
    gateway.signal(Signal::TERM);
    for client in [silent, begun] {
        assert_refused(client, SHUTDOWN);
    }
    assert_eq!(under_tls.try_line(), Err(End::Fin));
    assert_eq!(gateway.wait(), (Some(0), String::new()));
}
