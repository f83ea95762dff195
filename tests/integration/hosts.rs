use crate::support::clickhouse::Clickhouse;
use crate::support::oracle::{Scope, assert_same};
use crate::support::program::{Program, Settings};
use crate::support::proxy::Proxy;
use crate::support::sample;
use crate::support::stage::{SERVICES, SESSIONS_SLOT, Stage};
use crate::support::workload::Workload;
use crate::support::zookeeper::Zookeeper;

/// Two addresses of the one engine.
fn settings(stage: &Stage, a: u16, b: u16) -> Settings {
    let url = format!("http://127.0.0.1:{a},127.0.0.1:{b}/?request_timeout=3000");
    stage.settings().with_both("*_REPLICATION_CLICKHOUSE_URL", url)
}

/// Goal: a host that is down when walhouse starts, one that dies or hangs in the middle of a
/// stream, and one that comes back cost nothing but the time to notice.
#[test]
fn hosts_come_and_go_and_nothing_is_lost() {
    let stage = Stage::own();
    let mut program = Program::start(&stage.settings());
    program.wait_streaming(&SERVICES);
    program.stop();

    let (a, b) = (Proxy::to(stage.clickhouse.port()), Proxy::to(stage.clickhouse.port()));
    a.refuse();
    let mut program = Program::start(&settings(&stage, a.port(), b.port()));
    program.wait_streaming(&SERVICES);
    assert!(0 < b.connections());
    let line = program.wait_for_log("switching from");
    assert!(line.contains(&format!("switching from `http://127.0.0.1:{}` to", a.port())), "{line}");
    stage.postgres.insert("TaskRun", &sample::run("by_the_second"));
    stage.settle(&mut program, &SERVICES);

    let load = Workload { rate: Some(60.0), ..Workload::new(400) };
    let writing = load.start(&stage.postgres);
    writing.wait_for(60);
    // The first is back, and stays unused until the second one is gone.
    a.resume();
    let before = a.connections();
    writing.wait_for(120);
    assert_eq!(a.connections(), before);
    b.refuse();
    program.wait_for_log(&format!("switching from `http://127.0.0.1:{}` to", b.port()));
    writing.wait_for(200);
    b.resume();
    // A host that says nothing any more is left when a request has waited for long enough.
    a.blackhole();
    writing.wait_for(300);
    program.wait_for_log_lines(&format!("switching from `http://127.0.0.1:{}` to", a.port()), 2);
    a.resume();
    a.cut();
    writing.stop();
    program.wait_streaming(&SERVICES);
    stage.settle(&mut program, &SERVICES);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
    assert_eq!(program.log_lines("gap"), 0, "{}", program.log());
    program.stop();
}

/// Goal: a quorum that no table keeps is not passed over in silence: nothing is confirmed before it
/// is mended, and then everything arrives.
#[test]
fn a_quorum_that_tables_do_not_keep_stops_the_service_until_it_is_mended() {
    let stage = Stage::own();
    let settings = stage.settings().without("RUN_REPLICATION_ENABLED");
    let mut program = Program::start(&settings);
    program.wait_streaming(&["sessions"]);
    program.stop();
    let confirmed = || {
        let of = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = ";
        stage.postgres.value(&format!("{of}'{SESSIONS_SLOT}'"))
    };
    let before = confirmed();
    stage.postgres.insert("Session", &sample::session("s1"));
    let mut program =
        Program::start(&settings.clone().with("REPLICATION_CLICKHOUSE_INSERT_QUORUM", 2));
    program.wait_for_log_lines("inserts require a quorum, and its engine is ReplacingMergeTree", 2);
    assert_eq!(confirmed(), before);
    program.stop();
    assert_eq!(stage.clickhouse.count("sessions_v1", "1"), 0);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["sessions"]);
    stage.settle(&mut program, &["sessions"]);
    assert_eq!(stage.clickhouse.count("sessions_v1", "1"), 1);
    program.stop();
}

/// Goal: replicas that cannot take part are neither read from nor written to, and the operator
/// learns why. The engine's Replicated tables are always in this state.
#[test]
fn a_replica_that_is_read_only_confirms_nothing_and_says_why() {
    let zookeeper = Zookeeper::start();
    let mut stage = Stage::own();
    stage.clickhouse = Clickhouse::start_front_with(Some(zookeeper.engine_config()));
    let settings = stage.settings().without("RUN_REPLICATION_ENABLED");
    let mut program = Program::start(&settings);
    program.wait_streaming(&["sessions"]);
    program.stop();
    stage.clickhouse.execute("DROP TABLE trigger_dev.walhouse_state SYNC");
    stage.clickhouse.execute(
        "CREATE TABLE trigger_dev.walhouse_state AS trigger_dev.walhouse_repairs \
         ENGINE = ReplicatedReplacingMergeTree(revision) ORDER BY (service, slot)",
    );
    let mut program = Program::start(&settings);
    let line = program.wait_for_log("bring `trigger_dev`.`walhouse_state` up to date");
    assert!(line.contains("TABLE_IS_READ_ONLY"), "{line}");
    stage.postgres.insert("Session", &sample::session("s1"));
    program.wait_for_log_lines("bring `trigger_dev`.`walhouse_state` up to date", 3);
    assert_eq!(stage.postgres.walsenders(SESSIONS_SLOT), 0);
    program.stop();
    assert_eq!(stage.clickhouse.count("sessions_v1", "1"), 0);
}
