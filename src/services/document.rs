//! Turns a JSON document of Postgres into the text of a ClickHouse JSON column, `{"data":...}`.
//!
//! The text passes through as it is, in one pass; only what ClickHouse would refuse or would
//! read differently from `JSON.parse` is changed, and the outcome says so. Whatever the bytes, it
//! appends exactly one JSON object. ClickHouse 25.5 and 26.9 accepted each of thousands of random
//! ones; what 24.8 and 25.5 refuse all the same is due to how they guess the type of mixed arrays
//! (`[true,1.5]`), and refused rows are for salvage.
//!
//! - A lone surrogate becomes U+FFFD. ClickHouse refuses the row for it.
//! - An integer outside [-2^63, 2^64) and a number beyond the range of Float64 become strings with
//!   all their digits. 24.8 refuses the row for either, 26.9 for the latter.
//! - Of members with one name the last is kept, as `JSON.parse` does. ClickHouse keeps the first,
//!   or refuses the row: converting a Native String column it does not see the setting
//!   `type_json_skip_duplicated_paths`.
//! - Of members whose dotted paths meet (`{"a.b":1,"a":{"b":2}}`) the first is kept: for ClickHouse
//!   they are one path.
//!
//! It does not rewrite fractions: their text reaches ClickHouse, which holds them as Float64, the
//! same double that JavaScript sees. It does not look at superjson's metadata: the `json` member
//! already is the plain form of every value. So a document whose metadata superjson rejects is
//! kept, where the source system stores nothing.

use std::cell::RefCell;
use std::ops::Range;

use super::json_paths::{self, Suspicion};
use super::json_string;
use super::json_text::{Fault, Kind, Quoted, Token, Tokens};
pub use super::outcome::{Absent, Outcome, Reason, Repairs};

const OPENING: &[u8] = b"{\"data\":";
const NOTHING: &[u8] = b"{}";

/// For `output` and `payload`: text, and beside it its content type.
pub fn append_document(text: Option<&[u8]>, content_type: &[u8], out: &mut Vec<u8>) -> Outcome {
    let read_value = match content_type {
        b"application/json" => whole_value,
        b"application/super+json" => json_member,
        _ => return nothing(Absent::ContentType, out),
    };
    match text {
        None | Some([]) => nothing(Absent::NoText, out),
        Some(text) => append(text, read_value, out),
    }
}

/// For `error` and `metadata`: jsonb, as text. Nothing there is `{"data":null}`.
pub fn append_jsonb(text: Option<&[u8]>, out: &mut Vec<u8>) -> Outcome {
    append(text.unwrap_or(b"null"), whole_value, out)
}

fn nothing(absent: Absent, out: &mut Vec<u8>) -> Outcome {
    out.extend_from_slice(NOTHING);
    Outcome::Empty(absent)
}

type ReadValue = fn(&mut Pass<'_>, &mut Tokens<'_>) -> Result<Range<usize>, Refusal>;

fn append(text: &[u8], read_value: ReadValue, out: &mut Vec<u8>) -> Outcome {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
    }
    let start = out.len();
    let result = SCRATCH.with_borrow_mut(|scratch| {
        scratch.reset();
        append_wrapped(text, read_value, scratch, out)
    });
    match result {
        Ok(repairs) if repairs == Repairs::default() => Outcome::Written,
        Ok(repairs) => Outcome::Repaired(repairs),
        Err(refusal) => {
            out.truncate(start);
            out.extend_from_slice(NOTHING);
            match refusal {
                Refusal::Fault(Fault::TooDeep) => Outcome::TooDeep,
                Refusal::Fault(Fault::Syntax { at }) => Outcome::Invalid(Reason::Syntax { at }),
                Refusal::Reason(reason) => Outcome::Invalid(reason),
            }
        }
    }
}

fn append_wrapped(
    text: &[u8],
    read_value: ReadValue,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<Repairs, Refusal> {
    if std::str::from_utf8(text).is_err() {
        return Err(Refusal::Reason(Reason::NotUtf8));
    }
    // A little more than the text, so that an ordinary document grows the buffer once at most.
    out.reserve(text.len() + OPENING.len() + 1);
    out.extend_from_slice(OPENING);
    let start = out.len();
    let mut pass = Pass { out, scratch, watch: true, found: Found::default() };
    let value = read_value(&mut pass, &mut Tokens::new(text))?;
    let mut found = pass.found;
    if found.same_hash || found.dotted_key {
        let value = text.get(value).unwrap_or_default();
        let suspicion =
            if found.same_hash { Suspicion::RepeatedOrMeeting } else { Suspicion::MeetingOnly };
        if let Some(resolved) = json_paths::resolve(value, suspicion)? {
            pass.out.truncate(start);
            pass.watch = false;
            pass.found = Found::default();
            pass.value(&mut Tokens::new(&resolved.text))?;
            found = pass.found;
            found.repairs.duplicates = resolved.duplicates;
            found.repairs.shadowed = resolved.shadowed;
        }
    }
    out.push(b'}');
    Ok(found.repairs)
}

/// The document is the value.
fn whole_value(pass: &mut Pass<'_>, tokens: &mut Tokens<'_>) -> Result<Range<usize>, Refusal> {
    let value = pass.value(tokens)?;
    tokens.finish()?;
    Ok(value)
}

/// The document is superjson's envelope, and the value is its (last) member `json`.
fn json_member(pass: &mut Pass<'_>, tokens: &mut Tokens<'_>) -> Result<Range<usize>, Refusal> {
    let start = pass.out.len();
    let mut value = None;
    if tokens.next_token()? == Some(Token::Open(Kind::Object)) {
        while let Some(Token::Key(key)) = tokens.next_token()? {
            let raw = tokens.raw(key.start, key.end);
            if json_string::decode(raw).as_deref() == Some("json") {
                pass.out.truncate(start);
                pass.found = Found::default();
                value = Some(pass.value(tokens)?);
            } else {
                tokens.skip_value()?;
            }
        }
    }
    tokens.finish()?;
    value.ok_or(Refusal::Reason(Reason::NoJsonMember))
}

enum Refusal {
    Fault(Fault),
    Reason(Reason),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        Refusal::Fault(fault)
    }
}

/// Buffers that live as long as the thread, so that a document costs no allocation.
struct Scratch {
    /// Of every key of every open object.
    key_hashes: Vec<u64>,
    /// For every open object, where its hashes begin.
    objects: Vec<usize>,
    key: Vec<u8>,
}

impl Scratch {
    const fn new() -> Scratch {
        Scratch { key_hashes: Vec::new(), objects: Vec::new(), key: Vec::new() }
    }

    fn reset(&mut self) {
        // Half a megabyte: enough for any usual document, and what a huge one may leave behind.
        const KEPT_MAX: usize = 1 << 16;
        self.key_hashes.clear();
        self.key_hashes.shrink_to(KEPT_MAX);
        self.objects.clear();
        self.key.clear();
        self.key.shrink_to(KEPT_MAX);
    }
}

#[derive(Default)]
struct Found {
    repairs: Repairs,
    /// Two keys of one object may be the same.
    same_hash: bool,
    /// Two paths may meet.
    dotted_key: bool,
}

/// Copies one value from tokens to `out`, mending what is mended in place.
struct Pass<'p> {
    out: &'p mut Vec<u8>,
    scratch: &'p mut Scratch,
    /// Look for keys that `json_paths` must resolve.
    watch: bool,
    found: Found,
}

impl Pass<'_> {
    /// To be called where a value begins. Returns where it is, without surrounding white space.
    fn value(&mut self, tokens: &mut Tokens<'_>) -> Result<Range<usize>, Fault> {
        let depth = tokens.depth();
        let start = tokens.next_start();
        // What was read but is not copied yet begins here.
        let mut uncopied = start;
        while let Some(token) = tokens.next_token()? {
            match token {
                Token::Open(Kind::Object) => {
                    self.scratch.objects.push(self.scratch.key_hashes.len());
                }
                Token::Close(Kind::Object) => self.close_object(),
                Token::Key(key) => {
                    let raw = tokens.raw(key.start, key.end);
                    if self.watch {
                        self.note_key(raw, key.escaped);
                    }
                    self.mend_surrogates(key, tokens, &mut uncopied);
                }
                Token::String(string) => {
                    self.mend_surrogates(string, tokens, &mut uncopied);
                }
                Token::Number { start, end, integer } => {
                    let raw = tokens.raw(start, end);
                    if !clickhouse_holds(raw, integer) {
                        self.out.extend_from_slice(tokens.raw(uncopied, start));
                        self.out.push(b'"');
                        self.out.extend_from_slice(raw);
                        self.out.push(b'"');
                        uncopied = end;
                        self.found.repairs.numbers += 1;
                    }
                }
                Token::Open(Kind::Array)
                | Token::Close(Kind::Array)
                | Token::True
                | Token::False
                | Token::Null => {}
            }
            if tokens.depth() == depth && !matches!(token, Token::Key(_)) {
                break;
            }
        }
        self.out.extend_from_slice(tokens.raw(uncopied, tokens.at()));
        Ok(start..tokens.at())
    }

    fn mend_surrogates(&mut self, quoted: Quoted, tokens: &Tokens<'_>, uncopied: &mut usize) {
        if quoted.lone_surrogates > 0 {
            self.out.extend_from_slice(tokens.raw(*uncopied, quoted.start));
            let raw = tokens.raw(quoted.start, quoted.end);
            json_string::append_without_lone_surrogates(raw, self.out);
            *uncopied = quoted.end;
            self.found.repairs.surrogates += quoted.lone_surrogates;
        }
    }

    fn note_key(&mut self, raw: &[u8], escaped: bool) {
        let Scratch { key_hashes, key, .. } = &mut *self.scratch;
        let name = if escaped {
            key.clear();
            json_string::decode_into(raw, key);
            key.as_slice()
        } else {
            json_string::unquoted(raw)
        };
        let (hash, has_dot) = hash_and_dot(name);
        key_hashes.push(hash);
        self.found.dotted_key |= has_dot;
    }

    fn close_object(&mut self) {
        let Some(start) = self.scratch.objects.pop() else { return };
        let hashes = self.scratch.key_hashes.get_mut(start..).unwrap_or_default();
        // Up to here comparing each with each is the cheaper way.
        const FEW: usize = 12;
        self.found.same_hash |= if hashes.len() <= FEW {
            hashes.iter().enumerate().any(|(n, hash)| hashes[..n].contains(hash))
        } else {
            hashes.sort_unstable();
            hashes.windows(2).any(|pair| pair[0] == pair[1])
        };
        self.scratch.key_hashes.truncate(start);
    }
}

/// Of a key: a hash, and whether it has a dot. The hash only raises a suspicion: whatever hashes
/// alike is compared in full by `json_paths`.
fn hash_and_dot(name: &[u8]) -> (u64, bool) {
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    const ONES: u64 = 0x0101_0101_0101_0101;
    let (words, tail) = name.as_chunks::<8>();
    let mut last = [0; 8];
    last.iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
    let (mut hash, mut dots) = (name.len() as u64, 0);
    for word in words.iter().chain([&last]) {
        let word = u64::from_le_bytes(*word);
        hash = (hash ^ word).wrapping_mul(FACTOR).rotate_left(29);
        // The high bit of a byte is set if it is a dot, and of no byte if none is.
        let zero_if_dot = word ^ (ONES * b'.' as u64);
        dots |= zero_if_dot.wrapping_sub(ONES) & !zero_if_dot & (ONES << 7);
    }
    (hash, dots != 0)
}

/// Is the number one that every ClickHouse takes, and takes as a number?
fn clickhouse_holds(raw: &[u8], integer: bool) -> bool {
    // No run of this many digits leaves the range, whichever sign.
    const SAFE_INTEGER_LEN: usize = 18;
    // The largest double has 309 digits.
    const SAFE_FRACTION_LEN: usize = 300;
    if integer && raw.len() <= SAFE_INTEGER_LEN {
        return true;
    }
    let text = std::str::from_utf8(raw).unwrap_or_default();
    if integer {
        return text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok();
    }
    let is_small = raw.len() <= SAFE_FRACTION_LEN && !raw.iter().any(|b| matches!(b, b'e' | b'E'));
    is_small || text.parse::<f64>().is_ok_and(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    use crate::services::json_text::DEPTH_MAX;

    const JSON: &[u8] = b"application/json";
    const SUPER: &[u8] = b"application/super+json";

    fn check(content_type: &[u8], text: &str, expected: &str) -> Outcome {
        // What is already in the buffer stays.
        let mut out = b"before".to_vec();
        let outcome = append_document(Some(text.as_bytes()), content_type, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("before{expected}"), "{text}");
        outcome
    }

    fn repaired(text: &str, expected: &str) -> Repairs {
        match check(JSON, text, expected) {
            Outcome::Repaired(repairs) => repairs,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_document_passes_through_as_it_is() {
        for text in
            ["{\"b\": 1.0,\n \"a\":[1e5, -0, \"\\u0000\\/é😀\"] }", "null", "[]", "\"x\"", "5"]
        {
            assert_eq!(check(JSON, text, &format!("{{\"data\":{text}}}")), Outcome::Written);
        }
        assert_eq!(check(JSON, " \n[1] ", "{\"data\":[1]}"), Outcome::Written);
    }

    #[test]
    fn nothing_to_write_is_an_empty_object_and_no_loss() {
        assert_eq!(check(JSON, "", "{}"), Outcome::Empty(Absent::NoText));
        for content_type in ["text/plain", "application/store", "application/JSON", ""] {
            let outcome = check(content_type.as_bytes(), "{\"a\":1}", "{}");
            assert_eq!(outcome, Outcome::Empty(Absent::ContentType));
            assert!(!outcome.lost_content());
        }
        let mut out = Vec::new();
        assert_eq!(append_document(None, JSON, &mut out), Outcome::Empty(Absent::NoText));
        assert_eq!(out, b"{}");
    }

    #[test]
    fn what_is_not_json_is_replaced_and_said_to_be_lost() {
        let syntax = |at| Outcome::Invalid(Reason::Syntax { at });
        assert_eq!(check(JSON, "{\"secret\":1", "{}"), syntax(11));
        assert_eq!(check(JSON, "undefined", "{}"), syntax(0));
        assert_eq!(check(JSON, "{\"a\":\"\\ud800\",}", "{}"), syntax(14));
        assert_eq!(check(JSON, "[\"a\tb\"]", "{}"), syntax(3));
        assert!(syntax(1).lost_content());
        let mut out = Vec::new();
        let outcome = append_document(Some(b"\"\xed\xa0\x80\""), JSON, &mut out);
        assert_eq!((outcome, out), (Outcome::Invalid(Reason::NotUtf8), b"{}".to_vec()));
    }

    #[test]
    fn too_deep_a_document_is_replaced_and_said_to_be_lost() {
        let deep = |n: usize| "{\"a\":".repeat(n) + "1" + &"}".repeat(n);
        let taken = deep(DEPTH_MAX);
        assert_eq!(check(JSON, &taken, &format!("{{\"data\":{taken}}}")), Outcome::Written);
        assert_eq!(check(JSON, &deep(DEPTH_MAX + 1), "{}"), Outcome::TooDeep);
        assert_eq!(check(JSON, &"[".repeat(10_000_000), "{}"), Outcome::TooDeep);
        assert!(Outcome::TooDeep.lost_content());
    }

    #[test]
    fn only_lone_surrogates_are_replaced_and_the_rest_is_kept() {
        let repairs = repaired(
            r#"{"k\ud800":"a\uDBFFb","c":["\uDC00","\ud83d\ude00\ud83d","\\ud835"],"z":1}"#,
            r#"{"data":{"k\ufffd":"a\ufffdb","c":["\ufffd","\ud83d\ude00\ufffd","\\ud835"],"z":1}}"#,
        );
        assert_eq!(repairs, Repairs { surrogates: 4, ..Repairs::default() });
        assert!(Outcome::Repaired(repairs).lost_content());
        let clean = r#""\uD83D\uDE00 \\ud800""#;
        assert_eq!(check(JSON, clean, &format!("{{\"data\":{clean}}}")), Outcome::Written);
    }

    #[test]
    fn numbers_out_of_range_become_strings_with_all_their_digits() {
        let held = "[9223372036854775808,18446744073709551615,-9223372036854775808,1e308,-0,\
                    0.12345678901234567890123,1e-400,999999999999999999,-99999999999999999]";
        assert_eq!(check(JSON, held, &format!("{{\"data\":{held}}}")), Outcome::Written);
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
            assert!(!Outcome::Repaired(repairs).lost_content());
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
        assert_eq!(check(JSON, &unique, &format!("{{\"data\":{unique}}}")), Outcome::Written);
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
        assert_eq!(check(JSON, apart, &format!("{{\"data\":{apart}}}")), Outcome::Written);
        let repairs =
            repaired(r#"{"a.b":1,"a":{"b":2,"c":3}}"#, r#"{"data":{"a.b":1,"a":{"c":3}}}"#);
        assert_eq!(repairs, Repairs { shadowed: 1, ..Repairs::default() });
        assert!(Outcome::Repaired(repairs).lost_content());
    }

    #[test]
    fn of_super_json_the_json_member_is_the_document() {
        let check = |text, expected| check(SUPER, text, expected);
        let text =
            r#"{"json": {"d":"2024-01-01T00:00:00.000Z"} ,"meta":{"values":{"d":["Date"]}}}"#;
        let expected = r#"{"data":{"d":"2024-01-01T00:00:00.000Z"}}"#;
        assert_eq!(check(text, expected), Outcome::Written);
        assert_eq!(check(r#"{"json":null,"meta":5}"#, r#"{"data":null}"#), Outcome::Written);
        assert_eq!(check(r#"{"json":1,"\u006ason":[2]}"#, r#"{"data":[2]}"#), Outcome::Written);
        let nested = r#"{"meta":{"json":"\ud800","a.b":{"x":1e999,"x":2}},"json":{"json":3}}"#;
        assert_eq!(check(nested, r#"{"data":{"json":3}}"#), Outcome::Written);
        assert!(matches!(
            check(r#"{"json":{"a":1,"a":2},"meta":{}}"#, r#"{"data":{"a":2}}"#),
            Outcome::Repaired(Repairs { duplicates: 1, .. })
        ));
        for text in ["{}", "{\"meta\":{}}", "[1]", "null", "\"json\""] {
            assert_eq!(check(text, "{}"), Outcome::Invalid(Reason::NoJsonMember));
        }
        for text in [r#"{"json":1"#, r#"{"json":1}x"#, r#"{"json":1,"meta":{]}"#, "[1"] {
            let outcome = check(text, "{}");
            assert!(matches!(outcome, Outcome::Invalid(Reason::Syntax { .. })), "{text}");
        }
    }

    #[test]
    fn jsonb_without_a_value_is_null() {
        let mut out = Vec::new();
        assert_eq!(append_jsonb(None, &mut out), Outcome::Written);
        assert_eq!(out, b"{\"data\":null}");
        out.clear();
        let one_e_400 = format!("{{\"a\": 1{}}}", "0".repeat(400));
        assert!(matches!(append_jsonb(Some(one_e_400.as_bytes()), &mut out), Outcome::Repaired(_)));
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
            prop_assert_eq!(outcome, Outcome::Written);
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
            prop_assert!(matches!(outcome, Outcome::Written | Outcome::Repaired(_)));
            let mut again = Vec::new();
            let value = out.strip_prefix(OPENING).unwrap().strip_suffix(b"}").unwrap();
            prop_assert_eq!(append_document(Some(value), JSON, &mut again), Outcome::Written);
            prop_assert_eq!(again, out.clone());
            if let Outcome::Repaired(Repairs { shadowed: 0, .. }) = outcome {
                let read: Value = serde_json::from_slice(value).unwrap();
                prop_assert_eq!(read, serde_json::from_str::<Value>(&text).unwrap());
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
                    let written = matches!(outcome, Outcome::Written | Outcome::Repaired(_));
                    prop_assert_eq!(members.contains_key("data"), written);
                }
            }
        }
    }
}
