//! Rows of the source tables, as JSON objects for [`super::postgres::insert`].

use serde_json::{Value, json};

/// A run with what a run must have, and nothing else.
pub fn run(id: &str) -> Value {
    json!({
        "id": id,
        "friendlyId": format!("run_{id}"),
        "payload": r#"{"hello":"world"}"#,
        "runtimeEnvironmentId": "env_1",
        "environmentType": "DEVELOPMENT",
        "projectId": "proj_1",
        "organizationId": "org_1",
        "createdAt": "2026-05-20 10:11:12.345",
        "updatedAt": "2026-05-20 10:11:12.345",
        "taskIdentifier": "my-task",
        "spanId": "span_1",
        "traceId": "trace_1",
        "queue": "task/my-task",
    })
}

/// A run with a value of its own in every column that is replicated.
pub fn full_run(id: &str) -> Value {
    let first = with(
        run(id),
        json!({
            "idempotencyKey": format!("hash-{id}"),
            "idempotencyKeyOptions": {"key": "user key", "scope": "run"},
            "payload": r#"{"foo":"bar","n":[1,2,{"x":null}],"big":9007199254740993}"#,
            "payloadType": "application/json",
            "updatedAt": "2026-05-20 10:30:00.001",
            "queueTimestamp": "2026-05-20 10:11:13.002",
            "startedAt": "2026-05-20 10:11:14.003",
            "executedAt": "2026-05-20 10:11:15.004",
            "completedAt": "2026-05-20 10:11:16.005",
            "delayUntil": "2026-05-20 10:11:17.006",
            "queuedAt": "2026-05-20 10:11:18.007",
            "expiredAt": "2026-05-20 10:11:19.008",
            "status": "COMPLETED_WITH_ERRORS",
            "statusReason": "EXTERNAL_DEPLOYMENT_PENDING",
            "attemptNumber": 7,
            "engine": "V2",
            "scheduleId": "sched_1",
            "batchId": "batch_1",
        }),
    );
    with(
        first,
        json!({
            "usageDurationMs": 123_456,
            "costInCents": 0.1,
            "baseCostInCents": 2.5e-7,
            "output": r#"{"result":{"deep":[true,false]},"text":"ü \u0000 😀"}"#,
            "outputType": "application/json",
            "error": {"type": "BUILT_IN_ERROR", "name": "Error", "message": "no more tea"},
            "runTags": ["z last", "a first", "ü \"quoted\", with comma"],
            "taskVersion": "20260520.1",
            "sdkVersion": "4.5.0",
            "cliVersion": "4.5.1",
            "machinePreset": "small-1x",
            "rootTaskRunId": "run_root",
            "parentTaskRunId": "run_parent",
            "depth": 3,
            "ttl": "10m",
            "isTest": true,
            "concurrencyKey": "user-1",
            "bulkActionGroupIds": ["bulk_2", "bulk_1"],
            "masterQueue": "eu-central-1:prod:queue",
            "region": "eu-central-1",
            "planType": "pro",
            "maxDurationInSeconds": 3600,
            "annotations": {
                "triggerSource": "api",
                "triggerAction": "trigger",
                "rootTriggerSource": "dashboard",
                "taskKind": "AGENT",
                "externalDeploymentId": "dep_1",
            },
            "isWarmStart": true,
        }),
    )
}

/// A session with what a session must have, and nothing else.
pub fn session(id: &str) -> Value {
    json!({
        "id": id,
        "friendlyId": format!("session_{id}"),
        "type": "chat.agent",
        "projectId": "proj_1",
        "runtimeEnvironmentId": "env_1",
        "environmentType": "PRODUCTION",
        "organizationId": "org_1",
        "taskIdentifier": "my-agent",
        "createdAt": "2026-05-20 10:11:12.345",
        "updatedAt": "2026-05-20 10:11:12.345",
        "triggerConfig": {},
    })
}

/// A session with a value of its own in every column that is replicated.
pub fn full_session(id: &str) -> Value {
    with(
        session(id),
        json!({
            "externalId": format!("external-{id}"),
            "tags": ["user:1", "ü, and more"],
            "metadata": {"plan": "pro", "nested": {"list": [1, "two", null]}},
            "closedAt": "2026-05-21 01:02:03.004",
            "closedReason": "user",
            "expiresAt": "2026-06-01 00:00:00.005",
            "updatedAt": "2026-05-21 01:02:03.006",
            "isTest": true,
        }),
    )
}

/// A delivery of a webhook with a value of its own in every column that is replicated, made on this
/// day.
pub fn full_delivery(id: &str, day: &str) -> Value {
    json!({
        "id": id,
        "friendlyId": format!("delivery_{id}"),
        "webhookEndpointId": "endpoint_1",
        "organizationId": "org_1",
        "projectId": "proj_1",
        "runtimeEnvironmentId": "env_1",
        "environmentType": "PRODUCTION",
        "externalDeliveryId": format!("external-{id}"),
        "runId": format!("run_{id}"),
        "status": "SUCCEEDED",
        "isTest": true,
        "parsedEvent": {"kind": "push"},
        "createdAt": format!("{day} 10:11:12.345"),
        "updatedAt": format!("{day} 10:11:13.456"),
    })
}

/// `row` with other values for some columns.
pub fn with(mut row: Value, values: Value) -> Value {
    let (Value::Object(row_values), Value::Object(values)) = (&mut row, values) else {
        panic!("rows are objects");
    };
    row_values.extend(values);
    row
}
