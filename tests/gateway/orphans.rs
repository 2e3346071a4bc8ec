//! Directories of shards that are no more: their mail is delivered where it lies, and they go.

use crate::harness::{Client, Confinement, Gateway, Scratch, Setup, assert_same, split_received, start, until};
use crate::next_hop::{Act, NextHop, Verb};
use gatepost::smtp::{QUEUE_ID_SHARD_BITS, QueueId};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

const FROM: &str = "sender@client.example";
const TO: &str = "rcpt@test.example";

fn content(number: usize) -> Vec<u8> {
    let octets = if number.is_multiple_of(2) { 1000 } else { 300_000 };
    let line = format!("message {number}\r\n");
    [b"Subject: x\r\n\r\n", line.repeat(octets / line.len()).as_bytes()].concat()
}

/// The shard that a message came to.
fn shard_of(id: &str) -> usize {
    let id = QueueId::parse(id).expect("an id");
    (id.number() & ((1 << QUEUE_ID_SHARD_BITS) - 1)) as usize
}

/// Mail on each of so many shards, small and spilled: contents by id.
fn mail_on_all(gateway: &Gateway, shards: usize) -> HashMap<String, Vec<u8>> {
    let mut messages = HashMap::new();
    let mut counts = vec![0; shards];
    let deliver = |client: &mut Client, number| (client.deliver(FROM, &[TO], &content(number)), content(number));
    until("all shards have mail", || {
        let mut client = gateway.session();
        let number = messages.len();
        messages.extend([deliver(&mut client, number), deliver(&mut client, number + 1)]);
        client.quit();
        counts.fill(0);
        messages.keys().for_each(|id| counts[shard_of(id)] += 1);
        counts.iter().all(|&count| count > 0)
    });
    messages
}

/// What the next hop has, by id: nothing else than what was sent.
#[track_caller]
fn arrived(hop: &NextHop, sent: &HashMap<String, Vec<u8>>) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for message in hop.messages() {
        let (field, content) = split_received(&message.content);
        let id = field.split(" id ").nth(1).and_then(|rest| rest.split(';').next()).expect("an id").to_owned();
        assert_same(&id, &content, sent.get(&id).unwrap_or_else(|| panic!("{id} was never accepted")));
        *counts.entry(id).or_default() += 1;
    }
    counts
}

fn shards(spool: &Path) -> Vec<String> {
    let names = fs::read_dir(spool).expect("a spool").map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("ASCII"));
    let mut shards: Vec<String> = names.filter(|name| name.starts_with("shard-")).collect();
    shards.sort();
    shards
}

fn delivering(spool: &Path, hop: &NextHop, shards: usize) -> Gateway {
    let options = [&format!("--shards={shards}"), &format!("--next-hop={}", hop.address), "--ack-delay=0"];
    start(spool, &options.map(|option| option))
}

const MANY: [&str; 2] = ["--max-connections-per-source=0", "--message-rate=0"];

#[test]
fn mail_of_shards_that_are_no_more_is_delivered() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let gateway = start(&spool, &[&["--shards=4"], &MANY[..]].concat());
    let mut sent = mail_on_all(&gateway, 4);
    gateway.kill();
    // The numbers of those that are left need not follow each other.
    fs::remove_dir_all(spool.join("shard-1")).expect("a directory");
    sent.retain(|id, _| shard_of(id) != 1);

    // Held, as all mail is, without a next hop.
    let left = sent.keys().filter(|id| shard_of(id) > 0).count();
    let gateway = start(&spool, &["--shards=1"]);
    assert_eq!(gateway.line(), format!("holding {left} messages of a run with more shards from shard-2, shard-3"));
    assert_eq!(gateway.metric("gatepost_shards"), 3.0);
    assert_eq!(gateway.metric("gatepost_queue_messages"), sent.len() as f64);
    assert_eq!(gateway.tell(&["reload"]), "nothing has changed\n");
    gateway.stop();

    // A kill when some have arrived.
    let hop = NextHop::scripted(|step| if step.verb == Verb::Mail && step.count > 3 { Act::Hang } else { Act::Go });
    let gateway = delivering(&spool, &hop, 1);
    assert_eq!(gateway.line(), format!("draining {left} messages of a run with more shards from shard-2, shard-3"));
    hop.wait(3);
    gateway.kill();
    let before = arrived(&hop, &sent);

    hop.script(|_| Act::Go);
    let gateway = delivering(&spool, &hop, 1);
    let id = gateway.session().deliver(FROM, &[TO], &content(0));
    sent.insert(id, content(0));
    gateway.until_delivered();
    gateway.stop();
    let after = arrived(&hop, &sent);
    assert_eq!(after.len(), sent.len());
    // Only what has arrived just before it was killed may come a second time.
    let twice: Vec<_> = after.iter().filter(|(_, count)| **count > 1).map(|(id, _)| id).collect();
    assert!(twice.iter().all(|id| before.contains_key(*id)), "{twice:?} came twice");

    // Nothing is left to do there.
    let gateway = delivering(&spool, &hop, 1);
    assert_eq!(shards(&spool), ["shard-0"]);
    assert_eq!(gateway.metric("gatepost_shards"), 1.0);
    assert_eq!(gateway.stop(), ["draining: transactions may go on for 30s", "drained"]);
    assert_eq!(arrived(&hop, &sent), after);
}

#[test]
fn it_goes_the_same_way_when_they_come_back() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let gateway = start(&spool, &[&["--shards=3"], &MANY[..]].concat());
    let sent = mail_on_all(&gateway, 3);
    gateway.stop();
    // What became of some of them is written down by shards without listeners.
    let hop = NextHop::scripted(|step| match step.verb {
        Verb::End if step.count % 3 == 1 => Act::Say("550 5.0.0 No"),
        Verb::End if step.count % 3 == 2 => Act::Say("450 4.0.0 Later"),
        _ => Act::Go,
    });
    let gateway = delivering(&spool, &hop, 1);
    until("some are settled", || gateway.recipients("delivered") >= 1.0 && gateway.recipients("failed") >= 1.0);
    gateway.stop();
    hop.script(|_| Act::Go);
    let gateway = delivering(&spool, &hop, 3);
    let failed = || crate::harness::list_json(&spool).iter().filter(|entry| entry["status"] == "failed").count();
    until("the rest is delivered", || arrived(&hop, &sent).len() + failed() == sent.len());
    gateway.stop();
    assert!(arrived(&hop, &sent).values().all(|&count| count == 1));
    assert_eq!(shards(&spool), ["shard-0", "shard-1", "shard-2"]);
}

#[test]
fn only_empty_directories_go() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    start(&spool, &["--shards=1"]).stop();
    for name in ["shard-1", "shard-2", "shard-3", "shard-1023", "shard-1024", "shard-07"] {
        fs::create_dir(spool.join(name)).expect("a new directory");
    }
    for file in ["shard-1/spare-0000000000000001", "shard-2/quarantine-0000000000000001-00000048", "shard-3/notes"] {
        fs::write(spool.join(file), "x").expect("a directory of ours");
    }
    for _ in 0..2 {
        let gateway = start(&spool, &["--shards=1"]);
        assert_eq!(gateway.metric("gatepost_shards"), 1.0);
        // Nobody complains.
        assert_eq!(gateway.stop(), ["draining: transactions may go on for 30s", "drained"]);
        assert_eq!(shards(&spool), ["shard-0", "shard-07", "shard-1024", "shard-2", "shard-3"]);
    }
    assert!(
        spool.join("shard-2/quarantine-0000000000000001-00000048").exists() && spool.join("shard-3/notes").exists()
    );
}

#[test]
fn their_rings_need_locked_memory_too() {
    let scratch = Scratch::new();
    let (program, uid) = crate::preflight::unprivileged(&scratch);
    let spool = scratch.join("spool");
    let setup = |kb: u64, options: &[&str]| {
        let memlock = Some((kb << 10, kb << 10));
        Setup::new(&spool, options).program(&program).confined(Confinement { memlock, uid, ..Confinement::default() })
    };
    let gateway = setup(2048, &[&["--shards=2"], &MANY[..]].concat()).start();
    mail_on_all(&gateway, 2);
    gateway.stop();
    let failed = setup(2047, &["--shards=1"]).fail();
    assert_eq!(failed.code, Some(71));
    let said = "RLIMIT_MEMLOCK is 2096128 octets, 1 shards and 1 with mail of a run with more need 2097152: raise it";
    assert!(failed.stderr.contains(said), "{}", failed.stderr);
    setup(2048, &["--shards=1"]).start().stop();
}
