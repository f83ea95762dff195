//! Reads JSON text token by token, without building values.
//!
//! It accepts what `JSON.parse` and ClickHouse accept alike: RFC 8259 and nothing more, so no byte
//! order mark, no comments, no NaN. It is total: no bytes can make it panic, recurse or allocate.
//! It does not check UTF-8 (a caller that needs text does) and it changes nothing: what to do with
//! lone surrogates or large numbers is for `document` to say.

use std::fmt;

use super::{plain, strings};

/// Containers around a value. ClickHouse accepts 1022 of them inside `{"data":...}` and refuses the
/// row beyond that (24.8 to 26.9 alike); a round number below it is the same on every version.
pub const DEPTH_MAX: usize = 1000;

/// Arrays directly inside arrays. ClickHouse 24.8 to 25.5 accept 149 and more, and then nobody can
/// read the whole part ("AST is too deep"): its type is stored as `Array(Array(...`.
pub const ARRAY_RUN_MAX: usize = 128;

const WORDS: usize = DEPTH_MAX.div_ceil(64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonFault {
    /// Not JSON; the byte at which that was certain.
    Syntax { at: usize },
    /// JSON, as far as it was read, but nested beyond what ClickHouse can hold.
    TooDeep,
}

impl fmt::Display for JsonFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JsonFault::Syntax { at } => write!(f, "not valid JSON at byte {at}"),
            JsonFault::TooDeep => write!(f, "nested too deeply"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    Object,
    Array,
}

/// One token; the places are those of its raw text, quotes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    Open(TokenKind),
    Close(TokenKind),
    Key(Quoted),
    String(Quoted),
    Number { start: usize, end: usize, integer: bool },
    True,
    False,
    Null,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    pub start: usize,
    pub end: usize,
    /// Has at least one backslash.
    pub escaped: bool,
    /// Escapes of lone surrogates.
    pub lone_surrogates: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Value,
    FirstElement,
    FirstKey,
    Key,
    CommaOrClose,
}

/// The tokens of one value. `next_token` is `None` once that value is complete.
pub struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
    /// One bit per open container, set for arrays.
    arrays: [u64; WORDS],
    want: Want,
}

impl<'a> Tokens<'a> {
    pub fn new(text: &'a [u8]) -> Tokens<'a> {
        Tokens { text, at: 0, depth: 0, arrays: [0; WORDS], want: Want::Value }
    }

    /// The next byte to read: the end of the last token, or the comma or colon behind it.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Where the next token begins.
    pub fn next_start(&mut self) -> usize {
        self.peek_past_space();
        self.at
    }

    /// Open containers, counting one that was just opened and not one that was just closed.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The raw text between two places; empty where there is none.
    pub fn raw(&self, start: usize, end: usize) -> &'a [u8] {
        self.text.get(start..end).unwrap_or_default()
    }

    // Inlined into the pass over a document it is up to 50 % faster.
    #[inline(always)]
    pub fn next_token(&mut self) -> Result<Option<Token>, JsonFault> {
        loop {
            if self.want == Want::CommaOrClose && self.depth == 0 {
                return Ok(None);
            }
            let byte = self.peek_past_space();
            match self.want {
                Want::FirstElement if byte == Some(b']') => return Ok(Some(self.close())),
                Want::Value | Want::FirstElement => return self.value(byte).map(Some),
                Want::FirstKey if byte == Some(b'}') => return Ok(Some(self.close())),
                Want::FirstKey | Want::Key => {
                    if byte != Some(b'"') {
                        return Err(self.fault());
                    }
                    let key = self.string()?;
                    if self.peek_past_space() != Some(b':') {
                        return Err(self.fault());
                    }
                    self.at += 1;
                    self.want = Want::Value;
                    return Ok(Some(Token::Key(key)));
                }
                Want::CommaOrClose => match (byte, self.innermost()) {
                    (Some(b','), kind) => {
                        self.at += 1;
                        self.want = if kind == TokenKind::Array { Want::Value } else { Want::Key };
                    }
                    (Some(b']'), TokenKind::Array) | (Some(b'}'), TokenKind::Object) => {
                        return Ok(Some(self.close()));
                    }
                    _ => return Err(self.fault()),
                },
            }
        }
    }

    /// Read one whole value, to be called where a value begins: at the start or after a key.
    pub fn skip_value(&mut self) -> Result<(), JsonFault> {
        let depth = self.depth;
        while self.next_token()?.is_some() {
            if self.depth == depth {
                break;
            }
        }
        Ok(())
    }

    /// Read the rest, and refuse anything but white space behind the value.
    pub fn finish(&mut self) -> Result<(), JsonFault> {
        while self.next_token()?.is_some() {}
        match self.peek_past_space() {
            None => Ok(()),
            Some(_) => Err(self.fault()),
        }
    }

    #[inline]
    fn value(&mut self, byte: Option<u8>) -> Result<Token, JsonFault> {
        match byte {
            Some(b'"') => {
                let string = self.string()?;
                self.want = Want::CommaOrClose;
                Ok(Token::String(string))
            }
            Some(b'{') => self.open(TokenKind::Object),
            Some(b'[') => self.open(TokenKind::Array),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal(b"true", Token::True),
            Some(b'f') => self.literal(b"false", Token::False),
            Some(b'n') => self.literal(b"null", Token::Null),
            _ => Err(self.fault()),
        }
    }

    fn fault(&self) -> JsonFault {
        JsonFault::Syntax { at: self.at }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.get(at).copied()
    }

    #[inline]
    fn peek_past_space(&mut self) -> Option<u8> {
        loop {
            let byte = self.byte(self.at);
            match byte {
                Some(b' ' | b'\n' | b'\t' | b'\r') => self.at += 1,
                _ => return byte,
            }
        }
    }

    fn open(&mut self, kind: TokenKind) -> Result<Token, JsonFault> {
        if self.depth == DEPTH_MAX {
            return Err(JsonFault::TooDeep);
        }
        let (word, bit) = (self.depth / 64, 1u64 << (self.depth % 64));
        // Invariant: depth < DEPTH_MAX, so the word exists.
        if kind == TokenKind::Array {
            self.arrays[word] |= bit;
            if self.depth >= ARRAY_RUN_MAX && self.array_run_is_full() {
                return Err(JsonFault::TooDeep);
            }
        } else {
            self.arrays[word] &= !bit;
        }
        self.depth += 1;
        self.at += 1;
        self.want = if kind == TokenKind::Array { Want::FirstElement } else { Want::FirstKey };
        Ok(Token::Open(kind))
    }

    /// Are the last ARRAY_RUN_MAX open containers all arrays?
    fn array_run_is_full(&self) -> bool {
        (self.depth - ARRAY_RUN_MAX..self.depth).all(|level| self.is_array(level))
    }

    fn is_array(&self, level: usize) -> bool {
        self.arrays[level / 64] >> (level % 64) & 1 == 1
    }

    /// Only asked while a container is open.
    fn innermost(&self) -> TokenKind {
        if self.is_array(self.depth - 1) { TokenKind::Array } else { TokenKind::Object }
    }

    fn close(&mut self) -> Token {
        let kind = self.innermost();
        self.depth -= 1;
        self.at += 1;
        self.want = Want::CommaOrClose;
        Token::Close(kind)
    }

    fn literal(&mut self, word: &[u8], token: Token) -> Result<Token, JsonFault> {
        if !self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return Err(self.fault());
        }
        self.at += word.len();
        self.want = Want::CommaOrClose;
        Ok(token)
    }

    fn number(&mut self) -> Result<Token, JsonFault> {
        let start = self.at;
        let mut integer = true;
        if self.byte(self.at) == Some(b'-') {
            self.at += 1;
        }
        if self.byte(self.at) == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.byte(self.at) == Some(b'.') {
            integer = false;
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte(self.at) {
            integer = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.byte(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        self.want = Want::CommaOrClose;
        Ok(Token::Number { start, end: self.at, integer })
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<(), JsonFault> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.byte(self.at) {
            self.at += 1;
        }
        if self.at == start { Err(self.fault()) } else { Ok(()) }
    }

    /// To be called at an opening quote.
    #[inline]
    fn string(&mut self) -> Result<Quoted, JsonFault> {
        let start = self.at;
        let mut quoted = Quoted { start, end: start, escaped: false, lone_surrogates: 0 };
        self.at += 1;
        loop {
            self.at += strings::plain_len(self.text.get(self.at..).unwrap_or_default());
            match self.byte(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    quoted.end = self.at;
                    return Ok(quoted);
                }
                Some(b'\\') => {
                    quoted.escaped = true;
                    let rest = self.text.get(self.at..).unwrap_or_default();
                    let (len, escape) = strings::escape(rest).ok_or(self.fault())?;
                    quoted.lone_surrogates += u32::from(escape.is_none());
                    self.at += len;
                }
                // A control character, or the end of the text.
                _ => return Err(self.fault()),
            }
        }
    }
}

/// The raw text of the named members of an object, of several with one name the last. `None` if the
/// text is not valid JSON or not an object.
pub fn members<'a, const N: usize>(
    text: &'a [u8],
    names: [&str; N],
) -> Option<[Option<&'a [u8]>; N]> {
    plain::members(text, names).or_else(|| members_by_token(text, names))
}

fn members_by_token<'a, const N: usize>(
    text: &'a [u8],
    names: [&str; N],
) -> Option<[Option<&'a [u8]>; N]> {
    let mut tokens = Tokens::new(text);
    let mut found = [None; N];
    if tokens.next_token().ok()? != Some(Token::Open(TokenKind::Object)) {
        return None;
    }
    let mut key_text = Vec::new();
    while let Some(Token::Key(key)) = tokens.next_token().ok()? {
        let raw_key = tokens.raw(key.start, key.end);
        let name = if key.escaped {
            key_text.clear();
            strings::decode_into(raw_key, &mut key_text);
            key_text.as_slice()
        } else {
            strings::unquoted(raw_key)
        };
        let wanted = names.iter().position(|wanted| wanted.as_bytes() == name);
        let start = tokens.at();
        tokens.skip_value().ok()?;
        if let Some(slot) = wanted.and_then(|index| found.get_mut(index)) {
            *slot = Some(tokens.raw(start, tokens.at()).trim_ascii_start());
        }
    }
    tokens.finish().ok()?;
    Some(found)
}

/// The value without white space between its tokens, and without the members whose key begins at a
/// place that is `dropped`.
pub fn compact(text: &[u8], dropped: impl Fn(usize) -> bool) -> Result<Vec<u8>, JsonFault> {
    let mut out = Vec::with_capacity(text.len());
    let mut tokens = Tokens::new(text);
    while let Some(token) = tokens.next_token()? {
        if let Token::Key(key) = token
            && dropped(key.start)
        {
            tokens.skip_value()?;
            continue;
        }
        let begins = !matches!(token, Token::Close(_));
        if begins && !matches!(out.last(), None | Some(b'{' | b'[' | b':')) {
            out.push(b',');
        }
        match token {
            Token::Open(TokenKind::Object) => out.push(b'{'),
            Token::Open(TokenKind::Array) => out.push(b'['),
            Token::Close(TokenKind::Object) => out.push(b'}'),
            Token::Close(TokenKind::Array) => out.push(b']'),
            Token::Key(key) => {
                out.extend_from_slice(tokens.raw(key.start, key.end));
                out.push(b':');
            }
            Token::String(string) => out.extend_from_slice(tokens.raw(string.start, string.end)),
            Token::Number { start, end, .. } => out.extend_from_slice(tokens.raw(start, end)),
            Token::True => out.extend_from_slice(b"true"),
            Token::False => out.extend_from_slice(b"false"),
            Token::Null => out.extend_from_slice(b"null"),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Result<(), JsonFault> {
        Tokens::new(text).finish()
    }

    #[test]
    fn accepts_rfc_8259_and_nothing_more() {
        let good = "{} [] 0 -0 1.5e+7 1E-2 \"\" true false null [1,[2,{}]] {\"a\":{\"a\":[]}}";
        for text in good.split(' ') {
            assert_eq!(read(text.as_bytes()), Ok(()), "{text}");
        }
        assert_eq!(read(b" \t\r\n[ 1 , { \"a\" : 2 } ] \n"), Ok(()));
        let bad: [&[u8]; 32] = [
            b"",
            b" ",
            b"{",
            b"[",
            b"]",
            b"}",
            b"[1,]",
            b"{\"a\":1,}",
            b"{,}",
            b"[,1]",
            b"{\"a\"}",
            b"{\"a\" 1}",
            b"{a:1}",
            b"{1:1}",
            b"[1 2]",
            b"01",
            b"-",
            b"1.",
            b".5",
            b"+1",
            b"1e",
            b"1e+",
            b"0x1",
            b"NaN",
            b"nul",
            b"True",
            b"\"",
            b"\"\\x\"",
            b"\"\\u12g4\"",
            b"1 2",
            b"[1}",
            b"{\"a\":1]",
        ];
        for text in bad {
            assert!(matches!(read(text), Err(JsonFault::Syntax { .. })), "{text:?}");
        }
    }

    #[test]
    fn control_characters_and_byte_order_marks_are_refused() {
        for control in 0..0x20u8 {
            let at_every_place = (0..20).map(|n| [b"\"", vec![b'x'; n].as_slice()].concat());
            for mut text in at_every_place {
                text.extend([control, b'y', b'"']);
                let at = text.len() - 3;
                assert_eq!(read(&text), Err(JsonFault::Syntax { at }));
            }
        }
        assert_eq!(read("\u{feff}1".as_bytes()), Err(JsonFault::Syntax { at: 0 }));
        assert_eq!(read("\"\u{7f}\u{80}\u{2028}\"".as_bytes()), Ok(()));
    }

    #[test]
    fn depth_ends_exactly_at_its_bounds() {
        let objects = |n: usize| [b"{\"a\":".repeat(n), b"1".to_vec(), b"}".repeat(n)].concat();
        assert_eq!(read(&objects(DEPTH_MAX)), Ok(()));
        assert_eq!(read(&objects(DEPTH_MAX + 1)), Err(JsonFault::TooDeep));
        let arrays = |n: usize| [b"[".repeat(n), b"]".repeat(n)].concat();
        assert_eq!(read(&arrays(ARRAY_RUN_MAX)), Ok(()));
        assert_eq!(read(&arrays(ARRAY_RUN_MAX + 1)), Err(JsonFault::TooDeep));
        let run = arrays(ARRAY_RUN_MAX);
        let nested = [b"[[{\"a\":".as_slice(), &run, b"},{\"b\":", &run, b"}]]"].concat();
        assert_eq!(read(&nested), Ok(()), "an object begins a new run");
    }

    #[test]
    fn surrogates_are_told_apart() {
        let lone = |text: &str| match Tokens::new(text.as_bytes()).next_token() {
            Ok(Some(Token::String(quoted))) => quoted.lone_surrogates,
            other => panic!("{text}: {other:?}"),
        };
        let cases = [
            (r#""\ud83d\ude00""#, 0),
            (r#""\uD83D\uDE00""#, 0),
            (r#""\uD83d\udE00""#, 0),
            (r#""\ud800""#, 1),
            (r#""\uDFFF""#, 1),
            (r#""\ud83d\ud83d\ude00""#, 1),
            (r#""\ude00\ud83d""#, 2),
            (r#""\ud83d \ude00""#, 2),
            (r#""\\ud835""#, 0),
            (r#""\\\ud835""#, 1),
            (r#""\ud835\\ude00""#, 1),
            (r#""\ud7ff\ue000""#, 0),
        ];
        for (text, expected) in cases {
            assert_eq!(lone(text), expected, "{text}");
        }
    }

    #[test]
    fn members_decode_their_names_and_the_last_one_wins() {
        let text = br#" {"a":1, "\u0062" : {"a":[2]} , "a": "x" } "#;
        let [a, b, c] = members(text, ["a", "b", "c"]).unwrap();
        assert_eq!(a, Some(b"\"x\"".as_slice()));
        assert_eq!(b, Some(b"{\"a\":[2]}".as_slice()));
        assert_eq!(c, None);
        assert_eq!(members(b"[1]", ["a"]), None);
        assert_eq!(members(b"{\"a\":1} x", ["a"]), None);
    }

    #[test]
    fn compact_keeps_every_token() {
        let text = b" [ {\"a b\" : [ ] , \"c\":{ } },1.50 ,\ttrue,null ,false, \" \\\" , \"]\n";
        let expected = "[{\"a b\":[],\"c\":{}},1.50,true,null,false,\" \\\" , \"]";
        assert_eq!(compact(text, |_| false).as_deref(), Ok(expected.as_bytes()));
        assert_eq!(compact(b"{\"a\":1,\"b\":2}", |key| key == 1).as_deref(), Ok(&b"{\"b\":2}"[..]));
    }

    /// A small object, and at some place something else in it.
    fn nearly_an_object() -> impl Strategy<Value = String> {
        let key =
            proptest::sample::select(vec!["a", "b", "", "\\u0061", "longer than a window", "é"]);
        let value = proptest::sample::select(vec![
            "\"\"",
            "\"x\\n\"",
            "\"\\ud800\"",
            "0",
            "-1.5e3",
            "1e999",
            "12345678901234567890",
            "true",
            "false",
            "null",
            "[]",
            "{\"a\":1}",
            "\"longer than one window is\"",
        ]);
        let members = proptest::collection::vec((key, value, " ?"), 0..5).prop_map(|members| {
            let one =
                |(key, value, space)| format!("{space}\"{key}\"{space}:{space}{value}{space}");
            format!("{{{}}}", members.into_iter().map(one).collect::<Vec<_>>().join(","))
        });
        let other = "[\\[\\]{}:,\"\\\\u8.1eE+ a\n\0-]{0,3}";
        (
            members,
            any::<proptest::sample::Index>(),
            0..3_usize,
            prop_oneof![Just(String::new()), other],
        )
            .prop_map(|(text, at, removed, other)| {
                let mut chars: Vec<char> = text.chars().collect();
                let at = at.index(chars.len());
                let end = (at + removed).min(chars.len());
                chars.splice(at..end, other.chars());
                chars.into_iter().collect()
            })
    }

    proptest! {
        #[test]
        fn members_found_at_once_are_those_found_by_token(text in nearly_an_object()) {
            let names = ["a", "b", "longer than a window"];
            if let Some(found) = plain::members(text.as_bytes(), names) {
                prop_assert_eq!(members_by_token(text.as_bytes(), names), Some(found));
            }
        }

        #[test]
        fn agrees_with_serde_json_on_json_like_text(
            text in "[\\[\\]{}:,\"\\\\u0d8cf1eE+. a-]{0,24}",
        ) {
            // serde_json refuses lone surrogates, which JSON.parse accepts.
            prop_assume!(!text.contains("\\u"));
            let ours = read(text.as_bytes()).is_ok();
            let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            prop_assert_eq!(ours, theirs, "{}", text);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let _ = members(&bytes, ["a", ""]);
        }
    }
}
