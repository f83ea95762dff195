//! Whether a JSON document that ClickHouse gives back is the one that was sent.
//!
//! A `JSON` column keeps paths and values, not the text: members come back sorted and nested where
//! a name had dots, nulls and empty objects are gone, numbers are printed anew. Both sides are
//! brought to that form; whatever else differs counts as a difference.

use std::collections::BTreeMap;

use serde_json::{Number, Value};

pub fn is_same(ours: &[u8], stored: &[u8]) -> bool {
    if ours == stored {
        return true;
    }
    match (parse(ours), parse(stored)) {
        (Some(ours), Some(stored)) => equal(&ours, &stored),
        _ => false,
    }
}

/// `None` for what is nested so deeply that comparing it could exhaust the stack (128 levels); such
/// a document is not known to be the same.
fn parse(text: &[u8]) -> Option<Value> {
    serde_json::from_slice(text).ok()
}

fn equal(ours: &Value, stored: &Value) -> bool {
    match (ours, stored) {
        (Value::Object(_), Value::Object(_)) => {
            let (mut left, mut right) = (BTreeMap::new(), BTreeMap::new());
            collect(None, ours, &mut left);
            collect(None, stored, &mut right);
            left.len() == right.len()
                && left
                    .iter()
                    .zip(&right)
                    .all(|((a, ours), (b, stored))| a == b && equal(ours, stored))
        }
        (Value::Array(ours), Value::Array(stored)) => equal_lists(vec![(ours, stored)]),
        (Value::Number(ours), Value::Number(stored)) => equal_numbers(ours, stored),
        _ => ours == stored,
    }
}

/// Arrays that ClickHouse stores as one type. Of a list of lists a null comes back as an empty
/// list, unless its elements have no type in common.
fn equal_lists(mut lists: Vec<(&Vec<Value>, &Vec<Value>)>) -> bool {
    loop {
        if lists.iter().any(|(ours, stored)| ours.len() != stored.len()) {
            return false;
        }
        let elements = || lists.iter().flat_map(|(ours, _)| ours.iter());
        let is_of_lists = elements().any(Value::is_array)
            && elements().all(|element| element.is_array() || element.is_null());
        let mut inner = Vec::new();
        for (a, b) in lists.iter().flat_map(|(ours, stored)| ours.iter().zip(stored.iter())) {
            match (a, b) {
                (Value::Null, Value::Array(empty)) if is_of_lists && empty.is_empty() => {}
                (Value::Array(a), Value::Array(b)) if is_of_lists => inner.push((a, b)),
                (a, b) if equal(a, b) => {}
                _ => return false,
            }
        }
        if inner.is_empty() {
            return true;
        }
        lists = inner;
    }
}

/// The leaves of an object by their dotted paths.
fn collect<'v>(path: Option<&str>, value: &'v Value, leaves: &mut BTreeMap<String, &'v Value>) {
    match value {
        Value::Null => {}
        Value::Object(members) => {
            for (name, member) in members {
                // An empty name is a name too.
                let path = path.map_or_else(|| name.clone(), |path| format!("{path}.{name}"));
                collect(Some(&path), member, leaves);
            }
        }
        leaf => {
            leaves.insert(path.unwrap_or_default().to_owned(), leaf);
        }
    }
}

fn equal_numbers(ours: &Number, stored: &Number) -> bool {
    let (ours, stored) = (ours.to_string(), stored.to_string());
    if ours == stored {
        return true;
    }
    let is_integer = |text: &str| !text.contains(['.', 'e', 'E']);
    if is_integer(&ours) && is_integer(&stored) {
        return false;
    }
    match (ours.parse::<f64>(), stored.parse::<f64>()) {
        // Above 2^53 a float equals several integers.
        (Ok(a), Ok(b)) => a == b && (a.abs() < 9e15 || !is_integer(&ours) && !is_integer(&stored)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clickhouse_gives_back_is_what_was_sent() {
        // As 26.9 gave it back.
        let sent = r#"{"z":1,"a":{"b":[1,"x",null],"c":null},"q.r":2.50,"s":"é\u0001/","e":{},
            "big":12345678901234567890,"k":1e3,"bool":true}"#;
        let stored = r#"{"a":{"b":[1,"x",null]},"big":12345678901234567890,"bool":true,"k":1000,
            "q":{"r":2.5},"s":"é\u0001\/","z":1}"#;
        assert!(is_same(sent.as_bytes(), stored.as_bytes()));
        assert!(is_same(b"{}", b"{}") && is_same(b"{\"a\":{\"b\":null}}", b"{}"));
        assert!(is_same(br#"{"d":[{"x":null,"y.z":1}]}"#, br#"{"d":[{"y":{"z":1}}]}"#));
    }

    #[test]
    fn a_null_among_lists_comes_back_as_an_empty_list_and_no_other_does() {
        // As 26.9 gave it back.
        for (sent, stored) in [
            ("[[1],null]", "[[1],[]]"),
            ("[null,[[]]]", "[[],[[]]]"),
            ("[[[1],null],null,[null]]", "[[[1],[]],[],[[]]]"),
            ("[[{\"a\":[[1],null]}],null]", "[[{\"a\":[[1],[]]}],[]]"),
            ("[[1],null,[[\"a\"]]]", "[[1],null,[[\"a\"]]]"),
        ] {
            let wrapped = |text: &str| format!("{{\"data\":{text}}}").into_bytes();
            assert!(is_same(&wrapped(sent), &wrapped(stored)), "{sent}");
        }
        for (ours, stored) in [
            ("[null]", "[[]]"),
            ("[1,null]", "[1,[]]"),
            ("[[1],{\"a\":1},null]", "[[1],{\"a\":1},[]]"),
            ("[[1],[]]", "[[1],null]"),
            ("[[1],null]", "[[1],[null]]"),
            ("[[1],null]", "[[1]]"),
        ] {
            assert!(!is_same(ours.as_bytes(), stored.as_bytes()), "{ours} {stored}");
        }
    }

    #[test]
    fn every_other_value_is_another() {
        for (ours, stored) in [
            (r#"{"a":1}"#, r#"{"a":2}"#),
            (r#"{"a":1}"#, r#"{"a":"1"}"#),
            (r#"{"a":1}"#, r#"{"b":1}"#),
            (r#"{"a":1}"#, r#"{"a":1,"b":1}"#),
            (r#"{"a":[1,2]}"#, r#"{"a":[2,1]}"#),
            (r#"{"a":[1]}"#, r#"{"a":[1,null]}"#),
            (r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992}"#),
            (r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992.0}"#),
            (r#"{"a":true}"#, r#"{"a":1}"#),
            (r#"{"d":[{"":{"a":1}}]}"#, r#"{"d":[{"a":1}]}"#),
            (r#"{"a":1}"#, "not json"),
            ("not json", "{}"),
        ] {
            assert!(!is_same(ours.as_bytes(), stored.as_bytes()), "{ours} {stored}");
        }
    }

    #[test]
    fn a_document_too_deep_to_compare_is_another_unless_it_is_the_same_text() {
        let deep = format!("{}1{}", "{\"a\":".repeat(1000), "}".repeat(1000));
        assert!(is_same(deep.as_bytes(), deep.as_bytes()));
        assert!(!is_same(deep.as_bytes(), format!(" {deep}").as_bytes()));
    }
}
