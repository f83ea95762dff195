//! ClickHouse's Native format: a block of rows, column by column.
//!
//! Strings also serve for `LowCardinality(String)` columns; the server casts them. Documents go as
//! text of the table's own type `JSON(...)`, which is parsed under the INSERT's settings; cast from
//! another type those would be ignored: from `String` a document with a key twice is refused, and
//! from another `JSON` ClickHouse 25.5 makes strings of all values of `[1, "a"]`. Numbers are
//! always sent in the very type named, since the server narrows silently.

use super::block::Block;
use super::column::{Data, entries};

/// The serialization of a `JSON` column in which each value is the text of its document.
const JSON_AS_TEXT: u64 = 1;

/// Appends the rows of `block` named by `order` as one Native block. The columns in `blanked` are
/// JSON columns that are sent as `{}`.
pub fn encode(block: &Block, order: &[usize], blanked: &[usize], out: &mut Vec<u8>) {
    Encoder::new(block, order, blanked).append(usize::MAX, out);
}

/// The same, piece by piece: what was encoded can be sent while it is in the cache, and a block is
/// never held a second time.
#[derive(Clone)]
pub struct Encoder<'b> {
    block: &'b Block,
    order: &'b [usize],
    blanked: &'b [usize],
    /// The column to go on with; `None` before the head of the block.
    column: Option<usize>,
    /// The current list, and the row in it.
    list: usize,
    row: usize,
    /// For arrays: the elements of the rows so far.
    elements: u64,
}

impl<'b> Encoder<'b> {
    pub fn new(block: &'b Block, order: &'b [usize], blanked: &'b [usize]) -> Encoder<'b> {
        Encoder { block, order, blanked, column: None, list: 0, row: 0, elements: 0 }
    }

    /// Pieces of about that many bytes.
    pub fn pieces(mut self, bytes: usize) -> impl Iterator<Item = Vec<u8>> + use<'b> {
        std::iter::from_fn(move || {
            // With room for the value that makes it long enough, which is a short one mostly.
            let mut piece = Vec::with_capacity(bytes.saturating_add(bytes / 16));
            self.append(bytes, &mut piece).then_some(piece)
        })
    }

    /// Appends to `out`, which is empty, until it has that many bytes or a few more, or until the
    /// block ends. False if it had ended before.
    fn append(&mut self, bytes: usize, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let mut column = match self.column {
            Some(column) => column,
            None => {
                put_varint(out, self.block.sent().count() as u64);
                put_varint(out, self.order.len() as u64);
                self.begin_column(0, out)
            }
        };
        while column < self.block.columns() && out.len() < bytes {
            self.append_list(column, bytes, out);
            if self.row < self.order.len() {
                continue;
            }
            (self.row, self.list, self.elements) = (0, self.list + 1, 0);
            if self.list == self.block.lists(column).len() {
                column = self.begin_column(column + 1, out);
            }
        }
        self.column = Some(column);
        start < out.len()
    }

    /// Writes the head of the first column from `from` on that is sent, and returns it.
    fn begin_column(&mut self, from: usize, out: &mut Vec<u8>) -> usize {
        (self.list, self.elements) = (0, 0);
        let sent = self.block.sent().find(|column| from <= *column);
        let Some(column) = sent else { return self.block.columns() };
        let spec = self.block.spec(column);
        put_string(out, spec.name.as_bytes());
        let sent_as = self.block.sent_as(column);
        put_string(out, sent_as.as_bytes());
        if sent_as.starts_with("JSON") {
            out.extend_from_slice(&JSON_AS_TEXT.to_le_bytes());
        }
        column
    }

    /// Goes on with a list of a column, until it ends or `out` is long enough.
    fn append_list(&mut self, column: usize, bytes: usize, out: &mut Vec<u8>) {
        let rows = self.order.get(self.row..).unwrap_or_default();
        if self.blanked.contains(&column) {
            self.row += put_while(rows, bytes, out, |_, out| put_string(out, b"{}"));
            return;
        }
        let lists = self.block.lists(column);
        let list = &lists[self.list];
        let elements = &mut self.elements;
        self.row += match (&list.data, list.parent) {
            (Data::Strings(strings), None) => {
                put_while(rows, bytes, out, |row, out| put_string(out, strings.at(row)))
            }
            (Data::Fixed { width, bytes: values }, None) => match width {
                1 => put_fixed::<1>(rows, bytes, out, values),
                2 => put_fixed::<2>(rows, bytes, out, values),
                4 => put_fixed::<4>(rows, bytes, out, values),
                8 => put_fixed::<8>(rows, bytes, out, values),
                16 => put_fixed::<16>(rows, bytes, out, values),
                _ => put_fixed::<32>(rows, bytes, out, values),
            },
            (Data::Ends(_), _) => put_while(rows, bytes, out, |row, out| {
                for array in entries(lists, self.list, row) {
                    *elements += list.elements(array).len() as u64;
                    out.extend_from_slice(&elements.to_le_bytes());
                }
            }),
            (Data::Strings(strings), Some(_)) => put_while(rows, bytes, out, |row, out| {
                entries(lists, self.list, row).for_each(|item| put_string(out, strings.at(item)));
            }),
            (Data::Fixed { width, bytes: values }, Some(_)) => {
                put_while(rows, bytes, out, |row, out| {
                    let items = entries(lists, self.list, row);
                    out.extend_from_slice(&values[items.start * width..items.end * width]);
                })
            }
        };
    }
}

/// The column names of an INSERT, in the order of [`encode`].
pub fn column_names(block: &Block) -> Vec<&str> {
    block.sent().map(|column| &*block.spec(column).name).collect()
}

/// Puts row after row while `out` is shorter than that; returns how many.
#[inline]
fn put_while(
    rows: &[usize],
    bytes: usize,
    out: &mut Vec<u8>,
    mut put: impl FnMut(usize, &mut Vec<u8>),
) -> usize {
    for (count, &row) in rows.iter().enumerate() {
        if bytes <= out.len() {
            return count;
        }
        put(row, out);
    }
    rows.len()
}

/// The same for values of so many bytes each.
#[inline]
fn put_fixed<const N: usize>(
    rows: &[usize],
    bytes: usize,
    out: &mut Vec<u8>,
    values: &[u8],
) -> usize {
    let (values, _) = values.as_chunks::<N>();
    let room = bytes.saturating_sub(out.len()).div_ceil(N);
    let rows = rows.get(..room).unwrap_or(rows);
    out.reserve(rows.len() * N);
    rows.iter().for_each(|&row| out.extend_from_slice(&values[row]));
    rows.len()
}

#[inline]
fn put_string(out: &mut Vec<u8>, value: &[u8]) {
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

#[inline]
fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while 0x80 <= n {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::rows::order::sorted_by;
    use crate::rows::{ColumnSpec, Shape, columns};

    fn specs() -> Arc<[ColumnSpec]> {
        columns! {
            "id" String,
            "n" UInt32,
            "tags" StringArray,
            "at" NullableMillis,
            "doc" Json,
        }
    }

    fn block(present: &[bool], sent_as: Option<&str>) -> Block {
        let documents = sent_as.map(|own| (4, own.to_owned())).into_iter().collect();
        let shape = Shape { documents, ..Shape::of(present.to_vec()) };
        let mut block = Block::new(&specs(), &shape);
        for (id, n, tags, at) in [("b", 2, &["x", "y"][..], None), ("a", 1, &[], Some(-1))] {
            block.put_str(id.as_bytes());
            block.put_u32(n);
            block.put_str_array(|items| tags.iter().for_each(|tag| items.push(tag.as_bytes())));
            block.put_nullable_millis(at);
            block.put_json(|out| out.extend_from_slice(b"{\"k\":1}"));
            block.end_row();
        }
        block
    }

    fn expect(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn columns_follow_each_other_in_the_order_of_the_selection() {
        let block = block(&[true; 5], None);
        let order = sorted_by(&block, &[0]);
        assert_eq!(order, [1, 0]);
        let mut out = Vec::new();
        encode(&block, &order, &[4], &mut out);
        let expected = expect(&[
            &[5, 2],
            b"\x02id\x06String\x01a\x01b",
            b"\x01n\x06UInt32\x01\0\0\0\x02\0\0\0",
            b"\x04tags\x0dArray(String)\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01x\x01y",
            b"\x02at\x17Nullable(DateTime64(3))\x00\x01",
            &(-1_i64).to_le_bytes(),
            &[0; 8],
            b"\x03doc\x04JSON\x01\0\0\0\0\0\0\0\x02{}\x02{}",
        ]);
        assert_eq!(out, expected);
    }

    #[test]
    fn a_column_the_table_lacks_is_left_out() {
        let block = block(&[true, false, false, false, true], Some("String"));
        let mut out = Vec::new();
        encode(&block, &[0], &[], &mut out);
        assert_eq!(out, b"\x02\x01\x02id\x06String\x01b\x03doc\x06String\x07{\"k\":1}");
        assert_eq!(column_names(&block), ["id", "doc"]);
    }

    /// Goal: nothing is cast on the server that it would parse once more for that.
    #[test]
    fn a_document_goes_as_the_type_of_its_column() {
        for own in ["JSON(max_dynamic_paths=64)", "JSON(a UInt8, SKIP b)"] {
            let block = block(&[false, false, false, false, true], Some(own));
            let mut out = Vec::new();
            encode(&block, &[0], &[], &mut out);
            let length = [u8::try_from(own.len()).unwrap()];
            let head = expect(&[b"\x01\x01\x03doc", &length, own.as_bytes()]);
            assert_eq!(out, expect(&[&head, b"\x01\0\0\0\0\0\0\0\x07{\"k\":1}"]));
        }
    }

    #[test]
    fn the_pieces_of_a_block_are_the_block() {
        let (blank, none) = ([4], []);
        for (present, rows) in
            [([true; 5], 2), ([false, true, true, true, false], 2), ([true; 5], 0)]
        {
            let block = block(&present, None);
            let order = &sorted_by(&block, &[0])[..rows];
            for blanked in [&blank[..], &none] {
                let mut whole = Vec::new();
                encode(&block, order, blanked, &mut whole);
                for bytes in 1..whole.len() + 2 {
                    let mut joined = Vec::new();
                    for piece in Encoder::new(&block, order, blanked).pieces(bytes) {
                        // Beside it a value, and behind that the head of a column.
                        assert!(piece.len() < bytes + 8 + 28, "{} for {bytes}", piece.len());
                        joined.extend(piece);
                    }
                    assert_eq!(joined, whole, "{bytes}");
                }
            }
        }
    }

    #[test]
    fn lengths_of_128_and_more_take_two_bytes() {
        let mut out = Vec::new();
        put_varint(&mut out, 127);
        put_varint(&mut out, 128);
        put_varint(&mut out, 300);
        assert_eq!(out, [0x7f, 0x80, 0x01, 0xac, 0x02]);
    }
}
