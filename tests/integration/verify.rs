//! `walhouse verify` finds what is planted, names it, mends it, and finds nothing else.

use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::{SERVICES, Stage};
use crate::support::wait::until_true;
use crate::support::workload::Workload;

/// A row that was just streamed waits for the slot, and each look for a confirmation.
const MENDED_WITHIN: Duration = Duration::from_secs(180);

fn load(seed: u64) -> Workload {
    Workload { rate: Some(40.0), ..Workload::new(seed) }
}

fn verify(settings: &Settings, service: &str, options: &[&str]) -> Output {
    Program::command(settings, &[&["verify", service][..], options].concat())
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn assert_equal(settings: &Settings, service: &str, options: &[&str]) {
    let output = verify(settings, service, options);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{}{errors}", stdout(&output));
    assert!(stdout(&output).contains("both sides are equal"), "{}", stdout(&output));
}

/// As `assert_equal`, of rows that change all the while: some may change too fast to be compared,
/// which is no success, and no difference either.
#[track_caller]
fn assert_no_difference(settings: &Settings, service: &str, options: &[&str]) {
    let output = verify(settings, service, options);
    let errors = String::from_utf8_lossy(&output.stderr);
    let is_told = match output.status.code() {
        Some(0) => stdout(&output).contains("both sides are equal"),
        Some(2) => stdout(&output).contains("all else is equal"),
        _ => false,
    };
    assert!(is_told, "{}{errors}", stdout(&output));
}

#[track_caller]
fn report(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|cause| panic!("{cause}: {errors}"))
}

/// Writes the latest row of a session again, with a higher version and these changes.
fn plant(stage: &Stage, id: &str, changes: &str) {
    stage.clickhouse.execute(&format!(
        "INSERT INTO {DATABASE}.sessions_v1 SELECT * REPLACE (_version + 1 AS _version, {changes}) \
         FROM {DATABASE}.sessions_v1 WHERE session_id = '{id}' ORDER BY _version DESC LIMIT 1"
    ));
}

/// Sessions that neither the load nor anybody else touches.
fn insert_sessions(stage: &Stage) {
    for n in 1..=9 {
        stage.postgres.execute(&format!(
            r#"INSERT INTO "Session" ("id", "friendlyId", "type", "projectId",
                   "runtimeEnvironmentId", "environmentType", "organizationId", "taskIdentifier",
                   "tags", "metadata", "updatedAt", "triggerConfig")
               VALUES ('kept-{n}', 'kept-{n}', 'chat', 'p', 'e', 'PRODUCTION', 'o', 't',
                       ARRAY['x'], '{{"n": {n}}}', now(), '{{}}')"#
        ));
    }
}

/// Goal: a table that inherits from the source's is another one, to the stream and to all that reads
/// beside it.
#[test]
fn rows_of_a_table_that_inherits_are_read_by_nobody() {
    let stage = Stage::take();
    stage.postgres.execute("CREATE TABLE heir () INHERITS (\"Session\")");
    stage.postgres.execute("ALTER TABLE heir REPLICA IDENTITY FULL");
    let settings = stage.settings().with("RUN_REPLICATION_ENABLED", 0);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["sessions"]);
    insert_sessions(&stage);
    // One of a key of its own, and one with a key that a row of the table has, too.
    stage.postgres.execute(
        "INSERT INTO heir SELECT * FROM ONLY \"Session\" WHERE id IN ('kept-1', 'kept-2');
         UPDATE heir SET \"taskIdentifier\" = 'of the heir';
         UPDATE heir SET id = 'heir' WHERE id = 'kept-1'",
    );
    stage.settle(&mut program, &["sessions"]);
    assert_equal(&settings, "sessions", &[]);
    let copied = Program::command(&settings, &["backfill", "sessions"]);
    assert_eq!(copied.status.code(), Some(0), "{}", stdout(&copied));
    stage.postgres.execute("DELETE FROM ONLY \"Session\" WHERE id = 'kept-2'");
    stage.settle(&mut program, &["sessions"]);
    assert_equal(&settings, "sessions", &["--repair"]);
    assert_eq!(stage.clickhouse.count("sessions_v1", "1"), 8);
    let of_heir = "session_id = 'heir' OR task_identifier = 'of the heir'";
    assert_eq!(stage.clickhouse.count("sessions_v1", of_heir), 0);
    program.stop();
}

/// Every kind of difference, each in a session of its own.
fn plant_all(stage: &Stage) {
    plant(stage, "kept-1", "'wrong' AS type");
    plant(stage, "kept-2", "['x', 'y'] AS tags, 'wrong' AS task_identifier");
    plant(stage, "kept-3", "1 AS _is_deleted");
    stage.clickhouse.execute(&format!(
        "INSERT INTO {DATABASE}.sessions_v1 (organization_id, project_id, environment_id,
             session_id, created_at, _version)
         VALUES ('o', 'p', 'e', 'never-was', '2026-01-01 00:00:00', 7)"
    ));
    // Deleted in Postgres, and the tombstone is gone.
    plant(stage, "kept-4", "0 AS _is_deleted");
}

const PLANTED: [(&str, &str, &[&str]); 5] = [
    ("kept-1", "different", &["type"]),
    ("kept-2", "different", &["task_identifier", "tags"]),
    ("kept-3", "missing", &[]),
    ("kept-4", "extra", &[]),
    ("never-was", "extra", &[]),
];

#[track_caller]
fn assert_planted(report: &Value, is_mended: bool) {
    let mut found: Vec<(String, String, Vec<String>, bool)> = report["differences"]
        .as_array()
        .expect("it is a list")
        .iter()
        .map(|one| {
            let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
            let columns = one["columns"].as_array().into_iter().flatten();
            let columns = columns.map(|name| name.as_str().unwrap_or_default().to_owned());
            let is_mended = one["mended"] == json!(true);
            (text("id"), text("difference"), columns.collect(), is_mended)
        })
        .collect();
    found.sort();
    let expected: Vec<_> = PLANTED
        .iter()
        .map(|(id, difference, columns)| {
            let mut columns: Vec<String> = columns.iter().map(|&name| name.to_owned()).collect();
            columns.sort();
            ((*id).to_owned(), (*difference).to_owned(), columns, is_mended)
        })
        .collect();
    for one in &mut found {
        one.2.sort();
    }
    assert_eq!(found, expected, "{report:#}");
}

/// Goal: each kind of difference is named with its key and columns, mended, and then gone, all of it
/// under a load.
#[test]
fn every_kind_of_difference_is_found_and_mended() {
    let stage = Stage::own();
    let settings = stage.settings();
    let mut program = stage.start();
    insert_sessions(&stage);
    load(800).run(&stage.postgres, 30);
    stage.postgres.execute("DELETE FROM \"Session\" WHERE id = 'kept-4'");
    stage.settle(&mut program, &SERVICES);
    for service in SERVICES {
        assert_equal(&settings, service, &["--full"]);
    }
    let writing = load(801).start(&stage.postgres);
    plant_all(&stage);
    let output = verify(&settings, "sessions", &["--full", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert_planted(&report(&output), false);
    let output = verify(&settings, "sessions", &["--full", "--json", "--repair"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert_planted(&report(&output), true);
    assert_equal(&settings, "sessions", &["--full"]);
    writing.stop();
    stage.settle(&mut program, &SERVICES);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
    program.stop();
}

/// Repairs a run that is missing, though its payload is there. While it is written the payload is
/// lost too, and the run is deleted; so the delete finds neither, and then `verify` writes both.
fn repair_while_the_run_goes(stage: &Stage) {
    let settings = stage.settings().with("SESSION_REPLICATION_ENABLED", 0);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::run("between"));
    stage.postgres.insert("TaskRun", &sample::run("other"));
    stage.settle(&mut program, &["runs"]);
    let lose = |table: &str| {
        let sql = format!("DELETE FROM {DATABASE}.{table} WHERE run_id = 'between'");
        stage.clickhouse.execute(&sql);
    };
    lose("task_runs_v2");
    let fault = "action=delay_before&ms=600000&on=insert&table=task_runs_v2&count=1";
    stage.clickhouse.add_fault(fault);
    let output = std::thread::scope(|scope| {
        let repair = scope.spawn(|| verify(&settings, "runs", &["--full", "--repair", "--json"]));
        until_true("`verify` writes the run", MENDED_WITHIN, || 0 < stage.clickhouse.fault_hits());
        lose("raw_task_runs_payload_v1");
        stage.postgres.execute("DELETE FROM \"TaskRun\" WHERE id = 'between'");
        stage.settle(&mut program, &["runs"]);
        stage.clickhouse.clear_faults();
        repair.join().expect("`verify` ends")
    });
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert_eq!(stage.clickhouse.count("task_runs_v2", "run_id = 'between'"), 0);
    program.stop();
}

/// Goal: a row that a suspect brought along, though it was none itself, and that was deleted between
/// the reading and the writing, does not stay.
#[test]
fn a_payload_that_was_written_beside_its_run_goes_with_it() {
    let stage = Stage::own();
    repair_while_the_run_goes(&stage);
    assert_eq!(stage.clickhouse.count("raw_task_runs_payload_v1", "run_id = 'between'"), 0);
}

/// Goal: a payload whose run is in neither table gets a tombstone in its own partition, which its key
/// does not tell.
#[test]
fn a_payload_of_no_run_is_marked_as_deleted() {
    let stage = Stage::take();
    let settings = stage.settings_runs();
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::full_run("kept"));
    stage.settle(&mut program, &["runs"]);
    stage.clickhouse.execute(&format!(
        "INSERT INTO {DATABASE}.raw_task_runs_payload_v1 (run_id, created_at, payload, _version) \
         VALUES ('alone', '2025-03-04 05:06:07.008', '{{}}', 1)"
    ));
    let found = report(&verify(&settings, "runs", &["--full", "--json"]));
    assert_eq!(found["extra"], 1, "{found}");
    let mended = report(&verify(&settings, "runs", &["--full", "--repair", "--json"]));
    assert_eq!((&mended["mended"], &mended["equal"]), (&json!(1), &json!(true)), "{mended}");
    let tombstone = stage.clickhouse.value(&format!(
        "SELECT toString(created_at) FROM {DATABASE}.raw_task_runs_payload_v1 \
         WHERE run_id = 'alone' AND _is_deleted = 1"
    ));
    assert_eq!(tombstone, "2025-03-04 05:06:07.008");
    program.stop();
}

/// Goal: the same where payloads cannot be deleted: nothing is appended to take for a tombstone.
#[test]
fn a_payload_in_a_table_without_versions_is_left_as_it_is() {
    let stage = Stage::own();
    stage.clickhouse.execute(&format!("CREATE DATABASE {DATABASE}"));
    stage.clickhouse.execute(&format!(
        "CREATE TABLE {DATABASE}.raw_task_runs_payload_v1 (run_id String, \
         created_at DateTime64(3), payload JSON) ENGINE = MergeTree ORDER BY run_id"
    ));
    repair_while_the_run_goes(&stage);
    let rows = format!(
        "SELECT arrayStringConcat(groupArray(toJSONString(payload))) FROM {DATABASE}.raw_task_runs_payload_v1 \
         WHERE run_id = 'between'"
    );
    assert_eq!(stage.clickhouse.value(&rows), r#"{"data":{"hello":"world"}}"#);
}

/// Goal: what is only on its way does not count.
/// Method: both services are compared again and again while rows are written as fast as it goes,
/// and batches linger.
#[test]
fn rows_in_flight_are_no_differences() {
    let stage = Stage::own();
    let settings = stage.settings();
    let mut program = stage.start();
    let writing = Workload::new(810).start(&stage.postgres);
    writing.wait_for(100);
    stage.clickhouse.add_fault("action=delay_before&ms=200&on=insert");
    let begun_at = std::time::Instant::now();
    while begun_at.elapsed().as_secs() < 20 {
        for service in SERVICES {
            assert_no_difference(&settings, service, &["--full"]);
            assert_no_difference(&settings, service, &[]);
        }
    }
    stage.clickhouse.clear_faults();
    writing.stop();
    stage.settle(&mut program, &SERVICES);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
    program.stop();
}

/// Goal: a sample says what it says, and a service that never streamed is explained.
#[test]
fn a_sample_is_counted_and_a_service_without_a_state_explained() {
    let stage = Stage::own();
    let settings = stage.settings();
    let output = verify(&settings, "runs", &[]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("was never streamed") && errors.contains("hint: "), "{errors}");
    let mut program = stage.start();
    load(820).run(&stage.postgres, 60);
    stage.settle(&mut program, &SERVICES);
    let output = verify(&settings, "sessions", &["--sample", "5", "--json"]);
    let sampled = report(&output);
    assert_eq!(output.status.code(), Some(0), "{sampled:#}");
    assert!((1..=60).contains(&sampled["rows_compared"].as_u64().unwrap()), "{sampled:#}");
    let output = verify(&settings, "sessions", &["--sample", "5", "--full"]);
    assert_eq!(output.status.code(), Some(64));
    program.stop();
}
