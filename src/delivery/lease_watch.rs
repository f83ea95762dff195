//! Until when we may act as the leader, for threads that do not hear of the lock in time: one that
//! was paused (SIGSTOP, a frozen VM), or one that acts while the lock keeper waits for an answer.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Written by the lock keeper, read before anything is written or confirmed.
#[derive(Debug, Default)]
pub struct LeaseWatch(Mutex<Option<Term>>);

#[derive(Debug, Clone, Copy)]
struct Term {
    lost_at: Instant,
    /// From here on another instance may lead.
    over_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseHold {
    Held,
    /// Finish the work in hand.
    Lost,
    /// Another instance may lead: write nothing more.
    Over,
}

impl LeaseWatch {
    pub fn set(&self, lost_at: Instant, margin: Duration) {
        let over_at = lost_at.checked_add(margin).unwrap_or(lost_at);
        *self.0.lock() = Some(Term { lost_at, over_at });
    }

    pub fn standing(&self, now: Instant) -> LeaseHold {
        match *self.0.lock() {
            Some(term) if now < term.lost_at => LeaseHold::Held,
            Some(term) if now < term.over_at => LeaseHold::Lost,
            // Without a term nothing was promised to us.
            Some(_) | None => LeaseHold::Over,
        }
    }

    /// When the standing changes unless the lock is extended before; `None` when it does not.
    pub fn changes_at(&self, now: Instant) -> Option<Instant> {
        let term = (*self.0.lock())?;
        [term.lost_at, term.over_at].into_iter().find(|at| now < *at)
    }

    /// The lock was released: its session has ended.
    pub fn clear(&self) {
        *self.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_passes_from_held_through_lost_to_over() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let watch = LeaseWatch::default();
        assert_eq!(watch.standing(now), LeaseHold::Over);
        watch.set(now + second, second);
        assert_eq!(watch.standing(now), LeaseHold::Held);
        assert_eq!(watch.changes_at(now), Some(now + second));
        assert_eq!(watch.changes_at(now + second), Some(now + 2 * second));
        assert_eq!(watch.changes_at(now + 2 * second), None);
        assert_eq!(watch.standing(now + second), LeaseHold::Lost);
        assert_eq!(watch.standing(now + 2 * second), LeaseHold::Over);
        watch.clear();
        assert_eq!(watch.standing(now), LeaseHold::Over);
    }
}
