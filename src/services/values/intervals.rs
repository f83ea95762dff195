//! interval: months, days and microseconds. Its text is that of `IntervalStyle=iso_8601`.

use super::temporal::put_fraction;
use crate::wal::Datum;
use crate::wal::wire::{DecodeError, Wire};

const INTERVAL: DecodeError = DecodeError::BadValue { context: "interval" };

/// The infinities of Postgres 17 are the extremes of all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    pub months: i32,
    pub days: i32,
    pub micros: i64,
}

const INFINITY: Interval = Interval { months: i32::MAX, days: i32::MAX, micros: i64::MAX };
const NEGATIVE_INFINITY: Interval = Interval { months: i32::MIN, days: i32::MIN, micros: i64::MIN };

impl Interval {
    pub fn read(datum: Datum<'_>) -> Result<Interval, DecodeError> {
        match datum {
            Datum::Binary(bytes) => {
                let mut wire = Wire::new(bytes);
                let micros = wire.take_i64("interval")?;
                let days = wire.take_i32("interval")?;
                let months = wire.take_i32("interval")?;
                wire.end("interval")?;
                Ok(Interval { months, days, micros })
            }
            Datum::Text(text) => of_text(text).ok_or(INTERVAL),
            Datum::Null | Datum::Unchanged => Err(INTERVAL),
        }
    }
}

/// `P1Y2M3DT4H5M6.7S`, each number with a sign of its own.
fn of_text(text: &[u8]) -> Option<Interval> {
    match text {
        b"infinity" => return Some(INFINITY),
        b"-infinity" => return Some(NEGATIVE_INFINITY),
        _ => {}
    }
    let mut rest = text.strip_prefix(b"P")?;
    let (mut months, mut days, mut micros) = (0_i64, 0_i64, 0_i64);
    let mut is_time = false;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(b"T") {
            (is_time, rest) = (true, after);
            continue;
        }
        let end = rest.iter().position(u8::is_ascii_alphabetic)?;
        let (number, unit) = (&rest[..end], rest[end]);
        rest = &rest[end + 1..];
        let whole = || std::str::from_utf8(number).ok()?.parse::<i64>().ok();
        match (is_time, unit) {
            (false, b'Y') => months = months.checked_add(whole()?.checked_mul(12)?)?,
            (false, b'M') => months = months.checked_add(whole()?)?,
            (false, b'W') => days = days.checked_add(whole()?.checked_mul(7)?)?,
            (false, b'D') => days = days.checked_add(whole()?)?,
            (true, b'H') => {
                micros = micros.checked_add(whole()?.checked_mul(3_600_000_000)?)?;
            }
            (true, b'M') => micros = micros.checked_add(whole()?.checked_mul(60_000_000)?)?,
            (true, b'S') => micros = micros.checked_add(seconds(number)?)?,
            _ => return None,
        }
    }
    Some(Interval { months: months.try_into().ok()?, days: days.try_into().ok()?, micros })
}

/// `-1.5` in microseconds.
fn seconds(text: &[u8]) -> Option<i64> {
    let (negative, unsigned) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix(b"+").unwrap_or(text)),
    };
    let (whole, fraction) = match memchr::memchr(b'.', unsigned) {
        Some(at) => (&unsigned[..at], &unsigned[at + 1..]),
        None => (unsigned, &b""[..]),
    };
    if 6 < fraction.len() || !unsigned.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') {
        return None;
    }
    let whole: i64 = std::str::from_utf8(whole).ok()?.parse().ok()?;
    let mut micros = 0;
    for at in 0..6 {
        micros =
            micros * 10 + i64::from(fraction.get(at).map_or(0, |digit| digit.wrapping_sub(b'0')));
    }
    let all = whole.checked_mul(1_000_000)?;
    if negative { all.checked_neg()?.checked_sub(micros) } else { all.checked_add(micros) }
}

pub fn print(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let interval = Interval::read(Datum::Binary(bytes))?;
    if interval == INFINITY || interval == NEGATIVE_INFINITY {
        out.extend_from_slice(if interval == INFINITY { b"infinity" } else { b"-infinity" });
        return Ok(());
    }
    let Interval { months, days, micros } = interval;
    if (months, days, micros) == (0, 0, 0) {
        out.extend_from_slice(b"PT0S");
        return Ok(());
    }
    let put = |number: i64, unit: u8, out: &mut Vec<u8>| {
        if number != 0 {
            out.extend_from_slice(number.to_string().as_bytes());
            out.push(unit);
        }
    };
    out.push(b'P');
    put((months / 12).into(), b'Y', out);
    put((months % 12).into(), b'M', out);
    put(days.into(), b'D', out);
    if micros == 0 {
        return Ok(());
    }
    out.push(b'T');
    put(micros / 3_600_000_000, b'H', out);
    put(micros / 60_000_000 % 60, b'M', out);
    let (seconds, fraction) = (micros / 1_000_000 % 60, micros % 1_000_000);
    if seconds != 0 || fraction != 0 {
        if micros < 0 {
            out.push(b'-');
        }
        out.extend_from_slice(seconds.unsigned_abs().to_string().as_bytes());
        put_fraction(fraction, out);
        out.push(b'S');
    }
    Ok(())
}
