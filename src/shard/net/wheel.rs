//! Deadlines of a shard's sockets: one timer for all of them.
//!
//! A wheel of buckets, one per tick, with the sockets' slots in doubly linked lists. Moving a
//! deadline to a later time costs a store: the entry stays where it is and is put back when its
//! bucket comes up. So a session that is busy touches the wheel once a minute, not once a command,
//! and the memory is that of the slots. A deadline fires at the end of its tick: up to
//! [`TICK_MS`] late, never early.
//!
//! Rejected: a heap (stale entries of a minute's connections), a timer of the executor per session
//! (two of its operations per command).

/// Length of a tick in milliseconds.
pub const TICK_MS: u64 = 50;
/// Buckets: deadlines further ahead wait in the last one and are put back.
const BUCKETS: usize = 2048;
const NONE: u32 = u32::MAX;
const UNLINKED: u16 = u16::MAX;

const _: () = assert!(BUCKETS.is_multiple_of(64) && BUCKETS < UNLINKED as usize);

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The tick at whose end the deadline fires; `u64::MAX`: none.
    deadline: u64,
    next: u32,
    previous: u32,
    bucket: u16,
}

const IDLE: Entry = Entry { deadline: u64::MAX, next: NONE, previous: NONE, bucket: UNLINKED };

/// Deadlines by slot number.
#[derive(Debug)]
pub struct Wheel {
    entries: Vec<Entry>,
    heads: Box<[u32; BUCKETS]>,
    occupied: [u64; BUCKETS / 64],
    /// All ticks before this one have been fired.
    tick: u64,
}

impl Default for Wheel {
    fn default() -> Self {
        Wheel { entries: Vec::new(), heads: Box::new([NONE; BUCKETS]), occupied: [0; BUCKETS / 64], tick: 0 }
    }
}

impl Wheel {
    /// Sets or clears the deadline of `slot`, in milliseconds since the wheel's epoch.
    pub fn set(&mut self, slot: u32, deadline_ms: Option<u64>) {
        let index = slot as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, IDLE);
        }
        let Some(deadline_ms) = deadline_ms else {
            self.unlink(slot);
            self.entries[index].deadline = u64::MAX;
            return;
        };
        let deadline = deadline_ms.div_ceil(TICK_MS).max(self.tick);
        let earlier = deadline < self.entries[index].deadline;
        self.entries[index].deadline = deadline;
        if self.entries[index].bucket == UNLINKED || earlier {
            self.unlink(slot);
            self.link(slot);
        }
    }

    /// When [`Self::fire`] has something to look at, in milliseconds since the epoch.
    pub fn next_ms(&self) -> Option<u64> {
        let start = (self.tick % BUCKETS as u64) as usize;
        let ahead = (0..=BUCKETS / 64).find_map(|step| {
            let word = (start / 64 + step) % (BUCKETS / 64);
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (start % 64);
            } else if step == BUCKETS / 64 {
                bits &= !(u64::MAX << (start % 64));
            }
            (bits != 0).then(|| (word * 64 + bits.trailing_zeros() as usize + BUCKETS - start) % BUCKETS)
        })?;
        Some((self.tick + ahead as u64) * TICK_MS)
    }

    /// Takes off all deadlines that have passed at `now_ms` and shows their slots to `fired`.
    pub fn fire(&mut self, now_ms: u64, mut fired: impl FnMut(u32)) {
        let now = now_ms / TICK_MS;
        // After a long sleep every bucket needs one look, not one per tick slept.
        let last = now.min(self.tick.saturating_add(BUCKETS as u64 - 1));
        let mut again = Vec::new();
        for tick in self.tick..=last {
            let bucket = (tick % BUCKETS as u64) as usize;
            while self.heads[bucket] != NONE {
                let slot = self.heads[bucket];
                self.unlink(slot);
                if self.entries[slot as usize].deadline <= now {
                    self.entries[slot as usize].deadline = u64::MAX;
                    fired(slot);
                } else {
                    again.push(slot);
                }
            }
        }
        self.tick = self.tick.max(now + 1);
        for slot in again {
            self.link(slot);
        }
    }

    fn link(&mut self, slot: u32) {
        let index = slot as usize;
        let ahead = (self.entries[index].deadline - self.tick).min(BUCKETS as u64 - 1);
        let bucket = ((self.tick + ahead) % BUCKETS as u64) as usize;
        let head = self.heads[bucket];
        if head != NONE {
            self.entries[head as usize].previous = slot;
        }
        self.entries[index].next = head;
        self.entries[index].previous = NONE;
        self.entries[index].bucket = bucket as u16;
        self.heads[bucket] = slot;
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
    }

    fn unlink(&mut self, slot: u32) {
        let Entry { next, previous, bucket, .. } = self.entries[slot as usize];
        if bucket == UNLINKED {
            return;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            self.heads[usize::from(bucket)] = next;
            if next == NONE {
                self.occupied[usize::from(bucket) / 64] &= !(1 << (bucket % 64));
            }
        }
        self.entries[slot as usize].bucket = UNLINKED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn fires_after_the_deadline_and_within_a_tick() {
        let mut wheel = Wheel::default();
        wheel.set(3, Some(1234));
        assert_eq!(wheel.next_ms(), Some(1250));
        let mut fired = Vec::new();
        wheel.fire(1249, |slot| fired.push(slot));
        assert!(fired.is_empty());
        wheel.fire(1250, |slot| fired.push(slot));
        assert_eq!(fired, [3]);
        assert_eq!(wheel.next_ms(), None);
    }

    #[test]
    fn sleeps_longer_than_the_wheel() {
        let mut wheel = Wheel::default();
        wheel.set(0, Some(10 * 60 * 1000));
        let mut fired = 0;
        let mut now = 0;
        while let Some(next) = wheel.next_ms() {
            assert!(next > now);
            now = next;
            wheel.fire(now, |_| fired += 1);
        }
        assert_eq!((fired, now), (1, 10 * 60 * 1000));
        wheel.set(0, Some(now + 500));
        wheel.fire(now + 3_600_000, |_| fired += 1);
        assert_eq!(fired, 2);
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Set(u32, u64),
        Clear(u32),
        Wait(u64),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let ahead = prop_oneof![0_u64..1000, 0_u64..60_000, 0_u64..600_000];
        prop_oneof![
            4 => (0_u32..20, ahead).prop_map(|(slot, ahead)| Operation::Set(slot, ahead)),
            1 => (0_u32..20).prop_map(Operation::Clear),
            2 => prop_oneof![0_u64..500, 0_u64..200_000].prop_map(Operation::Wait),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(operations in prop::collection::vec(operation(), 1..200)) {
            let mut wheel = Wheel::default();
            let mut map: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = 0;
            for operation in operations {
                match operation {
                    Operation::Set(slot, ahead) => {
                        wheel.set(slot, Some(now + ahead));
                        map.insert(slot, now + ahead);
                    }
                    Operation::Clear(slot) => {
                        wheel.set(slot, None);
                        map.remove(&slot);
                    }
                    Operation::Wait(time) => {
                        now += time;
                        let mut fired = Vec::new();
                        wheel.fire(now, |slot| fired.push(slot));
                        for slot in fired {
                            let deadline = map.remove(&slot);
                            prop_assert!(deadline.is_some_and(|deadline| deadline <= now));
                        }
                        // Whatever is left is not due by more than a tick.
                        prop_assert!(map.values().all(|&deadline| deadline + TICK_MS > now));
                    }
                }
                if let Some(&first) = map.values().min() {
                    // It may wake too soon for a deadline that was moved, never too late.
                    prop_assert!(wheel.next_ms().is_some_and(|next| next <= first.max(now) + 2 * TICK_MS));
                }
            }
        }
    }
}
