//! Source tables: columns with their types, keys, and what they put into the WAL about old rows.
//!
//! Reads the catalog only: one query for any number of tables. The mapping judges whether the type
//! of a column fits its target.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::sql::{Sql, SqlError, ident, protocol};
use super::types::TypeRows;
use crate::error::{Error, ErrorKind, Result};
use crate::services::plan::Types;
use crate::wal::Oid;
use crate::wal::pg_type::PgType;

mod query;
mod read;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// Which tables are asked about.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    Named(&'a [TableName]),
    Numbered(&'a [Oid]),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTable {
    pub name: TableName,
    pub oid: u32,
    pub kind: TableKind,
    /// Not unlogged, nor temporary.
    pub is_permanent: bool,
    pub owner: String,
    /// Our role may read all of it, which re-reading needs.
    pub is_readable: bool,
    /// Row security applies to our role: the stream has rows that a query does not find.
    pub hides_rows: bool,
    /// Its rows are those of another table, too.
    pub is_partition: bool,
    /// By plain inheritance, which gives it columns but no key.
    pub inherits: bool,
    /// The extension that made it.
    pub extension: Option<String>,
    pub primary_key: Option<IndexKey>,
    pub identity: ReplicaIdentity,
    /// Of the table itself; a partition has one of its own.
    pub identity_key: Option<IndexKey>,
    /// In the order of the table, without dropped ones.
    pub columns: Vec<TableColumn>,
    /// The tables that hold the rows: itself, or the leaf partitions.
    pub parts: Vec<TablePart>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    Ordinary,
    Partitioned,
    /// A view, a foreign table, a sequence: no table to a publication.
    Other,
}

impl TableKind {
    fn of(relkind: &str) -> TableKind {
        match relkind {
            "r" => TableKind::Ordinary,
            "p" => TableKind::Partitioned,
            _ => TableKind::Other,
        }
    }
}

/// A unique index as a key: its columns in its order, which need not be the table's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexKey {
    pub index: String,
    pub columns: Vec<String>,
    /// Two rows never share it, not even within a transaction.
    pub is_immediate: bool,
    /// No column of it takes a NULL, which is equal to none.
    pub is_not_null: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    pub name: String,
    pub number: i16,
    pub type_oid: u32,
    pub type_name: String,
    /// The type with its modifier, as in a statement.
    pub sql_type: String,
    pub pg_type: Arc<PgType>,
    /// As declared, which binds no value; 0 may be an array, too, if the type is one.
    pub dimensions: u16,
    /// Proved: of all rows, not only of those to come.
    pub is_not_null: bool,
    /// Such columns are not streamed unless the publication says so.
    pub generated: Option<Generated>,
    pub is_identity: bool,
    /// Rows older than the column have no value of it: [`TableColumn::missing_value`] is read.
    pub has_missing_value: bool,
    /// As text; unknown in a database whose texts have no encoding.
    pub missing_value: Option<String>,
}

impl TableColumn {
    /// The built-in type whose text and binary form its values have.
    pub fn reads_as(&self) -> Option<Oid> {
        self.pg_type.reads_as()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generated {
    Stored,
    /// When it is read; never streamed.
    Virtual,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePart {
    pub name: TableName,
    pub oid: u32,
    /// Its rows are elsewhere: never streamed, and not ours to read.
    pub is_foreign: bool,
    pub is_permanent: bool,
    pub is_readable: bool,
    pub hides_rows: bool,
    /// As of the last vacuum or analyze.
    pub rows: Option<u64>,
    /// As of then, without TOAST.
    pub bytes: u64,
    pub identity: ReplicaIdentity,
    /// The columns of the index that the identity rests on; empty without one.
    pub identity_columns: Vec<String>,
    /// The columns of each key that two rows never share.
    pub keys: Vec<Vec<String>>,
    /// The same of keys that are looked at when a transaction ends: within it rows may share them.
    pub deferrable_keys: Vec<Vec<String>>,
    /// The first that Postgres would take for a replica identity.
    pub may_be_identity: Option<IndexKey>,
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
        let doing = || format!("inspect table `{name}`");
        let which = Which::Named(std::slice::from_ref(name));
        let found = find(sql, which, deadline).map_err(|error| error.doing(doing()))?;
        let Some(table) = found.into_iter().next() else {
            return Err(Error::new(ErrorKind::Setup, doing())
                .because(format!("the table is not in database `{}`", sql.about().database))
                .hint("Check the database name in the database URL."));
        };
        table.check_publishable()?;
        Ok(table)
    }

    /// Any number, in the order asked for. What is not there is left out, and what cannot be
    /// published is told apart by [`SourceTable::check_publishable`].
    pub fn inspect_all(
        sql: &mut Sql,
        which: Which<'_>,
        deadline: Instant,
    ) -> Result<Vec<SourceTable>> {
        let count = which.len();
        find(sql, which, deadline).map_err(|error| error.doing(format!("inspect {count} tables")))
    }

    /// Refuses what is not a table, and one whose changes are not in the WAL.
    pub fn check_publishable(&self) -> Result<()> {
        let doing = || Error::new(ErrorKind::Setup, format!("inspect table `{}`", self.name));
        if self.kind == TableKind::Other {
            return Err(doing().because("it is not a table, so it cannot be published"));
        }
        if !self.is_permanent {
            return Err(doing()
                .because("changes of an unlogged or temporary table are not in the WAL")
                .hint(format!("Run: ALTER TABLE {} SET LOGGED;", self.name.quoted())));
        }
        // A publication includes it with its root, but streams nothing of it.
        if let Some(part) = self.parts.iter().find(|part| !part.is_permanent) {
            let part = &part.name;
            return Err(doing()
                .because(format!("changes of its unlogged partition `{part}` are not in the WAL"))
                .hint(format!("Run: ALTER TABLE {} SET LOGGED;", part.quoted())));
        }
        Ok(())
    }

    /// The underlying types of its columns.
    pub fn types(&self) -> Types {
        let known = self.columns.iter();
        known.filter_map(|column| Some((Oid(column.type_oid), column.reads_as()?))).collect()
    }

    pub fn column(&self, name: &str) -> Option<&TableColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Its rows in a statement: the same as in the stream. Tables that inherit from it are tables
    /// of their own to a publication, and to a SELECT only with ONLY. A partitioned table has no
    /// rows but those of its partitions.
    pub fn rows(&self) -> String {
        match self.kind {
            TableKind::Ordinary | TableKind::Other => format!("ONLY {}", self.name.quoted()),
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
    pub fn old_row(&self, key: &[&str]) -> Result<OldRow> {
        let (all, problems) = self.old_rows(key);
        problems.into_iter().next().map_or(Ok(all), Err)
    }

    /// The replica identities of the parts, and each part that does not identify rows by `key`.
    pub fn old_rows(&self, key: &[&str]) -> (OldRow, Vec<Error>) {
        let all_of =
            |columns: &[String]| key.iter().all(|name| columns.iter().any(|column| column == name));
        // Of the leaves alone FULL is not enough: Postgres then streams the whole old row and calls
        // it the key.
        let mut all = match (self.kind, self.identity) {
            (TableKind::Partitioned, identity) if identity != ReplicaIdentity::Full => {
                OldRow::KeyOnly
            }
            _ => OldRow::Whole,
        };
        let mut problems = Vec::new();
        for part in &self.parts {
            let doing = || {
                Error::new(
                    ErrorKind::Setup,
                    format!("check replica identity of table `{}`", part.name),
                )
            };
            let is_key = |columns: &&Vec<String>| {
                all_of(columns) || columns.iter().all(|column| key.contains(&column.as_str()))
            };
            // ClickHouse has one row of a key: what becomes of one of several would be all of it.
            if !part.keys.iter().any(|columns| is_key(&columns)) {
                let table = part.name.quoted();
                let cause = match part.deferrable_keys.iter().find(is_key) {
                    Some(deferrable) => format!(
                        "its key ({}) is deferrable: within a transaction several rows may have \
                         it, so it is not a key for logical replication",
                        deferrable.join(", ")
                    ),
                    None => format!(
                        "it has no primary key and no unique index of all its rows with `{}`: \
                         several rows may share one",
                        key.join("`, `")
                    ),
                };
                problems.push(doing().because(cause).hint(format!(
                    "Run: CREATE UNIQUE INDEX ON {table} ({}); ALTER TABLE {table} REPLICA \
                     IDENTITY FULL;",
                    key.iter().map(|column| ident(column)).collect::<Vec<_>>().join(", ")
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
                    if !all_of(&part.identity_columns) =>
                {
                    format!(
                        "replica identity is ({}), without the key `{}`",
                        part.identity_columns.join(", "),
                        key.join("`, `")
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

/// So many tables of many columns are an answer of a few MB.
const CHUNK: usize = 500;

impl<'a> Which<'a> {
    fn len(self) -> usize {
        match self {
            Which::Named(names) => names.len(),
            Which::Numbered(oids) => oids.len(),
        }
    }

    fn chunks(self) -> Vec<Which<'a>> {
        match self {
            Which::Named(names) => names.chunks(CHUNK).map(Which::Named).collect(),
            Which::Numbered(oids) => oids.chunks(CHUNK).map(Which::Numbered).collect(),
        }
    }
}

fn find(
    sql: &mut Sql,
    which: Which<'_>,
    deadline: Instant,
) -> std::result::Result<Vec<SourceTable>, SqlError> {
    let unexpected = || protocol("the catalog's answer has an unexpected form");
    let mut tables = Vec::with_capacity(which.len());
    for chunk in which.chunks() {
        let mut types = TypeRows::default();
        for row in sql.try_rows(&query::query(&chunk, sql), deadline)? {
            let json = row.required(2)?;
            if row.required(0)? == "type" {
                types.add(serde_json::from_str(json).map_err(|_| unexpected())?);
                continue;
            }
            let table: read::TableRow = serde_json::from_str(json).map_err(|_| unexpected())?;
            tables.push(table.read(&mut types).ok_or_else(unexpected)?);
        }
    }
    Ok(tables)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// An ordinary one with the key `id`, and no columns that anybody knows.
    pub fn table(name: TableName) -> SourceTable {
        let key = IndexKey {
            index: "pkey".into(),
            columns: vec!["id".into()],
            is_immediate: true,
            is_not_null: true,
        };
        let part = TablePart {
            name: name.clone(),
            oid: 1,
            is_foreign: false,
            is_permanent: true,
            is_readable: true,
            hides_rows: false,
            rows: None,
            bytes: 0,
            identity: ReplicaIdentity::Default,
            identity_columns: key.columns.clone(),
            keys: vec![key.columns.clone()],
            deferrable_keys: Vec::new(),
            may_be_identity: Some(key.clone()),
        };
        SourceTable {
            name,
            oid: 1,
            kind: TableKind::Ordinary,
            is_permanent: true,
            owner: "owner".into(),
            is_readable: true,
            hides_rows: false,
            is_partition: false,
            inherits: false,
            extension: None,
            primary_key: Some(key.clone()),
            identity: ReplicaIdentity::Default,
            identity_key: Some(key),
            columns: Vec::new(),
            parts: vec![part],
        }
    }

    /// Of a built-in type, as if it were the only one.
    pub fn column(name: &str, type_oid: Oid) -> TableColumn {
        TableColumn {
            name: name.into(),
            number: 1,
            type_oid: type_oid.0,
            type_name: "x".into(),
            sql_type: "x".into(),
            pg_type: Arc::new(PgType::built_in(type_oid, "x", -1)),
            dimensions: 0,
            is_not_null: false,
            generated: None,
            is_identity: false,
            has_missing_value: false,
            missing_value: None,
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
        let old_row =
            |identity, columns: &[&str]| table(identity, columns).old_row(&["id"]).unwrap();
        assert_eq!(old_row(ReplicaIdentity::Full, &[]), OldRow::Whole);
        assert_eq!(old_row(ReplicaIdentity::Default, &["id"]), OldRow::KeyOnly);
        let mut root = table(ReplicaIdentity::Full, &[]);
        root.kind = TableKind::Partitioned;
        assert_eq!(root.old_row(&["id"]).unwrap(), OldRow::KeyOnly);
        root.identity = ReplicaIdentity::Full;
        assert_eq!(root.old_row(&["id"]).unwrap(), OldRow::Whole);
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
            let error = table(identity, columns).old_row(&["id"]).unwrap_err();
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
            let error = table.old_row(&["id"]).unwrap_err();
            assert!(error.to_string().contains("(id) is deferrable"), "{error}");
            let hint = error.hint_text().unwrap();
            assert!(hint.contains("CREATE UNIQUE INDEX ON \"public\".\"Task\"\"Run\" (\"id\");"));
            table.parts[0].keys.push(vec!["x".into(), "id".into()]);
            table.old_row(&["id"]).unwrap();
        }
    }

    /// One that is partial, over an expression, or invalid is not read as a key at all.
    #[test]
    fn a_table_without_a_key_is_refused_whatever_the_identity() {
        for identity in [ReplicaIdentity::Full, ReplicaIdentity::Default] {
            let mut table = table(identity, &[]);
            table.parts[0].keys = vec![vec!["other".into()]];
            let error = table.old_row(&["id"]).unwrap_err();
            assert!(error.to_string().contains("no unique index of all its rows"), "{error}");
            let hint = error.hint_text().unwrap();
            assert!(hint.contains("CREATE UNIQUE INDEX ON \"public\".\"Task\"\"Run\" (\"id\");"));
        }
    }
}
