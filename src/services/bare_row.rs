//! A row made of a sorting key alone: what a tombstone needs when nothing else is known.

use super::row::Row;
use super::source::{Source, SourceKind};
use crate::rows::Target;
use crate::rows::key::Key;
use crate::wal::{Datum, PgTime};

/// The values of a key of `target`, the first table of `source`, as they would come from Postgres.
pub struct BareRow {
    /// By place of the source.
    values: Vec<(usize, Value)>,
}

enum Value {
    Text(Vec<u8>),
    Binary([u8; 8]),
}

impl BareRow {
    pub fn new(source: &Source, target: &Target, key: &Key) -> BareRow {
        let value = |(place, value): (usize, &[u8])| {
            let is_time = source.columns[place].kind == SourceKind::Timestamp;
            let value = match value.try_into() {
                Ok(millis) if is_time => {
                    let since_2000 = PgTime::from_unix_millis(i64::from_le_bytes(millis));
                    Value::Binary(since_2000.0.to_be_bytes())
                }
                _ => Value::Text(value.to_vec()),
            };
            (place, value)
        };
        let places = source.places_of(target).into_iter();
        BareRow { values: places.zip(key.values()).map(value).collect() }
    }

    pub fn row(&self, source: &Source) -> Row<'_> {
        let mut row = Row::of(source);
        for (place, value) in &self.values {
            row.values[*place] = match value {
                Value::Text(text) => Datum::Text(text),
                Value::Binary(bytes) => Datum::Binary(bytes),
            };
        }
        row
    }
}
