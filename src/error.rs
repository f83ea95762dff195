//! The one operating error: what was being done, the cause, and what the operator can do.
//!
//! Refused values (a malformed message, a bad setting) are small enums next to the code that
//! refuses them; bugs are asserts. Only what happens while operating is an `Error`.

use std::error::Error as StdError;
use std::fmt;

use crate::wal::Lsn;

pub type Result<T> = std::result::Result<T, Error>;

/// An operating error. Prints as one line, `doing: cause: cause`; the hint is a separate line.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    doing: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    hint: Option<String>,
    place: Option<Lsn>,
}

/// Coarse on purpose: a kind exists only where something is done differently for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No connection, a lost one, or no answer in time.
    Unreachable,
    /// The other side answered and said no: credentials, privileges, settings, names.
    Setup,
    /// The slot is held by another walsender.
    SlotBusy,
    /// Bytes or a table that we do not understand.
    Protocol,
    /// ClickHouse refused the data itself; salvage may land the rest.
    DataRefused,
    /// Continuing could pass over changes in silence: gap, fork or foreign cluster.
    Lineage,
    /// The work was asked to stop: not a failure of its own, nor of the session.
    Stopped,
    /// A thread panicked.
    Bug,
}

/// How the service reacts to an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Go through the configured strategy (reconnect, exit, log).
    Strategy,
    /// Stop this service until an operator decides, whatever the strategy.
    Halt,
}

impl Error {
    pub fn new(kind: ErrorKind, doing: impl Into<String>) -> Error {
        Error { kind, doing: doing.into(), source: None, hint: None, place: None }
    }

    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.source = Some(cause.into());
        self
    }

    /// One sentence for the operator: the SQL, setting or variable that fixes it.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// The LSN of an error that the WAL there may cause: decoding it again may fail again. The
    /// first one set is the most precise.
    pub fn at(mut self, place: Lsn) -> Error {
        self.place.get_or_insert(place);
        self
    }

    pub fn place(&self) -> Option<Lsn> {
        self.place
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The cause given to [`because`](Error::because), for a caller that needs more than the kind,
    /// such as the SQLSTATE.
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.source.as_deref()
    }

    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    pub fn remedy(&self) -> Remedy {
        match self.kind {
            ErrorKind::Lineage => Remedy::Halt,
            ErrorKind::Unreachable
            | ErrorKind::Setup
            | ErrorKind::SlotBusy
            | ErrorKind::Protocol
            | ErrorKind::DataRefused
            | ErrorKind::Stopped
            | ErrorKind::Bug => Remedy::Strategy,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)?;
        let mut cause = self.source.as_deref().map(|e| e as &dyn StdError);
        let mut last = String::new();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many libraries print their source as part of themselves; do not say it twice.
            if !last.contains(text.as_str()) {
                write!(f, ": {}", text.trim_end().replace('\n', " "))?;
                last = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // `Display` already prints the chain.
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_one_line_with_every_cause_once() {
        let cause = std::io::Error::other("connection reset\nby peer");
        let error = Error::new(ErrorKind::Unreachable, "read stream of slot `runs`").because(cause);
        assert_eq!(error.to_string(), "read stream of slot `runs`: connection reset by peer");
        assert_eq!(error.remedy(), Remedy::Strategy);
        assert_eq!(Error::new(ErrorKind::Lineage, "x").remedy(), Remedy::Halt);
    }

    #[test]
    fn hint_is_kept_apart_from_the_line() {
        let error = Error::new(ErrorKind::Setup, "check publication `p`").hint("Run: ALTER ...");
        assert_eq!(error.to_string(), "check publication `p`");
        assert_eq!(error.hint_text(), Some("Run: ALTER ..."));
    }
}
