//! What a server reports about itself and our role, for `walhouse check`: one query, whose answer
//! [`judge`] judges.

use std::time::Instant;

use serde_json::Value;

use super::sql::{Sql, literal, protocol};
use crate::error::Result;

pub mod judge;
mod provider;

pub use provider::{Effect, Provider};

/// A writing transaction that is idle for this long counts as forgotten.
const IDLE_SECONDS: u32 = 5;
/// One that works may work for this long.
const BUSY_SECONDS: u32 = 60;

/// Facts about the server as our role sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresFacts {
    pub provider: Provider,
    pub version_num: u32,
    pub role: String,
    pub database: String,
    pub slots: Vec<String>,
    pub slots_max: u64,
    pub senders: u64,
    pub senders_max: u64,
    pub is_superuser: bool,
    /// By the role's attribute, or as a member of `rds_replication`.
    pub may_replicate: bool,
    pub bypasses_row_security: bool,
    pub is_encrypted: bool,
    /// In ms since 1970.
    pub now_ms: i64,
    /// `None` is without limit.
    pub slot_keep_mb: Option<u64>,
    /// `idle_replication_slot_timeout`, from 18 on; `None` is without limit.
    pub slot_idle_limit: Option<u64>,
    pub synchronous_standby_names: String,
    /// The names of physical standbys that are connected.
    pub standbys: Vec<String>,
    /// What a new slot would wait for: each with a description and the SQL that ends it.
    pub waits_for: Vec<(String, String)>,
}

/// Facts about the table and our role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    pub may_use_schema: bool,
    pub has_row_security: bool,
}

pub fn look(sql: &mut Sql, deadline: Instant) -> Result<PostgresFacts> {
    let doing = "look at the settings of the server";
    let marks: Vec<String> = (Provider::MARKS.iter())
        .map(|(name, _)| format!("current_setting({}, true) IS NOT NULL", literal(name)))
        .collect();
    let query = format!(
        "SELECT json_build_object(
            'marks', json_build_array({marks}),
            'slots', (SELECT coalesce(json_agg(slot_name), '[]') FROM pg_replication_slots),
            'slots_max', current_setting('max_replication_slots')::int8,
            'senders', (SELECT count(*) FROM pg_stat_replication),
            'senders_max', current_setting('max_wal_senders')::int8,
            'role', (SELECT json_build_object('super', rolsuper, 'repl', rolreplication,
                                              'bypass', rolbypassrls)
                     FROM pg_roles WHERE rolname = current_user),
            'member', (SELECT coalesce(bool_or(pg_has_role(oid, 'MEMBER')), false)
                       FROM pg_roles WHERE rolname = 'rds_replication'),
            'ssl', (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()),
            'now_ms', (extract(epoch FROM clock_timestamp()) * 1000)::int8,
            'keep_mb', (SELECT setting::int8 FROM pg_settings
                        WHERE name = 'max_slot_wal_keep_size'),
            'idle_limit', (SELECT setting::int8 FROM pg_settings
                           WHERE name = 'idle_replication_slot_timeout'),
            'sync', current_setting('synchronous_standby_names'),
            'standbys', (SELECT coalesce(json_agg(r.application_name), '[]')
                         FROM pg_stat_replication r
                         LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
                         WHERE r.state = 'streaming' AND s.plugin IS NULL),
            'prepared', (SELECT coalesce(json_agg(gid), '[]') FROM pg_prepared_xacts
                         WHERE database = current_database()
                           AND prepared < clock_timestamp() - interval '{IDLE_SECONDS} s'),
            'writers', (SELECT coalesce(json_agg(json_build_object(
                    'pid', pid, 'name', application_name, 'idle', state LIKE 'idle in%',
                    'seconds', extract(epoch FROM clock_timestamp() - xact_start)::int8)), '[]')
                FROM pg_stat_activity
                WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
                  AND clock_timestamp() - CASE WHEN state LIKE 'idle in%' THEN state_change
                                               ELSE xact_start END
                      > CASE WHEN state LIKE 'idle in%' THEN interval '{IDLE_SECONDS} s'
                             ELSE interval '{BUSY_SECONDS} s' END))",
        marks = marks.join(", ")
    );
    let rows = sql.rows(doing, &query, deadline)?;
    let row = rows.first().ok_or_else(|| protocol("expected one row").doing(doing))?;
    let value = row.json(0).map_err(|error| error.doing(doing))?;
    let about = sql.about();
    let names = (about.version_num, about.role.as_str(), about.database.as_str());
    read(&value, names)
        .ok_or_else(|| protocol("the catalog's answer has an unexpected form").doing(doing))
}

fn read(value: &Value, (version_num, role, database): (u32, &str, &str)) -> Option<PostgresFacts> {
    let list = |field: &str| value.get(field)?.as_array();
    let texts = |field: &str| -> Option<Vec<String>> {
        list(field)?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let number = |field: &str| value.get(field)?.as_u64();
    let marks = list("marks")?;
    let provider = (Provider::MARKS.iter().zip(marks))
        .find(|(_, is_set)| is_set.as_bool() == Some(true))
        .map_or(Provider::Plain, |((_, provider), _)| *provider);
    let rights = value.get("role")?;
    let has = |right: &str| rights.get(right)?.as_bool();
    let is_superuser = has("super")?;
    let mut waits_for = Vec::new();
    for gid in texts("prepared")? {
        let end = format!("ROLLBACK PREPARED {};", literal(&gid));
        waits_for.push((format!("the prepared transaction `{gid}`"), end));
    }
    for writer in list("writers")? {
        let pid = writer.get("pid")?.as_i64()?;
        let name = writer.get("name").and_then(Value::as_str).unwrap_or_default();
        let seconds = writer.get("seconds").and_then(Value::as_i64).unwrap_or_default();
        let idle = if writer.get("idle")?.as_bool()? { "idle" } else { "running" };
        let what = format!("the transaction of process {pid} (`{name}`, {seconds} s old, {idle})");
        waits_for.push((what, format!("SELECT pg_terminate_backend({pid});")));
    }
    Some(PostgresFacts {
        provider,
        version_num,
        role: role.to_owned(),
        database: database.to_owned(),
        slots: texts("slots")?,
        slots_max: number("slots_max")?,
        senders: number("senders")?,
        senders_max: number("senders_max")?,
        is_superuser,
        may_replicate: is_superuser || has("repl")? || value.get("member")?.as_bool()?,
        bypasses_row_security: is_superuser || has("bypass")?,
        is_encrypted: value.get("ssl").and_then(Value::as_bool).unwrap_or(false),
        now_ms: value.get("now_ms")?.as_i64()?,
        // -1 is without limit.
        slot_keep_mb: value.get("keep_mb").and_then(Value::as_u64),
        slot_idle_limit: number("idle_limit").filter(|limit| 0 < *limit),
        synchronous_standby_names: value.get("sync")?.as_str()?.to_owned(),
        standbys: texts("standbys")?,
        waits_for,
    })
}

/// Reads no row.
pub fn access(sql: &mut Sql, oid: u32, schema: &str, deadline: Instant) -> Result<Access> {
    let doing = "look at the privileges on the table";
    let query = format!(
        "SELECT has_schema_privilege({}, 'USAGE'), row_security_active({oid}::oid)",
        literal(schema)
    );
    let rows = sql.rows(doing, &query, deadline)?;
    let row = rows.first().ok_or_else(|| protocol("expected one row").doing(doing))?;
    let read = || Ok(Access { may_use_schema: row.bool(0)?, has_row_security: row.bool(1)? });
    read().map_err(|error: super::sql::SqlError| error.doing(doing))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    pub(super) fn answer() -> Value {
        json!({
            "marks": [false, false, false], "slots": [], "slots_max": 10, "senders": 0,
            "senders_max": 10, "role": {"super": false, "repl": true, "bypass": false},
            "member": false, "ssl": null, "now_ms": 5, "keep_mb": -1, "idle_limit": null,
            "sync": "", "standbys": [], "prepared": [], "writers": []
        })
    }

    #[track_caller]
    pub(super) fn facts(change: impl FnOnce(&mut Value)) -> PostgresFacts {
        let mut value = answer();
        change(&mut value);
        read(&value, (150_020, "walhouse", "app")).expect("it has the form")
    }

    #[test]
    fn limits_and_rights_are_read() {
        let plain = facts(|_| ());
        assert_eq!((plain.slot_keep_mb, plain.slot_idle_limit), (None, None));
        assert_eq!((plain.provider, plain.may_replicate), (Provider::Plain, true));
        let rds = facts(|value| {
            value["marks"][0] = json!(true);
            value["role"]["repl"] = json!(false);
            value["member"] = json!(true);
            value["keep_mb"] = json!(64);
            value["idle_limit"] = json!(0);
        });
        assert_eq!((rds.provider, rds.may_replicate), (Provider::Rds, true));
        assert_eq!((rds.slot_keep_mb, rds.slot_idle_limit), (Some(64), None));
    }

    #[test]
    fn an_answer_of_another_form_is_none() {
        assert_eq!(read(&json!({}), (0, "", "")), None);
        let mut value = answer();
        value["writers"] = json!([{}]);
        assert_eq!(read(&value, (0, "", "")), None);
    }
}
