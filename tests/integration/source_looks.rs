//! The looks at the source beside the stream: what a start would refuse is no new normal, and a
//! watch that cannot look says so.

use std::time::Duration;

use serde_json::json;

use super::hidden::{PUBLICATION, PUBLICATIONS, assert_equal, begun, has_lists, settings, sql};
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::Stage;
use crate::support::wait::until_true;

struct Case {
    name: &'static str,
    change: fn(&Stage),
    refusal: &'static str,
    undo: fn(&Stage),
}

/// What a start refuses, and the catalog's entries alone do not show as hiding rows.
const REFUSED: [Case; 2] = [
    Case {
        name: "the replica identity does not name the key",
        change: |stage| {
            sql(
                stage,
                "CREATE UNIQUE INDEX other_key ON \"TaskRun\" (\"createdAt\", \"friendlyId\");
                 ALTER TABLE \"TaskRun\" REPLICA IDENTITY USING INDEX other_key",
            );
        },
        refusal: "without the key `id`",
        undo: |stage| sql(stage, "ALTER TABLE \"TaskRun\" REPLICA IDENTITY DEFAULT"),
    },
    Case {
        name: "a column that was added is not in the list",
        change: |stage| {
            sql(stage, "ALTER TABLE \"TaskRun\" ADD COLUMN \"region\" text");
            stage.postgres.update("TaskRun", "seed-2", &json!({"region": "here"}));
        },
        refusal: "its column list for table `public.TaskRun` is missing columns: region",
        undo: |stage| sql(stage, "ALTER PUBLICATION $p SET TABLE \"TaskRun\""),
    },
];

/// Goal: what a start refuses is refused while streaming as well, and what the stream lacked
/// meanwhile is mended once it is undone.
#[test]
fn what_a_start_would_refuse_ends_the_stream() {
    let stage = Stage::own();
    if !has_lists(&stage.postgres) {
        return;
    }
    sql(&stage, "ALTER TABLE \"TaskRun\" DROP COLUMN \"region\"");
    let columns = stage.postgres.value(
        "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
         WHERE attrelid = '\"TaskRun\"'::regclass AND 0 < attnum AND NOT attisdropped",
    );
    let list = columns.unwrap();
    sql(&stage, &format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE \"TaskRun\" ({list})"));
    let mut program = Program::start(&settings(&stage));
    program.wait_streaming(&["runs"]);
    for n in 0..5 {
        let mut run = sample::full_run(&format!("seed-{n}"));
        run.as_object_mut().unwrap().remove("region");
        stage.postgres.insert("TaskRun", &run);
    }
    stage.settle(&mut program, &["runs"]);
    for case in REFUSED {
        println!("{}", case.name);
        (case.change)(&stage);
        program.wait_for_log(case.refusal);
        (case.undo)(&stage);
        program.wait_streaming(&["runs"]);
    }
    program.wait_for_log("runs: repair: done");
    assert_equal(&stage, &mut program, "what a start refuses");
    program.stop();
}

/// Goal: a watch that cannot look says so, and when it can again; the stream goes on meanwhile.
#[test]
fn a_watch_that_is_blind_says_so() {
    /// Four looks, and a busy machine.
    const LOOKS: Duration = Duration::from_secs(120);
    let (stage, mut program) = begun();
    let mut client = stage.postgres.client();
    let mut allow = |allow: bool| {
        let update = format!(
            "UPDATE pg_database SET datallowconn = {allow} WHERE datname = current_database()"
        );
        client.batch_execute(&update).unwrap();
    };
    allow(false);
    until_true("it says so", LOOKS, || program.log_lines("cannot inspect the source") == 1);
    assert_eq!(program.state("runs"), "streaming");
    allow(true);
    program.wait_for_log("the source can be inspected again");
    assert_eq!(program.log_lines("cannot inspect the source"), 1);
    program.stop();
}

/// Goal: skipping what the source may have hidden does not pass over a repair that is running.
/// Method: the repair of the first change waits for a transaction when the second one comes.
#[test]
fn what_is_owed_already_is_not_skipped() {
    let (stage, program) = begun();
    program.stop();
    (PUBLICATIONS[0].1)(&stage);
    let mut other = stage.postgres.client();
    other.batch_execute("CREATE TABLE aside (n int)").unwrap();
    let mut open = other.transaction().unwrap();
    open.batch_execute("INSERT INTO aside VALUES (1)").unwrap();
    let mut program = Program::start(&settings(&stage));
    program.wait_for_log("waiting for 1 transactions that were open at");
    program.stop();
    (PUBLICATIONS[1].1)(&stage);
    let skipping = settings(&stage).with("REPLICATION_GAP_STRATEGY", "skip");
    let mut program = Program::start(&skipping);
    program.wait_for_log("not skipped, since a repair is pending");
    open.commit().unwrap();
    program.wait_for_log("runs: repair: done");
    assert_equal(&stage, &mut program, "a repair under skip");
    program.stop();
}

/// Goal: without the record of what the source looked like nobody knows what was hidden since, so
/// it is told, and the table compared.
/// Method: while nothing runs the table with the records is dropped, or a record is of a form that
/// is not known, and rows are hidden.
#[test]
fn a_look_that_is_lost_counts_as_a_difference() {
    let (stage, mut program) = begun();
    for (reason, lose) in [
        ("is not recorded any more", "DROP TABLE trigger_dev.walhouse_sources SYNC"),
        (
            "is recorded in a form that this version does not know",
            "INSERT INTO trigger_dev.walhouse_sources
                 (service, slot, system_identifier, catalog, revision)
             SELECT service, slot, system_identifier, '{}', revision + 1
             FROM trigger_dev.walhouse_sources ORDER BY revision DESC LIMIT 1",
        ),
    ] {
        program.stop();
        stage.clickhouse.execute(lose);
        (PUBLICATIONS[0].1)(&stage);
        let checked = Program::command(&settings(&stage), &["check"]);
        let told = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(told.contains(reason), "{told}");
        program = Program::start(&settings(&stage));
        let line = program.wait_for_log(reason);
        assert!(line.contains(" WARN "), "{line}");
        program.wait_for_log("runs: repair: done");
        assert_equal(&stage, &mut program, reason);
    }
    program.stop();
    let mut program = Program::start(&settings(&stage));
    program.wait_streaming(&["runs"]);
    assert_equal(&stage, &mut program, "once");
    assert!(!program.log().contains("repair"), "{}", program.log());
    program.stop();
}
