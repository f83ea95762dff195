//! What each column of a target table should hold, as SQL over the source, and how it is read.

/// How a column's values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// JSON of an array of strings.
    Array,
    /// From Postgres the content type, a line end and the text; or nothing.
    Document,
    /// `?` stands for any fingerprint.
    Fingerprint,
}

pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
    /// Gives the expected value as text.
    pub postgres: String,
    /// Gives the value as String.
    pub clickhouse: String,
    /// Tables of the oldest form that is supported do not have it.
    pub optional: bool,
}

pub struct Table {
    pub name: &'static str,
    pub key: &'static str,
    pub source: &'static str,
    /// Which rows of the source are replicated.
    pub condition: &'static str,
    pub columns: Vec<Column>,
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

pub fn runs() -> Table {
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

pub fn payloads() -> Table {
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

pub fn sessions() -> Table {
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

/// Rows that are past the TTL of the target are in neither.
pub fn webhooks() -> Table {
    let columns = vec![
        text("environment_id", "runtimeEnvironmentId"),
        text("organization_id", "organizationId"),
        text("project_id", "projectId"),
        text("delivery_id", "id"),
        text("webhook_endpoint_id", "webhookEndpointId"),
        text("environment_type", "environmentType"),
        text("friendly_id", "friendlyId"),
        text("external_delivery_id", "externalDeliveryId"),
        text("run_id", "runId"),
        text("status", "status"),
        number("is_test", "\"isTest\"::int"),
        moment("created_at", "createdAt"),
        moment("updated_at", "updatedAt"),
        alive(),
    ];
    Table {
        name: "webhook_deliveries_v1",
        key: "delivery_id",
        source: "WebhookDelivery",
        condition: "\"organizationId\" <> '' AND now() - interval '60 days' < \"createdAt\"",
        columns,
    }
}
