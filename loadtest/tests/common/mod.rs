//! What the tests stand on: the program as a process.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_gatepost-load");

/// A directory that vanishes with the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gatepost-load-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A sink as a process.
pub struct Sink {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
    pub address: String,
}

impl Sink {
    pub fn start(options: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["sink", "--listen", "127.0.0.1:0", "--json"])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").expect("the first line").to_owned();
        Self { child, stdout, stderr, address }
    }

    /// Ends the sink by a signal: its report and exit code.
    pub fn stop(self) -> (Value, i32) {
        self.signal(Signal::SIGTERM);
        self.end()
    }

    /// Has the sink read its faults again; what it says of them.
    pub fn reload(&mut self) -> String {
        self.signal(Signal::SIGHUP);
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the sink's own end.
    pub fn end(mut self) -> (Value, i32) {
        let mut report = String::new();
        self.stdout.read_to_string(&mut report).unwrap();
        let code = self.child.wait().unwrap().code().unwrap();
        (serde_json::from_str(&report).unwrap(), code)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Only reached with a live child when a test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn send(address: &str, options: &[&str]) -> Output {
    Command::new(PROGRAM).args(["send", address, "--json"]).args(options).output().unwrap()
}

pub fn summary(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no summary: {}", String::from_utf8_lossy(&output.stderr)))
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
