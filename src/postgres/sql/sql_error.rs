//! The meaning of a refused or broken statement: SQLSTATE, our kind, and a text without row
//! content.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use postgres::error::{DbError, Severity};

use crate::error::{Error, ErrorKind};
use crate::postgres::tls;

/// A statement that did not succeed, before the caller says what it was doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    pub kind: ErrorKind,
    /// Five characters when the server itself answered.
    pub sqlstate: Option<String>,
    pub cause: String,
    pub hint: Option<String>,
    /// The connection is of no further use.
    pub is_fatal: bool,
}

impl SqlError {
    pub fn new(kind: ErrorKind, cause: impl Into<String>) -> SqlError {
        SqlError { kind, sqlstate: None, cause: cause.into(), hint: None, is_fatal: true }
    }

    /// `waited` is how long the caller allowed, for the text of a timeout.
    pub fn read(error: &postgres::Error, waited: Duration) -> SqlError {
        if let Some(db) = error.as_db_error() {
            return SqlError::answered(db);
        }
        if error.is_closed() {
            return SqlError::new(ErrorKind::Unreachable, "connection closed");
        }
        let Some(io) = error.source().and_then(|e| e.downcast_ref::<io::Error>()) else {
            // No cause of the network: a password that is missing, a method that is not spoken, or
            // an answer that cannot be read.
            let text = match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            let is_ours = text.contains("configuration") || text.contains("authentication");
            let kind = if is_ours { ErrorKind::Setup } else { ErrorKind::Protocol };
            return SqlError::new(kind, text);
        };
        if let Some(cause) = io.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            return SqlError {
                hint: Some(
                    tls::hint_of(cause)
                        .unwrap_or(
                            "Check `sslmode` and `sslrootcert` of the database URL against the \
                             server's certificate.",
                        )
                        .into(),
                ),
                ..SqlError::new(ErrorKind::Setup, format!("TLS handshake: {cause}"))
            };
        }
        match io.kind() {
            // The kernel's own giving up, by TCP_USER_TIMEOUT or keepalive, speaks for itself.
            io::ErrorKind::TimedOut if io.raw_os_error().is_none() => SqlError::new(
                ErrorKind::Unreachable,
                format!("no answer within {:.1}s", waited.as_secs_f64()),
            ),
            io::ErrorKind::Unsupported => SqlError {
                hint: Some(
                    "Set `ssl = on` on the server, or a weaker `sslmode` in the database URL."
                        .into(),
                ),
                ..SqlError::new(ErrorKind::Setup, io.to_string())
            },
            // The `postgres` crate could not read what came.
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                SqlError::new(ErrorKind::Protocol, format!("{error}: {io}"))
            }
            _ => SqlError::new(ErrorKind::Unreachable, io.to_string()),
        }
    }

    fn answered(db: &DbError) -> SqlError {
        let code = db.code().code();
        // Data exceptions and constraint violations quote the value in their message.
        let cause = match code.get(..2) {
            Some("22" | "23") => format!("server refused a value (SQLSTATE {code})"),
            _ => format!("{} (SQLSTATE {code})", db.message()),
        };
        let is_fatal =
            matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic) | None)
                || code.starts_with("08");
        SqlError {
            kind: kind_of(code),
            sqlstate: Some(code.to_owned()),
            cause,
            hint: hint_of(code).map(str::to_owned),
            is_fatal,
        }
    }

    pub fn is(&self, sqlstate: &str) -> bool {
        self.sqlstate.as_deref() == Some(sqlstate)
    }

    /// A character that the encoding of the one side has, and that of the other has not; or bytes
    /// that are none in it.
    pub fn is_unconvertible(&self) -> bool {
        self.is("22P05") || self.is("22021")
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> SqlError {
        self.hint = Some(hint.into());
        self
    }

    pub fn doing(self, doing: impl Into<String>) -> Error {
        let error = Error::new(self.kind, doing).because(self.cause);
        match self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// The short list has the errors that resolve themselves; all others wait for an operator.
fn kind_of(sqlstate: &str) -> ErrorKind {
    match sqlstate {
        // Too many slots or walsenders is a setting, unlike the rest of its class.
        "53400" => ErrorKind::Setup,
        // The database was dropped.
        "57P04" => ErrorKind::Setup,
        "55006" => ErrorKind::SlotBusy,
        // Cancelled, lock not granted in time, serialization, deadlock, a primary that was demoted.
        "57014" | "55P03" | "40001" | "40P01" | "25006" => ErrorKind::Unreachable,
        _ => match sqlstate.get(..2) {
            Some("08" | "53" | "57" | "58") => ErrorKind::Unreachable,
            Some("XX") => ErrorKind::Protocol,
            _ => ErrorKind::Setup,
        },
    }
}

fn hint_of(sqlstate: &str) -> Option<&'static str> {
    Some(match sqlstate {
        "28P01" | "28000" => {
            "Check user and password of the database URL, and the server's `pg_hba.conf`."
        }
        "3D000" => "Check the database name in the database URL.",
        "53300" => "Raise `max_connections`, or close connections that are not needed.",
        "57014" => "The statement timed out; look for long transactions and locks.",
        "55P03" => "Another session holds a lock on the table; look in `pg_locks`.",
        "25006" => {
            "Connect to the primary: set `target_session_attrs=read-write` and list all hosts."
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_unreachable_and_the_rest_is_not() {
        for (sqlstate, kind) in [
            ("57P01", ErrorKind::Unreachable),
            ("57P03", ErrorKind::Unreachable),
            ("08006", ErrorKind::Unreachable),
            ("53300", ErrorKind::Unreachable),
            ("57014", ErrorKind::Unreachable),
            ("25006", ErrorKind::Unreachable),
            ("55006", ErrorKind::SlotBusy),
            ("53400", ErrorKind::Setup),
            ("57P04", ErrorKind::Setup),
            ("28P01", ErrorKind::Setup),
            ("42501", ErrorKind::Setup),
            ("3D000", ErrorKind::Setup),
            ("XX000", ErrorKind::Protocol),
            ("", ErrorKind::Setup),
        ] {
            assert_eq!(kind_of(sqlstate), kind, "{sqlstate}");
        }
    }

    #[test]
    fn the_hint_stays_apart_from_the_line() {
        let error = SqlError::new(ErrorKind::Setup, "permission denied (SQLSTATE 42501)")
            .with_hint("Run: GRANT ...")
            .doing("create publication `p`");
        assert_eq!(error.to_string(), "create publication `p`: permission denied (SQLSTATE 42501)");
        assert_eq!(error.hint_text(), Some("Run: GRANT ..."));
    }
}
