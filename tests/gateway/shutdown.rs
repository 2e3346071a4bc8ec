//! SIGTERM: idle sessions end, transactions may finish, then the process does.

use crate::harness::{Client, SHUTDOWN, Scratch, assert_stored, list, queue_id, start, stuffed, until};
use rustix::process::Signal;
use std::net::TcpListener;

const MAIL: &str = "MAIL FROM:<a@b.example>";
const RCPT: &str = "RCPT TO:<rcpt@test.example>";

fn in_data(client: &mut Client) {
    client.expect(MAIL, "250 2.1.0 Sender OK");
    client.expect(RCPT, "250 2.1.5 Recipient OK");
    client.expect("DATA", "354 Start mail input; end with <CRLF>.<CRLF>");
}

#[test]
fn a_transaction_may_finish() {
    for (signal, shards) in [(Signal::TERM, "--shards=1"), (Signal::INT, "--shards=3")] {
        let scratch = Scratch::new();
        let mut gateway = start(&scratch.join("spool"), &[shards, "--drain-timeout=1h"]);
        let content = b"Subject: last\r\n\r\nbody\r\n";
        let (mut begun, mut named, mut sending) = (gateway.session(), gateway.session(), gateway.session());
        let mut idle: Vec<Client> = (0..5).map(|_| gateway.session()).collect();
        let mut silent = gateway.connect();
        begun.expect(MAIL, "250 2.1.0 Sender OK");
        named.expect(MAIL, "250 2.1.0 Sender OK");
        named.expect(RCPT, "250 2.1.5 Recipient OK");
        in_data(&mut sending);
        let stuffed = stuffed(content);
        sending.send(&stuffed[..10]);
        assert_eq!(silent.reply(), crate::harness::BANNER);

        gateway.signal(signal);
        assert!(gateway.line().starts_with("draining: "));
        for client in idle.iter_mut().chain([&mut silent]) {
            assert_eq!(client.reply(), SHUTDOWN);
            client.assert_ended();
        }
        // No new connections: refused by the kernel, once the listeners are closed.
        until("the listeners are closed", || match Client::try_connect(gateway.address(), None) {
            Ok(mut client) => {
                // It came just before: it gets the reply, or is reset with the listener's queue.
                assert!(matches!(client.try_line().as_deref(), Ok(SHUTDOWN) | Err(_)));
                false
            }
            Err(_) => true,
        });
        begun.expect(RCPT, "250 2.1.5 Recipient OK");
        begun.expect("DATA", "354 Start mail input; end with <CRLF>.<CRLF>");
        begun.send(&stuffed);
        let one = queue_id(&begun.reply());
        assert_eq!(begun.reply(), SHUTDOWN);
        begun.assert_ended();
        let two = queue_id(&named.data(content));
        assert_eq!(named.reply(), SHUTDOWN);
        assert!(gateway.is_running());
        sending.send(&stuffed[10..]);
        let three = queue_id(&sending.reply());
        assert_eq!(sending.reply(), SHUTDOWN);
        sending.assert_ended();
        let (code, stderr) = gateway.wait();
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        for id in [one, two, three] {
            assert_stored(&gateway.spool, &id, content);
        }
        assert_eq!(list(&gateway.spool).len(), 3);
    }
}

#[test]
fn a_transaction_that_is_given_up_ends_the_wait() {
    let scratch = Scratch::new();
    let mut gateway = start(&scratch.join("spool"), &["--drain-timeout=1h"]);
    let (mut reset, mut gone, mut quit) = (gateway.session(), gateway.session(), gateway.session());
    in_data(&mut gone);
    reset.expect(MAIL, "250 2.1.0 Sender OK");
    quit.expect(MAIL, "250 2.1.0 Sender OK");
    gateway.signal(Signal::TERM);
    gateway.line();
    reset.expect("RSET", "250 2.0.0 Resetting");
    assert_eq!(reset.reply(), SHUTDOWN);
    quit.expect("QUIT", "221 2.0.0 Service closing transmission channel");
    gone.reset();
    assert_eq!(gateway.wait(), (Some(0), String::new()));
    assert_eq!(list(&gateway.spool).len(), 0);
}

#[test]
fn a_second_signal_ends_at_once() {
    let scratch = Scratch::new();
    let mut gateway = start(&scratch.join("spool"), &["--drain-timeout=1h"]);
    let (mut mail, mut data) = (gateway.session(), gateway.session());
    mail.expect(MAIL, "250 2.1.0 Sender OK");
    in_data(&mut data);
    data.send("half of a message\r\n");
    gateway.signal(Signal::TERM);
    gateway.line();
    // Still served: the first signal does not end transactions.
    mail.expect("NOOP", "250 2.0.0 OK");
    gateway.signal(Signal::TERM);
    assert_eq!(mail.reply(), SHUTDOWN);
    mail.assert_ended();
    assert_eq!(data.reply(), SHUTDOWN);
    data.assert_ended();
    assert_eq!(gateway.wait(), (Some(0), String::new()));
    assert_eq!(list(&gateway.spool).len(), 0);
}

#[test]
fn the_drain_has_its_limit() {
    let scratch = Scratch::new();
    let mut gateway = start(&scratch.join("spool"), &["--drain-timeout=500ms"]);
    let mut client = gateway.session();
    in_data(&mut client);
    gateway.signal(Signal::TERM);
    assert_eq!(client.reply(), SHUTDOWN);
    client.assert_ended();
    assert_eq!(gateway.wait(), (Some(0), String::new()));
}

/// No transaction will begin on it any more.
#[test]
fn a_next_hop_that_does_not_greet_is_not_waited_for() {
    let scratch = Scratch::new();
    let next_hop = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let option = format!("--next-hop={}", next_hop.local_addr().expect("bound"));
    let gateway = start(&scratch.join("spool"), &["--drain-timeout=1h", "--ack-delay=0", &option]);
    let spool = gateway.spool.clone();
    gateway.session().deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    let _silent = next_hop.accept().expect("a connection");
    assert_eq!(gateway.stop().last(), Some(&"drained".to_owned()));
    assert_eq!(list(&spool).len(), 1);
}

#[test]
fn without_sessions_it_ends_at_once_and_can_start_again() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    for _ in 0..10 {
        let gateway = start(&spool, &["--drain-timeout=1h", "--shards=3"]);
        gateway.session().deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
        let lines = gateway.stop();
        assert_eq!(lines.last(), Some(&"drained".to_owned()));
    }
    assert_eq!(list(&spool).len(), 10);
}
