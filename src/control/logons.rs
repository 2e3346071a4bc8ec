//! The threads that compute password hashes.
//!
//! Few, since each hash takes memory and a core; and nice, since the shards' time comes first. On
//! failure: a panic in one hash ends that logon only.

use crate::limits::{LOGON_THREADS, LOGONS_WAITING_MAX};
use crate::shard::PasswordCheck;
use async_channel::{Receiver, Sender, bounded};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

/// How much the shards come first (nice(2)).
const NICE: i32 = 10;

/// Starts the threads; they end when the last sender is dropped.
pub fn start() -> io::Result<Sender<PasswordCheck>> {
    let (sender, receiver) = bounded(LOGONS_WAITING_MAX);
    for number in 0..LOGON_THREADS {
        let receiver = receiver.clone();
        thread::Builder::new().name(format!("logon-{number}")).spawn(move || run(&receiver))?;
    }
    Ok(sender)
}

fn run(receiver: &Receiver<PasswordCheck>) {
    // On Linux it is this thread's own; without it, hashes only take more of the shards' time.
    let _ = rustix::process::setpriority_process(None, NICE);
    while let Ok(check) = receiver.recv_blocking() {
        let _ = catch_unwind(AssertUnwindSafe(|| check.run()));
    }
}
