//! Block lists: static (E13), and for some time (E14, `gatepost block`); on gateway bindings only; late
//! by revision 4.0 (E17).

use crate::harness::{BANNER, Client, Gateway, NOT_CONFIGURED, Scratch, start, until};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

fn blocked(client: &str) -> String {
    format!(
        "550 5.7.1 External client with IP address {client} does not have permissions to submit to this server. Visit http://support.microsoft.com/kb/928123 for more information"
    )
}

fn blocked_for_a_time(client: &str) -> String {
    format!("550 5.7.1 External client with IP address {client} does not have permissions to submit to this server")
}

#[track_caller]
fn assert_refused(mut client: Client, text: &str) {
    assert_eq!(client.reply(), text);
    client.assert_ended();
}

#[track_caller]
fn assert_served(mut client: Client) {
    client.hello();
    client.quit();
}

fn from(to: SocketAddr, source: &str) -> Client {
    Client::connect(to, Some(source.parse().expect("an address")))
}

fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

fn refused(gateway: &Gateway, reason: &str) -> f64 {
    gateway.refusals("gatepost_connections_refused_total", reason)
}

#[test]
fn always() {
    let scratch = Scratch::new();
    let file = scratch.join("blocked");
    std::fs::write(&file, "# bad neighbours\n127.8.2.0/24\n::1 # all of this machine's\n").expect("a writable file");
    let gateway = start(
        &scratch.join("spool"),
        &[
            "--listen=127.0.0.1:0",
            "--listen=[::1]:0",
            "--listen=[::]:0",
            "--listen=127.0.0.1:0,role=relay",
            "--block=127.8.1.1",
            &format!("--block-file={}", file.display()),
        ],
    );
    let [ipv4, ipv6, both, relay] = gateway.listening[..] else { panic!("{:?}", gateway.listening) };
    let mapped = at(Ipv4Addr::LOCALHOST, both.port());
    for source in ["127.8.1.1", "127.8.2.0", "127.8.2.255"] {
        assert_refused(from(ipv4, source), &blocked(source));
        // An IPv4-mapped client is that IPv4 client, in the reply too.
        assert_refused(from(mapped, source), &blocked(source));
        assert_served(from(relay, source));
    }
    assert_refused(Client::connect(ipv6, None), &blocked("::1"));
    assert_refused(from(at(Ipv6Addr::LOCALHOST, both.port()), "::1"), &blocked("::1"));
    for source in ["127.8.1.0", "127.8.1.2", "127.8.3.0"] {
        assert_served(from(ipv4, source));
        assert_served(from(mapped, source));
    }
    assert_eq!((refused(&gateway, "blocked"), refused(&gateway, "blocked_for_a_time")), (8.0, 0.0));
    gateway.stop();
}

#[test]
fn for_some_time() {
    let scratch = Scratch::new();
    let options = ["--listen=127.0.0.1:0", "--listen=[::]:0", "--listen=127.0.0.1:0,role=relay"];
    let gateway = start(&scratch.join("spool"), &options);
    let [ipv4, both, relay] = gateway.listening[..] else { panic!("{:?}", gateway.listening) };
    let mapped = at(Ipv4Addr::LOCALHOST, both.port());
    assert_eq!(gateway.tell(&["block", "list"]), "");
    let mut before = from(ipv4, "127.8.4.7");
    before.hello();

    // Without host bits, for an hour unless told otherwise.
    assert_eq!(gateway.tell(&["block", "add", "127.8.4.99/24"]), "127.8.4.0/24 is blocked for 1h\n");
    assert_eq!(gateway.tell(&["block", "add", "::1", "--for", "36h"]), "::1/128 is blocked for 36h\n");
    // At once, and on every shard: the kernel chooses one by a hash.
    for _ in 0..30 {
        assert_refused(from(ipv4, "127.8.4.7"), &blocked_for_a_time("127.8.4.7"));
    }
    assert_refused(from(mapped, "127.8.4.255"), &blocked_for_a_time("127.8.4.255"));
    assert_refused(from(at(Ipv6Addr::LOCALHOST, both.port()), "::1"), &blocked_for_a_time("::1"));
    assert_served(from(relay, "127.8.4.7"));
    assert_served(from(ipv4, "127.8.5.0"));
    assert_eq!((refused(&gateway, "blocked"), refused(&gateway, "blocked_for_a_time")), (0.0, 32.0));
    // A session that is open goes on.
    before.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    before.quit();

    // The IPv4-mapped form of a range is that range.
    let mapped_range = "::ffff:127.8.4.0/120";
    assert_eq!(gateway.tell(&["block", "remove", mapped_range]), "127.8.4.0/24 is no longer blocked\n");
    assert_served(from(ipv4, "127.8.4.7"));
    let ended = gateway.command(&["block", "remove", "127.8.4.0/24"]);
    let message = "gatepost: 127.8.4.0/24 is not on the list; gatepost block list shows what is\n";
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), message));
    gateway.stop();
}

#[test]
fn a_block_ends_by_itself() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    gateway.tell(&["block", "add", "127.8.6.1"]);
    gateway.tell(&["block", "add", "127.8.6.2"]);
    assert_refused(gateway.connect_from("127.8.6.1"), &blocked_for_a_time("127.8.6.1"));
    // Added again, it has the new time, shorter as it is.
    gateway.tell(&["block", "add", "127.8.6.1", "--for=200ms"]);
    until("the block ends", || gateway.connect_from("127.8.6.1").reply() == BANNER);
    assert_refused(gateway.connect_from("127.8.6.2"), &blocked_for_a_time("127.8.6.2"));
    let listed = gateway.tell(&["block", "list"]);
    assert!(listed.starts_with("127.8.6.2/32\t") && listed.lines().count() == 1, "{listed}");
    assert_eq!(gateway.command(&["block", "remove", "127.8.6.1"]).code, Some(1));
    // The list is forgotten at a restart.
    let spool = gateway.spool.clone();
    gateway.stop();
    let gateway = start(&spool, &[]);
    assert_eq!(gateway.tell(&["block", "list"]), "");
    assert_served(gateway.connect_from("127.8.6.2"));
}

#[test]
fn the_list_is_sorted_and_says_how_long() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    for (range, time) in [("2001:db8::/32", "2h"), ("192.0.2.1", "365d"), ("10.0.0.0/8", "1h"), ("9.0.0.0/8", "2m")] {
        gateway.tell(&["block", "add", range, "--for", time]);
    }
    let expected = [("9.0.0.0/8", 120), ("10.0.0.0/8", 3600), ("192.0.2.1/32", 31_536_000), ("2001:db8::/32", 7200)];
    let text = gateway.tell(&["block", "list"]);
    let lines: Vec<(&str, u64)> = (text.lines())
        .map(|line| {
            let (range, left) = line.split_once('\t').expect("a tab");
            let left: u64 = left.split(' ').map(seconds).sum();
            (range, left)
        })
        .collect();
    let json = gateway.tell(&["block", "list", "--json"]);
    let objects: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert_eq!((lines.len(), objects.len()), (expected.len(), expected.len()), "{text}{json}");
    // The time that the test itself takes is not known: at least a minute is left of each.
    for (((range, most), (shown, left)), object) in expected.into_iter().zip(lines).zip(objects) {
        assert_eq!((shown, object["cidr"].as_str()), (range, Some(range)));
        let fields = object.as_object().expect("an object").len();
        let left_json = object["seconds_left"].as_u64().expect("a number");
        assert!(fields == 2 && left_json <= left && left <= most && left_json > most - 100, "{range}: {left} {object}");
    }
}

/// A part of a duration as people read it.
fn seconds(word: &str) -> u64 {
    let digits = word.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let factor = match &word[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "day" | "days" => 86_400,
        // 30.44 and 365.25 days.
        "month" | "months" => 2_630_016,
        "year" | "years" => 31_557_600,
        unit => panic!("{unit}"),
    };
    digits.parse::<u64>().expect("a number") * factor
}

#[test]
fn what_cannot_be_blocked_is_told() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    for (arguments, word) in [
        (&["block", "add", "192.0.2.0/33"][..], "192.0.2.0/33"),
        (&["block", "add", "client.example"], "client.example"),
        (&["block", "add", "192.0.2.1", "--for=0"], "not at all"),
        (&["block", "add", "192.0.2.1", "--for=366d"], "365d"),
        (&["block", "add", "192.0.2.1", "--for=soon"], "whole number"),
        (&["block", "remove", "192.0.2"], "192.0.2"),
        (&["block", "add"], "CIDR"),
    ] {
        let ended = gateway.command(arguments);
        assert_eq!(ended.code, Some(64), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(word), "{arguments:?}: {}", ended.stderr);
    }
    assert_eq!(gateway.tell(&["block", "list"]), "");
}

/// CONFORMANCE E13, E14, A3: in this order, before all that is counted.
#[test]
fn order_of_checks() {
    let scratch = Scratch::new();
    let gateway = start(
        &scratch.join("spool"),
        &["--listen=127.0.0.1:0,allow=127.8.7.0/24", "--block=127.8.7.1", "--block=127.8.8.1", "--max-connections=1"],
    );
    for range in ["127.8.7.0/31", "127.8.7.2", "127.8.8.0/24"] {
        gateway.tell(&["block", "add", range]);
    }
    let mut only = gateway.connect_from("127.8.7.9");
    only.hello();
    // Blocked for good goes before blocked for a time, and both before the binding's ranges; none of
    // them needs a place.
    for (source, text) in [
        ("127.8.7.1", blocked("127.8.7.1")),
        ("127.8.8.1", blocked("127.8.8.1")),
        ("127.8.7.0", blocked_for_a_time("127.8.7.0")),
        ("127.8.7.2", blocked_for_a_time("127.8.7.2")),
        ("127.8.8.2", blocked_for_a_time("127.8.8.2")),
        ("127.8.9.1", NOT_CONFIGURED.to_owned()),
        ("127.8.7.3", crate::harness::TOTAL.to_owned()),
    ] {
        assert_refused(gateway.connect_from(source), &text);
    }
    for (reason, count) in
        [("blocked", 2.0), ("blocked_for_a_time", 3.0), ("binding_not_configured", 1.0), ("connections_total", 1.0)]
    {
        assert_eq!(refused(&gateway, reason), count, "{reason}");
    }
    only.quit();
}

/// E17 by revision 4.0: these refusals are late too, those of other limits are not.
#[test]
fn by_revision_4_the_blocked_wait() {
    const TARPIT: Duration = Duration::from_millis(700);
    let scratch = Scratch::new();
    let options = ["--oxsmtp-revision=4.0", "--tarpit=700ms", "--block=127.0.3.1", "--max-connections-per-source=1"];
    let gateway = start(&scratch.join("spool"), &options);
    until("the warning", || gateway.stderr().contains("452 4.5.3 Too many recipients"));
    let begun = Instant::now();
    assert_refused(gateway.connect_from("127.0.3.1"), &blocked("127.0.3.1"));
    assert!(begun.elapsed() >= TARPIT, "{:?}", begun.elapsed());
    gateway.tell(&["block", "add", "127.0.3.2"]);
    let begun = Instant::now();
    assert_refused(gateway.connect_from("127.0.3.2"), &blocked_for_a_time("127.0.3.2"));
    assert!(begun.elapsed() >= TARPIT, "{:?}", begun.elapsed());
    // Of commands, MAIL only.
    let mut client = gateway.session_from("127.0.3.3");
    let begun = Instant::now();
    client.expect("MAIL FROM:<@>", "501 5.1.7 Invalid address");
    assert!(begun.elapsed() >= TARPIT, "{:?}", begun.elapsed());
    client.quit();
    gateway.until_empty();
}
