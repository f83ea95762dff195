//! Whether a JSON document that ClickHouse gives back is the one that was sent.
//!
//! A `JSON` column keeps paths and values, not the text: members come back sorted and nested where
//! a name had dots, nulls and empty objects are gone, numbers have a type and are printed again.
//! Both sides are normalized to that form; anything else that differs counts as a difference.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// A document, with every member: of `{"a":1,"a.b":2}` ClickHouse gives back two of one name,
/// `{"a":1,"a":{"b":2}}`.
#[derive(Debug, PartialEq)]
enum Node {
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
    /// As it is written.
    Number(String),
    Leaf(Value),
}

pub fn is_same(ours: &[u8], stored: &[u8]) -> bool {
    if ours == stored {
        return true;
    }
    match (parse(ours), parse(stored)) {
        (Some(ours), Some(stored)) => equal(&ours, &stored, false),
        _ => false,
    }
}

const DEPTH_MAX: usize = 128;

/// `None` for a document nested so deeply that comparing it could exhaust the stack (128 levels);
/// whether it is the same is then unknown.
fn parse(text: &[u8]) -> Option<Node> {
    node(serde_json::from_slice(text).ok()?, DEPTH_MAX)
}

fn node(raw: &RawValue, depth_left: usize) -> Option<Node> {
    let depth_left = depth_left.checked_sub(1)?;
    let text = raw.get();
    Some(match text.as_bytes().first()? {
        b'{' => {
            let Members(members) = serde_json::from_str(text).ok()?;
            let member = |(name, raw)| Some((name, node(raw, depth_left)?));
            Node::Object(members.into_iter().map(member).collect::<Option<_>>()?)
        }
        b'[' => {
            let elements: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            Node::Array(
                elements.into_iter().map(|raw| node(raw, depth_left)).collect::<Option<_>>()?,
            )
        }
        b'-' | b'0'..=b'9' => Node::Number(text.to_owned()),
        _ => Node::Leaf(serde_json::from_str(text).ok()?),
    })
}

/// The members of an object, in the order of its text.
struct Members<'t>(Vec<(String, &'t RawValue)>);

impl<'t> Deserialize<'t> for Members<'t> {
    fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Members<'t>, D::Error> {
        struct Each;
        impl<'t> Visitor<'t> for Each {
            type Value = Members<'t>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Members<'t>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// `in_array`: as an element of an array, whose integers ClickHouse may keep as Float64 where
/// others of the array, or other rows of the column, are of that type.
fn equal(ours: &Node, stored: &Node, in_array: bool) -> bool {
    match (ours, stored) {
        (Node::Object(ours), Node::Object(stored)) => {
            let (mut left, mut right) = (BTreeMap::new(), BTreeMap::new());
            collect(None, ours, &mut left);
            collect(None, stored, &mut right);
            left.len() == right.len()
                && left
                    .iter()
                    .zip(&right)
                    .all(|((a, ours), (b, stored))| a == b && equal(ours, stored, false))
        }
        (Node::Array(ours), Node::Array(stored)) => equal_lists(vec![(ours, stored)]),
        (Node::Number(ours), Node::Number(stored)) => equal_numbers(ours, stored, in_array),
        (Node::Leaf(ours), Node::Leaf(stored)) => ours == stored,
        _ => false,
    }
}

/// Arrays that ClickHouse stores as one type. Of a list of lists a null comes back as an empty
/// list, unless its elements have no type in common.
fn equal_lists(mut lists: Vec<(&Vec<Node>, &Vec<Node>)>) -> bool {
    let is_list = |node: &Node| matches!(node, Node::Array(_));
    loop {
        if lists.iter().any(|(ours, stored)| ours.len() != stored.len()) {
            return false;
        }
        let elements = || lists.iter().flat_map(|(ours, _)| ours.iter());
        let is_of_lists =
            elements().any(is_list) && elements().all(|node| is_list(node) || is_null(node));
        let mut inner = Vec::new();
        for (a, b) in lists.iter().flat_map(|(ours, stored)| ours.iter().zip(stored.iter())) {
            match (a, b) {
                (a, Node::Array(empty)) if is_of_lists && is_null(a) && empty.is_empty() => {}
                (Node::Array(a), Node::Array(b)) if is_of_lists => inner.push((a, b)),
                (a, b) if equal(a, b, true) => {}
                _ => return false,
            }
        }
        if inner.is_empty() {
            return true;
        }
        lists = inner;
    }
}

fn is_null(node: &Node) -> bool {
    matches!(node, Node::Leaf(Value::Null))
}

/// The leaves of an object by their dotted paths.
fn collect<'v>(
    path: Option<&str>,
    members: &'v [(String, Node)],
    leaves: &mut BTreeMap<String, &'v Node>,
) {
    for (name, member) in members {
        // An empty name is a name too.
        let path = path.map_or_else(|| name.clone(), |path| format!("{path}.{name}"));
        match member {
            Node::Object(members) => collect(Some(&path), members, leaves),
            node if is_null(node) => {}
            leaf => {
                leaves.insert(path, leaf);
            }
        }
    }
}

/// Digits alone are an Int64 or UInt64, which has no `-0`; with a point or an exponent they are a
/// Float64, which is given back by its shortest digits, with zeros up to the point (`-1e19` as
/// `-10000000000000000000`).
fn equal_numbers(ours: &str, stored: &str, in_array: bool) -> bool {
    // Above this a float equals several integers.
    const EXACT_MAX: f64 = 9e15;
    if ours == stored {
        return true;
    }
    let are_integers = (is_integer(ours), is_integer(stored));
    if are_integers == (true, true)
        && let (Ok(a), Ok(b)) = (ours.parse::<i128>(), stored.parse::<i128>())
        && (a == b || !in_array)
    {
        return a == b;
    }
    let (Ok(a), Ok(b)) = (ours.parse::<f64>(), stored.parse::<f64>()) else { return false };
    // Of integers this large, only the one that the float prints as is equal.
    let is_printed = || a.to_string() == stored;
    a == b
        && match are_integers {
            (false, false) => true,
            (false, true) => a.abs() < EXACT_MAX || is_printed(),
            (true, false) => a.abs() < EXACT_MAX || in_array,
            (true, true) => in_array && is_printed(),
        }
}

fn is_integer(text: &str) -> bool {
    !text.contains(['.', 'e', 'E'])
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
        assert!(is_same(br#"{"a":1,"a.b":2}"#, br#"{"a":1,"a":{"b":2}}"#));
        assert!(is_same(br#"{"d":[{"x":null,"y.z":1}]}"#, br#"{"d":[{"y":{"z":1}}]}"#));
    }

    /// As 26.9 gave them back.
    #[test]
    fn numbers_are_what_their_type_keeps_of_them() {
        for (ours, stored) in [
            ("-0", "0"),
            ("-0.0", "-0"),
            ("-0e0", "-0"),
            ("1e19", "10000000000000000000"),
            ("-1e19", "-10000000000000000000"),
            ("1.8446744073709552e19", "18446744073709552000"),
            ("18446744073709551615.0", "18446744073709552000"),
            ("-9223372036854775808.0", "-9223372036854776000"),
            ("9007199254740992.5", "9007199254740992"),
            ("1E+5", "100000"),
            ("1e-400", "0"),
            ("4.9e-324", "5e-324"),
            ("123456789.123456789", "123456789.12345679"),
            ("[9007199254740993,1.5]", "[9007199254740992,1.5]"),
            ("[18446744073709551615,-1,1.5]", "[18446744073709552000,-1,1.5]"),
            (
                "[9223372036854775807,18446744073709551615]",
                "[9223372036854776000,18446744073709552000]",
            ),
            ("[[9007199254740993],[null],[1.5]]", "[[9007199254740992],[null],[1.5]]"),
            ("[[1],null]", "[[1],[]]"),
            ("[[[1],null],null]", "[[[1],[]],[]]"),
        ] {
            let document = |value| format!("{{\"data\":{{\"x\":{value}}}}}");
            let (ours, stored) = (document(ours), document(stored));
            assert!(is_same(ours.as_bytes(), stored.as_bytes()), "{ours} {stored}");
        }
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
            (r#"{"a":1e19}"#, r#"{"a":10000000000000000001}"#),
            (r#"{"a":1,"a.b":2}"#, r#"{"a":{"b":2}}"#),
            (r#"{"a":1,"a.b":2}"#, r#"{"a":3,"a":{"b":2}}"#),
            (r#"{"a":-1e19}"#, r#"{"a":10000000000000000000}"#),
            (r#"{"a":9007199254740992.0}"#, r#"{"a":9007199254740993}"#),
            (r#"{"a":[9007199254740993,1]}"#, r#"{"a":[9007199254740991,1]}"#),
            (r#"{"a":[{"b":9007199254740993}]}"#, r#"{"a":[{"b":9007199254740992}]}"#),
            (r#"{"a":[9007199254740993,1.5]}"#, r#"{"a":[9007199254740994,1.5]}"#),
            (r#"{"a":18446744073709551615}"#, r#"{"a":18446744073709552000}"#),
            (r#"{"a":"-0"}"#, r#"{"a":0}"#),
            (r#"{"a":[null]}"#, r#"{"a":[[]]}"#),
            (r#"{"a":[[1],[]]}"#, r#"{"a":[[1],null]}"#),
            (r#"{"a":[[1],null]}"#, r#"{"a":[[1],[1]]}"#),
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
