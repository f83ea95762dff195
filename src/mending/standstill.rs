//! What a pass waits for before it reads: both sides must stand still in one respect each, or rows
//! that it finds equal or gone are not.
//!
//! - Postgres: a commit below where the slot begins may not be visible yet. It will not be
//!   streamed, so a page that does not see it misses it for good.
//!   Where the source was changed, all that ran then is waited for instead ([`fence`]).
//! - ClickHouse: an insert of an earlier session, whose answer never came, may still be running. It
//!   would land behind the comparison, with rows that a fork has made dead.

use std::time::{Duration, Instant};

use super::parties::{MendingContext, connect, sql_deadline};
use crate::clickhouse::Client;
use crate::clickhouse::params::InsertStrategy;
use crate::clickhouse::running::{Running, inserts_older_than};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::barrier::{Barrier, Waiting, waiting};
use crate::postgres::server::as_of;
use crate::wal::Lsn;

/// How soon it is seen that something has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// From the WAL to being visible takes microseconds, or the time slice of a busy machine, unless a
/// standby has to answer. A transaction that runs for longer has not committed.
const VISIBLE_WITHIN: Duration = Duration::from_secs(3);
/// Where it cannot be seen whether a commit waits for a standby.
const UNSEEN_WITHIN: Duration = Duration::from_secs(60);
/// How soon the end of a long transaction is noticed, and how often the wait is logged.
const FENCE_EVERY: Duration = Duration::from_secs(1);
const TELL_EVERY: Duration = Duration::from_secs(30);
/// More than these are told as a number only.
const HOLDERS_TOLD: usize = 5;
/// Longer than any insert of ours should take; then it is an error, and tried again.
const INSERTS_END_WITHIN: Duration = Duration::from_secs(60);
/// What ClickHouse has taken as an asynchronous insert and not written yet, it writes within a
/// second (`async_insert_busy_timeout_ms`).
const ASYNC_INSERTS_END_WITHIN: Duration = Duration::from_secs(3);

pub fn stand_still(with: &MendingContext<'_>) -> Result<()> {
    inserts_of_others(with)?;
    commits(with)
}

fn inserts_of_others(with: &MendingContext<'_>) -> Result<()> {
    let (delivery, begun_at) = (with.delivery, Instant::now());
    let mut client = Client::connect(delivery.clickhouse)?;
    let tables: Vec<&str> = with.member.targets().iter().map(|target| &*target.table).collect();
    if delivery.clickhouse.insert_strategy == InsertStrategy::InsertAsync {
        delivery.alongside.rest(begun_at + ASYNC_INSERTS_END_WITHIN).go_on()?;
    }
    loop {
        let deadline = Instant::now() + delivery.clickhouse.request_timeout;
        let age = with.begun_at.elapsed();
        let Running { count, unseen } = inserts_older_than(&mut client, &tables, age, deadline)?;
        let has_waited = INSERTS_END_WITHIN <= begun_at.elapsed();
        if count == 0 && (unseen.is_empty() || has_waited) {
            if !unseen.is_empty() {
                log::warn!(
                    "clickhouse: it is unknown what still runs on `{}`; the repair goes on",
                    unseen.join("`, `")
                );
            }
            // Later reads must see inserts that have just ended on another host.
            delivery.clickhouse.hosts.forget_fresh();
            return Ok(());
        }
        if has_waited {
            return Err(Error::new(ErrorKind::Unreachable, "wait for inserts to end")
                .because(format!("{count} of an earlier session are still running"))
                .hint("See system.processes of ClickHouse; KILL QUERY ends them."));
        }
        delivery.alongside.rest(Instant::now() + LOOK_EVERY).go_on()?;
    }
}

/// Where the WAL ended before every transaction that ran then had ended, prepared ones too: reads
/// from now on lack no change below it.
pub fn fence(with: &MendingContext<'_>, tell: impl Fn()) -> Result<Lsn> {
    let (delivery, begun_at) = (with.delivery, Instant::now());
    let mut sql = connect(with)?;
    // In this order: a transaction that begins in between changes nothing below.
    let fence = as_of(&mut sql, sql_deadline())?.insert_lsn;
    let mut barrier = Barrier::set(&mut sql, sql_deadline())?;
    let mut told_at = begun_at;
    while !barrier.is_passed(&mut sql, sql_deadline())? {
        if TELL_EVERY <= told_at.elapsed() || told_at == begun_at {
            told_at = Instant::now();
            tell();
            let holders = barrier.holders(&mut sql, sql_deadline())?;
            log::info!(
                "{}: repair: waiting for {} transactions that were open at {fence} ({}); the \
                 stream goes on",
                delivery.service,
                barrier.count(),
                holders
                    .iter()
                    .take(HOLDERS_TOLD)
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        let pause = if VISIBLE_WITHIN <= begun_at.elapsed() { FENCE_EVERY } else { LOOK_EVERY };
        delivery.alongside.rest(Instant::now() + pause).go_on()?;
    }
    Ok(fence)
}

/// Waits until everything committed by now is visible.
pub fn commits(with: &MendingContext<'_>) -> Result<()> {
    let (alongside, begun_at) = (with.delivery.alongside, Instant::now());
    let mut sql = connect(with)?;
    let mut barrier = Barrier::set(&mut sql, sql_deadline())?;
    while !barrier.is_passed(&mut sql, sql_deadline())? {
        let waited = begun_at.elapsed();
        if VISIBLE_WITHIN <= waited {
            match waiting(&mut sql, &barrier, sql_deadline())? {
                Waiting::ForItself => break,
                Waiting::Unknown if UNSEEN_WITHIN <= waited => break,
                Waiting::ForStandby | Waiting::Unknown => {}
            }
        }
        alongside.rest(Instant::now() + LOOK_EVERY).go_on()?;
    }
    Ok(())
}
