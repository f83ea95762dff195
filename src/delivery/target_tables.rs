//! The mapping of a service, and the columns of it that its target tables have.

use std::sync::Arc;
use std::time::Instant;

use super::unfilled;
use crate::clickhouse::Client;
use crate::clickhouse::document_types::document_types;
use crate::clickhouse::tables::{self, TableShape};
use crate::clickhouse::ttl;
use crate::config::{ServiceConfig, ServiceKind};
use crate::error::{Error, ErrorKind, Result};
use crate::rows::{Shape, Target};
use crate::services::mapping::Mapping;
use crate::services::runs::Runs;
use crate::services::sessions::Sessions;
use crate::services::webhooks::Webhooks;

pub fn mapping(config: &ServiceConfig) -> Arc<dyn Mapping> {
    match config.kind {
        ServiceKind::Runs { payloads, fingerprints } => Arc::new(Runs { payloads, fingerprints }),
        ServiceKind::Sessions => Arc::new(Sessions),
        ServiceKind::Webhooks => Arc::new(Webhooks),
    }
}

/// The columns of the target tables, and those that stay unfilled.
pub struct Taken {
    pub shapes: Vec<Shape>,
    pub unfilled: Vec<String>,
}

/// The columns of each target table; creates a missing one if `create` says so.
pub fn shapes(
    client: &mut Client,
    config: &ServiceConfig,
    mapping: &dyn Mapping,
    version: &str,
    create: bool,
) -> Result<Taken> {
    let (mut shapes, mut unfilled) = (Vec::new(), Vec::new());
    for target in mapping.targets() {
        let deadline = Instant::now() + config.clickhouse.request_timeout;
        let shape = tables::ensure(client, target, create, deadline)?;
        for warning in &shape.warnings {
            log::warn!("{}: {warning}", config.name.as_str());
        }
        let present = present_columns(client, target, &shape)?;
        let without_null = without_null(target, &shape);
        for &column in &without_null {
            log::warn!(
                "{}: `{}` accepts no NULL in column `{}`: a row that has one is kept in \
                 `walhouse_refused_rows`; ALTER TABLE ... MODIFY COLUMN with Nullable(...) allows \
                 it",
                config.name.as_str(),
                target.table,
                target.columns[column].name
            );
        }
        unfilled.extend(unfilled::of_target(client, target, &shape));
        let documents = document_types(&shape, &target.columns, version);
        let ttl = ttl::of_table(target, &shape.engine, &shape.engine_full);
        shapes.push(Shape { present, without_null, documents, ttl });
    }
    Ok(Taken { shapes, unfilled })
}

/// Which of the mapping's columns the table has. A column of the table's first form must exist;
/// later ones may be missing.
fn present_columns(client: &Client, target: &Target, shape: &TableShape) -> Result<Vec<bool>> {
    let (present, problems) = columns_of(client, target, shape);
    problems.into_iter().next().map_or(Ok(present), Err)
}

/// Columns that may be given a NULL and have no place for it.
pub fn without_null(target: &Target, shape: &TableShape) -> Vec<usize> {
    let takes = |text: &str| {
        let text = text.strip_prefix("LowCardinality(").unwrap_or(text);
        ["Nullable(", "Dynamic", "Variant("].iter().any(|kind| text.starts_with(kind))
    };
    let is_without = |at: &usize| {
        let column = &target.columns[*at];
        column.kind.is_nullable()
            && shape
                .column(&column.name)
                .is_some_and(|found| found.is_insertable() && !takes(&found.type_text))
    };
    (0..target.columns.len()).filter(is_without).collect()
}

/// The same, with each column that must be there and is not.
pub fn columns_of(client: &Client, target: &Target, shape: &TableShape) -> (Vec<bool>, Vec<Error>) {
    let takes = |name: &str| shape.column(name).is_some_and(|column| column.is_insertable());
    let present: Vec<bool> = target.columns.iter().map(|column| takes(&column.name)).collect();
    let is_missing = |at: &usize| !present[*at] && !target.optional.contains(at);
    let problem = |at: usize| {
        let column = &target.columns[at];
        Error::new(ErrorKind::Setup, format!("check table `{}`", target.table))
            .because(format!("it has no column `{}` that accepts values", column.name))
            .hint(format!(
                "Run on ClickHouse: ALTER TABLE {} ADD COLUMN `{}` {}",
                client.qualified(&target.table),
                column.name,
                column.ddl
            ))
    };
    let problems = (0..present.len()).filter(is_missing).map(problem).collect();
    (present, problems)
}
