//! A service with nothing to do.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::program::Program;
use crate::support::stage::Stage;
use crate::support::wait;

/// How often each of its threads has gone to sleep so far, which is how often it was woken.
fn wakes(program: &Program) -> BTreeMap<PathBuf, u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap();
    let of_task = |path: PathBuf| {
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let count = line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
        (path, count)
    };
    tasks.map(|task| of_task(task.unwrap().path())).collect()
}

/// Goal: one that has nothing to do sleeps.
#[test]
fn a_quiet_service_hardly_wakes() {
    // Of its own: what others write wakes it as well.
    let stage = Stage::own();
    let settings = stage
        .settings_runs()
        .with("RUN_REPLICATION_LEADER_LOCK_TIMEOUT_MS", 30_000)
        .with("RUN_REPLICATION_LEADER_LOCK_EXTEND_INTERVAL_MS", 10_000)
        .with("RUN_REPLICATION_ACK_INTERVAL_SECONDS", 10);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    stage.settle(&mut program, &["runs"]);
    // What began with the session is over.
    let rest = Duration::from_secs(5);
    wait::stays_true("it streams", rest, || program.log_lines("ERROR") == 0);
    let (before, pause) = (wakes(&program), Duration::from_secs(10));
    wait::stays_true("it streams", pause, || program.log_lines("ERROR") == 0);
    // A thread may end or begin in between.
    let of_thread = |(path, count): (&PathBuf, &u64)| count - before.get(path).unwrap_or(&0);
    let each_second = wakes(&program).iter().map(of_thread).sum::<u64>() / pause.as_secs();
    println!("{each_second} wakes a second");
    assert!(each_second <= 25, "{each_second} wakes a second");
    program.stop();
}
