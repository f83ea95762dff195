//! Target tables and our own that are dropped, replaced or altered in ClickHouse while we stream:
//! the next session finds what is there, and what was lost with them comes back.

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::Stage;
use crate::support::wait::{PATIENCE, until_true};

const RUNS: &str = "trigger_dev.task_runs_v2";

/// Streams, does it, streams on, and expects all rows to be there, the old ones, too. `mended` is
/// run when the log asks for it.
fn check(damage: &[&str], mended: Option<&str>) {
    let stage = Stage::take();
    let mut program = Program::start(&stage.settings_runs());
    program.wait_streaming(&["runs"]);
    (0..5).for_each(|n| stage.postgres.insert("TaskRun", &sample::full_run(&format!("old-{n}"))));
    stage.settle(&mut program, &["runs"]);
    damage.iter().for_each(|sql| stage.clickhouse.execute(sql));
    stage.postgres.insert("TaskRun", &sample::full_run("after"));
    program.wait_for_log("runs: reconnecting in");
    if let Some(sql) = mended {
        program.wait_for_log("hint: Run on ClickHouse: ");
        until_true("it is not healthy", PATIENCE, || program.health().0 == 503);
        stage.clickhouse.execute(sql);
    }
    until_true(format!("{damage:?}: everything is there"), PATIENCE, || {
        program.state("runs") == "streaming"
            && stage.clickhouse.has_table("task_runs_v2")
            && stage.clickhouse.count("task_runs_v2", "span_id != ''") == 6
    });
    stage.settle(&mut program, &["runs"]);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    until_true("it is healthy", PATIENCE, || program.health().0 == 200);
    program.stop();
}

#[test]
fn a_table_that_was_dropped_is_made_and_filled_again() {
    check(&[&format!("DROP TABLE {RUNS} SYNC")], None);
}

#[test]
fn a_database_that_was_dropped_is_made_and_filled_again() {
    check(&[&format!("DROP DATABASE {DATABASE} SYNC")], None);
}

#[test]
fn an_empty_table_in_the_place_of_another_is_filled() {
    let made = format!("CREATE TABLE {DATABASE}.other AS {RUNS}");
    check(&[&made, &format!("EXCHANGE TABLES {DATABASE}.other AND {RUNS}")], None);
}

#[test]
fn a_column_that_was_dropped_comes_back_with_its_values() {
    let drop = format!("ALTER TABLE {RUNS} DROP COLUMN span_id");
    check(&[&drop], Some(&format!("ALTER TABLE {RUNS} ADD COLUMN span_id String")));
}

#[test]
fn a_table_of_another_shape_in_the_place_of_ours_is_named() {
    let made = format!(
        "CREATE OR REPLACE TABLE {RUNS} (run_id String, created_at DateTime64(3)) \
         ENGINE = MergeTree ORDER BY run_id"
    );
    check(&[&made], Some(&format!("DROP TABLE {RUNS} SYNC")));
}

#[test]
fn tables_of_our_own_that_were_dropped_are_made_again_and_all_rows_compared() {
    for table in ["walhouse_state", "walhouse_repairs"] {
        let stage = Stage::take();
        let mut program = Program::start(&stage.settings_runs());
        program.wait_streaming(&["runs"]);
        (0..5).for_each(|n| stage.postgres.insert("TaskRun", &sample::full_run(&format!("{n}"))));
        stage.settle(&mut program, &["runs"]);
        // What a repair was still to write.
        stage.clickhouse.execute(&format!("TRUNCATE TABLE {RUNS}"));
        stage.clickhouse.execute(&format!("DROP TABLE {DATABASE}.{table} SYNC"));
        // Without a row of the stream: a service that is idle sees it, too.
        program.wait_for_log(&format!("dropped in ClickHouse: `{table}`"));
        until_true("everything is there", PATIENCE, || {
            stage.clickhouse.has_table(table) && stage.clickhouse.count("task_runs_v2", "1") == 5
        });
        stage.settle(&mut program, &["runs"]);
        assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
        program.stop();
    }
}
