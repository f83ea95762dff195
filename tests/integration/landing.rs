//! What an INSERT comes to when its answer, its size or a view is at fault.

use serde_json::{Value, json};

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same, compare};
use crate::support::postgres::insert;
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::Stage;

const OUTAGE: &str = r#"walhouse_insert_outage{service="runs"}"#;

const BY_VIEWS: &str =
    r#"walhouse_rows_refused_by_views_total{service="runs",table="task_runs_v2"}"#;
const REFUSED: &str = r#"walhouse_refused_rows_total{service="runs",table="task_runs_v2"}"#;
const NOTHING: [Vec<Value>; 0] = [];

fn insert_runs(stage: &Stage, prefix: &str, count: u32) {
    insert_runs_with(stage, prefix, count, |_| json!({}));
}

/// In one transaction, so in few batches.
fn insert_runs_with(stage: &Stage, prefix: &str, count: u32, values: impl Fn(u32) -> Value) {
    let mut client = stage.postgres.client();
    let mut transaction = client.transaction().unwrap();
    for n in 0..count {
        let row = sample::with(sample::full_run(&format!("{prefix}{n:03}")), values(n));
        insert(&mut transaction, "TaskRun", &row).unwrap();
    }
    transaction.commit().unwrap();
}

/// Goal: status 200 without ClickHouse's head is nobody's yes, whatever comes with it.
#[test]
fn an_answer_that_is_not_clickhouses_is_no_answer() {
    let stage = Stage::own();
    let mut program = Program::start(&stage.settings_runs());
    program.wait_streaming(&["runs"]);
    for (n, page) in ["", "back+soon", "Code"].iter().enumerate() {
        stage.clickhouse.add_fault(&format!("action=page&on=any&status=200&text={page}"));
        insert_runs(&stage, &format!("r{n}"), 20);
        program.wait_metric(OUTAGE, |outage| outage == 1.0);
        program.wait_for_log("no `X-ClickHouse-Query-Id`");
        stage.clickhouse.clear_faults();
        stage.settle(&mut program, &["runs"]);
        program.wait_metric(OUTAGE, |outage| outage == 0.0);
    }
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 60);
    program.stop();
}

fn start(stage: &Stage, parameters: &str) -> Program {
    let url = format!("{}/?{parameters}", stage.clickhouse.url());
    let settings = stage
        .settings_runs()
        .with("RUN_REPLICATION_CLICKHOUSE_URL", url)
        // After a first row, a transaction is one batch.
        .with("RUN_REPLICATION_FLUSH_INTERVAL_MS", 2000)
        .with("RUN_REPLICATION_FLUSH_BATCH_SIZE", 10_000);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    insert_runs(stage, "first", 1);
    stage.settle(&mut program, &["runs"]);
    program
}

fn kept(stage: &Stage) -> Vec<Vec<Value>> {
    stage.clickhouse.rows(&format!(
        "SELECT key, column FROM {DATABASE}.walhouse_refused_rows FINAL ORDER BY key, column"
    ))
}

/// A view of runs into a table of its own.
fn add_view(stage: &Stage, name: &str, table: &str, select: &str) {
    stage.clickhouse.execute(&format!("CREATE TABLE {DATABASE}.{name}_of {table}"));
    stage.clickhouse.execute(&format!(
        "CREATE MATERIALIZED VIEW {DATABASE}.{name} TO {DATABASE}.{name}_of AS {select} \
         FROM {DATABASE}.task_runs_v2"
    ));
}

/// Goal: what a view throws for is in the table as it was sent, whatever the view says; the view
/// lacks it, which is told; another view has all.
#[test]
fn what_a_view_throws_for_is_in_the_table_unchanged() {
    let many = "(k String, n UInt64, CONSTRAINT few CHECK n != 3) ENGINE = MergeTree ORDER BY k";
    for (n, select) in [
        // An unlisted code, one of bad values, and a constraint of the view's table.
        "SELECT run_id AS k, toUInt64(throwIf(queue = 'bad', 'no')) AS n",
        "SELECT run_id AS k, toUInt64(if(queue = 'bad', queue, '1')) AS n",
        "SELECT run_id AS k, length(queue) AS n",
    ]
    .iter()
    .enumerate()
    {
        let stage = Stage::take();
        let mut program = start(&stage, "");
        // On both sides of it: only the one that fails is passed over.
        for name in ["other", "z"] {
            let table = "(k String) ENGINE = MergeTree ORDER BY k";
            add_view(&stage, name, table, "SELECT run_id AS k");
        }
        add_view(&stage, "view", many, select);
        let values = |n| json!({"queue": if n % 14 == 5 { "bad" } else { "good" }});
        insert_runs_with(&stage, "r", 28, values);
        insert_runs_with(&stage, "s", 1, |_| json!({"queue": "bad"}));
        stage.settle(&mut program, &["runs"]);
        assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 30);
        let told = |id: &str| vec![json!(id), json!("(view)")];
        assert_eq!(kept(&stage), [told("r005"), told("r019"), told("s000")], "{n}");
        assert_eq!(program.metric(BY_VIEWS), Some(3.0));
        assert_eq!(program.metric(REFUSED).unwrap_or(0.0), 0.0);
        assert_eq!(program.metric(OUTAGE), Some(0.0));
        program.wait_for_log("and the view lacks them");
        let of = |name: &str| {
            stage.clickhouse.value(&format!("SELECT uniq(k) FROM {DATABASE}.{name}_of"))
        };
        let uniq = ["view", "other", "z"].map(of);
        assert_eq!(uniq, ["26", "29", "29"], "{n}");
        program.stop();
    }
}

/// Goal: a view that takes nothing at all holds nothing up.
#[test]
fn a_view_that_takes_nothing_holds_nothing_up() {
    let stage = Stage::take();
    let mut program = start(&stage, "");
    let table = "(k String, n UInt64) ENGINE = MergeTree ORDER BY k";
    add_view(&stage, "view", table, "SELECT run_id AS k, toUInt64(throwIf(1)) AS n");
    insert_runs(&stage, "r", 200);
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 201);
    // Not a row for each: the table itself says what the view lacks.
    let kept = kept(&stage);
    assert!(kept.len() <= 16 && kept.iter().all(|row| row[1] == "(view)"), "{kept:?}");
    assert_eq!(program.metric(BY_VIEWS), Some(200.0));
    // The table of the view is gone, which ClickHouse says before it writes anything.
    stage.clickhouse.execute(&format!("DROP TABLE {DATABASE}.view_of SYNC"));
    insert_runs(&stage, "s", 200);
    stage.settle(&mut program, &["runs"]);
    // Nobody is told to drop the table itself, which some servers name in its place.
    assert!(!program.log().contains(&format!("DROP VIEW {DATABASE}.task_runs_v2")));
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 401);
    program.stop();
}

/// Goal: that it was a view is heard behind the whole of a large document, which ClickHouse quotes.
#[test]
fn a_view_is_heard_behind_a_large_document() {
    let stage = Stage::take();
    let mut program = start(&stage, "");
    let table = "(k String, n UInt64) ENGINE = MergeTree ORDER BY k";
    let select = "SELECT run_id AS k, toUInt64(if(queue = 'bad', toString(output), '1')) AS n";
    add_view(&stage, "view", table, select);
    let large = format!("\"{}\"", "x".repeat(3 << 20));
    let values = |n| match n {
        3 => json!({"queue": "bad", "outputType": "application/json", "output": large}),
        _ => json!({}),
    };
    insert_runs_with(&stage, "r", 8, values);
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 9);
    assert_eq!(kept(&stage), [vec![json!("r003"), json!("(view)")]]);
    program.stop();
}

/// Goal: what a column, an index or a constraint of the table cannot compute from one document is
/// about that row, whatever the code: the type of a path is the row's.
#[test]
fn what_cannot_be_computed_from_one_row_holds_nothing_up() {
    for (n, change) in [
        "ADD COLUMN upper String MATERIALIZED ifNull(upper(output.data.t), '')",
        "ADD CONSTRAINT upper CHECK ifNull(upper(output.data.t), '') != 'X'",
    ]
    .iter()
    .enumerate()
    {
        let stage = Stage::take();
        let mut program = start(&stage, "");
        stage.clickhouse.execute(&format!("ALTER TABLE {DATABASE}.task_runs_v2 {change}"));
        let output = |n| if n == 3 { "{\"t\": 7}" } else { "{\"u\": 7}" };
        let values = |n| json!({"outputType": "application/json", "output": output(n)});
        insert_runs_with(&stage, "r", 8, values);
        stage.settle(&mut program, &["runs"]);
        let report = compare(&stage.postgres, &stage.clickhouse, Scope::RUNS);
        let names = report.names();
        assert!(names.len() == 1 && names[0].starts_with("task_runs_v2 r003"), "{n}: {report}");
        assert_eq!(kept(&stage), [vec![json!("r003"), json!("output")]], "{n}");
        program.stop();
    }
}

/// Goal: what a row says of views, and ClickHouse quotes, is not taken for its own word.
#[test]
fn a_row_that_speaks_of_views_holds_nothing_up() {
    let stage = Stage::take();
    let mut program = start(&stage, "");
    stage.clickhouse.execute(&format!(
        "ALTER TABLE {DATABASE}.task_runs_v2 ADD CONSTRAINT no CHECK NOT startsWith(queue, 'bad')"
    ));
    let queue = |n| if n == 3 { "bad: while pushing to view d.v" } else { "good" };
    insert_runs_with(&stage, "r", 8, |n| json!({"queue": queue(n)}));
    stage.settle(&mut program, &["runs"]);
    let report = compare(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    assert_eq!(report.names(), ["task_runs_v2 r003 lost"], "{report}");
    assert_eq!(kept(&stage), [vec![json!("r003"), json!("")]]);
    assert_eq!(program.metric(BY_VIEWS).unwrap_or(0.0), 0.0);
    program.stop();
}

/// Goal: a code that nobody knows is about rows where half of them land, and else an outage.
#[test]
fn an_unknown_code_is_tried_in_halves() {
    let stage = Stage::own();
    let mut program = start(&stage, "");
    // Whatever a server may say one day, for some rows.
    stage.clickhouse.execute(&format!(
        "ALTER TABLE {DATABASE}.task_runs_v2 ADD CONSTRAINT odd CHECK \
         throwIf(queue = 'odd') = 0"
    ));
    let odd = |n| json!({"queue": if n == 11 { "odd" } else { "even" }});
    insert_runs_with(&stage, "r", 30, odd);
    stage.settle(&mut program, &["runs"]);
    let report = compare(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    assert_eq!(report.names(), ["task_runs_v2 r011 lost"], "{report}");
    assert_eq!(kept(&stage), [vec![json!("r011"), json!("")]]);
    stage.clickhouse.add_fault("action=error&code=4322&table=task_runs_v2");
    insert_runs(&stage, "s", 30);
    program.wait_metric(OUTAGE, |outage| outage == 1.0);
    stage.clickhouse.clear_faults();
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "run_id LIKE 's%'"), 30);
    assert_eq!(kept(&stage).len(), 1);
    program.stop();
}

/// Goal: a limit that a view meets even for one row is the view's: nothing is held up for it, and
/// another view has what this one lacks.
#[test]
fn a_view_that_meets_a_limit_for_a_single_row_holds_nothing_up() {
    for (limit, number, select) in [
        ("max_memory_usage=200000000", "arraySum(range(50000000))", 241),
        ("max_rows_to_read=100000", "(SELECT max(number) FROM numbers(200000))", 158),
    ]
    .map(|(limit, number, code)| (limit, code, format!("SELECT run_id AS k, {number} AS n")))
    {
        let stage = Stage::own();
        let mut program = start(&stage, "");
        let table = "(k String, n UInt64) ENGINE = MergeTree ORDER BY k";
        add_view(&stage, "view", table, &select);
        add_view(&stage, "z", "(k String) ENGINE = MergeTree ORDER BY k", "SELECT run_id AS k");
        stage.clickhouse.set_profile(limit);
        insert_runs(&stage, "r", 1);
        stage.settle(&mut program, &["runs"]);
        program.wait_for_log(&format!("view `{DATABASE}.view` refused 1 rows"));
        program.wait_for_log(&format!("code {number}"));
        insert_runs(&stage, "s", 14);
        stage.settle(&mut program, &["runs"]);
        stage.clickhouse.set_profile("");
        assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 16);
        assert_eq!(stage.clickhouse.value(&format!("SELECT uniq(k) FROM {DATABASE}.z_of")), "15");
        assert_eq!(program.metric(BY_VIEWS), Some(15.0));
        assert_eq!(program.metric(REFUSED).unwrap_or(0.0), 0.0);
        program.stop();
    }
}

/// Goal: too large for a proxy, for the server's memory, or for its time: less at a time lands, and
/// what does not land alone is waited for.
#[test]
fn what_is_too_large_lands_in_parts() {
    for (n, (fault, said)) in [
        ("action=page&status=413", "status 413"),
        ("action=page&status=504", "status 504"),
        ("action=error&code=241&text=Query+memory+limit+exceeded", "code 241"),
        ("action=drop", "rows at a time"),
    ]
    .iter()
    .enumerate()
    {
        let stage = Stage::own();
        let mut program = start(&stage, "compress=0");
        stage.clickhouse.add_fault(&format!("{fault}&over=20000"));
        insert_runs(&stage, "r", 300);
        stage.settle(&mut program, &["runs"]);
        assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 301);
        program.wait_for_log(said);
        program.wait_for_log("rows at a time");
        if n == 0 {
            program.wait_for_log("client_max_body_size");
            // The size is kept: what comes next is not tried whole again.
            let hits = stage.clickhouse.fault_hits();
            insert_runs(&stage, "s", 300);
            stage.settle(&mut program, &["runs"]);
            let more = stage.clickhouse.fault_hits() - hits;
            assert!(more <= 2, "{more}");
            // A single row that is too large stays in Postgres until there is room for it.
            insert_runs_with(
                &stage,
                "t",
                1,
                |_| json!({"output": format!("\"{}\"", "x".repeat(30_000))}),
            );
            program.wait_metric(OUTAGE, |outage| outage == 1.0);
            assert_eq!(kept(&stage), NOTHING);
            stage.clickhouse.clear_faults();
            stage.settle(&mut program, &["runs"]);
            assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 602);
        }
        program.stop();
    }
}

/// Goal: an INSERT that is slower than it may be does not land another copy at each attempt.
#[test]
fn what_is_too_slow_lands_in_parts_and_not_again_and_again() {
    let stage = Stage::own();
    let mut program = start(&stage, "compress=0&request_timeout=1500");
    stage.clickhouse.add_fault("action=delay_after&ms=2500&over=60000&table=task_runs_v2");
    insert_runs(&stage, "r", 300);
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 301);
    // Each attempt that was too slow has landed its rows once: 300, 150, 75, and one when it grew.
    let raw: u64 = stage
        .clickhouse
        .value(&format!("SELECT count() FROM {DATABASE}.task_runs_v2"))
        .parse()
        .unwrap();
    assert!(raw <= 1200, "{raw}");
    program.wait_for_log("rows at a time");
    program.stop();
}

/// Goal: a document with a null among arrays lands as it does for everybody else.
#[test]
fn a_null_among_arrays_lands() {
    let stage = Stage::take();
    let mut program = start(&stage, "");
    let documents = ["[[1],null]", "{\"a\":[null,[[2],null]],\"b\":[{\"c\":[[],null]}]}"];
    insert_runs_with(&stage, "r", 40, |n| {
        json!({
            "output": documents[n as usize % 2],
            "error": {"stack": [["x"], null]},
        })
    });
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 41);
    assert_eq!(kept(&stage), NOTHING);
    assert_eq!(program.metric(REFUSED).unwrap_or(0.0), 0.0);
    program.stop();
}

/// Goal: a NULL for a column that takes none is found by ourselves: the row is kept, not changed.
#[test]
fn a_null_for_a_column_that_takes_none_is_kept_and_named() {
    let stage = Stage::take();
    let program = start(&stage, "");
    program.stop();
    stage.clickhouse.execute(&format!(
        "ALTER TABLE {DATABASE}.task_runs_v2 MODIFY COLUMN max_duration_in_seconds UInt32 DEFAULT 7 \
         SETTINGS mutations_sync = 2"
    ));
    let mut program = Program::start(&stage.settings_runs());
    program.wait_streaming(&["runs"]);
    program.wait_for_log("accepts no NULL in column `max_duration_in_seconds`");
    insert_runs_with(&stage, "r", 9, |n| match n {
        4 => json!({"maxDurationInSeconds": null}),
        _ => json!({"maxDurationInSeconds": 5}),
    });
    stage.settle(&mut program, &["runs"]);
    let report = compare(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    assert_eq!(report.names(), ["task_runs_v2 r004 lost"], "{report}");
    let kept = stage
        .clickhouse
        .rows(&format!("SELECT key, column, error FROM {DATABASE}.walhouse_refused_rows FINAL"));
    let error = "a NULL for column `max_duration_in_seconds`, which accepts none";
    assert_eq!(kept, [[json!("r004"), json!(""), json!(error)]]);
    program.stop();
}

/// Goal: bad rows among many cost a bounded number of INSERTs.
#[test]
fn singling_out_does_not_cost_a_hundred_times_as_much() {
    let stage = Stage::own();
    let mut program = start(&stage, "");
    stage.clickhouse.execute(&format!(
        "ALTER TABLE {DATABASE}.task_runs_v2 ADD CONSTRAINT refuse CHECK queue != 'bad'"
    ));
    // Counts, and changes nothing.
    stage.clickhouse.add_fault("action=delay_before&ms=0&table=task_runs_v2");
    insert_runs_with(
        &stage,
        "r",
        1000,
        |n| json!({"queue": if n % 50 == 7 { "bad" } else { "good" }}),
    );
    stage.settle(&mut program, &["runs"]);
    assert_eq!(kept(&stage).len(), 20);
    let inserts = stage.clickhouse.fault_hits();
    assert!(inserts <= 7 * 20, "{inserts}");
    program.stop();
}

/// Goal: what a table or a view refuses in every batch for ever does not flood the log, and the
/// lines that there are tell of all that came before them.
#[test]
fn what_comes_with_every_batch_takes_few_lines() {
    const BATCHES: u32 = 20;
    let stage = Stage::take();
    let mut program = Program::start(&stage.settings_runs());
    program.wait_streaming(&["runs"]);
    stage.clickhouse.execute(&format!(
        "ALTER TABLE {DATABASE}.task_runs_v2 ADD CONSTRAINT refuse CHECK queue != 'poison'"
    ));
    let table = "(k String, n UInt64) ENGINE = MergeTree ORDER BY k";
    add_view(&stage, "view", table, "SELECT run_id AS k, toUInt64(throwIf(queue = 'bad')) AS n");
    for batch in 0..BATCHES {
        insert_runs_with(&stage, &format!("b{batch}-"), 4, |n| match n {
            0 => json!({"queue": "poison"}),
            1 => json!({"queue": "bad"}),
            2 => json!({"startedAt": "infinity"}),
            _ => json!({}),
        });
        stage.settle(&mut program, &["runs"]);
    }
    // Two of each batch besides, which are in the table.
    assert_eq!(kept(&stage).len(), 3 * BATCHES as usize);
    assert_eq!(program.metric(REFUSED), Some(f64::from(BATCHES)));
    assert_eq!(program.metric(BY_VIEWS), Some(f64::from(BATCHES)));
    for (said, kinds) in [
        ("were kept in `walhouse_refused_rows`", 3),
        // A batch may end amid a transaction, and have what the view throws for alone.
        ("landing the rest", 2),
        ("and the view lacks them", 1),
        ("hint: Fix it, or DROP VIEW", 1),
    ] {
        let lines = program.log_lines(said);
        // The 1st, 2nd, 4th, 8th and 16th batch.
        assert!(kinds <= lines && lines <= 5 * kinds, "{lines} lines: {said}\n{}", program.log());
    }
    for kind in ["rows for `task_runs_v2`", "values of `startedAt` for `task_runs_v2`"] {
        let lines = program.wait_for_log_lines(&format!(" {kind} that ClickHouse"), 5);
        let amount = |line: &String| -> u32 {
            line.split(' ').find_map(|word| word.parse().ok()).expect("a line says how many")
        };
        assert_eq!(lines.iter().map(amount).sum::<u32>(), 16, "{lines:?}");
    }
    program.wait_for_log("(8 times since this was last said)");
    program.stop();
}
