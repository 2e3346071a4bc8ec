//! The queue on the disk, as `gatepost queue` tells.

use crate::harness::{GATEPOST, Scratch};
use crate::judge::{Id, Recipients};
use crate::load::Audit;
use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const ID_FIELD: &[u8] = b"X-Gatepost-Load-Id: ";
/// In front of that field comes the gateway's Received field, nothing else.
const HEAD_MAX_OCTETS: usize = 4096;

fn output(mut command: Command) -> Output {
    let output = command.stdin(Stdio::null()).output().expect("the program");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The queue ids of the messages in the queue, and which of their recipients are not settled.
pub fn list(spool: &Path) -> Vec<(String, Recipients)> {
    let mut command = Command::new(&*GATEPOST);
    command.args(["queue", "list", "--json", "--spool"]).arg(spool);
    let output = output(command);
    let lines = std::str::from_utf8(&output.stdout).expect("text").lines();
    lines
        .map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let to = entry["to"].as_array().expect("recipients");
            let mut pending = (1 << to.len()) - 1;
            for outcome in entry["outcomes"].as_array().into_iter().flatten() {
                assert_eq!(outcome["status"], "delivered", "these next hops refuse nothing for good: {entry}");
                let place = to.iter().position(|to| *to == outcome["to"]).expect("a recipient");
                pending &= !(1 << place);
            }
            (entry["id"].as_str().expect("a queue id").to_owned(), pending)
        })
        .collect()
}

/// The same by the messages' own ids, of a spool that nobody writes to. Each must be intact.
pub fn read(spool: &Path, load: &Path, scratch: &Scratch) -> HashMap<Id, Recipients> {
    let listed = list(spool);
    let nothing_acknowledged = scratch.join("nothing-acknowledged");
    fs::write(&nothing_acknowledged, "").expect("ours");
    let mut cat = Command::new(&*GATEPOST)
        .args(["queue", "cat", "--all", "--spool"])
        .arg(spool)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program");
    let mut audit = Command::new(load)
        .args(["audit", "--stdin0", "--acked"])
        .arg(&nothing_acknowledged)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the load generator");
    let ids = {
        let mut sink = audit.stdin.take().expect("piped");
        ids(cat.stdout.take().expect("piped"), |piece| sink.write_all(piece).expect("an audit that reads"))
    };
    assert!(cat.wait().expect("a child of ours").success(), "queue cat --all fails");
    let report = Audit::read(&audit.wait_with_output().expect("the load generator"));
    let all = listed.len() as u64;
    assert_eq!((report.received, report.altered, report.foreign, report.duplicated), (all, 0, 0, 0), "in the queue");
    assert_eq!(ids.len(), listed.len());
    ids.into_iter().zip(listed).map(|(id, (_, pending))| (id, pending)).collect()
}

/// The ids of messages that each end with a NUL; `show` sees all octets.
fn ids(mut input: impl Read, mut show: impl FnMut(&[u8])) -> Vec<Id> {
    let (mut ids, mut head, mut buffer) = (Vec::new(), Vec::new(), vec![0; 256 * 1024]);
    loop {
        let octets = input.read(&mut buffer).expect("a pipe");
        if octets == 0 {
            assert!(head.is_empty(), "the last message ends with a NUL too");
            return ids;
        }
        show(&buffer[..octets]);
        let mut piece = &buffer[..octets];
        while !piece.is_empty() {
            let nul = memchr::memchr(0, piece);
            let text = &piece[..nul.unwrap_or(piece.len())];
            head.extend_from_slice(&text[..text.len().min(HEAD_MAX_OCTETS.saturating_sub(head.len()))]);
            let Some(nul) = nul else { break };
            let start = memchr::memmem::find(&head, ID_FIELD).expect("the field with the id") + ID_FIELD.len();
            let end = start + memchr::memchr(b'\r', &head[start..]).expect("the end of a line");
            ids.push(String::from_utf8(head[start..end].to_vec()).expect("text"));
            head.clear();
            piece = &piece[nul + 1..];
        }
    }
}
