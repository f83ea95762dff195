//! `walhouse_state`: how far each slot has come, as ClickHouse itself remembers it.
//!
//! One row per service and slot counts: the one with the highest revision. Revisions grow by one
//! with each attempt to write, from above what was read at the start ([`leap`]). Only the holder of
//! the leader lock, with the slot active, should write; two can think so where each sees a primary
//! of its own, so whoever writes looks before ([`write_unless_overtaken`]). What the numbers mean
//! for a start or a confirmation is decided elsewhere.

use std::time::Instant;

use super::client::Client;
use super::cluster::{create_table, replacing};
use super::own_tables;
use crate::error::Result;
use crate::wal::Lsn;

pub const STATE_TABLE: &str = "walhouse_state";
const REVISION_LEAP: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRow {
    pub service: String,
    pub slot: String,
    /// Of the Postgres cluster, as IDENTIFY_SYSTEM prints it.
    pub system_identifier: String,
    pub timeline: u32,
    /// Where that timeline began; 0 of the first.
    pub began: Lsn,
    pub confirmed: Lsn,
    /// No commit whose end lies above this can be in ClickHouse.
    pub upper: Lsn,
    /// Added to every LSN on the way to `_version`.
    pub version_shift: u64,
    /// Who wrote it: host and process.
    pub instance: String,
    /// 0 before the first write; [`write()`] moves it.
    pub revision: u64,
}

pub(super) fn ddl(client: &Client) -> String {
    format!(
        "{} (
    service String,
    slot String,
    system_identifier String,
    timeline UInt32,
    timeline_began_lsn UInt64,
    confirmed_lsn UInt64,
    upper_lsn UInt64,
    version_shift UInt64,
    instance String,
    written_at DateTime64(3) DEFAULT now64(3),
    revision UInt64
) ENGINE = {}
ORDER BY (service, slot)",
        create_table(client, STATE_TABLE),
        replacing(client, "revision")
    )
}

/// All but `written_at`, which ClickHouse fills.
const COLUMNS: [&str; 10] = [
    "service",
    "slot",
    "system_identifier",
    "timeline",
    "timeline_began_lsn",
    "confirmed_lsn",
    "upper_lsn",
    "version_shift",
    "instance",
    "revision",
];

/// What was written last for this service and slot; `None` if nothing was.
pub fn read(
    client: &mut Client,
    service: &str,
    slot: &str,
    deadline: Instant,
) -> Result<Option<StateRow>> {
    let key = [("service", service), ("slot", slot)];
    // Whose row it is was asked for.
    let [_, _, columns @ ..] = &COLUMNS;
    let row = own_tables::latest(client, STATE_TABLE, columns, &key, deadline)?;
    let Some(row) = row else { return Ok(None) };
    parse(service, slot, &row).map(Some).ok_or_else(|| {
        own_tables::malformed(client, STATE_TABLE, &format!("the state of slot `{slot}`"))
    })
}

/// Other slots of this service, each with the cluster that its rows come from.
pub fn others(
    client: &mut Client,
    service: &str,
    slot: &str,
    deadline: Instant,
) -> Result<Vec<(String, String)>> {
    let columns = "slot, argMax(system_identifier, revision)";
    own_tables::of_other_slots(client, STATE_TABLE, columns, (service, slot), deadline)
}

fn parse(service: &str, slot: &str, row: &[Option<String>]) -> Option<StateRow> {
    let [system_identifier, timeline, began, confirmed, upper, version_shift, instance, revision] =
        row
    else {
        return None;
    };
    Some(StateRow {
        service: service.to_owned(),
        slot: slot.to_owned(),
        system_identifier: system_identifier.clone()?,
        timeline: timeline.as_ref()?.parse().ok()?,
        began: Lsn(began.as_ref()?.parse().ok()?),
        confirmed: Lsn(confirmed.as_ref()?.parse().ok()?),
        upper: Lsn(upper.as_ref()?.parse().ok()?),
        version_shift: version_shift.as_ref()?.parse().ok()?,
        instance: instance.clone()?,
        revision: revision.as_ref()?.parse().ok()?,
    })
}

/// Where a new session's revisions begin: above whatever an old leader, stopped in the middle of a
/// write, may still send, and hardly ever where another session that read the same row begins.
pub fn leap(revision: u64) -> u64 {
    revision.saturating_add(REVISION_LEAP).saturating_add(fastrand::u64(..REVISION_LEAP))
}

/// [`write()`], unless another session has written since this one did; its row is returned then.
pub fn write_unless_overtaken(
    client: &mut Client,
    row: &mut StateRow,
    deadline: Instant,
) -> Result<Option<StateRow>> {
    let latest = read(client, &row.service, &row.slot, deadline)?;
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
    let numbers = [
        u64::from(row.timeline).to_string(),
        row.began.0.to_string(),
        row.confirmed.0.to_string(),
        row.upper.0.to_string(),
        row.version_shift.to_string(),
        row.revision.to_string(),
    ];
    let [timeline, began, confirmed, upper, version_shift, revision] = &numbers;
    let values = [
        &row.service,
        &row.slot,
        &row.system_identifier,
        timeline,
        began,
        confirmed,
        upper,
        version_shift,
        &row.instance,
        revision,
    ]
    .map(|text| text.as_bytes().to_vec());
    own_tables::insert(client, STATE_TABLE, &COLUMNS, &[values.to_vec()], deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: [&str; 8]) -> Vec<Option<String>> {
        values.iter().map(|value| Some((*value).to_owned())).collect()
    }

    #[test]
    fn numbers_of_the_whole_range_are_read_exactly() {
        let max = u64::MAX.to_string();
        let state = parse("runs", "s", &row(["7", "4294967295", "9", &max, &max, &max, "i", &max]))
            .expect("each column fits");
        assert_eq!((state.confirmed, state.timeline), (Lsn(u64::MAX), u32::MAX));
        assert_eq!(state.began, Lsn(9));
        assert_eq!((state.version_shift, state.revision), (u64::MAX, u64::MAX));
    }

    #[test]
    fn a_row_of_another_shape_is_refused() {
        assert_eq!(parse("runs", "s", &row(["7", "-1", "0", "0", "0", "0", "i", "1"])), None);
        assert_eq!(parse("runs", "s", &[]), None);
        let mut null = row(["7", "1", "0", "0", "0", "0", "i", "1"]);
        null[2] = None;
        assert_eq!(parse("runs", "s", &null), None);
    }
}
