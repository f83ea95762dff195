//! What ClickHouse has of another source is not taken for deleted: another database of the same
//! cluster, another program that writes into the same table.

use std::time::Duration;

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::postgres::{Database, TABLES};
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, SERVICES, SESSIONS_SLOT, Stage};
use crate::support::wait::until_true;

const RECOVERY: Duration = Duration::from_secs(120);

/// A database of the stage's cluster, with the source tables.
fn make_database(stage: &Stage, name: &str) -> Database {
    stage.postgres.execute(&format!("CREATE DATABASE {name}"));
    let database = stage.postgres.at_database(name);
    database.execute(TABLES);
    database
}

fn url_of(stage: &Stage, name: &str) -> String {
    stage.postgres.url().replace("/postgres", &format!("/{name}")).replacen(
        &format!("://{name}"),
        "://postgres",
        1,
    )
}

fn settings_of(stage: &Stage, database: &str) -> Settings {
    stage.settings().with("DATABASE_URL", url_of(stage, database))
}

/// A program on that database has replicated so many runs, and has stopped.
fn replicate(stage: &Stage, name: &str, runs: usize) {
    let database = stage.postgres.at_database(name);
    let mut program = Program::start(&settings_of(stage, name));
    program.wait_streaming(&SERVICES);
    for n in 0..runs {
        database.insert("TaskRun", &sample::run(&format!("{name}-{n}")));
    }
    stage.settle(&mut program, &SERVICES);
    program.stop();
}

fn drop_slots(stage: &Stage) {
    for slot in [RUNS_SLOT, SESSIONS_SLOT] {
        stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    }
}

/// Goal: a URL that leads to another database of the same cluster costs no row, under whatever
/// strategy, and is followed once somebody says so.
#[test]
fn another_database_of_the_cluster_is_followed_only_after_it_was_adopted() {
    let stage = Stage::own();
    make_database(&stage, "first");
    let other = make_database(&stage, "other");
    other.insert("TaskRun", &sample::run("of the other"));
    replicate(&stage, "first", 7);
    drop_slots(&stage);

    for strategy in ["repair", "skip", "halt"] {
        let settings = settings_of(&stage, "other").with("REPLICATION_GAP_STRATEGY", strategy);
        let mut program = Program::start(&settings);
        program.wait_halted(&SERVICES);
        program.wait_for_log("foreign database: expected `first` (oid ");
        program.wait_for_log("walhouse adopt runs");
        program.stop();
        assert_eq!(
            stage.clickhouse.count("task_runs_v2", "run_id LIKE 'first-%'"),
            7,
            "{strategy}"
        );
    }
    let settings = settings_of(&stage, "other");
    let checked = Program::command(&settings, &["check"]);
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("problem  runs: lineage: resume service `runs`"), "{checked}");
    for command in ["verify", "backfill"] {
        let output = Program::command(&settings, &[command, "runs"]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains("its rows come from database `first`"), "{errors}");
    }

    // Of one that is named another one is not followed.
    make_database(&stage, "third");
    for service in SERVICES {
        let output = Program::command(&settings, &["adopt", service]);
        assert!(output.status.success(), "{output:?}");
    }
    let mut program = Program::start(&settings_of(&stage, "third"));
    program.wait_halted(&SERVICES);
    program.stop();

    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    for service in SERVICES {
        let done = format!("{service}: repair: done");
        until_true(&done, RECOVERY, || program.log_lines(&done) == 1);
    }
    other.insert("TaskRun", &sample::run("later"));
    stage.settle(&mut program, &SERVICES);
    assert!(0 < assert_same(&other, &stage.clickhouse, Scope::ALL));
    program.stop();
    let output = Program::command(&settings, &["adopt", "runs"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("nothing to adopt"), "{output:?}");
}

/// Goal: one that was made anew under the old name is another one: it has no row of the old.
#[test]
fn a_database_that_was_made_anew_under_its_name_is_another_one() {
    let stage = Stage::own();
    make_database(&stage, "app");
    replicate(&stage, "app", 7);
    drop_slots(&stage);
    stage.postgres.execute("DROP DATABASE app WITH (FORCE)");
    make_database(&stage, "app");
    let mut program = Program::start(&settings_of(&stage, "app"));
    program.wait_halted(&SERVICES);
    program.stop();
    assert_eq!(stage.clickhouse.count("task_runs_v2", "1"), 7);
}

/// Goal: what is the same database goes on, whatever it is called and whoever wrote the state.
#[test]
fn a_database_with_a_new_name_and_a_state_of_an_older_version_go_on() {
    let stage = Stage::own();
    make_database(&stage, "app");
    replicate(&stage, "app", 3);
    // As a version left it that did not know of databases.
    stage.clickhouse.execute(&format!("DROP TABLE {DATABASE}.walhouse_databases SYNC"));
    let check = Program::command(&settings_of(&stage, "app"), &["check"]);
    let checked = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(checked.contains("lineage: same timeline as before"), "{checked}");
    let recorded = || {
        stage.clickhouse.value(&format!(
            "SELECT database_name FROM {DATABASE}.walhouse_databases FINAL WHERE service = 'runs'"
        ))
    };
    let goes_on = |name: &str, run: &str| {
        let mut program = Program::start(&settings_of(&stage, name));
        program.wait_streaming(&SERVICES);
        let database = stage.postgres.at_database(name);
        database.insert("TaskRun", &sample::run(run));
        stage.settle(&mut program, &SERVICES);
        assert!(0 < assert_same(&database, &stage.clickhouse, Scope::ALL));
        assert_eq!(program.log_lines("gap"), 0, "{}", program.log());
        program.stop();
        assert_eq!(recorded(), name);
    };
    goes_on("app", "later");
    stage.postgres.execute("ALTER DATABASE app RENAME TO renamed");
    goes_on("renamed", "under a new name");
}
