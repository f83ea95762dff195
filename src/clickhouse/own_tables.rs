//! The tables of walhouse's own beside the target tables: made when they are missing, if that is
//! allowed, and written to and read from in one way.

use std::time::Instant;

use super::client::{Client, InsertError, quote_bytes};
use super::refusal::{Refusal, Verdict};
use super::tables::{ensure_database, missing};
use super::{adoptions, backfills, cluster, databases, refused, repairs, sources, state};
use crate::error::{Error, ErrorKind, Result};

type Ddl = fn(&Client) -> String;

const TABLES: [(&str, Ddl); 7] = [
    (state::STATE_TABLE, state::ddl),
    (databases::DATABASES_TABLE, databases::ddl),
    (sources::SOURCES_TABLE, sources::ddl),
    (repairs::REPAIRS_TABLE, repairs::ddl),
    (backfills::BACKFILLS_TABLE, backfills::ddl),
    (adoptions::ADOPTIONS_TABLE, adoptions::ddl),
    (refused::REFUSED_TABLE, refused::ddl),
];

/// One question, however many there are: it is asked at every reconnect.
pub fn ensure(client: &mut Client, create: bool, deadline: Instant) -> Result<()> {
    let missing = missing(client, &TABLES.map(|(name, _)| name), deadline)?;
    for (name, ddl) in TABLES.iter().filter(|(name, _)| missing.contains(name)) {
        let ddl = ddl(client);
        if !create {
            return Err(absent(client, name, &ddl));
        }
        ensure_database(client, deadline)?;
        cluster::create(client, &ddl, deadline)?;
    }
    Ok(())
}

pub fn names() -> [&'static str; 7] {
    TABLES.map(|(name, _)| name)
}

/// Those that are missing, for those who only read: an older version did not make all of them.
pub fn absent_names(client: &mut Client, deadline: Instant) -> Result<Vec<&'static str>> {
    missing(client, &names(), deadline)
}

/// What [`ensure`] would say of each of these, if none were to be created.
pub fn absences(client: &Client, missing: &[&str]) -> Vec<Error> {
    let absences = TABLES.iter().filter(|(name, _)| missing.contains(name));
    absences.map(|(name, ddl)| absent(client, name, &ddl(client))).collect()
}

fn absent(client: &Client, name: &str, ddl: &str) -> Error {
    Error::new(ErrorKind::Setup, format!("find table {}", client.qualified(name)))
        .because("it does not exist, and tables are not to be created")
        .hint(format!("Run: {ddl}"))
}

/// Writes rows of texts and waits until ClickHouse has them.
pub(super) fn insert(
    client: &mut Client,
    table: &str,
    columns: &[&str],
    rows: &[Vec<Vec<u8>>],
    deadline: Instant,
) -> Result<()> {
    let block = string_block(columns, rows);
    // No row can be at fault here.
    client.insert(table, columns, &[("async_insert", "0")], &block, deadline).map_err(|e| match e {
        InsertError::Data(refusal) if refusal.verdict() == Verdict::Data => refused_own(*refusal),
        other => other.into_error(table),
    })
}

/// What was written last of this key, columns with their values, into a table with revisions.
pub(super) fn latest(
    client: &mut Client,
    table: &str,
    columns: &[&str],
    key: &[(&str, &str)],
    deadline: Instant,
) -> Result<Option<Vec<Option<String>>>> {
    client.expect_others(table);
    let is =
        |(column, value): &(&str, &str)| format!("{column} = {}", quote_bytes(value.as_bytes()));
    let sql = format!(
        "SELECT {} FROM {} WHERE {} ORDER BY revision DESC LIMIT 1",
        columns.join(", "),
        client.qualified(table),
        key.iter().map(is).collect::<Vec<_>>().join(" AND ")
    );
    Ok(client.query(&sql, deadline)?.into_iter().next())
}

/// A slot and something else, of each other slot of the service.
pub(super) fn of_other_slots(
    client: &mut Client,
    table: &str,
    columns: &str,
    (service, slot): (&str, &str),
    deadline: Instant,
) -> Result<Vec<(String, String)>> {
    client.expect_others(table);
    let sql = format!(
        "SELECT {columns} FROM {} WHERE service = {} AND slot != {} GROUP BY slot",
        client.qualified(table),
        quote_bytes(service.as_bytes()),
        quote_bytes(slot.as_bytes())
    );
    let rows = client.query(&sql, deadline)?.into_iter();
    let pair = |row: Vec<Option<String>>| <[Option<String>; 2]>::try_from(row).ok();
    Ok(rows
        .filter_map(|row| pair(row).map(|[a, b]| (a.unwrap_or_default(), b.unwrap_or_default())))
        .collect())
}

/// A row that was read does not hold what walhouse writes; `what` it was.
pub(super) fn malformed(client: &Client, table: &str, what: &str) -> Error {
    let table = client.qualified(table);
    Error::new(ErrorKind::Protocol, format!("read {what} from {table}"))
        .because("its columns do not hold what walhouse writes")
}

fn refused_own(refusal: Refusal) -> Error {
    Error::new(ErrorKind::DataRefused, "insert into a table of walhouse's own")
        .because(refusal)
        .hint("Undo what was altered in this table; it is used as it was made.")
}

/// A Native block in which every column is a String; ClickHouse converts to the columns' types.
///
/// These small tables need no more, and so this room needs no encoder.
fn string_block(columns: &[&str], rows: &[Vec<Vec<u8>>]) -> Vec<u8> {
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
