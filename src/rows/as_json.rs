//! A row as one JSON object: how a refused row is kept.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::block::Block;
use super::column::List;
use super::column_type::ColumnType;
use super::scalar::Scalar;

/// Every column of the row by name. Bytes that are not UTF-8 are replaced; a JSON column is kept
/// as the text it is.
pub fn row_as_json(block: &Block, row: usize) -> Vec<u8> {
    let columns = block.sent().map(|column| {
        let spec = block.spec(column);
        (spec.name.to_string(), value(&spec.kind, block.lists(column), row))
    });
    Value::Object(columns.collect::<Map<_, _>>()).to_string().into_bytes()
}

fn value(of: &ColumnType, lists: &[List], entry: usize) -> Value {
    match of {
        ColumnType::Of(scalar) => single(*scalar, lists[0].at(entry)),
        ColumnType::Nullable(_) if lists[0].at(entry) == [1] => Value::Null,
        ColumnType::Nullable(scalar) => single(*scalar, lists[1].at(entry)),
        ColumnType::Array(of) => {
            lists[0].elements(entry).map(|item| value(of, &lists[1..], item)).collect()
        }
        // Pairs: two keys may be the same once bytes are replaced.
        ColumnType::Map(of) => {
            let (keys, values) = lists[1..].split_at(of.0.lists());
            let pair =
                |item| Value::from(vec![value(&of.0, keys, item), value(&of.1, values, item)]);
            lists[0].elements(entry).map(pair).collect()
        }
        ColumnType::Tuple(elements) => {
            let mut rest = lists;
            let element = |(name, of): &(Arc<str>, ColumnType)| {
                let (own, others) = rest.split_at(of.lists());
                rest = others;
                (name.to_string(), value(of, own, entry))
            };
            Value::Object(elements.iter().map(element).collect())
        }
    }
}

fn single(scalar: Scalar, bytes: &[u8]) -> Value {
    // JSON has no NaN.
    let float = |number: f64| match number.is_finite() {
        true => Value::from(number),
        false => number.to_string().into(),
    };
    match (scalar, bytes) {
        (Scalar::Float32, &[a, b, c, d]) => float(f32::from_le_bytes([a, b, c, d]).into()),
        (Scalar::Float64, &[a, b, c, d, e, f, g, h]) => {
            float(f64::from_le_bytes([a, b, c, d, e, f, g, h]))
        }
        (Scalar::Bool, [byte]) => (*byte != 0).into(),
        _ => {
            let mut text = Vec::new();
            scalar.write_text(bytes, &mut text);
            let text = String::from_utf8_lossy(&text).into_owned();
            match scalar {
                Scalar::Decimal { scale, .. } => with_point(&text, scale.into()).into(),
                _ if scalar.width().is_none_or(|width| 8 < width) => text.into(),
                _ => text
                    .parse::<i64>()
                    .map(Value::from)
                    .unwrap_or_else(|_| text.parse::<u64>().map_or(Value::from(text), Value::from)),
            }
        }
    }
}

/// The digits of a decimal, with its point.
fn with_point(digits: &str, scale: usize) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    if scale == 0 {
        return format!("{sign}{digits}");
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    format!("{sign}{whole}.{part}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{ColumnSpec, Shape, columns};

    #[test]
    fn every_sent_column_is_in_the_document() {
        let specs: Arc<[ColumnSpec]> = columns! {
            "id" String,
            "tags" StringArray,
            "cost" Float64,
            "at" NullableMillis,
            "absent" UInt8,
        };
        let present = vec![true, true, true, true, false];
        let mut block = Block::new(&specs, &Shape::of(present));
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
