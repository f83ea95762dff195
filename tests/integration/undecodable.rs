//! WAL that cannot be decoded is a gap, not something to be tried for ever: the same error at the
//! same place three times, with a table and a publication that are right by then. A state in which
//! no stream could work is refused at the start, with its statement.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, Stage};
use crate::support::wait::{PATIENCE, stays_true, until_true};

const PUBLICATION: &str = "task_runs_to_clickhouse_v1_publication";
const REPAIRED: &str = r#"walhouse_gaps_total{service="runs",action="repaired"}"#;

fn insert(stage: &Stage, id: &str) {
    stage.postgres.insert("TaskRun", &sample::full_run(id));
}

/// Everything from before and after arrives, by one repair and on a slot that works.
#[track_caller]
fn assert_mended(stage: &Stage, program: &mut Program) {
    program.wait_for_log("runs: repair: done");
    program.wait_streaming(&["runs"]);
    insert(stage, "after");
    stage.settle(program, &["runs"]);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS));
    until_true("it is healthy again", PATIENCE, || program.health().0 == 200);
    assert_eq!(program.metric(REPAIRED), Some(1.0), "{}", program.log());
}

/// While it is stopped the publication is dropped, changes come, and it is made again. Nothing
/// tells of that: the record is one of after it.
fn make_again(stage: &Stage) {
    stage.postgres.execute(&format!("DROP PUBLICATION {PUBLICATION}"));
    insert(stage, "between");
    stage.postgres.update("TaskRun", "before", &json!({"status": "CANCELED"}));
    stage.postgres.delete("TaskRun", "before-too");
    stage.postgres.execute(&format!(
        "CREATE PUBLICATION {PUBLICATION} FOR TABLE \"TaskRun\"
         WITH (publish = 'insert, update, delete, truncate')"
    ));
    let recorded = stage.clickhouse.value(&format!(
        "SELECT catalog FROM {DATABASE}.walhouse_sources ORDER BY revision DESC LIMIT 1"
    ));
    let mut catalog: Value = serde_json::from_str(&recorded).unwrap();
    let value = |query: &str| stage.postgres.value(query).unwrap().parse::<u32>().unwrap();
    let publication = &mut catalog["publications"][0];
    publication["oid"] = json!(value("SELECT oid FROM pg_publication"));
    publication["version"] = json!(value("SELECT xmin FROM pg_publication"));
    publication["members"][0]["oid"] = json!(value("SELECT oid FROM pg_publication_rel"));
    publication["members"][0]["version"] = json!(value("SELECT xmin FROM pg_publication_rel"));
    let catalog = catalog.to_string().replace('\\', "\\\\").replace('\'', "\\'");
    stage.clickhouse.execute(&format!(
        "INSERT INTO {DATABASE}.walhouse_sources
             (service, slot, system_identifier, catalog, revision)
         SELECT service, slot, system_identifier, '{catalog}', revision + 1
         FROM {DATABASE}.walhouse_sources ORDER BY revision DESC LIMIT 1"
    ));
}

/// With two runs in both, and stopped.
fn begun(settings: impl Fn(&Stage) -> Settings) -> (Stage, Settings) {
    let stage = Stage::own_with(&[("max_prepared_transactions", "3")]);
    let settings = settings(&stage);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    insert(&stage, "before");
    insert(&stage, "before-too");
    stage.settle(&mut program, &["runs"]);
    program.stop();
    (stage, settings)
}

/// The first version that passes over what was written before the publication, with a warning.
const WARNS_ONLY: u32 = 18;

#[test]
fn a_publication_that_was_made_again_is_a_gap_on_servers_that_cannot_decode_what_was_before() {
    let (stage, settings) = begun(Stage::settings_runs);
    if WARNS_ONLY <= stage.postgres.version() {
        return;
    }
    make_again(&stage);
    let mut program = Program::start(&settings);
    let line = program.wait_for_log("gap: the WAL at ");
    assert!(line.contains("cannot be decoded") && line.contains("42704"), "{line}");
    assert_eq!(program.log_lines("reconnecting in"), 3, "{}", program.log());
    assert_mended(&stage, &mut program);
    program.stop();
    // What was mended is not mended again.
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    stage.settle(&mut program, &["runs"]);
    assert!(!program.log().contains("repair"), "{}", program.log());
    program.stop();
}

#[test]
fn under_halt_it_stops_and_says_what_happened() {
    let (stage, settings) =
        begun(|stage| stage.settings_runs().with("REPLICATION_GAP_STRATEGY", "halt"));
    if WARNS_ONLY <= stage.postgres.version() {
        return;
    }
    make_again(&stage);
    let mut program = Program::start(&settings);
    program.wait_halted(&["runs"]);
    let line = program.wait_for_log("gap: the WAL at ");
    assert!(line.contains("ERROR") && line.contains("42704"), "{line}");
    program.wait_for_log("REPLICATION_GAP_STRATEGY is `halt`. Set it to `repair`");
    assert!(stage.postgres.confirmed_flush(RUNS_SLOT).is_some(), "the slot is still there");
    program.stop();

    let mut program = Program::start(&settings.with("REPLICATION_GAP_STRATEGY", "repair"));
    program.wait_for_log("gap: the WAL at ");
    program.wait_for_log("runs: repair: done");
    program.wait_streaming(&["runs"]);
    stage.settle(&mut program, &["runs"]);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS));
    program.stop();
}

#[test]
fn under_skip_it_goes_on_behind_it() {
    let (stage, settings) =
        begun(|stage| stage.settings_runs().with("REPLICATION_GAP_STRATEGY", "skip"));
    if WARNS_ONLY <= stage.postgres.version() {
        return;
    }
    make_again(&stage);
    let mut program = Program::start(&settings);
    program.wait_for_log("skipped: the differences");
    program.wait_streaming(&["runs"]);
    insert(&stage, "after");
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "run_id = 'after'"), 1);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "run_id = 'between'"), 0);
    program.stop();
}

/// Goal: a DELETE that names another column than the key is one of those, too: the error is ours.
#[test]
fn a_delete_under_an_identity_without_the_key_is_a_gap_once_that_is_put_right() {
    for binary in [1, 0] {
        let stage = Stage::take();
        stage.postgres.execute(
            "CREATE UNIQUE INDEX other ON \"TaskRun\" (\"friendlyId\");
             ALTER TABLE \"TaskRun\" ALTER \"friendlyId\" SET NOT NULL",
        );
        let settings = stage.settings_runs().with("REPLICATION_BINARY", binary);
        let mut program = Program::start(&settings);
        program.wait_streaming(&["runs"]);
        insert(&stage, "before");
        insert(&stage, "stays");
        stage.settle(&mut program, &["runs"]);
        let wrong = "ALTER TABLE \"TaskRun\" REPLICA IDENTITY USING INDEX other";
        stage.postgres.execute(wrong);
        stage.postgres.delete("TaskRun", "before");
        // While it is wrong it is refused, with its statement, as often as one likes.
        program.wait_for_log_lines("replica identity is (friendlyId), without the key `id`", 4);
        let hint = program.wait_for_log("hint: Run: ALTER TABLE");
        assert!(hint.contains("REPLICA IDENTITY FULL;"), "{hint}");
        assert_eq!(program.log_lines("gap:"), 0, "{}", program.log());
        stage.postgres.execute("ALTER TABLE \"TaskRun\" REPLICA IDENTITY DEFAULT");
        program.wait_for_log("gap: the WAL at ");
        assert_mended(&stage, &mut program);
        assert_eq!(
            stage.clickhouse.count("task_runs_v2", "_is_deleted = 0 AND run_id = 'before'"),
            0
        );
        program.stop();
    }
}

/// Goal: a server that is away, however often, is no reason to give WAL up.
#[test]
fn streams_that_break_at_one_place_are_tried_for_ever() {
    let stage = Stage::take();
    let mut program = Program::start(&stage.settings_runs());
    for _ in 0..5 {
        program.wait_streaming(&["runs"]);
        stage.postgres.terminate_walsender(RUNS_SLOT);
    }
    insert(&stage, "a");
    program.wait_streaming(&["runs"]);
    stage.settle(&mut program, &["runs"]);
    stays_true("nothing is given up", Duration::from_secs(2), || program.log_lines("gap:") == 0);
    assert_eq!(program.metric(REPAIRED), Some(0.0));
    program.stop();
}

#[test]
fn a_slot_with_two_phase_is_refused_with_its_statement() {
    let stage = Stage::own_with(&[("max_prepared_transactions", "3")]);
    let settings = stage.settings_runs();
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    insert(&stage, "before");
    stage.settle(&mut program, &["runs"]);
    program.stop();
    stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{RUNS_SLOT}')"));
    stage.postgres.execute(&format!(
        "SELECT pg_create_logical_replication_slot('{RUNS_SLOT}', 'pgoutput', false, true)"
    ));
    stage.postgres.execute(
        "BEGIN; UPDATE \"TaskRun\" SET \"status\" = 'CANCELED'; PREPARE TRANSACTION 'two'",
    );
    stage.postgres.execute("COMMIT PREPARED 'two'");
    let checked = Program::command(&settings, &["check"]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{told}");
    assert!(told.contains("two_phase"), "{told}");
    let mut program = Program::start(&settings);
    program.wait_for_log_lines("it was created with two_phase", 2);
    let hint = program.wait_for_log("hint: Run: ");
    let (_, statement) = hint.split_once("Run: ").unwrap();
    stage.postgres.execute(statement.split_once(';').unwrap().0);
    assert_mended(&stage, &mut program);
    program.stop();
}

/// Goal: a slot that somebody made before the publication is found before it is streamed from, on
/// every version: the one cannot decode what is between them, the other passes it over.
#[test]
fn a_slot_that_is_older_than_its_publication_is_a_gap_on_a_first_start() {
    let stage = Stage::own();
    stage
        .postgres
        .execute(&format!("SELECT pg_create_logical_replication_slot('{RUNS_SLOT}', 'pgoutput')"));
    insert(&stage, "between");
    stage.postgres.execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE \"TaskRun\""));
    insert(&stage, "behind");
    let settings = stage.settings_runs();
    let checked = Program::command(&settings, &["check"]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(told.contains("the slot is older than its publication"), "{told}");
    let mut program = Program::start(&settings);
    program.wait_for_log("gap: the slot is older than its publication");
    assert_eq!(program.log_lines("reconnecting in"), 0, "{}", program.log());
    assert_mended(&stage, &mut program);
    program.stop();

    // Under `halt` it stops, and its statement is enough.
    let stage = Stage::own();
    stage
        .postgres
        .execute(&format!("SELECT pg_create_logical_replication_slot('{RUNS_SLOT}', 'pgoutput')"));
    insert(&stage, "between");
    stage.postgres.execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE \"TaskRun\""));
    let settings = stage.settings_runs().with("REPLICATION_GAP_STRATEGY", "halt");
    let mut program = Program::start(&settings);
    program.wait_halted(&["runs"]);
    let hint = program.wait_for_log("Run: SELECT pg_drop_replication_slot(");
    let (_, statement) = hint.split_once("Run: ").unwrap();
    stage.postgres.execute(statement.split_once(';').unwrap().0);
    program.stop();
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    insert(&stage, "behind");
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "run_id = 'behind'"), 1);
    program.stop();

    // One that is younger, and one that was used since, is taken over as it is.
    let stage = Stage::own();
    stage.postgres.execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE \"TaskRun\""));
    insert(&stage, "before");
    stage
        .postgres
        .execute(&format!("SELECT pg_create_logical_replication_slot('{RUNS_SLOT}', 'pgoutput')"));
    insert(&stage, "behind");
    let mut program = Program::start(&stage.settings_runs());
    program.wait_streaming(&["runs"]);
    program.wait_for_log("taken over at");
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "run_id = 'behind'"), 1);
    assert_eq!(program.log_lines("gap:"), 0, "{}", program.log());
    program.stop();
}
