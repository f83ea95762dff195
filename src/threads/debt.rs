//! Repairs that are owed: recorded before anything is done about them, and before what made them
//! necessary can no longer be seen. A debt goes with no state, so the next start begins with it.

use std::time::{Duration, Instant};

use super::beside::repairer::Position;
use crate::clickhouse::Client;
use crate::clickhouse::repairs::{self, INITIAL_BACKFILL, RepairRow, Status};
use crate::clickhouse::state;
use crate::config::{InitialBackfill, ServiceConfig};
use crate::error::Result;
use crate::machines::lineage::{self, Fork, Gap, Verdict};
use crate::machines::recovery::{self, Course, Debt};
use crate::wal::Lsn;

/// What a repair goes with.
#[derive(Clone, Copy)]
pub struct Numbers {
    pub state: lineage::State,
    pub base_version: u64,
}

/// Of a repair that is only owed: they go with no state.
pub const DEBT: Numbers = Numbers {
    state: lineage::State {
        system_identifier: 0,
        timeline: 0,
        began: Lsn(0),
        confirmed: Lsn(0),
        upper: Lsn(0),
        shift: u64::MAX,
    },
    base_version: 0,
};

pub fn repair_row(
    (service, slot): (&str, &str),
    status: Status,
    numbers: Numbers,
    reason: &str,
    revision: u64,
) -> RepairRow {
    let Numbers { state, base_version } = numbers;
    RepairRow {
        service: service.to_owned(),
        slot: slot.to_owned(),
        status,
        system_identifier: state.system_identifier.to_string(),
        timeline: state.timeline,
        version_shift: state.shift,
        base_version,
        reason: reason.to_owned(),
        position: Position::start().to_string(),
        rows_read: 0,
        rows_written: 0,
        rows_buried: 0,
        revision: state::leap(revision),
    }
}

/// Records that a repair is owed where rows have been streamed before: whatever else is found, the
/// next start begins with it.
pub fn owe(
    client: &mut Client,
    of: (&str, &str),
    reason: &str,
    request_timeout: Duration,
) -> Result<()> {
    let (service, slot) = of;
    let deadline = || Instant::now() + request_timeout;
    if state::read(client, service, slot, deadline())?.is_none() {
        return Ok(());
    }
    // A start that is refused again and again finds the same each time.
    let last = repairs::read(client, service, slot, deadline())?;
    if last.is_some_and(|last| is_only_owed(&last) && last.reason == reason) {
        return Ok(());
    }
    write_debt(client, of, reason, request_timeout)?;
    log::warn!("{service}: {reason}");
    Ok(())
}

/// The same for target tables that are about to be made. To be recorded before they are: then
/// nobody could tell any more. Where nothing has been streamed before, they are filled.
pub fn owe_for_tables(
    client: &mut Client,
    config: &ServiceConfig,
    tables: &[&'static str],
) -> Result<()> {
    let (of, timeout) =
        ((config.name.as_str(), config.slot.as_str()), config.clickhouse.request_timeout);
    let tables = tables.join("`, `");
    if state::read(client, of.0, of.1, Instant::now() + timeout)?.is_some() {
        let reason = format!("missing in ClickHouse, and made anew: `{tables}`");
        return owe(client, of, &reason, timeout);
    }
    match config.initial_backfill {
        InitialBackfill::Created | InitialBackfill::Existing => {
            write_debt(client, of, &format!("{INITIAL_BACKFILL} of `{tables}`"), timeout)
        }
        InitialBackfill::Off => Ok(()),
    }
}

/// The same where what was recorded may be gone itself: somebody knows that rows were streamed.
pub fn owe_whatever_is_recorded(
    client: &mut Client,
    config: &ServiceConfig,
    reason: &str,
) -> Result<()> {
    let of = (config.name.as_str(), config.slot.as_str());
    write_debt(client, of, reason, config.clickhouse.request_timeout)?;
    log::warn!("{}: {reason}", of.0);
    Ok(())
}

/// For target tables that were there, and lack rows, where nothing has been streamed before.
pub fn owe_existing(client: &mut Client, config: &ServiceConfig, table: &str) -> Result<()> {
    let of = (config.name.as_str(), config.slot.as_str());
    let reason = format!("{INITIAL_BACKFILL} of `{table}`, which was there");
    write_debt(client, of, &reason, config.clickhouse.request_timeout)
}

fn write_debt(
    client: &mut Client,
    (service, slot): (&str, &str),
    reason: &str,
    request_timeout: Duration,
) -> Result<()> {
    let deadline = || Instant::now() + request_timeout;
    let revision = repairs::read(client, service, slot, deadline())?.map_or(0, |row| row.revision);
    let mut row = repair_row((service, slot), Status::Running, DEBT, reason, revision);
    repairs::write(client, &mut row, deadline())
}

/// What is owed. With a state it is a repair, whatever was begun before: there is a time that was
/// streamed.
pub fn debt_of(owed: &RepairRow, before: Option<&lineage::State>) -> Debt {
    let is_fill = owed.status == Status::Running && owed.is_initial_backfill();
    if is_fill && before.is_none() { Debt::Fill } else { Debt::Repair }
}

/// Something is missing or dead in ClickHouse, and whoever comes next may not see it any more.
/// Another server than the one to follow makes none.
pub fn makes_debt(verdict: &Verdict, course: Course) -> bool {
    match course {
        Course::StartOver { .. } => true,
        Course::Stop => !matches!(
            verdict,
            Verdict::ForeignCluster { .. }
                | Verdict::ForeignDatabase { .. }
                | Verdict::Diverged { why: Fork::Older, .. }
                // Nothing was streamed yet, and it is seen until that slot is gone.
                | Verdict::Gap { why: Gap::OlderThanPublication, .. }
        ),
        Course::Begin | Course::Continue { .. } => false,
    }
}

/// Nothing was done about it yet.
pub fn is_only_owed(repair: &RepairRow) -> bool {
    let Numbers { state, .. } = DEBT;
    repair.status == Status::Running
        && repair.system_identifier == state.system_identifier.to_string()
        && repair.version_shift == state.shift
}

/// A repair is recorded that does not go with the state. Where there is none, also one that would
/// go with what a slot is taken over with: nobody knows which server's it was.
pub fn is_owed(repair: &RepairRow, before: Option<&lineage::State>) -> bool {
    !before.is_some_and(|state| {
        let system_identifier = repair.system_identifier.parse().unwrap_or(0);
        recovery::goes_on(system_identifier, repair.version_shift, state)
    })
}
