//! Seeds, and what each of them must show.
//!
//! `WALHOUSE_MODEL_SEEDS` runs as many (default 2,000; 200,000 take minutes), for a change of the
//! algorithm. `WALHOUSE_MODEL_FAULTS=1` prints the first seed that shows each of [`FAULTS`], for a
//! change of the model.

use std::collections::BTreeMap;
use std::env;

use super::*;

/// Each done wrong, and a seed that shows it.
const FAULTS: [(&str, Design, u64); 14] = [
    ("prune at base", Design { tombstones_above_base: false, ..RIGHT }, 6_443),
    ("no reservation", Design { reads_are_reserved: false, ..RIGHT }, 94),
    ("no flush", Design { reads_are_flushed: false, ..RIGHT }, 161),
    ("no wait for values", Design { values_read_again_wait: false, ..RIGHT }, 7_637),
    ("snapshot behind the stream", Design { reads_see_the_stream: false, ..RIGHT }, 8_028),
    ("shift not raised", Design { shift_is_raised: false, ..RIGHT }, 15),
    ("late inserts", Design { inserts_die_with_their_session: false, ..RIGHT }, 22_353),
    ("debt not recorded", Design { debt_is_recorded: false, ..RIGHT }, 23_836),
    ("debt not paid", Design { debt_is_paid: false, ..RIGHT }, 521),
    ("neither", Design { debt_is_recorded: false, debt_is_paid: false, ..RIGHT }, 1_959),
    ("versions by position", Design { removals_are_remembered: false, ..RIGHT }, 39),
    ("removals not asked for", Design { removals_are_asked_for: false, ..RIGHT }, 11_705),
    ("rows not asked for", Design { rows_are_asked_for: false, ..RIGHT }, 192),
    ("state first", Design { repair_row_first: false, debt_is_recorded: false, ..RIGHT }, 189),
];

const VERDICTS: [&str; 12] = [
    "Below",
    "Continue",
    "Continue recorded",
    "FirstStart",
    "ForeignCluster",
    "NotAncestor",
    "Older",
    "SlotAhead",
    "SlotInvalidated",
    "SlotMissing",
    "TakeOver",
    "WentBack",
];

fn seeds() -> u64 {
    let asked = env::var("WALHOUSE_MODEL_SEEDS");
    asked.map_or(2_000, |text| text.parse().expect("WALHOUSE_MODEL_SEEDS is a number"))
}

#[track_caller]
fn holds(strategy: GapStrategy, design: Design, seeds: u64) {
    let now = Instant::now();
    let mut verdicts = BTreeMap::new();
    for seed in 0..seeds {
        match run(seed, now, design, strategy, false).0 {
            Ok(seen) => seen.into_iter().for_each(|name| *verdicts.entry(name).or_insert(0) += 1),
            Err(broken) => {
                let (_, steps) = run(seed, now, design, strategy, true);
                panic!("seed {seed}: {broken}\n{}", steps.join("\n"));
            }
        }
    }
    assert_eq!(verdicts.keys().copied().collect::<Vec<_>>(), VERDICTS, "{verdicts:?}");
}

#[test]
fn clickhouse_equals_the_surviving_primary() {
    holds(GapStrategy::Repair, RIGHT, seeds());
}

#[test]
fn tables_that_are_filled_equal_the_surviving_primary() {
    let design = Design { tables_are_filled: true, ..RIGHT };
    for strategy in [GapStrategy::Repair, GapStrategy::Skip] {
        holds(strategy, design, (seeds() / 4).max(500));
    }
}

/// Rows that are hidden, of a table that is out of its publication, swapped or rewritten.
const CHANGING: Design = Design { source_changes: true, ..RIGHT };

#[test]
fn a_source_that_changes_hides_nothing() {
    for strategy in [GapStrategy::Repair, GapStrategy::Halt] {
        holds(strategy, CHANGING, (seeds() / 4).max(500));
    }
}

#[test]
fn each_fault_about_a_source_that_changes_is_found() {
    let now = Instant::now();
    for (name, design) in [
        ("nobody looks", Design { source_is_watched: false, ..CHANGING }),
        ("the look first", Design { debt_before_look: false, ..CHANGING }),
        ("no fence", Design { repairs_wait_at_a_fence: false, ..CHANGING }),
        ("ahead of the stream", Design { fences_wait_for_the_stream: false, ..CHANGING }),
    ] {
        let shows = |seed: &u64| run(*seed, now, design, GapStrategy::Repair, false).0.is_err();
        let found = (0..20_000).find(shows);
        println!("{name}: {found:?}");
        assert!(found.is_some(), "{name}: no seed shows it");
    }
}

#[test]
fn skip_is_right_about_what_changes_afterwards() {
    holds(GapStrategy::Skip, RIGHT, (seeds() / 4).max(500));
}

#[test]
fn halt_goes_on_only_where_nothing_is_missed() {
    holds(GapStrategy::Halt, RIGHT, (seeds() / 4).max(500));
}

#[test]
fn each_fault_of_the_design_is_found() {
    let now = Instant::now();
    for (name, design, seed) in FAULTS {
        let (result, steps) = run(seed, now, design, GapStrategy::Repair, true);
        if env::var_os("WALHOUSE_MODEL_FAULTS").is_some() {
            let shows = |seed: &u64| run(*seed, now, design, GapStrategy::Repair, false).0.is_err();
            println!("{name}: {:?}", (0..400_000).find(shows));
        } else {
            assert!(result.is_err(), "{name}: seed {seed} does not show it\n{}", steps.join("\n"));
        }
    }
}
