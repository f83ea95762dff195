//! The pass over the table: writes every row that is missing in ClickHouse or differs, or, into
//! tables that were empty, every row ([`copy_range`]).

use std::sync::atomic::{AtomicUsize, Ordering};

use super::RepairCursor;
use super::copy_range::{self, CopyEnd, Copying, Range};
use super::cursor::PartDone;
use super::recorder::Recorder;
use super::workers::Pass;
use crate::delivery::source_check;
use crate::error::Result;
use crate::mending::mapped::{Columns, Mapped, columns_of};
use crate::mending::page;
use crate::mending::parties::{MendingContext, connect, sql_deadline};
use crate::mending::worker::Worker;
use crate::postgres::source_table::{SourceTable, TableName};
use crate::postgres::table_reader::{self, HeapPart, Page, PageRequest, PageRows, Tid};

/// 8 MiB of the table without what lies in TOAST: some seconds of work, so that little is done
/// twice.
const PIECE_BLOCKS: u32 = 1024;
const PAGE_ROWS_MAX: usize = 2_000;

pub struct ReadPass {
    /// `None`: rows are compared.
    copying: Option<Copying>,
    parts: Vec<HeapPart>,
    /// The work of an earlier run.
    done: Vec<PartDone>,
    pieces: Vec<Piece>,
    columns: Columns,
    base_version: u64,
    /// The first piece of a part that had another file or other columns than planned.
    changed_from: AtomicUsize,
}

#[derive(Clone, Copy)]
struct Piece {
    part: usize,
    begin: u32,
    end: u32,
}

impl ReadPass {
    /// Rows are compared with what ClickHouse has.
    pub fn plan(
        with: &MendingContext<'_>,
        base_version: u64,
        done: &[PartDone],
    ) -> Result<ReadPass> {
        ReadPass::plan_for(with, base_version, done, None)
    }

    /// All that the tables can have of it are rows of an earlier run, and of the stream. `workers`
    /// is how many share the work.
    pub fn plan_copy(
        with: &MendingContext<'_>,
        base_version: u64,
        done: &[PartDone],
        workers: usize,
    ) -> Result<ReadPass> {
        ReadPass::plan_for(with, base_version, done, Some(workers))
    }

    fn plan_for(
        with: &MendingContext<'_>,
        base_version: u64,
        done: &[PartDone],
        copiers: Option<usize>,
    ) -> Result<ReadPass> {
        let source = with.member.source();
        let name = TableName::new(&*source.schema, &*source.table);
        let mut sql = connect(with)?;
        let parts = table_reader::parts(&mut sql, &name, sql_deadline())?;
        // After the parts, which know what they looked like: what changes from then on is seen by
        // every page.
        let table = SourceTable::inspect(&mut sql, &name, sql_deadline())?;
        table.check_readable(&sql.about().role)?;
        source_check::columns(&table, source)?;
        source_check::still_is(&table, &with.member.found, source)?;
        let of = |part: &HeapPart| {
            let same = |done: &&PartDone| (done.oid, done.filenode) == (part.oid, part.filenode);
            done.iter().find(same).copied()
        };
        let done: Vec<PartDone> = parts.iter().filter_map(of).collect();
        let pieces = parts.iter().enumerate().flat_map(|(index, part)| {
            let begin = of(part).map_or(0, |done| done.blocks);
            let size = match copiers {
                Some(workers) => copy_range::blocks(part, begin, with.copy_bytes_max, workers),
                None => PIECE_BLOCKS,
            };
            pieces_of(index, begin, part.blocks, size)
        });
        let columns = columns_of(&table, source);
        let copying = copiers.map(|_| Copying::of(&table, &columns, source.columns.len()));
        Ok(ReadPass {
            copying,
            pieces: pieces.collect(),
            parts,
            done,
            columns,
            base_version,
            changed_from: AtomicUsize::new(usize::MAX),
        })
    }

    /// The whole table was read; otherwise it has to be planned again.
    pub fn is_complete(&self) -> bool {
        self.changed_from.load(Ordering::Relaxed) == usize::MAX
    }

    /// Whether the table still consists of the files that were read.
    pub fn is_as_read(&self, with: &MendingContext<'_>) -> Result<bool> {
        let source = with.member.source();
        let name = TableName::new(&*source.schema, &*source.table);
        let parts = table_reader::parts(&mut connect(with)?, &name, sql_deadline())?;
        let files = |parts: &[HeapPart]| {
            parts.iter().map(|part| (part.oid, part.filenode)).collect::<Vec<_>>()
        };
        Ok(files(&parts) == files(&self.parts))
    }

    fn mapped<'a>(&'a self, with: &MendingContext<'a>) -> Mapped<'a> {
        Mapped { service: with.delivery.service, member: with.member, columns: &self.columns }
    }

    fn land(
        &self,
        worker: &mut Worker<'_>,
        recorder: &Recorder<'_>,
        rows: &PageRows<Tid>,
    ) -> Result<()> {
        let mapped = self.mapped(worker.with);
        let written = page::land(worker, mapped, rows.values(), rows.as_of, self.base_version)?;
        recorder.count_read(rows.len());
        recorder.count_written(written.len());
        Ok(())
    }
}

fn pieces_of(part: usize, begin: u32, blocks: u32, size: u32) -> impl Iterator<Item = Piece> {
    let starts = (begin..blocks).step_by(size as usize);
    starts.map(move |begin| {
        let end = begin.saturating_add(size).min(blocks);
        Piece { part, begin, end }
    })
}

impl Pass for ReadPass {
    fn weights(&self) -> Vec<u64> {
        self.pieces.iter().map(|piece| u64::from(piece.end - piece.begin)).collect()
    }

    fn do_piece(
        &self,
        worker: &mut Worker<'_>,
        recorder: &Recorder<'_>,
        piece: usize,
    ) -> Result<()> {
        let Piece { part, begin, end } = self.pieces[piece];
        let mut after = Tid::before(begin);
        if let Some(copying) = &self.copying {
            let range = Range { part: &self.parts[part], after, end_block: end };
            let mapped = self.mapped(worker.with);
            match copying.copy(worker, recorder, mapped, range, self.base_version)? {
                CopyEnd::Done => return Ok(()),
                CopyEnd::Changed => {
                    self.changed_from.fetch_min(piece, Ordering::Relaxed);
                    return Ok(());
                }
                // One row that Postgres cannot hand out ends the COPY of all; pages go around it.
                CopyEnd::Unconvertible(at) => after = at,
            }
        }
        let mapped = self.mapped(worker.with);
        let columns = mapped.names();
        loop {
            worker.go_on()?;
            let request = PageRequest {
                part: &self.parts[part],
                columns: &columns,
                after,
                end_block: end,
                bytes_max: worker.with.page_bytes_max,
                rows_max: PAGE_ROWS_MAX,
            };
            let rows = match table_reader::page(&mut worker.sql, &request, sql_deadline())? {
                Page::Rows(rows) => rows,
                Page::Unreadable(at) => {
                    recorder.leave_out(&self.parts[part].name, at);
                    after = at;
                    continue;
                }
                Page::Changed => {
                    self.changed_from.fetch_min(piece, Ordering::Relaxed);
                    return Ok(());
                }
            };
            self.land(worker, recorder, &rows)?;
            match rows.next {
                Some(next) => after = next,
                None => {
                    // Also for a page that wrote nothing: a row may be absent because of a commit
                    // that another server never had, and finished pages are not read again.
                    worker.cover(rows.as_of)?;
                    return Ok(());
                }
            }
        }
    }

    fn position(&self, done: usize) -> RepairCursor {
        let mut parts = self.done.clone();
        // What was refused was not read, although the file may be the same.
        let done = done.min(self.changed_from.load(Ordering::Relaxed));
        for piece in &self.pieces[..done] {
            let part = &self.parts[piece.part];
            match parts.iter_mut().find(|found| found.oid == part.oid) {
                Some(found) => found.blocks = piece.end,
                None => parts.push(PartDone {
                    oid: part.oid,
                    filenode: part.filenode,
                    blocks: piece.end,
                }),
            }
        }
        match self.copying {
            Some(_) => RepairCursor::Copy(Some(parts)),
            None => RepairCursor::Read(parts),
        }
    }
}
