//! The two passes over ClickHouse's keys: what Postgres does not have any more is counted, and gets
//! a tombstone if that was not too much. A key that this repair has written, and that the stream
//! deleted before it had landed, is not counted: only the second pass finds it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Instant;

use parking_lot::Mutex;

use super::RepairCursor;
use super::cursor::Pruned;
use super::recorder::Recorder;
use super::workers::Pass;
use crate::clickhouse::slices::{Slice, Slicer};
use crate::clickhouse::{Client, stored};
use crate::error::Result;
use crate::machines::repair::{Count, Fate, Stored, fate_of_key, tombstone_version};
use crate::mending::gone::{LOOKUP_KEYS, SLICE_ROWS_MAX, are_in_postgres};
use crate::mending::parties::MendingContext;
use crate::mending::worker::Worker;
use crate::rows::key::LiveKey;
use crate::rows::tombstone;

/// Planned at a time: a plan takes a statement for each, and is held in memory.
const PIECES_PLANNED: usize = 1_000;
pub struct PrunePass<'t> {
    /// By target table.
    slicers: Vec<Slicer<'t>>,
    /// Each with its target table.
    pieces: Vec<(usize, Slice)>,
    /// The work of an earlier run.
    done: Option<Pruned>,
    base_version: u64,
    /// Rows of the pieces before these, and about how many there are behind them.
    others: (u64, u64),
    is_last: bool,
    /// `None`: they are deleted.
    counted: Option<Mutex<Counted>>,
}

/// The counts, by target table.
struct Counted {
    /// The counts of an unbroken run of pieces, and of earlier runs.
    counts: Vec<Count>,
    /// The number of pieces, from the first, that it covers.
    done: usize,
    later: BTreeMap<usize, Count>,
}

impl Counted {
    /// A run of this many counted pieces.
    fn up_to(&mut self, done: usize, target_of: impl Fn(usize) -> usize) -> Vec<Count> {
        while self.done < done {
            if let Some(count) = self.later.remove(&self.done) {
                self.counts[target_of(self.done)].add(count);
            }
            self.done += 1;
        }
        self.counts.clone()
    }
}

impl<'t> PrunePass<'t> {
    /// The state of a counting pass, from the earlier counts.
    pub fn plan_count(
        with: &MendingContext<'t>,
        base_version: u64,
        mut counts: Vec<Count>,
        done: Option<&Pruned>,
        before: u64,
    ) -> Result<PrunePass<'t>> {
        counts.resize(with.member.targets().len(), Count::default());
        let counted = Mutex::new(Counted { counts, done: 0, later: BTreeMap::new() });
        let pass = PrunePass::plan(with, base_version, done, before)?;
        Ok(PrunePass { counted: Some(counted), ..pass })
    }

    /// The counts of the passes so far and this one, by target table.
    pub fn counts(&self) -> Vec<Count> {
        self.counts_up_to(self.pieces.len()).unwrap_or_default()
    }

    fn counts_up_to(&self, done: usize) -> Option<Vec<Count>> {
        let counted = self.counted.as_ref()?;
        Some(counted.lock().up_to(done, |piece| self.pieces[piece].0))
    }

    /// The next pieces after the finished ones; `before` is the number of their rows.
    pub fn plan(
        with: &MendingContext<'t>,
        base_version: u64,
        done: Option<&Pruned>,
        before: u64,
    ) -> Result<PrunePass<'t>> {
        let delivery = with.delivery;
        let mut client = Client::connect(delivery.clickhouse)?;
        let deadline = || Instant::now() + delivery.clickhouse.request_timeout;
        let (mut slicers, mut pieces) = (Vec::new(), Vec::new());
        let (mut later, mut is_last) = (0_u64, true);
        for (index, (target, shape)) in
            with.member.targets().iter().zip(&with.member.shapes).enumerate()
        {
            let slicer = Slicer::new(&mut client, target, deadline())?;
            // A table without them cannot forget.
            let partitions = match stored::has_versions(target, |column| shape.present[column]) {
                true => slicer.partitions(&mut client, deadline())?,
                false => Vec::new(),
            };
            for partition in partitions {
                let order = done.map_or(Ordering::Greater, |done| {
                    (index, partition.id.as_str()).cmp(&(done.target, done.partition_id.as_str()))
                });
                let up_to = done.and_then(|done| done.up_to.as_ref());
                let after = match (order, up_to) {
                    (Ordering::Greater, _) => None,
                    // If the table has a new sorting key, other keys are left, so the pass does all
                    // of them.
                    (Ordering::Equal, Some(up_to)) => slicer.recall(up_to),
                    (Ordering::Equal, None) | (Ordering::Less, _) => continue,
                };
                let room = PIECES_PLANNED - pieces.len().min(PIECES_PLANNED);
                if room == 0 {
                    (later, is_last) = (later + partition.rows, false);
                    continue;
                }
                delivery.alongside.go_on()?;
                let size = (SLICE_ROWS_MAX, room);
                let slices = slicer.slices(&mut client, &partition, after, size, deadline)?;
                if slices.last().is_some_and(|last| last.up_to.is_some()) {
                    let planned: u64 = slices.iter().map(|slice| slice.rows).sum();
                    (later, is_last) = (later + partition.rows.saturating_sub(planned), false);
                }
                pieces.extend(slices.into_iter().map(|slice| (index, slice)));
            }
            slicers.push(slicer);
        }
        let (counted, others) = (None, (before, later));
        Ok(PrunePass {
            slicers,
            pieces,
            done: done.cloned(),
            base_version,
            counted,
            others,
            is_last,
        })
    }

    /// `None`: nothing comes after these pieces.
    pub fn rows_before_next(&self) -> Option<u64> {
        (!self.is_last).then(|| self.others.0 + self.weights().iter().sum::<u64>())
    }
}

impl Pass for PrunePass<'_> {
    fn weights(&self) -> Vec<u64> {
        self.pieces.iter().map(|(_, slice)| slice.rows.max(1)).collect()
    }

    fn others(&self) -> (u64, u64) {
        self.others
    }

    fn do_piece(
        &self,
        worker: &mut Worker<'_>,
        recorder: &Recorder<'_>,
        piece: usize,
    ) -> Result<()> {
        let (index, slice) = &self.pieces[piece];
        let (with, target) = (worker.with, &worker.with.member.targets()[*index]);
        let mut live = worker
            .ask(|client, deadline| self.slicers[*index].live_keys(client, slice, deadline()))?;
        // ClickHouse deletes it, whatever Postgres has.
        live.retain(|live| !with.member.may_be_dropped(*index, &live.key, None));
        // It was there a moment ago, and says nothing of whose the other rows are.
        let is_own = |live: &LiveKey| live.version == self.base_version;
        let others = live.iter().filter(|live| !is_own(live));
        let mut count = Count { alive: others.count() as u64, gone: 0 };
        // The stream deletes rows that it has written since. This repair's own rows are looked up
        // too: the delete of one may have come before the row was written.
        live.retain(|key| key.version <= self.base_version);
        let mut block = with.member.block_of(*index);
        let mut last_as_of = None;
        for keys in live.chunks(LOOKUP_KEYS) {
            let looked_up = are_in_postgres(worker, *index, keys)?;
            for (live, is_there) in keys.iter().zip(looked_up.there) {
                // Its content is not asked for: it decides nothing here.
                let found = Stored { version: live.version, is_deleted: false, is_same: false };
                let is_gone = fate_of_key(self.base_version, found, is_there) == Fate::Delete;
                count.gone += u64::from(is_gone && !is_own(live));
                if is_gone && self.counted.is_none() {
                    let version = tombstone_version(self.base_version);
                    tombstone::append(target, &mut block, live, version);
                }
            }
            last_as_of = looked_up.as_of.or(last_as_of);
        }
        // Also if all exist: that may be due to a commit that another server never had.
        if let Some(as_of) = last_as_of {
            worker.cover(as_of)?;
        }
        if let Some(counted) = &self.counted {
            counted.lock().later.insert(piece, count);
            return Ok(());
        }
        let mut refused = Vec::new();
        let landing = &mut worker.landings[*index];
        landing.land(&with.delivery, &mut worker.client, &block, &mut refused)?;
        with.delivery.keep(&mut worker.client, &refused)?;
        recorder.count_tombstones(block.rows());
        Ok(())
    }

    fn position(&self, done: usize) -> RepairCursor {
        let last = self.pieces[..done].last().map(|(target, slice)| Pruned {
            target: *target,
            partition_id: slice.partition_id.clone(),
            up_to: slice.up_to.as_ref().map(|bound| self.slicers[*target].name(bound)),
        });
        let done_up_to = last.or_else(|| self.done.clone());
        match self.counts_up_to(done) {
            Some(counts) => RepairCursor::Count { counts, done: done_up_to },
            None => RepairCursor::Delete(done_up_to),
        }
    }
}
