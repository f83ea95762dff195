//! Rows and values that ClickHouse does not accept as they are: kept in `walhouse_refused_rows`,
//! and logged by kind.

use std::collections::BTreeMap;
use std::time::Instant;

use super::context::DeliveryContext;
use crate::clickhouse::Client;
use crate::clickhouse::own::refused::{self, RefusedPart, RefusedRow};
use crate::error::Result;
use crate::rows::target::Target;
use crate::rows::{Block, as_json, stored};
use crate::services::notes::Kept;
use crate::wal::row_key::one_or_array;

impl DeliveryContext<'_> {
    /// Keeps in full what ClickHouse refused, before its batch counts as durable.
    pub fn keep(&self, client: &mut Client, rows: &[RefusedRow]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let timeout = self.clickhouse.request_timeout;
        let mut left = rows;
        while !left.is_empty() {
            let (part, rest) = left.split_at(refused::first_part(left));
            self.retry(|| refused::write(client, part, Instant::now() + timeout), |_| false)?;
            left = rest;
        }
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for row in rows {
            *kinds.entry(kind_of(row)).or_default() += 1;
        }
        for (kind, rows) in kinds {
            if let Some(unsaid) = self.learned.note(kind.clone(), rows) {
                log::warn!(
                    "{}: {} {kind} that ClickHouse does not accept as they are were kept in \
                     `walhouse_refused_rows`{unsaid}",
                    self.service,
                    unsaid.amount
                );
            }
        }
        Ok(())
    }

    pub fn kept_rows(&self, kept: Vec<Kept>) -> Vec<RefusedRow> {
        let row = |kept: Kept| RefusedRow {
            service: self.service.to_owned(),
            table: kept.table.to_string(),
            key: kept.key,
            version: kept.version,
            what: match kept.column {
                Some(column) => RefusedPart::Column(column.to_string()),
                None => RefusedPart::Row,
            },
            error: kept.reason,
            document: kept.document,
        };
        kept.into_iter().map(row).collect()
    }

    /// A row as it was sent, or would have been.
    pub fn refused_row(
        &self,
        target: &Target,
        block: &Block,
        row: usize,
        error: String,
    ) -> RefusedRow {
        RefusedRow {
            service: self.service.to_owned(),
            table: target.table.to_string(),
            key: one_or_array(target.id.iter().map(|&at| text(block, at, row))),
            version: block.u64(target.version, row),
            what: RefusedPart::Row,
            error,
            document: as_json::row_as_json(block, row),
        }
    }
}

fn text(block: &Block, column: usize, row: usize) -> Vec<u8> {
    stored::text(block, column, row).unwrap_or_default()
}

fn kind_of(RefusedRow { table, what, .. }: &RefusedRow) -> String {
    match what {
        RefusedPart::Row => format!("rows for `{table}`"),
        RefusedPart::Column(column) => format!("values of `{column}` for `{table}`"),
        RefusedPart::View => format!("rows for views of `{table}`"),
    }
}
