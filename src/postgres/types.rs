//! Descriptions of types, put together from the rows of the catalog.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::wal::Oid;
use crate::wal::pg_type::{PgField, PgForm, PgType};

/// A type as the query about tables answers.
#[derive(Debug, Deserialize)]
pub(super) struct TypeRow {
    oid: u32,
    schema: String,
    name: String,
    sql: String,
    kind: String,
    modifier: i32,
    delimiter: String,
    has_send: bool,
    /// The function behind its send function.
    send: Option<String>,
    /// What it is a domain, an array, a range or a multirange of.
    inner: Option<u32>,
    fields: Option<Vec<FieldRow>>,
    extension: Option<String>,
}

#[derive(Debug, Deserialize)]
struct FieldRow {
    name: String,
    #[serde(rename = "type")]
    type_oid: u32,
    modifier: i32,
}

/// All types of an answer.
#[derive(Debug, Default)]
pub(super) struct TypeRows {
    rows: HashMap<u32, TypeRow>,
    /// What many columns have is described once.
    known: HashMap<(u32, i32), Arc<PgType>>,
}

impl TypeRows {
    pub(super) fn add(&mut self, row: TypeRow) {
        self.rows.insert(row.oid, row);
    }

    /// `None`: the answer lacks it, or a part of it.
    pub(super) fn describe(&mut self, type_oid: u32, typmod: i32) -> Option<Arc<PgType>> {
        if let Some(known) = self.known.get(&(type_oid, typmod)) {
            return Some(Arc::clone(known));
        }
        // Out of the way, so that what is inside can be described: no type contains itself.
        let row = self.rows.remove(&type_oid)?;
        let described = self.put_together(&row, typmod).map(Arc::new);
        self.rows.insert(type_oid, row);
        let described = described?;
        self.known.insert((type_oid, typmod), Arc::clone(&described));
        Some(described)
    }

    fn put_together(&mut self, row: &TypeRow, typmod: i32) -> Option<PgType> {
        // A column of a domain has no modifier: its type has.
        let typmod = if row.kind == "d" && typmod == -1 { row.modifier } else { typmod };
        let form = match (&*row.kind, row.inner) {
            ("d", Some(base)) => PgForm::Domain(self.describe(base, typmod)?),
            ("b", Some(element)) => PgForm::Array {
                element: self.describe(element, typmod)?,
                delimiter: *row.delimiter.as_bytes().first()?,
            },
            ("b", None) => PgForm::Base,
            ("e", _) => PgForm::Enum,
            ("c", _) => PgForm::Composite(self.fields(row)?),
            ("r", Some(of)) => PgForm::Range(self.describe(of, -1)?),
            ("m", Some(of)) => PgForm::Multirange(self.describe(of, -1)?),
            ("p", _) => PgForm::Pseudo,
            _ => return None,
        };
        let of_element = match &form {
            PgForm::Array { element, .. } => element.extension.clone(),
            _ => None,
        };
        let borrowed =
            matches!(row.send.as_deref(), Some("textsend" | "varcharsend" | "bpcharsend"));
        Some(PgType {
            oid: Oid(row.oid),
            schema: row.schema.as_str().into(),
            name: row.name.as_str().into(),
            sql: row.sql.as_str().into(),
            typmod,
            extension: row.extension.as_deref().map(Arc::from).or(of_element),
            has_send: row.has_send,
            sends_text: borrowed || row.send.as_deref() == Some("enum_send"),
            form,
        })
    }

    fn fields(&mut self, row: &TypeRow) -> Option<Arc<[PgField]>> {
        let fields = row.fields.as_deref().unwrap_or_default().iter();
        fields
            .map(|field| {
                let of = self.describe(field.type_oid, field.modifier)?;
                Some(PgField { name: field.name.as_str().into(), of })
            })
            .collect()
    }
}
