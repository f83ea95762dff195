//! `walhouse_sources`: the last snapshot of the source in Postgres's catalog, so that the next one
//! shows whether rows were hidden in between.
//!
//! One row per service and slot counts: the one with the highest revision. If rows may have been
//! hidden, the repair is recorded before the snapshot that showed it. [`crate::machines::catalog`]
//! decides what a difference means.

use std::time::Instant;

use super::journal::Column::{Of, Time};
use super::journal::Table;
use super::state;
use crate::clickhouse::Client;
use crate::error::Result;
use crate::machines::catalog::Catalog;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRow {
    pub service: String,
    pub slot: String,
    /// The system identifier of the Postgres cluster.
    pub system_identifier: String,
    pub catalog: Catalog,
    /// 0 before the first write; [`write()`] moves it.
    pub revision: u64,
}

/// [`SourceRow`] with the catalog as JSON.
#[derive(Debug, Default)]
pub struct Record {
    service: String,
    slot: String,
    system_identifier: String,
    catalog: String,
    revision: u64,
}

pub const TABLE: Table<Record> = Table {
    name: "walhouse_sources",
    what: "the source",
    columns: &[
        Of("service", "String", |row| &mut row.service),
        Of("slot", "String", |row| &mut row.slot),
        Of("system_identifier", "String", |row| &mut row.system_identifier),
        Of(
            "catalog",
            "String COMMENT 'publication, table, columns and partitions, as JSON'",
            |row| &mut row.catalog,
        ),
        Time("written_at"),
        Of("revision", "UInt64", |row| &mut row.revision),
    ],
    key: &["service", "slot"],
    version: "revision",
};

/// What was written last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub system_identifier: String,
    /// `None`: it has a form that this version does not know. That counts as no snapshot at all,
    /// and is not a reason to refuse the service.
    pub catalog: Option<Catalog>,
    pub revision: u64,
}

/// For this service and slot; `None` if nothing was.
pub fn read(
    client: &mut Client,
    service: &str,
    slot: &str,
    deadline: Instant,
) -> Result<Option<Recorded>> {
    let row = TABLE.latest(client, &[service, slot], deadline)?;
    Ok(row.map(recorded))
}

fn recorded(row: Record) -> Recorded {
    let catalog = serde_json::from_str(&row.catalog).ok();
    Recorded { system_identifier: row.system_identifier, catalog, revision: row.revision }
}

/// Writes the row and waits until ClickHouse has it. Another process may write as well: both rows
/// are snapshots of the same source.
pub fn write(client: &mut Client, row: &mut SourceRow, deadline: Instant) -> Result<()> {
    row.revision = state::next_revision_base(row.revision);
    TABLE.insert(client, vec![record(row)], deadline)
}

fn record(row: &SourceRow) -> Record {
    Record {
        service: row.service.clone(),
        slot: row.slot.clone(),
        system_identifier: row.system_identifier.clone(),
        catalog: serde_json::to_string(&row.catalog).expect("a catalog has keys of text alone"),
        revision: row.revision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let catalog = Catalog { database: 5, publications: Vec::new(), tables: Vec::new() };
        let row = SourceRow {
            service: "runs".to_owned(),
            slot: "s".to_owned(),
            system_identifier: "7".to_owned(),
            catalog: catalog.clone(),
            revision: 9,
        };
        let read = recorded(record(&row));
        assert_eq!((read.catalog, read.revision), (Some(catalog), 9));
        for other in ["", "{}", "{\"database\":-1}"] {
            let read = recorded(Record { catalog: other.to_owned(), ..record(&row) });
            assert_eq!((read.catalog, read.revision), (None, 9), "{other}");
        }
    }
}
