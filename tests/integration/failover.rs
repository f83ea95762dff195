use std::mem;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::oracle::{Scope, assert_same};
use crate::support::postgres::{self as database, Postgres, Stop};
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, SERVICES, SESSIONS_SLOT, Stage};
use crate::support::standby::SYNC_PATIENCE;
use crate::support::wait::{PATIENCE, until_true};
use crate::support::workload::Workload;

const SLOTS: [&str; 2] = [RUNS_SLOT, SESSIONS_SLOT];
/// The first version with failover slots.
const FAILOVER_SLOTS: u32 = 17;

fn load(seed: u64) -> Workload {
    Workload { rate: Some(40.0), ..Workload::new(seed) }
}

/// Names these servers in this order.
fn url_of(ports: &[u16]) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("postgresql://postgres@{}/postgres", hosts.join(","))
}

/// Settings of a user who has read nothing: no short times.
fn with_default_times(settings: Settings) -> Settings {
    settings
        .without("REPLICATION_RECONNECT_INITIAL_DELAY_MS")
        .without("REPLICATION_RECONNECT_MAX_DELAY_MS")
}

/// The standby has the slots for good: each is advanced once after the first copy was made.
fn wait_slots_synced(stage: &Stage, program: &mut Program, standby: &Postgres) {
    let count = "SELECT count(*) FROM pg_replication_slots
                 WHERE synced AND NOT temporary AND invalidation_reason IS NULL";
    static COUNT: AtomicU32 = AtomicU32::new(0);
    until_true("the standby keeps both slots", SYNC_PATIENCE, || {
        let id = format!("advance-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        stage.postgres.insert("TaskRun", &sample::run(&id));
        stage.settle(program, &SERVICES);
        standby.value(count).as_deref() == Some("2")
    });
}

/// No slot is decoded further than the standby has received.
fn wait_for_standby(primary: &mut Postgres, standby: &Postgres) {
    primary.set("synchronized_standby_slots", standby.standby_slot());
    primary.reload();
    until_true("the setting is in force", PATIENCE, || {
        primary.value("SHOW synchronized_standby_slots").as_deref() == Some(standby.standby_slot())
    });
}

#[test]
fn a_standby_follows_and_is_promoted() {
    let mut primary = Postgres::start();
    primary.insert("Session", &sample::session("a"));
    let standby = primary.start_standby();
    assert!(standby.is_standby());
    primary.insert("Session", &sample::session("b"));
    standby.wait_replayed(&primary);
    let count = r#"SELECT count(*) FROM public."Session""#;
    assert_eq!(standby.value(count).as_deref(), Some("2"));
    primary.stop(Stop::Immediate);
    standby.promote();
    assert_eq!(standby.timeline(), 2);
    standby.insert("Session", &sample::session("c"));

    // The old primary's port is taken by a standby of the new one.
    let second = standby.start_standby_with(primary.port(), &[]);
    second.wait_replayed(&standby);
    assert_eq!(second.value(count).as_deref(), Some("3"));
}

/// Goal: under load the primary dies and its standby is promoted, there and back again. With a slot
/// that outlives it the stream goes on by itself and both sides are identical; before Postgres 17 no
/// slot does, and the gap is noticed before a row is passed over.
#[test]
fn a_promotion_is_followed_where_the_slot_is_kept_and_noticed_where_it_is_not() {
    let mut stage = Stage::own();
    let mut standby = stage.postgres.start_standby();
    // One host hangs, and the standby comes before the primary.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = [mute.local_addr().unwrap().port(), standby.port(), stage.postgres.port()];
    let settings = with_default_times(stage.settings())
        .with("DATABASE_URL", url_of(&ports))
        .with_both("*_REPLICATION_LOG_LEVEL", "debug")
        .with("REPLICATION_GAP_STRATEGY", "halt");
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    let keeps_slots = FAILOVER_SLOTS <= stage.postgres.version();
    let mut rounds = 0..1;
    if keeps_slots {
        wait_slots_synced(&stage, &mut program, &standby);
        wait_for_standby(&mut stage.postgres, &standby);
        rounds = 0..2;
    }
    for round in rounds {
        let writing = load(70 + round).start(&stage.postgres);
        writing.wait_for(30);
        stage.postgres.stop(Stop::Immediate);
        writing.stop();
        standby.promote();
        mem::swap(&mut stage.postgres, &mut standby);
        stage.postgres.insert("Session", &sample::session(&format!("after-{round}")));
        if !keeps_slots {
            program.wait_halted(&SERVICES);
            program.wait_for_log("gap: the slot is missing");
            program.stop();
            return;
        }
        // Default settings, the wait of the backoff included.
        until_true("the first row of the new primary is visible", Duration::from_secs(5), || {
            let name = format!("session_id = 'after-{round}'");
            stage.clickhouse.count("sessions_v1", &name) == 1
        });
        load(80 + round).run(&stage.postgres, 30);
        stage.settle(&mut program, &SERVICES);
        assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
        assert_eq!(program.log_lines("which has every row that ClickHouse has"), {
            usize::try_from(round + 1).unwrap() * SERVICES.len()
        });

        // Where the old primary was, a standby of the new one begins.
        standby = stage.postgres.start_standby_with(standby.port(), &[]);
        wait_slots_synced(&stage, &mut program, &standby);
        wait_for_standby(&mut stage.postgres, &standby);
    }
    program.wait_streaming(&SERVICES);
    program.stop();
}

/// Goal: one host, which is a standby at first.
#[test]
fn a_standby_alone_is_waited_on_until_it_is_promoted() {
    let mut stage = Stage::own();
    let standby = stage.postgres.start_standby();
    let settings = stage.settings_runs().with("DATABASE_URL", standby.url());
    let mut program = Program::start(&settings);
    program.wait_for_log("server is a standby");
    program.wait_for_log("Name all hosts in the database URL");
    program.wait_for_log_lines("reconnecting in", 2);
    standby.wait_replayed(&stage.postgres);
    stage.postgres.stop(Stop::Fast);
    standby.promote();
    stage.postgres = standby;
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::run("a"));
    stage.settle(&mut program, &["runs"]);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS));
    program.stop();
}

/// Goal: a primary whose sessions are read-only by default, as a managed server with a full disk has
/// them, is a primary all the same: it is found among several hosts, and all is made there that a
/// service needs.
#[test]
fn a_primary_that_is_read_only_by_default_is_streamed_from() {
    let stage = Stage::own();
    let standby = stage.postgres.start_standby();
    stage.postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on");
    stage.postgres.execute("SELECT pg_reload_conf()");
    let show = "SHOW default_transaction_read_only";
    until_true("sessions are read-only", PATIENCE, || {
        stage.postgres.value(show).as_deref() == Some("on")
    });
    let mut writer = stage.postgres.client();
    writer.batch_execute("SET default_transaction_read_only = off").unwrap();
    database::insert(&mut writer, "TaskRun", &sample::run("before")).unwrap();

    let settings = stage
        .settings_runs()
        .with("DATABASE_URL", url_of(&[standby.port(), stage.postgres.port()]))
        .with("RUN_REPLICATION_INITIAL_BACKFILL", 1);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    database::insert(&mut writer, "TaskRun", &sample::run("streamed")).unwrap();
    stage.settle(&mut program, &["runs"]);
    program.wait_for_log("initial backfill: done after");
    stage.postgres.terminate_walsender(RUNS_SLOT);
    program.wait_for_log("reconnecting in");
    database::delete(&mut writer, "TaskRun", "before").unwrap();
    program.wait_streaming(&["runs"]);
    stage.settle(&mut program, &["runs"]);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS));
    program.stop();
}

/// Goal: an old primary that nobody has stopped is left for the new one, although its stream never
/// broke. Nobody keeps a slot here, so on the new one the gap is noticed.
#[test]
fn an_old_primary_that_goes_on_is_left_for_the_new_one() {
    let stage = Stage::own();
    // Of 17 and newer, one without copies of slots.
    let nothing_copied: &[(&str, &str)] = match stage.postgres.version() {
        FAILOVER_SLOTS.. => &[("sync_replication_slots", "off")],
        _ => &[],
    };
    let standby = stage.postgres.start_standby_with(crate::support::free_port(), nothing_copied);
    let settings = stage
        .settings_runs()
        .with("DATABASE_URL", url_of(&[stage.postgres.port(), standby.port()]))
        .with("REPLICATION_GAP_STRATEGY", "halt");
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::run("a"));
    stage.settle(&mut program, &["runs"]);
    standby.wait_replayed(&stage.postgres);
    standby.promote();
    let line = program.wait_for_log("was promoted to timeline 2");
    assert!(line.contains("this server is left behind on 1"), "{line}");
    program.wait_for_log("more than one server claims to be the primary");
    program.wait_for_log("gap: the slot is missing");
    program.wait_halted(&["runs"]);
    program.stop();
}

/// Goal: the mark on the slot follows the variable, and what a failover lacks is said once.
#[test]
fn the_mark_follows_the_variable_and_what_is_missing_is_told() {
    let mut stage = Stage::own();
    let settings = stage.settings().with_both("*_REPLICATION_LOG_LEVEL", "debug");
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    if stage.postgres.version() < FAILOVER_SLOTS {
        let old = "has no failover slots, which came with Postgres 17";
        program.wait_for_log_lines(old, SERVICES.len());
        stage.postgres.terminate_walsender(RUNS_SLOT);
        program.wait_for_log("reconnecting in");
        program.wait_streaming(&SERVICES);
        assert_eq!(program.log_lines(old), SERVICES.len(), "it is said once");
        program.stop();
        return;
    }
    let marked = "SELECT count(*) FROM pg_replication_slots WHERE failover";
    assert_eq!(stage.postgres.value(marked).as_deref(), Some("2"));
    program.wait_for_log_lines("no standby is connected that could keep slot", SERVICES.len());
    program.stop();

    let mut program = Program::start(&settings.clone().with("RUN_REPLICATION_SLOT_FAILOVER", 0));
    program.wait_for_log("no longer marked for failover");
    program.wait_streaming(&SERVICES);
    assert_eq!(stage.postgres.value(marked).as_deref(), Some("1"));
    assert_eq!(program.log_lines("runs: failover:"), 0, "it was not asked for");
    program.stop();

    // A standby that does without feedback is told of, one that keeps the slots is content.
    let standby = stage.postgres.start_standby_with(
        crate::support::free_port(),
        &[("hot_standby_feedback", "off"), ("sync_replication_slots", "off")],
    );
    let mut program = Program::start(&settings);
    program.wait_for_log("runs: slot `task_runs_to_clickhouse_v1` is now marked for failover");
    for what in ["sends no feedback", "`synchronized_standby_slots` does not name it"] {
        let lines = program.wait_for_log_lines(what, SERVICES.len());
        assert!(lines.iter().all(|line| line.contains("WARN")), "{lines:?}");
    }
    program.stop();
    drop(standby);

    let standby = stage.postgres.start_standby();
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    wait_slots_synced(&stage, &mut program, &standby);
    wait_for_standby(&mut stage.postgres, &standby);
    program.stop();
    let mut program = Program::start(&settings);
    let lines = program.wait_for_log_lines("survives a promotion", SERVICES.len());
    assert!(lines.iter().all(|line| line.contains("INFO")), "{lines:?}");
    // Not again at a reconnect, while nothing has changed.
    for slot in SLOTS {
        stage.postgres.terminate_walsender(slot);
    }
    program.wait_for_log_lines("reconnecting in", 2);
    program.wait_streaming(&SERVICES);
    stage.settle(&mut program, &SERVICES);
    assert_eq!(program.log_lines("survives a promotion"), SERVICES.len());

    // A name that nobody has holds everything up, and that is an error with the way out.
    stage.postgres.set("synchronized_standby_slots", "nobody");
    stage.postgres.reload();
    for slot in SLOTS {
        stage.postgres.terminate_walsender(slot);
    }
    let lines = program.wait_for_log_lines("`nobody` of `synchronized_standby_slots`", 2);
    assert!(lines.iter().all(|line| line.contains("ERROR")), "{lines:?}");
    program.wait_for_log("ALTER SYSTEM SET synchronized_standby_slots = ''");
    stage.postgres.set("synchronized_standby_slots", "");
    stage.postgres.reload();
    stage.postgres.insert("TaskRun", &sample::run("moves again"));
    stage.settle(&mut program, &SERVICES);
    program.stop();
}
