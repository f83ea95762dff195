//! The order of a change among those of its key, when its position in the WAL does not show it.
//!
//! Within a key the positions grow from change to change, with one exception. An INSERT writes its
//! record before the unique index makes it wait for the transaction that still has the key; so does
//! an UPDATE that gives a row another key. Once that transaction has removed the key and committed,
//! the waiting one goes on:
//!
//! ```text
//!   A: insert K at 10        B: insert K at 20, waits        A: delete K at 30, commit
//!   streamed: A insert 10, A delete 30, B insert 20
//! ```
//!
//! Whatever B does with the key afterwards lies above A's commit. So it is enough to raise that one
//! row just above the removal: the version that follows is still below everything later.
//!
//! Removals are remembered by key, in the order of the stream, until no transaction that is still
//! to come can have written below them, which is what the slot's `restart_lsn` bounds. What is not
//! remembered (removals that an earlier session confirmed, and the oldest when there are too many)
//! lies below the *horizon*, and all of it is in ClickHouse: an insert below the horizon is
//! [`WalPlace::Ask`], and [`outranking`] says what follows from the answer.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::progress::BatchId;
use crate::wal::Lsn;

/// Memory that a key takes in addition to its own bytes.
const BYTES_PER_KEY: usize = 64;
/// How far above a removal the version of a row that waited for it is: below the next record, and
/// above what [`outranking`] raises, which can belong to an earlier row.
const ABOVE: u64 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalPlace {
    /// That of its record.
    AsWritten,
    /// Here, just above the last removal of its key.
    Above(Lsn),
    /// The key may have been removed between the record and `below`: ClickHouse has the tombstone.
    Ask { below: Lsn },
}

/// How much is remembered. Memory is given back a generation at a time.
#[derive(Debug, Clone, Copy)]
pub struct RemovalLimits {
    pub generations: usize,
    pub generation_bytes: usize,
}

#[derive(Debug)]
pub struct Removals {
    /// Removals below this may be forgotten, and are durable.
    horizon: Lsn,
    /// An insert above this is where it was written.
    highest: Lsn,
    /// The oldest first; removals are added to the last.
    generations: VecDeque<Generation>,
    limits: RemovalLimits,
    durable_below: BatchId,
}

#[derive(Debug)]
struct Generation {
    by_key: HashMap<Box<[u8]>, Lsn>,
    bytes: usize,
    highest: Lsn,
    /// The last batch that has one of them.
    batch: BatchId,
}

impl Removals {
    /// A session begins: everything that was committed below `resume` is durable.
    pub fn resume(resume: Lsn, limits: RemovalLimits) -> Removals {
        Removals {
            horizon: resume,
            highest: resume,
            generations: VecDeque::new(),
            limits,
            durable_below: BatchId(0),
        }
    }

    /// Whether the row of a record at `lsn` keeps its position, whatever its key.
    #[inline]
    pub fn is_above_all(&self, lsn: Lsn) -> bool {
        self.highest < lsn
    }

    /// A row of this key comes, by an INSERT or by an UPDATE that gave it the key.
    pub fn place(&self, lsn: Lsn, key: &[u8]) -> WalPlace {
        if self.is_above_all(lsn) {
            return WalPlace::AsWritten;
        }
        let mut newest_first = self.generations.iter().rev();
        match newest_first.find_map(|generation| generation.by_key.get(key)) {
            Some(removed) if lsn < *removed => {
                WalPlace::Above(Lsn(removed.0.saturating_add(ABOVE)))
            }
            // The last removal of the key is known, and lies below.
            Some(_) => WalPlace::AsWritten,
            None if lsn < self.horizon => WalPlace::Ask { below: self.horizon },
            None => WalPlace::AsWritten,
        }
    }

    /// The row of this key goes, by a DELETE or by an UPDATE that gave it another key; its
    /// tombstone has the version of `lsn` and is part of `batch`.
    pub fn on_removed(&mut self, lsn: Lsn, key: &[u8], batch: BatchId) {
        self.highest = self.highest.max(lsn);
        let bytes = key.len() + BYTES_PER_KEY;
        let has_room = |last: &&mut Generation| last.bytes + bytes <= self.limits.generation_bytes;
        let last = match self.generations.back_mut().filter(has_room) {
            Some(last) => last,
            None => {
                self.generations.push_back(Generation {
                    by_key: HashMap::new(),
                    bytes: 0,
                    highest: Lsn(0),
                    batch,
                });
                self.generations.back_mut().expect("one was added")
            }
        };
        if last.by_key.insert(key.into(), lsn).is_none() {
            last.bytes += bytes;
        }
        last.highest = last.highest.max(lsn);
        last.batch = batch;
        self.forget_durable();
    }

    /// Every batch below this is durable.
    pub fn on_durable_below(&mut self, batch: BatchId) {
        self.durable_below = batch;
        self.forget_durable();
    }

    /// No transaction that is still to come has written anything below this.
    pub fn on_restart_lsn(&mut self, restart_lsn: Lsn) {
        let before = self.generations.len();
        self.generations.retain(|generation| restart_lsn <= generation.highest);
        if self.generations.len() != before {
            let remembered = self.generations.iter().map(|generation| generation.highest);
            self.highest = remembered.max().unwrap_or(Lsn(0)).max(self.horizon);
        }
    }

    /// While there are too many, the oldest ones that ClickHouse has are dropped. The batches in
    /// flight bound the others.
    fn forget_durable(&mut self) {
        while self.limits.generations < self.generations.len()
            && let Some(oldest) =
                self.generations.pop_front_if(|oldest| oldest.batch < self.durable_below)
        {
            // A record at the horizon itself is remembered.
            self.horizon = self.horizon.max(Lsn(oldest.highest.0.saturating_add(1)));
        }
    }
}

/// The latest version of a key in ClickHouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredVersion {
    pub version: u64,
    pub is_deleted: bool,
}

/// The version that outranks the tombstones between `own` and `below`; `None` if there is none.
///
/// A tombstone there is of an earlier removal, or of a later one of the same transaction that was
/// delivered before. So this is the place of a row that Postgres still has, once the transaction is
/// visible there. For one that it has no more the removal is still to come, or has come: such a row
/// stays where it was written.
pub fn outranking(own: u64, below: u64, found: &[StoredVersion]) -> Option<u64> {
    let is_between = |found: &&StoredVersion| found.is_deleted && own < found.version;
    let between = found.iter().filter(is_between).map(|found| found.version);
    let tombstone = between.filter(|version| *version <= below).max()?;
    // A row that was raised above the very same tombstone before.
    let is_beside = |version: &u64| version.checked_sub(tombstone).is_some_and(|by| by < ABOVE - 1);
    let beside = found.iter().map(|found| found.version).filter(is_beside);
    beside.max()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: RemovalLimits = RemovalLimits { generations: 8, generation_bytes: 1 << 20 };

    #[test]
    fn an_insert_below_a_removal_of_its_key_comes_just_above() {
        let mut removals = Removals::resume(Lsn(8), PLENTY);
        assert!(removals.is_above_all(Lsn(16)));
        removals.on_removed(Lsn(32), b"k", BatchId(0));
        assert!(!removals.is_above_all(Lsn(16)));
        assert_eq!(removals.place(Lsn(16), b"k"), WalPlace::Above(Lsn(36)));
        assert_eq!(removals.place(Lsn(16), b"other"), WalPlace::AsWritten);
        assert_eq!(removals.place(Lsn(40), b"k"), WalPlace::AsWritten);
        removals.on_removed(Lsn(64), b"k", BatchId(0));
        assert_eq!(removals.place(Lsn(24), b"k"), WalPlace::Above(Lsn(68)), "of those, the last");
    }

    #[test]
    fn what_an_earlier_session_confirmed_is_asked_for() {
        let mut removals = Removals::resume(Lsn(100), PLENTY);
        assert_eq!(removals.place(Lsn(96), b"k"), WalPlace::Ask { below: Lsn(100) });
        assert_eq!(removals.place(Lsn(104), b"k"), WalPlace::AsWritten);
        removals.on_removed(Lsn(48), b"k", BatchId(0));
        assert_eq!(removals.place(Lsn(96), b"k"), WalPlace::AsWritten, "its last removal is known");
        assert_eq!(removals.place(Lsn(40), b"k"), WalPlace::Above(Lsn(52)));
    }

    #[test]
    fn below_the_restart_lsn_nothing_is_remembered_nor_asked_for() {
        let mut removals = Removals::resume(Lsn(8), PLENTY);
        removals.on_removed(Lsn(32), b"k", BatchId(0));
        removals.on_restart_lsn(Lsn(32));
        assert!(!removals.is_above_all(Lsn(24)));
        removals.on_restart_lsn(Lsn(40));
        assert!(removals.is_above_all(Lsn(40)));
        assert!(removals.generations.is_empty());
    }

    #[test]
    fn too_many_are_forgotten_once_they_are_durable() {
        let mut removals = Removals::resume(
            Lsn(0),
            RemovalLimits { generation_bytes: BYTES_PER_KEY + 1, ..PLENTY },
        );
        for n in 0..10_u8 {
            removals.on_removed(Lsn(u64::from(n) * 8), &[n], BatchId(u64::from(n)));
        }
        assert_eq!(removals.place(Lsn(0), &[1]), WalPlace::Above(Lsn(12)), "still in flight");
        removals.on_durable_below(BatchId(1));
        assert_eq!(removals.place(Lsn(0), &[0]), WalPlace::Ask { below: Lsn(1) });
        removals.on_durable_below(BatchId(10));
        assert_eq!(removals.place(Lsn(0), &[1]), WalPlace::Ask { below: Lsn(9) });
        assert_eq!(removals.place(Lsn(9), &[1]), WalPlace::AsWritten);
        assert_eq!(
            removals.place(Lsn(9), &[2]),
            WalPlace::Above(Lsn(20)),
            "as many as there is room"
        );
    }

    #[test]
    fn only_tombstones_within_the_bounds_are_outranked() {
        let found = |version, is_deleted| StoredVersion { version, is_deleted };
        for (rows, expected) in [
            (vec![], None),
            (vec![found(20, false)], None),
            (vec![found(10, true), found(32, true)], None),
            (vec![found(16, true), found(24, true)], Some(25)),
            (vec![found(24, true), found(26, false), found(40, false)], Some(27)),
            (vec![found(24, true), found(27, false), found(28, false)], Some(25)),
        ] {
            assert_eq!(outranking(10, 30, &rows), expected, "{rows:?}");
        }
    }
}
