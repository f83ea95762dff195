//! What a JSON column shows of a document, worked out a second time and in another way than walhouse
//! does: as the set of its paths.
//!
//! Known of ClickHouse (measured with 26.9): null leaves and empty objects take no path and vanish,
//! `{"a.b":1}` and `{"a":{"b":1}}` are one path, arrays are kept whole, objects in them have paths
//! of their own, `1.0` is 1 and `-0` is 0, and a null among arrays is an empty one. Not covered, and so not to be put in front of this:
//! arrays that mix booleans with numbers or strings, or large integers with fractions; ClickHouse
//! makes one type of their elements.
//!
//! Asked of walhouse: the last of members with one name counts, the first of paths that meet; a lone
//! surrogate becomes U+FFFD; numbers beyond 64 bits or a double become strings; what is no JSON, or
//! nested deeper than 1000, becomes `{}`.

use std::collections::BTreeMap;

use serde_json::{Number, Value};

const DEPTH_MAX: usize = 1000;
const NOTHING: &str = "{}";

/// From the content type, a line end and the text.
pub fn expected(source: Option<&str>) -> String {
    let Some((content_type, text)) = source.and_then(|source| source.split_once('\n')) else {
        return NOTHING.to_owned();
    };
    if DEPTH_MAX < depth(text) {
        return NOTHING.to_owned();
    }
    let value = parse(&without_lone_surrogates(text));
    let value = match content_type {
        "application/super+json" => {
            value.and_then(|mut value| value.get_mut("json").map(Value::take))
        }
        _ => value,
    };
    match value {
        Some(value) => {
            canonical(&Value::Object([("data".to_owned(), value)].into_iter().collect()))
        }
        None => NOTHING.to_owned(),
    }
}

/// From what ClickHouse prints.
pub fn found(text: &str) -> String {
    canonical(&parse(text).expect("ClickHouse prints JSON"))
}

fn parse(text: &str) -> Option<Value> {
    let mut parser = serde_json::Deserializer::from_str(text);
    parser.disable_recursion_limit();
    let mut values = parser.into_iter::<Value>();
    let value = values.next()?.ok()?;
    values.next().is_none().then_some(value)
}

/// How many arrays and objects are open at most.
fn depth(text: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => open += 1,
            b']' | b'}' if !in_string => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// Escapes of surrogates that have no partner become the escape of U+FFFD.
fn without_lone_surrogates(text: &str) -> String {
    let escape_at = |at: usize| -> Option<u32> {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(found) = text[at..].find('\\') {
        out.push_str(&text[at..at + found]);
        at += found;
        let (kept, length) = match escape_at(at) {
            Some(0xD800..0xDC00) => match escape_at(at + 6) {
                Some(0xDC00..0xE000) => (None, 12),
                _ => (Some("\\ufffd"), 6),
            },
            Some(0xDC00..0xE000) => (Some("\\ufffd"), 6),
            Some(_) => (None, 6),
            // The character behind the backslash may be of several bytes in text that is no JSON.
            None => (None, 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8)),
        };
        out.push_str(kept.unwrap_or(&text[at..at + length]));
        at += length;
    }
    out.push_str(&text[at..]);
    out
}

/// The paths of an object and their values, in order.
fn canonical(object: &Value) -> String {
    let mut paths = BTreeMap::new();
    add_paths(object, None, &mut paths);
    let paths: Vec<String> = paths.into_iter().map(|(k, v)| format!("{k:?}: {v}")).collect();
    format!("{{{}}}", paths.join(", "))
}

fn add_paths(value: &Value, path: Option<&str>, paths: &mut BTreeMap<String, String>) {
    match (value, path) {
        (Value::Object(members), _) => {
            for (name, value) in members {
                let path = match path {
                    Some(path) => format!("{path}.{name}"),
                    None => name.clone(),
                };
                add_paths(value, Some(&path), paths);
            }
        }
        (Value::Null, _) => {}
        (value, path) => {
            let path = path.expect("only an object has no path").to_owned();
            paths.entry(path).or_insert_with(|| leaf(value));
        }
    }
}

fn leaf(value: &Value) -> String {
    match value {
        Value::Array(elements) => {
            let is_of_lists = elements.iter().any(Value::is_array)
                && elements.iter().all(|element| element.is_array() || element.is_null());
            let element = |element: &Value| match element {
                Value::Null if is_of_lists => "[]".to_owned(),
                element => leaf(element),
            };
            let elements: Vec<String> = elements.iter().map(element).collect();
            format!("[{}]", elements.join(", "))
        }
        Value::Object(_) => canonical(value),
        Value::Number(number) => self::number(number),
        Value::String(text) => format!("{text:?}"),
        Value::Bool(_) | Value::Null => value.to_string(),
    }
}

fn number(number: &Number) -> String {
    // The parser writes every exponent with its sign.
    let digits = &number.as_str().replace("e+", "e");
    let in_words = || format!("{digits:?}");
    if digits.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        return match digits.parse::<i128>() {
            Ok(integer) if (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&integer) => {
                integer.to_string()
            }
            _ => in_words(),
        };
    }
    match digits.parse::<f64>() {
        Ok(float) if !float.is_finite() => in_words(),
        // Printed without a fraction it looks like an integer.
        Ok(float) if float.fract() == 0.0 && float.abs() < 1e18 => (float as i64).to_string(),
        Ok(float) => format!("{float:e}"),
        Err(_) => in_words(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn same(json: &str, shown: &str) {
        assert_eq!(expected(Some(&format!("application/json\n{json}"))), found(shown), "{json}");
    }

    #[test]
    fn documents_are_what_clickhouse_shows_of_them() {
        same("null", "{}");
        same(r#"{"a":null,"b":{}}"#, "{}");
        same(r#"{"a.b":1,"c":[null,{"d":null}]}"#, r#"{"data":{"a":{"b":1},"c":[null,{}]}}"#);
        same("[[1],null]", r#"{"data":[[1],[]]}"#);
        same(r#"{"a":1,"a":2}"#, r#"{"data":{"a":2}}"#);
        same(r#"{"a.b":1,"a":{"b":2}}"#, r#"{"data":{"a":{"b":1}}}"#);
        same("[1.0,1e5,0.1,-0]", r#"{"data":[1,100000,0.1,0]}"#);
        same("18446744073709551615", r#"{"data":18446744073709551615}"#);
        same("18446744073709551616", r#"{"data":"18446744073709551616"}"#);
        same("1e999", r#"{"data":"1e999"}"#);
        same(r#""\ud83d\ude00 \ud83d \\ud83d""#, r#"{"data":"😀 � \\ud83d"}"#);
        same("{", "{}");
        same(&format!("{}{}", "[".repeat(1001), "]".repeat(1001)), "{}");
    }

    #[test]
    fn other_documents_are_other_documents() {
        let of = |json: &str| expected(Some(&format!("application/json\n{json}")));
        for (one, other) in [
            ("1", "2"),
            ("1", "\"1\""),
            ("1", "1.5"),
            ("true", "1"),
            ("[1,2]", "[2,1]"),
            ("{\"a\":1}", "{\"b\":1}"),
            ("9007199254740993", "9007199254740992"),
            ("[null]", "[]"),
        ] {
            assert_ne!(of(one), of(other), "{one} and {other}");
        }
    }

    #[test]
    fn of_super_json_the_json_member_counts() {
        let source = "application/super+json\n{\"json\":{\"a\":\"1\"},\"meta\":{\"values\":{}}}";
        assert_eq!(expected(Some(source)), found(r#"{"data":{"a":"1"}}"#));
        assert_eq!(expected(Some("application/super+json\n{\"a\":1}")), found("{}"));
        assert_eq!(expected(None), found("{}"));
    }
}
