//! A gateway at work on a disk whose writes are logged: some of its lives, each under load.

use crate::device::Device;
use crate::evidence::{Evidence, Id, Sampler, Sources};
use crate::harness::{Gateway, Setup, until};
use crate::image;
use crate::load::{Random, Sender};
use crate::sink::Sink;
use crate::write_log::WriteLog;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The gateway starts so often, on what its former life left.
const LIVES: usize = 2;
/// Those of a life are of small, of middling and of spilling messages, and of such as no next hop ever takes.
const SENDERS: usize = 4;
/// The least and the most that a life puts into the log, in octets: what is not delivered has to have room.
const STORED: Range<u64> = 1 << 20..3 << 20;
/// The same with a next hop: enough for segments to be used again.
const HANDED_ON: Range<u64> = 4 << 20..16 << 20;
/// A life ends at the latest then.
const LIFE_MAX: Duration = Duration::from_secs(5);
/// In looks for the life's end, 10 ms each: when a filesystem that nobody syncs is written back.
const WRITTEN_BACK_LOOKS: u64 = 20;

/// How next hops go wrong.
const FAULTS: [&str; 4] =
    ["end=slow:60ms,p=0.2", "rcpt=451 4.2.1 not now,p=0.3", "rcpt=451 4.2.1 not now,p=0.6", "end=close,p=0.05"];
/// This one they all have: some mail stays, in segments whose other mail goes.
const HELD: &str = "rcpt[held]=451 4.2.1 not now";

/// What a recording is to be of.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    pub gatepost: &'a Path,
    pub load: &'a Path,
    pub has_next_hop: bool,
    /// The syncs that the gateway leaves out.
    pub without_sync: Option<&'a str>,
}

/// What is known when it is over.
#[derive(Debug)]
pub struct Recording {
    /// The disk before the log.
    pub disk: Vec<u8>,
    pub log: WriteLog,
    pub evidence: Evidence,
    /// The octets of the log that were written while the filesystem was mounted and the gateway started.
    pub starts: Vec<Range<u64>>,
    /// How long the log was when the gateway was gone.
    pub ends: Vec<u64>,
}

impl Recording {
    /// Records on a disk that owes these messages. The files go to an empty directory.
    pub fn make(plan: Plan<'_>, directory: &Path, disk: Vec<u8>, owed: BTreeSet<Id>, random: &mut Random) -> Self {
        fs::create_dir(directory).expect("ours");
        let device = Device::start(directory, &disk);
        let sources = Sources {
            lists: (0..LIVES * SENDERS).map(|number| directory.join(format!("acked-{number}"))).collect(),
            log: device.log().to_owned(),
            record: directory.join("taken"),
        };
        let sampler = Sampler::start(sources.clone());
        let sink = plan.has_next_hop.then(|| Sink::start(plan.load, &sources.record, &[HELD, random.choose(&FAULTS)]));
        let log_octets = || fs::metadata(&sources.log).expect("ours").len();
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let mut began = log_octets();
        let mount = device.mount(&directory.join("mount"));
        for (life, lists) in sources.lists.chunks(SENDERS).enumerate() {
            let gateway = start(plan, &mount.path().join("spool"), sink.as_ref(), random);
            starts.push(began..log_octets());
            live(plan, gateway, mount.path(), lists, life + 1 < LIVES, random);
            began = log_octets();
            ends.push(began);
        }
        mount.unmount();
        let after = device.stop();
        drop(sink);
        let evidence = sampler.stop(owed);
        let log = WriteLog::read(&sources.log);
        assert!(image::whole(&log, disk.clone()) == after, "the log says all that happened to the disk");
        Recording { disk, log, evidence, starts, ends }
    }
}

fn start(plan: Plan<'_>, spool: &Path, sink: Option<&Sink>, random: &mut Random) -> Gateway {
    let mut options = vec![
        // The fewer, the sooner their segments are full.
        random.choose(&["--shards=1", "--shards=2", "--shards=3"]),
        "--message-rate=0",
        "--max-connections-per-source=0",
        "--connection-timeout=0",
        "--drain-timeout=0",
        "--min-free-disk=4MB",
        "--retry-min=100ms",
        "--retry-max=500ms",
    ];
    if !spool.exists() {
        // The directories for all that come later, even with a disk that is full.
        options[0] = "--shards=3";
    }
    let next_hop = sink.map(|sink| format!("--next-hop={}", sink.address));
    if let Some(next_hop) = &next_hop {
        options.extend([next_hop.as_str(), random.choose(&["--ack-delay=0", "--ack-delay=0", "--ack-delay=30s"])]);
    }
    let setup = Setup::new(spool, &options).program(plan.gatepost);
    match plan.without_sync {
        Some(syncs) => setup.variable("GATEPOST_FAULT_NO_SYNC", syncs).start(),
        None => setup.start(),
    }
}

/// A life under load, which ends by a kill or in order. Where syncs are left out and `is_written_back`
/// says so, the kernel makes up for it now and then, as it does.
fn live(
    plan: Plan<'_>,
    mut gateway: Gateway,
    filesystem: &Path,
    lists: &[PathBuf],
    is_written_back: bool,
    random: &mut Random,
) {
    // The third ones about the limit between log and spill file, and above.
    let sizes = [
        random.choose(&[600, 4_000, 30_000]),
        100_000,
        random.choose(&[262_000, 300_000, 900_000]),
        random.choose(&[2_000, 8_000]),
    ];
    let ways: [&[&str]; SENDERS] = [
        &["--to=rcpt@test.example", "--sessions=8", "--persistent", "--pipelining"],
        &["--to=rcpt@test.example", "--sessions=4", "--dots"],
        &["--to=rcpt@test.example", "--sessions=2", "--persistent"],
        &["--to=held@test.example", "--sessions=2"],
    ];
    let mut senders = Vec::new();
    for ((way, octets), list) in ways.into_iter().zip(sizes).zip(lists) {
        let size = format!("--size={octets}B");
        senders.push(Sender::start(plan.load, &gateway, list.clone(), &[way, &[&size]].concat()));
    }
    let range = if plan.has_next_hop { HANDED_ON } else { STORED };
    let volume = range.start + random.below(range.end - range.start);
    let began = Instant::now();
    let mut looks = 0;
    until("enough is acknowledged", || {
        looks += 1;
        if is_written_back && plan.without_sync.is_some() && looks % WRITTEN_BACK_LOOKS == 0 {
            File::open(filesystem).and_then(|directory| Ok(rustix::fs::syncfs(directory)?)).expect("a filesystem");
        }
        let acknowledged: Vec<u64> = lists.iter().map(|list| acknowledgements(list)).collect();
        let logged = acknowledged[0] * sizes[0] + acknowledged[1] * sizes[1];
        let is_enough = logged >= volume && acknowledged.iter().all(|&messages| messages > 0);
        // A full disk makes them give up.
        is_enough || began.elapsed() > LIFE_MAX || senders.iter_mut().any(Sender::has_ended)
    });
    gateway.signal(random.choose(&[Signal::KILL, Signal::KILL, Signal::TERM]));
    let (code, _) = gateway.wait();
    assert!(matches!(code, None | Some(0)), "it ends with {code:?}");
    let acknowledged: Vec<u64> = senders.into_iter().map(Sender::wait).collect();
    println!("recorded: {acknowledged:?} messages of {sizes:?} octets acknowledged in {:.1?}", began.elapsed());
}

/// How many there are so far.
fn acknowledgements(list: &Path) -> u64 {
    fs::read(list).map_or(0, |list| memchr::memchr_iter(b'\n', &list).count() as u64)
}
