//! Power cuts under load: nothing that was acknowledged is lost or altered.
//!
//! The spool is on a disk that logs what is written to it ([`device`]). Senders of small, of middling
//! and of spilling messages load a gateway, with and without a next hop, in several lives; after
//! that the disk is made again as power cuts could have left it at any moment ([`image`]). Each such
//! image is mounted, a gateway starts on it, and its queue is held against what was acknowledged
//! before the cut and had not been delivered ([`evidence`]). One of the images is what the next
//! gateway works on: its journal's replay and its recovery are cut too.
//!
//! Before that, the same with one sync of the gateway's left out, and with another: each must lose
//! messages, or this test could not see a loss.
//!
//! Needs root, /dev/fuse, loop devices, qemu-storage-daemon (Debian: qemu-utils) and e2fsprogs.
//! All of it, on a release build, which `GATEPOST_TEST_BINARY` names:
//!
//! ```text
//! cargo build --release --workspace
//! GATEPOST_POWER_CUTS=1000 GATEPOST_TEST_BINARY=$PWD/target/release/gatepost \
//!     cargo test --features fault-injection --test power_cut -- --ignored --nocapture
//! ```
//!
//! `GATEPOST_POWER_CUTS` is the number of images (20). `GATEPOST_CRASH_SEED` repeats the random choices
//! of a run (not its timing, so not its images): `GATEPOST_POWER_CUT_KEEP` names a directory where
//! an image is kept that makes the test fail, and the list of what it owed.

#[path = "../gateway/harness.rs"]
mod harness;
#[path = "../gateway/load.rs"]
mod load;

mod device;
mod evidence;
mod image;
mod recording;
mod sink;
mod write_log;

use device::{Mount, format, have_own_mounts, run, write_image};
use evidence::Id;
use harness::{GATEPOST, Scratch, Setup};
use image::{Fates, Images};
use load::{Audit, Random, audit, gatepost_load, seed, setting};
use recording::{Plan, Recording};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::mem;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Images of one recording.
const IMAGES_PER_RECORDING: usize = 25;
/// Recordings, each on an image of the one before, until a new spool begins.
const RECORDINGS_PER_SPOOL: usize = 4;
/// Images that are made where a sync is left out.
const IMAGES_OF_CONTROL: usize = 8;
/// Recordings without a sync, until one shows losses.
const CONTROLS_MAX: usize = 3;
/// Syncs without which messages must be lost; the names are those of `GATEPOST_FAULT_NO_SYNC`. (That
/// of directories is not missed on ext4, which has one journal for all: the others bring it along.)
const NEEDED_SYNCS: [&str; 2] = ["segments", "spills"];

/// What all images together have shown.
#[derive(Debug, Default)]
struct Findings {
    images: usize,
    /// Of these, cut while a gateway started.
    starts_cut: usize,
    fates: Fates,
    /// Messages that images owed: one counts for each of them.
    owed: u64,
    lost: u64,
    altered: u64,
    /// Images whose recovery found damage.
    complaints: usize,
    recoveries: Vec<Duration>,
}

impl Findings {
    fn show(&mut self, elapsed: Duration) -> String {
        self.recoveries.sort();
        let median = self.recoveries.get(self.recoveries.len() / 2).copied().unwrap_or_default();
        let longest = self.recoveries.last().copied().unwrap_or_default();
        let Fates { kept, torn, dropped } = self.fates;
        format!(
            "{} crash images ({} cut while a gateway started) in {elapsed:.0?}: {} acknowledged messages owed, {} lost, \
             {} altered; behind the last flush {kept} writes kept, {torn} torn, {dropped} dropped; \
             start to service {median:.3?} (median), {longest:.3?} (longest); damage reported by {}",
            self.images, self.starts_cut, self.owed, self.lost, self.altered, self.complaints
        )
    }
}

#[test]
#[ignore = "needs root, qemu-storage-daemon and a minute"]
fn nothing_acknowledged_is_lost_by_a_power_cut() {
    have_own_mounts();
    let images = setting("GATEPOST_POWER_CUTS").unwrap_or(20) as usize;
    let seed = seed();
    println!("{images} images, seed {seed}");
    let mut random = Random::new(seed);
    let load = gatepost_load();
    for syncs in NEEDED_SYNCS {
        // Somebody else may have synced all filesystems of the machine, once.
        let is_missed = (0..CONTROLS_MAX).any(|_| {
            let findings = without(syncs, &load, &mut random);
            findings.lost + findings.altered > 0
        });
        assert!(is_missed, "seed {seed}: nobody misses the sync of {syncs}");
    }
    let began = Instant::now();
    let mut findings = Findings::default();
    while findings.images < images {
        power_cuts(&load, images, &mut random, &mut findings);
    }
    println!("{}", findings.show(began.elapsed()));
    assert!(findings.owed > 0, "seed {seed}: nothing was tried");
    // Few images may all be lucky.
    assert!(images < IMAGES_PER_RECORDING || findings.fates.dropped > 0, "seed {seed}: no write was dropped");
}

/// Recordings and images on one spool, until there are so many images.
fn power_cuts(load: &Path, images: usize, random: &mut Random, findings: &mut Findings) {
    let scratch = Scratch::new();
    let (mut disk, mut owed) = (format(&scratch), BTreeSet::new());
    for number in 0..RECORDINGS_PER_SPOOL {
        let count = IMAGES_PER_RECORDING.min(images - findings.images);
        if count == 0 {
            return;
        }
        // The first one fills a queue for the others.
        let plan = Plan { gatepost: &GATEPOST, load, has_next_hop: number > 0, without_sync: None };
        let directory = scratch.join("recording");
        let recording = Recording::make(plan, &directory, disk, owed, random);
        // One that owes much: of the later half.
        let next = count - 1 - random.below(count.div_ceil(2) as u64) as usize;
        (disk, owed) = each_cut(&recording, plan, &scratch, count, next, random, findings);
        fs::remove_dir_all(&directory).expect("ours");
    }
}

/// The same rig with a gateway that leaves these syncs out.
fn without(syncs: &str, load: &Path, random: &mut Random) -> Findings {
    let began = Instant::now();
    let scratch = Scratch::new();
    let gatepost = Path::new(env!("CARGO_BIN_EXE_gatepost"));
    let plan = Plan { gatepost, load, has_next_hop: false, without_sync: Some(syncs) };
    let recording = Recording::make(plan, &scratch.join("recording"), format(&scratch), BTreeSet::new(), random);
    let mut findings = Findings::default();
    each_cut(&recording, plan, &scratch, IMAGES_OF_CONTROL, 0, random, &mut findings);
    println!("without the sync of {syncs}: {}", findings.show(began.elapsed()));
    findings
}

/// Makes and judges images of a recording. Returns the one with number `next` and what it owes.
fn each_cut(
    recording: &Recording,
    plan: Plan<'_>,
    scratch: &Scratch,
    count: usize,
    next: usize,
    random: &mut Random,
    findings: &mut Findings,
) -> (Vec<u8>, BTreeSet<Id>) {
    let mut cuts: Vec<usize> = (1..count).map(|_| a_cut(recording, random)).collect();
    // When all is acknowledged, and nobody has unmounted anything.
    cuts.extend(recording.ends.last().map(|&end| recording.log.entries_in(end)));
    cuts.sort_unstable();
    let mut images = Images::new(&recording.log, recording.disk.clone());
    let mut chosen = None;
    for (number, cut) in cuts.into_iter().enumerate() {
        let log_octets = recording.log.octets_of(cut);
        let owed = recording.evidence.owed(log_octets);
        let (disk, fates) = images.cut(cut, random);
        findings.images += 1;
        findings.starts_cut += usize::from(recording.starts.iter().any(|start| start.contains(&log_octets)));
        findings.fates.add(fates);
        findings.owed += owed.len() as u64;
        let mut image = Image { disk, owed, name: format!("image-{}-{}", std::process::id(), findings.images) };
        let (report, took, complaints) = image.recover(plan, scratch, random);
        println!(
            "cut {cut} of {}: {} owed, {} lost, {} altered; {fates:?}; {took:.3?} {complaints}",
            recording.log.entries.len(),
            report.expected,
            report.lost,
            report.altered
        );
        findings.lost += report.lost;
        findings.altered += report.altered;
        findings.complaints += usize::from(!complaints.is_empty());
        findings.recoveries.push(took);
        if plan.without_sync.is_none() {
            let Audit { lost, altered, foreign, duplicated, .. } = report;
            assert_eq!((lost, altered, foreign, duplicated), (0, 0, 0, 0), "{}: {report:?} {complaints}", image.name);
        }
        if number == next {
            chosen = Some((mem::take(&mut image.disk), mem::take(&mut image.owed)));
        }
    }
    chosen.expect("it is one of them")
}

/// Somewhere in the log, often while a gateway starts; and often there where the most writes of some
/// places wait for a flush.
fn a_cut(recording: &Recording, random: &mut Random) -> usize {
    let log = &recording.log;
    let range = match random.below(3) {
        0 => {
            let start = &recording.starts[random.below(recording.starts.len() as u64) as usize];
            log.entries_in(start.start)..log.entries_in(start.end)
        }
        _ => 0..log.entries.len(),
    };
    let mut somewhere = || range.start + random.below((range.end - range.start) as u64 + 1) as usize;
    let cut = somewhere();
    let cuts = [cut, somewhere(), somewhere(), somewhere()].map(|cut| log.flush_behind(cut));
    if random.below(2) == 0 {
        return cut;
    }
    cuts.into_iter().max_by_key(|&cut| cut - log.flush_before(cut)).unwrap_or(cut)
}

/// A disk after a power cut, and what it owes.
struct Image {
    disk: Vec<u8>,
    owed: BTreeSet<Id>,
    name: String,
}

impl Image {
    /// Starts a gateway on it, then looks into the queue: what is there, how long the start took,
    /// and what it said of damage.
    fn recover(&self, plan: Plan<'_>, scratch: &Scratch, random: &mut Random) -> (Audit, Duration, String) {
        let [file, list] = [".img", ".owed"].map(|suffix| scratch.join(&format!("{}{suffix}", self.name)));
        write_image(&file, &self.disk);
        let owed: String = self.owed.iter().flat_map(|id| [id, " -\n"]).collect();
        fs::write(&list, owed).expect("ours");
        let mount = Mount::new(&file, &scratch.join("image"));
        let mut spool = mount.path().join("spool");
        let elsewhere = scratch.join("spool");
        if plan.without_sync.is_some() && spool.exists() {
            // Damage is put aside as a copy: there is so much of it that it needs another disk.
            run(Command::new("cp").arg("-a").args([&spool, &elsewhere]));
            spool.clone_from(&elsewhere);
        }
        let shards = format!("--shards={}", 1 + random.below(3));
        let setup = Setup::new(&spool, &[&shards, "--drain-timeout=0"]).program(plan.gatepost);
        let began = Instant::now();
        let mut gateway = setup.start();
        let took = began.elapsed();
        gateway.signal(Signal::TERM);
        let (code, _) = gateway.wait();
        assert_eq!(code, Some(0), "after SIGTERM");
        let complaints = gateway.complaints();
        let (report, _) = audit(plan.load, &spool, std::slice::from_ref(&list));
        mount.unmount();
        let _ = fs::remove_dir_all(&elsewhere);
        for file in [file, list] {
            fs::remove_file(file).expect("ours");
        }
        (report, took, complaints)
    }
}

impl Drop for Image {
    /// Keeps what makes the test fail.
    fn drop(&mut self) {
        let Some(directory) = std::env::var_os("GATEPOST_POWER_CUT_KEEP").map(PathBuf::from) else { return };
        if std::thread::panicking() && !self.disk.is_empty() {
            write_image(&directory.join(format!("{}.img", self.name)), &self.disk);
            let owed: Vec<&str> = self.owed.iter().map(String::as_str).collect();
            let _ = fs::write(directory.join(format!("{}.owed", self.name)), owed.join("\n"));
        }
    }
}
