//! Target tables made by somebody else: they are used as they are.

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::{SERVICES, Stage};
use crate::support::workload::Workload;

/// The oldest form of the tables that is supported: 52 columns, 18 columns, and payloads without a
/// version. Column by column as the source system's migrations leave them.
const OLD_TABLES: [&str; 3] = [
    "CREATE TABLE trigger_dev.task_runs_v2 (
        environment_id String, organization_id String, project_id String, run_id String,
        environment_type LowCardinality(String), friendly_id String, attempt UInt8 DEFAULT 1,
        engine LowCardinality(String), status LowCardinality(String), task_identifier String,
        queue String, schedule_id String, batch_id String, root_run_id String,
        parent_run_id String, depth UInt8 DEFAULT 0, span_id String, trace_id String,
        idempotency_key String, created_at DateTime64(3), updated_at DateTime64(3),
        started_at Nullable(DateTime64(3)), executed_at Nullable(DateTime64(3)),
        completed_at Nullable(DateTime64(3)), delay_until Nullable(DateTime64(3)),
        queued_at Nullable(DateTime64(3)), expired_at Nullable(DateTime64(3)),
        expiration_ttl String, usage_duration_ms UInt32 DEFAULT 0,
        cost_in_cents Float64 DEFAULT 0, base_cost_in_cents Float64 DEFAULT 0,
        output JSON(max_dynamic_paths = 1024), error JSON(max_dynamic_paths = 64),
        tags Array(String) CODEC(ZSTD(1)), task_version String CODEC(LZ4),
        sdk_version String CODEC(LZ4), cli_version String CODEC(LZ4),
        machine_preset LowCardinality(String) CODEC(LZ4), is_test UInt8 DEFAULT 0,
        _version UInt64, _is_deleted UInt8 DEFAULT 0, concurrency_key String DEFAULT '',
        bulk_action_group_ids Array(String) DEFAULT [], worker_queue String DEFAULT '',
        max_duration_in_seconds Nullable(UInt32) DEFAULT NULL,
        idempotency_key_user String DEFAULT '', idempotency_key_scope String DEFAULT '',
        output_text String MATERIALIZED if(toJSONString(output) = '{}', '',
            JSONExtractRaw(toJSONString(output), 'data')),
        error_fingerprint String DEFAULT '', trigger_source LowCardinality(String) DEFAULT '',
        root_trigger_source LowCardinality(String) DEFAULT '',
        is_warm_start Nullable(UInt8) DEFAULT NULL, task_kind LowCardinality(String) DEFAULT '',
        INDEX idx_tags tags TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 4
    ) ENGINE = ReplacingMergeTree(_version, _is_deleted) PARTITION BY toYYYYMM(created_at)
    ORDER BY (organization_id, project_id, environment_id, created_at, run_id)",
    "CREATE TABLE trigger_dev.raw_task_runs_payload_v1 (
        run_id String, created_at DateTime64(3), payload JSON(max_dynamic_paths = 1024)
    ) ENGINE = MergeTree PARTITION BY toYYYYMM(created_at) ORDER BY (run_id)",
    "CREATE TABLE trigger_dev.sessions_v1 (
        environment_id String, organization_id String, project_id String, session_id String,
        environment_type LowCardinality(String), friendly_id String,
        external_id String DEFAULT '', type LowCardinality(String),
        task_identifier String DEFAULT '', tags Array(String) CODEC(ZSTD(1)),
        metadata JSON(max_dynamic_paths = 256), closed_at Nullable(DateTime64(3)),
        closed_reason String DEFAULT '', expires_at Nullable(DateTime64(3)),
        created_at DateTime64(3), updated_at DateTime64(3), _version UInt64,
        _is_deleted UInt8 DEFAULT 0
    ) ENGINE = ReplacingMergeTree(_version, _is_deleted) PARTITION BY toYYYYMM(created_at)
    ORDER BY (organization_id, project_id, environment_id, created_at, session_id)",
];

fn make_old_tables(stage: &Stage) {
    stage.clickhouse.execute(&format!("CREATE DATABASE {DATABASE}"));
    OLD_TABLES.iter().for_each(|sql| stage.clickhouse.execute(sql));
}

fn shape(stage: &Stage) -> String {
    serde_json::json!(stage.clickhouse.rows(&format!(
        "SELECT table, name, type, default_kind FROM system.columns \
         WHERE database = '{DATABASE}' AND table NOT LIKE 'walhouse%' ORDER BY table, position"
    )))
    .to_string()
}

#[test]
fn older_tables_are_used_as_they_are() {
    let stage = Stage::take();
    make_old_tables(&stage);
    let before = shape(&stage);
    let mut program = stage.start();
    program.wait_for_log("`raw_task_runs_payload_v1` is a MergeTree, not a ReplacingMergeTree");
    stage.postgres.insert("TaskRun", &sample::full_run("full"));
    stage.postgres.insert("Session", &sample::full_session("full"));
    Workload::new(40).run(&stage.postgres, 150);
    stage.settle(&mut program, &SERVICES);
    assert!(200 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
    assert_eq!(shape(&stage), before, "nothing is altered");
    assert_eq!(program.log_lines("ERROR"), 0, "{}", program.log());
    program.stop();
}

#[test]
fn views_on_the_tables_see_every_insert() {
    let stage = Stage::take();
    make_old_tables(&stage);
    stage.clickhouse.execute(&format!(
        "CREATE MATERIALIZED VIEW {DATABASE}.errors ENGINE = SummingMergeTree ORDER BY error_fingerprint \
         AS SELECT error_fingerprint, 1 AS occurrences FROM {DATABASE}.task_runs_v2 \
         WHERE error_fingerprint != '' AND _is_deleted = 0"
    ));
    let mut program = stage.start();
    (0..20).for_each(|n| stage.postgres.insert("TaskRun", &sample::full_run(&format!("{n}"))));
    stage.settle(&mut program, &["runs"]);
    let sum = format!("SELECT sum(occurrences) FROM {DATABASE}.errors");
    assert_eq!(stage.clickhouse.value(&sum), "20");
    program.stop();
}

/// Goal: without the right to make tables, the log has the statement for each, and running those
/// is all that is needed.
#[test]
fn tables_that_may_not_be_made_are_asked_for() {
    let stage = Stage::take();
    stage.clickhouse.execute(&format!("CREATE DATABASE {DATABASE}"));
    let settings = stage.settings().with("REPLICATION_CREATE_TABLES", 0);
    let mut program = Program::start(&settings);
    let mut made = 0;
    crate::support::wait::until_true(
        "every table was asked for",
        crate::support::wait::PATIENCE,
        || {
            let log = program.log();
            let hints = log.lines().filter_map(|line| line.split_once("hint: Run: CREATE TABLE "));
            for (_, rest) in hints {
                let table = rest.split(' ').nth(3).unwrap().replace('`', "");
                let table = table.strip_prefix(&format!("{DATABASE}.")).unwrap();
                if !stage.clickhouse.has_table(table) {
                    stage.clickhouse.execute(&format!("CREATE TABLE {rest}"));
                    made += 1;
                }
            }
            program.state("runs") == "streaming" && program.state("sessions") == "streaming"
        },
    );
    assert_eq!(made, 10);
    stage.postgres.insert("TaskRun", &sample::full_run("a"));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2);
    program.stop();
}

#[test]
fn a_table_without_a_column_that_is_needed_is_refused_by_name() {
    let stage = Stage::take();
    make_old_tables(&stage);
    let table = format!("{DATABASE}.task_runs_v2");
    stage.clickhouse.execute(&format!("ALTER TABLE {table} DROP COLUMN span_id"));
    let mut program = Program::start(&stage.settings_runs());
    let error = program.wait_for_log("ERROR");
    assert!(error.contains("task_runs_v2") && error.contains("span_id"), "{error}");
    let hint = program.wait_for_log("hint: Run on ClickHouse: ");
    let (_, sql) = hint.split_once("Run on ClickHouse: ").unwrap();
    stage.clickhouse.execute(sql);
    program.wait_streaming(&["runs"]);
    stage.postgres.insert("TaskRun", &sample::full_run("a"));
    stage.settle(&mut program, &["runs"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2);
    program.stop();
}

/// Goal: whoever makes the tables in ClickHouse by migrations of its own may do so after walhouse was
/// started, as long as its table in Postgres is not there either.
/// Method: its first statement is the one that fails where somebody was faster.
#[test]
fn nothing_is_made_before_the_source_table_was_seen() {
    let stage = Stage::take();
    let rename = |from: &str, to: &str| {
        stage.postgres.execute(&format!(r#"ALTER TABLE "{from}" RENAME TO "{to}""#));
    };
    rename("TaskRun", "not yet TaskRun");
    rename("Session", "not yet Session");
    let settings = stage.settings();
    let mut program = Program::start(&settings);
    for table in ["TaskRun", "Session"] {
        program.wait_for_log_lines(&format!("`public.{table}`: the table is not in database"), 2);
    }
    for command in [&["adopt", "runs"][..], &["verify", "runs", "--repair"], &["check"]] {
        Program::command(&settings, command);
    }
    let made = "SELECT (SELECT count(*) FROM pg_publication), \
                (SELECT count(*) FROM pg_replication_slots)";
    assert_eq!(stage.postgres.rows_of::<2>(made), [["0".to_owned(), "0".to_owned()]]);
    stage.clickhouse.execute(&format!("CREATE DATABASE {DATABASE}"));
    assert_eq!(
        stage
            .clickhouse
            .value(&format!("SELECT count() FROM system.tables WHERE database = '{DATABASE}'")),
        "0"
    );
    rename("not yet TaskRun", "TaskRun");
    rename("not yet Session", "Session");
    program.wait_streaming(&SERVICES);
    stage.postgres.insert("TaskRun", &sample::run("r"));
    stage.settle(&mut program, &SERVICES);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL), 2);
    program.stop();
}

/// Goal: what a later trigger.dev, or somebody else, has added to either side does not stay empty
/// without a word.
#[test]
fn columns_that_are_not_known_are_named() {
    let stage = Stage::take();
    let settings = stage.settings();
    let mut program = stage.start();
    let known = program.status();
    for service in SERVICES {
        assert_eq!(known["services"][service]["notes"], serde_json::json!([]));
    }
    program.stop();
    stage.postgres.execute(
        r#"ALTER TABLE "TaskRun" ADD COLUMN "brandNew" text;
           ALTER TABLE "Session" ADD COLUMN "other new" integer"#,
    );
    for sql in [
        "ALTER TABLE trigger_dev.task_runs_v2 ADD COLUMN brand_new String DEFAULT ''",
        "ALTER TABLE trigger_dev.task_runs_v2 ADD COLUMN computed String MATERIALIZED 'x'",
        "ALTER TABLE trigger_dev.task_runs_v2 DROP COLUMN region",
        "ALTER TABLE trigger_dev.raw_task_runs_payload_v1 ADD COLUMN extra UInt8",
    ] {
        stage.clickhouse.execute(sql);
    }
    let expected = [
        ("runs", "column `brandNew` of `public.TaskRun` is not known to this version"),
        ("runs", "column `brand_new` of `task_runs_v2` is not known to this version"),
        ("runs", "`task_runs_v2` has no column `region`: it is left out. ALTER TABLE"),
        ("runs", "column `extra` of `raw_task_runs_payload_v1` is not known to this version"),
        ("sessions", "column `other new` of `public.Session` is not known to this version"),
    ];
    let output = Program::command(&settings, &["check"]);
    let checked = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut program = stage.start();
    let status = program.status();
    for (service, text) in expected {
        assert!(checked.contains(&format!("warning  {service}: columns: {text}")), "{checked}");
        program.wait_for_log(&format!("{service}: {text}"));
        let notes = status["services"][service]["notes"].to_string();
        assert!(notes.contains(text), "{notes}");
    }
    assert!(!checked.contains("computed") && !program.log().contains("computed"));
    stage.postgres.insert("TaskRun", &sample::run("r"));
    stage.settle(&mut program, &SERVICES);
    program.stop();
}
