//! The work of a repair: which piece is next, its progress, and what to do with a row.
//!
//! Three passes. *Read* reads every row of the source table and writes those that are missing in
//! ClickHouse or differ. *Count* reads every key of ClickHouse and counts those that are not in
//! Postgres; if that is not too much of the table ([`may_delete`]), *delete* writes tombstones for
//! them. All leave rows above the base version alone: those came, or will come, by the stream.
//!
//! Work is cut into pieces that workers take in any order. What is done counts only as an unbroken
//! run from the first, so that a repair that died goes on from there and does at most a few pieces
//! twice, which is harmless.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What ClickHouse has for a key: the latest by version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub version: u64,
    pub is_deleted: bool,
    /// Equal to the row of Postgres; of no meaning where either side has none.
    pub is_same: bool,
}

/// What to do with a row or a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Leave,
    /// Write the row of Postgres, at the base version.
    Write,
    /// Write a tombstone, one above the base version: it has to win over a row of this very repair
    /// whose delete the stream could not place, because the row was not there yet.
    Delete,
}

/// A row that Postgres has.
pub fn fate_of_row(base: u64, stored: Option<Stored>) -> Fate {
    match stored {
        None => Fate::Write,
        Some(stored) if base <= stored.version => Fate::Leave,
        Some(Stored { is_deleted: false, is_same: true, .. }) => Fate::Leave,
        Some(_) => Fate::Write,
    }
}

/// A key that ClickHouse has.
pub fn fate_of_key(base: u64, stored: Stored, is_in_postgres: bool) -> Fate {
    if stored.is_deleted || is_in_postgres || tombstone_version(base) <= stored.version {
        Fate::Leave
    } else {
        Fate::Delete
    }
}

pub fn tombstone_version(base: u64) -> u64 {
    base.saturating_add(1)
}

/// Keys of a target table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// That ClickHouse has, but for what this repair has written.
    pub alive: u64,
    /// How many of these existed before this repair and are not in Postgres.
    pub gone: u64,
}

impl Count {
    pub fn add(&mut self, other: Count) {
        self.alive += other.alive;
        self.gone += other.gone;
    }
}

/// This many are deleted without a question, even from a small table.
const FEW: u64 = 3;

/// Whether rows that a comparison found to be gone may be deleted, or an operator has to agree: if
/// they are much of a table, they more likely belong to another source, or were left on purpose.
/// `others` says that another source is known to write into it; `of_fork`, that a failover to a
/// server that was behind explains what is gone, however much it is. 100 percent allows everything.
pub fn may_delete(count: Count, percent_max: u64, others: bool, of_fork: bool) -> bool {
    let Count { alive, gone } = count;
    let is_little = u128::from(gone) * 100 <= u128::from(alive) * u128::from(percent_max);
    gone == 0 || 100 <= percent_max || !others && (is_little || gone <= FEW || of_fork)
}

/// The pieces of one pass.
#[derive(Debug)]
pub struct Pieces {
    /// The work that each one is, in a unit of the pass's own.
    weights: Vec<u64>,
    next: usize,
    /// Pieces before this one are done.
    done: usize,
    /// Done behind a gap.
    done_later: BTreeSet<usize>,
    begun_at: Instant,
    done_weight: u64,
    /// The work of pieces that were done before this began.
    skipped_weight: u64,
    /// Rows outside of these pieces: done before them, or not cut into pieces yet.
    others_weight: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// From 0 to 1.
    pub fraction: f64,
    /// `None` while nothing is done.
    pub left: Option<Duration>,
}

impl Pieces {
    /// The first `done` pieces were done by an earlier run.
    pub fn new(now: Instant, weights: Vec<u64>, done: usize) -> Pieces {
        assert!(done <= weights.len(), "no more is done than there is");
        let skipped_weight = weights[..done].iter().sum();
        Pieces {
            weights,
            next: done,
            done,
            done_later: BTreeSet::new(),
            begun_at: now,
            done_weight: 0,
            skipped_weight,
            others_weight: 0,
        }
    }

    /// These pieces are a part of the work: so much was done before them, and so much comes after.
    pub fn among(mut self, before: u64, later: u64) -> Pieces {
        self.skipped_weight += before;
        self.others_weight = before + later;
        self
    }

    /// The piece to work on next; `None` when all have been taken.
    pub fn take(&mut self) -> Option<usize> {
        let piece = self.next;
        if piece == self.weights.len() {
            return None;
        }
        self.next += 1;
        Some(piece)
    }

    /// True when the unbroken run of pieces that are done has grown.
    pub fn on_done(&mut self, piece: usize) -> bool {
        assert!(piece < self.next, "what is done was taken");
        if piece < self.done || !self.done_later.insert(piece) {
            return false;
        }
        self.done_weight += self.weights[piece];
        let before = self.done;
        while self.done_later.remove(&self.done) {
            self.done += 1;
        }
        before < self.done
    }

    /// This many from the first are done.
    pub fn done(&self) -> usize {
        self.done
    }

    pub fn count(&self) -> usize {
        self.weights.len()
    }

    pub fn is_done(&self) -> bool {
        self.done == self.weights.len()
    }

    pub fn estimate(&self, now: Instant) -> Estimate {
        let total = self.weights.iter().sum::<u64>() + self.others_weight;
        let done = self.skipped_weight + self.done_weight;
        let fraction = if total == 0 { 1.0 } else { done as f64 / total as f64 };
        let left = (0 < self.done_weight).then(|| {
            let passed = now.saturating_duration_since(self.begun_at);
            passed.mul_f64((total - done) as f64 / self.done_weight as f64)
        });
        Estimate { fraction, left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::prng::Prng;

    const BASE: u64 = 100;

    fn stored(version: u64, is_deleted: bool, is_same: bool) -> Stored {
        Stored { version, is_deleted, is_same }
    }

    #[test]
    fn a_row_is_written_unless_it_is_there_or_the_stream_has_it() {
        for (found, expected) in [
            (None, Fate::Write),
            (Some(stored(99, false, true)), Fate::Leave),
            (Some(stored(99, false, false)), Fate::Write),
            (Some(stored(99, true, false)), Fate::Write),
            (Some(stored(100, false, false)), Fate::Leave),
            (Some(stored(150, true, false)), Fate::Leave),
        ] {
            assert_eq!(fate_of_row(BASE, found), expected, "{found:?}");
        }
    }

    #[test]
    fn a_key_is_deleted_when_postgres_has_it_no_more_and_the_stream_does_not_know_it() {
        for (found, is_in_postgres, expected) in [
            (stored(99, false, false), false, Fate::Delete),
            (stored(99, false, false), true, Fate::Leave),
            (stored(99, true, false), false, Fate::Leave),
            // Written by this very repair, and deleted since.
            (stored(100, false, false), false, Fate::Delete),
            (stored(101, false, false), false, Fate::Leave),
            (stored(150, false, false), false, Fate::Leave),
        ] {
            assert_eq!(fate_of_key(BASE, found, is_in_postgres), expected, "{found:?}");
        }
    }

    #[test]
    fn what_is_gone_is_deleted_unless_it_is_much() {
        let may = |gone, alive, percent| may_delete(Count { alive, gone }, percent, false, false);
        for (gone, alive, percent, expected) in [
            (0, 0, 20, true),
            (0, 14, 0, true),
            (7, 7, 20, false),
            (7, 14, 20, false),
            (20, 100, 20, true),
            (21, 100, 20, false),
            // Of small tables.
            (1, 1, 20, true),
            (1, 2, 20, true),
            (3, 4, 0, true),
            (3, 3, 0, true),
            (4, 4, 99, false),
            (4, 10, 20, false),
            (7, 7, 100, true),
            (u64::MAX, u64::MAX, 99, false),
            (u64::MAX / 10, u64::MAX, 20, true),
        ] {
            assert_eq!(may(gone, alive, percent), expected, "{gone} of {alive}, {percent} %");
        }
        let one = Count { alive: 1_000, gone: 1 };
        let with_others = |percent, of_fork| may_delete(one, percent, true, of_fork);
        assert!(!with_others(99, false) && !with_others(99, true) && with_others(100, false));
        assert!(may_delete(Count { alive: 7, gone: 7 }, 20, false, true));
    }

    #[test]
    fn pieces_count_only_as_an_unbroken_run() {
        let mut pieces = Pieces::new(Instant::now(), vec![1; 4], 1);
        assert_eq!([pieces.take(), pieces.take(), pieces.take()], [Some(1), Some(2), Some(3)]);
        assert_eq!(pieces.take(), None);
        assert!(!pieces.on_done(2));
        assert_eq!(pieces.done(), 1);
        assert!(pieces.on_done(1));
        assert_eq!(pieces.done(), 3);
        assert!(!pieces.on_done(2), "twice is once");
        assert!(pieces.on_done(3) && pieces.is_done());
    }

    #[test]
    fn pieces_may_be_a_part_of_the_work() {
        let t0 = Instant::now();
        let mut pieces = Pieces::new(t0, vec![10, 10], 0).among(30, 50);
        assert_eq!(pieces.estimate(t0).fraction, 0.3);
        let first = pieces.take().unwrap();
        pieces.on_done(first);
        let estimate = pieces.estimate(t0 + Duration::from_secs(1));
        assert_eq!((estimate.fraction, estimate.left), (0.4, Some(Duration::from_secs(6))));
    }

    #[test]
    fn the_time_left_follows_the_pace_of_this_run() {
        let t0 = Instant::now();
        let mut pieces = Pieces::new(t0, vec![50, 10, 20, 20], 1);
        assert_eq!(pieces.estimate(t0).left, None);
        let first = pieces.take().unwrap();
        pieces.on_done(first);
        let estimate = pieces.estimate(t0 + Duration::from_secs(10));
        assert_eq!(estimate.left, Some(Duration::from_secs(40)));
        assert!((estimate.fraction - 0.6).abs() < 1e-9);
        assert_eq!(Pieces::new(t0, vec![], 0).estimate(t0).fraction, 1.0);
    }

    /// Goal: in any order, whatever is said to be done is done, and in the end all is.
    #[test]
    fn the_run_never_covers_what_is_not_done() {
        for seed in 0..200 {
            let mut prng = Prng::from_seed(seed);
            let count = prng.below(20) as usize;
            let mut pieces = Pieces::new(Instant::now(), vec![1; count], 0);
            let (mut open, mut done) = (Vec::new(), vec![false; count]);
            while !pieces.is_done() {
                if prng.below(2) == 0
                    && let Some(piece) = pieces.take()
                {
                    open.push(piece);
                } else if !open.is_empty() {
                    let piece = open.swap_remove(prng.below(open.len() as u64) as usize);
                    done[piece] = true;
                    pieces.on_done(piece);
                }
                assert!(done[..pieces.done()].iter().all(|done| *done), "seed {seed}");
            }
            assert!(done.iter().all(|done| *done), "seed {seed}");
        }
    }
}
