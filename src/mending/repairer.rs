//! `repairer/<service>`: makes ClickHouse equal to the table again, while the stream goes on.
//!
//! ```text
//!   read:   blocks of the table -> rows -> what does ClickHouse have? -> write what differs
//!   count:  keys of ClickHouse  -> what does Postgres have?           -> may that be deleted?
//!   delete: the same keys, if some are gone                           -> delete what is gone
//! ```
//!
//! Its workers share the passes piece by piece; how far they have come is recorded in
//! ClickHouse, so that another instance goes on from there. It never ends the session: what stands
//! in its way is reported and tried again, because the stream is of more use than the repair. Told
//! to drain it stops at the next page.

use std::time::{Duration, Instant};

use crate::machines::thinning::Thinning;
use crate::telling::tell_attempt;
use log::Level;
use prune_pass::PrunePass;
use read_pass::ReadPass;
use recorder::Recorder;
use work::work;

pub(super) mod before;
mod cursor;
pub(super) mod leave;
pub(super) mod page;
pub(super) mod prune_pass;
mod read_pass;
mod recorder;
pub(super) mod work;

pub use cursor::RepairCursor;

use crate::clickhouse::Client;
use crate::clickhouse::own::repairs::{AT_FENCE, RepairRow, RepairStatus};
use crate::delivery::as_of::wait_until_flushed;
use crate::delivery::landing::DeliveryContext;
use crate::delivery::outage::Delays;
use crate::delivery::session_state::StopLevel;
use crate::error::{ErrorKind, Result};
use crate::health::Health;
use crate::postgres::primary::Primary;
use crate::postgres::server::as_of;
use crate::postgres::source_table::SourceTable;
use crate::rows::Shape;
use crate::services::mapping::Mapping;
use crate::wal::Lsn;

/// Waits between attempts.
const DELAYS: Delays =
    Delays { min: Duration::from_secs(1), max: Duration::from_secs(60), outage_after: 1 };
/// How soon it is seen that the stream has come far enough.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// One statement against Postgres.
const SQL_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Repairer<'a> {
    pub delivery: DeliveryContext<'a>,
    pub mapping: &'static dyn Mapping,
    /// As it was when the session began.
    pub source: &'a SourceTable,
    /// By target table.
    pub shapes: &'a [Shape],
    /// Where the stream comes from.
    pub primary: &'a Primary,
    pub application_name: &'a str,
    pub workers: usize,
    /// Of a table: what may be marked as deleted without a question.
    pub deletes_max_percent: u64,
    /// Admits that rows of commits up to there may come, before any of them does.
    pub admit: &'a (dyn Fn(Lsn) -> Result<()> + Sync),
    /// What one worker holds of the table at a time, as it comes from Postgres.
    pub page_bytes_max: usize,
    pub health: &'a Health,
    pub session_begun_at: Instant,
}

/// Runs until the repair is done or the session ends.
pub fn run(with: &Repairer<'_>, row: RepairRow) -> Result<()> {
    let DeliveryContext { service, shared, metrics, .. } = with.delivery;
    let recorder = Recorder::new(with, Client::connect(with.delivery.clickhouse)?, row);
    metrics.repair_running.raise();
    let name = recorder.name();
    log::log!(recorder.level(), "{service}: {name}: {}", recorder.reason());
    let mut failures = Thinning::default();
    let is_done = loop {
        match repair(with, &recorder) {
            Ok(()) => break true,
            Err(error) if error.kind() == ErrorKind::Stopped => break false,
            Err(error) => {
                if recorder.take_progress() {
                    failures.reset();
                }
                let is_said = failures.on_repeat();
                let attempt = failures.times();
                recorder.on_failure(attempt, &error);
                if is_said {
                    let of = (service, &*format!("{name}: "));
                    tell_attempt(Level::Error, of, &error, "the stream goes on", attempt);
                }
                let until = Instant::now() + crate::delivery::outage::wait(DELAYS, attempt);
                if shared.rest(until) != StopLevel::Running {
                    break false;
                }
            }
        }
    };
    metrics.repair_running.lower();
    metrics.repair_failing.lower();
    if is_done {
        recorder.finish();
        shared.end_repair();
    } else {
        // What is still flushed in this session is flushed under a repair, for one it is: an update
        // of the last batches may have moved its row to where the next session does not look.
        log::info!("{service}: {name}: put off; the next session goes on with it");
    }
    with.health.publish_repair(service, None);
    Ok(())
}

/// Waits until the stream has come to where the table was read. A row that an update had moved out
/// of the reader's way comes with that update, which has to bring all that a repair would
/// ([`Updates::AsFirst`](crate::services::assemble::Updates)): so the repair is not over before.
fn catch_up(with: &Repairer<'_>, recorder: &Recorder<'_>) -> Result<()> {
    let shared = with.delivery.shared;
    let mut sql = work::connect(with)?;
    let read = as_of(&mut sql, work::sql_deadline())?;
    wait_until_flushed(&mut sql, shared, read, work::sql_deadline())?;
    drop(sql);
    recorder.show_catching_up();
    come_to(with, read.insert_lsn)
}

/// Waits until all that was committed below is durable in ClickHouse.
fn come_to(with: &Repairer<'_>, lsn: Lsn) -> Result<()> {
    let shared = with.delivery.shared;
    while with.delivery.marks.flushed() < lsn {
        shared.rest(Instant::now() + LOOK_EVERY).go_on()?;
    }
    Ok(())
}

/// From where it was left to its end. Where somebody has to say first that it may go on, it waits
/// for the end of the session.
fn repair(with: &Repairer<'_>, recorder: &Recorder<'_>) -> Result<()> {
    if recorder.base_version() == AT_FENCE {
        let fence = before::fence(with, || recorder.show_waiting())?;
        // What is older has to be there to be compared: equal now, the stream may still bring what
        // a row was before; gone, as with its partition, what there is to be deleted.
        come_to(with, fence)?;
        recorder.pass_fence(fence)?;
    }
    // Of a pass over ClickHouse's keys that is in the middle: rows of the portions that are done.
    let mut rows_before = None;
    let mut gone_before = None;
    loop {
        let position = recorder.position();
        if rows_before.is_none() {
            before::stand_still(with)?;
        }
        let base_version = recorder.base_version();
        match position {
            RepairCursor::Read(read) => {
                let pass = ReadPass::plan(with, base_version, &read)?;
                work(with, recorder, &pass)?;
                // A part that was rewritten has lost what was done of it: plan anew, and only what
                // is not done is left.
                if pass.is_complete() {
                    recorder.enter(RepairCursor::start_of_count())?;
                }
            }
            RepairCursor::Count { counts, done } => {
                let before = rows_before.unwrap_or(0);
                let pass =
                    PrunePass::plan_count(with, base_version, counts, done.as_ref(), before)?;
                work(with, recorder, &pass)?;
                rows_before = pass.rows_before_next();
                if rows_before.is_some() {
                    continue;
                }
                let counts = pass.counts();
                if !recorder.may_delete_all() {
                    let asked = leave::ask(with, &recorder.slot(), &counts, recorder.is_of_fork())?;
                    if let Some(question) = asked.into_iter().flatten().next() {
                        recorder.enter(RepairCursor::start_of_count())?;
                        // What goes while it is counted is for the stream to delete, so it is
                        // counted again as long as there is less of it.
                        let gone = counts.iter().map(|count| count.gone).sum::<u64>();
                        if gone_before.replace(gone).is_none_or(|before| gone < before) {
                            catch_up(with, recorder)?;
                            continue;
                        }
                        recorder.on_question(&question);
                        drop(pass);
                        // Whoever answers starts it again: what is to go is looked at anew then.
                        loop {
                            with.delivery.shared.rest(Instant::now() + DELAYS.max).go_on()?;
                        }
                    }
                }
                recorder.enter(RepairCursor::Delete(None))?;
            }
            RepairCursor::Delete(done) => {
                let before = rows_before.unwrap_or(0);
                let pass = PrunePass::plan(with, base_version, done.as_ref(), before)?;
                work(with, recorder, &pass)?;
                rows_before = pass.rows_before_next();
                if rows_before.is_none() {
                    catch_up(with, recorder)?;
                    return recorder.record(RepairStatus::Done);
                }
            }
        }
    }
}
