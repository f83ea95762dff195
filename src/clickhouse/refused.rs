//! `walhouse_refused_rows`: rows that ClickHouse would not take, kept in full.
//!
//! A replay refuses the same change again; the table is a ReplacingMergeTree by the change, so that
//! it is kept once. Every column is a String but the version: nothing in a row can make this table
//! refuse it. It is the only place outside the target tables that holds row contents.

use std::time::Instant;

use super::client::{Client, InsertError};
use super::refusal::Refusal;
use crate::error::{Error, ErrorKind, Result};

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
    /// The [`Refusal`] as text, or why we did not even send it.
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
}

pub(super) fn ddl(client: &Client) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (
    service LowCardinality(String),
    table LowCardinality(String),
    key String,
    version UInt64,
    column LowCardinality(String) COMMENT 'empty: the whole row was refused',
    error String,
    document String CODEC(ZSTD(1)),
    time DateTime64(3) DEFAULT now64(3)
) ENGINE = ReplacingMergeTree(time)
ORDER BY (service, table, key, version, column)",
        client.qualified(REFUSED_TABLE)
    )
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
    let block = string_block(&COLUMNS, &values);
    client
        .insert(REFUSED_TABLE, &COLUMNS, &[("async_insert", "0")], &block, deadline)
        .map_err(InsertError::into_error)
}

impl InsertError {
    /// For tables of our own, where no row can be at fault.
    pub fn into_error(self) -> Error {
        match self {
            InsertError::Retry(error) => error,
            InsertError::Data(refusal) => refused_own(refusal),
        }
    }
}

fn refused_own(refusal: Refusal) -> Error {
    Error::new(ErrorKind::DataRefused, "insert into a table of walhouse's own")
        .because(refusal)
        .hint("Undo what was altered in this table; it is used as it was made.")
}

/// A Native block in which every column is a String; ClickHouse converts to the columns' types.
///
/// Our two small tables need no more, and so this room needs no encoder.
pub(super) fn string_block(columns: &[&str], rows: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let mut block = Vec::new();
    put_varuint(&mut block, columns.len());
    put_varuint(&mut block, rows.len());
    for (index, name) in columns.iter().enumerate() {
        put_string(&mut block, name.as_bytes());
        put_string(&mut block, b"String");
        for row in rows {
            assert!(row.len() == columns.len());
            put_string(&mut block, &row[index]);
        }
    }
    block
}

fn put_string(block: &mut Vec<u8>, bytes: &[u8]) {
    put_varuint(block, bytes.len());
    block.extend_from_slice(bytes);
}

fn put_varuint(block: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        block.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    block.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_laid_out_by_column() {
        let rows = [vec![b"a".to_vec(), vec![b'x'; 200]], vec![vec![], vec![0xff]]];
        let mut expected = b"\x02\x02\x01k\x06String\x01a\x00\x03doc\x06String\xc8\x01".to_vec();
        expected.extend([b'x'; 200]);
        expected.extend(b"\x01\xff");
        assert_eq!(string_block(&["k", "doc"], &rows), expected);
    }
}
