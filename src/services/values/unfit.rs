//! What a column could not hold of the values that it was given.

use std::fmt;

/// Why another value than the original was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    OutOfRange,
    Rounded,
    NotANumber,
    /// The arrays within an array are not as deep as the column says.
    OtherDimensions,
    /// The elements are stored, their numbers in Postgres are not.
    LowerBounds,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::OutOfRange => "out of range, nearest value stored",
            Reason::Rounded => "more digits than the column holds, rounded",
            Reason::NotANumber => "not a number, null stored",
            Reason::OtherDimensions => "an array of other dimensions, an empty one stored",
            Reason::LowerBounds => "an array that does not begin at 1, its elements stored",
        })
    }
}

/// Filled by `put`: whoever calls that looks after each value, and [takes](Unfit::take) it.
#[derive(Debug, Default)]
pub struct Unfit {
    reason: Option<Reason>,
    original: Vec<u8>,
    /// A NULL came for a column that takes none: another value stands in its place.
    pub null: bool,
}

impl Unfit {
    #[cold]
    pub fn note(&mut self, reason: Reason) {
        self.reason.get_or_insert(reason);
    }

    pub fn is_some(&self) -> bool {
        self.reason.is_some() || self.null
    }

    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// The reason, and the whole value as Postgres prints it.
    pub fn take(&mut self) -> Option<(Reason, Vec<u8>)> {
        let original = std::mem::take(&mut self.original);
        self.reason.take().map(|reason| (reason, original))
    }

    pub(super) fn set_original(&mut self, original: Vec<u8>) {
        self.original = original;
    }
}
