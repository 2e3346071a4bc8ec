//! Durations and sizes as operators write them.

use std::time::Duration;

/// Parses `250ms`, `5s`, `1m`, `2h`, `2d`, or a bare number of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let factor_ms: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        _ => return Err(format!("unknown unit {unit:?}: use ms, s, m, h or d")),
    };
    let milliseconds = number.checked_mul(factor_ms).ok_or("too long")?;
    Ok(Duration::from_millis(milliseconds))
}

/// A duration as [`duration`] reads it, in the largest unit that shows it whole.
pub fn show(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [(24 * 60 * 60 * 1000, "d"), (60 * 60 * 1000, "h"), (60 * 1000, "m"), (1000, "s")];
    let (factor, unit) =
        units.into_iter().find(|(factor, _)| ms >= *factor && ms.is_multiple_of(*factor)).unwrap_or((1, "ms"));
    format!("{}{unit}", ms / factor)
}

/// Parses `512`, `512B`, `64KB`, `10MB`, `1GB`, `1TB` into octets; units are powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let power = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "KB" => 1,
        "MB" => 2,
        "GB" => 3,
        "TB" => 4,
        _ => return Err(format!("unknown unit {unit:?}: use B, KB, MB, GB or TB")),
    };
    number.checked_mul(1024_u64.pow(power)).ok_or_else(|| "too large".to_owned())
}

/// The units of sizes, largest first.
const SIZES: [(u64, &str); 5] = [(1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB"), (1, "B")];

/// A size as [`size`] reads it, in the largest unit that shows it whole.
pub fn show_size(octets: u64) -> String {
    let (factor, unit) =
        SIZES.into_iter().find(|(factor, _)| octets >= *factor && octets.is_multiple_of(*factor)).unwrap_or((1, "B"));
    format!("{}{unit}", octets / factor)
}

/// A size to be read: two digits at least, rounded down.
pub fn show_size_roughly(octets: u64) -> String {
    let (factor, unit) = SIZES.into_iter().find(|(factor, _)| octets / factor >= 10).unwrap_or((1, "B"));
    format!("{} {unit}", octets / factor)
}

fn split(text: &str) -> Result<(u64, &str), String> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number = digits.parse().map_err(|_| "it must begin with a whole number".to_owned())?;
    Ok((number, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("0", 0),
            ("5", 5000),
            ("250ms", 250),
            ("5s", 5000),
            ("1m", 60_000),
            ("2h", 7_200_000),
            ("2d", 172_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "-1s", "1.5s", "1w", "1 s s", "99999999999999999999", "18446744073709551615d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shown_durations_are_read_back() {
        for text in ["0ms", "250ms", "1500ms", "5s", "90s", "1m", "2h", "36h", "2d", "365d"] {
            let duration = duration(text).expect("valid");
            assert_eq!(show(duration), text);
        }
    }

    #[test]
    fn shown_sizes() {
        for text in ["0B", "1B", "1000B", "1KB", "1500KB", "500MB", "1GB", "1000TB"] {
            assert_eq!(show_size(size(text).expect("valid")), text);
        }
        for (octets, text) in [
            (0, "0 B"),
            (9999, "9999 B"),
            (10_240, "10 KB"),
            (500 << 20, "500 MB"),
            ((500 << 20) - 1, "499 MB"),
            (2 << 30, "2048 MB"),
            (35 << 30, "35 GB"),
        ] {
            assert_eq!(show_size_roughly(octets), text);
        }
    }

    #[test]
    fn sizes() {
        for (text, octets) in
            [("0", 0), ("1", 1), ("2B", 2), ("64KB", 65_536), ("10mb", 10 << 20), ("1GB", 1 << 30), ("2TB", 2 << 40)]
        {
            assert_eq!(size(text), Ok(octets), "{text}");
        }
        for bad in ["", "KB", "1K", "1.5MB", "-1", "18446744073709551615KB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
