//! Repairs the differences, below every change that is still to be streamed, and checks again to
//! prove it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{Found, Suspect, Verifier};
use crate::delivery::alongside::Alongside;
use crate::error::Result;
use crate::machines::repair::tombstone_version;
use crate::machines::verify::{Difference, Suspicion};
use crate::mending::command::CommandProgress;
use crate::mending::gone::{LOOKUP_KEYS, are_in_postgres};
use crate::mending::page;
use crate::mending::parties::{SQL_TIMEOUT, sql_deadline};
use crate::mending::standstill::commits;
use crate::mending::worker::Worker;
use crate::postgres::server::flush_wal;
use crate::rows::key::{Key, LiveKey};
use crate::rows::tombstone;
use crate::wal::row_key::KeyText;

/// A row that was streamed a moment ago can only be outranked once the slot has moved past it: a
/// server records every 15 s how far that may be, and the next confirmation moves it.
const OUTRANKED_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A repaired row may change in between, and differ in another way.
const ATTEMPTS: u32 = 3;

impl Verifier<'_, '_> {
    /// Those that differ in the end.
    ///
    /// Every row that was written is judged again, in all tables: a suspect brings along whatever
    /// else its id lacks by then, and a delete between reading and writing did not find the row. A
    /// process killed in between leaves such a row to the next `verify --full`.
    pub(super) fn mend(&mut self, worker: &mut Worker<'_>, found: &[Found]) -> Result<Vec<Found>> {
        let mut found = found.to_vec();
        for _ in 0..ATTEMPTS {
            if found.is_empty() {
                break;
            }
            let mut keys: HashSet<(usize, Key)> = self.write_all(worker, &found)?;
            keys.extend(found.into_iter().map(|found| (found.suspect.target, found.suspect.key)));
            let anew = |(target, key)| Suspect { target, key, suspicion: Suspicion::default() };
            found = self.judge(worker, keys.into_iter().map(anew).collect())?;
        }
        Ok(found)
    }

    /// Writes each as soon as it can be outranked; after some time the rest is left. Returns the
    /// keys of the rows that it wrote, by target table.
    fn write_all(
        &mut self,
        worker: &mut Worker<'_>,
        found: &[Found],
    ) -> Result<HashSet<(usize, Key)>> {
        let until = Instant::now() + OUTRANKED_WITHIN;
        let mut left: Vec<&Found> = found.iter().collect();
        let mut written = HashSet::new();
        let mut is_asked = false;
        loop {
            let base = self.by.base_version(&mut worker.sql)?;
            let outranks = |found: &&Found| {
                let own = match found.difference {
                    Difference::Extra => tombstone_version(base),
                    Difference::Missing | Difference::Different => base,
                };
                found.version.is_none_or(|version| version < own)
            };
            let (now, later): (Vec<&Found>, Vec<&Found>) = left.into_iter().partition(outranks);
            if !now.is_empty() {
                // Changes that the slot has moved past were streamed; they must be visible, too.
                commits(worker.with)?;
            }
            for found in now.chunks(LOOKUP_KEYS) {
                written.extend(self.write(worker, found, base)?);
            }
            // No known writer uses versions that the WAL has not reached yet.
            let end = self.by.version_at(self.by.now(&mut worker.sql)?);
            left = later.into_iter().filter(|found| found.version <= Some(end)).collect();
            if left.is_empty() || until <= Instant::now() {
                return Ok(written);
            }
            if !std::mem::replace(&mut is_asked, true)
                && let Err(error) = flush_wal(&mut worker.sql, sql_deadline())
            {
                log::debug!("{error}");
            }
            let rows = left.len() as u64;
            (self.show)(CommandProgress {
                what: "waiting for the slot",
                fraction: 0.0,
                left: None,
                rows,
            });
            self.by.pause(Instant::now() + LOOK_EVERY)?;
        }
    }

    fn write(
        &mut self,
        worker: &mut Worker<'_>,
        found: &[&Found],
        base: u64,
    ) -> Result<Vec<(usize, Key)>> {
        let is_extra = |found: &&&Found| found.difference == Difference::Extra;
        self.by.record(|row| {
            row.version_min = if row.version_min == 0 { base } else { row.version_min };
            row.version_max = tombstone_version(base);
        })?;
        let ids = (found.iter().filter(|found| !is_extra(found)))
            .map(|found| self.by.member.key_text(found.suspect.target, &found.suspect.key));
        let ids = worker.sql.held_keys(ids, SQL_TIMEOUT)?;
        let written = self.write_rows(worker, &ids, base)?;
        let mut rows = written.len();
        for (index, target) in self.targets().iter().enumerate() {
            let of_target = found.iter().filter(is_extra);
            let of_target = of_target.filter(|found| found.suspect.target == index);
            let keys: Vec<LiveKey> = of_target
                .map(|found| LiveKey {
                    key: found.suspect.key.clone(),
                    partition: found.partition.clone(),
                    version: found.version.unwrap_or(0),
                })
                .collect();
            if keys.is_empty() {
                continue;
            }
            let looked_up = are_in_postgres(worker, index, &keys)?;
            let mut block = self.by.member.block_of(index);
            for (live, is_there) in keys.iter().zip(looked_up.there) {
                if !is_there {
                    tombstone::append(target, &mut block, live, tombstone_version(base));
                }
            }
            if let Some(as_of) = looked_up.as_of {
                worker.cover(as_of)?;
            }
            rows += block.rows();
            let (delivery, mut refused) = (worker.with.delivery, Vec::new());
            worker.landings[index].land(&delivery, &mut worker.client, &block, &mut refused)?;
            delivery.keep(&mut worker.client, &refused)?;
            self.by.check_landed()?;
        }
        self.by.record(|row| row.rows_written += rows as u64)?;
        Ok(written)
    }

    fn write_rows(
        &mut self,
        worker: &mut Worker<'_>,
        ids: &[KeyText],
        base: u64,
    ) -> Result<Vec<(usize, Key)>> {
        let by = self.by;
        let mapped = by.mapped();
        let columns = mapped.names();
        let (mut rest, mut written) = (ids, Vec::new());
        while !rest.is_empty() {
            let rows = worker.rows_of_keys(&columns, rest)?;
            let values = rows.found.values();
            let values = values.map(|row| Ok(row.iter().map(Option::as_deref).collect()));
            written.extend(page::land(worker, self.by.mapped(), values, rows.as_of, base)?);
            self.by.check_landed()?;
            rest = rest.get(rows.answered..).unwrap_or_default();
        }
        Ok(written)
    }
}
