//! How long to wait between tries, and when to give a message up.

use crate::limits::RETRY_JITTER_DIVISOR;
use std::time::Duration;

/// Exponential backoff between two bounds (RFC 5321 section 4.5.4.1 leaves the strategy open).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure.
    pub min: Duration,
    /// The wait that doubling stops at.
    pub max: Duration,
}

impl Backoff {
    /// The wait after `attempts` failures in a row: `min`, twice `min`, four times, and so on up
    /// to `max`; 0 is taken for 1. It is then spread evenly over -20 % to +20 % by `random`, so
    /// that what failed together does not return together: never below 0.8 of `min`, and up to
    /// 1.2 of `max` (a cut at `max` would bring half of all waits there together again).
    #[must_use]
    pub fn delay(&self, attempts: u32, random: u64) -> Duration {
        let (min_ns, max_ns) = (nanoseconds(self.min), nanoseconds(self.max));
        let factor = 1_u64.checked_shl(attempts.saturating_sub(1)).unwrap_or(u64::MAX);
        let wait_ns = min_ns.saturating_mul(factor).min(max_ns);
        let spread_ns = wait_ns / RETRY_JITTER_DIVISOR;
        // The remainder favours small values by less than one in 2^20, even for a year.
        let jitter_ns = random % (2 * spread_ns + 1);
        Duration::from_nanos((wait_ns - spread_ns).saturating_add(jitter_ns))
    }
}

/// 584 years at most, which is enough.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether a message that arrived at `arrived_ms` has been queued for `lifetime` at `now_ms`, on
/// the same clock. A clock that was set back to before its arrival makes it new, not old.
#[must_use]
pub fn expired(arrived_ms: u64, now_ms: u64, lifetime: Duration) -> bool {
    now_ms.checked_sub(arrived_ms).is_some_and(|age_ms| u128::from(age_ms) >= lifetime.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn doubles_up_to_the_longest() {
        let backoff = Backoff { min: MINUTE, max: HOUR };
        let expected_s = [60, 60, 120, 240, 480, 960, 1920, 3600, 3600];
        for (attempts, wait_s) in (0..).zip(expected_s) {
            let wait = Duration::from_secs(wait_s);
            let spread = wait / 5;
            assert_eq!(backoff.delay(attempts, 0), wait - spread, "{attempts}");
            let last = 2 * u64::try_from(spread.as_nanos()).expect("short");
            assert_eq!(backoff.delay(attempts, last), wait + spread, "{attempts}");
            assert_eq!(backoff.delay(attempts, last + 1), wait - spread, "{attempts}");
        }
        assert_eq!(backoff.delay(u32::MAX, 0), HOUR * 4 / 5);
    }

    #[test]
    fn lifetimes() {
        let day_ms = 86_400_000;
        let lifetime = Duration::from_millis(day_ms);
        for (arrived_ms, now_ms, expected) in [
            (0, 0, false),
            (5, day_ms + 4, false),
            (5, day_ms + 5, true),
            (5, u64::MAX, true),
            (5, 4, false),
            (u64::MAX, 0, false),
        ] {
            assert_eq!(expired(arrived_ms, now_ms, lifetime), expected, "{arrived_ms} {now_ms}");
        }
        assert!(!expired(0, u64::MAX, Duration::MAX));
        assert!(expired(7, 7, Duration::ZERO));
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(min_ms in 1_u64..=1 << 32, more_ms in 0_u64..=1 << 32, attempts: u32, random: u64) {
            let backoff = Backoff { min: Duration::from_millis(min_ms), max: Duration::from_millis(min_ms + more_ms) };
            let wait = backoff.delay(attempts, random);
            prop_assert!(wait >= backoff.min * 4 / 5 && wait >= backoff.min / 2);
            prop_assert!(wait <= backoff.max * 6 / 5);
            // The same spread: one more failure never shortens the wait.
            prop_assert!(backoff.delay(attempts.saturating_add(1), 0) >= backoff.delay(attempts, 0));
        }

        #[test]
        fn any_bounds_are_answered(min: Duration, max: Duration, attempts: u32, random: u64) {
            let _ = Backoff { min, max }.delay(attempts, random);
        }
    }
}
