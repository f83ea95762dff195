//! Turns a JSON document of Postgres into the text of a ClickHouse JSON column, `{"data":...}`.
//!
//! The text passes through as it is, in one pass; only what ClickHouse would refuse or would read
//! differently from `JSON.parse` is changed, and the outcome says so. Whatever the bytes, it
//! appends exactly one JSON object. ClickHouse 25.5 and 26.9 accepted each of thousands of random
//! ones; what 24.8 and 25.5 still refuse is due to how they guess the type of mixed arrays
//! (`[true,1.5]`), and refused rows are for salvage.
//!
//! Nearly every document needs no change, and `plain` finds that in half the time that the
//! pass over its tokens takes, which handles the rest. Where both can answer, they give the same
//! bytes.
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

pub use super::outcome::{Absent, DocumentOutcome, Reason, Repairs};
use super::paths::{self, PathSuspicion};
use super::plain::{self, Scanner};
use super::strings;
use super::tokens::{JsonFault, Quoted, Token, TokenKind, Tokens};

const OPENING: &[u8] = b"{\"data\":";
const NOTHING: &[u8] = b"{}";

/// For `output` and `payload`: text, with its content type.
pub fn append_document(
    text: Option<&[u8]>,
    content_type: &[u8],
    out: &mut Vec<u8>,
) -> DocumentOutcome {
    let envelope = match content_type {
        b"application/json" => Envelope::None,
        b"application/super+json" => Envelope::Superjson,
        _ => return nothing(Absent::ContentType, out),
    };
    match text {
        None | Some([]) => nothing(Absent::NoText, out),
        Some(text) => append(text, envelope, out),
    }
}

/// For `error` and `metadata`: jsonb, as text. Nothing there is `{"data":null}`.
pub fn append_jsonb(text: Option<&[u8]>, out: &mut Vec<u8>) -> DocumentOutcome {
    append(text.unwrap_or(b"null"), Envelope::None, out)
}

fn nothing(absent: Absent, out: &mut Vec<u8>) -> DocumentOutcome {
    out.extend_from_slice(NOTHING);
    DocumentOutcome::Empty(absent)
}

/// Where in the document the value is that ClickHouse is to have.
#[derive(Clone, Copy)]
enum Envelope {
    /// The document is the value.
    None,
    /// The document is superjson's, and the value is its (last) member `json`.
    Superjson,
}

/// Buffers that live as long as the thread, so that a document costs no allocation.
struct Scratch {
    scanner: Scanner,
    keys: Keys,
}

fn append(text: &[u8], envelope: Envelope, out: &mut Vec<u8>) -> DocumentOutcome {
    thread_local! {
        static SCRATCH: RefCell<Scratch> =
            const { RefCell::new(Scratch { scanner: Scanner::new(), keys: Keys::new() }) };
    }
    if !text.is_ascii() && std::str::from_utf8(text).is_err() {
        return refuse(Refusal::Reason(Reason::NotUtf8), out);
    }
    SCRATCH.with_borrow_mut(|scratch| match ordinary(text, envelope, &mut scratch.scanner) {
        Some(value) => {
            out.reserve(OPENING.len() + value.len() + 1);
            out.extend_from_slice(OPENING);
            out.extend_from_slice(value);
            out.push(b'}');
            DocumentOutcome::Written
        }
        None => append_mended(text, envelope, &mut scratch.keys, out),
    })
}

fn refuse(refusal: Refusal, out: &mut Vec<u8>) -> DocumentOutcome {
    out.extend_from_slice(NOTHING);
    match refusal {
        Refusal::Fault(JsonFault::TooDeep) => DocumentOutcome::TooDeep,
        Refusal::Fault(JsonFault::Syntax { at }) => DocumentOutcome::Invalid(Reason::Syntax { at }),
        Refusal::Reason(reason) => DocumentOutcome::Invalid(reason),
    }
}

/// The value of a document that needs no change.
fn ordinary<'t>(text: &'t [u8], envelope: Envelope, scanner: &mut Scanner) -> Option<&'t [u8]> {
    let begin = plain::past_space(text, 0);
    let (start, end, mut at) = match envelope {
        Envelope::None => {
            let end = scanner.value_end(text, begin)?;
            (begin, end, end)
        }
        Envelope::Superjson => {
            let start = plain::past_literal(text, begin, b"{\"json\":")?;
            let end = scanner.value_end(text, start)?;
            let at = match plain::past_literal(text, end, b",\"meta\":") {
                Some(meta) => scanner.value_end(text, meta)?,
                None => end,
            };
            (start, end, plain::past_literal(text, at, b"}")?)
        }
    };
    at = plain::past_space(text, at);
    if at == text.len() { text.get(start..end) } else { None }
}

/// Token by token, for whatever bytes of UTF-8.
fn append_mended(
    text: &[u8],
    envelope: Envelope,
    keys: &mut Keys,
    out: &mut Vec<u8>,
) -> DocumentOutcome {
    keys.reset();
    let start = out.len();
    match append_wrapped(text, envelope, keys, out) {
        Ok(repairs) if repairs == Repairs::default() => DocumentOutcome::Written,
        Ok(repairs) => DocumentOutcome::Repaired(repairs),
        Err(refusal) => {
            out.truncate(start);
            refuse(refusal, out)
        }
    }
}

fn append_wrapped(
    text: &[u8],
    envelope: Envelope,
    keys: &mut Keys,
    out: &mut Vec<u8>,
) -> Result<Repairs, Refusal> {
    // A little more than the text, so that an ordinary document grows the buffer once at most.
    out.reserve(text.len() + OPENING.len() + 1);
    out.extend_from_slice(OPENING);
    let start = out.len();
    let mut pass = Pass { out, keys, watch: true, found: Found::default() };
    let mut tokens = Tokens::new(text);
    let value = match envelope {
        Envelope::None => whole_value(&mut pass, &mut tokens),
        Envelope::Superjson => json_member(&mut pass, &mut tokens),
    }?;
    let mut found = pass.found;
    if found.same_hash || found.dotted_key {
        let value = text.get(value).unwrap_or_default();
        let suspicion = if found.same_hash {
            PathSuspicion::RepeatedOrMeeting
        } else {
            PathSuspicion::MeetingOnly
        };
        if let Some(resolved) = paths::resolve(value, suspicion)? {
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

fn whole_value(pass: &mut Pass<'_>, tokens: &mut Tokens<'_>) -> Result<Range<usize>, Refusal> {
    let value = pass.value(tokens)?;
    tokens.finish()?;
    Ok(value)
}

fn json_member(pass: &mut Pass<'_>, tokens: &mut Tokens<'_>) -> Result<Range<usize>, Refusal> {
    let start = pass.out.len();
    let mut value = None;
    if tokens.next_token()? == Some(Token::Open(TokenKind::Object)) {
        while let Some(Token::Key(key)) = tokens.next_token()? {
            let raw = tokens.raw(key.start, key.end);
            if strings::decode(raw).as_deref() == Some("json") {
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
    Fault(JsonFault),
    Reason(Reason),
}

impl From<JsonFault> for Refusal {
    fn from(fault: JsonFault) -> Refusal {
        Refusal::Fault(fault)
    }
}

/// The open objects.
struct Keys {
    /// For every key of every open object.
    key_hashes: Vec<u64>,
    /// For every open object, where its hashes begin.
    objects: Vec<usize>,
    key: Vec<u8>,
}

impl Keys {
    const fn new() -> Keys {
        Keys { key_hashes: Vec::new(), objects: Vec::new(), key: Vec::new() }
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

/// Copies one value from tokens to `out`, with the repairs that are made in place.
struct Pass<'p> {
    out: &'p mut Vec<u8>,
    keys: &'p mut Keys,
    /// Look for keys that `json_paths` must resolve.
    watch: bool,
    found: Found,
}

impl Pass<'_> {
    /// To be called where a value begins. Returns where it is, without surrounding white space.
    fn value(&mut self, tokens: &mut Tokens<'_>) -> Result<Range<usize>, JsonFault> {
        let depth = tokens.depth();
        let start = tokens.next_start();
        // The start of what was read but not copied yet.
        let mut uncopied = start;
        while let Some(token) = tokens.next_token()? {
            match token {
                Token::Open(TokenKind::Object) => {
                    self.keys.objects.push(self.keys.key_hashes.len());
                }
                Token::Close(TokenKind::Object) => self.close_object(),
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
                Token::Open(TokenKind::Array)
                | Token::Close(TokenKind::Array)
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
            strings::append_without_lone_surrogates(raw, self.out);
            *uncopied = quoted.end;
            self.found.repairs.surrogates += quoted.lone_surrogates;
        }
    }

    fn note_key(&mut self, raw: &[u8], escaped: bool) {
        let Keys { key_hashes, key, .. } = &mut *self.keys;
        let name = if escaped {
            key.clear();
            strings::decode_into(raw, key);
            key.as_slice()
        } else {
            strings::unquoted(raw)
        };
        let (hash, has_dot) = strings::hash_and_dot(name);
        key_hashes.push(hash);
        self.found.dotted_key |= has_dot;
    }

    fn close_object(&mut self) {
        let Some(start) = self.keys.objects.pop() else { return };
        let hashes = self.keys.key_hashes.get_mut(start..).unwrap_or_default();
        // Up to here comparing each with each is the cheaper way.
        const FEW: usize = 12;
        self.found.same_hash |= if hashes.len() <= FEW {
            hashes.iter().enumerate().any(|(n, hash)| hashes[..n].contains(hash))
        } else {
            hashes.sort_unstable();
            hashes.windows(2).any(|pair| pair[0] == pair[1])
        };
        self.keys.key_hashes.truncate(start);
    }
}

/// Does every ClickHouse accept the number, and as a number?
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
mod tests;
