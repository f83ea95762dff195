//! JSON documents that are large, strange, or poison.

use serde_json::{Value, json};

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::{SERVICES, Stage};

fn with_output(id: &str, output: &str) -> Value {
    sample::with(sample::run(id), json!({"output": output, "status": "COMPLETED_SUCCESSFULLY"}))
}

/// The document in a JSON column, as ClickHouse shows it.
fn shown(stage: &Stage, table: &str, column: &str, id: &str) -> Value {
    let text = stage.clickhouse.value(&format!(
        "SELECT toJSONString({column}) FROM {DATABASE}.{table} FINAL WHERE run_id = '{id}'"
    ));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{table} {id}: {e} in `{text}`"))
}

/// Which documents were put aside: key and column.
fn put_aside(stage: &Stage) -> Value {
    json!(stage.clickhouse.rows(&format!(
        "SELECT key, column FROM {DATABASE}.walhouse_refused_rows FINAL ORDER BY key, column"
    )))
}

#[test]
fn superjson_is_its_json_member() {
    let stage = Stage::take();
    let mut program = stage.start();
    let text = json!({
        "json": {
            "foo": "bar",
            "bigint": "1234",
            "date": "2025-01-01T00:00:00.000Z",
            "map": [["foo", "bar"]],
        },
        "meta": {"values": {"bigint": ["bigint"], "date": ["Date"], "map": ["map"]}},
    })
    .to_string();
    let kind = "application/super+json";
    let row = json!({"payload": text, "payloadType": kind, "output": text, "outputType": kind});
    stage.postgres.insert("TaskRun", &sample::with(sample::run("super"), row));
    stage.settle(&mut program, &["runs"]);
    let expected = json!({"data": {
        "foo": "bar",
        "bigint": "1234",
        "date": "2025-01-01T00:00:00.000Z",
        "map": [["foo", "bar"]],
    }});
    assert_eq!(shown(&stage, "raw_task_runs_payload_v1", "payload", "super"), expected);
    assert_eq!(shown(&stage, "task_runs_v2", "output", "super"), expected);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    program.stop();
}

#[test]
fn payloads_arrive_at_every_size() {
    let stage = Stage::take();
    let mut program = stage.start();
    let mut rng = fastrand::Rng::with_seed(6);
    // Around what is compressed, what is TOASTed, and what fills a block of the stream.
    for length in [0, 1, 900, 1_990, 2_000, 8_100, 65_536, 300_000, 3_000_000] {
        let noise: String = (0..length).map(|_| rng.alphanumeric()).collect();
        let row = json!({"payload": json!({"noise": noise}).to_string()});
        stage.postgres.insert("TaskRun", &sample::with(sample::run(&format!("{length}")), row));
    }
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 9);
    program.stop();
}

/// Goal: one value of 64 MB, which is all that the buffer may hold, passes.
#[test]
fn a_value_of_64_mb_arrives() {
    const MEGABYTES: usize = 64;
    let stage = Stage::take();
    let mut program = Program::start(&stage.settings_runs());
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::run("before"));
    stage.postgres.insert("TaskRun", &sample::run("huge"));
    stage.postgres.execute(&format!(
        "UPDATE \"TaskRun\" SET output = '{{\"long\":\"' || repeat('0123456789abcdef', \
         {MEGABYTES} * 65536) || '\"}}' WHERE id = 'huge'"
    ));
    stage.postgres.insert("TaskRun", &sample::run("after"));
    stage.settle(&mut program, &["runs"]);
    let length = stage.clickhouse.value(&format!(
        "SELECT length(output.data.long::String) FROM {DATABASE}.task_runs_v2 FINAL \
         WHERE run_id = 'huge'"
    ));
    assert_eq!(length, (MEGABYTES * 1024 * 1024).to_string());
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 6);
    program.stop();
}

#[test]
fn a_lone_surrogate_costs_its_character_only() {
    let stage = Stage::take();
    let settings = stage.settings_runs().with("RUN_REPLICATION_FLUSH_BATCH_SIZE", 10);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    for n in 0..9 {
        let text = format!(r#"{{"n":{n},"whole":"\ud83d\ude00"}}"#);
        stage.postgres.insert("TaskRun", &with_output(&format!("good-{n}"), &text));
    }
    stage.postgres.insert("TaskRun", &with_output("bad", r#"{"text":"a\ud835b","n":1}"#));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 20);
    let expected = json!({"data": {"text": "a\u{FFFD}b", "n": 1}});
    assert_eq!(shown(&stage, "task_runs_v2", "output", "bad"), expected);
    assert_eq!(put_aside(&stage), json!([["bad", "output"]]));
    let original = stage
        .clickhouse
        .value(&format!("SELECT document FROM {DATABASE}.walhouse_refused_rows FINAL"));
    assert_eq!(original, r#"{"text":"a\ud835b","n":1}"#);
    program.stop();
}

#[test]
fn poison_rows_cost_only_themselves() {
    let stage = Stage::take();
    let mut program = stage.start();
    let deep = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let mut client = stage.postgres.client();
    let mut transaction = client.transaction().unwrap();
    for (id, output) in [
        ("deep", deep(1500).as_str()),
        ("not-so-deep", &deep(200)),
        ("very-deep-array", &"[".repeat(100_000)),
        ("beyond-uint64", r#"{"n":117039831458782870000,"m":-9223372036854775809}"#),
        ("beyond-double", r#"{"n":1e999}"#),
        ("largest", r#"{"n":18446744073709551615,"m":-9223372036854775808}"#),
        ("no-json", "{\"a\":"),
        ("two-values", "1 2"),
        ("nul", r#"{"a":"\u0000","\u0000":1}"#),
        ("scalar", "\"just text\""),
        ("null", "null"),
        ("good", r#"{"a":1}"#),
    ] {
        let row = with_output(id, output);
        crate::support::postgres::insert(&mut transaction, "TaskRun", &row).unwrap();
    }
    // Postgres itself takes it as jsonb, where it is no text of ours.
    let sql = "UPDATE \"TaskRun\" SET error = $1::text::jsonb WHERE id = 'good'";
    transaction.execute(sql, &[&deep(1500)]).unwrap();
    transaction.commit().unwrap();
    let metadata = json!({"n": 1});
    let row = sample::with(sample::session("deep"), json!({"metadata": metadata}));
    stage.postgres.insert("Session", &row);
    stage
        .postgres
        .client()
        .execute("UPDATE \"Session\" SET metadata = $1::text::jsonb", &[&deep(1500)])
        .unwrap();
    stage.settle(&mut program, &SERVICES);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL), 25);
    assert_eq!(shown(&stage, "task_runs_v2", "output", "deep"), json!({}));
    let condition = "status = 'COMPLETED_SUCCESSFULLY'";
    assert_eq!(stage.clickhouse.count("task_runs_v2", condition), 12);
    assert_eq!(
        put_aside(&stage),
        json!([
            ["deep", "metadata"],
            ["deep", "output"],
            ["good", "error"],
            ["no-json", "output"],
            ["two-values", "output"],
            ["very-deep-array", "output"],
        ])
    );
    let original = stage.clickhouse.value(&format!(
        "SELECT document FROM {DATABASE}.walhouse_refused_rows FINAL \
         WHERE key = 'deep' AND column = 'output'"
    ));
    assert_eq!(original, deep(1500));
    program.stop();
}

#[test]
fn repeated_paths_and_mixed_arrays_are_taken() {
    let stage = Stage::take();
    let mut program = stage.start();
    for (id, text) in [
        ("twice", r#"{"a":1,"b":2,"a":3}"#),
        ("meet", r#"{"a.b":1,"a":{"b":2,"c":3}}"#),
        ("meet-later", r#"{"a":{"b":2},"a.b":1}"#),
        ("mixed", r#"[1,"two",{"three":3},[4],null,5.5]"#),
        ("objects", r#"{"list":[{"a":1},{"a":"x"},{"b":[]}]}"#),
        ("dates", r#"["2026-05-20","2026-05-20T10:11:12.000Z","10:11"]"#),
        ("empty-names", r#"{"":{"":1}}"#),
        ("many", &many_paths(3000)),
    ] {
        let row = json!({"payload": text, "output": text});
        stage.postgres.insert("TaskRun", &sample::with(sample::run(id), row));
    }
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 16);
    let payload = |id| shown(&stage, "raw_task_runs_payload_v1", "payload", id);
    assert_eq!(payload("twice"), json!({"data": {"a": 3, "b": 2}}));
    assert_eq!(payload("mixed"), json!({"data": [1, "two", {"three": 3}, [4], null, 5.5]}));
    program.stop();
}

/// More than a column keeps as columns of their own.
fn many_paths(count: usize) -> String {
    let members: Vec<String> = (0..count).map(|n| format!("\"path{n}\":{n}")).collect();
    format!("{{{}}}", members.join(","))
}

#[test]
fn content_of_other_types_is_not_sent() {
    let stage = Stage::take();
    let mut program = stage.start();
    for (n, kind) in
        ["text/plain", "application/store", "", "Application/JSON", "application/json "]
            .iter()
            .enumerate()
    {
        let row = json!({"payload": "{\"a\":1}", "payloadType": kind, "output": "{\"a\":1}",
            "outputType": kind});
        stage.postgres.insert("TaskRun", &sample::with(sample::run(&format!("{n}")), row));
    }
    stage.settle(&mut program, &["runs"]);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    let condition = "toJSONString(output) = '{}'";
    assert_eq!(stage.clickhouse.count("task_runs_v2", condition), 5);
    assert_eq!(put_aside(&stage), json!([]));
    program.stop();
}
