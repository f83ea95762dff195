//! The contents of an ErrorResponse, and our kind of error for it.
//!
//! The SQLSTATE decides, never the message: messages are translated (`lc_messages`).

use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::wal::Lsn;

/// An ErrorResponse. `message` and `detail` are in the language of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    pub severity: String,
    /// Five characters, such as `42704`.
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// The change that was being decoded, of an error of the output plugin.
    pub place: Option<Lsn>,
    /// The C function that raised it: distinguishes errors that share a SQLSTATE, in any language.
    pub routine: Option<String>,
}

impl ServerError {
    /// Reads the body of an ErrorResponse. Total: it leaves out what is malformed.
    pub(super) fn parse(body: &[u8]) -> ServerError {
        let mut error = ServerError {
            severity: String::new(),
            sqlstate: String::new(),
            message: String::new(),
            detail: None,
            hint: None,
            place: None,
            routine: None,
        };
        for field in body.split(|&byte| byte == 0) {
            let Some((kind, text)) = field.split_first() else { break };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                // `V` is the severity that is never translated (9.6 and later); it comes after `S`.
                b'S' | b'V' => error.severity = text,
                b'C' => error.sqlstate = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                b'W' => error.place = place_of(&text),
                b'R' => error.routine = Some(text),
                _ => {}
            }
        }
        error
    }

    pub fn kind(&self) -> ErrorKind {
        let class = self.sqlstate.get(..2).unwrap_or_default();
        match (class, self.sqlstate.as_str()) {
            // A client that talks to a pooler or to a foreign server will not get further by
            // retrying.
            (_, "08P01") => ErrorKind::Setup,
            (_, "55006") => ErrorKind::SlotBusy,
            // Limits that only a restart with other settings moves, such as max_replication_slots.
            (_, "53400") => ErrorKind::Setup,
            // WAL that was removed; the other codes of its class are failures of the system.
            (_, "58P01") => ErrorKind::Setup,
            // 57014 is a timeout or a cancelled query; 25006 a server that became read-only.
            ("08" | "40" | "53" | "57" | "58", _) | (_, "25006") => ErrorKind::Unreachable,
            _ => ErrorKind::Setup,
        }
    }

    /// A character that the encoding of the one side has, and that of the other has not.
    pub fn is_unconvertible(&self) -> bool {
        ["22P05", "22021"].contains(&&*self.sqlstate)
    }

    /// As our own error: the kind by SQLSTATE, the server's hint as the hint.
    pub fn into_error(self, doing: impl Into<String>) -> Error {
        let mut error = Error::new(self.kind(), doing);
        if let Some(place) = self.place {
            error = error.at(place);
        }
        match self.hint.clone() {
            Some(hint) => error.because(self).hint(hint),
            None => error.because(self),
        }
    }

    /// These texts repeat the value of a row, which no log may show.
    fn quotes_a_value(&self) -> bool {
        matches!(self.sqlstate.as_str(), "22P02" | "22P03" | "22003" | "22007" | "22008" | "22032")
            || self.sqlstate.starts_with("23")
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.quotes_a_value() {
            return write!(f, "server refused a value ({})", self.sqlstate);
        }
        f.write_str(&self.message)?;
        if let Some(detail) = &self.detail
            && !self.sqlstate.starts_with("22")
        {
            write!(f, ": {}", detail.trim_end_matches('.'))?;
        }
        write!(f, " ({})", self.sqlstate)
    }
}

impl std::error::Error for ServerError {}

/// From "slot "s", output plugin "pgoutput", in the change callback, associated LSN 0/16B3748": the
/// words are translated, the LSN comes last.
fn place_of(context: &str) -> Option<Lsn> {
    let is_of_lsn = |c: char| c == '/' || c.is_ascii_hexdigit();
    let words = context.split(|c| !is_of_lsn(c));
    words.filter(|word| word.contains('/')).filter_map(|word| word.parse().ok()).next_back()
}

/// Several servers were tried and none was usable. Represents the most informative of the errors.
#[derive(Debug)]
pub(super) struct NoneWouldDo {
    /// The most informative one first.
    pub attempts: Vec<Error>,
}

impl fmt::Display for NoneWouldDo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.attempts.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NoneWouldDo {}

/// The server's own words behind an error, if it was the server that refused.
pub fn server_error(error: &Error) -> Option<&ServerError> {
    let cause = error.cause()?;
    if let Some(found) = cause.downcast_ref::<ServerError>() {
        return Some(found);
    }
    cause.downcast_ref::<NoneWouldDo>()?.attempts.iter().find_map(server_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(sqlstate: &str, message: &str) -> ServerError {
        let body = format!("SFEHLER\0VERROR\0C{sqlstate}\0M{message}\0Dmore.\0Rfn\0\0");
        ServerError::parse(body.as_bytes())
    }

    #[test]
    fn sqlstate_decides_the_kind() {
        for (sqlstate, kind) in [
            ("57P01", ErrorKind::Unreachable),
            ("57P03", ErrorKind::Unreachable),
            ("53300", ErrorKind::Unreachable),
            ("08006", ErrorKind::Unreachable),
            ("08P01", ErrorKind::Setup),
            ("53400", ErrorKind::Setup),
            ("28P01", ErrorKind::Setup),
            ("3D000", ErrorKind::Setup),
            ("42501", ErrorKind::Setup),
            ("42704", ErrorKind::Setup),
            ("55000", ErrorKind::Setup),
            ("55006", ErrorKind::SlotBusy),
        ] {
            assert_eq!(error(sqlstate, "x").kind(), kind, "{sqlstate}");
        }
    }

    #[test]
    fn the_place_is_found_in_any_language() {
        for context in [
            "slot \"s/1\", output plugin \"pgoutput\", in the change callback, associated LSN \
             0/16B3748",
            "Slot »s«, Output-Plugin »pgoutput«, im Callback change, zugehörige LSN 0/16B3748",
        ] {
            let body = format!("SERROR\0C42704\0Mx\0W{context}\0\0");
            let error = ServerError::parse(body.as_bytes()).into_error("stream");
            assert_eq!(error.place(), Some(Lsn(0x16B_3748)), "{context}");
        }
        assert_eq!(place_of("PL/pgSQL function f() line 1"), None);
    }

    #[test]
    fn values_of_rows_are_not_shown() {
        let text = error("22P02", "invalid input syntax for type integer: \"secret\"").to_string();
        assert_eq!(text, "server refused a value (22P02)");
        assert_eq!(error("42704", "no slot").to_string(), "no slot: more (42704)");
    }

    #[test]
    fn malformed_bodies_are_read_as_far_as_they_go() {
        for body in [&b""[..], b"\0", b"S", b"C\0", b"M\xff\xfe", b"CXX\0M"] {
            let _ = ServerError::parse(body).to_string();
            let _ = ServerError::parse(body).kind();
        }
    }

    #[test]
    fn found_behind_the_error_of_several_servers() {
        let inner = error("57P03", "starting up").into_error("connect to `a`");
        let outer = Error::new(ErrorKind::Unreachable, "connect to Postgres")
            .because(NoneWouldDo { attempts: vec![inner] });
        assert_eq!(server_error(&outer).unwrap().sqlstate, "57P03");
    }
}
