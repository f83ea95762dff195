//! Compares both sides in full: every column of every row, by key, as FINAL shows them.
//!
//! What is expected is computed from Postgres by SQL, and documents are compared value by value
//! after what ClickHouse is known to do with them ([`super::document`]). Nothing here uses
//! walhouse's own code: a mistake there must not be made here again. Three things are not seen:
//! whether a fingerprint of a message with ids, paths or the like is the right one (its rules have
//! their own tests), the exact `_version`, and, in a payload table that is a plain MergeTree,
//! deleted and repeated rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use serde_json::Value;

use super::clickhouse::{Clickhouse, DATABASE};
use super::document;
use super::postgres::Postgres;

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    pub runs: bool,
    pub payloads: bool,
    pub sessions: bool,
}

impl Scope {
    pub const ALL: Scope = Scope { runs: true, payloads: true, sessions: true };
    pub const RUNS: Scope = Scope { runs: true, payloads: true, sessions: false };
    /// For runs whose payload may be another than that of their INSERT.
    pub const RUNS_WITHOUT_PAYLOADS: Scope = Scope { runs: true, payloads: false, sessions: false };
    pub const SESSIONS: Scope = Scope { runs: false, payloads: false, sessions: true };
}

/// What the two sides do not agree on.
#[derive(Debug, Default)]
pub struct Report {
    /// Rows that Postgres has and that should be in ClickHouse, over all tables.
    pub rows: usize,
    pub differences: Vec<Difference>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    pub table: &'static str,
    pub key: String,
    pub what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub enum What {
    Lost,
    /// Postgres does not have it (any more), or it should never have been sent.
    Extra,
    /// This often, FINAL notwithstanding.
    Repeated(usize),
    Wrong {
        column: &'static str,
        expected: String,
        found: String,
    },
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.differences.is_empty()
    }

    /// `table key column` of each wrong value, `table key lost` and so on of each other difference.
    pub fn names(&self) -> Vec<String> {
        let name = |d: &Difference| {
            let what = match &d.what {
                What::Lost => "lost",
                What::Extra => "extra",
                What::Repeated(_) => "repeated",
                What::Wrong { column, .. } => column,
            };
            format!("{} {} {what}", d.table, d.key)
        };
        self.differences.iter().map(name).collect()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX: usize = 40;
        writeln!(f, "{} rows compared, {} differences", self.rows, self.differences.len())?;
        for Difference { table, key, what } in self.differences.iter().take(SHOWN_MAX) {
            match what {
                What::Wrong { column, expected, found } => {
                    writeln!(f, "{table} {key}: `{column}` is {found}, expected {expected}")?;
                }
                other => writeln!(f, "{table} {key}: {other:?}")?,
            }
        }
        Ok(())
    }
}

/// Fails with the differences, if there are any. Returns how many rows there were.
#[track_caller]
pub fn assert_same(postgres: &Postgres, clickhouse: &Clickhouse, scope: Scope) -> usize {
    let report = compare(postgres, clickhouse, scope);
    assert!(report.is_clean(), "{report}");
    report.rows
}

#[track_caller]
pub fn compare(postgres: &Postgres, clickhouse: &Clickhouse, scope: Scope) -> Report {
    let mut report = Report::default();
    if scope.runs {
        compare_table(&runs(), postgres, clickhouse, &mut report);
    }
    if scope.payloads {
        compare_table(&payloads(), postgres, clickhouse, &mut report);
    }
    if scope.sessions {
        compare_table(&sessions(), postgres, clickhouse, &mut report);
    }
    report
}

/// How a column's values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// JSON of an array of strings.
    Array,
    /// From Postgres the content type, a line end and the text; or nothing.
    Document,
    /// `?` stands for any fingerprint.
    Fingerprint,
}

struct Column {
    name: &'static str,
    kind: Kind,
    /// Gives the expected value as text.
    postgres: String,
    /// Gives the value as String.
    clickhouse: String,
    /// Tables of the oldest form that is supported do not have it.
    optional: bool,
}

struct Table {
    name: &'static str,
    key: &'static str,
    source: &'static str,
    /// Which rows of the source are replicated.
    condition: &'static str,
    columns: Vec<Column>,
}

fn column(name: &'static str, kind: Kind, postgres: String, clickhouse: String) -> Column {
    Column { name, kind, postgres, clickhouse, optional: false }
}

/// A text that may be null in Postgres, and then is empty.
fn text(name: &'static str, source: &str) -> Column {
    column(
        name,
        Kind::Text,
        format!("coalesce(\"{source}\"::text, '')"),
        format!("toString({name})"),
    )
}

fn number(name: &'static str, expected: &str) -> Column {
    column(name, Kind::Text, format!("({expected})::text"), format!("toString({name})"))
}

/// Bit by bit, as the shortest decimals of the two are not written alike.
fn float(name: &'static str, source: &str) -> Column {
    let bits = format!("leftPad(lower(hex(reinterpretAsUInt64({name}))), 16, '0')");
    column(name, Kind::Text, format!("encode(float8send(coalesce(\"{source}\", 0)), 'hex')"), bits)
}

const MOMENT_MAX: &str = "timestamp '9999-12-31 23:59:59.999'";
const MOMENT_MIN: &str = "timestamp '0001-01-01 00:00:00 BC'";

/// The nearest moment that ClickHouse has.
fn moment(name: &'static str, source: &str) -> Column {
    let held = format!("least(greatest(\"{source}\", {MOMENT_MIN}), {MOMENT_MAX})");
    column(
        name,
        Kind::Text,
        format!("(extract(epoch FROM {held}) * 1000)::bigint::text"),
        format!("toString(toUnixTimestamp64Milli({name}))"),
    )
}

/// Null if ClickHouse does not have the moment.
fn nullable_moment(name: &'static str, source: &str) -> Column {
    column(
        name,
        Kind::Text,
        format!(
            "CASE WHEN \"{source}\" BETWEEN {MOMENT_MIN} AND {MOMENT_MAX} \
             THEN (extract(epoch FROM \"{source}\") * 1000)::bigint::text END"
        ),
        format!("toString(toUnixTimestamp64Milli({name}))"),
    )
}

fn array(name: &'static str, source: &str) -> Column {
    let elements = format!(
        "coalesce((SELECT json_agg(coalesce(element, '') ORDER BY place) \
         FROM unnest(\"{source}\") WITH ORDINALITY u(element, place)), '[]')::text"
    );
    column(name, Kind::Array, elements, format!("toJSONString({name})"))
}

fn document_of_text(name: &'static str, source: &str, content_type: &str) -> Column {
    let expected = format!(
        "CASE WHEN \"{content_type}\" IN ('application/json', 'application/super+json') \
         AND \"{source}\" <> '' THEN \"{content_type}\" || chr(10) || \"{source}\" END"
    );
    column(name, Kind::Document, expected, format!("toJSONString({name})"))
}

fn document_of_jsonb(name: &'static str, source: &str) -> Column {
    let expected = format!("'application/json' || chr(10) || coalesce(\"{source}\"::text, 'null')");
    column(name, Kind::Document, expected, format!("toJSONString({name})"))
}

fn optional(column: Column) -> Column {
    Column { optional: true, ..column }
}

/// A string member of the annotations, which count only if they are valid as a whole.
fn annotation(name: &'static str, member: &str) -> Column {
    let is_string = |member: &str| format!("jsonb_typeof(annotations->'{member}') = 'string'");
    let may_be_string = |member: &str| {
        format!("coalesce(jsonb_typeof(annotations->'{member}'), 'string') = 'string'")
    };
    let valid = [
        "jsonb_typeof(annotations) = 'object'".to_owned(),
        is_string("triggerSource"),
        is_string("triggerAction"),
        is_string("rootTriggerSource"),
        may_be_string("rootScheduleId"),
        may_be_string("taskKind"),
        may_be_string("externalDeploymentId"),
    ]
    .join(" AND ");
    column(
        name,
        Kind::Text,
        format!("CASE WHEN {valid} THEN coalesce(annotations->>'{member}', '') ELSE '' END"),
        format!("toString({name})"),
    )
}

fn idempotency_option(name: &'static str, member: &str) -> Column {
    let expected = format!(
        "CASE WHEN jsonb_typeof(\"idempotencyKeyOptions\") = 'object' \
         THEN coalesce(\"idempotencyKeyOptions\"->>'{member}', '') ELSE '' END"
    );
    column(name, Kind::Text, expected, format!("toString({name})"))
}

/// Exact for messages of letters and blanks, in which nothing is replaced.
fn fingerprint() -> Column {
    let expected = "CASE
        WHEN status::text NOT IN ('SYSTEM_FAILURE', 'CRASHED', 'INTERRUPTED',
            'COMPLETED_WITH_ERRORS', 'TIMED_OUT') THEN ''
        WHEN error IS NULL OR jsonb_typeof(error) <> 'object' THEN ''
        WHEN error->>'message' ~ '^[A-Za-z ]+$' AND error->>'type' ~ '.'
            AND NOT error ? 'stack' AND NOT error ? 'stacktrace'
            THEN left(encode(sha256(convert_to(
                (error->>'type') || ':' || (error->>'message') || ':', 'UTF8')), 'hex'), 16)
        ELSE '?' END";
    column(
        "error_fingerprint",
        Kind::Fingerprint,
        expected.to_owned(),
        "error_fingerprint".to_owned(),
    )
}

fn alive() -> Column {
    number("_is_deleted", "0")
}

fn runs() -> Table {
    let columns = vec![
        text("environment_id", "runtimeEnvironmentId"),
        text("organization_id", "organizationId"),
        text("project_id", "projectId"),
        text("run_id", "id"),
        moment("updated_at", "updatedAt"),
        moment("created_at", "createdAt"),
        optional(nullable_moment("queue_timestamp", "queueTimestamp")),
        text("status", "status"),
        text("environment_type", "environmentType"),
        text("friendly_id", "friendlyId"),
        number("attempt", "least(greatest(coalesce(\"attemptNumber\", 1), 0), 255)"),
        text("engine", "engine"),
        text("task_identifier", "taskIdentifier"),
        text("queue", "queue"),
        text("schedule_id", "scheduleId"),
        text("batch_id", "batchId"),
        nullable_moment("completed_at", "completedAt"),
        nullable_moment("started_at", "startedAt"),
        nullable_moment("executed_at", "executedAt"),
        nullable_moment("delay_until", "delayUntil"),
        nullable_moment("queued_at", "queuedAt"),
        nullable_moment("expired_at", "expiredAt"),
        number("usage_duration_ms", "greatest(\"usageDurationMs\", 0)"),
        float("cost_in_cents", "costInCents"),
        float("base_cost_in_cents", "baseCostInCents"),
        document_of_text("output", "output", "outputType"),
        document_of_jsonb("error", "error"),
        fingerprint(),
        array("tags", "runTags"),
        text("task_version", "taskVersion"),
        text("sdk_version", "sdkVersion"),
        text("cli_version", "cliVersion"),
        text("machine_preset", "machinePreset"),
        text("root_run_id", "rootTaskRunId"),
        text("parent_run_id", "parentTaskRunId"),
        number("depth", "least(greatest(\"depth\", 0), 255)"),
        text("span_id", "spanId"),
        text("trace_id", "traceId"),
        text("idempotency_key", "idempotencyKey"),
        idempotency_option("idempotency_key_user", "key"),
        idempotency_option("idempotency_key_scope", "scope"),
        text("expiration_ttl", "ttl"),
        number("is_test", "\"isTest\"::int"),
        alive(),
        text("concurrency_key", "concurrencyKey"),
        array("bulk_action_group_ids", "bulkActionGroupIds"),
        column(
            "worker_queue",
            Kind::Text,
            "split_part(\"masterQueue\", ':', 1)".to_owned(),
            "worker_queue".to_owned(),
        ),
        optional(text("region", "region")),
        optional(text("plan_type", "planType")),
        number(
            "max_duration_in_seconds",
            "CASE WHEN 0 <= \"maxDurationInSeconds\" THEN \"maxDurationInSeconds\" END",
        ),
        annotation("trigger_source", "triggerSource"),
        annotation("root_trigger_source", "rootTriggerSource"),
        annotation("task_kind", "taskKind"),
        number("is_warm_start", "\"isWarmStart\"::int"),
        optional(column(
            "external_deployment_id",
            Kind::Text,
            "CASE WHEN \"statusReason\" = 'EXTERNAL_DEPLOYMENT_PENDING' \
             AND jsonb_typeof(annotations->'externalDeploymentId') = 'string' \
             THEN annotations->>'externalDeploymentId' ELSE '' END"
                .to_owned(),
            "external_deployment_id".to_owned(),
        )),
    ];
    Table {
        name: "task_runs_v2",
        key: "run_id",
        source: "TaskRun",
        condition: RUN_IS_OWNED,
        columns,
    }
}

const RUN_IS_OWNED: &str = "\"organizationId\" <> '' AND \"environmentType\" IS NOT NULL";

fn payloads() -> Table {
    Table {
        name: "raw_task_runs_payload_v1",
        key: "run_id",
        source: "TaskRun",
        condition: RUN_IS_OWNED,
        columns: vec![
            text("run_id", "id"),
            moment("created_at", "createdAt"),
            document_of_text("payload", "payload", "payloadType"),
            optional(alive()),
        ],
    }
}

fn sessions() -> Table {
    let columns = vec![
        text("environment_id", "runtimeEnvironmentId"),
        text("organization_id", "organizationId"),
        text("project_id", "projectId"),
        text("session_id", "id"),
        text("environment_type", "environmentType"),
        text("friendly_id", "friendlyId"),
        text("external_id", "externalId"),
        text("type", "type"),
        text("task_identifier", "taskIdentifier"),
        array("tags", "tags"),
        document_of_jsonb("metadata", "metadata"),
        nullable_moment("closed_at", "closedAt"),
        text("closed_reason", "closedReason"),
        nullable_moment("expires_at", "expiresAt"),
        moment("created_at", "createdAt"),
        moment("updated_at", "updatedAt"),
        optional(number("is_test", "\"isTest\"::int")),
        alive(),
    ];
    Table {
        name: "sessions_v1",
        key: "session_id",
        source: "Session",
        condition: "\"organizationId\" <> ''",
        columns,
    }
}

type Row = Vec<Option<String>>;

fn compare_table(table: &Table, postgres: &Postgres, clickhouse: &Clickhouse, report: &mut Report) {
    let present: BTreeSet<String> = clickhouse
        .rows(&format!(
            "SELECT name FROM system.columns WHERE database = '{DATABASE}' AND table = '{}'",
            table.name
        ))
        .into_iter()
        .filter_map(|row| Some(row.first()?.as_str()?.to_owned()))
        .collect();
    for column in &table.columns {
        assert!(
            column.optional || present.contains(column.name),
            "`{}` has no column `{}`",
            table.name,
            column.name
        );
    }
    let columns: Vec<&Column> =
        table.columns.iter().filter(|column| present.contains(column.name)).collect();
    let expected = expected_rows(table, &columns, postgres);
    let replaces = clickhouse
        .value(&format!(
            "SELECT engine FROM system.tables WHERE database = '{DATABASE}' AND name = '{}'",
            table.name
        ))
        .ends_with("ReplacingMergeTree");
    let found = found_rows(table, &columns, clickhouse, replaces);

    report.rows += expected.len();
    let mut differ = |key: &str, what| {
        report.differences.push(Difference { table: table.name, key: key.to_owned(), what });
    };
    for (key, expected) in &expected {
        let Some(found) = found.get(key) else {
            differ(key, What::Lost);
            continue;
        };
        if replaces && found.len() != 1 {
            differ(key, What::Repeated(found.len()));
        }
        // Of repeated rows one may be the right one; without versions nobody knows which is last.
        let wrong = found.iter().map(|found| wrong_columns(&columns, expected, found));
        for (at, expected, found) in wrong.min_by_key(Vec::len).unwrap_or_default() {
            differ(key, What::Wrong { column: columns[at].name, expected, found });
        }
    }
    for key in found.keys().filter(|key| replaces && !expected.contains_key(*key)) {
        differ(key, What::Extra);
    }
}

fn expected_rows(table: &Table, columns: &[&Column], postgres: &Postgres) -> BTreeMap<String, Row> {
    let list: Vec<&str> = columns.iter().map(|column| column.postgres.as_str()).collect();
    let sql = format!(
        "SELECT \"id\", {} FROM public.\"{}\" WHERE {}",
        list.join(", "),
        table.source,
        table.condition
    );
    let rows = postgres.rows(&sql).into_iter().map(|mut row| {
        let key = row.remove(0).expect("the key is not null");
        (key, row)
    });
    rows.collect()
}

fn found_rows(
    table: &Table,
    columns: &[&Column],
    clickhouse: &Clickhouse,
    replaces: bool,
) -> BTreeMap<String, Vec<Row>> {
    let list: Vec<&str> = columns.iter().map(|column| column.clickhouse.as_str()).collect();
    let sql = format!(
        "SELECT {}, {} FROM {DATABASE}.{} {}",
        table.key,
        list.join(", "),
        table.name,
        if replaces { "FINAL" } else { "" }
    );
    let mut found: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in clickhouse.rows(&sql) {
        let mut values = row.into_iter().map(|value| match value {
            Value::String(text) => Some(text),
            Value::Null => None,
            other => panic!("every column is asked for as text: {other}"),
        });
        let key = values.next().flatten().expect("the key is not null");
        found.entry(key).or_default().push(values.collect());
    }
    found
}

/// The place of each column that differs, and both values as text that can be read.
fn wrong_columns(columns: &[&Column], expected: &Row, found: &Row) -> Vec<(usize, String, String)> {
    let mut wrong = Vec::new();
    for (at, column) in columns.iter().enumerate() {
        let (expected, found) = (
            comparable(column.kind, &expected[at], true),
            comparable(column.kind, &found[at], false),
        );
        let same = match column.kind {
            Kind::Fingerprint if expected == "?" => is_fingerprint(&found),
            _ => expected == found,
        };
        if !same {
            wrong.push((at, shortened(&expected, &found), shortened(&found, &expected)));
        }
    }
    wrong
}

fn comparable(kind: Kind, value: &Option<String>, from_postgres: bool) -> String {
    const NULL: &str = "null";
    match (kind, value) {
        (Kind::Document, value) if from_postgres => document::expected(value.as_deref()),
        (_, None) => NULL.to_owned(),
        (Kind::Document, Some(text)) => document::found(text),
        (Kind::Array, Some(text)) => {
            let array: Value = serde_json::from_str(text).expect("both sides write JSON");
            array.to_string()
        }
        // Told from null and from each other by their quotes.
        (Kind::Text, Some(text)) => format!("'{text}'"),
        (Kind::Fingerprint, Some(text)) => text.clone(),
    }
}

fn is_fingerprint(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A long value from a little before where it differs from the other.
fn shortened(value: &str, other: &str) -> String {
    const SHOWN_MAX: usize = 160;
    let same = value.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    let start = same.saturating_sub(40);
    let shown: String = value.chars().skip(start).take(SHOWN_MAX).collect();
    let before = if 0 < start { "..." } else { "" };
    let after = if value.chars().count() > start + SHOWN_MAX { "..." } else { "" };
    format!("{before}{shown}{after}")
}
