//! When to send the walsender a status update, and when its silence means a dead connection.
//!
//! Driven by the wal_reader thread, between reads. It does not decide what may be confirmed: it
//! reports only what [`super::confirm`] has published.

use std::time::{Duration, Instant};

use super::after;
use crate::wal::Lsn;

#[derive(Debug, Clone, Copy)]
pub struct StatusParams {
    /// An update is sent at least this often. Well below `wal_sender_timeout`.
    pub every: Duration,
    /// Silence for this long is a dead link; halfway there we ask for a reply.
    pub receive_timeout: Duration,
}

/// A walsender that shuts down asks again after every reply, until all it sent is confirmed. The
/// same answer is not given faster than this: unspaced, the two spin at 30,000 replies a second.
const SAME_ANSWER_EVERY: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// Send it, then call `on_sent`.
    Update(Update),
    /// Give up the connection.
    LinkDead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    pub confirmed: Lsn,
    pub reply_requested: bool,
}

#[derive(Debug)]
pub struct StandbyStatus {
    params: StatusParams,
    confirmed: Lsn,
    told: Option<LastStatus>,
    /// Postgres wants to hear from us.
    asked: bool,
    /// `None` while we do not read: then silence is ours.
    heard_at: Option<Instant>,
    /// We asked for a reply in this silence.
    probed: bool,
}

#[derive(Debug, Clone, Copy)]
struct LastStatus {
    confirmed: Lsn,
    at: Instant,
}

impl StandbyStatus {
    /// A stream has started. The first update is due at once.
    pub fn new(now: Instant, confirmed: Lsn, params: StatusParams) -> StandbyStatus {
        let heard_at = Some(now);
        StandbyStatus { params, confirmed, told: None, asked: false, heard_at, probed: false }
    }

    /// Something arrived, or reading goes on after `on_paused`.
    pub fn on_heard(&mut self, now: Instant) {
        self.heard_at = Some(now);
        self.probed = false;
    }

    /// Reading pauses until the data already read is processed. Updates go on.
    pub fn on_paused(&mut self) {
        self.heard_at = None;
    }

    pub fn on_reply_requested(&mut self) {
        self.asked = true;
    }

    /// A row that holds it is durable: report it at once. It never moves back.
    pub fn on_published(&mut self, confirmed: Lsn) {
        self.confirmed = self.confirmed.max(confirmed);
    }

    /// The flushed LSN of a `StandbyStatusUpdate`.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    pub fn due(&self, now: Instant) -> Due {
        if self.dead_at().is_some_and(|at| at <= now) {
            return Due::LinkDead;
        }
        let reply_requested = self.probe_at().is_some_and(|at| at <= now);
        if reply_requested || self.update_at().is_none_or(|at| at <= now) {
            Due::Update(Update { confirmed: self.confirmed, reply_requested })
        } else {
            Due::Nothing
        }
    }

    pub fn on_sent(&mut self, now: Instant, update: Update) {
        self.told = Some(LastStatus { confirmed: update.confirmed, at: now });
        self.asked = false;
        self.probed |= update.reply_requested;
    }

    /// When `due` next says something; in the past if it does already.
    pub fn deadline(&self, now: Instant) -> Instant {
        let update_at = self.update_at().unwrap_or(now);
        [self.dead_at(), self.probe_at()].into_iter().flatten().fold(update_at, Instant::min)
    }

    /// `None` is at once.
    fn update_at(&self) -> Option<Instant> {
        let told = self.told.filter(|told| told.confirmed == self.confirmed)?;
        let pause =
            if self.asked { SAME_ANSWER_EVERY.min(self.params.every) } else { self.params.every };
        Some(after(told.at, pause))
    }

    fn probe_at(&self) -> Option<Instant> {
        let heard_at = self.heard_at.filter(|_| !self.probed)?;
        Some(after(heard_at, self.params.receive_timeout / 2))
    }

    fn dead_at(&self) -> Option<Instant> {
        Some(after(self.heard_at?, self.params.receive_timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn update(confirmed: u64, reply_requested: bool) -> Update {
        Update { confirmed: Lsn(confirmed), reply_requested }
    }

    /// A stream whose first update has been sent.
    fn started(t0: Instant) -> StandbyStatus {
        let params = StatusParams { every: s(10), receive_timeout: s(60) };
        let mut status = StandbyStatus::new(t0, Lsn(5), params);
        assert_eq!(status.due(t0), Due::Update(update(5, false)));
        status.on_sent(t0, update(5, false));
        status
    }

    #[test]
    fn an_update_is_sent_at_least_every_interval() {
        let t0 = Instant::now();
        let status = started(t0);
        assert_eq!(status.due(t0 + s(9)), Due::Nothing);
        assert_eq!(status.deadline(t0), t0 + s(10));
        assert_eq!(status.due(t0 + s(10)), Due::Update(update(5, false)));
    }

    #[test]
    fn what_is_published_is_told_at_once_and_never_moves_back() {
        let t0 = Instant::now();
        let mut status = started(t0);
        status.on_published(Lsn(9));
        status.on_published(Lsn(7));
        assert_eq!(status.due(t0), Due::Update(update(9, false)));
        assert!(status.deadline(t0) <= t0);
    }

    #[test]
    fn a_question_is_answered_at_once_and_again_when_more_is_durable() {
        let t0 = Instant::now();
        let mut status = started(t0);
        let now = t0 + s(1);
        status.on_reply_requested();
        assert_eq!(status.due(now), Due::Update(update(5, false)));
        status.on_sent(now, update(5, false));
        assert_eq!(status.due(now + ms(1)), Due::Nothing);
        status.on_published(Lsn(6));
        assert_eq!(status.due(now + ms(1)), Due::Update(update(6, false)));
    }

    #[test]
    fn a_walsender_that_asks_after_every_reply_does_not_make_us_spin() {
        let t0 = Instant::now();
        let mut status = started(t0);
        let (mut now, mut sent) = (t0, 0);
        while now < t0 + s(1) {
            status.on_heard(now);
            status.on_reply_requested();
            if let Due::Update(update) = status.due(now) {
                status.on_sent(now, update);
                sent += 1;
            }
            now += Duration::from_micros(100);
        }
        assert!((45..=50).contains(&sent), "{sent}");
    }

    #[test]
    fn silence_is_met_with_a_question_then_with_the_end() {
        let t0 = Instant::now();
        let mut status = started(t0);
        let probe = update(5, true);
        for at in [10, 20] {
            assert_eq!(status.due(t0 + s(at)), Due::Update(update(5, false)));
            status.on_sent(t0 + s(at), update(5, false));
        }
        assert_eq!(status.due(t0 + s(30)), Due::Update(probe));
        status.on_sent(t0 + s(30), probe);
        assert_eq!(status.due(t0 + s(31)), Due::Nothing, "one question for each silence");
        assert_eq!(status.due(t0 + s(60)), Due::LinkDead);
        status.on_heard(t0 + s(59));
        assert_eq!(status.due(t0 + s(60)), Due::Update(update(5, false)), "it was alive");
    }

    #[test]
    fn a_pause_of_our_own_is_not_their_silence() {
        let t0 = Instant::now();
        let mut status = started(t0);
        status.on_paused();
        assert_eq!(status.due(t0 + s(600)), Due::Update(update(5, false)), "updates go on");
        status.on_sent(t0 + s(600), update(5, false));
        assert_eq!(status.deadline(t0 + s(600)), t0 + s(610));
        status.on_heard(t0 + s(601));
        assert_eq!(status.due(t0 + s(602)), Due::Nothing);
    }

    #[test]
    fn the_deadline_is_when_something_is_due() {
        for seed in 0..500 {
            let mut prng = crate::machines::prng::Prng::from_seed(seed);
            let mut now = Instant::now();
            let mut status = started(now);
            for _ in 0..200 {
                match prng.below(6) {
                    0 => status.on_heard(now),
                    1 => status.on_paused(),
                    2 => status.on_reply_requested(),
                    3 => status.on_published(Lsn(prng.below(100))),
                    _ => (),
                }
                let at = status.deadline(now);
                if now < at {
                    assert_eq!(status.due(now), Due::Nothing, "seed {seed}");
                    assert_eq!(status.due(at - ms(1).min(at - now)), Due::Nothing, "seed {seed}");
                }
                match status.due(now.max(at)) {
                    Due::Nothing => panic!("seed {seed}: a deadline without a cause"),
                    Due::Update(update) if at <= now => status.on_sent(now, update),
                    Due::Update(_) => (),
                    Due::LinkDead => status.on_heard(now),
                }
                now += ms(prng.below(5_000));
            }
        }
    }
}
