//! Whether a key that looks different on both sides is different, while changes stream between
//! them.
//!
//! Each check takes a snapshot of Postgres, waits until the stream has passed it, and only then
//! asks ClickHouse. ClickHouse's row may by then be newer than the snapshot, which its version
//! shows; or from a transaction that the snapshot did not see yet, though its changes lie below.
//! The next snapshot sees that transaction. So a key differs if it does in two checks in a row,
//! with the same version both times.

use super::repair::Stored;

/// How a key differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// Postgres has it, ClickHouse does not.
    Missing,
    /// Some of its columns differ.
    Different,
    /// ClickHouse has it, Postgres does not.
    Extra,
}

impl Difference {
    pub const ALL: [Difference; 3] =
        [Difference::Missing, Difference::Different, Difference::Extra];

    pub fn as_str(self) -> &'static str {
        match self {
            Difference::Missing => "missing",
            Difference::Different => "different",
            Difference::Extra => "extra",
        }
    }
}

/// What both sides have for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub is_in_postgres: bool,
    pub stored: Option<Stored>,
}

impl Pair {
    pub fn difference(&self) -> Option<Difference> {
        let is_alive = self.stored.is_some_and(|stored| !stored.is_deleted);
        let is_same = self.stored.is_some_and(|stored| stored.is_same);
        match (self.is_in_postgres, is_alive) {
            (true, false) => Some(Difference::Missing),
            (false, true) => Some(Difference::Extra),
            (true, true) if !is_same => Some(Difference::Different),
            (true, true) | (false, false) => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyJudgement {
    Equal,
    Differs(Difference),
    /// Not known yet.
    LookAgain,
    /// It changes faster than it can be looked at.
    Unsettled,
}

/// The number of checks after which to give up.
const LOOKS_MAX: u32 = 8;

/// A key that looked different, and the results of later checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Suspicion {
    last: Option<(Difference, Option<u64>)>,
    looks: u32,
}

impl Suspicion {
    /// `newest` is the highest version that the snapshot can have seen.
    pub fn on_look(&mut self, pair: &Pair, newest: u64) -> VerifyJudgement {
        self.looks += 1;
        let Some(difference) = pair.difference() else { return VerifyJudgement::Equal };
        let version = pair.stored.map(|stored| stored.version);
        let is_comparable = version.is_none_or(|version| version <= newest);
        let seen = is_comparable.then_some((difference, version));
        if seen.is_some() && self.last == seen {
            return VerifyJudgement::Differs(difference);
        }
        self.last = seen;
        if self.looks < LOOKS_MAX { VerifyJudgement::LookAgain } else { VerifyJudgement::Unsettled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(is_in_postgres: bool, version: u64, is_deleted: bool, is_same: bool) -> Pair {
        Pair { is_in_postgres, stored: Some(Stored { version, is_deleted, is_same }) }
    }

    #[test]
    fn each_kind_of_difference_is_told() {
        let nothing = |is_in_postgres| Pair { is_in_postgres, stored: None };
        for (pair, expected) in [
            (nothing(true), Some(Difference::Missing)),
            (nothing(false), None),
            (pair(true, 1, true, false), Some(Difference::Missing)),
            (pair(true, 1, false, false), Some(Difference::Different)),
            (pair(true, 1, false, true), None),
            (pair(false, 1, false, false), Some(Difference::Extra)),
            (pair(false, 1, true, false), None),
        ] {
            assert_eq!(pair.difference(), expected, "{pair:?}");
        }
    }

    #[test]
    fn one_look_proves_nothing_and_two_alike_do() {
        let mut suspicion = Suspicion::default();
        let stale = pair(true, 7, false, false);
        assert_eq!(suspicion.on_look(&stale, 10), VerifyJudgement::LookAgain);
        assert_eq!(suspicion.on_look(&stale, 12), VerifyJudgement::Differs(Difference::Different));
        let mut suspicion = Suspicion::default();
        let gone = Pair { is_in_postgres: true, stored: None };
        assert_eq!(suspicion.on_look(&gone, 10), VerifyJudgement::LookAgain);
        assert_eq!(suspicion.on_look(&gone, 12), VerifyJudgement::Differs(Difference::Missing));
        assert_eq!(
            Suspicion::default().on_look(&pair(true, 7, false, true), 10),
            VerifyJudgement::Equal
        );
    }

    #[test]
    fn a_row_that_moves_on_is_looked_at_again() {
        let mut suspicion = Suspicion::default();
        assert_eq!(suspicion.on_look(&pair(true, 7, false, false), 10), VerifyJudgement::LookAgain);
        assert_eq!(
            suspicion.on_look(&pair(true, 11, false, false), 12),
            VerifyJudgement::LookAgain
        );
        // Newer than the snapshot: that says nothing.
        assert_eq!(
            suspicion.on_look(&pair(true, 20, false, false), 14),
            VerifyJudgement::LookAgain
        );
        assert_eq!(
            suspicion.on_look(&pair(true, 20, false, false), 21),
            VerifyJudgement::LookAgain
        );
        // Another kind under the same version is another state of Postgres.
        assert_eq!(
            suspicion.on_look(&pair(false, 20, false, false), 22),
            VerifyJudgement::LookAgain
        );
        assert_eq!(suspicion.on_look(&pair(true, 23, false, true), 24), VerifyJudgement::Equal);
    }

    #[test]
    fn what_never_settles_is_given_up() {
        let mut suspicion = Suspicion::default();
        let looks = (1..).map(|n| suspicion.on_look(&pair(true, 10 * n, false, false), 1_000));
        assert_eq!(looks.take(8).last(), Some(VerifyJudgement::Unsettled));
    }
}
