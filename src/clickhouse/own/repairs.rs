//! `walhouse_repairs`: the repairs and their progress.
//!
//! One row per service and slot counts: the one with the highest revision. A repair is recorded
//! before the state that it goes with, so that a state is never without the repair that it needs;
//! [`recovery`](crate::machines::recovery) decides what the numbers mean for a start.

use std::time::Instant;

use super::journal::Column::{Of, Time};
use super::journal::{Field, Table};
use crate::clickhouse::Client;
use crate::error::Result;
use crate::machines::lineage::DIVERGED;

/// The base version of a repair whose fence is still to be passed.
pub const AT_FENCE: u64 = 0;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairRow {
    pub service: String,
    pub slot: String,
    pub status: RepairStatus,
    /// The system identifier of the Postgres cluster that is read.
    pub system_identifier: String,
    pub timeline: u32,
    pub version_shift: u64,
    /// The version of the rows it writes; [`AT_FENCE`] while that is not known.
    pub base_version: u64,
    /// Why, for people.
    pub reason: String,
    /// Its progress, in a text form of its own.
    pub position: String,
    pub rows_read: u64,
    pub rows_written: u64,
    pub tombstones_written: u64,
    /// 0 before the first write; [`write()`] moves it.
    pub revision: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RepairStatus {
    #[default]
    Running,
    Done,
}

/// How the reason begins of one that fills tables of walhouse's own making.
pub const INITIAL_BACKFILL: &str = "initial backfill";

/// How the reason begins of one that makes ClickHouse equal to a source that was adopted.
pub const ADOPTED: &str = "adopted";

impl RepairRow {
    /// It fills tables that were empty: nothing was missed.
    pub fn is_initial_backfill(&self) -> bool {
        self.reason.starts_with(INITIAL_BACKFILL)
    }

    /// It follows the name of an operator.
    pub fn is_of_adopted(&self) -> bool {
        self.reason.starts_with(ADOPTED)
    }

    /// The cluster goes on from a place below what ClickHouse has.
    pub fn is_of_fork(&self) -> bool {
        self.reason.contains(DIVERGED)
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        if self.is_initial_backfill() { INITIAL_BACKFILL } else { "repair" }
    }
}

impl Field for RepairStatus {
    fn take(&mut self) -> Vec<u8> {
        match self {
            RepairStatus::Running => b"running".to_vec(),
            RepairStatus::Done => b"done".to_vec(),
        }
    }

    fn set(&mut self, text: String) -> Option<()> {
        *self = match text.as_str() {
            "running" => RepairStatus::Running,
            "done" => RepairStatus::Done,
            _ => return None,
        };
        Some(())
    }
}

pub const TABLE: Table<RepairRow> = Table {
    name: "walhouse_repairs",
    what: "the repair",
    columns: &[
        Of("service", "String", |row| &mut row.service),
        Of("slot", "String", |row| &mut row.slot),
        Of("status", "LowCardinality(String) COMMENT 'running or done'", |row| &mut row.status),
        Of("system_identifier", "String", |row| &mut row.system_identifier),
        Of("timeline", "UInt32", |row| &mut row.timeline),
        Of("version_shift", "UInt64", |row| &mut row.version_shift),
        Of("base_version", "UInt64", |row| &mut row.base_version),
        Of("reason", "String", |row| &mut row.reason),
        Of("position", "String", |row| &mut row.position),
        Of("rows_read", "UInt64", |row| &mut row.rows_read),
        Of("rows_written", "UInt64", |row| &mut row.rows_written),
        Of("rows_buried", "UInt64", |row| &mut row.tombstones_written),
        Time("written_at"),
        Of("revision", "UInt64", |row| &mut row.revision),
    ],
    key: &["service", "slot"],
    version: "revision",
};

/// Writes the row and waits until ClickHouse has it. `revision` grows even when the outcome is
/// unknown, as that of a state row does.
pub fn write(client: &mut Client, row: &mut RepairRow, deadline: Instant) -> Result<()> {
    row.revision += 1;
    TABLE.insert(client, vec![row.clone()], deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Vec<Option<String>> {
        let max = u64::MAX.to_string();
        ["runs", "s", "running", "7", "2", &max, &max, "gap", "p", "1", "2", "3", &max]
            .map(|text| Some(text.to_owned()))
            .to_vec()
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let row = TABLE.parse(values()).expect("each column fits");
        assert_eq!(
            (row.status, row.timeline, row.base_version),
            (RepairStatus::Running, 2, u64::MAX)
        );
        assert_eq!((row.reason.as_str(), row.position.as_str()), ("gap", "p"));
        assert_eq!((row.rows_read, row.rows_written, row.tombstones_written), (1, 2, 3));
    }

    #[test]
    fn a_row_of_another_shape_is_refused() {
        for (at, text) in [(2, Some("paused")), (4, Some("-1")), (12, None)] {
            let mut values = values();
            values[at] = text.map(str::to_owned);
            assert_eq!(TABLE.parse(values), None, "{at}");
        }
        assert_eq!(TABLE.parse(vec![]), None);
    }
}
