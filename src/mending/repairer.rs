//! `repairer/<service>`: makes ClickHouse equal to the table again, while the stream goes on.
//!
//! Tables that were empty when it began are only copied (`copy_range`) into:
//!
//! ```text
//!   copy:   blocks of the table -> rows -> write
//! ```
//!
//! Others are compared:
//!
//! ```text
//!   read:   blocks of the table -> rows -> what does ClickHouse have? -> write what differs
//!   count:  keys of ClickHouse  -> what does Postgres have?           -> may that be deleted?
//!   delete: the same keys, if some are gone                           -> delete what is gone
//! ```
//!
//! Its workers share the passes piece by piece; their progress is recorded in ClickHouse, so that
//! another instance can continue. It never ends the session: it reports errors and tries again,
//! because the stream matters more than the repair. When the session drains it stops at the next
//! page.

use std::time::{Duration, Instant};

use crate::machines::thinning::Thinning;
use crate::telling::tell_attempt;
use log::Level;
use prune_pass::PrunePass;
use read_pass::ReadPass;
use recorder::Recorder;
use workers::work;

mod copy_range;
mod cursor;
mod prune_pass;
mod read_pass;
mod recorder;
mod workers;

pub use cursor::RepairCursor;

use super::parties::{MendingContext, connect, sql_deadline};
use super::worker::Worker;
use super::{deletes, standstill};
use crate::clickhouse::Client;
use crate::clickhouse::own::repairs::{AT_FENCE, RepairRow, RepairStatus};
use crate::delivery::alongside::StopLevel;
use crate::delivery::as_of::wait_until_flushed;
use crate::delivery::context::DeliveryContext;
use crate::delivery::outage::Delays;
use crate::delivery::session_state::SessionState;
use crate::error::{ErrorKind, Result};
use crate::health::Health;
use crate::postgres::server::as_of;

/// Waits between attempts.
const DELAYS: Delays =
    Delays { min: Duration::from_secs(1), max: Duration::from_secs(60), outage_after: 1 };

pub struct Repairer<'a> {
    pub context: MendingContext<'a>,
    pub shared: &'a SessionState,
    pub workers: usize,
    pub health: &'a Health,
}

/// Runs until the repair is done or the session ends.
pub fn run(with: &Repairer<'_>, row: RepairRow) -> Result<()> {
    let DeliveryContext { service, clickhouse, alongside, metrics, .. } = with.context.delivery;
    let recorder = Recorder::new(with, Client::connect(clickhouse)?, row);
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
                // The next plan may find other files: nothing tells of rows that were in these.
                recorder.doubt_copy();
                let is_said = failures.on_repeat();
                let attempt = failures.times();
                recorder.on_failure(attempt, &error);
                if is_said {
                    let of = (service, &*format!("{name}: "));
                    tell_attempt(Level::Error, of, &error, "the stream goes on", attempt);
                }
                let until = Instant::now() + crate::delivery::outage::wait(DELAYS, attempt);
                if alongside.rest(until) != StopLevel::Running {
                    break false;
                }
            }
        }
    };
    metrics.repair_running.lower();
    metrics.repair_failing.lower();
    if is_done {
        recorder.finish();
        with.shared.end_repair();
    } else {
        // To the rest of this session the repair counts as running: an update of the last batches
        // may have moved its row to where the next session does not read.
        log::info!("{service}: {name}: postponed; the next session continues it");
    }
    with.health.publish_repair(service, None);
    Ok(())
}

/// Waits until the stream has reached the snapshots that the table was read in. A row that an
/// update moved out of the reader's way arrives with that update, which must carry everything that
/// a repair would ([`Updates::AsFirst`](crate::services::assemble::Updates)): so the repair is not
/// over before.
fn catch_up(with: &MendingContext<'_>, recorder: &Recorder<'_>) -> Result<()> {
    let alongside = with.delivery.alongside;
    let mut sql = connect(with)?;
    let read = as_of(&mut sql, sql_deadline())?;
    wait_until_flushed(&mut sql, alongside, read, sql_deadline())?;
    drop(sql);
    recorder.show_catching_up();
    alongside.wait_for_stream(read.insert_lsn)
}

/// Whether the stream has brought everything that became of the rows since they were copied. What
/// it could not place is marked as deleted here.
fn is_all_told(repairer: &Repairer<'_>, recorder: &Recorder<'_>, pass: &ReadPass) -> Result<bool> {
    let with = &repairer.context;
    let Some(keys) = repairer.shared.deleted_keys().keys(0).filter(|_| recorder.is_whole_copy())
    else {
        return Ok(false);
    };
    let mut worker = Worker::new(with)?;
    Ok(pass.is_as_read(with)?
        && copy_range::mark_deleted(&mut worker, recorder, &keys, recorder.base_version())?)
}

/// Runs the repair from where it was left to its end. If an operator has to agree first, it waits
/// for the end of the session.
fn repair(repairer: &Repairer<'_>, recorder: &Recorder<'_>) -> Result<()> {
    let with = &repairer.context;
    if recorder.base_version() == AT_FENCE {
        let fence = standstill::fence(with, || recorder.show_waiting())?;
        // Older changes must have arrived before the comparison: otherwise a row is equal now and
        // the stream may still bring an older form of it, or one is gone, as with its partition,
        // before there is anything to delete.
        with.delivery.alongside.wait_for_stream(fence)?;
        recorder.pass_fence(fence)?;
    }
    // For an unfinished pass over ClickHouse's keys: the rows of the finished portions.
    let mut rows_before = None;
    let mut gone_before = None;
    loop {
        let position = recorder.position();
        if rows_before.is_none() {
            standstill::stand_still(with)?;
        }
        let base_version = recorder.base_version();
        match position {
            RepairCursor::Copy(None) => recorder.begin_copy()?,
            RepairCursor::Copy(Some(done)) => {
                let pass = ReadPass::plan_copy(with, base_version, &done, repairer.workers)?;
                work(repairer, recorder, &pass)?;
                if !pass.is_complete() {
                    recorder.doubt_copy();
                    continue;
                }
                catch_up(with, recorder)?;
                if is_all_told(repairer, recorder, &pass)? {
                    return recorder.record(RepairStatus::Done);
                }
                recorder.enter(RepairCursor::start_of_count())?;
            }
            RepairCursor::Read(read) => {
                let pass = ReadPass::plan(with, base_version, &read)?;
                work(repairer, recorder, &pass)?;
                // The progress on a part that was rewritten is lost: plan again, and only
                // unfinished work is left.
                if pass.is_complete() {
                    recorder.enter(RepairCursor::start_of_count())?;
                }
            }
            RepairCursor::Count { counts, done } => {
                let before = rows_before.unwrap_or(0);
                let pass =
                    PrunePass::plan_count(with, base_version, counts, done.as_ref(), before)?;
                work(repairer, recorder, &pass)?;
                rows_before = pass.rows_before_next();
                if rows_before.is_some() {
                    continue;
                }
                let counts = pass.counts();
                if !recorder.may_delete_all() {
                    let asked =
                        deletes::ask(with, &recorder.slot(), &counts, recorder.is_of_fork())?;
                    if let Some(question) = asked.into_iter().flatten().next() {
                        recorder.enter(RepairCursor::start_of_count())?;
                        // The stream deletes rows that vanish during the count, so it counts again
                        // as long as the number falls.
                        let gone = counts.iter().map(|count| count.gone).sum::<u64>();
                        if gone_before.replace(gone).is_none_or(|before| gone < before) {
                            catch_up(with, recorder)?;
                            continue;
                        }
                        recorder.on_question(&question);
                        drop(pass);
                        // The operator answers by a restart, which counts the rows again.
                        loop {
                            with.delivery.alongside.rest(Instant::now() + DELAYS.max).go_on()?;
                        }
                    }
                }
                recorder.enter(RepairCursor::Delete(None))?;
            }
            RepairCursor::Delete(done) => {
                let before = rows_before.unwrap_or(0);
                let pass = PrunePass::plan(with, base_version, done.as_ref(), before)?;
                work(repairer, recorder, &pass)?;
                rows_before = pass.rows_before_next();
                if rows_before.is_none() {
                    catch_up(with, recorder)?;
                    return recorder.record(RepairStatus::Done);
                }
            }
        }
    }
}
