//! The oracle names every planted difference by table, key and column, and nothing else.

use crate::support::clickhouse::{Clickhouse, DATABASE};
use crate::support::oracle::{Scope, assert_same, compare};
use crate::support::sample;
use crate::support::stage::{Pooled, SERVICES, Stage};
use crate::support::workload::Workload;

/// Two full rows on each side, and a program that has ended.
fn equal_sides() -> Pooled {
    let stage = Stage::take();
    let mut program = stage.start();
    for id in ["a", "b"] {
        stage.postgres.insert("TaskRun", &sample::full_run(id));
        stage.postgres.insert("Session", &sample::full_session(id));
    }
    stage.settle(&mut program, &SERVICES);
    program.stop();
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL), 6);
    stage
}

/// The columns of a table that can be changed by inserting the row again.
fn columns(clickhouse: &Clickhouse, table: &str) -> Vec<(String, String)> {
    let sql = format!(
        "SELECT name, type FROM system.columns WHERE database = '{DATABASE}' AND table = '{table}' \
         AND default_kind != 'MATERIALIZED' AND name != '_version' ORDER BY position"
    );
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    clickhouse.rows(&sql).iter().map(|row| (text(&row[0]), text(&row[1]))).collect()
}

/// Another value of the type.
fn other(column: &str, kind: &str) -> String {
    match kind {
        _ if kind.starts_with("JSON") => {
            format!("CAST('{{\"data\":{{\"planted\":1}}}}', '{kind}')")
        }
        _ if kind.starts_with("Nullable") => "NULL".to_owned(),
        _ if kind.starts_with("Array") => format!("arrayConcat({column}, ['planted'])"),
        _ if kind.starts_with("DateTime64") => format!("{column} + toIntervalMillisecond(1)"),
        _ if kind.contains("String") => format!("concat({column}, '!')"),
        "Float64" => format!("{column} * 1.0000000000000002"),
        _ => format!("1 - {column}"),
    }
}

#[test]
fn a_difference_in_any_column_is_named() {
    let stage = equal_sides();
    let clickhouse = &stage.clickhouse;
    let mut planted = 0;
    for (table, key) in [
        ("task_runs_v2", "run_id"),
        ("raw_task_runs_payload_v1", "run_id"),
        ("sessions_v1", "session_id"),
    ] {
        let columns = columns(clickhouse, table);
        let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        // In every key that the table sorts by, a new value makes a new row.
        let sorting = ["organization_id", "project_id", "environment_id", "created_at", key];
        let of_payloads = table == "raw_task_runs_payload_v1";
        for (column, kind) in &columns {
            let is_sorting =
                sorting.contains(&column.as_str()) && !(of_payloads && column == "created_at");
            let values: Vec<String> = names
                .iter()
                .map(|name| if name == column { other(name, kind) } else { (*name).to_owned() })
                .collect();
            let insert = |values: &str, version: &str| {
                clickhouse.execute(&format!(
                    "INSERT INTO {DATABASE}.{table} ({}, _version) SELECT {values}, {version} \
                     FROM {DATABASE}.{table} FINAL WHERE {key} = 'a'",
                    names.join(", ")
                ));
            };
            let before = clickhouse
                .value(&format!("SELECT max(_version) FROM {DATABASE}.{table} WHERE {key} = 'a'"));
            let restore = format!(
                "CREATE TABLE {DATABASE}.saved ENGINE = MergeTree ORDER BY tuple() AS \
                 SELECT * FROM {DATABASE}.{table}"
            );
            clickhouse.execute(&restore);
            insert(&values.join(", "), "_version + 1");

            let report = compare(&stage.postgres, clickhouse, Scope::ALL);
            let name = |key: &str, what: &str| format!("{table} {key} {what}");
            let expected = match column.as_str() {
                "_is_deleted" => vec![name("a", "lost")],
                column if column == key => vec![name("a!", "extra")],
                _ if is_sorting => vec![name("a", "repeated")],
                column => vec![name("a", column)],
            };
            assert_eq!(
                report.names(),
                expected,
                "planted in {table}.{column} over {before}: {report}"
            );
            planted += 1;

            clickhouse.execute(&format!("TRUNCATE TABLE {DATABASE}.{table}"));
            clickhouse.execute(&format!(
                "INSERT INTO {DATABASE}.{table} ({0}, _version) SELECT {0}, _version FROM {DATABASE}.saved",
                names.join(", ")
            ));
            clickhouse.execute(&format!("DROP TABLE {DATABASE}.saved SYNC"));
        }
    }
    assert_eq!(planted, 55 + 4 + 18);
    assert_same(&stage.postgres, clickhouse, Scope::ALL);
}

#[test]
fn lost_and_extra_rows_are_named() {
    let stage = equal_sides();
    for table in ["task_runs_v2", "raw_task_runs_payload_v1", "sessions_v1"] {
        let key = if table == "sessions_v1" { "session_id" } else { "run_id" };
        stage.clickhouse.execute(&format!(
            "ALTER TABLE {DATABASE}.{table} DELETE WHERE {key} = 'b' SETTINGS mutations_sync = 2"
        ));
    }
    stage.postgres.delete("TaskRun", "a");
    stage.postgres.delete("Session", "a");
    let report = compare(&stage.postgres, &stage.clickhouse, Scope::ALL);
    assert_eq!(
        report.names(),
        [
            "task_runs_v2 b lost",
            "task_runs_v2 a extra",
            "raw_task_runs_payload_v1 b lost",
            "raw_task_runs_payload_v1 a extra",
            "sessions_v1 b lost",
            "sessions_v1 a extra",
        ],
        "{report}"
    );
}

#[test]
fn a_change_on_the_side_of_postgres_is_named() {
    let stage = equal_sides();
    let change = serde_json::json!({"output": "{\"result\":1}", "runTags": ["a first", "z last"]});
    stage.postgres.update("TaskRun", "a", &change);
    stage.postgres.update("Session", "b", &serde_json::json!({"metadata": null}));
    let report = compare(&stage.postgres, &stage.clickhouse, Scope::ALL);
    assert_eq!(
        report.names(),
        ["task_runs_v2 a output", "task_runs_v2 a tags", "sessions_v1 b metadata"],
        "{report}"
    );
}

/// Goal: the load writes everything it promises, so that a comparison after it means something.
#[test]
fn the_workload_is_as_rich_as_it_says() {
    let stage = Stage::take();
    let written = Workload { moves: true, ..Workload::new(7) }.run(&stage.postgres, 300);
    assert_eq!(written.committed + written.rolled_back, 300);
    assert!(0 < written.rolled_back && written.reconnects == 0, "{written:?}");
    for (what, condition) in [
        ("a run without owner", "FROM \"TaskRun\" WHERE \"organizationId\" IS NULL"),
        ("a run without environment type", "FROM \"TaskRun\" WHERE \"environmentType\" IS NULL"),
        ("a run that failed", "FROM \"TaskRun\" WHERE status = 'CRASHED'"),
        ("a moved run", "FROM \"TaskRun\" WHERE \"projectId\" LIKE 'moved%'"),
        ("a shared run", "FROM \"TaskRun\" WHERE id LIKE '%shared%'"),
        (
            "a TOASTed payload of a run that was updated",
            "FROM \"TaskRun\" WHERE length(payload) > 8000 AND status <> 'PENDING'",
        ),
        ("a session", "FROM \"Session\" WHERE metadata IS NOT NULL"),
    ] {
        let found = stage.postgres.value(&format!("SELECT count(*) {condition}")).unwrap();
        assert_ne!(found, "0", "{what}");
    }
    let toasted = "SELECT pg_relation_size(reltoastrelid) > 100000 FROM pg_class WHERE oid = '\"TaskRun\"'::regclass";
    assert_eq!(stage.postgres.value(toasted).as_deref(), Some("t"));
}
