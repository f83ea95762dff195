//! The source table: its columns, its key, and what it puts into the WAL about old rows.
//!
//! Reads the catalog only. The mapping judges whether the type of a column fits its target.

use std::fmt;
use std::time::Instant;

use serde_json::Value;

use super::sql::{Sql, ident, literal, protocol};
use crate::error::{Error, ErrorKind, Result};
use crate::services::plan::Types;
use crate::wal::Oid;
use crate::wal::value::oid;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl TableName {
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> TableName {
        TableName { schema: schema.into(), name: name.into() }
    }

    /// As it appears in a statement.
    pub fn quoted(&self) -> String {
        format!("{}.{}", ident(&self.schema), ident(&self.name))
    }
}

/// For people: not fit for a statement.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTable {
    pub name: TableName,
    pub oid: u32,
    pub kind: TableKind,
    pub owner: String,
    /// Our role may read all of it, which re-reading needs.
    pub is_readable: bool,
    pub primary_key: Vec<String>,
    /// In the order of the table, without dropped ones.
    pub columns: Vec<TableColumn>,
    /// The tables that hold the rows: itself, or the leaf partitions.
    pub parts: Vec<TablePart>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    Ordinary,
    Partitioned,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    pub name: String,
    pub number: i16,
    pub type_oid: u32,
    pub type_name: String,
    /// The built-in type whose text and binary form values of this one have: for a domain its base
    /// type, for an enum text. 0: none.
    pub reads_as: u32,
    /// The innermost base type of a domain.
    pub base_type: String,
    pub is_not_null: bool,
    pub is_enum: bool,
    /// Such columns are not streamed unless the publication says so.
    pub is_generated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePart {
    pub name: TableName,
    pub identity: ReplicaIdentity,
    /// The columns of the index that the identity rests on; empty without one.
    pub identity_columns: Vec<String>,
    /// The columns of each key that two rows never share.
    pub keys: Vec<Vec<String>>,
    /// The same of keys that are looked at when a transaction ends: within it rows may share them.
    pub deferrable_keys: Vec<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    Default,
    Nothing,
    Full,
    Index,
}

/// What an update or a delete shows about the old row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldRow {
    Whole,
    KeyOnly,
}

impl OldRow {
    pub fn note(self) -> Option<&'static str> {
        match self {
            OldRow::Whole => None,
            OldRow::KeyOnly => Some(
                "replica identity is the key: values that an update leaves in TOAST are read \
                 again from the table; REPLICA IDENTITY FULL would stream them",
            ),
        }
    }
}

impl SourceTable {
    pub fn inspect(sql: &mut Sql, name: &TableName, deadline: Instant) -> Result<SourceTable> {
        let doing = format!("inspect table `{name}`");
        let rows = sql.rows(&doing, &query(name), deadline)?;
        let Some(row) = rows.first() else {
            return Err(Error::new(ErrorKind::Setup, doing)
                .because(format!("the table is not in database `{}`", sql.about().database))
                .hint("Check the database name in the database URL."));
        };
        let value = row.json(0).map_err(|error| error.doing(&doing))?;
        match text(&value, "relkind") {
            Some("r" | "p") => {}
            _ => {
                return Err(Error::new(ErrorKind::Setup, doing)
                    .because("it is not a table, so it cannot be published"));
            }
        }
        if text(&value, "relpersistence") != Some("p") {
            return Err(Error::new(ErrorKind::Setup, doing)
                .because("changes of an unlogged or temporary table are not in the WAL")
                .hint(format!("Run: ALTER TABLE {} SET LOGGED;", name.quoted())));
        }
        // A publication includes it with its root, but streams nothing of it.
        let is_unlogged = |part: &&Value| text(part, "persistence") == Some("u");
        if let Some(part) = list(&value, "parts").iter().find(is_unlogged) {
            let part = text(part, "schema").zip(text(part, "name"));
            let part = part.map_or(name.clone(), |(schema, name)| TableName::new(schema, name));
            return Err(Error::new(ErrorKind::Setup, doing)
                .because(format!("changes of its unlogged partition `{part}` are not in the WAL"))
                .hint(format!("Run: ALTER TABLE {} SET LOGGED;", part.quoted())));
        }
        read(name, &value)
            .ok_or_else(|| protocol("the catalog's answer has an unexpected form").doing(doing))
    }

    /// The underlying types of its columns.
    pub fn types(&self) -> Types {
        let known = self.columns.iter().filter(|column| column.reads_as != 0);
        known.map(|column| (Oid(column.type_oid), Oid(column.reads_as))).collect()
    }

    pub fn column(&self, name: &str) -> Option<&TableColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Its rows in a statement: the same as in the stream. Tables that inherit from it are tables
    /// of their own to a publication, and to a SELECT only with ONLY. A partitioned table has no
    /// rows but those of its partitions.
    pub fn rows(&self) -> String {
        match self.kind {
            TableKind::Ordinary => format!("ONLY {}", self.name.quoted()),
            TableKind::Partitioned => self.name.quoted(),
        }
    }

    /// Re-reading values needs it; the stream alone does not.
    pub fn check_readable(&self, role: &str) -> Result<()> {
        if self.is_readable {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Setup, format!("check privileges on table `{}`", self.name))
            .because(format!("role `{role}` may not read it"))
            .hint(format!("Run: GRANT SELECT ON {} TO {};", self.name.quoted(), ident(role))))
    }

    /// Refuses a replica identity under which an update or delete does not name `key`, and a `key`
    /// that several rows may have.
    pub fn old_row(&self, key: &str) -> Result<OldRow> {
        let (all, problems) = self.old_rows(key);
        problems.into_iter().next().map_or(Ok(all), Err)
    }

    /// The replica identities of the parts, and each part that does not identify rows by `key`.
    pub fn old_rows(&self, key: &str) -> (OldRow, Vec<Error>) {
        let mut all = OldRow::Whole;
        let mut problems = Vec::new();
        for part in &self.parts {
            let doing = || {
                Error::new(
                    ErrorKind::Setup,
                    format!("check replica identity of table `{}`", part.name),
                )
            };
            let names = |columns: &&Vec<String>| columns.iter().any(|column| column == key);
            // ClickHouse has one row of a key: what becomes of one of several would be all of it.
            if !part.keys.iter().any(|columns| names(&columns)) {
                let table = part.name.quoted();
                let cause = match part.deferrable_keys.iter().find(names) {
                    Some(deferrable) => format!(
                        "its key ({}) is deferrable: within a transaction several rows may have \
                         it, so it is not a key for logical replication",
                        deferrable.join(", ")
                    ),
                    None => format!(
                        "it has no primary key and no unique index of all its rows with `{key}`: \
                         several rows may share one"
                    ),
                };
                problems.push(doing().because(cause).hint(format!(
                    "Run: CREATE UNIQUE INDEX ON {table} ({}); ALTER TABLE {table} REPLICA \
                     IDENTITY FULL;",
                    ident(key)
                )));
                continue;
            }
            let cause = match part.identity {
                ReplicaIdentity::Full => continue,
                ReplicaIdentity::Nothing => "replica identity is NOTHING".to_owned(),
                ReplicaIdentity::Default if part.identity_columns.is_empty() => {
                    "replica identity is DEFAULT and there is no primary key".to_owned()
                }
                ReplicaIdentity::Index if part.identity_columns.is_empty() => {
                    "the index of its replica identity was dropped".to_owned()
                }
                ReplicaIdentity::Default | ReplicaIdentity::Index
                    if !part.identity_columns.iter().any(|column| column == key) =>
                {
                    format!(
                        "replica identity is ({}), without the key `{key}`",
                        part.identity_columns.join(", ")
                    )
                }
                ReplicaIdentity::Default | ReplicaIdentity::Index => {
                    all = OldRow::KeyOnly;
                    continue;
                }
            };
            let sql = format!("ALTER TABLE {} REPLICA IDENTITY FULL;", part.name.quoted());
            problems.push(doing().because(cause).hint(format!("Run: {sql}")));
        }
        (all, problems)
    }
}

fn query(name: &TableName) -> String {
    format!(
        "WITH RECURSIVE target AS (
           SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname = {schema} AND c.relname = {name}
         ), under AS (
           SELECT a.attnum, y.* FROM target t
           JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
           JOIN pg_type y ON y.oid = a.atttypid
           UNION ALL
           SELECT u.attnum, y.* FROM under u JOIN pg_type y ON y.oid = u.typbasetype
           WHERE u.typtype = 'd'
         ), element AS (
           SELECT u.attnum, y.* FROM under u JOIN pg_type y ON y.oid = u.typelem
           WHERE u.typtype = 'b' AND u.typcategory = 'A'
           UNION ALL
           SELECT e.attnum, y.* FROM element e JOIN pg_type y ON y.oid = e.typbasetype
           WHERE e.typtype = 'd'
         ), part AS (
           SELECT t.oid FROM target t WHERE t.relkind <> 'p'
           UNION ALL
           SELECT p.relid FROM target t, pg_partition_tree(t.oid) p
           WHERE t.relkind = 'p' AND p.isleaf
         )
         SELECT row_to_json(answer) FROM (SELECT
           t.oid::int8 AS oid, t.relkind, t.relpersistence, pg_get_userbyid(t.relowner) AS owner,
           has_table_privilege(t.oid, 'SELECT') AS is_readable,
           (SELECT json_agg(a.attname ORDER BY k.n)
              FROM pg_index i
              CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE i.indrelid = t.oid AND i.indisprimary AND k.n <= i.indnkeyatts) AS primary_key,
           (SELECT json_agg(json_build_object(
                'name', a.attname, 'number', a.attnum, 'type_oid', a.atttypid::int8,
                'type_name', y.typname, 'is_not_null', a.attnotnull,
                'reads_as', CASE
                    WHEN u.oid < {user} AND u.typtype = 'b' THEN u.oid::int8
                    WHEN {is_text} OR u.typtype = 'b' AND u.typsend = 0 THEN {text}
                    WHEN EXISTS (SELECT FROM element e
                                 WHERE e.attnum = a.attnum AND {are_texts}) THEN {texts}
                    ELSE 0 END,
                'base_type', format_type(u.oid, NULL),
                'is_enum', y.typtype = 'e', 'is_generated', a.attgenerated <> '')
                ORDER BY a.attnum)
              FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
              JOIN under u ON u.attnum = a.attnum AND u.typtype <> 'd'
             WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
           (SELECT json_agg(json_build_object(
                'schema', n.nspname, 'name', c.relname, 'identity', c.relreplident,
                'persistence', c.relpersistence,
                'identity_columns',
                (SELECT json_agg(a.attname ORDER BY k.n)
                   FROM pg_index i
                   CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                  WHERE i.indrelid = c.oid AND i.indisvalid AND i.indislive AND i.indimmediate
                    AND k.n <= i.indnkeyatts
                    AND CASE c.relreplident WHEN 'd' THEN i.indisprimary
                                            WHEN 'i' THEN i.indisreplident ELSE false END),
                'keys', {keys}, 'deferrable_keys', {deferrable_keys}))
              FROM part p JOIN pg_class c ON c.oid = p.oid
              JOIN pg_namespace n ON n.oid = c.relnamespace) AS parts
         FROM target t) answer",
        schema = literal(&name.schema),
        name = literal(&name.name),
        user = oid::FIRST_USER.0,
        text = oid::TEXT.0,
        texts = oid::TEXT_ARRAY.0,
        is_text = is_text("u"),
        are_texts = is_text("e"),
        keys = keys("i.indimmediate"),
        deferrable_keys = keys("NOT i.indimmediate"),
    )
}

/// The columns of the unique indexes of table `c`, over all of its rows.
fn keys(which: &str) -> String {
    format!(
        "(SELECT json_agg((SELECT json_agg(a.attname ORDER BY k.n)
              FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
              WHERE k.n <= i.indnkeyatts))
          FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
            AND i.indislive AND i.indpred IS NULL AND i.indexprs IS NULL AND {which})"
    )
}

/// Whether the type of this name in the query is sent as its text in binary, too: an enum, or one
/// that borrows the send function of text, as `citext` does.
fn is_text(of: &str) -> String {
    format!(
        "({of}.typtype = 'e' OR {of}.oid IN ({}, {}, {})
          OR {of}.typtype = 'b' AND {of}.oid >= {} AND (SELECT p.prosrc FROM pg_proc p
              WHERE p.oid = {of}.typsend) IN ('textsend', 'varcharsend', 'bpcharsend'))",
        oid::TEXT.0,
        oid::VARCHAR.0,
        oid::BPCHAR.0,
        oid::FIRST_USER.0
    )
}

fn read(name: &TableName, value: &Value) -> Option<SourceTable> {
    let columns = list(value, "columns").iter().map(|column| {
        Some(TableColumn {
            name: text(column, "name")?.to_owned(),
            number: i16::try_from(column.get("number")?.as_i64()?).ok()?,
            type_oid: u32::try_from(column.get("type_oid")?.as_u64()?).ok()?,
            type_name: text(column, "type_name")?.to_owned(),
            reads_as: u32::try_from(column.get("reads_as")?.as_u64()?).ok()?,
            base_type: text(column, "base_type")?.to_owned(),
            is_not_null: column.get("is_not_null")?.as_bool()?,
            is_enum: column.get("is_enum")?.as_bool()?,
            is_generated: column.get("is_generated")?.as_bool()?,
        })
    });
    let parts = list(value, "parts").iter().map(|part| {
        Some(TablePart {
            name: TableName::new(text(part, "schema")?, text(part, "name")?),
            identity: match text(part, "identity")? {
                "d" => ReplicaIdentity::Default,
                "n" => ReplicaIdentity::Nothing,
                "f" => ReplicaIdentity::Full,
                "i" => ReplicaIdentity::Index,
                _ => return None,
            },
            identity_columns: names(part, "identity_columns"),
            keys: lists(part, "keys"),
            deferrable_keys: lists(part, "deferrable_keys"),
        })
    });
    Some(SourceTable {
        name: name.clone(),
        oid: u32::try_from(value.get("oid")?.as_u64()?).ok()?,
        kind: match text(value, "relkind")? {
            "p" => TableKind::Partitioned,
            _ => TableKind::Ordinary,
        },
        owner: text(value, "owner")?.to_owned(),
        is_readable: value.get("is_readable")?.as_bool()?,
        primary_key: names(value, "primary_key"),
        columns: columns.collect::<Option<_>>()?,
        parts: parts.collect::<Option<_>>()?,
    })
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field)?.as_str()
}

/// An aggregate over no rows is NULL.
fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn names(value: &Value, field: &str) -> Vec<String> {
    list(value, field).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn lists(value: &Value, field: &str) -> Vec<Vec<String>> {
    let texts = |list: &Value| -> Vec<String> {
        let list = list.as_array().map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    list(value, field).iter().map(texts).collect()
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// An ordinary one with the key `id`, and no columns that anybody knows.
    pub fn table(name: TableName) -> SourceTable {
        let part = TablePart {
            name: name.clone(),
            identity: ReplicaIdentity::Default,
            identity_columns: vec!["id".into()],
            keys: vec![vec!["id".into()]],
            deferrable_keys: Vec::new(),
        };
        SourceTable {
            name,
            oid: 1,
            kind: TableKind::Ordinary,
            owner: "owner".into(),
            is_readable: true,
            primary_key: vec!["id".into()],
            columns: Vec::new(),
            parts: vec![part],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(identity: ReplicaIdentity, identity_columns: &[&str]) -> SourceTable {
        let mut table = testing::table(TableName::new("public", "Task\"Run"));
        table.parts[0].identity = identity;
        table.parts[0].identity_columns =
            identity_columns.iter().map(|name| (*name).into()).collect();
        table
    }

    #[test]
    fn what_inherits_from_the_table_is_no_part_of_it() {
        let mut table = table(ReplicaIdentity::Full, &[]);
        assert_eq!(table.rows(), "ONLY \"public\".\"Task\"\"Run\"");
        // Which has no rows but those of its partitions.
        table.kind = TableKind::Partitioned;
        assert_eq!(table.rows(), "\"public\".\"Task\"\"Run\"");
    }

    #[test]
    fn an_identity_that_names_the_key_is_enough() {
        let old_row = |identity, columns: &[&str]| table(identity, columns).old_row("id").unwrap();
        assert_eq!(old_row(ReplicaIdentity::Full, &[]), OldRow::Whole);
        assert_eq!(old_row(ReplicaIdentity::Default, &["id"]), OldRow::KeyOnly);
        assert_eq!(old_row(ReplicaIdentity::Index, &["x", "id"]), OldRow::KeyOnly);
    }

    #[test]
    fn an_identity_without_the_key_is_refused_with_the_sql_that_mends_it() {
        for (identity, columns) in [
            (ReplicaIdentity::Nothing, &[][..]),
            (ReplicaIdentity::Default, &[]),
            (ReplicaIdentity::Default, &["other"]),
            (ReplicaIdentity::Index, &[]),
            (ReplicaIdentity::Index, &["friendlyId"]),
        ] {
            let error = table(identity, columns).old_row("id").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Setup);
            assert_eq!(
                error.hint_text(),
                Some("Run: ALTER TABLE \"public\".\"Task\"\"Run\" REPLICA IDENTITY FULL;")
            );
        }
    }

    /// Within a transaction two rows may share it, so the DELETE of one would end the other.
    #[test]
    fn a_key_that_is_deferrable_is_none_whatever_the_identity() {
        for identity in [ReplicaIdentity::Full, ReplicaIdentity::Index, ReplicaIdentity::Default] {
            let mut table = table(identity, &["id"]);
            let part = &mut table.parts[0];
            part.deferrable_keys = std::mem::take(&mut part.keys);
            let error = table.old_row("id").unwrap_err();
            assert!(error.to_string().contains("(id) is deferrable"), "{error}");
            let hint = error.hint_text().unwrap();
            assert!(hint.contains("CREATE UNIQUE INDEX ON \"public\".\"Task\"\"Run\" (\"id\");"));
            table.parts[0].keys.push(vec!["x".into(), "id".into()]);
            table.old_row("id").unwrap();
        }
    }

    /// One that is partial, over an expression, or invalid is not read as a key at all.
    #[test]
    fn a_table_without_a_key_is_refused_whatever_the_identity() {
        for identity in [ReplicaIdentity::Full, ReplicaIdentity::Default] {
            let mut table = table(identity, &[]);
            table.parts[0].keys = vec![vec!["other".into()]];
            let error = table.old_row("id").unwrap_err();
            assert!(error.to_string().contains("no unique index of all its rows"), "{error}");
            let hint = error.hint_text().unwrap();
            assert!(hint.contains("CREATE UNIQUE INDEX ON \"public\".\"Task\"\"Run\" (\"id\");"));
        }
    }

    #[test]
    fn an_answer_of_another_form_is_no_table() {
        let name = TableName::new("public", "t");
        for json in ["null", "{}", "{\"oid\":-1}", "{\"columns\":[{}]}"] {
            assert_eq!(read(&name, &json.parse().unwrap()), None, "{json}");
        }
    }
}
