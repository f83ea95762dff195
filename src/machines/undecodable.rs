//! WAL that no attempt can decode: whether another attempt makes sense.
//!
//! The server's decoding ends with an error (a publication that was made after the WAL was written,
//! a row too large to be sent), or ours does (a DELETE that does not name the key). One attempt
//! does not show whether that will pass; but each attempt first checks the table and the
//! publication, and decodes the same bytes. So the same error at the same LSN a third time means
//! that nothing will change: a repair has to find what is there and after it.
//!
//! Errors that have no place in the WAL (an unreachable server, a timeout, a full disk) do not
//! reach this machine, and neither add to the count nor end it.

use crate::wal::Lsn;

/// Two may be chance: the table may have been altered and altered back between the two checks.
const TIMES: u32 = 3;

#[derive(Debug, Default)]
pub struct Undecodable {
    last: Option<Met>,
}

/// An error, where it was met, and how often in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Met {
    at: Lsn,
    error: String,
    times: u32,
}

/// The WAL not to try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub at: Lsn,
    pub error: String,
}

impl Undecodable {
    /// An attempt has ended with an error that the WAL at `at` may be the cause of.
    pub fn on_error(&mut self, at: Lsn, error: &str) {
        match &mut self.last {
            Some(met) if met.at == at && met.error == error => {
                met.times = met.times.saturating_add(1)
            }
            last => *last = Some(Met { at, error: error.to_owned(), times: 1 }),
        }
    }

    /// A stream begins on WAL that was never tried.
    pub fn on_new_slot(&mut self) {
        self.last = None;
    }

    pub fn given_up(&self) -> Option<Given> {
        let met = self.last.as_ref().filter(|met| TIMES <= met.times)?;
        Some(Given { at: met.at, error: met.error.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(errors: &[(u64, &str)]) -> Option<u64> {
        let mut machine = Undecodable::default();
        for (at, error) in errors {
            machine.on_error(Lsn(*at), error);
        }
        machine.given_up().map(|given| given.at.0)
    }

    #[test]
    fn the_same_error_at_the_same_place_three_times_is_given_up() {
        assert_eq!(after(&[]), None);
        assert_eq!(after(&[(7, "a"), (7, "a")]), None);
        assert_eq!(after(&[(7, "a"), (7, "a"), (7, "a")]), Some(7));
        assert_eq!(after(&[(7, "a"), (7, "a"), (7, "a"), (7, "a")]), Some(7));
    }

    #[test]
    fn another_error_or_another_place_begins_anew() {
        assert_eq!(after(&[(7, "a"), (7, "a"), (8, "a")]), None);
        assert_eq!(after(&[(7, "a"), (7, "b"), (7, "a")]), None);
        assert_eq!(after(&[(7, "a"), (8, "a"), (8, "a"), (8, "a")]), Some(8));
        // WAL that was given up and later decoded is not given up for good.
        assert_eq!(after(&[(7, "a"), (7, "a"), (7, "a"), (9, "a")]), None);
    }

    #[test]
    fn a_new_slot_has_been_tried_never() {
        let mut machine = Undecodable::default();
        (0..3).for_each(|_| machine.on_error(Lsn(7), "a"));
        machine.on_new_slot();
        assert_eq!(machine.given_up(), None);
        machine.on_error(Lsn(7), "a");
        assert_eq!(machine.given_up(), None);
    }
}
