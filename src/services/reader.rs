//! Reads the values of one source row for one target table, and notes what does not fit.

use std::fmt;
use std::sync::Arc;

use super::mapping::ValueError;
use super::notes::{Kept, Notes};
use super::row::Row;
use super::source::Source;
use crate::documents::outcome::DocumentOutcome;
use crate::wal::time::Timestamp;
use crate::wal::{DecodeError, Lsn, PgTime, value};

/// The range of `DateTime64(3)` in a current ClickHouse: the years 0000 to 9999, as ticks.
const MILLIS_MIN: i64 = -62_167_219_200_000;
const MILLIS_MAX: i64 = 253_402_300_799_999;

/// Reads one row for one target table, noting what does not fit.
pub struct RowReader<'r, 'a> {
    source: &'r Source,
    row: &'r Row<'a>,
    table: &'r str,
    version: u64,
    notes: &'r mut Notes,
}

impl<'r, 'a> RowReader<'r, 'a> {
    pub fn new(
        source: &'r Source,
        row: &'r Row<'a>,
        table: &'r str,
        version: u64,
        notes: &'r mut Notes,
    ) -> RowReader<'r, 'a> {
        RowReader { source, row, table, version, notes }
    }

    fn fail(&self, place: usize) -> impl FnOnce(DecodeError) -> ValueError + use<> {
        let column = Arc::clone(&self.source.columns[place].name);
        move |cause| ValueError { column, cause, lsn: Lsn(0) }
    }

    /// The value's bytes; null reads as empty.
    pub fn text(&self, place: usize) -> &'a [u8] {
        value::text(self.row.values[place]).unwrap_or_default()
    }

    pub fn text_or_null(&self, place: usize) -> Option<&'a [u8]> {
        value::text(self.row.values[place])
    }

    pub fn json(&self, place: usize) -> Result<Option<&'a [u8]>, ValueError> {
        let type_oid = self.row.types[place].unwrap_or(value::oid::TEXT);
        value::json(self.row.values[place], type_oid).map_err(self.fail(place))
    }

    pub fn float(&self, place: usize) -> Result<f64, ValueError> {
        Ok(value::float(self.row.values[place]).map_err(self.fail(place))?.unwrap_or(0.0))
    }

    pub fn boolean(&self, place: usize) -> Result<Option<bool>, ValueError> {
        value::boolean(self.row.values[place]).map_err(self.fail(place))
    }

    fn int(&self, place: usize) -> Result<Option<i64>, ValueError> {
        value::int(self.row.values[place]).map_err(self.fail(place))
    }

    /// An integer for a `UInt8` or `UInt32` column. One that does not fit becomes the nearest that
    /// does, and the original is kept.
    pub fn unsigned<T>(&mut self, place: usize, default: T) -> Result<T, ValueError>
    where
        T: TryFrom<i64> + Bounds,
    {
        let Some(value) = self.int(place)? else { return Ok(default) };
        Ok(T::try_from(value).unwrap_or_else(|_| {
            self.keep_as_text(place, "out of range, nearest value stored", value);
            if value < 0 { T::LEAST } else { T::GREATEST }
        }))
    }

    /// The same for a nullable column, where null is stored instead.
    pub fn unsigned_or_null<T>(&mut self, place: usize) -> Result<Option<T>, ValueError>
    where
        T: TryFrom<i64>,
    {
        let Some(value) = self.int(place)? else { return Ok(None) };
        let converted = T::try_from(value).ok();
        if converted.is_none() {
            self.keep_as_text(place, "out of range, null stored", value);
        }
        Ok(converted)
    }

    /// A timestamp for a column that accepts no null: `infinity` and years that ClickHouse does not
    /// have become the nearest moment it has, and the original is kept.
    pub fn millis(&mut self, place: usize) -> Result<i64, ValueError> {
        let Some(at) = self.timestamp(place)? else { return Ok(0) };
        let millis = match at {
            Timestamp::At(at) => at.unix_millis(),
            Timestamp::Infinity => i64::MAX,
            Timestamp::NegativeInfinity => i64::MIN,
        };
        let held = millis.clamp(MILLIS_MIN, MILLIS_MAX);
        if held != millis {
            self.keep_as_text(place, "out of range, nearest moment stored", Original(at));
        }
        Ok(held)
    }

    /// The same for a nullable column, where null is stored instead.
    pub fn millis_or_null(&mut self, place: usize) -> Result<Option<i64>, ValueError> {
        let Some(at) = self.timestamp(place)? else { return Ok(None) };
        if let Timestamp::At(moment) = at {
            let millis = moment.unix_millis();
            if (MILLIS_MIN..=MILLIS_MAX).contains(&millis) {
                return Ok(Some(millis));
            }
        }
        self.keep_as_text(place, "out of range, null stored", Original(at));
        Ok(None)
    }

    fn timestamp(&self, place: usize) -> Result<Option<Timestamp>, ValueError> {
        value::timestamp(self.row.values[place]).map_err(self.fail(place))
    }

    /// The elements of a `text[]`, in order; a null element reads as empty.
    pub fn each_text(&self, place: usize, mut each: impl FnMut(&[u8])) -> Result<(), ValueError> {
        value::text_array(self.row.values[place], |element| each(element.unwrap_or_default()))
            .map(|_| ())
            .map_err(self.fail(place))
    }

    /// Keeps a document whose content did not go through in full.
    pub fn keep(&mut self, place: usize, reason: impl Into<String>, document: &[u8]) {
        self.notes.kept.push(Kept {
            table: self.table.into(),
            column: Some(Arc::clone(&self.source.columns[place].name)),
            key: self.row.key_text(self.source),
            version: self.version,
            reason: reason.into(),
            document: document.to_vec(),
        });
    }

    /// Keeps the document if `outcome` says that some of its content is not in the column.
    pub fn keep_lost(&mut self, place: usize, outcome: DocumentOutcome, document: Option<&[u8]>) {
        if let (Some(document), true) = (document, outcome.lost_content()) {
            self.keep(place, outcome.to_string(), document);
        }
    }

    fn keep_as_text(&mut self, place: usize, reason: &str, original: impl fmt::Display) {
        self.keep(place, reason, original.to_string().as_bytes());
    }
}

pub trait Bounds {
    const LEAST: Self;
    const GREATEST: Self;
}

impl Bounds for u8 {
    const LEAST: u8 = u8::MIN;
    const GREATEST: u8 = u8::MAX;
}

impl Bounds for u32 {
    const LEAST: u32 = u32::MIN;
    const GREATEST: u32 = u32::MAX;
}

/// Prints a timestamp that ClickHouse cannot hold, for the table of refused rows.
struct Original(Timestamp);

impl fmt::Display for Original {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Timestamp::Infinity => f.write_str("infinity"),
            Timestamp::NegativeInfinity => f.write_str("-infinity"),
            Timestamp::At(PgTime(micros)) => write!(f, "2000-01-01 00:00:00 + {micros} us"),
        }
    }
}
