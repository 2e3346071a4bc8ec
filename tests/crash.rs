//! `kill -9` under load: nothing that was acknowledged is lost or altered.
//!
//! Round after round on the same spool: a gateway of two shards, senders of small, of middling and
//! of spilling messages, SIGKILL at a random moment, a new start, and an audit of the whole queue
//! against every acknowledgement of all rounds. At the end the audit itself is put to the test.
//!
//! The kernel survives a kill: what this cannot see is a missing sync. That is the business of the
//! tests with a failing disk.
//!
//! `GATEPOST_CRASH_ROUNDS` sets the number of rounds (3), `GATEPOST_CRASH_SEED` repeats the random
//! choices of a run (not its timing).

#[path = "gateway/harness.rs"]
mod harness;
#[path = "gateway/load.rs"]
mod load;

use harness::{Scratch, files, start, until};
use load::{Audit, Random, Sender, audit, gatepost_load, seed, setting};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// Rounds after which a new spool begins, so that an audit's time is bounded.
const ROUNDS_PER_SPOOL: u64 = 25;
/// A kill comes at most this long after each sender has had an acknowledgement.
const KILL_AFTER_MAX_MS: u64 = 400;

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let rounds = setting("GATEPOST_CRASH_ROUNDS").unwrap_or(3);
    let seed = seed();
    println!("{rounds} rounds, seed {seed}");
    let mut random = Random::new(seed);
    let program = gatepost_load();
    let (mut acknowledged, mut unacknowledged) = (0, 0);
    let mut round = 0;
    while round < rounds {
        let scratch = Scratch::new();
        let spool = scratch.join("spool");
        let mut lists = Vec::new();
        let mut report = Audit::default();
        for _ in 0..ROUNDS_PER_SPOOL.min(rounds - round) {
            kill_once(&program, &scratch, &mut random, &mut lists);
            // Recovery, by a start with or without as many shards, itself killed now and then.
            let shards = format!("--shards={}", 1 + random.below(3));
            let gateway = start(&spool, &[&shards, "--drain-timeout=0"]);
            assert_eq!(gateway.complaints(), "", "recovery finds damage");
            if random.below(3) == 0 {
                gateway.kill()
            } else {
                drop(gateway.stop())
            }
            let (new, passed) = audit(&program, &spool, &lists);
            println!("round {round}: {new:?}");
            assert!(passed && new.lost == 0 && new.altered == 0, "seed {seed}, round {round}: {new:?}");
            // Nothing is sent twice here, so nothing may be there twice.
            assert_eq!((new.duplicated, new.foreign), (0, 0), "seed {seed}, round {round}");
            assert!(new.received >= report.received, "what was there is gone: {new:?} after {report:?}");
            report = new;
            round += 1;
        }
        acknowledged += report.expected;
        unacknowledged += report.unexpected;
        the_audit_would_notice(&program, &spool, &lists);
    }
    println!(
        "{rounds} kills: {acknowledged} messages acknowledged, 0 lost, 0 altered; {unacknowledged} more were stored and the sender not told"
    );
    assert!(acknowledged >= 3 * rounds);
}

/// Runs a gateway under load and kills it at some moment.
fn kill_once(program: &Path, scratch: &Scratch, random: &mut Random, lists: &mut Vec<PathBuf>) {
    let gateway = start(
        &scratch.join("spool"),
        &["--shards=2", "--message-rate=0", "--max-connections-per-source=0", "--connection-timeout=0"],
    );
    let small = random.choose(&["600B", "4KB", "30KB"]);
    // About the limit between log and spill file, and far above.
    let large = random.choose(&["250KB", "256KB", "300KB", "2MB"]);
    let plans: [&[&str]; 3] = [
        &["--sessions=8", "--persistent", "--pipelining", "--size", small],
        &["--sessions=4", "--size=100KB", "--dots", "--recipients=3"],
        &["--sessions=3", "--persistent", "--size", large],
    ];
    let mut senders: Vec<Sender> = plans
        .into_iter()
        .map(|plan| {
            let acked = scratch.join(&format!("acked-{}", lists.len()));
            lists.push(acked.clone());
            Sender::start(program, &gateway, acked, &[&["--to=rcpt@test.example"], plan].concat())
        })
        .collect();
    until("every sender has acknowledgements", || {
        let ready: Vec<bool> = senders.iter_mut().map(Sender::has_acknowledgements).collect();
        ready.iter().all(|&ready| ready)
    });
    sleep(Duration::from_millis(random.below(KILL_AFTER_MAX_MS)));
    assert_eq!(gateway.complaints(), "");
    gateway.kill();
    let acknowledged: Vec<u64> = senders.into_iter().map(Sender::wait).collect();
    println!("killed; acknowledged: {acknowledged:?} of {small}, 100KB and {large}");
}

/// Damages the spool, at last, to see that an audit is no formality.
fn the_audit_would_notice(program: &Path, spool: &Path, lists: &[PathBuf]) {
    if let Some(spill) = files(spool, "spill-").first() {
        let whole = fs::read(spill).expect("a spilled message");
        let mut damaged = whole.clone();
        let last = damaged.len() - 3;
        damaged[last] ^= 1;
        fs::write(spill, &damaged).expect("ours");
        let (report, passed) = audit(program, spool, lists);
        assert!(!passed && (report.lost, report.altered) == (0, 1), "one octet was changed: {report:?}");
        fs::write(spill, &whole).expect("ours");
    }
    let segments = files(spool, "segment-");
    let largest = segments.iter().max_by_key(|path| fs::metadata(path).expect("a file").len()).expect("a segment");
    fs::remove_file(largest).expect("ours");
    let (report, passed) = audit(program, spool, lists);
    assert!(!passed && report.lost > 0 && report.altered == 0, "a segment was removed: {report:?}");
}
