//! Single values at and beyond the edges of what a column holds.

use serde_json::{Value, json};

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::{SERVICES, Stage};

/// The same rows in both formats, since the two are decoded by different code.
fn in_both_formats(runs: &[(&str, Value)], sessions: &[(&str, Value)], then: impl Fn(&Stage)) {
    for binary in [1, 0] {
        let stage = Stage::take();
        let mut program = Program::start(&stage.settings().with("REPLICATION_BINARY", binary));
        program.wait_streaming(&SERVICES);
        for (id, values) in runs {
            let row = sample::with(sample::run(id), values.clone());
            stage.postgres.insert("TaskRun", &row);
        }
        for (id, values) in sessions {
            let row = sample::with(sample::session(id), values.clone());
            stage.postgres.insert("Session", &row);
        }
        stage.settle(&mut program, &SERVICES);
        let rows = assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
        assert_eq!(rows, 2 * runs.len() + sessions.len(), "binary {binary}");
        then(&stage);
        program.stop();
    }
}

/// What was kept of values that did not fit: key, column, original.
fn kept(stage: &Stage) -> Vec<[String; 3]> {
    let rows = stage.clickhouse.rows(&format!(
        "SELECT DISTINCT key, column, document FROM {DATABASE}.walhouse_refused_rows FINAL \
         ORDER BY key, column"
    ));
    let text = |value: Value| value.as_str().expect("a String").to_owned();
    rows.into_iter()
        .map(|row| <[String; 3]>::try_from(row.into_iter().map(text).collect::<Vec<_>>()).unwrap())
        .collect()
}

fn names(rows: &[[&str; 2]]) -> Vec<[String; 2]> {
    rows.iter().map(|row| row.map(str::to_owned)).collect()
}

fn kept_names(stage: &Stage) -> Vec<[String; 2]> {
    kept(stage).into_iter().map(|[key, column, _]| [key, column]).collect()
}

/// Goal: a type of a user's own reads as what it is underneath, however deep.
#[test]
fn columns_of_a_users_own_types_are_exact() {
    for binary in [1, 0] {
        let stage = Stage::take();
        stage.postgres.execute(
            "CREATE DOMAIN whole AS int; CREATE DOMAIN deep AS whole CHECK (value < 1e9);
             CREATE DOMAIN flag AS boolean; CREATE DOMAIN money2 AS double precision;
             CREATE DOMAIN moment AS timestamp(3); CREATE DOMAIN doc AS jsonb;
             CREATE DOMAIN word AS text; CREATE DOMAIN tag AS word; CREATE DOMAIN tags AS tag[];
             CREATE TYPE colour AS ENUM ('red', 'green'); CREATE DOMAIN of_colour AS colour;
             ALTER TABLE \"TaskRun\" ALTER COLUMN \"attemptNumber\" TYPE deep,
                 ALTER COLUMN \"usageDurationMs\" TYPE whole, ALTER COLUMN \"isTest\" TYPE flag,
                 ALTER COLUMN \"costInCents\" TYPE money2, ALTER COLUMN \"startedAt\" TYPE moment,
                 ALTER COLUMN \"error\" TYPE doc, ALTER COLUMN \"output\" TYPE word,
                 ALTER COLUMN \"runTags\" TYPE tags,
                 ALTER COLUMN \"bulkActionGroupIds\" DROP DEFAULT,
                 ALTER COLUMN \"bulkActionGroupIds\" TYPE tag[] USING '{}',
                 ALTER COLUMN \"id\" TYPE tag, ALTER COLUMN \"planType\" TYPE of_colour USING NULL",
        );
        let settings = stage.settings_runs().with("REPLICATION_BINARY", binary);
        let mut program = Program::start(&settings);
        program.wait_streaming(&["runs"]);
        let own = json!({"bulkActionGroupIds": ["a tag", "ü"], "planType": "red"});
        let row = sample::with(sample::full_run("full"), own.clone());
        stage.postgres.insert("TaskRun", &row);
        let toasted = "x".repeat(100).repeat(100) + &"y".repeat(9_000);
        let row = sample::with(sample::full_run("toasted"), own);
        let large = json!({"outputType": "application/json", "output": format!("\"{toasted}\"")});
        stage.postgres.execute("ALTER TABLE \"TaskRun\" ALTER \"output\" SET STORAGE EXTERNAL");
        stage.postgres.insert("TaskRun", &sample::with(row, large));
        stage.postgres.update("TaskRun", "toasted", &json!({"attemptNumber": 3}));
        stage.settle(&mut program, &["runs"]);
        assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
        let exact = "attempt = 7 AND usage_duration_ms = 123456 AND cost_in_cents = 0.1 AND \
                     plan_type = 'red' AND bulk_action_group_ids = ['a tag', 'ü']";
        assert_eq!(stage.clickhouse.count("task_runs_v2", exact), 1, "binary {binary}");
        let verified = Program::command(&settings, &["verify", "runs"]);
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
        program.stop();
    }
}

/// Goal: what has no form that is known is refused by name, and never written as something else.
#[test]
fn a_column_of_a_composite_a_range_or_a_domain_over_another_type_is_refused() {
    for (made, type_name) in [
        ("CREATE DOMAIN d AS int", "d"),
        ("CREATE DOMAIN d AS int; CREATE DOMAIN d2 AS d", "d2"),
        ("CREATE TYPE c AS (a int)", "c"),
        ("CREATE TYPE r AS RANGE (subtype = int)", "r"),
    ] {
        let stage = Stage::take();
        stage.postgres.execute(made);
        let alter =
            format!("ALTER TABLE \"TaskRun\" ALTER COLUMN \"ttl\" TYPE {type_name} USING NULL");
        stage.postgres.execute(&alter);
        let mut program = Program::start(&stage.settings_runs());
        let error = program.wait_for_log("its column `ttl` is");
        assert!(error.contains("underneath"), "{error}");
        let hint = program.wait_for_log("hint: Run: ALTER TABLE");
        let (_, statement) = hint.split_once("Run: ").unwrap();
        stage.postgres.execute(statement.split_once(';').unwrap().0);
        program.wait_streaming(&["runs"]);
        stage.postgres.insert("TaskRun", &sample::full_run("a"));
        stage.settle(&mut program, &["runs"]);
        assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
        program.stop();
    }
}

#[test]
fn every_mapped_column_is_exact() {
    let runs = [("full", sample::full_run("full")), ("bare", json!({}))];
    let sessions = [("full", sample::full_session("full")), ("bare", json!({}))];
    in_both_formats(&runs, &sessions, |stage| {
        let row = stage.clickhouse.rows(&format!(
            "SELECT * EXCEPT (_version, output_text, error_text) \
             FROM {DATABASE}.task_runs_v2 FINAL WHERE run_id = 'full' \
             SETTINGS output_format_json_quote_64bit_integers = 0"
        ));
        // In the order of the table.
        let expected = json!([
            "env_1", "org_1", "proj_1", "full", "DEVELOPMENT", "run_full", 7, "V2",
            "COMPLETED_WITH_ERRORS", "my-task", "task/my-task", "sched_1", "batch_1", "run_root",
            "run_parent", 3, "span_1", "trace_1", "hash-full", "2026-05-20 10:11:12.345",
            "2026-05-20 10:11:13.002", "2026-05-20 10:30:00.001", "2026-05-20 10:11:14.003",
            "2026-05-20 10:11:15.004", "2026-05-20 10:11:16.005", "2026-05-20 10:11:17.006",
            "2026-05-20 10:11:18.007", "2026-05-20 10:11:19.008", "10m", 123456, 0.1, 2.5e-7,
            {"data": {"result": {"deep": [true, false]}, "text": "ü \u{0} 😀"}},
            {"data": {"message": "no more tea", "name": "Error", "type": "BUILT_IN_ERROR"}},
            ["z last", "a first", "ü \"quoted\", with comma"], "20260520.1", "4.5.0", "4.5.1",
            "small-1x", 1, 0, "user-1", ["bulk_2", "bulk_1"], "eu-central-1", 3600, "user key",
            "run", "45868ced53110f38", "api", "dashboard", 1, "AGENT", "eu-central-1", "pro",
            "dep_1"
        ]);
        let found: Value = serde_json::from_str(&json!(row[0]).to_string()).unwrap();
        assert_eq!(found.as_array().unwrap().len(), 55);
        for (at, (found, expected)) in
            found.as_array().unwrap().iter().zip(expected.as_array().unwrap()).enumerate()
        {
            let same =
                found == expected || found.as_f64() == expected.as_f64() && found.is_number();
            assert!(same, "column {at}: {found}, expected {expected}");
        }
        let texts = stage.clickhouse.rows(&format!(
            "SELECT output_text, error_text FROM {DATABASE}.task_runs_v2 FINAL \
             WHERE run_id = 'bare'"
        ));
        assert_eq!(json!(texts), json!([["", ""]]));
    });
}

#[test]
fn timestamps_that_clickhouse_does_not_have_are_kept_beside() {
    let edges = json!({
        "createdAt": "9999-12-31 23:59:59.999",
        "updatedAt": "0001-01-01 00:00:00.001 BC",
        "startedAt": "1969-12-31 23:59:59.999",
        "queuedAt": "0099-01-01 00:00:00.001",
        "expiredAt": "2262-04-11 23:47:16.855",
        "completedAt": "9999-12-31 23:59:59.999",
    });
    let beyond = json!({
        "createdAt": "infinity",
        "updatedAt": "-infinity",
        "startedAt": "infinity",
        "completedAt": "-infinity",
        "delayUntil": "4713-01-01 00:00:00 BC",
        "queuedAt": "294276-12-31 23:59:59.999",
        "expiredAt": "10000-01-01 00:00:00",
    });
    let session = json!({"closedAt": "infinity", "createdAt": "0044-03-15 12:00:00 BC"});
    let runs = [("beyond", beyond), ("edges", edges)];
    in_both_formats(&runs, &[("session", session)], |stage| {
        assert_eq!(
            kept_names(stage),
            names(&[
                ["beyond", "completedAt"],
                ["beyond", "createdAt"],
                ["beyond", "delayUntil"],
                ["beyond", "expiredAt"],
                ["beyond", "queuedAt"],
                ["beyond", "startedAt"],
                ["beyond", "updatedAt"],
                ["session", "closedAt"],
                ["session", "createdAt"],
            ])
        );
        let [_, _, original] = &kept(stage)[1];
        assert_eq!(original, "infinity");
    });
}

#[test]
fn numbers_that_do_not_fit_are_kept_beside() {
    let over = json!({
        "attemptNumber": 256, "depth": i32::MAX, "usageDurationMs": -1, "maxDurationInSeconds": -1,
    });
    let under = json!({
        "attemptNumber": -1, "depth": i32::MIN, "usageDurationMs": i32::MIN,
        "maxDurationInSeconds": i32::MIN,
    });
    let edges = json!({
        "attemptNumber": 255, "depth": 0, "usageDurationMs": i32::MAX,
        "maxDurationInSeconds": i32::MAX,
        "costInCents": "NaN", "baseCostInCents": "Infinity",
    });
    let floats = json!({"costInCents": "-0", "baseCostInCents": "4.9e-324"});
    let runs = [("edges", edges), ("floats", floats), ("over", over), ("under", under)];
    in_both_formats(&runs, &[], |stage| {
        let all = ["attemptNumber", "depth", "maxDurationInSeconds", "usageDurationMs"];
        let expected: Vec<[&str; 2]> = ["over", "under"]
            .iter()
            .flat_map(|key| all.iter().map(move |column| [*key, *column]))
            .collect();
        assert_eq!(kept_names(stage), names(&expected));
        assert_eq!(kept(stage)[0][2], "256");
    });
}

#[test]
fn texts_and_arrays_arrive_to_the_letter() {
    let odd = "tab\t newline\n quote' \" backslash\\ {brace}, comma, NULL ü 😀 \u{FEFF}\u{7F}";
    let texts = json!({
        "taskIdentifier": odd, "queue": "", "concurrencyKey": odd, "masterQueue": ":",
        "runTags": [odd, "", "NULL", "null", "{}", "a,b", "\"", "\\"],
        "bulkActionGroupIds": [null, "after null", null],
        "idempotencyKeyOptions": {"key": odd, "scope": ""},
    });
    let nothing = json!({
        "runTags": null, "bulkActionGroupIds": null, "idempotencyKeyOptions": null,
        "annotations": [], "isWarmStart": null,
    });
    let empty = json!({
        "runTags": [], "bulkActionGroupIds": [], "annotations": {}, "isWarmStart": false,
        "payload": "", "masterQueue": "", "taskIdentifier": "",
    });
    let nested = json!({"runTags": [["a", "b"], ["c", null]]});
    let runs = [("texts", texts), ("nothing", nothing), ("empty", empty), ("nested", nested)];
    let session = json!({"tags": [odd], "externalId": odd, "metadata": {"odd": odd}});
    in_both_formats(&runs, &[("session", session)], |stage| {
        assert_eq!(kept(stage), [] as [[String; 3]; 0]);
    });
}

#[test]
fn annotations_count_only_as_a_whole() {
    let valid = json!({"triggerSource": "api", "triggerAction": "t", "rootTriggerSource": "r"});
    let but = |member: &str, value: Value| sample::with(valid.clone(), json!({member: value}));
    let runs = [
        ("valid", json!({"annotations": valid})),
        ("kind", json!({"annotations": but("taskKind", json!("SCHEDULED"))})),
        ("no-action", json!({"annotations": but("triggerAction", json!(null))})),
        ("number", json!({"annotations": but("rootTriggerSource", json!(1))})),
        ("bad-kind", json!({"annotations": but("taskKind", json!(["AGENT"]))})),
        ("bad-schedule", json!({"annotations": but("rootScheduleId", json!(false))})),
        ("text", json!({"annotations": "valid"})),
        (
            "deployment",
            json!({"annotations": {"externalDeploymentId": "dep"},
                "statusReason": "EXTERNAL_DEPLOYMENT_PENDING"}),
        ),
        (
            "other-reason",
            json!({"annotations": {"externalDeploymentId": "dep"}, "statusReason": "OTHER"}),
        ),
    ];
    in_both_formats(&runs, &[], |stage| {
        let found = stage.clickhouse.rows(&format!(
            "SELECT run_id FROM {DATABASE}.task_runs_v2 FINAL WHERE trigger_source = 'api' \
             ORDER BY run_id"
        ));
        assert_eq!(json!(found), json!([["kind"], ["valid"]]));
        let condition = "external_deployment_id = 'dep'";
        assert_eq!(stage.clickhouse.count("task_runs_v2", condition), 1);
    });
}

#[test]
fn failed_runs_have_a_fingerprint_that_groups_them() {
    let failed = |status: &str, error: Value| json!({"status": status, "error": error});
    let error = |message: &str| json!({"type": "BUILT_IN_ERROR", "message": message});
    let runs = [
        ("exact", failed("CRASHED", error("out of tea"))),
        ("same", failed("TIMED_OUT", error("out of tea"))),
        ("id-1", failed("SYSTEM_FAILURE", error("run_abc123 not found"))),
        ("id-2", failed("INTERRUPTED", error("run_xyz789 not found"))),
        ("fine", failed("COMPLETED_SUCCESSFULLY", error("out of tea"))),
        ("none", failed("CRASHED", Value::Null)),
        ("array", failed("CRASHED", json!(["out of tea"]))),
    ];
    in_both_formats(&runs, &[], |stage| {
        let groups = stage.clickhouse.rows(&format!(
            "SELECT arraySort(groupArray(run_id)) AS ids FROM {DATABASE}.task_runs_v2 FINAL \
             GROUP BY error_fingerprint ORDER BY ids"
        ));
        let expected =
            json!([[["array", "fine", "none"]], [["exact", "same"]], [["id-1", "id-2"]]]);
        assert_eq!(json!(groups), expected);
    });
}
