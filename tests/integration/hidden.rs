//! What the source no longer sends: every kind of change to the publication and the table for which
//! rows are written, or values change, and the stream says nothing. Each is noticed, while streaming
//! and across a restart, and both sides are compared in full; what hides nothing costs no repair.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use crate::support::oracle::{Scope, assert_same};
use crate::support::postgres::Postgres;
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, Stage};
use crate::support::wait::{PATIENCE, until_true};

pub(super) const PUBLICATION: &str = "task_runs_to_clickhouse_v1_publication";

/// A change at the source: what it is called, and what is done.
pub(super) type Case = (&'static str, fn(&Stage));

pub(super) fn sql(stage: &Stage, text: &str) {
    stage.postgres.execute(&text.replace("$p", PUBLICATION));
}

/// Of the rows of a test, to tell them apart.
fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Rows that come, change and go, of which the stream hears nothing.
pub(super) fn write(stage: &Stage) {
    stage.postgres.insert("TaskRun", &sample::full_run(&format!("hidden-{}", next())));
    stage.postgres.execute(
        "UPDATE \"TaskRun\" SET \"costInCents\" = \"costInCents\" + 1, \"updatedAt\" = now()
             WHERE id = (SELECT min(id) FROM \"TaskRun\");
         DELETE FROM \"TaskRun\" WHERE id = (SELECT max(id) FROM \"TaskRun\" WHERE id LIKE 'seed%')",
    );
}

pub(super) fn settings(stage: &Stage) -> Settings {
    stage.settings_runs()
}

/// A stage with some runs that were streamed, by a program that goes on.
pub(super) fn begun() -> (Stage, Program) {
    let stage = Stage::own();
    let program = begin(&stage);
    (stage, program)
}

fn begin(stage: &Stage) -> Program {
    let mut program = Program::start(&settings(stage));
    program.wait_streaming(&["runs"]);
    for n in 0..30 {
        stage.postgres.insert("TaskRun", &sample::full_run(&format!("seed-{n:02}")));
    }
    stage.postgres.update("TaskRun", "seed-00", &json!({"status": "PAUSED"}));
    stage.settle(&mut program, &["runs"]);
    program
}

#[track_caller]
pub(super) fn assert_equal(stage: &Stage, program: &mut Program, name: &str) {
    stage.postgres.insert("TaskRun", &sample::full_run(&format!("after-{}", next())));
    until_true(format!("{name}: all is confirmed"), PATIENCE, || {
        let target = stage.postgres.flush_lsn();
        until_true("the slot has come there", PATIENCE, || {
            stage.postgres.confirmed_flush(RUNS_SLOT).is_some_and(|lsn| target <= lsn)
        });
        true
    });
    stage.settle(program, &["runs"]);
    println!("{name}: comparing");
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), "{name}");
}

/// Each case while the stream runs: the watch sees it, and nobody restarts anything.
fn check_streaming(stage: &Stage, mut program: Program, cases: &[Case]) {
    for (n, (name, change)) in cases.iter().enumerate() {
        println!("streaming: {name}");
        change(stage);
        program.wait_for_log_lines("runs: repair: done", n + 1);
        assert_equal(stage, &mut program, name);
    }
    assert_eq!(program.health().0, 200);
    let gaps = program.metric("walhouse_gaps_total{service=\"runs\",action=\"repaired\"}");
    assert_eq!(gaps, Some(cases.len() as f64), "each is counted");
    program.stop();
}

/// Each case while nothing runs: the next start sees it.
fn check_restarted(stage: &Stage, program: Program, cases: &[Case]) {
    let mut program = program;
    for (name, change) in cases {
        println!("restarted: {name}");
        program.stop();
        change(stage);
        program = Program::start(&settings(stage));
        program.wait_for_log("runs: repair: done");
        assert_equal(stage, &mut program, name);
    }
    // What was mended is not mended again.
    program.stop();
    let mut program = Program::start(&settings(stage));
    program.wait_streaming(&["runs"]);
    assert_equal(stage, &mut program, "nothing");
    assert!(!program.log().contains("repair"), "{}", program.log());
    program.stop();
}

pub(super) fn has_lists(postgres: &Postgres) -> bool {
    let number = postgres.value("SELECT current_setting('server_version_num')");
    number.is_some_and(|number| 150_000 <= number.parse::<u32>().unwrap())
}

pub(super) const PUBLICATIONS: [Case; 3] = [
    ("the table was out of the publication", |stage| {
        sql(stage, "ALTER PUBLICATION $p DROP TABLE \"TaskRun\"");
        write(stage);
        sql(stage, "ALTER PUBLICATION $p ADD TABLE \"TaskRun\"");
    }),
    ("the publication had other actions", |stage| {
        sql(stage, "ALTER PUBLICATION $p SET (publish = 'insert')");
        write(stage);
        sql(stage, "ALTER PUBLICATION $p SET (publish = 'insert, update, delete, truncate')");
    }),
    ("the publication was made again", |stage| {
        sql(stage, "DROP PUBLICATION $p");
        write(stage);
        sql(stage, "CREATE PUBLICATION $p FOR TABLE \"TaskRun\"");
    }),
];

/// Since Postgres 15.
const LISTS: [Case; 4] = [
    ("the table had a row filter", |stage| {
        sql(stage, "ALTER PUBLICATION $p SET (publish = 'insert')");
        sql(stage, "ALTER PUBLICATION $p SET TABLE \"TaskRun\" WHERE (\"number\" < -1)");
        write(stage);
        sql(stage, "ALTER PUBLICATION $p SET TABLE \"TaskRun\"");
        sql(stage, "ALTER PUBLICATION $p SET (publish = 'insert, update, delete, truncate')");
    }),
    ("the publication was of the schema", |stage| {
        sql(stage, "ALTER PUBLICATION $p DROP TABLE \"TaskRun\"");
        write(stage);
        sql(stage, "ALTER PUBLICATION $p ADD TABLES IN SCHEMA public");
    }),
    ("the table was out of that schema", |stage| {
        sql(stage, "CREATE SCHEMA IF NOT EXISTS other; ALTER TABLE \"TaskRun\" SET SCHEMA other");
        sql(stage, "UPDATE other.\"TaskRun\" SET \"costInCents\" = \"costInCents\" + 1");
        sql(stage, "ALTER TABLE other.\"TaskRun\" SET SCHEMA public");
    }),
    // One that is put in by its own name cannot be.
    ("a table of that schema was unlogged", |stage| {
        sql(stage, "ALTER TABLE \"TaskRun\" SET UNLOGGED");
        write(stage);
        sql(stage, "ALTER TABLE \"TaskRun\" SET LOGGED");
    }),
];

fn publications(stage: &Stage) -> Vec<Case> {
    let lists: &[Case] = if has_lists(&stage.postgres) { &LISTS } else { &[] };
    PUBLICATIONS.iter().chain(lists).copied().collect()
}

#[test]
fn rows_that_a_publication_did_not_send_are_mended_while_streaming() {
    let (stage, program) = begun();
    check_streaming(&stage, program, &publications(&stage));
}

#[test]
fn rows_that_a_publication_did_not_send_are_mended_by_the_next_start() {
    let (stage, program) = begun();
    check_restarted(&stage, program, &publications(&stage));
}

const LIKE_THE_TABLE: &str = "CREATE TABLE \"Next\" (LIKE \"TaskRun\" INCLUDING ALL);
     INSERT INTO \"Next\" SELECT * FROM \"TaskRun\" WHERE id <> (SELECT max(id) FROM \"TaskRun\");
     UPDATE \"Next\" SET \"costInCents\" = \"costInCents\" + 7";

const TABLES: [Case; 3] = [
    ("another table took the name by two renames", |stage| {
        sql(stage, LIKE_THE_TABLE);
        sql(
            stage,
            "BEGIN; ALTER TABLE \"TaskRun\" RENAME TO \"Before\";
             ALTER TABLE \"Next\" RENAME TO \"TaskRun\";
             ALTER PUBLICATION $p SET TABLE \"TaskRun\"; COMMIT",
        );
        write(stage);
        sql(stage, "DROP TABLE \"Before\"");
    }),
    ("the table was dropped and made again", |stage| {
        sql(stage, LIKE_THE_TABLE);
        sql(
            stage,
            "BEGIN; CREATE TABLE kept AS SELECT * FROM \"Next\"; DROP TABLE \"TaskRun\", \"Next\";
             COMMIT",
        );
        stage.postgres.execute(
            "CREATE TABLE \"TaskRun\" (LIKE kept INCLUDING ALL, PRIMARY KEY (id));
             INSERT INTO \"TaskRun\" SELECT * FROM kept; DROP TABLE kept",
        );
        sql(stage, "ALTER PUBLICATION $p ADD TABLE \"TaskRun\"");
        write(stage);
    }),
    ("the table was unlogged for a while", |stage| {
        sql(stage, "ALTER PUBLICATION $p DROP TABLE \"TaskRun\"");
        sql(stage, "ALTER TABLE \"TaskRun\" SET UNLOGGED");
        write(stage);
        sql(stage, "ALTER TABLE \"TaskRun\" SET LOGGED");
        sql(stage, "ALTER PUBLICATION $p ADD TABLE \"TaskRun\"");
    }),
];

#[test]
fn a_table_that_took_the_name_is_compared_while_streaming() {
    let (stage, program) = begun();
    check_streaming(&stage, program, &TABLES);
}

#[test]
fn a_table_that_took_the_name_is_compared_by_the_next_start() {
    let (stage, program) = begun();
    check_restarted(&stage, program, &TABLES);
}

/// None of these is streamed, and no row is written meanwhile.
const REWRITES: [Case; 7] = [
    ("a column was rewritten", |stage| {
        sql(
            stage,
            "ALTER TABLE \"TaskRun\" ALTER COLUMN \"costInCents\" TYPE float8
             USING \"costInCents\" * 100 + 1",
        );
    }),
    ("a column was dropped and made again", |stage| {
        sql(
            stage,
            "BEGIN; ALTER TABLE \"TaskRun\" DROP COLUMN \"ttl\";
             ALTER TABLE \"TaskRun\" ADD COLUMN \"ttl\" text; COMMIT",
        );
    }),
    ("an optional column was dropped, and added with a value", |stage| {
        sql(stage, "ALTER TABLE \"TaskRun\" DROP COLUMN \"region\"");
        sql(stage, "ALTER TABLE \"TaskRun\" ADD COLUMN \"region\" text DEFAULT 'somewhere'");
    }),
    ("an optional column had another name", |stage| {
        sql(stage, "ALTER TABLE \"TaskRun\" RENAME COLUMN \"region\" TO \"region2\"");
        sql(stage, "UPDATE \"TaskRun\" SET \"region2\" = 'hidden' WHERE id < 'seed-05'");
        sql(stage, "ALTER TABLE \"TaskRun\" RENAME COLUMN \"region2\" TO \"region\"");
    }),
    ("two columns took each other's names", |stage| {
        sql(
            stage,
            "BEGIN; ALTER TABLE \"TaskRun\" RENAME COLUMN \"spanId\" TO \"x\";
             ALTER TABLE \"TaskRun\" RENAME COLUMN \"traceId\" TO \"spanId\";
             ALTER TABLE \"TaskRun\" RENAME COLUMN \"x\" TO \"traceId\"; COMMIT",
        );
    }),
    ("a label had another name, under which rows were streamed", |stage| {
        sql(stage, "ALTER TYPE \"TaskRunStatus\" RENAME VALUE 'PAUSED' TO 'RESTING'");
        sql(stage, "UPDATE \"TaskRun\" SET status = 'RESTING' WHERE id = 'seed-01'");
        sql(stage, "ALTER TYPE \"TaskRunStatus\" RENAME VALUE 'RESTING' TO 'PAUSED'");
    }),
    ("a label was renamed", |stage| {
        // Of a row that is there; samples have other ones.
        stage.postgres.execute("ALTER TYPE \"TaskRunStatus\" RENAME VALUE 'PAUSED' TO 'HELD'");
    }),
];

#[test]
fn values_that_a_statement_rewrote_are_mended_while_streaming() {
    let (stage, program) = begun();
    check_streaming(&stage, program, &REWRITES);
}

#[test]
fn values_that_a_statement_rewrote_are_mended_by_the_next_start() {
    let (stage, program) = begun();
    check_restarted(&stage, program, &REWRITES);
}

/// Goal: a column that older databases do not have is added with a value for the rows that are there.
#[test]
fn a_column_that_is_added_with_a_value_is_filled() {
    fill_added(Stage::own());
}

/// Of a partitioned table only the partitions know of such values.
#[test]
fn a_column_that_is_added_with_a_value_to_partitions_is_filled() {
    fill_added(partitioned());
}

fn fill_added(stage: Stage) {
    sql(&stage, "ALTER TABLE \"TaskRun\" DROP COLUMN \"region\"");
    let mut program = Program::start(&settings(&stage));
    program.wait_streaming(&["runs"]);
    let mut run = sample::full_run("before");
    run.as_object_mut().unwrap().remove("region");
    stage.postgres.insert("TaskRun", &run);
    stage.settle(&mut program, &["runs"]);
    sql(&stage, "ALTER TABLE \"TaskRun\" ADD COLUMN \"region\" text DEFAULT 'somewhere'");
    program.wait_for_log("runs: repair: done");
    assert_equal(&stage, &mut program, "an optional column was added with a value");
    program.stop();
}

/// Partitioned by the id, with a publication by the root.
fn partitioned() -> Stage {
    let stage = Stage::own();
    stage.postgres.execute(
        "ALTER TABLE \"TaskRun\" RENAME TO \"Plain\";
         CREATE TABLE \"TaskRun\" (LIKE \"Plain\" INCLUDING DEFAULTS, PRIMARY KEY (id))
             PARTITION BY RANGE (id);
         CREATE TABLE runs_a PARTITION OF \"TaskRun\" FOR VALUES FROM (MINVALUE) TO ('m');
         CREATE TABLE runs_m PARTITION OF \"TaskRun\" FOR VALUES FROM ('m') TO ('t1')",
    );
    stage
}

const PARTITIONS: [Case; 6] = [
    ("a partition was attached with rows", |stage| {
        stage.postgres.execute(
            "CREATE TABLE runs_t1 (LIKE \"TaskRun\" INCLUDING ALL);
             INSERT INTO runs_t1 SELECT * FROM runs_m ORDER BY id LIMIT 3;
             UPDATE runs_t1 SET id = 't1' || id;
             ALTER TABLE \"TaskRun\" ATTACH PARTITION runs_t1 FOR VALUES FROM ('t1') TO ('t2')",
        );
    }),
    ("a partition was detached", |stage| {
        stage.postgres.execute("ALTER TABLE \"TaskRun\" DETACH PARTITION runs_t1");
    }),
    ("a partition was attached in two statements", |stage| {
        stage.postgres.execute(
            "ALTER TABLE \"TaskRun\" ATTACH PARTITION runs_t1 FOR VALUES FROM ('t1') TO ('t2')",
        );
    }),
    ("a partition was out for a while", |stage| {
        stage.postgres.execute("ALTER TABLE \"TaskRun\" DETACH PARTITION runs_t1");
        stage.postgres.execute("UPDATE runs_t1 SET \"costInCents\" = \"costInCents\" + 1");
        stage.postgres.execute(
            "ALTER TABLE \"TaskRun\" ATTACH PARTITION runs_t1 FOR VALUES FROM ('t1') TO ('t2')",
        );
    }),
    ("a partition was dropped", |stage| {
        stage.postgres.execute("DROP TABLE runs_t1");
    }),
    ("a partition was unlogged", |stage| {
        stage.postgres.execute("ALTER TABLE runs_m SET UNLOGGED");
        stage.postgres.execute("UPDATE \"TaskRun\" SET \"costInCents\" = \"costInCents\" + 1");
        stage.postgres.execute("ALTER TABLE runs_m SET LOGGED");
    }),
];

#[test]
fn rows_that_came_and_went_with_a_partition_are_mended_while_streaming() {
    let stage = partitioned();
    let program = begin(&stage);
    check_streaming(&stage, program, &PARTITIONS);
}

#[test]
fn rows_that_came_and_went_with_a_partition_are_mended_by_the_next_start() {
    let stage = partitioned();
    let program = begin(&stage);
    check_restarted(&stage, program, &PARTITIONS);
}

/// Goal: a partition that was made as one, with rows that came by the stream, costs no repair; that
/// its rows were truncated away is told; and no leaf is called ignored.
#[test]
fn partitions_that_hide_nothing_cost_nothing() {
    let stage = partitioned();
    let mut program = begin(&stage);
    stage.postgres.execute(
        "CREATE TABLE runs_t1 PARTITION OF \"TaskRun\" FOR VALUES FROM ('t1') TO ('t2');
         CREATE TABLE runs_t2 (LIKE \"TaskRun\" INCLUDING ALL)",
    );
    stage.postgres.execute(
        "ALTER TABLE \"TaskRun\" ATTACH PARTITION runs_t2 FOR VALUES FROM ('t2') TO ('t3')",
    );
    stage.postgres.insert("TaskRun", &sample::full_run("t1-by-the-stream"));
    recorded_again(&stage, "runs_t2");
    assert_equal(&stage, &mut program, "a partition was made");
    stage.postgres.execute("VACUUM FULL runs_t1");
    program.wait_for_log("partition `public.runs_t1` of `public.TaskRun` has another file");
    assert!(!program.log().contains("repair"), "{}", program.log());
    assert!(!program.log().contains("is ignored"), "{}", program.log());
    program.stop();
}

/// Goal: an unlogged partition is refused with the statement that mends it, also one that begins as
/// one, and what was written to it is owed.
#[test]
fn a_partition_that_is_not_in_the_wal_is_refused() {
    let stage = partitioned();
    let mut program = begin(&stage);
    stage.postgres.execute(
        "CREATE UNLOGGED TABLE runs_t1 PARTITION OF \"TaskRun\" FOR VALUES FROM ('t1') TO ('t2')",
    );
    stage.postgres.insert("TaskRun", &sample::full_run("t1-unlogged"));
    let hint = program.wait_for_log("hint: Run: ALTER TABLE");
    let (_, statement) = hint.split_once("Run: ").unwrap();
    stage.postgres.execute(statement);
    program.wait_for_log("runs: repair: done");
    assert_equal(&stage, &mut program, "an unlogged partition");
    program.stop();
}

/// The watch has recorded a look with this in it.
#[track_caller]
pub(super) fn recorded_again(stage: &Stage, part: &str) {
    until_true(format!("a look with {part} is recorded"), PATIENCE, || {
        let found = stage.clickhouse.value(&format!(
            "SELECT count() FROM trigger_dev.walhouse_sources WHERE catalog LIKE '%{part}%'"
        ));
        found != "0"
    });
}

/// Goal: what changes no value and withholds no change is no gap.
#[test]
fn what_hides_nothing_costs_no_repair() {
    let (stage, mut program) = begun();
    // What gives the table another file, and what alters entries of columns: both at once, nobody
    // can tell from a rewrite of values.
    for (group, statements) in [
        &[
            "ALTER TABLE \"TaskRun\" ADD COLUMN \"more\" text DEFAULT 'x'",
            "VACUUM FULL \"TaskRun\"",
            "CLUSTER \"TaskRun\" USING \"TaskRun_pkey\"",
            "ALTER TABLE \"TaskRun\" SET LOGGED",
            "REINDEX TABLE \"TaskRun\"",
            "ANALYZE \"TaskRun\"",
            "GRANT SELECT ON \"TaskRun\" TO public",
            "ALTER TABLE \"TaskRun\" ALTER COLUMN \"more\" TYPE varchar(9) USING 'z'",
            "ALTER TABLE \"TaskRun\" REPLICA IDENTITY FULL",
            "ALTER TABLE \"TaskRun\" REPLICA IDENTITY DEFAULT",
            "ALTER TABLE \"TaskRun\" ADD COLUMN \"zz_first\" text",
        ][..],
        &[
            "GRANT SELECT (\"id\", \"region\") ON \"TaskRun\" TO public",
            "COMMENT ON COLUMN \"TaskRun\".\"region\" IS 'x'",
            "ALTER TABLE \"TaskRun\" ALTER COLUMN \"region\" SET STATISTICS 7",
            "ALTER TABLE \"TaskRun\" ALTER COLUMN \"region\" SET DEFAULT 'x'",
            "ALTER TABLE \"TaskRun\" ALTER COLUMN \"queue\" TYPE varchar",
            "CREATE INDEX ON \"TaskRun\" (\"region\")",
            "ALTER TYPE \"TaskRunStatus\" ADD VALUE 'QUITE_NEW'",
            "CREATE TABLE another (id int PRIMARY KEY)",
            "ALTER PUBLICATION $p ADD TABLE another",
            "ALTER TABLE \"TaskRun\" ADD COLUMN \"zz_second\" text",
        ][..],
    ]
    .iter()
    .enumerate()
    {
        statements.iter().for_each(|text| sql(&stage, text));
        recorded_again(&stage, ["zz_first", "zz_second"][group]);
        assert_equal(&stage, &mut program, "nothing that hides");
    }
    assert!(!program.log().contains("repair"), "{}", program.log());
    program.stop();
    sql(&stage, "VACUUM FULL \"TaskRun\"");
    sql(&stage, "ALTER PUBLICATION $p DROP TABLE another");
    let mut program = Program::start(&settings(&stage));
    program.wait_streaming(&["runs"]);
    assert_equal(&stage, &mut program, "nothing that hides");
    assert!(!program.log().contains("repair"), "{}", program.log());
    program.stop();
}

/// Goal: a rewrite wins over rows that the slot still brings, of a transaction that was open before
/// it, and yields to what is written after.
/// Method: another transaction keeps the slot where it begins, and the program is down while rows
/// are streamed, rewritten, and written again.
#[test]
fn what_is_mended_lies_between_what_was_and_what_comes() {
    let (stage, program) = begun();
    let mut other = stage.postgres.client();
    other.batch_execute("CREATE TABLE aside (n int)").unwrap();
    let mut open = other.transaction().unwrap();
    open.batch_execute("INSERT INTO aside VALUES (1)").unwrap();
    program.stop();
    // In the backlog with the values of before.
    stage.postgres.insert("TaskRun", &sample::full_run("backlog"));
    stage.postgres.update("TaskRun", "seed-03", &json!({"costInCents": 5}));
    stage.postgres.delete("TaskRun", "seed-04");
    sql(
        &stage,
        "ALTER TABLE \"TaskRun\" ALTER COLUMN \"costInCents\" TYPE float8
         USING \"costInCents\" * 100 + 1",
    );
    let mut program = Program::start(&settings(&stage));
    program.wait_for_log("waiting for 1 transactions that were open at");
    assert_eq!(program.status()["services"]["runs"]["state"], "streaming");
    // Behind the fence: streamed while it is waited for, and after.
    stage.postgres.update("TaskRun", "seed-05", &json!({"costInCents": 6}));
    stage.postgres.delete("TaskRun", "seed-06");
    assert_eq!(program.log_lines("repair: done"), 0);
    open.commit().unwrap();
    program.wait_for_log("runs: repair: done");
    stage.postgres.update("TaskRun", "seed-07", &json!({"costInCents": 8}));
    assert_equal(&stage, &mut program, "a rewrite with a backlog");
    program.stop();
}

/// Goal: rows of a transaction that was open while its table was put in again are neither streamed
/// nor overlooked.
#[test]
fn a_transaction_across_the_change_is_waited_for() {
    let (stage, mut program) = begun();
    sql(&stage, "ALTER PUBLICATION $p DROP TABLE \"TaskRun\"");
    let mut client = stage.postgres.client();
    let mut open = client.transaction().unwrap();
    open.batch_execute(
        "UPDATE \"TaskRun\" SET \"costInCents\" = 77 WHERE id IN ('seed-01', 'seed-02');
         DELETE FROM \"TaskRun\" WHERE id = 'seed-03'",
    )
    .unwrap();
    sql(&stage, "ALTER PUBLICATION $p ADD TABLE \"TaskRun\"");
    program.wait_for_log("waiting for 1 transactions that were open at");
    open.commit().unwrap();
    program.wait_for_log("runs: repair: done");
    assert_equal(&stage, &mut program, "a transaction across the change");
    program.stop();
}

/// Goal: REPLICATION_GAP_STRATEGY says what is done, as about every gap.
#[test]
fn the_strategy_for_gaps_decides() {
    let (stage, program) = begun();
    program.stop();
    (PUBLICATIONS[0].1)(&stage);
    let halted = settings(&stage).with("REPLICATION_GAP_STRATEGY", "halt");
    let mut program = Program::start(&halted);
    program.wait_halted(&["runs"]);
    let error = program.wait_for_log("resume service `runs`");
    assert!(error.contains("was without a table of this service"), "{error}");
    program.stop();
    let mut program = Program::start(&settings(&stage));
    program.wait_for_log("runs: repair: done");
    assert_equal(&stage, &mut program, "after halt");
    program.stop();

    (PUBLICATIONS[1].1)(&stage);
    let skipping = settings(&stage).with("REPLICATION_GAP_STRATEGY", "skip");
    let mut program = Program::start(&skipping);
    program.wait_for_log("skipped: the differences between Postgres and ClickHouse remain");
    program.wait_streaming(&["runs"]);
    let skipped = "walhouse_gaps_total{service=\"runs\",action=\"skipped\"}";
    program.wait_metric(skipped, |count| count == 1.0);
    (PUBLICATIONS[1].1)(&stage);
    program.wait_metric(skipped, |count| count == 2.0);
    program.wait_streaming(&["runs"]);
    assert_eq!(program.log_lines("repair: "), 0, "{}", program.log());
    program.stop();
}

/// Goal: what a start refuses is owed all the same, so that undoing it, by the hint's own words,
/// does not make it right in silence. `check` says so before.
#[test]
fn a_start_that_was_refused_owes_the_repair() {
    let (stage, program) = begun();
    program.stop();
    sql(&stage, "ALTER PUBLICATION $p DROP TABLE \"TaskRun\"");
    write(&stage);
    let output = Program::command(&settings(&stage), &["check"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("no longer has a table of this service"), "{told}");
    let mut program = Program::start(&settings(&stage));
    let hint = program.wait_for_log("hint: Run: ALTER PUBLICATION");
    let (_, statement) = hint.split_once("Run: ").unwrap();
    stage.postgres.execute(statement);
    program.wait_for_log("runs: repair: done");
    assert_equal(&stage, &mut program, "a refused start");
    program.stop();
}

/// Goal: a publication that is gone is made again with a warning, and what was written without it
/// is mended: also where Postgres only warns of it (18).
#[test]
fn a_publication_that_is_gone_is_made_again_and_the_table_compared() {
    let (stage, mut program) = begun();
    sql(&stage, "DROP PUBLICATION $p");
    write(&stage);
    program.wait_for_log("was missing, and was created again");
    program.wait_for_log("runs: repair: done");
    assert_equal(&stage, &mut program, "a dropped publication");
    program.stop();
    sql(&stage, "DROP PUBLICATION $p");
    write(&stage);
    let mut program = Program::start(&settings(&stage));
    program.wait_for_log("was missing, and was created again");
    program.wait_for_log("runs: repair: done");
    assert_equal(&stage, &mut program, "a dropped publication, restarted");
    program.stop();
}
