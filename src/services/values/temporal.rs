//! Dates, moments, and times of day. Their text is that of `DateStyle=ISO` and `TimeZone=UTC`.

use super::unfit::{Reason, Unfit};
use crate::wal::Datum;
use crate::wal::time::{
    DAYS_TO_2000, Date, MICROS_TO_2000, Timestamp, civil_from_days, micros_of_day,
};
use crate::wal::wire::{DecodeError, Wire};

const DATE: DecodeError = DecodeError::BadValue { context: "date" };
const STAMP: DecodeError = DecodeError::BadValue { context: "timestamp" };
const TIME: DecodeError = DecodeError::BadValue { context: "time" };

const MICROS_OF_DAY: i64 = 86_400_000_000;

/// Days since 1970, the nearest that the server holds.
pub fn date(
    datum: Datum<'_>,
    (first, last): (i32, i32),
    unfit: &mut Unfit,
) -> Result<i32, DecodeError> {
    let date = match datum {
        Datum::Binary(bytes) => Date::from_binary(fixed(bytes, DATE).map(i32::from_be_bytes)?),
        Datum::Text(text) => Date::from_text(text).ok_or(DATE)?,
        Datum::Null | Datum::Unchanged => return Err(DATE),
    };
    let held = match date {
        Date::Infinity => None,
        Date::NegativeInfinity => None,
        Date::At(days) => days.checked_add(DAYS_TO_2000).filter(|d| (first..=last).contains(d)),
    };
    Ok(held.unwrap_or_else(|| {
        unfit.note(Reason::OutOfRange);
        let is_early = match date {
            Date::Infinity => false,
            Date::NegativeInfinity => true,
            Date::At(days) => i64::from(days) + i64::from(DAYS_TO_2000) < i64::from(first),
        };
        if is_early { first } else { last }
    }))
}

/// Microseconds since 1970, the nearest that the server holds.
pub fn timestamp(
    datum: Datum<'_>,
    (first, last): (i64, i64),
    unfit: &mut Unfit,
) -> Result<i64, DecodeError> {
    let stamp = match datum {
        Datum::Binary(bytes) => {
            Timestamp::from_binary(fixed(bytes, STAMP).map(i64::from_be_bytes)?)
        }
        Datum::Text(text) => Timestamp::from_text(text).ok_or(STAMP)?,
        Datum::Null | Datum::Unchanged => return Err(STAMP),
    };
    // The last thirty years of Postgres's range, counted from 1970, are beyond 64 bits.
    let micros = match stamp {
        Timestamp::At(at) => at.0.saturating_add(MICROS_TO_2000),
        Timestamp::Infinity => i64::MAX,
        Timestamp::NegativeInfinity => i64::MIN,
    };
    let held = micros.clamp(first, last);
    if held != micros {
        unfit.note(Reason::OutOfRange);
    }
    Ok(held)
}

/// Microseconds since midnight; 24:00 is one of them.
pub fn time(datum: Datum<'_>) -> Result<i64, DecodeError> {
    let micros = match datum {
        Datum::Binary(bytes) => fixed(bytes, TIME).map(i64::from_be_bytes)?,
        Datum::Text(text) => micros_of_day(text).ok_or(TIME)?,
        Datum::Null | Datum::Unchanged => return Err(TIME),
    };
    if (0..=MICROS_OF_DAY).contains(&micros) { Ok(micros) } else { Err(TIME) }
}

fn fixed<const N: usize>(bytes: &[u8], error: DecodeError) -> Result<[u8; N], DecodeError> {
    bytes.try_into().map_err(|_| error)
}

pub fn print_date(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    match Date::from_binary(fixed(bytes, DATE).map(i32::from_be_bytes)?) {
        Date::Infinity => out.extend_from_slice(b"infinity"),
        Date::NegativeInfinity => out.extend_from_slice(b"-infinity"),
        Date::At(days) => {
            let is_bc = put_day(i64::from(days) + i64::from(DAYS_TO_2000), out);
            put_era(is_bc, out);
        }
    }
    Ok(())
}

pub fn print_timestamp(bytes: &[u8], zone: bool, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    match Timestamp::from_binary(fixed(bytes, STAMP).map(i64::from_be_bytes)?) {
        Timestamp::Infinity => out.extend_from_slice(b"infinity"),
        Timestamp::NegativeInfinity => out.extend_from_slice(b"-infinity"),
        Timestamp::At(at) => {
            let days = at.0.div_euclid(MICROS_OF_DAY) + i64::from(DAYS_TO_2000);
            put_stamp(days, at.0.rem_euclid(MICROS_OF_DAY), zone, out);
        }
    }
    Ok(())
}

/// Of microseconds since 1970.
pub fn put_moment(micros: i64, zone: bool, out: &mut Vec<u8>) {
    put_stamp(micros.div_euclid(MICROS_OF_DAY), micros.rem_euclid(MICROS_OF_DAY), zone, out);
}

/// Of days since 1970.
pub fn put_date(days: i32, out: &mut Vec<u8>) {
    let is_bc = put_day(days.into(), out);
    put_era(is_bc, out);
}

fn put_stamp(days: i64, micros: i64, zone: bool, out: &mut Vec<u8>) {
    let is_bc = put_day(days, out);
    out.push(b' ');
    put_time(micros, out);
    if zone {
        out.extend_from_slice(b"+00");
    }
    put_era(is_bc, out);
}

/// True: of a year before Christ.
fn put_day(days: i64, out: &mut Vec<u8>) -> bool {
    let (year, month, day) = civil_from_days(days);
    let is_bc = year <= 0;
    let year = if is_bc { 1 - year } else { year };
    out.extend_from_slice(format!("{year:04}-{month:02}-{day:02}").as_bytes());
    is_bc
}

fn put_era(is_bc: bool, out: &mut Vec<u8>) {
    if is_bc {
        out.extend_from_slice(b" BC");
    }
}

/// `12:34:56.5`: without the zeros at the end.
pub fn put_time(micros: i64, out: &mut Vec<u8>) {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let (h, m, s) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    out.extend_from_slice(format!("{h:02}:{m:02}:{s:02}").as_bytes());
    put_fraction(fraction, out);
}

pub fn put_fraction(micros: i64, out: &mut Vec<u8>) {
    if micros != 0 {
        let digits = format!("{:06}", micros.unsigned_abs());
        out.push(b'.');
        out.extend_from_slice(digits.trim_end_matches('0').as_bytes());
    }
}

pub fn print_time(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    put_time(time(Datum::Binary(bytes))?, out);
    Ok(())
}

pub fn print_timetz(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    print_time(wire.take(8, "timetz")?, out)?;
    let west = wire.take_i32("timetz")?;
    wire.end("timetz")?;
    let east = west.checked_neg().ok_or(TIME)?;
    out.push(if east < 0 { b'-' } else { b'+' });
    let seconds = east.unsigned_abs();
    let (h, m, s) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    out.extend_from_slice(format!("{h:02}").as_bytes());
    if m != 0 || s != 0 {
        out.extend_from_slice(format!(":{m:02}").as_bytes());
    }
    if s != 0 {
        out.extend_from_slice(format!(":{s:02}").as_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::PgTime;

    proptest::proptest! {
        #[test]
        fn a_time_is_printed_as_it_is_read(
            micros in -211_813_488_000_000_000..300_000_000_000_000_000_i64,
        ) {
            let (at, mut text) = (PgTime(micros), Vec::new());
            put_moment(at.0 + MICROS_TO_2000, false, &mut text);
            let read = Timestamp::from_text(&text);
            proptest::prop_assert_eq!(read, Some(Timestamp::At(at)), "{:?}", text);
        }
    }
}
