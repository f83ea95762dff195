//! The outcome of converting a document, for the caller to count and to act on.
//!
//! It never holds any of the document's content, so that it can be logged.

use std::fmt;

use super::tokens::JsonFault;

/// The outcome of converting a document. `{}` was appended for `Empty`, `Invalid` and `TooDeep`.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentOutcome {
    /// Written as it was.
    Written,
    /// There was nothing to write.
    Empty(Absent),
    /// Written, with changes.
    Repaired(Repairs),
    /// Not JSON.
    Invalid(Reason),
    /// Nested deeper than ClickHouse can hold.
    TooDeep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// No text, or an empty one.
    NoText,
    /// The content type is not one of the two that are JSON.
    ContentType,
}

/// How many of each; at least one is not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repairs {
    /// Lone surrogates that became U+FFFD.
    pub surrogates: u32,
    /// Numbers that became strings; all digits are kept.
    pub numbers: u32,
    /// Members dropped for a later one of the same name.
    pub duplicates: u32,
    /// Members dropped for an earlier one of the same dotted path.
    pub shadowed: u32,
}

/// Why a document is refused; never quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    NotUtf8,
    Syntax {
        at: usize,
    },
    /// `application/super+json` without a `json` member.
    NoJsonMember,
}

impl DocumentOutcome {
    /// Does the document say something that ClickHouse now does not? Then the original must be kept
    /// elsewhere. A number that became a string is not lost.
    pub fn lost_content(self) -> bool {
        match self {
            DocumentOutcome::Written | DocumentOutcome::Empty(_) => false,
            DocumentOutcome::Repaired(repairs) => {
                repairs.surrogates > 0 || repairs.duplicates > 0 || repairs.shadowed > 0
            }
            DocumentOutcome::Invalid(_) | DocumentOutcome::TooDeep => true,
        }
    }
}

impl fmt::Display for DocumentOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DocumentOutcome::Written => f.write_str("written"),
            DocumentOutcome::Empty(Absent::NoText) => f.write_str("no text"),
            DocumentOutcome::Empty(Absent::ContentType) => f.write_str("content type is not JSON"),
            DocumentOutcome::Repaired(Repairs { surrogates, numbers, duplicates, shadowed }) => {
                write!(
                    f,
                    "repaired: surrogates={surrogates} numbers={numbers} duplicates={duplicates} \
                 shadowed={shadowed}"
                )
            }
            DocumentOutcome::Invalid(reason) => write!(f, "{reason}"),
            DocumentOutcome::TooDeep => write!(f, "{}", JsonFault::TooDeep),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Reason::NotUtf8 => f.write_str("not valid UTF-8"),
            Reason::Syntax { at } => write!(f, "{}", JsonFault::Syntax { at }),
            Reason::NoJsonMember => f.write_str("super+json without a `json` member"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_are_repaired_without_loss() {
        let none = Repairs::default();
        assert!(!DocumentOutcome::Repaired(Repairs { numbers: 3, ..none }).lost_content());
        assert!(DocumentOutcome::Repaired(Repairs { surrogates: 1, ..none }).lost_content());
        assert!(DocumentOutcome::Repaired(Repairs { duplicates: 1, ..none }).lost_content());
        assert!(DocumentOutcome::Repaired(Repairs { shadowed: 1, ..none }).lost_content());
    }

    #[test]
    fn an_outcome_prints_what_an_operator_can_look_for() {
        let outcome = DocumentOutcome::Invalid(Reason::Syntax { at: 7 });
        assert_eq!(outcome.to_string(), "not valid JSON at byte 7");
        assert_eq!(DocumentOutcome::TooDeep.to_string(), "nested too deeply");
        assert_eq!(
            DocumentOutcome::Repaired(Repairs { surrogates: 2, ..Repairs::default() }).to_string(),
            "repaired: surrogates=2 numbers=0 duplicates=0 shadowed=0"
        );
    }
}
