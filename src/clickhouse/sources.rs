//! `walhouse_sources`: what the source looked like in the catalog of Postgres when it was looked at
//! last, so that the next look can tell whether rows were hidden in between.
//!
//! One row per service and slot counts: the one with the highest revision. Where rows may have been
//! hidden, a repair is recorded before the look that showed it is. What a difference means is
//! decided elsewhere.

use std::time::Instant;

use super::client::Client;
use super::cluster::{create_table, replacing};
use super::{own_tables, state};
use crate::error::Result;
use crate::machines::catalog::Catalog;

pub const SOURCES_TABLE: &str = "walhouse_sources";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRow {
    pub service: String,
    pub slot: String,
    /// Of the Postgres cluster.
    pub system_identifier: String,
    pub catalog: Catalog,
    /// 0 before the first write; [`write()`] moves it.
    pub revision: u64,
}

pub(super) fn ddl(client: &Client) -> String {
    format!(
        "{} (
    service String,
    slot String,
    system_identifier String,
    catalog String COMMENT 'publication, table, columns and partitions, as JSON',
    written_at DateTime64(3) DEFAULT now64(3),
    revision UInt64
) ENGINE = {}
ORDER BY (service, slot)",
        create_table(client, SOURCES_TABLE),
        replacing(client, "revision")
    )
}

/// What was written last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub system_identifier: String,
    /// `None`: it has a form that this version does not know. That is as good as no look at all,
    /// and no reason to refuse the service.
    pub catalog: Option<Catalog>,
    pub revision: u64,
}

/// For this service and slot; `None` if nothing was.
pub fn read(
    client: &mut Client,
    service: &str,
    slot: &str,
    deadline: Instant,
) -> Result<Option<Recorded>> {
    const COLUMNS: [&str; 3] = ["system_identifier", "catalog", "revision"];
    let key = [("service", service), ("slot", slot)];
    let row = own_tables::latest(client, SOURCES_TABLE, &COLUMNS, &key, deadline)?;
    let Some(row) = row else { return Ok(None) };
    parse(&row).map(Some).ok_or_else(|| {
        own_tables::malformed(client, SOURCES_TABLE, &format!("the source of slot `{slot}`"))
    })
}

fn parse(row: &[Option<String>]) -> Option<Recorded> {
    let [system_identifier, catalog, revision] = row else { return None };
    Some(Recorded {
        system_identifier: system_identifier.clone()?,
        catalog: serde_json::from_str(catalog.as_ref()?).ok(),
        revision: revision.as_ref()?.parse().ok()?,
    })
}

/// Writes the row and waits until ClickHouse has it. Another process may write as well: its row and
/// this one are looks at the same source.
pub fn write(client: &mut Client, row: &mut SourceRow, deadline: Instant) -> Result<()> {
    const COLUMNS: [&str; 5] = ["service", "slot", "system_identifier", "catalog", "revision"];
    row.revision = state::leap(row.revision);
    let catalog = serde_json::to_vec(&row.catalog).expect("a catalog has keys of text alone");
    let values = vec![
        row.service.clone().into_bytes(),
        row.slot.clone().into_bytes(),
        row.system_identifier.clone().into_bytes(),
        catalog,
        row.revision.to_string().into_bytes(),
    ];
    own_tables::insert(client, SOURCES_TABLE, &COLUMNS, &[values], deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let catalog = Catalog { database: 5, publications: Vec::new(), tables: Vec::new() };
        let text = serde_json::to_string(&catalog).unwrap();
        let row = |catalog: &str| ["7", catalog, "9"].map(|text| Some(text.to_owned())).to_vec();
        let read = parse(&row(&text)).expect("each column fits");
        assert_eq!((read.catalog, read.revision), (Some(catalog), 9));
        for other in ["", "{}", "{\"database\":-1}"] {
            let read = parse(&row(other)).expect("it is a row");
            assert_eq!((read.catalog, read.revision), (None, 9), "{other}");
        }
        assert_eq!(parse(&[]), None);
    }
}
