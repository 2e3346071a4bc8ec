//! Damage to a spool: whatever disks do to it, recovery goes through, no message comes out that is
//! not one that was sent, what is not hurt is all there, and what is lost is reported and kept.
//!
//! Spools are made by the program ([`spools`]); their copies are wounded at random ([`injury`]),
//! recovered, and judged ([`judge`]). A sample of them goes to the program itself, with a next hop.
//!
//! `GATEPOST_DAMAGE_CASES` sets the number of wounds (50), `GATEPOST_CRASH_SEED` repeats the random
//! choices of a run (not the ids in its spools: a spool whose case fails is kept).

#[path = "../gateway/harness.rs"]
mod harness;
mod injury;
mod judge;
#[path = "../gateway/load.rs"]
mod load;
mod sink;
mod spools;

use gatepost::queue::outcome::Status;
use gatepost::smtp::QueueId;
use harness::{Scratch, assert_same, split_received, until};
use injury::{Files, Wound, wound};
use judge::{Recovered, judge, recovered};
use load::{Random, seed, setting};
use sink::Sink;
use spools::{Mail, Spool, lay_out, make, serve, stop, until_tried};
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

/// The program is given one case in so many.
const PROGRAM_EVERY: u64 = 25;

#[test]
fn damage_is_found_and_told_and_costs_nothing_else() {
    let cases = setting("GATEPOST_DAMAGE_CASES").unwrap_or(50);
    let seed = seed();
    println!("{cases} cases, seed {seed}");
    let scratch = Scratch::new();
    let (mail, spools) = make(&scratch);
    let path = scratch.join("wounded");
    let unhurt: Vec<Recovered> = spools.iter().map(|spool| recovered_unhurt(&path, spool, &mail)).collect();
    let mut told = 0;
    for case in 0..cases {
        // Each case has a seed of its own: it can be had without those before.
        let mut random = Random::new(seed.wrapping_add(case));
        let place = random.below(spools.len() as u64) as usize;
        let spool = &spools[place];
        let (files, wound) = wound(&mut random, &spool.files, &spool.before);
        let check = || {
            lay_out(&files, &path);
            let is = recovered(&path, &mail);
            judge(&path, &spool.files, &files, &wound, &unhurt[place], &is);
            recover_again(&path, &mail, &is);
            if case % PROGRAM_EVERY == 0 {
                deliver(&path, &files, &mail, &is, &wound);
            }
            is
        };
        let is = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
            let kept = std::env::temp_dir().join(format!("gatepost-damage-{}", seed.wrapping_add(case)));
            lay_out(&files, &kept);
            println!("case {case}, a spool {}: {wound}; it is in {}", spool.name, kept.display());
            resume_unwind(panic)
        });
        told += u64::from(is.values().any(|shard| !shard.reports.is_empty()));
    }
    println!("{told} of {cases} wounds were told of");
}

/// What recovery makes of a spool that nothing has befallen. Writes that a kill has cut off may be told.
fn recovered_unhurt(path: &Path, spool: &Spool, mail: &Mail) -> Recovered {
    lay_out(&spool.files, path);
    let is = recovered(path, mail);
    assert!(is.values().any(|shard| !shard.queued.is_empty()), "{}", spool.name);
    assert!(is.values().flat_map(|shard| shard.queued.values()).all(|queued| queued.is_readable), "{}", spool.name);
    is
}

/// A second start finds what the first one found, and keeps what it has kept.
fn recover_again(path: &Path, mail: &Mail, is: &Recovered) {
    let kept = Files::read(path);
    let again = recovered(path, mail);
    for (name, shard) in is {
        assert_eq!(again[name].queued, shard.queued, "{name} recovered again");
    }
    assert_eq!(kept.quarantined(), Files::read(path).quarantined());
}

/// The program delivers from a wounded spool what is whole, tells what is not, and ends in order.
fn deliver(path: &Path, files: &Files, mail: &Mail, is: &Recovered, wound: &Wound) {
    lay_out(files, path);
    let sink = Sink::start();
    let gateway = serve(path, 2, Some(&sink));
    let queued = || is.values().flat_map(|shard| &shard.queued);
    let wanted: BTreeSet<QueueId> = queued()
        .filter(|(_, queued)| queued.is_readable)
        .filter(|(id, queued)| waits_for_somebody(&mail[id].to, &queued.statuses))
        .map(|(id, _)| *id)
        .collect();
    until("all that is whole is delivered", || wanted.is_subset(&arrived(&sink, mail)));
    until_tried(&gateway);
    let unreadable = queued().filter(|(_, queued)| !queued.is_readable).map(|(id, _)| *id).collect();
    assert!(arrived(&sink, mail).is_disjoint(&unreadable), "damaged mail was delivered");
    let stderr = stop(gateway);
    for report in is.values().flat_map(|shard| &shard.reports) {
        assert!(stderr.contains(report), "{wound}: nobody was told that {report}: {stderr}");
    }
}

/// Whether a recipient that the sink takes is not settled.
fn waits_for_somebody(to: &[String], statuses: &[Status]) -> bool {
    let mut recipients = to.iter().zip(statuses);
    recipients.any(|(to, &status)| {
        let is_taken = !to.starts_with("no@") && !to.starts_with("later@");
        is_taken && status == Status::Pending
    })
}

/// What the sink has taken: all of it as it was sent, to its own recipients, each once.
fn arrived(sink: &Sink, mail: &Mail) -> BTreeSet<QueueId> {
    let mut counts: HashMap<(QueueId, String), usize> = HashMap::new();
    let mut ids = BTreeSet::new();
    for taken in sink.taken().iter() {
        let (field, content) = split_received(&taken.content);
        let id = field.split(" id ").nth(1).and_then(|rest| rest.split(';').next()).and_then(QueueId::parse);
        let id = id.unwrap_or_else(|| panic!("no id: {field}"));
        let sent = mail.get(&id).unwrap_or_else(|| panic!("{id} was never accepted"));
        assert_eq!(taken.from, sent.from, "{id}");
        assert_same(&id.to_string(), &content, &sent.content);
        for to in &taken.to {
            assert!(sent.to.contains(to), "{id}: not for {to}");
            *counts.entry((id, to.clone())).or_default() += 1;
        }
        ids.insert(id);
    }
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "delivered twice: {twice:?}");
    ids
}
