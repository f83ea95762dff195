//! `walhouse backfill`: beside the stream and alone, in part and as a whole, killed and resumed.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::program::{Program, Settings};
use crate::support::reaper;
use crate::support::sample;
use crate::support::stage::{SERVICES, Stage};
use crate::support::wait::until_true;
use crate::support::workload::Workload;

const PATIENCE: Duration = Duration::from_secs(120);

fn load(seed: u64) -> Workload {
    Workload { rate: Some(40.0), ..Workload::new(seed) }
}

fn backfill(settings: &Settings, arguments: &[&str]) -> Output {
    Program::command(settings, &[&["backfill"][..], arguments].concat())
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn insert_sessions(stage: &Stage, rows: u32) {
    stage.postgres.execute(&format!(
        r#"INSERT INTO "Session" ("id", "friendlyId", "type", "projectId", "runtimeEnvironmentId",
               "environmentType", "organizationId", "taskIdentifier", "tags", "metadata",
               "createdAt", "updatedAt", "triggerConfig")
           SELECT 'old-' || lpad(n::text, 6, '0'), 'old-' || n, 'chat', 'p', 'e', 'PRODUCTION',
                  'o', 't', ARRAY['x', n::text], jsonb_build_object('n', n),
                  timestamp '2026-01-01' + n * interval '1 minute', now(), '{{}}'
           FROM generate_series(1, {rows}) n"#
    ));
}

fn sessions(stage: &Stage) -> BTreeSet<String> {
    let ids = stage.clickhouse.value(&format!(
        "SELECT arrayStringConcat(groupArray(session_id), ',') \
         FROM {DATABASE}.sessions_v1 FINAL"
    ));
    ids.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect()
}

/// A backfill that is under way, as a process of its own.
struct Running(Child);

impl Running {
    fn start(stage: &Stage, arguments: &[&str]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walhouse"));
        command.env_clear().args(["backfill"]).args(arguments);
        for name in [
            "DATABASE_URL",
            "REDIS_HOST",
            "REDIS_PORT",
            "REDIS_TLS_DISABLED",
            "SESSION_REPLICATION_ENABLED",
            "SESSION_REPLICATION_CLICKHOUSE_URL",
            "REPLICATION_RECEIVE_TIMEOUT_MS",
        ] {
            command.env(name, stage.settings().get(name).expect("it is set"));
        }
        let process =
            command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::null()).spawn();
        let process = process.expect("the binary runs");
        reaper::end_with_us(process.id(), "KILL");
        Running(process)
    }

    fn wait(mut self) {
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Goal: beside a stream under load, with rows updated and deleted under it, killed on its way and
/// resumed, it ends with both sides equal.
/// Method: all rows are of the time before the slot, and pages take their time to land.
#[test]
fn beside_the_stream_killed_and_resumed_it_ends_equal() {
    let stage = Stage::own();
    load(900).run(&stage.postgres, 60);
    // Fifteen pages: enough for it to be on its way still when what changes has changed.
    insert_sessions(&stage, 30_000);
    let settings = stage.settings();
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    let writing = load(901).start(&stage.postgres);
    stage.clickhouse.add_fault("action=delay_before&ms=400&on=insert");
    let change = || {
        for _ in 0..10 {
            stage.postgres.execute(
                "DELETE FROM \"Session\" WHERE id IN
                     (SELECT id FROM \"Session\" WHERE id LIKE 'old-%' ORDER BY random() LIMIT 50);
                 UPDATE \"Session\" SET tags = ARRAY['changed'], \"updatedAt\" = now() WHERE id IN
                     (SELECT id FROM \"Session\" WHERE id LIKE 'old-%' ORDER BY random() LIMIT 50)",
            );
        }
    };
    let mut positions = vec![String::new()];
    for arguments in [&["sessions"][..], &["sessions", "--resume"]] {
        let running = Running::start(&stage, arguments);
        until_true("it has come further", PATIENCE, || {
            let is_there = stage.clickhouse.value(&format!(
                "SELECT count() FROM system.tables WHERE database = '{DATABASE}' AND \
                 name = 'walhouse_backfills'"
            ));
            assert_eq!(is_there, "1");
            let position = stage.clickhouse.value(&format!(
                "SELECT max(position) FROM {DATABASE}.walhouse_backfills \
                 WHERE service = 'sessions'"
            ));
            let is_new = !positions.contains(&position);
            if is_new {
                positions.push(position);
            }
            is_new
        });
        change();
        running.kill();
        change();
    }
    stage.clickhouse.clear_faults();
    succeeds(&backfill(&settings, &["sessions", "--resume"]));
    let nothing = backfill(&settings, &["sessions", "--resume"]);
    assert_eq!(nothing.status.code(), Some(1));
    succeeds(&backfill(&settings, &["runs", "--all-statuses"]));
    writing.stop();
    stage.settle(&mut program, &SERVICES);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
    // There is nothing to write any more.
    let again = succeeds(&backfill(&settings, &["sessions"]));
    assert!(again.contains(" 0 written"), "{again}");
    program.stop();
}

/// Goal: it needs no stream; what happens meanwhile is streamed afterwards, and wins.
#[test]
fn beside_a_stopped_service_what_is_streamed_later_wins() {
    let stage = Stage::own();
    load(910).run(&stage.postgres, 40);
    let settings = stage.settings();
    let early = backfill(&settings, &["sessions"]);
    assert_eq!(early.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&early.stderr).into_owned();
    assert!(errors.contains("was never streamed") && errors.contains("hint: "), "{errors}");
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    program.stop();
    load(911).run(&stage.postgres, 20);
    succeeds(&backfill(&settings, &["sessions"]));
    succeeds(&backfill(&settings, &["runs", "--all-statuses"]));
    for table in ["TaskRun", "Session"] {
        stage.postgres.execute(&format!(
            "DELETE FROM \"{table}\" WHERE id LIKE 'w910-0-%';
             UPDATE \"{table}\" SET \"updatedAt\" = now() WHERE id LIKE 'w910-1-%'"
        ));
    }
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    stage.settle(&mut program, &SERVICES);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
    assert!(!program.log().contains("repair"), "{}", program.log());
    program.stop();
}

/// Goal: rows that the stream had just deleted do not come back by a page that was read before, not
/// even by one that a backfill had landed just before it was killed.
/// Method: a page waits on its way into ClickHouse until the stream has passed the DELETE of all of
/// its rows, which names only their keys and finds nothing there to cover.
#[test]
fn rows_deleted_under_a_backfill_stay_deleted() {
    let stage = Stage::own();
    insert_sessions(&stage, 100);
    let settings = stage.settings();
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    const HALF: &str = "2026-01-01T00:51:00";
    for (range, is_killed) in
        [(["sessions", "--to", HALF], true), (["sessions", "--from", HALF], false)]
    {
        stage.clickhouse.add_fault("action=delay_before&ms=4000&table=sessions_v1");
        let running = Running::start(&stage, &range);
        until_true("a page waits to land", PATIENCE, || 0 < stage.clickhouse.fault_hits());
        stage.postgres.execute(&format!(
            "DELETE FROM \"Session\" WHERE (\"createdAt\" < '{HALF}') = {is_killed}"
        ));
        stage.settle(&mut program, &["sessions"]);
        assert_eq!(sessions(&stage).len(), 0, "the stream came first");
        // Whatever comes after the page takes its time.
        stage.clickhouse.add_fault("action=delay_before&ms=500&on=query");
        until_true("the page has landed", PATIENCE, || sessions(&stage).len() == 50);
        if is_killed {
            running.kill();
            assert_eq!(sessions(&stage).len(), 50, "nobody buries them");
        } else {
            running.wait();
        }
        stage.clickhouse.clear_faults();
        if is_killed {
            // Another one, not the same again.
            succeeds(&backfill(&settings, &["sessions", "--to", "2025-01-01"]));
        }
        assert_eq!(sessions(&stage).len(), 0);
    }
    stage.settle(&mut program, &["sessions"]);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::SESSIONS);
    program.stop();
}

/// Goal: exactly the rows that were asked for.
#[test]
fn ranges_and_lists_take_exactly_their_rows() {
    let stage = Stage::own();
    insert_sessions(&stage, 100);
    for (id, status) in [("ended", "COMPLETED_SUCCESSFULLY"), ("running", "EXECUTING")] {
        let run = sample::with(sample::run(id), json!({"status": status}));
        stage.postgres.insert("TaskRun", &run);
    }
    let settings = stage.settings();
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    let id = |n: u32| format!("old-{n:06}");
    let mut expected = BTreeSet::new();
    let range = ["sessions", "--from", "2026-01-01T00:10:00", "--to", "2026-01-01T00:20:00Z"];
    succeeds(&backfill(&settings, &range));
    expected.extend((10..20).map(id));
    assert_eq!(sessions(&stage), expected);
    let list = reaper::new_dir("ids").join("ids");
    fs::write(&list, "old-000042\n\n  old-000043 \nnobody\nit's\n").unwrap();
    let list = list.to_str().expect("a path of ours");
    let answer = succeeds(&backfill(&settings, &["sessions", "--ids", list]));
    assert!(answer.contains("2 rows read of 4 ids, 2 written"), "{answer}");
    expected.extend([42, 43].map(id));
    assert_eq!(sessions(&stage), expected);
    succeeds(&backfill(&settings, &["sessions", "--from", "2026-01-01 01:39:00"]));
    expected.extend([99, 100].map(id));
    assert_eq!(sessions(&stage), expected);

    let runs = || stage.clickhouse.count("task_runs_v2", "1");
    succeeds(&backfill(&settings, &["runs"]));
    assert_eq!((runs(), stage.clickhouse.count("task_runs_v2", "run_id = 'ended'")), (1, 1));
    succeeds(&backfill(&settings, &["runs", "--all-statuses"]));
    assert_eq!(runs(), 2);
    assert_eq!(backfill(&settings, &["runs", "--from", "yesterday"]).status.code(), Some(64));
    assert_eq!(backfill(&settings, &["runs", "--ids", "/nowhere/ids"]).status.code(), Some(1));
    program.stop();
}
