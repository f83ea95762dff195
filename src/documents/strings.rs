//! The contents of a JSON string: escapes and their meaning.
//!
//! Total, like `tokens`: on text that is not a JSON string it does something harmless.

use std::borrow::Cow;

use wide::u8x16;

/// The size of one step. Most strings of a document are shorter.
pub const WINDOW: usize = 16;

/// The bytes from `at` on, with zeros behind the end of the text.
#[inline(always)]
pub fn window_at(text: &[u8], at: usize) -> [u8; WINDOW] {
    let rest = text.get(at..).unwrap_or_default();
    match rest.first_chunk() {
        Some(window) => *window,
        None => last_window(rest),
    }
}

#[cold]
fn last_window(rest: &[u8]) -> [u8; WINDOW] {
    let mut window = [0; WINDOW];
    window.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    window
}

/// A bit for each byte that is a quote, a backslash or a control character.
#[inline(always)]
pub fn stops(window: [u8; WINDOW]) -> u32 {
    let bytes = u8x16::new(window);
    let is = |byte: u8| bytes.simd_eq(u8x16::splat(byte));
    let control = bytes.min(u8x16::splat(0x1f)).simd_eq(bytes);
    (is(b'"') | is(b'\\') | control).to_bitmask()
}

/// The first `len` bytes, with zeros behind them, and whether one of them is a dot.
#[inline(always)]
pub fn first_bytes(window: [u8; WINDOW], len: usize) -> ([u64; 2], bool) {
    const KEPT: [[u8; WINDOW]; WINDOW + 1] = {
        let mut kept = [[0; WINDOW]; WINDOW + 1];
        let (mut len, mut at) = (1, 0);
        while len <= WINDOW {
            while at < len {
                kept[len][at] = 0xff;
                at += 1;
            }
            (len, at) = (len + 1, 0);
        }
        kept
    };
    let bytes = u8x16::new(window) & u8x16::new(KEPT[len.min(WINDOW)]);
    let has_dot = bytes.simd_eq(u8x16::splat(b'.')).to_bitmask() != 0;
    let words = u128::from_le_bytes(bytes.to_array());
    ([words as u64, (words >> 64) as u64], has_dot)
}

/// One multiplication for two words, its halves folded.
#[inline(always)]
pub fn mixed(hash: u64, [low, high]: [u64; 2]) -> u64 {
    const SALT: u64 = 0x9E37_79B9_7F4A_7C15;
    let (low, high) = (low ^ SALT, high ^ hash.rotate_left(29) ^ !SALT);
    let product = u128::from(low) * u128::from(high);
    product as u64 ^ (product >> 64) as u64
}

/// The hash of a key, and whether it has a dot. The hash only raises a suspicion: `json_paths`
/// compares keys with the same hash in full.
pub fn hash_and_dot(name: &[u8]) -> (u64, bool) {
    let (mut hash, mut has_dot) = (name.len() as u64, false);
    for at in (0..name.len()).step_by(WINDOW) {
        let (words, dot) = first_bytes(window_at(name, at), WINDOW);
        hash = mixed(hash, words);
        has_dot |= dot;
    }
    (hash, has_dot)
}

/// How many bytes from here on are neither a quote, nor a backslash, nor a control character.
#[inline]
pub fn plain_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    loop {
        let stops = stops(window_at(bytes, len));
        if stops != 0 {
            // Behind the end there are zeros.
            return len + stops.trailing_zeros() as usize;
        }
        len += WINDOW;
    }
}

/// The escape at the start of `rest`: its length and its character, which is `None` for a lone
/// surrogate. `None` if it is not an escape at all.
pub fn escape(rest: &[u8]) -> Option<(usize, Option<char>)> {
    let plain = match rest.get(1)? {
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let first = code_unit(rest)?;
            if let Some(character) = char::from_u32(first.into()) {
                return Some((6, Some(character)));
            }
            let second = rest.get(6..).and_then(code_unit);
            if let (0xD800..0xDC00, Some(second @ 0xDC00..=0xDFFF)) = (first, second) {
                let scalar =
                    0x10000 + ((u32::from(first) - 0xD800) << 10) + (u32::from(second) - 0xDC00);
                return Some((12, char::from_u32(scalar)));
            }
            return Some((6, None));
        }
        _ => return None,
    };
    Some((2, Some(plain)))
}

/// The UTF-16 code unit of a leading `\uXXXX`, in either case of hex.
fn code_unit(rest: &[u8]) -> Option<u16> {
    let digits = rest.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0u16, |unit, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(unit << 4 | digit as u16)
    })
}

/// Append the string with every lone surrogate replaced by the escape of U+FFFD, quotes included.
/// `raw` is the text of a token; other escapes stay as they are.
pub fn append_without_lone_surrogates(raw: &[u8], out: &mut Vec<u8>) {
    let mut rest = raw;
    while let Some(plain) = memchr::memchr(b'\\', rest) {
        let (before, from) = rest.split_at(plain);
        out.extend_from_slice(before);
        let (len, escape) = escape(from).unwrap_or((1, Some('\\')));
        let (escape_text, after) = from.split_at(len.min(from.len()));
        out.extend_from_slice(if escape.is_some() { escape_text } else { b"\\ufffd" });
        rest = after;
    }
    out.extend_from_slice(rest);
}

/// Append the characters that the string stands for, a lone surrogate as U+FFFD. `raw` is the text
/// of a token, quotes included.
pub fn decode_into(raw: &[u8], out: &mut Vec<u8>) {
    let mut rest = unquoted(raw);
    while let Some(plain) = memchr::memchr(b'\\', rest) {
        let (before, from) = rest.split_at(plain);
        out.extend_from_slice(before);
        let (len, escape) = escape(from).unwrap_or((1, Some('\\')));
        let character = escape.unwrap_or(char::REPLACEMENT_CHARACTER);
        out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        rest = from.get(len..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
}

/// The same as text; `None` unless `raw` is a quoted string of valid UTF-8.
pub fn decode(raw: &[u8]) -> Option<Cow<'_, str>> {
    if raw.first() != Some(&b'"') {
        return None;
    }
    if memchr::memchr(b'\\', raw).is_none() {
        return std::str::from_utf8(unquoted(raw)).ok().map(Cow::Borrowed);
    }
    let mut text = Vec::with_capacity(raw.len());
    decode_into(raw, &mut text);
    String::from_utf8(text).ok().map(Cow::Owned)
}

pub fn unquoted(raw: &[u8]) -> &[u8] {
    let inner = raw.strip_prefix(b"\"").unwrap_or(raw);
    inner.strip_suffix(b"\"").unwrap_or(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn strings_decode_to_what_they_stand_for() {
        let decoded = |raw: &'static str| decode(raw.as_bytes()).map(Cow::into_owned);
        let every = r#""\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00\uD83Dx\u0000é""#;
        let expected = "\"\\/\u{8}\u{c}\n\r\té😀\u{fffd}x\0é";
        assert_eq!(decoded(every).as_deref(), Some(expected));
        assert_eq!(decoded("\"\""), Some(String::new()));
        assert_eq!(decoded("5"), None);
        assert_eq!(decode(b"\"\xff\""), None);
    }

    #[test]
    fn only_lone_surrogates_are_rewritten() {
        let mut out = Vec::new();
        append_without_lone_surrogates(br#""\n\\ud800\uD800\ud83d\ude00\udc00""#, &mut out);
        assert_eq!(out, br#""\n\\ud800\ufffd\ud83d\ude00\ufffd""#);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
            append_without_lone_surrogates(&bytes, &mut Vec::new());
        }

        #[test]
        fn plain_len_agrees_with_the_plain_loop(
            bytes in proptest::collection::vec(
                prop_oneof![
                    8 => any::<u8>(), 1 => Just(b'"'), 1 => Just(b'\\'), 40 => 0x20..0xffu8
                ],
                0..80,
            ),
        ) {
            let stop = |b: &u8| *b == b'"' || *b == b'\\' || *b < 0x20;
            prop_assert_eq!(plain_len(&bytes), bytes.iter().position(stop).unwrap_or(bytes.len()));
        }
    }
}
