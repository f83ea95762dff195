use super::*;
use crate::machines::prng::Prng;

/// What ClickHouse would say of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    Good,
    /// Only this document is bad.
    Bad(usize),
    /// Every document is bad.
    AllBad,
    Poison,
    /// A view throws.
    Unseen,
    /// It is too much for a view, even alone.
    Heavy,
}

/// A table, its server and what stands before it.
#[derive(Debug, Clone)]
struct World {
    rows: Vec<Row>,
    documents: usize,
    /// The refusal names what it is about.
    names: bool,
    can_repeat: bool,
    /// Rows that are taken at a time.
    rows_max: usize,
    /// From that INSERT on every row is refused.
    refuses_from: usize,
    /// Until so many INSERTs were made, they are.
    refuses_until: usize,
    /// The same of the server: no answer.
    away_until: usize,
    view_is_broken: bool,
    /// Rows that a view takes at a time; 0: a row alone is too much for it.
    view_rows_max: usize,
    has_known: bool,
}

impl World {
    fn of(rows: &[Row]) -> World {
        World {
            rows: rows.to_vec(),
            documents: 2,
            names: false,
            can_repeat: true,
            rows_max: usize::MAX,
            refuses_from: 0,
            refuses_until: 0,
            away_until: 0,
            view_is_broken: false,
            view_rows_max: usize::MAX,
            has_known: true,
        }
    }

    fn refuses_all(&self, inserts: usize) -> bool {
        (self.refuses_from..=self.refuses_until).contains(&inserts)
    }

    fn verdict(&self, step: &Step, inserts: usize) -> Result<(), InsertFault> {
        if inserts <= self.away_until {
            return Err(InsertFault::Away);
        }
        let (range, blanked, views) = match step {
            Step::Insert { rows, views } => (rows.clone(), &[][..], *views),
            Step::Blank { row, documents, views } => (*row..row + 1, &documents[..], *views),
            Step::Probe(KnownGood::Landed(row)) => {
                assert!(self.can_repeat, "it would be there twice");
                (*row..row + 1, &[][..], Views::Heard)
            }
            Step::Probe(KnownGood::OfTable | KnownGood::CopyOfTable) => {
                let refused = self.refuses_all(inserts);
                return match (refused, self.view_is_broken) {
                    (true, _) => Err(InsertFault::Rows(Blame::default())),
                    (false, true) => Err(InsertFault::View),
                    (false, false) => Ok(()),
                };
            }
            Step::Done { .. } => unreachable!("it is no INSERT"),
        };
        if self.rows_max < range.len() {
            return Err(InsertFault::Large);
        }
        let is_refused = |row: &Row| match row {
            Row::Good | Row::Unseen | Row::Heavy => false,
            Row::Bad(at) => !blanked.contains(at),
            Row::AllBad => blanked.len() < self.documents,
            Row::Poison => true,
        };
        let rows = &self.rows[range];
        if self.refuses_all(inserts) {
            return Err(InsertFault::Rows(Blame::default()));
        }
        if let Some(at) = rows.iter().position(is_refused) {
            let column = match rows[at] {
                _ if !self.names => BlamedColumn::Unnamed,
                Row::Bad(at) => BlamedColumn::Document(at),
                Row::AllBad => {
                    let left = (0..self.documents).find(|at| !blanked.contains(at));
                    left.map_or(BlamedColumn::Unnamed, BlamedColumn::Document)
                }
                _ => BlamedColumn::Other,
            };
            return Err(InsertFault::Rows(Blame { row: self.names.then_some(at), column }));
        }
        let is_heard = views == Views::Heard;
        if is_heard && (self.view_rows_max < rows.len() || rows.contains(&Row::Heavy)) {
            return Err(InsertFault::LargeForView);
        }
        if is_heard && (self.view_is_broken || rows.contains(&Row::Unseen)) {
            return Err(InsertFault::View);
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Landed {
    rows: Vec<usize>,
    blanked: Vec<(usize, Vec<usize>)>,
    unseen: Vec<usize>,
    refused: Vec<usize>,
    inserts: usize,
    sent: usize,
    holds: usize,
    waits: usize,
}

/// Lands the block, and gives up when it has been held so often.
fn run(world: &World, fit: &mut InsertFit, now: Instant, holds_max: usize) -> Landed {
    let mut salvage = Salvage::of(world.rows.len(), world.documents, world.can_repeat);
    let mut landed = Landed::default();
    loop {
        let step = salvage.step(fit);
        assert_eq!(step, salvage.step(fit), "asking changes nothing");
        if let Step::Done { refused } = step {
            landed.refused = refused;
            return landed;
        }
        landed.inserts += 1;
        assert!(landed.inserts < 1_000_000, "it ends");
        let is_asked = step == Step::Probe(KnownGood::CopyOfTable) || world.can_repeat;
        if matches!(step, Step::Probe(_)) && !(world.has_known && is_asked) {
            landed.holds += usize::from(salvage.on_none_known() == NextStep::Hold);
        } else {
            if let Step::Insert { rows, .. } = &step {
                landed.sent += rows.len();
            }
            match world.verdict(&step, landed.inserts) {
                Err(fault) => match salvage.on_failed(fault, fit, now) {
                    NextStep::GoOn => {}
                    NextStep::Wait => landed.waits += 1,
                    NextStep::Hold => landed.holds += 1,
                },
                Ok(()) => {
                    match &step {
                        Step::Insert { rows, views } => {
                            landed.rows.extend(rows.clone());
                            if *views != Views::Heard {
                                landed.unseen.extend(rows.clone());
                            }
                        }
                        Step::Blank { row, documents, .. } => {
                            landed.blanked.push((*row, documents.clone()));
                        }
                        Step::Probe(_) | Step::Done { .. } => {}
                    }
                    salvage.on_landed(fit, now);
                }
            }
        }
        if 0 < holds_max && holds_max <= landed.holds {
            return landed;
        }
    }
}

fn land(world: &World) -> Landed {
    run(world, &mut InsertFit::default(), Instant::now(), 1_000)
}

#[test]
fn a_good_block_takes_one_insert() {
    let landed = land(&World::of(&[Row::Good; 100]));
    assert_eq!((landed.inserts, landed.rows.len()), (1, 100));
    assert_eq!(land(&World::of(&[])).inserts, 0);
}

#[test]
fn every_good_row_lands_and_every_bad_one_is_named() {
    for rows in 2..40 {
        for bad in 0..rows {
            let mut block = vec![Row::Good; rows];
            block[bad] = Row::Poison;
            for names in [false, true] {
                let landed = land(&World { names, ..World::of(&block) });
                assert_eq!((landed.rows.len(), landed.refused), (rows - 1, vec![bad]));
            }
        }
    }
}

/// Goal: only what is named is made empty; where nothing is named, no more than it must.
#[test]
fn a_row_that_lands_blanked_loses_no_more_than_it_must() {
    let block = [Row::Good, Row::Bad(1), Row::AllBad, Row::Bad(0)];
    for names in [false, true] {
        let mut landed = land(&World { names, ..World::of(&block) });
        landed.blanked.sort();
        assert_eq!(landed.blanked, [(1, vec![1]), (2, vec![0, 1]), (3, vec![0])]);
        assert_eq!((landed.rows, landed.refused), (vec![0], vec![]));
    }
    // Nothing is made empty of a row whose key, say, is refused.
    let landed = land(&World { names: true, ..World::of(&[Row::Good, Row::Poison]) });
    assert_eq!((landed.blanked, landed.refused), (vec![], vec![1]));
}

/// Goal: a table that refuses every row is held, whatever the size of its blocks and however often
/// a session begins, and nothing of them is refused or made empty.
#[test]
fn a_table_that_refuses_everything_is_held_and_refuses_nothing() {
    for rows in [1, 2, 14, 5_000] {
        let mut world = World::of(&vec![Row::Good; rows]);
        world.refuses_until = usize::MAX;
        for _session in 0..3 {
            let landed = run(&world, &mut InsertFit::default(), Instant::now(), 20);
            assert_eq!((landed.holds, landed.rows.len()), (20, 0), "{rows}");
            assert_eq!((landed.refused.len(), landed.blanked.len()), (0, 0), "{rows}");
            // A probe each, after the first.
            assert!(landed.inserts < 20 + 6, "{rows}: {}", landed.inserts);
        }
    }
}

/// Goal: the same of a table without versions, which is not asked by a row that it has; it costs no
/// more than an INSERT at each attempt, and a few where its rows are looked at closely.
#[test]
fn a_table_without_versions_that_refuses_everything_is_held_at_a_small_cost() {
    for rows in [1, 2, 14, 5_000] {
        let mut world = World { can_repeat: false, ..World::of(&vec![Row::Good; rows]) };
        world.refuses_until = usize::MAX;
        let landed = run(&world, &mut InsertFit::default(), Instant::now(), 80);
        assert_eq!((landed.holds, landed.rows.len()), (80, 0), "{rows}");
        assert_eq!((landed.refused.len(), landed.blanked.len()), (0, 0), "{rows}");
        assert!(landed.inserts <= 80 + 11 * 60, "{rows}: {}", landed.inserts);
        // Whenever it is mended, all of them land, once.
        for refuses_until in (0..120).chain([500]) {
            let landed = land(&World { refuses_until, ..world.clone() });
            let mut seen = landed.rows;
            seen.extend(landed.blanked.iter().map(|(row, _)| row));
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..rows), "{rows} {refuses_until}");
            // The one that was being tried without a document at that moment: none can be asked.
            assert!(landed.refused.is_empty() && landed.blanked.len() <= 1, "{rows}");
        }
    }
}

/// Goal: a row that is refused alone in its block does not hold a table without versions for ever,
/// if the table takes a row that it has; and good ones behind many bad ones are found.
#[test]
fn a_table_without_versions_that_is_well_is_not_held_for_ever() {
    let world = World { can_repeat: false, ..World::of(&[Row::Poison]) };
    let landed = land(&world);
    assert_eq!((landed.holds, landed.refused), (8, vec![0]));
    let landed =
        run(&World { has_known: false, ..world }, &mut InsertFit::default(), Instant::now(), 99);
    assert_eq!((landed.holds, landed.refused), (99, vec![]));
    for has_known in [true, false] {
        let mut block = vec![Row::Poison; 40];
        block.extend([Row::Good, Row::Bad(1)]);
        let landed = land(&World { can_repeat: false, has_known, ..World::of(&block) });
        assert_eq!((landed.rows, landed.blanked), (vec![40], vec![(41, vec![1])]));
        assert_eq!(landed.refused.len(), 40, "{has_known}");
    }
}

/// Goal: whenever the table is mended, all rows land, and none is refused on the way.
#[test]
fn a_table_that_is_mended_at_any_moment_takes_every_row() {
    for rows in [1, 2, 3, 14, 40] {
        for refuses_until in 0..40 {
            let world = World { refuses_until, ..World::of(&vec![Row::Good; rows]) };
            let landed = land(&world);
            assert_eq!(landed.rows.len(), rows, "{rows} {refuses_until}");
            assert_eq!((landed.refused.len(), landed.blanked.len()), (0, 0));
        }
    }
}

/// Goal: a table that refuses every row for a while takes nothing away from a good one, also while
/// bad ones are singled out.
#[test]
fn a_table_that_refuses_everything_for_a_while_empties_no_good_row() {
    for bad in [None, Some(5)] {
        let mut rows = vec![Row::Good; 14];
        bad.into_iter().for_each(|bad: usize| rows[bad] = Row::Bad(0));
        for (refuses_from, length) in (1..60).flat_map(|from| (0..12).map(move |n| (from, n))) {
            let refuses_until = refuses_from + length;
            let world = World { refuses_from, refuses_until, ..World::of(&rows) };
            let landed = land(&world);
            let blanked = landed.blanked.iter().map(|(row, _)| *row);
            let lessened = Vec::from_iter(blanked.chain(landed.refused));
            assert_eq!(lessened, Vec::from_iter(bad), "{bad:?} {refuses_from} {length}");
        }
    }
}

#[test]
fn a_bad_row_of_a_table_without_any_other_is_refused_only_if_one_is_known() {
    let world = World { documents: 0, ..World::of(&[Row::Poison]) };
    assert_eq!(land(&world).refused, [0]);
    // A row written again would be there twice: what lands without its document tells enough.
    let world = World { can_repeat: false, ..World::of(&[Row::Bad(0)]) };
    assert_eq!(land(&world).blanked, [(0, vec![0])]);
    let world = World { can_repeat: false, ..World::of(&[Row::Poison]) };
    let landed = run(&world, &mut InsertFit::default(), Instant::now(), 5);
    assert_eq!((landed.holds, landed.refused), (5, vec![]));
    let world = World { can_repeat: false, ..World::of(&[Row::Good, Row::Poison]) };
    assert_eq!(land(&world).refused, [1]);
}

/// Goal: what a view throws for lands as it is; nothing of it is made empty or refused.
#[test]
fn what_a_view_refuses_lands_unchanged() {
    for rows in [1, 2, 14, 500] {
        for bad in [0, rows / 2, rows - 1] {
            let mut block = vec![Row::Good; rows];
            block[bad] = Row::Unseen;
            for can_repeat in [true, false] {
                let landed = land(&World { can_repeat, ..World::of(&block) });
                assert_eq!((landed.rows.len(), landed.unseen), (rows, vec![bad]));
                assert_eq!((landed.refused, landed.blanked), (vec![], vec![]));
            }
        }
        let landed = land(&World { view_is_broken: true, ..World::of(&vec![Row::Good; rows]) });
        assert_eq!((landed.rows.len(), landed.unseen.len()), (rows, rows));
        assert!(landed.inserts <= 40 && landed.sent <= 4 * rows, "{landed:?}");
    }
    // Beside rows that the table itself refuses.
    let block = [Row::Good, Row::Unseen, Row::Poison, Row::Bad(1), Row::Good];
    let mut landed = land(&World::of(&block));
    landed.rows.sort_unstable();
    assert_eq!((landed.rows, landed.unseen), (vec![0, 1, 4], vec![1]));
    assert_eq!((landed.refused, landed.blanked), (vec![2], vec![(3, vec![1])]));
}

/// Goal: a limit that a view meets makes INSERTs smaller, and where a row alone meets it, the row
/// lands without the view; nothing is held for it, and no row is sent alone for ever.
#[test]
fn what_is_too_much_for_a_view_lands_and_holds_nothing_up() {
    for rows in [1, 2, 14, 500, 5_000] {
        for bad in [0, rows / 2, rows - 1] {
            let mut block = vec![Row::Good; rows];
            block[bad] = Row::Heavy;
            let mut fit = InsertFit::default();
            let landed = run(&World::of(&block), &mut fit, Instant::now(), 1);
            assert_eq!((landed.rows.len(), landed.unseen), (rows, vec![bad]));
            assert_eq!((landed.refused, landed.blanked, landed.waits), (vec![], vec![], 3));
            assert_eq!(fit.rows_max(), None, "it is not of size");
            assert!(landed.inserts <= 50, "{rows} {bad}: {}", landed.inserts);
        }
        // A view that takes nothing, whatever the size.
        let world = World { view_rows_max: 0, ..World::of(&vec![Row::Good; rows]) };
        let landed = land(&world);
        assert_eq!((landed.rows.len(), landed.unseen.len(), landed.waits), (rows, rows, 3));
        assert!(landed.inserts <= 50, "{}", landed.inserts);
        // One that takes some of them at a time has them all.
        let world = World { view_rows_max: 10, ..world };
        let landed = land(&world);
        assert_eq!((landed.rows.len(), landed.unseen, landed.waits), (rows, vec![], 0));
    }
}

/// Goal: the size that lands is found by halves, kept for a while, and grown again.
#[test]
fn what_is_too_large_lands_by_halves_and_the_size_is_kept() {
    let mut fit = InsertFit::default();
    let begun = Instant::now();
    let world = World { rows_max: 100, ..World::of(&vec![Row::Good; 5_000]) };
    let first = run(&world, &mut fit, begun, 1);
    assert_eq!((first.rows.len(), first.waits), (5_000, 0));
    assert_eq!(fit.rows_max(), Some(78));
    // 5,000 by 78, six that were too large, and one that was tried again.
    assert!(first.inserts <= 65 + 8, "{}", first.inserts);
    let next = run(&world, &mut fit, begun + Duration::from_secs(1), 1);
    assert_eq!(next.inserts, 65, "nothing is tried that failed a second ago");
    // Each try that fails makes the next one later; one that lands goes on.
    let later = begun + Duration::from_secs(31);
    assert_eq!(run(&world, &mut fit, later, 1).inserts, 66);
    assert_eq!(run(&world, &mut fit, later + Duration::from_secs(31), 1).inserts, 65);
    let mended = World { rows_max: usize::MAX, ..world };
    for _ in 0..2 {
        run(&mended, &mut fit, later + Duration::from_secs(61), 1);
    }
    let whole = run(&mended, &mut fit, later + Duration::from_secs(62), 1);
    assert_eq!(whole.inserts, 1);
    // A row that is too large by itself is waited for: it is neither refused nor passed over.
    let mut salvage = Salvage::of(1, 0, true);
    assert_eq!(salvage.on_failed(InsertFault::Large, &mut fit, later), NextStep::Wait);
    assert!(matches!(salvage.step(&fit), Step::Insert { .. }));
}

#[test]
fn a_server_that_is_away_is_no_verdict_and_a_lost_connection_only_in_the_end() {
    let landed = land(&World { away_until: 50, ..World::of(&[Row::Good; 9]) });
    assert_eq!((landed.inserts, landed.waits, landed.rows.len()), (51, 50, 9));
    let (mut fit, now) = (InsertFit::default(), Instant::now());
    let mut salvage = Salvage::of(8, 0, true);
    for rows in [8, 8, 8, 4, 2, 1, 1] {
        let step = salvage.step(&fit);
        assert_eq!(step, Step::Insert { rows: 0..rows, views: Views::Heard });
        assert_eq!(salvage.on_failed(InsertFault::Lost, &mut fit, now), NextStep::Wait);
    }
}

#[test]
fn singling_out_is_bounded() {
    // Two of a hundred.
    let block: Vec<Row> =
        (0..5_000).map(|n| if n % 50 == 7 { Row::Poison } else { Row::Good }).collect();
    let landed = land(&World::of(&block));
    assert!(
        landed.inserts < 1_450 && landed.sent < 6 * 5_000,
        "{} {}",
        landed.inserts,
        landed.sent
    );
    assert_eq!(landed.refused.len(), 100);
    let landed = land(&World { names: true, ..World::of(&block) });
    assert!(landed.inserts < 550 && landed.sent < 4 * 5_000, "{} {}", landed.inserts, landed.sent);
    // All of them.
    let landed = land(&World::of(&vec![Row::Poison; 5_000]));
    assert!(landed.inserts < 6 * 5_000, "{}", landed.inserts);
}

/// Goal: every row is landed, landed blanked, or named as refused, once; within the bound.
#[test]
fn every_row_is_accounted_for() {
    for seed in 0..2_000 {
        let mut prng = Prng::from_seed(seed);
        let documents = prng.below(4) as usize;
        let badness = 1 + prng.below(30);
        let block: Vec<Row> = (0..1 + prng.below(200))
            .map(|_| match prng.below(badness) {
                0 => Row::Poison,
                1 if 0 < documents => Row::Bad(prng.below(documents as u64) as usize),
                2 if 1 < documents => Row::AllBad,
                3 => Row::Unseen,
                _ => Row::Good,
            })
            .collect();
        let world = World {
            documents,
            names: prng.below(2) == 0,
            rows_max: [usize::MAX, 7, 1][prng.below(3) as usize],
            refuses_until: [0, prng.below(60) as usize][prng.below(2) as usize],
            away_until: [0, prng.below(5) as usize][prng.below(2) as usize],
            ..World::of(&block)
        };
        let landed = land(&world);
        let mut seen = landed.rows.clone();
        seen.extend(landed.blanked.iter().map(|&(row, _)| row));
        seen.extend(&landed.refused);
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..block.len()), "seed {seed}: {world:?} {landed:?}");
        let is_poison = |&row: &usize| block[row] == Row::Poison;
        assert!(landed.refused.iter().all(is_poison), "seed {seed}");
        assert!(landed.unseen.iter().all(|&row| block[row] == Row::Unseen), "seed {seed}");
        let bad = block.iter().filter(|&&row| row != Row::Good).count();
        let depth = block.len().next_power_of_two().trailing_zeros() as usize;
        let mut most = (1 + bad) * (2 * depth + documents + 6) + 10;
        most += world.refuses_until + world.away_until;
        if world.rows_max < block.len() {
            most += 2 * block.len();
        }
        assert!(landed.inserts <= most, "seed {seed}: {} > {most}: {world:?}", landed.inserts);
    }
}
