//! Sessions end in all manners and leave nothing behind; timers; clients that do not behave.

use crate::harness::{BANNER, Client, D1, D2, End, Scratch, start, stuffed, until};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

const FROM: &str = "sender@client.example";
const TO: &str = "rcpt@test.example";

/// A state to be in when something happens: what to send for it, after the banner.
const STATES: [(&str, &str); 11] = [
    ("after the banner", ""),
    ("in a command", "EHLO clie"),
    ("after EHLO", "EHLO x\r\n"),
    ("after MAIL", "EHLO x\r\nMAIL FROM:<a@b.example>\r\n"),
    ("after RCPT", "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<rcpt@test.example>\r\n"),
    ("after DATA", "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<rcpt@test.example>\r\nDATA\r\n"),
    (
        "in a message",
        "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<rcpt@test.example>\r\nDATA\r\nSubject: x\r\n\r\nbody\r\n.",
    ),
    (
        "after a message",
        "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<rcpt@test.example>\r\nDATA\r\nSubject: x\r\n\r\nbody\r\n.\r\n",
    ),
    ("in a chunk that is thrown away", "EHLO x\r\nBDAT 1000\r\nabc"),
    (
        "in a chunk",
        "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<rcpt@test.example>\r\nBDAT 1000\r\nSubject: x\r\n\r\nbody\r\n",
    ),
    (
        "between two chunks",
        "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<rcpt@test.example>\r\nBDAT 3\r\nabcBDAT 0\r\n",
    ),
];

/// Reads all lines up to the end: what was said last, and how the stream ended.
fn last_words(client: &mut Client) -> (String, End) {
    let mut last = String::new();
    loop {
        match client.try_line() {
            Ok(line) => last = line,
            Err(end) => return (last, end),
        }
    }
}

#[test]
fn silence_ends_a_session_in_every_state() {
    const TIMEOUT: Duration = Duration::from_millis(700);
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--inactivity-timeout=700ms"]);
    let overlong = "x".repeat(10_000);
    let states = STATES.iter().copied().chain([("in an overlong line", overlong.as_str())]);
    // All at once: each waits for the same time.
    let waiting: Vec<_> = states
        .map(|(name, input)| {
            let sent = Instant::now();
            let mut client = gateway.connect();
            client.send(input);
            let wait = thread::spawn(move || (last_words(&mut client), sent.elapsed()));
            (name, wait)
        })
        .collect();
    let count = waiting.len();
    for (name, wait) in waiting {
        let ((reply, end), elapsed) = wait.join().expect("a client");
        assert_eq!((reply.as_str(), end), (D2, End::Fin), "{name}");
        assert!(elapsed >= TIMEOUT, "{name}: after {elapsed:?} already");
    }
    gateway.until_empty();
    assert_eq!(gateway.refusals("gatepost_refusals_total", "inactivity_timeout"), count as f64);
    assert_eq!(gateway.metric("gatepost_body_memory_bytes"), 0.0);
    assert_eq!(crate::harness::list(&gateway.spool).len(), 1, "only the finished message");
    gateway.stop();
}

#[test]
fn age_ends_a_session_in_every_state() {
    const TIMEOUT: Duration = Duration::from_millis(700);
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--connection-timeout=700ms", "--inactivity-timeout=1h"]);
    let waiting: Vec<_> = STATES
        .into_iter()
        .map(|(name, input)| {
            let sent = Instant::now();
            let mut client = gateway.connect();
            client.send(input);
            (name, thread::spawn(move || (last_words(&mut client), sent.elapsed())))
        })
        .collect();
    for (name, wait) in waiting {
        let ((reply, end), elapsed) = wait.join().expect("a client");
        assert_eq!((reply.as_str(), end), (D1, End::Fin), "{name}");
        assert!(elapsed >= TIMEOUT, "{name}: after {elapsed:?} already");
    }
    gateway.until_empty();
    assert_eq!(gateway.refusals("gatepost_refusals_total", "connection_timeout"), STATES.len() as f64);
    gateway.stop();
}

#[test]
fn age_ends_a_session_that_is_never_silent() {
    let scratch = Scratch::new();
    // The second cannot strike before the first.
    let gateway = start(&scratch.join("spool"), &["--connection-timeout=1s", "--inactivity-timeout=30s"]);
    let mut idle = gateway.session();
    let mut client = gateway.session();
    client.expect(&format!("MAIL FROM:<{FROM}>"), "250 2.1.0 Sender OK");
    client.expect(&format!("RCPT TO:<{TO}>"), "250 2.1.5 Recipient OK");
    client.expect("DATA", "354 Start mail input; end with <CRLF>.<CRLF>");
    let deadline = Instant::now() + crate::harness::PATIENCE;
    client.stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
    let mut said = Vec::new();
    // An octet at a time, for as long as the server takes them.
    loop {
        assert!(Instant::now() < deadline, "a dribbling client is never ended");
        if client.stream.write_all(b"x").is_err() {
            break;
        }
        let mut buffer = [0; 1024];
        match client.stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(octets) => said.extend_from_slice(&buffer[..octets]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    assert_eq!(String::from_utf8(said).expect("ASCII"), format!("{D1}\r\n"));
    assert_eq!(last_words(&mut idle), (D1.to_owned(), End::Fin));
    gateway.until_empty();
    assert_eq!(crate::harness::list(&gateway.spool).len(), 0);
}

#[test]
fn every_octet_restarts_the_timer() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--inactivity-timeout=2s"]);
    'attempt: for attempt in 1.. {
        let mut client = gateway.session();
        // Three times the limit, with no silence that is near it.
        let mut last = Instant::now();
        let mut slowest = Duration::ZERO;
        for octet in "NOOP of a slow client".repeat(3).bytes().chain(*b"\r\n") {
            thread::sleep(Duration::from_millis(100));
            client.send([octet]);
            slowest = slowest.max(last.elapsed());
            last = Instant::now();
            if slowest > TIMEOUT / 2 {
                assert!(attempt < 5, "the machine is too slow to tell");
                continue 'attempt;
            }
        }
        assert_eq!(client.reply(), "250 2.0.0 OK");
        client.quit();
        break;
    }
}

#[test]
fn hundreds_of_sessions_however_ended_leave_nothing() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--inactivity-timeout=1s", "--shards=3"]);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("it runs").count();
    // Segments are opened by the first messages.
    for _ in 0..30 {
        let mut client = gateway.session();
        client.deliver(FROM, &[TO], b"x\r\n");
        client.quit();
    }
    gateway.until_empty();
    let before = descriptors();
    let endings: [fn(Client); 6] = [
        |client| drop(client),
        Client::reset,
        |mut client| {
            client.half_close();
            let _ = last_words(&mut client);
        },
        |mut client| {
            // Within a message this is no command: then the timer ends it.
            client.send("QUIT\r\n");
            let _ = last_words(&mut client);
        },
        |mut client| {
            // Leaves without having read anything: the server's end may be a reset.
            client.send("NOOP\r\n".repeat(50));
            drop(client);
        },
        |mut client| {
            client.send("QUIT\r\nQUIT\r\nNOOP\r\n");
            client.reset();
        },
    ];
    let (address, mut total) = (gateway.address(), 0.0);
    for round in 0..8_u8 {
        thread::scope(|scope| {
            for (number, (_, input)) in (0_u8..).zip(STATES) {
                for end in endings {
                    total += 1.0;
                    scope.spawn(move || {
                        // The state is never waited for: sessions end at any point of it.
                        let mut client = Client::connect(address, Some([127, 5, round, number].into()));
                        client.send(input);
                        end(client);
                    });
                }
            }
        });
    }
    // And some by the timer.
    let silent: Vec<Client> = (0..15).map(|_| gateway.session()).collect();
    gateway.until_empty();
    drop(silent);
    let accepted = gateway.metric("gatepost_connections_accepted_total");
    let refused = gateway.metric("gatepost_connections_refused_total");
    assert!(accepted + refused >= total, "{accepted} and {refused} of {total}");
    assert_eq!(gateway.metric("gatepost_session_panics_total"), 0.0);
    assert_eq!(gateway.metric("gatepost_body_memory_bytes"), 0.0);
    // The counts by address are back too: none of these is refused.
    let mut clients: Vec<Client> = (0..20).map(|_| gateway.connect_from("127.5.0.1")).collect();
    for client in &mut clients {
        assert_eq!(client.reply(), BANNER);
    }
    drop(clients);
    gateway.until_empty();
    // A shard has one more while it sleeps, and may have prepared its next segment.
    until("no descriptor is left open", || descriptors() <= before + 6);
    gateway.stop();
}

#[test]
fn a_half_closed_client_gets_all_its_replies() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    for round in 0..20 {
        let mut client = gateway.connect();
        let content = format!("Subject: {round}\r\n\r\nbody\r\n");
        client.send(format!("EHLO x\r\nMAIL FROM:<{FROM}>\r\nRCPT TO:<{TO}>\r\nDATA\r\n"));
        client.send(stuffed(content.as_bytes()));
        client.send("NOOP\r\n");
        client.half_close();
        assert_eq!(client.reply(), BANNER);
        assert!(client.reply().starts_with("250-"));
        assert_eq!(client.reply(), "250 2.1.0 Sender OK");
        assert_eq!(client.reply(), "250 2.1.5 Recipient OK");
        assert_eq!(client.reply(), "354 Start mail input; end with <CRLF>.<CRLF>");
        let id = crate::harness::queue_id(&client.reply());
        assert_eq!(client.reply(), "250 2.0.0 OK");
        client.assert_ended();
        crate::harness::assert_stored(&gateway.spool, &id, content.as_bytes());
    }
    gateway.until_empty();
}

#[test]
fn a_pipelined_group_is_answered_in_order() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    let mut client = gateway.session();
    client.send(format!(
        "MAIL FROM:<{FROM}>\r\nRCPT TO:<{TO}>\r\nRCPT TO:<x@elsewhere.example>\r\nRCPT TO:<@@>\r\nNOOP\r\nVRFY x\r\nDATA\r\n"
    ));
    let expected = [
        "250 2.1.0 Sender OK",
        "250 2.1.5 Recipient OK",
        "550 5.7.1 Unable to relay",
        "501 5.1.3 Invalid address",
        "250 2.0.0 OK",
        "252 2.1.5 Cannot VRFY user",
        "354 Start mail input; end with <CRLF>.<CRLF>",
    ];
    for reply in expected {
        assert_eq!(client.reply(), reply);
    }
    client.send(b"Subject: x\r\n\r\nbody\r\n.\r\nRSET\r\nQUIT\r\nNOOP\r\n");
    crate::harness::queue_id(&client.reply());
    assert_eq!(client.reply(), "250 2.0.0 Resetting");
    assert_eq!(client.reply(), "221 2.0.0 Service closing transmission channel");
    client.assert_ended();
    assert_eq!(crate::harness::list(&gateway.spool)[0].to, format!("<{TO}>"));
}

#[test]
fn hundreds_of_transactions_in_one_write() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--message-rate=0"]);
    let mut client = gateway.session();
    let mut input = Vec::new();
    for number in 0..300 {
        input
            .extend_from_slice(format!("MAIL FROM:<{FROM}>\r\nRCPT TO:<{TO}>\r\nDATA\r\n{number}\r\n.\r\n").as_bytes());
    }
    let mut writer = client.stream.try_clone().expect("a socket");
    let writing = thread::spawn(move || writer.write_all(&input).expect("a server that reads"));
    for number in 0..300 {
        assert_eq!(client.reply(), "250 2.1.0 Sender OK");
        assert_eq!(client.reply(), "250 2.1.5 Recipient OK");
        assert_eq!(client.reply(), "354 Start mail input; end with <CRLF>.<CRLF>");
        let id = crate::harness::queue_id(&client.reply());
        if number % 50 == 0 {
            crate::harness::assert_stored(&gateway.spool, &id, format!("{number}\r\n").as_bytes());
        }
    }
    writing.join().expect("the writer");
    client.quit();
    assert_eq!(crate::harness::list(&gateway.spool).len(), 300);
    assert_eq!(gateway.metric("gatepost_messages_accepted_total"), 300.0);
}

#[test]
fn overlong_lines_get_one_reply_and_their_tail_is_no_command() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--max-protocol-errors=0"]);
    let mut client = gateway.session();
    for (octets, reply) in [
        (4096, "250 2.0.0 OK"),
        (4097, "500 5.5.2 Line too long"),
        (4098, "500 5.5.2 Line too long"),
        (70_000, "500 5.5.2 Line too long"),
        (3_000_000, "500 5.5.2 Line too long"),
    ] {
        // A tail that were a command if the line were cut anywhere.
        let line = format!("NOOP {}", "QUIT ".repeat(octets / 5 + 1));
        client.send(&line.as_bytes()[..octets - 2]);
        client.send("\r\n");
        assert_eq!(client.reply(), reply, "{octets} octets");
        client.expect("NOOP", "250 2.0.0 OK");
    }
    client.quit();
}

#[test]
fn input_split_anywhere_means_the_same() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    let content = b"Subject: x\r\n\r\n.dot\r\n..\r\nbody\n.\nmore\r\n";
    let input = [
        format!("EHLO x\r\nMAIL FROM:<{FROM}>\r\nRCPT TO:<{TO}>\r\nDATA\r\n").as_bytes(),
        &stuffed(content),
        b"NOOP\r\n",
    ]
    .concat();
    for step in [1, 3, 7] {
        let mut client = gateway.connect();
        for piece in input.chunks(step) {
            client.send(piece);
        }
        let mut replies = Vec::new();
        while replies.len() < 7 {
            replies.push(client.reply());
        }
        assert_eq!(replies[6], "250 2.0.0 OK");
        let id = crate::harness::queue_id(&replies[5]);
        crate::harness::assert_stored(&gateway.spool, &id, b"Subject: x\r\n\r\n.dot\r\n..\r\nbody\r\n.\r\nmore\r\n");
        client.quit();
    }
}

/// Sends `input` again and again without reading, until the server takes no more.
fn flood(address: SocketAddr, input: &[u8]) -> (Client, usize) {
    let mut client = Client::connect(address, None);
    client.hello();
    client.stream.set_nonblocking(true).expect("a socket");
    let mut sent = 0;
    let mut stuck_since = Instant::now();
    let deadline = Instant::now() + crate::harness::PATIENCE;
    while stuck_since.elapsed() < Duration::from_millis(500) {
        assert!(Instant::now() < deadline, "{sent} octets, and it still takes more: there is no back-pressure");
        // Pieces that begin anywhere: what was taken of one goes on in the next.
        let at = sent % input.len();
        match client.stream.write(&input[at..]) {
            Ok(octets) => {
                sent += octets;
                stuck_since = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(10)),
            Err(_) => break,
        }
    }
    (client, sent)
}

#[test]
fn a_client_that_never_reads_replies_is_held_back_and_ended() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--inactivity-timeout=3s"]);
    let before = gateway.resident();
    let input = "HELP\r\n".repeat(10_000);
    let address = gateway.address();
    let clients: Vec<(Client, usize)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| flood(address, input.as_bytes()))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
    });
    // Others are served meanwhile.
    let mut client = gateway.session();
    client.expect("NOOP", "250 2.0.0 OK");
    client.quit();
    // The octets wait in the kernel, not in the program.
    let grown = gateway.resident().saturating_sub(before);
    let sent: usize = clients.iter().map(|(_, sent)| sent).sum();
    assert!(grown < 16 << 20, "{grown} octets more in memory after {sent} octets of input");
    gateway.until_empty();
    gateway.stop();
}
