//! What was accepted arrives at its next hop, once and unchanged, whatever the next hop does.
//!
//! "Once" is settled when the queue is empty: what is not in the queue is not sent again.

use crate::harness::{
    Client, Gateway, Scratch, assert_same, list_json, queue_id, split_received, start, stuffed, until,
};
use crate::next_hop::{Act, EXTENSIONS, Message, NextHop, Step, Verb, first};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const FROM: &str = "sender@client.example";
const TO: &str = "rcpt@test.example";
const CONTENT: &[u8] = b"Subject: test\r\n\r\n.body\r\n";

/// A gateway with further options whose retries come soon, and whose replies do not wait.
fn forwarding(spool: &Path, options: &[String]) -> Gateway {
    let mut all = vec!["--ack-delay=0", "--retry-min=200ms", "--retry-max=1s", "--message-rate=0"];
    all.extend(["--accept-domain=.test.example", "--max-connections-per-source=0"]);
    all.extend(options.iter().map(String::as_str));
    start(spool, &all)
}

fn next_hop(next_hop: &NextHop) -> String {
    format!("--next-hop={}", next_hop.address)
}

fn route(domain: &str, next_hop: &NextHop) -> String {
    format!("--route={domain}={}", next_hop.address)
}

/// Ends it, with mail in its queue and complaints about next hops, perhaps.
fn end(mut gateway: Gateway) {
    gateway.signal(Signal::TERM);
    let (code, stderr) = gateway.wait();
    assert_eq!(code, Some(0), "{stderr}");
}

/// Messages of which nothing is tried any more, once so many recipients were given up and that is on the disk.
#[track_caller]
fn failed(gateway: &Gateway, outcome: &str, recipients: f64) -> Vec<Value> {
    until("recipients are given up", || gateway.recipients(outcome) == recipients);
    let mut listed = Vec::new();
    until("that is on the disk", || {
        listed = list_json(&gateway.spool);
        listed.iter().all(|entry| entry["status"] == "failed")
    });
    listed.sort_by_key(|entry| entry["id"].to_string());
    listed
}

/// Whether a message is the one with this id.
fn is(message: &Message, id: &str) -> bool {
    split_received(&message.content).0.contains(&format!(" id {id};"))
}

/// Asserts that a message has arrived as it must: our field in front, nothing else changed.
#[track_caller]
fn assert_arrived(what: &str, message: &Message, id: &str, expected: &[u8]) {
    let (field, content) = split_received(&message.content);
    assert!(is(message, id), "{what}: {field}");
    assert_same(what, &content, expected);
}

/// Content, and what must arrive of it (CONFORMANCE G8).
fn shapes() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let with_header = |body: &[u8]| [b"Subject: test\r\n\r\n", body].concat();
    let lines = |octets: usize| b"0123456789 the same on every line\r\n".repeat(octets / 35);
    let same = [
        ("no octet at all", Vec::new()),
        ("a header and no body", b"Subject: test\r\n".to_vec()),
        ("an empty body", with_header(b"")),
        ("empty lines", with_header(&b"\r\n".repeat(50))),
        ("dots", with_header(b".\r\n..\r\n...\r\n.x\r\n..x\r\nx.\r\n.\r\n")),
        ("a dot on the first line", b".Subject: x\r\n\r\nbody\r\n".to_vec()),
        ("what looks like SMTP", with_header(b"QUIT\r\n.QUIT\r\nRSET\r\nMAIL FROM:<a@b.example>\r\n")),
        ("one long line of dots", with_header(&[&[b'.'; 100_000][..], b"\r\n"].concat())),
        ("300 KB", with_header(&lines(300 << 10))),
        ("3 MB of dots", with_header(&b".dots at the start\r\n..\r\n".repeat((3 << 20) / 24))),
    ];
    let mut all: Vec<_> = same.into_iter().map(|(name, content)| (name, content.clone(), content)).collect();
    for (name, body, arrives) in [
        (
            "bare LF",
            &b"one\n.\nMAIL FROM:<a@b.example>\n..\n.three\r\n"[..],
            &b"one\r\n.\r\nMAIL FROM:<a@b.example>\r\n..\r\n.three\r\n"[..],
        ),
        ("bare CR", b"one\rtwo\r\r\n\r.\r\n", b"one two \r\n .\r\n"),
        ("LF and dot and CRLF", b"a\n.\r\nb\r\n", b"a\r\n.\r\nb\r\n"),
    ] {
        all.push((name, with_header(body), with_header(arrives)));
    }
    all
}

/// Sends all shapes through one gateway to a next hop of some kind.
fn every_shape_arrives(hop: &NextHop, check: impl Fn(&Message)) {
    let scratch = Scratch::new();
    let gateway = forwarding(&scratch.join("spool"), &[next_hop(hop)]);
    let mut client = gateway.session();
    let sent: Vec<_> = shapes()
        .into_iter()
        .enumerate()
        .map(|(number, (name, content, expected))| {
            let from = if number % 5 == 0 { String::new() } else { format!("sender+{number}@client.example") };
            let id = client.deliver(&from, &[TO], &content);
            (name, from, id, expected)
        })
        .collect();
    client.quit();
    gateway.until_delivered();
    let arrived = hop.messages();
    assert_eq!(arrived.len(), sent.len());
    for (name, from, id, expected) in sent {
        let message = arrived.iter().find(|message| is(message, &id));
        let message = message.unwrap_or_else(|| panic!("{name} has not arrived"));
        assert_arrived(name, message, &id, &expected);
        let path = message.mail.split(' ').take(2).collect::<Vec<_>>().join(" ");
        assert_eq!(path, format!("MAIL FROM:<{from}>"), "{name}");
        assert_eq!(message.recipients(), [TO], "{name}");
        check(message);
    }
    gateway.stop();
}

fn without(extensions: &[&str]) -> Vec<&'static str> {
    EXTENSIONS.iter().copied().filter(|offer| !extensions.iter().any(|left_out| offer.starts_with(left_out))).collect()
}

#[test]
fn every_shape_arrives_by_chunks() {
    every_shape_arrives(&NextHop::start(), |message| {
        assert!(message.by_chunks);
        assert_eq!(message.hello, "EHLO mx.test.example");
        let size = format!(" SIZE={}", message.content.len());
        assert!(format!("{} ", message.mail).contains(&format!("{size} ")), "{}", message.mail);
    });
}

#[test]
fn every_shape_arrives_by_data() {
    every_shape_arrives(&NextHop::offering(&without(&["CHUNKING"])), |message| assert!(!message.by_chunks));
}

#[test]
fn every_shape_arrives_without_pipelining() {
    every_shape_arrives(&NextHop::offering(&without(&["PIPELINING"])), |_| {});
    every_shape_arrives(&NextHop::offering(&without(&["PIPELINING", "CHUNKING"])), |_| {});
}

#[test]
fn every_shape_arrives_where_only_helo_is_known() {
    let hop = NextHop::scripted(first(usize::MAX, Verb::Ehlo, Act::Say("502 5.5.1 Unknown command")));
    every_shape_arrives(&hop, |message| {
        assert_eq!(message.hello, "HELO mx.test.example");
        assert_eq!(message.mail.matches(' ').count(), 1, "no parameters: {}", message.mail);
    });
}

#[test]
fn parameters_are_passed_on_where_they_are_offered() {
    let content = "Subject: Grüße\r\n\r\nñandú\r\n".as_bytes();
    let send = |client: &mut Client, to: &str| {
        client.expect(&format!("MAIL FROM:<{FROM}> BODY=8BITMIME RET=HDRS ENVID=a+2Bb"), "250 2.1.0 Sender OK");
        let rcpt = format!("RCPT TO:<one@{to}.test.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;One+2B@x.example");
        client.expect(&rcpt, "250 2.1.5 Recipient OK");
        client.expect(&format!("RCPT TO:<two@{to}.test.example> NOTIFY=NEVER"), "250 2.1.5 Recipient OK");
        queue_id(&client.data(content))
    };
    let (all, no_dsn) = (NextHop::start(), NextHop::offering(&without(&["DSN", "SIZE"])));
    let seven_bit = NextHop::offering(&without(&["8BITMIME", "CHUNKING"]));
    let scratch = Scratch::new();
    let routes = [("all", &all), ("no-dsn", &no_dsn), ("seven-bit", &seven_bit)];
    let routes = routes.map(|(name, hop)| route(&format!("{name}.test.example"), hop));
    let gateway = forwarding(&scratch.join("spool"), &routes);
    let mut client = gateway.session();
    let ids = ["all", "no-dsn"].map(|to| send(&mut client, to));
    for (hop, id) in [(&all, &ids[0]), (&no_dsn, &ids[1])] {
        let message = &hop.wait(1)[0];
        assert_arrived("with parameters", message, id, content);
        let words: HashSet<&str> = message.mail.split(' ').collect();
        assert!(words.contains("BODY=8BITMIME"), "{}", message.mail);
        if std::ptr::eq(hop, &all) {
            assert!(words.contains("RET=HDRS") && words.contains("ENVID=a+2Bb"), "{}", message.mail);
            let [one, two] = [&message.rcpt[0], &message.rcpt[1]].map(|line| line.split(' ').collect::<HashSet<_>>());
            assert!(one.contains("NOTIFY=SUCCESS,DELAY") && one.contains("ORCPT=rfc822;One+2B@x.example"), "{one:?}");
            assert!(two.contains("NOTIFY=NEVER"), "{two:?}");
        }
    }
    gateway.until_delivered();
    // Octets above 127 are never given to whom they would be spoilt by.
    send(&mut client, "seven-bit");
    let entry = failed(&gateway, "failed", 2.0).remove(0);
    let outcomes = entry["outcomes"].as_array().expect("outcomes");
    assert!(outcomes.len() == 2 && outcomes.iter().all(|outcome| outcome["status"] == "failed"), "{entry}");
    assert!(outcomes[0]["reply"].as_str().is_some_and(|reply| reply.contains("5.6.3")), "{entry}");
    // Seven bits are, whatever they were said to be.
    client.expect("MAIL FROM:<> BODY=8BITMIME", "250 2.1.0 Sender OK");
    client.expect("RCPT TO:<x@seven-bit.test.example>", "250 2.1.5 Recipient OK");
    let id = queue_id(&client.data(CONTENT));
    assert_arrived("seven bits", &seven_bit.wait(1)[0], &id, CONTENT);
}

#[test]
fn each_next_hop_gets_its_recipients() {
    let hops: Vec<NextHop> = (0..4).map(|_| NextHop::start()).collect();
    let mut options: Vec<String> =
        (0..3).map(|number| route(&format!("r{number}.test.example"), &hops[number])).collect();
    options.push(next_hop(&hops[3]));
    let scratch = Scratch::new();
    let gateway = forwarding(&scratch.join("spool"), &options);
    let domains = ["r0.test.example", "R1.Test.example", "r2.test.example", "test.example"];
    let recipients: Vec<String> = (0..199).map(|number| format!("rcpt-{number}@{}", domains[number % 4])).collect();
    let mut all: Vec<&str> = recipients.iter().map(String::as_str).collect();
    all.insert(77, "Postmaster");
    let id = gateway.session().deliver(FROM, &all, CONTENT);
    gateway.until_delivered();
    for (number, hop) in hops.iter().enumerate() {
        let messages = hop.messages();
        let mut got: Vec<&str> = messages.iter().flat_map(Message::recipients).collect();
        let mut expected: Vec<&str> = recipients.iter().skip(number).step_by(4).map(String::as_str).collect();
        if number == 3 {
            expected.push("Postmaster");
        }
        got.sort_unstable();
        expected.sort_unstable();
        assert_eq!(got, expected, "next hop {number}");
        messages.iter().for_each(|message| assert_arrived("two hundred", message, &id, CONTENT));
    }
    gateway.stop();
}

#[test]
fn mail_waits_for_a_next_hop_that_is_down() {
    let (hop, scratch) = (NextHop::start(), Scratch::new());
    hop.stop();
    let gateway = forwarding(&scratch.join("spool"), &[next_hop(&hop)]);
    let mut client = gateway.session();
    let mut ids: Vec<String> = (0..5).map(|_| client.deliver(FROM, &[TO], CONTENT)).collect();
    let mut listed = list_json(&gateway.spool);
    assert!(listed.iter().all(|entry| entry["status"] == "queued" && entry["outcomes"].is_null()), "{listed:?}");
    listed.sort_by_key(|entry| entry["id"].to_string());
    ids.sort();
    assert_eq!(listed.iter().map(|entry| entry["id"].as_str().expect("an id")).collect::<Vec<_>>(), ids);
    hop.restart();
    gateway.until_delivered();
    assert_eq!(hop.messages().len(), 5);
    // And when it goes away later.
    hop.stop();
    client.deliver(FROM, &[TO], CONTENT);
    hop.restart();
    gateway.until_delivered();
    assert_eq!(hop.messages().len(), 6);
    end(gateway);
}

#[test]
fn mail_in_the_queue_survives_the_end_of_the_process() {
    let (hop, scratch) = (NextHop::start(), Scratch::new());
    let spool = scratch.join("spool");
    hop.stop();
    let mut sent = Vec::new();
    for round in 0..4 {
        let gateway = forwarding(&spool, &[next_hop(&hop)]);
        let mut client = gateway.session();
        for number in 0..10 {
            let content = [CONTENT, &b"line\r\n".repeat(if number == 5 { 60_000 } else { round })].concat();
            sent.push((client.deliver(FROM, &[TO], &content), content));
        }
        if round % 2 == 0 {
            end(gateway)
        } else {
            gateway.kill()
        }
        assert_eq!(list_json(&spool).len(), sent.len());
    }
    hop.restart();
    let gateway = forwarding(&spool, &[next_hop(&hop)]);
    gateway.until_delivered();
    let arrived = hop.messages();
    assert_eq!(arrived.len(), sent.len());
    for (id, content) in sent {
        let message = arrived.iter().find(|message| is(message, &id)).expect("it has arrived");
        assert_arrived("after restarts", message, &id, &content);
    }
    gateway.kill();
    // What was delivered is not known to be until that is on the disk; the queue was empty.
    let gateway = forwarding(&spool, &[next_hop(&hop)]);
    assert_eq!(list_json(&spool).len(), 0);
    gateway.stop();
    assert_eq!(hop.messages().len(), arrived.len());
}

#[test]
fn a_delivery_that_has_begun_is_finished_before_the_end() {
    let open = Arc::new(AtomicBool::new(false));
    let (hop, scratch) = (NextHop::scripted(first(1, Verb::End, Act::Hold(open.clone()))), Scratch::new());
    let spool = scratch.join("spool");
    let mut gateway = forwarding(&spool, &[next_hop(&hop), "--drain-timeout=1h".to_owned()]);
    gateway.session().deliver(FROM, &[TO], CONTENT);
    hop.wait(1);
    gateway.signal(Signal::TERM);
    assert!(gateway.line().starts_with("draining: "));
    open.store(true, Ordering::Release);
    assert_eq!(gateway.wait(), (Some(0), String::new()));
    assert_eq!((list_json(&spool).len(), hop.messages().len()), (0, 1));
}

/// Routes of their own for these cases, one message for each: they must arrive, and only once
/// unless `twice` allows more.
fn arrives_after(cases: Vec<(String, NextHop)>, options: &[&str], twice: impl Fn(&str) -> bool) {
    let scratch = Scratch::new();
    let mut all: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
    all.extend(cases.iter().map(|(name, hop)| route(&format!("{name}.test.example"), hop)));
    let gateway = forwarding(&scratch.join("spool"), &all);
    let mut client = gateway.session();
    // Amid the content means: more of it than the kernel's buffers hold.
    let large = [CONTENT, &b"line after line\r\n".repeat(300_000)].concat();
    let content = |name: &str| if name.starts_with("body") { &large[..] } else { CONTENT };
    let ids: Vec<String> = cases
        .iter()
        .map(|(name, _)| client.deliver(FROM, &[&format!("rcpt@{name}.test.example")], content(name)))
        .collect();
    gateway.until_delivered();
    for ((name, hop), id) in cases.iter().zip(ids) {
        // The next hop notes that it has answered when the reply is gone, perhaps already read.
        until(name, || hop.messages().iter().any(|message| message.answered));
        let messages = hop.messages();
        assert!(messages.len() == 1 || twice(name), "{name}: {} copies", messages.len());
        messages.iter().for_each(|message| assert_arrived(name, message, &id, content(name)));
    }
    end(gateway);
}

#[test]
fn temporary_refusals_are_tried_again() {
    let mut cases = Vec::new();
    for (name, verb, reply) in [
        ("connect", Verb::Connect, "451 4.3.0 later"),
        ("connect-421", Verb::Connect, "421 4.3.2 Next hop is closing"),
        // What is wrong with the next hop is not the message's fault.
        ("connect-554", Verb::Connect, "554 5.3.2 no service"),
        ("ehlo", Verb::Ehlo, "451-4.3.0 not\r\n451 4.3.0 now"),
        ("ehlo-421", Verb::Ehlo, "421 4.3.2 Next hop is closing"),
        ("mail", Verb::Mail, "451 4.3.0 later"),
        ("mail-421", Verb::Mail, "421 4.3.2 Next hop is closing"),
        ("rcpt", Verb::Rcpt, "450 4.2.1 greylisted"),
        ("rcpt-421", Verb::Rcpt, "421 4.3.2 Next hop is closing"),
        ("data", Verb::Data, "451 4.3.0 later"),
        ("data-421", Verb::Data, "421 4.3.2 Next hop is closing"),
        ("body", Verb::Body, "451 4.3.0 full"),
        ("body-421", Verb::Body, "421 4.3.2 Next hop is closing"),
        ("end", Verb::End, "452 4.3.1 full"),
        ("end-421", Verb::End, "421 4.3.2 Next hop is closing"),
        ("rset", Verb::Rset, "421 4.3.2 Next hop is closing"),
        ("quit", Verb::Quit, "421 4.3.2 Next hop is closing"),
    ] {
        for (kind, offer) in [("", EXTENSIONS.to_vec()), ("-plain", without(&["CHUNKING", "PIPELINING"]))] {
            let hop = NextHop::offering(&offer);
            hop.script(first(2, verb, Act::Say(reply)));
            cases.push((format!("{name}{kind}"), hop));
        }
    }
    arrives_after(cases, &[], |_| false);
}

#[test]
fn mishaps_are_tried_again() {
    let verbs = [
        ("connect", Verb::Connect),
        ("ehlo", Verb::Ehlo),
        ("mail", Verb::Mail),
        ("rcpt", Verb::Rcpt),
        ("data", Verb::Data),
        ("body", Verb::Body),
        ("end", Verb::End),
        ("quit", Verb::Quit),
    ];
    for offer in [EXTENSIONS.to_vec(), without(&["CHUNKING", "PIPELINING"])] {
        let mut cases = Vec::new();
        for (action, act) in [("reset", Act::Reset), ("close", Act::Close), ("garbage", Act::Garbage)] {
            for (name, verb) in verbs {
                let hop = NextHop::offering(&offer);
                hop.script(first(2, verb, act.clone()));
                cases.push((format!("{name}-{action}"), hop));
            }
        }
        arrives_after(cases, &[], |name| {
            // A next hop that goes on reading may have read to the end.
            name.starts_with("end-") || name == "body-garbage"
        });
    }
}

#[test]
fn silence_is_given_up_and_tried_again() {
    let mut cases = Vec::new();
    for (name, verb) in [
        ("connect", Verb::Connect),
        ("ehlo", Verb::Ehlo),
        ("mail", Verb::Mail),
        ("rcpt", Verb::Rcpt),
        ("data", Verb::Data),
        ("body", Verb::Body),
        ("end", Verb::End),
    ] {
        for (kind, offer) in [("", EXTENSIONS.to_vec()), ("-plain", without(&["CHUNKING", "PIPELINING"]))] {
            let hop = NextHop::offering(&offer);
            hop.script(first(1, verb, Act::Hang));
            cases.push((format!("{name}{kind}"), hop));
        }
    }
    arrives_after(cases, &["--next-hop-timeout=3s"], |name| name.starts_with("end"));
}

#[test]
fn a_connection_that_the_next_hop_has_forgotten_is_noticed() {
    let (hop, scratch) = (NextHop::start(), Scratch::new());
    hop.stop();
    // Far more than the test's patience: silence alone must not end the wait for the greeting.
    let gateway = forwarding(&scratch.join("spool"), &[next_hop(&hop), "--next-hop-timeout=1h".to_owned()]);
    hop.forget_a_connection(|| drop(gateway.session().deliver(FROM, &[TO], CONTENT)));
    hop.restart();
    // What another connection shows is newer than the end of that one.
    gateway.session().deliver(FROM, &[TO], CONTENT);
    hop.wait(1);
    gateway.until_delivered();
    assert_eq!(hop.messages().len(), 2);
    assert!(!gateway.stderr().contains("cannot be reached"), "it is down for a connection of before");
    gateway.stop();
}

#[test]
fn permanent_refusals_are_kept_and_not_tried_again() {
    let (all, plain) = (EXTENSIONS.to_vec(), without(&["PIPELINING", "CHUNKING"]));
    let cases = [
        ("mail", Verb::Mail, "550 5.7.1 not from you", &all),
        ("mail-plain", Verb::Mail, "550 not from you", &plain),
        ("rcpt", Verb::Rcpt, "550 5.1.1 no such user", &all),
        ("rcpt-plain", Verb::Rcpt, "553-5.1.1 no\r\n553 5.1.1 such user", &plain),
        ("data-plain", Verb::Data, "554 5.6.0 no", &plain),
        ("end", Verb::End, "552 5.3.4 too large", &all),
        ("end-plain", Verb::End, "552 5.3.4 too large", &plain),
    ];
    let hops = cases.each_ref().map(|(.., offer)| NextHop::offering(offer));
    let domains = cases.map(|(name, ..)| format!("{name}.test.example"));
    let routes: Vec<String> = domains.iter().zip(&hops).map(|(domain, hop)| route(domain, hop)).collect();
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let send = |gateway: &Gateway| {
        let mut client = gateway.session();
        domains.each_ref().map(|domain| client.deliver(FROM, &[&format!("rcpt@{domain}")], CONTENT))
    };
    for (hop, (_, verb, reply, _)) in hops.iter().zip(&cases) {
        hop.script(first(1, *verb, Act::Say(reply)));
    }
    let gateway = forwarding(&spool, &routes);
    let mut refused: Vec<_> = send(&gateway).into_iter().zip(&cases).zip(&domains).collect();
    refused.sort_by(|((one, _), _), ((other, _), _)| one.cmp(other));
    let count = cases.len() as f64;
    let kept = failed(&gateway, "failed", count);
    for (entry, ((id, (_, _, reply, _)), domain)) in kept.iter().zip(&refused) {
        let reply = reply.lines().last();
        let outcomes = serde_json::json!([{ "to": format!("rcpt@{domain}"), "status": "failed", "reply": reply }]);
        assert_eq!((entry["id"].as_str(), &entry["outcomes"]), (Some(id.as_str()), &outcomes));
    }
    // Others are served, also after a restart; what was refused does not come back.
    let second = send(&gateway);
    let only_those_are_left = |gateway: &Gateway| gateway.metric("gatepost_queue_messages") == count;
    until("only the refused are left", || only_those_are_left(&gateway));
    gateway.kill();
    let gateway = forwarding(&spool, &routes);
    let third = send(&gateway);
    until("only the refused are left", || only_those_are_left(&gateway));
    // No fact tells that nothing will come; too short a time could only hide a fault.
    std::thread::sleep(Duration::from_secs(1));
    for (index, hop) in hops.iter().enumerate() {
        let messages = hop.messages();
        let got = messages.len() == 2 && is(&messages[0], &second[index]) && is(&messages[1], &third[index]);
        assert!(got, "{}: {} messages", domains[index], messages.len());
    }
    assert_eq!(failed(&gateway, "failed", 0.0), kept);
    end(gateway);
}

#[test]
fn each_recipient_has_its_own_outcome() {
    let offers = [EXTENSIONS.to_vec(), without(&["CHUNKING"]), without(&["CHUNKING", "PIPELINING"])];
    let hops = offers.map(|offer| NextHop::offering(&offer));
    let domains = [0, 1, 2].map(|number| format!("r{number}.test.example"));
    let routes: Vec<String> = domains.iter().zip(&hops).map(|(domain, hop)| route(domain, hop)).collect();
    let scratch = Scratch::new();
    let gateway = forwarding(&scratch.join("spool"), &routes);
    let mut client = gateway.session();
    let mut sent = Vec::new();
    for (hop, domain) in hops.iter().zip(&domains) {
        let later = AtomicBool::new(true);
        hop.script(move |step: Step<'_>| match step.verb {
            Verb::Rcpt if step.line.contains("<later@") && later.swap(false, Ordering::AcqRel) => {
                Act::Say("451 4.2.1 later")
            }
            Verb::Rcpt if step.line.contains("<never@") => Act::Say("550 5.1.1 no such user"),
            _ => Act::Go,
        });
        let recipients = ["now", "later", "never"].map(|name| format!("{name}@{domain}"));
        sent.push((client.deliver(FROM, &recipients.each_ref().map(String::as_str), CONTENT), recipients));
    }
    until("the rest is delivered", || gateway.recipients("delivered") == 6.0);
    let listed = failed(&gateway, "failed", 3.0);
    for ((id, [now, later, never]), hop) in sent.iter().zip(&hops) {
        let entry = listed.iter().find(|entry| entry["id"] == id.as_str()).expect("listed");
        let outcomes = serde_json::json!([
            { "to": now, "status": "delivered" },
            { "to": later, "status": "delivered" },
            { "to": never, "status": "failed", "reply": "550 5.1.1 no such user" },
        ]);
        assert_eq!(entry["outcomes"], outcomes);
        let messages = hop.messages();
        let got: Vec<_> = messages.iter().map(Message::recipients).collect();
        assert_eq!(got, [[now], [later]]);
        messages.iter().for_each(|message| assert_arrived("mixed", message, id, CONTENT));
        assert_eq!(hop.count(Verb::Rcpt), 4, "nobody is asked again who was settled");
    }
    gateway.stop();
}

#[test]
fn mail_expires() {
    let (refusing, down, scratch) = (NextHop::start(), NextHop::start(), Scratch::new());
    refusing.script(first(usize::MAX, Verb::Rcpt, Act::Say("450 4.2.1 greylisted")));
    down.stop();
    let options =
        [route("a.test.example", &refusing), route("b.test.example", &down), "--queue-lifetime=2s".to_owned()];
    let gateway = forwarding(&scratch.join("spool"), &options);
    gateway.session().deliver(FROM, &["x@a.test.example", "x@b.test.example"], CONTENT);
    let entry = failed(&gateway, "expired", 2.0).remove(0);
    let outcomes = entry["outcomes"].as_array().expect("outcomes");
    assert!(outcomes.len() == 2 && outcomes.iter().all(|outcome| outcome["status"] == "expired"), "{entry}");
    down.restart();
    refusing.script(|_| Act::Go);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((refusing.messages().len(), down.messages().len()), (0, 0));
    end(gateway);
}

#[test]
fn a_next_hop_that_hangs_stops_no_other() {
    let open = Arc::new(AtomicBool::new(false));
    let (hanging, good, scratch) = (NextHop::start(), NextHop::start(), Scratch::new());
    hanging.script(first(usize::MAX, Verb::End, Act::Hold(open.clone())));
    let options = [route("hanging.test.example", &hanging), next_hop(&good)];
    let gateway = forwarding(&scratch.join("spool"), &options);
    let mut client = gateway.session();
    // More than may be on their way to one next hop at once.
    for _ in 0..100 {
        client.deliver(FROM, &["rcpt@hanging.test.example"], CONTENT);
    }
    hanging.wait(1);
    for _ in 0..100 {
        client.deliver(FROM, &[TO], CONTENT);
    }
    // To both: the good one need not wait for the other.
    client.deliver(FROM, &["rcpt@hanging.test.example", TO], CONTENT);
    good.wait(101);
    assert!(hanging.messages().iter().all(|message| !message.answered));
    open.store(true, Ordering::Release);
    gateway.until_delivered();
    assert_eq!((hanging.messages().len(), good.messages().len()), (101, 101));
    gateway.stop();
}

#[test]
fn the_second_next_hop_stands_in_for_the_first() {
    let (one, two, scratch) = (NextHop::start(), NextHop::start(), Scratch::new());
    one.stop();
    let gateway = forwarding(&scratch.join("spool"), &[next_hop(&one), next_hop(&two)]);
    let mut client = gateway.session();
    (0..5).for_each(|_| drop(client.deliver(FROM, &[TO], CONTENT)));
    gateway.until_delivered();
    assert_eq!(two.messages().len(), 5);
    one.restart();
    let mut sent = 5;
    until("the first is used again", || {
        client.deliver(FROM, &[TO], CONTENT);
        sent += 1;
        gateway.until_delivered();
        !one.messages().is_empty()
    });
    assert_eq!(one.messages().len() + two.messages().len(), sent);
    // Both away, then only the second back.
    one.stop();
    two.stop();
    client.deliver(FROM, &[TO], CONTENT);
    two.restart();
    gateway.until_delivered();
    assert_eq!(one.messages().len() + two.messages().len(), sent + 1);
    end(gateway);
}

#[test]
fn connections_are_used_again() {
    for offer in [EXTENSIONS.to_vec(), without(&["CHUNKING", "PIPELINING"])] {
        let (hop, scratch) = (NextHop::offering(&offer), Scratch::new());
        let gateway = forwarding(&scratch.join("spool"), &[next_hop(&hop)]);
        let mut client = gateway.session();
        for number in 1..=20 {
            client.deliver(FROM, &[TO], CONTENT);
            hop.wait(number);
        }
        gateway.until_delivered();
        assert_eq!(hop.messages().len(), 20);
        let used: HashSet<usize> = hop.messages().iter().map(|message| message.connection).collect();
        assert!(used.len() < 20, "{} connections for 20 messages", used.len());
        // A next hop that ends a connection while it is idle costs nothing.
        hop.stop();
        hop.restart();
        client.deliver(FROM, &[TO], CONTENT);
        gateway.until_delivered();
        assert_eq!(hop.messages().len(), 21);
        end(gateway);
    }
}

#[test]
fn without_a_next_hop_mail_is_held_until_there_is_one() {
    let (hop, scratch) = (NextHop::start(), Scratch::new());
    let spool = scratch.join("spool");
    let gateway = forwarding(&spool, &[]);
    let id = gateway.session().deliver(FROM, &[TO, "rcpt@a.test.example"], CONTENT);
    assert_eq!(list_json(&spool)[0]["status"], "queued");
    gateway.stop();
    // For one of its recipients, then for the other.
    let gateway = forwarding(&spool, &[route("a.test.example", &hop)]);
    assert_eq!(hop.wait(1)[0].recipients(), ["rcpt@a.test.example"]);
    until("that is known", || gateway.recipients("delivered") == 1.0);
    gateway.stop();
    assert!(list_json(&spool)[0]["outcomes"].is_array());
    let gateway = forwarding(&spool, &[next_hop(&hop)]);
    gateway.until_delivered();
    gateway.stop();
    let messages = hop.messages();
    assert_eq!(messages.iter().map(Message::recipients).collect::<Vec<_>>(), [["rcpt@a.test.example"], [TO]]);
    messages.iter().for_each(|message| assert_arrived("held", message, &id, CONTENT));
}

#[test]
fn what_comes_while_a_message_is_sent_is_not_lost() {
    // Everything at once, from a client that does not wait for replies.
    let (hop, scratch) = (NextHop::start(), Scratch::new());
    let gateway = forwarding(&scratch.join("spool"), &[next_hop(&hop)]);
    let mut client = gateway.session();
    let envelope = format!("MAIL FROM:<{FROM}>\r\nRCPT TO:<{TO}>\r\nDATA\r\n");
    for _ in 0..200 {
        client.send([envelope.as_bytes(), &stuffed(CONTENT)].concat());
    }
    for _ in 0..200 {
        let replies: [String; 4] = std::array::from_fn(|_| client.reply());
        queue_id(&replies[3]);
    }
    gateway.until_delivered();
    assert_eq!(hop.messages().len(), 200);
    gateway.stop();
}
