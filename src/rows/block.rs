//! The rows on their way to one target table.

use std::sync::Arc;

use super::column::{List, Strings, entries, lists_of};
use super::column_type::ColumnType;
use super::scalar::Scalar;
use super::shape::Shape;
use super::target::ColumnSpec;

/// Rows in columns. A mapping fills one column after the other and closes each row with
/// [`Block::end_row`].
#[derive(Debug)]
pub struct Block {
    specs: Arc<[ColumnSpec]>,
    shape: Shape,
    /// Those of all columns, one column after the other.
    lists: Vec<List>,
    /// Where the lists of each column begin, and after them the end.
    starts: Vec<usize>,
    rows: usize,
    /// The column that the next `put_*` fills.
    next: usize,
}

impl Block {
    pub fn new(specs: &Arc<[ColumnSpec]>, shape: &Shape) -> Block {
        assert_eq!(specs.len(), shape.present.len());
        let (mut lists, mut starts) = (Vec::new(), vec![0]);
        for spec in specs.iter() {
            lists.extend(lists_of(&spec.kind));
            starts.push(lists.len());
        }
        let (specs, shape) = (Arc::clone(specs), shape.clone());
        Block { specs, shape, lists, starts, rows: 0, next: 0 }
    }

    /// Forgets the rows, and keeps the memory for as many others.
    pub fn clear(&mut self) {
        self.lists.iter_mut().for_each(List::clear);
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

    pub fn spec(&self, column: usize) -> &ColumnSpec {
        &self.specs[column]
    }

    /// The lists of a column.
    #[inline]
    pub fn lists(&self, column: usize) -> &[List] {
        &self.lists[self.starts[column]..self.starts[column + 1]]
    }

    /// The bytes of a single value, or `None` for NULL.
    pub fn value(&self, column: usize, row: usize) -> Option<&[u8]> {
        match (&self.specs[column].kind, self.lists(column)) {
            (ColumnType::Of(_), [values]) => Some(values.at(row)),
            (ColumnType::Nullable(_), [nulls, values]) => {
                (nulls.at(row) == [0]).then(|| values.at(row))
            }
            (kind, _) => unreachable!("{kind} holds no single values"),
        }
    }

    /// A value of a text or JSON column.
    pub fn text(&self, column: usize, row: usize) -> &[u8] {
        self.value(column, row).unwrap_or_default()
    }

    /// A value of a `UInt64` column.
    pub fn u64(&self, column: usize, row: usize) -> u64 {
        let value = self.value(column, row).and_then(|value| value.try_into().ok());
        value.map_or(0, u64::from_le_bytes)
    }

    /// Another value for a row that is there.
    pub fn set_u64(&mut self, column: usize, row: usize, value: u64) {
        self.lists[self.starts[column]].set(row, &value.to_le_bytes());
    }

    /// A column for which the row has a NULL, and the table has none.
    pub fn null_without_place(&self, row: usize) -> Option<usize> {
        let is_null = |column: &usize| self.value(*column, row).is_none();
        self.shape.without_null.iter().copied().find(is_null)
    }

    /// The type by which a column is sent.
    pub fn sent_as(&self, column: usize) -> String {
        match (&self.specs[column].kind, self.shape.documents.get(&column)) {
            (ColumnType::Of(Scalar::Json), Some(own)) => own.clone(),
            (kind, _) => kind.to_string(),
        }
    }

    /// The type of the next column and its lists, to be filled for one row.
    #[inline]
    pub fn next_column(&mut self) -> (&ColumnType, &mut [List]) {
        let column = self.next;
        self.next += 1;
        let lists = &mut self.lists[self.starts[column]..self.starts[column + 1]];
        (&self.specs[column].kind, lists)
    }

    /// The list of the next column, which has single values of this type.
    #[inline]
    fn next_of(&mut self, scalar: Scalar) -> &mut List {
        let column = self.next;
        let spec = &self.specs[column];
        assert!(
            matches!(spec.kind, ColumnType::Of(own) if own == scalar),
            "column `{}` is filled with its own type",
            spec.name
        );
        self.next += 1;
        &mut self.lists[self.starts[column]]
    }

    pub fn put_str(&mut self, value: &[u8]) {
        self.next_of(Scalar::String).strings().push(value);
    }

    /// What `fill` appends is the document.
    pub fn put_json<T>(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        self.next_of(Scalar::Json).strings().push_with(fill)
    }

    /// What `fill` pushes are the elements of this row's array.
    pub fn put_str_array<T>(&mut self, fill: impl FnOnce(&mut Strings) -> T) -> T {
        match self.next_column() {
            (ColumnType::Array(_), [ends, items]) => {
                let result = fill(items.strings());
                ends.put_end(items.len());
                result
            }
            (kind, _) => unreachable!("{kind} is no array of texts"),
        }
    }

    pub fn put_u8(&mut self, value: u8) {
        self.next_of(Scalar::UInt8).put([value]);
    }

    pub fn put_u32(&mut self, value: u32) {
        self.next_of(Scalar::UInt32).put(value.to_le_bytes());
    }

    pub fn put_u64(&mut self, value: u64) {
        self.next_of(Scalar::UInt64).put(value.to_le_bytes());
    }

    pub fn put_f64(&mut self, value: f64) {
        self.next_of(Scalar::Float64).put(value.to_le_bytes());
    }

    pub fn put_millis(&mut self, value: i64) {
        self.next_of(Scalar::MILLIS).put(value.to_le_bytes());
    }

    pub fn put_nullable_u8(&mut self, value: Option<u8>) {
        self.put_nullable(Scalar::UInt8, value.map(u8::to_le_bytes));
    }

    pub fn put_nullable_u32(&mut self, value: Option<u32>) {
        self.put_nullable(Scalar::UInt32, value.map(u32::to_le_bytes));
    }

    pub fn put_nullable_millis(&mut self, value: Option<i64>) {
        self.put_nullable(Scalar::MILLIS, value.map(i64::to_le_bytes));
    }

    fn put_nullable<const N: usize>(&mut self, scalar: Scalar, value: Option<[u8; N]>) {
        match self.next_column() {
            (ColumnType::Nullable(own), [nulls, values]) if *own == scalar => {
                nulls.put([u8::from(value.is_none())]);
                values.put(value.unwrap_or([0; N]));
            }
            (kind, _) => unreachable!("{kind} is filled with its own type"),
        }
    }

    /// Takes back the row that was closed last.
    pub fn take_back(&mut self) {
        let row = self.rows.saturating_sub(1);
        for column in 0..self.specs.len() {
            let lists = &mut self.lists[self.starts[column]..self.starts[column + 1]];
            let begins: Vec<usize> =
                (0..lists.len()).map(|list| entries(lists, list, row).start).collect();
            lists.iter_mut().zip(begins).for_each(|(list, begin)| list.truncate(begin));
        }
        self.rows = row;
    }

    pub fn end_row(&mut self) {
        assert_eq!(self.next, self.specs.len(), "every column of the row is filled");
        self.next = 0;
        self.rows += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the rows before stay as they are, however empty the one taken back is.
    #[test]
    fn a_row_is_taken_back_from_every_list() {
        let nested = ColumnType::array(ColumnType::array(ColumnType::Nullable(Scalar::UInt8)));
        let specs: Arc<[ColumnSpec]> = Arc::from([ColumnSpec::new("nested", nested)]);
        let put = |block: &mut Block, arrays: &[&[u8]]| {
            let (_, lists) = block.next_column();
            for array in arrays {
                for item in *array {
                    lists[2].put([0]);
                    lists[3].put([*item]);
                }
                let end = lists[3].len();
                lists[1].put_end(end);
            }
            let end = lists[1].len();
            lists[0].put_end(end);
            block.end_row();
        };
        let rows: [&[&[u8]]; 3] = [&[], &[&[]], &[&[7], &[8, 9]]];
        for last in rows {
            let mut block = Block::new(&specs, &Shape::of(vec![true]));
            put(&mut block, &[&[1], &[], &[2, 3]]);
            put(&mut block, &[]);
            let before = format!("{:?}", block.lists(0));
            put(&mut block, last);
            block.take_back();
            assert_eq!((block.rows(), format!("{:?}", block.lists(0))), (2, before));
        }
    }
}
