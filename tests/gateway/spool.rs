//! The spool's files: spilled messages, what an abort leaves, and shards that are no more.

use crate::harness::{Client, Scratch, assert_same, assert_stored, files, list, start, stored, until};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const FROM: &str = "sender@client.example";
const TO: &str = "rcpt@test.example";

fn content(octets: usize) -> Vec<u8> {
    let mut content = b"Subject: x\r\n\r\n".to_vec();
    while content.len() < octets {
        content.extend_from_slice(format!("line at {}\r\n", content.len()).as_bytes());
    }
    content
}

fn assert_all_stored(spool: &Path, messages: &[(String, Vec<u8>)]) {
    let stored = stored(spool);
    assert_eq!(stored.len(), messages.len());
    for (id, expected) in messages {
        let (_, _, content) = stored.iter().find(|(entry, ..)| entry.id == *id).expect("listed");
        assert_same(id, content, expected);
    }
}

/// A session in the middle of a message that has spilled.
fn sending(gateway: &crate::harness::Gateway, source: &str) -> Client {
    let mut client = gateway.session_from(source);
    client.expect(&format!("MAIL FROM:<{FROM}>"), "250 2.1.0 Sender OK");
    client.expect(&format!("RCPT TO:<{TO}>"), "250 2.1.5 Recipient OK");
    client.expect("DATA", "354 Start mail input; end with <CRLF>.<CRLF>");
    client.send(content(600_000));
    client
}

#[test]
fn large_messages_have_files_of_their_own() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    let mut client = gateway.session();
    let small = client.deliver(FROM, &[TO], &content(200_000));
    assert_eq!(gateway.files("spill-").len(), 0);
    let large = client.deliver(FROM, &[TO], &content(400_000));
    let larger = client.deliver(FROM, &[TO], &content(4_000_000));
    client.quit();
    let mut names: Vec<String> = gateway
        .files("spill-")
        .iter()
        .map(|path| path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned())
        .collect();
    names.sort();
    let mut expected = vec![format!("spill-{large}"), format!("spill-{larger}")];
    expected.sort();
    assert_eq!(names, expected);
    let spool = gateway.spool.clone();
    // Mail is nobody else's business.
    for path in
        [files(&spool, "spill-"), files(&spool, "segment-"), vec![spool.join("shard-0"), spool.clone()]].concat()
    {
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
    let messages = [(small, content(200_000)), (large, content(400_000)), (larger, content(4_000_000))];
    assert_all_stored(&spool, &messages);
    gateway.stop();
    let gateway = start(&spool, &[]);
    assert_all_stored(&spool, &messages);
    gateway.kill();
    start(&spool, &[]).stop();
    assert_eq!(files(&spool, "spill-").len(), 2);
    assert_eq!(list(&spool).len(), 3);
}

#[test]
fn an_aborted_transfer_leaves_no_file() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--max-message-size=1MB"]);
    let spilled = |count: usize| until("the message spills", || gateway.files("spill-").len() == count);
    let gone = || until("its file is removed", || gateway.files("spill-").is_empty());
    sending_ended_by(&gateway, Client::reset, &spilled, &gone);
    sending_ended_by(&gateway, drop, &spilled, &gone);
    // Too large: at the end of data nothing is left, and the session goes on.
    let mut client = sending(&gateway, "127.8.0.2");
    spilled(1);
    client.send(content(1 << 20));
    client.send("\r\n.\r\n");
    assert_eq!(client.reply(), "552 5.3.4 Message size exceeds fixed maximum message size");
    gone();
    client.deliver(FROM, &[TO], &content(500_000));
    client.quit();
    assert_eq!((gateway.files("spill-").len(), list(&gateway.spool).len()), (1, 1));
    assert_eq!(gateway.metric("gatepost_body_memory_bytes"), 0.0);
    gateway.stop();
}

fn sending_ended_by(
    gateway: &crate::harness::Gateway,
    end: impl Fn(Client),
    spilled: &impl Fn(usize),
    gone: &impl Fn(),
) {
    let clients: Vec<Client> = (1..=3).map(|number| sending(gateway, &format!("127.8.0.{number}"))).collect();
    spilled(3);
    clients.into_iter().for_each(end);
    gone();
    gateway.until_empty();
}

#[test]
fn timers_and_shutdown_leave_no_file() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let mut gateway = start(&spool, &["--inactivity-timeout=2s", "--drain-timeout=200ms"]);
    let mut client = sending(&gateway, "127.8.1.1");
    until("the message spills", || gateway.files("spill-").len() == 1);
    assert_eq!(client.reply(), crate::harness::D2);
    until("its file is removed", || gateway.files("spill-").is_empty());
    let mut client = sending(&gateway, "127.8.1.2");
    until("the message spills", || gateway.files("spill-").len() == 1);
    gateway.signal(rustix::process::Signal::TERM);
    assert_eq!(client.reply(), crate::harness::SHUTDOWN);
    assert_eq!(gateway.wait(), (Some(0), String::new()));
    // Removed at the end, or by the next start at the latest.
    start(&spool, &[]).stop();
    assert_eq!(files(&spool, "spill-").len(), 0);
    assert_eq!(list(&spool).len(), 0);
}

#[test]
fn a_kill_in_the_middle_of_a_message_leaves_nothing_after_the_next_start() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let gateway = start(&spool, &[]);
    let id = gateway.session().deliver(FROM, &[TO], &content(500_000));
    let client = sending(&gateway, "127.8.2.1");
    until("the message spills", || gateway.files("spill-").len() == 2);
    gateway.kill();
    drop(client);
    assert_eq!(files(&spool, "spill-").len(), 2);
    start(&spool, &[]).stop();
    assert_eq!(files(&spool, "spill-").len(), 1, "what nobody was promised goes");
    assert_stored(&spool, &id, &content(500_000));
    assert_eq!(list(&spool).len(), 1);
}

#[test]
fn shards_that_are_no_more_keep_their_messages() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let gateway = start(&spool, &["--shards=3", "--max-connections-per-source=0"]);
    let mut messages = Vec::new();
    // Until each shard has a message, of both kinds.
    until("all shards have mail", || {
        let body = content(if messages.len() % 2 == 0 { 1000 } else { 300_000 });
        let mut client = gateway.session();
        messages.push((client.deliver(FROM, &[TO], &body), body));
        client.quit();
        let used = |prefix: &str, shard: usize| {
            gateway.files(prefix).iter().any(|path| path.starts_with(spool.join(format!("shard-{shard}"))))
        };
        (0..3).all(|shard| used("spill-", shard) && used("segment-", shard))
    });
    gateway.stop();
    for shards in [1, 2, 1, 3] {
        let gateway = start(&spool, &[&format!("--shards={shards}")]);
        let line = gateway.started.iter().find(|line| line.starts_with("spooling to ")).expect("a line");
        assert!(line.contains(&format!("({} messages, ", messages.len())), "{line}");
        let body = format!("with {shards} shards\r\n").into_bytes();
        messages.push((gateway.session().deliver(FROM, &[TO], &body), body));
        assert_eq!(gateway.metric("gatepost_queue_messages"), messages.len() as f64);
        gateway.stop();
        assert_eq!(list(&spool).len(), messages.len());
        assert_all_stored(&spool, &messages);
    }
}

#[test]
fn segments_follow_one_another() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let gateway = start(&spool, &["--shards=1", "--message-rate=0"]);
    let body = content(250_000);
    let mut client = gateway.session();
    // More than one segment of 64 MB.
    let ids: Vec<String> = (0..300).map(|_| client.deliver(FROM, &[TO], &body)).collect();
    client.quit();
    assert!(gateway.files("segment-").len() >= 2);
    gateway.kill();
    for _ in 0..2 {
        let listed: Vec<String> = list(&spool).into_iter().map(|message| message.id).collect();
        assert_eq!(listed, ids);
        start(&spool, &["--shards=1"]).stop();
    }
    let all = crate::harness::cat_all(&spool);
    let messages: Vec<&[u8]> = all.split(|&octet| octet == 0).collect();
    assert_eq!(messages.len(), 301);
    assert!(messages[..300].iter().all(|message| message.ends_with(&body)) && messages[300].is_empty());
}

#[test]
fn the_queue_is_read_while_it_is_written() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--message-rate=0"]);
    let address = gateway.address();
    let mut listed = 0;
    std::thread::scope(|scope| {
        let senders: Vec<_> = (1..=4)
            .map(|number| {
                scope.spawn(move || {
                    let mut client = Client::connect(address, Some([127, 8, 3, number].into()));
                    client.hello();
                    (0..300).for_each(|_| drop(client.deliver(FROM, &[TO], &content(3000))));
                })
            })
            .collect();
        while !senders.iter().all(|sender| sender.is_finished()) {
            // What is on its way is missing or there, and never called damage: these assert it.
            let now = list(&gateway.spool).len();
            assert!(now >= listed, "{listed} were there, now {now}");
            listed = now;
            crate::harness::cat_all(&gateway.spool);
        }
    });
    assert_eq!(list(&gateway.spool).len(), 1200);
}
