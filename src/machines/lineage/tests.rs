//! Tables of what was found and what follows, and every small world there is.

use super::*;
use crate::error::Remedy;

const STATE: LineageState = LineageState {
    system_identifier: 7,
    timeline: 2,
    began: Lsn(10),
    confirmed: Lsn(100),
    upper_lsn: Lsn(90),
    shift: 5,
};
const SLOT: Slot = Slot { confirmed_flush: Lsn(100), restart_lsn: Lsn(50), invalidated: false };
const SERVER: ServerTimeline =
    ServerTimeline { system_identifier: 7, timeline: 2, began: Lsn(10), wal_end: Lsn(120) };

fn switch(timeline: u32, switch_lsn: u64) -> Switch {
    Switch { timeline, switch_lsn: Lsn(switch_lsn) }
}

fn on_timeline(timeline: u32, history: &[Switch]) -> LineageVerdict {
    judge(Some(&STATE), Some(&SLOT), &ServerTimeline { timeline, ..SERVER }, history)
}

fn diverged(timeline: u32, why: Fork) -> LineageVerdict {
    LineageVerdict::Diverged { state: STATE, server: ServerTimeline { timeline, ..SERVER }, why }
}

fn gap(why: Gap) -> LineageVerdict {
    LineageVerdict::Gap { confirmed: Some(STATE.confirmed), why }
}

#[test]
fn without_state_a_slot_is_taken_over_and_none_is_a_first_start() {
    assert_eq!(judge(None, None, &SERVER, &[]), LineageVerdict::FirstStart);
    let record = LineageState { upper_lsn: Lsn(120), shift: 0, ..STATE };
    assert_eq!(judge(None, Some(&SLOT), &SERVER, &[]), LineageVerdict::TakeOver { record });
    let lost = Slot { invalidated: true, ..SLOT };
    assert_eq!(
        judge(None, Some(&lost), &SERVER, &[]),
        LineageVerdict::Gap { confirmed: None, why: Gap::SlotInvalidated }
    );
}

#[test]
fn the_same_timeline_goes_on_with_a_slot_at_or_behind_the_state() {
    for confirmed_flush in [0, 99, 100] {
        let slot = Slot { confirmed_flush: Lsn(confirmed_flush), ..SLOT };
        let verdict = judge(Some(&STATE), Some(&slot), &SERVER, &[switch(1, 10)]);
        // What is streamed again is confirmed when it has come again.
        let behind = LineageState { confirmed: Lsn(confirmed_flush), ..STATE };
        let record = (confirmed_flush < 100).then_some(behind);
        assert_eq!(verdict, LineageVerdict::Continue { record });
    }
}

#[test]
fn what_a_dead_session_reserved_ahead_does_not_make_a_later_fork_a_loss() {
    let loose = LineageState { upper_lsn: Lsn(1_000), ..STATE };
    let verdict = judge(Some(&loose), Some(&SLOT), &SERVER, &[]);
    let LineageVerdict::Continue { record: Some(record) } = verdict else { panic!("{verdict:?}") };
    assert_eq!(record, LineageState { upper_lsn: SERVER.wal_end, ..STATE });
    let promoted = ServerTimeline { timeline: 3, wal_end: Lsn(140), ..SERVER };
    let verdict = judge(Some(&record), Some(&SLOT), &promoted, &[switch(2, 130)]);
    assert!(matches!(verdict, LineageVerdict::Continue { .. }), "{verdict:?}");
    // Where both died together it is not known what had been streamed.
    let verdict = judge(Some(&loose), Some(&SLOT), &promoted, &[switch(2, 130)]);
    assert!(matches!(verdict, LineageVerdict::Diverged { .. }), "{verdict:?}");
}

#[test]
fn a_slot_that_is_missing_invalidated_or_ahead_is_a_gap() {
    assert_eq!(judge(Some(&STATE), None, &SERVER, &[]), gap(Gap::SlotMissing));
    let lost = Slot { invalidated: true, ..SLOT };
    assert_eq!(judge(Some(&STATE), Some(&lost), &SERVER, &[]), gap(Gap::SlotInvalidated));
    let ahead = Slot { confirmed_flush: Lsn(101), ..SLOT };
    assert_eq!(
        judge(Some(&STATE), Some(&ahead), &SERVER, &[]),
        gap(Gap::SlotAhead { confirmed_flush: Lsn(101), held: Lsn(100) })
    );
}

#[test]
fn another_cluster_is_foreign_whatever_else_is_true() {
    let server =
        ServerTimeline { system_identifier: 8, timeline: 1, began: Lsn(0), wal_end: Lsn(0) };
    for slot in [None, Some(&SLOT)] {
        assert_eq!(
            judge(Some(&STATE), slot, &server, &[]),
            LineageVerdict::ForeignCluster { expected: 7, found: 8 }
        );
    }
}

#[test]
fn another_database_is_foreign_and_one_that_was_not_recorded_is_none() {
    let found = on_timeline(2, &[]);
    let missing = judge(Some(&STATE), None, &SERVER, &[]);
    for verdict in [found, missing] {
        let foreign = LineageVerdict::ForeignDatabase { expected: 5, found: 6 };
        assert_eq!(judge_database(verdict, Some(5), 6), foreign, "{verdict}");
        assert_eq!(judge_database(verdict, Some(6), 6), verdict);
        assert_eq!(judge_database(verdict, None, 6), verdict);
    }
    let cluster = LineageVerdict::ForeignCluster { expected: 7, found: 8 };
    assert_eq!(judge_database(cluster, Some(5), 6), cluster, "that is the graver");
}

#[test]
fn a_fork_at_or_above_upper_goes_on_and_is_recorded() {
    let record = |timeline, confirmed| LineageVerdict::Continue {
        record: Some(LineageState { timeline, confirmed: Lsn(confirmed), ..STATE }),
    };
    assert_eq!(on_timeline(3, &[switch(1, 10), switch(2, 110)]), record(3, 100));
    // Through two promotions; only where ours was left matters.
    assert_eq!(on_timeline(4, &[switch(2, 100), switch(3, 100)]), record(4, 100));
    // An idle stream had confirmed WAL above the fork that held no row of ours.
    let slot = Slot { confirmed_flush: Lsn(90), ..SLOT };
    let server = ServerTimeline { timeline: 3, wal_end: Lsn(91), ..SERVER };
    let verdict = judge(Some(&STATE), Some(&slot), &server, &[switch(2, 90)]);
    assert_eq!(verdict, record(3, 90));
    // What was recorded is what the next start goes on from.
    let LineageVerdict::Continue { record: Some(next) } = verdict else { panic!("{verdict:?}") };
    assert_eq!(
        judge(Some(&next), Some(&slot), &server, &[switch(2, 90)]),
        LineageVerdict::Continue { record: None }
    );
}

#[test]
fn a_fork_below_upper_is_diverged_even_without_a_slot() {
    let below = |fork| Fork::Below { fork: Lsn(fork) };
    let expected = diverged(3, below(89));
    assert_eq!(on_timeline(3, &[switch(2, 89)]), expected);
    let server = ServerTimeline { timeline: 3, ..SERVER };
    assert_eq!(judge(Some(&STATE), None, &server, &[switch(2, 89)]), expected);
    let twice = [switch(2, 95), switch(2, 89)];
    assert_eq!(on_timeline(3, &twice), expected, "the lower of two lines counts");
    // A standby that lagged behind the fork of a timeline it had only heard of.
    assert_eq!(on_timeline(4, &[switch(2, 110), switch(3, 89)]), diverged(4, below(89)));
    let through = on_timeline(4, &[switch(1, 10), switch(2, 110), switch(3, 115)]);
    assert!(matches!(through, LineageVerdict::Continue { .. }), "{through:?}");
}

#[test]
fn a_slot_above_the_fork_was_moved_on_the_new_timeline() {
    // 95 is below what was confirmed, but on the branch that died.
    let slot = Slot { confirmed_flush: Lsn(95), ..SLOT };
    let server = ServerTimeline { timeline: 3, ..SERVER };
    assert_eq!(
        judge(Some(&STATE), Some(&slot), &server, &[switch(2, 92)]),
        gap(Gap::SlotAhead { confirmed_flush: Lsn(95), held: Lsn(92) })
    );
}

#[test]
fn a_timeline_of_the_same_number_that_began_elsewhere_is_another() {
    let began = |began| ServerTimeline { began: Lsn(began), ..SERVER };
    let judge_on = |server: &ServerTimeline| judge(Some(&STATE), Some(&SLOT), server, &[]);
    assert_eq!(judge_on(&began(10)), LineageVerdict::Continue { record: None });
    let twin = began(9);
    let why = Fork::NotAncestor;
    assert_eq!(judge_on(&twin), LineageVerdict::Diverged { state: STATE, server: twin, why });
    // Not known, on either side.
    assert_eq!(judge_on(&began(0)), LineageVerdict::Continue { record: None });
    let unknown = LineageState { began: Lsn(0), ..STATE };
    let verdict = judge(Some(&unknown), Some(&SLOT), &SERVER, &[]);
    assert_eq!(verdict, LineageVerdict::Continue { record: Some(STATE) });
    // One that descends from the twin.
    let descends = |from| on_timeline(3, &[switch(1, from), switch(2, 110)]);
    assert!(matches!(descends(10), LineageVerdict::Continue { .. }), "{:?}", descends(10));
    assert_eq!(descends(11), diverged(3, Fork::NotAncestor));
}

#[test]
fn rows_from_above_the_wal_are_of_a_time_that_the_server_went_back_from() {
    let landed = |verdict, highest| judge_landed(verdict, &STATE, &SERVER, highest);
    let goes_on = LineageVerdict::Continue { record: None };
    assert_eq!(landed(goes_on, 125), goes_on, "the end of the WAL and the shift");
    let why = Fork::WentBack;
    let went_back = LineageVerdict::Diverged { state: STATE, server: SERVER, why };
    assert_eq!(landed(goes_on, 126), went_back);
    assert!(went_back.to_string().contains("has changes from above"), "{went_back}");
    assert_eq!(landed(gap(Gap::SlotMissing), 126), gap(Gap::SlotMissing), "repaired anyway");
    let promoted = ServerTimeline { timeline: 3, ..SERVER };
    assert_eq!(judge_landed(goes_on, &STATE, &promoted, 126), goes_on);
}

#[test]
fn an_older_or_unrelated_timeline_is_diverged() {
    assert_eq!(on_timeline(1, &[]), diverged(1, Fork::Older));
    assert_eq!(on_timeline(3, &[]), diverged(3, Fork::NotAncestor));
    assert_eq!(on_timeline(3, &[switch(1, 500)]), diverged(3, Fork::NotAncestor));
    // A history that contradicts itself proves nothing.
    assert_eq!(on_timeline(1, &[switch(2, 500)]), diverged(1, Fork::Older));
}

#[test]
fn a_server_with_less_wal_than_was_confirmed_went_back_in_time() {
    let server = ServerTimeline { wal_end: Lsn(99), ..SERVER };
    let why = Fork::WentBack;
    let expected = LineageVerdict::Diverged { state: STATE, server, why };
    assert_eq!(judge(Some(&STATE), Some(&SLOT), &server, &[]), expected);
    let server = ServerTimeline { wal_end: Lsn(100), ..SERVER };
    let verdict = judge(Some(&STATE), Some(&SLOT), &server, &[]);
    assert_eq!(verdict, LineageVerdict::Continue { record: None });
}

#[test]
fn every_refusal_says_what_happened_and_what_to_do() {
    let below = Fork::Below { fork: Lsn(0x1_0000_0089) };
    for (verdict, cause, hint) in [
        (
            gap(Gap::SlotMissing),
            "gap: the slot is missing, expected one at 0/64 or below",
            "REPLICATION_GAP_STRATEGY",
        ),
        (
            gap(Gap::SlotInvalidated),
            "gap: the slot was invalidated, expected WAL from 0/64 on",
            "REPLICATION_GAP_STRATEGY",
        ),
        (
            LineageVerdict::Gap { confirmed: None, why: Gap::SlotInvalidated },
            "gap: the slot was invalidated",
            "REPLICATION_GAP_STRATEGY",
        ),
        (
            gap(Gap::SlotAhead { confirmed_flush: Lsn(0x65), held: Lsn(0x64) }),
            "gap: the slot was moved or created again: expected it at 0/64 or below, got 0/65",
            "REPLICATION_GAP_STRATEGY",
        ),
        (
            diverged(3, below),
            "diverged: timeline 3 left timeline 2 at 1/89, but ClickHouse may have been \
             written up to 0/5A",
            "REPLICATION_GAP_STRATEGY",
        ),
        (
            diverged(3, Fork::NotAncestor),
            "diverged: expected timeline 2 or a descendant of it, got timeline 3",
            "REPLICATION_GAP_STRATEGY",
        ),
        (
            LineageVerdict::Diverged {
                state: STATE,
                server: ServerTimeline { wal_end: Lsn(0x63), ..SERVER },
                why: Fork::WentBack,
            },
            "diverged: the server went back in time: expected WAL up to 0/64 at least, got 0/63",
            "REPLICATION_GAP_STRATEGY",
        ),
        (
            diverged(2, Fork::WentBack),
            "diverged: the server went back in time: its WAL ends at 0/78, and ClickHouse has \
             changes from above",
            "REPLICATION_GAP_STRATEGY",
        ),
        (
            LineageVerdict::ForeignCluster { expected: 7, found: 8 },
            "foreign cluster: expected system identifier 7, got 8",
            "walhouse adopt runs",
        ),
        (
            LineageVerdict::ForeignDatabase { expected: 5, found: 6 },
            "foreign database: expected the one with oid 5 of this cluster, got 6",
            "walhouse adopt runs",
        ),
    ] {
        let error = verdict.into_error("runs", "s'1").unwrap();
        assert_eq!(error.kind(), ErrorKind::Lineage);
        let line = error.to_string();
        assert_eq!(line, format!("resume service `runs` from slot `s'1`: {cause}"));
        let said = error.hint_text().unwrap();
        assert!(said.contains(hint) && said.ends_with('.') && !said.contains('\n'), "{said}");
    }
    // It may pass by itself, so it goes through the strategy.
    let old_primary = diverged(1, Fork::Older).into_error("runs", "s").unwrap();
    assert_eq!(old_primary.remedy(), Remedy::Strategy);
    assert!(old_primary.hint_text().unwrap().contains("DATABASE_URL"));
    let go = [
        LineageVerdict::FirstStart,
        LineageVerdict::TakeOver { record: STATE },
        LineageVerdict::Continue { record: None },
    ];
    assert!(go.into_iter().all(|verdict| verdict.into_error("runs", "s").is_none()));
}

/// Goal: whenever the verdict is to go on, nothing is missing and nothing dead is kept; and
/// whenever both hold for certain on a known branch, it does go on.
/// Method: every small world there is: where our timeline was left, what was confirmed, where
/// commits are, which of them reached ClickHouse, where the slot is.
#[test]
fn going_on_neither_loses_a_commit_nor_keeps_a_dead_one() {
    const END: u64 = 6;
    let mut went_on = 0;
    for fork in 0..=END {
        for same_timeline in [true, false] {
            for confirmed in 0..=END {
                // What reached ClickHouse is all that was confirmed, and some above it.
                for reached in 0..=END {
                    for slot_at in 0..=END {
                        for commits in 0..1u32 << END {
                            let ours = |at: u64| commits >> (at - 1) & 1 == 1;
                            let landed = |at| ours(at) && at <= reached.max(confirmed);
                            let upper = (1..=END).filter(|&at| landed(at)).max().unwrap_or(0);
                            let state = LineageState {
                                confirmed: Lsn(confirmed),
                                upper_lsn: Lsn(upper),
                                timeline: 1,
                                ..STATE
                            };
                            let timeline = if same_timeline { 1 } else { 2 };
                            let server = ServerTimeline { timeline, wal_end: Lsn(END), ..SERVER };
                            let slot = Slot { confirmed_flush: Lsn(slot_at), ..SLOT };
                            let history =
                                if same_timeline { vec![] } else { vec![switch(1, fork)] };
                            let verdict = judge(Some(&state), Some(&slot), &server, &history);
                            // On the live branch a commit of its own may be anywhere.
                            let shared = if same_timeline { END } else { fork };
                            let missing =
                                (1..=slot_at).any(|at| shared < at || (ours(at) && !landed(at)));
                            let dead = (1..=END).any(|at| landed(at) && shared < at);
                            let goes_on = matches!(verdict, LineageVerdict::Continue { .. });
                            let world = (fork, confirmed, reached, slot_at, commits, timeline);
                            assert!(!goes_on || !(missing || dead), "{world:?}: {verdict:?}");
                            let known = slot_at <= confirmed.min(shared) && !dead;
                            assert!(goes_on || !known, "{world:?}: {verdict:?}");
                            went_on += u32::from(goes_on);
                        }
                    }
                }
            }
        }
    }
    assert!(0 < went_on);
}

#[test]
fn wal_that_nobody_can_decode_is_a_gap_where_the_stream_would_go_on() {
    let at = Lsn(105);
    let undecodable = |confirmed| LineageVerdict::Gap { confirmed, why: Gap::Undecodable { at } };
    let goes_on = LineageVerdict::Continue { record: None };
    let confirmed = Some(STATE.confirmed);
    assert_eq!(judge_undecodable(goes_on, Some(&STATE), at), undecodable(confirmed));
    let takes_over = LineageVerdict::TakeOver { record: STATE };
    assert_eq!(judge_undecodable(takes_over, None, at), undecodable(None));
    // A new slot is made for these anyway, or none at all.
    for graver in [
        LineageVerdict::FirstStart,
        LineageVerdict::Gap { confirmed, why: Gap::SlotMissing },
        LineageVerdict::ForeignCluster { expected: 1, found: 2 },
    ] {
        assert_eq!(judge_undecodable(graver, Some(&STATE), at), graver);
    }
}
