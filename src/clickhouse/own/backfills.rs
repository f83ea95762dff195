//! `walhouse_backfills`: what commands write outside of the stream, and their progress.
//!
//! One row per service, slot and command counts: the one with the highest revision. Nothing is
//! written before `upper` covers the commits that it may come from, as with `walhouse_state` for
//! the stream; a start uses both together.

use std::time::Instant;

use super::journal::Column::{Of, Time};
use super::journal::Table;
use super::state::StateRow;
use crate::clickhouse::client::{Client, quote_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::wal::Lsn;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackfillRow {
    pub service: String,
    pub slot: String,
    /// `backfill` or `verify`.
    pub command: String,
    /// Nothing is left to be done.
    pub is_done: bool,
    /// The system identifier of the Postgres cluster that is read.
    pub system_identifier: String,
    pub timeline: u32,
    pub version_shift: u64,
    /// No commit whose end lies above this can have landed.
    pub upper: Lsn,
    /// The lowest and the highest version of the rows that it wrote.
    pub version_min: u64,
    pub version_max: u64,
    /// The request and its progress, in a text form of its own.
    pub request: String,
    pub position: String,
    pub rows_read: u64,
    pub rows_written: u64,
    /// 0 before the first write; [`write()`] moves it.
    pub revision: u64,
}

pub const TABLE: Table<BackfillRow> = Table {
    name: "walhouse_backfills",
    what: "the last command",
    columns: &[
        Of("service", "String", |row| &mut row.service),
        Of("slot", "String", |row| &mut row.slot),
        Of("command", "LowCardinality(String)", |row| &mut row.command),
        Of("is_done", "UInt8", |row| &mut row.is_done),
        Of("system_identifier", "String", |row| &mut row.system_identifier),
        Of("timeline", "UInt32", |row| &mut row.timeline),
        Of("version_shift", "UInt64", |row| &mut row.version_shift),
        Of("upper_lsn", "UInt64", |row| &mut row.upper.0),
        Of("version_min", "UInt64", |row| &mut row.version_min),
        Of("version_max", "UInt64", |row| &mut row.version_max),
        Of("request", "String", |row| &mut row.request),
        Of("position", "String", |row| &mut row.position),
        Of("rows_read", "UInt64", |row| &mut row.rows_read),
        Of("rows_written", "UInt64", |row| &mut row.rows_written),
        Time("written_at"),
        Of("revision", "UInt64", |row| &mut row.revision),
    ],
    key: &["service", "slot", "command"],
    version: "revision",
};

/// The last row written; `None` if there is none.
pub fn read(
    client: &mut Client,
    (service, slot): (&str, &str),
    command: &str,
    deadline: Instant,
) -> Result<Option<BackfillRow>> {
    TABLE.latest(client, &[service, slot, command], deadline)
}

/// Up to where commits of this state's history may have been written outside of the stream.
pub fn upper(client: &mut Client, state: &StateRow, deadline: Instant) -> Result<Lsn> {
    let sql = format!(
        "SELECT max(upper_lsn) FROM {} WHERE service = {} AND slot = {} AND \
         system_identifier = {} AND timeline = {} AND version_shift = {}",
        client.qualified(TABLE.name),
        quote_bytes(state.service.as_bytes()),
        quote_bytes(state.slot.as_bytes()),
        quote_bytes(state.system_identifier.as_bytes()),
        state.timeline,
        state.version_shift,
    );
    let rows = client.query(&sql, &[TABLE.name], deadline)?;
    let upper = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok());
    upper.map(Lsn).ok_or_else(|| TABLE.malformed(client, "what landed beside the stream"))
}

/// Writes the row and waits until ClickHouse has it. It does not overwrite a row that another
/// process has written since: two runs of one command would each forget what the other has written.
pub fn write(client: &mut Client, row: &mut BackfillRow, deadline: Instant) -> Result<()> {
    let of = (row.service.as_str(), row.slot.as_str());
    let latest = read(client, of, &row.command, deadline)?.map_or(0, |row| row.revision);
    if latest != row.revision {
        let doing = format!("record the {} of service `{}`", row.command, row.service);
        return Err(Error::new(ErrorKind::SlotBusy, doing)
            .because("another backfill is running for it")
            .hint("Wait for that one to end, or stop it."));
    }
    let mut next = row.clone();
    next.revision += 1;
    TABLE.insert(client, vec![next.clone()], deadline)?;
    *row = next;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Vec<Option<String>> {
        let max = u64::MAX.to_string();
        ["runs", "s", "backfill", "0", "7", "2", "3", &max, "1", &max, "all", "id", "4", "5", "6"]
            .map(|text| Some(text.to_owned()))
            .to_vec()
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let row = TABLE.parse(values()).expect("each column fits");
        assert_eq!((row.timeline, row.upper, row.version_min), (2, Lsn(u64::MAX), 1));
        assert_eq!((row.request.as_str(), row.position.as_str()), ("all", "id"));
        assert_eq!((row.is_done, row.rows_read, row.rows_written, row.revision), (false, 4, 5, 6));
    }

    #[test]
    fn a_row_of_another_shape_is_refused() {
        let mut null = values();
        null[10] = None;
        assert_eq!(TABLE.parse(null), None);
        assert_eq!(TABLE.parse(values()[..14].to_vec()), None);
        assert_eq!(TABLE.parse([values(), values()].concat()), None);
    }
}
