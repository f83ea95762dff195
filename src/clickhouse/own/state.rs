//! `walhouse_state`: the progress of each slot, recorded in ClickHouse itself.
//!
//! One row per service and slot counts: the one with the highest revision. Revisions grow by one
//! with each attempt to write, from above what was read at the start ([`next_revision_base`]). Only
//! the holder of the leader lock, with the slot active, should write; two may believe that they are
//! if each sees a different primary, so a writer checks first ([`write_unless_overtaken`]). What
//! the numbers mean for a start or a confirmation is decided elsewhere.

use std::time::Instant;

use super::journal::Column::{Of, Time};
use super::journal::Table;
use crate::clickhouse::Client;
use crate::error::Result;
use crate::wal::Lsn;

const REVISION_LEAP: u64 = 1 << 20;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateRow {
    pub service: String,
    pub slot: String,
    /// The system identifier of the Postgres cluster, as IDENTIFY_SYSTEM prints it.
    pub system_identifier: String,
    pub timeline: u32,
    /// Where that timeline began; 0 of the first.
    pub began: Lsn,
    pub confirmed: Lsn,
    /// No commit whose end lies above this can be in ClickHouse.
    pub upper_lsn: Lsn,
    /// Added to every LSN on the way to `_version`.
    pub version_shift: u64,
    /// The writer: host and process.
    pub instance: String,
    /// 0 before the first write; [`write()`] moves it.
    pub revision: u64,
}

pub const TABLE: Table<StateRow> = Table {
    name: "walhouse_state",
    what: "the state",
    columns: &[
        Of("service", "String", |row| &mut row.service),
        Of("slot", "String", |row| &mut row.slot),
        Of("system_identifier", "String", |row| &mut row.system_identifier),
        Of("timeline", "UInt32", |row| &mut row.timeline),
        Of("timeline_began_lsn", "UInt64", |row| &mut row.began.0),
        Of("confirmed_lsn", "UInt64", |row| &mut row.confirmed.0),
        Of("upper_lsn", "UInt64", |row| &mut row.upper_lsn.0),
        Of("version_shift", "UInt64", |row| &mut row.version_shift),
        Of("instance", "String", |row| &mut row.instance),
        Time("written_at"),
        Of("revision", "UInt64", |row| &mut row.revision),
    ],
    key: &["service", "slot"],
    version: "revision",
};

/// Other slots of this service, each with the cluster that its rows come from.
pub fn others(
    client: &mut Client,
    service: &str,
    slot: &str,
    deadline: Instant,
) -> Result<Vec<(String, String)>> {
    TABLE.of_other_slots(client, "system_identifier", (service, slot), deadline)
}

/// Where a new session's revisions begin: above any revision that an old leader, stopped in the
/// middle of a write, may still send, and very unlikely the same as that of another session that
/// read the same row.
pub fn next_revision_base(revision: u64) -> u64 {
    revision.saturating_add(REVISION_LEAP).saturating_add(fastrand::u64(..REVISION_LEAP))
}

/// [`write()`], unless another session has written since this one did; its row is returned then.
pub fn write_unless_overtaken(
    client: &mut Client,
    row: &mut StateRow,
    deadline: Instant,
) -> Result<Option<StateRow>> {
    let latest = TABLE.read(client, &row.service, &row.slot, deadline)?;
    if let Some(latest) = latest.filter(|latest| row.revision < latest.revision) {
        return Ok(Some(latest));
    }
    write(client, row, deadline)?;
    Ok(None)
}

/// Writes the row and waits until ClickHouse has it. `revision` grows even when the outcome is
/// unknown: were it used again with other numbers, which of the two rows counts would be chance.
pub fn write(client: &mut Client, row: &mut StateRow, deadline: Instant) -> Result<()> {
    row.revision += 1;
    TABLE.insert(client, vec![row.clone()], deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_whole_range_are_read_exactly() {
        let max = u64::MAX.to_string();
        let row = ["runs", "s", "7", "4294967295", "9", &max, &max, &max, "i", &max];
        let row = row.map(|text| Some(text.to_owned())).to_vec();
        let state = TABLE.parse(row).expect("each column fits");
        assert_eq!((state.confirmed, state.timeline), (Lsn(u64::MAX), u32::MAX));
        assert_eq!(state.began, Lsn(9));
        assert_eq!((state.version_shift, state.revision), (u64::MAX, u64::MAX));
    }
}
