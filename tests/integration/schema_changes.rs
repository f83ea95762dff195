//! The source table changes under the stream.
//!
//! What is not mapped may come and go. A mapped column that goes, or a table that is called
//! otherwise, ends the stream through the strategy, with an error that names it; nothing is
//! skipped, and what was written meanwhile arrives once the change is undone.

use serde_json::json;

use crate::support::oracle::{Scope, assert_same};
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, SERVICES, Stage};
use crate::support::wait::{PATIENCE, until_true};

fn insert(stage: &Stage, id: &str) {
    stage.postgres.insert("TaskRun", &sample::full_run(id));
}

#[test]
fn unmapped_columns_come_and_go() {
    let stage = Stage::take();
    let mut program = stage.start();
    let steps = [
        "ALTER TABLE \"TaskRun\" ADD COLUMN \"extra\" jsonb DEFAULT '{\"a\":1}'",
        "ALTER TABLE \"TaskRun\" ADD COLUMN \"of a type of its own\" point",
        "ALTER TABLE \"TaskRun\" DROP COLUMN \"extra\"",
        "ALTER TABLE \"TaskRun\" DROP COLUMN \"context\", DROP COLUMN \"lockedAt\"",
        "ALTER TABLE \"TaskRun\" RENAME COLUMN \"metadata\" TO \"metadata2\"",
        "ALTER TABLE \"TaskRun\" ALTER COLUMN \"number\" TYPE text",
        "ALTER TYPE \"TaskRunStatus\" ADD VALUE 'QUITE_NEW'",
        // Mapped, but still of a type that is read the same.
        "ALTER TABLE \"TaskRun\" ALTER COLUMN \"usageDurationMs\" TYPE bigint",
        "ALTER TABLE \"TaskRun\" ALTER COLUMN \"queue\" TYPE varchar(200)",
        "ALTER TABLE \"TaskRun\" ALTER COLUMN \"output\" SET STORAGE EXTERNAL",
        "ALTER TABLE \"TaskRun\" REPLICA IDENTITY FULL",
        "ALTER TABLE \"TaskRun\" REPLICA IDENTITY DEFAULT",
        "ALTER TABLE \"Session\" ADD COLUMN \"extra\" int",
        "VACUUM FULL \"TaskRun\"",
        // Mapped, and known to be missing in older databases.
        "ALTER TABLE \"TaskRun\" ADD COLUMN \"region2\" text",
    ];
    for (n, step) in steps.iter().enumerate() {
        stage.postgres.execute(step);
        insert(&stage, &format!("{n}"));
        stage.postgres.insert("Session", &sample::full_session(&format!("{n}")));
        if 0 < n {
            let values = json!({"status": "CRASHED", "usageDurationMs": n});
            stage.postgres.update("TaskRun", &format!("{}", n - 1), &values);
        }
        if 2 < n {
            stage.postgres.delete("TaskRun", &format!("{}", n - 3));
        }
    }
    stage.postgres.update("TaskRun", "12", &json!({"status": "QUITE_NEW"}));
    stage.settle(&mut program, &SERVICES);
    let rows = assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    assert_eq!(rows, 2 * 3 + steps.len());
    assert_eq!(program.log_lines("reconnecting"), 0, "{}", program.log());
    program.stop();
}

/// Changes the table, writes, expects an error that names these, undoes the change, and expects
/// all of it.
fn check(change: &str, undo: &str, write: impl Fn(&Stage), names: &[&str]) {
    for binary in [1, 0] {
        let stage = Stage::take();
        let settings = stage.settings_runs().with("REPLICATION_BINARY", binary);
        let mut program = Program::start(&settings);
        program.wait_streaming(&["runs"]);
        insert(&stage, "before");
        insert(&stage, "before-too");
        stage.settle(&mut program, &["runs"]);
        let durable = stage.postgres.flush_lsn();
        stage.postgres.execute(change);
        write(&stage);
        program.wait_for_log_lines("reconnecting in", 2);
        let error = program.wait_for_log("ERROR");
        for name in names {
            assert!(error.contains(name), "`{name}` in {error}");
        }
        program.wait_for_log("hint:");
        let behind = stage.postgres.flush_lsn();
        let confirmed = stage.postgres.confirmed_flush(RUNS_SLOT).unwrap();
        assert!(confirmed < behind, "{durable} {confirmed} {behind}: nothing is skipped");

        stage.postgres.execute(undo);
        program.wait_streaming(&["runs"]);
        stage.postgres.insert("TaskRun", &sample::full_run("after"));
        stage.settle(&mut program, &["runs"]);
        assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 4, "{change}");
        until_true("it is healthy again", PATIENCE, || program.health().0 == 200);
        program.stop();
    }
}

#[test]
fn a_mapped_column_that_is_dropped_is_named() {
    check(
        "ALTER TABLE \"TaskRun\" DROP COLUMN \"ttl\"",
        "ALTER TABLE \"TaskRun\" ADD COLUMN \"ttl\" text; UPDATE \"TaskRun\" SET \"ttl\" = '5m'",
        |stage| {
            let mut row = sample::full_run("during");
            row.as_object_mut().unwrap().remove("ttl");
            stage.postgres.insert("TaskRun", &row);
            stage.postgres.update("TaskRun", "before", &json!({"status": "CANCELED"}));
        },
        &["TaskRun", "ttl"],
    );
}

#[test]
fn a_mapped_column_that_is_renamed_is_named() {
    check(
        "ALTER TABLE \"TaskRun\" RENAME COLUMN \"ttl\" TO \"ttl2\"",
        "ALTER TABLE \"TaskRun\" RENAME COLUMN \"ttl2\" TO \"ttl\"",
        |stage| {
            let mut row = sample::full_run("during");
            row.as_object_mut().unwrap().remove("ttl");
            stage.postgres.insert("TaskRun", &sample::with(row, json!({"ttl2": "renamed"})));
            stage.postgres.update("TaskRun", "before", &json!({"ttl2": "renamed, too"}));
        },
        &["TaskRun", "ttl"],
    );
}

#[test]
fn a_mapped_column_of_another_type_is_named() {
    check(
        "ALTER TABLE \"TaskRun\" ALTER COLUMN \"isTest\" DROP DEFAULT, \
         ALTER COLUMN \"isTest\" TYPE integer USING \"isTest\"::int",
        "ALTER TABLE \"TaskRun\" ALTER COLUMN \"isTest\" TYPE boolean USING \"isTest\" = 1, \
         ALTER COLUMN \"isTest\" SET DEFAULT false",
        |stage| {
            let row = sample::with(sample::full_run("during"), json!({"isTest": 1}));
            stage.postgres.insert("TaskRun", &row);
            stage.postgres.update("TaskRun", "before", &json!({"isTest": 0}));
        },
        &["TaskRun", "isTest"],
    );
}

#[test]
fn a_table_that_is_renamed_is_named() {
    check(
        "ALTER TABLE \"TaskRun\" RENAME TO \"TaskRun2\"",
        "ALTER TABLE \"TaskRun2\" RENAME TO \"TaskRun\"",
        |stage| {
            stage.postgres.insert("TaskRun2", &sample::full_run("during"));
            stage.postgres.update("TaskRun2", "before", &json!({"status": "CANCELED"}));
        },
        &["TaskRun", "TaskRun2"],
    );
}
