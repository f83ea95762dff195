//! Values that ClickHouse has stored: how to query each as text, and whether it equals the one that
//! would be written now.
//!
//! A false "other" costs a row written again; a false "same" would leave a wrong one. So where two
//! texts may mean the same and it is not certain, they are not the same.

use super::block::Block;
use super::column::List;
use super::column_type::ColumnType;
use super::scalar::Scalar;
use crate::documents::stored::is_same as is_same_document;

/// The SQL expression that gives a column, already quoted, as text in the form of [`is_same`].
pub fn expression(of: &ColumnType, name: &str) -> String {
    nested_expression(of, name, 0)
}

/// Parts of a value one after the other, each of any bytes: each with its length.
fn framed_expression(of: &ColumnType, value: &str, depth: usize) -> String {
    let text = nested_expression(of, value, depth);
    let framed = format!("concat(toString(length({text})), ':', {text})");
    if of.is_nullable() { format!("ifNull({framed}, '-')") } else { framed }
}

fn nested_expression(of: &ColumnType, value: &str, depth: usize) -> String {
    let joined = |parts: Vec<String>| match parts.as_slice() {
        [only] => only.clone(),
        several => format!("concat({})", several.join(", ")),
    };
    match of {
        ColumnType::Of(scalar) | ColumnType::Nullable(scalar) => scalar.text_expression(value),
        ColumnType::Array(of) => {
            let item = format!("x{depth}");
            let framed = framed_expression(of, &item, depth + 1);
            format!("arrayStringConcat(arrayMap({item} -> {framed}, {value}))")
        }
        ColumnType::Map(of) => {
            let (key, item) = (format!("k{depth}"), format!("x{depth}"));
            let framed = joined(vec![
                framed_expression(&of.0, &key, depth + 1),
                framed_expression(&of.1, &item, depth + 1),
            ]);
            format!(
                "arrayStringConcat(arrayMap(({key}, {item}) -> {framed}, mapKeys({value}), \
                 mapValues({value})))"
            )
        }
        ColumnType::Tuple(elements) => {
            let element = |(at, (_, of)): (usize, &(_, ColumnType))| {
                framed_expression(of, &format!("tupleElement({value}, {})", at + 1), depth)
            };
            joined(elements.iter().enumerate().map(element).collect())
        }
    }
}

/// Whether `stored`, as [`expression`] gives it, is what `block` holds.
pub fn is_same(block: &Block, column: usize, row: usize, stored: Option<&[u8]>) -> bool {
    if block.spec(column).kind == ColumnType::Of(Scalar::Json) {
        return stored.is_some_and(|stored| is_same_document(block.text(column, row), stored));
    }
    text(block, column, row).as_deref() == stored
}

/// A value in the form of [`expression`]; `None` is NULL.
pub fn text(block: &Block, column: usize, row: usize) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    write(&block.spec(column).kind, block.lists(column), row, &mut text).then_some(text)
}

/// Appends an entry of a column, or of what it is built of; false if it is NULL.
fn write(of: &ColumnType, lists: &[List], entry: usize, out: &mut Vec<u8>) -> bool {
    match of {
        ColumnType::Of(scalar) => scalar.write_text(lists[0].at(entry), out),
        ColumnType::Nullable(scalar) => {
            if lists[0].at(entry) == [1] {
                return false;
            }
            scalar.write_text(lists[1].at(entry), out);
        }
        ColumnType::Array(of) => {
            lists[0].elements(entry).for_each(|item| write_framed(of, &lists[1..], item, out));
        }
        ColumnType::Map(of) => {
            let (keys, values) = lists[1..].split_at(of.0.lists());
            for item in lists[0].elements(entry) {
                write_framed(&of.0, keys, item, out);
                write_framed(&of.1, values, item, out);
            }
        }
        ColumnType::Tuple(elements) => {
            let mut rest = lists;
            for (_, of) in elements.iter() {
                let (own, others) = rest.split_at(of.lists());
                write_framed(of, own, entry, out);
                rest = others;
            }
        }
    }
    true
}

fn write_framed(of: &ColumnType, lists: &[List], entry: usize, out: &mut Vec<u8>) {
    let mut text = Vec::new();
    if !write(of, lists, entry, &mut text) {
        out.push(b'-');
        return;
    }
    out.extend_from_slice(text.len().to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(&text);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::rows::{ColumnSpec, Shape, columns};

    fn specs() -> Arc<[ColumnSpec]> {
        columns! {
            "id" String,
            "tags" StringArray,
            "cost" Float64,
            "at" NullableMillis,
            "doc" Json,
        }
    }

    #[test]
    fn each_kind_has_one_text_for_one_value() {
        let shape = Shape::of(vec![true; 5]);
        let mut block = Block::new(&specs(), &shape);
        for (tags, at) in [(&["a", "b:1"][..], Some(-1)), (&["a2:b:1"], None)] {
            block.put_str(b"i\xff");
            block.put_str_array(|items| tags.iter().for_each(|tag| items.push(tag.as_bytes())));
            block.put_f64(-0.0);
            block.put_nullable_millis(at);
            block.put_json(|out| out.extend_from_slice(b"{\"a\":1}"));
            block.end_row();
        }
        let same = |column, row, stored: Option<&str>| {
            is_same(&block, column, row, stored.map(str::as_bytes))
        };
        assert!(is_same(&block, 0, 0, Some(b"i\xff")));
        assert!(!same(0, 0, Some("i")) && !same(0, 0, None));
        assert!(same(1, 0, Some("1:a3:b:1")) && same(1, 1, Some("6:a2:b:1")));
        assert!(same(2, 0, Some(&(1_u64 << 63).to_string())) && !same(2, 0, Some("0")));
        assert!(same(3, 0, Some("-1")) && same(3, 1, None) && !same(3, 1, Some("0")));
        assert!(same(4, 0, Some("{ \"a\": 1 }")) && !same(4, 0, Some("{\"a\":2}")));
    }
}
