//! What must hold, whatever was killed: nothing acknowledged is lost or altered, and a second copy
//! of a message has one of the known causes.
//!
//! | cause of a second copy | told by |
//! |---|---|
//! | the gateway was killed between the next hop's 250 and the sync of its outcome | the copies are of two lives of the gateway, the first one ended by a kill, and the queue still had the message then |
//! | the next hop did not say whether it took the message | its record says so, or it was killed and this was the connection's last message |
//! | the client sent it again (RFC 1047) | nothing: these clients never send again what may have been taken |
//!
//! Everything else is a fault. No time is compared: copies are told apart by the name that the
//! gateway had in EHLO, another one in each of its lives, and by the connection they came over.

use std::collections::{BTreeMap, HashMap, HashSet};

/// The id of a message: run and number.
pub type Id = String;

/// Recipients of a message, a bit each.
pub type Recipients = u8;

/// Whether a next hop's final reply was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Sent,
    /// It was not.
    Withheld,
    /// The next hop was killed before the connection went on.
    Unknown,
}

/// A message as a next hop took it.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Which next hop.
    pub next_hop: usize,
    /// The life of the gateway that sent it.
    pub life: usize,
    /// Microseconds since the Unix epoch.
    pub unix_us: u64,
    pub intact: bool,
    pub recipients: Recipients,
    pub reply: Reply,
}

/// The messages of one sender.
#[derive(Clone, Debug)]
pub struct Run {
    /// The life of the gateway in which they were sent.
    pub life: usize,
    pub recipients: Recipients,
    /// The next hop of their domain, if it has one of its own.
    pub routed_to: Option<usize>,
}

/// A life of the gateway.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// Mail without a route may go to the second next hop too.
    pub fails_over: bool,
    /// Ended by a kill rather than in order.
    pub killed: bool,
    pub ended_unix_us: u64,
    /// The messages in the queue when it had ended, with the recipients that were not settled.
    pub queue: HashMap<Id, Recipients>,
}

/// All that is known.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub runs: BTreeMap<String, Run>,
    /// With the queue id that was said.
    pub acknowledged: HashMap<Id, String>,
    pub copies: HashMap<Id, Vec<Copy>>,
    pub lives: Vec<Life>,
}

/// What is made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub acknowledged: u64,
    /// At the next hops, copies included.
    pub received: u64,
    pub lost: u64,
    pub altered: u64,
    /// Second copies because the gateway was killed before an outcome's sync.
    pub after_kill: u64,
    /// The longest time from such a first copy to the kill.
    pub after_kill_longest_us: u64,
    /// Second copies because the next hop had not replied.
    pub after_silence: u64,
    /// Taken, and the client was never told: those it would send again (RFC 1047).
    pub never_told: u64,
    /// Whatever must not be.
    pub faults: Vec<String>,
}

impl Verdict {
    pub fn is_good(&self) -> bool {
        self.lost == 0 && self.altered == 0 && self.faults.is_empty()
    }

    pub fn add(&mut self, other: &Verdict) {
        self.acknowledged += other.acknowledged;
        self.received += other.received;
        self.lost += other.lost;
        self.altered += other.altered;
        self.after_kill += other.after_kill;
        self.after_kill_longest_us = self.after_kill_longest_us.max(other.after_kill_longest_us);
        self.after_silence += other.after_silence;
        self.never_told += other.never_told;
        self.faults.extend_from_slice(&other.faults);
    }
}

impl Evidence {
    fn run(&self, id: &Id) -> Option<&Run> {
        self.runs.get(id.rsplit_once('-')?.0)
    }

    /// Judges what is there after the end of the last life.
    pub fn judge(&self) -> Verdict {
        let mut verdict = Verdict { acknowledged: self.acknowledged.len() as u64, ..Verdict::default() };
        let waiting = self.lives.last().map(|life| &life.queue);
        // What was in the queue after a crash must not vanish either, acknowledged or not.
        let kept: HashSet<&Id> =
            self.acknowledged.keys().chain(self.lives.iter().flat_map(|life| life.queue.keys())).collect();
        for id in kept {
            let copies = self.copies.get(id).map(Vec::as_slice).unwrap_or_default();
            let delivered = copies.iter().filter(|copy| copy.intact).fold(0, |all, copy| all | copy.recipients);
            let pending = waiting.and_then(|queue| queue.get(id)).copied().unwrap_or(0);
            let all = self.run(id).map_or(Recipients::MAX, |run| run.recipients);
            if (delivered | pending) != all {
                verdict.lost += 1;
                verdict
                    .faults
                    .push(format!("{id} is lost: of {all:b} got {delivered:b}, wait {pending:b}: {copies:?}"));
            }
        }
        for (place, lives) in self.lives.windows(2).enumerate() {
            for (id, &pending) in &lives[1].queue {
                let before = lives[0].queue.get(id).copied().unwrap_or(0);
                if self.run(id).is_some_and(|run| run.life <= place) && before & pending != pending {
                    verdict.faults.push(format!("{id} is back in the queue after life {}", place + 1));
                }
            }
        }
        for (id, copies) in &self.copies {
            verdict.received += copies.len() as u64;
            verdict.never_told += u64::from(!self.acknowledged.contains_key(id));
            verdict.altered += copies.iter().filter(|copy| !copy.intact).count() as u64;
            let Some(run) = self.run(id) else {
                verdict.faults.push(format!("{id}: nobody sent that"));
                continue;
            };
            for (place, copy) in copies.iter().enumerate() {
                let fails_over = self.lives.get(copy.life).is_some_and(|life| life.fails_over);
                let allowed = match run.routed_to {
                    Some(next_hop) => copy.next_hop == next_hop,
                    None => copy.next_hop == 0 || (copy.next_hop == 1 && fails_over),
                };
                if !allowed || copy.recipients & !run.recipients != 0 {
                    verdict.faults.push(format!("{id} went astray: {copy:?}"));
                }
                let later = copies[place + 1..].iter().find(|later| later.recipients & copy.recipients != 0);
                if let Some(later) = later
                    && let Err(fault) = self.excuse(id, copy, later, &mut verdict)
                {
                    verdict.faults.push(format!("{id}: {fault}: {copies:?}"));
                }
            }
        }
        verdict
    }

    /// Why there is a later copy of this one, for some of its recipients.
    fn excuse(&self, id: &Id, copy: &Copy, later: &Copy, verdict: &mut Verdict) -> Result<(), &'static str> {
        if later.life < copy.life {
            return Err("a former life of the gateway sends after a later one");
        }
        let both = copy.recipients & later.recipients;
        let between = self.lives.get(copy.life..later.life).ok_or("of a life that never was")?;
        if between.iter().any(|life| life.queue.get(id).is_none_or(|pending| pending & both != both)) {
            return Err("sent again though it was done with");
        }
        match between.first() {
            _ if copy.reply != Reply::Sent => verdict.after_silence += 1,
            Some(first) if first.killed => {
                verdict.after_kill += 1;
                let age_us = first.ended_unix_us.saturating_sub(copy.unix_us);
                verdict.after_kill_longest_us = verdict.after_kill_longest_us.max(age_us);
            }
            _ => return Err("sent again though the next hop had said that it took it"),
        }
        Ok(())
    }
}
