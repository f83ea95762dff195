//! The first comparison: rows of the table against ClickHouse, and keys of ClickHouse against the
//! table.

use super::{Extent, Verifier};
use crate::clickhouse::slices::Slicer;
use crate::clickhouse::stored;
use crate::error::{Error, ErrorKind, Result};
use crate::machines::prng::Prng;
use crate::mending::command::CommandProgress;
use crate::mending::gone::{LOOKUP_KEYS, SLICES_AT_ONCE, are_in_postgres};
use crate::mending::parties::sql_deadline;
use crate::mending::worker::Worker;
use crate::postgres::source_table::TableName;
use crate::postgres::table_reader::{self, HeapPart, Page, PageRequest, PageRows, Tid};
use crate::rows::key::LiveKey;

/// 8 MiB of the table without what lies in TOAST.
const PIECE_BLOCKS: u32 = 1024;
const PAGE_ROWS_MAX: usize = 2_000;
/// Rows of one block of a sample, so that a sample of many rows covers many blocks.
const SAMPLED_ROWS_PER_BLOCK: usize = 20;

/// Blocks of a part.
struct Piece {
    part: usize,
    begin: u32,
    end: u32,
    rows_max: usize,
}

impl Verifier<'_, '_> {
    /// Every row, or some, of the table.
    pub(super) fn read(&mut self, worker: &mut Worker<'_>) -> Result<()> {
        let source = self.by.member.source();
        let name = TableName::new(&*source.schema, &*source.table);
        let parts = table_reader::parts(&mut worker.sql, &name, sql_deadline())?;
        let pieces = match self.request.extent {
            Extent::Full => pieces_of_all(&parts),
            Extent::Sample(rows) => {
                pieces_of_sample(&parts, rows, &mut Prng::from_seed(fastrand::u64(..)))
            }
        };
        let by = self.by;
        let mapped = by.mapped();
        let columns = mapped.names();
        for (done, piece) in pieces.iter().enumerate() {
            self.tell("rows", done, pieces.len(), self.report.rows_compared);
            if let Extent::Sample(rows) = self.request.extent
                && rows <= self.report.rows_compared
            {
                break;
            }
            let (mut after, mut left) = (Tid::before(piece.begin), piece.rows_max);
            while 0 < left {
                let request = PageRequest {
                    part: &parts[piece.part],
                    columns: &columns,
                    after,
                    end_block: piece.end,
                    bytes_max: worker.with.page_bytes_max,
                    rows_max: left.min(PAGE_ROWS_MAX),
                };
                let rows = match table_reader::page(&mut worker.sql, &request, sql_deadline())? {
                    Page::Rows(rows) => rows,
                    Page::Unreadable(at) => {
                        self.report.unreadable += 1;
                        (after, left) = (at, left - 1);
                        continue;
                    }
                    Page::Changed => {
                        return Err(Error::new(ErrorKind::Setup, format!("read table `{name}`"))
                            .because("it was rewritten meanwhile, or its columns have changed")
                            .hint("Run this again."));
                    }
                };
                self.compare_page(worker, &rows)?;
                left -= rows.len().min(left);
                match rows.next {
                    Some(next) => after = next,
                    None => break,
                }
            }
        }
        Ok(())
    }

    fn compare_page(&mut self, worker: &mut Worker<'_>, rows: &PageRows<Tid>) -> Result<()> {
        let (blocks, _) = self.by.mapped().blocks(rows.values(), 0)?;
        for (index, (target, block)) in self.targets().iter().zip(&blocks).enumerate() {
            if block.rows() == 0 {
                continue;
            }
            let found =
                worker.ask(|client, deadline| stored::rows_of(client, target, block, deadline))?;
            for row in 0..block.rows() {
                let key = stored::key_of(target, block, row);
                if self.by.member.may_be_dropped(index, &key, Some((block, row))) {
                    self.report.dropped += 1;
                    continue;
                }
                let seen = self.pair_up(index, Some((block, row)), found.get(&key), 0);
                if seen.pair.difference().is_some() {
                    self.suspect(index, key);
                }
            }
        }
        self.report.rows_compared += rows.len() as u64;
        self.settle_if_many(worker)
    }

    /// Every key, or some, of ClickHouse.
    pub(super) fn list(&mut self, worker: &mut Worker<'_>) -> Result<()> {
        for (index, target) in self.targets().iter().enumerate() {
            // A table without versions cannot forget.
            if !self.has_versions(index) {
                continue;
            }
            let slicer = Slicer::new(&mut worker.client, target, self.by.deadline())?;
            let partitions = slicer.partitions(&mut worker.client, self.by.deadline())?;
            if let Extent::Sample(wanted) = self.request.extent {
                let rows: u64 = partitions.iter().map(|partition| partition.rows).sum();
                let one_in = (rows / wanted.max(1)).max(1);
                let residue = fastrand::u64(..one_in);
                // One after the other: no statement reads the whole table.
                for partition in &partitions {
                    let live = worker.ask(|client, deadline| {
                        let (id, deadline) = (&partition.id, deadline());
                        stored::sample_of_live_keys(client, target, id, one_in, residue, deadline)
                    })?;
                    self.look_up(worker, index, &live)?;
                }
                continue;
            }
            for (done, partition) in partitions.iter().enumerate() {
                let mut next = Some(None);
                while let Some(after) = next {
                    let (client, size) = (&mut worker.client, SLICES_AT_ONCE);
                    let deadline = || self.by.deadline();
                    let slices = slicer.slices(client, partition, after, size, deadline)?;
                    for slice in &slices {
                        self.tell("keys", done, partitions.len(), self.report.keys_compared);
                        let live = worker
                            .ask(|client, deadline| slicer.live_keys(client, slice, deadline()))?;
                        self.look_up(worker, index, &live)?;
                    }
                    next = slices.into_iter().next_back().and_then(|last| last.up_to).map(Some);
                }
            }
        }
        Ok(())
    }

    fn look_up(&mut self, worker: &mut Worker<'_>, index: usize, live: &[LiveKey]) -> Result<()> {
        let member = &self.by.member;
        let stays = |live: &&LiveKey| !member.may_be_dropped(index, &live.key, None);
        let live: Vec<LiveKey> = live.iter().filter(stays).cloned().collect();
        for keys in live.chunks(LOOKUP_KEYS) {
            let looked_up = are_in_postgres(worker, index, keys)?;
            for (live, is_there) in keys.iter().zip(looked_up.there) {
                if !is_there {
                    self.suspect(index, live.key.clone());
                }
            }
            self.report.keys_compared += keys.len() as u64;
            self.counts[index].alive += keys.len() as u64;
            self.settle_if_many(worker)?;
        }
        Ok(())
    }

    fn tell(&self, what: &str, done: usize, of: usize, rows: u64) {
        let fraction = done as f64 / of.max(1) as f64;
        let left = (0 < done && what == "rows")
            .then(|| self.begun_at.elapsed().mul_f64((of - done) as f64 / done as f64));
        (self.show)(CommandProgress { what, fraction, left, rows });
    }
}

fn pieces_of_all(parts: &[HeapPart]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        for begin in (0..part.blocks).step_by(PIECE_BLOCKS as usize) {
            let end = begin.saturating_add(PIECE_BLOCKS).min(part.blocks);
            pieces.push(Piece { part: index, begin, end, rows_max: usize::MAX });
        }
    }
    pieces
}

/// Single blocks, in no order: enough of them for so many rows, unless they are nearly empty.
fn pieces_of_sample(parts: &[HeapPart], rows: u64, prng: &mut Prng) -> Vec<Piece> {
    let blocks: u64 = parts.iter().map(|part| u64::from(part.blocks)).sum();
    let mut pieces = Vec::new();
    if blocks <= rows {
        // So few that all may be needed; begin anywhere.
        for (index, part) in parts.iter().enumerate() {
            let whole = |begin| Piece { part: index, begin, end: begin + 1, rows_max: usize::MAX };
            pieces.extend((0..part.blocks).map(whole));
        }
        for at in (1..pieces.len()).rev() {
            pieces.swap(at, prng.below(at as u64 + 1) as usize);
        }
        return pieces;
    }
    for _ in 0..rows {
        let mut at = prng.below(blocks);
        for (index, part) in parts.iter().enumerate() {
            match at.checked_sub(u64::from(part.blocks)) {
                Some(rest) => at = rest,
                None => {
                    let begin = u32::try_from(at).unwrap_or(0);
                    let rows_max = SAMPLED_ROWS_PER_BLOCK;
                    pieces.push(Piece { part: index, begin, end: begin + 1, rows_max });
                    break;
                }
            }
        }
    }
    pieces
}
