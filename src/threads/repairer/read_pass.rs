//! The pass over the table: every row that ClickHouse has not, or has otherwise, is written.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::position::PartDone;
use super::recorder::Recorder;
use super::work::{Ended, Pass, Worker, connect, sql_deadline};
use super::{Position, Repairer};
use crate::clickhouse::stored::{self, StoredRow};
use crate::error::{Error, ErrorKind, Result};
use crate::machines::repair::{Fate, Stored, fate_of_row};
use crate::postgres::source_table::{SourceTable, TableName};
use crate::postgres::table_reader::{self, Page, Part, Request, Rows, Tid};
use crate::rows::Block;
use crate::services::mapping::{Notes, Stamp, Target};
use crate::services::source::Row;
use crate::threads::source_check;
use crate::wal::Datum;

/// 8 MiB of the table without what lies in TOAST: some seconds of work, so that little is done
/// twice.
const PIECE_BLOCKS: u32 = 1024;
const PAGE_ROWS_MAX: usize = 2_000;

pub struct ReadPass {
    parts: Vec<Part>,
    /// What an earlier run did.
    done: Vec<PartDone>,
    pieces: Vec<Piece>,
    /// The places of the source's columns that the table has, with their names.
    columns: Vec<(usize, &'static str)>,
    base_version: u64,
    was_changed: AtomicBool,
}

#[derive(Clone, Copy)]
struct Piece {
    part: usize,
    begin: u32,
    end: u32,
}

impl ReadPass {
    pub fn plan(with: &Repairer<'_>, base_version: u64, done: &[PartDone]) -> Result<ReadPass> {
        let source = with.mapping.source();
        let name = TableName::new(source.schema, source.table);
        let mut sql = connect(with)?;
        let parts = table_reader::parts(&mut sql, &name, sql_deadline())?;
        // After the parts, which know what they looked like: what changes from then on is seen by
        // every page.
        let table = SourceTable::inspect(&mut sql, &name, sql_deadline())?;
        table.check_readable(&sql.about().role)?;
        source_check::columns(&table, source)?;
        source_check::still_is(&table, with.source, source)?;
        let columns = source.columns.iter().enumerate();
        let columns = columns
            .filter(|(_, column)| table.column(column.name).is_some())
            .map(|(place, column)| (place, column.name))
            .collect();
        let of = |part: &Part| {
            let same = |done: &&PartDone| (done.oid, done.filenode) == (part.oid, part.filenode);
            done.iter().find(same).copied()
        };
        let done: Vec<PartDone> = parts.iter().filter_map(of).collect();
        let pieces = parts.iter().enumerate().flat_map(|(index, part)| {
            pieces_of(index, of(part).map_or(0, |done| done.blocks), part.blocks)
        });
        Ok(ReadPass {
            pieces: pieces.collect(),
            parts,
            done,
            columns,
            base_version,
            was_changed: AtomicBool::new(false),
        })
    }

    /// All that there is was read; otherwise it has to be planned again.
    pub fn is_complete(&self) -> bool {
        !self.was_changed.load(Ordering::Relaxed)
    }

    fn land(&self, worker: &mut Worker<'_>, recorder: &Recorder<'_>, rows: &Rows) -> Result<()> {
        let with = worker.with;
        let ground = with.ground;
        let (blocks, notes) = self.blocks_of(with, rows)?;
        let mut written = HashSet::new();
        let mut refused = Vec::new();
        for (index, (target, block)) in with.mapping.targets().iter().zip(&blocks).enumerate() {
            let fates = self.fates(worker, target, block)?;
            let is_wanted = |row: usize| fates[row] == Fate::Write;
            for row in (0..block.rows()).filter(|row| is_wanted(*row)) {
                written.insert((target.table, block.text(target.id, row).to_vec()));
            }
            if fates.contains(&Fate::Write) {
                worker.cover(rows.as_of)?;
            }
            let landing = &mut worker.landings[index];
            landing.land_rows(&ground, &mut worker.client, block, is_wanted, &mut refused)?;
        }
        // What is there already was kept when it was written.
        let kept = notes.kept.into_iter();
        let kept = kept.filter(|kept| written.contains(&(kept.table, kept.key.clone()))).collect();
        refused.extend(ground.kept_rows(kept));
        ground.keep(&mut worker.client, &refused)?;
        recorder.count_read(rows.len());
        recorder.count_written(written.len());
        Ok(())
    }

    fn blocks_of(&self, with: &Repairer<'_>, rows: &Rows) -> Result<(Vec<Block>, Notes)> {
        let targets = with.mapping.targets();
        let blocks = targets.iter().zip(with.shapes).map(|(t, shape)| Block::new(t.columns, shape));
        let (mut blocks, mut notes) = (blocks.collect::<Vec<_>>(), Notes::default());
        let stamp = Stamp { version: self.base_version, deleted: false, row: true, first: true };
        let mut row = Row::of(with.mapping.source());
        for values in rows.values() {
            row.clear();
            for ((place, _), value) in self.columns.iter().zip(values?) {
                row.values[*place] = value.map_or(Datum::Null, Datum::Text);
            }
            with.mapping.append(&row, stamp, &mut blocks, &mut notes).map_err(|e| {
                let doing = format!("map a row of service `{}`", with.ground.service);
                Error::new(ErrorKind::Protocol, doing).because(e)
            })?;
        }
        Ok((blocks, notes))
    }

    /// What becomes of each row of the block, by what ClickHouse has now.
    fn fates(&self, worker: &mut Worker<'_>, target: &Target, block: &Block) -> Result<Vec<Fate>> {
        if block.rows() == 0 {
            return Ok(Vec::new());
        }
        let found =
            worker.ask(|client, deadline| stored::rows_of(client, target, block, deadline))?;
        let has_versions = stored::has_versions(target, |column| block.is_present(column));
        let fate = |row| {
            let found = found.get(&stored::key_of(target, block, row)).map(|found| Stored {
                version: found.version,
                is_deleted: found.is_deleted,
                // Without versions a second row would stand beside the first for ever.
                is_same: !has_versions || is_same(target, block, row, found),
            });
            fate_of_row(self.base_version, found)
        };
        Ok((0..block.rows()).map(fate).collect())
    }
}

fn is_same(target: &Target, block: &Block, row: usize, found: &StoredRow) -> bool {
    let own = [target.version, target.is_deleted];
    block.sent().zip(&found.values).all(|(column, value)| {
        own.contains(&column) || crate::rows::stored::is_same(block, column, row, value.as_deref())
    })
}

fn pieces_of(part: usize, begin: u32, blocks: u32) -> impl Iterator<Item = Piece> {
    let starts = (begin..blocks).step_by(PIECE_BLOCKS as usize);
    starts.map(move |begin| {
        let end = begin.saturating_add(PIECE_BLOCKS).min(blocks);
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
    ) -> Result<Ended> {
        let Piece { part, begin, end } = self.pieces[piece];
        let columns: Vec<&str> = self.columns.iter().map(|(_, name)| *name).collect();
        let mut after = Tid::before(begin);
        loop {
            if !worker.may_go_on() {
                return Ok(Ended::Told);
            }
            let request = Request {
                part: &self.parts[part],
                columns: &columns,
                after,
                end_block: end,
                bytes_max: worker.with.page_bytes_max,
                rows_max: PAGE_ROWS_MAX,
            };
            let rows = match table_reader::page(&mut worker.sql, &request, sql_deadline())? {
                Page::Rows(rows) => rows,
                Page::Changed => {
                    self.was_changed.store(true, Ordering::Relaxed);
                    return Ok(Ended::Done);
                }
            };
            self.land(worker, recorder, &rows)?;
            match rows.next {
                Some(next) => after = next,
                None => {
                    // Also of what wrote nothing: that a row is not here may be of a commit that
                    // another server never had, and what is done is not read again.
                    worker.cover(rows.as_of)?;
                    return Ok(Ended::Done);
                }
            }
        }
    }

    fn position(&self, done: usize) -> Position {
        let mut parts = self.done.clone();
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
        Position::Read(parts)
    }
}
