//! Finds the end of an ordinary JSON value in one scan.
//!
//! Ordinary is a value of which nothing has to be changed, or looked at twice, on its way into
//! ClickHouse: nearly every one. So there are two answers only, where it ends and `None`, and the
//! latter says nothing: it is also given for what is merely unusual, such as a key with an escape
//! or a dot, keys that may be alike, a number of many digits, deep nesting. What it is then is for
//! `document` to find out, token by token. Total, like `json_text`.

use super::json_string::{self, HIGHS, ONES};

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
    /// Of every key of every open object.
    key_hashes: Vec<u64>,
}

#[derive(Clone, Copy)]
enum Container {
    /// No container: the value itself.
    Top,
    Array,
    /// Where its hashes begin, and 64 small buckets: whether one has a key in it.
    Object {
        first_hash: usize,
        buckets: u64,
    },
}

impl Scanner {
    pub const fn new() -> Scanner {
        Scanner { outer: Vec::new(), key_hashes: Vec::new() }
    }

    /// Where the value ends that begins at `start`, which is no white space.
    pub fn value_end(&mut self, text: &[u8], start: usize) -> Option<usize> {
        self.outer.clear();
        self.key_hashes.clear();
        let (mut at, mut inner) = (start, Container::Top);
        loop {
            // Here a value begins.
            match *text.get(at)? {
                b'"' => at = string_end(text, at + 1)?,
                b'-' | b'0'..=b'9' => at = number_end(text, at)?,
                b'{' => {
                    self.enter(inner)?;
                    inner = Container::Object { first_hash: self.key_hashes.len(), buckets: 0 };
                    at = past_space(text, at + 1);
                    if *text.get(at)? != b'}' {
                        at = self.key(text, at, &mut inner)?;
                        continue;
                    }
                }
                b'[' => {
                    self.enter(inner)?;
                    inner = Container::Array;
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
                if matches!(inner, Container::Top) {
                    return Some(at);
                }
                at = past_space(text, at);
                match (*text.get(at)?, inner) {
                    (b',', Container::Object { .. }) => {
                        at = self.key(text, past_space(text, at + 1), &mut inner)?;
                        break;
                    }
                    (b',', Container::Array) => {
                        at = past_space(text, at + 1);
                        break;
                    }
                    (b'}', Container::Object { first_hash, .. }) => {
                        self.key_hashes.truncate(first_hash);
                    }
                    (b']', Container::Array) => {}
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
    #[inline]
    fn key(&mut self, text: &[u8], at: usize, inner: &mut Container) -> Option<usize> {
        if *text.get(at)? != b'"' {
            return None;
        }
        let (hash, end) = key_hash(text, at + 1)?;
        if let Container::Object { first_hash, buckets } = inner {
            let bucket = 1 << (hash >> 58);
            if *buckets & bucket != 0 {
                let before = self.key_hashes.get(*first_hash..).unwrap_or_default();
                if MEMBERS_MAX <= before.len() || before.contains(&hash) {
                    return None;
                }
            }
            *buckets |= bucket;
            self.key_hashes.push(hash);
        }
        let colon = past_space(text, end);
        (*text.get(colon)? == b':').then(|| past_space(text, colon + 1))
    }
}

/// The hash of a key without escapes and dots, and what is behind its closing quote.
#[inline]
fn key_hash(text: &[u8], mut at: usize) -> Option<(u64, usize)> {
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let (mut hash, mut dots) = (0_u64, 0);
    loop {
        let word = word_at(text, at);
        let stops = json_string::stops(word);
        let len = (stops.trailing_zeros() / 8) as usize;
        let word = if stops == 0 { word } else { word & !(u64::MAX << (8 * len)) };
        hash = (hash.rotate_left(29) ^ word).wrapping_mul(FACTOR);
        dots |= json_string::zero_bytes(word ^ (ONES * b'.' as u64));
        at += len;
        if stops != 0 {
            let plain = *text.get(at)? == b'"' && dots & HIGHS == 0;
            return plain.then_some((hash, at + 1));
        }
    }
}

/// Eight bytes, with zeros behind the end of the text.
#[inline]
fn word_at(text: &[u8], at: usize) -> u64 {
    let rest = text.get(at..).unwrap_or_default();
    if let Some(word) = rest.first_chunk::<8>() {
        return u64::from_le_bytes(*word);
    }
    rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// What is behind the closing quote of the string whose content begins at `at`.
#[inline]
fn string_end(text: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += json_string::plain_len(text.get(at..)?);
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => {
                let (len, character) = json_string::escape(text.get(at..)?)?;
                // A lone surrogate has none.
                character?;
                at += len;
            }
            _ => return None,
        }
    }
}

#[inline]
fn number_end(text: &[u8], start: usize) -> Option<usize> {
    let digits = |from: usize| {
        let rest = text.get(from..).unwrap_or_default();
        let count = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        (0 < count).then_some(from + count)
    };
    let first = start + usize::from(*text.get(start)? == b'-');
    let mut at = if text.get(first) == Some(&b'0') { first + 1 } else { digits(first)? };
    let mut len_max = INTEGER_LEN_MAX;
    if text.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
        len_max = MANTISSA_LEN_MAX;
    }
    if len_max < at - start {
        return None;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let exponent = at + 1 + sign;
        at = digits(exponent)?;
        if exponent + 2 < at {
            return None;
        }
    }
    Some(at)
}

/// What is behind these very bytes.
#[inline]
pub fn past_literal(text: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    text.get(at..)?.starts_with(word).then_some(at + word.len())
}

/// The first place from `at` on that is no white space.
#[inline]
pub fn past_space(text: &[u8], mut at: usize) -> usize {
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
