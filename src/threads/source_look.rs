//! One look at the source in Postgres's catalog, compared with the last that was recorded: at each
//! start, by `walhouse check`, and by the watch beside the stream.

use std::time::{Duration, Instant};

use crate::clickhouse::Client;
use crate::clickhouse::sources::{self, SourceRow};
use crate::config::ServiceConfig;
use crate::error::Result;
use crate::machines::catalog::{self, Catalog, Judgement, Wanted};
use crate::postgres::catalog::look as look_at;
use crate::postgres::source_table::TableName;
use crate::postgres::sql::Sql;
use crate::services::mapping::Mapping;
use crate::services::source::Source;

/// What was seen, as it is to be recorded, and what follows from the difference.
#[derive(Debug, Clone)]
pub struct SourceLook {
    pub row: SourceRow,
    pub judgement: Judgement,
    /// Nothing was recorded that it could be compared with.
    pub is_first: bool,
}

/// Compares with what ClickHouse has.
pub fn look(
    client: &mut Client,
    sql: &mut Sql,
    (config, mapping): (&ServiceConfig, &'static dyn Mapping),
    system_identifier: &str,
    deadline: Instant,
) -> Result<SourceLook> {
    let (service, slot) = (config.name.as_str(), config.slot.as_str());
    let until = Instant::now() + config.clickhouse.request_timeout;
    let recorded = sources::read(client, service, slot, until)?;
    let now = ask(sql, config, mapping.source(), deadline)?;
    Ok(compared(recorded, now, mapping.source(), (service, slot, system_identifier)))
}

pub fn ask(
    sql: &mut Sql,
    config: &ServiceConfig,
    source: &Source,
    deadline: Instant,
) -> Result<Catalog> {
    let table = TableName::new(source.schema, source.table);
    look_at(sql, &config.publication, &table, deadline)
}

fn compared(
    recorded: Option<SourceRow>,
    now: Catalog,
    source: &Source,
    (service, slot, system_identifier): (&str, &str, &str),
) -> SourceLook {
    let revision = recorded.as_ref().map_or(0, |row| row.revision);
    // Another cluster's is no look at this source; which one is to be followed is judged elsewhere.
    let before = recorded.filter(|row| row.system_identifier == system_identifier);
    let judgement = before.as_ref().map(|before| judge(&before.catalog, &now, source));
    let row = SourceRow {
        service: service.to_owned(),
        slot: slot.to_owned(),
        system_identifier: system_identifier.to_owned(),
        catalog: now,
        revision,
    };
    SourceLook { row, is_first: before.is_none(), judgement: judgement.unwrap_or_default() }
}

pub fn judge(before: &Catalog, now: &Catalog, source: &Source) -> Judgement {
    let columns = source.columns.iter();
    let columns: Vec<Wanted<'_>> =
        columns.map(|column| Wanted { name: column.name, is_optional: column.optional }).collect();
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
