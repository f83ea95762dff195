//! A session that shows an instance to the others for as long as it lives: it holds an advisory
//! lock that is named after the instance's token. Postgres lets go of it when the process dies.
//!
//! The lock is shared, so that a new session need not wait for the end of an old one that the
//! server has not noticed.

use std::time::{Duration, Instant};

use super::PostgresParams;
use super::advisory_lock::{halves, key_of, outlive};
use super::primary::{KnownServer, Primary};
use super::server;
use super::sql::{Sql, SqlError, SqlRow, literal, protocol};
use crate::error::{Error, ErrorKind, Result};
use crate::machines::takeover::TakeoverLook;

/// Changing it would make instances of two versions invisible to each other.
const NAMESPACE: &str = "walhouse presence of ";
const APPLICATION_NAME: &str = "walhouse-presence";

pub struct PresenceSession {
    sql: Sql,
    backend_pid: i32,
    identity: KnownServer,
    database: u32,
}

/// Whose traces are looked for.
#[derive(Debug, Clone, Copy)]
pub struct Traces<'a> {
    pub token: &'a str,
    pub slot: &'a str,
    pub application_name: &'a str,
}

impl PresenceSession {
    /// `term` is that of the leader lock: a client that falls silent is given up by the server no
    /// earlier.
    pub fn connect(
        params: &PostgresParams,
        token: &str,
        term: Duration,
        deadline: Instant,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<PresenceSession> {
        let (primary, mut sql) = find(params, deadline, go_on)?;
        let database = server::database(&mut sql, deadline)?.oid;
        sql.execute(DOING, &outlive(term), deadline)?;
        let show = format!("SELECT pg_advisory_lock_shared({})", key(token));
        sql.execute(DOING, &show, deadline)?;
        let (backend_pid, identity) = (sql.about().backend_pid, primary.identity());
        Ok(PresenceSession { sql, backend_pid, identity, database })
    }

    /// Where to find the session. Advisory locks belong to one database.
    pub fn mark(&self) -> String {
        let KnownServer { system_identifier, timeline } = self.identity;
        format!("{system_identifier}.{timeline}.{}", self.database)
    }

    /// Proves that the session still exists. After an error drop it.
    pub fn prove(&mut self, deadline: Instant) -> Result<()> {
        let rows = self.sql.rows(DOING, "SELECT pg_backend_pid()", deadline)?;
        self.check(rows.first())
    }

    /// The same, and what Postgres shows of another instance.
    pub fn look(&mut self, of: Traces<'_>, deadline: Instant) -> Result<TakeoverLook> {
        let (high, low) = halves(key(of.token));
        let query = format!(
            "SELECT pg_backend_pid(),
                    EXISTS (SELECT FROM pg_locks
                            WHERE locktype = 'advisory' AND granted
                              AND classid = {high} AND objid = {low} AND objsubid = 1
                              AND database = {database}),
                    EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {slot} AND active),
                    EXISTS (SELECT FROM pg_stat_activity WHERE application_name = {name})",
            database = self.database,
            slot = literal(of.slot),
            name = literal(of.application_name),
        );
        let rows = self.sql.rows(DOING, &query, deadline)?;
        self.check(rows.first())?;
        let read = || -> std::result::Result<TakeoverLook, SqlError> {
            let row = rows.first().ok_or_else(|| protocol("expected one row"))?;
            Ok(TakeoverLook { holder: row.bool(1)?, slot: row.bool(2)?, others: row.bool(3)? })
        };
        read().map_err(|error| error.doing(DOING))
    }

    fn check(&self, row: Option<&SqlRow>) -> Result<()> {
        let read = row.ok_or_else(|| protocol("expected one row")).and_then(|row| row.parse(0));
        let backend_pid: i32 = read.map_err(|error| error.doing(DOING))?;
        if backend_pid == self.backend_pid {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Setup, DOING)
            .because("a pooler has given the session to another server process")
            .hint("Connect to Postgres directly, not through a pooler."))
    }

    /// Whether a search still finds the server of this session.
    pub fn is_on_primary(
        &self,
        params: &PostgresParams,
        deadline: Instant,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<bool> {
        if !Primary::may_move(params) {
            return Ok(true);
        }
        find(params, deadline, go_on).map(|(primary, _)| primary.identity() == self.identity)
    }
}

fn find(
    params: &PostgresParams,
    deadline: Instant,
    go_on: impl Fn() -> Result<()>,
) -> Result<(Primary, Sql)> {
    Primary::find(params, APPLICATION_NAME, None, deadline, go_on)
}

const DOING: &str = "show this instance to the others";

fn key(token: &str) -> i64 {
    key_of(NAMESPACE, token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_what_they_are() {
        // Another version of this program must find the same lock.
        assert_eq!(key("00112233445566778899aabbccddeeff"), 6_286_016_641_806_587_641);
    }
}
