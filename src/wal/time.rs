//! Postgres's time: microseconds since 2000-01-01 00:00:00 UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Microseconds between 1970-01-01 and 2000-01-01.
pub const MICROS_TO_2000: i64 = 946_684_800_000_000;
pub const DAYS_TO_2000: i32 = 10_957;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgTime(pub i64);

impl PgTime {
    pub fn of(time: SystemTime) -> PgTime {
        let micros = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
        };
        PgTime(micros.saturating_sub(MICROS_TO_2000))
    }

    /// Milliseconds since 1970, rounded down. Every `timestamp` of Postgres fits.
    pub fn unix_millis(self) -> i64 {
        self.0.div_euclid(1_000) + MICROS_TO_2000 / 1_000
    }

    /// The inverse of [`PgTime::unix_millis`]; saturates far outside of Postgres's own range.
    pub fn from_unix_millis(millis: i64) -> PgTime {
        PgTime(millis.saturating_sub(MICROS_TO_2000 / 1_000).saturating_mul(1_000))
    }

    /// How long ago this was, by the clock given; zero if that clock is behind.
    pub fn age(self, now: PgTime) -> Duration {
        Duration::from_micros(u64::try_from(now.0.saturating_sub(self.0)).unwrap_or(0))
    }
}

/// A `timestamp` value of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timestamp {
    At(PgTime),
    Infinity,
    NegativeInfinity,
}

impl Timestamp {
    /// The binary form: microseconds since 2000, with the ends of the range for the infinities.
    pub fn from_binary(value: i64) -> Timestamp {
        match value {
            i64::MAX => Timestamp::Infinity,
            i64::MIN => Timestamp::NegativeInfinity,
            micros => Timestamp::At(PgTime(micros)),
        }
    }

    /// The text form under `DateStyle=ISO` and `TimeZone=UTC`:
    /// `2024-01-02 03:04:05.678[+00][ BC]`, `infinity`, `-infinity`.
    pub fn from_text(text: &[u8]) -> Option<Timestamp> {
        match text {
            b"infinity" => return Some(Timestamp::Infinity),
            b"-infinity" => return Some(Timestamp::NegativeInfinity),
            _ => {}
        }
        let (text, bc) = match text.strip_suffix(b" BC") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (date, time) = text.split_at_checked(memchr::memchr(b' ', text)?)?;
        let time = time.get(1..)?;
        // The session's time zone is UTC, so a `timestamptz` says +00 or nothing we understand.
        let time = time.strip_suffix(b"+00").unwrap_or(time);
        let micros = day_of(date, bc)?.checked_mul(86_400_000_000)?;
        Some(Timestamp::At(PgTime(micros.checked_add(micros_of_day(time)?)?)))
    }
}

/// A `date` value of a column: days since 2000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Date {
    At(i32),
    Infinity,
    NegativeInfinity,
}

impl Date {
    /// The binary form, with the ends of the range for the infinities.
    pub fn from_binary(value: i32) -> Date {
        match value {
            i32::MAX => Date::Infinity,
            i32::MIN => Date::NegativeInfinity,
            days => Date::At(days),
        }
    }

    /// The text form under `DateStyle=ISO`: `2024-01-02[ BC]`, `infinity`, `-infinity`.
    pub fn from_text(text: &[u8]) -> Option<Date> {
        match text {
            b"infinity" => return Some(Date::Infinity),
            b"-infinity" => return Some(Date::NegativeInfinity),
            _ => {}
        }
        let (text, bc) = match text.strip_suffix(b" BC") {
            Some(text) => (text, true),
            None => (text, false),
        };
        day_of(text, bc).and_then(|days| i32::try_from(days).ok()).map(Date::At)
    }
}

/// Days since 2000 of `2024-01-02`.
fn day_of(date: &[u8], bc: bool) -> Option<i64> {
    let mut parts = date.split(|&b| b == b'-');
    let (year, month, day) = (digits(parts.next()?)?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let (month, day) = (digits(month)?, digits(day)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Year 1 BC is year 0 of the proleptic calendar.
    let year = if bc { 1 - year } else { year };
    Some(days_from_civil(year, month, day) - i64::from(DAYS_TO_2000))
}

/// Of `12:34:56.789`.
pub fn micros_of_day(text: &[u8]) -> Option<i64> {
    let (clock, fraction) = match memchr::memchr(b'.', text) {
        Some(at) => (text.get(..at)?, text.get(at + 1..)?),
        None => (text, &b""[..]),
    };
    let mut parts = clock.split(|&b| b == b':');
    let (h, m, s) = (digits(parts.next()?)?, digits(parts.next()?)?, digits(parts.next()?)?);
    if parts.next().is_some() || 24 < h || 59 < m || 60 < s || 6 < fraction.len() {
        return None;
    }
    let mut micros = 0;
    for i in 0..6 {
        let digit = match fraction.get(i) {
            Some(b) if b.is_ascii_digit() => i64::from(b - b'0'),
            Some(_) => return None,
            None => 0,
        };
        micros = micros * 10 + digit;
    }
    Some(((h * 60 + m) * 60 + s) * 1_000_000 + micros)
}

fn digits(text: &[u8]) -> Option<i64> {
    if text.is_empty() || 9 < text.len() {
        return None;
    }
    text.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar.
///
/// Counts in eras of 400 years that begin on the first of March, so that the leap day comes last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse: year, month and day.
pub fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, unix_millis: i64) {
        match Timestamp::from_text(text.as_bytes()) {
            Some(Timestamp::At(at)) => assert_eq!(at.unix_millis(), unix_millis, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn text_is_read_to_the_millisecond() {
        check("1970-01-01 00:00:00", 0);
        check("2000-01-01 00:00:00", MICROS_TO_2000 / 1_000);
        check("2024-01-01 00:00:00.12", 1_704_067_200_120);
        check("2024-02-29 23:59:59.999999", 1_709_251_199_999);
        check("2024-02-29 23:59:59.999+00", 1_709_251_199_999);
        check("1969-12-31 23:59:59.5", -500);
        check("0001-01-01 00:00:00 BC", -62_167_219_200_000);
        check("294276-12-31 23:59:59.999999", 9_224_318_015_999_999);
    }

    #[test]
    fn micros_are_rounded_down_on_both_sides_of_1970() {
        check("1970-01-01 00:00:00.0019", 1);
        check("1969-12-31 23:59:59.9999", -1);
    }

    #[test]
    fn infinities_are_values_of_their_own() {
        assert_eq!(Timestamp::from_text(b"infinity"), Some(Timestamp::Infinity));
        assert_eq!(Timestamp::from_text(b"-infinity"), Some(Timestamp::NegativeInfinity));
        assert_eq!(Timestamp::from_binary(i64::MAX), Timestamp::Infinity);
        assert_eq!(Timestamp::from_binary(i64::MIN), Timestamp::NegativeInfinity);
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            "2024",
            "2024-01-01",
            "2024-13-01 00:00:00",
            "2024-01-01 00:00",
            "x 00:00:00",
            "2024-01-01 00:00:00.1234567",
            "2024-01-01 00:00:00+01",
            "2024-01-01 00:00:0a",
        ] {
            assert_eq!(Timestamp::from_text(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn millis_far_outside_of_the_range_saturate() {
        assert_eq!(PgTime::from_unix_millis(i64::MIN), PgTime(i64::MIN));
        assert_eq!(PgTime::from_unix_millis(i64::MAX), PgTime(i64::MAX));
        assert_eq!(PgTime::from_unix_millis(946_684_800_001), PgTime(1_000));
    }

    #[test]
    fn status_times_count_from_2000() {
        let time = UNIX_EPOCH + Duration::from_micros(MICROS_TO_2000 as u64 + 5);
        assert_eq!(PgTime::of(time), PgTime(5));
        assert_eq!(PgTime(5).age(PgTime(3)), Duration::ZERO);
    }
}
