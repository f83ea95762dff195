//! How much of a large query goes to ClickHouse in one statement.
//!
//! A query for many ids in a table that is not sorted by id reads that column of the whole table,
//! for one id or a hundred thousand: so all of them go into one statement. If that is too much, the
//! query is cut: into partitions, which stay what they are while parts are merged, so that together
//! they still read the table once, and into fewer ids. What was answered stays answered; the sizes
//! that were right are kept for the next questions, and grow again after a while.
//!
//! ```text
//!   ids ->      | partition 1 | partition 2 | partition 3 |
//!   0 .. 5000   |  answered   |  asked now  |   pending   |
//!   5000 ..     |             pending                     |
//! ```

use std::collections::VecDeque;
use std::ops::Range;

/// The largest statement that is known to work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    ids_limit: usize,
    ids_max: usize,
    /// The number of partitions that are read.
    rows_max: u64,
    /// How many times the usual timeout is allowed.
    patience: u32,
    /// Statements that were answered since anything was too much.
    answered: u32,
}

/// Why a statement was too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMuch {
    /// More of the table is read than can be, in the time or at all.
    Scan,
    /// It is too long, or its answer is.
    Statement,
}

/// One statement's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portion {
    pub ids: Range<usize>,
    /// Indexes into the argument of [`PortionSearch::on_partitions`]; `None`: the table as a whole.
    pub partitions: Option<Range<usize>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Find out which partitions the table has.
    ListPartitions,
    Ask(Portion),
    Done,
}

/// The longest wait for the statement that reads a partition.
const PATIENCE_MAX: u32 = 64;
/// Before there are fewer ids to a statement, which then reads the same once more.
const PATIENCE_BEFORE_IDS: u32 = 8;
const GROW_AFTER: u32 = 32;

impl Sizes {
    pub fn new(ids_limit: usize) -> Sizes {
        let ids_limit = ids_limit.max(1);
        Sizes { ids_limit, ids_max: ids_limit, rows_max: u64::MAX, patience: 1, answered: 0 }
    }

    /// What was too much once may work later.
    fn on_answer(&mut self) {
        self.answered += 1;
        if self.answered < GROW_AFTER {
            return;
        }
        self.answered = 0;
        self.ids_max = self.ids_max.saturating_mul(2).min(self.ids_limit);
        self.rows_max = self.rows_max.saturating_mul(2);
        self.patience = (self.patience / 2).max(1);
    }
}

/// One question, and what is still to be asked of it.
#[derive(Debug)]
pub struct PortionSearch<'s> {
    sizes: &'s mut Sizes,
    pending: VecDeque<Portion>,
    /// Rows of each, once they are known.
    partitions: Option<Vec<u64>>,
    /// The answer of a partition is complete in itself.
    may_cut_table: bool,
    wants_partitions: bool,
    /// One statement for all of it has just failed.
    is_whole_too_much: bool,
}

impl<'s> PortionSearch<'s> {
    pub fn new(sizes: &'s mut Sizes, ids: usize, may_cut_table: bool) -> PortionSearch<'s> {
        let whole = Portion { ids: 0..ids, partitions: None };
        PortionSearch {
            wants_partitions: may_cut_table && 0 < ids && sizes.rows_max < u64::MAX,
            pending: (0 < ids).then_some(whole).into_iter().collect(),
            partitions: None,
            may_cut_table,
            is_whole_too_much: false,
            sizes,
        }
    }

    /// How many times the usual time a statement is given.
    pub fn patience(&self) -> u32 {
        self.sizes.patience
    }

    /// Returns the same portion until its outcome is reported.
    pub fn step(&mut self) -> Next {
        if self.wants_partitions {
            return Next::ListPartitions;
        }
        let Some(first) = self.pending.front().cloned() else { return Next::Done };
        let (portion, rest) = self.cut(first);
        if !rest.is_empty() {
            self.pending.pop_front();
            rest.into_iter().rev().for_each(|rest| self.pending.push_front(rest));
            self.pending.push_front(portion.clone());
        }
        Next::Ask(portion)
    }

    /// The rows of each partition; later partitions hold nothing that the query asks for.
    pub fn on_partitions(&mut self, rows: Vec<u64>) {
        self.wants_partitions = false;
        if rows.is_empty() {
            self.pending.clear();
        }
        let total = rows.iter().fold(0, |sum: u64, rows| sum.saturating_add(*rows));
        if std::mem::take(&mut self.is_whole_too_much) {
            self.sizes.rows_max = self.sizes.rows_max.min((total / 2).max(1));
        } else if total <= self.sizes.rows_max {
            self.sizes.rows_max = u64::MAX;
        }
        for portion in self.pending.iter_mut().filter(|portion| portion.partitions.is_none()) {
            portion.partitions = Some(0..rows.len());
        }
        self.partitions = Some(rows);
    }

    /// The portion was answered.
    pub fn on_answer(&mut self) {
        self.pending.pop_front();
        self.sizes.on_answer();
    }

    /// The portion was too much, or looked so: the next ones are smaller, or are given more time.
    /// False where neither can be: it is the smallest there is, and has had all the time.
    pub fn on_too_much(&mut self, why: TooMuch) -> bool {
        let Some(portion) = self.pending.front() else { return false };
        let (ids, table) = (portion.ids.len(), portion.partitions.clone());
        self.sizes.answered = 0;
        let is_table_whole = table.is_none() && self.may_cut_table;
        let fewer_ids = |sizes: &mut Sizes| sizes.ids_max = (ids / 2).max(1);
        match (why, table) {
            (TooMuch::Statement, _) if 1 < ids => fewer_ids(self.sizes),
            _ if is_table_whole => {
                (self.wants_partitions, self.is_whole_too_much) = (true, true);
            }
            (_, Some(range)) if 1 < range.len() => {
                self.sizes.rows_max = (self.rows_of(&range) / 2).max(1);
            }
            _ if self.sizes.patience < PATIENCE_BEFORE_IDS => self.sizes.patience *= 2,
            _ if 1 < ids => fewer_ids(self.sizes),
            _ if self.sizes.patience < PATIENCE_MAX => self.sizes.patience *= 2,
            _ => return false,
        }
        true
    }

    fn rows_of(&self, partitions: &Range<usize>) -> u64 {
        let rows = self.partitions.as_deref().and_then(|all| all.get(partitions.clone()));
        rows.unwrap_or_default().iter().fold(0, |sum: u64, rows| sum.saturating_add(*rows))
    }

    /// The part that fits, and the rest.
    fn cut(&self, mut portion: Portion) -> (Portion, Vec<Portion>) {
        let mut rest = Vec::new();
        // First by ids: a statement for fewer of them must not be missed in the other partitions.
        if self.sizes.ids_max < portion.ids.len() {
            let at = portion.ids.start + self.sizes.ids_max;
            rest.push(Portion { ids: at..portion.ids.end, ..portion.clone() });
            portion.ids.end = at;
        }
        if let Some(range) = portion.partitions.clone() {
            let mut end = (range.start + 1).min(range.end);
            while end < range.end && self.rows_of(&(range.start..end + 1)) <= self.sizes.rows_max {
                end += 1;
            }
            if end < range.end {
                rest.insert(0, Portion { partitions: Some(end..range.end), ..portion.clone() });
                portion.partitions = Some(range.start..end);
            }
        }
        (portion, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::prng::Prng;

    fn portion(ids: Range<usize>, partitions: Option<Range<usize>>) -> Next {
        Next::Ask(Portion { ids, partitions })
    }

    #[test]
    fn all_ids_go_into_one_statement_that_reads_the_table_once() {
        let mut sizes = Sizes::new(1_000_000);
        let mut search = PortionSearch::new(&mut sizes, 222_000, true);
        assert_eq!(search.step(), portion(0..222_000, None));
        assert_eq!(search.step(), portion(0..222_000, None), "until it is told");
        search.on_answer();
        assert_eq!(search.step(), Next::Done);
        assert_eq!(PortionSearch::new(&mut sizes, 0, true).step(), Next::Done);
    }

    #[test]
    fn a_scan_that_is_late_is_cut_into_partitions_and_then_given_time() {
        let mut sizes = Sizes::new(100);
        let mut search = PortionSearch::new(&mut sizes, 100, true);
        search.step();
        search.on_too_much(TooMuch::Scan);
        assert_eq!(search.step(), Next::ListPartitions);
        search.on_partitions(vec![10, 10, 1000]);
        assert_eq!(search.step(), portion(0..100, Some(0..2)));
        search.on_answer();
        assert_eq!(search.step(), portion(0..100, Some(2..3)));
        for patience in [2, 4, 8] {
            assert!(search.on_too_much(TooMuch::Scan));
            assert_eq!(search.step(), portion(0..100, Some(2..3)), "nothing smaller to read");
            assert_eq!(search.patience(), patience);
        }
        search.on_too_much(TooMuch::Scan);
        assert_eq!(search.step(), portion(0..50, Some(2..3)));
        search.on_answer();
        assert_eq!(search.step(), portion(50..100, Some(2..3)));
        search.on_answer();
        assert_eq!(search.step(), Next::Done);
        // What was found out is kept.
        let mut search = PortionSearch::new(&mut sizes, 10, true);
        assert_eq!(search.step(), Next::ListPartitions);
    }

    #[test]
    fn a_statement_that_is_turned_down_has_fewer_ids_in_every_partition() {
        let mut sizes = Sizes::new(100);
        let mut search = PortionSearch::new(&mut sizes, 100, false);
        search.step();
        search.on_too_much(TooMuch::Statement);
        assert_eq!(search.step(), portion(0..50, None));
        search.on_answer();
        assert_eq!(search.step(), portion(50..100, None));
        assert_eq!(PortionSearch::new(&mut sizes, 60, false).step(), portion(0..50, None));
    }

    #[test]
    fn what_cannot_be_less_is_given_up() {
        let mut sizes = Sizes::new(1);
        let mut search = PortionSearch::new(&mut sizes, 1, true);
        let mut steps = 0;
        loop {
            match search.step() {
                Next::ListPartitions => search.on_partitions(vec![7, 7]),
                Next::Ask(_) if !search.on_too_much(TooMuch::Scan) => break,
                _ => {}
            }
            steps += 1;
            assert!(steps < 20, "it is asked without end");
        }
        assert_eq!(search.patience(), PATIENCE_MAX);
    }

    #[test]
    fn an_empty_table_answers_by_itself() {
        let mut sizes = Sizes::new(10);
        let mut search = PortionSearch::new(&mut sizes, 10, true);
        search.step();
        search.on_too_much(TooMuch::Scan);
        assert_eq!(search.step(), Next::ListPartitions);
        search.on_partitions(Vec::new());
        assert_eq!(search.step(), Next::Done);
    }

    /// Goal: whatever is too much, every id is asked for in every partition, and once only; and
    /// where nothing is too much any more, the sizes grow back.
    #[test]
    fn every_id_meets_every_partition_once() {
        for seed in 0..300 {
            let mut prng = Prng::from_seed(seed);
            let mut sizes = Sizes::new(64);
            for _ in 0..5 {
                let ids = 1 + prng.below(100) as usize;
                let partitions: Vec<u64> = (0..1 + prng.below(6)).map(|_| prng.below(50)).collect();
                let mut met = vec![vec![0; partitions.len()]; ids];
                let mut search = PortionSearch::new(&mut sizes, ids, prng.below(4) > 0);
                let mut steps = 0;
                loop {
                    steps += 1;
                    assert!(steps < 10_000, "seed {seed}: without end");
                    match search.step() {
                        Next::Done => break,
                        Next::ListPartitions => search.on_partitions(partitions.clone()),
                        Next::Ask(_) if prng.below(3) == 0 => {
                            search.on_too_much(match prng.below(2) {
                                0 => TooMuch::Scan,
                                _ => TooMuch::Statement,
                            });
                        }
                        Next::Ask(portion) => {
                            let all = 0..partitions.len();
                            for id in portion.ids {
                                for at in portion.partitions.clone().unwrap_or(all.clone()) {
                                    met[id][at] += 1;
                                }
                            }
                            search.on_answer();
                        }
                    }
                }
                assert!(met.iter().flatten().all(|times| *times == 1), "seed {seed}: {met:?}");
            }
            for _ in 0..2_000 {
                let mut search = PortionSearch::new(&mut sizes, 1, true);
                if search.step() == Next::ListPartitions {
                    search.on_partitions(vec![1_000_000]);
                    search.step();
                }
                search.on_answer();
            }
            assert_eq!(sizes, Sizes { answered: sizes.answered, ..Sizes::new(64) }, "seed {seed}");
        }
    }
}
