//! Payloads of runs that are not there: nothing may be left of a run that Postgres does not have, or
//! that has no owner, in any of its tables.

use std::time::Duration;

use serde_json::json;

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, Stage};
use crate::support::wait::until_true;

const RECOVERY: Duration = Duration::from_secs(120);

fn wait_confirmed(stage: &Stage) {
    let target = stage.postgres.flush_lsn();
    until_true("what was committed is confirmed", RECOVERY, || {
        stage.postgres.confirmed_flush(RUNS_SLOT).is_some_and(|lsn| target <= lsn)
    });
}

/// Goal: a run is deleted whose row ClickHouse does not have, though it has the payload (the row was
/// refused, say). The payload goes nevertheless.
#[test]
fn a_payload_without_its_run_goes_when_the_run_is_deleted() {
    let stage = Stage::own();
    let program = stage.start();
    stage.postgres.insert("TaskRun", &sample::run("alone"));
    wait_confirmed(&stage);
    stage
        .clickhouse
        .execute(&format!("DELETE FROM {DATABASE}.task_runs_v2 WHERE run_id = 'alone'"));
    stage.postgres.execute("DELETE FROM \"TaskRun\" WHERE id = 'alone'");
    wait_confirmed(&stage);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    program.stop();
}

/// Goal: ClickHouse has a payload under an id that no Postgres can have. The repair ends, and buries
/// it.
#[test]
fn an_id_that_is_no_text_does_not_stop_a_repair() {
    let stage = Stage::own();
    let program = stage.start();
    stage.postgres.insert("TaskRun", &sample::run("good"));
    wait_confirmed(&stage);
    program.stop();
    stage.clickhouse.execute(&format!(
        "INSERT INTO {DATABASE}.raw_task_runs_payload_v1 (run_id, created_at, payload, _version) \
         SELECT arrayJoin(['a\\0b', unhex('ff')]), '2026-01-01', '{{}}', 1"
    ));
    stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{RUNS_SLOT}')"));
    let program = stage.start();
    until_true("`runs` has been repaired", RECOVERY, || {
        program.log_lines("runs: repair: done") >= 1
    });
    assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    program.stop();
}

/// Goal: in a gap a run is deleted and comes back without an owner. Neither its row nor its payload
/// are left after the repair.
#[test]
fn a_run_that_comes_back_without_an_owner_leaves_nothing() {
    let stage = Stage::own();
    let program = stage.start();
    stage.postgres.insert("TaskRun", &sample::run("typeless"));
    wait_confirmed(&stage);
    program.stop();
    stage.postgres.execute("DELETE FROM \"TaskRun\" WHERE id = 'typeless'");
    let without = sample::with(sample::run("typeless"), json!({"environmentType": null}));
    stage.postgres.insert("TaskRun", &without);
    stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{RUNS_SLOT}')"));
    let program = stage.start();
    until_true("`runs` has been repaired", RECOVERY, || {
        program.log_lines("runs: repair: done") >= 1
    });
    wait_confirmed(&stage);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    program.stop();
}
