//! The trait of a mapping: source rows in, columns of target tables out, and a note of every value
//! that could not be kept as it was.

use std::fmt;
use std::sync::Arc;

use super::column_set::ColumnSet;
use super::notes::Notes;
use super::row::Row;
use super::source::Source;
use crate::rows::{Block, Target};
use crate::wal::{DecodeError, Lsn, value};

/// A service's knowledge of its tables. Nothing outside `services` knows a column by name.
pub trait Mapping: fmt::Debug + Send + Sync {
    fn source(&self) -> &Source;

    fn targets(&self) -> &[Target];

    /// The places that must be known before a row can be written; a `first` row may need more.
    fn needs(&self, first: bool) -> ColumnSet;

    /// The places that a row must have a value in, or it is not written.
    fn owners(&self) -> &'static [usize];

    /// A column index, and the values which show that a row will hardly change any more; `None` if
    /// no column shows it.
    fn final_values(&self) -> Option<(usize, &'static [&'static str])> {
        None
    }

    /// Appends the mapped row to the block of each target.
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
    mapping.owners().iter().all(|place| has_value(row, *place))
}

/// The places that say where a row is in ClickHouse, and whether it is there at all.
pub fn key_places(mapping: &dyn Mapping) -> Vec<usize> {
    let mut places: Vec<usize> = mapping.source().placed().collect();
    let owners = mapping.owners().iter().filter(|owner| !places.contains(owner));
    let owners: Vec<usize> = owners.copied().collect();
    places.extend(owners);
    places
}

/// Whether a row is left out since nobody owns it; counted if it would have been written.
pub(super) fn is_left_out(
    mapping: &dyn Mapping,
    row: &Row<'_>,
    stamp: Stamp,
    notes: &mut Notes,
) -> bool {
    // A tombstone made of a key alone knows nothing else.
    let is_known = |place: &usize| !stamp.deleted || mapping.source().sorting.contains(place);
    let is_owned =
        mapping.owners().iter().filter(|place| is_known(place)).all(|place| has_value(row, *place));
    // A row that was never written needs no tombstone either.
    notes.rows_without_owner += u64::from(!is_owned && stamp.row && !stamp.deleted);
    !is_owned
}

fn has_value(row: &Row<'_>, place: usize) -> bool {
    value::text(row.values[place]).is_some_and(|text| !text.is_empty())
}

/// What the change says about the row as a whole.
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

/// A value that is not what its type promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueError {
    pub column: Arc<str>,
    pub cause: DecodeError,
    /// The LSN of its change; 0 for a row that was read from the table.
    pub lsn: Lsn,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column `{}`: {}", self.column, self.cause)
    }
}

impl std::error::Error for ValueError {}
