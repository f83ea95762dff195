//! Copies ranges of the table into tables that were empty when this began: no row is looked up, and
//! blocks are as large as ClickHouse likes them.
//!
//! # Why nothing is compared
//!
//! A copied row has the base version. The slot is older than every snapshot that a range is read
//! in, so whatever the snapshot missed, and whatever became of a row since, is streamed, with a
//! version above the base: an insert or update in either order of arrival wins, and so does the
//! tombstone of a delete. A row that an update moves out of the reader's way comes with that update
//! ([`Updates::AsFirst`](crate::services::assemble::Updates)). A range that is copied twice, after
//! a kill, writes the same keys at the same version; where two copies differ, what made them
//! differ is streamed.
//!
//! # Where a pass over ClickHouse's keys is needed all the same
//!
//! A tombstone needs the whole sorting key. A DELETE that carries the primary key alone finds the
//! rest in ClickHouse, unless the row, or an earlier place of it, is still to be copied from a
//! snapshot of before: then nothing is left to hide it. The stream notes these
//! ([`DeletedKeys`](crate::delivery::deleted_keys::DeletedKeys)), and at the end, when it has
//! passed the last snapshot, the few are looked up ([`mark_deleted`]). The notes are held in
//! memory: a copy that was interrupted, that met an error or more than are held, or whose files
//! were replaced meanwhile (a TRUNCATE, a dropped partition: nothing streams these) ends with the
//! passes of a repair over the keys, which find the same and more.
//!
//! An update that moves a row to another sorting key is streamed with its old row under REPLICA
//! IDENTITY FULL, and leaves a tombstone; under DEFAULT it leaves the old place as it was, in a
//! copy as at any other time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::recorder::Recorder;
use crate::clickhouse::lookup::find_live;
use crate::delivery::member::is_dropped;
use crate::error::{Error, ErrorKind, Result};
use crate::machines::repair::{Fate, Stored, fate_of_key, tombstone_version};
use crate::mending::gone::{LOOKUP_KEYS, are_in_postgres};
use crate::mending::mapped::{Columns, Mapped};
use crate::mending::parties::{SQL_TIMEOUT, sql_deadline};
use crate::mending::worker::Worker;
use crate::postgres::copy::{Copied, Copier, CopyColumn, CopyRequest, CopyRows};
use crate::postgres::server_error;
use crate::postgres::source_table::{SourceTable, TableColumn};
use crate::postgres::table_reader::{AsOf, HeapPart, Tid};
use crate::rows::{Block, tombstone};
use crate::services::mapping::Stamp;
use crate::services::notes::Notes;
use crate::services::row::Row;
use crate::services::utf8;
use crate::wal::Oid;
use crate::wal::row_key::KeyText;

/// However small the rows are: their places and their order take memory, too.
const BLOCK_ROWS_MAX: usize = 1 << 19;
/// How soon a stop is noticed while Postgres has nothing to say.
const WAIT: Duration = Duration::from_secs(1);
/// The stream goes first while it holds half of what it may; but a busy one does not hold the copy
/// up for ever.
const YIELD_MAX: Duration = Duration::from_secs(5);
const YIELD_EVERY: Duration = Duration::from_millis(50);

/// How a table is copied.
pub struct Copying {
    columns: Vec<CopyColumn>,
    /// By place: what values are sent as.
    types: Vec<Option<Oid>>,
}

/// Rows of one part.
#[derive(Clone, Copy)]
pub struct Range<'a> {
    pub part: &'a HeapPart,
    pub after: Tid,
    pub end_block: u32,
}

pub enum CopyEnd {
    Done,
    /// The part has another file or other columns than was planned, or is gone.
    Changed,
    /// Somewhere behind this place is a row with a character that UTF-8 cannot represent.
    Unconvertible(Tid),
}

/// One block for each target table.
struct Filled {
    blocks: Vec<Block>,
    notes: Notes,
    as_of: AsOf,
    rows: usize,
    /// The last row; more may follow.
    last: Tid,
    then: Then,
}

enum Then {
    GoOn,
    End,
    Unconvertible,
}

/// How many blocks a range has: its rows make one block, and the workers get equal shares.
pub fn blocks(part: &HeapPart, begin: u32, bytes_max: usize, workers: usize) -> u32 {
    let left = part.blocks.saturating_sub(begin);
    if left == 0 {
        return 1;
    }
    // What lies in TOAST is spread evenly, for all that is known. Some room for values that are
    // longer on the wire.
    let bytes = part.bytes * u64::from(left) / u64::from(part.blocks);
    let bytes_max = (bytes_max as u64 / 8 * 7).max(1);
    let ranges = bytes.div_ceil(bytes_max).max(1);
    let ranges = if ranges == 1 { 1 } else { ranges.next_multiple_of(workers.max(1) as u64) };
    let blocks = u64::from(left).div_ceil(ranges).max(1);
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

impl Copying {
    pub fn of(table: &SourceTable, columns: &Columns, places: usize) -> Copying {
        let mut types = vec![None; places];
        let column = |(place, name): &(usize, Arc<str>)| {
            let found = table.column(name);
            types[*place] = found.and_then(TableColumn::reads_as);
            let as_text = found.is_some_and(|found| !found.pg_type.is_sendable());
            CopyColumn { name: name.to_string(), as_text }
        };
        Copying { columns: columns.iter().map(column).collect(), types }
    }

    /// Returns when all rows of the range that Postgres hands out are durable in ClickHouse.
    pub fn copy(
        &self,
        worker: &mut Worker<'_>,
        recorder: &Recorder<'_>,
        mapped: Mapped<'_>,
        range: Range<'_>,
        version: u64,
    ) -> Result<CopyEnd> {
        let mut range = range;
        loop {
            yield_to_stream(worker)?;
            let Some(filled) = self.fill(worker, mapped, range, version)? else {
                return Ok(CopyEnd::Changed);
            };
            // Also of no rows: one may be absent because of a commit that another server never had.
            worker.cover(filled.as_of)?;
            let Filled { rows, last, then, .. } = land(worker, filled)?;
            recorder.count_read(rows);
            recorder.count_written(rows);
            match then {
                Then::GoOn => range.after = last,
                Then::End => return Ok(CopyEnd::Done),
                Then::Unconvertible => return Ok(CopyEnd::Unconvertible(last)),
            }
        }
    }

    /// Reads rows until they make a block. The snapshot ends with that, whatever becomes of them:
    /// none is held while ClickHouse is waited for.
    fn fill(
        &self,
        worker: &mut Worker<'_>,
        mapped: Mapped<'_>,
        range: Range<'_>,
        version: u64,
    ) -> Result<Option<Filled>> {
        let with = worker.with;
        let mut copier = match worker.copier.take() {
            Some(copier) => copier,
            None => {
                Copier::connect(with.primary, with.application_name, &worker.sql, sql_deadline())?
            }
        };
        let Range { part, after, end_block } = range;
        let request = CopyRequest { part, columns: &self.columns, after, end_block };
        let Some(as_of) = copier.begin(&request, sql_deadline())? else {
            worker.copier = Some(copier);
            return Ok(None);
        };
        let mut filled = Filled {
            blocks: worker.blocks.take().unwrap_or_else(|| with.member.blocks()),
            notes: Notes::default(),
            as_of,
            rows: 0,
            last: after,
            then: Then::End,
        };
        let mut rows = CopyRows::default();
        let (mut bytes, mut deadline) = (0, Instant::now() + SQL_TIMEOUT);
        loop {
            worker.go_on()?;
            let frames = match copier.next(WAIT) {
                Ok(Copied::Frames(frames)) => frames,
                Ok(Copied::Done) => {
                    worker.copier = Some(copier);
                    return Ok(Some(filled));
                }
                Ok(Copied::Nothing) if Instant::now() < deadline => continue,
                Ok(Copied::Nothing) => {
                    return Err(Error::new(ErrorKind::Unreachable, doing(part, filled.last))
                        .because(format!("no row within {SQL_TIMEOUT:?}")));
                }
                Err(error) if server_error(&error).is_some_and(|e| e.is_unconvertible()) => {
                    filled.then = Then::Unconvertible;
                    return Ok(Some(filled));
                }
                Err(error) => return Err(error),
            };
            deadline = Instant::now() + SQL_TIMEOUT;
            let mut row = Row::of(with.member.source());
            row.types.clone_from(&self.types);
            for message in frames.messages() {
                let place_of = |at: usize| mapped.columns[at].0;
                let tid = rows
                    .read(message, &self.columns, |at, value| row.values[place_of(at)] = value)
                    .map_err(|error| malformed(part, filled.last, error))?;
                let Some(tid) = tid else { continue };
                if tid <= filled.last {
                    let error = "rows do not come in the order of their blocks";
                    return Err(malformed(part, filled.last, error));
                }
                let stamp = Stamp { version, deleted: false, row: true, first: true };
                let Filled { blocks, notes, .. } = &mut filled;
                utf8::append(&*with.member.mapping, &row, stamp, blocks, notes)
                    .map_err(|error| mapped.error(error))?;
                filled.rows += 1;
                filled.last = tid;
                bytes += message.len();
                if with.copy_bytes_max <= bytes || filled.rows == BLOCK_ROWS_MAX {
                    // The rest is left behind with the connection.
                    filled.then = Then::GoOn;
                    return Ok(Some(filled));
                }
            }
        }
    }
}

fn doing(part: &HeapPart, after: Tid) -> String {
    format!("copy table `{}` from {after}", part.name)
}

fn malformed(
    part: &HeapPart,
    after: Tid,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::new(ErrorKind::Protocol, doing(part, after)).because(cause)
}

fn yield_to_stream(worker: &Worker<'_>) -> Result<()> {
    let with = worker.with;
    let until = Instant::now() + YIELD_MAX;
    let is_behind = || {
        let unflushed = with.delivery.metrics.unflushed_bytes.get();
        with.copy_bytes_max as u64 / 2 < unflushed
    };
    while is_behind() && Instant::now() < until {
        with.delivery.alongside.rest(Instant::now() + YIELD_EVERY).go_on()?;
    }
    worker.go_on()
}

fn land(worker: &mut Worker<'_>, mut filled: Filled) -> Result<Filled> {
    let delivery = worker.with.delivery;
    let mut refused = Vec::new();
    for (landing, block) in worker.landings.iter_mut().zip(&filled.blocks) {
        let is_wanted = |row| !is_dropped(block, row);
        landing.land_rows(&delivery, &mut worker.client, block, is_wanted, &mut refused)?;
    }
    filled.blocks.iter_mut().for_each(Block::clear);
    worker.blocks = Some(std::mem::take(&mut filled.blocks));
    refused.extend(delivery.kept_rows(std::mem::take(&mut filled.notes.kept)));
    delivery.keep(&mut worker.client, &refused)?;
    Ok(filled)
}

/// Marks as deleted what has been copied of these rows and Postgres does not have any more. False
/// if it is not known what was copied.
pub fn mark_deleted(
    worker: &mut Worker<'_>,
    recorder: &Recorder<'_>,
    keys: &[KeyText],
    base_version: u64,
) -> Result<bool> {
    if keys.is_empty() {
        return Ok(true);
    }
    let delivery = worker.with.delivery;
    for (index, target) in worker.with.member.targets().iter().enumerate() {
        let member = worker.with.member;
        let ids = keys.iter().map(|key| member.stored_id(index, key));
        let ids = ids.collect::<Result<Vec<_>>>()?;
        let mut live = Vec::new();
        let deadline = || Instant::now() + delivery.clickhouse.request_timeout;
        if let Err(error) = find_live(&mut worker.client, target, &ids, deadline, &mut live) {
            // It may be too much of a question for a large table; the passes ask small ones.
            log::debug!("{}: {error}", delivery.service);
            return Ok(false);
        }
        live.retain(|live| live.version <= base_version);
        let mut block = worker.with.member.block_of(index);
        for keys in live.chunks(LOOKUP_KEYS) {
            let looked_up = are_in_postgres(worker, index, keys)?;
            for (live, is_there) in keys.iter().zip(looked_up.there) {
                let found = Stored { version: live.version, is_deleted: false, is_same: false };
                if fate_of_key(base_version, found, is_there) == Fate::Delete {
                    tombstone::append(target, &mut block, live, tombstone_version(base_version));
                }
            }
            if let Some(as_of) = looked_up.as_of {
                worker.cover(as_of)?;
            }
        }
        let mut refused = Vec::new();
        worker.landings[index].land(&delivery, &mut worker.client, &block, &mut refused)?;
        delivery.keep(&mut worker.client, &refused)?;
        recorder.count_tombstones(block.rows());
    }
    Ok(true)
}
