//! Who streams when, and what a program leaves to the next.

use std::time::{Duration, Instant};

use walhouse::postgres::params::{Host, PostgresParams, SslMode, TargetSession};
use walhouse::postgres::{StartupOptions, Stream, startup};

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::postgres::{Postgres, insert};
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, SERVICES, Stage};
use crate::support::wait::{PATIENCE, stays_true, until_true};
use crate::support::workload::Workload;

/// Sessions of ours on the server, whatever they do.
fn backends(postgres: &Postgres) -> usize {
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'walhouse/%'";
    postgres.rows(sql).len()
}

#[test]
fn a_first_start_makes_publication_and_slot() {
    let stage = Stage::take();
    let mut program = stage.start();
    let publications = stage.postgres.rows(
        "SELECT p.pubname, t.schemaname, t.tablename, p.pubinsert, p.pubupdate, p.pubdelete \
         FROM pg_publication p JOIN pg_publication_tables t USING (pubname) ORDER BY 1",
    );
    let texts = |row: &[&str]| row.iter().map(|text| Some((*text).to_owned())).collect::<Vec<_>>();
    let sessions = "sessions_to_clickhouse_v1_publication";
    let runs = "task_runs_to_clickhouse_v1_publication";
    assert_eq!(
        publications,
        [
            texts(&[sessions, "public", "Session", "t", "t", "t"]),
            texts(&[runs, "public", "TaskRun", "t", "t", "t"]),
        ]
    );
    let slots = stage.postgres.rows(
        "SELECT s.slot_name, s.plugin, s.active, a.application_name FROM pg_replication_slots s \
         JOIN pg_stat_activity a ON a.pid = s.active_pid ORDER BY 1",
    );
    assert_eq!(
        slots,
        ["sessions_to_clickhouse_v1", "task_runs_to_clickhouse_v1"].map(|slot| texts(&[
            slot,
            "pgoutput",
            "t",
            &format!("walhouse/{slot}")
        ]))
    );
    stage.postgres.insert("TaskRun", &sample::run("first"));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2);
    program.stop();
    assert_eq!(backends(&stage.postgres), 0);
    assert_eq!(stage.redis.keys(), [] as [String; 0], "the lock is released");
}

#[test]
fn a_program_that_was_stopped_goes_on_where_it_was() {
    let stage = Stage::take();
    let mut program = stage.start();
    stage.postgres.insert("TaskRun", &sample::run("handled"));
    stage.settle(&mut program, &["runs"]);
    program.stop();
    stage.postgres.insert("TaskRun", &sample::run("missed"));

    let mut program = stage.start();
    stage.postgres.insert("TaskRun", &sample::run("new"));
    stage.settle(&mut program, &["runs"]);
    let inserts = r#"walhouse_changes_processed_total{service="runs",kind="insert"}"#;
    assert_eq!(program.metric(inserts), Some(2.0), "what was handled is not sent again");
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 6);
    program.stop();
}

#[test]
fn a_stop_in_the_middle_hands_over_without_loss() {
    let stage = Stage::take();
    let mut program = stage.start();
    let load = Workload::new(9).start(&stage.postgres);
    for _ in 0..3 {
        load.wait_for(30);
        program.signal("TERM");
        let mut next = Program::start(&stage.settings());
        assert_eq!(program.wait_end(PATIENCE).code(), Some(0));
        next.wait_streaming(&SERVICES);
        program = next;
    }
    load.wait_for(10);
    load.stop();
    stage.settle(&mut program, &SERVICES);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    program.stop();
}

/// Goal: one leads, the other waits without noise, and leads when the first is gone, and stays so.
#[test]
fn a_second_program_stands_by_and_takes_over() {
    for lock in ["redis", "postgres"] {
        let stage = Stage::take();
        let settings = stage
            .settings_runs()
            .with("REPLICATION_LEADER_LOCK", lock)
            .with("RUN_REPLICATION_LEADER_LOCK_TIMEOUT_MS", 1500)
            .with("RUN_REPLICATION_LEADER_LOCK_EXTEND_INTERVAL_MS", 300);
        let mut first = Program::start(&settings);
        first.wait_streaming(&["runs"]);
        let mut second = Program::start(&settings);
        second.wait_state("runs", "standing_by");
        stage.postgres.insert("TaskRun", &sample::run("of-the-first"));
        stage.settle(&mut first, &["runs"]);
        // Longer than the lock lives without being extended.
        stays_true("the second stands by", Duration::from_millis(2500), || {
            second.state("runs") == "standing_by" && first.state("runs") == "streaming"
        });
        assert_eq!(second.health().0, 200, "standing by is healthy");

        first.stop();
        second.wait_streaming(&["runs"]);
        stage.postgres.insert("TaskRun", &sample::run("of-the-second"));
        stage.settle(&mut second, &["runs"]);
        stays_true("the second leads", Duration::from_millis(2500), || {
            second.state("runs") == "streaming"
        });
        assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 4, "{lock}");
        assert_eq!(second.log_lines("ERROR"), 0, "{}", second.log());
        second.stop();
    }
}

#[test]
fn a_killed_leader_is_replaced() {
    for lock in ["redis", "postgres"] {
        let stage = Stage::take();
        let settings = stage
            .settings()
            .with("REPLICATION_LEADER_LOCK", lock)
            .with_both("*_REPLICATION_LEADER_LOCK_TIMEOUT_MS", 1500)
            .with_both("*_REPLICATION_LEADER_LOCK_EXTEND_INTERVAL_MS", 300);
        let mut first = Program::start(&settings);
        first.wait_streaming(&SERVICES);
        let mut second = Program::start(&settings);
        second.wait_state("runs", "standing_by");
        let load = Workload::new(11).start(&stage.postgres);
        load.wait_for(20);
        first.kill();
        second.wait_streaming(&SERVICES);
        load.wait_for(20);
        load.stop();
        stage.settle(&mut second, &SERVICES);
        assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
        second.stop();
    }
}

/// Goal: rows that are sent twice are there once, and the newer one counts.
#[test]
fn redelivered_rows_change_nothing() {
    let stage = Stage::take();
    // Nothing is confirmed before the kill, so all of it is sent again.
    let settings = stage.settings().with_both("*_REPLICATION_ACK_INTERVAL_SECONDS", 3600);
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    Workload::new(10).run(&stage.postgres, 100);
    stage.settle(&mut program, &SERVICES);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    let versions = || {
        json_of(stage.clickhouse.rows(&format!(
            "SELECT run_id, _version FROM {DATABASE}.task_runs_v2 FINAL ORDER BY run_id"
        )))
    };
    let before = versions();
    program.kill();

    let mut program = stage.start();
    stage.settle(&mut program, &SERVICES);
    let inserts = r#"walhouse_changes_processed_total{service="runs",kind="insert"}"#;
    assert!(program.metric(inserts).is_some_and(|count| 0.0 < count), "they were sent again");
    assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    assert_eq!(versions(), before);
    program.stop();
}

fn json_of(rows: Vec<Vec<serde_json::Value>>) -> String {
    serde_json::json!(rows).to_string()
}

/// A session that streams from a slot and is none of ours.
fn hold(stage: &Stage, slot: &str) -> Stream {
    let params = PostgresParams {
        hosts: vec![Host::new("127.0.0.1", stage.postgres.port())],
        user: "postgres".to_owned(),
        password: None,
        database: "postgres".to_owned(),
        ssl_mode: SslMode::Disable,
        ssl_root_cert: None,
        ssl_cert: None,
        ssl_key: None,
        connect_timeout: Duration::from_secs(10),
        target: TargetSession::Any,
        options: None,
        halt: walhouse::halt::Halt::default(),
    };
    let options = StartupOptions {
        application_name: "somebody else".to_owned(),
        replication: true,
        options: Vec::new(),
        receive_timeout: Duration::from_secs(60),
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    let connection = startup::connect(&params, &options, deadline).unwrap();
    Stream::start(connection, slot, &format!("{slot}_publication"), false).unwrap()
}

#[test]
fn a_busy_slot_leaks_nothing_and_is_taken_when_it_is_free() {
    let stage = Stage::take();
    stage.start().stop();
    let holder = hold(&stage, RUNS_SLOT);
    let mut program = Program::start(&stage.settings_runs());
    let mut most = 0;
    until_true("it has tried four times", PATIENCE, || {
        most = most.max(backends(&stage.postgres));
        4 <= program.log_lines("reconnecting in")
    });
    assert!(most <= 3, "{most} sessions at a time");
    assert!(stage.redis.keys().len() <= 1, "{:?}", stage.redis.keys());
    let log = program.log();
    assert!(log.contains("application name `somebody else`"), "the log says who it is: {log}");

    drop(holder);
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::run("after"));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2);
    program.stop();
}

/// Goal: told to stop while Postgres makes the slot, which waits for an open transaction, it ends
/// in time, and nobody leads.
#[test]
fn a_stop_while_starting_leaves_nothing_behind() {
    let stage = Stage::take();
    let mut client = stage.postgres.client();
    let mut transaction = client.transaction().unwrap();
    insert(&mut transaction, "Session", &sample::session("open")).unwrap();
    let mut program = Program::start(&stage.settings_runs());
    let creating = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'walhouse/%' \
                    AND state = 'active' AND query LIKE '%pg_create_logical_replication_slot%'";
    until_true("the slot is being made", PATIENCE, || !stage.postgres.rows(creating).is_empty());
    program.signal("TERM");
    let status = program.wait_end(Duration::from_secs(15));
    assert_eq!(status.code(), Some(0), "{}", program.log());
    transaction.rollback().unwrap();
    until_true("no session of ours is left", PATIENCE, || backends(&stage.postgres) == 0);
    assert_eq!(stage.postgres.walsenders(RUNS_SLOT), 0);
    assert_eq!(stage.redis.keys(), [] as [String; 0], "the lock is released");

    // Whatever was left half made does not hinder the next.
    let mut program = Program::start(&stage.settings_runs());
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::run("after"));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2);
    program.stop();
}

/// The settings in which a mistake was made say so, and nothing is begun.
#[test]
fn a_wrong_configuration_is_told_in_full_and_ends_with_code_64() {
    let settings = Settings::default()
        .with("RUN_REPLICATION_ENABLED", 1)
        .with("RUN_REPLICATION_CLICKHOUSE_URL", "ftp://nowhere")
        .with("RUN_REPLICATION_FLUSH_BATCH_SIZE", "many");
    let mut program = Program::start(&settings);
    assert_eq!(program.wait_end(PATIENCE).code(), Some(64));
    let log = program.log();
    for name in
        ["RUN_REPLICATION_CLICKHOUSE_URL", "RUN_REPLICATION_FLUSH_BATCH_SIZE", "DATABASE_URL"]
    {
        assert!(log.contains(name), "{log}");
    }
}
