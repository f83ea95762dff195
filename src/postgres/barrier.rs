//! Commits that are in the WAL and not yet visible: a snapshot may only be relied on once they are.
//!
//! A commit is streamed, and counts for where a slot begins, once it is in the WAL. It becomes
//! visible a moment later; with synchronous replication when the standby has answered, and that can
//! take long. From outside such a transaction looks like any other that is running.

use std::time::Instant;

use super::reread::Snapshot;
use super::sql::{Sql, SqlError, protocol};
use crate::error::Result;

/// The transactions that were running at one moment, without those that have ended since.
#[derive(Debug)]
pub struct Barrier {
    running: Vec<u64>,
}

/// Why transactions may be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// None of them waits for a standby: what has not ended yet has not been committed either.
    ForItself,
    ForStandby,
    /// Commits wait for standbys here, and this role may not see which do.
    Unknown,
}

impl Barrier {
    pub fn set(sql: &mut Sql, deadline: Instant) -> Result<Barrier> {
        // A snapshot names those who run below the last that has ended; above it everybody may. So
        // one ends first that is above them all. It is rolled back, for that waits for no standby.
        let end_one = "BEGIN; SELECT pg_current_xact_id(); ROLLBACK";
        sql.execute("end a transaction above those that are running", end_one, deadline)?;
        Ok(Barrier { running: snapshot(sql, deadline)?.running })
    }

    /// True once all of them have ended.
    pub fn is_passed(&mut self, sql: &mut Sql, deadline: Instant) -> Result<bool> {
        if !self.running.is_empty() {
            let now = snapshot(sql, deadline)?;
            self.running.retain(|xid| now.running.contains(xid));
        }
        Ok(self.running.is_empty())
    }
}

/// Whether any of the barrier's transactions waits for a standby. Others do not matter: where
/// commits wait for standbys at all, one is found waiting at almost any moment. Who waits without a
/// transaction of its own commits a prepared one, which may be any.
pub fn waiting(sql: &mut Sql, barrier: &Barrier, deadline: Instant) -> Result<Waiting> {
    let doing = "look for commits that wait for a standby";
    let running: Vec<String> = barrier.running.iter().map(|xid| low_half(*xid)).collect();
    let rows = sql.rows(
        doing,
        &format!(
            "SELECT current_setting('synchronous_standby_names') <> '',
                    EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'
                            AND (backend_xid IS NULL
                                 OR backend_xid::text = ANY ('{{{}}}'::text[]))),
                    pg_has_role('pg_read_all_stats', 'MEMBER')",
            running.join(",")
        ),
        deadline,
    )?;
    let read = || -> std::result::Result<Waiting, SqlError> {
        let row = rows.first().ok_or_else(|| protocol("expected one row"))?;
        Ok(match (row.bool(0)?, row.bool(1)?, row.bool(2)?) {
            (_, true, _) => Waiting::ForStandby,
            (false, ..) | (_, _, true) => Waiting::ForItself,
            (true, false, false) => Waiting::Unknown,
        })
    };
    read().map_err(|error| error.doing(doing))
}

/// A transaction as `pg_stat_activity` shows it, without the epoch.
fn low_half(xid: u64) -> String {
    (xid & u64::from(u32::MAX)).to_string()
}

fn snapshot(sql: &mut Sql, deadline: Instant) -> Result<Snapshot> {
    let doing = "look which transactions are running";
    let rows = sql.rows(doing, "SELECT pg_current_snapshot()", deadline)?;
    let row = rows.first().ok_or_else(|| protocol("expected one row"));
    let text = row.and_then(|row| row.required(0)).map_err(|error| error.doing(doing))?;
    Snapshot::parse(text)
        .ok_or_else(|| protocol("expected a snapshot such as 10:20:10,14").doing(doing))
}
