//! Texts of a database in SQL_ASCII, where a text is whatever bytes a client has sent, in a session
//! with UTF-8.
//!
//! There the server refuses to send text that is not UTF-8 (22021), and the client refuses to read
//! it. So values of rows travel as Latin-1, each byte as the character of that number, and are
//! converted back here. Other databases convert, and their texts are UTF-8 as they come.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{ident, literal};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Texts {
    is_raw: bool,
    /// The server has characters of its own, and not all that UTF-8 has.
    is_converted: bool,
}

impl Texts {
    pub(super) fn of(server_encoding: &str) -> Texts {
        let is_converted = !matches!(server_encoding, "SQL_ASCII" | "UTF8");
        Texts { is_raw: server_encoding == "SQL_ASCII", is_converted }
    }

    /// They may be anything, so that the server refuses to send what is not UTF-8.
    pub(in crate::postgres) fn is_raw(self) -> bool {
        self.is_raw
    }

    /// The client encoding with which the server sends the bytes unchanged.
    pub fn client_encoding(self) -> &'static str {
        if self.is_raw { "SQL_ASCII" } else { "UTF8" }
    }

    /// A column in the list of a SELECT, its values as the output function of its type prints them.
    pub fn column(self, name: &str) -> String {
        self.value(ident(name))
    }

    /// The same of a column that is named with its table.
    pub fn value(self, name: String) -> String {
        match self.is_raw {
            false => name,
            true => format!(
                "CASE WHEN num_nulls({name}) = 0 THEN convert_from(convert(convert_to(\
                 format('%s', {name}), 'SQL_ASCII'), 'LATIN1', 'UTF8'), 'SQL_ASCII') END"
            ),
        }
    }

    /// A value of [`Texts::column`].
    pub fn bytes(self, text: &str) -> Cow<'_, [u8]> {
        match self.is_raw && !text.is_ascii() {
            false => Cow::Borrowed(text.as_bytes()),
            // All are below 256, or the server did not send them.
            true => text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect(),
        }
    }

    /// Whether the value can have come from the database, and so be asked for.
    pub fn may_hold(self, value: &[u8]) -> bool {
        !value.contains(&0) && (self.is_raw || std::str::from_utf8(value).is_ok())
    }

    /// True if the encoding can hold every text, so that no query is needed.
    pub(super) fn surely_holds(self, value: &[u8]) -> bool {
        !self.is_converted || value.is_ascii()
    }

    /// `None` of what the database cannot hold.
    pub fn literal(self, value: &[u8]) -> Option<String> {
        if !self.may_hold(value) {
            return None;
        }
        if let Ok(text) = std::str::from_utf8(value) {
            return Some(literal(text));
        }
        let mut escaped = " E'".to_owned();
        for byte in value {
            let _ = write!(escaped, "\\x{byte:02x}");
        }
        escaped.push('\'');
        Some(escaped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_from_their_characters() {
        let (raw, utf8) = (Texts::of("SQL_ASCII"), Texts::of("UTF8"));
        assert_eq!(&*raw.bytes("caf\u{e9}"), b"caf\xe9");
        assert_eq!(&*raw.bytes("\u{c3}\u{a9}"), "\u{e9}".as_bytes());
        assert_eq!(&*utf8.bytes("caf\u{e9}"), "caf\u{e9}".as_bytes());
        assert_eq!((raw.client_encoding(), utf8.client_encoding()), ("SQL_ASCII", "UTF8"));
    }

    #[test]
    fn only_what_the_database_can_hold_is_asked_for() {
        let (raw, utf8) = (Texts::of("SQL_ASCII"), Texts::of("LATIN1"));
        assert_eq!(utf8.literal(b"a'b").as_deref(), Some("'a''b'"));
        assert_eq!(utf8.literal(b"\xe9"), None);
        assert_eq!(raw.literal(b"'\xe9").as_deref(), Some(" E'\\x27\\xe9'"));
        assert_eq!((raw.literal(b"a\0"), utf8.literal(b"\0")), (None, None));
        assert_eq!(utf8.column("a\"b"), "\"a\"\"b\"");
    }
}
