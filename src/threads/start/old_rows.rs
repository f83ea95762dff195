//! Whether tables that existed before the first start lack rows that Postgres has: nothing would
//! ever copy them.
//!
//! It checks both ends of the primary key: an empty table lacks the first rows, one that another
//! replicator left behind lacks the last. With that replicator's slot the last rows are still to
//! come.

use std::time::{Duration, Instant};

use crate::clickhouse::Client;
use crate::clickhouse::stored::{key_of, rows_of};
use crate::config::ServiceName;
use crate::delivery::connecting::step;
use crate::delivery::member::is_dropped;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::source_table::TableName;
use crate::postgres::sql::{Sql, ident};
use crate::rows::{Block, Shape};
use crate::services::mapping::{Mapping, Stamp, is_owned, key_places};
use crate::services::notes::Notes;
use crate::services::row::Row;
use crate::wal::Datum;

/// Rows of each end.
const ROWS: usize = 100;

/// Describes what is missing.
pub struct Lacking {
    pub text: String,
    pub hint: String,
}

/// `has_slot`: the last rows may still arrive by it.
pub fn look(
    service: &ServiceName,
    mapping: &dyn Mapping,
    sql: &mut Sql,
    client: &mut Client,
    has_slot: bool,
    request_timeout: Duration,
) -> Result<Option<Lacking>> {
    let target = &mapping.targets()[0];
    let (mut asked, mut missing) = (0, 0);
    for order in ["ASC", "DESC"].into_iter().take(if has_slot { 1 } else { 2 }) {
        let block = keys_of_end(mapping, sql, order)?;
        let deadline = || Instant::now() + request_timeout;
        let found = rows_of(client, target, &block, deadline)?;
        asked += block.rows();
        missing += (0..block.rows())
            .filter(|&row| !is_dropped(&block, row))
            .filter(|&row| found.get(&key_of(target, &block, row)).is_none_or(|r| r.is_deleted))
            .count();
    }
    if missing == 0 {
        return Ok(None);
    }
    let name = service.as_str();
    let all = if mapping.final_values().is_some() { " --all-statuses" } else { "" };
    let variable = service.variable("INITIAL_BACKFILL");
    Ok(Some(Lacking {
        text: format!(
            "`{}` existed before the first start and lacks rows that Postgres has: {missing} of \
             {asked} in a sample. Nothing copies them automatically",
            target.table
        ),
        hint: format!(
            "Once it streams, run `walhouse backfill {name}{all}`; or set \
             {variable}=existing for the first start."
        ),
    }))
}

/// The keys that the first or last rows of the table have in the first target.
fn keys_of_end(mapping: &dyn Mapping, sql: &mut Sql, order: &str) -> Result<Block> {
    let source = mapping.source();
    let table = TableName::new(&*source.schema, &*source.table);
    let doing = || format!("look at the ends of table `{table}`");
    let places = key_places(mapping);
    let columns: Vec<String> =
        places.iter().map(|&place| ident(&source.columns[place].name)).collect();
    let id = source.key_names().into_iter().map(|column| format!("{} {order}", ident(column)));
    let id: Vec<String> = id.collect();
    let query = format!(
        "SELECT {} FROM {} ORDER BY {} LIMIT {ROWS}",
        columns.join(", "),
        table.quoted(),
        id.join(", ")
    );
    let rows = sql.rows(&doing(), &query, step())?;
    let targets = mapping.targets();
    let mut blocks: Vec<Block> =
        targets.iter().map(|target| Block::new(&target.columns, &keys_only(target))).collect();
    let stamp = Stamp { version: 0, deleted: true, row: true, first: false };
    for values in &rows {
        let mut row = Row::of(source);
        for (at, place) in places.iter().enumerate() {
            let value = values.text(at).map_err(|error| error.doing(doing()))?;
            row.values[*place] = value.map_or(Datum::Null, |text| Datum::Text(text.as_bytes()));
        }
        // The others are not replicated.
        if is_owned(mapping, &row) {
            mapping
                .append(&row, stamp, &mut blocks, &mut Notes::default())
                .map_err(|e| Error::new(ErrorKind::Protocol, doing()).because(e))?;
        }
    }
    Ok(blocks.swap_remove(0))
}

/// Their documents are large, and decide nothing here.
fn keys_only(target: &crate::rows::target::Target) -> Shape {
    let is_key = |at: usize| {
        target.order_by.contains(&at) || at == target.version || at == target.is_deleted
    };
    let present = (0..target.columns.len()).map(is_key).collect();
    Shape { ttl: target.ttl, ..Shape::of(present) }
}
