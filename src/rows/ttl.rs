//! Rows that ClickHouse drops by itself once they are old. That is on purpose: such a row is
//! neither missing nor too many, so a comparison leaves it out on both sides.

use std::time::Duration;

/// A row is dropped once the time in a `DateTime64(3)` column of it is so long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl {
    pub column: usize,
    pub keeps: Duration,
    /// It holds for every row, and for this very table. Otherwise a row may be there or not.
    pub is_certain: bool,
}

/// Clocks differ, and a day in the server's time zone may have 23 hours.
const MARGIN: Duration = Duration::from_secs(2 * 3600);

impl Ttl {
    /// Whether ClickHouse drops a row with this value, in milliseconds, or does so at any moment.
    pub fn has_passed(&self, millis: i64, now: i64) -> bool {
        let kept = self.keeps.saturating_sub(MARGIN).as_millis();
        i128::from(millis) + kept as i128 <= i128::from(now)
    }

    /// Whether it is of no use to write such a row.
    pub fn drops(&self, millis: i64, now: i64) -> bool {
        // A time before 1970 is another one to `toDateTime`.
        self.is_certain && 0 <= millis && self.has_passed(millis, now)
    }

    /// Whether it may have dropped one. A time that `DateTime` cannot hold is another one there,
    /// any one.
    pub fn may_have_passed(&self, millis: i64, now: i64) -> bool {
        let end = (i128::from(millis) + self.keeps.as_millis() as i128).div_euclid(1000);
        let is_held = 0 <= millis && end <= i128::from(u32::MAX);
        !is_held || self.has_passed(millis, now)
    }

    /// The value of a row, as it lies in a block or a key.
    pub fn millis(value: &[u8]) -> Option<i64> {
        value.try_into().ok().map(i64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn a_row_is_left_out_from_a_little_before_its_end_on() {
        let ttl = Ttl { column: 0, keeps: Duration::from_secs(10 * 3600), is_certain: true };
        let now = 1_000 * HOUR;
        for (age, expected) in [(0, false), (7, false), (8, true), (11, true), (1_000, true)] {
            assert_eq!(ttl.has_passed(now - age * HOUR, now), expected, "{age} hours old");
            assert_eq!(ttl.may_have_passed(now - age * HOUR, now), expected, "{age} hours old");
        }
    }

    #[test]
    fn a_time_that_the_server_takes_for_another_may_have_passed() {
        let ttl = Ttl { column: 0, keeps: Duration::from_secs(60 * 86_400), is_certain: true };
        let now = 1_780_000_000_000;
        for (millis, passed) in [(-1, true), (i64::MIN, true), (i64::MAX, false)] {
            assert_eq!(ttl.has_passed(millis, now), passed, "{millis}");
            assert!(ttl.may_have_passed(millis, now), "{millis}");
        }
        // The end of what `DateTime` holds, without and with the time for which it is kept.
        let last = i64::from(u32::MAX) * 1000;
        assert!(ttl.may_have_passed(last, now) && !ttl.has_passed(last, now));
        assert!(!ttl.may_have_passed(last - 60 * 24 * HOUR, now));
    }
}
