//! Which tables there are to replicate: those of a publication, and those that could be put into
//! one.

use std::time::Instant;

use serde::Deserialize;

use super::source_table::{Generated, ReplicaIdentity, SourceTable, TableKind, TableName, Which};
use super::sql::{Sql, literal, protocol};
use crate::error::Result;
use crate::services::publishable::{Holder, Identity};
use crate::wal::Oid;

/// A publication as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Published {
    pub inserts: bool,
    pub updates: bool,
    pub deletes: bool,
    pub truncates: bool,
    /// Partitions are streamed as their root.
    pub via_root: bool,
    pub sends_generated: bool,
    /// What it streams, under the names it streams them by: a root or its partitions.
    pub tables: Vec<PublishedTable>,
    /// The oids of what was put in by itself.
    pub members: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PublishedTable {
    pub oid: u32,
    schema: String,
    name: String,
    /// What is streamed; `None` before Postgres 15, which has no column lists.
    pub columns: Option<Vec<String>>,
    /// They were chosen: a column that is added is not streamed.
    pub has_column_list: bool,
    pub row_filter: Option<String>,
    /// What the filter looks at.
    pub filter_columns: Option<Vec<String>>,
}

impl PublishedTable {
    pub fn new(oid: u32, name: &TableName, columns: Option<Vec<String>>) -> PublishedTable {
        PublishedTable {
            oid,
            schema: name.schema.clone(),
            name: name.name.clone(),
            columns,
            has_column_list: false,
            row_filter: None,
            filter_columns: None,
        }
    }

    pub fn name(&self) -> TableName {
        TableName::new(&*self.schema, &*self.name)
    }

    /// As it was given.
    pub fn column_list(&self) -> Option<&[String]> {
        self.columns.as_deref().filter(|_| self.has_column_list)
    }
}

/// `None`: there is no such publication.
pub fn published(sql: &mut Sql, publication: &str, deadline: Instant) -> Result<Option<Published>> {
    let doing = format!("inspect publication `{publication}`");
    // Entries of catalogs and views as JSON objects, since 14 lacks some of their columns, and 17
    // others. The view has the tables of FOR ALL TABLES and of TABLES IN SCHEMA already.
    let query = format!(
        "SELECT json_build_object(
           'inserts', p.pubinsert, 'updates', p.pubupdate, 'deletes', p.pubdelete,
           'truncates', p.pubtruncate, 'via_root', p.pubviaroot,
           'sends_generated', coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false),
           'members', (SELECT coalesce(json_agg(r.prrelid::int8), '[]')
                       FROM pg_publication_rel r WHERE r.prpubid = p.oid),
           'tables', (SELECT coalesce(json_agg(json_build_object(
                'oid', c.oid::int8, 'schema', t.schemaname, 'name', t.tablename,
                'columns', to_jsonb(t) -> 'attnames',
                'row_filter', to_jsonb(t) ->> 'rowfilter',
                'has_column_list', coalesce(to_jsonb(r) ->> 'prattrs' IS NOT NULL, false),
                'filter_columns', (SELECT json_agg(DISTINCT a.attname)
                    FROM regexp_matches(to_jsonb(r) ->> 'prqual', ':varattno (\\d+)', 'g') AS v
                    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = v[1]::int2))
                ORDER BY t.schemaname, t.tablename), '[]')
              FROM pg_publication_tables t
              JOIN pg_namespace n ON n.nspname = t.schemaname
              JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
              LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
             WHERE t.pubname = p.pubname))
         FROM pg_publication p WHERE p.pubname = {}",
        literal(publication)
    );
    let rows = sql.rows(&doing, &query, deadline)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let json = row.required(0).map_err(|error| error.doing(&doing))?;
    serde_json::from_str(json)
        .map(Some)
        .map_err(|_| protocol("the catalog's answer has an unexpected form").doing(doing))
}

/// Every table of the database that is a user's: ordinary and partitioned ones, not the partitions,
/// which are streamed as their root. Some of them are [`is_passed_over`] or cannot be published.
pub fn candidates(sql: &mut Sql, deadline: Instant) -> Result<Vec<SourceTable>> {
    let doing = "look for tables to replicate";
    let query = "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
                   AND c.relpersistence <> 't'
                   AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema')
                 ORDER BY n.nspname, c.relname";
    let rows = sql.rows(doing, query, deadline)?;
    let oids = rows.iter().map(|row| row.parse(0).map(Oid));
    let oids: Vec<Oid> =
        oids.collect::<std::result::Result<_, _>>().map_err(|error| error.doing(doing))?;
    SourceTable::inspect_all(sql, Which::Numbered(&oids), deadline)
}

/// Tables of tools, which nobody means who does not name them.
pub fn is_passed_over(table: &SourceTable) -> bool {
    const TOOLS: [&str; 5] = ["repack", "pgq", "londiste", "cron", "partman"];
    let schema = &*table.name.schema;
    table.extension.is_some() || TOOLS.contains(&schema) || schema.starts_with("_timescaledb_")
}

/// The tables that hold its rows, and what updates of each show of the old row.
pub fn holders(table: &SourceTable) -> Vec<Holder> {
    let generated = |kind: Generated| -> Vec<String> {
        let of_kind = table.columns.iter().filter(|column| column.generated == Some(kind));
        of_kind.map(|column| column.name.clone()).collect()
    };
    let parts = table.parts.iter().filter(|part| !part.is_foreign);
    parts
        .map(|part| Holder {
            name: part.name.to_string(),
            quoted: part.name.quoted(),
            identity: match part.identity {
                ReplicaIdentity::Full => Identity::Full,
                ReplicaIdentity::Nothing => Identity::Nothing,
                _ if part.identity_columns.is_empty() => Identity::Missing,
                _ => Identity::Key(part.identity_columns.clone()),
            },
            index: part
                .may_be_identity
                .as_ref()
                .map(|key| (key.index.clone(), key.columns.clone())),
            stored: generated(Generated::Stored),
            computed: generated(Generated::Virtual),
            inherits: table.inherits && table.kind == TableKind::Ordinary,
        })
        .collect()
}
