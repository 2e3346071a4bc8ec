//! Sizes, durations and dates as they are written on the command line and in a header.
//!
//! Sizes take B, KB, MB and GB (powers of 1024), durations ms, s, m, h and d, as the gateway's own options do. What
//! does not parse is a usage error that repeats the text.

use std::time::Duration;

const SIZE_UNITS: [(&str, u64); 4] = [("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10), ("B", 1)];
// "ms" stands before "s" and "m": the first unit that is a suffix is taken.
const DURATION_UNITS_MS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Parses a size in octets: `4096`, `4096B`, `4KB`, `10MB`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let upper = text.to_ascii_uppercase();
    let (digits, unit) = SIZE_UNITS
        .iter()
        .find_map(|(suffix, unit)| upper.strip_suffix(suffix).map(|digits| (digits, *unit)))
        .unwrap_or((&upper, 1));
    scaled(digits, unit).ok_or_else(|| format!("'{text}' is not a size such as 512B, 4KB or 10MB"))
}

/// Parses a duration: `250ms`, `10s`, `5m`, `1h`. Only zero may stand without a unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    DURATION_UNITS_MS
        .iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, *unit)))
        .and_then(|(digits, unit)| scaled(digits, unit))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("'{text}' is not a duration such as 250ms, 10s or 5m"))
}

fn scaled(digits: &str, unit: u64) -> Option<u64> {
    // u64's own parser takes a sign, which no size has.
    if !digits.bytes().all(|octet| octet.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Formats seconds since 1970 as an RFC 5322 section 3.3 date-time in UTC.
pub fn date_time(unix_s: u64) -> String {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Civil date from a day count, with years that begin in March so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = era * 400 + year_of_era + u64::from(month < 2);
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} +0000",
        WEEKDAYS[(days % 7) as usize],
        MONTHS[month as usize],
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, octets) in
            [("0", 0), ("512", 512), ("7B", 7), ("4KB", 4096), ("4kb", 4096), ("10MB", 10 << 20), ("1GB", 1 << 30)]
        {
            assert_eq!(parse_size(text), Ok(octets), "{text}");
        }
        for text in ["", "KB", "-1", "+1", "1.5KB", "4 KB", "4TB4", "99999999999999999999", "18446744073709551615KB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in
            [("0", 0), ("250ms", 250), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000), ("2d", 172_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1.5s", "1 s", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dates() {
        assert_eq!(date_time(0), "Thu, 01 Jan 1970 00:00:00 +0000");
        assert_eq!(date_time(951_782_400), "Tue, 29 Feb 2000 00:00:00 +0000");
        assert_eq!(date_time(1_735_689_599), "Tue, 31 Dec 2024 23:59:59 +0000");
        assert_eq!(date_time(1_735_689_600), "Wed, 01 Jan 2025 00:00:00 +0000");
    }
}
