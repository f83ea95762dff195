//! `walhouse_repairs`: what is being made equal again, and how far it has come.
//!
//! One row per service and slot counts: the one with the highest revision. A repair is recorded
//! before the state that it goes with, so that a state is never without the repair that it needs;
//! what the numbers mean for a start is decided elsewhere.

use std::time::Instant;

use super::client::Client;
use super::cluster::{create_table, replacing};
use super::own_tables;
use crate::error::Result;
use crate::machines::lineage::DIVERGED;

pub const REPAIRS_TABLE: &str = "walhouse_repairs";

/// The base version of a repair whose fence is still to be passed.
pub const AT_FENCE: u64 = 0;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairRow {
    pub service: String,
    pub slot: String,
    pub status: Status,
    /// Of the Postgres cluster that is read.
    pub system_identifier: String,
    pub timeline: u32,
    pub version_shift: u64,
    /// The version of the rows it writes; [`AT_FENCE`] while that is not known.
    pub base_version: u64,
    /// Why, for people.
    pub reason: String,
    /// How far it has come, in words of its own.
    pub position: String,
    pub rows_read: u64,
    pub rows_written: u64,
    pub rows_buried: u64,
    /// 0 before the first write; [`write()`] moves it.
    pub revision: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
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

impl Status {
    const ALL: [Status; 2] = [Status::Running, Status::Done];

    fn as_str(self) -> &'static str {
        match self {
            Status::Running => "running",
            Status::Done => "done",
        }
    }
}

/// All but `written_at`, which ClickHouse fills.
const COLUMNS: [&str; 13] = [
    "service",
    "slot",
    "status",
    "system_identifier",
    "timeline",
    "version_shift",
    "base_version",
    "reason",
    "position",
    "rows_read",
    "rows_written",
    "rows_buried",
    "revision",
];

pub(super) fn ddl(client: &Client) -> String {
    format!(
        "{} (
    service String,
    slot String,
    status LowCardinality(String) COMMENT 'running or done',
    system_identifier String,
    timeline UInt32,
    version_shift UInt64,
    base_version UInt64,
    reason String,
    position String,
    rows_read UInt64,
    rows_written UInt64,
    rows_buried UInt64,
    written_at DateTime64(3) DEFAULT now64(3),
    revision UInt64
) ENGINE = {}
ORDER BY (service, slot)",
        create_table(client, REPAIRS_TABLE),
        replacing(client, "revision")
    )
}

/// What was written last for this service and slot; `None` if nothing was.
pub fn read(
    client: &mut Client,
    service: &str,
    slot: &str,
    deadline: Instant,
) -> Result<Option<RepairRow>> {
    let key = [("service", service), ("slot", slot)];
    let row = own_tables::latest(client, REPAIRS_TABLE, &COLUMNS, &key, deadline)?;
    let Some(row) = row else { return Ok(None) };
    parse(row).map(Some).ok_or_else(|| {
        own_tables::malformed(client, REPAIRS_TABLE, &format!("the repair of slot `{slot}`"))
    })
}

fn parse(row: Vec<Option<String>>) -> Option<RepairRow> {
    let row = <[String; 13]>::try_from(row.into_iter().collect::<Option<Vec<_>>>()?).ok()?;
    let [service, slot, status, system_identifier, timeline, version_shift, base_version, ..] =
        &row;
    let [.., reason, position, rows_read, rows_written, rows_buried, revision] = &row;
    Some(RepairRow {
        service: service.clone(),
        slot: slot.clone(),
        status: Status::ALL.into_iter().find(|known| known.as_str() == status)?,
        system_identifier: system_identifier.clone(),
        timeline: timeline.parse().ok()?,
        version_shift: version_shift.parse().ok()?,
        base_version: base_version.parse().ok()?,
        reason: reason.clone(),
        position: position.clone(),
        rows_read: rows_read.parse().ok()?,
        rows_written: rows_written.parse().ok()?,
        rows_buried: rows_buried.parse().ok()?,
        revision: revision.parse().ok()?,
    })
}

/// Writes the row and waits until ClickHouse has it. `revision` grows even when the outcome is
/// unknown, as that of a state row does.
pub fn write(client: &mut Client, row: &mut RepairRow, deadline: Instant) -> Result<()> {
    row.revision += 1;
    let values = [
        row.service.clone(),
        row.slot.clone(),
        row.status.as_str().to_owned(),
        row.system_identifier.clone(),
        row.timeline.to_string(),
        row.version_shift.to_string(),
        row.base_version.to_string(),
        row.reason.clone(),
        row.position.clone(),
        row.rows_read.to_string(),
        row.rows_written.to_string(),
        row.rows_buried.to_string(),
        row.revision.to_string(),
    ];
    own_tables::insert(
        client,
        REPAIRS_TABLE,
        &COLUMNS,
        &[values.map(String::into_bytes).to_vec()],
        deadline,
    )
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
        let row = parse(values()).expect("each column fits");
        assert_eq!((row.status, row.timeline, row.base_version), (Status::Running, 2, u64::MAX));
        assert_eq!((row.reason.as_str(), row.position.as_str()), ("gap", "p"));
        assert_eq!((row.rows_read, row.rows_written, row.rows_buried), (1, 2, 3));
    }

    #[test]
    fn a_row_of_another_shape_is_refused() {
        for (at, text) in [(2, Some("paused")), (4, Some("-1")), (12, None)] {
            let mut values = values();
            values[at] = text.map(str::to_owned);
            assert_eq!(parse(values), None, "{at}");
        }
        assert_eq!(parse(vec![]), None);
    }
}
