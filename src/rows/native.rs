//! ClickHouse's Native format: a block of rows, column by column.
//!
//! Strings stand for `LowCardinality(String)` columns as well; the server casts them. Documents go
//! as type `JSON`, whose text is parsed under the INSERT's settings; cast from `String` those would
//! be ignored, and a document with a key twice refused.
//! Numbers are always sent in the very type named, since the server narrows silently.

use super::block::{Block, JsonForm};
use super::column::{Kind, Values};

/// The serialization of a `JSON` column in which each value is the text of its document.
const JSON_AS_TEXT: u64 = 1;

/// Appends the rows of `block` named by `order` as one Native block. The columns in `blanked` are
/// JSON columns that are sent as `{}`.
pub fn encode(block: &Block, order: &[usize], blanked: &[usize], out: &mut Vec<u8>) {
    put_varint(out, block.sent().count() as u64);
    put_varint(out, order.len() as u64);
    for column in block.sent() {
        let spec = block.spec(column);
        put_string(out, spec.name.as_bytes());
        if spec.kind == Kind::Json && block.json_form() == JsonForm::Typed {
            put_string(out, b"JSON");
            out.extend_from_slice(&JSON_AS_TEXT.to_le_bytes());
        } else {
            put_string(out, spec.kind.native_type().as_bytes());
        }
        if blanked.contains(&column) {
            order.iter().for_each(|_| put_string(out, b"{}"));
        } else {
            put_values(out, block.values(column), order);
        }
    }
}

/// The column names of an INSERT, in the order of [`encode`].
pub fn column_names(block: &Block) -> Vec<&'static str> {
    block.sent().map(|column| block.spec(column).name).collect()
}

fn put_values(out: &mut Vec<u8>, values: &Values, order: &[usize]) {
    match values {
        Values::Strings(strings) => order.iter().for_each(|&row| put_string(out, strings.at(row))),
        Values::StringArrays { items, ends } => {
            let range = |row: usize| (if row == 0 { 0 } else { ends[row - 1] })..ends[row];
            let mut total = 0_u64;
            for &row in order {
                total += range(row).len() as u64;
                out.extend_from_slice(&total.to_le_bytes());
            }
            for &row in order {
                range(row).for_each(|item| put_string(out, items.at(item)));
            }
        }
        Values::U8(values) => out.extend(order.iter().map(|&row| values[row])),
        Values::U32(values) => put_fixed(out, order, |row| values[row].to_le_bytes()),
        Values::U64(values) => put_fixed(out, order, |row| values[row].to_le_bytes()),
        Values::F64(values) => put_fixed(out, order, |row| values[row].to_le_bytes()),
        Values::I64(values) => put_fixed(out, order, |row| values[row].to_le_bytes()),
        Values::NullableU8 { nulls, values } => {
            out.extend(order.iter().map(|&row| nulls[row]));
            out.extend(order.iter().map(|&row| values[row]));
        }
        Values::NullableU32 { nulls, values } => {
            out.extend(order.iter().map(|&row| nulls[row]));
            put_fixed(out, order, |row| values[row].to_le_bytes());
        }
        Values::NullableI64 { nulls, values } => {
            out.extend(order.iter().map(|&row| nulls[row]));
            put_fixed(out, order, |row| values[row].to_le_bytes());
        }
    }
}

fn put_fixed<const N: usize>(
    out: &mut Vec<u8>,
    order: &[usize],
    bytes_of: impl Fn(usize) -> [u8; N],
) {
    out.reserve(order.len() * N);
    order.iter().for_each(|&row| out.extend_from_slice(&bytes_of(row)));
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
    use super::*;
    use crate::rows::block::{ColumnSpec, Shape};

    const SPECS: &[ColumnSpec] = &[
        ColumnSpec::new("id", Kind::String),
        ColumnSpec::new("n", Kind::UInt32),
        ColumnSpec::new("tags", Kind::StringArray),
        ColumnSpec::new("at", Kind::NullableMillis),
        ColumnSpec::new("doc", Kind::Json),
    ];

    fn block(present: &[bool], json: JsonForm) -> Block {
        let mut block = Block::new(SPECS, &Shape { present: present.to_vec(), json });
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
        let block = block(&[true; 5], JsonForm::Typed);
        let order = block.sorted_by(&[0]);
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
        let block = block(&[true, false, false, false, true], JsonForm::Text);
        let mut out = Vec::new();
        encode(&block, &[0], &[], &mut out);
        assert_eq!(out, b"\x02\x01\x02id\x06String\x01b\x03doc\x06String\x07{\"k\":1}");
        assert_eq!(column_names(&block), ["id", "doc"]);
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
