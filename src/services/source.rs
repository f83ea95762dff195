//! The source table of a service, and the columns of it that a mapping reads.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::values;
use super::values::how::How;
use super::values::temporal;
use crate::rows::{Scalar, Target};
use crate::wal::time::Timestamp;
use crate::wal::value::{self, oid};
use crate::wal::{Datum, DecodeError, Oid};

/// A table of Postgres and the columns of it that a mapping reads.
#[derive(Debug)]
pub struct Source {
    pub schema: Arc<str>,
    pub table: Arc<str>,
    pub columns: Vec<SourceColumn>,
    /// Columns that trigger.dev has and no target table uses.
    pub unread: Vec<Arc<str>>,
    /// The columns that identify a row, in the order of their index, as indexes into `columns`.
    pub key: Vec<usize>,
    /// Further columns of the first target's sorting key, in its order: what a row moves by within
    /// ClickHouse while its key stays.
    pub sorting: Vec<usize>,
    /// When a row was made, where a column says it.
    pub created_at: Option<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SourceColumn {
    pub name: Arc<str>,
    pub kind: SourceKind,
    /// Older databases do not have it; it then reads as null.
    pub optional: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    Text,
    Int,
    Float,
    Bool,
    Timestamp,
    Json,
    TextArray,
    /// That of the column itself, whichever it is.
    Own(Arc<OwnType>),
}

/// A type that one column has, and what becomes of its values.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnType {
    pub oid: Oid,
    /// As SQL spells it.
    pub sql: Arc<str>,
    pub how: How,
}

impl Source {
    /// The columns that identify a row, by name.
    pub fn key_names(&self) -> Vec<&str> {
        self.key.iter().map(|&place| &*self.columns[place].name).collect()
    }

    /// All columns of the target's sorting key.
    pub fn placed(&self) -> impl Iterator<Item = usize> + '_ {
        self.key.iter().chain(&self.sorting).copied()
    }

    /// For each column of the sorting key of the first target: the place that it is from.
    pub fn places_of(&self, target: &Target) -> Vec<usize> {
        let mut sorting = self.sorting.iter().copied();
        let place = |at: &usize| match target.id.iter().position(|column| column == at) {
            Some(of_key) => self.key.get(of_key).copied(),
            None => sorting.next(),
        };
        target.order_by.iter().map_while(place).collect()
    }
}

impl SourceColumn {
    pub fn new(name: &str, kind: SourceKind) -> SourceColumn {
        SourceColumn { name: name.into(), kind, optional: false }
    }

    pub fn optional(name: &str, kind: SourceKind) -> SourceColumn {
        SourceColumn { name: name.into(), kind, optional: true }
    }
}

impl SourceColumn {
    /// A value as Postgres prints it; empty for NULL. Of types that a key may have.
    pub fn text<'a>(&self, datum: Datum<'a>) -> Cow<'a, [u8]> {
        let number = |number: Result<Option<i64>, DecodeError>| match number {
            Ok(Some(number)) => Cow::Owned(number.to_string().into_bytes()),
            Ok(None) | Err(_) => Cow::Borrowed(&b""[..]),
        };
        match (&self.kind, datum) {
            (_, Datum::Null | Datum::Unchanged) => Cow::Borrowed(b""),
            (SourceKind::Int, Datum::Binary(_)) => number(value::int(datum)),
            (SourceKind::Timestamp, Datum::Binary(bytes)) => {
                let mut text = Vec::new();
                temporal::print_timestamp(bytes, false, &mut text).ok();
                Cow::Owned(text)
            }
            (SourceKind::Own(own), Datum::Binary(_)) => values::text(&own.how, datum),
            (_, Datum::Text(text) | Datum::Binary(text)) => Cow::Borrowed(text),
        }
    }
}

impl SourceColumn {
    /// The same bytes for values of a key that are one in ClickHouse, such as 1.0 and 1.00.
    pub fn canonical<'a>(&self, datum: Datum<'a>) -> Cow<'a, [u8]> {
        match &self.kind {
            SourceKind::Own(own) => values::canonical_key(&own.how, datum),
            _ => Cow::Borrowed(value::text(datum).unwrap_or_default()),
        }
    }

    /// The inverse of [`SourceColumn::text_of_stored`]; `None` of what is no such value.
    pub fn stored_of_text(&self, scalar: Scalar, text: &[u8]) -> Option<Vec<u8>> {
        match (&self.kind, scalar) {
            (SourceKind::Own(own), _) => values::stored(&own.how, Datum::Text(text)),
            (_, Scalar::DateTime64 { precision: 3, .. }) => match Timestamp::from_text(text)? {
                Timestamp::At(at) => Some(at.unix_millis().to_le_bytes().to_vec()),
                Timestamp::Infinity | Timestamp::NegativeInfinity => None,
            },
            _ => scalar.parse_text(text),
        }
    }

    /// A value that ClickHouse has, by its bytes in a Native block, as Postgres would read it.
    pub fn text_of_stored(&self, scalar: Scalar, value: &[u8]) -> Vec<u8> {
        if let SourceKind::Own(own) = &self.kind {
            return values::postgres_literal(&own.how, value);
        }
        match (scalar, value.try_into()) {
            (Scalar::DateTime64 { precision: 3, .. }, Ok(millis)) => {
                let (micros, mut text) = (i64::from_le_bytes(millis).saturating_mul(1_000), vec![]);
                temporal::put_moment(micros, false, &mut text);
                text
            }
            _ => {
                let mut text = Vec::new();
                scalar.write_text(value, &mut text);
                text
            }
        }
    }
}

impl SourceKind {
    /// A type of Postgres that is accepted.
    pub fn sql(&self) -> &str {
        match self {
            SourceKind::Text => "text",
            SourceKind::Int => "integer",
            SourceKind::Float => "double precision",
            SourceKind::Bool => "boolean",
            SourceKind::Timestamp => "timestamp(3)",
            SourceKind::Json => "jsonb",
            SourceKind::TextArray => "text[]",
            SourceKind::Own(own) => &own.sql,
        }
    }

    /// For a type that reads as this built-in one, see [`Types`](super::plan::Types).
    pub fn accepts(&self, declared: Oid, reads_as: Option<Oid>) -> bool {
        let is = |oids: &[Oid]| reads_as.is_some_and(|reads_as| oids.contains(&reads_as));
        match self {
            SourceKind::Text => is(&[oid::TEXT, oid::VARCHAR, oid::BPCHAR]),
            SourceKind::Int => is(&[oid::INT2, oid::INT4, oid::INT8]),
            SourceKind::Float => is(&[oid::FLOAT4, oid::FLOAT8]),
            SourceKind::Bool => is(&[oid::BOOL]),
            SourceKind::Timestamp => is(&[oid::TIMESTAMP, oid::TIMESTAMPTZ]),
            SourceKind::Json => is(&[oid::JSON, oid::JSONB]),
            SourceKind::TextArray => is(&[oid::TEXT_ARRAY, oid::VARCHAR_ARRAY]),
            SourceKind::Own(own) => own.oid == declared,
        }
    }
}

#[cfg(test)]
impl SourceKind {
    /// One of the types that are accepted.
    pub fn a_type(&self) -> Oid {
        match self {
            SourceKind::Text => oid::TEXT,
            SourceKind::Int => oid::INT4,
            SourceKind::Float => oid::FLOAT8,
            SourceKind::Bool => oid::BOOL,
            SourceKind::Timestamp => oid::TIMESTAMP,
            SourceKind::Json => oid::JSONB,
            SourceKind::TextArray => oid::TEXT_ARRAY,
            SourceKind::Own(own) => own.oid,
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SourceKind::Text => "text or an enum",
            SourceKind::Int => "integer",
            SourceKind::Float => "double precision",
            SourceKind::Bool => "boolean",
            SourceKind::Timestamp => "timestamp",
            SourceKind::Json => "jsonb",
            SourceKind::TextArray => "text[]",
            SourceKind::Own(own) => &own.sql,
        })
    }
}

/// Names the columns of a source and their places, in one list.
macro_rules! source_columns {
    ($columns:ident, $($make:ident $place:ident $name:literal $kind:ident,)*) => {
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "names of places")]
        enum Place { $($place,)* }
        mod place {
            $(pub(super) const $place: usize = super::Place::$place as usize;)*
        }
        fn $columns() -> Vec<$crate::services::source::SourceColumn> {
            vec![$($crate::services::source::SourceColumn::$make(
                $name,
                $crate::services::source::SourceKind::$kind,
            ),)*]
        }
    };
}
pub(super) use source_columns;
