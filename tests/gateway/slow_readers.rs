//! Clients that do not read their replies, and replies that are not to be read yet.

use crate::harness::{BANNER, Client, PATIENCE, SHUTDOWN, Scratch, start, until};
use gatepost::smtp::reply::Reply;
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
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

/// A pipelined group waits once: it is read whole before it does. It is small enough for the kernel
/// to send it in one piece: what comes later waits again.
#[test]
fn a_group_that_is_held_back_is_read_whole() {
    let scratch = Scratch::new();
    let mut gateway = start(&scratch.join("spool"), &["--tarpit=5m"]);
    let mut client = gateway.session();
    client.expect("MAIL FROM:<a@b.example>", "250 2.1.0 Sender OK");
    client.send(b"RCPT TO:<somebody@elsewhere.example>\r\n".repeat(600));
    until("the group is read", || queues(&client).1 == 0);
    // What is held back leaves when the process ends.
    gateway.signal(Signal::TERM);
    assert!(gateway.line().starts_with("draining: "));
    gateway.signal(Signal::TERM);
    for _ in 0..600 {
        assert_eq!(client.reply(), "550 5.7.1 Unable to relay");
    }
    assert_eq!(client.reply(), SHUTDOWN);
    assert_eq!(gateway.wait(), (Some(0), String::new()));
}

/// E17: the time of a reply that is held back may pass while those before it cannot be written.
#[test]
fn late_refusals_reach_a_client_that_reads_late() {
    const GROUPS: usize = 1500;
    const GROUP: usize = 40;
    let scratch = Scratch::new();
    let options = ["--tarpit=1ms", "--max-protocol-errors=0", "--inactivity-timeout=2m"];
    let gateway = start(&scratch.join("spool"), &options);
    // A connection that holds little, so that the server is stuck soon.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(&gateway.address().into()).expect("a connection");
    let mut client = TcpStream::from(socket);
    client.write_all(format!("{}FOO\r\n", "HELP\r\n".repeat(GROUP)).repeat(GROUPS).as_bytes()).expect("room");
    sleep(Duration::from_secs(5));
    let help = format!("{}\r\n", Reply::Help.text()).repeat(GROUP);
    let group = format!("{help}500 5.3.3 Unrecognized command\r\n");
    let mut replies = vec![0; BANNER.len() + 2 + GROUPS * group.len()];
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    client.read_exact(&mut replies).expect("all replies");
    assert!(replies == [BANNER, "\r\n", &group.repeat(GROUPS)].concat().as_bytes(), "other replies");
    client.write_all(b"NOOP\r\n").expect("an open session");
    client.read_exact(&mut replies[..14]).expect("a reply");
    assert_eq!(&replies[..14], b"250 2.0.0 OK\r\n");
}
