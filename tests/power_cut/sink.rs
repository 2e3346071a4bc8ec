//! The next hop: `gatepost-load sink` as a process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Killed when dropped.
#[derive(Debug)]
pub struct Sink {
    process: Child,
    pub address: SocketAddr,
}

impl Sink {
    /// Starts one that writes to `record` what it has taken, and goes wrong as these rules say.
    pub fn start(program: &Path, record: &Path, faults: &[&str]) -> Self {
        let mut process = Command::new(program)
            .args(["sink", "--listen=127.0.0.1:0", "--threads=1", "--record"])
            .arg(record)
            .args(faults.iter().flat_map(|fault| ["--fault", fault]))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the sink");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("its first line");
        let address = line.trim_end().strip_prefix("listening on ").unwrap_or_else(|| panic!("it says {line:?}"));
        Sink { process, address: address.parse().expect("an address") }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
