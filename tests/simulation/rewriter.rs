//! Writes the live records of the oldest segment again, so that it can go: the steps of
//! `shard::outbound::rewriter`.

use crate::process::Awaiter;
use crate::settle::Settlement;
use crate::world::World;
use gatepost::limits::KEEPER_MAX_MS;
use gatepost::queue::disk::segment_name;
use gatepost::queue::outcome::Settled;
use gatepost::queue::record::{Record, RecordHeader};
use gatepost::queue::schedule::MessageKey;
use gatepost::queue::spool::Location;

/// A rewrite that is under way.
pub struct Rewrite {
    generation: u64,
    /// Where to go on; `None`: there are no more.
    next: Option<usize>,
    /// Records on their way to another place.
    left: usize,
    /// Messages that are elsewhere now.
    written: usize,
    works: bool,
}

impl World {
    /// Begins where the segments take more than they may, unless that is under way already.
    pub fn rewrite(&mut self, oldest_in_use: u64) {
        // Until a segment is made, the spool counts on one of the usual size: not this disk's.
        let (now_ms, usual) = (self.now_ms, self.settings.segment_octets);
        let process = self.process();
        if process.rewrite.is_some() || now_ms < process.rewrite_again_ms {
            return;
        }
        let capacity = process.spool.capacity().min(usual);
        let Some(generation) = process.schedule.segment_to_rewrite(oldest_in_use, capacity) else { return };
        process.rewrite = Some(Rewrite { generation, next: Some(0), left: 0, written: 0, works: true });
        self.note(|| format!("{} is written again", segment_name(generation)));
        self.rewrite_some();
    }

    /// Writes the next records again, or comes to the end.
    fn rewrite_some(&mut self) {
        loop {
            let process = self.process();
            let is_short = process.is_failing();
            let Some(rewrite) = &process.rewrite else { return };
            let (generation, Some(from), true, false) = (rewrite.generation, rewrite.next, rewrite.works, is_short)
            else {
                return self.end_rewrite();
            };
            let mut keys = Vec::new();
            let next = process.schedule.messages_in(generation, from, &mut keys);
            if let Some(rewrite) = &mut process.rewrite {
                rewrite.next = next;
                rewrite.left = keys.len();
            }
            if keys.is_empty() {
                continue;
            }
            process.schedule.hold(generation);
            self.tempt_fate();
            for key in keys {
                self.process().schedule.begin_rewrite(key);
                if !self.append_again(key) {
                    self.record_is_rewritten(key, None, 0);
                }
            }
            return;
        }
    }

    /// Appends a message's record again. False: it cannot be read.
    fn append_again(&mut self, key: MessageKey) -> bool {
        let Some(message) = self.process().schedule.message(key) else { return false };
        let (id, Location { generation, offset, octets }) = (message.id, message.location);
        let read = self.disk.read_at(&segment_name(generation), u64::from(offset), octets as usize);
        let Ok(octets) = read else { return false };
        let record = RecordHeader::decode(&octets)
            .filter(|header| (header.id, header.generation) == (id, generation))
            .and_then(|header| Record::decode(header, &octets));
        let Some(record) = record else { return false };
        let process = self.process();
        let Some(message) = process.schedule.message(key) else { return false };
        let recipients = message.recipients as usize;
        let settled = message.statuses.settled(recipients).count();
        let receipt = process.spool.append_again(&record, &message.statuses, recipients);
        self.note(|| format!("{id} is written again to {:?}", receipt.location()));
        self.await_batch(Awaiter::Rewrite { key, settled }, receipt);
        true
    }

    /// A record is on stable storage in another place, or, without a location, not. What became of
    /// recipients meanwhile is said again.
    pub fn record_is_rewritten(&mut self, key: MessageKey, location: Option<Location>, settled: usize) {
        self.judge.tally.written_again += u64::from(location.is_some());
        let process = self.process();
        let Some(rewrite) = &mut process.rewrite else { return };
        rewrite.left -= 1;
        let (generation, left) = (rewrite.generation, rewrite.left);
        match location {
            Some(location) => {
                rewrite.written += 1;
                process.schedule.relocate(key, location);
            }
            None => rewrite.works = false,
        }
        if let (Some(_), Some(message)) = (location, process.schedule.message(key)) {
            let own = |one: Settled<&str>| Settled {
                recipient: one.recipient,
                status: one.status,
                reply: one.reply.to_owned(),
            };
            let all_settled: Vec<_> = message.statuses.settled(message.recipients as usize).map(own).collect();
            if all_settled.len() > settled {
                process.schedule.begin_rewrite(key);
                process.schedule.hold(generation);
                self.write(key, Settlement::These(all_settled), Some(generation));
            }
        }
        let finished = self.process().schedule.recorded(key);
        self.release(finished);
        if left == 0 {
            self.process().schedule.unhold(generation);
            self.rewrite_some();
        }
    }

    fn end_rewrite(&mut self) {
        let now_ms = self.now_ms;
        let process = self.process();
        if process.rewrite.take().is_some_and(|rewrite| rewrite.written == 0) {
            // It would come to nothing again.
            process.rewrite_again_ms = now_ms + KEEPER_MAX_MS;
        }
        self.wake_keeper(0);
    }
}
