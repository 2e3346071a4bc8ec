//! Mail of all shapes comes out of the queue as it went in.

use crate::harness::{Gateway, Scratch, assert_same, assert_stored, cat, list, list_json, start, stored};
use std::path::Path;

const FROM: &str = "sender@client.example";
const TO: &str = "rcpt@test.example";

/// Content, and what must be stored for it.
fn shapes() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let lines = |line: &[u8], count: usize| [line, b"\r\n"].concat().repeat(count);
    let with_header = |body: &[u8]| [b"Subject: test\r\n\r\n", body].concat();
    let every_octet: Vec<u8> = (1..=255_u8).filter(|octet| !b"\r\n".contains(octet)).collect();
    let same = [
        ("no octet at all", Vec::new()),
        ("a header and no body", b"Subject: test\r\n".to_vec()),
        ("an empty body", with_header(b"")),
        ("one empty line", b"\r\n".to_vec()),
        ("a hundred empty lines", lines(b"", 100)),
        ("a dot on every line", with_header(&lines(b".", 500))),
        ("dots and text", with_header(&lines(b"..x.", 500))),
        ("a dot on the first line", lines(b".", 1)),
        ("a dot and text on the first line", b".Subject: x\r\n\r\nbody\r\n".to_vec()),
        ("lines of 998 octets", with_header(&lines(&[b'x'; 998], 20))),
        ("lines of 100,000 octets", with_header(&lines(&[b'y'; 100_000], 5))),
        ("one line of 300,000 dots", with_header(&lines(&[b'.'; 300_000], 1))),
        ("8-bit octets", with_header("Grüße\r\nñandú\r\n".as_bytes())),
        ("every octet but CR, LF and NUL", with_header(&lines(&every_octet, 10))),
        ("a NUL", with_header(b"a\0b\r\n")),
        ("Received fields of others", b"Received: from a by b; now\r\nSubject: x\r\n\r\nbody\r\n".to_vec()),
        ("what looks like SMTP", with_header(b"QUIT\r\nRSET\r\nMAIL FROM:<a@b.example>\r\n")),
        ("as much as stays in the log", with_header(&lines(&[b'i'; 76], 3300))),
        ("more than stays in the log", with_header(&lines(&[b's'; 76], 20_000))),
    ];
    let mut all: Vec<_> = same.into_iter().map(|(name, content)| (name, content.clone(), content)).collect();
    // CONFORMANCE G8: neither ends anything, and a dot behind one is no stuffed dot.
    let stored = [
        ("bare LF", with_header(b"one\ntwo\n.\n..\nthree\r\n"), with_header(b"one\r\ntwo\r\n.\r\n..\r\nthree\r\n")),
        ("bare CR", with_header(b"one\rtwo\r\r\n\r.\r\n"), with_header(b"one two \r\n .\r\n")),
        ("LF and dot and LF", with_header(b"a\n.\nb\r\n"), with_header(b"a\r\n.\r\nb\r\n")),
        ("LF and dot and CRLF", with_header(b"a\n.\r\nb\r\n"), with_header(b"a\r\n.\r\nb\r\n")),
        ("CR and dot and CR", with_header(b"a\r.\rb\r\n"), with_header(b"a . b\r\n")),
    ];
    all.extend(stored);
    all
}

#[test]
fn every_shape_is_stored_octet_by_octet_also_over_restarts() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    // Some have no empty line, and so are all header.
    let gateway = start(&spool, &["--max-header-size=0"]);
    let mut messages = Vec::new();
    let mut client = gateway.session();
    for (number, (name, content, expected)) in shapes().into_iter().enumerate() {
        let from = if number % 5 == 0 { String::new() } else { format!("sender+{number}@client.example") };
        let id = client.deliver(&from, &[TO], &content);
        messages.push((name, id, from, expected));
    }
    client.quit();
    let check = |spool: &Path| {
        let stored = stored(spool);
        assert_eq!(stored.len(), messages.len());
        for (name, id, from, expected) in &messages {
            let (entry, _, content) = stored.iter().find(|(entry, ..)| entry.id == *id).expect("listed");
            assert_same(name, content, expected);
            assert_eq!((entry.from.as_str(), entry.to.as_str()), (format!("<{from}>").as_str(), "<rcpt@test.example>"));
        }
    };
    check(&spool);
    let last = gateway.stop();
    assert_eq!(last.last(), Some(&"drained".to_owned()));
    check(&spool);
    let gateway = start(&spool, &[]);
    let line = gateway.started.iter().find(|line| line.starts_with("spooling to ")).expect("a line");
    assert!(line.contains(&format!("({} messages, ", messages.len())), "{line}");
    check(&spool);
    gateway.kill();
    check(&spool);
    start(&spool, &[]).stop();
    check(&spool);
}

#[test]
fn one_received_field_tells_of_the_arrival() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    for (hello, source, expected) in [
        ("EHLO client.test.example", "127.0.0.1", "from client.test.example ([127.0.0.1])\r\n"),
        ("HELO [127.1.2.3]", "127.1.2.3", "from [127.1.2.3] ([127.1.2.3])\r\n"),
        // What the client says can neither end the field nor forge a clause.
        ("EHLO a(b) by x; <y>", "127.1.2.4", "from a?b??by?x???y? ([127.1.2.4])\r\n"),
    ] {
        let mut client = gateway.connect_from(source);
        client.reply();
        assert!(client.command(hello).starts_with("250"));
        let id = client.deliver(FROM, &[TO], b"Received: from x\r\n\r\n");
        let (field, content) = cat(&gateway.spool, &id);
        let protocol = if hello.starts_with("EHLO") { "ESMTP" } else { "SMTP" };
        let rest = field.strip_prefix(&format!("Received: {expected}")).expect(&field);
        let rest = rest
            .strip_prefix(&format!("\tby mx.test.example (Gatepost) with {protocol} id {id};\r\n\t"))
            .expect(&field);
        assert!(rest.ends_with(" +0000\r\n") && rest.lines().count() == 1, "{field}");
        assert_eq!(content, b"Received: from x\r\n\r\n");
    }
}

#[test]
fn the_size_limit_is_exact() {
    const MAX: usize = 10 << 20;
    let content = |octets: usize| {
        let mut content = b"Subject: large\r\n\r\n".to_vec();
        while content.len() < octets {
            let left = octets - content.len();
            let line = if left > 160 { 80 } else { left };
            // Dots are doubled on the wire and counted once.
            content.resize(content.len() + line - 2, b'.');
            content.extend_from_slice(b"\r\n");
        }
        content
    };
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    let mut client = gateway.session();
    let full = content(MAX);
    assert_eq!(full.len(), MAX);
    let id = client.deliver(FROM, &[TO], &full);
    assert_stored(&gateway.spool, &id, &full);
    let too_large = "552 5.3.4 Message size exceeds fixed maximum message size";
    assert_eq!(client.message(FROM, &[TO], &content(MAX + 1)), too_large);
    assert_eq!(client.message(FROM, &[TO], &content(2 * MAX)), too_large);
    client.expect(&format!("MAIL FROM:<{FROM}> SIZE={}", MAX + 1), too_large);
    client.expect(&format!("MAIL FROM:<{FROM}> SIZE={MAX}"), "250 2.1.0 Sender OK");
    client.expect("RSET", "250 2.0.0 Resetting");
    // The session goes on, and nothing is left of what was refused.
    let id = client.deliver(FROM, &[TO], b"Subject: small\r\n\r\nbody\r\n");
    assert_stored(&gateway.spool, &id, b"Subject: small\r\n\r\nbody\r\n");
    client.quit();
    assert_eq!((list(&gateway.spool).len(), gateway.files("spill-").len()), (2, 1));
    assert_eq!(gateway.refusals("gatepost_refusals_total", "message_size"), 3.0);
    assert_eq!(gateway.metric("gatepost_body_memory_bytes"), 0.0);
    gateway.stop();
}

#[test]
fn two_hundred_recipients_and_not_one_more() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    let mut client = gateway.session();
    client.expect("MAIL FROM:<>", "250 2.1.0 Sender OK");
    let recipients: Vec<String> = (0..200).map(|number| format!("rcpt-{number}@test.example")).collect();
    for (number, recipient) in recipients.iter().enumerate() {
        client.expect(&format!("RCPT TO:<{recipient}>"), "250 2.1.5 Recipient OK");
        if number % 20 == 0 {
            // Refused ones do not count.
            client.expect("RCPT TO:<rcpt@elsewhere.example>", "550 5.7.1 Unable to relay");
        }
    }
    for _ in 0..3 {
        client.expect("RCPT TO:<rcpt-200@test.example>", "452 4.5.3 Too many recipients");
    }
    let content = b"Subject: many\r\n\r\nbody\r\n";
    let reply = client.data(content);
    let id = crate::harness::queue_id(&reply);
    client.quit();
    assert_stored(&gateway.spool, &id, content);
    let listed = list(&gateway.spool);
    let expected: Vec<String> = recipients.iter().map(|recipient| format!("<{recipient}>")).collect();
    assert_eq!((listed[0].from.as_str(), &listed[0].to), ("<>", &expected.join(",")));
}

#[test]
fn addresses_are_kept_as_they_came() {
    let scratch = Scratch::new();
    let gateway: Gateway =
        start(&scratch.join("spool"), &["--default-domain=default.example", "--relay-from=127.9.0.0/16"]);
    let mut client = gateway.session_from("127.9.0.1");
    let mut expected = Vec::new();
    for (from, to, listed_from, listed_to) in [
        ("<MiXed.Case@Client.Example>", "<RCPT@Test.Example>", "<MiXed.Case@Client.Example>", "<RCPT@Test.Example>"),
        ("<\"a.b>c\"@client.example>", "<rcpt@[192.0.2.1]>", "<\"a.b>c\"@client.example>", "<rcpt@[192.0.2.1]>"),
        ("<unqualified>", "<rcpt>", "<unqualified@default.example>", "<rcpt@default.example>"),
        (
            "<@relay.example,@other.example:a@client.example>",
            "<@x.example:r@elsewhere.example>",
            "<a@client.example>",
            "<r@elsewhere.example>",
        ),
    ] {
        client.expect(&format!("MAIL FROM:{from}"), "250 2.1.0 Sender OK");
        client.expect(&format!("RCPT TO:{to}"), "250 2.1.5 Recipient OK");
        let id = crate::harness::queue_id(&client.data(b"x\r\n"));
        expected.push((id, listed_from.to_owned(), listed_to.to_owned()));
    }
    client.quit();
    let mut listed: Vec<_> = list(&gateway.spool).into_iter().map(|entry| (entry.id, entry.from, entry.to)).collect();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
}

#[test]
fn what_the_client_asks_for_in_reports_is_kept_over_a_restart() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    let mut client = gateway.session();
    client.expect("MAIL FROM:<sender@client.example> ret=hdrs ENVID=a+2Bb", "250 2.1.0 Sender OK");
    for (recipient, parameters) in [
        ("one", " NOTIFY=delay,SUCCESS ORCPT=rfc822;One+2B@Test.Example"),
        ("two", ""),
        ("three", " NOTIFY=NEVER"),
        ("four", " ORCPT=x-own;4"),
    ] {
        client.expect(&format!("RCPT TO:<{recipient}@test.example>{parameters}"), "250 2.1.5 Recipient OK");
    }
    crate::harness::queue_id(&client.data(b"x\r\n"));
    client.expect("MAIL FROM:<> ENVID=a+2bb", "501 5.5.4 Invalid arguments");
    client.deliver(FROM, &[TO], b"x\r\n");
    client.quit();
    let spool = gateway.spool.clone();
    gateway.stop();
    start(&spool, &[]).stop();
    let mut listed = list_json(&spool);
    listed.sort_by_key(|entry| entry["id"].to_string());
    let [asked, plain] = &listed[..] else { panic!("two messages: {listed:?}") };
    assert_eq!(asked["to"].as_array().map(Vec::len), Some(4));
    assert_eq!((&asked["ret"], &asked["envid"]), (&"HDRS".into(), &"a+2Bb".into()));
    let wanted = serde_json::json!([
        { "to": "one@test.example", "notify": "SUCCESS,DELAY", "orcpt": "rfc822;One+2B@Test.Example" },
        { "to": "three@test.example", "notify": "NEVER" },
        { "to": "four@test.example", "orcpt": "x-own;4" },
    ]);
    assert_eq!(asked["dsn"], wanted);
    let fields: Vec<&String> = plain.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["arrived", "body", "client", "from", "helo", "id", "octets", "status", "to"]);
}
