//! What follows from a verdict of [`super::lineage`]: go on, start over and repair, or stop.
//!
//! Starting over means a slot that works (the old one if it can be used), a version shift with
//! which every later change outranks everything in ClickHouse, and, unless the operator prefers to
//! skip, a repair: the table is read and compared, and what differs is written at [`base_version`],
//! below every change that is still to be streamed. If the source itself was changed, that is not
//! enough: rows that the slot still brings have values from before the change. In that case the
//! repair writes at the version of a fence ([`fence_version`]).
//!
//! ```text
//!   versions ->  old and dead rows | base: repaired rows | base + 1: repaired deletes | stream
//! ```

use super::lineage::{Fork, LineageState, LineageVerdict, ServerTimeline, Slot};
use crate::wal::Lsn;

/// What the operator wants when changes were missed or ClickHouse holds what Postgres lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapStrategy {
    /// Compare the whole table and mend what differs.
    Repair,
    /// Stop the service until an operator decides.
    Halt,
    /// Go on and leave the difference.
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// Create the slot, then record `State::adopting` it.
    Begin,
    /// Stream from the slot; where there is something to record, after it was recorded.
    Continue { record: Option<LineageState> },
    /// Have a slot, record [`start_over`], and where `repair` says so compare the table.
    StartOver { repair: bool },
    /// The verdict's error is the service's.
    Stop,
}

/// What a repair must make up for, from a time that no state covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Debt {
    Repair,
    /// The target tables were made, and are to have the rows that were there before. Nothing was
    /// missed.
    InitialBackfill,
}

/// The server that an operator has named: `walhouse adopt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    pub system_identifier: u64,
    pub timeline: u32,
    /// The oid of the database; `None`: an older version recorded it without the oid.
    pub database: Option<u32>,
}

pub fn course(
    verdict: &LineageVerdict,
    strategy: GapStrategy,
    server: &ServerTimeline,
    adopted: Option<Adopted>,
) -> Course {
    let is_adopted = adopted.is_some_and(|adopted| {
        adopted.system_identifier == server.system_identifier && adopted.timeline == server.timeline
    });
    match verdict {
        LineageVerdict::FirstStart => Course::Begin,
        LineageVerdict::TakeOver { record } => Course::Continue { record: Some(*record) },
        LineageVerdict::Continue { record } => Course::Continue { record: *record },
        // Another server than the one to follow, most likely: nothing but a name makes it that.
        LineageVerdict::ForeignCluster { .. }
        | LineageVerdict::ForeignDatabase { .. }
        | LineageVerdict::Diverged { why: Fork::Older, .. } => {
            if is_adopted {
                Course::StartOver { repair: true }
            } else {
                Course::Stop
            }
        }
        LineageVerdict::Gap { .. } | LineageVerdict::Diverged { .. } => match strategy {
            GapStrategy::Repair => Course::StartOver { repair: true },
            GapStrategy::Skip => Course::StartOver { repair: false },
            GapStrategy::Halt => Course::Stop,
        },
    }
}

/// What `course` becomes when a repair is owed: the record of the last one, finished or not,
/// belongs to another state ([`goes_on`]), or there is no state. Its reason may not be visible a
/// second time: a server that went back in time writes past what was confirmed, a slot that was
/// created again looks like one that was there. So the debt is recorded before all else.
pub fn course_in_debt(course: Course, strategy: GapStrategy, debt: Debt) -> Course {
    match (course, strategy) {
        (Course::Stop, _) => course,
        // Not a gap, so the strategy for gaps does not apply.
        _ if debt == Debt::InitialBackfill => Course::StartOver { repair: true },
        // The owed repair is for something other than the skipped gap, or its reason is unknown: so
        // not even `skip` may drop it.
        (Course::StartOver { .. }, _) => Course::StartOver { repair: true },
        (Course::Begin | Course::Continue { .. }, GapStrategy::Halt) => Course::Stop,
        (Course::Begin | Course::Continue { .. }, GapStrategy::Repair | GapStrategy::Skip) => {
            Course::StartOver { repair: true }
        }
    }
}

/// What is recorded when a stream starts over on `slot`: every version from now on outranks what is
/// in ClickHouse. `highest_version` was read from the target tables, since no state covers them.
/// `None`: there is no number that high.
pub fn start_over(
    before: Option<&LineageState>,
    highest_version: u64,
    server: &ServerTimeline,
    slot: &Slot,
) -> Option<LineageState> {
    let (bound, shift) = match before {
        // A change lies below the end of its commit, so its version is lower than this.
        Some(state) => (upper(state, server).checked_add(state.shift)?, state.shift),
        None => (0, 0),
    };
    let bound = bound.max(highest_version).checked_add(1)?;
    // At least one more, so that no other state continues the repair of this one: where the state
    // row was never written, a server without that WAL may be what is found next.
    let shift = shift.checked_add(1)?.max(bound.saturating_sub(slot.restart_lsn.0));
    // There must be room for the WAL that is still to come.
    slot.restart_lsn.0.max(server.wal_end.0).checked_add(shift)?.checked_add(1 << 48)?;
    Some(LineageState {
        system_identifier: server.system_identifier,
        timeline: server.timeline,
        began: server.began,
        confirmed: slot.confirmed_flush,
        upper_lsn: slot.confirmed_flush.max(server.wal_end),
        shift,
    })
}

/// What is recorded when a slot is first used and no state covers the time before. Tables that
/// another replicator of this cluster has written are in order with us, below its WAL's end; higher
/// versions are of another time, and must be outranked like those of a lost state.
pub fn first_state(
    highest_version: u64,
    server: &ServerTimeline,
    slot: &Slot,
) -> Option<LineageState> {
    if highest_version <= server.wal_end.0 {
        Some(LineageState::adopting(server, slot.confirmed_flush))
    } else {
        start_over(None, highest_version, server, slot)
    }
}

/// What is recorded when tables are filled. Empty ones need no shift, nor do those whose rows lie
/// below the slot, and there is no state with which a repair could go on by mistake.
pub fn begin_filling(
    highest_version: u64,
    server: &ServerTimeline,
    slot: &Slot,
) -> Option<LineageState> {
    match highest_version < slot.restart_lsn.0 || highest_version == 0 {
        true => Some(LineageState::adopting(server, slot.confirmed_flush)),
        false => start_over(None, highest_version, server, slot),
    }
}

/// The unused part of the reserve does not count if the server shows it.
fn upper(state: &LineageState, server: &ServerTimeline) -> u64 {
    let same = state.system_identifier == server.system_identifier
        && state.timeline == server.timeline
        && (state.began == server.began || state.began == Lsn(0))
        && state.confirmed <= server.wal_end;
    if same { state.upper_lsn.0.min(server.wal_end.0) } else { state.upper_lsn.0 }
}

/// The version of rows that are read from the table while the stream runs: above all that
/// ClickHouse has, below all changes that are still to be streamed, because those lie above
/// `restart_lsn` by a record at least. Take it before the table's snapshot.
pub fn base_version(state: &LineageState, slot: &Slot) -> u64 {
    slot.restart_lsn.0.saturating_add(state.shift)
}

/// The version of rows that are read behind a fence: `fence` is where the server's WAL ended before
/// all transactions that ran then had ended. A change that a later snapshot does not see begins at
/// the fence or above; every other one lies below it by a record's header at least. So a row, a
/// tombstone one above it, and a row that comes just above that, outrank all that was changed
/// before, streamed or still to be streamed, and yield to all that comes.
pub fn fence_version(shift: u64, fence: Lsn) -> u64 {
    fence.0.saturating_sub(4).saturating_add(shift)
}

/// How to handle rows that the source may have hidden while the stream went on: like a gap.
pub fn course_of_hidden(course: Course, strategy: GapStrategy) -> Course {
    match (course, strategy) {
        (Course::Stop | Course::StartOver { .. }, _) => course,
        (Course::Begin | Course::Continue { .. }, GapStrategy::Repair) => {
            Course::StartOver { repair: true }
        }
        (Course::Begin | Course::Continue { .. }, GapStrategy::Skip) => {
            Course::StartOver { repair: false }
        }
        (Course::Begin | Course::Continue { .. }, GapStrategy::Halt) => Course::Stop,
    }
}

/// A repair that was recorded and not finished goes on, if it still speaks of this state.
pub fn goes_on(repair_system_identifier: u64, repair_shift: u64, state: &LineageState) -> bool {
    repair_system_identifier == state.system_identifier && repair_shift == state.shift
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::lineage::Gap;

    const STATE: LineageState = LineageState {
        system_identifier: 7,
        timeline: 2,
        began: Lsn(20),
        confirmed: Lsn(100),
        upper_lsn: Lsn(90),
        shift: 5,
    };
    const SERVER: ServerTimeline =
        ServerTimeline { system_identifier: 7, timeline: 3, began: Lsn(40), wal_end: Lsn(70) };
    const SLOT: Slot = Slot { confirmed_flush: Lsn(60), restart_lsn: Lsn(50), invalidated: false };

    const STRATEGIES: [GapStrategy; 3] =
        [GapStrategy::Repair, GapStrategy::Halt, GapStrategy::Skip];

    fn diverged(why: Fork) -> LineageVerdict {
        LineageVerdict::Diverged { state: STATE, server: SERVER, why }
    }

    #[test]
    fn gaps_and_forks_follow_the_strategy() {
        for verdict in [
            LineageVerdict::Gap { confirmed: None, why: Gap::SlotInvalidated },
            LineageVerdict::Gap { confirmed: Some(Lsn(100)), why: Gap::SlotMissing },
            diverged(Fork::Below { fork: Lsn(80) }),
            diverged(Fork::NotAncestor),
            diverged(Fork::WentBack),
        ] {
            let courses = STRATEGIES.map(|strategy| course(&verdict, strategy, &SERVER, None));
            let expected = [
                Course::StartOver { repair: true },
                Course::Stop,
                Course::StartOver { repair: false },
            ];
            assert_eq!(courses, expected, "{verdict:?}");
        }
    }

    #[test]
    fn a_server_that_looks_wrong_is_followed_only_when_it_was_named() {
        let named = |timeline| Some(Adopted { system_identifier: 7, timeline, database: None });
        for verdict in [
            LineageVerdict::ForeignCluster { expected: 8, found: 7 },
            LineageVerdict::ForeignDatabase { expected: 5, found: 16384 },
            diverged(Fork::Older),
        ] {
            for strategy in STRATEGIES {
                let course = |adopted| course(&verdict, strategy, &SERVER, adopted);
                assert_eq!(course(None), Course::Stop, "{verdict:?} {strategy:?}");
                assert_eq!(course(named(2)), Course::Stop, "another timeline was named");
                assert_eq!(course(named(3)), Course::StartOver { repair: true });
            }
        }
    }

    #[test]
    fn a_debt_is_paid_before_anything_goes_on() {
        for course in [Course::Begin, Course::Continue { record: None }] {
            let courses = |debt| STRATEGIES.map(|strategy| course_in_debt(course, strategy, debt));
            let paid = Course::StartOver { repair: true };
            assert_eq!(courses(Debt::Repair), [paid, Course::Stop, paid]);
            assert_eq!(courses(Debt::InitialBackfill), [paid; 3]);
        }
        let stopped = STRATEGIES.map(|of| course_in_debt(Course::Stop, of, Debt::Repair));
        assert_eq!(stopped, [Course::Stop; 3]);
        for debt in [Debt::Repair, Debt::InitialBackfill] {
            let skipped = Course::StartOver { repair: false };
            let paid = course_in_debt(skipped, GapStrategy::Skip, debt);
            assert_eq!(paid, Course::StartOver { repair: true }, "{debt:?}");
        }
        let halted = course_in_debt(Course::Stop, GapStrategy::Halt, Debt::InitialBackfill);
        assert_eq!(halted, Course::Stop);
    }

    #[test]
    fn what_the_source_may_have_hidden_is_a_gap() {
        for course in [Course::Begin, Course::Continue { record: None }] {
            let courses = STRATEGIES.map(|strategy| course_of_hidden(course, strategy));
            let expected = [
                Course::StartOver { repair: true },
                Course::Stop,
                Course::StartOver { repair: false },
            ];
            assert_eq!(courses, expected);
        }
        let stopped = STRATEGIES.map(|strategy| course_of_hidden(Course::Stop, strategy));
        assert_eq!(stopped, [Course::Stop; 3]);
    }

    #[test]
    fn what_is_read_behind_a_fence_lies_between_what_was_and_what_comes() {
        // The header of a record of the WAL.
        const HEADER: u64 = 24;
        let fence = Lsn(1_000);
        let version = fence_version(5, fence);
        assert!(fence.0 - HEADER + 5 < version);
        assert!(crate::machines::repair::tombstone_version(version) + 1 < fence.0 + 5);
    }

    #[test]
    fn empty_tables_are_filled_below_the_stream_and_without_a_shift() {
        let state = begin_filling(0, &SERVER, &SLOT).unwrap();
        assert_eq!((state.shift, base_version(&state, &SLOT)), (0, 50));
        let state = begin_filling(49, &SERVER, &SLOT).unwrap();
        assert_eq!((state.shift, base_version(&state, &SLOT)), (0, 50), "below the slot");
        let state = begin_filling(50, &SERVER, &SLOT).unwrap();
        assert!(50 < base_version(&state, &SLOT), "{state:?}");
        let state = begin_filling(1_000, &SERVER, &SLOT).unwrap();
        assert_eq!(base_version(&state, &SLOT), 1_001);
    }

    #[test]
    fn all_that_comes_outranks_all_that_was() {
        let record = start_over(Some(&STATE), 0, &SERVER, &SLOT).unwrap();
        assert_eq!(record.shift, 90 + 5 + 1 - 50);
        assert_eq!((record.confirmed, record.upper_lsn, record.timeline), (Lsn(60), Lsn(70), 3));
        assert_eq!(base_version(&record, &SLOT), 96);
        // Rows that no state covers count as well.
        let record = start_over(None, 1_000, &SERVER, &SLOT).unwrap();
        assert_eq!(base_version(&record, &SLOT), 1_001);
        // On one timeline a new slot begins above everything: only its repair is another.
        let ahead = Slot { restart_lsn: Lsn(200), confirmed_flush: Lsn(200), ..SLOT };
        assert_eq!(start_over(Some(&STATE), 95, &SERVER, &ahead).unwrap().shift, 5 + 1);
        assert_eq!(start_over(None, 95, &SERVER, &ahead).unwrap().shift, 1);
    }

    #[test]
    fn what_was_only_reserved_raises_nothing_on_the_same_timeline() {
        let state = LineageState { upper_lsn: Lsn(1_000), ..STATE };
        let server = ServerTimeline { timeline: 2, began: Lsn(20), wal_end: Lsn(150), ..SERVER };
        let slot = Slot { restart_lsn: Lsn(160), confirmed_flush: Lsn(160), ..SLOT };
        assert_eq!(start_over(Some(&state), 0, &server, &slot).unwrap().shift, 5 + 1);
        let other = ServerTimeline { began: Lsn(30), ..server };
        assert_eq!(start_over(Some(&state), 0, &other, &slot).unwrap().shift, 1_006 - 160);
        let went_back = ServerTimeline { wal_end: Lsn(99), ..server };
        assert_eq!(start_over(Some(&state), 0, &went_back, &slot).unwrap().shift, 1_006 - 160);
    }

    #[test]
    fn a_first_state_shifts_only_for_versions_that_this_server_did_not_make() {
        assert_eq!(first_state(70, &SERVER, &SLOT).unwrap().shift, 0);
        let state = first_state(71, &SERVER, &SLOT).unwrap();
        assert!(71 < base_version(&state, &SLOT), "{state:?}");
        assert_eq!(first_state(u64::MAX, &SERVER, &SLOT), None);
    }

    #[test]
    fn versions_that_would_run_out_are_refused() {
        let state = LineageState { shift: u64::MAX - 1_000, ..STATE };
        assert_eq!(start_over(Some(&state), 0, &SERVER, &SLOT), None);
        assert_eq!(start_over(None, u64::MAX, &SERVER, &SLOT), None);
    }

    #[test]
    fn an_unfinished_repair_goes_on_only_under_its_own_shift() {
        assert!(goes_on(7, 5, &STATE));
        assert!(!goes_on(7, 6, &STATE));
        assert!(!goes_on(8, 5, &STATE));
    }
}
