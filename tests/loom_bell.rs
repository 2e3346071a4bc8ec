//! The log's bell under every interleaving, by loom: who publishes and rings is always heard.
//!
//! `src/log/bell.rs` is compiled here a second time, with this file's `atomic` in the place of the
//! room's own. A wake-up that is lost leaves the waiting thread parked for ever, which loom reports
//! as a deadlock.

#[allow(dead_code, reason = "the models use a part of the bell")]
#[path = "../src/log/bell.rs"]
mod bell;

/// Stands for `src/log/atomic.rs`.
mod atomic {
    pub(super) use loom::sync::atomic::{AtomicBool, Ordering, fence};
    pub(super) use loom::thread::Thread;
}

use bell::Bell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// Rings in so many threads, each `count` times, until all is heard.
fn all_is_heard(ringing: usize, count: usize) {
    let bell = Arc::new(Bell::new(thread::current()));
    // As the ends of rings: each has its writer, and is published with Release.
    let published: Vec<_> = (0..ringing).map(|_| Arc::new(AtomicUsize::new(0))).collect();
    let threads: Vec<_> = published
        .iter()
        .map(|published| {
            let (bell, published) = (bell.clone(), published.clone());
            thread::spawn(move || {
                for number in 1..=count {
                    published.store(number, Ordering::Release);
                    bell.ring();
                }
            })
        })
        .collect();
    let mut heard = vec![0; ringing];
    while heard.iter().sum::<usize>() < ringing * count {
        let is_idle =
            || published.iter().zip(&heard).all(|(published, heard)| published.load(Ordering::Acquire) == *heard);
        bell.wait(is_idle, thread::park);
        for (published, heard) in published.iter().zip(&mut heard) {
            *heard = published.load(Ordering::Acquire);
        }
    }
    threads.into_iter().for_each(|thread| thread.join().expect("a thread that ends"));
}

#[test]
fn one_that_rings_twice() {
    loom::model(|| all_is_heard(1, 2));
}

#[test]
fn two_that_ring() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(|| all_is_heard(2, 1));
}
