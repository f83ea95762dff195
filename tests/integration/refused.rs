//! Rows and values that ClickHouse refuses.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same, compare};
use crate::support::postgres::insert;
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::Stage;
use crate::support::wait::stays_true;

const REFUSED: &str = r#"walhouse_refused_rows_total{service="runs",table="task_runs_v2"}"#;
const OUTAGE: &str = r#"walhouse_insert_outage{service="runs"}"#;

fn add_constraint(stage: &Stage, check: &str) {
    stage.clickhouse.execute(&format!(
        "ALTER TABLE {DATABASE}.task_runs_v2 ADD CONSTRAINT refuse CHECK {check}"
    ));
}

fn drop_constraint(stage: &Stage) {
    let sql = format!("ALTER TABLE {DATABASE}.task_runs_v2 DROP CONSTRAINT refuse");
    stage.clickhouse.execute(&sql);
}

/// In one transaction, so in few batches.
fn insert_runs(stage: &Stage, prefix: &str, count: u32, values: impl Fn(u32) -> Value) {
    let mut client = stage.postgres.client();
    let mut transaction = client.transaction().unwrap();
    for n in 0..count {
        let row = sample::with(sample::full_run(&format!("{prefix}{n:02}")), values(n));
        insert(&mut transaction, "TaskRun", &row).unwrap();
    }
    transaction.commit().unwrap();
}

fn start(stage: &Stage) -> Program {
    let settings = stage
        .settings_runs()
        // After a first row, a transaction is one batch.
        .with("RUN_REPLICATION_FLUSH_INTERVAL_MS", 2000)
        .with("RUN_REPLICATION_FLUSH_BATCH_SIZE", 1000)
        // So that a kill makes everything come again.
        .with("RUN_REPLICATION_ACK_INTERVAL_SECONDS", 3600);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    program
}

fn kept(stage: &Stage) -> Vec<Vec<Value>> {
    stage.clickhouse.rows(&format!(
        "SELECT key, column, document FROM {DATABASE}.walhouse_refused_rows FINAL \
         ORDER BY key, column"
    ))
}

#[test]
fn a_refused_row_is_kept_in_full_and_the_others_land() {
    let stage = Stage::take();
    let mut program = start(&stage);
    // The first batch is confirmed at once, those after it an hour later.
    insert_runs(&stage, "first", 1, |_| json!({}));
    stage.settle(&mut program, &["runs"]);
    add_constraint(&stage, "queue != 'poison'");
    insert_runs(&stage, "r", 40, |n| json!({"queue": if n % 13 == 5 { "poison" } else { "good" }}));
    stage.settle(&mut program, &["runs"]);
    let lost = ["r05", "r18", "r31"];
    let check = |program: &mut Program| {
        let report = compare(&stage.postgres, &stage.clickhouse, Scope::RUNS);
        assert_eq!(report.names(), lost.map(|id| format!("task_runs_v2 {id} lost")), "{report}");
        let kept = kept(&stage);
        assert_eq!(kept.len(), 3);
        for (row, id) in kept.iter().zip(lost) {
            assert_eq!((&row[0], &row[1]), (&json!(id), &json!("")));
            let document: Value = serde_json::from_str(row[2].as_str().unwrap()).unwrap();
            for (column, value) in [
                ("run_id", json!(id)),
                ("queue", json!("poison")),
                ("tags", json!(["z last", "a first", "ü \"quoted\", with comma"])),
            ] {
                assert_eq!(document[column], value, "{document}");
            }
        }
        assert_eq!(program.metric(REFUSED), Some(3.0));
        assert_eq!(program.metric(OUTAGE), Some(0.0));
    };
    check(&mut program);
    // A replay refuses the same rows again, and keeps them once.
    program.kill();
    let mut program = start(&stage);
    stage.settle(&mut program, &["runs"]);
    check(&mut program);
    program.stop();
}

#[test]
fn a_refused_document_is_kept_and_its_row_lands_without_it() {
    let stage = Stage::take();
    let mut program = start(&stage);
    add_constraint(&stage, "position(toJSONString(output), 'poison') = 0");
    insert_runs(
        &stage,
        "r",
        30,
        |n| json!({"output": if n == 7 { "{\"poison\":[1]}" } else { "{\"good\":1}" }}),
    );
    stage.settle(&mut program, &["runs"]);
    let report = compare(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    assert_eq!(report.names(), ["task_runs_v2 r07 output"], "{report}");
    let kept = kept(&stage);
    assert_eq!(kept.len(), 1);
    assert_eq!((&kept[0][0], &kept[0][1]), (&json!("r07"), &json!("output")));
    assert!(kept[0][2].as_str().unwrap().contains("{\"poison\":[1]}"), "{}", kept[0][2]);
    program.stop();
}

/// Goal: a table that takes nothing is an outage; its rows stay in Postgres until it is mended.
#[test]
fn a_table_that_refuses_everything_is_an_outage() {
    let stage = Stage::take();
    let mut program = start(&stage);
    insert_runs(&stage, "before", 3, |_| json!({}));
    stage.settle(&mut program, &["runs"]);
    add_constraint(&stage, "length(queue) = 0");
    for session in 0..3 {
        // By one and by many, and in each session alike.
        let count = [1, 40, 14][session];
        insert_runs(&stage, &format!("during{session}"), count, |_| json!({}));
        let committed = stage.postgres.flush_lsn();
        program.wait_metric(OUTAGE, |outage| outage == 1.0);
        program.wait_for_log("refuses every row");
        let flushed = program.metric(r#"walhouse_flushed_lsn{service="runs"}"#);
        assert!(flushed.is_some_and(|lsn| lsn < committed as f64), "{flushed:?}");
        assert_eq!(kept(&stage), [] as [Vec<Value>; 0], "nothing drains to the refused");
        program.kill();
        program = start(&stage);
    }
    program.wait_for_log("refuses every row");
    drop_constraint(&stage);
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 58);
    program.wait_metric(OUTAGE, |outage| outage == 0.0);
    assert_eq!(kept(&stage), [] as [Vec<Value>; 0]);
    program.stop();
}

/// Goal: the first row of an empty table is told from a table that takes none by a made-up row.
#[test]
fn the_first_row_of_an_empty_table_is_refused_only_if_another_one_is_taken() {
    let stage = Stage::take();
    let mut program = start(&stage);
    add_constraint(&stage, "queue != 'poison'");
    insert_runs(&stage, "r", 1, |_| json!({"queue": "poison"}));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(kept(&stage).len(), 1);
    drop_constraint(&stage);
    add_constraint(&stage, "0");
    insert_runs(&stage, "s", 1, |_| json!({}));
    program.wait_for_log("refuses every row");
    assert_eq!(kept(&stage).len(), 1);
    drop_constraint(&stage);
    stage.settle(&mut program, &["runs"]);
    let report = compare(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    assert_eq!(report.names(), ["task_runs_v2 r00 lost"], "{report}");
    assert_eq!(stage.clickhouse.count("task_runs_v2", "1"), 1, "the made-up row is not seen");
    program.stop();
}

/// Goal: only the document that the refusal names is made empty.
#[test]
fn only_the_document_that_is_named_is_made_empty() {
    let stage = Stage::take();
    let mut program = start(&stage);
    insert_runs(&stage, "before", 3, |_| json!({}));
    stage.settle(&mut program, &["runs"]);
    add_constraint(&stage, "position(toJSONString(error), 'poison') = 0");
    let values = |n| match n {
        3 => json!({"error": {"poison": 1}, "output": "{\"kept\":1}"}),
        _ => json!({"output": "{\"good\":1}"}),
    };
    insert_runs(&stage, "r", 9, values);
    stage.settle(&mut program, &["runs"]);
    let report = compare(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    assert_eq!(report.names(), ["task_runs_v2 r03 error"], "{report}");
    let kept = kept(&stage);
    assert_eq!(kept.len(), 1);
    assert_eq!((&kept[0][0], &kept[0][1]), (&json!("r03"), &json!("error")));
    // Two INSERTs at most: all but it, and it without the document.
    program.stop();
}

/// Goal: a row that is refused for what is computed from it is told from a table that takes none,
/// also where the made-up row is refused for the same, and under limits on what is read.
#[test]
fn a_row_is_told_from_its_table_where_the_made_up_one_is_refused_too() {
    for (check, profile) in [
        ("throwIf(queue != 'good') = 0", ""),
        ("queue = 'good'", "max_rows_to_read=200&max_bytes_to_read=1000000&force_primary_key=1"),
    ] {
        let stage = Stage::own();
        let mut program = start(&stage);
        insert_runs(&stage, "before", 300, |_| json!({"queue": "good"}));
        stage.settle(&mut program, &["runs"]);
        add_constraint(&stage, check);
        stage.clickhouse.set_profile(profile);
        insert_runs(&stage, "r", 1, |_| json!({"queue": "bad"}));
        stage.settle(&mut program, &["runs"]);
        stage.clickhouse.set_profile("");
        let report = compare(&stage.postgres, &stage.clickhouse, Scope::RUNS);
        assert_eq!(report.names(), ["task_runs_v2 r00 lost"], "{report}");
        assert_eq!(kept(&stage).len(), 1, "{check}");
        program.stop();
    }
}

/// Goal: a table without versions that refuses everything is held at a small cost, and takes every
/// row when it is mended; one row that it refuses does not hold it for ever.
#[test]
fn a_table_without_versions_is_held_and_is_not_held_for_ever() {
    const TABLE: &str = "raw_task_runs_payload_v1";
    let stage = Stage::own();
    stage.clickhouse.execute(&format!("CREATE DATABASE {DATABASE}"));
    stage.clickhouse.execute(&format!(
        "CREATE TABLE {DATABASE}.{TABLE} (run_id String, created_at DateTime64(3), payload JSON) \
         ENGINE = MergeTree ORDER BY run_id"
    ));
    let mut program = start(&stage);
    insert_runs(&stage, "before", 1, |_| json!({}));
    stage.settle(&mut program, &["runs"]);
    let alter = |what: &str| {
        stage.clickhouse.execute(&format!("ALTER TABLE {DATABASE}.{TABLE} {what}"));
    };
    alter("ADD CONSTRAINT refuse CHECK 0");
    // Counts, and changes nothing.
    stage.clickhouse.add_fault(&format!("action=delay_before&ms=0&table={TABLE}"));
    insert_runs(&stage, "r", 40, |_| json!({}));
    program.wait_metric(OUTAGE, |outage| outage == 1.0);
    program.wait_for_log("refuses every row");
    let hits = stage.clickhouse.fault_hits();
    assert!(hits <= 60, "{hits}");
    alter("DROP CONSTRAINT refuse");
    stage.settle(&mut program, &["runs"]);
    let rows = |run: &str| {
        let sql = format!("SELECT count() FROM {DATABASE}.{TABLE} WHERE run_id LIKE '{run}%'");
        stage.clickhouse.value(&sql)
    };
    assert_eq!((rows("r").as_str(), kept(&stage).len()), ("40", 0));
    alter("ADD CONSTRAINT refuse CHECK run_id != 's00'");
    insert_runs(&stage, "s", 1, |_| json!({}));
    stage.settle(&mut program, &["runs"]);
    let kept = kept(&stage);
    assert_eq!((kept.len(), &kept[0][0], &kept[0][1]), (1, &json!("s00"), &json!("")));
    program.wait_for_log("accepts a copy of a row that it has");
    insert_runs(&stage, "t", 2, |_| json!({}));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(rows("t"), "2");
    program.stop();
}

/// Goal: a table in which a column has become one that takes nothing of what is sent is held, with
/// versions and without, be it that it takes a copy of a row that it has.
#[test]
fn a_table_that_reads_nothing_of_what_is_sent_is_held_whatever_it_copies() {
    for (table, column, was, is) in [
        ("raw_task_runs_payload_v1", "created_at", "DateTime64(3)", "UUID"),
        ("raw_task_runs_payload_v1", "payload", "JSON", "Enum8('a' = 1)"),
        ("task_runs_v2", "updated_at", "DateTime64(3)", "Enum8('a' = 1)"),
    ] {
        let stage = Stage::own();
        stage.clickhouse.execute(&format!("CREATE DATABASE {DATABASE}"));
        stage.clickhouse.execute(&format!(
            "CREATE TABLE {DATABASE}.raw_task_runs_payload_v1 \
             (run_id String, created_at DateTime64(3), payload JSON) \
             ENGINE = MergeTree ORDER BY run_id"
        ));
        let mut program = start(&stage);
        insert_runs(&stage, "before", 1, |_| json!({}));
        stage.settle(&mut program, &["runs"]);
        let make = |kind: &str| {
            for change in [format!("DROP COLUMN {column}"), format!("ADD COLUMN {column} {kind}")] {
                stage.clickhouse.execute(&format!("ALTER TABLE {DATABASE}.{table} {change}"));
            }
        };
        make(is);
        insert_runs(&stage, "r", 20, |_| json!({}));
        program.wait_for_log("attempt 8");
        // Longer than eight holds take.
        stays_true("nothing is dropped", Duration::from_secs(6), || kept(&stage).is_empty());
        assert_eq!(program.metric(OUTAGE), Some(1.0));
        make(was);
        stage.settle(&mut program, &["runs"]);
        assert_eq!(kept(&stage).len(), 0, "{table} {column}");
        let sql = format!("SELECT count() FROM {DATABASE}.{table} WHERE run_id LIKE 'r%'");
        assert_eq!(stage.clickhouse.value(&sql), "20");
        program.stop();
    }
}
