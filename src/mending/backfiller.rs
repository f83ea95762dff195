//! Copies rows of the table on demand: `walhouse backfill`, on the thread of its command.
//!
//! ```text
//!   pages in the order of the key -> what does ClickHouse have? -> write what differs
//!   what was written -> does Postgres still have it? -> delete what is gone
//! ```
//!
//! The second step is for rows that were deleted while they were on their way: a DELETE that names
//! only the key finds nothing in ClickHouse to cover. This backfill's versions identify them, and
//! are recorded before the first row is written; so a backfill that resumes after a kill, or a new
//! one, deletes them too.

use std::io::BufRead;
use std::time::{Duration, Instant};

use super::command::{CommandContext, CommandProgress};
use super::gone::{LOOKUP_KEYS, SLICES_AT_ONCE, are_in_postgres};
use super::id_list::IdList;
use super::page;
use super::parties::{MendingContext, SQL_TIMEOUT, sql_deadline};
use super::request::BackfillRequest;
use super::standstill::commits;
use super::worker::Worker;
use crate::clickhouse::own::backfills::BackfillRow;
use crate::clickhouse::slices::Slicer;
use crate::clickhouse::stored;
use crate::config::ServiceConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::machines::repair::tombstone_version;
use crate::postgres::key_reader::{self, WantedKeys};
use crate::rows::key::LiveKey;
use crate::rows::tombstone;
use crate::wal::row_key::{self, KeyText};

pub const COMMAND: &str = "backfill";

const PAGE_ROWS_MAX: usize = 2_000;
/// How many ids of a list to query at a time.
const IDS_MAX: usize = 500;
/// If few rows match, the server may scan many for one page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(600);
/// Rows that were streamed after this was read are not outranked; the next ones are.
const BASE_KEPT_FOR: Duration = Duration::from_secs(60);
const RECORD_EVERY: Duration = Duration::from_secs(2);

/// The ids of a list, one a line.
pub type Ids = Box<dyn BufRead>;

#[derive(Debug, Default, Clone, Copy)]
pub struct Done {
    pub rows_read: u64,
    pub rows_written: u64,
    pub tombstones_written: u64,
    /// Of a list.
    pub ids: u64,
}

struct Backfiller<'b, 'c> {
    by: &'b CommandContext<'c>,
    request: BackfillRequest,
    base: Option<(u64, Instant)>,
    done: Done,
    /// Of this run.
    rows: u64,
    expected: u64,
    begun_at: Instant,
    recorded_at: Instant,
    show: &'b dyn Fn(CommandProgress<'_>),
}

/// `resume` continues the last unfinished backfill, whatever `request` says.
pub fn backfill(
    config: &ServiceConfig,
    request: BackfillRequest,
    ids: Option<Ids>,
    resume: bool,
    show: &dyn Fn(CommandProgress<'_>),
) -> Result<Done> {
    let by = CommandContext::open(config, COMMAND, true)?;
    let last = by.recorded(COMMAND)?;
    let open = last.as_ref().filter(|last| !last.is_done);
    let request = match (resume, open) {
        (false, _) => request,
        (true, Some(open)) => recorded_request(open, request.of_list)?,
        (true, None) => {
            return Err(refuse(config, "no backfill of it is unfinished", "Leave --resume out."));
        }
    };
    let mut row = by.new_record(COMMAND, last.as_ref(), &request.to_string());
    if let Some(open) = open {
        // Rows that an unfinished backfill has written are checked at the end, too.
        (row.version_min, row.version_max) = (open.version_min, open.version_max);
        if resume {
            row.position = open.position.clone();
            (row.rows_read, row.rows_written) = (open.rows_read, open.rows_written);
        }
    }
    let position = row.position.clone();
    let (rows_read, rows_written) = (row.rows_read, row.rows_written);
    by.set_record(row)?;
    let mut backfiller = Backfiller {
        by: &by,
        request,
        base: None,
        done: Done { rows_read, rows_written, ..Done::default() },
        rows: 0,
        expected: 0,
        begun_at: Instant::now(),
        recorded_at: Instant::now(),
        show,
    };
    let done = by.with(|with| {
        let mut worker = Worker::new(with)?;
        match ids {
            Some(ids) => backfiller.copy_list(&mut worker, ids, &position)?,
            None => backfiller.copy_all(&mut worker, &position)?,
        }
        backfiller.delete(with, &mut worker)?;
        Ok(backfiller.done)
    });
    let done = done.map_err(|error| match error.hint_text() {
        None => error.hint("What is done is recorded; the same with --resume goes on from there."),
        Some(_) => error,
    })?;
    by.record(|row| row.is_done = true)?;
    Ok(done)
}

fn recorded_request(open: &BackfillRow, of_list: bool) -> Result<BackfillRequest> {
    let doing = format!("resume the backfill of service `{}`", open.service);
    let request: BackfillRequest = open.request.parse().map_err(|_| {
        Error::new(ErrorKind::Protocol, &*doing)
            .because("its request is recorded in a form that this version does not know")
    })?;
    if request.of_list != of_list {
        let hint = match of_list {
            true => "Leave --ids out.",
            false => "Give it the same --ids again.",
        };
        return Err(Error::new(ErrorKind::Setup, doing)
            .because("it was started with other options")
            .hint(hint));
    }
    Ok(request)
}

fn refuse(config: &ServiceConfig, cause: &'static str, hint: &str) -> Error {
    let doing = format!("backfill service `{}`", config.name.as_str());
    Error::new(ErrorKind::Setup, doing).because(cause).hint(hint)
}

impl<'b> Backfiller<'b, '_> {
    fn wanted<'w>(&self, keys: Option<&'w [KeyText]>) -> WantedKeys<'w>
    where
        'b: 'w,
    {
        let source = self.by.member.source();
        let created_at = source.created_at.map(|place| &*source.columns[place].name);
        let moment = |moment: &Option<crate::mending::request::Moment>| {
            created_at.zip(moment.as_ref().map(ToString::to_string))
        };
        let final_values =
            self.by.member.mapping.final_values().filter(|_| !self.request.all_statuses);
        WantedKeys {
            from: moment(&self.request.from),
            to: moment(&self.request.to),
            one_of: final_values.map(|(place, values)| (&*source.columns[place].name, values)),
            keys,
        }
    }

    /// From behind this key on.
    fn copy_all(&mut self, worker: &mut Worker<'_>, position: &str) -> Result<()> {
        let wanted = self.wanted(None);
        let (table, key) = (&self.by.member.found, self.by.member.source().key_names());
        self.expected =
            key_reader::estimate(&mut worker.sql, table, &key, &wanted, sql_deadline())?;
        let after = match position {
            "" => None,
            position => row_key::parse_text(position, key.len()),
        };
        self.copy(worker, &wanted, after, true)?;
        Ok(())
    }

    /// Behind so many lines.
    fn copy_list(&mut self, worker: &mut Worker<'_>, ids: Ids, position: &str) -> Result<()> {
        let mut lines = 0_u64;
        let done: u64 = position.parse().unwrap_or(0);
        let mut chunk = Vec::new();
        let mut ids = IdList::new(ids);
        loop {
            let line = ids.next()?;
            let is_end = line.is_none();
            lines += u64::from(!is_end);
            let id = line.unwrap_or_default();
            if done < lines && !id.is_empty() {
                chunk.push(id);
            }
            if IDS_MAX <= chunk.len() || is_end {
                let columns = self.by.member.source().key.len();
                let keys = chunk.iter().filter_map(|id| row_key::parse_text(id, columns));
                let keys = worker.sql.held_keys(keys, SQL_TIMEOUT)?;
                self.done.ids += keys.len() as u64;
                let wanted = self.wanted(Some(&keys));
                if !keys.is_empty() {
                    self.copy(worker, &wanted, None, false)?;
                }
                chunk.clear();
                self.reached(&lines.to_string())?;
            }
            if is_end {
                return Ok(());
            }
        }
    }

    fn copy(
        &mut self,
        worker: &mut Worker<'_>,
        wanted: &WantedKeys<'_>,
        after: Option<KeyText>,
        is_recorded: bool,
    ) -> Result<()> {
        let mapped = self.by.mapped();
        let (names, key) = (mapped.names(), self.by.member.source().key_names());
        let mut after = after;
        loop {
            let base = self.base(worker)?;
            let request = key_reader::KeysRequest {
                table: &self.by.member.found,
                key_columns: &key,
                columns: &names,
                wanted,
                after: after.as_ref(),
                bytes_max: worker.with.page_bytes_max,
                rows_max: PAGE_ROWS_MAX,
            };
            let deadline = Instant::now() + PAGE_TIMEOUT;
            let rows = key_reader::page(&mut worker.sql, &request, deadline)?;
            if !rows.is_empty() {
                let written = page::land(worker, mapped, rows.values(), rows.as_of, base)?;
                self.by.check_landed()?;
                self.done.rows_written += written.len() as u64;
            }
            self.done.rows_read += rows.len() as u64;
            self.rows += rows.len() as u64;
            self.tell("rows");
            let Some(next) = rows.next else { return Ok(()) };
            // One that is not text is not recorded: a restart would not find the place again.
            if is_recorded && next.iter().all(|value| std::str::from_utf8(value).is_ok()) {
                let text = row_key::one_or_array(next.iter());
                self.reached(&String::from_utf8_lossy(&text))?;
            }
            after = Some(next);
        }
    }

    /// The version to write under, recorded before anything is.
    fn base(&mut self, worker: &mut Worker<'_>) -> Result<u64> {
        if let Some((base, read_at)) = self.base
            && read_at.elapsed() < BASE_KEPT_FOR
        {
            return Ok(base);
        }
        let base = self.by.base_version(&mut worker.sql)?;
        // Changes that the slot has moved past were streamed; they must be visible, too, or a page
        // would bring back older values.
        commits(worker.with)?;
        self.by.record(|row| {
            row.version_min = if row.version_min == 0 { base } else { row.version_min.min(base) };
            row.version_max = row.version_max.max(base);
        })?;
        self.base = Some((base, Instant::now()));
        Ok(base)
    }

    /// All up to here is done. Recorded now and then.
    fn reached(&mut self, position: &str) -> Result<()> {
        if self.recorded_at.elapsed() < RECORD_EVERY {
            return Ok(());
        }
        self.recorded_at = Instant::now();
        let Done { rows_read, rows_written, .. } = self.done;
        self.by.record(|row| {
            row.position = position.to_owned();
            (row.rows_read, row.rows_written) = (rows_read, rows_written);
        })
    }

    /// Marks rows that were written but are no longer in Postgres as deleted.
    fn delete(&mut self, with: &MendingContext<'_>, worker: &mut Worker<'_>) -> Result<()> {
        let (mut low, mut high) = (0, 0);
        self.by.record(|row| (low, high) = (row.version_min, row.version_max))?;
        if high == 0 {
            return Ok(());
        }
        commits(with)?;
        for (index, target) in self.by.member.targets().iter().enumerate() {
            let present = &self.by.member.shapes[index].present;
            if !stored::has_versions(target, |column| present[column]) {
                continue;
            }
            let slicer = Slicer::new(&mut worker.client, target, self.by.deadline())?;
            for partition in slicer.partitions(&mut worker.client, self.by.deadline())? {
                let mut next = Some(None);
                while let Some(after) = next {
                    let (client, size) = (&mut worker.client, SLICES_AT_ONCE);
                    let deadline = || self.by.deadline();
                    let slices = slicer.slices(client, &partition, after, size, deadline)?;
                    for slice in &slices {
                        let live = worker.ask(|client, deadline| {
                            slicer.keys_written_between(client, slice, low, high, deadline())
                        })?;
                        self.delete_gone(worker, index, &live)?;
                    }
                    next = slices.into_iter().next_back().and_then(|last| last.up_to).map(Some);
                }
            }
        }
        Ok(())
    }

    fn delete_gone(
        &mut self,
        worker: &mut Worker<'_>,
        index: usize,
        live: &[LiveKey],
    ) -> Result<()> {
        let target = &self.by.member.targets()[index];
        for keys in live.chunks(LOOKUP_KEYS) {
            let looked_up = are_in_postgres(worker, index, keys)?;
            let mut block = self.by.member.block_of(index);
            for (live, is_there) in keys.iter().zip(looked_up.there) {
                if !is_there {
                    let version = tombstone_version(live.version);
                    tombstone::append(target, &mut block, live, version);
                }
            }
            self.tell("deleted meanwhile");
            if block.rows() == 0 {
                continue;
            }
            if let Some(as_of) = looked_up.as_of {
                worker.cover(as_of)?;
            }
            let (delivery, mut refused) = (worker.with.delivery, Vec::new());
            worker.landings[index].land(&delivery, &mut worker.client, &block, &mut refused)?;
            delivery.keep(&mut worker.client, &refused)?;
            self.by.check_landed()?;
            self.done.tombstones_written += block.rows() as u64;
        }
        Ok(())
    }

    /// The planner's estimate may be wrong.
    fn tell(&self, what: &str) {
        let Done { rows_read, .. } = self.done;
        let expected = self.expected.max(rows_read).max(1);
        let (fraction, passed) = (rows_read as f64 / expected as f64, self.begun_at.elapsed());
        let left = (0 < self.rows && 0 < self.expected)
            .then(|| passed.mul_f64((expected - rows_read) as f64 / self.rows as f64));
        (self.show)(CommandProgress { what, fraction, left, rows: self.rows });
    }
}
