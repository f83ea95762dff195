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
    let is_there = |&place: &usize| value::text(row.values[place]).is_some_and(|t| !t.is_empty());
    mapping.owners().iter().all(is_there)
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
