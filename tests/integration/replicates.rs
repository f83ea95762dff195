//! What a working day brings: inserts, updates, deletes, batches, metrics.

use serde_json::json;

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, SERVICES, SESSIONS_SLOT, Stage};
use crate::support::wait::{PATIENCE, until_true};

/// Runs with ids `PREFIX1` to `PREFIXcount`, in one statement.
fn insert_runs(stage: &Stage, prefix: &str, count: u32) {
    stage.postgres.execute(&format!(
        "INSERT INTO \"TaskRun\" (\"id\", \"friendlyId\", \"payload\", \"runtimeEnvironmentId\", \
         \"environmentType\", \"projectId\", \"organizationId\", \"updatedAt\", \"taskIdentifier\", \
         \"spanId\", \"traceId\", \"queue\") \
         SELECT '{prefix}' || n, 'run_{prefix}' || n, '{{\"n\":' || n || '}}', 'env', 'PRODUCTION', \
         'proj', 'org', now(), 'task', 'span', 'trace', 'queue' FROM generate_series(1, {count}) n"
    ));
}

#[test]
fn a_run_arrives_with_all_it_has() {
    let stage = Stage::take();
    let mut program = stage.start();
    stage.postgres.insert("TaskRun", &sample::full_run("one"));
    stage.settle(&mut program, &["runs"]);
    let row = stage.clickhouse.rows(&format!(
        "SELECT run_id, environment_id, environment_type, engine, friendly_id, status, \
         trigger_source, root_trigger_source, task_kind, is_warm_start, worker_queue, \
         external_deployment_id, _is_deleted FROM {DATABASE}.task_runs_v2 FINAL"
    ));
    assert_eq!(
        json!(row),
        json!([[
            "one",
            "env_1",
            "DEVELOPMENT",
            "V2",
            "run_one",
            "COMPLETED_WITH_ERRORS",
            "api",
            "dashboard",
            "AGENT",
            1,
            "eu-central-1",
            "dep_1",
            0
        ]])
    );
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2);
    program.stop();
}

#[test]
fn updates_and_deletes_arrive() {
    let stage = Stage::take();
    let mut program = stage.start();
    stage.postgres.insert("TaskRun", &sample::run("stays"));
    stage.postgres.insert("TaskRun", &sample::run("goes"));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "status = 'PENDING'"), 2);

    let done = json!({"status": "COMPLETED_SUCCESSFULLY", "output": "{\"ok\":true}"});
    stage.postgres.update("TaskRun", "stays", &done);
    stage.postgres.delete("TaskRun", "goes");
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "status = 'COMPLETED_SUCCESSFULLY'"), 1);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "1"), 1);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2);
    program.stop();
}

#[test]
fn sessions_are_opened_closed_and_deleted() {
    let stage = Stage::take();
    let mut program = stage.start();
    let open = sample::with(
        sample::session("s"),
        json!({"externalId": "my-session", "tags": ["user:42", "plan:pro"]}),
    );
    stage.postgres.insert("Session", &open);
    stage.postgres.insert("Session", &sample::full_session("gone"));
    stage.settle(&mut program, &["sessions"]);
    let shown = || {
        json!(stage.clickhouse.rows(&format!(
            "SELECT external_id, type, tags, closed_reason, isNull(closed_at), _is_deleted \
             FROM {DATABASE}.sessions_v1 FINAL WHERE session_id = 's'"
        )))
    };
    let tags = ["user:42", "plan:pro"];
    assert_eq!(shown(), json!([["my-session", "chat.agent", tags, "", 1, 0]]));

    let closed = json!({"closedAt": "2026-05-21 00:00:00.001", "closedReason": "user-requested"});
    stage.postgres.update("Session", "s", &closed);
    stage.postgres.delete("Session", "gone");
    stage.settle(&mut program, &["sessions"]);
    assert_eq!(shown(), json!([["my-session", "chat.agent", tags, "user-requested", 0, 0]]));
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::SESSIONS), 1);
    program.stop();
}

#[test]
fn every_insert_strategy_and_batch_size_delivers() {
    let stage = Stage::take();
    let batches = |program: &mut Program| {
        program
            .metric(r#"walhouse_batches_flushed_total{service="runs",success="true"}"#)
            .expect("it is always there")
    };
    for (name, strategy, size, interval_ms, batches_at_least) in [
        ("each", "insert", 1, 10, 3.0),
        ("ten", "insert", 10, 200, 2.0),
        ("age", "insert", 100_000, 500, 1.0),
        ("async", "insert_async", 10, 50, 1.0),
    ] {
        let settings = stage
            .settings_runs()
            .with("RUN_REPLICATION_INSERT_STRATEGY", strategy)
            .with("RUN_REPLICATION_FLUSH_BATCH_SIZE", size)
            .with("RUN_REPLICATION_FLUSH_INTERVAL_MS", interval_ms);
        let mut program = Program::start(&settings);
        program.wait_streaming(&["runs"]);
        (0..30).for_each(|n| {
            stage.postgres.insert("TaskRun", &sample::run(&format!("{name}-{n}")));
        });
        stage.settle(&mut program, &["runs"]);
        let found = batches(&mut program);
        assert!(batches_at_least <= found, "{name}: {found} batches");
        program.stop();
    }
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 4 * 30);
}

#[test]
fn a_thousand_runs_in_one_statement() {
    let stage = Stage::take();
    let mut program = stage.start();
    insert_runs(&stage, "bulk-", 1000);
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "status = 'PENDING'"), 1000);

    stage.postgres.execute(
        "UPDATE \"TaskRun\" SET status = 'COMPLETED_SUCCESSFULLY', \"usageDurationMs\" = 5",
    );
    stage.settle(&mut program, &["runs"]);
    let condition = "status = 'COMPLETED_SUCCESSFULLY'";
    assert_eq!(stage.clickhouse.count("task_runs_v2", condition), 1000);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2000);
    program.stop();
}

#[test]
fn a_transaction_of_its_own_inserts_and_updates() {
    let stage = Stage::take();
    let mut program = stage.start();
    let mut client = stage.postgres.client();
    let mut transaction = client.transaction().unwrap();
    use crate::support::postgres::{insert, update};
    insert(&mut transaction, "TaskRun", &sample::run("a")).unwrap();
    insert(&mut transaction, "TaskRun", &sample::run("b")).unwrap();
    update(&mut transaction, "TaskRun", "b", &json!({"status": "DEQUEUED"})).unwrap();
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "1"), 0, "nothing before its commit");
    transaction.commit().unwrap();
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "status = 'DEQUEUED'"), 1);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 4);
    program.stop();
}

#[test]
fn a_trickle_of_transactions_arrives() {
    let stage = Stage::take();
    let mut program = stage.start();
    let load = crate::support::workload::Workload {
        connections: 1,
        rate: Some(10.0),
        changes_max: 2,
        ..crate::support::workload::Workload::new(16)
    };
    let load = load.start(&stage.postgres);
    load.wait_for(50);
    load.stop();
    stage.settle(&mut program, &SERVICES);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    program.stop();
}

#[test]
fn a_batch_writes_one_row_for_each_key() {
    let stage = Stage::take();
    let settings = stage
        .settings_runs()
        .with("RUN_REPLICATION_FLUSH_BATCH_SIZE", 1_000)
        .with("RUN_REPLICATION_FLUSH_INTERVAL_MS", 3_000);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    // After silence a row leaves at once; the rows after it wait for each other.
    stage.postgres.insert("TaskRun", &sample::run("first"));
    stage.settle(&mut program, &["runs"]);
    let mut client = stage.postgres.client();
    let mut transaction = client.transaction().unwrap();
    use crate::support::postgres::{insert, update};
    insert(&mut transaction, "TaskRun", &sample::run("merged")).unwrap();
    for n in 0..98 {
        let values = json!({"usageDurationMs": n, "status": "EXECUTING"});
        update(&mut transaction, "TaskRun", "merged", &values).unwrap();
    }
    update(&mut transaction, "TaskRun", "merged", &json!({"status": "CRASHED"})).unwrap();
    transaction.commit().unwrap();
    stage.settle(&mut program, &["runs"]);
    for table in ["task_runs_v2", "raw_task_runs_payload_v1"] {
        let rows = stage.clickhouse.value(&format!("SELECT count() FROM {DATABASE}.{table}"));
        assert_eq!(rows, "2", "{table}, without FINAL");
        let sample = format!("walhouse_rows_inserted_total{{service=\"runs\",table=\"{table}\"}}");
        assert_eq!(program.metric(&sample), Some(2.0));
    }
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 4);
    program.stop();
}

#[test]
fn writes_to_other_tables_flush_nothing_and_are_confirmed() {
    let stage = Stage::take();
    let mut program = stage.start();
    stage.postgres.execute("CREATE TABLE other (id int PRIMARY KEY, text text)");
    let mut client = stage.postgres.client();
    for n in 0..50 {
        let sql = format!("INSERT INTO other VALUES ({n}, repeat('x', 10000))");
        client.batch_execute(&sql).unwrap();
        // A transaction that changes nothing, but has a number and a commit in the WAL.
        client.batch_execute("BEGIN; SELECT pg_current_xact_id(); COMMIT").unwrap();
    }
    let written = stage.postgres.flush_lsn();
    for slot in [RUNS_SLOT, SESSIONS_SLOT] {
        until_true(format!("`{slot}` lets go of WAL that is not ours"), PATIENCE, || {
            written <= stage.postgres.confirmed_flush(slot).unwrap()
        });
    }
    for service in SERVICES {
        let batches =
            format!("walhouse_batches_flushed_total{{service=\"{service}\",success=\"true\"}}");
        assert_eq!(program.metric(&batches), Some(0.0));
    }
    program.stop();
}

#[test]
fn rows_without_an_owner_wait_for_one() {
    let stage = Stage::take();
    stage.postgres.execute("ALTER TABLE \"TaskRun\" REPLICA IDENTITY FULL");
    let mut program = stage.start();
    let without = |id: &str, column: &str| sample::with(sample::run(id), json!({column: null}));
    stage.postgres.insert("TaskRun", &without("no-org", "organizationId"));
    stage.postgres.insert("TaskRun", &without("no-type", "environmentType"));
    stage.postgres.insert("TaskRun", &without("later", "organizationId"));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "1"), 0);
    let unowned = r#"walhouse_rows_without_owner_total{service="runs"}"#;
    assert_eq!(program.metric(unowned), Some(3.0));

    stage.postgres.update("TaskRun", "later", &json!({"organizationId": "org_2"}));
    stage.postgres.delete("TaskRun", "no-org");
    stage.settle(&mut program, &["runs"]);
    let scope = Scope::RUNS_WITHOUT_PAYLOADS;
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, scope), 1);

    // One that loses its owner is no longer to be seen under the old one.
    stage.postgres.update("TaskRun", "later", &json!({"organizationId": null}));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, scope), 0);
    program.stop();
}

#[test]
fn a_truncate_is_told_and_not_applied() {
    let stage = Stage::take();
    let mut program = stage.start();
    stage.postgres.insert("Session", &sample::session("kept"));
    stage.settle(&mut program, &["sessions"]);
    stage.postgres.execute("TRUNCATE \"Session\"");
    stage.postgres.insert("Session", &sample::session("after"));
    stage.settle(&mut program, &["sessions"]);
    program.wait_for_log("TRUNCATE of \"public\".\"Session\" was not applied");
    let ignored = r#"walhouse_truncates_ignored_total{service="sessions"}"#;
    assert_eq!(program.metric(ignored), Some(1.0));
    assert_eq!(stage.clickhouse.count("sessions_v1", "1"), 2);
    program.stop();
}

#[test]
fn everything_is_counted() {
    let stage = Stage::take();
    let mut program = stage.start();
    stage.postgres.insert("TaskRun", &sample::full_run("a"));
    stage.postgres.insert("TaskRun", &sample::full_run("b"));
    stage.postgres.update("TaskRun", "a", &json!({"status": "CANCELED"}));
    stage.postgres.delete("TaskRun", "b");
    stage.settle(&mut program, &["runs"]);
    for (sample, expected) in [
        (r#"walhouse_transactions_total{service="runs"}"#, 4.0),
        (r#"walhouse_changes_processed_total{service="runs",kind="insert"}"#, 2.0),
        (r#"walhouse_changes_processed_total{service="runs",kind="update"}"#, 1.0),
        (r#"walhouse_changes_processed_total{service="runs",kind="delete"}"#, 1.0),
        (r#"walhouse_changes_processed_total{service="sessions",kind="insert"}"#, 0.0),
        (r#"walhouse_batches_flushed_total{service="runs",success="false"}"#, 0.0),
        (r#"walhouse_is_leader{service="runs"}"#, 1.0),
        (r#"walhouse_state{service="runs",state="streaming"}"#, 1.0),
        (r#"walhouse_insert_outage{service="runs"}"#, 0.0),
        (r#"walhouse_unflushed_bytes{service="runs"}"#, 0.0),
        (r#"walhouse_insert_retries_total{service="runs",table="task_runs_v2"}"#, 0.0),
        (r#"walhouse_refused_rows_total{service="runs",table="task_runs_v2"}"#, 0.0),
    ] {
        assert_eq!(program.metric(sample), Some(expected), "{sample}");
    }
    for sample in [
        // Less than 4 where a batch left between a row and its commit.
        r#"walhouse_replication_lag_seconds_count{service="runs"}"#,
        r#"walhouse_batch_size_rows_count{service="runs"}"#,
        r#"walhouse_flush_duration_seconds_count{service="runs"}"#,
        r#"walhouse_batches_flushed_total{service="runs",success="true"}"#,
        r#"walhouse_rows_inserted_total{service="runs",table="task_runs_v2"}"#,
        r#"walhouse_rows_inserted_total{service="runs",table="raw_task_runs_payload_v1"}"#,
        r#"walhouse_received_lsn{service="runs"}"#,
        r#"walhouse_confirmed_lsn{service="runs"}"#,
    ] {
        assert!(program.metric(sample).is_some_and(|value| 0.0 < value), "{sample}");
    }
    let (code, health) = program.health();
    assert_eq!((code, &health["status"]), (200, &json!("ok")), "{health}");
    program.stop();
}

#[test]
fn payloads_and_fingerprints_can_be_left_out() {
    let stage = Stage::take();
    let settings = stage
        .settings_runs()
        .with("RUN_REPLICATION_DISABLE_PAYLOAD_INSERT", 1)
        .with("RUN_REPLICATION_DISABLE_ERROR_FINGERPRINTING", 1);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::full_run("a"));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "error_fingerprint = ''"), 1);
    assert!(!stage.clickhouse.has_table("raw_task_runs_payload_v1"));
    program.stop();
}
