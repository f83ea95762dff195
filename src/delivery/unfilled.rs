//! Columns that this version does not know: they are in the tables, and nothing goes into them.

use crate::clickhouse::Client;
use crate::clickhouse::tables::TableShape;
use crate::postgres::source_table::SourceTable;
use crate::rows::target::Target;
use crate::services::source::Source;

/// Columns of Postgres that trigger.dev, or somebody else, has added since.
pub fn of_source(table: &SourceTable, source: &Source) -> Vec<String> {
    let is_known = |name: &str| {
        let known = source.columns.iter().map(|column| &column.name).chain(&source.unread);
        known.into_iter().any(|known| **known == *name)
    };
    let unknown = table.columns.iter().map(|column| column.name.as_str());
    unknown
        .filter(|name| !is_known(name))
        .map(|name| {
            let table = &table.name;
            format!(
                "column `{name}` of `{table}` is not known to this version: its values are not \
                 replicated"
            )
        })
        .collect()
}

/// Columns of ClickHouse: unknown ones, and those that an older table lacks.
pub fn of_target(client: &Client, target: &Target, shape: &TableShape) -> Vec<String> {
    let is_known = |name: &str| target.columns.iter().any(|column| *column.name == *name);
    let unknown = shape.columns.iter().filter(|column| column.is_insertable());
    let unknown = unknown.filter(|column| !is_known(&column.name)).map(|column| {
        let (name, table) = (&column.name, &target.table);
        format!("column `{name}` of `{table}` is not known to this version: it is not filled")
    });
    let own = [target.version, target.is_deleted];
    let left_out =
        target.optional.iter().filter(|at| !own.contains(at)).map(|at| &target.columns[*at]);
    let left_out = left_out.filter(|column| shape.column(&column.name).is_none()).map(|column| {
        let (name, table) = (&column.name, client.qualified(&target.table));
        let kind = &column.kind;
        format!(
            "`{}` has no column `{name}`: it is left out. ALTER TABLE {table} ADD COLUMN `{name}` \
             {kind} makes it",
            target.table
        )
    });
    unknown.chain(left_out).collect()
}
