//! What a mapping is: source rows in, columns of target tables out, and a note of every value that
//! could not be kept as it was.

use std::fmt;

use super::document::Outcome;
use super::source::{Places, Row, Source};
use crate::rows::{Block, ColumnSpec};
use crate::wal::time::Timestamp;
use crate::wal::{Datum, DecodeError, Lsn, PgTime, value};

/// A service's knowledge of its tables. Nothing outside `services` knows a column by name.
pub trait Mapping: fmt::Debug + Send + Sync {
    fn source(&self) -> &'static Source;

    fn targets(&self) -> &'static [Target];

    /// The places that must be known before a row can be written; a `first` row may need more.
    fn needs(&self, first: bool) -> Places;

    /// The places that a row must have a value in, or it is not written.
    fn owners(&self) -> &'static [usize];

    /// A place, and its values that say that a row will hardly change any more; `None` where no
    /// column tells.
    fn final_values(&self) -> Option<(usize, &'static [&'static str])> {
        None
    }

    /// Appends what the row comes to, to the block of each target.
    fn append(
        &self,
        row: &Row<'_>,
        stamp: Stamp,
        blocks: &mut [Block],
        notes: &mut Notes,
    ) -> Result<(), ValueError>;
}

/// Whether a row is one that is written at all.
pub fn is_owned(mapping: &dyn Mapping, row: &Row<'_>) -> bool {
    let is_there = |&place: &usize| value::text(row.values[place]).is_some_and(|t| !t.is_empty());
    mapping.owners().iter().all(is_there)
}

/// A table of ClickHouse that a service writes.
#[derive(Debug)]
pub struct Target {
    pub table: &'static str,
    pub columns: &'static [ColumnSpec],
    /// The sorting key, as indexes into `columns`.
    pub order_by: &'static [usize],
    /// What the partition is computed from, likewise.
    pub partition_by: &'static [usize],
    /// JSON columns, in the order in which a refused row is tried with one of them blanked.
    pub documents: &'static [usize],
    /// Columns that older tables do not have.
    pub optional: &'static [usize],
    pub id: usize,
    pub version: usize,
    pub is_deleted: usize,
}

impl Target {
    pub fn id_name(&self) -> &'static str {
        self.columns[self.id].name
    }
}

/// What the change says of the row as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub version: u64,
    pub deleted: bool,
    /// Write the row itself. An INSERT that a later change of the batch took over still leaves its
    /// payload.
    pub row: bool,
    /// Write what only a row's first version has.
    pub first: bool,
}

/// What happened to rows on their way, for metrics and the table of refused rows.
#[derive(Debug, Default)]
pub struct Notes {
    pub rows_without_owner: u64,
    pub kept: Vec<Kept>,
}

/// An original value that the target could not hold as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub table: &'static str,
    pub column: &'static str,
    pub key: Vec<u8>,
    pub version: u64,
    pub reason: String,
    pub document: Vec<u8>,
}

/// A value that is not what its type promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueError {
    pub column: &'static str,
    pub cause: DecodeError,
    /// Of the change that it came with; 0 of a row that was read from the table.
    pub lsn: Lsn,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column `{}`: {}", self.column, self.cause)
    }
}

impl std::error::Error for ValueError {}

/// What `DateTime64(3)` of a current ClickHouse holds: the years 0000 to 9999, as ticks.
const MILLIS_MIN: i64 = -62_167_219_200_000;
const MILLIS_MAX: i64 = 253_402_300_799_999;

/// Reads one row for one target table, noting what does not fit.
pub struct Reader<'r, 'a> {
    source: &'static Source,
    row: &'r Row<'a>,
    table: &'static str,
    version: u64,
    notes: &'r mut Notes,
}

impl<'r, 'a> Reader<'r, 'a> {
    pub fn new(
        source: &'static Source,
        row: &'r Row<'a>,
        table: &'static str,
        version: u64,
        notes: &'r mut Notes,
    ) -> Reader<'r, 'a> {
        Reader { source, row, table, version, notes }
    }

    fn fail(&self, place: usize) -> impl FnOnce(DecodeError) -> ValueError + use<> {
        let column = self.source.columns[place].name;
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

    /// A timestamp for a column that takes no null: `infinity` and years that ClickHouse does not
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
            table: self.table,
            column: self.source.columns[place].name,
            key: self.text(self.source.key.id).to_vec(),
            version: self.version,
            reason: reason.into(),
            document: document.to_vec(),
        });
    }

    /// Keeps the document if `outcome` says that some of its content is not in the column.
    pub fn keep_lost(&mut self, place: usize, outcome: Outcome, document: Option<&[u8]>) {
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

/// A row made of a sorting key alone: what a tombstone needs when nothing else is known. Kept
/// small: a batch may look up a hundred thousand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BareKey {
    /// Id, organization, project and environment, end to end.
    texts: Box<[u8]>,
    ends: [usize; 3],
    created_at: [u8; 8],
}

impl BareKey {
    pub fn new(
        id: &[u8],
        organization: &[u8],
        project: &[u8],
        environment: &[u8],
        created_at_millis: i64,
    ) -> BareKey {
        let since_2000 = PgTime::from_unix_millis(created_at_millis);
        let ends = [id.len(), id.len() + organization.len()];
        BareKey {
            texts: [id, organization, project, environment].concat().into(),
            ends: [ends[0], ends[1], ends[1] + project.len()],
            created_at: since_2000.0.to_be_bytes(),
        }
    }

    pub fn id(&self) -> &[u8] {
        &self.texts[..self.ends[0]]
    }

    pub fn row(&self, source: &Source) -> Row<'_> {
        let mut row = Row::of(source);
        let (key, [id, organization, project]) = (&source.key, self.ends);
        row.values[key.id] = Datum::Text(self.id());
        row.values[key.organization] = Datum::Text(&self.texts[id..organization]);
        row.values[key.project] = Datum::Text(&self.texts[organization..project]);
        row.values[key.environment] = Datum::Text(&self.texts[project..]);
        row.values[key.created_at] = Datum::Binary(&self.created_at);
        row
    }
}
