//! A deterministic simulation: many clients, a disk that fails in every way, next hops that do,
//! power cuts and kills; and the product's own machines between them.
//!
//! Real are `smtp::server`, `smtp::client`, `queue` and `delivery`. The disk, the network and the
//! clock are not, and what `shard` does with files and sockets is done once more, in the same
//! order, without waiting for anything (`process`, `inbound`, `outbound`, `settle`, `rewriter`). One seed is one run,
//! the same on every machine:
//!
//! ```text
//! cargo test --test simulation                            some hundred seeds
//! GATEPOST_SIM_SEEDS=10000 cargo test --release --test simulation
//! GATEPOST_SIM_SEED=7 cargo test --test simulation -- --nocapture    one of them, with its history
//! ```
//!
//! What must hold is in [`judge`].

mod clients;
mod disk;
mod inbound;
mod judge;
mod next_hops;
mod outbound;
mod process;
mod random;
mod rewriter;
mod settle;
mod world;

use judge::Tally;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use world::{Outcome, Sabotage, World};

const SEEDS_DEFAULT: u64 = 500;
const THREADS: u64 = 2;

fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// The first seed of so many that does not hold, and what they had in sum.
fn first_failure(seeds: u64, sabotage: Sabotage) -> (Option<(u64, String)>, Vec<Tally>) {
    let failed = AtomicU64::new(u64::MAX);
    let run = |thread: u64| {
        let mut tallies = Vec::new();
        let mut first = None;
        for seed in (thread..seeds).step_by(THREADS as usize) {
            if seed > failed.load(Ordering::Relaxed) {
                break;
            }
            let Outcome { violation, tally, .. } = World::run(seed, sabotage, false);
            tallies.push(tally);
            if let Some(violation) = violation {
                failed.fetch_min(seed, Ordering::Relaxed);
                first = Some((seed, violation));
                break;
            }
        }
        (first, tallies)
    };
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a seed panicked")).collect()
    });
    let first = results.iter().filter_map(|(first, _)| first.clone()).min();
    (first, results.into_iter().flat_map(|(_, tallies)| tallies).collect())
}

fn sum(tallies: &[Tally], of: impl Fn(&Tally) -> u64) -> u64 {
    tallies.iter().map(of).sum()
}

#[test]
fn what_is_acknowledged_is_delivered() {
    if let Some(seed) = number_in("GATEPOST_SIM_SEED") {
        let outcome = World::run(seed, Sabotage::default(), true);
        outcome.history.iter().for_each(|line| println!("{line}"));
        println!("{:?}", outcome.tally);
        assert_eq!(outcome.violation, None, "seed {seed}");
        return;
    }
    let seeds = number_in("GATEPOST_SIM_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let (first, tallies) = first_failure(seeds, Sabotage::default());
    let all = |of: fn(&Tally) -> u64| sum(&tallies, of);
    println!(
        "{} seeds: {} acknowledged, {} refused, {} delivered, {} of them again, {} failed, {} expired; \
         {} kills, {} power cuts, {} flips, {} failures of the disk; \
         {} segments used again, {} records written again, {} voids",
        tallies.len(),
        all(|tally| tally.acknowledged),
        all(|tally| tally.refused),
        all(|tally| tally.delivered),
        all(|tally| tally.repeated),
        all(|tally| tally.failed),
        all(|tally| tally.expired),
        all(|tally| tally.kills),
        all(|tally| tally.power_cuts),
        all(|tally| tally.flips),
        all(|tally| tally.disk_failures),
        all(|tally| tally.used_again),
        all(|tally| tally.written_again),
        all(|tally| tally.voids),
    );
    if let Some((seed, violation)) = first {
        panic!(
            "seed {seed}: {violation}\nagain, with its history: \
             GATEPOST_SIM_SEED={seed} cargo test --test simulation -- --nocapture"
        );
    }
}

/// The negative control: with a disk that syncs nothing, something is lost.
#[test]
fn a_disk_that_lies_is_noticed() {
    let (first, _) = first_failure(SEEDS_DEFAULT, Sabotage { disk_lies: true });
    assert!(first.is_some(), "nothing was lost, though nothing was synced");
}
