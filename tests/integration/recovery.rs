//! The three error strategies, when Postgres ends the stream or is not there at all.

use std::time::{Duration, Instant};

use crate::support::oracle::{Scope, assert_same};
use crate::support::program::Program;
use crate::support::proxy::Proxy;
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, SERVICES, SESSIONS_SLOT, Stage};
use crate::support::wait::{PATIENCE, stays_true, until_true};
use crate::support::workload::Workload;

#[test]
fn reconnect_loses_nothing() {
    let stage = Stage::take();
    let mut program = stage.start();
    let load = Workload::new(30).start(&stage.postgres);
    for _ in 0..5 {
        load.wait_for(15);
        stage.postgres.terminate_walsender(RUNS_SLOT);
        stage.postgres.terminate_walsender(SESSIONS_SLOT);
    }
    load.wait_for(15);
    load.stop();
    program.wait_streaming(&SERVICES);
    stage.settle(&mut program, &SERVICES);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    let reconnects = program.metric(r#"walhouse_reconnects_total{service="runs"}"#);
    assert!(reconnects.is_some_and(|count| 3.0 <= count), "{reconnects:?}");
    program.wait_healthy();
    program.stop();
}

#[test]
fn exit_ends_the_process_with_its_code() {
    let stage = Stage::take();
    let settings = stage
        .settings()
        .with("RUN_REPLICATION_ERROR_STRATEGY", "exit")
        .with("RUN_REPLICATION_EXIT_CODE", 7)
        .with("RUN_REPLICATION_EXIT_DELAY_MS", 5000);
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    let load = Workload::new(31).start(&stage.postgres);
    load.wait_for(10);
    stage.postgres.terminate_walsender(RUNS_SLOT);
    let status = program.wait_end(Duration::from_secs(10));
    assert_eq!(status.code(), Some(7), "{}", program.log());
    assert_eq!(stage.redis.keys(), [] as [String; 0], "the locks are released");
    load.stop();

    // A supervisor starts it again, and nothing is missing.
    let mut program = stage.start();
    stage.settle(&mut program, &SERVICES);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    program.stop();
}

#[test]
fn log_leaves_the_stream_down_and_the_others_up() {
    let stage = Stage::take();
    let settings = stage.settings().with("RUN_REPLICATION_ERROR_STRATEGY", "log");
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    stage.postgres.insert("TaskRun", &sample::run("a"));
    stage.settle(&mut program, &SERVICES);
    stage.postgres.terminate_walsender(RUNS_SLOT);
    program.wait_state("runs", "failed");
    stage.postgres.insert("TaskRun", &sample::run("b"));
    stage.postgres.insert("Session", &sample::session("goes on"));
    stays_true("the stream is down", Duration::from_secs(2), || {
        stage.postgres.walsenders(RUNS_SLOT) == 0 && program.state("runs") == "failed"
    });
    assert_eq!(stage.clickhouse.count("task_runs_v2", "1"), 1);
    assert_eq!(program.health().0, 503);
    stage.settle(&mut program, &["sessions"]);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::SESSIONS);
    program.stop();

    // It was only put off.
    let mut program = stage.start();
    stage.settle(&mut program, &SERVICES);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL), 5);
    program.stop();
}

#[test]
fn a_first_start_without_postgres_is_an_error_like_any_other() {
    for strategy in ["reconnect", "exit", "log"] {
        let stage = Stage::take();
        let proxy = Proxy::to(stage.postgres.port());
        proxy.refuse();
        let settings = stage
            .settings_runs()
            .with("DATABASE_URL", stage.postgres.url_through(proxy.port()))
            .with("RUN_REPLICATION_EXIT_CODE", 9)
            .with("RUN_REPLICATION_ERROR_STRATEGY", strategy);
        let mut program = Program::start(&settings);
        match strategy {
            "reconnect" => {
                program.wait_for_log_lines("reconnecting in", 3);
                proxy.resume();
                program.wait_streaming(&["runs"]);
                stage.postgres.insert("TaskRun", &sample::run("a"));
                stage.settle(&mut program, &["runs"]);
                assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2);
                program.stop();
            }
            "exit" => assert_eq!(program.wait_end(PATIENCE).code(), Some(9)),
            _ => {
                program.wait_state("runs", "failed");
                assert_eq!(program.health().0, 503);
                program.stop();
            }
        }
    }
}

#[test]
fn used_up_attempts_stop_the_service_and_the_last_one_the_process() {
    let stage = Stage::take();
    let proxy = Proxy::to(stage.postgres.port());
    let settings = stage
        .settings()
        .with("RUN_REPLICATION_DATABASE_URL", stage.postgres.url_through(proxy.port()))
        .with("REPLICATION_RECONNECT_MAX_ATTEMPTS", 3);
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    proxy.refuse();
    program.wait_state("runs", "failed");
    program.wait_for_log("the allowed reconnect attempts are used up");
    assert_eq!(program.state("sessions"), "streaming");
    assert_eq!(program.health().0, 503);
    proxy.resume();
    program.stop();

    let mut program = Program::start(&settings.with("SESSION_REPLICATION_ENABLED", 0));
    program.wait_streaming(&["runs"]);
    proxy.refuse();
    assert_eq!(program.wait_end(PATIENCE).code(), Some(1));
}

/// Goal: a link over which nothing comes any more is given up, and the next one is used.
#[test]
fn a_link_that_died_in_silence_is_noticed() {
    let stage = Stage::take();
    let proxy = Proxy::to(stage.postgres.port());
    let settings = stage
        .settings_runs()
        .with("DATABASE_URL", stage.postgres.url_through(proxy.port()))
        .with("REPLICATION_RECEIVE_TIMEOUT_MS", 2000);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    proxy.blackhole();
    stage.postgres.insert("TaskRun", &sample::run("unseen"));
    program.wait_for_log("reconnecting in");
    proxy.resume();
    // What went through the hole is of no use any more.
    proxy.cut();
    program.wait_streaming(&["runs"]);
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2);
    program.stop();
}

/// Goal: an outage that outlasts several attempts does not cost a long wait on top.
#[test]
fn a_wait_ends_when_postgres_is_back() {
    let stage = Stage::take();
    let proxy = Proxy::to(stage.postgres.port());
    let settings = stage
        .settings_runs()
        .with("DATABASE_URL", stage.postgres.url_through(proxy.port()))
        .with("REPLICATION_RECONNECT_INITIAL_DELAY_MS", 600_000)
        .with("REPLICATION_RECONNECT_MAX_DELAY_MS", 600_000);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    // A server that is there all the while is no news: that wait is waited out.
    stage.postgres.terminate_walsender(RUNS_SLOT);
    program.wait_for_log("reconnecting in");
    stays_true("it waits", Duration::from_secs(3), || program.log_lines("primary again") == 0);

    proxy.refuse();
    let looks = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'walhouse-probe'";
    until_true("nobody looks through the proxy", PATIENCE, || {
        stage.postgres.value(looks).is_none()
    });
    // Longer than it is between two looks.
    stays_true("it waits", Duration::from_secs(7), || program.log_lines("primary again") == 0);
    proxy.resume();
    program.wait_for_log("there is a primary again");
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::run("a"));
    stage.settle(&mut program, &["runs"]);
    program.stop();
}

#[test]
fn sigterm_wins_over_a_wait() {
    let stage = Stage::take();
    let proxy = Proxy::to(stage.postgres.port());
    proxy.refuse();
    let settings = stage
        .settings_runs()
        .with("DATABASE_URL", stage.postgres.url_through(proxy.port()))
        .with("REPLICATION_RECONNECT_INITIAL_DELAY_MS", 600_000)
        .with("REPLICATION_RECONNECT_MAX_DELAY_MS", 600_000);
    let mut program = Program::start(&settings);
    program.wait_for_log("reconnecting in");
    program.signal("TERM");
    assert_eq!(program.wait_end(Duration::from_secs(5)).code(), Some(0));
    until_true("the lock is released", PATIENCE, || stage.redis.keys().is_empty());
}

/// Goal: with the settings of a user who has set none, a walsender that is killed costs less than
/// two seconds until the next row is visible. Beside a load it may be three here, where the
/// ClickHouse of the tests runs one query at a time.
#[test]
fn a_killed_walsender_costs_less_than_two_seconds_by_default() {
    let stage = Stage::take();
    let mut program = Program::start(&stage.settings_of_defaults());
    program.wait_streaming(&SERVICES);
    // The best of three, because a test shares its machine.
    for (busy, limit) in [(false, 2), (true, 3)] {
        let mut best = Duration::MAX;
        let load = busy.then(|| {
            Workload { rate: Some(20.0), changes_max: 10, big_every: 0, ..Workload::new(32) }
                .start(&stage.postgres)
        });
        for round in 0..3 {
            let id = format!("{busy}-{round}");
            stage.postgres.insert("Session", &sample::session(&format!("before-{id}")));
            stage.settle(&mut program, &SERVICES);
            let killed_at = Instant::now();
            stage.postgres.terminate_walsender(SESSIONS_SLOT);
            stage.postgres.insert("Session", &sample::session(&id));
            until_true("the row is visible", PATIENCE, || {
                stage.clickhouse.count("sessions_v1", &format!("session_id = '{id}'")) == 1
            });
            best = best.min(killed_at.elapsed());
        }
        assert!(best < Duration::from_secs(limit), "busy {busy}: {best:?}");
        drop(load);
    }
    program.stop();
}
