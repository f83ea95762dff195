//! A ClickHouse with one ReplacingMergeTree, and the two tables in which walhouse keeps its memory.

use std::collections::BTreeMap;

use super::postgres::{Key, Row};
use walhouse::machines::catalog::Catalog;
use walhouse::machines::lineage::LineageState;
use walhouse::machines::removals::StoredVersion;
use walhouse::machines::repair::Stored;

/// Who wrote a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Streamed,
    /// Streamed, with a value that was read from the table: a replay may read a newer one.
    ReadAgain,
    Repaired,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    pub version: u64,
    /// `None` is a tombstone.
    pub row: Option<Row>,
    pub origin: Origin,
}

/// A repair that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repair {
    pub system_identifier: u64,
    pub shift: u64,
    /// 0: at a fence that is still to be passed.
    pub base: u64,
    /// Pieces of the two passes.
    pub read: usize,
    pub pruned: usize,
    pub done: bool,
    /// Of tables that were made, and are to have the rows that were there before.
    pub is_fill: bool,
}

#[derive(Debug, Clone, Default)]
pub struct ClickHouse {
    /// The version that wins.
    pub rows: BTreeMap<Key, Version>,
    /// Versions that have lost and are not merged away.
    pub unmerged: Vec<(Key, Version)>,
    pub state: Option<LineageState>,
    pub repair: Option<Repair>,
    /// What the source looked like, and of which cluster.
    pub source: Option<(u64, Catalog)>,
}

impl ClickHouse {
    /// Refuses a tie that the order of inserts would decide.
    pub fn insert(&mut self, key: Key, new: Version) -> Result<(), String> {
        if let Some(&old) = self.rows.get(&key) {
            let may_differ = old.origin == new.origin && new.origin != Origin::Streamed;
            if old.version == new.version && old.row != new.row && !may_differ {
                return Err(format!("tie of key {key}: {old:?} and {new:?}"));
            }
            if new.version < old.version {
                self.unmerged.push((key, new));
                return Ok(());
            }
            self.unmerged.push((key, old));
        }
        self.rows.insert(key, new);
        Ok(())
    }

    pub fn versions_of(&self, key: Key) -> Vec<StoredVersion> {
        let losers = self.unmerged.iter().filter(|(of, _)| *of == key).map(|(_, loser)| loser);
        let all = losers.chain(self.rows.get(&key));
        all.map(|at| StoredVersion { version: at.version, is_deleted: at.row.is_none() }).collect()
    }

    /// SELECT ... FINAL
    pub fn table(&self) -> BTreeMap<Key, Row> {
        self.rows.iter().filter_map(|(key, version)| Some((*key, version.row?))).collect()
    }

    pub fn stored(&self, key: Key, row: Option<Row>) -> Option<Stored> {
        self.rows.get(&key).map(|found| Stored {
            version: found.version,
            is_deleted: found.row.is_none(),
            is_same: found.row.is_some() && found.row == row,
        })
    }

    pub fn highest_version(&self) -> u64 {
        self.rows.values().map(|found| found.version).max().unwrap_or(0)
    }
}
