//! The type by which documents are sent into each JSON column of a table. No I/O.
//!
//! It is the column's own, so that a document is parsed once, under the settings of the INSERT.
//! `JSON` as such is another type than `JSON(max_dynamic_paths=64)` and would be cast to it: for
//! that ClickHouse 25.5 prints and parses the document, by settings of its own, which make strings
//! of all values of `[1, "a", true]`. 25.8 and 26.9 keep them.

use std::collections::BTreeMap;

use super::tables::TableShape;
use crate::rows::{ColumnSpec, ColumnType, Scalar};

/// By column, where it is not `JSON` as such. 24.8 knows documents in a Native block only as
/// strings to be cast.
pub fn document_types(
    shape: &TableShape,
    columns: &[ColumnSpec],
    version: &str,
) -> BTreeMap<usize, String> {
    let year = version.split('.').next().and_then(|year| year.parse::<u32>().ok());
    let is_old = year.is_some_and(|year| year < 25);
    let documents = columns
        .iter()
        .enumerate()
        .filter(|(_, column)| column.kind == ColumnType::Of(Scalar::Json));
    documents
        .filter_map(|(at, column)| {
            let own = match is_old {
                true => "String",
                false => json_type(&shape.column(&column.name)?.type_text)?,
            };
            Some((at, own.to_owned()))
        })
        .collect()
}

/// `None` for a column that is not JSON: documents are cast to it. A NULL is never sent.
fn json_type(type_text: &str) -> Option<&str> {
    let inside = type_text.strip_prefix("Nullable(").and_then(|text| text.strip_suffix(')'));
    let bare = inside.unwrap_or(type_text);
    let arguments = bare.strip_prefix("JSON")?;
    (arguments.is_empty() || arguments.starts_with('(')).then_some(bare)
}

#[cfg(test)]
mod tests {
    use super::super::tables::ColumnShape;
    use std::sync::Arc;

    use super::*;

    fn columns() -> Arc<[ColumnSpec]> {
        crate::rows::columns! {
            "id" String,
            "doc" Json,
        }
    }

    fn of(type_text: &str, version: &str) -> Option<String> {
        let column = |(name, type_text): (&str, &str)| ColumnShape {
            name: name.to_owned(),
            type_text: type_text.to_owned(),
            default_kind: String::new(),
        };
        let shape = TableShape {
            columns: [("doc", type_text), ("id", "String")].map(column).to_vec(),
            engine: String::new(),
            engine_full: String::new(),
            sorting_key: String::new(),
            warnings: Vec::new(),
        };
        let mut types = document_types(&shape, &columns(), version);
        let own = types.remove(&1);
        assert!(types.is_empty(), "other columns have the type of their kind");
        own
    }

    #[test]
    fn documents_go_as_the_columns_own_type() {
        for (type_text, expected) in [
            ("JSON", Some("JSON")),
            ("JSON(max_dynamic_paths=64)", Some("JSON(max_dynamic_paths=64)")),
            ("JSON(`a.b` Array(UInt8), SKIP c)", Some("JSON(`a.b` Array(UInt8), SKIP c)")),
            ("Nullable(JSON(max_dynamic_types=2))", Some("JSON(max_dynamic_types=2)")),
            ("String", None),
            ("Object('json')", None),
            ("JSONish", None),
        ] {
            for version in ["25.5.2.1", "26.9.2.1", "unknown"] {
                assert_eq!(of(type_text, version).as_deref(), expected, "{type_text} {version}");
            }
        }
    }

    #[test]
    fn documents_go_to_old_servers_as_text() {
        assert_eq!(of("JSON(max_dynamic_paths=64)", "24.8.1.1").as_deref(), Some("String"));
    }
}
