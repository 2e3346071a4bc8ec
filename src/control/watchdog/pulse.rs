//! What follows from a shard's beats, and from their absence: decided without a clock.

use crate::limits::{WATCHDOG_ASK_MS, WATCHDOG_STALL_MS};

/// What the watchdog knows of one shard's beats.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    beats: u32,
    ask_at_ms: u64,
    /// Since when a beat is owed.
    owed_since_ms: Option<u64>,
    is_stalled: bool,
    is_given_up: bool,
}

/// A look at a shard.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The time now.
    pub now_ms: u64,
    /// How much later than planned the watchdog itself came to look: no shard's fault.
    pub late_ms: u64,
    /// The shard's beats so far.
    pub beats: u32,
    /// How long a beat may be owed before the shard is given up.
    pub give_up_ms: u64,
}

/// What is to be done after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing has changed.
    Nothing,
    /// Ask the shard for a beat.
    Ask,
    /// It has begun to owe too much: refuse its connections.
    Stalled,
    /// It beats again after so long.
    Recovered { after_ms: u64 },
    /// It has owed a beat for so long: it counts as dead.
    GivenUp { after_ms: u64 },
}

impl Pulse {
    /// A shard that is to be asked first at `now_ms`.
    pub fn new(now_ms: u64, beats: u32) -> Self {
        Pulse { beats, ask_at_ms: now_ms, owed_since_ms: None, is_stalled: false, is_given_up: false }
    }

    /// Whether its connections are to be refused.
    pub fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Looks at the shard. Each change is found once.
    pub fn look(&mut self, look: Look) -> Finding {
        let Look { now_ms, late_ms, beats, give_up_ms } = look;
        if beats != self.beats {
            self.beats = beats;
            let owed_since_ms = self.owed_since_ms.take().unwrap_or(now_ms);
            if std::mem::take(&mut self.is_stalled) {
                self.is_given_up = false;
                return Finding::Recovered { after_ms: now_ms.saturating_sub(owed_since_ms) };
            }
        }
        let Some(owed_since_ms) = &mut self.owed_since_ms else {
            if now_ms < self.ask_at_ms {
                return Finding::Nothing;
            }
            self.ask_at_ms = now_ms + WATCHDOG_ASK_MS;
            self.owed_since_ms = Some(now_ms);
            return Finding::Ask;
        };
        if late_ms > 0 {
            // The shard may not have run either. One that was stalled before only gets its time back.
            *owed_since_ms = if self.is_stalled { *owed_since_ms + late_ms } else { now_ms };
        }
        let owed_ms = now_ms.saturating_sub(*owed_since_ms);
        if !self.is_stalled && owed_ms >= WATCHDOG_STALL_MS {
            self.is_stalled = true;
            return Finding::Stalled;
        }
        if self.is_stalled && !self.is_given_up && owed_ms >= give_up_ms {
            self.is_given_up = true;
            return Finding::GivenUp { after_ms: owed_ms };
        }
        Finding::Nothing
    }

    /// When the next look is due.
    pub fn next_look_ms(&self, now_ms: u64) -> u64 {
        // Nobody tells when a shard beats: it is looked at as often as it would be asked.
        let latest_ms = now_ms + WATCHDOG_ASK_MS;
        match self.owed_since_ms {
            None => self.ask_at_ms.clamp(now_ms, latest_ms),
            Some(since_ms) if !self.is_stalled => {
                (since_ms + WATCHDOG_STALL_MS).min(latest_ms).min(self.next_ask(now_ms))
            }
            Some(_) => latest_ms,
        }
    }

    /// When it would be asked again, had it answered.
    fn next_ask(&self, now_ms: u64) -> u64 {
        if self.ask_at_ms > now_ms { self.ask_at_ms } else { u64::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVE_UP_MS: u64 = 30_000;

    /// Rows: time, lateness, beats; what is found.
    #[track_caller]
    fn check(rows: &[(u64, u64, u32, Finding)]) -> Pulse {
        let mut pulse = Pulse::new(0, 0);
        for (row, &(now_ms, late_ms, beats, expected)) in rows.iter().enumerate() {
            let found = pulse.look(Look { now_ms, late_ms, beats, give_up_ms: GIVE_UP_MS });
            assert_eq!(found, expected, "row {row}, at {now_ms} ms");
        }
        pulse
    }

    use Finding::*;

    #[test]
    fn a_shard_that_answers_is_asked_again_and_again() {
        check(&[
            (0, 0, 0, Ask),
            (1, 0, 0, Nothing),
            (400, 0, 1, Ask),
            (800, 0, 2, Ask),
            // Somebody rang meanwhile: beats that nobody asked for are beats too.
            (900, 0, 7, Nothing),
            (1200, 0, 7, Ask),
            (2199, 0, 7, Nothing),
            (2199, 0, 8, Ask),
        ]);
    }

    #[test]
    fn a_stall_is_found_once_and_ends_with_a_beat() {
        let stalled = [(0, 0, 0, Ask), (999, 0, 0, Nothing), (1000, 0, 0, Stalled), (1001, 0, 0, Nothing)];
        assert!(check(&stalled).is_stalled());
        let mut rows = stalled.to_vec();
        rows.extend([(3000, 0, 1, Recovered { after_ms: 3000 }), (3001, 0, 1, Ask), (4001, 0, 1, Stalled)]);
        assert!(check(&rows).is_stalled());
        rows.extend([(4500, 0, 2, Recovered { after_ms: 1499 })]);
        assert!(!check(&rows).is_stalled());
    }

    #[test]
    fn a_shard_is_given_up_once_and_may_still_recover() {
        let pulse = check(&[
            (0, 0, 0, Ask),
            (1000, 0, 0, Stalled),
            (29_999, 0, 0, Nothing),
            (30_000, 0, 0, GivenUp { after_ms: 30_000 }),
            (90_000, 0, 0, Nothing),
        ]);
        assert!(pulse.is_stalled());
        check(&[
            (0, 0, 0, Ask),
            (1000, 0, 0, Stalled),
            (30_000, 0, 0, GivenUp { after_ms: 30_000 }),
            (31_000, 0, 1, Recovered { after_ms: 31_000 }),
            (31_000, 0, 1, Ask),
            (32_000, 0, 1, Stalled),
            (61_000, 0, 1, GivenUp { after_ms: 30_000 }),
        ]);
    }

    #[test]
    fn no_shard_is_judged_by_a_pause_of_the_watchdog() {
        // The process was stopped for a minute with a beat owed: a fresh second.
        check(&[(0, 0, 0, Ask), (60_000, 59_600, 0, Nothing), (60_999, 0, 0, Nothing), (61_000, 0, 0, Stalled)]);
        // The same, and the shard was as quick as the watchdog.
        check(&[(0, 0, 0, Ask), (60_000, 59_600, 1, Ask), (60_400, 0, 2, Ask)]);
        // It was stalled before: the pause does not count towards the end.
        check(&[
            (0, 0, 0, Ask),
            (1000, 0, 0, Stalled),
            (60_000, 58_600, 0, Nothing),
            (88_599, 0, 0, Nothing),
            (88_600, 0, 0, GivenUp { after_ms: 30_000 }),
        ]);
        // Late again and again: as long as the watchdog cannot run, nobody is stalled.
        let mut rows = vec![(0, 0, 0, Ask)];
        rows.extend((1..20).map(|turn| (turn * 900, 500, 0, Nothing)));
        check(&rows);
    }

    #[test]
    fn the_drain_shortens_the_wait() {
        let mut pulse = check(&[(0, 0, 0, Ask), (1000, 0, 0, Stalled), (5000, 0, 0, Nothing)]);
        let look = |now_ms| Look { now_ms, late_ms: 0, beats: 0, give_up_ms: 2000 };
        assert_eq!(pulse.look(look(5001)), GivenUp { after_ms: 5001 });
        assert_eq!(pulse.look(look(5002)), Nothing);
    }

    #[test]
    fn beats_wrap_around() {
        let mut pulse = Pulse::new(0, u32::MAX);
        let look = |now_ms, beats| Look { now_ms, late_ms: 0, beats, give_up_ms: GIVE_UP_MS };
        assert_eq!(pulse.look(look(0, u32::MAX)), Ask);
        assert_eq!(pulse.look(look(400, 0)), Ask);
    }

    /// Whatever the time of a stall's begin: looked at when due, it is found in time.
    #[test]
    fn looks_are_due_in_time() {
        for stalls_at_ms in 0..1000 {
            let (mut pulse, mut now_ms, mut looks) = (Pulse::new(0, 0), 0, 0);
            let mut beats = 0;
            let found_ms = loop {
                match pulse.look(Look { now_ms, late_ms: 0, beats, give_up_ms: GIVE_UP_MS }) {
                    // Answered at once.
                    Ask if now_ms < stalls_at_ms => beats += 1,
                    Stalled => break now_ms,
                    _ => {}
                }
                let next_ms = pulse.next_look_ms(now_ms);
                assert!(next_ms > now_ms && next_ms <= now_ms + WATCHDOG_ASK_MS);
                now_ms = next_ms;
                looks += 1;
            };
            assert!(found_ms <= stalls_at_ms + WATCHDOG_ASK_MS + WATCHDOG_STALL_MS, "{stalls_at_ms}: {found_ms}");
            // It is not looked at all the time.
            assert!(looks <= 8, "{looks} looks");
        }
    }
}
