//! `public."Session"` -> `sessions_v1`.

use std::sync::{Arc, LazyLock};

use super::column_set::ColumnSet;
use super::mapping::{Mapping, Stamp, ValueError, is_left_out};
use super::notes::Notes;
use super::reader::RowReader;
use super::row::Row;
use super::source::{Source, source_columns};
use crate::documents::convert;
use crate::rows::Block;
use crate::rows::target::{Target, columns};

#[derive(Debug)]
pub struct Sessions;

source_columns! { columns_of_source,
    new ID "id" Text,
    new FRIENDLY_ID "friendlyId" Text,
    new EXTERNAL_ID "externalId" Text,
    new TYPE "type" Text,
    new PROJECT "projectId" Text,
    new ENVIRONMENT "runtimeEnvironmentId" Text,
    new ENVIRONMENT_TYPE "environmentType" Text,
    new ORGANIZATION "organizationId" Text,
    new TASK_IDENTIFIER "taskIdentifier" Text,
    new TAGS "tags" TextArray,
    new METADATA "metadata" Json,
    new CLOSED_AT "closedAt" Timestamp,
    new CLOSED_REASON "closedReason" Text,
    new EXPIRES_AT "expiresAt" Timestamp,
    new CREATED_AT "createdAt" Timestamp,
    new UPDATED_AT "updatedAt" Timestamp,
    optional IS_TEST "isTest" Bool,
}

static SOURCE: LazyLock<Source> = LazyLock::new(|| Source {
    schema: "public".into(),
    table: "Session".into(),
    columns: columns_of_source(),
    unread: [
        "currentRunId",
        "currentRunVersion",
        "triggerConfig",
        "streamBasinName",
        "chatSnapshotStoragePath",
    ]
    .map(Arc::from)
    .to_vec(),
    key: vec![place::ID],
    sorting: vec![place::ORGANIZATION, place::PROJECT, place::ENVIRONMENT, place::CREATED_AT],
    created_at: Some(place::CREATED_AT),
});

const SESSIONS_V1: &str = "sessions_v1";

pub static TARGETS: LazyLock<[Target; 1]> = LazyLock::new(|| {
    [Target {
        table: SESSIONS_V1.into(),
        columns: columns! {
            "environment_id" String,
            "organization_id" String,
            "project_id" String,
            "session_id" String,
            "environment_type" String "LowCardinality(String)",
            "friendly_id" String,
            "external_id" String "String DEFAULT ''",
            "type" String "LowCardinality(String)",
            "task_identifier" String "String DEFAULT ''",
            "tags" StringArray "Array(String) CODEC(ZSTD(1))",
            "metadata" Json "JSON(max_dynamic_paths=256)",
            "closed_at" NullableMillis,
            "closed_reason" String "String DEFAULT ''",
            "expires_at" NullableMillis,
            "created_at" Millis,
            "updated_at" Millis,
            "_version" UInt64,
            "_is_deleted" UInt8 "UInt8 DEFAULT 0",
            "is_test" UInt8 "UInt8 DEFAULT 0",
        },
        computed: vec![],
        indexes: vec![],
        order_by: vec![1, 2, 0, 14, 3],
        partition_by: vec![14],
        ttl: None,
        documents: vec![10],
        optional: vec![18],
        id: vec![3],
        version: 16,
        is_deleted: 17,
    }]
});

impl Mapping for Sessions {
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
        let mut from = RowReader::new(&SOURCE, row, SESSIONS_V1, stamp.version, notes);
        let to = &mut blocks[0];
        to.put_str(from.text(place::ENVIRONMENT));
        to.put_str(from.text(place::ORGANIZATION));
        to.put_str(from.text(place::PROJECT));
        to.put_str(from.text(place::ID));
        to.put_str(from.text(place::ENVIRONMENT_TYPE));
        to.put_str(from.text(place::FRIENDLY_ID));
        to.put_str(from.text(place::EXTERNAL_ID));
        to.put_str(from.text(place::TYPE));
        to.put_str(from.text(place::TASK_IDENTIFIER));
        to.put_str_array(|items| from.each_text(place::TAGS, |tag| items.push(tag)))?;
        let metadata = from.json(place::METADATA)?;
        let outcome = to.put_json(|out| convert::append_jsonb(metadata, out));
        from.keep_lost(place::METADATA, outcome, metadata);
        to.put_nullable_millis(from.millis_or_null(place::CLOSED_AT)?);
        to.put_str(from.text(place::CLOSED_REASON));
        to.put_nullable_millis(from.millis_or_null(place::EXPIRES_AT)?);
        to.put_millis(from.millis(place::CREATED_AT)?);
        to.put_millis(from.millis(place::UPDATED_AT)?);
        to.put_u64(stamp.version);
        to.put_u8(u8::from(stamp.deleted));
        to.put_u8(u8::from(from.boolean(place::IS_TEST)?.unwrap_or(false)));
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
            ["organization_id", "project_id", "environment_id", "created_at", "session_id"]
        );
        assert_eq!(names(&target.partition_by), ["created_at"]);
        assert_eq!(names(&target.documents), ["metadata"]);
        assert_eq!(names(&target.optional), ["is_test"]);
        assert_eq!(names(&[target.version, target.is_deleted]), ["_version", "_is_deleted"]);
        assert_eq!(target.id_names(), ["session_id"]);
        assert_eq!(*SOURCE.columns[place::IS_TEST].name, *"isTest");
    }
}
