//! Makes every path of a JSON document unique: members of one name, and members whose dotted paths
//! meet. The slow way, for the few documents that may have either; it builds maps as large as the
//! document has keys.
//!
//! To ClickHouse `{"a.b":1}` and `{"a":{"b":1}}` are one path, and a path may have one value. Two
//! rules, applied one after the other: of members of one name the last is kept, as `JSON.parse`
//! does; of paths that meet the first is kept, as ClickHouse does with the setting to skip the
//! others. Objects in arrays have paths of their own. Null takes no path, but a null after a value
//! is still dropped, because ClickHouse 24.8 refuses it there; nothing is lost with it.

use std::borrow::Cow;

use hashbrown::{HashMap, HashSet};

use super::strings;
use super::tokens::{self, JsonFault, Quoted, Token, TokenKind, Tokens};

pub struct Resolved {
    /// Without white space between tokens.
    pub text: Vec<u8>,
    pub duplicates: u32,
    /// Values dropped because their path was taken.
    pub shadowed: u32,
}

/// Members that may have to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathSuspicion {
    RepeatedOrMeeting,
    /// The members of each object surely have different names.
    MeetingOnly,
}

/// `None` if there is nothing to drop. `text` is one valid value.
pub fn resolve(text: &[u8], suspicion: PathSuspicion) -> Result<Option<Resolved>, JsonFault> {
    let mut duplicates = 0;
    let mut text = Cow::Borrowed(text);
    let repeated = match suspicion {
        PathSuspicion::RepeatedOrMeeting => repeated_members(&text)?,
        PathSuspicion::MeetingOnly => Members::new(),
    };
    if !repeated.is_empty() {
        duplicates = u32::try_from(repeated.len()).unwrap_or(u32::MAX);
        text = Cow::Owned(tokens::compact(&text, |key| repeated.contains(&key))?);
    }
    let Meeting { members, shadowed } = meeting_members(&text)?;
    if !members.is_empty() {
        text = Cow::Owned(tokens::compact(&text, |key| members.contains(&key))?);
    }
    Ok(match text {
        Cow::Borrowed(_) => None,
        Cow::Owned(text) => Some(Resolved { text, duplicates, shadowed }),
    })
}

/// Members are known by the place of their key.
type Members = HashSet<usize>;

/// All but the last of each name in each object.
fn repeated_members(text: &[u8]) -> Result<Members, JsonFault> {
    let mut repeated = Members::new();
    let mut open: Vec<HashMap<Cow<'_, [u8]>, usize>> = Vec::new();
    let mut tokens = Tokens::new(text);
    while let Some(token) = tokens.next_token()? {
        match token {
            Token::Open(TokenKind::Object) => open.push(HashMap::new()),
            Token::Close(TokenKind::Object) => {
                open.pop();
            }
            Token::Key(key) => {
                let seen = open.last_mut().expect("a key is in an open object");
                repeated.extend(seen.insert(name(&tokens, key), key.start));
            }
            _ => {}
        }
    }
    Ok(repeated)
}

struct Meeting {
    members: Members,
    shadowed: u32,
}

/// Those whose value has a path that an earlier value took.
fn meeting_members(text: &[u8]) -> Result<Meeting, JsonFault> {
    struct Object {
        path: PathHash,
        /// Is it the one whose keys begin the paths?
        is_root: bool,
    }
    let mut found = Meeting { members: Members::new(), shadowed: 0 };
    let mut open: Vec<Object> = Vec::new();
    // One set per root object that is open: paths do not reach out of an array.
    let mut taken: Vec<HashSet<PathHash>> = Vec::new();
    // The member whose value comes next; none in an array.
    let mut member: Option<(usize, PathHash)> = None;
    let mut tokens = Tokens::new(text);
    while let Some(token) = tokens.next_token()? {
        match token {
            Token::Key(key) => {
                let object = open.last().expect("a key is in an open object");
                let path = object.path.member(&name(&tokens, key));
                member = Some((key.start, path));
            }
            Token::Open(TokenKind::Object) => {
                let is_root = member.is_none();
                let path = member.take().map_or(PathHash::ROOT, |(_, path)| path);
                open.push(Object { path, is_root });
                if is_root {
                    taken.push(HashSet::new());
                }
            }
            Token::Close(TokenKind::Object) => {
                if open.pop().is_some_and(|object| object.is_root) {
                    taken.pop();
                }
            }
            Token::Close(TokenKind::Array) => {}
            Token::Open(TokenKind::Array)
            | Token::String(_)
            | Token::Number { .. }
            | Token::True
            | Token::False
            | Token::Null => {
                let Some((key_start, path)) = member.take() else { continue };
                let taken = taken.last_mut().expect("a member is in an object with a root");
                if token == Token::Null {
                    if taken.contains(&path) {
                        found.members.insert(key_start);
                    }
                } else if !taken.insert(path) {
                    found.members.insert(key_start);
                    found.shadowed += 1;
                }
            }
        }
    }
    Ok(found)
}

fn name<'a>(tokens: &Tokens<'a>, key: Quoted) -> Cow<'a, [u8]> {
    let raw = tokens.raw(key.start, key.end);
    if !key.escaped {
        return Cow::Borrowed(strings::unquoted(raw));
    }
    let mut name = Vec::new();
    strings::decode_into(raw, &mut name);
    Cow::Owned(name)
}

/// FNV-1a over the path's text. 128 bits, so that two paths with one hash need not be thought of;
/// byte by byte, so that a member's path continues that of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct PathHash(u128);

impl PathHash {
    const ROOT: PathHash = PathHash(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);

    fn member(self, name: &[u8]) -> PathHash {
        const PRIME: u128 = 0x0100_0000_0000_0000_0000_013B;
        let bytes = std::iter::once(&b'.').chain(name);
        PathHash(bytes.fold(self.0, |hash, &b| (hash ^ u128::from(b)).wrapping_mul(PRIME)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `expected` is the text, or nothing if the document needs no change.
    fn check(text: &str, expected: Option<(&str, u32, u32)>) {
        let resolved = resolve(text.as_bytes(), PathSuspicion::RepeatedOrMeeting).unwrap();
        let found = resolved
            .as_ref()
            .map(|r| (std::str::from_utf8(&r.text).unwrap(), r.duplicates, r.shadowed));
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn distinct_paths_need_no_change() {
        for text in [
            "1",
            "[]",
            r#"{"a":1,"b":{"a":1},"c":[{"a":1},{"a":1}]}"#,
            r#"{"a.b":1,"a":{"b":{"c":2}}}"#,
            r#"{"a.b":{},"a":{"b":1}}"#,
            r#"{"a":{"b":null},"a.b":1}"#,
            r#"{"a.b":{"c":1},"a":{"b":{"d":2}}}"#,
            r#"{"a.b":[{"c.d":1}],"c":{"d":1},"e":[[{"a.b":1}]]}"#,
            r#"{"":{"":1},".":{}}"#,
        ] {
            check(text, None);
        }
    }

    #[test]
    fn earlier_members_of_one_name_are_dropped_wherever_they_are() {
        check(r#"{"a":1,"a":2,"a":3}"#, Some((r#"{"a":3}"#, 2, 0)));
        check(r#"{ "b" : "x" , "a":{"a":1,"a":2},"a":[ ] }"#, Some((r#"{"b":"x","a":[]}"#, 2, 0)));
        check(
            r#"[0,{"a":null,"\u0061":{"b":1}},true]"#,
            Some((r#"[0,{"\u0061":{"b":1}},true]"#, 1, 0)),
        );
    }

    #[test]
    fn later_members_whose_path_is_taken_are_dropped() {
        check(r#"{"a.b":1,"a":{"b":2}}"#, Some((r#"{"a.b":1,"a":{}}"#, 0, 1)));
        check(r#"{"a":{"b":[2]},"a.b":1,"z":0}"#, Some((r#"{"a":{"b":[2]},"z":0}"#, 0, 1)));
        check(r#"{"a.b.c":1,"a":{"b.c":2}}"#, Some((r#"{"a.b.c":1,"a":{}}"#, 0, 1)));
        check(r#"{"a.":1,"a":{"":2}}"#, Some((r#"{"a.":1,"a":{}}"#, 0, 1)));
        check(r#"[{"x":[{"a.b":1,"a":{"b":2}}]}]"#, Some((r#"[{"x":[{"a.b":1,"a":{}}]}]"#, 0, 1)));
    }

    #[test]
    fn a_null_behind_a_value_is_dropped_and_not_counted() {
        check(r#"{"a":{"b":1},"a.b":null}"#, Some((r#"{"a":{"b":1}}"#, 0, 0)));
    }

    #[test]
    fn a_path_taken_by_a_dropped_duplicate_is_free_again() {
        check(
            r#"{"a.b":1,"a":{"b":2},"a.b":{"c":3}}"#,
            Some((r#"{"a":{"b":2},"a.b":{"c":3}}"#, 1, 0)),
        );
    }
}
