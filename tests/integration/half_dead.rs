use std::net::TcpListener;
use std::time::{Duration, Instant};

use postgres::Client;

use crate::support::oracle::{Scope, assert_same};
use crate::support::postgres::Stop;
use crate::support::program::Program;
use crate::support::proxy::Proxy;
use crate::support::stage::{RUNS_SLOT, SERVICES, SESSIONS_SLOT, Stage};
use crate::support::wait::{PATIENCE, stays_true, until, until_true};
use crate::support::workload::Workload;
use crate::support::{reaper, sample};

/// The time within which silence is to be noticed, and what a busy machine adds.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(3);

/// Goal: a walsender that is stopped keeps the slot and cannot be ended by SQL. Its silence is
/// noticed, whoever it is gets named with what ends it, and once it runs again nothing is missing.
#[test]
fn a_stopped_walsender_is_named_and_its_slot_taken_once_it_runs_again() {
    let stage = Stage::own();
    let settings =
        stage.settings_runs().with("REPLICATION_RECEIVE_TIMEOUT_MS", RECEIVE_TIMEOUT.as_millis());
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::run("before"));
    stage.settle(&mut program, &["runs"]);

    let holder =
        format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{RUNS_SLOT}'");
    let pid: u32 = stage.postgres.value(&holder).expect("it is active").parse().unwrap();
    let stopped_at = Instant::now();
    reaper::signal(pid, "STOP");
    program.wait_for_log("no sign of life from the walsender");
    let took = stopped_at.elapsed();
    assert!(took < RECEIVE_TIMEOUT + SLACK, "{took:?}");
    let line = program.wait_for_log("which was asked to end and has not");
    assert!(line.contains(&format!("process {pid} with application name `walhouse/{RUNS_SLOT}`")));
    program.wait_for_log(&format!("kill -CONT {pid}"));
    // Bounded: it goes through the strategy, and is tried again.
    program.wait_for_log_lines("which was asked to end and has not", 2);
    stage.postgres.insert("TaskRun", &sample::run("meanwhile"));

    reaper::signal(pid, "CONT");
    program.wait_streaming(&["runs"]);
    stage.settle(&mut program, &["runs"]);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS));
    let now: u32 = stage.postgres.value(&holder).expect("it is active").parse().unwrap();
    assert_ne!(now, pid);
    program.stop();
}

/// Goal: a server that takes connections and says nothing is given up within the receive timeout,
/// and a connection that dies while the stream is being prepared, too.
#[test]
fn silence_is_noticed_before_the_stream_begins() {
    let stage = Stage::take();
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let with_port = |port: u16| {
        stage
            .settings_runs()
            .with("DATABASE_URL", stage.postgres.url_through(port))
            .with("REPLICATION_RECEIVE_TIMEOUT_MS", RECEIVE_TIMEOUT.as_millis())
    };
    let started_at = Instant::now();
    let mut program = Program::start(&with_port(mute.local_addr().unwrap().port()));
    let line = program.wait_for_log("connect to Postgres database");
    assert!(started_at.elapsed() < RECEIVE_TIMEOUT + SLACK, "{:?}", started_at.elapsed());
    assert!(line.contains("no answer within 2.0s"), "{line}");
    program.kill();

    // The table is locked, so that the session waits in the middle of its questions.
    let proxy = Proxy::to(stage.postgres.port());
    let mut client = stage.postgres.client();
    client.batch_execute("BEGIN; LOCK TABLE pg_publication IN ACCESS EXCLUSIVE MODE").unwrap();
    let program = Program::start(&with_port(proxy.port()));
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    until_true("the program waits for the lock", PATIENCE, || {
        stage.postgres.value(waits).as_deref() == Some("1")
    });
    assert_notices_and_recovers(program, &proxy, &mut client);
}

/// The server is gone while the program waits for the transaction of `client`, and comes back.
#[track_caller]
fn assert_notices_and_recovers(mut program: Program, proxy: &Proxy, client: &mut Client) {
    proxy.blackhole();
    let lost_at = Instant::now();
    program.wait_for_log("reconnecting in");
    assert!(lost_at.elapsed() < RECEIVE_TIMEOUT + SLACK, "{:?}", lost_at.elapsed());
    client.batch_execute("ROLLBACK").unwrap();
    proxy.resume();
    proxy.cut();
    program.wait_streaming(&["runs"]);
    program.stop();
}

/// Goal: a slot that is made waits for every transaction that is running. The operator is told for
/// which, and a server that is gone meanwhile is noticed although it was not to be heard anyway.
#[test]
fn a_slot_that_waits_says_for_whom_and_notices_a_server_that_is_gone() {
    let stage = Stage::take();
    let proxy = Proxy::to(stage.postgres.port());
    let settings = stage
        .settings_runs()
        .with("DATABASE_URL", stage.postgres.url_through(proxy.port()))
        .with("REPLICATION_RECEIVE_TIMEOUT_MS", RECEIVE_TIMEOUT.as_millis());
    let mut client = stage.postgres.client();
    client.batch_execute("BEGIN; CREATE TABLE public.t ()").unwrap();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let mut program = Program::start(&settings);
    let line = program.wait_for_log("waits for the end of the transaction of process");
    assert!(line.contains(&format!("process {pid} (`walhouse-tests` from 127.0.0.1")), "{line}");
    // It may take as long as that transaction does: longer than any silence, and than the 10 s that
    // other statements wait for a lock.
    stays_true("it waits", Duration::from_secs(12), || program.log_lines("reconnecting") == 0);
    assert_eq!(program.log_lines("waits for the end"), 1, "it is said once");

    // A stop does not wait for it, and leaves nothing behind.
    program.signal("TERM");
    assert_eq!(program.wait_end(SLACK).code(), Some(0));
    assert_eq!(program.log_lines("ERROR"), 0, "{}", program.log());
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(stage.postgres.value(slots).as_deref(), Some("0"));

    let mut program = Program::start(&settings);
    program.wait_for_log("waits for the end of the transaction of process");
    assert_notices_and_recovers(program, &proxy, &mut client);
}

/// Goal: `pg_ctl stop -m fast` under constant load and with a slow ClickHouse ends within a second
/// of the last batch being durable.
#[test]
fn an_orderly_stop_ends_when_the_last_batch_is_durable() {
    let mut stage = Stage::own();
    let mut program = stage.start();
    stage.clickhouse.add_fault("action=delay_after&ms=1500&on=insert&table=_v");
    // Without large values: nothing is read again, which a server that stops does not allow.
    let load = Workload { rate: Some(40.0), big_every: 0, ..Workload::new(90) };
    let writing = load.start(&stage.postgres);
    writing.wait_for(60);
    let began_at = Instant::now();
    stage.postgres.begin_stop(Stop::Fast);
    let (mut flushed, mut flushed_at) = ([None; 2], began_at);
    until("Postgres has ended", PATIENCE, || {
        for (service, last) in SERVICES.iter().zip(&mut flushed) {
            let now = program.metric(&format!("walhouse_flushed_lsn{{service=\"{service}\"}}"));
            if now != *last {
                (*last, flushed_at) = (now, Instant::now());
            }
        }
        (!stage.postgres.is_running()).then_some(())
    });
    let after = flushed_at.elapsed();
    stage.postgres.wait_stopped(PATIENCE);
    // One second, and one for a machine that is shared.
    assert!(after < Duration::from_secs(2), "{after:?} after the last batch was durable");
    stage.clickhouse.clear_faults();
    stage.postgres.start_again();
    writing.stop();
    program.wait_streaming(&SERVICES);
    stage.settle(&mut program, &SERVICES);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
    for slot in [RUNS_SLOT, SESSIONS_SLOT] {
        assert_eq!(stage.postgres.walsenders(slot), 1);
    }
    program.stop();
}
