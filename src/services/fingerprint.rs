//! Groups errors that differ only in ids, times, paths and the like: a fingerprint of their type
//! and message.
//!
//! The fingerprint is a key in tables that other programs fill too, so it is the source system's to
//! the bit, quirks included: the stack that runs really store (`stackTrace`) is not part of it, and
//! the patterns are those of JavaScript, where `\b` and `\d` are ASCII and lengths are in UTF-16.
//! In two cases the source system has no answer (it throws): a message or a stack that is not a
//! string is used as JavaScript's template literals would print it.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::LazyLock;

use regex::Regex;
use sha2::{Digest, Sha256};

use crate::documents::strings;
use crate::documents::tokens::{self, Token, TokenKind, Tokens};

const STATUSES: [&str; 5] =
    ["SYSTEM_FAILURE", "CRASHED", "INTERRUPTED", "COMPLETED_WITH_ERRORS", "TIMED_OUT"];

/// How many lines of the stack count.
const STACK_LINES: usize = 5;

/// 16 hex digits, or nothing if the run did not fail or its error is not a JSON object. `error` is
/// the text of the jsonb.
pub fn error_fingerprint(error: Option<&[u8]>, status: &[u8]) -> String {
    if !STATUSES.iter().any(|failed| failed.as_bytes() == status) {
        return String::new();
    }
    let Some([kind, name, message, raw, stack, stacktrace]) = error.and_then(|error| {
        tokens::members(error, ["type", "name", "message", "raw", "stack", "stacktrace"])
    }) else {
        return String::new();
    };
    let kind = first_truthy([kind, name]).unwrap_or("Error".into());
    let message = normalise_message(&first_truthy([message, name, raw]).unwrap_or_default());
    let stack = normalise_stack(&first_truthy([stack, stacktrace]).unwrap_or_default());
    let digest = Sha256::digest(format!("{kind}:{message}:{stack}"));
    digest.iter().take(8).fold(String::with_capacity(16), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn first_truthy<'a, const N: usize>(members: [Option<&'a [u8]>; N]) -> Option<Cow<'a, str>> {
    members.into_iter().flatten().find_map(truthy_text)
}

struct Rule {
    pattern: Regex,
    replacement: &'static str,
}

fn rules<const N: usize>(rules: [(&str, &'static str); N]) -> [Rule; N] {
    rules.map(|(pattern, replacement)| Rule {
        pattern: Regex::new(&pattern.replace("SPACE", JS_SPACE)).expect("the pattern is valid"),
        replacement,
    })
}

/// JavaScript's `\s`, for use in a class.
const JS_SPACE: &str = concat!(
    r"\t\n\x0B\x0C\r \u{A0}\u{1680}\u{2000}-\u{200A}",
    r"\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}\u{FEFF}"
);

fn is_js_space(c: char) -> bool {
    matches!(c,
        '\t'..='\r' | ' ' | '\u{A0}' | '\u{1680}' | '\u{2000}'..='\u{200A}' | '\u{2028}'
        | '\u{2029}' | '\u{202F}' | '\u{205F}' | '\u{3000}' | '\u{FEFF}')
}

/// In this order; the two rules for quoted strings come after them.
static MESSAGE_RULES: LazyLock<[Rule; 11]> = LazyLock::new(|| {
    rules([
        (r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}", "<uuid>"),
        (r"run_[a-zA-Z0-9]+", "<run-id>"),
        (r"(?-u:\b)[a-z]+_[a-zA-Z0-9]{8,}(?-u:\b)", "<id>"),
        (r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?Z?", "<timestamp>"),
        (r"(?-u:\b)[0-9]{10,13}(?-u:\b)", "<timestamp>"),
        (r"https?://[^SPACE]+", "<url>"),
        (r"(?-u:\b)[0-9]{4,}(?-u:\b)", "<id>"),
        (r"(?:/[^/SPACE]+){2,}", "<path>"),
        (r"[A-Z]:\\(?:[^\\]+\\)+[^\\]+", "<path>"),
        // The bar in the last class is intended.
        (r"(?-u:\b)[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Z|a-z]{2,}(?-u:\b)", "<email>"),
        (r"0x[0-9a-fA-F]{8,}", "<addr>"),
    ])
});

static STACK_RULES: LazyLock<[Rule; 3]> = LazyLock::new(|| {
    rules([
        (r":[0-9]+:[0-9]+", ":_:_"),
        (r"(?-u:\b)[0-9]+(?-u:\b)", "_"),
        (r"(?:/[^/SPACE]+)+/([^/SPACE]+)", "$1"),
    ])
});

fn apply<'a>(rules: &[Rule], text: &'a str) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    for Rule { pattern, replacement } in rules {
        if let Cow::Owned(replaced) = pattern.replace_all(&text, *replacement) {
            text = Cow::Owned(replaced);
        }
    }
    text
}

fn normalise_message(message: &str) -> String {
    let text = apply(&*MESSAGE_RULES, message);
    let text = replace_quoted(&text, '"', "\"<string>\"");
    replace_quoted(&text, '\'', "'<string>'")
}

/// `Q[^Q]{20,}Q` for a quote Q, by hand: the 20 count UTF-16 units, which no pattern here can.
fn replace_quoted(text: &str, quote: char, replacement: &str) -> String {
    const UNITS_MIN: usize = 20;
    let mut out = String::with_capacity(text.len());
    let mut parts = text.split(quote);
    out.push_str(parts.next().unwrap_or_default());
    // Before each part there is a quote that may begin a string.
    while let Some(part) = parts.next() {
        match parts.clone().next() {
            Some(_) if part.encode_utf16().take(UNITS_MIN).count() == UNITS_MIN => {
                out.push_str(replacement);
                // Its closing quote begins nothing.
                out.push_str(parts.next().unwrap_or_default());
            }
            _ => {
                out.push(quote);
                out.push_str(part);
            }
        }
    }
    out
}

fn normalise_stack(stack: &str) -> String {
    let lines = stack.split('\n').take(STACK_LINES).map(|line| apply(&*STACK_RULES, line));
    lines.fold(String::new(), |mut out, line| {
        let line = line.trim_matches(is_js_space);
        if !out.is_empty() && !line.is_empty() {
            out.push('|');
        }
        out.push_str(line);
        out
    })
}

/// What JavaScript prints for the value in a template literal; `None` if the value is falsy.
fn truthy_text(raw: &[u8]) -> Option<Cow<'_, str>> {
    match raw.first()? {
        b'"' => strings::decode(raw).filter(|text| !text.is_empty()),
        b't' => Some("true".into()),
        b'{' => Some(OBJECT.into()),
        b'[' => Some(array_text(raw).into()),
        b'-' | b'0'..=b'9' => number_text(raw).filter(|text| text != "0").map(Cow::Owned),
        _ => None,
    }
}

const OBJECT: &str = "[object Object]";

fn number_text(raw: &[u8]) -> Option<String> {
    let number: f64 = std::str::from_utf8(raw).ok()?.parse().ok()?;
    let size = number.abs();
    Some(if number.is_infinite() {
        if number > 0.0 { "Infinity".into() } else { "-Infinity".into() }
    } else if size == 0.0 {
        "0".into()
    } else if (1e-6..1e21).contains(&size) {
        number.to_string()
    } else {
        let text = format!("{number:e}");
        if size >= 1.0 { text.replace('e', "e+") } else { text }
    })
}

/// Elements joined by commas, arrays in it likewise, and nothing for null.
fn array_text(raw: &[u8]) -> String {
    let mut out = String::new();
    let mut tokens = Tokens::new(raw);
    // An element follows another one of the same array unless an array was just opened.
    let mut opened = true;
    while let Ok(Some(token)) = tokens.next_token() {
        if !matches!(token, Token::Close(_)) && !opened {
            out.push(',');
        }
        opened = token == Token::Open(TokenKind::Array);
        match token {
            Token::Open(TokenKind::Object) => {
                out.push_str(OBJECT);
                let depth = tokens.depth();
                while tokens.depth() >= depth && matches!(tokens.next_token(), Ok(Some(_))) {}
            }
            Token::String(string) => {
                let raw = tokens.raw(string.start, string.end);
                out.push_str(&strings::decode(raw).unwrap_or_default());
            }
            Token::Number { start, end, .. } => {
                out.push_str(&number_text(tokens.raw(start, end)).unwrap_or_default());
            }
            Token::True => out.push_str("true"),
            Token::False => out.push_str("false"),
            Token::Open(TokenKind::Array) | Token::Close(_) | Token::Key(_) | Token::Null => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn of(error: &str) -> String {
        error_fingerprint(Some(error.as_bytes()), b"CRASHED")
    }

    #[test]
    fn equals_what_the_same_rules_make_in_javascript() {
        // Made with Node 20 from an independent copy of the rules: cases by hand, then random ones.
        let vectors: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/data/fingerprint.json")).unwrap();
        assert!(vectors.len() > 300);
        for vector in vectors {
            let text = |name: &str| vector[name].as_str().unwrap();
            let found =
                error_fingerprint(Some(text("error").as_bytes()), text("status").as_bytes());
            assert_eq!(found, text("fingerprint"), "{vector}");
        }
    }

    #[test]
    fn only_failed_runs_with_an_error_object_have_one() {
        let error = Some(b"{\"message\":\"x\"}".as_slice());
        for status in STATUSES {
            assert_eq!(error_fingerprint(error, status.as_bytes()).len(), 16);
        }
        assert_eq!(error_fingerprint(error, b"COMPLETED_SUCCESSFULLY"), "");
        assert_eq!(error_fingerprint(None, b"CRASHED"), "");
        for not_an_object in ["null", "[]", "\"x\"", "5", "", "{", "{} x"] {
            assert_eq!(of(not_an_object), "", "{not_an_object}");
        }
    }

    #[test]
    fn message_patterns_are_replaced_in_their_order() {
        let cases = [
            ("id 123E4567-e89b-12d3-a456-426614174000", "id <uuid>"),
            ("run_abc1 of task_cm1234567", "<run-id> of <id>"),
            ("2024-01-02T03:04:05.678Z 1700000000 12345", "<timestamp> <timestamp> <id>"),
            ("get https://a.b/c?d=1 now", "get <url> now"),
            ("open /a/b/c.js, /single", "open <path> /single"),
            ("C:\\Users\\me\\x.txt", "<path>"),
            ("to a.b@c.co at 0xdeadbeef", "to <email> at <addr>"),
            (
                "got \"a text that is longer\" 'one more that is long'",
                "got \"<string>\" '<string>'",
            ),
            ("got \"a short text\"", "got \"a short text\""),
            // A rule sees what the ones before it made: the timestamp leaves no digits.
            ("\"at 1700000000 it broke\"", "\"<string>\""),
            ("\"1700000000000000000000\"", "\"<id>\""),
        ];
        for (message, expected) in cases {
            assert_eq!(normalise_message(message), expected, "{message}");
        }
    }

    #[test]
    fn quoted_strings_are_measured_in_utf_16_units() {
        let faces = |n: usize| format!("\"{}\"", "😀".repeat(n));
        assert_eq!(normalise_message(&faces(10)), "\"<string>\"");
        assert_eq!(normalise_message(&faces(9)), faces(9));
        // A quote that closes no string may open one.
        assert_eq!(normalise_message("\"x\"aaaaaaaaaaaaaaaaaaaa\"y\""), "\"x\"<string>\"y\"");
    }

    #[test]
    fn of_a_stack_five_lines_count_without_places() {
        let stack = "Error: x\n at f (/app/src/a.ts:10:20)\n\n at 12\n at g\n at h";
        assert_eq!(normalise_stack(stack), "Error: x|at f (a.ts:_:_)|at _|at g");
    }

    #[test]
    fn the_stack_that_runs_store_is_not_part_of_it() {
        let with = of(r#"{"type":"BUILT_IN_ERROR","message":"m","stackTrace":"at a:1:2"}"#);
        assert_eq!(with, of(r#"{"message":"m","type":"BUILT_IN_ERROR"}"#));
        assert_ne!(with, of(r#"{"message":"m","type":"BUILT_IN_ERROR","stack":"at a"}"#));
    }

    #[test]
    fn errors_without_a_message_are_told_apart_by_name_or_raw_text() {
        let raw = |text: &str| of(&format!("{{\"type\":\"STRING_ERROR\",\"raw\":\"{text}\"}}"));
        assert_ne!(raw("boom"), raw("bang"));
        assert_eq!(raw("boom 1234"), raw("boom 5678"));
    }

    #[test]
    fn values_that_are_no_strings_read_as_javascript_prints_them() {
        let text = |raw: &'static str| truthy_text(raw.as_bytes()).map(Cow::into_owned);
        for falsy in ["\"\"", "null", "false", "0", "-0", "0.0e5", "1e-999"] {
            assert_eq!(text(falsy), None, "{falsy}");
        }
        let cases = [
            ("5", "5"),
            ("1.50", "1.5"),
            ("1e21", "1e+21"),
            ("123456789012345680000", "123456789012345680000"),
            ("-1.5e-7", "-1.5e-7"),
            ("1e400", "Infinity"),
            ("true", "true"),
            ("{\"a\":1}", "[object Object]"),
            ("[]", ""),
            ("[1,[2,null,[]],{\"a\":[1]},\"s\",true]", "1,2,,,[object Object],s,true"),
        ];
        for (raw, expected) in cases {
            assert_eq!(text(raw).as_deref(), Some(expected), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), text in ".*") {
            let _ = error_fingerprint(Some(&bytes), b"CRASHED");
            let error = serde_json::json!({ "message": text, "stack": text, "type": text });
            prop_assert_eq!(of(&error.to_string()).len(), 16);
        }
    }
}
