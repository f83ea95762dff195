//! `walhouse_backfills`: what commands write beside the stream, and how far they have come.
//!
//! One row per service, slot and command counts: the one with the highest revision. Nothing lands
//! before `upper` admits to the commits that it may be of, as it is in `walhouse_state` for the
//! stream; a start takes both together.

use std::time::Instant;

use super::client::{Client, quote_bytes};
use super::cluster::{create_table, replacing};
use super::own_tables;
use super::state::StateRow;
use crate::error::{Error, ErrorKind, Result};
use crate::wal::Lsn;

pub const BACKFILLS_TABLE: &str = "walhouse_backfills";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackfillRow {
    pub service: String,
    pub slot: String,
    /// `backfill` or `verify`.
    pub command: String,
    /// Nothing is left to be done.
    pub is_done: bool,
    /// Of the Postgres cluster that is read.
    pub system_identifier: String,
    pub timeline: u32,
    pub version_shift: u64,
    /// No commit whose end lies above this can have landed.
    pub upper: Lsn,
    /// The lowest and the highest version of the rows that it wrote.
    pub version_min: u64,
    pub version_max: u64,
    /// What was asked for, and how far it has come, in words of its own.
    pub request: String,
    pub position: String,
    pub rows_read: u64,
    pub rows_written: u64,
    /// 0 before the first write; [`write()`] moves it.
    pub revision: u64,
}

/// All but `written_at`, which ClickHouse fills.
const COLUMNS: [&str; 15] = [
    "service",
    "slot",
    "command",
    "is_done",
    "system_identifier",
    "timeline",
    "version_shift",
    "upper_lsn",
    "version_min",
    "version_max",
    "request",
    "position",
    "rows_read",
    "rows_written",
    "revision",
];

pub(super) fn ddl(client: &Client) -> String {
    format!(
        "{} (
    service String,
    slot String,
    command LowCardinality(String),
    is_done UInt8,
    system_identifier String,
    timeline UInt32,
    version_shift UInt64,
    upper_lsn UInt64,
    version_min UInt64,
    version_max UInt64,
    request String,
    position String,
    rows_read UInt64,
    rows_written UInt64,
    written_at DateTime64(3) DEFAULT now64(3),
    revision UInt64
) ENGINE = {}
ORDER BY (service, slot, command)",
        create_table(client, BACKFILLS_TABLE),
        replacing(client, "revision")
    )
}

/// What was written last; `None` if nothing was.
pub fn read(
    client: &mut Client,
    (service, slot): (&str, &str),
    command: &str,
    deadline: Instant,
) -> Result<Option<BackfillRow>> {
    let key = [("service", service), ("slot", slot), ("command", command)];
    let row = own_tables::latest(client, BACKFILLS_TABLE, &COLUMNS, &key, deadline)?;
    let Some(row) = row else { return Ok(None) };
    parse(row).map(Some).ok_or_else(|| {
        own_tables::malformed(client, BACKFILLS_TABLE, &format!("the last {command}"))
    })
}

/// Up to where commits may have landed beside the stream, of the history of this state.
pub fn upper(client: &mut Client, state: &StateRow, deadline: Instant) -> Result<Lsn> {
    let sql = format!(
        "SELECT max(upper_lsn) FROM {} WHERE service = {} AND slot = {} AND \
         system_identifier = {} AND timeline = {} AND version_shift = {}",
        client.qualified(BACKFILLS_TABLE),
        quote_bytes(state.service.as_bytes()),
        quote_bytes(state.slot.as_bytes()),
        quote_bytes(state.system_identifier.as_bytes()),
        state.timeline,
        state.version_shift,
    );
    let rows = client.query(&sql, deadline)?;
    let upper = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok());
    upper.map(Lsn).ok_or_else(|| {
        own_tables::malformed(client, BACKFILLS_TABLE, "what landed beside the stream")
    })
}

fn parse(row: Vec<Option<String>>) -> Option<BackfillRow> {
    let mut values = row.into_iter().collect::<Option<Vec<_>>>()?.into_iter();
    let mut next = || values.next();
    let row = BackfillRow {
        service: next()?,
        slot: next()?,
        command: next()?,
        is_done: next()? == "1",
        system_identifier: next()?,
        timeline: next()?.parse().ok()?,
        version_shift: next()?.parse().ok()?,
        upper: Lsn(next()?.parse().ok()?),
        version_min: next()?.parse().ok()?,
        version_max: next()?.parse().ok()?,
        request: next()?,
        position: next()?,
        rows_read: next()?.parse().ok()?,
        rows_written: next()?.parse().ok()?,
        revision: next()?.parse().ok()?,
    };
    next().is_none().then_some(row)
}

/// Writes the row and waits until ClickHouse has it. Whoever else has written since is not written
/// over: two of one command would each forget what the other has landed.
pub fn write(client: &mut Client, row: &mut BackfillRow, deadline: Instant) -> Result<()> {
    let of = (row.service.as_str(), row.slot.as_str());
    let latest = read(client, of, &row.command, deadline)?.map_or(0, |row| row.revision);
    if latest != row.revision {
        let doing = format!("record the {} of service `{}`", row.command, row.service);
        return Err(Error::new(ErrorKind::SlotBusy, doing)
            .because("another one is running for it")
            .hint("Wait for that one to end, or end it."));
    }
    let mut next = row.clone();
    next.revision += 1;
    let values = [
        next.service.clone(),
        next.slot.clone(),
        next.command.clone(),
        u8::from(next.is_done).to_string(),
        next.system_identifier.clone(),
        next.timeline.to_string(),
        next.version_shift.to_string(),
        next.upper.0.to_string(),
        next.version_min.to_string(),
        next.version_max.to_string(),
        next.request.clone(),
        next.position.clone(),
        next.rows_read.to_string(),
        next.rows_written.to_string(),
        next.revision.to_string(),
    ];
    let values = values.map(String::into_bytes).to_vec();
    own_tables::insert(client, BACKFILLS_TABLE, &COLUMNS, &[values], deadline)?;
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
        let row = parse(values()).expect("each column fits");
        assert_eq!((row.timeline, row.upper, row.version_min), (2, Lsn(u64::MAX), 1));
        assert_eq!((row.request.as_str(), row.position.as_str()), ("all", "id"));
        assert_eq!((row.is_done, row.rows_read, row.rows_written, row.revision), (false, 4, 5, 6));
    }

    #[test]
    fn a_row_of_another_shape_is_refused() {
        let mut null = values();
        null[10] = None;
        assert_eq!(parse(null), None);
        assert_eq!(parse(values()[..14].to_vec()), None);
        assert_eq!(parse([values(), values()].concat()), None);
    }
}
