//! What nothing may be lost through: each party killed, stopped, slow or cut off under load, alone
//! and at random. Each test ends with a full comparison of both sides.
//!
//! The long forms are chosen by the environment: `WALHOUSE_KILLS` (random kills, default 20),
//! `WALHOUSE_SEED`, `WALHOUSE_LARGE_ROWS` (rows of the large transaction, default 100,000),
//! `WALHOUSE_WALSENDER_SECONDS` (a walsender killed each second, default 10).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::postgres::{Postgres, Stop};
use crate::support::program::{Program, Settings};
use crate::support::stage::{RUNS_SLOT, SERVICES, SESSIONS_SLOT, Stage};
use crate::support::wait::{self, PATIENCE, until_true};
use crate::support::workload::Workload;
use crate::support::{http, reaper, sample};

const SLOTS: [&str; 2] = [RUNS_SLOT, SESSIONS_SLOT];
/// Long enough for a lock's term, the backoff and a backlog on a busy machine.
const RECOVERY: Duration = Duration::from_secs(120);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// A load that leaves room for the servers on a small machine.
fn load(seed: u64) -> Workload {
    Workload { rate: Some(40.0), ..Workload::new(seed) }
}

/// Everything that was committed is confirmed, whoever leads.
#[track_caller]
fn settle(postgres: &Postgres) {
    let target = postgres.flush_lsn();
    for slot in SLOTS {
        until_true(format!("slot `{slot}` has confirmed what was committed"), RECOVERY, || {
            postgres.confirmed_flush(slot).is_some_and(|lsn| target <= lsn)
        });
    }
}

#[track_caller]
fn assert_identical(stage: &Stage) {
    settle(&stage.postgres);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
}

#[test]
fn kill_9_in_a_loop_loses_and_repeats_nothing() {
    let stage = Stage::own();
    let mut program = stage.start();
    let writing = load(1).start(&stage.postgres);
    for _ in 0..6 {
        writing.wait_for(15);
        program.kill();
        program = Program::start(&stage.settings());
        program.wait_streaming(&SERVICES);
    }
    writing.stop();
    assert_identical(&stage);
    program.stop();
}

#[test]
fn clickhouse_down_for_longer_than_the_retries_drops_nothing() {
    let mut stage = Stage::own();
    let settings = stage
        .settings()
        .with_both("*_REPLICATION_INSERT_MAX_RETRIES", 2)
        .with_both("*_REPLICATION_INSERT_BASE_DELAY_MS", 20)
        .with_both("*_REPLICATION_INSERT_MAX_DELAY_MS", 200);
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    let writing = load(2).start(&stage.postgres);
    writing.wait_for(20);
    stage.clickhouse.kill();
    program.wait_for_log("outage");
    let before = stage.postgres.confirmed_flush(RUNS_SLOT);
    writing.wait_for(60);
    assert_eq!(stage.postgres.confirmed_flush(RUNS_SLOT), before, "nothing new is durable");
    assert_eq!(stage.postgres.walsenders(RUNS_SLOT), 1, "the stream stays up");
    stage.clickhouse.start_again();
    writing.wait_for(20);
    writing.stop();
    assert_identical(&stage);
    assert!(program.log().contains("the outage is over"));
    program.stop();
}

#[test]
fn an_insert_whose_answer_is_lost_is_sent_again_without_harm() {
    let stage = Stage::own();
    let program = stage.start();
    let writing = load(3).start(&stage.postgres);
    for _ in 0..4 {
        writing.wait_for(10);
        stage.clickhouse.add_fault("action=lose_answer&count=3");
        stage.clickhouse.add_fault("action=drop&count=2");
    }
    writing.wait_for(20);
    assert!(8 <= stage.clickhouse.fault_hits(), "the faults struck");
    stage.clickhouse.clear_faults();
    writing.stop();
    assert_identical(&stage);
    program.stop();
}

#[test]
fn a_blip_of_redis_shorter_than_the_term_changes_nothing() {
    let mut stage = Stage::own();
    let mut program = stage.start();
    let writing = load(4).start(&stage.postgres);
    writing.wait_for(10);
    stage.redis.kill();
    wait::stays_true("it streams", Duration::from_secs(2), || program.state("runs") == "streaming");
    // Empty: the lock is gone and is taken again.
    stage.redis.start_again();
    wait::stays_true("it streams", Duration::from_secs(6), || program.state("runs") == "streaming");
    assert!(!program.log().contains("leader lock lost"));
    writing.stop();
    assert_identical(&stage);
    program.stop();
}

#[test]
fn redis_down_for_longer_than_the_term_means_standing_by_until_it_is_back() {
    let mut stage = Stage::own();
    let mut program = stage.start();
    let writing = load(5).start(&stage.postgres);
    writing.wait_for(10);
    stage.redis.kill();
    for service in SERVICES {
        program.wait_state(service, "standing_by");
    }
    assert_eq!(program.health().0, 200, "a standby is healthy");
    until_true("nobody holds the slots", PATIENCE, || {
        SLOTS.iter().all(|slot| stage.postgres.walsenders(slot) == 0)
    });
    stage.redis.start_again();
    program.wait_streaming(&SERVICES);
    writing.stop();
    assert_identical(&stage);
    program.stop();
}

#[test]
fn an_immediate_restart_of_postgres_loses_nothing() {
    let mut stage = Stage::own();
    let mut program = stage.start();
    let writing = load(6).start(&stage.postgres);
    for how in [Stop::Immediate, Stop::Kill, Stop::Fast] {
        writing.wait_for(20);
        stage.postgres.restart(how);
        program.wait_streaming(&SERVICES);
    }
    writing.wait_for(20);
    writing.stop();
    assert_identical(&stage);
    program.stop();
}

#[test]
fn an_orderly_stop_of_postgres_does_not_wait_for_us() {
    let mut stage = Stage::own();
    let program = stage.start();
    load(7).run(&stage.postgres, 30);
    settle(&stage.postgres);
    stage.postgres.begin_stop(Stop::Fast);
    stage.postgres.wait_stopped(Duration::from_secs(10));
    stage.postgres.start_again();
    settle(&stage.postgres);
    assert_identical(&stage);
    program.stop();
}

#[test]
fn a_walsender_killed_every_second_stops_nothing() {
    let stage = Stage::own();
    let mut program = stage.start();
    let writing = load(8).start(&stage.postgres);
    for _ in 0..number("WALHOUSE_WALSENDER_SECONDS", 10) {
        for slot in SLOTS {
            stage.postgres.terminate_walsender(slot);
        }
        wait::stays_true("the load goes on", Duration::from_secs(1), || true);
    }
    writing.wait_for(20);
    writing.stop();
    program.wait_streaming(&SERVICES);
    assert_identical(&stage);
    program.stop();
}

#[test]
fn a_short_wal_sender_timeout_survives_a_slow_clickhouse() {
    let stage = Stage::own_with(&[("wal_sender_timeout", "2s")]);
    let settings = stage.settings().with_both("*_REPLICATION_ACK_INTERVAL_SECONDS", 10);
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    stage.clickhouse.add_fault("action=delay_after&ms=3000&table=task_runs_v2&on=insert");
    load(9).run(&stage.postgres, 60);
    wait::stays_true("the stream stays up", Duration::from_secs(8), || {
        stage.postgres.walsenders(RUNS_SLOT) == 1
    });
    assert_eq!(program.log_lines("reconnecting"), 0, "{}", program.log());
    stage.clickhouse.clear_faults();
    assert_identical(&stage);
    program.stop();
}

#[test]
fn a_large_transaction_is_flushed_as_it_comes_and_counts_as_a_whole() {
    let stage = Stage::own();
    let settings = stage.settings().with_both("*_REPLICATION_MAX_BUFFER_BYTES", 8 << 20);
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    let before = stage.postgres.confirmed_flush(SESSIONS_SLOT).expect("the slot is there");
    let rows = number("WALHOUSE_LARGE_ROWS", 100_000);
    stage.postgres.execute(&format!(
        r#"INSERT INTO "Session" ("id", "friendlyId", "type", "projectId", "runtimeEnvironmentId",
               "environmentType", "organizationId", "taskIdentifier", "tags", "metadata",
               "updatedAt", "triggerConfig")
           SELECT 'large-' || n, 'friendly-' || n, 'chat', 'p', 'e', 'PRODUCTION', 'o', 't',
                  ARRAY['x', n::text], jsonb_build_object('n', n), now(), '{{}}'
           FROM generate_series(1, {rows}) n"#
    ));
    until_true("some of its rows are there, and it is not confirmed", RECOVERY, || {
        let there = stage.clickhouse.count("sessions_v1", "1");
        let confirmed = stage.postgres.confirmed_flush(SESSIONS_SLOT).expect("the slot is there");
        let all = stage.postgres.flush_lsn() <= confirmed;
        assert!(0 < there || !all, "confirmed before it was durable");
        0 < there
    });
    // In the middle of it: all of it must come again.
    program.kill();
    assert!(before <= stage.postgres.confirmed_flush(SESSIONS_SLOT).expect("the slot is there"));
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    settle(&stage.postgres);
    assert_eq!(stage.clickhouse.count("sessions_v1", "1"), rows);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::SESSIONS);
    assert!(resident_bytes(&program) < 400 << 20, "memory is bounded");
    program.stop();
}

fn resident_bytes(program: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux says so");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number") * 1024
}

#[test]
fn a_leader_paused_beyond_its_term_does_no_harm() {
    let stage = Stage::own();
    let mut first = stage.start();
    let mut second = Program::start(&stage.settings());
    second.wait_state("runs", "standing_by");
    let writing = load(10).start(&stage.postgres);
    writing.wait_for(20);
    first.signal("STOP");
    second.wait_streaming(&SERVICES);
    writing.wait_for(20);
    first.signal("CONT");
    for service in SERVICES {
        first.wait_state(service, "standing_by");
    }
    wait::stays_true("the second leads", Duration::from_secs(3), || {
        second.state("runs") == "streaming"
    });
    writing.stop();
    assert_identical(&stage);
    first.stop();
    second.stop();
}

/// Goal: two instances under constant writes, and a loop of random kills of every party: the sides
/// end identical, and all along nothing is confirmed before it is durable, no slot moves back or
/// runs ahead of the recorded state, and each slot has one walsender at most.
#[test]
fn random_kills_of_every_party_end_identical() {
    let seed = number("WALHOUSE_SEED", 11);
    let kills = number("WALHOUSE_KILLS", 20);
    println!("seed {seed}, {kills} kills");
    let mut stage = Stage::own();
    // Each identity has ways of its own to be wrong; with FULL, rows may move as well.
    let full = seed.is_multiple_of(2);
    if full {
        for table in ["TaskRun", "Session"] {
            stage.postgres.execute(&format!("ALTER TABLE \"{table}\" REPLICA IDENTITY FULL"));
        }
    }
    let settings = stage.settings();
    let mut programs = [Program::start(&settings), Program::start(&settings)];
    until_true("both services are led", PATIENCE, || {
        SLOTS.iter().all(|slot| stage.postgres.walsenders(slot) == 1)
    });
    let writing = Workload { moves: full, ..load(seed) }.start(&stage.postgres);
    let watch = Watch::new(&stage);
    let mut rng = Rng::with_seed(seed);
    let checks = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch.run());
        // A panic in here must end the watch, or the scope waits for ever.
        let end = EndWatch(&watch);
        for kill in 0..kills {
            writing.wait_for(rng.u64(2..25));
            let what = damage(&mut rng, &mut stage, &mut programs, &settings);
            println!("kill {kill}: {what}");
            // A quarter of the time the next one comes before anyone has recovered.
            if 0 < rng.u8(0..4) {
                until_true(format!("both are led again after {what}"), RECOVERY, || {
                    SLOTS.iter().all(|slot| stage.postgres.walsenders(slot) == 1)
                });
            }
        }
        writing.wait_for(20);
        drop(end);
        watching.join().expect("a promise was broken")
    });
    let written = writing.stop();
    println!("{written:?}, {checks} checks of the promises");
    assert!(kills < checks, "the promises were looked at");
    assert_identical(&stage);
    for program in programs {
        program.stop();
    }
}

fn damage(
    rng: &mut Rng,
    stage: &mut Stage,
    programs: &mut [Program; 2],
    settings: &Settings,
) -> &'static str {
    let one = rng.usize(0..2);
    match rng.u8(0..8) {
        0 | 1 => {
            let slot = SLOTS[rng.usize(0..2)];
            stage.postgres.execute(&format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
                 WHERE slot_name = '{slot}' AND active"
            ));
            "walsender"
        }
        2 | 3 => {
            reaper::signal(programs[one].pid(), "KILL");
            programs[one].wait_end(PATIENCE);
            programs[one] = Program::start(settings);
            "walhouse -9"
        }
        4 => {
            stage.clickhouse.kill();
            stage.clickhouse.start_again();
            "clickhouse -9"
        }
        5 => {
            stage.redis.kill();
            stage.redis.start_again();
            "redis -9"
        }
        6 => {
            stage.postgres.restart(Stop::Immediate);
            "postgres immediate"
        }
        _ => {
            programs[one].signal("TERM");
            let status = programs[one].wait_end(PATIENCE);
            assert!(status.success(), "{status}: {}", programs[one].log());
            programs[one] = Program::start(settings);
            "walhouse TERM"
        }
    }
}

/// Looks at the promises from outside, through ports that outlive every restart.
struct Watch {
    postgres_port: u16,
    clickhouse_port: u16,
    ended: AtomicBool,
    probes: AtomicU64,
}

struct EndWatch<'a>(&'a Watch);

impl Drop for EndWatch<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

impl Watch {
    fn new(stage: &Stage) -> Watch {
        Watch {
            postgres_port: stage.postgres.port(),
            clickhouse_port: stage.clickhouse.port(),
            ended: AtomicBool::new(false),
            probes: AtomicU64::new(0),
        }
    }

    /// How often all promises were seen to hold.
    fn run(&self) -> u64 {
        let (mut checks, mut highest) = (0, [0_u64; 2]);
        let mut waiting: Vec<(String, u64)> = Vec::new();
        while !self.ended.load(Ordering::Relaxed) {
            if let Some(seen) = self.look(&mut highest, &mut waiting) {
                checks += u64::from(seen);
            }
            std::thread::yield_now();
        }
        checks
    }

    /// `None` while a server is away.
    fn look(&self, highest: &mut [u64; 2], waiting: &mut Vec<(String, u64)>) -> Option<bool> {
        let mut client = crate::support::postgres::connect(self.postgres_port).ok()?;
        // A row of our own, whose commit lies at or below the LSN asked for after it.
        let id = format!("probe-{}", self.probes.fetch_add(1, Ordering::Relaxed));
        crate::support::postgres::insert(&mut client, "Session", &sample::session(&id)).ok()?;
        let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).ok()?;
        let lsn = crate::support::postgres::parse_lsn(&row.get::<_, String>(0));
        waiting.push((id, lsn));

        let mut confirmed = [0; 2];
        for (at, slot) in SLOTS.iter().enumerate() {
            let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots \
                       WHERE slot_name = $1";
            let row = client.query_one(sql, &[slot]).ok()?;
            confirmed[at] = crate::support::postgres::parse_lsn(&row.get::<_, String>(0));
        }
        // The slot first: what it says must already be recorded and durable when we look there.
        for (at, slot) in SLOTS.iter().enumerate() {
            let recorded = self.recorded(slot)?;
            assert!(
                confirmed[at] <= recorded,
                "slot `{slot}` is at {:X}, the recorded state at {recorded:X}",
                confirmed[at]
            );
            // An immediate stop may take the slot back to what its last checkpoint knew.
            highest[at] = highest[at].max(confirmed[at]);
        }
        let (due, later): (Vec<_>, Vec<_>) =
            waiting.drain(..).partition(|(_, lsn)| *lsn <= highest[1]);
        *waiting = later;
        for (at, (id, lsn)) in due.iter().enumerate() {
            let condition = format!("session_id='{id}'");
            match self.count("sessions_v1", &condition) {
                Some(there) => {
                    assert_eq!(there, 1, "{id} at {lsn:X} was confirmed and is not there")
                }
                None => {
                    waiting.extend(due[at..].iter().cloned());
                    return None;
                }
            }
        }
        Some(true)
    }

    fn recorded(&self, slot: &str) -> Option<u64> {
        let sql = format!(
            "SELECT confirmed_lsn FROM {DATABASE}.walhouse_state WHERE slot = '{slot}' \
             ORDER BY revision DESC LIMIT 1"
        );
        self.ask(&sql)?.trim().parse().ok()
    }

    fn count(&self, table: &str, condition: &str) -> Option<u64> {
        let sql = format!("SELECT count() FROM {DATABASE}.{table} FINAL WHERE {condition}");
        self.ask(&sql)?.trim().parse().ok()
    }

    fn ask(&self, sql: &str) -> Option<String> {
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], self.clickhouse_port));
        let answer =
            http::request(at, "POST", "/", "", sql.as_bytes(), Duration::from_secs(10)).ok()?;
        (answer.status == 200).then(|| answer.text())
    }
}

/// The tables of a batch are written one after the other; a tombstone must not be left half done.
#[test]
fn a_process_that_dies_between_the_tables_of_a_batch_leaves_nothing_behind() {
    let stage = Stage::own();
    let mut program = stage.start();
    stage.postgres.insert("TaskRun", &sample::run("half"));
    stage.settle(&mut program, &["runs"]);
    stage.clickhouse.add_fault("action=error&code=241&table=raw_task_runs_payload_v1&on=insert");
    stage.postgres.delete("TaskRun", "half");
    until_true("the run is gone and its payload is not", PATIENCE, || {
        let gone = "SELECT count() FROM trigger_dev.task_runs_v2 FINAL WHERE run_id = 'half'";
        stage.clickhouse.value(gone) == "0"
    });
    program.kill();
    stage.clickhouse.clear_faults();
    let mut program = Program::start(&stage.settings());
    program.wait_streaming(&SERVICES);
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL), 0);
    program.stop();
}

/// Without Redis the lock is a session of Postgres; its leader is killed, and Postgres restarted.
#[test]
fn the_lock_in_postgres_leads_and_hands_over() {
    let mut stage = Stage::own();
    let settings =
        stage.settings().without("REDIS_HOST").with("REPLICATION_LEADER_LOCK", "postgres");
    let mut first = Program::start(&settings);
    first.wait_streaming(&SERVICES);
    let mut second = Program::start(&settings);
    for service in SERVICES {
        second.wait_state(service, "standing_by");
    }
    let writing = load(12).start(&stage.postgres);
    writing.wait_for(20);
    first.kill();
    second.wait_streaming(&SERVICES);
    stage.postgres.restart(Stop::Immediate);
    writing.wait_for(20);
    second.wait_streaming(&SERVICES);
    writing.stop();
    assert_identical(&stage);
    second.stop();
}
