//! Limits of connections and of messages: exact, over all shards, and given back whole.

use crate::harness::{BANNER, Client, PER_SOURCE, RATE, Scratch, TOTAL, start, until};
use std::time::{Duration, Instant};

#[track_caller]
fn assert_refused(mut client: Client, text: &str) {
    assert_eq!(client.reply(), text);
    client.assert_ended();
}

#[track_caller]
fn assert_served(client: &mut Client) {
    assert_eq!(client.reply(), BANNER);
}

/// Connects until it is served: what was given up a moment ago need not be known yet.
fn served(connect: impl Fn() -> Client) -> Client {
    let mut found = None;
    until("a place", || {
        let mut client = connect();
        if client.reply() == BANNER {
            found = Some(client);
        }
        found.is_some()
    });
    found.expect("found")
}

#[test]
fn total_of_connections() {
    for shards in [1, 3] {
        let scratch = Scratch::new();
        let shards = format!("--shards={shards}");
        let gateway = start(&scratch.join("spool"), &["--max-connections=10", &shards]);
        let source = |number: usize| format!("127.2.{number}.1");
        let mut clients: Vec<Client> = (0..10).map(|number| gateway.connect_from(&source(number))).collect();
        clients.iter_mut().for_each(assert_served);
        // In the order of checks E11 stands before E12, and both before the session.
        for number in 0..20 {
            assert_refused(gateway.connect_from(&source(number)), TOTAL);
        }
        assert_eq!(gateway.metric("gatepost_connections"), 10.0);
        assert_eq!(gateway.refusals("gatepost_connections_refused_total", "connections_total"), 20.0);
        // Those that are in are served as ever.
        for client in &mut clients {
            client.expect("NOOP", "250 2.0.0 OK");
        }
        clients.remove(3).quit();
        clients.push(served(|| gateway.connect_from(&source(30))));
        assert_refused(gateway.connect_from(&source(31)), TOTAL);
        drop(clients);
        gateway.until_empty();
        let mut clients: Vec<Client> = (0..10).map(|number| gateway.connect_from(&source(number))).collect();
        clients.iter_mut().for_each(assert_served);
        assert_refused(gateway.connect_from(&source(31)), TOTAL);
        gateway.stop();
    }
}

#[test]
fn twenty_from_one_address() {
    for shards in [2, 3] {
        let scratch = Scratch::new();
        let shards = format!("--shards={shards}");
        let gateway = start(&scratch.join("spool"), &[&shards]);
        let mut clients: Vec<Client> = (0..20).map(|_| gateway.connect_from("127.3.0.1")).collect();
        clients.iter_mut().for_each(assert_served);
        for _ in 0..10 {
            assert_refused(gateway.connect_from("127.3.0.1"), PER_SOURCE);
        }
        // Another address is another source.
        let mut other = gateway.connect_from("127.3.0.2");
        assert_served(&mut other);
        assert_eq!(gateway.refusals("gatepost_connections_refused_total", "connections_per_source"), 10.0);
        assert_eq!(gateway.metric("gatepost_connections"), 21.0);
        clients.pop().expect("a client").quit();
        clients.push(served(|| gateway.connect_from("127.3.0.1")));
        assert_refused(gateway.connect_from("127.3.0.1"), PER_SOURCE);
        gateway.stop();
    }
}

#[test]
fn a_client_reconnecting_after_quit_never_meets_its_own_ghost() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--max-connections-per-source=1", "--max-connections=1"]);
    for _ in 0..200 {
        let mut client = gateway.connect();
        assert_served(&mut client);
        client.expect("QUIT", "221 2.0.0 Service closing transmission channel");
        // Its own end is still open.
        let mut next = gateway.connect();
        assert_served(&mut next);
        next.quit();
    }
    gateway.until_empty();
}

#[test]
fn zero_is_unlimited() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--max-connections-per-source=0", "--message-rate=0"]);
    let mut clients: Vec<Client> = (0..50).map(|_| gateway.connect()).collect();
    clients.iter_mut().for_each(assert_served);
    let client = &mut clients[0];
    client.command("EHLO x");
    client.send("MAIL FROM:<a@b.example>\r\nRSET\r\n".repeat(1000));
    for _ in 0..1000 {
        assert_eq!(client.reply(), "250 2.1.0 Sender OK");
        assert_eq!(client.reply(), "250 2.0.0 Resetting");
    }
}

#[test]
fn an_ipv6_prefix_is_one_source() {
    let scratch = Scratch::new();
    // The one IPv6 address there surely is; all of it, and none of it, counts.
    for prefix in ["--ipv6-prefix=128", "--ipv6-prefix=0"] {
        let options = ["--listen=[::1]:0", "--max-connections-per-source=2", prefix];
        let gateway = start(&scratch.join("spool"), &options);
        let mut clients: Vec<Client> = (0..2).map(|_| gateway.connect()).collect();
        clients.iter_mut().for_each(assert_served);
        assert_refused(gateway.connect(), PER_SOURCE);
        gateway.stop();
    }
}

/// MAILs of `source` over several connections: how many were accepted before the first refusal,
/// and when the first was sent.
fn mails_until_refused(gateway: &crate::harness::Gateway, source: &str) -> (usize, Instant) {
    let mut clients: Vec<Client> = (0..12).map(|_| gateway.session_from(source)).collect();
    let begun = Instant::now();
    let mut accepted = 0;
    loop {
        for client in &mut clients {
            for _ in 0..10 {
                match client.command("MAIL FROM:<a@b.example>").as_str() {
                    "250 2.1.0 Sender OK" => accepted += 1,
                    reply => {
                        assert_eq!(reply, RATE);
                        client.assert_ended();
                        return (accepted, begun);
                    }
                }
                client.expect("RSET", "250 2.0.0 Resetting");
            }
        }
        assert!(accepted < 10_000, "no limit at all");
    }
}

#[test]
fn six_hundred_messages_a_minute() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    for attempt in 1.. {
        let source = format!("127.4.0.{attempt}");
        let (accepted, begun) = mails_until_refused(&gateway, &source);
        let elapsed = begun.elapsed();
        if elapsed > Duration::from_secs(50) && attempt < 4 {
            // The minute may have passed within: that says nothing.
            println!("{accepted} in {elapsed:?}: again");
            continue;
        }
        assert_eq!(accepted, 600);
        assert_eq!(gateway.refusals("gatepost_refusals_total", "message_rate"), f64::from(attempt));
        // Within the minute: still refused, on a new connection too.
        let mut client = gateway.session_from(&source);
        client.expect("MAIL FROM:<a@b.example>", RATE);
        client.assert_ended();
        assert!(begun.elapsed() < Duration::from_secs(60), "the machine is too slow to tell");
        break;
    }
    // Another address has its own count, and so have messages that were not accepted.
    let mut client = gateway.session_from("127.4.1.1");
    client.expect("MAIL FROM:<a@b.example>", "250 2.1.0 Sender OK");
    gateway.stop();
}

#[test]
fn only_accepted_mails_count() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--message-rate=3", "--max-protocol-errors=0"]);
    let mut client = gateway.session();
    for _ in 0..20 {
        client.expect(
            "MAIL FROM:<a@b.example> SIZE=99999999",
            "552 5.3.4 Message size exceeds fixed maximum message size",
        );
        client.expect("MAIL FROM:<a@@b>", "501 5.1.7 Invalid address");
    }
    for number in 0..3 {
        let id = client.deliver("a@b.example", &["rcpt@test.example"], format!("{number}\r\n").as_bytes());
        assert!(!id.is_empty());
    }
    client.expect("MAIL FROM:<a@b.example>", RATE);
    client.assert_ended();
}
