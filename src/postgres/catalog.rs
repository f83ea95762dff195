//! Reads the state of the source: the entries of the publication and the table in the catalog, with
//! the versions of their rows. Nothing here needs a privilege.
//!
//! It is one statement, and so one snapshot, apart from the sizes of partitions.

use std::time::Instant;

use super::source_table::TableName;
use super::sql::{Sql, literal, protocol};
use crate::error::Result;
use crate::machines::catalog::Catalog;

/// Entries of whole schemas, and column lists, are there from this version on.
const SCHEMAS_SINCE: u32 = 150_000;

pub fn look(
    sql: &mut Sql,
    publication: &str,
    table: &TableName,
    deadline: Instant,
) -> Result<Catalog> {
    let doing = format!("look at publication `{publication}` and table `{table}`");
    let has_schemas = SCHEMAS_SINCE <= sql.about().version_num;
    let rows = sql.rows(&doing, &query(publication, table, has_schemas), deadline)?;
    let row = rows.first().ok_or_else(|| protocol("expected one row").doing(&doing))?;
    let text = row.required(0).map_err(|error| error.doing(&doing))?;
    serde_json::from_str(text)
        .map_err(|_| protocol("the catalog's answer has an unexpected form").doing(doing))
}

fn query(publication: &str, table: &TableName, has_schemas: bool) -> String {
    // Uses a hash that every build of Postgres has: FIPS mode refuses md5(). It covers everything
    // of an entry but its name and owner. Of a partitioned table, only the partitions know that
    // their rows are older than a column.
    let of_schemas = match has_schemas {
        false => "",
        true => {
            "UNION ALL
             SELECT s.oid, s.xmin, s.pnnspid, ''
             FROM pg_publication_namespace s
             WHERE s.pnpubid = p.oid AND s.pnnspid IN (SELECT relnamespace FROM family)"
        }
    };
    format!(
        "WITH RECURSIVE root AS (
           SELECT c.oid, c.relnamespace, c.relname, n.nspname, c.relkind, c.relpersistence,
                  c.relfilenode, c.reltoastrelid
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname = {schema} AND c.relname = {name} AND c.relkind IN ('r', 'p')
         ), tree AS (
           SELECT i.inhrelid AS oid, i.xmin AS attached, i.cmin::text::int8 AS command
           FROM pg_inherits i JOIN root ON root.oid = i.inhparent AND root.relkind = 'p'
           UNION ALL
           SELECT i.inhrelid, i.xmin, i.cmin::text::int8
           FROM pg_inherits i JOIN tree ON tree.oid = i.inhparent
         ), part AS (
           SELECT c.oid, n.nspname, c.relname, c.relnamespace, c.relkind, c.relfilenode,
                  c.relpersistence, c.reltoastrelid, tree.attached, tree.command
           FROM tree JOIN pg_class c ON c.oid = tree.oid
           JOIN pg_namespace n ON n.oid = c.relnamespace
           UNION ALL
           SELECT oid, nspname, relname, relnamespace, relkind, relfilenode, relpersistence,
                  reltoastrelid, NULL, NULL
           FROM root WHERE relkind = 'r'
         ), family AS (
           SELECT oid, relnamespace FROM root UNION SELECT oid, relnamespace FROM part
         )
         SELECT json_build_object(
           'database', (SELECT d.oid::int8 FROM pg_database d
                        WHERE d.datname = current_database()),
           'publications', (SELECT coalesce(json_agg(json_build_object(
                'name', p.pubname, 'oid', p.oid::int8, 'version', p.xmin::text::int8,
                'owner', p.pubowner::int8,
                'options', (to_jsonb(p) - 'oid' - 'pubname' - 'pubowner')::text,
                'members', (SELECT coalesce(json_agg(json_build_object(
                     'oid', m.oid::int8, 'version', m.version::text::int8, 'of', m.of::int8,
                     'options', m.options) ORDER BY m.oid), '[]')
                   FROM (SELECT r.oid, r.xmin AS version, r.prrelid AS of,
                                (to_jsonb(r) - 'oid' - 'prpubid' - 'prrelid')::text AS options
                         FROM pg_publication_rel r
                         WHERE r.prpubid = p.oid AND r.prrelid IN (SELECT oid FROM family)
                         {of_schemas}) m))), '[]')
              FROM pg_publication p WHERE p.pubname = {publication}),
           'tables', (SELECT coalesce(json_agg(json_build_object(
                'name', root.nspname || '.' || root.relname, 'oid', root.oid::int8,
                'is_logged', root.relpersistence = 'p',
                'in_schema', (SELECT max(d.xmin::text::int8) FROM pg_depend d
                              WHERE d.classid = 'pg_class'::regclass AND d.objid = root.oid
                                AND d.objsubid = 0 AND d.refclassid = 'pg_namespace'::regclass),
                'last_number', (SELECT max(a.attnum) FROM pg_attribute a
                                WHERE a.attrelid = root.oid),
                'columns', (SELECT coalesce(json_agg(json_build_object(
                     'name', a.attname, 'number', a.attnum, 'version', a.xmin::text::int8,
                     'type_oid', a.atttypid::int8,
                     'is_missing', a.atthasmissing OR EXISTS (
                         SELECT FROM part JOIN pg_attribute held ON held.attrelid = part.oid
                         WHERE held.attname = a.attname AND held.atthasmissing),
                     'is_generated', a.attgenerated <> '',
                     'default', (SELECT d.oid::int8 FROM pg_attrdef d
                                 WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum),
                     'hash', hashtextextended((to_jsonb(a) - 'attrelid' - 'atthasmissing'
                                                - 'attmissingval')::text, 0)::text,
                     'labels', (SELECT coalesce(json_agg(json_build_object(
                          'oid', e.oid::int8, 'text', e.enumlabel,
                          'version', e.xmin::text::int8) ORDER BY e.oid), '[]')
                        FROM pg_type t JOIN pg_enum e
                          ON e.enumtypid IN (t.oid, t.typelem, t.typbasetype)
                        WHERE t.oid = a.atttypid)) ORDER BY a.attnum), '[]')
                   FROM pg_attribute a
                   WHERE a.attrelid = root.oid AND 0 < a.attnum AND NOT a.attisdropped),
                'parts', (SELECT coalesce(json_agg(json_build_object(
                     'name', part.nspname || '.' || part.relname, 'oid', part.oid::int8,
                     'filenode', part.relfilenode::int8, 'is_leaf', part.relkind <> 'p',
                     'is_logged', part.relpersistence = 'p', 'toast', part.reltoastrelid::int8,
                     'attached', part.attached::text::int8,
                     'is_born', coalesce(part.attached = made.xmin
                                         AND part.command - made.cmin::text::int8 <= {BORN}, false),
                     'is_empty', CASE WHEN part.attached IS NOT NULL AND part.relkind = 'r'
                                      THEN coalesce(pg_relation_size(part.oid) = 0, true)
                                      ELSE false END)
                     ORDER BY part.oid), '[]')
                   FROM part LEFT JOIN pg_attribute made
                     ON made.attrelid = part.oid AND made.attnum = -1))), '[]')
              FROM root))",
        schema = literal(&table.schema),
        name = literal(&table.name),
        publication = literal(publication),
    )
}

/// CREATE TABLE ... PARTITION OF is one statement: its commands, from the entry of a column to the
/// one of the partition, are these few (measured on 14, 15 and 18: 3, or 4 with a default). CREATE
/// TABLE and ATTACH are at least 5, and an INSERT in between is one more.
const BORN: u32 = 4;
