//! Commits that are in the WAL and not yet visible: a snapshot is reliable only once they are.
//!
//! Postgres streams a commit, and lets a slot begin behind it, once it is in the WAL. It becomes
//! visible a moment later; with synchronous replication only when the standby has answered, which
//! can take long. From outside such a transaction looks like any other running one.

use std::time::Instant;

use super::sql::{Sql, SqlError, protocol};
use crate::error::Result;

/// The transactions that were running at one moment, without those that have ended since.
#[derive(Debug)]
pub struct Barrier {
    running: Vec<u32>,
}

/// Why a barrier may wait for transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// None of them waits for a standby: a transaction that has not ended has not committed either.
    ForItself,
    ForStandby,
    /// Commits wait for standbys here, and this role may not see which do.
    Unknown,
}

impl Barrier {
    pub fn set(sql: &mut Sql, deadline: Instant) -> Result<Barrier> {
        Ok(Barrier { running: running(sql, deadline)? })
    }

    /// The number that is left, as of the last check.
    pub fn count(&self) -> usize {
        self.running.len()
    }

    /// Who holds it up, for people: processes of the server and prepared transactions.
    pub fn holders(&self, sql: &mut Sql, deadline: Instant) -> Result<Vec<String>> {
        let doing = "look which transactions are running";
        let query = format!(
            "SELECT coalesce('prepared transaction `' || p.gid || '`', 'process ' || l.pid)
             FROM pg_locks l LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
             WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
                   AND l.transactionid::text = ANY ('{{{}}}'::text[])
             ORDER BY p.prepared, l.pid",
            self.list()
        );
        let rows = sql.rows(doing, &query, deadline)?;
        let names = rows.iter().filter_map(|row| row.text(0).transpose());
        let names = names.map(|name| name.map(str::to_owned));
        names
            .collect::<std::result::Result<_, SqlError>>()
            .map_err(|error: SqlError| error.doing(doing))
    }

    fn list(&self) -> String {
        self.running.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
    }

    /// True once all of them have ended.
    pub fn is_passed(&mut self, sql: &mut Sql, deadline: Instant) -> Result<bool> {
        if !self.running.is_empty() {
            let now = running(sql, deadline)?;
            self.running.retain(|xid| now.contains(xid));
        }
        Ok(self.running.is_empty())
    }
}

/// Whether any of the barrier's transactions waits for a standby. Others do not matter: where
/// commits wait for standbys at all, one is waiting at almost any moment. A backend that waits
/// without its own transaction commits a prepared one, which may be any.
pub fn waiting(sql: &mut Sql, barrier: &Barrier, deadline: Instant) -> Result<Waiting> {
    let doing = "look for commits that wait for a standby";
    let rows = sql.rows(
        doing,
        &format!(
            "SELECT current_setting('synchronous_standby_names') <> '',
                    EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'
                            AND (backend_xid IS NULL
                                 OR backend_xid::text = ANY ('{{{}}}'::text[]))),
                    pg_has_role('pg_read_all_stats', 'MEMBER')",
            barrier.list()
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

/// By the lock that every transaction with a number holds on it until it is visible. A snapshot
/// does not say: the newest of them lie above it.
fn running(sql: &mut Sql, deadline: Instant) -> Result<Vec<u32>> {
    let doing = "look which transactions are running";
    let query = "SELECT transactionid FROM pg_locks
                 WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted";
    let rows = sql.rows(doing, query, deadline)?;
    let xids = rows.iter().map(|row| row.parse(0)).collect::<std::result::Result<_, _>>();
    xids.map_err(|error: SqlError| error.doing(doing))
}
