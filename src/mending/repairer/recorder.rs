//! Records how far the repair is, in ClickHouse for the next session and for people to see.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{RepairCursor, Repairer};
use crate::clickhouse::Client;
use crate::clickhouse::own::repairs::{self, AT_FENCE, RepairRow, RepairStatus};
use crate::error::{Error, Result};
use crate::health::ATTEMPTS_HEALTHY;
use crate::machines::recovery::fence_version;
use crate::machines::repair::Pieces;
use crate::machines::thinning::Thinning;
use crate::overview::Repair;
use crate::postgres::source_table::TableName;
use crate::postgres::table_reader::Tid;
use crate::telling::tell;
use crate::wal::Lsn;

/// A record for each piece of a small table would be many.
const RECORD_EVERY: Duration = Duration::from_secs(2);
const TELL_EVERY: Duration = Duration::from_secs(30);

pub struct Recorder<'a> {
    with: &'a Repairer<'a>,
    state: Mutex<State>,
}

struct State {
    client: Client,
    row: RepairRow,
    position: RepairCursor,
    recorded_at: Instant,
    told_at: Instant,
    begun_at: Instant,
    shown: Repair,
    /// Since it was last asked for.
    progressed: bool,
    /// Rows that cannot be read.
    left_out: Thinning,
    /// This session copies the table from its first row on, and nothing else was in its way.
    is_whole_copy: bool,
}

impl<'a> Recorder<'a> {
    pub fn new(with: &'a Repairer<'a>, client: Client, row: RepairRow) -> Recorder<'a> {
        let position = row.position.parse().unwrap_or_else(|_| {
            log::warn!(
                "{}: {}: its recorded position is not known; from the start",
                row.service,
                row.name()
            );
            RepairCursor::start()
        });
        let now = Instant::now();
        let shown = Repair {
            reason: row.reason.clone(),
            pass: position.pass().to_owned(),
            fraction: Some(0.0),
            rows_read: row.rows_read,
            rows_written: row.rows_written,
            tombstones_written: row.tombstones_written,
            ..Repair::default()
        };
        let state = State {
            client,
            row,
            position,
            recorded_at: now,
            told_at: now,
            begun_at: now,
            shown,
            progressed: false,
            left_out: Thinning::default(),
            is_whole_copy: false,
        };
        Recorder { with, state: Mutex::new(state) }
    }

    pub fn name(&self) -> &'static str {
        self.state.lock().row.name()
    }

    pub fn reason(&self) -> String {
        let state = self.state.lock();
        let reason = &state.row.reason;
        match &state.position {
            RepairCursor::Copy(None) => format!("copying the table: {reason}"),
            position if *position == RepairCursor::start() => {
                format!("comparing the table with ClickHouse: {reason}")
            }
            position => format!("going on ({}): {reason}", position.pass()),
        }
    }

    /// Filling tables does not indicate a problem.
    pub fn level(&self) -> log::Level {
        self.level_of(&self.state.lock().row)
    }

    fn level_of(&self, row: &RepairRow) -> log::Level {
        if row.is_initial_backfill() { log::Level::Info } else { log::Level::Warn }
    }

    pub fn slot(&self) -> String {
        self.state.lock().row.slot.clone()
    }

    /// An operator who adopts a source wants rows that it lacks to be deleted.
    pub fn may_delete_all(&self) -> bool {
        self.state.lock().row.is_of_adopted()
    }

    pub fn is_of_fork(&self) -> bool {
        self.state.lock().row.is_of_fork()
    }

    pub fn base_version(&self) -> u64 {
        self.state.lock().row.base_version
    }

    /// Rows read from now on are written at this fence's version.
    pub fn pass_fence(&self, fence: Lsn) -> Result<()> {
        let mut state = self.state.lock();
        state.row.base_version = fence_version(state.row.version_shift, fence);
        let written = self.write(&mut state, RepairStatus::Running);
        if written.is_err() {
            // Another one the next time: a successor would not know of this one.
            state.row.base_version = AT_FENCE;
        }
        written
    }

    pub fn position(&self) -> RepairCursor {
        self.state.lock().position.clone()
    }

    pub fn count_read(&self, rows: usize) {
        self.with.context.delivery.metrics.repair_rows_read.inc_by(rows as u64);
        self.state.lock().row.rows_read += rows as u64;
    }

    pub fn count_written(&self, rows: usize) {
        self.with.context.delivery.metrics.repair_rows_written.inc_by(rows as u64);
        self.state.lock().row.rows_written += rows as u64;
    }

    pub fn count_tombstones(&self, rows: usize) {
        let metrics = self.with.context.delivery.metrics;
        metrics.repair_rows_deleted.inc_by(rows as u64);
        metrics.repair_rows_buried.inc_by(rows as u64);
        self.state.lock().row.tombstones_written += rows as u64;
    }

    /// One row does not keep the others from being made equal.
    pub fn leave_out(&self, table: &TableName, at: Tid) {
        let mut state = self.state.lock();
        if state.left_out.on_repeat() {
            log::warn!(
                "{}: {}: {} rows contain a character that UTF-8 cannot represent, the last one at \
                 {at} of `{table}`: they are left as ClickHouse has them",
                self.with.context.delivery.service,
                state.row.name(),
                state.left_out.times()
            );
        }
    }

    /// Everything before this place is done. Recorded now and then.
    pub fn advance(&self, position: RepairCursor) -> Result<()> {
        let mut state = self.state.lock();
        state.position = position;
        state.progressed = true;
        (state.shown.failed_attempts, state.shown.error) = (0, None);
        self.with.context.delivery.metrics.repair_failing.lower();
        if state.recorded_at.elapsed() < RECORD_EVERY {
            return Ok(());
        }
        self.write(&mut state, RepairStatus::Running)
    }

    /// The next pass begins.
    pub fn enter(&self, position: RepairCursor) -> Result<()> {
        let mut state = self.state.lock();
        state.position = position;
        self.write(&mut state, RepairStatus::Running)
    }

    /// To be called before the first row is copied: whoever goes on with it must know that there
    /// may be rows, and deletes that found none.
    pub fn begin_copy(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.position = RepairCursor::Copy(Some(Vec::new()));
        let written = self.write(&mut state, RepairStatus::Running);
        state.is_whole_copy = written.is_ok();
        if written.is_err() {
            // Again the next time: a successor would not know.
            state.position = RepairCursor::Copy(None);
        }
        written
    }

    pub fn is_whole_copy(&self) -> bool {
        self.state.lock().is_whole_copy
    }

    /// Something happened to the table that no row of the stream shows.
    pub fn doubt_copy(&self) {
        self.state.lock().is_whole_copy = false;
    }

    pub fn record(&self, status: RepairStatus) -> Result<()> {
        self.write(&mut self.state.lock(), status)
    }

    fn write(&self, state: &mut State, status: RepairStatus) -> Result<()> {
        state.row.status = status;
        state.row.position = state.position.to_string();
        let deadline = Instant::now() + self.with.context.delivery.clickhouse.request_timeout;
        repairs::write(&mut state.client, &mut state.row, deadline)?;
        state.recorded_at = Instant::now();
        Ok(())
    }

    /// Shows how far the pieces are.
    pub fn show(&self, pieces: &Pieces) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let estimate = pieces.estimate(now);
        let State { row, shown, position, .. } = &mut *state;
        shown.pass = position.pass().to_owned();
        shown.fraction = Some(estimate.fraction);
        shown.seconds_left = estimate.left.map(|left| left.as_secs());
        (shown.pieces_done, shown.pieces) = (pieces.done(), pieces.count());
        shown.rows_read = row.rows_read;
        shown.rows_written = row.rows_written;
        shown.tombstones_written = row.tombstones_written;
        self.with.context.delivery.metrics.repair_progress.set(estimate.fraction);
        self.with.health.publish_repair(self.with.context.delivery.service, Some(shown.clone()));
        if TELL_EVERY <= now.saturating_duration_since(state.told_at) {
            state.told_at = now;
            let left = estimate.left.map_or("unknown".to_owned(), |left| format!("{left:.0?}"));
            log::info!(
                "{}: {}: {} {:.1} %, about {left} left; {} rows read, {} written, {} marked as \
                 deleted",
                self.with.context.delivery.service,
                state.row.name(),
                state.position.pass(),
                estimate.fraction * 100.0,
                state.row.rows_read,
                state.row.rows_written,
                state.row.tombstones_written
            );
        }
    }

    /// The repair waits for transactions.
    pub fn show_waiting(&self) {
        let mut state = self.state.lock();
        state.shown.pass = "wait for transactions".to_owned();
        self.with
            .health
            .publish_repair(self.with.context.delivery.service, Some(state.shown.clone()));
    }

    /// The passes are done; the repair waits for the stream.
    pub fn show_catching_up(&self) {
        let mut state = self.state.lock();
        state.shown.pass = "catch up".to_owned();
        state.shown.fraction = Some(1.0);
        state.shown.seconds_left = None;
        self.with
            .health
            .publish_repair(self.with.context.delivery.service, Some(state.shown.clone()));
    }

    /// Whether it came further since this was last asked.
    pub fn take_progress(&self) -> bool {
        std::mem::take(&mut self.state.lock().progressed)
    }

    pub fn on_failure(&self, failures: u32, error: &Error) {
        let mut state = self.state.lock();
        state.shown.failed_attempts = failures;
        state.shown.error = Some(error.to_string());
        self.with.context.delivery.metrics.repair_failing.raise();
        self.with
            .health
            .publish_repair(self.with.context.delivery.service, Some(state.shown.clone()));
    }

    /// It does not go on before an operator decides.
    pub fn on_question(&self, question: &Error) {
        let (service, name) = (self.with.context.delivery.service, self.name());
        let line = format_args!("{name}: {question}; it waits, the stream goes on");
        tell(log::Level::Error, service, line, question.hint_text());
        self.on_failure(ATTEMPTS_HEALTHY + 1, question);
    }

    pub fn finish(&self) {
        let state = self.state.lock();
        self.with.context.delivery.metrics.repair_progress.set(1.0);
        log::log!(
            self.level_of(&state.row),
            "{}: {}: done after {:.1} s: both sides are equal{}; {} rows read, {} written, {} \
             marked as deleted",
            self.with.context.delivery.service,
            state.row.name(),
            state.begun_at.elapsed().as_secs_f64(),
            match (state.left_out.times(), state.row.is_initial_backfill()) {
                (0, true) => String::new(),
                (0, false) => " again".to_owned(),
                (rows, _) => format!(" but for {rows} rows that cannot be read"),
            },
            state.row.rows_read,
            state.row.rows_written,
            state.row.tombstones_written
        );
    }
}
