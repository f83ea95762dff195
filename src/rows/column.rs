//! Column buffers: the values of one target column, row after row, without an object per value.
//!
//! A column is the lists that ClickHouse's Native format has for it, one after the other: for
//! `Nullable(T)` the NULLs and the values, for an array the ends of the rows and then the lists of
//! its elements, for a tuple those of each element.

use std::ops::Range;

use super::column_type::ColumnType;
use super::scalar::Scalar;

/// Strings laid end to end.
#[derive(Debug, Clone, Default)]
pub struct Strings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// More than a list of a usual batch needs, less than a few huge values.
const KEPT_BYTES_MAX: usize = 16 << 20;

fn empty<T>(list: &mut Vec<T>) {
    list.clear();
    list.shrink_to(KEPT_BYTES_MAX / size_of::<T>());
}

impl Strings {
    pub fn clear(&mut self) {
        empty(&mut self.bytes);
        empty(&mut self.ends);
    }

    pub fn push(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.ends.push(self.bytes.len());
    }

    /// Builds the next string in place: what `fill` appends is the value.
    pub fn push_with<T>(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let start = self.bytes.len();
        let result = fill(&mut self.bytes);
        assert!(start <= self.bytes.len(), "a value only appends");
        self.ends.push(self.bytes.len());
        result
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn truncate(&mut self, len: usize) {
        self.ends.truncate(len);
        self.bytes.truncate(self.ends.last().copied().unwrap_or_default());
    }

    #[inline]
    pub fn at(&self, row: usize) -> &[u8] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.bytes[start..self.ends[row]]
    }
}

/// One list of a column.
#[derive(Debug, Clone)]
pub struct List {
    /// The list of array ends, within the column, that says which of its entries are of a row.
    /// `None`: one for each row.
    pub(super) parent: Option<usize>,
    pub(super) data: Data,
}

#[derive(Debug, Clone)]
pub(super) enum Data {
    /// Values of so many bytes each. The NULLs of a column are such: 1 is NULL.
    Fixed {
        width: usize,
        bytes: Vec<u8>,
    },
    Strings(Strings),
    /// Of each array the end of its elements in the lists that follow.
    Ends(Vec<usize>),
}

use Data::{Ends, Fixed};

impl List {
    fn of(scalar: Scalar, parent: Option<usize>) -> List {
        let data = match scalar.width() {
            Some(width) => Fixed { width, bytes: Vec::new() },
            None => Data::Strings(Strings::default()),
        };
        List { parent, data }
    }

    /// Forgets the values, and keeps the memory for as many others unless that is a lot.
    pub fn clear(&mut self) {
        match &mut self.data {
            Fixed { bytes, .. } => empty(bytes),
            Data::Strings(strings) => strings.clear(),
            Ends(ends) => empty(ends),
        }
    }

    pub fn len(&self) -> usize {
        match &self.data {
            Fixed { width, bytes } => bytes.len() / width,
            Data::Strings(strings) => strings.len(),
            Ends(ends) => ends.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes back what was put since the list had this length.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.data {
            Fixed { width, bytes } => bytes.truncate(len * *width),
            Data::Strings(strings) => strings.truncate(len),
            Ends(ends) => ends.truncate(len),
        }
    }

    /// The bytes of a value.
    #[inline]
    pub fn at(&self, entry: usize) -> &[u8] {
        match &self.data {
            Fixed { width, bytes } => &bytes[entry * width..(entry + 1) * width],
            Data::Strings(strings) => strings.at(entry),
            Ends(_) => &[],
        }
    }

    /// Appends a value of the list's width.
    #[inline]
    pub fn put<const N: usize>(&mut self, value: [u8; N]) {
        match &mut self.data {
            Fixed { width, bytes } if *width == N => bytes.extend_from_slice(&value),
            other => unreachable!("{N} bytes for {other:?}"),
        }
    }

    pub(super) fn set(&mut self, entry: usize, value: &[u8]) {
        match &mut self.data {
            Fixed { width, bytes } => {
                bytes[entry * *width..(entry + 1) * *width].copy_from_slice(value);
            }
            other => unreachable!("{other:?} holds no numbers"),
        }
    }

    /// Appends a text, or a value of the list's width.
    #[inline]
    pub fn put_bytes(&mut self, value: &[u8]) {
        match &mut self.data {
            Data::Strings(strings) => strings.push(value),
            Fixed { width, bytes } if *width == value.len() => bytes.extend_from_slice(value),
            other => unreachable!("{} bytes for {other:?}", value.len()),
        }
    }

    /// The texts to append to.
    pub fn strings(&mut self) -> &mut Strings {
        match &mut self.data {
            Data::Strings(strings) => strings,
            other => unreachable!("{other:?} holds no text"),
        }
    }

    /// Closes an array: its elements end where the list behind this one has its end now.
    pub fn put_end(&mut self, end: usize) {
        match &mut self.data {
            Ends(ends) => ends.push(end),
            other => unreachable!("{other:?} holds no arrays"),
        }
    }

    /// Appends what stands where there is no value: zero, an empty text, an empty array.
    pub fn put_default(&mut self) {
        match &mut self.data {
            Fixed { width, bytes } => bytes.resize(bytes.len() + *width, 0),
            Data::Strings(strings) => strings.push(b""),
            Ends(ends) => ends.push(ends.last().copied().unwrap_or_default()),
        }
    }

    pub(super) fn elements(&self, row: usize) -> Range<usize> {
        match &self.data {
            Ends(ends) => (if row == 0 { 0 } else { ends[row - 1] })..ends[row],
            _ => 0..0,
        }
    }
}

/// The lists of a column of this type, empty.
pub fn lists_of(of: &ColumnType) -> Vec<List> {
    let mut lists = Vec::with_capacity(of.lists());
    add_lists(of, None, &mut lists);
    lists
}

fn add_lists(of: &ColumnType, parent: Option<usize>, lists: &mut Vec<List>) {
    let ends = |lists: &mut Vec<List>| {
        lists.push(List { parent, data: Ends(Vec::new()) });
        Some(lists.len() - 1)
    };
    match of {
        ColumnType::Of(scalar) => lists.push(List::of(*scalar, parent)),
        ColumnType::Nullable(scalar) => {
            lists.push(List { parent, data: Fixed { width: 1, bytes: Vec::new() } });
            lists.push(List::of(*scalar, parent));
        }
        ColumnType::Array(of) => {
            let parent = ends(lists);
            add_lists(of, parent, lists);
        }
        ColumnType::Map(of) => {
            let parent = ends(lists);
            add_lists(&of.0, parent, lists);
            add_lists(&of.1, parent, lists);
        }
        ColumnType::Tuple(elements) => {
            elements.iter().for_each(|(_, of)| add_lists(of, parent, lists));
        }
    }
}

/// Appends to a column of type `of` what stands where there is no value: NULL if it takes one.
pub fn put_nothing(of: &ColumnType, lists: &mut [List]) {
    match of {
        ColumnType::Of(Scalar::Json) => lists[0].put_bytes(b"{}"),
        ColumnType::Of(_) | ColumnType::Array(_) | ColumnType::Map(_) => lists[0].put_default(),
        ColumnType::Nullable(_) => {
            lists[0].put([1]);
            lists[1].put_default();
        }
        ColumnType::Tuple(elements) => {
            let mut rest = lists;
            for (_, of) in elements.iter() {
                let (own, others) = rest.split_at_mut(of.lists());
                put_nothing(of, own);
                rest = others;
            }
        }
    }
}

/// The entries of a list that are of this row.
pub fn entries(lists: &[List], list: usize, row: usize) -> Range<usize> {
    match lists[list].parent {
        None => row..row + 1,
        Some(parent) => {
            let (arrays, ends) = (entries(lists, parent, row), &lists[parent]);
            let end_of = |array: usize| ends.elements(array).end;
            let start = arrays.start.checked_sub(1).map_or(0, end_of);
            // Of no arrays: where the elements of the next one begin.
            let end = arrays.last().map_or(start, end_of);
            start..end
        }
    }
}
