//! Spools as the program leaves them, in all the states that mail can be in, and what was sent.

use crate::harness::{Gateway, Scratch, start, until};
use crate::injury::Files;
use crate::sink::Sink;
use gatepost::smtp::QueueId;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// A message as its client sent it.
#[derive(Clone, Debug)]
pub struct Sent {
    pub from: String,
    pub to: Vec<String>,
    pub content: Vec<u8>,
}

/// All mail that was acknowledged, ever.
pub type Mail = HashMap<QueueId, Sent>;

/// A spool at rest.
#[derive(Debug)]
pub struct Spool {
    pub name: &'static str,
    /// Its files.
    pub files: Files,
    /// Those of the same spool earlier in its life.
    pub before: Files,
}

/// Who mail is for: delivered, refused for good, refused for now, and each beside another.
const RECIPIENTS: [&[&str]; 6] = [
    &["one@test.example"],
    &["two@test.example", "no@test.example"],
    &["one@test.example", "later@test.example", "two@test.example"],
    &["later@test.example"],
    &["no@test.example"],
    &["no@test.example", "later@test.example"],
];
/// Octets of messages: one page and less, some pages, and in files of their own.
const SIZES: [usize; 8] = [100, 900, 4000, 300, 30_000, 290_000, 70_000, 2000];

/// The lives of one spool, and what it was after each.
pub fn make(scratch: &Scratch) -> (Mail, Vec<Spool>) {
    let path = scratch.join("spool");
    let mut mail = Mail::new();
    let mut spools: Vec<Spool> = Vec::new();
    let mut keep = |name, before: Option<Files>| {
        let files = Files::read(&path);
        let before = before.or_else(|| spools.last().map(|spool| spool.files.clone())).unwrap_or_default();
        spools.push(Spool { name, files, before });
    };

    let gateway = serve(&path, 3, None);
    deliver(&gateway, &mut mail, 24);
    let before = Files::read(&path);
    deliver(&gateway, &mut mail, 24);
    gateway.kill();
    keep("killed with a full queue", Some(before));

    let sink = Sink::start();
    let gateway = serve(&path, 3, Some(&sink));
    until_tried(&gateway);
    stop(gateway);
    keep("stopped with mail that is delivered, refused and deferred", None);

    let gateway = serve(&path, 3, None);
    deliver(&gateway, &mut mail, 24);
    gateway.kill();
    keep("killed with more mail behind outcomes", None);

    let gateway = serve(&path, 2, Some(&sink));
    until_tried(&gateway);
    gateway.kill();
    keep("killed with outcomes in several segments, and a shard that is no more", None);

    let again = spools.last().map(|spool| (spool.files.used_before(), spool.before.clone()));
    spools.extend(again.map(|(files, before)| Spool { name: "in segments that were used before", files, before }));
    (mail, spools)
}

/// A gateway that tries everything once.
pub fn serve(spool: &Path, shards: usize, sink: Option<&Sink>) -> Gateway {
    let mut options = vec![format!("--shards={shards}")];
    options.extend(sink.map(|sink| format!("--next-hop={},tls=off", sink.address)));
    options.extend(["--max-connections-per-source=0", "--message-rate=0", "--ack-delay=0"].map(str::to_owned));
    options.extend(["--retry-min=1h", "--retry-max=1h"].map(str::to_owned));
    start(spool, &options.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Ends it in order; it may have complained of damage.
pub fn stop(mut gateway: Gateway) -> String {
    gateway.signal(rustix::process::Signal::TERM);
    let (code, stderr) = gateway.wait();
    assert_eq!(code, Some(0), "{stderr}");
    stderr
}

/// Waits until nothing waits for its turn or is on its way.
pub fn until_tried(gateway: &Gateway) {
    let jobs = |state| gateway.metric_where("gatepost_queue_deliveries", &format!("state=\"{state}\""));
    until("all was tried", || jobs("ready") + jobs("active") == 0.0);
}

fn deliver(gateway: &Gateway, mail: &mut Mail, count: usize) {
    for number in mail.len()..mail.len() + count {
        // A session for each, so that all shards get some.
        let mut client = gateway.session();
        let from = format!("sender-{number}@client.example");
        let to = RECIPIENTS[number % RECIPIENTS.len()];
        let content = content(number);
        let id = client.deliver(&from, to, &content);
        client.quit();
        let to = to.iter().map(|&to| to.to_owned()).collect();
        let id = QueueId::parse(&id).expect("an id");
        assert!(mail.insert(id, Sent { from, to, content }).is_none(), "{id} was given twice");
    }
}

fn content(number: usize) -> Vec<u8> {
    let octets = SIZES[number % SIZES.len()];
    let mut content = format!("Subject: {number}\r\n\r\n").into_bytes();
    while content.len() < octets {
        content.extend_from_slice(format!("message {number}, line at {}\r\n", content.len()).as_bytes());
    }
    content
}

/// Puts a spool of these files where `path` is.
pub fn lay_out(files: &Files, path: &Path) {
    let _ = fs::remove_dir_all(path);
    fs::create_dir(path).expect("a directory of ours");
    files.write(path);
}
