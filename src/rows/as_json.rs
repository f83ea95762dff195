//! A row as one JSON object: how a refused row is kept.

use serde_json::{Map, Value};

use super::block::Block;
use super::column::Values;

/// Every column of the row by name. Bytes that are not UTF-8 are replaced; a JSON column is kept
/// as the text it is.
pub fn row_as_json(block: &Block, row: usize) -> Vec<u8> {
    let columns = block
        .sent()
        .map(|column| (block.spec(column).name.to_string(), value(block.values(column), row)));
    Value::Object(columns.collect::<Map<_, _>>()).to_string().into_bytes()
}

fn value(values: &Values, row: usize) -> Value {
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes).into_owned());
    let nullable = |nulls: &[u8], value: Value| if nulls[row] == 1 { Value::Null } else { value };
    match values {
        Values::Strings(strings) => text(strings.at(row)),
        Values::StringArrays { items, ends } => {
            let start = if row == 0 { 0 } else { ends[row - 1] };
            (start..ends[row]).map(|item| text(items.at(item))).collect()
        }
        Values::U8(values) => values[row].into(),
        Values::U32(values) => values[row].into(),
        Values::U64(values) => values[row].into(),
        // JSON has no NaN.
        Values::F64(values) if values[row].is_finite() => values[row].into(),
        Values::F64(values) => values[row].to_string().into(),
        Values::I64(values) => values[row].into(),
        Values::NullableU8 { nulls, values } => nullable(nulls, values[row].into()),
        Values::NullableU32 { nulls, values } => nullable(nulls, values[row].into()),
        Values::NullableI64 { nulls, values } => nullable(nulls, values[row].into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::rows::ColumnKind;
    use crate::rows::ColumnSpec;
    use crate::rows::Shape;

    #[test]
    fn every_sent_column_is_in_the_document() {
        fn specs() -> Arc<[ColumnSpec]> {
            Arc::from([
                ColumnSpec::new("id", ColumnKind::String),
                ColumnSpec::new("tags", ColumnKind::StringArray),
                ColumnSpec::new("cost", ColumnKind::Float64),
                ColumnSpec::new("at", ColumnKind::NullableMillis),
                ColumnSpec::new("absent", ColumnKind::UInt8),
            ])
        }
        let present = vec![true, true, true, true, false];
        let mut block = Block::new(&specs(), &Shape::of(present));
        for at in [None, Some(5)] {
            block.put_str(b"a\xff");
            block.put_str_array(|items| items.push(b"t"));
            block.put_f64(f64::NAN);
            block.put_nullable_millis(at);
            block.put_u8(1);
            block.end_row();
        }
        let document = String::from_utf8(row_as_json(&block, 0)).unwrap();
        assert_eq!(
            document,
            "{\"id\":\"a\u{fffd}\",\"tags\":[\"t\"],\"cost\":\"NaN\",\"at\":null}"
        );
        assert!(String::from_utf8(row_as_json(&block, 1)).unwrap().ends_with("\"at\":5}"));
    }
}
