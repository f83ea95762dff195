//! `walhouse_databases`: the database of Postgres that the rows of each service and slot come from.
//!
//! A cluster has several, with one system identifier and one WAL, so a state does not distinguish
//! them. One row per service and slot counts: the one with the highest revision. It is written
//! before the state that it goes with. The state of a version that did not record it has none, and
//! does not show its database.

use std::time::Instant;

use super::journal::Column::{Of, Time};
use super::journal::Table;
use super::state;
use crate::clickhouse::Client;
use crate::error::Result;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseRow {
    pub service: String,
    pub slot: String,
    /// What distinguishes it from others: it may be renamed.
    pub oid: u32,
    /// For people.
    pub name: String,
    /// 0 before the first write; [`write()`] moves it.
    pub revision: u64,
}

pub const TABLE: Table<DatabaseRow> = Table {
    name: "walhouse_databases",
    what: "the database",
    columns: &[
        Of("service", "String", |row| &mut row.service),
        Of("slot", "String", |row| &mut row.slot),
        Of("database_oid", "UInt32", |row| &mut row.oid),
        Of("database_name", "String", |row| &mut row.name),
        Time("written_at"),
        Of("revision", "UInt64", |row| &mut row.revision),
    ],
    key: &["service", "slot"],
    version: "revision",
};

/// Other slots of this service, each with the oid of the database that its rows come from.
pub fn others(
    client: &mut Client,
    service: &str,
    slot: &str,
    deadline: Instant,
) -> Result<Vec<(String, String)>> {
    TABLE.of_other_slots(client, "database_oid", (service, slot), deadline)
}

/// Writes the row and waits until ClickHouse has it; under a revision above all before.
pub fn write(client: &mut Client, row: &mut DatabaseRow, deadline: Instant) -> Result<()> {
    row.revision = state::next_revision_base(row.revision);
    TABLE.insert(client, vec![row.clone()], deadline)
}
