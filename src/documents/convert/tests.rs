//! Documents in, documents out.

use super::*;
use proptest::prelude::*;
use serde_json::Value;

use crate::documents::tokens::DEPTH_MAX;

const JSON: &[u8] = b"application/json";
const SUPER: &[u8] = b"application/super+json";

fn check(content_type: &[u8], text: &str, expected: &str) -> DocumentOutcome {
    // What is already in the buffer stays.
    let mut out = b"before".to_vec();
    let outcome = append_document(Some(text.as_bytes()), content_type, &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), format!("before{expected}"), "{text}");
    outcome
}

fn repaired(text: &str, expected: &str) -> Repairs {
    match check(JSON, text, expected) {
        DocumentOutcome::Repaired(repairs) => repairs,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_document_passes_through_as_it_is() {
    for text in ["{\"b\": 1.0,\n \"a\":[1e5, -0, \"\\u0000\\/é😀\"] }", "null", "[]", "\"x\"", "5"]
    {
        assert_eq!(check(JSON, text, &format!("{{\"data\":{text}}}")), DocumentOutcome::Written);
    }
    assert_eq!(check(JSON, " \n[1] ", "{\"data\":[1]}"), DocumentOutcome::Written);
}

#[test]
fn nothing_to_write_is_an_empty_object_and_no_loss() {
    assert_eq!(check(JSON, "", "{}"), DocumentOutcome::Empty(Absent::NoText));
    for content_type in ["text/plain", "application/store", "application/JSON", ""] {
        let outcome = check(content_type.as_bytes(), "{\"a\":1}", "{}");
        assert_eq!(outcome, DocumentOutcome::Empty(Absent::ContentType));
        assert!(!outcome.lost_content());
    }
    let mut out = Vec::new();
    assert_eq!(append_document(None, JSON, &mut out), DocumentOutcome::Empty(Absent::NoText));
    assert_eq!(out, b"{}");
}

#[test]
fn what_is_not_json_is_replaced_and_said_to_be_lost() {
    let syntax = |at| DocumentOutcome::Invalid(Reason::Syntax { at });
    assert_eq!(check(JSON, "{\"secret\":1", "{}"), syntax(11));
    assert_eq!(check(JSON, "undefined", "{}"), syntax(0));
    assert_eq!(check(JSON, "{\"a\":\"\\ud800\",}", "{}"), syntax(14));
    assert_eq!(check(JSON, "[\"a\tb\"]", "{}"), syntax(3));
    assert!(syntax(1).lost_content());
    let mut out = Vec::new();
    let outcome = append_document(Some(b"\"\xed\xa0\x80\""), JSON, &mut out);
    assert_eq!((outcome, out), (DocumentOutcome::Invalid(Reason::NotUtf8), b"{}".to_vec()));
}

#[test]
fn too_deep_a_document_is_replaced_and_said_to_be_lost() {
    let deep = |n: usize| "{\"a\":".repeat(n) + "1" + &"}".repeat(n);
    let taken = deep(DEPTH_MAX);
    assert_eq!(check(JSON, &taken, &format!("{{\"data\":{taken}}}")), DocumentOutcome::Written);
    assert_eq!(check(JSON, &deep(DEPTH_MAX + 1), "{}"), DocumentOutcome::TooDeep);
    assert_eq!(check(JSON, &"[".repeat(10_000_000), "{}"), DocumentOutcome::TooDeep);
    assert!(DocumentOutcome::TooDeep.lost_content());
}

#[test]
fn only_lone_surrogates_are_replaced_and_the_rest_is_kept() {
    let repairs = repaired(
        r#"{"k\ud800":"a\uDBFFb","c":["\uDC00","\ud83d\ude00\ud83d","\\ud835"],"z":1}"#,
        r#"{"data":{"k\ufffd":"a\ufffdb","c":["\ufffd","\ud83d\ude00\ufffd","\\ud835"],"z":1}}"#,
    );
    assert_eq!(repairs, Repairs { surrogates: 4, ..Repairs::default() });
    assert!(DocumentOutcome::Repaired(repairs).lost_content());
    let clean = r#""\uD83D\uDE00 \\ud800""#;
    assert_eq!(check(JSON, clean, &format!("{{\"data\":{clean}}}")), DocumentOutcome::Written);
}

#[test]
fn numbers_out_of_range_become_strings_with_all_their_digits() {
    let held = "[9223372036854775808,18446744073709551615,-9223372036854775808,1e308,-0,\
                0.12345678901234567890123,1e-400,999999999999999999,-99999999999999999]";
    assert_eq!(check(JSON, held, &format!("{{\"data\":{held}}}")), DocumentOutcome::Written);
    for number in [
        "18446744073709551616",
        "-9223372036854775809",
        "123456789012345678901234567890",
        "1e400",
        "-1E+309",
        "1.7976931348623159e308",
        &("9".repeat(310) + ".5"),
        &"9".repeat(400),
    ] {
        let repairs = repaired(
            &format!("{{ \"a\" : {number} , \"b\" : 1 }}"),
            &format!("{{\"data\":{{ \"a\" : \"{number}\" , \"b\" : 1 }}}}"),
        );
        assert_eq!(repairs, Repairs { numbers: 1, ..Repairs::default() });
        assert!(!DocumentOutcome::Repaired(repairs).lost_content());
        let _ = repaired(number, &format!("{{\"data\":\"{number}\"}}"));
    }
}

#[test]
fn the_last_of_several_members_of_one_name_wins() {
    let repairs = repaired(
        r#"{"a":{"x":1},"b":"\ud800","a":2,"c":[{"\u0061":18446744073709551616,"a":3}]}"#,
        r#"{"data":{"b":"\ufffd","a":2,"c":[{"a":3}]}}"#,
    );
    let expected = Repairs { surrogates: 1, duplicates: 2, ..Repairs::default() };
    assert_eq!(repairs, expected, "what was dropped is not counted as mended too");
    let many: Vec<_> = (0..500).map(|n| format!("\"k{n}\":{n}")).collect();
    let unique = format!("{{{}}}", many.join(","));
    assert_eq!(check(JSON, &unique, &format!("{{\"data\":{unique}}}")), DocumentOutcome::Written);
    let twice = format!("{{\"k499\":0,{}}}", many.join(","));
    assert_eq!(repaired(&twice, &format!("{{\"data\":{unique}}}")).duplicates, 1);
}

#[test]
fn surrogates_that_become_alike_do_not_make_two_members_of_one_name() {
    let repairs = repaired(r#"{"\ud800":1,"\ud801":2}"#, r#"{"data":{"\ufffd":2}}"#);
    assert_eq!(repairs, Repairs { surrogates: 1, duplicates: 1, ..Repairs::default() });
}

#[test]
fn dotted_keys_are_kept_unless_their_paths_meet() {
    let apart = r#"{"http.status": 200, "http":{"url.path":"/"}}"#;
    assert_eq!(check(JSON, apart, &format!("{{\"data\":{apart}}}")), DocumentOutcome::Written);
    let repairs = repaired(r#"{"a.b":1,"a":{"b":2,"c":3}}"#, r#"{"data":{"a.b":1,"a":{"c":3}}}"#);
    assert_eq!(repairs, Repairs { shadowed: 1, ..Repairs::default() });
    assert!(DocumentOutcome::Repaired(repairs).lost_content());
}

#[test]
fn of_super_json_the_json_member_is_the_document() {
    let check = |text, expected| check(SUPER, text, expected);
    let text = r#"{"json": {"d":"2024-01-01T00:00:00.000Z"} ,"meta":{"values":{"d":["Date"]}}}"#;
    let expected = r#"{"data":{"d":"2024-01-01T00:00:00.000Z"}}"#;
    assert_eq!(check(text, expected), DocumentOutcome::Written);
    assert_eq!(check(r#"{"json":null,"meta":5}"#, r#"{"data":null}"#), DocumentOutcome::Written);
    assert_eq!(check(r#"{"json":1,"\u006ason":[2]}"#, r#"{"data":[2]}"#), DocumentOutcome::Written);
    let nested = r#"{"meta":{"json":"\ud800","a.b":{"x":1e999,"x":2}},"json":{"json":3}}"#;
    assert_eq!(check(nested, r#"{"data":{"json":3}}"#), DocumentOutcome::Written);
    assert!(matches!(
        check(r#"{"json":{"a":1,"a":2},"meta":{}}"#, r#"{"data":{"a":2}}"#),
        DocumentOutcome::Repaired(Repairs { duplicates: 1, .. })
    ));
    for text in ["{}", "{\"meta\":{}}", "[1]", "null", "\"json\""] {
        assert_eq!(check(text, "{}"), DocumentOutcome::Invalid(Reason::NoJsonMember));
    }
    for text in [r#"{"json":1"#, r#"{"json":1}x"#, r#"{"json":1,"meta":{]}"#, "[1"] {
        let outcome = check(text, "{}");
        assert!(matches!(outcome, DocumentOutcome::Invalid(Reason::Syntax { .. })), "{text}");
    }
}

#[test]
fn jsonb_without_a_value_is_null() {
    let mut out = Vec::new();
    assert_eq!(append_jsonb(None, &mut out), DocumentOutcome::Written);
    assert_eq!(out, b"{\"data\":null}");
    out.clear();
    let one_e_400 = format!("{{\"a\": 1{}}}", "0".repeat(400));
    assert!(matches!(
        append_jsonb(Some(one_e_400.as_bytes()), &mut out),
        DocumentOutcome::Repaired(_)
    ));
    assert!(out.starts_with(b"{\"data\":{\"a\": \"1000"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON", |f| f.is_finite()).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            // No dots: paths that meet have a test of their own.
            proptest::collection::vec(("[^.]{0,4}", inner), 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// JSON, with or without superjson's envelope, and at some place something else in it.
fn nearly_json() -> impl Strategy<Value = String> {
    let text = || {
        (any_json(), any::<bool>()).prop_map(|(value, pretty)| match pretty {
            true => serde_json::to_string_pretty(&value).unwrap(),
            false => value.to_string(),
        })
    };
    let envelope = prop_oneof![
        text(),
        text().prop_map(|text| format!("{{\"json\":{text}}}")),
        (text(), text()).prop_map(|(a, b)| format!("{{\"json\":{a},\"meta\":{b}}} ")),
    ];
    let others = prop_oneof![
        Just(String::new()),
        "[\\[\\]{}:,\"\\\\ud8.1eE+ a\n\0-]{0,3}",
        proptest::sample::select(vec![
            "\\ud800",
            "\\u00e9",
            "1e99",
            "1e400",
            "\"a\":1,",
            "\"a.b\":1,",
            ",\"json\":1",
            "[[",
        ])
        .prop_map(str::to_owned),
    ];
    (envelope, any::<proptest::sample::Index>(), 0..3_usize, others).prop_map(
        |(text, at, removed, other)| {
            let mut chars: Vec<char> = text.chars().collect();
            let at = at.index(chars.len());
            let end = (at + removed).min(chars.len());
            chars.splice(at..end, other.chars());
            chars.into_iter().collect()
        },
    )
}

#[test]
fn what_tasks_return_goes_the_quick_way() {
    let quick = |text: &str, envelope| {
        ordinary(text.as_bytes(), envelope, &mut Scanner::new()).map(<[u8]>::to_vec)
    };
    for text in [
        r#"{"id": "item_1", "score": 0.25, "tags": ["a", null], "n": {"id": -1}}"#,
        "[\n  1,\n  \"a\\nb \\u00e9 é\"\n]",
        "\"text\"",
    ] {
        assert_eq!(quick(text, Envelope::None).as_deref(), Some(text.as_bytes()));
        for superjson in [
            format!("{{\"json\":{text}}}"),
            format!("\n{{\"json\":{text},\"meta\":{{\"values\":[\"Date\"]}}}} "),
        ] {
            assert_eq!(quick(&superjson, Envelope::Superjson).as_deref(), Some(text.as_bytes()));
        }
        for other in [
            format!("{{\"json\":{text},\"json\":1}}"),
            format!("{{\"json\":{text},\"meta\":1,\"json\":2}}"),
            format!("{{\"json\":{text}}}}}"),
        ] {
            assert_eq!(quick(&other, Envelope::Superjson), None, "{other}");
        }
    }
}

proptest! {
    #[test]
    fn any_value_comes_out_as_it_went_in(value in any_json(), pretty in any::<bool>()) {
        let text = if pretty {
            serde_json::to_string_pretty(&value).unwrap()
        } else {
            value.to_string()
        };
        let mut out = Vec::new();
        let outcome = append_document(Some(text.as_bytes()), JSON, &mut out);
        prop_assert_eq!(outcome, DocumentOutcome::Written);
        let read: Value = serde_json::from_slice(&out).unwrap();
        prop_assert_eq!(read, serde_json::json!({ "data": value }));
    }

    #[test]
    fn repeated_and_dotted_keys_come_out_unique(
        keys in proptest::collection::vec("[ab]{1,2}(\\.[ab])?", 0..12),
        nested in proptest::collection::vec("[ab]{1,2}(\\.[ab])?", 0..6),
    ) {
        let members = |keys: &[String], value: &dyn Fn(usize) -> String| {
            let members: Vec<_> =
                keys.iter().enumerate().map(|(n, k)| format!("\"{k}\":{}", value(n))).collect();
            format!("{{{}}}", members.join(","))
        };
        let inner = members(&nested, &|n| n.to_string());
        let text = members(&keys, &|n| if n % 3 == 0 { inner.clone() } else { n.to_string() });
        let mut out = Vec::new();
        let outcome = append_document(Some(text.as_bytes()), JSON, &mut out);
        prop_assert!(matches!(outcome, DocumentOutcome::Written | DocumentOutcome::Repaired(_)));
        let mut again = Vec::new();
        let value = out.strip_prefix(OPENING).unwrap().strip_suffix(b"}").unwrap();
        prop_assert_eq!(append_document(Some(value), JSON, &mut again), DocumentOutcome::Written);
        prop_assert_eq!(again, out.clone());
        if let DocumentOutcome::Repaired(Repairs { shadowed: 0, .. }) = outcome {
            let read: Value = serde_json::from_slice(value).unwrap();
            prop_assert_eq!(read, serde_json::from_str::<Value>(&text).unwrap());
        }
    }

    #[test]
    fn the_quick_way_gives_what_the_pass_over_tokens_gives(text in nearly_json()) {
        for envelope in [Envelope::None, Envelope::Superjson] {
            if let Some(value) = ordinary(text.as_bytes(), envelope, &mut Scanner::new()) {
                let mut out = Vec::new();
                let outcome = append_mended(text.as_bytes(), envelope, &mut Keys::new(), &mut out);
                prop_assert_eq!(outcome, DocumentOutcome::Written);
                prop_assert_eq!(out, [OPENING, value, b"}"].concat());
            }
        }
    }

    #[test]
    fn any_bytes_make_one_object(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        text in "[\\[\\]{}:,\"\\\\ud8.1e a]{0,40}",
    ) {
        for input in [bytes.as_slice(), text.as_bytes()] {
            for content_type in [JSON, SUPER] {
                let mut out = Vec::new();
                let outcome = append_document(Some(input), content_type, &mut out);
                let read: Value = serde_json::from_slice(&out).unwrap();
                let members = read.as_object().unwrap();
                use DocumentOutcome::{Repaired, Written};
                let written = matches!(outcome, Written | Repaired(_));
                prop_assert_eq!(members.contains_key("data"), written);
            }
        }
    }
}
