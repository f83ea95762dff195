//! The rows on their way to one target table.

use std::cmp::Ordering;
use std::sync::Arc;

use super::column::{ColumnKind, Strings, Values};
use super::shape::Shape;
use super::target::ColumnSpec;

/// Rows in columns. A mapping fills one column after the other and closes each row with
/// [`Block::end_row`].
#[derive(Debug)]
pub struct Block {
    specs: Arc<[ColumnSpec]>,
    shape: Shape,
    values: Vec<Values>,
    rows: usize,
    /// The column that the next `put_*` fills.
    next: usize,
}

impl Block {
    pub fn new(specs: &Arc<[ColumnSpec]>, shape: &Shape) -> Block {
        assert_eq!(specs.len(), shape.present.len());
        let values = specs.iter().map(|spec| Values::new(spec.kind)).collect();
        Block { specs: Arc::clone(specs), shape: shape.clone(), values, rows: 0, next: 0 }
    }

    /// Forgets the rows, and keeps the memory for as many others.
    pub fn clear(&mut self) {
        self.values.iter_mut().for_each(Values::clear);
        (self.rows, self.next) = (0, 0);
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn columns(&self) -> usize {
        self.specs.len()
    }

    /// The columns that are sent, by index.
    pub fn sent(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.specs.len()).filter(|&i| self.shape.present[i])
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub fn is_present(&self, column: usize) -> bool {
        self.shape.present[column]
    }

    /// A column for which the row has a NULL, and the table has none.
    pub fn null_without_place(&self, row: usize) -> Option<usize> {
        let is_null = |column: &usize| match &self.values[*column] {
            Values::NullableU8 { nulls, .. }
            | Values::NullableU32 { nulls, .. }
            | Values::NullableI64 { nulls, .. } => nulls[row] == 1,
            _ => false,
        };
        self.shape.without_null.iter().copied().find(is_null)
    }

    /// The type by which a column is sent.
    pub fn sent_as(&self, column: usize) -> &str {
        match (self.specs[column].kind, self.shape.documents.get(&column)) {
            (ColumnKind::Json, Some(own)) => own,
            (kind, _) => kind.native_type(),
        }
    }

    /// A value of a text or JSON column.
    pub fn text(&self, column: usize, row: usize) -> &[u8] {
        match &self.values[column] {
            Values::Strings(strings) => strings.at(row),
            other => unreachable!("{other:?} holds no text"),
        }
    }

    pub fn spec(&self, column: usize) -> &ColumnSpec {
        &self.specs[column]
    }

    pub fn values(&self, column: usize) -> &Values {
        &self.values[column]
    }

    /// Another value for a row that is there.
    pub fn set_u64(&mut self, column: usize, row: usize, value: u64) {
        match &mut self.values[column] {
            Values::U64(values) => values[row] = value,
            other => unreachable!("{other:?} holds no such number"),
        }
    }

    fn take_next(&mut self, kind: ColumnKind) -> &mut Values {
        let spec = &self.specs[self.next];
        assert_eq!(spec.kind, kind, "column `{}` is filled with its own kind", spec.name);
        self.next += 1;
        &mut self.values[self.next - 1]
    }

    pub fn put_str(&mut self, value: &[u8]) {
        match self.take_next(ColumnKind::String) {
            Values::Strings(strings) => strings.push(value),
            other => unreachable!("{other:?}"),
        }
    }

    /// What `fill` appends is the document.
    pub fn put_json<T>(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        match self.take_next(ColumnKind::Json) {
            Values::Strings(strings) => strings.push_with(fill),
            other => unreachable!("{other:?}"),
        }
    }

    /// What `fill` pushes are the elements of this row's array.
    pub fn put_str_array<T>(&mut self, fill: impl FnOnce(&mut Strings) -> T) -> T {
        match self.take_next(ColumnKind::StringArray) {
            Values::StringArrays { items, ends } => {
                let result = fill(items);
                ends.push(items.len());
                result
            }
            other => unreachable!("{other:?}"),
        }
    }

    pub fn put_u8(&mut self, value: u8) {
        match self.take_next(ColumnKind::UInt8) {
            Values::U8(values) => values.push(value),
            other => unreachable!("{other:?}"),
        }
    }

    pub fn put_u32(&mut self, value: u32) {
        match self.take_next(ColumnKind::UInt32) {
            Values::U32(values) => values.push(value),
            other => unreachable!("{other:?}"),
        }
    }

    pub fn put_u64(&mut self, value: u64) {
        match self.take_next(ColumnKind::UInt64) {
            Values::U64(values) => values.push(value),
            other => unreachable!("{other:?}"),
        }
    }

    pub fn put_f64(&mut self, value: f64) {
        match self.take_next(ColumnKind::Float64) {
            Values::F64(values) => values.push(value),
            other => unreachable!("{other:?}"),
        }
    }

    pub fn put_millis(&mut self, value: i64) {
        match self.take_next(ColumnKind::Millis) {
            Values::I64(values) => values.push(value),
            other => unreachable!("{other:?}"),
        }
    }

    pub fn put_nullable_u8(&mut self, value: Option<u8>) {
        match self.take_next(ColumnKind::NullableUInt8) {
            Values::NullableU8 { nulls, values } => put_nullable(nulls, values, value),
            other => unreachable!("{other:?}"),
        }
    }

    pub fn put_nullable_u32(&mut self, value: Option<u32>) {
        match self.take_next(ColumnKind::NullableUInt32) {
            Values::NullableU32 { nulls, values } => put_nullable(nulls, values, value),
            other => unreachable!("{other:?}"),
        }
    }

    pub fn put_nullable_millis(&mut self, value: Option<i64>) {
        match self.take_next(ColumnKind::NullableMillis) {
            Values::NullableI64 { nulls, values } => put_nullable(nulls, values, value),
            other => unreachable!("{other:?}"),
        }
    }

    pub fn end_row(&mut self) {
        assert_eq!(self.next, self.specs.len(), "every column of the row is filled");
        self.next = 0;
        self.rows += 1;
    }

    pub(super) fn compare(&self, column: usize, a: usize, b: usize) -> Ordering {
        match &self.values[column] {
            Values::Strings(strings) => strings.at(a).cmp(strings.at(b)),
            Values::I64(values) => values[a].cmp(&values[b]),
            Values::U64(values) => values[a].cmp(&values[b]),
            other => unreachable!("no table is ordered by {other:?}"),
        }
    }
}

fn put_nullable<T: Default>(nulls: &mut Vec<u8>, values: &mut Vec<T>, value: Option<T>) {
    nulls.push(u8::from(value.is_none()));
    values.push(value.unwrap_or_default());
}
