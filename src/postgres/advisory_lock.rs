//! The leader lock in Postgres: a session advisory lock on its own connection.
//!
//! The session holds it for as long as it lives, so nothing can be left behind: a process that dies
//! frees it at once. If a client merely falls silent (network cut, machine gone), the server gives
//! it up between `term` and `term + term/4` after it last heard from it, never earlier: a holder
//! without a successful `extend` for `term` must already have stopped. That depends on the server's
//! TCP settings, which are set here; Linux honors them.
//!
//! The lock only decides which instance tries. Postgres's slot is the fence.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::PostgresParams;
use super::primary::Primary;
use super::sql::{Sql, SqlError, protocol};
use crate::error::{Error, ErrorKind, Result};

/// Distinguishes our lock from other advisory locks. The key is the beginning of the SHA-256 of
/// this and the slot's name; changing it would let an old and a new version lead at the same time.
const NAMESPACE: &str = "walhouse leader lock of slot ";
const APPLICATION_NAME: &str = "walhouse-leader-lock";

/// Held from a `try_lock` that succeeds until it is released, dropped, or the connection ends.
pub struct AdvisoryLock {
    sql: Sql,
    slot: String,
    backend_pid: i32,
}

impl AdvisoryLock {
    /// `None` when another session holds the lock.
    pub fn try_acquire(
        params: &PostgresParams,
        slot: &str,
        term: Duration,
        deadline: Instant,
    ) -> Result<Option<AdvisoryLock>> {
        let mut lock = AdvisoryLock::connect(params, slot, term, deadline)?;
        Ok(lock.try_lock(deadline)?.then_some(lock))
    }

    /// A session that may ask for the lock as often as it likes; it does not hold it yet.
    pub fn connect(
        params: &PostgresParams,
        slot: &str,
        term: Duration,
        deadline: Instant,
    ) -> Result<AdvisoryLock> {
        let doing = format!("acquire leader lock of slot `{slot}`");
        // A standby would give the lock as well, to another instance than its primary does.
        let find = Primary::find(params, APPLICATION_NAME, None, deadline, || Ok(()));
        let (_, mut sql) = find?;
        sql.execute(&doing, &outlive(term), deadline)?;
        let backend_pid = sql.about().backend_pid;
        Ok(AdvisoryLock { sql, slot: slot.to_owned(), backend_pid })
    }

    /// False when another session holds it. One that is held must not be asked for again: Postgres
    /// counts.
    pub fn try_lock(&mut self, deadline: Instant) -> Result<bool> {
        let doing = format!("acquire leader lock of slot `{}`", self.slot);
        let rows = self.sql.rows(
            &doing,
            &format!("SELECT pg_try_advisory_lock({}), pg_backend_pid()", key(&self.slot)),
            deadline,
        )?;
        let read = || -> std::result::Result<(bool, i32), SqlError> {
            let row = rows.first().ok_or_else(|| protocol("expected one row"))?;
            Ok((row.bool(0)?, row.parse(1)?))
        };
        let (is_held, backend_pid) = read().map_err(|error| error.doing(doing))?;
        self.backend_pid = backend_pid;
        Ok(is_held)
    }

    /// Proves that the session and the lock are still there. After an error the lock is lost, or
    /// may be: drop it and acquire it again.
    pub fn extend(&mut self, deadline: Instant) -> Result<()> {
        let doing = format!("extend leader lock of slot `{}`", self.slot);
        let (high, low) = halves(key(&self.slot));
        let rows = self.sql.rows(
            &doing,
            &format!(
                "SELECT pg_backend_pid(), EXISTS (SELECT 1 FROM pg_locks
                   WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted
                     AND classid = {high} AND objid = {low} AND objsubid = 1
                     AND database = (SELECT oid FROM pg_database
                                     WHERE datname = current_database()))"
            ),
            deadline,
        )?;
        let read = || -> std::result::Result<(i32, bool), SqlError> {
            let row = rows.first().ok_or_else(|| protocol("expected one row"))?;
            Ok((row.parse(0)?, row.bool(1)?))
        };
        let (backend_pid, is_held) = read().map_err(|error| error.doing(&doing))?;
        if backend_pid != self.backend_pid {
            return Err(Error::new(ErrorKind::Setup, doing)
                .because("a pooler has given the session to another server process")
                .hint("Connect to Postgres directly, not through a pooler."));
        }
        if !is_held {
            return Err(
                Error::new(ErrorKind::Unreachable, doing).because("the session no longer holds it")
            );
        }
        Ok(())
    }

    /// Frees it at once. Dropping does too, as soon as the server sees the connection end.
    pub fn release(mut self, deadline: Instant) -> Result<()> {
        let doing = format!("release leader lock of slot `{}`", self.slot);
        let unlock = format!("SELECT pg_advisory_unlock({})", key(&self.slot));
        self.sql.execute(&doing, &unlock, deadline)
    }
}

/// The holder of the lock, for people: application, address and process. `None` if it is free.
pub fn holder(sql: &mut Sql, slot: &str, deadline: Instant) -> Result<Option<String>> {
    let doing = format!("look who holds the leader lock of slot `{slot}`");
    let (high, low) = halves(key(slot));
    let query = format!(
        "SELECT coalesce(a.application_name, 'a session')
                || coalesce(' from ' || host(a.client_addr), '') || ', process ' || l.pid
         FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
         WHERE l.locktype = 'advisory' AND l.granted
           AND l.classid = {high} AND l.objid = {low} AND l.objsubid = 1
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
         LIMIT 1"
    );
    let rows = sql.rows(&doing, &query, deadline)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let read = row.required(0).map(|text| Some(text.to_owned()));
    read.map_err(|error| error.doing(doing))
}

/// Settings of a session that may be idle for ever, and whose client, once it has vanished, is
/// given up after `term`.
pub(super) fn outlive(term: Duration) -> String {
    // The server probes from half the term on, in eighths; whether its system counts probes or
    // time, the sum is the term.
    let seconds = |part: Duration| part.as_secs().max(1);
    format!(
        "SET tcp_keepalives_idle = {}; SET tcp_keepalives_interval = {};
         SET tcp_keepalives_count = 4; SET tcp_user_timeout = {};
         SET idle_session_timeout = 0;",
        seconds(term / 2),
        seconds(term / 8),
        term.as_millis(),
    )
}

/// How Postgres splits a key of 64 bits in `pg_locks`.
pub(super) fn halves(key: i64) -> (u32, u32) {
    ((key >> 32) as u32, key as u32)
}

fn key(slot: &str) -> i64 {
    key_of(NAMESPACE, slot)
}

pub(super) fn key_of(namespace: &str, name: &str) -> i64 {
    let digest = Sha256::new().chain_update(namespace).chain_update(name).finalize();
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(digest) {
        *to = from;
    }
    i64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_what_they_are() {
        // Another version of this program must find the same lock.
        assert_eq!(key("task_runs_to_clickhouse_v1"), -6_258_854_659_879_232_813);
        assert_ne!(key("a"), key("b"));
    }
}
