//! A table of ClickHouse that is written.

use std::sync::Arc;

use super::column::ColumnKind;

/// A column of a target table, as the mapping writes it.
#[derive(Debug, Clone)]
pub struct ColumnSpec {
    pub name: Arc<str>,
    pub kind: ColumnKind,
    /// Its type in a table that we make, with what follows that.
    pub ddl: Arc<str>,
}

impl ColumnSpec {
    pub fn new(name: &str, kind: ColumnKind) -> ColumnSpec {
        ColumnSpec { name: name.into(), kind, ddl: kind.native_type().into() }
    }
}

/// Columns of a target: name, kind, and the text after the name in the DDL where that is not
/// the kind alone.
macro_rules! columns {
    ($($name:literal $kind:ident $($ddl:literal)?,)*) => {
        ::std::sync::Arc::from([$({
            let column = $crate::rows::ColumnSpec::new($name, $crate::rows::ColumnKind::$kind);
            $(let column = $crate::rows::ColumnSpec { ddl: $ddl.into(), ..column };)?
            column
        },)*])
    };
}
pub(crate) use columns;

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
    /// JSON columns, in the order in which a refused row is tried with one of them blanked.
    pub documents: Vec<usize>,
    /// Columns that older tables do not have.
    pub optional: Vec<usize>,
    pub id: usize,
    pub version: usize,
    pub is_deleted: usize,
}

impl Target {
    pub fn id_name(&self) -> &str {
        &self.columns[self.id].name
    }

    pub fn names(&self, places: &[usize]) -> Vec<&str> {
        places.iter().map(|&at| &*self.columns[at].name).collect()
    }

    /// The columns of a table that we make, each as in the DDL.
    pub fn columns_ddl(&self) -> Vec<String> {
        let written = self.columns.iter().map(|column| format!("{} {}", column.name, column.ddl));
        written.chain(self.computed.iter().cloned()).collect()
    }
}
