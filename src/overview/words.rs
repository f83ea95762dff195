//! Numbers as people read them.

use crate::wal::time::civil_from_days;

/// As in `48.2 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    // A value that would print as 1024 becomes 1 of the next unit.
    while 1023.95 <= value && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// As in `0.4 s`, `2 m 5 s`, `3 d 4 h`: two units at most.
pub fn seconds(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "unknown".to_owned();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(size, _)| *size <= whole).unwrap_or(3);
    let mut rest = whole;
    let mut parts = Vec::new();
    for (size, name) in &units[first..units.len().min(first + 2)] {
        let count = rest / size;
        rest %= size;
        if 0 < count {
            parts.push(format!("{count} {name}"));
        }
    }
    parts.join(" ")
}

/// A whole number with its thousands apart, or one digit after the point for a small one.
pub fn rate(value: f64) -> String {
    match value {
        v if !v.is_finite() || v < 0.0 => "unknown".to_owned(),
        v if v < 0.05 => "0".to_owned(),
        v if v < 9.95 => format!("{v:.1}"),
        v => count(v.round() as u64),
    }
}

pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if 0 < at && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// As in `2023-11-14 22:13:20 UTC`.
pub fn time(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil_from_days(days.cast_signed());
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// As in `4 m 10 s ago`.
pub fn ago(now: u64, then: u64) -> String {
    match now.saturating_sub(then) {
        0 => "just now".to_owned(),
        age => format!("{} ago", span(age)),
    }
}

/// Whole seconds, in two units at most.
pub fn span(whole: u64) -> String {
    match whole {
        0..10 => format!("{whole} s"),
        _ => seconds(whole as f64),
    }
}

/// About how long a history is.
pub fn about(seconds: u64) -> String {
    match seconds {
        0..120 => span(seconds),
        120..3540 => format!("{} m", seconds / 60),
        _ => "hour".to_owned(),
    }
}

/// Without the underscore of the JSON.
pub fn state(state: &str) -> String {
    state.replace('_', " ")
}

/// A character that is invisible or reverses others: none of our texts has one.
pub fn is_unseen(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_1024() {
        for (count, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (50_331_648, "48.0 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn times_have_two_units_at_most() {
        for (value, expected) in [
            (0.0, "0.0 s"),
            (0.42, "0.4 s"),
            (9.96, "10 s"),
            (60.0, "1 m"),
            (125.2, "2 m 5 s"),
            (3600.0, "1 h"),
            (3725.0, "1 h 2 m"),
            (460_800.0, "5 d 8 h"),
            (f64::INFINITY, "unknown"),
            (-1.0, "unknown"),
        ] {
            assert_eq!(seconds(value), expected, "{value}");
        }
        assert_eq!([about(40), about(200), about(3585)], ["40 s", "3 m", "hour"]);
        assert_eq!(ago(100, 100), "just now");
        assert_eq!(ago(100, 95), "5 s ago");
        assert_eq!(ago(100, 200), "just now");
    }

    #[test]
    fn thousands_stand_apart() {
        for (value, expected) in
            [(0.0, "0"), (0.26, "0.3"), (9.97, "10"), (1234.5, "1,235"), (1e7, "10,000,000")]
        {
            assert_eq!(rate(value), expected);
        }
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(123), "123");
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (second, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_700_000_000, "2023-11-14 22:13:20 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(time(second), expected);
        }
    }
}
