//! Next hops: `gatepost-load sink` as a process that can be killed, and its records.

use crate::harness::{PATIENCE, until};
use crate::judge::{Copy, Evidence, Recipients, Reply};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

/// A next hop, up or down, always at the same address.
pub struct NextHop {
    number: usize,
    program: PathBuf,
    directory: PathBuf,
    pub address: SocketAddr,
    process: Option<Process>,
    /// A record for each start: a kill can cut the last line of one.
    records: Vec<Record>,
}

struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

struct Record {
    path: PathBuf,
    killed: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl NextHop {
    /// Starts one. `directory` is where its files go.
    pub fn start(number: usize, program: &Path, directory: &Path) -> Self {
        let mut next_hop = NextHop {
            number,
            program: program.to_owned(),
            directory: directory.to_owned(),
            // No client's connection comes from there: the port stays free while it is down.
            address: SocketAddr::from(([127, 0, 25, 1 + number as u8], 0)),
            process: None,
            records: Vec::new(),
        };
        next_hop.go_wrong("");
        next_hop.restart();
        next_hop
    }

    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    fn faults(&self) -> PathBuf {
        self.directory.join(format!("faults-{}", self.number))
    }

    /// Starts it again where it was.
    pub fn restart(&mut self) {
        let path = self.directory.join(format!("record-{}-{}", self.number, self.records.len()));
        let mut child = Command::new(&self.program)
            .arg("sink")
            .arg(format!("--listen={}", self.address))
            .arg("--record")
            .arg(&path)
            .arg("--faults-file")
            .arg(self.faults())
            .args(["--json", "--threads=2", &format!("--seed={}", self.records.len())])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the sink");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("its first line");
        let address = line.trim_end().strip_prefix("listening on ").unwrap_or_else(|| panic!("it says {line:?}"));
        self.address = address.parse().expect("an address");
        self.process = Some(Process { child, stdout });
        self.records.push(Record { path, killed: false });
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
        self.records.last_mut().expect("it was started").killed = true;
    }

    /// Lets it go wrong from now on as these rules say.
    pub fn go_wrong(&mut self, rules: &str) {
        fs::write(self.faults(), rules).expect("ours");
        if let Some(process) = &self.process {
            kill_process(Pid::from_child(&process.child), Signal::HUP).expect("it runs");
        }
    }

    /// Ends it in order: its report.
    pub fn stop(&mut self) -> serde_json::Value {
        let mut process = self.process.take().expect("it runs");
        kill_process(Pid::from_child(&process.child), Signal::TERM).expect("it runs");
        let mut report = String::new();
        process.stdout.read_to_string(&mut report).expect("its report");
        let started = Instant::now();
        until("the sink ends", || process.child.try_wait().expect("a child of ours").is_some());
        assert!(started.elapsed() < PATIENCE);
        let status = process.child.wait().expect("a child of ours");
        assert!(status.success(), "sink {}: {status}: {report}", self.number);
        serde_json::from_str(&report).unwrap_or_else(|error| panic!("{report}: {error}"))
    }

    /// Adds what it has taken so far.
    pub fn add_to(&self, evidence: &mut Evidence) {
        for record in &self.records {
            let text = fs::read_to_string(&record.path).unwrap_or_default();
            let mut lasts: HashMap<&str, (&str, usize)> = HashMap::new();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            for line in whole.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                if let [id, "taken,", "unanswered", _, connection, _] = words[..] {
                    let (last, place) = lasts[connection];
                    assert_eq!(last, id, "no reply for a message that is not the last of its connection");
                    evidence.copies.get_mut(id).expect("it was taken")[place].reply = Reply::Withheld;
                    continue;
                }
                let [id, condition, time, connection, name, recipients] = words[..] else { panic!("{line:?}") };
                let copies = evidence.copies.entry(id.to_owned()).or_default();
                lasts.insert(connection, (id, copies.len()));
                let one_of_many = evidence.runs.get(id.rsplit_once('-').expect("an id").0);
                copies.push(Copy {
                    next_hop: self.number,
                    life: name.strip_prefix("mx").and_then(|rest| rest.split('.').next()?.parse().ok()).expect(line),
                    unix_us: time.replace('.', "").parse().expect("a time"),
                    intact: condition == "intact",
                    recipients: which(recipients, one_of_many.map_or(1, |run| run.recipients)),
                    reply: Reply::Sent,
                });
            }
            if record.killed {
                for (id, place) in lasts.into_values() {
                    let copy = &mut evidence.copies.get_mut(id).expect("it was taken")[place];
                    if copy.reply == Reply::Sent {
                        copy.reply = Reply::Unknown;
                    }
                }
            }
        }
    }
}

/// Which recipients of a message these are, by their number: of three only the second is ever
/// refused for the moment.
fn which(count: &str, all: Recipients) -> Recipients {
    match (all, count) {
        (0b1, "1") => 0b1,
        (0b111, "3") => 0b111,
        (0b111, "2") => 0b101,
        (0b111, "1") => 0b010,
        _ => panic!("{count} recipients of {all:b}"),
    }
}
