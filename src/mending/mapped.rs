//! Maps rows read from the source table to rows of the target tables.

use std::sync::Arc;

use crate::delivery::member::Member;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::source_table::SourceTable;
use crate::rows::Block;
use crate::services::mapping::{Stamp, ValueError};
use crate::services::notes::Notes;
use crate::services::row::Row;
use crate::services::source::Source;
use crate::services::utf8;
use crate::wal::Datum;

/// The places of the source's columns that the table has, with their names.
pub type Columns = Vec<(usize, Arc<str>)>;

pub fn columns_of(table: &SourceTable, source: &Source) -> Columns {
    let columns = source.columns.iter().enumerate();
    columns
        .filter(|(_, column)| table.column(&column.name).is_some())
        .map(|(place, column)| (place, Arc::clone(&column.name)))
        .collect()
}

/// Maps rows of a service.
#[derive(Clone, Copy)]
pub struct Mapped<'a> {
    pub service: &'a str,
    pub member: &'a Member,
    /// As they were asked for.
    pub columns: &'a [(usize, Arc<str>)],
}

impl Mapped<'_> {
    /// The columns to query from Postgres.
    pub fn names(&self) -> Vec<&str> {
        self.columns.iter().map(|(_, name)| &**name).collect()
    }

    /// By target table, with all that only a row's first version has.
    pub fn blocks<V: AsRef<[u8]>>(
        &self,
        rows: impl Iterator<Item = Result<Vec<Option<V>>>>,
        version: u64,
    ) -> Result<(Vec<Block>, Notes)> {
        let (mut blocks, mut notes) = (self.member.blocks(), Notes::default());
        let stamp = Stamp { version, deleted: false, row: true, first: true };
        for values in rows {
            let values = values?;
            let mut row = Row::of(self.member.source());
            for ((place, _), value) in self.columns.iter().zip(&values) {
                let value = value.as_ref().map(AsRef::as_ref);
                row.values[*place] = value.map_or(Datum::Null, Datum::Text);
            }
            utf8::append(&*self.member.mapping, &row, stamp, &mut blocks, &mut notes)
                .map_err(|error| self.error(error))?;
        }
        Ok((blocks, notes))
    }

    /// Of a row that cannot be mapped.
    pub fn error(&self, cause: ValueError) -> Error {
        let doing = format!("map a row of service `{}`", self.service);
        Error::new(ErrorKind::Protocol, doing).because(cause)
    }
}
