//! One snapshot of the source in Postgres's catalog, compared with the last recorded one: at each
//! start, by `walhouse check`, and by the watch during the stream.

use std::time::{Duration, Instant};

use crate::clickhouse::Client;
use crate::clickhouse::own::sources::{self, Recorded, SourceRow};
use crate::config::ServiceConfig;
use crate::error::Result;
use crate::machines::catalog::{self, Catalog, CatalogJudgement, WantedColumn};
use crate::postgres::catalog::look as look_at;
use crate::postgres::source_table::TableName;
use crate::postgres::sql::Sql;
use crate::services::mapping::Mapping;
use crate::services::source::Source;

/// The snapshot, to be recorded, and what follows from the difference.
#[derive(Debug, Clone)]
pub struct SourceLook {
    pub row: SourceRow,
    pub judgement: CatalogJudgement,
    /// There was no record to compare it with.
    is_first: bool,
}

/// The last recorded snapshot.
pub fn recorded(client: &mut Client, config: &ServiceConfig) -> Result<Option<Recorded>> {
    let until = Instant::now() + config.clickhouse.request_timeout;
    sources::read(client, config.name.as_str(), &config.slot, until)
}

/// Compares with the recorded snapshot. `is_known` says that there is a state: without one, nothing
/// is promised about earlier rows.
pub fn look(
    recorded: Option<Recorded>,
    sql: &mut Sql,
    (config, mapping): (&ServiceConfig, &dyn Mapping),
    (system_identifier, is_known): (&str, bool),
    deadline: Instant,
) -> Result<SourceLook> {
    let now = ask(sql, config, mapping.source(), deadline)?;
    let revision = recorded.as_ref().map_or(0, |recorded| recorded.revision);
    let compared = match is_known {
        true => compare(recorded, &now, mapping.source(), system_identifier),
        false => None,
    };
    let row = SourceRow {
        service: config.name.as_str().to_owned(),
        slot: config.slot.clone(),
        system_identifier: system_identifier.to_owned(),
        catalog: now,
        revision,
    };
    Ok(SourceLook { row, is_first: compared.is_none(), judgement: compared.unwrap_or_default() })
}

pub fn ask(
    sql: &mut Sql,
    config: &ServiceConfig,
    source: &Source,
    deadline: Instant,
) -> Result<Catalog> {
    let table = TableName::new(&*source.schema, &*source.table);
    look_at(sql, &config.publication, &table, deadline)
}

/// A state always has a snapshot from before it. If that is missing, hidden changes are unknown, so
/// it counts as a difference. `None`: there is nothing to compare.
fn compare(
    recorded: Option<Recorded>,
    now: &Catalog,
    source: &Source,
    system_identifier: &str,
) -> Option<CatalogJudgement> {
    let unknown = |why: &str| {
        let hidden = format!("what the source looked like before {why}");
        CatalogJudgement { hidden: vec![hidden], differs: true, ..CatalogJudgement::default() }
    };
    let Some(recorded) = recorded else { return Some(unknown("is not recorded any more")) };
    // A snapshot of another cluster is not one of this source; the lineage judges which cluster to
    // follow.
    if recorded.system_identifier != system_identifier {
        return None;
    }
    Some(match &recorded.catalog {
        Some(before) => judge(before, now, source),
        None => unknown("is recorded in a form that this version does not know"),
    })
}

pub fn judge(before: &Catalog, now: &Catalog, source: &Source) -> CatalogJudgement {
    let columns = source.columns.iter();
    let columns: Vec<WantedColumn<'_>> = columns
        .map(|column| WantedColumn { name: &column.name, is_optional: column.optional })
        .collect();
    catalog::judge(before, now, &columns)
}

impl SourceLook {
    /// Once a repair is recorded for what it may hide.
    pub fn record(&mut self, client: &mut Client, request_timeout: Duration) -> Result<()> {
        if !self.is_first && !self.judgement.differs {
            return Ok(());
        }
        sources::write(client, &mut self.row, Instant::now() + request_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::sessions::Sessions;

    #[test]
    fn what_is_not_known_any_more_may_hide_rows() {
        let catalog = Catalog { database: 5, publications: Vec::new(), tables: Vec::new() };
        let compare = |recorded| compare(recorded, &catalog, Sessions.source(), "7");
        let of = |system_identifier: &str, catalog| {
            let system_identifier = system_identifier.to_owned();
            Some(Recorded { system_identifier, catalog, revision: 3 })
        };
        assert_eq!(compare(of("7", Some(catalog.clone()))), Some(CatalogJudgement::default()));
        assert_eq!(compare(of("8", Some(catalog.clone()))), None);
        for lost in [None, of("7", None)] {
            let judgement = compare(lost).expect("there is something to say");
            assert!(judgement.may_hide_rows() && judgement.differs, "{judgement}");
        }
    }
}
