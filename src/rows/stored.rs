//! Values that ClickHouse has stored: how to query each as text, and whether it equals the one that
//! would be written now.
//!
//! A false "other" costs a row written again; a false "same" would leave a wrong one. So where two
//! texts may mean the same and it is not certain, they are not the same.

use super::block::Block;
use super::column::{ColumnKind, Values};
use crate::documents::stored::is_same as is_same_document;

/// The SQL expression that gives the column, already quoted, as text in the form of [`is_same`].
pub fn expression(kind: ColumnKind, name: &str) -> String {
    match kind {
        ColumnKind::String => format!("toString({name})"),
        ColumnKind::Json => format!("toJSONString({name})"),
        // `["a","b"]` of any bytes: each with its length.
        ColumnKind::StringArray => {
            format!("arrayStringConcat(arrayMap(x -> concat(toString(length(x)), ':', x), {name}))")
        }
        ColumnKind::UInt8
        | ColumnKind::UInt32
        | ColumnKind::UInt64
        | ColumnKind::NullableUInt8
        | ColumnKind::NullableUInt32 => {
            format!("toString({name})")
        }
        // Exactly, and a NaN equals itself.
        ColumnKind::Float64 => format!("toString(reinterpretAsUInt64({name}))"),
        ColumnKind::Millis | ColumnKind::NullableMillis => {
            format!("toString(toUnixTimestamp64Milli({name}))")
        }
    }
}

/// Whether `stored`, as [`expression`] gives it, is what `block` holds.
pub fn is_same(block: &Block, column: usize, row: usize, stored: Option<&[u8]>) -> bool {
    if block.spec(column).kind == ColumnKind::Json {
        return stored.is_some_and(|stored| is_same_document(block.text(column, row), stored));
    }
    text(block.values(column), row).as_deref() == stored
}

/// A value in the form of [`expression`]; `None` is NULL.
pub fn text(values: &Values, row: usize) -> Option<Vec<u8>> {
    let number = |n: String| Some(n.into_bytes());
    let nullable = |nulls: &[u8], n: String| if nulls[row] == 1 { None } else { number(n) };
    match values {
        Values::Strings(strings) => Some(strings.at(row).to_vec()),
        Values::StringArrays { items, ends } => {
            let start = if row == 0 { 0 } else { ends[row - 1] };
            let mut text = Vec::new();
            for item in (start..ends[row]).map(|at| items.at(at)) {
                text.extend_from_slice(item.len().to_string().as_bytes());
                text.push(b':');
                text.extend_from_slice(item);
            }
            Some(text)
        }
        Values::U8(values) => number(values[row].to_string()),
        Values::U32(values) => number(values[row].to_string()),
        Values::U64(values) => number(values[row].to_string()),
        Values::F64(values) => number(values[row].to_bits().to_string()),
        Values::I64(values) => number(values[row].to_string()),
        Values::NullableU8 { nulls, values } => nullable(nulls, values[row].to_string()),
        Values::NullableU32 { nulls, values } => nullable(nulls, values[row].to_string()),
        Values::NullableI64 { nulls, values } => nullable(nulls, values[row].to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::rows::ColumnSpec;
    use crate::rows::Shape;

    fn specs() -> Arc<[ColumnSpec]> {
        Arc::from([
            ColumnSpec::new("id", ColumnKind::String),
            ColumnSpec::new("tags", ColumnKind::StringArray),
            ColumnSpec::new("cost", ColumnKind::Float64),
            ColumnSpec::new("at", ColumnKind::NullableMillis),
            ColumnSpec::new("doc", ColumnKind::Json),
        ])
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
