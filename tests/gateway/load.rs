//! The load generator as a process, and what the crash tests choose at random.

#![allow(dead_code, reason = "each test program uses its own part")]

use crate::harness::{GATEPOST, Gateway, until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64: good enough to choose moments and sizes.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// A number from the environment.
pub fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?}: a number is expected")))
}

/// Where the random choices begin: `GATEPOST_CRASH_SEED`, or the time.
pub fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    setting("GATEPOST_CRASH_SEED").unwrap_or_else(now)
}

/// The load generator of this workspace, built as this test was, beside the program under test.
pub fn gatepost_load() -> PathBuf {
    let directory = GATEPOST.parent().expect("a directory");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
    build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "-p", "gatepost-load", "--target-dir"]);
    build.arg(directory.parent().expect("a target directory"));
    match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(profile) => {
            build.args(["--profile", profile]);
        }
    }
    let status = build.stdin(Stdio::null()).status().expect("cargo");
    assert!(status.success(), "{build:?}: {status}");
    directory.join("gatepost-load")
}

/// A sender; killed when dropped.
pub struct Sender {
    child: Child,
    pub acked: PathBuf,
}

impl Sender {
    pub fn start(program: &Path, gateway: &Gateway, acked: PathBuf, options: &[&str]) -> Self {
        let child = Command::new(program)
            .args(["send", &gateway.address().to_string(), "--duration=1h", "--give-up-after=500ms", "--threads=1"])
            .arg("--acked-file")
            .arg(&acked)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the load generator");
        Sender { child, acked }
    }

    pub fn has_acknowledgements(&mut self) -> bool {
        assert!(self.child.try_wait().expect("a child of ours").is_none(), "a sender has ended by itself");
        fs::metadata(&self.acked).is_ok_and(|metadata| metadata.len() > 0)
    }

    /// Whether it has given up.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_some()
    }

    /// Stops it where it is (SIGSTOP), or lets it go on.
    pub fn pause(&self, pause: bool) {
        let signal = if pause { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits until the gateway is gone for it; how many messages were acknowledged.
    pub fn wait(mut self) -> u64 {
        until("the sender notices that the gateway is gone", || {
            self.child.try_wait().expect("a child of ours").is_some()
        });
        fs::read_to_string(&self.acked).expect("a list").lines().count() as u64
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an audit says, in its own words.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Audit {
    pub received: u64,
    pub expected: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub unexpected: u64,
    pub altered: u64,
    pub foreign: u64,
}

impl Audit {
    /// Reads what `gatepost-load audit` printed.
    pub fn read(output: &Output) -> Self {
        let text = String::from_utf8(output.stdout.clone()).expect("text");
        let mut report = Audit::default();
        let first = text.lines().next().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        for item in first.split(", ") {
            let (name, number) = item.rsplit_once(' ').expect("a name and a number");
            let field = match name {
                "received" => &mut report.received,
                "expected" => &mut report.expected,
                "lost" => &mut report.lost,
                "duplicated" => &mut report.duplicated,
                "unexpected" => &mut report.unexpected,
                "altered" => &mut report.altered,
                "foreign" => &mut report.foreign,
                _ => panic!("what is that: {text}"),
            };
            *field = number.parse().expect("a number");
        }
        report
    }
}

/// Compares the whole queue with the lists of acknowledged ids.
pub fn audit(program: &Path, spool: &Path, lists: &[PathBuf]) -> (Audit, bool) {
    let mut cat = Command::new(&*GATEPOST)
        .args(["queue", "cat", "--all", "--spool"])
        .arg(spool)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program");
    let mut audit = Command::new(program);
    audit.args(["audit", "--stdin0"]);
    for list in lists {
        audit.arg("--acked").arg(list);
    }
    let output = audit.stdin(cat.stdout.take().expect("piped")).output().expect("the load generator");
    assert!(cat.wait().expect("a child of ours").success(), "queue cat --all fails");
    (Audit::read(&output), output.status.success())
}
