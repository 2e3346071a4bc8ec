//! The acknowledgement waits for the next hop (CONFORMANCE E16).
//!
//! That a reply does not come is shown by looking for one for a while: too short a while could only
//! hide a fault. Delays that must not matter are so long that a test which waited for them would fail.

use crate::harness::{Client, Gateway, Scratch, list_json, queue_id, start, stuffed, until};
use crate::next_hop::{Act, EXTENSIONS, NextHop, Step, Verb, first};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const FROM: &str = "sender@client.example";
const TO: &str = "rcpt@test.example";
const CONTENT: &[u8] = b"Subject: test\r\n\r\nbody\r\n";
/// More than any test waits for a reply.
const LONG: &str = "--ack-delay=5m";

fn waiting(spool: &Path, hop: &NextHop, ack_delay: &str) -> Gateway {
    let next_hop = format!("--next-hop={}", hop.address);
    start(spool, &[&next_hop, ack_delay, "--retry-min=200ms", "--retry-max=1s", "--message-rate=0"])
}

/// Sends a message to its last dot.
fn send(client: &mut Client, to: &[&str]) {
    client.expect(&format!("MAIL FROM:<{FROM}>"), "250 2.1.0 Sender OK");
    for recipient in to {
        client.expect(&format!("RCPT TO:<{recipient}>"), "250 2.1.5 Recipient OK");
    }
    client.expect("DATA", "354 Start mail input; end with <CRLF>.<CRLF>");
    client.send(stuffed(CONTENT));
}

/// Asserts that no reply has come, nor comes in a while.
#[track_caller]
fn assert_silent(client: &Client) {
    client.stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
    let peeked = client.stream.peek(&mut [0]).map_err(|error| error.kind());
    assert_eq!(peeked, Err(ErrorKind::WouldBlock), "the reply has come before its time");
    client.stream.set_read_timeout(Some(crate::harness::PATIENCE)).expect("a socket");
}

#[test]
fn a_quick_next_hop_has_the_message_when_the_client_is_told() {
    let (hop, scratch) = (NextHop::start(), Scratch::new());
    let gateway = waiting(&scratch.join("spool"), &hop, LONG);
    let mut client = gateway.session();
    for count in 1..=10 {
        client.deliver(FROM, &[TO, "other@test.example"], CONTENT);
        let messages = hop.messages();
        assert_eq!((messages.len(), messages[count - 1].recipients().len()), (count, 2));
    }
    gateway.until_delivered();
    gateway.stop();
    assert_eq!(hop.messages().len(), 10);
}

#[test]
fn the_reply_waits_for_a_slow_next_hop() {
    let open = Arc::new(AtomicBool::new(false));
    let (hop, scratch) = (NextHop::scripted(first(1, Verb::End, Act::Hold(open.clone()))), Scratch::new());
    let gateway = waiting(&scratch.join("spool"), &hop, LONG);
    let (mut client, mut other) = (gateway.session(), gateway.session());
    send(&mut client, &[TO]);
    hop.wait(1);
    assert_silent(&client);
    // Only that session waits.
    other.deliver(FROM, &[TO], CONTENT);
    assert_silent(&client);
    open.store(true, Ordering::Release);
    queue_id(&client.reply());
    gateway.until_delivered();
    assert_eq!(hop.messages().len(), 2);
    gateway.stop();
}

#[test]
fn the_wait_has_its_limit() {
    for ack_delay in ["--ack-delay=500ms", "--ack-delay=0"] {
        let open = Arc::new(AtomicBool::new(false));
        let (hop, scratch) = (NextHop::scripted(first(1, Verb::End, Act::Hold(open.clone()))), Scratch::new());
        let gateway = waiting(&scratch.join("spool"), &hop, ack_delay);
        let mut client = gateway.session();
        send(&mut client, &[TO]);
        let id = queue_id(&client.reply());
        assert_eq!(list_json(&gateway.spool)[0]["id"].as_str(), Some(id.as_str()));
        assert!(!hop.wait(1)[0].answered);
        open.store(true, Ordering::Release);
        gateway.until_delivered();
        assert_eq!(hop.messages().len(), 1);
        gateway.stop();
    }
}

#[test]
fn nobody_waits_for_a_next_hop_that_is_down() {
    let (hop, scratch) = (NextHop::start(), Scratch::new());
    hop.stop();
    let gateway = waiting(&scratch.join("spool"), &hop, LONG);
    let mut client = gateway.session();
    (0..5).for_each(|_| drop(client.deliver(FROM, &[TO], CONTENT)));
    assert_eq!(list_json(&gateway.spool).len(), 5);
    hop.restart();
    gateway.until_delivered();
    assert_eq!(hop.messages().len(), 5);
}

/// A refusal by all: at which verb, with what, and what the client is told.
const REFUSALS: [(Verb, &str, &str); 9] = [
    (Verb::Rcpt, "550 5.1.1 no such user", "550 5.1.1 no such user"),
    (Verb::Rcpt, "550 no such user", "550 5.0.0 no such user"),
    (Verb::Rcpt, "551-5.1.6 moved\r\n551-5.1.6 far\r\n551 5.1.6 away", "551 5.1.6 away"),
    (Verb::Rcpt, "550-5.1.1 the code is on the first line only\r\n550 gone", "550 5.0.0 gone"),
    (Verb::Rcpt, "553 5.1.1 caf\u{e9}", "553 5.1.1 caf??"),
    (Verb::Mail, "550 5.7.1 not from you", "550 5.7.1 not from you"),
    (Verb::Data, "554 no", "554 5.0.0 no"),
    (Verb::End, "554 5.6.0 spam", "554 5.6.0 spam"),
    (Verb::End, "552 full", "552 5.0.0 full"),
];

#[test]
fn a_refusal_by_all_is_passed_on() {
    for extensions in [EXTENSIONS.to_vec(), vec!["PIPELINING"], vec![]] {
        let (hop, scratch) = (NextHop::offering(&extensions), Scratch::new());
        let spool = scratch.join("spool");
        let gateway = waiting(&spool, &hop, LONG);
        let mut client = gateway.session();
        let (mut refused, mut taken) = (0, 0);
        for (verb, said, told) in REFUSALS {
            if verb == Verb::Data && extensions.contains(&"CHUNKING") {
                // There is no DATA.
                continue;
            }
            hop.script(first(usize::MAX, verb, Act::Say(said)));
            // More often than protocol errors are allowed: these are none.
            for to in [&[TO][..], &[TO, "other@test.example"]] {
                send(&mut client, to);
                assert_eq!(client.reply(), told, "{verb:?}: {said}");
                refused += 1;
            }
            gateway.until_delivered();
            // The session goes on.
            hop.script(|_| Act::Go);
            client.deliver(FROM, &[TO], CONTENT);
            taken += 1;
            gateway.until_delivered();
        }
        assert!(refused > 10);
        // What was withdrawn does not come back.
        gateway.kill();
        let gateway = waiting(&spool, &hop, LONG);
        assert_eq!(list_json(&spool).len(), 0);
        gateway.session().deliver(FROM, &[TO], CONTENT);
        assert_eq!(hop.messages().len(), taken + 1);
    }
}

#[test]
fn the_last_recipients_refusal_counts() {
    let (hop, scratch) = (NextHop::start(), Scratch::new());
    hop.script(|step: Step<'_>| match step.verb {
        Verb::Rcpt if step.line.contains("<one@") => Act::Say("550 5.1.1 one"),
        Verb::Rcpt if step.line.contains("<two@") => Act::Say("551 5.1.6 two"),
        _ => Act::Go,
    });
    let gateway = waiting(&scratch.join("spool"), &hop, LONG);
    let mut client = gateway.session();
    for (to, told) in [(["one", "two"], "551 5.1.6 two"), (["two", "one"], "550 5.1.1 one")] {
        let to = to.map(|name| format!("{name}@test.example"));
        send(&mut client, &to.each_ref().map(String::as_str));
        assert_eq!(client.reply(), told);
    }
    assert_eq!((list_json(&gateway.spool).len(), hop.messages().len()), (0, 0));
}

#[test]
fn anything_but_a_refusal_by_all_is_a_250() {
    let (hop, scratch) = (NextHop::start(), Scratch::new());
    let script = |step: Step<'_>| match step.verb {
        Verb::Rcpt if step.line.contains("<never@") => Act::Say("550 5.1.1 no such user"),
        Verb::Rcpt if step.line.contains("<later@") && step.count <= 3 => Act::Say("451 4.2.1 later"),
        _ => Act::Go,
    };
    for (to, delivered, kept) in [
        (&["rcpt", "never"][..], 1, true),
        (&["never", "rcpt"], 1, true),
        (&["later"], 1, false),
        (&["rcpt", "later"], 2, false),
        (&["later", "never"], 1, true),
    ] {
        hop.script(script);
        let before = hop.messages().len();
        let spool = scratch.join(&to.join("-"));
        let gateway = waiting(&spool, &hop, LONG);
        let to: Vec<String> = to.iter().map(|name| format!("{name}@test.example")).collect();
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        let id = gateway.session().deliver(FROM, &to, CONTENT);
        let messages = hop.wait(before + delivered);
        let mut got: Vec<&str> = messages[before..].iter().flat_map(|message| message.recipients()).collect();
        let mut expected: Vec<&str> = to.iter().copied().filter(|to| !to.starts_with("never")).collect();
        got.sort_unstable();
        expected.sort_unstable();
        assert_eq!(got, expected);
        if kept {
            until("the refusal is kept", || gateway.recipients("failed") == 1.0);
            gateway.stop();
            let listed = list_json(&spool);
            assert_eq!((listed[0]["id"].as_str(), &listed[0]["status"]), (Some(id.as_str()), &"failed".into()));
        } else {
            gateway.until_delivered();
        }
    }
}

#[test]
fn a_next_hop_that_breaks_off_ends_the_wait() {
    for (verb, act) in
        [(Verb::Mail, Act::Reset), (Verb::End, Act::Close), (Verb::End, Act::Garbage), (Verb::Connect, Act::Close)]
    {
        let (hop, scratch) = (NextHop::scripted(first(1, verb, act.clone())), Scratch::new());
        let gateway = waiting(&scratch.join("spool"), &hop, LONG);
        gateway.session().deliver(FROM, &[TO], CONTENT);
        gateway.until_delivered();
        let copies = hop.messages().len();
        assert!(copies == 1 || (verb == Verb::End && copies == 2), "{verb:?} {act:?}: {copies}");
    }
}

#[test]
fn the_end_of_the_process_ends_the_wait() {
    let open = Arc::new(AtomicBool::new(false));
    let (hop, scratch) = (NextHop::scripted(first(1, Verb::End, Act::Hold(open.clone()))), Scratch::new());
    let mut gateway = waiting(&scratch.join("spool"), &hop, LONG);
    let mut client = gateway.session();
    send(&mut client, &[TO]);
    hop.wait(1);
    gateway.signal(rustix::process::Signal::TERM);
    queue_id(&client.reply());
    assert_eq!(client.reply(), crate::harness::SHUTDOWN);
    open.store(true, Ordering::Release);
    assert_eq!(gateway.wait().0, Some(0));
}
