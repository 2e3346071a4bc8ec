//! A record's time as text. The date is made once a second, the rest is digits.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Octets of a time: `2026-11-21T22:40:27.123456Z`.
const OCTETS: usize = 27;
/// Octets of it that stay the same for a second.
const SECOND_OCTETS: usize = 19;
/// The last second with a year of four digits.
const LAST_SECOND: u64 = 253_402_300_799;

/// The last second and its text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    second: Option<u64>,
    text: [u8; OCTETS],
}

impl Clock {
    pub(super) const fn new() -> Self {
        Clock { second: None, text: *b"0000-00-00T00:00:00.000000Z" }
    }

    /// The text of a time, of RFC 3339 in UTC. What lies outside of the years 1970 to 9999 is moved there.
    pub(super) fn text(&mut self, time: SystemTime) -> &[u8; OCTETS] {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = since.as_secs().min(LAST_SECOND);
        if self.second != Some(second) {
            self.second = Some(second);
            let date = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(second)).to_string();
            for (place, octet) in self.text.iter_mut().zip(date.bytes().take(SECOND_OCTETS)) {
                *place = octet;
            }
        }
        let mut micros = since.subsec_micros();
        for place in self.text[SECOND_OCTETS + 1..OCTETS - 1].iter_mut().rev() {
            *place = b'0' + (micros % 10) as u8;
            micros /= 10;
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let mut clock = Clock::new();
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_795_300_827_123_456, "2026-11-21T22:40:27.123456Z"),
            (1_795_300_827_000_001, "2026-11-21T22:40:27.000001Z"),
            (1_795_300_828_999_999, "2026-11-21T22:40:28.999999Z"),
            // Back, and a leap day.
            (1_709_164_800_000_000, "2024-02-29T00:00:00.000000Z"),
            (u64::MAX / 2, "9999-12-31T23:59:59.775807Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_micros(micros);
            assert_eq!(String::from_utf8_lossy(clock.text(time)), text);
        }
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(String::from_utf8_lossy(clock.text(before)), "1970-01-01T00:00:00.000000Z");
    }
}
