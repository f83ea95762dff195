//! The replication slot: find it, judge it, create it, drop it.
//!
//! Whether a missing or invalidated slot is a first start or a gap is not decided here: that needs
//! to know what ClickHouse holds. Only facts and a [`SlotVerdict`] leave this file.

use std::time::Instant;

use serde_json::Value;

use super::failover_slot::{self, Failover};
use super::server::WAL_LEVEL_HINT;
use super::sql::{Sql, SqlError, ident, literal, protocol};
use crate::error::{Error, ErrorKind, Result};
use crate::wal::Lsn;

pub use takeover::{Held, held, terminate_stale_walsender};

mod takeover;

pub const PLUGIN: &str = "pgoutput";

/// A row of `pg_replication_slots`; what the server's version does not have is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    pub plugin: Option<String>,
    pub slot_type: String,
    /// `None` for a physical slot.
    pub database: Option<String>,
    pub is_temporary: bool,
    pub active: bool,
    pub active_pid: Option<i32>,
    pub restart_lsn: Option<Lsn>,
    pub confirmed_flush_lsn: Option<Lsn>,
    pub wal_status: Option<String>,
    /// WAL that may still be written before the slot is in danger; `None` is without limit.
    pub safe_wal_size_bytes: Option<i64>,
    pub two_phase: bool,
    pub failover: Option<bool>,
    pub synced: Option<bool>,
    pub conflicting: Option<bool>,
    pub invalidation_reason: Option<String>,
    /// As Postgres prints it in JSON.
    pub inactive_since: Option<String>,
}

/// The use of an existing slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotVerdict {
    Usable,
    /// Another session is still creating it, and may yet give up.
    InCreation,
    /// WAL that it needed is gone: changes are lost to it for ever.
    Invalidated {
        reason: String,
    },
    Physical,
    WrongPlugin {
        plugin: String,
    },
    OtherDatabase {
        database: String,
    },
    /// It ends with the session that holds it.
    Temporary,
    /// It streams a transaction when that is prepared, in messages that are not asked for: Postgres
    /// goes by the slot.
    TwoPhase,
    /// A copy on a standby: it can be used once the standby is promoted.
    OnStandby,
}

impl SlotState {
    pub fn verdict(&self, database: &str) -> SlotVerdict {
        if self.slot_type != "logical" {
            return SlotVerdict::Physical;
        }
        match &self.plugin {
            Some(plugin) if plugin != PLUGIN => {
                return SlotVerdict::WrongPlugin { plugin: plugin.clone() };
            }
            _ => {}
        }
        match &self.database {
            Some(other) if other != database => {
                return SlotVerdict::OtherDatabase { database: other.clone() };
            }
            _ => {}
        }
        if let Some(reason) = &self.invalidation_reason {
            return SlotVerdict::Invalidated { reason: reason.clone() };
        }
        if self.wal_status.as_deref() == Some("lost") {
            return SlotVerdict::Invalidated { reason: "wal_removed".into() };
        }
        if self.conflicting == Some(true) {
            return SlotVerdict::Invalidated { reason: "conflict with recovery".into() };
        }
        if self.is_temporary {
            return SlotVerdict::Temporary;
        }
        if self.two_phase {
            return SlotVerdict::TwoPhase;
        }
        if self.confirmed_flush_lsn.is_none() {
            return SlotVerdict::InCreation;
        }
        SlotVerdict::Usable
    }
}

/// `None` when there is no slot of that name.
pub fn inspect(sql: &mut Sql, slot: &str, deadline: Instant) -> Result<Option<SlotState>> {
    let doing = format!("inspect slot `{slot}`");
    // As a JSON object the row reads the same on every version, whatever columns it has.
    let query = format!(
        "SELECT row_to_json(s) FROM pg_replication_slots s WHERE slot_name = {}",
        literal(slot)
    );
    let rows = sql.rows(&doing, &query, deadline)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let value = row.json(0).map_err(|error| error.doing(&doing))?;
    match read(&value) {
        Some(state) => Ok(Some(state)),
        None => Err(protocol("the catalog's answer has an unexpected form").doing(doing)),
    }
}

/// [`SlotState::verdict`], and whether the server that answered can use the slot now.
pub fn verdict(sql: &Sql, state: &SlotState) -> SlotVerdict {
    match state.verdict(&sql.about().database) {
        SlotVerdict::Usable if state.synced == Some(true) && sql.about().in_recovery => {
            SlotVerdict::OnStandby
        }
        verdict => verdict,
    }
}

/// Refuses what cannot be streamed from, whatever ClickHouse holds. `Some` is the reason why the
/// slot was invalidated: it must be created again.
pub fn usable(slot: &str, verdict: SlotVerdict) -> Result<Option<String>> {
    let own = |cause: String| {
        let hint = format!(
            "Set *_REPLICATION_SLOT_NAME to a slot of this service's own; or, if nobody needs it, \
             run: SELECT pg_drop_replication_slot({});",
            literal(slot)
        );
        (ErrorKind::Setup, cause, hint)
    };
    let (kind, cause, hint) = match verdict {
        SlotVerdict::Usable => return Ok(None),
        SlotVerdict::Invalidated { reason } => return Ok(Some(reason)),
        SlotVerdict::Physical => own("it is a physical slot".to_owned()),
        SlotVerdict::WrongPlugin { plugin } => {
            own(format!("expected plugin `pgoutput`, got `{plugin}`"))
        }
        SlotVerdict::OtherDatabase { database } => {
            own(format!("it belongs to database `{database}`"))
        }
        SlotVerdict::Temporary => own("it is a temporary slot".to_owned()),
        SlotVerdict::TwoPhase => (
            ErrorKind::Setup,
            "it was created with two_phase, which sends prepared transactions in separate messages"
                .to_owned(),
            format!(
                "Run: SELECT pg_drop_replication_slot({}); the next start creates one without it, \
                 and compares the table.",
                literal(slot)
            ),
        ),
        SlotVerdict::InCreation => (
            ErrorKind::SlotBusy,
            "another session is still creating it".to_owned(),
            "Wait until the transactions that are running have ended, or end that session."
                .to_owned(),
        ),
        SlotVerdict::OnStandby => (
            ErrorKind::Setup,
            "this server is a standby that keeps a copy of the slot".to_owned(),
            "Connect to the primary: name all hosts in the database URL.".to_owned(),
        ),
    };
    Err(Error::new(kind, format!("check slot `{slot}`")).because(cause).hint(hint))
}

fn read(value: &Value) -> Option<SlotState> {
    let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let flag = |field: &str| value.get(field).and_then(Value::as_bool);
    let lsn = |field: &str| match text(field) {
        Some(text) => text.parse().map(Some).ok(),
        None => Some(None),
    };
    Some(SlotState {
        plugin: text("plugin"),
        slot_type: text("slot_type")?,
        database: text("database"),
        is_temporary: flag("temporary")?,
        active: flag("active")?,
        active_pid: match value.get("active_pid").and_then(Value::as_i64) {
            Some(pid) => Some(i32::try_from(pid).ok()?),
            None => None,
        },
        restart_lsn: lsn("restart_lsn")?,
        confirmed_flush_lsn: lsn("confirmed_flush_lsn")?,
        wal_status: text("wal_status"),
        safe_wal_size_bytes: value.get("safe_wal_size").and_then(Value::as_i64),
        two_phase: flag("two_phase").unwrap_or(false),
        failover: flag("failover"),
        synced: flag("synced"),
        conflicting: flag("conflicting"),
        invalidation_reason: text("invalidation_reason"),
        inactive_since: text("inactive_since"),
    })
}

/// Creates the slot and returns where it begins: changes committed after that are in it.
///
/// Waits until transactions that are running now have ended, so give it a long deadline. If it is
/// marked for failover, which the server must support (17 and newer), a standby that is set up for
/// it keeps a copy, and a promotion does not lose it. Another consumer's slot of that name is an
/// error of kind `SlotBusy`: inspect it again.
pub fn create(sql: &mut Sql, slot: &str, failover: Failover, deadline: Instant) -> Result<Lsn> {
    let doing = format!("create slot `{slot}`");
    let options = match failover {
        Failover::On if failover_slot::SINCE <= sql.about().version_num => ", failover => true",
        Failover::On | Failover::Off => "",
    };
    // Waiting for a transaction counts as waiting for a lock.
    let query = format!(
        "SET LOCAL lock_timeout = 0;
         SELECT lsn FROM pg_create_logical_replication_slot({}, {}{options})",
        literal(slot),
        literal(PLUGIN),
    );
    let role = sql.about().role.clone();
    let rows = sql
        .try_rows(&query, deadline)
        .map_err(|error| with_setup_hint(error, &role).doing(&doing))?;
    let lsn = rows.first().ok_or_else(|| protocol("expected one row")).and_then(|row| row.parse(0));
    lsn.map_err(|error| error.doing(doing))
}

/// Whether the server meets, in the WAL that the slot has, changes from before the publication; it
/// says so before 18. Nothing is consumed. If it takes too long the answer is no: the stream will
/// show it.
pub fn lacks_publication(
    sql: &mut Sql,
    slot: &str,
    publication: &str,
    deadline: Instant,
) -> Result<bool> {
    let query = format!(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes({}, NULL, 1,
             'proto_version', '1', 'publication_names', {})",
        literal(slot),
        literal(&ident(publication)),
    );
    match sql.try_rows(&query, deadline) {
        Ok(_) => Ok(false),
        Err(error) if error.is("42704") => Ok(true),
        Err(error) if error.is_fatal => Err(error.doing(format!("look into slot `{slot}`"))),
        Err(error) => {
            log::debug!("look into slot `{slot}`: {}", error.cause);
            Ok(false)
        }
    }
}

/// The transaction that the backend waits for, for example to create a slot; `None` if it waits for
/// none.
pub fn blocker(sql: &mut Sql, backend_pid: i32, deadline: Instant) -> Result<Option<String>> {
    let doing = format!("look for whom process {backend_pid} waits");
    let query = format!(
        "SELECT b.pid, coalesce(a.application_name, ''), coalesce(host(a.client_addr), ''),
                to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
         FROM unnest(pg_blocking_pids({backend_pid})) b (pid)
         LEFT JOIN pg_stat_activity a ON a.pid = b.pid ORDER BY a.xact_start LIMIT 1"
    );
    let rows = sql.rows(&doing, &query, deadline)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let read = || -> std::result::Result<String, SqlError> {
        let (pid, name, client) = (row.parse::<i32>(0)?, row.required(1)?, row.required(2)?);
        let client = if client.is_empty() { "a local socket" } else { client };
        let since = row.text(3)?.map_or_else(String::new, |at| format!(", begun {at} UTC"));
        Ok(format!("the transaction of process {pid} (`{name}` from {client}{since})"))
    };
    read().map(Some).map_err(|error| error.doing(doing))
}

/// True if there was one. A slot that a walsender holds is an error of kind `SlotBusy`.
pub fn drop(sql: &mut Sql, slot: &str, deadline: Instant) -> Result<bool> {
    let query = format!("SELECT pg_drop_replication_slot({})", literal(slot));
    let role = sql.about().role.clone();
    match sql.try_rows(&query, deadline) {
        Ok(_) => Ok(true),
        Err(error) if error.is("42704") => Ok(false),
        Err(error) => Err(with_setup_hint(error, &role).doing(format!("drop slot `{slot}`"))),
    }
}

/// How much WAL a slot keeps from being removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retained {
    /// Where the server writes now; on a standby, where it has replayed to.
    pub current: Lsn,
    /// How far that is on the server's disk.
    pub flushed: Lsn,
    pub restart_lsn: Option<Lsn>,
    pub confirmed_flush_lsn: Option<Lsn>,
    /// WAL that may still be written before the slot is in danger; `None` is without limit.
    pub safe_bytes: Option<i64>,
    /// `max_slot_wal_keep_size`; `None` is without limit.
    pub limit_bytes: Option<u64>,
    /// The client that streams from the slot.
    pub active_pid: Option<i32>,
    /// By its connection, where it may be seen: application and address.
    pub active_name: Option<String>,
}

impl Retained {
    pub fn bytes(&self) -> Option<u64> {
        self.restart_lsn.map(|restart| self.current.0.saturating_sub(restart.0))
    }
}

/// `None` when there is no slot of that name.
pub fn retained(sql: &mut Sql, slot: &str, deadline: Instant) -> Result<Option<Retained>> {
    let doing = format!("measure WAL retained by slot `{slot}`");
    let query = format!(
        "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                     ELSE pg_current_wal_lsn() END,
                CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                     ELSE pg_current_wal_flush_lsn() END,
                restart_lsn, confirmed_flush_lsn, safe_wal_size,
                (SELECT nullif(setting::bigint, -1) * 1048576 FROM pg_settings
                 WHERE name = 'max_slot_wal_keep_size'),
                active_pid,
                (SELECT application_name || coalesce(' from ' || host(client_addr), '')
                 FROM pg_stat_activity WHERE pid = active_pid)
         FROM pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    );
    let rows = sql.rows(&doing, &query, deadline)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let read = || -> std::result::Result<Retained, SqlError> {
        Ok(Retained {
            current: row.parse(0)?,
            flushed: row.parse(1)?,
            restart_lsn: row.parse_nullable(2)?,
            confirmed_flush_lsn: row.parse_nullable(3)?,
            safe_bytes: row.parse_nullable(4)?,
            limit_bytes: row.parse_nullable(5)?,
            active_pid: row.parse_nullable(6)?,
            active_name: row.text(7)?.map(str::to_owned),
        })
    };
    read().map(Some).map_err(|error| error.doing(doing))
}

fn with_setup_hint(error: SqlError, role: &str) -> SqlError {
    match error.sqlstate.as_deref() {
        Some("42501") => {
            let role = ident(role);
            error.with_hint(format!(
                "Run: ALTER ROLE {role} REPLICATION; (on RDS: GRANT rds_replication TO {role};)."
            ))
        }
        Some("53400") => error.with_hint(
            "Raise `max_replication_slots` and restart Postgres, or drop a slot that nobody uses.",
        ),
        Some("55000") => error.with_hint(WAL_LEVEL_HINT),
        Some("42602") => error.with_hint(
            "A slot name may have lower case letters, numbers and the underscore, 63 at most.",
        ),
        Some("42710") => SqlError { kind: ErrorKind::SlotBusy, ..error },
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(fields: &str) -> SlotState {
        let json = format!(
            "{{\"slot_type\":\"logical\",\"plugin\":\"pgoutput\",\"database\":\"db\",
              \"temporary\":false,\"active\":false,\"active_pid\":null,\"restart_lsn\":\"0/10\",
              \"confirmed_flush_lsn\":\"1/20\",\"wal_status\":\"reserved\"{fields}}}"
        );
        read(&json.parse().unwrap()).unwrap()
    }

    #[test]
    fn each_reason_not_to_use_a_slot_is_told_apart() {
        let invalidated = |reason: &str| SlotVerdict::Invalidated { reason: reason.into() };
        for (fields, expected) in [
            ("", SlotVerdict::Usable),
            (",\"failover\":true,\"synced\":false", SlotVerdict::Usable),
            (",\"temporary\":true", SlotVerdict::Temporary),
            (",\"two_phase\":true", SlotVerdict::TwoPhase),
            (",\"slot_type\":\"physical\",\"plugin\":null", SlotVerdict::Physical),
            (",\"plugin\":\"x\"", SlotVerdict::WrongPlugin { plugin: "x".into() }),
            (",\"database\":\"y\"", SlotVerdict::OtherDatabase { database: "y".into() }),
            (",\"wal_status\":\"lost\"", invalidated("wal_removed")),
            (",\"conflicting\":true", invalidated("conflict with recovery")),
            (
                ",\"wal_status\":\"lost\",\"invalidation_reason\":\"idle_timeout\"",
                invalidated("idle_timeout"),
            ),
            (",\"confirmed_flush_lsn\":null", SlotVerdict::InCreation),
        ] {
            assert_eq!(state(fields).verdict("db"), expected, "{fields}");
        }
    }

    #[test]
    fn a_slot_of_somebody_elses_is_refused_and_a_dead_one_is_not() {
        assert_eq!(usable("a'b", SlotVerdict::Usable).unwrap(), None);
        let dead = SlotVerdict::Invalidated { reason: "x".into() };
        assert_eq!(usable("s", dead).unwrap().as_deref(), Some("x"));
        let error = usable("a'b", SlotVerdict::Physical).unwrap_err();
        let hint = error.hint_text().unwrap();
        assert!(hint.ends_with("run: SELECT pg_drop_replication_slot('a''b');"), "{hint}");
    }

    #[test]
    fn a_row_of_another_form_is_no_slot() {
        for json in ["null", "{}", "{\"slot_type\":\"logical\",\"temporary\":1}"] {
            assert_eq!(read(&json.parse().unwrap()), None, "{json}");
        }
        let lsn = "{\"slot_type\":\"logical\",\"temporary\":false,\"active\":false,
                    \"restart_lsn\":\"zz\"}";
        assert_eq!(read(&lsn.parse().unwrap()), None);
    }

    #[test]
    fn retained_bytes_never_wrap() {
        let retained =
            |restart_lsn| Retained { current: Lsn(10), restart_lsn, ..Retained::default() }.bytes();
        assert_eq!(retained(Some(Lsn(4))), Some(6));
        assert_eq!(retained(Some(Lsn(11))), Some(0));
        assert_eq!(retained(None), None);
    }
}
