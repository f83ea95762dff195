//! What became of an INSERT that did not succeed, as far as it decides what to do next.

use super::refusal::{Refusal, RefusalVerdict};
use crate::error::Error;

/// Why an INSERT did not succeed.
#[derive(Debug)]
pub enum InsertError {
    /// ClickHouse was not reached, did not answer, or cannot take any block now. The rows may be in
    /// the table or not; sending the same block again is right.
    Retry(Error),
    /// The same, and the connection was lost amid the request: a proxy may have ended it for being
    /// too large.
    Lost(Error),
    /// The same, and less at a time may be taken: it was too large, or took too long.
    Large(Error),
    /// The rows themselves were refused, or for what is not known. The same block will be refused
    /// again; a part of it may not.
    Data(Box<Refusal>),
    /// The table may have taken the rows; a view behind it refused them.
    View(Box<Refusal>),
    /// The same, for a limit: it may take less at a time.
    LargeForView(Box<Refusal>),
}

impl InsertError {
    pub(super) fn of_refusal(refusal: Refusal, doing: String) -> InsertError {
        match refusal.verdict() {
            RefusalVerdict::Data | RefusalVerdict::Unknown => InsertError::Data(Box::new(refusal)),
            RefusalVerdict::View => InsertError::View(Box::new(refusal)),
            RefusalVerdict::Size if refusal.view.is_some() => {
                InsertError::LargeForView(Box::new(refusal))
            }
            RefusalVerdict::Size => InsertError::Large(refusal.into_error(doing)),
            RefusalVerdict::Setup | RefusalVerdict::Busy => {
                InsertError::Retry(refusal.into_error(doing))
            }
        }
    }

    /// The error for an operator, where its kind does not matter.
    pub fn into_error(self, table: &str) -> Error {
        match self {
            InsertError::Retry(error) | InsertError::Lost(error) | InsertError::Large(error) => {
                error
            }
            InsertError::Data(refusal)
            | InsertError::View(refusal)
            | InsertError::LargeForView(refusal) => {
                refusal.into_error(format!("insert into `{table}`"))
            }
        }
    }
}
