//! One check of suspects: Postgres in a snapshot, then a wait for the stream, then ClickHouse.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{Suspect, Verifier, block_of_keys};
use crate::clickhouse::stored::{self, StoredRow};
use crate::delivery::alongside::Alongside;
use crate::error::Result;
use crate::machines::repair::Stored;
use crate::machines::verify::Pair;
use crate::mending::gone::LOOKUP_KEYS;
use crate::mending::parties::SQL_TIMEOUT;
use crate::mending::standstill::commits;
use crate::mending::worker::Worker;
use crate::rows::Block;
use crate::rows::key::Key;
use crate::wal::Lsn;
use crate::wal::row_key::KeyText;

/// Rows of Postgres are held until the stream has passed them.
const HELD_BYTES_MAX: usize = 64 << 20;

/// The result of a check of one suspect.
pub(super) struct SeenPair {
    pub pair: Pair,
    /// The highest version that the snapshot can have seen.
    pub newest: u64,
    /// Columns that differ, where both sides have the row.
    pub columns: Vec<Arc<str>>,
    pub partition: Key,
}

/// Rows of Postgres, by target table, as of one snapshot.
struct Held {
    blocks: Vec<Block>,
    /// The suspects that it is about.
    suspects: Vec<usize>,
    as_of: Lsn,
}

impl Verifier<'_, '_> {
    /// For each suspect.
    pub(super) fn look(
        &mut self,
        worker: &mut Worker<'_>,
        suspects: &[Suspect],
    ) -> Result<Vec<SeenPair>> {
        let mut seen: Vec<Option<SeenPair>> = suspects.iter().map(|_| None).collect();
        let mut left: BTreeSet<usize> = (0..suspects.len()).collect();
        // A streamed commit may wait for a standby before a snapshot sees it.
        commits(worker.with)?;
        while !left.is_empty() {
            let held = self.hold(worker, suspects, &mut left)?;
            let last = held.iter().map(|held| held.as_of).max();
            self.by.wait_for_stream(last.unwrap_or(Lsn(0)))?;
            for held in &held {
                self.compare(worker, suspects, held, &mut seen)?;
            }
        }
        Ok(seen.into_iter().map(|seen| seen.expect("each of them was looked at")).collect())
    }

    /// Reads what Postgres has of those that are left, as far as memory allows.
    fn hold(
        &self,
        worker: &mut Worker<'_>,
        suspects: &[Suspect],
        left: &mut BTreeSet<usize>,
    ) -> Result<Vec<Held>> {
        let by = self.by;
        let mapped = by.mapped();
        let columns = mapped.names();
        let id_of = |at: usize| by.member.key_text(suspects[at].target, &suspects[at].key);
        let (mut held, mut bytes) = (Vec::new(), 0);
        while !left.is_empty() && bytes < HELD_BYTES_MAX {
            let chunk: Vec<usize> = left.iter().copied().take(LOOKUP_KEYS).collect();
            // A key that is not text cannot be in Postgres, and cannot be queried either.
            let ids = chunk.iter().map(|&at| id_of(at));
            let ids = worker.sql.held_keys(ids, SQL_TIMEOUT)?;
            let rows = worker.rows_of_keys(&columns, &ids)?;
            bytes += rows
                .found
                .values()
                .flat_map(|row| row.iter())
                .flatten()
                .map(Vec::len)
                .sum::<usize>();
            let unanswered: HashSet<&KeyText> =
                ids.get(rows.answered..).unwrap_or_default().iter().collect();
            let answered: Vec<usize> =
                chunk.into_iter().filter(|&at| !unanswered.contains(&id_of(at))).collect();
            answered.iter().for_each(|at| {
                left.remove(at);
            });
            let values = rows.found.values();
            let values = values.map(|row| Ok(row.iter().map(Option::as_deref).collect()));
            let (blocks, _) = self.by.mapped().blocks(values, 0)?;
            held.push(Held { blocks, suspects: answered, as_of: rows.as_of.insert_lsn });
        }
        Ok(held)
    }

    fn compare(
        &self,
        worker: &mut Worker<'_>,
        suspects: &[Suspect],
        held: &Held,
        seen: &mut [Option<SeenPair>],
    ) -> Result<()> {
        for (index, target) in self.targets().iter().enumerate() {
            let of_target = || held.suspects.iter().filter(|&&at| suspects[at].target == index);
            if of_target().next().is_none() {
                continue;
            }
            let keys = of_target().map(|&at| &suspects[at].key);
            let asked = block_of_keys(target, &self.by.member.shapes[index], keys);
            let found =
                worker.ask(|client, deadline| stored::rows_of(client, target, &asked, deadline))?;
            let block = &held.blocks[index];
            let rows: HashMap<Key, usize> =
                (0..block.rows()).map(|row| (stored::key_of(target, block, row), row)).collect();
            for &at in of_target() {
                let key = &suspects[at].key;
                let row = rows.get(key).map(|row| (block, *row));
                let newest = self.by.version_at(held.as_of);
                let mut pair = self.pair_up(index, row, found.get(key), newest);
                if self.by.member.may_be_dropped(index, key, row) {
                    // It became so old in between.
                    pair.pair = Pair { is_in_postgres: false, stored: None };
                }
                seen[at] = Some(pair);
            }
        }
        Ok(())
    }

    /// A row of Postgres, if it has the key, against what ClickHouse has of it.
    pub(super) fn pair_up(
        &self,
        index: usize,
        row: Option<(&Block, usize)>,
        found: Option<&StoredRow>,
        newest: u64,
    ) -> SeenPair {
        let target = &self.targets()[index];
        // A table without versions cannot forget: what Postgres has not any more stays there.
        let found = found.filter(|_| row.is_some() || self.has_versions(index));
        let columns: Vec<Arc<str>> = match (row, found) {
            (Some((block, row)), Some(found)) if self.has_versions(index) => {
                let columns = stored::differing_columns(target, block, row, found);
                columns.map(|column| Arc::clone(&target.columns[column].name)).collect()
            }
            _ => Vec::new(),
        };
        let stored = found.map(|found| Stored {
            version: found.version,
            is_deleted: found.is_deleted,
            is_same: columns.is_empty(),
        });
        let pair = Pair { is_in_postgres: row.is_some(), stored };
        let partition = found
            .map(|found| self.partition(index, found))
            .unwrap_or_else(|| Key::from_iter([b""; 0]));
        let is_alive = found.is_some_and(|found| !found.is_deleted);
        SeenPair { pair, newest, columns: if is_alive { columns } else { Vec::new() }, partition }
    }

    fn partition(&self, index: usize, found: &StoredRow) -> Key {
        let present = &self.by.member.shapes[index].present;
        let sent = present.iter().enumerate().filter(|(_, present)| **present).map(|(at, _)| at);
        let sent: Vec<usize> = sent.collect();
        let target = &self.targets()[index];
        let value = |&at: &usize| {
            let place = sent.iter().position(|sent| *sent == at);
            let text = place.and_then(|place| found.values[place].as_deref());
            let value = text.and_then(|text| target.scalar(at).parse_text(text));
            value.unwrap_or_else(|| target.nothing(at))
        };
        target.partition_by.iter().map(value).collect()
    }
}
