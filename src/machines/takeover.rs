//! Whether the holder of the leader lock in Redis is gone, as far as Postgres shows it.
//!
//! Redis cannot distinguish a dead holder from one that only Redis cannot reach. But the holder
//! keeps a session in Postgres from before it asks for the lock until its process ends, and the
//! lock says so. A waiting instance looks for that session and for everything that a leader does in
//! Postgres. A process that is stopped keeps its connections, so others wait for it; one whose
//! connection broke reconnects within [`GONE_FOR`].
//!
//! This only decides which instance tries: the slot admits one walsender at a time, and what two
//! leaders send is the same rows under the same versions.

use std::time::{Duration, Instant};

/// A live holder has restored a broken connection within this, unless Postgres refuses it: it
/// checks its session every two seconds.
pub const GONE_FOR: Duration = Duration::from_secs(3);
/// A single observation may be a coincidence.
const LOOKS_MIN: u32 = 3;

/// The result of one observation of Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakeoverLook {
    /// The session by which the holder shows itself.
    pub holder: bool,
    /// The slot is streamed from, or being made.
    pub slot: bool,
    /// Any other session of the service's name.
    pub others: bool,
}

impl TakeoverLook {
    fn shows_nobody(self) -> bool {
        !self.holder && !self.slot && !self.others
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeoverVerdict {
    Wait,
    Gone,
}

/// Looks that belong together: at one value of the lock, from one session with Postgres.
#[derive(Debug, Default)]
pub struct Takeover(Option<Absence>);

#[derive(Debug)]
struct Absence {
    value: String,
    since: Instant,
    looks: u32,
}

impl Takeover {
    /// `asked_at` is from before the observation.
    pub fn on_look(
        &mut self,
        asked_at: Instant,
        value: &str,
        look: TakeoverLook,
    ) -> TakeoverVerdict {
        if !look.shows_nobody() {
            self.0 = None;
            return TakeoverVerdict::Wait;
        }
        let absence = match self.0.take() {
            Some(absence) if absence.value == value => {
                Absence { looks: absence.looks.saturating_add(1), ..absence }
            }
            _ => Absence { value: value.to_owned(), since: asked_at, looks: 1 },
        };
        let lasted = asked_at.saturating_duration_since(absence.since);
        let is_gone = GONE_FOR <= lasted && LOOKS_MIN <= absence.looks;
        self.0 = Some(absence);
        if is_gone { TakeoverVerdict::Gone } else { TakeoverVerdict::Wait }
    }

    /// The session with Postgres has ended, or another one is the primary: the earlier observations
    /// may have seen the server end, not the holder.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: TakeoverLook = TakeoverLook { holder: false, slot: false, others: false };

    /// Plays observations at tenths of a second; `None` forgets. Returns the last verdict.
    fn play(script: &[(u64, Option<(&str, TakeoverLook)>)]) -> TakeoverVerdict {
        let t0 = Instant::now();
        let mut machine = Takeover::default();
        let mut verdict = TakeoverVerdict::Wait;
        for (at, step) in script {
            match step {
                Some((value, look)) => {
                    let at = t0 + Duration::from_millis(at * 100);
                    verdict = machine.on_look(at, value, *look);
                }
                None => machine.forget(),
            }
        }
        verdict
    }

    #[test]
    fn who_is_not_seen_for_long_enough_is_gone() {
        let nobody = Some(("a", NOBODY));
        assert_eq!(play(&[(0, nobody), (10, nobody), (20, nobody)]), TakeoverVerdict::Wait);
        assert_eq!(
            play(&[(0, nobody), (10, nobody), (20, nobody), (30, nobody)]),
            TakeoverVerdict::Gone
        );
    }

    #[test]
    fn long_ago_is_not_often() {
        // The observer was stopped in between.
        assert_eq!(
            play(&[(0, Some(("a", NOBODY))), (600, Some(("a", NOBODY)))]),
            TakeoverVerdict::Wait
        );
    }

    #[test]
    fn any_sign_of_life_begins_it_again() {
        let nobody = Some(("a", NOBODY));
        for alive in [
            TakeoverLook { holder: true, ..NOBODY },
            TakeoverLook { slot: true, ..NOBODY },
            TakeoverLook { others: true, ..NOBODY },
        ] {
            let script = [(0, nobody), (10, nobody), (20, Some(("a", alive))), (30, nobody)];
            assert_eq!(play(&script), TakeoverVerdict::Wait, "{alive:?}");
            let script = [script.as_slice(), &[(40, nobody), (50, nobody)]].concat();
            assert_eq!(play(&script), TakeoverVerdict::Wait, "{alive:?}");
            let script = [script.as_slice(), &[(60, nobody)]].concat();
            assert_eq!(play(&script), TakeoverVerdict::Gone, "{alive:?}");
        }
    }

    #[test]
    fn looks_at_another_value_or_from_another_session_do_not_count() {
        let (a, b) = (Some(("a", NOBODY)), Some(("b", NOBODY)));
        assert_eq!(play(&[(0, a), (10, a), (20, a), (30, b)]), TakeoverVerdict::Wait);
        assert_eq!(play(&[(0, a), (10, a), (20, a), (25, None), (30, a)]), TakeoverVerdict::Wait);
    }
}
