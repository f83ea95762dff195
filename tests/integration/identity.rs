//! Every replica identity and format, under load, compared in full.

use serde_json::json;

use crate::support::oracle::{Scope, assert_same};
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::{SERVICES, Stage};
use crate::support::workload::Workload;

/// Writes a load while the program streams, and compares both sides.
fn check(identity: &str, binary: u8, batch_size: u32, seed: u64) {
    let stage = Stage::take();
    for table in ["TaskRun", "Session"] {
        stage.postgres.execute(&format!("ALTER TABLE \"{table}\" REPLICA IDENTITY {identity}"));
    }
    let settings = stage
        .settings()
        .with("REPLICATION_BINARY", binary)
        .with_both("*_REPLICATION_FLUSH_BATCH_SIZE", batch_size);
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    let load = Workload { moves: identity == "FULL", ..Workload::new(seed) };
    let written = load.run(&stage.postgres, 300);
    stage.settle(&mut program, &SERVICES);
    let rows = assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    assert!(400 < rows && 1500 < written.changes, "seed {seed}: {rows} rows, {written:?}");
    let reread = program.metric(r#"walhouse_toast_rereads_total{service="runs"}"#).unwrap();
    let looked_up = program.metric(r#"walhouse_deletes_looked_up_total{service="runs"}"#).unwrap();
    match identity {
        "FULL" => assert_eq!((reread, looked_up), (0.0, 0.0), "the stream has it all"),
        _ => assert!(0.0 < looked_up),
    }
    assert_eq!(program.log_lines("ERROR"), 0, "{}", program.log());
    program.stop();
}

#[test]
fn default_identity_in_binary_is_the_same_on_both_sides() {
    check("DEFAULT", 1, 50, 101);
}

#[test]
fn default_identity_in_text_is_the_same_on_both_sides() {
    check("DEFAULT", 0, 7, 102);
}

#[test]
fn full_identity_in_binary_is_the_same_on_both_sides() {
    check("FULL", 1, 7, 103);
}

#[test]
fn full_identity_in_text_is_the_same_on_both_sides() {
    check("FULL", 0, 500, 104);
}

/// Values that are not sent again because nobody changed them.
#[test]
fn toasted_values_survive_updates_that_leave_them_alone() {
    for (identity, batch_size) in [("DEFAULT", 1), ("DEFAULT", 1000), ("FULL", 1)] {
        let stage = Stage::take();
        let alter = format!("ALTER TABLE \"TaskRun\" REPLICA IDENTITY {identity}");
        stage.postgres.execute(&alter);
        let settings = stage.settings_runs().with("RUN_REPLICATION_FLUSH_BATCH_SIZE", batch_size);
        let mut program = Program::start(&settings);
        program.wait_streaming(&["runs"]);
        let mut rng = fastrand::Rng::with_seed(5);
        let mut noise = || (0..20_000).map(|_| rng.alphanumeric()).collect::<String>();
        let row = json!({
            "payload": json!({"noise": noise()}).to_string(),
            "output": json!({"noise": noise()}).to_string(),
            "error": {"type": "STRING_ERROR", "raw": noise()},
            "runTags": [noise()],
        });
        for id in ["updated", "rekeyed", "deleted", "moved"] {
            stage.postgres.insert("TaskRun", &sample::with(sample::run(id), row.clone()));
        }
        stage.settle(&mut program, &["runs"]);
        for n in 0..3 {
            for id in ["updated", "rekeyed", "deleted", "moved"] {
                stage.postgres.update("TaskRun", id, &json!({"usageDurationMs": n}));
            }
        }
        stage.postgres.update("TaskRun", "rekeyed", &json!({"id": "rekeyed-2"}));
        if identity == "FULL" {
            stage.postgres.update("TaskRun", "moved", &json!({"projectId": "proj_2"}));
        }
        stage.postgres.delete("TaskRun", "deleted");
        stage.settle(&mut program, &["runs"]);
        assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 6, "{identity}");
        let reread = program.metric(r#"walhouse_toast_rereads_total{service="runs"}"#).unwrap();
        assert_eq!(0.0 < reread, identity == "DEFAULT", "{identity}: {reread}");
        program.stop();
    }
}

/// A row under another sorting key is another row to ClickHouse.
#[test]
fn a_row_that_moves_leaves_nothing_behind() {
    let stage = Stage::take();
    stage.postgres.execute("ALTER TABLE \"TaskRun\" REPLICA IDENTITY FULL");
    let mut program = stage.start();
    for id in ["id", "org", "created", "all"] {
        stage.postgres.insert("TaskRun", &sample::run(id));
    }
    stage.settle(&mut program, &["runs"]);
    move_rows(&stage);
    stage.settle(&mut program, &["runs"]);
    let scope = Scope::RUNS_WITHOUT_PAYLOADS;
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, scope), 4);
    for id in ["id-2", "org", "created", "all-2"] {
        stage.postgres.delete("TaskRun", id);
    }
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 0);
    program.stop();
}

/// Without FULL the stream does not tell that a row moved; its delete takes all of it along.
#[test]
fn a_row_that_moved_unseen_is_gone_when_it_is_deleted() {
    let stage = Stage::take();
    let mut program = stage.start();
    for id in ["id", "org", "created", "all"] {
        stage.postgres.insert("TaskRun", &sample::run(id));
    }
    stage.settle(&mut program, &["runs"]);
    move_rows(&stage);
    stage.settle(&mut program, &["runs"]);
    // One whose id changed told so.
    assert_eq!(stage.clickhouse.count("task_runs_v2", "run_id IN ('id', 'all')"), 0);
    // In the batch of its last move, and in a later one.
    let mut client = stage.postgres.client();
    client
        .batch_execute(
            "UPDATE \"TaskRun\" SET \"projectId\" = 'proj_3' WHERE id IN ('org', 'all-2');
             DELETE FROM \"TaskRun\"",
        )
        .unwrap();
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 0);
    program.stop();
}

fn move_rows(stage: &Stage) {
    // Another month is another partition, too.
    let created = json!({"createdAt": "2025-01-02 03:04:05.006"});
    stage.postgres.update("TaskRun", "id", &json!({"id": "id-2"}));
    stage.postgres.update("TaskRun", "org", &json!({"organizationId": "org_2"}));
    stage.postgres.update("TaskRun", "created", &created);
    let all = json!({"id": "all-2", "organizationId": "org_2", "projectId": "proj_2",
        "runtimeEnvironmentId": "env_2", "createdAt": "2024-01-02 03:04:05.006"});
    stage.postgres.update("TaskRun", "all", &all);
}
