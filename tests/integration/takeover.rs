//! Who takes the leader lock in Redis from whom before its term is over: from a process that is
//! gone, as Postgres shows it, and from nobody else.

use std::time::{Duration, Instant};

use crate::support::oracle::{Scope, assert_same};
use crate::support::program::{Program, Settings};
use crate::support::proxy::Proxy;
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, Stage};
use crate::support::wait::{PATIENCE, stays_true, until_true};

/// Far longer than any test here waits.
const TERM_MS: u64 = 600_000;
const SOON: Duration = Duration::from_secs(12);
const GONE: &str = "the holder of the leader lock is gone";
const KEY: &str = "runs-replication:logical-replication-client:logical-replication-client:\
     task_runs_to_clickhouse_v1";

fn settings(stage: &Stage) -> Settings {
    stage.settings_runs().with("RUN_REPLICATION_LEADER_LOCK_TIMEOUT_MS", TERM_MS)
}

/// And another instance, which stands by and reaches Postgres by itself.
fn leader_behind_a_proxy(stage: &Stage) -> (Proxy, Program, Program) {
    let proxy = Proxy::to(stage.postgres.port());
    let behind = stage.postgres.url_through(proxy.port());
    let mut first = Program::start(&settings(stage).with("DATABASE_URL", behind));
    first.wait_streaming(&["runs"]);
    let mut second = Program::start(&settings(stage));
    second.wait_state("runs", "standing_by");
    (proxy, first, second)
}

fn streams_soon(program: &mut Program, killed_at: Instant) {
    until_true("it streams long before the term is over", PATIENCE, || {
        assert!(killed_at.elapsed() < SOON, "{}", program.log());
        program.state("runs") == "streaming"
    });
    println!("streaming after {:?}", killed_at.elapsed());
}

fn value(stage: &Stage) -> Option<String> {
    redis::cmd("GET").arg(KEY).query(&mut stage.redis.client()).unwrap()
}

/// Goal: neither a standby nor the next start of a single instance waits for a dead one.
#[test]
fn a_leader_that_was_killed_is_not_waited_for() {
    let stage = Stage::take();
    let mut first = Program::start(&settings(&stage));
    first.wait_streaming(&["runs"]);
    let mut second = Program::start(&settings(&stage));
    second.wait_state("runs", "standing_by");
    stage.postgres.insert("TaskRun", &sample::run("of-the-first"));
    let killed_at = Instant::now();
    first.kill();
    streams_soon(&mut second, killed_at);
    assert_eq!(second.log_lines(GONE), 1);
    stage.postgres.insert("TaskRun", &sample::run("of-the-second"));
    stage.settle(&mut second, &["runs"]);

    let killed_at = Instant::now();
    second.kill();
    let mut third = Program::start(&settings(&stage));
    streams_soon(&mut third, killed_at);
    stage.postgres.insert("TaskRun", &sample::run("of-the-third"));
    stage.settle(&mut third, &["runs"]);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    third.stop();
    assert_eq!(stage.redis.keys(), [] as [String; 0], "the lock is released");
}

/// Goal: who is stopped, or whose packets are lost on the way to Postgres, is waited for.
#[test]
fn a_leader_that_hangs_is_waited_for() {
    let stage = Stage::take();
    let (proxy, mut first, mut second) = leader_behind_a_proxy(&stage);
    let held = value(&stage);
    assert!(held.as_ref().is_some_and(|held| held.starts_with("walhouse:")), "{held:?}");
    first.signal("STOP");
    stays_true("it stands by", SOON, || second.state("runs") == "standing_by");
    first.signal("CONT");
    first.wait_streaming(&["runs"]);
    // Cut off, and back within the time that a session may be silent.
    proxy.stall();
    stays_true("it stands by", SOON, || second.state("runs") == "standing_by");
    proxy.resume();
    stage.postgres.insert("TaskRun", &sample::run("of-the-first"));
    stage.settle(&mut first, &["runs"]);
    // Whether its session is there again just now or not.
    let token = held.as_ref().and_then(|held| held.split(':').nth(1)).unwrap();
    assert!(value(&stage).is_some_and(|held| held.contains(token)), "{held:?}");
    assert_eq!(second.log_lines(GONE), 0, "{}", second.log());
    first.stop();
    second.wait_streaming(&["runs"]);
    second.stop();
}

/// Goal: a leader whose connections break is not taken for dead while it makes them again.
#[test]
fn a_leader_whose_connections_break_is_waited_for() {
    let stage = Stage::take();
    let (proxy, first, second) = leader_behind_a_proxy(&stage);
    for round in 0..3 {
        // The session that shows it breaks, the stream goes on; then all breaks.
        if round == 0 {
            stage.postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE application_name = 'walhouse-presence'",
            );
        } else {
            proxy.cut();
        }
        stays_true("nobody is gone", Duration::from_secs(5), || second.log_lines(GONE) == 0);
    }
    until_true("one of them streams", PATIENCE, || stage.postgres.walsenders(RUNS_SLOT) == 1);
    stage.postgres.insert("TaskRun", &sample::run("afterwards"));
    let lsn = stage.postgres.flush_lsn();
    until_true("it is confirmed", PATIENCE, || {
        stage.postgres.confirmed_flush(RUNS_SLOT).is_some_and(|confirmed| lsn <= confirmed)
    });
    assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    first.stop();
    second.stop();
}

/// Goal: a leader that lives and reaches everything but Postgres does no harm, and stands by.
#[test]
fn a_leader_that_is_cut_off_from_postgres_alone_does_no_harm() {
    let stage = Stage::take();
    let (proxy, mut first, mut second) = leader_behind_a_proxy(&stage);
    stage.postgres.insert("TaskRun", &sample::run("before"));
    proxy.refuse();
    proxy.cut();
    let began = Instant::now();
    stage.postgres.insert("TaskRun", &sample::run("meanwhile"));
    streams_soon(&mut second, began);
    stage.settle(&mut second, &["runs"]);
    proxy.resume();
    first.wait_state("runs", "standing_by");
    stays_true("the second leads", Duration::from_secs(5), || second.state("runs") == "streaming");
    stage.postgres.insert("TaskRun", &sample::run("after"));
    stage.settle(&mut second, &["runs"]);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    first.stop();
    second.stop();
}

/// Goal: what does not say where its holder is to be seen, or says it of another place, is never
/// cleared: trigger.dev's own replication, an older walhouse, a walhouse of another database.
#[test]
fn the_lock_of_who_does_not_show_itself_is_waited_for() {
    let stage = Stage::take();
    let token = "00112233445566778899aabbccddeeff";
    for theirs in [token.to_owned(), format!("walhouse:{token}:1:7500000000000000000.1.5")] {
        let mut client = stage.redis.client();
        redis::cmd("SET").arg(KEY).arg(&theirs).arg("PX").arg(TERM_MS).exec(&mut client).unwrap();
        let mut program = Program::start(&settings(&stage));
        program.wait_state("runs", "standing_by");
        stays_true("it stands by", SOON, || program.state("runs") == "standing_by");
        assert_eq!((value(&stage), program.log_lines(GONE)), (Some(theirs), 0));
        redis::cmd("DEL").arg(KEY).exec(&mut client).unwrap();
        program.wait_streaming(&["runs"]);
        program.stop();
    }
}
