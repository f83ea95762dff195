//! Values of Postgres, in both wire forms, as the bytes of ClickHouse's Native format, and back.
//!
//! [`how`] says what becomes of a column's values, decided by `types`. Both wire forms of a value
//! give the same bytes. What does not fit is stored as the nearest value that does, as NULL where
//! there is no order, and noted in [`unfit`] with the original as Postgres prints it.
//!
//! A new type is a row in `types`, a form in [`how`] if it has one of its own, and a printer if its
//! binary form is not its text.

mod arrays;
mod floats;
mod geometric;
pub mod how;
mod intervals;
mod network;
mod numeric;
mod print;
mod ranges;
mod search;
mod single;
pub mod temporal;
#[cfg(test)]
mod tests;
pub mod unfit;

use std::borrow::Cow;

use self::how::{How, Print, Single, To};
use self::intervals::Interval;
use self::ranges::Range;
use self::unfit::{Reason, Unfit};
use crate::rows::column::{List, lists_of};
use crate::rows::{ColumnType, Scalar};
use crate::wal::{Datum, DecodeError};

const NOT_SENT: DecodeError = DecodeError::BadValue { context: "value that was not sent" };

/// Appends one value to the lists of its column. After an error the lists are not to be used.
#[inline]
pub fn put(
    how: &How,
    datum: Datum<'_>,
    lists: &mut [List],
    unfit: &mut Unfit,
) -> Result<(), DecodeError> {
    put_to(&how.to, datum, lists, unfit)?;
    if unfit.reason().is_some() {
        unfit.set_original(original(&how.print, datum)?);
    }
    Ok(())
}

#[cold]
fn original(print: &Print, datum: Datum<'_>) -> Result<Vec<u8>, DecodeError> {
    match datum {
        Datum::Text(text) => Ok(text.to_vec()),
        Datum::Binary(bytes) => {
            let mut text = Vec::new();
            print::print(print, bytes, &mut text)?;
            Ok(text)
        }
        Datum::Null | Datum::Unchanged => Ok(Vec::new()),
    }
}

/// The lists of a column that is written this way.
pub fn kind(to: &To) -> ColumnType {
    let nullable = |of: &Single| ColumnType::Nullable(of.scalar());
    let range = |of: &Single| {
        let bounds = ColumnType::Of(Scalar::String);
        ColumnType::tuple(&[("lower", nullable(of)), ("upper", nullable(of)), ("bounds", bounds)])
    };
    let element = |is_nullable, scalar| match is_nullable {
        true => ColumnType::Nullable(scalar),
        false => ColumnType::Of(scalar),
    };
    match to {
        To::Of(of) => ColumnType::Of(of.scalar()),
        To::Nullable(of) => nullable(of),
        To::Array { dimensions, of, .. } => {
            (0..*dimensions).fold(kind(of), |of, _| ColumnType::array(of))
        }
        To::Vector(of) => ColumnType::array(ColumnType::Of(of.scalar())),
        To::Range(of) => range(of),
        To::Multirange(of) => ColumnType::array(range(of)),
        To::Interval { nullable } => ColumnType::tuple(&[
            ("months", element(*nullable, Scalar::Int32)),
            ("days", element(*nullable, Scalar::Int32)),
            ("microseconds", element(*nullable, Scalar::Int64)),
        ]),
        To::Point { nullable } => ColumnType::tuple(&[
            ("x", element(*nullable, Scalar::Float64)),
            ("y", element(*nullable, Scalar::Float64)),
        ]),
        To::Map => {
            let text = Scalar::String;
            ColumnType::map(ColumnType::Of(text), ColumnType::Nullable(text))
        }
        To::Embedding { .. } => ColumnType::array(ColumnType::Of(Scalar::Float32)),
    }
}

#[inline]
fn put_to(
    to: &To,
    datum: Datum<'_>,
    lists: &mut [List],
    unfit: &mut Unfit,
) -> Result<(), DecodeError> {
    match (datum, to, &mut *lists) {
        (Datum::Unchanged, ..) => Err(NOT_SENT),
        (Datum::Null, To::Nullable(_), [nulls, values]) => {
            nulls.put([1]);
            values.put_default();
            Ok(())
        }
        (Datum::Null, ..) => {
            put_null(to, lists, unfit);
            Ok(())
        }
        (_, To::Nullable(of), [nulls, values]) => {
            let is_value = single::put(of, datum, values, unfit)?;
            if !is_value {
                values.put_default();
            }
            nulls.put([u8::from(!is_value)]);
            Ok(())
        }
        (_, To::Of(of), [values]) => {
            if !single::put(of, datum, values, unfit)? {
                values.put_default();
                unfit.null = true;
            }
            Ok(())
        }
        _ => put_parts(to, datum, lists, unfit),
    }
}

fn put_null(to: &To, lists: &mut [List], unfit: &mut Unfit) {
    match (to, lists) {
        (To::Of(_), [values]) => {
            values.put_default();
            unfit.null = true;
        }
        (To::Nullable(_), [nulls, values]) => {
            nulls.put([1]);
            values.put_default();
        }
        // Told apart by a column of its own, where the column may be NULL.
        (To::Array { .. } | To::Vector(_) | To::Multirange(_) | To::Map, [ends, ..])
        | (To::Embedding { .. }, [ends, ..]) => ends.put_default(),
        (To::Range(_), [lower_nulls, lower, upper_nulls, upper, bounds]) => {
            for (nulls, values) in [(lower_nulls, lower), (upper_nulls, upper)] {
                nulls.put([1]);
                values.put_default();
            }
            bounds.put_bytes(b"");
        }
        (To::Interval { nullable: true } | To::Point { nullable: true }, lists) => {
            for pair in lists.chunks_exact_mut(2) {
                pair[0].put([1]);
                pair[1].put_default();
            }
        }
        (_, lists) => {
            lists.iter_mut().for_each(List::put_default);
            unfit.null = true;
        }
    }
}

/// Of types whose values have several parts.
fn put_parts(
    to: &To,
    datum: Datum<'_>,
    lists: &mut [List],
    unfit: &mut Unfit,
) -> Result<(), DecodeError> {
    match (to, lists) {
        (To::Array { dimensions, delimiter, of }, lists) => {
            put_array(datum, *dimensions, *delimiter, of, lists, unfit)
        }
        (To::Vector(of), [ends, values]) => {
            let each = &mut |element: Option<&[u8]>| {
                let bytes = element.ok_or(NOT_SENT)?;
                single::put(of, part(is_text(datum), bytes), values, unfit).map(|_| ())
            };
            match datum {
                Datum::Binary(bytes) => drop(arrays::each_binary(bytes, each)?),
                Datum::Text(text) => arrays::each_of_vector(text, each)?,
                Datum::Null | Datum::Unchanged => return Err(NOT_SENT),
            }
            ends.put_end(values.len());
            Ok(())
        }
        (To::Range(of), lists) => put_range(&Range::read(datum)?, is_text(datum), of, lists, unfit),
        (To::Multirange(of), [ends, lists @ ..]) => {
            ranges::each_range(datum, |range| put_range(&range, is_text(datum), of, lists, unfit))?;
            ends.put_end(lists[0].len());
            Ok(())
        }
        (To::Interval { nullable }, lists) => {
            let Interval { months, days, micros } = Interval::read(datum)?;
            let (first, step) = parts(*nullable, lists);
            lists[first].put(months.to_le_bytes());
            lists[first + step].put(days.to_le_bytes());
            lists[first + 2 * step].put(micros.to_le_bytes());
            Ok(())
        }
        (To::Point { nullable }, lists) => {
            let (x, y) = geometric::point(datum)?;
            let (first, step) = parts(*nullable, lists);
            lists[first].put(x.to_le_bytes());
            lists[first + step].put(y.to_le_bytes());
            Ok(())
        }
        (To::Map, [ends, keys, nulls, values]) => {
            ranges::each_pair(datum, |key, value| {
                keys.put_bytes(key);
                nulls.put([u8::from(value.is_none())]);
                values.put_bytes(value.unwrap_or_default());
                Ok(())
            })?;
            ends.put_end(keys.len());
            Ok(())
        }
        (To::Embedding { half }, [ends, values]) => {
            geometric::embedding(datum, *half, |element| values.put(element.to_le_bytes()))?;
            ends.put_end(values.len());
            Ok(())
        }
        (to, lists) => unreachable!("{} lists for {to:?}", lists.len()),
    }
}

/// Where the values of the first element of a tuple stand, and how far it is to the next ones; of
/// elements that may be NULL these are not.
fn parts(nullable: bool, lists: &mut [List]) -> (usize, usize) {
    if nullable {
        lists.iter_mut().step_by(2).for_each(|nulls| nulls.put([0]));
    }
    (usize::from(nullable), 1 + usize::from(nullable))
}

fn is_text(datum: Datum<'_>) -> bool {
    matches!(datum, Datum::Text(_))
}

/// A part of a value comes in the form of the whole.
fn part(is_text: bool, bytes: &[u8]) -> Datum<'_> {
    if is_text { Datum::Text(bytes) } else { Datum::Binary(bytes) }
}

fn put_range(
    range: &Range<'_>,
    is_text: bool,
    of: &Single,
    lists: &mut [List],
    unfit: &mut Unfit,
) -> Result<(), DecodeError> {
    let [lower_nulls, lower, upper_nulls, upper, bounds] = lists else {
        unreachable!("{} lists for a range", lists.len())
    };
    for (bound, nulls, values) in
        [(&range.lower, lower_nulls, lower), (&range.upper, upper_nulls, upper)]
    {
        let is_value = match bound {
            Some(bytes) => single::put(of, part(is_text, bytes), values, unfit)?,
            None => false,
        };
        if !is_value {
            values.put_default();
        }
        nulls.put([u8::from(!is_value)]);
    }
    bounds.put_bytes(range.bounds);
    Ok(())
}

/// The elements come first, then where they end, from the inner arrays to the outer one.
fn put_array(
    datum: Datum<'_>,
    dimensions: usize,
    delimiter: u8,
    of: &To,
    lists: &mut [List],
    unfit: &mut Unfit,
) -> Result<(), DecodeError> {
    let (ends, elements) = lists.split_at_mut(dimensions);
    let start = elements[0].len();
    let each = &mut |element: Option<&[u8]>| {
        let datum = element.map_or(Datum::Null, |bytes| part(is_text(datum), bytes));
        put_to(of, datum, elements, unfit)
    };
    let extent = match datum {
        Datum::Binary(bytes) => arrays::each_binary(bytes, each)?,
        Datum::Text(text) => arrays::each_text(text, delimiter, each)?,
        Datum::Null | Datum::Unchanged => return Err(NOT_SENT),
    };
    if extent.dimensions == 0 {
        ends[0].put_default();
        return Ok(());
    }
    if extent.dimensions != dimensions {
        elements.iter_mut().for_each(|list| list.truncate(start));
        ends[0].put_default();
        unfit.note(Reason::OtherDimensions);
        return Ok(());
    }
    if !extent.begins_at_one() {
        unfit.note(Reason::LowerBounds);
    }
    // How many arrays there are of each dimension, from the outer one in.
    let mut arrays = [1; 6];
    for (at, size) in extent.sizes().iter().enumerate().take(dimensions - 1) {
        arrays[at + 1] = arrays[at] * size;
    }
    let mut first = start;
    for at in (0..dimensions).rev() {
        let next = ends[at].len();
        for array in 1..=arrays[at] {
            ends[at].put_end(first + array * extent.sizes()[at]);
        }
        first = next;
    }
    Ok(())
}

/// A value as Postgres prints it; empty of one that cannot be read.
pub fn text<'a>(how: &How, datum: Datum<'a>) -> Cow<'a, [u8]> {
    match datum {
        Datum::Text(text) => Cow::Borrowed(text),
        _ => Cow::Owned(original(&how.print, datum).unwrap_or_default()),
    }
}

/// The bytes of a single value in ClickHouse; `None` if it does not fit, or cannot be read.
pub fn stored(how: &How, datum: Datum<'_>) -> Option<Vec<u8>> {
    let (mut lists, mut unfit) = (lists_of(&kind(&how.to)), Unfit::default());
    put(how, datum, &mut lists, &mut unfit).ok()?;
    let values = lists.last().filter(|_| !unfit.is_some())?;
    Some(values.at(0).to_vec())
}

/// The text of a key column's value in ClickHouse, given its bytes in a Native block, for Postgres
/// to read as the column's type. Not quoted; of bytes, since a text may be any in SQL_ASCII.
pub fn postgres_literal(how: &How, value: &[u8]) -> Vec<u8> {
    match &how.to {
        To::Of(of) | To::Nullable(of) => single::text_of(of, value),
        other => unreachable!("{other:?} is no form of a key"),
    }
}

/// The same bytes for values that are one in ClickHouse, such as 1.0 and 1.00, and different ones
/// for others. Both of one wire form.
#[inline]
pub fn canonical_key<'a>(how: &How, datum: Datum<'a>) -> Cow<'a, [u8]> {
    match &how.to {
        To::Of(of) | To::Nullable(of) => single::canonical(of, datum),
        other => unreachable!("{other:?} is no form of a key"),
    }
}
