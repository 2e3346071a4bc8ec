//! `kill -9` under load with next hops: nothing that was acknowledged is lost or altered, and
//! nothing is delivered twice without one of the known causes ([`judge`]).
//!
//! Life after life on the same spool: a gateway with two routes to two sinks, senders of small, of
//! middling and of spilling messages, SIGKILL (now and then SIGTERM) at a random moment. The sinks
//! are slow, drop connections instead of replying, refuse a recipient for the moment, are killed
//! themselves. After each end the queue on the disk and the sinks' records are held against every
//! acknowledgement. At last the queue drains, the spool must have shrunk, everything must have
//! arrived; then the judge is put to the test.
//!
//! `GATEPOST_CRASH_ROUNDS` sets the number of kills (3), `GATEPOST_CRASH_SEED` repeats the random
//! choices of a run (not its timing).

#[path = "../gateway/harness.rs"]
mod harness;
mod judge;
#[path = "../gateway/load.rs"]
mod load;
mod queue;
mod sink;

use harness::{Gateway, Scratch, files, start, until};
use judge::{Evidence, Life, Recipients, Reply, Run, Verdict};
use load::{Random, Sender, gatepost_load, seed, setting};
use sink::NextHop;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Rounds after which the queue drains and a new spool begins.
const ROUNDS_PER_SPOOL: u64 = 6;
/// A kill comes at most this long after each sender has had an acknowledgement.
const KILL_AFTER_MAX_MS: u64 = 400;
/// The shards of the last life: at least as many as of any other.
const SHARDS_MAX: u64 = 3;
/// Segments that may be left when the queue is empty, for each shard: the one in use, and one that
/// is about to go.
const SEGMENTS_MAX: usize = 2;

/// How the next hops go wrong.
const FAULTS: [&str; 6] = [
    "",
    // So slow that mail is left for the lives to come.
    "end=slow:300ms\n",
    "end=slow:40ms,p=0.5\n",
    // Taken without a reply, or broken off before its end.
    "end=close,p=0.03\nend=reset,p=0.02\nbody@64KB=reset,p=0.05\n",
    "rcpt[rcpt2]=451 4.2.1 not now,p=0.4\n",
    "rcpt[rcpt2]=451 4.2.1 not now,p=0.2\nend=close,p=0.02\nend=slow:20ms,p=0.2\n",
];

/// One of them that keeps no message for long.
const REFUSING: usize = 4;

#[test]
fn nothing_is_lost_and_nothing_comes_twice_without_a_cause() {
    let rounds = setting("GATEPOST_CRASH_ROUNDS").unwrap_or(3);
    let seed = seed();
    println!("{rounds} rounds, seed {seed}");
    let mut random = Random::new(seed);
    let load = gatepost_load();
    let (mut sum, mut kills) = (Verdict::default(), 0);
    while kills < rounds {
        let mut world = World::new(&load);
        let until = rounds.min(kills + ROUNDS_PER_SPOOL);
        while kills < until {
            let killed = world.round(&mut random);
            kills += u64::from(killed);
            let verdict = world.judge(&format!("seed {seed}, before kill {kills}"));
            println!("{} after kill {kills}: {verdict:?}", if killed { "killed" } else { "stopped" });
        }
        world.a_damaged_spool_would_be_noticed();
        world.drain(&mut random);
        let verdict = world.judge(&format!("seed {seed}, drained after kill {kills}"));
        println!("drained: {verdict:?}");
        world.the_judge_would_notice();
        world.stop();
        sum.add(&verdict);
    }
    println!(
        "{kills} kills: {} messages acknowledged, {} lost, {} altered; {} received; duplicates: {} killed before the outcome's \
         sync (at most {} ms before the kill), {} after a next hop's silence, {} other; {} were delivered and the client never told",
        sum.acknowledged,
        sum.lost,
        sum.altered,
        sum.received,
        sum.after_kill,
        sum.after_kill_longest_us / 1000,
        sum.after_silence,
        sum.faults.len(),
        sum.never_told
    );
    assert!(sum.acknowledged >= 4 * rounds);
}

/// One spool, its next hops, and all that is known.
struct World<'a> {
    load: &'a Path,
    scratch: Scratch,
    next_hops: [NextHop; 2],
    /// The lists of acknowledged ids.
    lists: Vec<PathBuf>,
    /// Without copies and acknowledgements, which are read again each time.
    known: Evidence,
}

impl<'a> World<'a> {
    fn new(load: &'a Path) -> Self {
        let scratch = Scratch::new();
        let next_hops = [0, 1].map(|number| NextHop::start(number, load, scratch.path()));
        World { load, scratch, next_hops, lists: Vec::new(), known: Evidence::default() }
    }

    fn spool(&self) -> PathBuf {
        self.scratch.join("spool")
    }

    /// Starts the gateway's next life.
    fn start(&mut self, shards: u64, further: &[&str]) -> Gateway {
        let life = self.known.lives.len();
        let [default, routed] = [0, 1].map(|number: usize| self.next_hops[number].address);
        let fails_over = further.contains(&"failover");
        self.known.lives.push(Life { fails_over, ..Life::default() });
        let mut options = vec![
            format!("--hostname=mx{life}.test.example"),
            format!("--shards={shards}"),
            "--accept-domain=routed.example".to_owned(),
            format!("--route=routed.example={routed}"),
            format!("--next-hop={default}"),
            "--retry-min=100ms".to_owned(),
            "--retry-max=500ms".to_owned(),
            "--message-rate=0".to_owned(),
            "--max-connections-per-source=0".to_owned(),
            "--connection-timeout=0".to_owned(),
        ];
        if fails_over {
            options.push(format!("--next-hop={routed}"));
        }
        options.extend(further.iter().filter(|option| option.starts_with("--")).map(|&option| option.to_owned()));
        start(&self.spool(), &options.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Notes how the gateway's life ended.
    fn ended(&mut self, killed: bool, ended_unix_us: u64) {
        let queue = queue::read(&self.spool(), self.load, &self.scratch);
        let life = self.known.lives.last_mut().expect("it began");
        *life = Life { killed, ended_unix_us, queue, ..*life };
    }

    /// A life of the gateway under load, or with what it finds in the queue. Whether it was killed.
    fn round(&mut self, random: &mut Random) -> bool {
        let life = self.known.lives.len();
        for next_hop in &mut self.next_hops {
            if !next_hop.is_up() {
                next_hop.restart();
            }
            next_hop.go_wrong(random.choose(&FAULTS));
        }
        let further = [random.choose(&["--ack-delay=0", ""]), random.choose(&["failover", "", ""])];
        let gateway = self.start(1 + random.below(SHARDS_MAX), &further);
        // Without senders it is killed in the midst of what the queue holds.
        let senders = if life > 0 && random.below(3) == 0 { Vec::new() } else { self.send(&gateway, random) };
        let loses_next_hop = random.below(3) == 0;
        if !loses_next_hop && !senders.is_empty() && random.below(2) == 0 {
            // The queue is read again and again: it must not grow meanwhile.
            senders.iter().for_each(|sender| sender.pause(true));
            self.outcomes_are_written(life);
            senders.iter().for_each(|sender| sender.pause(false));
        }
        let after_ms = random.below(KILL_AFTER_MAX_MS);
        if loses_next_hop {
            let next_hop = random.below(2) as usize;
            let (down_ms, up_ms) = (random.below(after_ms + 1), random.below(KILL_AFTER_MAX_MS));
            sleep(Duration::from_millis(down_ms));
            self.next_hops[next_hop].kill();
            if down_ms + up_ms < after_ms {
                sleep(Duration::from_millis(up_ms));
                self.next_hops[next_hop].restart();
                sleep(Duration::from_millis(after_ms - down_ms - up_ms));
            } else {
                sleep(Duration::from_millis(after_ms - down_ms));
            }
        } else {
            sleep(Duration::from_millis(after_ms));
        }
        assert_eq!(gateway.complaints(), "");
        let kills = random.below(6) > 0;
        let ended_unix_us = unix_us();
        if kills {
            gateway.kill()
        } else {
            drop(gateway.stop())
        }
        let acknowledged: Vec<u64> = senders.into_iter().map(Sender::wait).collect();
        println!("life {life} ({further:?}): acknowledged {acknowledged:?}");
        self.ended(kills, ended_unix_us);
        kills
    }

    /// Starts the senders of a life, and waits until each has acknowledgements.
    fn send(&mut self, gateway: &Gateway, random: &mut Random) -> Vec<Sender> {
        let life = self.known.lives.len() - 1;
        let small = random.choose(&["600B", "4KB", "30KB"]);
        // About the limit between log and spill file, and far above.
        let large = random.choose(&["250KB", "256KB", "300KB", "2MB"]);
        let plans: [(&str, Recipients, Option<usize>, &[&str]); 4] = [
            ("rcpt@test.example", 0b1, None, &["--sessions=6", "--persistent", "--pipelining", "--size", small]),
            ("rcpt@test.example", 0b111, None, &["--sessions=3", "--size=100KB", "--dots", "--recipients=3"]),
            ("rcpt@routed.example", 0b1, Some(1), &["--sessions=3", "--persistent", "--size", large]),
            ("rcpt@routed.example", 0b111, Some(1), &["--sessions=4", "--recipients=3", "--retries=2"]),
        ];
        let mut senders: Vec<Sender> = (0..)
            .zip(plans)
            .map(|(number, (to, recipients, routed_to, plan))| {
                let run = format!("r{life}s{number}");
                let acked = self.scratch.join(&format!("acked-{run}"));
                self.lists.push(acked.clone());
                let options = ["--to", to, "--run-id", &run];
                self.known.runs.insert(run.clone(), Run { life, recipients, routed_to });
                Sender::start(self.load, gateway, acked, &[&options[..], plan].concat())
            })
            .collect();
        until("every sender has acknowledgements", || {
            let ready: Vec<bool> = senders.iter_mut().map(Sender::has_acknowledgements).collect();
            ready.iter().all(|&ready| ready)
        });
        senders
    }

    /// All that is known now.
    fn evidence(&self) -> Evidence {
        let mut evidence = self.known.clone();
        for list in &self.lists {
            let text = fs::read_to_string(list).unwrap_or_default();
            // A sender that runs may be writing its last line.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let pairs = whole.lines().filter_map(|line| line.split_once(' '));
            evidence.acknowledged.extend(pairs.map(|(id, queue_id)| (id.to_owned(), queue_id.to_owned())));
        }
        self.next_hops.iter().for_each(|next_hop| next_hop.add_to(&mut evidence));
        evidence.copies.values_mut().for_each(|copies| copies.sort_by_key(|copy| copy.unix_us));
        evidence
    }

    fn judge(&self, when: &str) -> Verdict {
        let verdict = self.evidence().judge();
        assert!(verdict.is_good(), "{when}: {verdict:#?}");
        verdict
    }

    /// Whatever the next hops have taken in this life leaves the queue, with nothing to prompt it:
    /// only what was delivered just before a kill can come again.
    fn outcomes_are_written(&self, life: usize) {
        let evidence = self.evidence();
        let is_taken = |id: &str| {
            let all = evidence.runs[id.rsplit_once('-').expect("an id").0].recipients;
            let copies = evidence.copies.get(id).map(Vec::as_slice).unwrap_or_default().iter();
            let sent = copies.filter(|copy| copy.reply == Reply::Sent && copy.life == life);
            sent.fold(0, |all, copy| all | copy.recipients) == all
        };
        let taken: Vec<&String> =
            evidence.acknowledged.iter().filter(|(id, _)| is_taken(id)).map(|(_, queue_id)| queue_id).collect();
        until("what was delivered has left the queue", || {
            let listed = queue::list(&self.spool());
            !taken.iter().any(|taken| listed.iter().any(|(queue_id, _)| queue_id == *taken))
        });
    }

    /// Delivers all that is left.
    fn drain(&mut self, random: &mut Random) {
        for next_hop in &mut self.next_hops {
            if !next_hop.is_up() {
                next_hop.restart();
            }
            next_hop.go_wrong(random.choose(&["", FAULTS[REFUSING]]));
        }
        let gateway = self.start(SHARDS_MAX, &[]);
        until("the queue is empty", || gateway.metric("gatepost_queue_messages") == 0.0);
        assert_eq!(queue::list(&self.spool()), []);
        let spool = self.spool();
        until("no spill file is left", || files(&spool, "spill-").is_empty());
        until("the segments are gone", || files(&spool, "segment-").len() <= SEGMENTS_MAX * SHARDS_MAX as usize);
        let ended_unix_us = unix_us();
        gateway.stop();
        self.ended(false, ended_unix_us);
        let left: Vec<String> = files(&spool, "").iter().map(|path| path.display().to_string()).collect();
        println!("left of the spool: {left:?}");
    }

    fn stop(mut self) {
        for next_hop in &mut self.next_hops {
            let report = next_hop.stop();
            assert_eq!((&report["altered"], &report["foreign"]), (&0.into(), &0.into()), "{report}");
        }
    }

    /// Hides segments, to see that what waits in them is missed.
    fn a_damaged_spool_would_be_noticed(&mut self) {
        let evidence = self.evidence();
        let delivered = |id: &String| evidence.copies.contains_key(id);
        let queue = &evidence.lives.last().expect("a life").queue;
        let waits = evidence.acknowledged.keys().any(|id| queue.contains_key(id) && !delivered(id));
        let mut is_missed = false;
        for segment in files(&self.spool(), "segment-") {
            if is_missed || !waits {
                break;
            }
            let hidden = self.scratch.join("hidden");
            fs::rename(&segment, &hidden).expect("ours");
            let mut damaged = evidence.clone();
            // What it settled may be back now, without its spill file: it is not read, only listed.
            let listed: HashSet<String> = queue::list(&self.spool()).into_iter().map(|(id, _)| id).collect();
            let is_listed = |id: &String| evidence.acknowledged.get(id).is_none_or(|id| listed.contains(id));
            damaged.lives.last_mut().expect("a life").queue.retain(|id, _| is_listed(id));
            is_missed = damaged.judge().lost > 0;
            fs::rename(&hidden, &segment).expect("ours");
        }
        assert_eq!(is_missed, waits, "each segment was hidden in turn");
    }

    /// Changes what was found, bit by bit, to see that the judge is no formality.
    fn the_judge_would_notice(&self) {
        let evidence = self.evidence();
        assert!(evidence.judge().is_good());
        let once = |recipients: Recipients| {
            let told = evidence.acknowledged.keys();
            let mut once = told.filter(|id| {
                let [copy] = &evidence.copies[*id][..] else { return false };
                let life = &evidence.lives[copy.life];
                let is_done_with = copy.life + 1 < evidence.lives.len() && !life.queue.contains_key(*id);
                is_done_with && (copy.recipients, copy.reply) == (recipients, Reply::Sent)
            });
            once.next().expect("a message that came once").clone()
        };
        let (one, three) = (once(0b1), once(0b111));
        let with = |change: &dyn Fn(&mut Evidence)| {
            let mut changed = evidence.clone();
            change(&mut changed);
            let verdict = changed.judge();
            assert!(!verdict.is_good());
            (verdict.lost, verdict.altered, verdict.faults.len())
        };
        let copies = |changed: &mut Evidence, id: &str, change: &dyn Fn(&mut Vec<judge::Copy>)| {
            change(changed.copies.get_mut(id).expect("it came"))
        };
        assert_eq!(with(&|all| drop(all.copies.remove(&one))), (1, 0, 1), "it never came");
        assert_eq!(with(&|all| copies(all, &three, &|it| it[0].recipients = 0b101)), (1, 0, 1), "for one recipient");
        assert_eq!(with(&|all| copies(all, &one, &|it| it[0].intact = false)), (1, 1, 1), "it came altered");
        assert_eq!(with(&|all| copies(all, &one, &|it| it.push(it[0].clone()))), (0, 0, 1), "it came twice");
        let twice = |it: &mut Vec<judge::Copy>| it.push(judge::Copy { recipients: 0b10, ..it[0].clone() });
        assert_eq!(with(&|all| copies(all, &three, &twice)), (0, 0, 1), "it came twice for one recipient");
        let again = |it: &mut Vec<judge::Copy>| it.push(judge::Copy { life: it[0].life + 1, ..it[0].clone() });
        assert_eq!(with(&|all| copies(all, &one, &again)), (0, 0, 1), "it came back to life");
        assert_eq!(with(&|all| copies(all, &one, &|it| it[0].next_hop = 2)), (0, 0, 1), "it went astray");
        let last = evidence.lives.len() - 1;
        let waits = |life: usize| move |all: &mut Evidence| all.lives[life].queue.extend([(one_more(), 1)]);
        assert_eq!(with(&waits(0)), (1, 0, 1), "it vanished from the queue");
        let is_back = |all: &mut Evidence| all.lives[last].queue.extend([(one.clone(), 1)]);
        assert_eq!(with(&is_back), (0, 0, 1), "it is back in the queue");
    }
}

/// A message that nobody sent.
fn one_more() -> String {
    "r0s0-9999999999".to_owned()
}

fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as u64
}
