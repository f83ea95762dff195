//! Whether we still lead, judged by our own clock alone.
//!
//! It does not talk to Redis, and it does not fence: the slot does. A lease only decides which
//! instance tries.

use std::time::{Duration, Instant};

use super::after;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseParams {
    /// TTL of the lock, as sent to Redis.
    pub term: Duration,
    /// How long after the last success the next extension is due.
    pub extend_every: Duration,
    /// How long after a failed extension the next try is due.
    pub retry_every: Duration,
    /// The time that a session needs to end its work; `Lost` is reported that much early.
    pub margin: Duration,
}

impl LeaseParams {
    /// The margin is a sixth of the term, or less where the extensions need the room.
    pub fn new(term: Duration, extend_every: Duration, retry_every: Duration) -> LeaseParams {
        let room = term.saturating_sub(drift(term)).saturating_sub(extend_every);
        LeaseParams { term, extend_every, retry_every, margin: (term / 6).min(room / 2) }
    }

    /// How long after it was asked for a lock may be relied on.
    fn window(&self) -> Duration {
        self.term.saturating_sub(drift(self.term)).saturating_sub(self.margin)
    }
}

/// How much earlier than by our clock Redis may let the lock expire: redlock's own allowance.
fn drift(term: Duration) -> Duration {
    (term / 100).saturating_add(Duration::from_millis(2))
}

/// A leader lock with a time to live.
///
/// ```text
/// asked_at      extend_every                   lost_at           asked_at + term
///    |---- held ----|--- extend, try again, ... ---|- margin -|drift|
///                                                  stop work        another may start
/// ```
///
/// The term is counted from *before* the request left, so the network can only shorten it.
#[derive(Debug)]
pub struct Lease {
    params: LeaseParams,
    asked_at: Instant,
    extend_at: Instant,
    lost: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseStanding {
    /// Nothing to do until then.
    Held { until: Instant },
    /// Ask for an extension now; one try may take until `try_deadline`.
    ExtendDue,
    /// Stop working. Final: only a new lease leads again.
    Lost,
}

impl Lease {
    /// The lock was acquired by a request that left after `asked_at`.
    pub fn acquired(asked_at: Instant, params: LeaseParams) -> Lease {
        let mut lease = Lease { params, asked_at, extend_at: asked_at, lost: false };
        lease.extend_at = after(asked_at, lease.extend_every());
        lease
    }

    pub fn standing(&mut self, now: Instant) -> LeaseStanding {
        if self.lost || self.lost_at() <= now {
            self.lost = true;
            LeaseStanding::Lost
        } else if self.extend_at <= now {
            LeaseStanding::ExtendDue
        } else {
            LeaseStanding::Held { until: self.extend_at.min(self.lost_at()) }
        }
    }

    /// When `standing` next changes or asks for something; `None` once the lease is lost.
    pub fn deadline(&self) -> Option<Instant> {
        if self.lost { None } else { Some(self.extend_at.min(self.lost_at())) }
    }

    /// Stop work here: a margin before another instance could start.
    pub fn lost_at(&self) -> Instant {
        after(self.asked_at, self.params.window())
    }

    /// How long one attempt to extend may take, so that a silent server leaves time for more.
    pub fn try_deadline(&self, now: Instant) -> Instant {
        let room = self.params.window().saturating_sub(self.extend_every());
        after(now, room / 4).min(self.lost_at())
    }

    /// Redis extended the lock by a request that left after `asked_at`.
    ///
    /// An extension of a lease already reported as lost changes nothing: the session is stopping.
    pub fn on_extended(&mut self, asked_at: Instant) {
        if !self.lost && self.asked_at <= asked_at {
            self.asked_at = asked_at;
            self.extend_at = after(asked_at, self.extend_every());
        }
    }

    /// Redis did not answer, or not with a verdict. The lock may still be ours.
    pub fn on_extend_failed(&mut self, now: Instant) {
        self.extend_at = after(now, self.params.retry_every.max(Duration::from_millis(1)));
    }

    /// Redis answered that the lock is another's.
    pub fn on_taken(&mut self) {
        self.lost = true;
    }

    /// Settings that leave no room for an extension are refused when read; be useful regardless.
    fn extend_every(&self) -> Duration {
        self.params.extend_every.min(self.params.window() / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn params() -> LeaseParams {
        LeaseParams::new(s(30), s(10), Duration::from_millis(500))
    }

    #[test]
    fn lost_is_said_a_margin_and_the_drift_before_the_term_ends() {
        let t0 = Instant::now();
        let lost_at = t0 + s(30) - Duration::from_millis(302) - s(5);
        let mut lease = Lease::acquired(t0, params());
        assert_eq!(lease.standing(t0), LeaseStanding::Held { until: t0 + s(10) });
        assert_eq!(lease.deadline(), Some(t0 + s(10)));
        assert_eq!(lease.standing(t0 + s(10)), LeaseStanding::ExtendDue);
        assert_eq!(lease.standing(lost_at - Duration::from_nanos(1)), LeaseStanding::ExtendDue);
        assert_eq!(lease.standing(lost_at), LeaseStanding::Lost);
        assert_eq!(lease.deadline(), None);
    }

    #[test]
    fn an_extension_counts_from_before_its_request_left() {
        let t0 = Instant::now();
        let mut lease = Lease::acquired(t0, params());
        lease.on_extended(t0 + s(15));
        assert_eq!(lease.standing(t0 + s(24)), LeaseStanding::Held { until: t0 + s(25) });
        assert_eq!(lease.standing(t0 + s(39)), LeaseStanding::ExtendDue);
        assert_eq!(lease.standing(t0 + s(40)), LeaseStanding::Lost);
        lease.on_extended(t0 + s(39));
        assert_eq!(lease.standing(t0 + s(40)), LeaseStanding::Lost, "lost is final");
        assert!(lease.lost_at() < t0 + s(40), "and stays where it was");
    }

    #[test]
    fn an_older_extension_does_not_shorten_a_newer_one() {
        let t0 = Instant::now();
        let mut lease = Lease::acquired(t0 + s(5), params());
        lease.on_extended(t0);
        assert_eq!(lease.deadline(), Some(t0 + s(15)));
    }

    #[test]
    fn failed_extensions_are_retried_several_times_within_the_term() {
        let t0 = Instant::now();
        let mut lease = Lease::acquired(t0, params());
        // With a silent server each attempt takes until its deadline.
        let (mut now, mut tries) = (t0, 0);
        loop {
            match lease.standing(now) {
                LeaseStanding::Held { until } => now = until,
                LeaseStanding::ExtendDue => {
                    tries += 1;
                    now = lease.try_deadline(now);
                    lease.on_extend_failed(now);
                }
                LeaseStanding::Lost => break,
            }
        }
        assert!(3 <= tries, "{tries}");
        assert_eq!(now, lease.lost_at(), "no try outlives the lease");
    }

    #[test]
    fn a_lock_taken_by_another_is_lost_at_once() {
        let t0 = Instant::now();
        let mut lease = Lease::acquired(t0, params());
        lease.on_taken();
        assert_eq!(lease.standing(t0), LeaseStanding::Lost);
    }

    #[test]
    fn settings_without_room_still_end_before_the_term() {
        let t0 = Instant::now();
        let lengths = [Duration::ZERO, Duration::from_millis(1), s(1), s(30), Duration::MAX];
        for term in lengths {
            for extend_every in lengths {
                for margin in lengths {
                    let params = LeaseParams { term, extend_every, retry_every: term, margin };
                    let mut lease = Lease::acquired(t0, params);
                    assert!(lease.lost_at() <= after(t0, term), "{params:?}");
                    assert!(lease.try_deadline(t0) <= lease.lost_at(), "{params:?}");
                    lease.on_extend_failed(t0);
                    if t0 < lease.lost_at() {
                        assert_ne!(lease.standing(t0), LeaseStanding::Lost, "{params:?}");
                    }
                    assert_eq!(lease.standing(lease.lost_at()), LeaseStanding::Lost, "{params:?}");
                }
            }
        }
    }
}
