//! The source table of a service, and the columns of it that a mapping reads.

use std::fmt;
use std::sync::Arc;

use crate::wal::Oid;
use crate::wal::value::oid;

/// A table of Postgres and the columns of it that a mapping reads.
#[derive(Debug)]
pub struct Source {
    pub schema: Arc<str>,
    pub table: Arc<str>,
    pub columns: Vec<SourceColumn>,
    /// Columns that trigger.dev has and no target table uses.
    pub unread: Vec<Arc<str>>,
    pub key: KeyColumns,
}

#[derive(Debug)]
pub struct SourceColumn {
    pub name: Arc<str>,
    pub kind: SourceKind,
    /// Older databases do not have it; it then reads as null.
    pub optional: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    Text,
    Int,
    Float,
    Bool,
    Timestamp,
    Json,
    TextArray,
}

/// Where the columns stand that identify a row, as indexes into [`Source::columns`].
#[derive(Debug, Clone, Copy)]
pub struct KeyColumns {
    pub id: usize,
    pub organization: usize,
    pub project: usize,
    pub environment: usize,
    pub created_at: usize,
}

impl KeyColumns {
    /// The columns that, together with the id, form the sorting key of the target table.
    pub fn sorting(&self) -> [usize; 4] {
        [self.organization, self.project, self.environment, self.created_at]
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

impl SourceKind {
    /// A type of Postgres that is accepted.
    pub fn sql(self) -> &'static str {
        match self {
            SourceKind::Text => "text",
            SourceKind::Int => "integer",
            SourceKind::Float => "double precision",
            SourceKind::Bool => "boolean",
            SourceKind::Timestamp => "timestamp(3)",
            SourceKind::Json => "jsonb",
            SourceKind::TextArray => "text[]",
        }
    }

    /// For a type that reads as this built-in one, see [`Types`](super::plan::Types).
    pub fn accepts(self, reads_as: Oid) -> bool {
        let is = |oids: &[Oid]| oids.contains(&reads_as);
        match self {
            SourceKind::Text => is(&[oid::TEXT, oid::VARCHAR, oid::BPCHAR]),
            SourceKind::Int => is(&[oid::INT2, oid::INT4, oid::INT8]),
            SourceKind::Float => is(&[oid::FLOAT4, oid::FLOAT8]),
            SourceKind::Bool => is(&[oid::BOOL]),
            SourceKind::Timestamp => is(&[oid::TIMESTAMP, oid::TIMESTAMPTZ]),
            SourceKind::Json => is(&[oid::JSON, oid::JSONB]),
            SourceKind::TextArray => is(&[oid::TEXT_ARRAY, oid::VARCHAR_ARRAY]),
        }
    }
}

#[cfg(test)]
impl SourceKind {
    /// One of the types that are accepted.
    pub fn a_type(self) -> Oid {
        match self {
            SourceKind::Text => oid::TEXT,
            SourceKind::Int => oid::INT4,
            SourceKind::Float => oid::FLOAT8,
            SourceKind::Bool => oid::BOOL,
            SourceKind::Timestamp => oid::TIMESTAMP,
            SourceKind::Json => oid::JSONB,
            SourceKind::TextArray => oid::TEXT_ARRAY,
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
