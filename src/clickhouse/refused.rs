//! `walhouse_refused_rows`: rows that ClickHouse would not take, kept in full.
//!
//! A replay refuses the same change again; the table is a ReplacingMergeTree by the change, so that
//! it is kept once. Every column is a String but the version: nothing in a row can make this table
//! refuse it. It is the only place outside the target tables that holds row contents.

use std::collections::BTreeMap;
use std::time::Instant;

use super::client::{Client, quote_bytes};
use super::cluster::{create_table, replacing};
use super::own_tables;
use crate::error::Result;

pub const REFUSED_TABLE: &str = "walhouse_refused_rows";

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
    /// The [`Refusal`](super::Refusal) as text, or why we did not even send it.
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

/// What stands for a column then: no column is called so.
const VIEW: &str = "(view)";
/// Of one INSERT: a proxy may take no more, and what is kept may be large.
const WRITE_BYTES_MAX: usize = 256 << 10;

pub(super) fn ddl(client: &Client) -> String {
    format!(
        "{} (
    service LowCardinality(String),
    table LowCardinality(String),
    key String,
    version UInt64,
    column LowCardinality(String) COMMENT 'empty: the whole row; (view): refused by a view alone',
    error String,
    document String CODEC(ZSTD(1)),
    time DateTime64(3) DEFAULT now64(3)
) ENGINE = {}
ORDER BY (service, table, key, version, column)",
        create_table(client, REFUSED_TABLE),
        replacing(client, "time")
    )
}

/// How many are kept of each table.
pub fn counts(
    client: &mut Client,
    service: &str,
    deadline: Instant,
) -> Result<BTreeMap<String, u64>> {
    let sql = format!(
        "SELECT table, count() FROM {} FINAL WHERE service = {} GROUP BY table",
        client.qualified(REFUSED_TABLE),
        quote_bytes(service.as_bytes())
    );
    let rows = client.query(&sql, deadline)?;
    let read = |row: Vec<Option<String>>| {
        let [table, count] = <[Option<String>; 2]>::try_from(row).ok()?;
        Some((table?, count?.parse().ok()?))
    };
    let counts = rows.into_iter().map(read).collect::<Option<_>>();
    counts.ok_or_else(|| own_tables::malformed(client, REFUSED_TABLE, "how many rows are kept"))
}

/// So many of the first rows as go into one INSERT: one at least.
pub fn first_part(rows: &[RefusedRow]) -> usize {
    let bytes = rows.iter().scan(0, |sum, row| {
        *sum += row.document.len() + row.key.len() + row.error.len();
        Some(*sum)
    });
    bytes.take_while(|bytes| *bytes <= WRITE_BYTES_MAX).count().max(1).min(rows.len())
}

/// Writes the rows and waits until ClickHouse has them.
pub fn write(client: &mut Client, rows: &[RefusedRow], deadline: Instant) -> Result<()> {
    const COLUMNS: [&str; 7] =
        ["service", "table", "key", "version", "column", "error", "document"];
    if rows.is_empty() {
        return Ok(());
    }
    let values: Vec<Vec<Vec<u8>>> = rows
        .iter()
        .map(|row| {
            let column = match &row.what {
                RefusedPart::Row => "",
                RefusedPart::Column(name) => name,
                RefusedPart::View => VIEW,
            };
            vec![
                row.service.clone().into_bytes(),
                row.table.clone().into_bytes(),
                row.key.clone(),
                row.version.to_string().into_bytes(),
                column.as_bytes().to_vec(),
                row.error.clone().into_bytes(),
                row.document.clone(),
            ]
        })
        .collect();
    own_tables::insert(client, REFUSED_TABLE, &COLUMNS, &values, deadline)
}
