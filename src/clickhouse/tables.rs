//! The target tables: creating missing ones, and reading the shape of existing ones.
//!
//! A table that exists is used as it is and never altered. The services decide which columns are
//! written: they match their mapping against the [`TableShape`].

use std::time::Instant;

use super::client::{Client, quote_bytes, quote_name};
use super::cluster::{self, create_database, create_table, replacing};
use super::text::of_ours;
use super::ttl;
use crate::error::{Error, ErrorKind, Result};
use crate::rows::{ColumnSpec, Target};

/// A table as ClickHouse describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableShape {
    /// In the table's order.
    pub columns: Vec<ColumnShape>,
    pub engine: String,
    pub engine_full: String,
    /// As ClickHouse prints it: `organization_id, project_id, ...`.
    pub sorting_key: String,
    /// Sentences for the log: what this table cannot give that ours would.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnShape {
    pub name: String,
    pub type_text: String,
    /// Empty, `DEFAULT`, `MATERIALIZED`, `ALIAS` or `EPHEMERAL`.
    pub default_kind: String,
}

/// The statement that makes a target table. `JSON` needs the setting `enable_json_type` before
/// ClickHouse 25.3; the client sends it along.
pub fn ddl(client: &Client, target: &Target) -> String {
    let names = |places: &[usize]| {
        let names: Vec<String> = target.names(places).into_iter().map(quote_name).collect();
        names.join(", ")
    };
    let mut lines = columns_ddl(target);
    lines.extend(target.indexes.iter().map(|index| format!("INDEX {index}")));
    let partition = match target.partition_by.as_slice() {
        [] => String::new(),
        columns => format!("\nPARTITION BY toYYYYMM({})", names(columns)),
    };
    format!(
        "{} (\n    {}\n) ENGINE = {}{partition}\nORDER BY ({}){}",
        create_table(client, &target.table),
        lines.join(",\n    "),
        replacing(client, &names(&[target.version, target.is_deleted])),
        names(&target.order_by),
        ttl::ddl(target)
    )
}

/// The columns of a table that we make, each as in the DDL.
pub fn columns_ddl(target: &Target) -> Vec<String> {
    let column = |column: &ColumnSpec| format!("{} {}", quote_name(&column.name), column.ddl);
    target.columns.iter().map(column).chain(target.computed.iter().cloned()).collect()
}

impl TableShape {
    pub fn column(&self, name: &str) -> Option<&ColumnShape> {
        self.columns.iter().find(|column| column.name == name)
    }
}

impl ColumnShape {
    /// MATERIALIZED and ALIAS columns refuse to be inserted (code 44).
    pub fn is_insertable(&self) -> bool {
        matches!(self.default_kind.as_str(), "" | "DEFAULT" | "EPHEMERAL")
    }
}

/// The table's shape. A missing table is made when `create` says so, and its database with it.
pub fn ensure(
    client: &mut Client,
    target: &Target,
    create: bool,
    deadline: Instant,
) -> Result<TableShape> {
    if let Some(shape) = read_shape(client, &target.table, deadline)? {
        return Ok(shape);
    }
    let ddl = ddl(client, target);
    if !create {
        let doing = format!("find table {}", client.qualified(&target.table));
        return Err(Error::new(ErrorKind::Setup, doing)
            .because("it does not exist, and REPLICATION_CREATE_TABLES=0 forbids creating it")
            .hint(format!("Run: {ddl}")));
    }
    ensure_database(client, deadline)?;
    cluster::create(client, &ddl, deadline).map_err(|e| match (e.kind(), e.hint_text()) {
        (ErrorKind::Setup, Some(hint)) => {
            let hint = format!("{hint} Or run: {ddl}");
            e.hint(hint)
        }
        (ErrorKind::Setup, None) => e.hint(format!("Run: {ddl}")),
        _ => e,
    })?;
    log::info!("table {} created", client.qualified(&target.table));
    let shape = read_shape(client, &target.table, deadline)?;
    if shape.is_none() && client.params().cluster.is_some() {
        let doing = format!("find table {}", client.qualified(&target.table));
        return Err(Error::new(ErrorKind::Unreachable, doing)
            .because(format!("`{}` has not created it yet", client.endpoint()))
            .hint("See system.distributed_ddl_queue of ClickHouse."));
    }
    shape.ok_or_else(|| {
        Error::new(ErrorKind::Setup, format!("find table {}", client.qualified(&target.table)))
            .because("it was created, but `system.columns` does not show it to this user")
            .hint("Run as an administrator: GRANT SHOW ON <database>.*")
    })
}

/// Those of the tables that are not there, or that this user may not see.
pub fn missing<'a>(
    client: &mut Client,
    tables: &[&'a str],
    deadline: Instant,
) -> Result<Vec<&'a str>> {
    let names: Vec<String> = tables.iter().map(|name| quote_bytes(name.as_bytes())).collect();
    let sql = format!(
        "SELECT name FROM system.tables WHERE database = {} AND name IN ({})",
        quote_bytes(client.database().as_bytes()),
        names.join(", ")
    );
    let found = client.query(&sql, &[], deadline)?;
    let is_there = |name: &str| found.contains(&vec![Some(name.to_owned())]);
    Ok(tables.iter().copied().filter(|name| !is_there(name)).collect())
}

/// Whether the table has no row, not even a deleted one.
pub fn is_empty(client: &mut Client, table: &str, deadline: Instant) -> Result<bool> {
    let sql = format!("SELECT 1 FROM {} LIMIT 1", client.qualified(table));
    Ok(client.query(&sql, &[table], deadline)?.is_empty())
}

/// Creates our database if it is missing. Checks first: the statement needs a separate privilege,
/// even with IF NOT EXISTS.
pub(super) fn ensure_database(client: &mut Client, deadline: Instant) -> Result<()> {
    let sql = format!(
        "SELECT count() FROM system.databases WHERE name = {}",
        quote_bytes(client.database().as_bytes())
    );
    if client.query(&sql, &[], deadline)? != [[Some("0".to_owned())]] {
        return Ok(());
    }
    let ddl = create_database(client);
    cluster::create(client, &ddl, deadline)
}

/// `None`: there is no such table, or none that this user may see.
pub fn read_shape(
    client: &mut Client,
    table: &str,
    deadline: Instant,
) -> Result<Option<TableShape>> {
    let database = quote_bytes(client.database().as_bytes());
    let name = quote_bytes(table.as_bytes());
    let sql = format!(
        "SELECT engine, engine_full, sorting_key FROM system.tables \
         WHERE database = {database} AND name = {name}"
    );
    let tables = texts(client.query(&sql, &[], deadline)?);
    let Some([engine, engine_full, sorting_key]) = tables.first().map(Vec::as_slice) else {
        return Ok(None);
    };
    let sql = format!(
        "SELECT name, type, default_kind FROM system.columns \
         WHERE database = {database} AND table = {name} ORDER BY position"
    );
    let columns = texts(client.query(&sql, &[], deadline)?)
        .into_iter()
        .filter_map(|row| {
            let [name, type_text, default_kind] = <[String; 3]>::try_from(row).ok()?;
            Some(ColumnShape { name, type_text, default_kind })
        })
        .collect();
    let mut shape = TableShape {
        columns,
        engine: engine.clone(),
        engine_full: engine_full.clone(),
        sorting_key: sorting_key.clone(),
        warnings: Vec::new(),
    };
    shape.warnings = warnings(table, &shape);
    Ok(Some(shape))
}

/// What shows that a table was replaced: its identity and its columns. In the order of names;
/// missing tables are left out.
pub type TablesLook = Vec<(String, String)>;

/// The same of several tables, in one question for the tables and one for their columns.
pub fn look(client: &mut Client, tables: &[&str], deadline: Instant) -> Result<TablesLook> {
    // One table may have another UUID on each replica.
    let is_alone = match client.hosts().count() {
        1 => "startsWith(engine, 'Replicated') OR startsWith(engine, 'Shared')",
        _ => "1",
    };
    let sql = format!(
        "SELECT name, concat(engine, ' ', if({is_alone}, '', toString(uuid))) \
         FROM system.tables WHERE {} ORDER BY name",
        of_ours(client.database(), "name", tables)
    );
    let found = cluster::pairs(client.query(&sql, &[], deadline)?);
    let sql = format!(
        "SELECT table, arrayStringConcat(groupArray(column), ', ') FROM \
         (SELECT table, concat(name, ' ', type, ' ', default_kind) AS column FROM system.columns \
         WHERE {} ORDER BY table, position) GROUP BY table",
        of_ours(client.database(), "table", tables)
    );
    let columns = cluster::pairs(client.query(&sql, &[], deadline)?);
    let columns_of = |name: &str| columns.iter().find(|(table, _)| table == name);
    let whole = |(name, identity): (String, String)| {
        let columns = columns_of(&name).map_or("", |(_, columns)| columns);
        let look = format!("{identity}: {columns}");
        (name, look)
    };
    Ok(found.into_iter().map(whole).collect())
}

fn texts(rows: Vec<super::client::TextRow>) -> Vec<Vec<String>> {
    rows.into_iter().map(|row| row.into_iter().map(Option::unwrap_or_default).collect()).collect()
}

fn warnings(table: &str, shape: &TableShape) -> Vec<String> {
    let mut warnings = Vec::new();
    let engine = &shape.engine;
    if engine == "Distributed" || engine.ends_with("View") || engine == "Buffer" {
        warnings.push(format!(
            "`{table}` is a {engine}: the tables behind it must be \
             ReplacingMergeTree(_version, _is_deleted)"
        ));
    } else if !engine.ends_with("ReplacingMergeTree") {
        warnings.push(format!(
            "`{table}` is a {engine}, not a ReplacingMergeTree(_version, _is_deleted): redelivered \
             rows stay twice, and older versions stay when a row is updated or deleted"
        ));
    } else {
        let arguments = engine_arguments(&shape.engine_full);
        if !arguments.contains(&"_version") {
            warnings.push(format!(
                "`{table}` does not choose the latest row by `_version`: an older row may win"
            ));
        } else if !arguments.contains(&"_is_deleted") {
            warnings.push(format!(
                "`{table}` does not know `_is_deleted`: FINAL shows deleted rows, filter them out"
            ));
        }
    }
    if let Some(rule) = ttl::unknown_rule(&shape.engine_full) {
        warnings.push(format!(
            "`{table}` drops rows by the TTL `{rule}`, which is not understood: to a comparison \
             they are missing, and a repair writes them again"
        ));
    }
    for name in ["created_at"] {
        if let Some(column) = shape.column(name)
            && !column.type_text.starts_with("DateTime64(3")
        {
            warnings.push(format!(
                "column `{name}` of `{table}` is {}, not DateTime64(3): deletes that know only the \
                 key may not find their row",
                column.type_text
            ));
        }
    }
    warnings
}

/// `a`, `b` of `ReplacingMergeTree(a, b) PARTITION BY ...`, or of the replicated spelling with a
/// path and a replica in front.
fn engine_arguments(engine_full: &str) -> Vec<&str> {
    let Some((_, rest)) = engine_full.split_once('(') else {
        return Vec::new();
    };
    // `{shard}` and quotes may stand in a path, but no parenthesis closes before the arguments end.
    let inside = rest.split(')').next().unwrap_or_default();
    inside.split(',').map(|argument| argument.trim().trim_matches('`')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(engine: &str, engine_full: &str) -> TableShape {
        TableShape {
            columns: vec![ColumnShape {
                name: "created_at".to_owned(),
                type_text: "DateTime64(3)".to_owned(),
                default_kind: String::new(),
            }],
            engine: engine.to_owned(),
            engine_full: engine_full.to_owned(),
            sorting_key: String::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn every_spelling_of_our_engine_is_content() {
        for (engine, full) in [
            ("ReplacingMergeTree", "ReplacingMergeTree(_version, _is_deleted) PARTITION BY (x)"),
            (
                "ReplicatedReplacingMergeTree",
                "ReplicatedReplacingMergeTree('/t/{uuid}/{shard}', '{replica}', _version, \
                 _is_deleted) ORDER BY a",
            ),
            (
                "SharedReplacingMergeTree",
                "SharedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', \
                 _version, _is_deleted)",
            ),
        ] {
            assert_eq!(warnings("t", &shape(engine, full)), [] as [String; 0]);
        }
    }

    #[test]
    fn an_engine_that_keeps_old_rows_is_warned_about() {
        let count = |engine: &str, full: &str| warnings("t", &shape(engine, full)).len();
        assert_eq!(count("MergeTree", "MergeTree ORDER BY run_id"), 1);
        assert_eq!(count("ReplacingMergeTree", "ReplacingMergeTree ORDER BY run_id"), 1);
        assert_eq!(count("ReplacingMergeTree", "ReplacingMergeTree(_version) ORDER BY a"), 1);
        assert_eq!(count("Distributed", "Distributed('c', 'd', 't')"), 1);
    }

    #[test]
    fn a_coarser_created_at_is_warned_about() {
        let mut table = shape("ReplacingMergeTree", "ReplacingMergeTree(_version, _is_deleted)");
        table.columns[0].type_text = "DateTime".to_owned();
        assert_eq!(warnings("t", &table).len(), 1);
    }

    #[test]
    fn computed_columns_are_not_inserted() {
        let column = |kind: &str| ColumnShape {
            name: String::new(),
            type_text: String::new(),
            default_kind: kind.to_owned(),
        };
        assert!(column("").is_insertable() && column("DEFAULT").is_insertable());
        assert!(!column("MATERIALIZED").is_insertable() && !column("ALIAS").is_insertable());
    }
}
