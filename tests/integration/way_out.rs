//! What must not hold up the work or the way out: a server that hangs, a log that nobody reads, too
//! few file descriptors.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::oracle::{Scope, assert_same};
use crate::support::program::{Program, Settings};
use crate::support::proxy::Proxy;
use crate::support::stage::{RUNS_SLOT, Stage};
use crate::support::wait::{PATIENCE, stays_true, until_true};
use crate::support::{reaper, sample};

/// Goal: SIGTERM ends the process with 0 in the time that the variable names, with the lock
/// released, wherever it waits for a ClickHouse that hangs.
#[test]
fn a_clickhouse_that_hangs_does_not_hold_up_the_way_out() {
    for at_start in [false, true] {
        let stage = Stage::take();
        let settings = stage.settings_runs().with("REPLICATION_SHUTDOWN_TIMEOUT_MS", 8_000);
        if at_start {
            stage.clickhouse.add_fault("action=hang&on=any");
        }
        let mut program = Program::start(&settings);
        if at_start {
            program.wait_for_log("leader lock acquired");
        } else {
            program.wait_streaming(&["runs"]);
            stage.clickhouse.add_fault("action=hang&on=any");
            stage.postgres.insert("TaskRun", &sample::full_run("a"));
        }
        until_true("a statement hangs", PATIENCE, || 0 < stage.clickhouse.fault_hits());
        let began = Instant::now();
        program.signal("TERM");
        let status = program.wait_end(PATIENCE);
        let took = began.elapsed();
        assert_eq!(status.code(), Some(0), "{}", program.log());
        assert!(took < Duration::from_secs(9), "{took:?}");
        assert_eq!(program.log_lines("leader lock released"), 1, "{}", program.log());
        stage.clickhouse.clear_faults();
        let mut program = Program::start(&settings);
        program.wait_streaming(&["runs"]);
        stage.postgres.insert("TaskRun", &sample::full_run("b"));
        stage.settle(&mut program, &["runs"]);
        assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
        program.stop();
    }
}

/// With the time that a stop is promised; what hangs is waited for longer than that.
fn settings_for_a_stop(stage: &Stage) -> Settings {
    stage
        .settings_runs()
        .with("REPLICATION_SHUTDOWN_TIMEOUT_MS", 8_000)
        .with("RUN_REPLICATION_LEADER_LOCK_TIMEOUT_MS", 60_000)
}

#[track_caller]
fn stops_in_time(program: &mut Program, what: &str) {
    let began = Instant::now();
    program.signal("TERM");
    let status = program.wait_end(PATIENCE);
    let took = began.elapsed();
    println!("{what}: {took:?}");
    assert_eq!(status.code(), Some(0), "{what}: {}", program.log());
    assert!(took < Duration::from_secs(8), "{what}: {took:?}: {}", program.log());
}

/// Goal: the same wherever it waits for a Postgres that hangs.
#[test]
fn a_postgres_that_hangs_does_not_hold_up_the_way_out() {
    const PUBLICATION: &str = "LOCK TABLE pg_publication IN ACCESS EXCLUSIVE MODE";
    const TABLE: &str = "LOCK TABLE \"TaskRun\" IN ACCESS EXCLUSIVE MODE";
    for (what, lock) in [
        ("looking for a primary", None),
        ("asking for the publication", Some(PUBLICATION)),
        ("reading the table", Some(TABLE)),
        ("streaming", None),
        ("backing off", None),
        ("standing by", None),
    ] {
        let stage = Stage::take();
        stage.postgres.insert("TaskRun", &sample::run("old"));
        let proxy = Proxy::to(stage.postgres.port());
        let settings = settings_for_a_stop(&stage)
            .with("DATABASE_URL", stage.postgres.url_through(proxy.port()))
            .with("RUN_REPLICATION_INITIAL_BACKFILL", 1);
        let mut client = stage.postgres.client();
        let mut transaction = client.transaction().unwrap();
        if let Some(lock) = lock {
            transaction.batch_execute(lock).unwrap();
        }
        let leader = (what == "standing by").then(|| {
            let mut leader = Program::start(&settings_for_a_stop(&stage));
            leader.wait_streaming(&["runs"]);
            leader
        });
        if what == "looking for a primary" {
            proxy.stall();
        }
        let mut program = Program::start(&settings);
        match what {
            "looking for a primary" => drop(program.wait_for_log("leader lock acquired")),
            "standing by" => program.wait_state("runs", "standing_by"),
            _ if lock.is_some() => until_true("it waits for the lock", PATIENCE, || {
                let waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                             AND application_name LIKE 'walhouse/%'";
                !stage.postgres.rows(waits).is_empty()
            }),
            _ => program.wait_streaming(&["runs"]),
        }
        proxy.stall();
        if what == "backing off" {
            proxy.cut();
            program.wait_for_log("reconnecting in");
        }
        stops_in_time(&mut program, what);
        transaction.rollback().unwrap();
        if let Some(leader) = leader {
            leader.stop();
        }
        assert!(stage.redis.keys().is_empty(), "{what}: {}", program.log());
    }
}

/// Goal: the same for a Redis that hangs, but for the lock, which nobody can release then.
#[test]
fn a_redis_that_hangs_does_not_hold_up_the_way_out() {
    let stage = Stage::own();
    let mut program = Program::start(&settings_for_a_stop(&stage));
    program.wait_streaming(&["runs"]);
    let mut second = Program::start(&settings_for_a_stop(&stage));
    second.wait_state("runs", "standing_by");
    reaper::signal(stage.redis.pid(), "STOP");
    stops_in_time(&mut second, "standing by");
    stops_in_time(&mut program, "streaming");
    reaper::signal(stage.redis.pid(), "CONT");
    let mut next = Program::start(&settings_for_a_stop(&stage));
    next.wait_streaming(&["runs"]);
    next.stop();
}

/// Goal: one SIGTERM or SIGINT ends it with 0 and the lock released, whatever it is at.
#[test]
fn a_stop_ends_it_in_order_at_any_time() {
    let stage = Stage::take();
    let has_lock = |stage: &Stage| !stage.redis.keys().is_empty();
    let mut program = Program::start(&settings_for_a_stop(&stage));
    program.wait_for_log("main: service `runs`");
    stops_in_time(&mut program, "before anything is begun");
    assert!(!has_lock(&stage), "{}", program.log());

    let mut program = Program::start(&settings_for_a_stop(&stage));
    program.wait_for_log("leader lock acquired");
    stops_in_time(&mut program, "a session that begins");
    assert!(!has_lock(&stage), "{}", program.log());

    let mut leader = Program::start(&settings_for_a_stop(&stage));
    leader.wait_streaming(&["runs"]);
    let mut program = Program::start(&settings_for_a_stop(&stage));
    program.wait_state("runs", "standing_by");
    program.signal("INT");
    assert_eq!(program.wait_end(Duration::from_secs(3)).code(), Some(0), "{}", program.log());
    assert!(has_lock(&stage), "that of the leader stays");
    leader.signal("INT");
    assert_eq!(leader.wait_end(Duration::from_secs(5)).code(), Some(0), "{}", leader.log());
    assert!(!has_lock(&stage), "{}", leader.log());
}

/// Goal: the same while the rows that are already there are copied; the next start ends the copy.
#[test]
fn a_stop_amid_a_fill_is_made_good_by_the_next_start() {
    let stage = Stage::take();
    for n in 0..300 {
        stage.postgres.insert("TaskRun", &sample::run(&format!("old-{n}")));
    }
    let settings = settings_for_a_stop(&stage).with("RUN_REPLICATION_INITIAL_BACKFILL", 1);
    stage.clickhouse.add_fault("action=hang&on=insert&table=task_runs_v2");
    let mut program = Program::start(&settings);
    until_true("an INSERT of it hangs", PATIENCE, || 0 < stage.clickhouse.fault_hits());
    stops_in_time(&mut program, "a fill");
    stage.clickhouse.clear_faults();
    let program = Program::start(&settings);
    until_true("all of it is there", PATIENCE, || {
        stage.clickhouse.count("task_runs_v2", "1") == 300
    });
    assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    program.stop();
}

/// Goal: a second signal ends it with 1 at once, whatever the first one waits for; a restart makes
/// it good.
#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("TERM", "INT")] {
        let stage = Stage::take();
        let mut program = Program::start(&stage.settings_runs());
        program.wait_streaming(&["runs"]);
        stage.clickhouse.add_fault("action=hang&on=any");
        stage.postgres.insert("TaskRun", &sample::run("a"));
        until_true("a statement hangs", PATIENCE, || 0 < stage.clickhouse.fault_hits());
        program.signal(first);
        program.wait_for_log("stopping; finishing the work in hand");
        stays_true("it drains", Duration::from_secs(1), || !program.has_ended());
        let began = Instant::now();
        program.signal(second);
        let status = program.wait_end(PATIENCE);
        assert_eq!(status.code(), Some(1), "{first}, {second}: {}", program.log());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        stage.clickhouse.clear_faults();
        let mut program = Program::start(&stage.settings_runs());
        program.wait_streaming(&["runs"]);
        stage.settle(&mut program, &["runs"]);
        assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
        program.stop();
    }
}

/// Goal: a pipe that nobody reads costs log lines, and nothing else.
#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    const PIPE_BYTES: usize = 65_536;
    let stage = Stage::take();
    let (unread, mut full) = std::io::pipe().unwrap();
    full.write_all(&[b'x'; PIPE_BYTES]).unwrap();
    let settings = stage.settings_runs();
    let mut program = Program::start_with_stderr(&settings, Stdio::from(full));
    let flushed = || stage.postgres.confirmed_flush(RUNS_SLOT);
    until_true("the slot is there", PATIENCE, || flushed().is_some());
    stage.postgres.insert("TaskRun", &sample::full_run("a"));
    until_true("the row arrives", PATIENCE, || {
        stage.clickhouse.has_table("task_runs_v2")
            && stage.clickhouse.count("task_runs_v2", "1") == 1
    });
    program.signal("TERM");
    let status = program.wait_end(PATIENCE);
    assert_eq!(status.code(), Some(0));
    drop(unread);
}

/// Goal: too few file descriptors are an error with a hint, which goes through the strategy.
#[test]
fn too_few_file_descriptors_are_told_and_tried_again() {
    let stage = Stage::take();
    for limit in [12, 16, 20, 24, 28, 32] {
        let mut program =
            Program::start_limited(&stage.settings_runs(), &format!("ulimit -n {limit}"));
        let ended = || false;
        until_true(format!("{limit}: it is told"), PATIENCE, || {
            let log = program.log();
            log.contains("LimitNOFILE")
                || log.contains("Too many open files")
                || program.has_ended()
                || ended()
                || log.contains("runs: streaming")
        });
        let log = program.log();
        assert!(!log.contains("panicked"), "{limit}: {log}");
        program.signal("KILL");
    }
}
