//! `public."TaskRun"` -> `task_runs_v2` and, for its payload, `raw_task_runs_payload_v1`.

use std::sync::{Arc, LazyLock};

use super::annotations::{Annotations, IdempotencyOptions};
use super::column_set::ColumnSet;
use super::mapping::{Mapping, Stamp, ValueError, is_left_out};
use super::notes::Notes;
use super::reader::RowReader;
use super::row::Row;
use super::source::{Source, source_columns};
use super::{annotations, fingerprint};
use crate::documents::convert;
use crate::rows::Block;
use crate::rows::target::{Target, columns};

#[derive(Debug)]
pub struct Runs {
    /// Write the payload of new runs to its own table.
    pub payloads: bool,
    /// Compute `error_fingerprint`.
    pub fingerprints: bool,
}

source_columns! { columns_of_source,
    new ID "id" Text,
    new ORGANIZATION "organizationId" Text,
    new PROJECT "projectId" Text,
    new ENVIRONMENT "runtimeEnvironmentId" Text,
    new ENVIRONMENT_TYPE "environmentType" Text,
    new CREATED_AT "createdAt" Timestamp,
    new UPDATED_AT "updatedAt" Timestamp,
    new QUEUE_TIMESTAMP "queueTimestamp" Timestamp,
    new STATUS "status" Text,
    new STATUS_REASON "statusReason" Text,
    new FRIENDLY_ID "friendlyId" Text,
    new ATTEMPT_NUMBER "attemptNumber" Int,
    new ENGINE "engine" Text,
    new TASK_IDENTIFIER "taskIdentifier" Text,
    new QUEUE "queue" Text,
    new SCHEDULE_ID "scheduleId" Text,
    new BATCH_ID "batchId" Text,
    new COMPLETED_AT "completedAt" Timestamp,
    new STARTED_AT "startedAt" Timestamp,
    new EXECUTED_AT "executedAt" Timestamp,
    new DELAY_UNTIL "delayUntil" Timestamp,
    new QUEUED_AT "queuedAt" Timestamp,
    new EXPIRED_AT "expiredAt" Timestamp,
    new USAGE_DURATION "usageDurationMs" Int,
    new COST "costInCents" Float,
    new BASE_COST "baseCostInCents" Float,
    new PAYLOAD "payload" Text,
    new PAYLOAD_TYPE "payloadType" Text,
    new OUTPUT "output" Text,
    new OUTPUT_TYPE "outputType" Text,
    new ERROR "error" Json,
    new TAGS "runTags" TextArray,
    new TASK_VERSION "taskVersion" Text,
    new SDK_VERSION "sdkVersion" Text,
    new CLI_VERSION "cliVersion" Text,
    new MACHINE_PRESET "machinePreset" Text,
    new ROOT_RUN_ID "rootTaskRunId" Text,
    new PARENT_RUN_ID "parentTaskRunId" Text,
    new DEPTH "depth" Int,
    new SPAN_ID "spanId" Text,
    new TRACE_ID "traceId" Text,
    new IDEMPOTENCY_KEY "idempotencyKey" Text,
    new IDEMPOTENCY_KEY_OPTIONS "idempotencyKeyOptions" Json,
    new TTL "ttl" Text,
    new IS_TEST "isTest" Bool,
    new CONCURRENCY_KEY "concurrencyKey" Text,
    new BULK_ACTION_GROUP_IDS "bulkActionGroupIds" TextArray,
    new MASTER_QUEUE "masterQueue" Text,
    optional REGION "region" Text,
    new PLAN_TYPE "planType" Text,
    new MAX_DURATION "maxDurationInSeconds" Int,
    new ANNOTATIONS "annotations" Json,
    new IS_WARM_START "isWarmStart" Bool,
}

static SOURCE: LazyLock<Source> = LazyLock::new(|| Source {
    schema: "public".into(),
    table: "TaskRun".into(),
    columns: columns_of_source(),
    unread: [
        "context",
        "lockedAt",
        "lockedById",
        "lockedToVersionId",
        "traceContext",
        "number",
        "scheduleInstanceId",
        "maxAttempts",
        "logsDeletedAt",
        "parentTaskRunAttemptId",
        "resumeParentOnCompletion",
        "parentSpanId",
        "metadata",
        "metadataType",
        "seedMetadata",
        "seedMetadataType",
        "idempotencyKeyExpiresAt",
        "oneTimeUseToken",
        "metadataVersion",
        "priorityMs",
        "secondaryMasterQueue",
        "taskEventStore",
        "lockedQueueId",
        "runChainState",
        "replayedFromTaskRunFriendlyId",
        "lockedRetryConfig",
        "realtimeStreamsVersion",
        "realtimeStreams",
        "debounce",
        "streamBasinName",
    ]
    .map(Arc::from)
    .to_vec(),
    key: vec![place::ID],
    sorting: vec![place::ORGANIZATION, place::PROJECT, place::ENVIRONMENT, place::CREATED_AT],
    created_at: Some(place::CREATED_AT),
});

const TASK_RUNS_V2: &str = "task_runs_v2";
const PAYLOADS_V1: &str = "raw_task_runs_payload_v1";

/// Payloads have a version here, so that a redelivered row is not stored twice and a deleted run
/// also deletes its payload. Upstream's plain MergeTree is used as it is, without either.
pub static TARGETS: LazyLock<[Target; 2]> = LazyLock::new(|| {
    [
        Target {
            table: TASK_RUNS_V2.into(),
            columns: columns! {
                "environment_id" String,
                "organization_id" String,
                "project_id" String,
                "run_id" String,
                "environment_type" String "LowCardinality(String)",
                "friendly_id" String,
                "attempt" UInt8 "UInt8 DEFAULT 1",
                "engine" String "LowCardinality(String)",
                "status" String "LowCardinality(String)",
                "task_identifier" String,
                "queue" String,
                "schedule_id" String,
                "batch_id" String,
                "root_run_id" String,
                "parent_run_id" String,
                "depth" UInt8 "UInt8 DEFAULT 0",
                "span_id" String,
                "trace_id" String,
                "idempotency_key" String,
                "created_at" Millis,
                "queue_timestamp" NullableMillis,
                "updated_at" Millis,
                "started_at" NullableMillis,
                "executed_at" NullableMillis,
                "completed_at" NullableMillis,
                "delay_until" NullableMillis,
                "queued_at" NullableMillis,
                "expired_at" NullableMillis,
                "expiration_ttl" String,
                "usage_duration_ms" UInt32 "UInt32 DEFAULT 0",
                "cost_in_cents" Float64 "Float64 DEFAULT 0",
                "base_cost_in_cents" Float64 "Float64 DEFAULT 0",
                "output" Json "JSON(max_dynamic_paths=1024)",
                "error" Json "JSON(max_dynamic_paths=64)",
                "tags" StringArray "Array(String) CODEC(ZSTD(1))",
                "task_version" String "String CODEC(LZ4)",
                "sdk_version" String "String CODEC(LZ4)",
                "cli_version" String "String CODEC(LZ4)",
                "machine_preset" String "LowCardinality(String) CODEC(LZ4)",
                "is_test" UInt8 "UInt8 DEFAULT 0",
                "_version" UInt64,
                "_is_deleted" UInt8 "UInt8 DEFAULT 0",
                "concurrency_key" String "String DEFAULT ''",
                "bulk_action_group_ids" StringArray "Array(String) DEFAULT []",
                "worker_queue" String "String DEFAULT ''",
                "max_duration_in_seconds" NullableUInt32 "Nullable(UInt32) DEFAULT NULL",
                "idempotency_key_user" String "String DEFAULT ''",
                "idempotency_key_scope" String "String DEFAULT ''",
                "error_fingerprint" String "String DEFAULT ''",
                "trigger_source" String "LowCardinality(String) DEFAULT ''",
                "root_trigger_source" String "LowCardinality(String) DEFAULT ''",
                "is_warm_start" NullableUInt8 "Nullable(UInt8) DEFAULT NULL",
                "task_kind" String "LowCardinality(String) DEFAULT ''",
                "region" String "String DEFAULT ''",
                "plan_type" String "LowCardinality(String) DEFAULT ''",
                "external_deployment_id" String "String DEFAULT ''",
            },
            computed: [
                "output_text String MATERIALIZED multiIf(toJSONString(output) = '{}', '', \
             JSONExtractRaw(toJSONString(output), 'data') != '', \
             JSONExtractRaw(toJSONString(output), 'data'), toJSONString(output))",
                "error_text String MATERIALIZED multiIf(toJSONString(error) = '{}', '', \
             JSONExtractRaw(toJSONString(error), 'data') != '', \
             JSONExtractRaw(toJSONString(error), 'data'), toJSONString(error))",
            ]
            .map(str::to_owned)
            .to_vec(),
            indexes: [
                "idx_tags tags TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 4",
                "idx_output_text output_text TYPE ngrambf_v1(3, 131072, 3, 0) GRANULARITY 4",
                "idx_error_text error_text TYPE ngrambf_v1(3, 131072, 3, 0) GRANULARITY 4",
                "idx_error_fingerprint error_fingerprint TYPE bloom_filter GRANULARITY 4",
            ]
            .map(str::to_owned)
            .to_vec(),
            order_by: vec![1, 2, 0, 19, 3],
            partition_by: vec![19],
            ttl: None,
            documents: vec![32, 33],
            optional: vec![20, 53, 54, 55],
            id: vec![3],
            version: 40,
            is_deleted: 41,
        },
        Target {
            table: PAYLOADS_V1.into(),
            columns: columns! {
                "run_id" String,
                "created_at" Millis,
                "payload" Json "JSON(max_dynamic_paths=1024)",
                "_version" UInt64,
                "_is_deleted" UInt8 "UInt8 DEFAULT 0",
            },
            computed: vec![],
            indexes: vec![],
            order_by: vec![0],
            partition_by: vec![1],
            ttl: None,
            documents: vec![2],
            optional: vec![3, 4],
            id: vec![0],
            version: 3,
            is_deleted: 4,
        },
    ]
});

/// A run that has one of these goes no further.
const FINAL_STATUSES: &[&str] = &[
    "CANCELED",
    "INTERRUPTED",
    "COMPLETED_SUCCESSFULLY",
    "COMPLETED_WITH_ERRORS",
    "SYSTEM_FAILURE",
    "CRASHED",
    "EXPIRED",
    "TIMED_OUT",
];

impl Mapping for Runs {
    fn source(&self) -> &Source {
        &SOURCE
    }

    fn targets(&self) -> &[Target] {
        if self.payloads { &*TARGETS } else { &TARGETS[..1] }
    }

    fn needs(&self, first: bool) -> ColumnSet {
        let all = ColumnSet::first(SOURCE.columns.len());
        // Updates leave the payload table alone, so a payload they did not send is not missed.
        if first && self.payloads { all } else { all.without(place::PAYLOAD) }
    }

    fn owners(&self) -> &'static [usize] {
        &[place::ORGANIZATION, place::ENVIRONMENT_TYPE]
    }

    /// Only these statuses are final: a run in any other may still change.
    fn final_values(&self) -> Option<(usize, &'static [&'static str])> {
        Some((place::STATUS, FINAL_STATUSES))
    }

    fn append(
        &self,
        row: &Row<'_>,
        stamp: Stamp,
        blocks: &mut [Block],
        notes: &mut Notes,
    ) -> Result<(), ValueError> {
        if is_left_out(self, row, stamp, notes) {
            return Ok(());
        }
        if stamp.row {
            let from = RowReader::new(&SOURCE, row, TASK_RUNS_V2, stamp.version, notes);
            self.append_run(from, stamp, &mut blocks[0])?;
        }
        if let Some(block) = blocks.get_mut(1)
            && stamp.first
        {
            let from = RowReader::new(&SOURCE, row, PAYLOADS_V1, stamp.version, notes);
            append_payload(from, stamp, block)?;
        }
        Ok(())
    }
}

impl Runs {
    fn append_run(
        &self,
        mut from: RowReader<'_, '_>,
        stamp: Stamp,
        to: &mut Block,
    ) -> Result<(), ValueError> {
        to.put_str(from.text(place::ENVIRONMENT));
        to.put_str(from.text(place::ORGANIZATION));
        to.put_str(from.text(place::PROJECT));
        to.put_str(from.text(place::ID));
        to.put_str(from.text(place::ENVIRONMENT_TYPE));
        to.put_str(from.text(place::FRIENDLY_ID));
        to.put_u8(from.unsigned(place::ATTEMPT_NUMBER, 1)?);
        to.put_str(from.text(place::ENGINE));
        to.put_str(from.text(place::STATUS));
        to.put_str(from.text(place::TASK_IDENTIFIER));
        to.put_str(from.text(place::QUEUE));
        to.put_str(from.text(place::SCHEDULE_ID));
        to.put_str(from.text(place::BATCH_ID));
        to.put_str(from.text(place::ROOT_RUN_ID));
        to.put_str(from.text(place::PARENT_RUN_ID));
        to.put_u8(from.unsigned(place::DEPTH, 0)?);
        to.put_str(from.text(place::SPAN_ID));
        to.put_str(from.text(place::TRACE_ID));
        to.put_str(from.text(place::IDEMPOTENCY_KEY));
        to.put_millis(from.millis(place::CREATED_AT)?);
        to.put_nullable_millis(from.millis_or_null(place::QUEUE_TIMESTAMP)?);
        to.put_millis(from.millis(place::UPDATED_AT)?);
        to.put_nullable_millis(from.millis_or_null(place::STARTED_AT)?);
        to.put_nullable_millis(from.millis_or_null(place::EXECUTED_AT)?);
        to.put_nullable_millis(from.millis_or_null(place::COMPLETED_AT)?);
        to.put_nullable_millis(from.millis_or_null(place::DELAY_UNTIL)?);
        to.put_nullable_millis(from.millis_or_null(place::QUEUED_AT)?);
        to.put_nullable_millis(from.millis_or_null(place::EXPIRED_AT)?);
        to.put_str(from.text(place::TTL));
        to.put_u32(from.unsigned(place::USAGE_DURATION, 0)?);
        to.put_f64(from.float(place::COST)?);
        to.put_f64(from.float(place::BASE_COST)?);
        put_document(&mut from, place::OUTPUT, place::OUTPUT_TYPE, to);
        let error = from.json(place::ERROR)?;
        let outcome = to.put_json(|out| convert::append_jsonb(error, out));
        from.keep_lost(place::ERROR, outcome, error);
        to.put_str_array(|items| from.each_text(place::TAGS, |tag| items.push(tag)))?;
        to.put_str(from.text(place::TASK_VERSION));
        to.put_str(from.text(place::SDK_VERSION));
        to.put_str(from.text(place::CLI_VERSION));
        to.put_str(from.text(place::MACHINE_PRESET));
        to.put_u8(u8::from(from.boolean(place::IS_TEST)?.unwrap_or(false)));
        to.put_u64(stamp.version);
        to.put_u8(u8::from(stamp.deleted));
        to.put_str(from.text(place::CONCURRENCY_KEY));
        to.put_str_array(|items| {
            from.each_text(place::BULK_ACTION_GROUP_IDS, |id| items.push(id))
        })?;
        to.put_str(annotations::worker_queue(from.text(place::MASTER_QUEUE)));
        to.put_nullable_u32(from.unsigned_or_null(place::MAX_DURATION)?);
        let options = IdempotencyOptions::read(from.json(place::IDEMPOTENCY_KEY_OPTIONS)?);
        to.put_str(options.key.as_bytes());
        to.put_str(options.scope.as_bytes());
        let fingerprint = if self.fingerprints {
            fingerprint::error_fingerprint(error, from.text(place::STATUS))
        } else {
            String::new()
        };
        to.put_str(fingerprint.as_bytes());
        let notes = from.json(place::ANNOTATIONS)?;
        let annotations = Annotations::read(notes);
        to.put_str(annotations.trigger_source.as_bytes());
        to.put_str(annotations.root_trigger_source.as_bytes());
        to.put_nullable_u8(from.boolean(place::IS_WARM_START)?.map(u8::from));
        to.put_str(annotations.task_kind.as_bytes());
        to.put_str(from.text(place::REGION));
        to.put_str(from.text(place::PLAN_TYPE));
        let status_reason = from.text_or_null(place::STATUS_REASON);
        to.put_str(annotations::external_deployment_id(notes, status_reason).as_bytes());
        to.end_row();
        Ok(())
    }
}

fn append_payload(
    mut from: RowReader<'_, '_>,
    stamp: Stamp,
    to: &mut Block,
) -> Result<(), ValueError> {
    to.put_str(from.text(place::ID));
    to.put_millis(from.millis(place::CREATED_AT)?);
    if stamp.deleted {
        to.put_json(|out| out.extend_from_slice(b"{}"));
    } else {
        put_document(&mut from, place::PAYLOAD, place::PAYLOAD_TYPE, to);
    }
    to.put_u64(stamp.version);
    to.put_u8(u8::from(stamp.deleted));
    to.end_row();
    Ok(())
}

fn put_document(from: &mut RowReader<'_, '_>, place: usize, type_place: usize, to: &mut Block) {
    let text = from.text_or_null(place);
    let content_type = from.text(type_place);
    let outcome = to.put_json(|out| convert::append_document(text, content_type, out));
    from.keep_lost(place, outcome, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_columns_are_where_the_tables_say() {
        let [runs, payloads] = &*TARGETS;
        let names = Target::names;
        assert_eq!(runs.columns.len(), 56);
        assert_eq!(
            names(runs, &runs.order_by),
            ["organization_id", "project_id", "environment_id", "created_at", "run_id"]
        );
        assert_eq!(names(runs, &runs.documents), ["output", "error"]);
        assert_eq!(
            names(runs, &runs.optional),
            ["queue_timestamp", "region", "plan_type", "external_deployment_id"]
        );
        assert_eq!(names(payloads, &payloads.optional), ["_version", "_is_deleted"]);
        assert_eq!(names(payloads, &payloads.documents), ["payload"]);
        for target in TARGETS.iter() {
            assert_eq!(names(target, &target.partition_by), ["created_at"]);
            assert_eq!(target.id_names(), ["run_id"]);
            let special = [target.version, target.is_deleted];
            assert_eq!(names(target, &special), ["_version", "_is_deleted"]);
        }
        assert_eq!(*SOURCE.columns[place::ANNOTATIONS].name, *"annotations");
        assert_eq!(*SOURCE.columns[place::IS_WARM_START].name, *"isWarmStart");
    }
}
