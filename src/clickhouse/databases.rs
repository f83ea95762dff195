//! `walhouse_databases`: the database of Postgres that the rows of each service and slot come from.
//!
//! A cluster has several, with one system identifier and one WAL, so a state does not tell them
//! apart. One row per service and slot counts: the one with the highest revision. It is written
//! before the state that it goes with. A state of a version that did not record it has none, and
//! says nothing of its database.

use std::time::Instant;

use super::client::Client;
use super::cluster::{create_table, replacing};
use super::own_tables;
use super::state;
use crate::error::Result;

pub const DATABASES_TABLE: &str = "walhouse_databases";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseRow {
    pub service: String,
    pub slot: String,
    /// What tells it from others: it may be renamed.
    pub oid: u32,
    /// For people.
    pub name: String,
    /// 0 before the first write; [`write()`] moves it.
    pub revision: u64,
}

pub(super) fn ddl(client: &Client) -> String {
    format!(
        "{} (
    service String,
    slot String,
    database_oid UInt32,
    database_name String,
    written_at DateTime64(3) DEFAULT now64(3),
    revision UInt64
) ENGINE = {}
ORDER BY (service, slot)",
        create_table(client, DATABASES_TABLE),
        replacing(client, "revision")
    )
}

/// What was written last for this service and slot; `None` if nothing was.
pub fn read(
    client: &mut Client,
    service: &str,
    slot: &str,
    deadline: Instant,
) -> Result<Option<DatabaseRow>> {
    const COLUMNS: [&str; 3] = ["database_oid", "database_name", "revision"];
    let key = [("service", service), ("slot", slot)];
    let row = own_tables::latest(client, DATABASES_TABLE, &COLUMNS, &key, deadline)?;
    let Some(row) = row else { return Ok(None) };
    parse(service, slot, &row).map(Some).ok_or_else(|| {
        own_tables::malformed(client, DATABASES_TABLE, &format!("the database of slot `{slot}`"))
    })
}

/// Other slots of this service, each with the oid of the database that its rows come from.
pub fn others(
    client: &mut Client,
    service: &str,
    slot: &str,
    deadline: Instant,
) -> Result<Vec<(String, String)>> {
    let columns = "slot, toString(argMax(database_oid, revision))";
    own_tables::of_other_slots(client, DATABASES_TABLE, columns, (service, slot), deadline)
}

fn parse(service: &str, slot: &str, row: &[Option<String>]) -> Option<DatabaseRow> {
    let [oid, name, revision] = row else { return None };
    Some(DatabaseRow {
        service: service.to_owned(),
        slot: slot.to_owned(),
        oid: oid.as_ref()?.parse().ok()?,
        name: name.clone()?,
        revision: revision.as_ref()?.parse().ok()?,
    })
}

/// Writes the row and waits until ClickHouse has it; under a revision above all before.
pub fn write(client: &mut Client, row: &mut DatabaseRow, deadline: Instant) -> Result<()> {
    const COLUMNS: [&str; 5] = ["service", "slot", "database_oid", "database_name", "revision"];
    row.revision = state::leap(row.revision);
    let values = [
        row.service.clone(),
        row.slot.clone(),
        row.oid.to_string(),
        row.name.clone(),
        row.revision.to_string(),
    ];
    let values = values.map(String::into_bytes).to_vec();
    own_tables::insert(client, DATABASES_TABLE, &COLUMNS, &[values], deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_another_shape_is_refused() {
        let row = |values: [&str; 3]| values.map(|value| Some(value.to_owned()));
        let read = parse("runs", "s", &row(["4294967295", "app", "7"])).expect("each column fits");
        assert_eq!((read.oid, read.name.as_str(), read.revision), (u32::MAX, "app", 7));
        assert_eq!(parse("runs", "s", &row(["-1", "app", "7"])), None);
        assert_eq!(parse("runs", "s", &[None, None, None]), None);
        assert_eq!(parse("runs", "s", &[]), None);
    }
}
