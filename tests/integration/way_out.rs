//! What must not hold up the work or the way out: a server that hangs, a log that nobody reads, too
//! few file descriptors.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::oracle::{Scope, assert_same};
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, Stage};
use crate::support::wait::{PATIENCE, until_true};

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
