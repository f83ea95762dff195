//! `public."WebhookDelivery"` -> `webhook_deliveries_v1`.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::column_set::ColumnSet;
use super::mapping::{Mapping, Stamp, ValueError, is_left_out};
use super::notes::Notes;
use super::reader::RowReader;
use super::row::Row;
use super::source::{Source, source_columns};
use crate::rows::Block;
use crate::rows::target::{Target, columns};
use crate::rows::ttl::Ttl;

#[derive(Debug)]
pub struct Webhooks;

source_columns! { columns_of_source,
    new ID "id" Text,
    new FRIENDLY_ID "friendlyId" Text,
    new ENDPOINT "webhookEndpointId" Text,
    new ORGANIZATION "organizationId" Text,
    new PROJECT "projectId" Text,
    new ENVIRONMENT "runtimeEnvironmentId" Text,
    new ENVIRONMENT_TYPE "environmentType" Text,
    new EXTERNAL_ID "externalDeliveryId" Text,
    new RUN_ID "runId" Text,
    new STATUS "status" Text,
    new IS_TEST "isTest" Bool,
    new CREATED_AT "createdAt" Timestamp,
    new UPDATED_AT "updatedAt" Timestamp,
}

static SOURCE: LazyLock<Source> = LazyLock::new(|| Source {
    schema: "public".into(),
    table: "WebhookDelivery".into(),
    columns: columns_of_source(),
    unread: [
        "idempotencyKey",
        "parsedEvent",
        "headers",
        "rawBodyHash",
        "errorMessage",
        "filterReason",
        "processedAt",
    ]
    .map(Arc::from)
    .to_vec(),
    // Not with "createdAt", which is part of its primary key: ClickHouse may hold another time than
    // Postgres (in milliseconds, of four-digit years), and the id alone is unique.
    key: vec![place::ID],
    sorting: vec![place::ORGANIZATION, place::PROJECT, place::ENVIRONMENT, place::CREATED_AT],
    created_at: Some(place::CREATED_AT),
});

const WEBHOOK_DELIVERIES_V1: &str = "webhook_deliveries_v1";
const KEPT: Duration = Duration::from_secs(60 * 86_400);

pub static TARGETS: LazyLock<[Target; 1]> = LazyLock::new(|| {
    [Target {
        table: WEBHOOK_DELIVERIES_V1.into(),
        columns: columns! {
            "environment_id" String,
            "organization_id" String,
            "project_id" String,
            "delivery_id" String,
            "webhook_endpoint_id" String,
            "environment_type" String "LowCardinality(String)",
            "friendly_id" String,
            "external_delivery_id" String "String DEFAULT ''",
            "run_id" String "String DEFAULT ''",
            "status" String "LowCardinality(String)",
            "is_test" UInt8 "UInt8 DEFAULT 0",
            "created_at" Millis,
            "updated_at" Millis,
            "_version" UInt64,
            "_is_deleted" UInt8 "UInt8 DEFAULT 0",
        },
        computed: vec![],
        indexes: vec![],
        order_by: vec![1, 2, 0, 11, 3],
        partition_by: vec![11],
        ttl: Some(Ttl { column: 11, keeps: KEPT, is_certain: true }),
        documents: vec![],
        optional: vec![],
        id: vec![3],
        version: 13,
        is_deleted: 14,
    }]
});

impl Mapping for Webhooks {
    fn source(&self) -> &Source {
        &SOURCE
    }

    fn targets(&self) -> &[Target] {
        &*TARGETS
    }

    fn needs(&self, _first: bool) -> ColumnSet {
        ColumnSet::first(SOURCE.columns.len())
    }

    fn owners(&self) -> &'static [usize] {
        &[place::ORGANIZATION]
    }

    fn append(
        &self,
        row: &Row<'_>,
        stamp: Stamp,
        blocks: &mut [Block],
        notes: &mut Notes,
    ) -> Result<(), ValueError> {
        if !stamp.row || is_left_out(self, row, stamp, notes) {
            return Ok(());
        }
        let mut from = RowReader::new(&SOURCE, row, WEBHOOK_DELIVERIES_V1, stamp.version, notes);
        let to = &mut blocks[0];
        to.put_str(from.text(place::ENVIRONMENT));
        to.put_str(from.text(place::ORGANIZATION));
        to.put_str(from.text(place::PROJECT));
        to.put_str(from.text(place::ID));
        to.put_str(from.text(place::ENDPOINT));
        to.put_str(from.text(place::ENVIRONMENT_TYPE));
        to.put_str(from.text(place::FRIENDLY_ID));
        to.put_str(from.text(place::EXTERNAL_ID));
        to.put_str(from.text(place::RUN_ID));
        to.put_str(from.text(place::STATUS));
        to.put_u8(u8::from(from.boolean(place::IS_TEST)?.unwrap_or(false)));
        to.put_millis(from.millis(place::CREATED_AT)?);
        to.put_millis(from.millis(place::UPDATED_AT)?);
        to.put_u64(stamp.version);
        to.put_u8(u8::from(stamp.deleted));
        to.end_row();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_columns_are_where_the_table_says() {
        let target = &TARGETS[0];
        let names = |places: &[usize]| target.names(places);
        assert_eq!(
            names(&target.order_by),
            ["organization_id", "project_id", "environment_id", "created_at", "delivery_id"]
        );
        assert_eq!(names(&target.partition_by), ["created_at"]);
        assert_eq!(target.ttl.map(|ttl| names(&[ttl.column])), Some(vec!["created_at"]));
        assert_eq!(names(&[target.version, target.is_deleted]), ["_version", "_is_deleted"]);
        assert_eq!(target.id_names(), ["delivery_id"]);
        assert_eq!(*SOURCE.columns[place::UPDATED_AT].name, *"updatedAt");
    }
}
