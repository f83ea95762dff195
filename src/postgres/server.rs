//! Which server this is and whether it can decode logically.

use std::time::{Duration, Instant};

use super::sql::{Sql, SqlError, SqlRow};
use super::table_reader::{AS_OF, AsOf};
use crate::error::{Error, ErrorKind, Result};
use crate::wal::Lsn;

/// The columns that tell one server from another. The control file's timeline is that of the last
/// checkpoint: right after a promotion it is still the old one, so a primary is asked which WAL
/// file it writes to.
pub(super) const IDENTITY: &str = "
    (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
    CASE WHEN pg_is_in_recovery() THEN (SELECT to_hex(timeline_id) FROM pg_control_checkpoint())
         ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline,
    pg_is_in_recovery() AS in_recovery";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub version_num: u32,
    /// The cluster: the same on its physical standbys, another after `initdb`.
    pub system_identifier: u64,
    /// On a standby, that of the last restart point.
    pub timeline: u32,
    pub in_recovery: bool,
    pub wal_level: String,
    /// `None` is off.
    pub wal_sender_timeout: Option<Duration>,
}

impl Server {
    pub fn inspect(sql: &mut Sql, deadline: Instant) -> Result<Server> {
        Server::ask(sql, deadline).map_err(|error| error.doing("identify the server"))
    }

    /// [`Server::inspect`], for callers that ask several servers.
    pub(super) fn ask(sql: &mut Sql, deadline: Instant) -> std::result::Result<Server, SqlError> {
        let query = format!(
            "SELECT current_setting('server_version_num'), {IDENTITY}, current_setting('wal_level'),
                    (SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout')"
        );
        let rows = sql.try_rows(&query, deadline)?;
        let row = rows.first().ok_or_else(|| super::sql::protocol("expected one row"))?;
        let timeout_ms: u64 = row.parse(5)?;
        Ok(Server {
            version_num: row.parse(0)?,
            system_identifier: row.parse(1)?,
            timeline: u32::from_str_radix(row.required(2)?, 16)
                .map_err(|_| super::sql::protocol("expected a timeline in hexadecimal"))?,
            in_recovery: row.bool(3)?,
            wal_level: row.required(4)?.to_owned(),
            wal_sender_timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms)),
        })
    }

    pub fn check_wal_level(&self) -> Result<()> {
        if self.wal_level == "logical" {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Setup, "check `wal_level`")
            .because(format!("expected `logical`, got `{}`", self.wal_level))
            .hint(WAL_LEVEL_HINT))
    }
}

/// A database of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    pub oid: u32,
    pub name: String,
}

/// The one that the session is in.
pub fn database(sql: &mut Sql, deadline: Instant) -> Result<Database> {
    let doing = "ask for the database";
    let query = "SELECT oid, datname FROM pg_database WHERE datname = current_database()";
    let rows = sql.rows(doing, query, deadline)?;
    let row = rows.first().ok_or_else(|| super::sql::protocol("expected one row"));
    let read =
        |row: &SqlRow| Ok(Database { oid: row.parse(0)?, name: row.required(1)?.to_owned() });
    row.and_then(read).map_err(|error| error.doing(doing))
}

/// How far the server's WAL is on its disk.
pub fn flush_lsn(sql: &mut Sql, deadline: Instant) -> Result<Lsn> {
    let doing = "ask how far WAL is flushed";
    let rows = sql.rows(doing, "SELECT pg_current_wal_flush_lsn()", deadline)?;
    let row = rows.first().ok_or_else(|| super::sql::protocol("expected one row"));
    row.and_then(|row| row.parse(0)).map_err(|error| error.doing(doing))
}

/// Where the server is: as of now.
pub fn as_of(sql: &mut Sql, deadline: Instant) -> Result<AsOf> {
    let doing = "ask how far WAL is written";
    let rows = sql.rows(doing, &format!("SELECT {AS_OF}"), deadline)?;
    let row = rows.first().ok_or_else(|| super::sql::protocol("expected one row"));
    row.and_then(|row| AsOf::read(row, 0)).map_err(|error| error.doing(doing))
}

/// Makes the server flush all WAL until now, by committing a message that nobody receives. An idle
/// server leaves the WAL of an open transaction in memory for long.
pub fn flush_wal(sql: &mut Sql, deadline: Instant) -> Result<()> {
    // A role may be read-only by default.
    let statements = "BEGIN READ WRITE; SET LOCAL synchronous_commit = local;
         SELECT pg_logical_emit_message(true, 'walhouse', 'flush'); COMMIT";
    sql.execute("have WAL flushed", statements, deadline).inspect_err(|_| sql.roll_back(deadline))
}

pub(super) const WAL_LEVEL_HINT: &str = "Run: ALTER SYSTEM SET wal_level = 'logical'; and restart \
     Postgres (on RDS set rds.logical_replication = 1 in the parameter group and reboot).";
