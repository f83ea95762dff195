//! Tables that walhouse creates have, in the end, the rows that were there before, whatever happens
//! on the way. Each test ends with a comparison of both sides.

use std::time::Duration;

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same, compare};
use crate::support::program::{Program, Settings};
use crate::support::stage::{RUNS_SLOT, SERVICES, SESSIONS_SLOT, Stage};
use crate::support::wait::until_true;
use crate::support::workload::Workload;

const PATIENCE: Duration = Duration::from_secs(120);

fn load(seed: u64) -> Workload {
    Workload { rate: Some(40.0), ..Workload::new(seed) }
}

fn settings(stage: &Stage) -> Settings {
    stage.settings().with_both("*_REPLICATION_INITIAL_BACKFILL", 1)
}

#[track_caller]
fn start(stage: &Stage) -> Program {
    let mut program = Program::start(&settings(stage));
    program.wait_streaming(&SERVICES);
    program
}

fn insert_sessions(stage: &Stage, rows: u32) {
    stage.postgres.execute(&format!(
        r#"INSERT INTO "Session" ("id", "friendlyId", "type", "projectId", "runtimeEnvironmentId",
               "environmentType", "organizationId", "taskIdentifier", "tags", "metadata",
               "updatedAt", "triggerConfig")
           SELECT 'old-' || n, 'old-' || n, 'chat', 'p', 'e', 'PRODUCTION', 'o', 't',
                  ARRAY['x', n::text], jsonb_build_object('n', n), now(), '{{}}'
           FROM generate_series(1, {rows}) n"#
    ));
}

fn of_state(stage: &Stage, column: &str) -> Vec<String> {
    SERVICES
        .iter()
        .map(|service| {
            stage.clickhouse.value(&format!(
                "SELECT toString({column}) FROM {DATABASE}.walhouse_state \
                 WHERE service = '{service}' ORDER BY revision DESC LIMIT 1"
            ))
        })
        .collect()
}

#[track_caller]
fn wait_filled(stage: &Stage) {
    until_true("no backfill is under way", PATIENCE, || {
        let sql = format!(
            "SELECT countIf(status = 'done') >= 2 AND countIf(status != 'done') = 0 \
             FROM {DATABASE}.walhouse_repairs FINAL"
        );
        ["1", "true"].contains(&stage.clickhouse.value(&sql).as_str())
    });
}

/// Goal: rows that were there before are there in the end, with what became of them meanwhile.
/// Method: the program is killed again and again on its way, from its very start on.
#[test]
fn rows_of_the_time_before_are_copied_however_often_it_is_killed() {
    let stage = Stage::own();
    load(700).run(&stage.postgres, 60);
    insert_sessions(&stage, 20_000);
    let settings = settings(&stage);
    // Whatever was done by then: nothing, the tables, the slot, some of the rows.
    for line in
        ["walhouse", "initial backfill", "sessions: streaming", "sessions: initial backfill: "]
    {
        let mut program = Program::start(&settings);
        program.wait_for_log(line);
        program.kill();
    }
    let writing = load(701).start(&stage.postgres);
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    for _ in 0..20 {
        stage.postgres.execute(
            "DELETE FROM \"Session\" WHERE id IN
                 (SELECT id FROM \"Session\" WHERE id LIKE 'old-%' ORDER BY random() LIMIT 50);
             UPDATE \"Session\" SET \"updatedAt\" = now() WHERE id IN
                 (SELECT id FROM \"Session\" WHERE id LIKE 'old-%' ORDER BY random() LIMIT 50)",
        );
    }
    wait_filled(&stage);
    writing.stop();
    stage.settle(&mut program, &SERVICES);
    assert!(20_000 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL) + 1_000);
    // It was no gap, and versions are as those of whoever writes positions alone.
    let gaps = "walhouse_gaps_total{service=\"sessions\",action=\"repaired\"}";
    assert_eq!(program.metric(gaps), Some(0.0));
    assert_eq!(of_state(&stage, "version_shift"), ["0", "0"]);
    program.stop();
    // Once is enough.
    let mut program = start(&stage);
    assert!(!program.log().contains("backfill"), "{}", program.log());
    program.wait_healthy();
    program.stop();
}

/// Goal: what ClickHouse loses as a whole, while nobody streams, is there again.
#[test]
fn a_database_that_was_dropped_is_filled_again() {
    let stage = Stage::own();
    let mut program = start(&stage);
    load(710).run(&stage.postgres, 60);
    stage.settle(&mut program, &SERVICES);
    program.stop();
    stage.clickhouse.execute(&format!("DROP DATABASE {DATABASE} SYNC"));
    let mut program = start(&stage);
    for service in SERVICES {
        program.wait_for_log(&format!("{service}: initial backfill"));
    }
    wait_filled(&stage);
    load(711).run(&stage.postgres, 10);
    stage.settle(&mut program, &SERVICES);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
    program.stop();
}

/// Goal: nothing is copied where that is not wanted, or where the tables were there.
#[test]
fn nothing_is_copied_when_told_so_or_into_tables_that_were_there() {
    let stage = Stage::own();
    load(720).run(&stage.postgres, 30);
    let without = stage.settings();
    let copied = |settings: &Settings, seed: u64| {
        let mut program = Program::start(settings);
        program.wait_streaming(&SERVICES);
        load(seed).run(&stage.postgres, 10);
        stage.settle(&mut program, &SERVICES);
        assert!(!program.log().contains(": initial backfill"), "{}", program.log());
        program.stop();
        compare(&stage.postgres, &stage.clickhouse, Scope::ALL).is_clean()
    };
    assert!(!copied(&without, 721));
    // As another replicator leaves it: tables and slots, and nothing of ours.
    for table in ["walhouse_state", "walhouse_repairs"] {
        stage.clickhouse.execute(&format!("DROP TABLE {DATABASE}.{table} SYNC"));
    }
    assert!(!copied(&settings(&stage), 722));
}

/// Goal: what is to be done about gaps says nothing about a first start.
#[test]
fn a_first_start_under_halt_copies_too() {
    let stage = Stage::own();
    load(730).run(&stage.postgres, 30);
    let settings = settings(&stage).with("REPLICATION_GAP_STRATEGY", "halt");
    Program::start(&settings).wait_for_log("initial backfill");
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    wait_filled(&stage);
    stage.settle(&mut program, &SERVICES);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
    program.stop();
}

/// As trigger.dev leaves it: its tables, and nothing of ours.
fn forget_ours(stage: &Stage) {
    let ours = format!(
        "SELECT name FROM system.tables WHERE database = '{DATABASE}' AND name LIKE 'walhouse_%'"
    );
    for row in stage.clickhouse.rows(&ours) {
        let name = row[0].as_str().expect("it has a name");
        stage.clickhouse.execute(&format!("DROP TABLE {DATABASE}.{name} SYNC"));
    }
    for slot in [RUNS_SLOT, SESSIONS_SLOT] {
        stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    }
}

/// Goal: tables that were there before the first start, empty or older than the source, are told of
/// where somebody looks, with what fills them; and that fills them.
#[test]
fn tables_that_were_there_and_lack_rows_are_told_of_and_filled() {
    let stage = Stage::own();
    load(740).run(&stage.postgres, 60);
    let settings = settings(&stage);
    let mut program = Program::start(&stage.settings());
    program.wait_streaming(&SERVICES);
    program.stop();
    let checked = |settings: &Settings| {
        let output = Program::command(settings, &["check"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // Empty: what was there before was not copied. Then: older than the source.
    for (table, is_filled) in [("empty", false), ("older", true)] {
        forget_ours(&stage);
        if is_filled {
            insert_sessions(&stage, 10);
            stage.postgres.insert("TaskRun", &crate::support::sample::run("zzz-the-last"));
        }
        let told = checked(&settings);
        for (target, command) in [
            ("task_runs_v2", "`walhouse backfill runs --all-statuses`"),
            ("sessions_v1", "`walhouse backfill sessions`"),
        ] {
            let line = format!("`{target}` existed before the first start and lacks rows");
            assert!(told.contains(&line) && told.contains(command), "{table}: {told}");
        }
        let mut program = Program::start(&settings);
        program.wait_streaming(&SERVICES);
        program.wait_for_log("`sessions_v1` existed before the first start and lacks rows");
        let status = program.status();
        for service in SERVICES {
            let notes = status["services"][service]["notes"].to_string();
            assert!(notes.contains("INITIAL_BACKFILL=existing"), "{table}: {notes}");
        }
        program.stop();
        if is_filled {
            break;
        }
        // So that the tables are older, and not empty.
        forget_ours(&stage);
        let existing = settings.clone().with_both("*_REPLICATION_INITIAL_BACKFILL", "existing");
        let told = checked(&existing);
        assert!(
            told.contains("old rows: the first start copies those that ClickHouse lacks"),
            "{told}"
        );
        let mut program = Program::start(&existing);
        program.wait_streaming(&SERVICES);
        wait_filled(&stage);
        stage.settle(&mut program, &SERVICES);
        assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
        assert_eq!(of_state(&stage, "version_shift"), ["0", "0"]);
        // It is no sign of anything wrong.
        let lines = program.log();
        let lines = lines.lines().filter(|line| line.contains(": initial backfill"));
        assert!(lines.clone().count() >= 4, "{}", program.log());
        assert!(lines.clone().all(|line| line.contains("INFO")), "{}", program.log());
        program.stop();
    }
    // Whole tables are nothing to tell of.
    let existing = settings.clone().with_both("*_REPLICATION_INITIAL_BACKFILL", "existing");
    forget_ours(&stage);
    let mut program = Program::start(&existing);
    program.wait_streaming(&SERVICES);
    wait_filled(&stage);
    program.stop();
    forget_ours(&stage);
    let told = checked(&settings);
    assert!(told.contains("old rows: ClickHouse has all rows of the sample"), "{told}");
}
