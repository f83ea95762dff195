//! Databases that are not in UTF-8: in SQL_ASCII a text is whatever bytes a client has sent, all
//! others are converted.

use serde_json::{Value, json};

use crate::support::clickhouse::DATABASE;
use crate::support::postgres::{Database, TABLES};
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::Stage;

/// A database of the stage's cluster with the source tables, and the settings that lead there.
fn make(stage: &Stage, name: &str, encoding: &str) -> (Database, Settings) {
    stage.postgres.execute(&format!(
        "CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    ));
    let database = stage.postgres.at_database(name);
    database.execute(TABLES);
    let port = stage.postgres.port();
    let url = format!("postgres://postgres@127.0.0.1:{port}/{name}");
    let settings = stage.settings().with("DATABASE_URL", url);
    (database, settings.with("SESSION_REPLICATION_ENABLED", 0))
}

/// The values of the run whose `queue` is this, of what is not deleted.
fn run_of(stage: &Stage, queue: &str) -> Vec<Vec<Value>> {
    stage.clickhouse.rows(&format!(
        "SELECT hex(run_id), schedule_id, output.data.text::String, error.data.raw::String, tags \
         FROM {DATABASE}.task_runs_v2 FINAL WHERE queue = '{queue}'"
    ))
}

const BROKEN: &str = r#"UPDATE "TaskRun" SET "scheduleId" = E'caf\xe9', "output" = E'{"text":"\xe9"}',
    "outputType" = 'application/json', "error" = E'{"type":"STRING_ERROR","raw":"\xe8"}',
    "runTags" = ARRAY[E'a\xe9', 'b"', repeat('x', 200)]"#;

/// Goal: one byte that is no UTF-8 costs the character that it is, in the stream and in whatever
/// reads the table, and the original is kept.
#[test]
fn a_byte_that_is_no_utf8_is_replaced_and_its_value_kept() {
    for binary in [1, 0] {
        let stage = Stage::own();
        let (database, settings) = make(&stage, "raw", "SQL_ASCII");
        let settings = settings.with("REPLICATION_BINARY", binary);
        let mut program = Program::start(&settings);
        program.wait_streaming(&["runs"]);
        for id in ["a", "deleted", "toasted"] {
            let row = sample::with(sample::full_run(id), json!({"queue": format!("q-{id}")}));
            database.insert("TaskRun", &row);
        }
        database.execute(&format!("{BROKEN}, id = id || E'\\xe9'"));
        // A value that an UPDATE leaves in TOAST is read from the table, by a key that is no UTF-8.
        database.execute(
            r#"ALTER TABLE "TaskRun" ALTER "output" SET STORAGE EXTERNAL;
               UPDATE "TaskRun" SET "output" = E'{"text":"\xe9' || repeat('z', 9000) || '"}'
                   WHERE queue = 'q-toasted'"#,
        );
        database.execute(r#"UPDATE "TaskRun" SET "attemptNumber" = 9 WHERE queue = 'q-toasted'"#);
        database.execute(r#"DELETE FROM "TaskRun" WHERE queue = 'q-deleted'"#);
        stage.settle(&mut program, &["runs"]);

        let x = "x".repeat(200);
        let expected = |id: &str, text: String| {
            let id: String = id.bytes().map(|byte| format!("{byte:02X}")).collect();
            vec![vec![
                json!(format!("{id}E9")),
                json!("caf\u{fffd}"),
                json!(text),
                json!("\u{fffd}"),
                json!(["a\u{fffd}", "b\"", x]),
            ]]
        };
        assert_eq!(run_of(&stage, "q-a"), expected("a", "\u{fffd}".to_owned()));
        let text = format!("\u{fffd}{}", "z".repeat(9000));
        assert_eq!(run_of(&stage, "q-toasted"), expected("toasted", text));
        assert_eq!(run_of(&stage, "q-deleted"), Vec::<Vec<Value>>::new());
        let kept = stage.clickhouse.rows(&format!(
            "SELECT DISTINCT column, hex(document) FROM {DATABASE}.walhouse_refused_rows FINAL \
             WHERE key = unhex('61E9') ORDER BY column"
        ));
        let kept = |column: &str| {
            kept.iter().find(|row| row[0] == column).map(|row| row[1].as_str().unwrap().to_owned())
        };
        assert_eq!(kept("scheduleId").as_deref(), Some("636166E9"));
        assert!(kept("output").is_some_and(|hex| hex.contains("E9")), "{:?}", kept("output"));
        assert!(kept("error").is_some() && kept("runTags").is_some());
        assert_eq!(program.log_lines("reconnecting in"), 0, "{}", program.log());

        // What reads the table reads the same.
        let verified = Program::command(&settings, &["verify", "runs"]);
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
        let copied = Program::command(&settings, &["backfill", "runs", "--all-statuses"]);
        assert_eq!(copied.status.code(), Some(0), "{copied:?}");
        program.stop();
        // And so does a repair: after a gap, with a row that is missing and one that is too much.
        database.execute(r#"DELETE FROM "TaskRun" WHERE queue = 'q-toasted'"#);
        database.insert("TaskRun", &sample::with(sample::full_run("b"), json!({"queue": "q-b"})));
        database.execute(&format!("{BROKEN}, id = id || E'\\xe9' WHERE queue = 'q-b'"));
        let slot = crate::support::stage::RUNS_SLOT;
        stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
        let mut program = Program::start(&settings);
        program.wait_for_log("runs: repair: done");
        assert_eq!(run_of(&stage, "q-b"), expected("b", "\u{fffd}".to_owned()));
        assert_eq!(run_of(&stage, "q-toasted"), Vec::<Vec<Value>>::new());
        let verified = Program::command(&settings, &["verify", "runs"]);
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
        program.stop();
    }
}

#[test]
fn other_encodings_are_converted() {
    let stage = Stage::own();
    let (database, settings) = make(&stage, "latin", "LATIN1");
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    let row = json!({"queue": "q-a", "scheduleId": "caf\u{e9}"});
    database.insert("TaskRun", &sample::with(sample::run("a"), row));
    stage.settle(&mut program, &["runs"]);
    let found = run_of(&stage, "q-a");
    assert_eq!(found[0][1], json!("caf\u{e9}"));
    let verified = Program::command(&settings, &["verify", "runs"]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    program.stop();
}

fn planted(stage: &Stage) -> String {
    stage.clickhouse.value(&format!(
        "SELECT count() FROM {DATABASE}.task_runs_v2 FINAL WHERE position(run_id, '\u{65e5}') > 0"
    ))
}

/// Goal: a key that the database has no characters for, which somebody has written into ClickHouse,
/// is none that Postgres has, to a repair and to the commands beside the stream.
#[test]
fn a_key_that_the_database_cannot_hold_is_not_in_it() {
    let stage = Stage::own();
    let (database, settings) = make(&stage, "latin", "LATIN1");
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    for n in 0..20 {
        database.insert("TaskRun", &sample::run(&format!("caf\u{e9}-{n}")));
    }
    stage.settle(&mut program, &["runs"]);
    let plant = |of: u32| {
        stage.clickhouse.execute(&format!(
            "INSERT INTO {DATABASE}.task_runs_v2
             SELECT * REPLACE (concat(run_id, '-\u{65e5}') AS run_id)
             FROM {DATABASE}.task_runs_v2 FINAL WHERE friendly_id = 'run_caf\u{e9}-{of}'"
        ));
        assert_eq!(planted(&stage), "1");
    };
    plant(3);
    let verified = Program::command(&settings, &["verify", "runs", "--full"]);
    let told = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(told.contains("1 keys differ: 0 missing, 0 different, 1 extra"), "{verified:?}");
    let verified = Program::command(&settings, &["verify", "runs", "--full", "--repair"]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    assert_eq!(planted(&stage), "0");
    program.stop();
    plant(4);
    let slot = crate::support::stage::RUNS_SLOT;
    stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    let mut program = Program::start(&settings);
    program.wait_for_log("runs: repair: done");
    assert_eq!(planted(&stage), "0");
    program.stop();
}

/// Goal: a row that the server cannot hand out in UTF-8 keeps no other one from being mended, is
/// told, and is not called equal.
#[test]
fn a_row_that_cannot_be_converted_stops_neither_a_repair_nor_a_comparison() {
    let stage = Stage::own();
    let (database, settings) = make(&stage, "win", "WIN1252");
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    for n in 0..9 {
        database.insert("TaskRun", &sample::run(&format!("r{n}")));
    }
    stage.settle(&mut program, &["runs"]);
    program.stop();
    let slot = crate::support::stage::RUNS_SLOT;
    stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    database.execute(r#"UPDATE "TaskRun" SET queue = E'q\x81' WHERE id IN ('r3', 'r5')"#);
    database.execute(r#"UPDATE "TaskRun" SET queue = E'caf\xe9' WHERE id IN ('r4', 'r8')"#);
    let mut program = Program::start(&settings);
    program.wait_for_log("1 rows contain a character that UTF-8 cannot represent");
    let done = program.wait_for_log("runs: repair: done");
    assert!(done.contains("both sides are equal but for 2 rows that cannot be read"), "{done}");
    assert_eq!(run_of(&stage, "caf\u{e9}").len(), 2);
    let verified = Program::command(&settings, &["verify", "runs", "--full"]);
    assert_eq!(verified.status.code(), Some(2), "{verified:?}");
    let told = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(told.contains("runs: 2 rows could not be compared"), "{told}");
    program.stop();
}

/// The same for a first start; and a byte that is no UTF-8 costs its character there, too.
#[test]
fn rows_that_are_hard_to_hand_out_are_copied_as_far_as_they_can_be() {
    for (encoding, left_out) in [("WIN1252", 2), ("SQL_ASCII", 0)] {
        let stage = Stage::own();
        let (database, settings) = make(&stage, "copied", encoding);
        for n in 0..9 {
            database.insert("TaskRun", &sample::run(&format!("r{n}")));
        }
        database.execute(r#"UPDATE "TaskRun" SET queue = E'q\x81' WHERE id IN ('r3', 'r5')"#);
        database.execute(r#"UPDATE "TaskRun" SET queue = E'caf\xe9' WHERE id IN ('r4', 'r8')"#);
        let settings = settings.with("RUN_REPLICATION_INITIAL_BACKFILL", 1);
        let mut program = Program::start(&settings);
        let done = program.wait_for_log("runs: initial backfill: done");
        assert_eq!(done.contains("but for 2 rows that cannot be read"), left_out == 2, "{done}");
        let rows = stage.clickhouse.count("task_runs_v2", "1");
        assert_eq!(rows, 9 - left_out, "{encoding}");
        let queue = if left_out == 2 { "caf\u{e9}" } else { "caf\u{fffd}" };
        assert_eq!(run_of(&stage, queue).len(), 2, "{encoding}");
        program.stop();
    }
}
