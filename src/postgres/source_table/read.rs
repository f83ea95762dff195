//! The answer about tables, as JSON, and what it says.

use serde::Deserialize;

use super::{
    Generated, IndexKey, ReplicaIdentity, SourceTable, TableColumn, TableKind, TableName, TablePart,
};
use crate::postgres::types::TypeRows;

#[derive(Debug, Deserialize)]
pub(super) struct TableRow {
    oid: u32,
    schema: String,
    name: String,
    kind: String,
    persistence: String,
    owner: String,
    is_readable: bool,
    hides_rows: bool,
    identity: String,
    is_partition: bool,
    inherits: bool,
    extension: Option<String>,
    columns: Option<Vec<ColumnRow>>,
    indexes: Option<Vec<IndexRow>>,
    parts: Option<Vec<PartRow>>,
}

#[derive(Debug, Deserialize)]
struct ColumnRow {
    name: String,
    number: i16,
    #[serde(rename = "type")]
    type_oid: u32,
    modifier: i32,
    sql_type: String,
    dimensions: u16,
    is_not_null: bool,
    generated: String,
    identity: String,
    has_missing_value: bool,
    missing_value: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct IndexRow {
    name: String,
    is_primary: bool,
    is_identity: bool,
    is_immediate: bool,
    is_whole: bool,
    /// Without expressions.
    columns: Option<Vec<String>>,
    is_not_null: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct PartRow {
    oid: u32,
    schema: String,
    name: String,
    kind: String,
    persistence: String,
    identity: String,
    is_readable: bool,
    hides_rows: bool,
    rows: f64,
    bytes: u64,
    indexes: Option<Vec<IndexRow>>,
}

impl TableRow {
    /// `None`: the answer is not of the form that is expected.
    pub(super) fn read(self, types: &mut TypeRows) -> Option<SourceTable> {
        let columns = self.columns.unwrap_or_default();
        let columns = columns.into_iter().map(|column| column.read(types));
        let parts = self.parts.unwrap_or_default().into_iter().map(PartRow::read);
        let (keys, identity) = (self.indexes.unwrap_or_default(), identity_of(&self.identity)?);
        Some(SourceTable {
            name: TableName::new(self.schema, self.name),
            oid: self.oid,
            kind: TableKind::of(&self.kind),
            is_permanent: self.persistence == "p",
            owner: self.owner,
            is_readable: self.is_readable,
            hides_rows: self.hides_rows,
            is_partition: self.is_partition,
            inherits: self.inherits,
            extension: self.extension,
            primary_key: keys.iter().find(|index| index.is_primary).map(IndexRow::key),
            identity,
            identity_key: identity_key(&keys, identity),
            columns: columns.collect::<Option<_>>()?,
            parts: parts.collect::<Option<_>>()?,
        })
    }
}

impl ColumnRow {
    fn read(self, types: &mut TypeRows) -> Option<TableColumn> {
        let of = types.describe(self.type_oid, self.modifier)?;
        Some(TableColumn {
            name: self.name,
            number: self.number,
            type_oid: self.type_oid,
            type_name: of.name.to_string(),
            sql_type: self.sql_type,
            dimensions: self.dimensions,
            is_not_null: self.is_not_null,
            generated: match &*self.generated {
                "" => None,
                "v" => Some(Generated::Virtual),
                _ => Some(Generated::Stored),
            },
            is_identity: !self.identity.is_empty(),
            has_missing_value: self.has_missing_value,
            missing_value: self.missing_value.as_deref().and_then(only_element),
            pg_type: of,
        })
    }
}

impl IndexRow {
    fn key(&self) -> IndexKey {
        IndexKey {
            index: self.name.clone(),
            columns: self.columns.clone().unwrap_or_default(),
            is_immediate: self.is_immediate,
            is_not_null: self.is_not_null == Some(true),
        }
    }
}

impl PartRow {
    fn read(self) -> Option<TablePart> {
        let (indexes, identity) = (self.indexes.unwrap_or_default(), identity_of(&self.identity)?);
        let keys = |is_immediate: bool| {
            let of_kind =
                move |index: &&IndexRow| index.is_whole && index.is_immediate == is_immediate;
            indexes.iter().filter(of_kind).map(IndexRow::key)
        };
        let names = |keys: &mut dyn Iterator<Item = IndexKey>| {
            keys.map(|key| key.columns).collect::<Vec<_>>()
        };
        Some(TablePart {
            name: TableName::new(self.schema, self.name),
            oid: self.oid,
            is_foreign: self.kind == "f",
            is_permanent: self.persistence == "p",
            is_readable: self.is_readable,
            hides_rows: self.hides_rows,
            // Never vacuumed: -1.
            rows: (self.rows >= 0.0).then_some(self.rows as u64),
            bytes: self.bytes,
            identity,
            identity_columns: identity_key(&indexes, identity)
                .map(|key| key.columns)
                .unwrap_or_default(),
            keys: names(&mut keys(true)),
            deferrable_keys: names(&mut keys(false)),
            may_be_identity: keys(true).find(|key| key.is_not_null),
        })
    }
}

fn identity_of(text: &str) -> Option<ReplicaIdentity> {
    Some(match text {
        "d" => ReplicaIdentity::Default,
        "n" => ReplicaIdentity::Nothing,
        "f" => ReplicaIdentity::Full,
        "i" => ReplicaIdentity::Index,
        _ => return None,
    })
}

/// The index that the identity rests on. Postgres takes none that is looked at late.
fn identity_key(indexes: &[IndexRow], identity: ReplicaIdentity) -> Option<IndexKey> {
    let is_it = |index: &&IndexRow| {
        index.is_immediate
            && match identity {
                ReplicaIdentity::Default => index.is_primary,
                ReplicaIdentity::Index => index.is_identity,
                ReplicaIdentity::Nothing | ReplicaIdentity::Full => false,
            }
    };
    indexes.iter().find(is_it).map(IndexRow::key)
}

/// The value in the text form of an array that has one, of any type and delimiter.
fn only_element(array: &str) -> Option<String> {
    let inside = array.strip_prefix('{')?.strip_suffix('}')?;
    let Some(quoted) = inside.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Some(inside.to_owned());
    };
    let (mut value, mut is_escaped) = (String::with_capacity(quoted.len()), false);
    for c in quoted.chars() {
        is_escaped = c == '\\' && !is_escaped;
        if !is_escaped {
            value.push(c);
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_element_is_what_was_put_in() {
        for (array, value) in [
            ("{5}", "5"),
            ("{\"\"}", ""),
            ("{\"{1,2}\"}", "{1,2}"),
            ("{(1,1),(0,0)}", "(1,1),(0,0)"),
            (r#"{"a\\b\"c"}"#, r#"a\b"c"#),
            (r#"{"\\\\"}"#, r"\\"),
        ] {
            assert_eq!(only_element(array).as_deref(), Some(value), "{array}");
        }
    }
}
