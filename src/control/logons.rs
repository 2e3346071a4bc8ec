//! The threads that compute password hashes.
//!
//! Few, since each hash takes memory and a core; and nice, since the shards' time comes first.

use crate::limits::LOGON_THREADS;
use crate::shard::PasswordChecks;
use std::io;
use std::sync::Arc;
use std::thread;

/// How much the shards come first (nice(2)).
const NICE: i32 = 10;

/// Starts the threads, which run as long as the process.
pub fn start() -> io::Result<Arc<PasswordChecks>> {
    let checks = Arc::new(PasswordChecks::new()?);
    for number in 0..LOGON_THREADS {
        let checks = checks.clone();
        thread::Builder::new().name(format!("logon-{number}")).spawn(move || run(&checks))?;
    }
    Ok(checks)
}

fn run(checks: &PasswordChecks) {
    // On Linux it is this thread's own; without it, hashes only take more of the shards' time.
    let _ = rustix::process::setpriority_process(None, NICE);
    loop {
        if let Some(check) = checks.next() {
            check.run();
        }
    }
}
