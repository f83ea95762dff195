//! What happened to rows on their way, for metrics and the table of refused rows.

use std::sync::Arc;

/// What happened to rows on their way, for metrics and the table of refused rows.
#[derive(Debug, Default)]
pub struct Notes {
    pub rows_without_owner: u64,
    pub kept: Vec<Kept>,
}

/// An original value that the target could not hold as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub table: Arc<str>,
    /// `None`: the row as a whole, which is not stored since its key does not fit.
    pub column: Option<Arc<str>>,
    pub key: Vec<u8>,
    pub version: u64,
    pub reason: String,
    pub document: Vec<u8>,
}
