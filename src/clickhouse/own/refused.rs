//! `walhouse_refused_rows`: rows that ClickHouse refused, kept in full (a dead-letter table).
//!
//! A replay refuses the same change again; the table is a ReplacingMergeTree by the change, so that
//! it is kept once. Every column is a String but the version: nothing in a row can make this table
//! refuse it. It is the only place outside the target tables that holds row contents.

use std::collections::BTreeMap;
use std::time::Instant;

use super::journal::Column::{Of, Time};
use super::journal::{Field, Table};
use crate::clickhouse::client::{Client, quote_bytes};
use crate::error::Result;

/// A row, or one column of it, that is not in its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRow {
    pub service: String,
    /// The target table.
    pub table: String,
    /// The row's primary key in Postgres.
    pub key: Vec<u8>,
    /// Its `_version`.
    pub version: u64,
    pub what: RefusedPart,
    /// The [`Refusal`](crate::clickhouse::Refusal) as text, or why we did not even send it.
    pub error: String,
    /// The row as one JSON object, or the column's value as it came. Any bytes.
    pub document: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefusedPart {
    /// The target table does not have this version of the row.
    Row,
    /// The row is in its table, without the value of this column.
    Column(String),
    /// The row is in its table as it is, and not in what a materialized view makes of it.
    View,
}

/// Used in place of a column: no column has this name.
const VIEW: &str = "(view)";
/// The size of one INSERT: a proxy may allow no more, and refused rows may be large.
const WRITE_BYTES_MAX: usize = 256 << 10;

pub const TABLE: Table<RefusedRow> = Table {
    name: "walhouse_refused_rows",
    what: "a refused row",
    columns: &[
        Of("service", "LowCardinality(String)", |row| &mut row.service),
        Of("table", "LowCardinality(String)", |row| &mut row.table),
        Of("key", "String", |row| &mut row.key),
        Of("version", "UInt64", |row| &mut row.version),
        Of(
            "column",
            "LowCardinality(String) \
             COMMENT 'empty: the whole row; (view): refused by a view alone'",
            |row| &mut row.what,
        ),
        Of("error", "String", |row| &mut row.error),
        Of("document", "String CODEC(ZSTD(1))", |row| &mut row.document),
        Time("time"),
    ],
    key: &["service", "table", "key", "version", "column"],
    version: "time",
};

impl Field for RefusedPart {
    fn take(&mut self) -> Vec<u8> {
        match self {
            RefusedPart::Row => Vec::new(),
            RefusedPart::Column(name) => name.take(),
            RefusedPart::View => VIEW.as_bytes().to_vec(),
        }
    }
}

/// The number of rows kept for each table.
pub fn counts(
    client: &mut Client,
    service: &str,
    deadline: Instant,
) -> Result<BTreeMap<String, u64>> {
    let sql = format!(
        "SELECT table, count() FROM {} FINAL WHERE service = {} GROUP BY table",
        client.qualified(TABLE.name),
        quote_bytes(service.as_bytes())
    );
    let rows = client.query(&sql, &[TABLE.name], deadline)?;
    let read = |row: Vec<Option<String>>| {
        let [table, count] = <[Option<String>; 2]>::try_from(row).ok()?;
        Some((table?, count?.parse().ok()?))
    };
    let counts = rows.into_iter().map(read).collect::<Option<_>>();
    counts.ok_or_else(|| TABLE.malformed(client, "how many rows are kept"))
}

/// How many of the first rows fit into one INSERT: at least one.
pub fn first_part(rows: &[RefusedRow]) -> usize {
    let bytes = rows.iter().scan(0, |sum, row| {
        *sum += row.document.len() + row.key.len() + row.error.len();
        Some(*sum)
    });
    bytes.take_while(|bytes| *bytes <= WRITE_BYTES_MAX).count().max(1).min(rows.len())
}

/// Writes the rows and waits until ClickHouse has them.
pub fn write(client: &mut Client, rows: &[RefusedRow], deadline: Instant) -> Result<()> {
    TABLE.insert(client, rows.to_vec(), deadline)
}
