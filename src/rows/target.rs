//! A table of ClickHouse that is written.

use std::sync::Arc;

use super::column_type::ColumnType;
use super::scalar::Scalar;
use super::ttl::Ttl;

/// A column of a target table, as the mapping writes it.
#[derive(Debug, Clone)]
pub struct ColumnSpec {
    pub name: Arc<str>,
    pub kind: ColumnType,
    /// Its type in a table that we make, with what follows that.
    pub ddl: Arc<str>,
}

impl ColumnSpec {
    pub fn new(name: &str, kind: ColumnType) -> ColumnSpec {
        ColumnSpec { name: name.into(), ddl: kind.to_string().into(), kind }
    }
}

/// Columns of a target: name, type, and the text after the name in the DDL where that is not the
/// type alone.
macro_rules! columns {
    ($($name:literal $kind:ident $($ddl:literal)?,)*) => {
        ::std::sync::Arc::from([$({
            let column = $crate::rows::ColumnSpec::new($name, $crate::rows::target::kind!($kind));
            $(let column = $crate::rows::ColumnSpec { ddl: $ddl.into(), ..column };)?
            column
        },)*])
    };
}
pub(crate) use columns;

macro_rules! kind {
    (Millis) => {
        $crate::rows::ColumnType::Of($crate::rows::Scalar::MILLIS)
    };
    (NullableMillis) => {
        $crate::rows::ColumnType::Nullable($crate::rows::Scalar::MILLIS)
    };
    (NullableUInt8) => {
        $crate::rows::ColumnType::Nullable($crate::rows::Scalar::UInt8)
    };
    (NullableUInt32) => {
        $crate::rows::ColumnType::Nullable($crate::rows::Scalar::UInt32)
    };
    (StringArray) => {
        $crate::rows::ColumnType::array($crate::rows::target::kind!(String))
    };
    ($scalar:ident) => {
        $crate::rows::ColumnType::Of($crate::rows::Scalar::$scalar)
    };
}
pub(crate) use kind;

/// A table of ClickHouse that a service writes.
#[derive(Debug)]
pub struct Target {
    pub table: Arc<str>,
    /// In the order of the table that we make.
    pub columns: Arc<[ColumnSpec]>,
    /// Columns that ClickHouse fills by itself, as in the DDL.
    pub computed: Vec<String>,
    /// Likewise, without the word INDEX.
    pub indexes: Vec<String>,
    /// The sorting key, as indexes into `columns`.
    pub order_by: Vec<usize>,
    /// What the partition is computed from, likewise.
    pub partition_by: Vec<usize>,
    /// When ClickHouse drops rows of a table that we make.
    pub ttl: Option<Ttl>,
    /// JSON columns, in the order in which a refused row is tried with one of them blanked.
    pub documents: Vec<usize>,
    /// Columns that older tables do not have.
    pub optional: Vec<usize>,
    /// The columns that identify the row in Postgres, in the order of [its key]; all are part of
    /// the sorting key.
    ///
    /// [its key]: crate::services::source::Source::key
    pub id: Vec<usize>,
    pub version: usize,
    pub is_deleted: usize,
}

impl Target {
    pub fn id_names(&self) -> Vec<&str> {
        self.names(&self.id)
    }

    /// The type of a column of the sorting key, or of what the partition is computed from.
    pub fn scalar(&self, column: usize) -> Scalar {
        self.columns[column].kind.scalar().unwrap_or(Scalar::String)
    }

    /// A value for such a column where none is known.
    pub fn nothing(&self, column: usize) -> Vec<u8> {
        vec![0; self.scalar(column).width().unwrap_or(0)]
    }

    pub fn names(&self, places: &[usize]) -> Vec<&str> {
        places.iter().map(|&at| &*self.columns[at].name).collect()
    }
}
