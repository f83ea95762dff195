//! Taking a service out of Postgres, and putting it back.

use std::process::Output;

use crate::support::oracle::{Scope, assert_same};
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, SERVICES, SESSIONS_SLOT, Stage};

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn slots(stage: &Stage) -> Vec<String> {
    let rows = stage.postgres.rows("SELECT slot_name FROM pg_replication_slots ORDER BY 1");
    rows.into_iter().flatten().flatten().collect()
}

fn publications(stage: &Stage) -> usize {
    stage.postgres.rows("SELECT 1 FROM pg_publication").len()
}

#[test]
fn a_service_is_torn_down_once_nobody_leads_and_somebody_agreed() {
    let stage = Stage::take();
    let settings = stage.settings();
    let mut program = stage.start();
    stage.postgres.insert("TaskRun", &sample::run("before"));
    stage.settle(&mut program, &SERVICES);

    let output = Program::command(&settings, &["teardown", "runs", "--yes"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said(&output).contains("another instance holds the leader lock"), "{output:?}");
    assert_eq!(slots(&stage), [SESSIONS_SLOT, RUNS_SLOT]);
    program.stop();

    let output = Program::command(&settings, &["teardown", "runs"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said(&output).contains("--yes"), "nobody can be asked: {output:?}");
    assert_eq!(slots(&stage), [SESSIONS_SLOT, RUNS_SLOT]);

    // A service that is off already can be taken down, too.
    let off = settings.clone().with("RUN_REPLICATION_ENABLED", 0);
    let output = Program::command(&off, &["teardown", "runs", "--yes"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = said(&output);
    assert!(text.contains(&format!("Dropped slot `{RUNS_SLOT}`. It kept ")), "{text}");
    assert!(text.contains("of WAL"), "{text}");
    assert_eq!(slots(&stage), [SESSIONS_SLOT]);
    assert_eq!(publications(&stage), 2);

    let output = Program::command(&settings, &["teardown", "runs", "--yes"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(said(&output).starts_with("Nothing to do"), "{output:?}");
    // With a role that has no more than it needs the publication is somebody else's.
    stage.postgres.execute("CREATE ROLE few LOGIN REPLICATION");
    let url = stage.postgres.url().replace("//postgres@", "//few@");
    let as_few = settings.clone().with("DATABASE_URL", url);
    let output = Program::command(&as_few, &["teardown", "sessions", "--yes", "--publication"]);
    stage.postgres.execute("DROP ROLE few");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let hint =
        format!("Slot `{SESSIONS_SLOT}` is dropped. As its owner, or as a superuser, run: DROP");
    assert!(said(&output).contains(&hint), "{output:?}");
    assert_eq!((slots(&stage).len(), publications(&stage)), (0, 2));

    let output = Program::command(&settings, &["teardown", "sessions", "--yes", "--publication"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!((slots(&stage).len(), publications(&stage)), (0, 1));
    assert_eq!(stage.redis.keys(), [] as [String; 0], "no lock is left");

    // What was written meanwhile is found by the repair.
    stage.postgres.insert("TaskRun", &sample::run("meanwhile"));
    let mut program = stage.start();
    // Both were torn down, and either may be done first.
    program.wait_for_log("runs: repair: done");
    program.wait_for_log("sessions: repair: done");
    stage.settle(&mut program, &SERVICES);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
    program.stop();
}

#[test]
fn a_slot_of_somebody_else_is_left_alone() {
    let stage = Stage::take();
    stage.postgres.execute(&format!(
        "SELECT pg_create_logical_replication_slot('{RUNS_SLOT}', 'test_decoding')"
    ));
    let output = Program::command(&stage.settings(), &["teardown", "runs", "--yes"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said(&output).contains("its plugin is `test_decoding`"), "{output:?}");
    assert_eq!(slots(&stage), [RUNS_SLOT]);
    stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{RUNS_SLOT}')"));
}
