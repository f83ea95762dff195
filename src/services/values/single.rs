//! Single values: the bytes of a scalar, from both wire forms, and back.

use std::borrow::Cow;

use super::how::{Print, Single};
use super::unfit::Unfit;
use super::{floats, network, numeric, print, temporal};
use crate::rows::Scalar;
use crate::rows::column::List;
use crate::rows::scalar::uuid_halves;
use crate::wal::{Datum, DecodeError};

const INT: DecodeError = DecodeError::BadValue { context: "integer" };
const BOOLEAN: DecodeError = DecodeError::BadValue { context: "boolean" };
const UUID: DecodeError = DecodeError::BadValue { context: "uuid" };
const BYTEA: DecodeError = DecodeError::BadValue { context: "bytea" };
const LSN: DecodeError = DecodeError::BadValue { context: "pg_lsn" };
const NOTHING: DecodeError = DecodeError::BadValue { context: "value that is not there" };

impl Single {
    pub fn scalar(&self) -> Scalar {
        match *self {
            Single::Bool => Scalar::Bool,
            Single::Int2 => Scalar::Int16,
            Single::Int4 => Scalar::Int32,
            Single::Int8 => Scalar::Int64,
            Single::UInt4 => Scalar::UInt32,
            Single::UInt8 | Single::Lsn => Scalar::UInt64,
            Single::Float4 => Scalar::Float32,
            Single::Float8 => Scalar::Float64,
            Single::Decimal { precision, scale } => Scalar::Decimal { precision, scale },
            Single::Money { scale } => Scalar::Decimal { precision: 19, scale },
            Single::Date { .. } => Scalar::Date32,
            Single::Timestamp { .. } => Scalar::DateTime64 { precision: 6, utc: true },
            Single::Time => Scalar::Time64 { precision: 6 },
            Single::Uuid => Scalar::Uuid,
            Single::Bytea | Single::Padded | Single::Text(_) => Scalar::String,
        }
    }
}

macro_rules! put_int {
    ($of:ty, $datum:expr, $values:expr) => {{
        let value = match $datum {
            Datum::Binary(bytes) => <$of>::from_be_bytes(bytes.try_into().map_err(|_| INT)?),
            Datum::Text(text) => parse::<$of>(text)?,
            Datum::Null | Datum::Unchanged => return Err(NOTHING),
        };
        $values.put(value.to_le_bytes());
    }};
}

fn parse<T: std::str::FromStr>(text: &[u8]) -> Result<T, DecodeError> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(INT)
}

/// Appends a value that is no NULL. False, and nothing is appended: it has no place, not even one
/// near to it.
#[inline]
pub fn put(
    of: &Single,
    datum: Datum<'_>,
    values: &mut List,
    unfit: &mut Unfit,
) -> Result<bool, DecodeError> {
    match *of {
        Single::Text(Print::Same) => match datum {
            Datum::Text(bytes) | Datum::Binary(bytes) => values.strings().push(bytes),
            Datum::Null | Datum::Unchanged => return Err(NOTHING),
        },
        Single::Bool => values.put([match datum {
            Datum::Text(b"t") | Datum::Binary([1]) => 1,
            Datum::Text(b"f") | Datum::Binary([0]) => 0,
            _ => return Err(BOOLEAN),
        }]),
        Single::Int2 => put_int!(i16, datum, values),
        Single::Int4 => put_int!(i32, datum, values),
        Single::Int8 => put_int!(i64, datum, values),
        Single::UInt4 => put_int!(u32, datum, values),
        Single::UInt8 => put_int!(u64, datum, values),
        Single::Lsn => values.put(lsn(datum)?.to_le_bytes()),
        Single::Float4 => values.put(floats::f32_of(datum)?.to_le_bytes()),
        Single::Float8 => values.put(floats::f64_of(datum)?.to_le_bytes()),
        Single::Decimal { precision, scale } => {
            return numeric::put_decimal(datum, precision, scale, values, unfit);
        }
        Single::Money { .. } => values.put(i128::from(numeric::money(datum)?).to_le_bytes()),
        Single::Date { days } => values.put(temporal::date(datum, days, unfit)?.to_le_bytes()),
        Single::Timestamp { micros } => {
            values.put(temporal::timestamp(datum, micros, unfit)?.to_le_bytes());
        }
        Single::Time => values.put(temporal::time(datum)?.to_le_bytes()),
        Single::Uuid => values.put(uuid_halves(uuid(datum)?)),
        Single::Bytea => match datum {
            Datum::Binary(bytes) => values.strings().push(bytes),
            Datum::Text(text) => values.strings().push_with(|out| unhex(text, out))?,
            Datum::Null | Datum::Unchanged => return Err(NOTHING),
        },
        Single::Padded => values.strings().push(unpadded(bytes_of(datum)?)),
        Single::Text(ref print) => put_text(print, datum, values)?,
    }
    Ok(true)
}

fn bytes_of(datum: Datum<'_>) -> Result<&[u8], DecodeError> {
    match datum {
        Datum::Text(bytes) | Datum::Binary(bytes) => Ok(bytes),
        Datum::Null | Datum::Unchanged => Err(NOTHING),
    }
}

fn put_text(of: &Print, datum: Datum<'_>, values: &mut List) -> Result<(), DecodeError> {
    match (of, datum) {
        // Up to Postgres 15 it is this byte in its text as well.
        (Print::Char, Datum::Text([0x80..=0xFF])) => {
            values.strings().push_with(|out| network::print_char(bytes_of(datum)?, out))
        }
        (_, Datum::Text(text)) => {
            values.strings().push(text);
            Ok(())
        }
        (_, Datum::Binary(bytes)) => values.strings().push_with(|out| print::print(of, bytes, out)),
        (_, Datum::Null | Datum::Unchanged) => Err(NOTHING),
    }
}

fn unpadded(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &bytes[..end]
}

fn uuid(datum: Datum<'_>) -> Result<[u8; 16], DecodeError> {
    let text = match datum {
        Datum::Binary(bytes) => return bytes.try_into().map_err(|_| UUID),
        Datum::Text(text) => text,
        Datum::Null | Datum::Unchanged => return Err(NOTHING),
    };
    let mut bytes = [0; 16];
    let mut digits = text.iter().filter(|byte| **byte != b'-');
    for byte in &mut bytes {
        let high = digits.next().copied().and_then(hex).ok_or(UUID)?;
        *byte = high << 4 | digits.next().copied().and_then(hex).ok_or(UUID)?;
    }
    if digits.next().is_some() { Err(UUID) } else { Ok(bytes) }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn unhex(text: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let digits = text.strip_prefix(b"\\x").ok_or(BYTEA)?;
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(BYTEA);
    }
    out.reserve(pairs.len());
    for pair in pairs {
        let byte = hex(pair[0]).zip(hex(pair[1])).map(|(high, low)| high << 4 | low);
        out.push(byte.ok_or(BYTEA)?);
    }
    Ok(())
}

fn lsn(datum: Datum<'_>) -> Result<u64, DecodeError> {
    match datum {
        Datum::Binary(bytes) => bytes.try_into().map(u64::from_be_bytes).map_err(|_| LSN),
        Datum::Text(text) => {
            let text = std::str::from_utf8(text).map_err(|_| LSN)?;
            text.parse::<crate::wal::Lsn>().map(|lsn| lsn.0).map_err(|_| LSN)
        }
        Datum::Null | Datum::Unchanged => Err(NOTHING),
    }
}

/// See [`super::canonical_key`].
pub fn canonical<'a>(of: &Single, datum: Datum<'a>) -> Cow<'a, [u8]> {
    let (Datum::Text(bytes) | Datum::Binary(bytes)) = datum else { return Cow::Borrowed(&[]) };
    match of {
        Single::Decimal { .. } => numeric::canonical(datum),
        Single::Float4 | Single::Float8 => Cow::Borrowed(floats::canonical(datum).unwrap_or(bytes)),
        Single::Padded => Cow::Borrowed(unpadded(bytes)),
        _ => Cow::Borrowed(bytes),
    }
}

/// See [`super::postgres_literal`].
pub fn text_of(of: &Single, value: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let number = |scalar: Scalar| {
        let mut text = Vec::new();
        scalar.write_text(value, &mut text);
        text
    };
    match *of {
        Single::Padded | Single::Text(_) => text.extend_from_slice(value),
        Single::Bytea => {
            text.extend_from_slice(b"\\x");
            value.iter().for_each(|byte| network::put_hex(*byte, b"0123456789abcdef", &mut text));
        }
        Single::Bool => text.push(if value == [0] { b'f' } else { b't' }),
        Single::Decimal { scale, .. } => return numeric::text_of(of.scalar(), value, scale),
        // What reads as money depends on the locale, the parts of a number do not.
        Single::Money { scale } => return numeric::text_of(of.scalar(), value, scale),
        Single::Float4 => {
            floats::put_f32(
                value.try_into().map(f32::from_le_bytes).unwrap_or_default(),
                &mut text,
            );
        }
        Single::Float8 => {
            floats::put_f64(
                value.try_into().map(f64::from_le_bytes).unwrap_or_default(),
                &mut text,
            );
        }
        Single::Lsn => {
            let lsn = value.try_into().map(u64::from_le_bytes).unwrap_or_default();
            text.extend_from_slice(crate::wal::Lsn(lsn).to_string().as_bytes());
        }
        Single::Date { .. } => {
            let days = value.try_into().map(i32::from_le_bytes).unwrap_or_default();
            temporal::put_date(days, &mut text);
        }
        Single::Timestamp { .. } => {
            let micros = value.try_into().map(i64::from_le_bytes).unwrap_or_default();
            temporal::put_moment(micros, true, &mut text);
        }
        Single::Time => {
            let micros = value.try_into().map(i64::from_le_bytes).unwrap_or_default();
            temporal::put_time(micros, &mut text);
        }
        Single::Int2
        | Single::Int4
        | Single::Int8
        | Single::UInt4
        | Single::UInt8
        | Single::Uuid => return number(of.scalar()),
    }
    text
}
