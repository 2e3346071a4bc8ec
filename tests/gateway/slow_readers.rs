//! Clients that do not read their replies.

use crate::harness::{Client, End, Scratch, start, until};
use std::fs;
use std::io::Write;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// What the kernel holds of the gateway's end of the connection: octets not yet sent or
/// acknowledged, octets not yet read.
fn queues(client: &Client) -> (u64, u64) {
    let (gateway, own) = (client.stream.peer_addr().expect("connected"), client.stream.local_addr().expect("bound"));
    let table = fs::read_to_string("/proc/net/tcp").expect("IPv4");
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    for line in table.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if port(fields[1]) == Some(gateway.port()) && port(fields[2]) == Some(own.port()) {
            let octets = |text: &str| u64::from_str_radix(text, 16).expect("a number");
            let (unsent, unread) = fields[4].split_once(':').expect("two queues");
            return (octets(unsent), octets(unread));
        }
    }
    panic!("no connection from {own} to {gateway}");
}

/// It has ended its side, and there is no room for its replies: each look at the full buffer brought
/// the news of its end again.
#[test]
fn one_that_has_ended_costs_no_time() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--inactivity-timeout=1h"]);
    let mut client = gateway.session();
    until("the replies have no room", || {
        client.send(b"HELP\r\n".repeat(600));
        let begun = Instant::now();
        while queues(&client).1 > 0 && begun.elapsed() < Duration::from_millis(500) {
            sleep(Duration::from_millis(5));
        }
        queues(&client).1 > 0
    });
    client.half_close();
    sleep(Duration::from_millis(300));
    let (cpu, begun) = (gateway.cpu(), Instant::now());
    sleep(Duration::from_secs(2));
    let (used, elapsed) = (gateway.cpu() - cpu, begun.elapsed());
    assert!(used < elapsed / 10, "{used:?} of CPU time in {elapsed:?} of waiting");
    client.reset();
    gateway.until_empty();
    gateway.stop();
}

/// The time of held replies comes while those before them wait for room: once the client reads,
/// its session goes on. Whether a refusal is among the replies that find no room, and not the first
/// of them, is chance: every other client meets it.
#[test]
fn those_whose_held_replies_find_no_room_are_served_when_they_read() {
    let scratch = Scratch::new();
    let options = ["--tarpit=1ms", "--max-protocol-errors=0", "--inactivity-timeout=1m"];
    let gateway = start(&scratch.join("spool"), &options);
    let mut clients: Vec<Client> = (0..4).map(|_| gateway.session()).collect();
    for client in &mut clients {
        client.expect("MAIL FROM:<a@b.example>", "250 2.1.0 Sender OK");
        // Twenty times as many octets of replies as of commands.
        until("most of the room is taken", || {
            client.send(b"HELP\r\n".repeat(600));
            queues(client).0 > 2_000_000
        });
    }
    // A refusal in about every batch of replies.
    let mut group = b"HELP\r\n".repeat(70);
    group.extend_from_slice(b"RCPT TO:<user@elsewhere.example>\r\n");
    let group = group.repeat(400);
    let senders: Vec<_> = clients
        .iter()
        .map(|client| {
            let (mut stream, group) = (client.stream.try_clone().expect("a descriptor"), group.clone());
            thread::spawn(move || {
                stream.write_all(&group).expect("a server that reads");
                stream.write_all(b"QUIT\r\n").expect("a server that reads");
            })
        })
        .collect();
    // As long as they take turns, one is over every 70 ms.
    let all = || clients.iter().map(queues).collect::<Vec<_>>();
    let (mut last, mut since) = (all(), Instant::now());
    until("the replies have no room", || {
        let now = all();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(1)
    });
    assert!(last.iter().all(|(_, unread)| *unread > 0), "everything was read");
    let readers: Vec<_> = clients.into_iter().map(|client| thread::spawn(|| to_the_end(client))).collect();
    for reader in readers {
        let (reply, end) = reader.join().expect("no panic");
        assert_eq!((reply.as_str(), end), ("221 2.0.0 Service closing transmission channel", End::Fin));
    }
    senders.into_iter().for_each(|sender| sender.join().expect("everything was sent"));
    gateway.until_empty();
    gateway.stop();
}

/// The last reply, and how the stream ended.
fn to_the_end(mut client: Client) -> (String, End) {
    let mut last = String::new();
    loop {
        match client.try_line() {
            Ok(line) => last = line,
            Err(end) => return (last, end),
        }
    }
}
