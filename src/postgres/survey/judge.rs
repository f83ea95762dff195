//! Judges the facts about a server for a stream that is to start. No I/O.

use super::super::sql::{ident, literal};
use super::{Access, Effect, PostgresFacts};
use crate::finding::Finding;

/// The newest version that the tests have seen.
const VERSION_TESTED: u32 = 18;
/// A slot that may keep less than this is lost in an ordinary restart of walhouse.
const KEEP_MB_MIN: u64 = 256;
/// Clocks that are this far apart make times in tables and metrics misleading.
const SKEW_MS_MAX: i64 = 5_000;

/// `slots` are those of all services that use this server.
pub fn server(facts: &PostgresFacts, slots: &[&str]) -> Vec<Finding> {
    let mut found = Vec::new();
    let version = facts.version_num / 10_000;
    if VERSION_TESTED < version {
        found.push(Finding::warning(
            "version",
            format!("Postgres {version} is newer than what walhouse was tested with"),
            "Look for a newer version of walhouse.",
        ));
    }
    let new = slots.iter().filter(|slot| !facts.slots.iter().any(|is| is == *slot)).count() as u64;
    let used = facts.slots.len() as u64;
    let free = facts.slots_max.saturating_sub(used);
    found.push(match free < new {
        true => Finding::problem(
            "slots",
            format!("{new} to be created, and {free} of {} are free", facts.slots_max),
            facts.provider.set("max_replication_slots", &(used + new).to_string(), Effect::Restart),
        ),
        false => Finding::ok("slots", format!("{used} of {} are in use", facts.slots_max)),
    });
    found.push(right_to_replicate(facts));
    found.extend(kept_wal(facts));
    found
}

/// `streams` are to be added to the running walsenders.
pub fn senders(facts: &PostgresFacts, streams: u64) -> Finding {
    let free = facts.senders_max.saturating_sub(facts.senders);
    match free < streams {
        true => Finding::problem(
            "walsenders",
            format!("{streams} streams to begin, and {free} of {} are free", facts.senders_max),
            facts.provider.set(
                "max_wal_senders",
                &(facts.senders + streams).to_string(),
                Effect::Restart,
            ),
        ),
        false => {
            let text = format!("{} of {} are in use", facts.senders, facts.senders_max);
            Finding::ok("walsenders", text)
        }
    }
}

fn right_to_replicate(facts: &PostgresFacts) -> Finding {
    let role = &facts.role;
    match facts.may_replicate {
        true => Finding::ok("role", format!("`{role}` may replicate")),
        false => Finding::problem(
            "role",
            format!("`{role}` may not replicate"),
            facts.provider.grant_replication(role),
        ),
    }
}

fn kept_wal(facts: &PostgresFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.push(match facts.slot_keep_mb {
        Some(mb) if mb < KEEP_MB_MIN => Finding::warning(
            "retained WAL",
            format!("max_slot_wal_keep_size is {mb} MB: a short pause causes a gap"),
            facts.provider.set("max_slot_wal_keep_size", "10GB", Effect::Reload),
        ),
        Some(mb) => {
            let text = format!("a slot keeps up to {mb} MB; beyond that there is a gap");
            Finding::ok("retained WAL", text)
        }
        None => Finding::ok(
            "retained WAL",
            "a slot keeps as much as it needs (max_slot_wal_keep_size is -1): watch the disk",
        ),
    });
    if let Some(limit) = facts.slot_idle_limit {
        found.push(Finding::warning(
            "retained WAL",
            format!("idle_replication_slot_timeout is {limit}: being down for longer causes a gap"),
            facts.provider.set("idle_replication_slot_timeout", "0", Effect::Reload),
        ));
    }
    found
}

pub fn encryption(facts: &PostgresFacts, host: &str, is_near: bool) -> Finding {
    match (facts.is_encrypted, is_near) {
        (true, _) => Finding::ok("TLS", format!("the connection to `{host}` is encrypted")),
        (false, true) => Finding::ok("TLS", format!("`{host}` is this machine: not encrypted")),
        (false, false) => Finding::warning(
            "TLS",
            format!("the connection to `{host}` is not encrypted"),
            "Add sslmode=verify-full to DATABASE_URL, with ssl = on in postgresql.conf.",
        ),
    }
}

/// Whether commits on the server would wait for us.
pub fn synchronous(facts: &PostgresFacts, application_name: &str) -> Option<Finding> {
    let (head, names) = split(&facts.synchronous_standby_names);
    let is_ours = |name: &String| name == "*" || name.eq_ignore_ascii_case(application_name);
    if !names.iter().any(is_ours) {
        return None;
    }
    let mut others: Vec<String> = names.iter().filter(|name| !is_ours(name)).cloned().collect();
    if names.iter().any(|name| name == "*") {
        others.extend(facts.standbys.iter().filter(|name| *name != application_name).cloned());
    }
    let quoted: Vec<String> = others.iter().map(|name| ident(name)).collect();
    let value = match (head, quoted.is_empty()) {
        (_, true) => String::new(),
        (Some(head), false) => format!("{head} ({})", quoted.join(", ")),
        (None, false) => quoted.join(", "),
    };
    Some(Finding::warning(
        "synchronous_standby_names",
        format!("it names `{application_name}`: each commit would wait for ClickHouse"),
        facts.provider.set("synchronous_standby_names", &value, Effect::Reload),
    ))
}

/// `FIRST 2 (a, "b")`, `ANY 1 (*)`, `2 (a, b)` or a plain list: what stands before, and the names.
fn split(setting: &str) -> (Option<&str>, Vec<String>) {
    let (head, list) = match setting.split_once('(') {
        Some((head, rest)) => (Some(head.trim()), rest.trim_end().trim_end_matches(')')),
        None => (None, setting),
    };
    let names = list
        .split(',')
        .map(|name| name.trim().trim_matches('"').replace("\"\"", "\""))
        .filter(|name| !name.is_empty());
    (head, names.collect())
}

/// Creating a slot waits for every writing transaction.
pub fn forgotten(facts: &PostgresFacts) -> Vec<Finding> {
    let told = facts.waits_for.iter().map(|(what, end)| {
        Finding::warning(
            "transactions",
            format!("creating the slot waits for {what}"),
            format!("End it. Run: {end}"),
        )
    });
    told.collect()
}

/// What keeps our role from reading the table although it may SELECT from it.
pub fn access(facts: &PostgresFacts, access: &Access, schema: &str, table: &str) -> Vec<Finding> {
    let role = ident(&facts.role);
    let mut found = Vec::new();
    if !access.may_use_schema {
        found.push(Finding::problem(
            "table",
            format!("role `{}` may not look into schema `{schema}`", facts.role),
            format!("Run: GRANT USAGE ON SCHEMA {} TO {role};", ident(schema)),
        ));
    }
    if access.has_row_security && !facts.bypasses_row_security {
        found.push(Finding::problem(
            "table",
            format!("row security hides rows of {table} from role `{}`", facts.role),
            format!("Run: ALTER ROLE {role} BYPASSRLS;"),
        ));
    }
    found
}

/// The server read `theirs_ms` at some moment between our two readings.
pub fn clock(whose: &str, (before_ms, after_ms): (i64, i64), theirs_ms: i64) -> Finding {
    let skew = match theirs_ms {
        theirs if theirs < before_ms => theirs - before_ms,
        theirs if after_ms < theirs => theirs - after_ms,
        _ => 0,
    };
    if skew.abs() <= SKEW_MS_MAX {
        return Finding::ok("clock", format!("{whose} and this host agree"));
    }
    let direction = if skew < 0 { "behind" } else { "ahead of" };
    Finding::warning(
        "clock",
        format!("{whose} is {:.1} s {direction} this host", skew.abs() as f64 / 1000.0),
        "Have both hosts keep time by NTP (timedatectl set-ntp true).",
    )
}

/// The next checkpoint may remove WAL that the slot still needs.
pub fn nearly_lost(facts: &PostgresFacts, slot: &str, wal_status: Option<&str>) -> Option<Finding> {
    (wal_status == Some("unreserved")).then(|| {
        Finding::warning(
            "slot",
            format!("slot {} is about to lose WAL that it needs", literal(slot)),
            facts.provider.set("max_slot_wal_keep_size", "-1", Effect::Reload),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::facts;
    use super::*;
    use crate::finding::Level;

    /// The gravest of them.
    fn worst(found: &[Finding]) -> Level {
        found.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    fn about<'a>(found: &'a [Finding], what: &str) -> &'a Finding {
        found.iter().find(|finding| finding.about == what).expect("it is told")
    }

    #[test]
    fn slots_that_are_there_need_no_room() {
        let full = facts(|value| {
            value["slots"] = json!(["a", "runs"]);
            value["slots_max"] = json!(2);
        });
        assert_eq!(about(&server(&full, &["runs"]), "slots").level, Level::Ok);
        let found = server(&full, &["runs", "sessions"]);
        let problem = about(&found, "slots");
        assert_eq!(problem.level, Level::Problem);
        assert_eq!(
            problem.hint.as_deref(),
            Some("Run: ALTER SYSTEM SET max_replication_slots = '3'; and restart Postgres.")
        );
    }

    #[test]
    fn walsenders_are_counted_beside_those_that_run() {
        let facts = facts(|value| {
            value["senders"] = json!(2);
            value["senders_max"] = json!(3);
        });
        assert_eq!(senders(&facts, 1).level, Level::Ok);
        let hint = senders(&facts, 2).hint.expect("it has one");
        assert!(hint.contains("max_wal_senders = '4'"), "{hint}");
    }

    #[test]
    fn a_sound_server_has_no_warning_and_each_lack_is_one() {
        assert_eq!(worst(&server(&facts(|_| ()), &["runs"])), Level::Ok);
        for (field, value, level, hint) in [
            ("keep_mb", json!(16), Level::Warning, "max_slot_wal_keep_size"),
            ("idle_limit", json!(60), Level::Warning, "idle_replication_slot_timeout = '0'"),
            (
                "role",
                json!({"super": false, "repl": false, "bypass": false}),
                Level::Problem,
                "ALTER ROLE \"walhouse\" REPLICATION",
            ),
        ] {
            let found = server(&facts(|facts| facts[field] = value.clone()), &["runs"]);
            assert_eq!(worst(&found), level, "{field}");
            let told = found.iter().find(|finding| finding.level == level).expect("it is told");
            assert!(told.hint.as_ref().expect("it has a hint").contains(hint), "{told:?}");
        }
    }

    #[test]
    fn who_is_waited_for_is_taken_out_of_the_list() {
        for (setting, standbys, expected) in [
            ("", &[][..], None),
            ("s1, \"walhouse/other\"", &[], None),
            ("walhouse/runs", &[], Some("''")),
            ("*", &["s1"], Some("'\"s1\"'")),
            ("FIRST 1 (\"walhouse/runs\", s1)", &[], Some("'FIRST 1 (\"s1\")'")),
            ("ANY 2 (*)", &["a", "b"], Some("'ANY 2 (\"a\", \"b\")'")),
        ] {
            let facts = facts(|value| {
                value["sync"] = json!(setting);
                value["standbys"] = json!(standbys);
            });
            let hint = synchronous(&facts, "walhouse/runs").and_then(|finding| finding.hint);
            let sql = expected.map(|value| {
                format!(
                    "Run: ALTER SYSTEM SET synchronous_standby_names = {value}; SELECT \
                     pg_reload_conf();"
                )
            });
            assert_eq!(hint, sql, "{setting}");
        }
    }

    #[test]
    fn a_forgotten_transaction_comes_with_its_end() {
        let facts = facts(|value| {
            value["prepared"] = json!(["it's"]);
            value["writers"] = json!([{"pid": 7, "name": "psql", "idle": true, "seconds": 9}]);
        });
        let hints: Vec<_> = forgotten(&facts).into_iter().filter_map(|f| f.hint).collect();
        assert_eq!(
            hints,
            [
                "End it. Run: ROLLBACK PREPARED 'it''s';",
                "End it. Run: SELECT pg_terminate_backend(7);"
            ]
        );
    }

    #[test]
    fn clocks_are_compared_with_the_time_that_asking_took() {
        for (theirs, level) in [
            (1_000, Level::Ok),
            (9_000, Level::Ok),
            (11_001, Level::Warning),
            (-4_001, Level::Warning),
        ] {
            assert_eq!(clock("x", (1_000, 6_000), theirs).level, level, "{theirs}");
        }
        assert!(clock("x", (0, 0), -9_500).text.contains("9.5 s behind"));
    }

    #[test]
    fn what_hides_rows_is_a_problem() {
        let facts = facts(|_| ());
        let open = Access { may_use_schema: true, has_row_security: false };
        assert_eq!(super::access(&facts, &open, "public", "t"), []);
        let closed = Access { may_use_schema: false, has_row_security: true };
        assert_eq!(super::access(&facts, &closed, "public", "t").len(), 2);
    }

    #[test]
    fn a_link_to_another_machine_is_to_be_encrypted() {
        let plain = facts(|_| ());
        assert_eq!(encryption(&plain, "db", false).level, Level::Warning);
        assert_eq!(encryption(&plain, "db", true).level, Level::Ok);
        let tls = facts(|value| value["ssl"] = json!(true));
        assert_eq!(encryption(&tls, "db", false).level, Level::Ok);
    }

    #[test]
    fn a_slot_that_loses_its_wal_is_told_of() {
        let facts = facts(|_| ());
        assert!(nearly_lost(&facts, "s", Some("unreserved")).is_some());
        assert!(nearly_lost(&facts, "s", Some("reserved")).is_none());
    }
}
