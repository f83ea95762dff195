//! A table of ClickHouse that is written.

use super::column::ColumnKind;

/// A column of a target table, as the mapping writes it.
#[derive(Debug, Clone, Copy)]
pub struct ColumnSpec {
    pub name: &'static str,
    pub kind: ColumnKind,
}

impl ColumnSpec {
    pub const fn new(name: &'static str, kind: ColumnKind) -> ColumnSpec {
        ColumnSpec { name, kind }
    }
}

/// A table of ClickHouse that a service writes.
#[derive(Debug)]
pub struct Target {
    pub table: &'static str,
    pub columns: &'static [ColumnSpec],
    /// The sorting key, as indexes into `columns`.
    pub order_by: &'static [usize],
    /// What the partition is computed from, likewise.
    pub partition_by: &'static [usize],
    /// JSON columns, in the order in which a refused row is tried with one of them blanked.
    pub documents: &'static [usize],
    /// Columns that older tables do not have.
    pub optional: &'static [usize],
    pub id: usize,
    pub version: usize,
    pub is_deleted: usize,
}

impl Target {
    pub fn id_name(&self) -> &'static str {
        self.columns[self.id].name
    }
}
