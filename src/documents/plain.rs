//! Finds the end of an ordinary JSON value in one scan.
//!
//! Ordinary is a value of which nothing has to be changed, or looked at twice, on its way into
//! ClickHouse: nearly every one. So there are two answers only, where it ends and `None`, and the
//! latter says nothing: it is also given for what is merely unusual, such as a key with an escape
//! or a dot, keys that may be alike, a number of many digits, deep nesting. The pass over the
//! tokens then finds out. The members of small objects are found likewise. Total, like `tokens`.

use super::strings::{self, WINDOW};

/// Containers around a value. A document nested deeper is not ordinary.
const DEPTH_MAX: usize = 32;
/// Members of an object: each new one may be compared with all before it.
const MEMBERS_MAX: usize = 64;
/// No integer of this length, with its sign, is outside of the range of an `Int64`.
const INTEGER_LEN_MAX: usize = 18;
/// With an exponent of two digits such a number is far below the largest `Float64`.
const MANTISSA_LEN_MAX: usize = 40;

/// Buffers that outlive a value, so that it costs no allocation.
pub struct Scanner {
    /// The containers around the one that is being read.
    outer: Vec<Container>,
    /// For every key of every open object.
    key_hashes: Vec<u64>,
}

/// The container of a value: an object, or else an array or none.
#[derive(Clone, Copy)]
struct Container {
    is_object: bool,
    /// For an object: where its hashes begin.
    first_hash: usize,
    /// For an object: 64 small buckets, and whether one has a key in it.
    buckets: u64,
}

const NO_OBJECT: Container = Container { is_object: false, first_hash: 0, buckets: 0 };

impl Scanner {
    pub const fn new() -> Scanner {
        Scanner { outer: Vec::new(), key_hashes: Vec::new() }
    }

    /// Where the value ends that begins at `start`, which is not white space.
    pub fn value_end(&mut self, text: &[u8], start: usize) -> Option<usize> {
        self.outer.clear();
        self.key_hashes.clear();
        let (mut at, mut inner) = (start, NO_OBJECT);
        loop {
            // Here a member begins, or an element, or the value itself.
            if inner.is_object {
                at = self.key(text, at, &mut inner)?;
            }
            match *text.get(at)? {
                b'"' => at = string_end(text, at + 1)?,
                b'-' | b'0'..=b'9' => at = number_end(text, at)?,
                b'{' => {
                    self.enter(inner)?;
                    let first_hash = self.key_hashes.len();
                    inner = Container { is_object: true, first_hash, buckets: 0 };
                    at = past_space(text, at + 1);
                    if *text.get(at)? != b'}' {
                        continue;
                    }
                }
                b'[' => {
                    self.enter(inner)?;
                    inner = NO_OBJECT;
                    at = past_space(text, at + 1);
                    if *text.get(at)? != b']' {
                        continue;
                    }
                }
                b't' => at = past_literal(text, at, b"true")?,
                b'f' => at = past_literal(text, at, b"false")?,
                b'n' => at = past_literal(text, at, b"null")?,
                _ => return None,
            }
            // Here one has ended, or an empty container is about to.
            loop {
                if self.outer.is_empty() {
                    return Some(at);
                }
                at = past_space(text, at);
                match *text.get(at)? {
                    b',' => {
                        at = past_space(text, at + 1);
                        break;
                    }
                    b'}' if inner.is_object => self.key_hashes.truncate(inner.first_hash),
                    b']' if !inner.is_object => {}
                    _ => return None,
                }
                inner = self.outer.pop()?;
                at += 1;
            }
        }
    }

    fn enter(&mut self, outer: Container) -> Option<()> {
        self.outer.push(outer);
        (self.outer.len() <= DEPTH_MAX).then_some(())
    }

    /// Where the value begins whose key is at `at`.
    #[inline(always)]
    fn key(&mut self, text: &[u8], at: usize, object: &mut Container) -> Option<usize> {
        if *text.get(at)? != b'"' {
            return None;
        }
        let (hash, end) = key_hash(text, at + 1)?;
        let bucket = 1 << (hash >> 58);
        if object.buckets & bucket != 0 {
            let before = self.key_hashes.get(object.first_hash..).unwrap_or_default();
            if MEMBERS_MAX <= before.len() || before.contains(&hash) {
                return None;
            }
        }
        object.buckets |= bucket;
        self.key_hashes.push(hash);
        let colon = past_space(text, end);
        (*text.get(colon)? == b':').then(|| past_space(text, colon + 1))
    }
}

/// The raw text of the named members of an object, of several with one name the last; `None` also
/// if one of its values is an object or an array, or if a key has an escape.
pub fn members<'t, const N: usize>(
    text: &'t [u8],
    names: [&str; N],
) -> Option<[Option<&'t [u8]>; N]> {
    let mut found = [None; N];
    let mut at = past_space(text, past_literal(text, past_space(text, 0), b"{")?);
    if *text.get(at)? != b'}' {
        loop {
            let key = past_literal(text, at, b"\"")?;
            let end = key + strings::plain_len(text.get(key..)?);
            let name = text.get(key..end)?;
            let colon = past_space(text, past_literal(text, end, b"\"")?);
            let start = past_space(text, past_literal(text, colon, b":")?);
            at = match *text.get(start)? {
                b'"' => string_end(text, start + 1)?,
                b'-' | b'0'..=b'9' => number_end(text, start)?,
                b't' => past_literal(text, start, b"true")?,
                b'f' => past_literal(text, start, b"false")?,
                b'n' => past_literal(text, start, b"null")?,
                _ => return None,
            };
            if let Some(wanted) = names.iter().position(|wanted| wanted.as_bytes() == name) {
                found[wanted] = Some(text.get(start..at)?);
            }
            at = past_space(text, at);
            if *text.get(at)? != b',' {
                break;
            }
            at = past_space(text, at + 1);
        }
    }
    at = past_space(text, past_literal(text, at, b"}")?);
    (at == text.len()).then_some(found)
}

/// The hash of a key without escapes and dots, and the index after its closing quote.
#[inline(always)]
fn key_hash(text: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut hash = 0;
    loop {
        let window = strings::window_at(text, at);
        let stops = strings::stops(window);
        let len = if stops == 0 { WINDOW } else { stops.trailing_zeros() as usize };
        let (kept, has_dot) = strings::first_bytes(window, len);
        if has_dot {
            return None;
        }
        hash = strings::mixed(hash, kept);
        at += len;
        if stops != 0 {
            return (*text.get(at)? == b'"').then_some((hash, at + 1));
        }
    }
}

/// The index after the closing quote of the string whose content begins at `at`.
#[inline(always)]
fn string_end(text: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let stops = strings::stops(strings::window_at(text, at));
        if stops == 0 {
            at += WINDOW;
            continue;
        }
        at += stops.trailing_zeros() as usize;
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => {
                let (len, character) = strings::escape(text.get(at..)?)?;
                // A lone surrogate has none.
                character?;
                at += len;
            }
            _ => return None,
        }
    }
}

#[inline(always)]
fn number_end(text: &[u8], start: usize) -> Option<usize> {
    let first = start + usize::from(*text.get(start)? == b'-');
    let mut at = if text.get(first) == Some(&b'0') { first + 1 } else { digits_end(text, first)? };
    let mut len_max = INTEGER_LEN_MAX;
    if text.get(at) == Some(&b'.') {
        at = digits_end(text, at + 1)?;
        len_max = MANTISSA_LEN_MAX;
    }
    if len_max < at - start {
        return None;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let exponent = at + 1 + sign;
        at = digits_end(text, exponent)?;
        if exponent + 2 < at {
            return None;
        }
    }
    Some(at)
}

/// The index after the digits that begin at `start`, of which there is at least one.
#[inline(always)]
fn digits_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    while let Some(b'0'..=b'9') = text.get(at) {
        at += 1;
    }
    (start < at).then_some(at)
}

/// The index after exactly these bytes.
#[inline]
pub fn past_literal(text: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    text.get(at..)?.starts_with(word).then_some(at + word.len())
}

/// The first index from `at` on that is not white space.
#[inline(always)]
pub fn past_space(text: &[u8], at: usize) -> usize {
    match text.get(at) {
        Some(..=b' ') => past_more_space(text, at),
        _ => at,
    }
}

fn past_more_space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\t' | b'\r') = text.get(at) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> Option<usize> {
        Scanner::new().value_end(text.as_bytes(), 0)
    }

    #[test]
    fn an_ordinary_value_is_read_to_its_end() {
        for text in [
            "null",
            "true",
            "false",
            "-0",
            "0.5",
            "1e-7",
            "-12.25E+30",
            "999999999999999999",
            "\"\"",
            r#""é \"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00""#,
            "[]",
            "[ ]",
            "{}",
            "{ }",
            "[[],{},[1 , 2],{\"a\":[]}]",
            "{ \"a\" : 1 ,\n\"longer than a word\" : { \"a\" : null , \"é\":\"\" } , \"\" : [ ] }",
            r#"{"abcdefgh":1,"abcdefghi":2,"abcdefg":3,"abcdefghabcdefgh":4}"#,
        ] {
            assert_eq!(end(text), Some(text.len()), "{text}");
            for behind in [" ", ",", "]", "}x"] {
                assert_eq!(end(&format!("{text}{behind}")), Some(text.len()), "{text}{behind}");
            }
        }
        let many: Vec<_> = (0..MEMBERS_MAX).map(|n| format!("\"key {n}\":{n}")).collect();
        let text = format!("{{{}}}", many.join(","));
        assert_eq!(end(&text), Some(text.len()));
        let deep = "[".repeat(DEPTH_MAX) + &"]".repeat(DEPTH_MAX);
        assert_eq!(end(&deep), Some(deep.len()));
    }

    #[test]
    fn members_of_a_flat_object_are_found() {
        let text = br#" { "a" : "x\n" ,"b":-1.5e3, "c":null,"d":true, "a":"last" } "#;
        let found = members(text, ["a", "b", "d", "e"]);
        assert_eq!(found, Some([Some(&b"\"last\""[..]), Some(b"-1.5e3"), Some(b"true"), None]));
        assert_eq!(members(b"{}", ["a"]), Some([None]));
        for unusual in [
            &br#"{"a":[]}"#[..],
            br#"{"a":{}}"#,
            br#"{"\u0061":1}"#,
            br#"{"a":1,}"#,
            br#"{"a":1}}"#,
            br#"{"a":1"#,
            br#"{"a" 1}"#,
            br#"{,}"#,
            b"[]",
            b"{",
            b"",
        ] {
            assert_eq!(members(unusual, ["a"]), None, "{}", String::from_utf8_lossy(unusual));
        }
    }

    #[test]
    fn what_is_unusual_is_left_to_others() {
        for text in [
            "1000000000000000000",
            "1e100",
            "\"\\ud800\"",
            r#"{"a":1,"a":2}"#,
            r#"{"x":{"a":1},"y":{"a":1,"b":2,"a":1}}"#,
            r#"{"\u0061":1}"#,
            r#"{"a.b":1}"#,
            r#"{"longer than a word.":1}"#,
        ] {
            assert_eq!(end(text), None, "{text}");
        }
        assert_eq!(end(&"[".repeat(10_000_000)), None);
    }
}
