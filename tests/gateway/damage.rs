//! Damage on the disk between a message's acknowledgement and its delivery: the next hop never gets
//! what is not the message, the operator is told, and the mail around it goes its way.

use crate::harness::{Gateway, Scratch, assert_same, split_received, start, until};
use crate::next_hop::{EXTENSIONS, NextHop};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const FROM: &str = "sender@client.example";
const TO: &str = "rcpt@test.example";

fn content(name: &str, octets: usize) -> Vec<u8> {
    let line = format!("this is {name}\r\n");
    [b"Subject: x\r\n\r\n", line.repeat(octets / line.len()).as_bytes()].concat()
}

/// Where `needle` is in some file, from its last occurrence on.
fn find(files: &[PathBuf], needle: &str) -> (PathBuf, u64) {
    let found = files.iter().find_map(|path| {
        let octets = fs::read(path).expect("a file");
        let at = memchr::memmem::rfind(&octets, needle.as_bytes())?;
        Some((path.clone(), at as u64))
    });
    found.unwrap_or_else(|| panic!("{needle} is nowhere"))
}

fn overwrite(path: &Path, at: u64, octets: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("a file of the spool");
    file.write_all_at(octets, at).expect("a file of the spool");
}

/// What is done to the file of a large message.
type Hurt = fn(&Path, u64);

const HURTS: [(&str, Hurt); 5] = [
    ("its first octet", |path, _| overwrite(path, 0, b"X")),
    ("an octet in its middle", |path, length| overwrite(path, length / 2, b"X")),
    ("its last octet", |path, length| overwrite(path, length - 1, b"X")),
    ("shorter", |path, length| {
        OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(length - 7)).expect("a spill file");
    }),
    ("gone", |path, _| fs::remove_file(path).expect("a spill file")),
];

/// A gateway whose next hop is down; it has seen so.
fn waiting(spool: &Path, hop: &NextHop) -> Gateway {
    hop.stop();
    let next_hop = format!("--next-hop={}", hop.address);
    let retries = ["--retry-min=200ms", "--retry-max=200ms", "--message-rate=0"];
    let gateway = start(spool, &[&["--shards=1", "--ack-delay=0", &next_hop], &retries[..]].concat());
    gateway.session().deliver(FROM, &[TO], &content("the first", 100));
    until("it is down", || gateway.stderr().contains(&format!("next hop {} ", hop.address)));
    gateway
}

/// The names in the messages that have come, in their order; each message is whole.
fn names(hop: &NextHop) -> Vec<String> {
    let mut names: Vec<String> = hop.messages().iter().map(name).collect();
    names.sort();
    names
}

fn name(message: &crate::next_hop::Message) -> String {
    let (_, body) = split_received(&message.content);
    let text = String::from_utf8_lossy(&body);
    let name = text.split("this is ").nth(1).and_then(|rest| rest.split('\r').next()).expect("a name").to_owned();
    let octets = if name.starts_with("large") { 400_000 } else { 100 };
    assert_same(&name, &body, &content(&name, octets));
    name
}

fn damaged_mail_stays(extensions: &[&str]) {
    let scratch = Scratch::new();
    let hop = NextHop::offering(extensions);
    let gateway = waiting(&scratch.join("spool"), &hop);
    let mut client = gateway.session();
    for name in ["small whole", "small hurt", "last"] {
        client.deliver(FROM, &[TO], &content(name, 100));
    }
    let mut large = |name: &str| client.deliver(FROM, &[TO], &content(name, 400_000));
    large("large whole");
    let hurt: Vec<String> = HURTS.iter().map(|(what, _)| large(&format!("large hurt: {what}"))).collect();

    let (segment, at) = find(&gateway.files("segment-"), "small hurt");
    overwrite(&segment, at, b"SMALL");
    for (id, (_, act)) in hurt.iter().zip(HURTS) {
        let spill = gateway.files(&format!("spill-{id}")).pop().expect("a spill file");
        let length = fs::metadata(&spill).expect("a spill file").len();
        act(&spill, length);
    }
    hop.restart();
    let whole = ["large whole", "last", "small whole", "the first"];
    until("what is whole arrives", || names(&hop) == whole);
    // Whoever tells of a message has tried it.
    let told = |stderr: &str| hurt.iter().all(|id| stderr.contains(&format!("message {id}: ")));
    until("the operator is told of each", || told(&gateway.stderr()) && gateway.stderr().contains("damaged"));
    assert_eq!(names(&hop), whole);
    let left = 1 + hurt.len();
    assert_eq!(gateway.metric("gatepost_queue_messages"), left as f64);
    gateway.kill();
    assert_eq!(names(&hop), whole);
}

#[test]
fn damaged_mail_is_not_sent_as_data() {
    damaged_mail_stays(&["PIPELINING", "SIZE 0", "8BITMIME", "DSN", "ENHANCEDSTATUSCODES"]);
}

#[test]
fn damaged_mail_is_not_sent_in_chunks() {
    damaged_mail_stays(EXTENSIONS);
}
