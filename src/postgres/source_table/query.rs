//! The question about any number of tables: one statement, and so one snapshot, apart from what
//! functions look up themselves. Nothing in it needs a privilege.

use super::Which;
use crate::postgres::sql::{Sql, literal};

/// First the types that their columns are made of, then the tables, in the order asked for. Each
/// row is a JSON object.
pub(super) fn query(which: &Which<'_>, sql: &Sql) -> String {
    // A value of a text that is not UTF-8 would fail all of it.
    let missing = match sql.texts().is_raw() {
        false => "a.attmissingval::text",
        true => "NULL",
    };
    format!(
        "WITH RECURSIVE wanted AS MATERIALIZED (
           SELECT w.n, s.nspname, c.*,
                  ARRAY(SELECT k.conkey[1] FROM pg_constraint k
                        WHERE k.conrelid = c.oid AND k.contype = 'n' AND NOT k.convalidated
                       ) AS unproved
           FROM {which}
         ), used (oid) AS (
           SELECT DISTINCT a.atttypid FROM wanted w JOIN pg_attribute a ON a.attrelid = w.oid
           WHERE a.attnum > 0 AND NOT a.attisdropped
           UNION
           SELECT inner_type.oid FROM used u JOIN pg_type y ON y.oid = u.oid
           CROSS JOIN LATERAL (
             SELECT y.typbasetype WHERE y.typtype = 'd'
             UNION ALL SELECT y.typelem WHERE y.typtype = 'b' AND y.typelem <> 0
             UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = y.oid
             UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = y.oid
             UNION ALL SELECT f.atttypid FROM pg_attribute f
                       WHERE y.typtype = 'c' AND f.attrelid = y.typrelid AND f.attnum > 0
                         AND NOT f.attisdropped
           ) inner_type (oid)
         )
         SELECT 'type', 0 AS n, {a_type} FROM used u JOIN pg_type y ON y.oid = u.oid
         UNION ALL
         SELECT 'table', w.n, {a_table} FROM wanted w
         ORDER BY n",
        which = from(which),
        a_type = A_TYPE,
        a_table = a_table(missing),
    )
}

fn from(which: &Which<'_>) -> String {
    let list = |values: &mut dyn Iterator<Item = String>| values.collect::<Vec<_>>().join(", ");
    match which {
        Which::Named(names) => format!(
            // Not as `name`: Postgres would cut a longer one to the length of another.
            "unnest(ARRAY[{}]::text[], ARRAY[{}]::text[]) WITH ORDINALITY AS w(schema, name, n)
             JOIN pg_namespace s ON s.nspname = w.schema COLLATE \"C\"
             JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = w.name COLLATE \"C\"",
            list(&mut names.iter().map(|name| literal(&name.schema))),
            list(&mut names.iter().map(|name| literal(&name.name))),
        ),
        Which::Numbered(oids) => format!(
            "unnest(ARRAY[{}]::oid[]) WITH ORDINALITY AS w(number, n)
             JOIN pg_class c ON c.oid = w.number JOIN pg_namespace s ON s.oid = c.relnamespace",
            list(&mut oids.iter().map(|oid| oid.0.to_string())),
        ),
    }
}

/// Of type `y`. What has an array type of its own is an element; `int2vector` has elements, too,
/// but is not their array type.
const A_TYPE: &str = "json_build_object(
    'oid', y.oid::int8, 'name', y.typname, 'sql', format_type(y.oid, NULL), 'kind', y.typtype,
    'schema', (SELECT s.nspname FROM pg_namespace s WHERE s.oid = y.typnamespace),
    'modifier', y.typtypmod, 'delimiter', y.typdelim,
    'has_send', y.typsend <> 0,
    'send', (SELECT p.prosrc FROM pg_proc p WHERE p.oid = y.typsend),
    'inner', coalesce(
        (SELECT y.typbasetype WHERE y.typtype = 'd'),
        (SELECT e.oid FROM pg_type e WHERE e.oid = y.typelem AND e.typarray = y.oid),
        (SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = y.oid),
        (SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = y.oid))::int8,
    'fields', (SELECT json_agg(json_build_object('name', f.attname, 'type', f.atttypid::int8,
                                                 'modifier', f.atttypmod) ORDER BY f.attnum)
                 FROM pg_attribute f
                WHERE y.typtype = 'c' AND f.attrelid = y.typrelid AND f.attnum > 0
                  AND NOT f.attisdropped),
    'extension', (SELECT x.extname FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
                   WHERE d.classid = 'pg_type'::regclass AND d.objid = y.oid AND d.deptype = 'e'
                     AND d.refclassid = 'pg_extension'::regclass LIMIT 1))";

/// Of table `w`.
fn a_table(missing: &str) -> String {
    format!(
        "json_build_object(
    'oid', w.oid::int8, 'schema', w.nspname, 'name', w.relname, 'kind', w.relkind,
    'persistence', w.relpersistence, 'owner', pg_get_userbyid(w.relowner),
    'is_readable', coalesce(has_table_privilege(w.oid, 'SELECT'), false),
    'hides_rows', row_security_active(w.oid), 'identity', w.relreplident,
    'is_partition', w.relispartition,
    'inherits', NOT w.relispartition
                AND EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = w.oid),
    'extension', (SELECT x.extname FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
                   WHERE d.classid = 'pg_class'::regclass AND d.objid = w.oid AND d.objsubid = 0
                     AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass LIMIT 1),
    'columns', (SELECT json_agg(json_build_object(
          'name', a.attname, 'number', a.attnum, 'type', a.atttypid::int8,
          'modifier', a.atttypmod, 'sql_type', format_type(a.atttypid, a.atttypmod),
          'dimensions', a.attndims,
          'is_not_null', a.attnotnull AND a.attnum <> ALL (w.unproved),
          'generated', a.attgenerated, 'identity', a.attidentity,
          'has_missing_value', a.atthasmissing, 'missing_value', {missing}) ORDER BY a.attnum)
        FROM pg_attribute a
        WHERE a.attrelid = w.oid AND a.attnum > 0 AND NOT a.attisdropped),
    'indexes', {of_root},
    'parts', (SELECT json_agg(json_build_object(
          'oid', c.oid::int8, 'schema', s.nspname, 'name', c.relname, 'kind', c.relkind,
          'persistence', c.relpersistence, 'identity', c.relreplident,
          'is_readable', coalesce(has_table_privilege(c.oid, 'SELECT'), false),
          'hides_rows', row_security_active(c.oid),
          'rows', c.reltuples,
          'bytes', c.relpages::int8 * current_setting('block_size')::int8,
          'indexes', {of_part}))
        FROM (SELECT w.oid AS oid WHERE w.relkind <> 'p'
              UNION ALL
              SELECT t.relid FROM pg_partition_tree(w.oid) t
              WHERE w.relkind = 'p' AND t.isleaf) p
        JOIN pg_class c ON c.oid = p.oid JOIN pg_namespace s ON s.oid = c.relnamespace))",
        of_root = indexes("w"),
        of_part = indexes("c"),
    )
}

/// The unique indexes of table `of` that are ready for use.
fn indexes(of: &str) -> String {
    format!(
        "(SELECT json_agg(json_build_object(
            'name', (SELECT x.relname FROM pg_class x WHERE x.oid = i.indexrelid),
            'is_primary', i.indisprimary, 'is_identity', i.indisreplident,
            'is_immediate', i.indimmediate,
            'is_whole', i.indpred IS NULL AND i.indexprs IS NULL,
            'columns', (SELECT json_agg(a.attname ORDER BY k.n)
                FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
               WHERE k.n <= i.indnkeyatts),
            'is_not_null', (SELECT bool_and(a.attnotnull AND NOT EXISTS (
                     SELECT FROM pg_constraint u
                      WHERE u.conrelid = a.attrelid AND u.contype = 'n' AND NOT u.convalidated
                        AND u.conkey[1] = a.attnum))
                FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
               WHERE k.n <= i.indnkeyatts)) ORDER BY i.indexrelid)
          FROM pg_index i
         WHERE i.indrelid = {of}.oid AND i.indisunique AND i.indisvalid AND i.indislive)"
    )
}
