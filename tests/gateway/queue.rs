//! The queue behind the 250: what becomes of mail when a next hop, or the disk, does not do its part.

use crate::harness::{PATIENCE, Scratch, start, until};
use socket2::SockRef;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::sleep;
use std::time::Duration;

/// A next hop that does what it is told, on the test's thread. Offers nothing.
struct NextHop(TcpListener);

/// A connection to it.
struct Hop(BufReader<TcpStream>);

impl NextHop {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        // That of accepting.
        SockRef::from(&listener).set_read_timeout(Some(PATIENCE)).expect("a socket");
        NextHop(listener)
    }

    fn option(&self) -> String {
        format!("--next-hop={}", self.0.local_addr().expect("bound"))
    }

    /// The next connection, before its greeting.
    fn connection(&self) -> Hop {
        let (stream, _) = self.0.accept().expect("a listener");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Hop(BufReader::new(stream))
    }

    /// The next connection, after its hello.
    fn greeted(&self) -> Hop {
        let mut hop = self.connection();
        hop.say("220 hop ESMTP");
        assert!(hop.line().starts_with("EHLO "));
        hop.say("250 hop");
        hop
    }
}

impl Hop {
    fn say(&mut self, reply: &str) {
        self.0.get_mut().write_all(format!("{reply}\r\n").as_bytes()).expect("a peer that reads");
    }

    /// Whether something was sent, or the connection ended.
    fn has_input(&mut self) -> bool {
        let stream = self.0.get_ref();
        stream.set_nonblocking(true).expect("a socket");
        let has_input = !self.0.buffer().is_empty() || stream.peek(&mut [0]).is_ok();
        stream.set_nonblocking(false).expect("a socket");
        has_input
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line within reason");
        line
    }

    /// Takes a message of one recipient up to its final dot; the recipient.
    fn message(&mut self) -> String {
        let recipient = self.transaction();
        while self.line() != ".\r\n" {}
        recipient
    }

    /// The same, behind MAIL.
    fn recipient_and_content(&mut self) {
        self.commands(&[("RCPT", "250 OK"), ("DATA", "354 go on")]);
        while self.line() != ".\r\n" {}
    }

    /// Takes a message of one recipient up to its content; the recipient.
    fn transaction(&mut self) -> String {
        self.commands(&[("MAIL", "250 OK"), ("RCPT", "250 OK"), ("DATA", "354 go on")])
    }

    fn commands(&mut self, expected: &[(&str, &str)]) -> String {
        let mut recipient = String::new();
        for &(command, reply) in expected {
            let line = self.line();
            assert!(line.starts_with(command), "{line}");
            self.say(reply);
            if command == "RCPT" {
                recipient = line;
            }
        }
        recipient
    }
}

/// A message that no next hop was there for, in a spool of one shard.
fn spooled(scratch: &Scratch) {
    let gateway = start(&scratch.join("spool"), &["--shards=1"]);
    let mut client = gateway.session();
    client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    client.quit();
    gateway.stop();
}

#[test]
fn a_segment_that_could_not_be_made_is_no_failure_later() {
    let scratch = Scratch::new();
    spooled(&scratch);
    let next_hop = NextHop::new();
    let gateway = start(&scratch.join("spool"), &["--shards=1", &next_hop.option()]);
    let mut hop = next_hop.greeted();
    hop.message();
    // The outcome finds no directory to make its segment in.
    let (shard, away) = (scratch.join("spool/shard-0"), scratch.join("away"));
    fs::rename(&shard, &away).expect("the same filesystem");
    hop.say("250 taken");
    until("the outcome cannot be written", || gateway.metric("gatepost_spool_failures_total") > 0.0);
    fs::rename(&away, &shard).expect("the same filesystem");
    until("the outcome is written again", || gateway.metric("gatepost_queue_messages") == 0.0);
    let first = shard.join("segment-0000000000000001");
    until("its message's segment goes", || !first.exists());
    let failures = gateway.metric("gatepost_spool_failures_total");
    drop(hop);
    for _ in 0..2 {
        let mut client = gateway.session();
        client.expect("MAIL FROM:<a@b.example>", "250 2.1.0 Sender OK");
        client.send("RCPT TO:<rcpt@test.example>\r\nDATA\r\nx\r\n.\r\n");
        let mut hop = next_hop.greeted();
        hop.message();
        hop.say("250 taken");
        for code in ["250", "354", "250"] {
            let reply = client.reply();
            assert!(reply.starts_with(code), "{reply}");
        }
    }
    until("nothing is left", || gateway.metric("gatepost_queue_messages") == 0.0);
    assert_eq!(gateway.metric("gatepost_spool_failures_total"), failures);
}

#[test]
fn a_next_hop_with_enough_connections_is_not_down() {
    let scratch = Scratch::new();
    let next_hop = NextHop::new();
    let gateway = start(&scratch.join("spool"), &["--shards=2", "--ack-delay=0", &next_hop.option()]);
    let deliver = || gateway.session().deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    // Messages of one shard go over one connection; the first of the other shard needs a second.
    deliver();
    let mut hop = next_hop.greeted();
    hop.message();
    hop.say("250 taken");
    next_hop.0.set_nonblocking(true).expect("a socket");
    let mut sent = 1;
    let second = loop {
        deliver();
        sent += 1;
        let mut second = None;
        until("delivered, or another connection", || {
            second = next_hop.0.accept().ok();
            second.is_some() || hop.has_input()
        });
        if let Some((stream, _)) = second {
            break stream;
        }
        hop.message();
        hop.say("250 taken");
    };
    next_hop.0.set_nonblocking(false).expect("a socket");
    Hop(BufReader::new(second)).say("421 4.3.2 too many connections");
    // The first is idle, then gone; until then more may be refused.
    loop {
        let mut next = next_hop.connection();
        if hop.has_input() {
            next.say("220 hop ESMTP");
            assert!(next.line().starts_with("EHLO "));
            next.say("250 hop");
            next.message();
            next.say("250 taken");
            break;
        }
        next.say("421 4.3.2 too many connections");
    }
    until("all is delivered", || gateway.metric("gatepost_queue_messages") == 0.0);
    assert_eq!(gateway.metric("gatepost_messages_accepted_total"), f64::from(sent));
    assert_eq!(gateway.stderr(), "");
}

#[test]
fn a_probe_is_a_connection_of_its_own() {
    let scratch = Scratch::new();
    let next_hop = NextHop::new();
    let options = ["--shards=1", "--ack-delay=0", "--retry-min=1s", "--retry-max=1s", &next_hop.option()];
    let gateway = start(&scratch.join("spool"), &options);
    let mut hops = Vec::new();
    for _ in 0..4 {
        gateway.session().deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
        let mut hop = next_hop.greeted();
        hop.message();
        hops.push(hop);
    }
    // One connection stays, idle; three break, and with them the next hop is down.
    let mut idle = Some(hops.remove(0));
    idle.as_mut().expect("the first").say("250 taken");
    until("one is delivered", || gateway.metric("gatepost_queue_messages") == 3.0);
    drop(hops);
    // Whether it can be reached again is not for the old connection to say.
    for left in (0..3_u32).rev() {
        let mut hop = next_hop.greeted();
        hop.message();
        hop.say("250 taken");
        drop((hop, idle.take()));
        until("delivered", || gateway.metric("gatepost_queue_messages") == f64::from(left));
    }
}

#[test]
fn expired_mail_that_cannot_be_read_is_not_tried_again_at_once() {
    let scratch = Scratch::new();
    let next_hop = NextHop::new();
    let options = ["--shards=1", "--ack-delay=0", "--queue-lifetime=2s", &next_hop.option()];
    let gateway = start(&scratch.join("spool"), &options);
    gateway.session().deliver("a@b.example", &["rcpt@test.example"], b"no more of this\r\n");
    // Once it is deferred it is no longer in memory.
    drop(next_hop.connection());
    until("the next hop is down", || gateway.stderr().contains("cannot be reached"));
    let path = scratch.join("spool/shard-0/segment-0000000000000001");
    let mut segment = fs::OpenOptions::new().read(true).write(true).open(path).expect("a segment");
    let mut octets = vec![0; 4096];
    segment.read_exact(&mut octets).expect("64 MB");
    let at = octets.windows(7).position(|piece| piece == b"no more").expect("the message");
    segment.seek(SeekFrom::Start(at as u64)).expect("a file");
    segment.write_all(b"NO").expect("a file");
    let complaints = || gateway.stderr().matches("is damaged in the spool").count();
    until("it is too old", || complaints() > 0);
    sleep(Duration::from_secs(1));
    assert_eq!(complaints(), 1);
}

#[test]
fn a_next_hop_is_heard_while_it_does_not_read() {
    let scratch = Scratch::new();
    let next_hop = NextHop::new();
    let gateway = start(&scratch.join("spool"), &["--shards=1", "--ack-delay=0", &next_hop.option()]);
    // More than the sockets of a connection hold, none of it header.
    let content = [b"\r\n", &b"sixteen octets\r\n".repeat(9 << 16)[..]].concat();
    gateway.session().deliver("a@b.example", &["rcpt@test.example"], &content);
    let mut hop = next_hop.greeted();
    hop.transaction();
    hop.line();
    hop.say("452 4.3.1 that is enough");
    until("deferred", || gateway.metric("gatepost_delivery_recipients_total") == 1.0);
}

#[test]
fn routes_to_one_next_hop_take_turns_whoever_ends_the_connections() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--shards=1", "--accept-domain=.test.example"]);
    let mut client = gateway.session();
    for _ in 0..60 {
        client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    }
    client.deliver("a@b.example", &["rcpt@other.test.example"], b"x\r\n");
    client.quit();
    gateway.stop();
    let (next_hop, second) = (NextHop::new(), NextHop::new());
    let other = |hop: &NextHop| hop.option().replace("--next-hop=", "--route=other.test.example=");
    let options = ["--shards=1", "--accept-domain=.test.example"].map(str::to_owned);
    let options = [&options[..], &[next_hop.option(), other(&next_hop), other(&second)]].concat();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let gateway = start(&scratch.join("spool"), &options);
    // As many as may go at once are of the first route; one that ends gives way to the other.
    let mut taken = 0;
    loop {
        let mut hop = next_hop.greeted();
        let recipient = hop.message();
        hop.say("250 taken");
        taken += 1;
        if recipient.contains("@other.") {
            break;
        }
    }
    assert!(taken < 50, "the other route waited for {taken} messages");
    drop(gateway);
}

#[test]
fn no_more_is_sent_while_it_cannot_be_written_down() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--shards=1"]);
    let mut client = gateway.session();
    for _ in 0..3 {
        client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    }
    client.quit();
    gateway.stop();
    let next_hop = NextHop::new();
    let gateway = start(&scratch.join("spool"), &["--shards=1", &next_hop.option()]);
    let mut hops: Vec<Hop> = (0..3).map(|_| next_hop.connection()).collect();
    // One connection works, for all three messages; the others are refused.
    let mut hop = hops.remove(0);
    hop.say("220 hop ESMTP");
    hop.line();
    hop.say("250 hop");
    hop.message();
    hops.iter_mut().for_each(|hop| hop.say("421 4.3.2 too many connections"));
    until("refused", || gateway.metric("gatepost_next_hop_connections_total") == 3.0);
    let (shard, away) = (scratch.join("spool/shard-0"), scratch.join("away"));
    fs::rename(&shard, &away).expect("the same filesystem");
    hop.say("250 taken");
    until("the outcome cannot be written", || gateway.metric("gatepost_spool_failures_total") > 0.0);
    // It was begun before that was known.
    hop.message();
    hop.say("250 taken");
    sleep(Duration::from_millis(500));
    assert!(!hop.has_input(), "the third message is sent, and nobody would know of it after a restart");
    fs::rename(&away, &shard).expect("the same filesystem");
    hop.message();
    hop.say("250 taken");
    until("all is written", || gateway.metric("gatepost_queue_messages") == 0.0);
}

#[test]
fn a_shard_gives_up_a_connection_for_one_that_gets_none() {
    let scratch = Scratch::new();
    let next_hop = NextHop::new();
    let gateway =
        start(&scratch.join("spool"), &["--shards=2", "--ack-delay=0", "--message-rate=0", &next_hop.option()]);
    let mut busy = gateway.session();
    busy.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    let mut hop = next_hop.greeted();
    hop.message();
    hop.say("250 taken");
    // It allows one connection, and its shard has mail for it all the time.
    next_hop.0.set_nonblocking(true).expect("a socket");
    let mut refused = 0;
    until("the connection is given up", || {
        if let Ok((stream, _)) = next_hop.0.accept() {
            Hop(BufReader::new(stream)).say("421 4.3.2 too many connections");
            refused += 1;
        }
        // Some of these reach the other shard; the busy one's own may be refused too.
        gateway.session().deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
        busy.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
        until("a command", || hop.has_input());
        let line = hop.line();
        if line.starts_with("MAIL") {
            hop.say("250 OK");
            hop.recipient_and_content();
            hop.say("250 taken");
        }
        line == "QUIT\r\n"
    });
    assert!(refused > 0);
    drop(hop);
    next_hop.0.set_nonblocking(false).expect("a socket");
    let mut hop = next_hop.greeted();
    hop.message();
    hop.say("250 taken");
    assert_eq!(gateway.stderr(), "");
}
