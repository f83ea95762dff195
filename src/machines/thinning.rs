//! When to log a repeating event: the 1st, 2nd, 4th, 8th... time, so that one that never ends takes
//! few lines.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Attempts in a row that fail, until one succeeds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Thinning {
    times: u32,
}

impl Thinning {
    /// Counts one more occurrence. True: log it.
    pub fn on_repeat(&mut self) -> bool {
        self.times = self.times.saturating_add(1);
        self.times.is_power_of_two()
    }

    pub fn times(&self) -> u32 {
        self.times
    }

    /// It succeeded. Returns how often it had not.
    pub fn reset(&mut self) -> u32 {
        std::mem::take(&mut self.times)
    }
}

/// An event that has not occurred for this long is logged at once when it occurs again.
const RESTED: Duration = Duration::from_secs(60 * 60);

/// Notes on work that continues anyway, by subject. No success ends them, only a pause.
#[derive(Debug, Default)]
pub struct Notes(HashMap<String, Note>);

#[derive(Debug)]
struct Note {
    thinning: Thinning,
    unsaid: Unsaid,
    came_at: Instant,
}

/// The number of events since the last line. As text: how often, if more than once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsaid {
    pub amount: u64,
    pub times: u64,
}

impl Notes {
    /// Counts one more occurrence, of `amount`. `Some`: log it.
    pub fn on_note(&mut self, of: String, amount: usize, now: Instant) -> Option<Unsaid> {
        let (thinning, unsaid) = Default::default();
        let note = self.0.entry(of).or_insert(Note { thinning, unsaid, came_at: now });
        if RESTED <= now.saturating_duration_since(note.came_at) {
            note.thinning.reset();
        }
        note.came_at = now;
        note.unsaid.amount = note.unsaid.amount.saturating_add(amount as u64);
        note.unsaid.times = note.unsaid.times.saturating_add(1);
        note.thinning.on_repeat().then(|| std::mem::take(&mut note.unsaid))
    }
}

impl fmt::Display for Unsaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.times {
            0 | 1 => Ok(()),
            times => write!(f, " ({times} times since this was last said)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::prng::Prng;

    #[test]
    fn what_repeats_is_said_twice_as_late_each_time_until_it_succeeds() {
        let mut thinning = Thinning::default();
        let mut said = |count: usize| -> Vec<u32> {
            (0..count).filter_map(|_| thinning.on_repeat().then_some(thinning.times())).collect()
        };
        assert_eq!(said(20), [1, 2, 4, 8, 16]);
        assert_eq!(said(20), [32]);
        assert_eq!(thinning.reset(), 40);
        assert!(thinning.on_repeat());
        let mut at_the_end = Thinning { times: u32::MAX - 1 };
        assert!(!at_the_end.on_repeat() && !at_the_end.on_repeat());
    }

    #[test]
    fn what_has_rested_is_said_at_once_with_what_was_not_said_before() {
        let begin = Instant::now();
        let mut notes = Notes::default();
        let mut come = |of: &str, seconds| {
            notes.on_note(of.to_owned(), 10, begin + Duration::from_secs(seconds))
        };
        let said = |amount, times| Some(Unsaid { amount, times });
        assert_eq!([come("a", 0), come("a", 1), come("a", 2)], [said(10, 1), said(10, 1), None]);
        assert_eq!(come("b", 3), said(10, 1), "another one is news");
        assert_eq!(come("a", 3602), said(20, 2), "after an hour of rest");
        assert_eq!(come("a", 3603), said(10, 1));
        assert_eq!(said(20, 2).unwrap().to_string(), " (2 times since this was last said)");
        assert_eq!(said(20, 1).unwrap().to_string(), "");
    }

    /// Whenever events occur, the lines are few, and together with the unlogged rest they count
    /// all.
    #[test]
    fn lines_are_few_and_nothing_is_left_out_of_them() {
        for seed in 0..200 {
            let mut prng = Prng::from_seed(seed);
            let (mut notes, mut now) = (Notes::default(), Instant::now());
            let (mut came, mut said, mut lines, mut rests) = (0, 0, 0_u32, 1_u32);
            for _ in 0..1000 {
                let amount = prng.below(100) as usize;
                let rest = if prng.below(100) == 0 { RESTED } else { Duration::from_secs(1) };
                rests += u32::from(rest == RESTED);
                now += rest;
                came += amount as u64;
                if let Some(unsaid) = notes.on_note("x".to_owned(), amount, now) {
                    lines += 1;
                    said += unsaid.amount;
                    assert!(1 <= unsaid.times);
                }
            }
            assert!(lines <= 10 * rests, "seed {seed}: {lines} lines");
            assert_eq!(said + notes.0["x"].unsaid.amount, came, "seed {seed}");
        }
    }
}
