//! The forms of ranges and of hstore, taken apart.

use std::borrow::Cow;

use super::arrays::element;
use crate::wal::Datum;
use crate::wal::wire::{DecodeError, Wire};

const RANGE: DecodeError = DecodeError::BadValue { context: "range" };
const HSTORE: DecodeError = DecodeError::BadValue { context: "hstore" };

const EMPTY: u8 = 0x01;
const LOWER_INCLUSIVE: u8 = 0x02;
const UPPER_INCLUSIVE: u8 = 0x04;
const LOWER_INFINITE: u8 = 0x08;
const UPPER_INFINITE: u8 = 0x10;

/// A bound that is `None` is none.
#[derive(Debug, PartialEq, Eq)]
pub struct Range<'a> {
    /// One of `[]`, `[)`, `(]`, `()` and `empty`.
    pub bounds: &'static [u8],
    pub lower: Option<Cow<'a, [u8]>>,
    pub upper: Option<Cow<'a, [u8]>>,
}

const NOTHING: Range<'static> = Range { bounds: b"empty", lower: None, upper: None };

impl<'a> Range<'a> {
    pub fn read(datum: Datum<'a>) -> Result<Range<'a>, DecodeError> {
        match datum {
            Datum::Binary(bytes) => Range::of_binary(bytes),
            Datum::Text(text) => match Range::of_text(text)? {
                (range, b"") => Ok(range),
                _ => Err(RANGE),
            },
            Datum::Null | Datum::Unchanged => Err(RANGE),
        }
    }

    pub fn of_binary(bytes: &'a [u8]) -> Result<Range<'a>, DecodeError> {
        let mut wire = Wire::new(bytes);
        let flags = wire.take_u8("range flags")?;
        if flags & EMPTY != 0 {
            return wire.end("range").map(|()| NOTHING);
        }
        let mut bound = |infinite| match flags & infinite != 0 {
            true => Ok(None),
            false => wire.take_sized("range bound").map(|bytes| Some(Cow::Borrowed(bytes))),
        };
        let (lower, upper) = (bound(LOWER_INFINITE)?, bound(UPPER_INFINITE)?);
        wire.end("range")?;
        let bounds = bounds(flags & LOWER_INCLUSIVE != 0, flags & UPPER_INCLUSIVE != 0);
        Ok(Range { bounds, lower, upper })
    }

    /// `[1,"a b")`, and what follows it.
    fn of_text(text: &'a [u8]) -> Result<(Range<'a>, &'a [u8]), DecodeError> {
        if let Some(rest) = text.strip_prefix(b"empty") {
            return Ok((NOTHING, rest));
        }
        let (first, rest) = text.split_first().ok_or(RANGE)?;
        let (lower, rest) = bound(rest)?;
        let rest = rest.strip_prefix(b",").ok_or(RANGE)?;
        let (upper, rest) = bound(rest)?;
        let (last, rest) = rest.split_first().ok_or(RANGE)?;
        if !matches!(first, b'[' | b'(') || !matches!(last, b']' | b')') {
            return Err(RANGE);
        }
        Ok((Range { bounds: bounds(*first == b'[', *last == b']'), lower, upper }, rest))
    }
}

fn bounds(lower: bool, upper: bool) -> &'static [u8] {
    match (lower, upper) {
        (true, true) => b"[]",
        (true, false) => b"[)",
        (false, true) => b"(]",
        (false, false) => b"()",
    }
}

type Bound<'a> = Option<Cow<'a, [u8]>>;

/// A bound, quoted or not, and what follows it.
fn bound(text: &[u8]) -> Result<(Bound<'_>, &[u8]), DecodeError> {
    if let Some(quoted) = text.strip_prefix(b"\"") {
        let mut value = Vec::new();
        let mut rest = quoted;
        loop {
            match rest {
                [b'\\', byte, after @ ..] | [b'"', byte @ b'"', after @ ..] => {
                    value.push(*byte);
                    rest = after;
                }
                [b'"', after @ ..] => return Ok((Some(Cow::Owned(value)), after)),
                [byte, after @ ..] => {
                    value.push(*byte);
                    rest = after;
                }
                [] => return Err(RANGE),
            }
        }
    }
    let end = text.iter().position(|byte| matches!(byte, b',' | b')' | b']')).ok_or(RANGE)?;
    let (value, rest) = text.split_at(end);
    Ok(((!value.is_empty()).then_some(Cow::Borrowed(value)), rest))
}

/// The ranges of a multirange.
pub fn each_range<'a>(
    datum: Datum<'a>,
    mut each: impl FnMut(Range<'a>) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    match datum {
        Datum::Binary(bytes) => {
            let mut wire = Wire::new(bytes);
            for _ in 0..wire.take_u32("multirange")? {
                each(Range::of_binary(wire.take_sized("multirange")?)?)?;
            }
            wire.end("multirange")
        }
        Datum::Text(text) => {
            let mut rest = text.strip_prefix(b"{").ok_or(RANGE)?;
            let mut is_first = true;
            while rest != b"}" {
                if !is_first {
                    rest = rest.strip_prefix(b",").ok_or(RANGE)?;
                }
                let (range, after) = Range::of_text(rest)?;
                each(range)?;
                (rest, is_first) = (after, false);
            }
            Ok(())
        }
        Datum::Null | Datum::Unchanged => Err(RANGE),
    }
}

/// The keys and values of an hstore.
pub fn each_pair(
    datum: Datum<'_>,
    mut each: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    match datum {
        Datum::Binary(bytes) => {
            let mut wire = Wire::new(bytes);
            for _ in 0..wire.take_u32("hstore")? {
                let key = wire.take_sized("hstore key")?;
                each(key, element(&mut wire)?)?;
            }
            wire.end("hstore")
        }
        Datum::Text(mut rest) => {
            while !rest.is_empty() {
                let (Some(key), after) = word(rest)? else { return Err(HSTORE) };
                let (value, after) = word(after.strip_prefix(b"=>").ok_or(HSTORE)?)?;
                each(&key, value.as_deref())?;
                rest = match after.strip_prefix(b", ") {
                    Some(more) if !more.is_empty() => more,
                    None if after.is_empty() => after,
                    _ => return Err(HSTORE),
                };
            }
            Ok(())
        }
        Datum::Null | Datum::Unchanged => Err(HSTORE),
    }
}

/// `"a\"b"` or `NULL`, and what follows it.
fn word(text: &[u8]) -> Result<(Bound<'_>, &[u8]), DecodeError> {
    if let Some(rest) = text.strip_prefix(b"NULL") {
        return Ok((None, rest));
    }
    let quoted = text.strip_prefix(b"\"").ok_or(HSTORE)?;
    let end = memchr::memchr2(b'"', b'\\', quoted).ok_or(HSTORE)?;
    if quoted[end] == b'"' {
        return Ok((Some(Cow::Borrowed(&quoted[..end])), &quoted[end + 1..]));
    }
    let mut value = Vec::new();
    let mut rest = quoted;
    loop {
        let end = memchr::memchr2(b'"', b'\\', rest).ok_or(HSTORE)?;
        value.extend_from_slice(&rest[..end]);
        if rest[end] == b'"' {
            return Ok((Some(Cow::Owned(value)), &rest[end + 1..]));
        }
        value.push(*rest.get(end + 1).ok_or(HSTORE)?);
        rest = &rest[end + 2..];
    }
}
