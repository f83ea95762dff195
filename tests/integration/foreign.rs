//! What ClickHouse has of another source is not taken for deleted: another database of the same
//! cluster, another program that writes into the same table.

use std::time::Duration;

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::postgres::{Database, TABLES};
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, SERVICES, SESSIONS_SLOT, Stage};
use crate::support::wait::{PATIENCE, until_true};

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

/// Goal: one that was created again under the old name is another one: it has no row of the old.
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

/// Goal: where the record of the database is lost, the look at the source still tells another one
/// from it, and costs no row, be they ever so few beside those of the other.
#[test]
fn another_database_is_not_followed_where_its_own_record_is_lost() {
    let stage = Stage::own();
    make_database(&stage, "first");
    let other = make_database(&stage, "other");
    for n in 0..60 {
        other.insert("TaskRun", &sample::run(&format!("other-{n}")));
    }
    replicate(&stage, "first", 7);
    drop_slots(&stage);
    stage.clickhouse.execute(&format!("DROP TABLE {DATABASE}.walhouse_databases SYNC"));
    let mut program = Program::start(&settings_of(&stage, "other"));
    program.wait_halted(&SERVICES);
    assert_eq!(program.log_lines("repair: done"), 0, "{}", program.log());
    assert_eq!(stage.clickhouse.count("task_runs_v2", "run_id LIKE 'first-%'"), 7);
    program.stop();
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

/// Rows in ClickHouse as another program writes them that uses the same table.
fn plant_runs(stage: &Stage, rows: u32) {
    stage.clickhouse.execute(&format!(
        "INSERT INTO {DATABASE}.task_runs_v2 (organization_id, project_id, environment_id,
             created_at, run_id, _version)
         SELECT 'o', 'p', 'e', '2026-01-01 00:00:00', concat('planted-', toString(number)), 7
         FROM numbers({rows})"
    ));
}

fn planted(stage: &Stage) -> u64 {
    stage.clickhouse.count("task_runs_v2", "run_id LIKE 'planted-%'")
}

#[track_caller]
fn wait_for_question(stage: &Stage, program: &mut Program, gone: u32, alive: u32) {
    program.wait_for_log(&format!(
        "runs: repair: mark rows of `task_runs_v2` as deleted for service `runs`: {gone} of {alive} \
         are not in Postgres"
    ));
    until_true("/healthz says so", PATIENCE, || program.health().0 == 503);
    // The stream goes on meanwhile.
    stage.postgres.insert("TaskRun", &sample::run("streamed"));
    stage.settle(program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "run_id = 'streamed'"), 1);
    assert_eq!(program.log_lines("repair: done"), 0, "{}", program.log());
}

/// Goal: what the repair itself has copied says nothing of whose the rows are that were there.
#[test]
fn rows_that_a_repair_writes_do_not_outvote_those_of_another_source() {
    let stage = Stage::own();
    let settings = stage.settings_runs();
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::run("first"));
    stage.settle(&mut program, &["runs"]);
    program.stop();
    plant_runs(&stage, 7);
    stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{RUNS_SLOT}')"));
    for n in 0..30 {
        stage.postgres.insert("TaskRun", &sample::run(&format!("missed{n}")));
    }
    let mut program = Program::start(&settings);
    wait_for_question(&stage, &mut program, 7, 8);
    assert_eq!(planted(&stage), 7);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "run_id LIKE 'missed%'"), 30);
    program.stop();
}

/// Goal: rows that another source has written into the table, or that a TRUNCATE has left there,
/// are not taken for deleted by a repair; somebody has to say so.
#[test]
fn a_repair_asks_before_it_marks_much_of_a_table_as_deleted() {
    let stage = Stage::own();
    let settings = stage.settings_runs();
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    for n in 0..7 {
        stage.postgres.insert("TaskRun", &sample::run(&format!("r{n}")));
    }
    stage.settle(&mut program, &["runs"]);
    program.stop();
    let drop_slot = format!("SELECT pg_drop_replication_slot('{RUNS_SLOT}')");
    plant_runs(&stage, 7);
    stage.postgres.execute(&drop_slot);
    let mut program = Program::start(&settings);
    wait_for_question(&stage, &mut program, 7, 14);
    assert_eq!(planted(&stage), 7);
    program.stop();
    // Asked again by the next session, and answered by a variable.
    let mut program = Program::start(&settings);
    program.wait_for_log("runs: repair: mark rows of `task_runs_v2` as deleted");
    assert_eq!(planted(&stage), 7);
    program.stop();
    let answered = settings.clone().with("REPLICATION_REPAIR_DELETES_MAX_PERCENT", 100);
    let mut program = Program::start(&answered);
    until_true("the repair is done", RECOVERY, || program.log_lines("runs: repair: done") == 1);
    program.wait_healthy();
    assert_eq!(planted(&stage), 0);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 8);
    program.stop();

    // A few that were deleted while nobody streamed are no question.
    stage.postgres.execute(&drop_slot);
    stage.postgres.execute("DELETE FROM \"TaskRun\" WHERE id IN ('r0', 'r1')");
    let program = Program::start(&settings);
    until_true("the repair is done", RECOVERY, || program.log_lines("runs: repair: done") == 1);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 6);
    program.stop();

    stage.postgres.execute("TRUNCATE \"TaskRun\"");
    stage.postgres.execute(&drop_slot);
    let mut program = Program::start(&settings);
    wait_for_question(&stage, &mut program, 6, 6);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "1"), 6 + 1 - 1);
    program.stop();
}

/// Goal: where two sources are known to write into one table nothing is taken for deleted, be it ever
/// so little.
#[test]
fn a_repair_beside_another_recorded_source_marks_nothing_as_deleted_by_itself() {
    let stage = Stage::own();
    make_database(&stage, "first");
    let second = make_database(&stage, "second");
    replicate(&stage, "first", 60);
    let settings = settings_of(&stage, "second")
        .with("SESSION_REPLICATION_ENABLED", 0)
        .with("RUN_REPLICATION_SLOT_NAME", "second_slot");
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    for n in 0..2 {
        second.insert("TaskRun", &sample::run(&format!("second-{n}")));
    }
    stage.settle(&mut program, &["runs"]);
    drop_slots(&stage);
    let mut repairing =
        Program::start(&settings_of(&stage, "first").with("SESSION_REPLICATION_ENABLED", 0));
    repairing.wait_for_log("2 of 62 are not in Postgres, and slot `second_slot` brings rows");
    assert_eq!(stage.clickhouse.count("task_runs_v2", "run_id LIKE 'second-%'"), 2);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "1"), 62);
    repairing.stop();
    program.stop();
}

/// Goal: the same of `verify --repair`; what is missing or different is mended all the same.
#[test]
fn verify_asks_before_it_marks_much_of_a_table_as_deleted() {
    let stage = Stage::own();
    let settings = stage.settings_runs();
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    for n in 0..7 {
        stage.postgres.insert("TaskRun", &sample::run(&format!("r{n}")));
    }
    stage.settle(&mut program, &["runs"]);
    plant_runs(&stage, 7);
    stage.clickhouse.execute(&format!(
        "INSERT INTO {DATABASE}.task_runs_v2 SELECT * REPLACE (_version + 1 AS _version,
             1 AS _is_deleted) FROM {DATABASE}.task_runs_v2 WHERE run_id = 'r0'"
    ));
    let repair = ["verify", "runs", "--full", "--repair"];
    let output = Program::command(&settings, &repair);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("missing `r0` (mended)"), "{text}");
    assert!(text.contains("7 of 13 are not in Postgres"), "{text}");
    assert!(text.contains("8 keys differ: 1 missing, 0 different, 7 extra; 1 mended"), "{text}");
    assert_eq!(planted(&stage), 7);
    let answered = settings.clone().with("REPLICATION_REPAIR_DELETES_MAX_PERCENT", 100);
    let output = Program::command(&answered, &repair);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(planted(&stage), 0);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS));
    program.stop();
}
