//! A first start copies the table block range by block range and compares nothing. What happens to
//! rows meanwhile, and to those who copy, is in the end as it would be without. Each test ends with
//! a comparison of both sides.

use std::time::Duration;

use serde_json::json;

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::postgres::Stop;
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::Stage;
use crate::support::wait::until_true;
use crate::support::workload::Workload;

const PATIENCE: Duration = Duration::from_secs(120);
const DONE: &str = "sessions: initial backfill: done";
const WRITTEN: &str = "walhouse_repair_rows_total{service=\"sessions\",action=\"written\"}";
const MARKED: &str = "walhouse_repair_rows_total{service=\"sessions\",action=\"deleted\"}";

fn settings(stage: &Stage) -> Settings {
    let settings = stage.settings().with("RUN_REPLICATION_ENABLED", 0);
    settings.with("SESSION_REPLICATION_INITIAL_BACKFILL", 1)
}

/// A range and a block are as large as the buffer, at most.
fn in_many_ranges(settings: Settings) -> Settings {
    settings
        .with("SESSION_REPLICATION_MAX_BUFFER_BYTES", 65_536)
        .with("REPLICATION_REPAIR_CONCURRENCY", 2)
}

fn insert_sessions(stage: &Stage, rows: u32) {
    stage.postgres.execute(&format!(
        r#"INSERT INTO "Session" ("id", "friendlyId", "type", "projectId", "runtimeEnvironmentId",
               "environmentType", "organizationId", "taskIdentifier", "tags", "metadata",
               "updatedAt", "triggerConfig")
           SELECT 'old-' || n, 'old-' || n, 'chat', 'p', 'e', 'PRODUCTION', 'o', 't',
                  ARRAY['x', n::text], jsonb_build_object('n', n), now(), '{{}}'
           FROM generate_series(1, {rows}) n"#
    ));
}

fn position(stage: &Stage) -> String {
    stage.clickhouse.value(&format!(
        "SELECT position FROM {DATABASE}.walhouse_repairs WHERE service = 'sessions' \
         ORDER BY revision DESC LIMIT 1"
    ))
}

#[track_caller]
fn wait_recorded(stage: &Stage) {
    until_true("some ranges are recorded", PATIENCE, || position(stage).starts_with("copy begun "));
}

/// Rows that are there are changed, deleted, and moved to another place of the sorting key.
fn change(stage: &Stage) {
    let some = "IN (SELECT id FROM \"Session\" WHERE id LIKE 'old-%' ORDER BY random() LIMIT 50)";
    stage.postgres.execute(&format!("DELETE FROM \"Session\" WHERE id {some}"));
    stage
        .postgres
        .execute(&format!("UPDATE \"Session\" SET \"closedReason\" = 'changed' WHERE id {some}"));
    stage.postgres.execute(&format!(
        "UPDATE \"Session\" SET \"createdAt\" = \"createdAt\" - interval '40 days',
             \"projectId\" = 'moved' WHERE id {some}"
    ));
}

#[track_caller]
fn assert_copied(stage: &Stage, mut program: Program, rows_min: usize) -> Program {
    program.wait_for_log(DONE);
    stage.settle(&mut program, &["sessions"]);
    assert!(rows_min <= assert_same(&stage.postgres, &stage.clickhouse, Scope::SESSIONS));
    program
}

/// Goal: a copy that is killed goes on behind the ranges that are recorded, compares nothing, and
/// rows that were changed, deleted and moved all the while are what they are.
#[test]
fn a_copy_that_is_killed_goes_on_where_it_was() {
    let stage = Stage::own();
    // So that an update shows where its row was.
    stage.postgres.execute("ALTER TABLE \"Session\" REPLICA IDENTITY FULL");
    insert_sessions(&stage, 60_000);
    let settings = in_many_ranges(settings(&stage));
    stage.clickhouse.add_fault("action=delay_before&ms=30&table=sessions_v1&on=insert");
    let mut program = Program::start(&settings);
    program.wait_for_log("sessions: initial backfill: copying the table");
    wait_recorded(&stage);
    program.kill();
    change(&stage);
    let mut program = Program::start(&settings);
    program.wait_for_log("sessions: initial backfill: going on (copy)");
    for _ in 0..5 {
        change(&stage);
    }
    stage.clickhouse.clear_faults();
    let mut program = assert_copied(&stage, program, 59_000);
    let written = program.metric(WRITTEN).expect("it is served");
    assert!(0.0 < written && written < 59_000.0, "{written}");
    program.stop();
}

/// The same where a DELETE carries its id alone, and others are killed.
#[test]
fn a_copy_goes_on_after_a_kill_of_either_server() {
    let mut stage = Stage::own();
    insert_sessions(&stage, 60_000);
    let settings = in_many_ranges(settings(&stage));
    let slow = "action=delay_before&ms=30&table=sessions_v1&on=insert";
    stage.clickhouse.add_fault(slow);
    let mut program = Program::start(&settings);
    program.wait_for_log("sessions: initial backfill: copying the table");
    wait_recorded(&stage);
    stage.clickhouse.kill();
    stage.clickhouse.start_again();
    stage.clickhouse.add_fault(slow);
    stage.postgres.execute("DELETE FROM \"Session\" WHERE id LIKE 'old-1%'");
    let before = position(&stage);
    until_true("it goes on", PATIENCE, || position(&stage) != before);
    stage.postgres.stop(Stop::Kill);
    stage.postgres.start_again();
    stage.clickhouse.clear_faults();
    stage.postgres.execute("DELETE FROM \"Session\" WHERE id LIKE 'old-2%'");
    assert_copied(&stage, program, 30_000).stop();
}

/// Goal: a row that was read before its DELETE and lands after it does not come back, although the
/// DELETE carries the id alone and found no row whose sorting key a tombstone could have.
/// Method: the one block of the copy is held up until the deletes have been streamed.
#[test]
fn rows_deleted_while_their_block_is_under_way_stay_deleted() {
    let stage = Stage::own();
    insert_sessions(&stage, 5_000);
    stage.clickhouse.add_fault("action=delay_before&ms=60000&over=60000&table=sessions_v1");
    let mut program = Program::start(&settings(&stage));
    until_true("the block is under way", PATIENCE, || 0 < stage.clickhouse.fault_hits());
    stage.postgres.execute("DELETE FROM \"Session\" WHERE id LIKE 'old-1%'");
    stage.postgres.execute("UPDATE \"Session\" SET \"closedReason\" = 'x' WHERE id LIKE 'old-20%'");
    // One that comes back, as another row.
    stage.postgres.insert("Session", &sample::full_session("old-1"));
    stage.settle(&mut program, &["sessions"]);
    assert_eq!(stage.clickhouse.count("sessions_v1", "session_id LIKE 'old-3%'"), 0, "not yet");
    stage.clickhouse.clear_faults();
    let mut program = assert_copied(&stage, program, 3_889);
    assert_eq!(program.metric(MARKED), Some(1111.0));
    program.stop();
}

/// Goal: rows that go without anything in the stream to show it are not there in the end.
#[test]
fn a_table_whose_file_is_replaced_under_the_copy_is_compared() {
    for statement in ["VACUUM FULL \"Session\"", "TRUNCATE \"Session\""] {
        let stage = Stage::own();
        insert_sessions(&stage, 30_000);
        stage.postgres.execute("DELETE FROM \"Session\" WHERE random() < 0.3");
        stage.clickhouse.add_fault("action=delay_before&ms=30&table=sessions_v1&on=insert");
        let mut program = Program::start(&in_many_ranges(settings(&stage)));
        program.wait_metric(WRITTEN, |rows| 0.0 < rows);
        stage.postgres.execute(statement);
        insert_sessions(&stage, if statement.starts_with("TRUNCATE") { 10 } else { 0 });
        stage.clickhouse.clear_faults();
        assert_copied(&stage, program, 10).stop();
    }
}

/// Goal: a range that was refused counts as one that was not read, although its file is the same.
#[test]
fn a_column_that_is_added_under_the_copy_leaves_no_row_out() {
    let stage = Stage::own();
    insert_sessions(&stage, 30_000);
    stage.clickhouse.add_fault("action=delay_before&ms=30&table=sessions_v1&on=insert");
    let mut program = Program::start(&in_many_ranges(settings(&stage)));
    program.wait_metric(WRITTEN, |rows| 0.0 < rows);
    stage.postgres.execute("ALTER TABLE \"Session\" ADD COLUMN \"of nobody\" int");
    stage.clickhouse.clear_faults();
    assert_copied(&stage, program, 30_000).stop();
}

/// Goal: what was copied before an error is not forgotten when the table has another file after it.
#[test]
fn a_table_that_is_truncated_while_the_copy_waits_to_go_on_is_compared() {
    let stage = Stage::own();
    insert_sessions(&stage, 30_000);
    stage.clickhouse.add_fault("action=delay_before&ms=30&table=sessions_v1&on=insert");
    let mut program = Program::start(&in_many_ranges(settings(&stage)));
    program.wait_metric(WRITTEN, |rows| 0.0 < rows);
    // Before its next attempt, a second later.
    stage.postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid();
         TRUNCATE \"Session\"",
    );
    insert_sessions(&stage, 10);
    stage.clickhouse.clear_faults();
    assert_copied(&stage, program, 10).stop();
}

/// Goal: a DELETE that finds its row at one place does not leave it at another, to which the copy
/// brings it later.
#[test]
fn rows_moved_and_deleted_while_their_block_is_under_way_stay_deleted() {
    let stage = Stage::own();
    insert_sessions(&stage, 5_000);
    stage.clickhouse.add_fault("action=delay_before&ms=60000&over=60000&table=sessions_v1");
    let mut program = Program::start(&settings(&stage));
    until_true("the block is under way", PATIENCE, || 0 < stage.clickhouse.fault_hits());
    let moved = "WHERE id LIKE 'old-77%'";
    stage.postgres.execute(&format!("UPDATE \"Session\" SET \"projectId\" = 'moved' {moved}"));
    stage.settle(&mut program, &["sessions"]);
    stage.postgres.execute(&format!("DELETE FROM \"Session\" {moved}"));
    stage.settle(&mut program, &["sessions"]);
    stage.clickhouse.clear_faults();
    assert_copied(&stage, program, 4_800).stop();
}

/// Goal: rows of any size are copied, those of every partition, and also where a partition has its
/// columns in another order.
#[test]
fn large_rows_and_those_of_partitions_are_copied() {
    const MEGABYTES: usize = 64;
    let stage = Stage::own();
    stage.postgres.execute(
        "ALTER TABLE \"TaskRun\" RENAME TO \"Plain\";
         CREATE TABLE \"TaskRun\" (LIKE \"Plain\" INCLUDING DEFAULTS, PRIMARY KEY (id))
             PARTITION BY RANGE (id);
         CREATE TABLE runs_a PARTITION OF \"TaskRun\" FOR VALUES FROM (MINVALUE) TO ('b');
         CREATE TABLE runs_m (LIKE \"TaskRun\" INCLUDING ALL);
         ALTER TABLE runs_m DROP COLUMN \"output\";
         ALTER TABLE runs_m ADD COLUMN \"output\" text;
         ALTER TABLE \"TaskRun\" ATTACH PARTITION runs_m FOR VALUES FROM ('b') TO (MAXVALUE)",
    );
    let mut rng = fastrand::Rng::with_seed(6);
    for length in [0, 1, 900, 2_000, 8_100, 65_536, 300_000, 3_000_000] {
        for half in ["a", "m"] {
            let noise: String = (0..length).map(|_| rng.alphanumeric()).collect();
            let row = json!({"payload": json!({"noise": noise}).to_string()});
            let run = sample::full_run(&format!("{half}-{length}"));
            stage.postgres.insert("TaskRun", &sample::with(run, row));
        }
    }
    for id in ["a-huge", "m-huge"] {
        stage.postgres.insert("TaskRun", &sample::run(id));
        stage.postgres.execute(&format!(
            "UPDATE \"TaskRun\" SET output = '{{\"long\":\"' || repeat('0123456789abcdef', \
             {MEGABYTES} * 65536) || '\"}}' WHERE id = '{id}'"
        ));
    }
    let settings = stage.settings_runs().with("RUN_REPLICATION_INITIAL_BACKFILL", 1);
    let mut program = Program::start(&settings);
    program.wait_for_log("runs: initial backfill: done");
    stage.settle(&mut program, &["runs"]);
    let huge = format!(
        "SELECT sum(length(output.data.long::String)) FROM {DATABASE}.task_runs_v2 FINAL \
         WHERE run_id LIKE '%-huge'"
    );
    assert_eq!(stage.clickhouse.value(&huge), (2 * MEGABYTES * 1024 * 1024).to_string());
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 18);
    program.stop();
}

/// Goal: a copied row is what a streamed one is, whatever is in it.
#[test]
fn copied_rows_are_what_streamed_ones_are() {
    let stage = Stage::own();
    Workload { rate: None, ..Workload::new(750) }.run(&stage.postgres, 300);
    stage.postgres.insert("TaskRun", &sample::full_run("full"));
    stage.postgres.insert("Session", &sample::full_session("full"));
    let settings = stage.settings().with_both("*_REPLICATION_INITIAL_BACKFILL", 1);
    let mut program = Program::start(&settings);
    program.wait_for_log("runs: initial backfill: done");
    program.wait_for_log("sessions: initial backfill: done");
    assert!(300 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
    program.stop();
}
