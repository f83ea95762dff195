//! Lands every good row of a block that ClickHouse refused.
//!
//! A pure plan: the flusher asks for the next step, does it, and says how it went. What went wrong
//! on the way there (no answer, an outage) is no verdict about rows: do the same step again.
//!
//! ```text
//!   block refused -> halves -> ... -> one row refused
//!                                      -> blank document 0, blank document 1, ..., blank all
//!                                      -> refused as a whole
//! ```
//!
//! There is no budget of inserts, because giving up would lose rows or stop the stream for ever.
//! The plan is bounded by itself: k bad rows of n take at most k * (2 * log2(n) + documents + 3)
//! inserts, and a few more. A table that takes nothing is found out sooner: when no range has
//! landed for a while, single rows from all over the block are tried to their end.

use std::collections::VecDeque;
use std::ops::Range;

/// Rows refused as a whole, one after the other, while nothing landed.
///
/// It is the table that is wrong then (a column gone, a constraint new), not the rows: they must
/// not drain into the dead-letter table one by one. One for each table, across blocks, because a
/// quiet stream's blocks have one row each. Within a block the limit ends a hopeless plan early.
#[derive(Debug, Clone)]
pub struct Streak {
    refused: u32,
    refused_max: u32,
}

impl Streak {
    /// At `refused_max` the answer is an outage.
    pub fn new(refused_max: u32) -> Streak {
        Streak { refused: 0, refused_max: refused_max.max(1) }
    }

    /// Something landed in the table, by salvage or not.
    pub fn on_landed(&mut self) {
        self.refused = 0;
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Insert these rows as they are.
    Insert(Range<usize>),
    /// Insert this row with documents made empty. If it lands, keep what was made empty.
    Blank { row: usize, documents: Documents },
    /// Nothing is left to try. These rows did not land; keep each in full, then the block is done.
    Done { refused: Vec<usize> },
    /// Treat it as an outage: keep the block, refuse nothing of it, try all of it again later.
    Suspend,
}

/// Refused inserts without any landing before single rows are tried.
const PROBE_AFTER: u32 = 32;
/// How many single rows then are.
const PROBES_MAX: usize = 16;

/// Which of a row's JSON columns, by their place in the order the caller chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Documents {
    One(usize),
    All,
}

#[derive(Debug)]
pub struct Salvage {
    documents: usize,
    /// Breadth first: large ranges land before single rows are doubted, so that a table that does
    /// take rows shows it early.
    pending: VecDeque<Try>,
    refused: Vec<usize>,
    landed: bool,
    suspended: bool,
    refused_inserts: u32,
}

#[derive(Debug, Clone)]
enum Try {
    Rows(Range<usize>),
    Blanked { row: usize, documents: Documents },
}

impl Salvage {
    /// The whole block of `rows` was refused. A row has `documents` columns that may be blanked.
    pub fn of(rows: usize, documents: usize, streak: &mut Streak) -> Salvage {
        let mut salvage = Salvage {
            documents,
            pending: VecDeque::new(),
            refused: Vec::new(),
            landed: false,
            suspended: false,
            refused_inserts: 0,
        };
        if 0 < rows {
            salvage.after_refusal(Try::Rows(0..rows), streak);
        }
        salvage
    }

    /// The same step again until its outcome is told.
    pub fn step(&self) -> Step {
        if self.suspended {
            return Step::Suspend;
        }
        match self.pending.front() {
            Some(Try::Rows(range)) => Step::Insert(range.clone()),
            Some(&Try::Blanked { row, documents }) => Step::Blank { row, documents },
            None => {
                let mut refused = self.refused.clone();
                refused.sort_unstable();
                Step::Done { refused }
            }
        }
    }

    /// The step's rows are durable.
    pub fn on_landed(&mut self, streak: &mut Streak) {
        if self.pending.pop_front().is_some() {
            self.landed = true;
            streak.on_landed();
        }
    }

    /// ClickHouse refused the step's rows for what is in them.
    pub fn on_refused(&mut self, streak: &mut Streak) {
        if let Some(tried) = self.pending.pop_front() {
            self.after_refusal(tried, streak);
            self.refused_inserts = self.refused_inserts.saturating_add(1);
            if self.refused_inserts == PROBE_AFTER && !self.landed {
                self.probe();
            }
        }
    }

    /// Takes the first row out of ranges all over the block, to be tried next.
    fn probe(&mut self) {
        let every = self.pending.len().div_ceil(PROBES_MAX).max(1);
        let mut probes = Vec::new();
        for tried in self.pending.iter_mut().step_by(every) {
            if let Try::Rows(range) = tried
                && 1 < range.len()
            {
                probes.push(Try::Rows(range.start..range.start + 1));
                range.start += 1;
            }
        }
        probes.into_iter().rev().for_each(|probe| self.pending.push_front(probe));
    }

    fn after_refusal(&mut self, tried: Try, streak: &mut Streak) {
        match tried {
            Try::Rows(range) if 1 < range.len() => {
                let middle = range.start + range.len() / 2;
                self.pending.push_back(Try::Rows(range.start..middle));
                self.pending.push_back(Try::Rows(middle..range.end));
            }
            Try::Rows(range) => self.blank(range.start, Documents::One(0), streak),
            Try::Blanked { row, documents: Documents::One(at) } => {
                self.blank(row, Documents::One(at + 1), streak);
            }
            Try::Blanked { row, documents: Documents::All } => self.refuse(row, streak),
        }
    }

    /// Tries this one next; after the last document all of them, if that is not the same.
    fn blank(&mut self, row: usize, documents: Documents, streak: &mut Streak) {
        let documents = match documents {
            Documents::One(at) if at < self.documents => Documents::One(at),
            Documents::One(_) | Documents::All if 1 < self.documents => Documents::All,
            Documents::One(_) | Documents::All => return self.refuse(row, streak),
        };
        self.pending.push_front(Try::Blanked { row, documents });
    }

    fn refuse(&mut self, row: usize, streak: &mut Streak) {
        self.refused.push(row);
        // Once a row of this block has landed, the others are refused for what is in them.
        if self.landed {
            return;
        }
        let here = u32::try_from(self.refused.len()).unwrap_or(u32::MAX);
        // Earlier blocks speak only when this one has been tried to its end: a good row may follow.
        if self.pending.is_empty() || streak.refused_max <= here {
            streak.refused = streak.refused.saturating_add(here);
            self.suspended = streak.refused_max <= streak.refused;
        }
    }
}

#[cfg(test)]
mod tests {
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
    }

    #[derive(Debug, Default)]
    struct Landed {
        rows: Vec<usize>,
        blanked: Vec<(usize, Documents)>,
        inserts: usize,
    }

    fn run(rows: &[Row], documents: usize, streak: &mut Streak) -> (Landed, Step) {
        let mut salvage = Salvage::of(rows.len(), documents, streak);
        let mut landed = Landed::default();
        loop {
            let step = salvage.step();
            assert_eq!(step, salvage.step(), "asking changes nothing");
            let accepted = match &step {
                Step::Insert(range) => rows[range.clone()].iter().all(|&row| row == Row::Good),
                &Step::Blank { row, documents: Documents::One(at) } => rows[row] == Row::Bad(at),
                &Step::Blank { row, documents: Documents::All } => rows[row] != Row::Poison,
                Step::Done { .. } | Step::Suspend => return (landed, step),
            };
            landed.inserts += 1;
            if !accepted {
                salvage.on_refused(streak);
                continue;
            }
            match step {
                Step::Insert(range) => landed.rows.extend(range),
                Step::Blank { row, documents } => landed.blanked.push((row, documents)),
                Step::Done { .. } | Step::Suspend => unreachable!("returned above"),
            }
            salvage.on_landed(streak);
        }
    }

    #[test]
    fn lands_every_good_row_and_names_every_bad_one() {
        for rows in 2..40 {
            for bad in 0..rows {
                let mut block = vec![Row::Good; rows];
                block[bad] = Row::Poison;
                let (landed, end) = run(&block, 2, &mut Streak::new(2));
                assert_eq!(landed.rows.len(), rows - 1);
                assert_eq!(end, Step::Done { refused: vec![bad] });
            }
        }
    }

    #[test]
    fn documents_are_blanked_in_order_then_all_then_the_row_is_refused() {
        let steps = |documents| {
            let mut streak = Streak::new(9);
            let mut salvage = Salvage::of(1, documents, &mut streak);
            let mut steps = Vec::new();
            while let Step::Blank { row: 0, documents } = salvage.step() {
                steps.push(documents);
                salvage.on_refused(&mut streak);
            }
            assert_eq!(salvage.step(), Step::Done { refused: vec![0] });
            steps
        };
        assert_eq!(steps(0), []);
        assert_eq!(steps(1), [Documents::One(0)], "all of one is the same as one");
        assert_eq!(steps(2), [Documents::One(0), Documents::One(1), Documents::All]);
    }

    #[test]
    fn a_row_that_lands_blanked_loses_no_more_than_it_must() {
        let block = [Row::Good, Row::Bad(1), Row::AllBad, Row::Bad(0)];
        let (landed, end) = run(&block, 2, &mut Streak::new(1));
        let expected = [(1, Documents::One(1)), (2, Documents::All), (3, Documents::One(0))];
        assert_eq!(landed.rows, [0]);
        assert_eq!(landed.blanked, expected);
        assert_eq!(end, Step::Done { refused: vec![] });
    }

    #[test]
    fn a_table_that_takes_nothing_is_an_outage_and_refuses_nothing() {
        let mut streak = Streak::new(20);
        let (landed, end) = run(&[Row::Poison; 64], 0, &mut streak);
        assert_eq!((landed.rows.len(), end), (0, Step::Suspend));
        // So are later blocks, tried to their end, until something lands.
        let (landed, end) = run(&[Row::Poison; 2], 1, &mut streak);
        assert_eq!((landed.inserts, end), (4, Step::Suspend));
        let (_, end) = run(&[Row::Poison, Row::Good], 0, &mut streak.clone());
        assert_eq!(end, Step::Done { refused: vec![0] });
        streak.on_landed();
        assert_eq!(run(&[Row::Poison; 2], 0, &mut streak).1, Step::Done { refused: vec![0, 1] });
    }

    #[test]
    fn a_large_block_for_a_table_that_takes_nothing_is_given_up_after_few_inserts() {
        let (landed, end) = run(&vec![Row::Poison; 100_000], 2, &mut Streak::new(10));
        assert_eq!(end, Step::Suspend);
        assert!(landed.inserts < 100, "{}", landed.inserts);
    }

    #[test]
    fn a_large_block_of_which_every_row_has_a_bad_document_lands_without_them() {
        let (landed, end) = run(&vec![Row::Bad(1); 5_000], 2, &mut Streak::new(10));
        assert_eq!(end, Step::Done { refused: vec![] });
        assert_eq!(landed.blanked.len(), 5_000);
    }

    #[test]
    fn the_streak_lasts_across_blocks_of_one_row() {
        let mut streak = Streak::new(3);
        for _ in 0..2 {
            let (_, end) = run(&[Row::Poison], 1, &mut streak);
            assert_eq!(end, Step::Done { refused: vec![0] });
        }
        assert_eq!(run(&[Row::Poison], 1, &mut streak).1, Step::Suspend);
        // The table takes a row again, if only without its document.
        assert_eq!(run(&[Row::Bad(0)], 1, &mut streak).1, Step::Done { refused: vec![] });
        assert_eq!(run(&[Row::Poison], 1, &mut streak).1, Step::Done { refused: vec![0] });
    }

    #[test]
    fn many_bad_rows_beside_good_ones_are_not_an_outage() {
        let mut block = vec![Row::Poison; 50];
        block.extend([Row::Good; 50]);
        let (landed, end) = run(&block, 0, &mut Streak::new(5));
        assert_eq!(landed.rows.len(), 50);
        assert_eq!(end, Step::Done { refused: (0..50).collect() });
    }

    #[test]
    fn an_empty_block_is_done() {
        let mut streak = Streak::new(1);
        let mut salvage = Salvage::of(0, 2, &mut streak);
        salvage.on_refused(&mut streak);
        salvage.on_landed(&mut streak);
        assert_eq!(salvage.step(), Step::Done { refused: vec![] });
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
                    _ => Row::Good,
                })
                .collect();
            if block.iter().all(|&row| row == Row::Good) {
                continue;
            }
            let (landed, end) = run(&block, documents, &mut Streak::new(u32::MAX));
            let Step::Done { refused } = end else { panic!("seed {seed}: {end:?}") };
            let mut seen = landed.rows.clone();
            seen.extend(landed.blanked.iter().map(|&(row, _)| row));
            seen.extend(&refused);
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..block.len()), "seed {seed}");
            assert!(landed.rows.iter().all(|&row| block[row] == Row::Good), "seed {seed}");
            assert!(refused.iter().all(|&row| block[row] == Row::Poison), "seed {seed}");
            let bad = block.iter().filter(|&&row| row != Row::Good).count();
            let depth = block.len().next_power_of_two().trailing_zeros() as usize;
            let most = bad * (2 * depth + documents + 3) + 3 * PROBES_MAX;
            assert!(landed.inserts <= most, "seed {seed}: {} > {most}", landed.inserts);
        }
    }
}
