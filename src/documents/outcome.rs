//! What became of a document on its way to ClickHouse, for the caller to count and to act on.
//!
//! It never holds any of the document's content, so that it can be logged.

use std::fmt;

use super::tokens::Fault;

/// What became of a document. `{}` was appended for `Empty`, `Invalid` and `TooDeep`.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Written as it was.
    Written,
    /// Nothing was to be written.
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

/// Why a document is refused; never says what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    NotUtf8,
    Syntax {
        at: usize,
    },
    /// `application/super+json` without a `json` member.
    NoJsonMember,
}

impl Outcome {
    /// Does the document say something that ClickHouse now does not? Then the original is to be
    /// kept elsewhere. A number that became a string is not lost.
    pub fn lost_content(self) -> bool {
        match self {
            Outcome::Written | Outcome::Empty(_) => false,
            Outcome::Repaired(repairs) => {
                repairs.surrogates > 0 || repairs.duplicates > 0 || repairs.shadowed > 0
            }
            Outcome::Invalid(_) | Outcome::TooDeep => true,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Written => f.write_str("written"),
            Outcome::Empty(Absent::NoText) => f.write_str("no text"),
            Outcome::Empty(Absent::ContentType) => f.write_str("content type is not JSON"),
            Outcome::Repaired(Repairs { surrogates, numbers, duplicates, shadowed }) => write!(
                f,
                "repaired: surrogates={surrogates} numbers={numbers} duplicates={duplicates} \
                 shadowed={shadowed}"
            ),
            Outcome::Invalid(reason) => write!(f, "{reason}"),
            Outcome::TooDeep => write!(f, "{}", Fault::TooDeep),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Reason::NotUtf8 => f.write_str("not valid UTF-8"),
            Reason::Syntax { at } => write!(f, "{}", Fault::Syntax { at }),
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
        assert!(!Outcome::Repaired(Repairs { numbers: 3, ..none }).lost_content());
        assert!(Outcome::Repaired(Repairs { surrogates: 1, ..none }).lost_content());
        assert!(Outcome::Repaired(Repairs { duplicates: 1, ..none }).lost_content());
        assert!(Outcome::Repaired(Repairs { shadowed: 1, ..none }).lost_content());
    }

    #[test]
    fn an_outcome_prints_what_an_operator_can_look_for() {
        let outcome = Outcome::Invalid(Reason::Syntax { at: 7 });
        assert_eq!(outcome.to_string(), "not valid JSON at byte 7");
        assert_eq!(Outcome::TooDeep.to_string(), "nested too deeply");
        assert_eq!(
            Outcome::Repaired(Repairs { surrogates: 2, ..Repairs::default() }).to_string(),
            "repaired: surrogates=2 numbers=0 duplicates=0 shadowed=0"
        );
    }
}
