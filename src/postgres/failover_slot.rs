//! Failover slots: the mark on our slot, and whether the slot would exist after a promotion.
//!
//! From Postgres 17 on a standby keeps copies of the primary's logical slots that are marked, if
//! several settings on both servers agree. [`look`] collects what the primary shows of them,
//! [`judge`] says what is missing and how to fix it. Settings of the standby show here only by
//! their effects; [`UNSEEN`] names those that do not show at all. See
//! <https://www.postgresql.org/docs/current/logical-replication-failover.html>.

use std::fmt;
use std::time::Instant;

use serde_json::Value;

use super::connection::Connection;
use super::server_error::server_error;
use super::sql::{Sql, ident, literal, protocol};
use crate::error::Result;

/// The first version that knows failover slots.
pub const SINCE: u32 = 170_000;

/// What to check on each standby, because the primary does not show it.
pub const UNSEEN: &str = "on each standby that may be promoted: wal_level = logical, and SELECT \
                          slot_name FROM pg_replication_slots WHERE synced AND NOT temporary has \
                          the slot";

/// Whether slots should be marked for failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failover {
    On,
    Off,
}

/// The result of marking a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    AsWanted,
    Altered,
    /// The server is too old for failover slots.
    Unknown,
    /// The server does not allow it; streaming still works.
    Refused {
        cause: String,
    },
}

/// Marks the slot, or removes the mark. The slot must exist, and nobody may stream from it.
pub fn ensure(
    sql: &mut Sql,
    connection: &mut Connection,
    slot: &str,
    wanted: Failover,
    deadline: Instant,
) -> Result<Mark> {
    if sql.about().version_num < SINCE {
        return Ok(Mark::Unknown);
    }
    let doing = format!("look at the failover mark of slot `{slot}`");
    let query =
        format!("SELECT failover FROM pg_replication_slots WHERE slot_name = {}", literal(slot));
    let rows = sql.rows(&doing, &query, deadline)?;
    let row = rows.first().ok_or_else(|| protocol("the slot is gone").doing(&doing))?;
    let is_marked = row.bool(0).map_err(|error| error.doing(doing))?;
    if is_marked == (wanted == Failover::On) {
        return Ok(Mark::AsWanted);
    }
    let value = if wanted == Failover::On { "true" } else { "false" };
    let alter = format!("ALTER_REPLICATION_SLOT {} (FAILOVER {value})", ident(slot));
    match connection.simple_query(&alter, deadline) {
        Ok(_) => Ok(Mark::Altered),
        Err(error) => match server_error(&error) {
            Some(cause) if connection.is_ready() => Ok(Mark::Refused { cause: cause.to_string() }),
            _ => Err(error),
        },
    }
}

/// What the primary shows about a future failover.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailoverFacts {
    pub slot: String,
    /// The slot is marked.
    pub is_marked: bool,
    /// Standbys may need a moment until they have a copy of a slot that is new, or newly marked.
    pub is_new: bool,
    /// `synchronized_standby_slots`.
    pub waited_for: Vec<String>,
    pub slots: Vec<OtherSlot>,
    /// Standbys that stream without a slot, by name and address.
    pub without_slot: Vec<String>,
}

/// A slot that is not the one in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherSlot {
    pub name: String,
    pub is_physical: bool,
    pub is_active: bool,
    /// Postgres has removed WAL that its standby needs.
    pub is_lost: bool,
    /// Its standby reports which rows it still reads.
    pub has_xmin: bool,
    /// Its standby has logical slots.
    pub has_catalog_xmin: bool,
    /// The client that streams from it; `None` if there is none, or it cannot be seen.
    pub client: Option<String>,
}

/// Something that a failover will be worse for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverFinding {
    pub weight: FindingWeight,
    pub text: String,
    pub hint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingWeight {
    /// A promotion would lose the slot, or leave rows in ClickHouse that the new primary never had.
    Missing,
    /// Nothing is streamed until it is fixed.
    Stalls,
}

impl fmt::Display for FailoverFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `None` on a server that does not know failover slots, or without the slot.
pub fn look(
    sql: &mut Sql,
    slot: &str,
    is_new: bool,
    deadline: Instant,
) -> Result<Option<FailoverFacts>> {
    if sql.about().version_num < SINCE {
        return Ok(None);
    }
    let doing = format!("look at what a failover would make of slot `{slot}`");
    let query = "SELECT json_build_object(
            'waited_for', current_setting('synchronized_standby_slots'),
            'slots', (SELECT coalesce(json_agg(row_to_json(s)), '[]') FROM pg_replication_slots s),
            'senders', (SELECT coalesce(json_agg(json_build_object(
                    'pid', pid, 'name', application_name, 'state', state,
                    'client', coalesce(host(client_addr), 'a local socket'))), '[]')
                FROM pg_stat_replication))";
    let rows = sql.rows(&doing, query, deadline)?;
    let row = rows.first().ok_or_else(|| protocol("expected one row").doing(&doing))?;
    let value = row.json(0).map_err(|error| error.doing(&doing))?;
    match read(&value, slot, is_new) {
        Some(facts) => Ok(facts),
        None => Err(protocol("the catalog's answer has an unexpected form").doing(doing)),
    }
}

/// The outer `None` is for an answer of another form, the inner one for a slot that is not there.
fn read(value: &Value, slot: &str, is_new: bool) -> Option<Option<FailoverFacts>> {
    let text =
        |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let senders = value.get("senders")?.as_array()?;
    let rows = value.get("slots")?.as_array()?;
    let mut facts = FailoverFacts {
        slot: slot.to_owned(),
        is_new,
        waited_for: names(value.get("waited_for")?.as_str()?),
        ..FailoverFacts::default()
    };
    let mut is_there = false;
    for row in rows {
        let name = text(row, "slot_name")?;
        if name == slot {
            is_there = true;
            facts.is_marked = row.get("failover")?.as_bool()?;
            continue;
        }
        let pid = row.get("active_pid").and_then(Value::as_i64);
        let sender = senders.iter().find(|s| s.get("pid").and_then(Value::as_i64) == pid);
        let lost = text(row, "wal_status").as_deref() == Some("lost");
        let client = sender.and_then(|sender| text(sender, "name"));
        facts.slots.push(OtherSlot {
            is_physical: text(row, "slot_type")? == "physical",
            is_active: row.get("active")?.as_bool()?,
            is_lost: lost || text(row, "invalidation_reason").is_some(),
            has_xmin: row.get("xmin").is_some_and(|xmin| !xmin.is_null()),
            has_catalog_xmin: row.get("catalog_xmin").is_some_and(|xmin| !xmin.is_null()),
            client,
            name,
        });
    }
    for sender in senders {
        let pid = sender.get("pid")?.as_i64()?;
        let has_slot =
            rows.iter().any(|row| row.get("active_pid").and_then(Value::as_i64) == Some(pid));
        // Without the right to see it the state is null.
        let streams = matches!(text(sender, "state").as_deref(), Some("streaming" | "catchup"));
        let name = text(sender, "name").unwrap_or_default();
        if streams && !has_slot && !is_archiver(&name) {
            let client = text(sender, "client").unwrap_or_default();
            facts.without_slot.push(format!("`{name}` at {client}"));
        }
    }
    Some(is_there.then_some(facts))
}

/// They stream WAL as a standby does, and are never promoted.
fn is_archiver(name: &str) -> bool {
    ["pg_receivewal", "pg_basebackup", "barman"].iter().any(|prefix| name.starts_with(prefix))
}

/// A list of names as in a setting: `a, "B"`.
fn names(list: &str) -> Vec<String> {
    list.split(',')
        .map(|name| name.trim().trim_matches('"').to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

/// What is missing, the most serious first. If nothing is, the slot survives a promotion, as far as
/// the primary can tell.
pub fn judge(facts: &FailoverFacts) -> Vec<FailoverFinding> {
    let slot = &facts.slot;
    if !facts.is_marked {
        return vec![FailoverFinding {
            weight: FindingWeight::Missing,
            text: format!("slot `{slot}` is not marked for failover: a promotion loses it"),
            hint: "Set *_REPLICATION_SLOT_FAILOVER=1.".to_owned(),
        }];
    }
    let mut found = stalls(facts);
    let standbys: Vec<&OtherSlot> = (facts.slots.iter())
        .filter(|s| s.is_physical && s.is_active)
        .filter(|s| !s.client.as_deref().is_some_and(is_archiver))
        .collect();
    for standby in &facts.without_slot {
        missing(
            &mut found,
            format!("standby {standby} streams without a slot, so it cannot keep `{slot}`"),
            "On the primary run: SELECT pg_create_physical_replication_slot('NAME'); on the \
             standby set primary_slot_name = 'NAME' and reload.",
        );
    }
    if standbys.is_empty() && facts.without_slot.is_empty() {
        missing(
            &mut found,
            format!("no standby is connected that could keep slot `{slot}`"),
            "If there is no standby to promote, or the storage fails over instead, set \
             *_REPLICATION_SLOT_FAILOVER=0. Otherwise connect the standby, with primary_slot_name \
             set.",
        );
    }
    for standby in &standbys {
        let name = &standby.name;
        if !standby.has_xmin && !standby.has_catalog_xmin {
            missing(
                &mut found,
                format!(
                    "the standby of slot `{name}` sends no feedback, so it cannot keep `{slot}`"
                ),
                "On that standby run: ALTER SYSTEM SET hot_standby_feedback = on; SELECT \
                 pg_reload_conf();",
            );
        } else if !standby.has_catalog_xmin && !facts.is_new {
            missing(
                &mut found,
                format!("the standby of slot `{name}` keeps no copy of a logical slot"),
                "On that standby run: ALTER SYSTEM SET sync_replication_slots = on; SELECT \
                 pg_reload_conf(); and make sure that wal_level is logical there and that \
                 primary_conninfo has a dbname.",
            );
        }
        if !facts.waited_for.contains(name) {
            let mut names = facts.waited_for.clone();
            names.push(name.clone());
            found.push(FailoverFinding {
                weight: FindingWeight::Missing,
                text: format!(
                    "the standby of slot `{name}` may be behind ClickHouse when it is promoted: \
                     `synchronized_standby_slots` does not name it"
                ),
                hint: set_waited_for(&names),
            });
        }
    }
    found
}

/// Postgres does not decode a failover slot beyond the slots in `synchronized_standby_slots`.
fn stalls(facts: &FailoverFacts) -> Vec<FailoverFinding> {
    let mut found = Vec::new();
    for name in &facts.waited_for {
        let why = match facts.slots.iter().find(|other| other.name == *name) {
            None => "does not exist",
            Some(other) if !other.is_physical => "is not a physical slot",
            Some(other) if other.is_lost => "has lost WAL that its standby needs",
            Some(other) if !other.is_active => "has no standby connected",
            Some(_) => continue,
        };
        let others: Vec<String> =
            facts.waited_for.iter().filter(|other| *other != name).cloned().collect();
        found.push(FailoverFinding {
            weight: FindingWeight::Stalls,
            text: format!(
                "slot `{}` waits for `{name}` of `synchronized_standby_slots`, which {why}",
                facts.slot
            ),
            hint: format!("Bring that standby back, or: {}", set_waited_for(&others)),
        });
    }
    found
}

fn missing(found: &mut Vec<FailoverFinding>, text: String, hint: &str) {
    found.push(FailoverFinding { weight: FindingWeight::Missing, text, hint: hint.to_owned() });
}

fn set_waited_for(names: &[String]) -> String {
    let list = literal(&names.join(", "));
    format!("Run: ALTER SYSTEM SET synchronized_standby_slots = {list}; SELECT pg_reload_conf();")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn standby(name: &str) -> Value {
        json!({"slot_name": name, "slot_type": "physical", "active": true, "active_pid": 10,
               "xmin": "700", "catalog_xmin": "690", "wal_status": "reserved", "failover": false})
    }

    fn ours() -> Value {
        json!({"slot_name": "runs", "slot_type": "logical", "active": false, "active_pid": null,
               "xmin": null, "catalog_xmin": "690", "wal_status": "reserved", "failover": true})
    }

    fn with(mut value: Value, field: &str, to: Value) -> Value {
        value[field] = to;
        value
    }

    fn sender(pid: i32, name: &str, state: Value) -> Value {
        json!({"pid": pid, "name": name, "state": state, "client": "10.0.0.2"})
    }

    fn facts(waited_for: &str, slots: &[Value], senders: &[Value]) -> FailoverFacts {
        let value = json!({"waited_for": waited_for, "slots": slots, "senders": senders});
        read(&value, "runs", false).expect("it has the form").expect("the slot is there")
    }

    /// Weight, and the words that name the setting.
    #[track_caller]
    fn check(facts: &FailoverFacts, expected: &[(FindingWeight, &str, &str)]) {
        let found = judge(facts);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (finding, (weight, text, hint)) in found.iter().zip(expected) {
            assert_eq!(finding.weight, *weight, "{finding}");
            assert!(finding.text.contains(text), "{}", finding.text);
            assert!(finding.hint.contains(hint), "{}", finding.hint);
        }
    }

    #[test]
    fn a_slot_that_a_standby_keeps_and_is_waited_for_lacks_nothing() {
        let s1 = sender(10, "s1", json!("streaming"));
        check(&facts("s1", &[ours(), standby("s1")], std::slice::from_ref(&s1)), &[]);
        // Neither the sessions of walhouse nor an archive is a standby.
        let archive = with(standby("archive"), "active_pid", json!(11));
        let archive = with(with(archive, "xmin", json!(null)), "catalog_xmin", json!(null));
        let others = [
            s1,
            sender(11, "pg_receivewal", json!("streaming")),
            sender(12, "walhouse/runs", json!("startup")),
            sender(13, "", json!(null)),
        ];
        check(&facts("\"s1\"", &[ours(), standby("s1"), archive], &others), &[]);
    }

    #[test]
    fn what_is_missing_is_named_with_its_setting() {
        use FindingWeight::Missing;
        let unmarked = with(ours(), "failover", json!(false));
        check(&facts("", &[unmarked], &[]), &[(Missing, "not marked", "SLOT_FAILOVER=1")]);
        check(&facts("", &[ours()], &[]), &[(Missing, "no standby", "primary_slot_name")]);
        let without = facts("", &[ours()], &[sender(9, "walreceiver", json!("streaming"))]);
        let expected = "`walreceiver` at 10.0.0.2 streams without a slot";
        check(&without, &[(Missing, expected, "primary_slot_name")]);

        let silent = with(standby("s1"), "xmin", json!(null));
        let silent = with(silent, "catalog_xmin", json!(null));
        let silent = facts("s1", &[ours(), silent], &[]);
        check(&silent, &[(Missing, "no feedback", "hot_standby_feedback = on")]);

        let copies_nothing = with(standby("s1"), "catalog_xmin", json!(null));
        let mut copies_nothing = facts("s1", &[ours(), copies_nothing], &[]);
        let expected = (Missing, "keeps no copy", "sync_replication_slots = on");
        check(&copies_nothing, &[expected]);
        copies_nothing.is_new = true;
        check(&copies_nothing, &[]);

        check(
            &facts("s1", &[ours(), standby("s1"), standby("s2")], &[]),
            &[(Missing, "`s2` may be behind", "synchronized_standby_slots = 's1, s2'")],
        );
    }

    #[test]
    fn whoever_is_waited_for_and_does_not_come_stalls_the_slot() {
        use FindingWeight::Stalls;
        let gone = with(with(standby("gone"), "active", json!(false)), "active_pid", json!(null));
        let lost = with(standby("lost"), "wal_status", json!("lost"));
        let logical = with(ours(), "slot_name", json!("other"));
        let slots = [ours(), standby("s1"), gone, lost, logical];
        let found = judge(&facts("s1, gone, nowhere, lost, other", &slots, &[]));
        let stalled: Vec<&str> = (found.iter())
            .filter(|finding| finding.weight == Stalls)
            .map(|finding| finding.text.rsplit_once("slots`, ").expect("it has a reason").1)
            .collect();
        let expected = [
            "which has no standby connected",
            "which does not exist",
            "which has lost WAL that its standby needs",
            "which is not a physical slot",
        ];
        assert_eq!(stalled, expected);
        assert!(found[1].hint.contains("'s1, gone, lost, other'"), "{}", found[1].hint);
        // Only slots that are marked wait.
        let unmarked = with(ours(), "failover", json!(false));
        let found = judge(&facts("nowhere", &[unmarked], &[]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].weight, FindingWeight::Missing);
    }

    #[test]
    fn an_answer_of_another_form_is_none() {
        assert_eq!(read(&json!({}), "runs", false), None);
        let empty = json!({"waited_for": "", "slots": [], "senders": []});
        assert_eq!(read(&empty, "runs", false), Some(None));
        let odd = json!({"waited_for": "", "slots": [{"slot_name": "runs"}], "senders": []});
        assert_eq!(read(&odd, "runs", false), None);
    }
}
