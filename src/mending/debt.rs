//! Pending repairs ("debts"): recorded before anything else is done, and before their cause can no
//! longer be seen. A debt matches no state, so the next start begins with it.

use std::time::{Duration, Instant};

use super::repairer::RepairCursor;
use crate::clickhouse::Client;
use crate::clickhouse::own::repairs::{self, INITIAL_BACKFILL, RepairRow, RepairStatus};
use crate::clickhouse::own::state;
use crate::config::{InitialBackfill, ServiceConfig};
use crate::error::Result;
use crate::machines::lineage::{self, DIVERGED, Fork, GAP, Gap, LineageVerdict};
use crate::machines::recovery::{self, Course, Debt};
use crate::wal::Lsn;

/// The lineage and version that a repair belongs to.
#[derive(Clone, Copy)]
pub struct Numbers {
    pub state: lineage::LineageState,
    pub base_version: u64,
}

/// Placeholder numbers of a pending repair: they match no state, so the next start begins it.
pub const DEBT: Numbers = Numbers {
    state: lineage::LineageState {
        system_identifier: 0,
        timeline: 0,
        began: Lsn(0),
        confirmed: Lsn(0),
        upper_lsn: Lsn(0),
        shift: u64::MAX,
    },
    base_version: 0,
};

pub fn repair_row(
    (service, slot): (&str, &str),
    status: RepairStatus,
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
        position: RepairCursor::start().to_string(),
        rows_read: 0,
        rows_written: 0,
        tombstones_written: 0,
        revision: state::next_revision_base(revision),
    }
}

/// Records a pending repair if rows have been streamed before: whatever else is found, the next
/// start begins with it.
pub fn owe(
    client: &mut Client,
    of: (&str, &str),
    reason: &str,
    request_timeout: Duration,
) -> Result<()> {
    let (service, slot) = of;
    let deadline = || Instant::now() + request_timeout;
    if state::TABLE.read(client, service, slot, deadline())?.is_none() {
        return Ok(());
    }
    // A start that is refused again and again finds the same each time.
    let last = repairs::TABLE.read(client, service, slot, deadline())?;
    if last.is_some_and(|last| is_only_owed(&last) && last.reason.contains(reason)) {
        return Ok(());
    }
    write_debt(client, of, reason, request_timeout)?;
    log::warn!("{service}: {reason}");
    Ok(())
}

/// The same for target tables that are about to be created. It must be recorded first: afterwards
/// nothing shows that they were missing. If nothing has been streamed before, they are filled.
pub fn owe_for_tables(client: &mut Client, config: &ServiceConfig, tables: &[&str]) -> Result<()> {
    let (of, timeout) =
        ((config.name.as_str(), config.slot.as_str()), config.clickhouse.request_timeout);
    let tables = tables.join("`, `");
    if state::TABLE.read(client, of.0, of.1, Instant::now() + timeout)?.is_some() {
        let reason = format!("missing in ClickHouse, and created again: `{tables}`");
        return owe(client, of, &reason, timeout);
    }
    match config.initial_backfill {
        InitialBackfill::Created | InitialBackfill::Existing => {
            write_debt(client, of, &format!("{INITIAL_BACKFILL} of `{tables}`"), timeout)
        }
        InitialBackfill::Off => Ok(()),
    }
}

/// The same if the recorded state itself may be gone, but the caller knows that rows were streamed.
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
    let last = repairs::TABLE.read(client, service, slot, deadline())?;
    let reason = reason_over(last.as_ref(), reason);
    let revision = last.map_or(0, |row| row.revision);
    let mut row = repair_row((service, slot), RepairStatus::Running, DEBT, &reason, revision);
    repairs::write(client, &mut row, deadline())
}

/// The debt that is due when a start would take `course` for `reason` and for what the source may
/// have hidden. A skip covers its own gap, but no earlier debt.
pub fn due(
    repair: Option<&RepairRow>,
    before: Option<&lineage::LineageState>,
    course: Course,
    hidden: &[String],
) -> Option<Debt> {
    let repair = repair?;
    let is_due = match (is_owed(repair, before), course) {
        (true, Course::StartOver { repair: false }) => {
            repair.status == RepairStatus::Running && !is_skippable(repair, hidden)
        }
        // It would go on, if the stream did.
        (false, Course::StartOver { repair: false }) => repair.status == RepairStatus::Running,
        (is_owed, _) => is_owed,
    };
    is_due.then(|| debt_of(repair, before))
}

/// It was recorded only for a gap, or for hidden rows that are still detected: by a skip that did
/// not finish, or under another strategy.
fn is_skippable(owed: &RepairRow, hidden: &[String]) -> bool {
    let is_seen = |reason: &str| hidden.iter().any(|seen| seen == reason);
    let is_of_gap = [GAP, DIVERGED].iter().any(|kind| owed.reason.starts_with(kind));
    is_only_owed(owed)
        && !owed.reason.contains(STILL_OWED)
        && (is_of_gap || owed.reason.split("; ").all(is_seen))
}

/// Separates a reason from earlier ones that are not repaired yet.
const STILL_OWED: &str = "; still owed: ";

/// The reason of a debt that replaces the last record.
pub fn reason_over(last: Option<&RepairRow>, reason: &str) -> String {
    match last.filter(|last| last.status == RepairStatus::Running) {
        // Not longer each time.
        Some(last)
            if last.reason.contains(reason)
                && (is_only_owed(last) || last.reason.contains(STILL_OWED)) =>
        {
            last.reason.clone()
        }
        Some(last) => format!("{reason}{STILL_OWED}{}", last.reason),
        None => reason.to_owned(),
    }
}

/// The kind of the debt. With a state it is a repair, whatever was begun before, since rows were
/// streamed.
fn debt_of(owed: &RepairRow, before: Option<&lineage::LineageState>) -> Debt {
    let is_fill = owed.status == RepairStatus::Running && owed.is_initial_backfill();
    if is_fill && before.is_none() { Debt::InitialBackfill } else { Debt::Repair }
}

/// True if rows are missing or dead in ClickHouse, and a later start may not see that any more. A
/// server that is not the one to follow creates no debt.
pub fn makes_debt(verdict: &LineageVerdict, course: Course) -> bool {
    match course {
        Course::StartOver { .. } => true,
        Course::Stop => !matches!(
            verdict,
            LineageVerdict::ForeignCluster { .. }
                | LineageVerdict::ForeignDatabase { .. }
                | LineageVerdict::Diverged { why: Fork::Older, .. }
                // Nothing was streamed yet, and the reason stays visible until that slot is gone.
                | LineageVerdict::Gap { why: Gap::OlderThanPublication, .. }
        ),
        Course::Begin | Course::Continue { .. } => false,
    }
}

/// No repair has started yet.
pub fn is_only_owed(repair: &RepairRow) -> bool {
    let Numbers { state, .. } = DEBT;
    repair.status == RepairStatus::Running
        && repair.system_identifier == state.system_identifier.to_string()
        && repair.version_shift == state.shift
}

/// A repair is recorded that does not go with the state. Where there is none, also one that would
/// go with what a slot is taken over with: which server's it was is unknown.
pub fn is_owed(repair: &RepairRow, before: Option<&lineage::LineageState>) -> bool {
    !before.is_some_and(|state| {
        let system_identifier = repair.system_identifier.parse().unwrap_or(0);
        recovery::goes_on(system_identifier, repair.version_shift, state)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: lineage::LineageState = lineage::LineageState {
        system_identifier: 7,
        timeline: 1,
        began: Lsn(0),
        confirmed: Lsn(100),
        upper_lsn: Lsn(100),
        shift: 5,
    };
    const SKIPPED: Course = Course::StartOver { repair: false };

    fn recorded(status: RepairStatus, state: lineage::LineageState, reason: &str) -> RepairRow {
        repair_row(("runs", "s"), status, Numbers { state, base_version: 0 }, reason, 0)
    }

    fn owed(reason: &str) -> RepairRow {
        recorded(RepairStatus::Running, DEBT.state, reason)
    }

    #[test]
    fn a_skip_passes_over_what_it_is_about_alone() {
        let hidden = ["publication `p` was altered".to_owned()];
        let due = |row: &RepairRow| due(Some(row), Some(&STATE), SKIPPED, &hidden);
        // Already recorded: a running repair or initial backfill, a table that was created again.
        for row in [
            recorded(RepairStatus::Running, STATE, "gap: the slot is missing"),
            recorded(RepairStatus::Running, STATE, INITIAL_BACKFILL),
            owed("missing in ClickHouse, and created again: `t`"),
            owed("gap: the slot is missing; still owed: something else"),
            owed("publication `p` was altered; table `t` is gone"),
        ] {
            assert_eq!(due(&row), Some(Debt::Repair), "{}", row.reason);
        }
        // The gap itself, of a skip that did not finish.
        for row in [
            recorded(RepairStatus::Done, STATE, "gap: the slot is missing"),
            recorded(
                RepairStatus::Done,
                lineage::LineageState { shift: 6, ..STATE },
                "gap: the slot is missing",
            ),
            owed("gap: the slot is missing"),
            owed("diverged: the server went back in time"),
            owed("publication `p` was altered"),
        ] {
            assert_eq!(due(&row), None, "{}", row.reason);
        }
    }

    #[test]
    fn a_repair_that_goes_on_is_due_only_where_it_would_not() {
        let row = recorded(RepairStatus::Running, STATE, "gap: the slot is missing");
        for course in [Course::Stop, Course::Begin, Course::Continue { record: None }] {
            assert_eq!(due(Some(&row), Some(&STATE), course, &[]), None, "{course:?}");
        }
        assert_eq!(due(None, Some(&STATE), SKIPPED, &[]), None);
    }

    #[test]
    fn a_debt_keeps_the_reasons_of_what_it_takes_the_place_of() {
        let running = recorded(RepairStatus::Running, STATE, "a");
        let reason = reason_over(Some(&running), "a");
        assert_eq!(reason, "a; still owed: a", "another one for the same reason");
        let reason = reason_over(Some(&owed(&reason)), "b");
        assert_eq!(reason, "b; still owed: a; still owed: a");
        assert_eq!(reason_over(Some(&owed(&reason)), "a"), reason);
        assert_eq!(reason_over(Some(&recorded(RepairStatus::Done, STATE, "a")), "b"), "b");
        assert_eq!(reason_over(None, "b"), "b");
    }

    /// Goal: a repair that runs on for a while does not write over what was recorded meanwhile.
    #[test]
    fn a_debt_outranks_whatever_the_running_repair_records() {
        // A record every two seconds, or a pass, for longer than any session takes to end.
        const RECORDS: u64 = 100_000;
        let running = RepairRow { revision: 77, ..recorded(RepairStatus::Running, STATE, "a") };
        let debt = repair_row(("runs", "s"), RepairStatus::Running, DEBT, "b", running.revision);
        assert!(running.revision + RECORDS < debt.revision);
    }
}
