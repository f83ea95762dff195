//! The lifecycle of one service: everything its coordinator decides, and nothing it does.
//!
//! ```text
//!        lock busy, Redis unreachable
//!      +------------------------------+
//!      v        deadline,             |
//!   Waiting -- primary is back -> Acquiring -- stop --> Withdrawing --+
//!    ^    ^                           | acquired             answer,  |
//!    |    |  strategy reconnect       v                      deadline |
//!    |    +---------------------- Starting                            |
//!    |    |     session ended         | stream started               |
//!    |    +---------------------- Streaming                           |
//!    |                                |                               |
//!    | session ended                  +-- ended: log ----> Down       |
//!    | (after a lost lock)            |                     | stop    |
//!    |                                +-- ended: exit, -----|---------+
//!    |                                |   gave up, halted   |         |
//!    +------ Draining <-- lock lost --+                     v         v
//!               |    <---- stop ------+        stop +-> Stopped(outcome)
//!               +--- session ended (after a stop), wedged ---^
//! ```
//!
//! Starting and Streaming have the same exits; a failing session goes through Draining, until its
//! threads have ended. A stop ends Waiting and Down at once.
//!
//! The rules:
//!
//! - The strategy handles every unrequested end of a session, the first start's too.
//! - A session whose source or target has changed starts again: it drains, and another one begins
//!   under the same lock. That is not an error under any strategy.
//! - A wait before another attempt ends early when a primary is there again: `delay_max` may be a
//!   minute, and a failover over in seconds. The count of attempts continues.
//! - Not getting the lock, losing it, or not reaching Redis is never an error: the service stands
//!   by, under every strategy.
//! - `Remedy::Halt` (gap, fork, foreign cluster) stops the service for good whatever the strategy,
//!   `exit` included: the next process would find the same, so a restart loop would not help. The
//!   other services go on, and [`super::supervisor`] keeps the process, to report it.
//! - Every `LockAcquired` is followed by exactly one `ReleaseLock`, after the session has ended; a
//!   lock that was lost is released too, because for a margin it is still ours in Redis, and a
//!   release only ever deletes our own. Only a wedged session keeps it: then its TTL frees it.
//! - A drain ends twice: at its deadline the session gives up the work in hand, and if it has not
//!   ended a grace period later the process must exit: a thread cannot be killed. It is the same
//!   with a session that fails by itself, which has given up by then: a stuck thread must not keep
//!   the lock, and look like a stream, for ever.
//!
//! Late messages are expected (a lease may be lost while its session ends by itself), so every
//! pair of state and input has an answer; most such answers are to do nothing.

use std::time::{Duration, Instant};

use super::after;
use super::backoff::Backoff;
use super::prng::Prng;
use crate::error::Remedy;

#[derive(Debug)]
pub struct LifecycleParams {
    pub strategy: LifecycleStrategy,
    /// How often a standby asks for the lock.
    pub retry_every: Duration,
    /// A stream that has run this long is healthy, even if no row came.
    pub healthy_after: Duration,
    /// How long a session may drain once its lock is lost: the margin of the lease. Also before
    /// another one under the same lock.
    pub handover: Duration,
    /// How long an abandoned session may take to end after a stop.
    pub stop_grace: Duration,
    /// The same after a lost lock or a failure of its own. Longer than the longest single wait of a
    /// session's threads, so that only a wedged one exceeds it.
    pub wedged_after: Duration,
}

/// What to do when a session ends unasked.
#[derive(Debug)]
pub enum LifecycleStrategy {
    Reconnect(Backoff),
    Exit { delay: Duration, code: u8 },
    Log,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifecycleState {
    Waiting {
        until: Instant,
        why: Why,
    },
    /// The lock was requested; the requester bounds the time of the answer.
    Acquiring,
    /// Stopped while asking: the answer may still be a lock, which then must be released.
    Withdrawing {
        deadline: Instant,
    },
    Starting,
    Streaming {
        since: Instant,
        healthy: bool,
    },
    Draining {
        deadline: Instant,
        then: DrainFor,
        /// At the first deadline the session was asked to give up; this is the second.
        abandoned: bool,
    },
    /// Strategy `log`: the stream stays down, the process up.
    Down,
    Stopped(ServiceOutcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Another instance leads, or the lock was not requested yet.
    Standby,
    /// Redis did not answer; a standby that cannot see which instance leads.
    LockUnreachable,
    Backoff {
        attempt: u32,
    },
}

/// The purpose of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainFor {
    StandBy,
    Stop,
    /// Another session, under the same lock.
    Again,
    /// The session fails by itself.
    Strategy,
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifecycleInput {
    DeadlineReached,
    LockAcquired,
    LockBusy,
    /// No verdict: Redis is unreachable.
    LockFailed,
    LockLost,
    /// Postgres was away, or was another server, and is there now.
    PrimaryBack,
    StreamStarted,
    /// Rows of this session became durable *and* were confirmed, so that no later session meets
    /// them again. A keepalive's confirmation is not progress: the first bytes already lead to one.
    Progressed,
    /// The session's source or target has changed.
    BeginAgain,
    /// A thread of the session has ended that should not have; the others are ending.
    SessionFailing,
    /// All threads of the session have been joined.
    SessionEnded {
        remedy: Remedy,
    },
    /// May come again with an earlier deadline.
    StopRequested {
        deadline: Instant,
    },
}

/// Something to do. Actions are done in order; a release is done before a later acquire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifecycleAction {
    /// Try once. Answer with `LockAcquired`, `LockBusy` or `LockFailed`.
    AcquireLock,
    ReleaseLock,
    /// Answer with `StreamStarted` in time, and with `SessionEnded` always.
    StartSession,
    /// Receive no more, flush and confirm what is complete, end.
    DrainSession {
        deadline: Instant,
    },
    /// Give up the work in hand, end. What was not confirmed is streamed again.
    AbandonSession,
    /// Always the last action. `DrainTimedOut`: do not join the service's threads.
    Finished(ServiceOutcome),
}

/// How a service ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceOutcome {
    /// Stopped on request.
    Clean,
    /// A thread is wedged; the process has to exit.
    DrainTimedOut,
    /// `attempts_max` is used up.
    GaveUp,
    /// An operator must decide.
    Halted,
    /// Strategy `exit`: let the other services drain for `delay`, then exit with `code`.
    Exit { delay: Duration, code: u8 },
}

#[derive(Debug)]
pub struct Lifecycle {
    state: LifecycleState,
    params: LifecycleParams,
    prng: Prng,
}

impl Lifecycle {
    /// Begins with a deadline that is due: the first lock is asked for at once.
    pub fn new(now: Instant, params: LifecycleParams, prng: Prng) -> Lifecycle {
        Lifecycle { state: LifecycleState::Waiting { until: now, why: Why::Standby }, params, prng }
    }

    pub fn state(&self) -> LifecycleState {
        self.state
    }

    /// When to send `DeadlineReached` next. Sending it early is harmless.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            LifecycleState::Waiting { until, .. } => Some(until),
            LifecycleState::Withdrawing { deadline }
            | LifecycleState::Draining { deadline, .. } => Some(deadline),
            LifecycleState::Acquiring
            | LifecycleState::Starting
            | LifecycleState::Streaming { .. }
            | LifecycleState::Down
            | LifecycleState::Stopped(_) => None,
        }
    }

    pub fn step(&mut self, now: Instant, input: LifecycleInput) -> Vec<LifecycleAction> {
        if input == LifecycleInput::DeadlineReached && self.deadline().is_none_or(|at| now < at) {
            return vec![];
        }
        let (state, actions) = self.transition(now, input);
        self.state = state;
        actions
    }

    fn transition(
        &mut self,
        now: Instant,
        input: LifecycleInput,
    ) -> (LifecycleState, Vec<LifecycleAction>) {
        use LifecycleAction::*;
        use LifecycleInput::*;
        use LifecycleState::*;

        match (self.state, input) {
            (Waiting { .. }, DeadlineReached) => (Acquiring, vec![AcquireLock]),
            // What the wait was for has happened.
            (Waiting { why: Why::Backoff { .. }, .. }, PrimaryBack) => {
                (Acquiring, vec![AcquireLock])
            }
            (Waiting { .. } | Down, StopRequested { .. }) => {
                (Stopped(ServiceOutcome::Clean), vec![Finished(ServiceOutcome::Clean)])
            }

            (Acquiring, LockAcquired) => (Starting, vec![StartSession]),
            (Acquiring, LockBusy) => (self.stand_by(now, Why::Standby), vec![]),
            (Acquiring, LockFailed) => (self.stand_by(now, Why::LockUnreachable), vec![]),
            (Acquiring, StopRequested { deadline }) => {
                let deadline = after(deadline.max(now), self.params.stop_grace);
                (Withdrawing { deadline }, vec![])
            }

            (Withdrawing { .. }, LockAcquired) => {
                (Stopped(ServiceOutcome::Clean), vec![ReleaseLock, Finished(ServiceOutcome::Clean)])
            }
            (Withdrawing { .. }, LockBusy | LockFailed) => {
                (Stopped(ServiceOutcome::Clean), vec![Finished(ServiceOutcome::Clean)])
            }
            (Withdrawing { deadline: before }, StopRequested { deadline }) => {
                let deadline = after(deadline.max(now), self.params.stop_grace).min(before);
                (Withdrawing { deadline }, vec![])
            }
            (Withdrawing { .. }, DeadlineReached) => wedged(),

            (Starting, StreamStarted) => (Streaming { since: now, healthy: false }, vec![]),
            (Streaming { since, .. }, Progressed) => {
                self.settle();
                (Streaming { since, healthy: true }, vec![])
            }
            (state @ (Starting | Streaming { .. }), LockLost) => {
                self.settle_if_old(now, state);
                let deadline = after(now, self.params.handover);
                let draining = Draining { deadline, then: DrainFor::StandBy, abandoned: false };
                (draining, vec![DrainSession { deadline }])
            }
            (state @ Streaming { .. }, BeginAgain) => {
                self.settle_if_old(now, state);
                let deadline = after(now, self.params.handover);
                let draining = Draining { deadline, then: DrainFor::Again, abandoned: false };
                (draining, vec![DrainSession { deadline }])
            }
            (Starting | Streaming { .. }, StopRequested { deadline }) => {
                let draining = Draining { deadline, then: DrainFor::Stop, abandoned: false };
                (draining, vec![DrainSession { deadline }])
            }
            (state @ (Starting | Streaming { .. }), SessionEnded { remedy: Remedy::Strategy }) => {
                self.settle_if_old(now, state);
                self.unasked_end(now)
            }
            (state @ (Starting | Streaming { .. }), SessionFailing) => {
                self.settle_if_old(now, state);
                let deadline = after(now, self.params.wedged_after);
                (Draining { deadline, then: DrainFor::Strategy, abandoned: true }, vec![])
            }
            (
                Draining { then: DrainFor::Strategy, .. },
                SessionEnded { remedy: Remedy::Strategy },
            ) => self.unasked_end(now),
            (
                Starting
                | Streaming { .. }
                | Draining { then: DrainFor::StandBy | DrainFor::Strategy | DrainFor::Again, .. },
                SessionEnded { remedy: Remedy::Halt },
            ) => (
                Stopped(ServiceOutcome::Halted),
                vec![ReleaseLock, Finished(ServiceOutcome::Halted)],
            ),

            (draining @ Draining { .. }, Progressed) => {
                self.settle();
                (draining, vec![])
            }
            // However it ended, the next session finds what blocks it.
            (Draining { then: DrainFor::Again, .. }, SessionEnded { remedy: Remedy::Strategy }) => {
                (Starting, vec![StartSession])
            }
            (Draining { deadline, then: DrainFor::Again, abandoned: false }, LockLost) => {
                let deadline = deadline.min(after(now, self.params.handover));
                (Draining { deadline, then: DrainFor::StandBy, abandoned: false }, vec![])
            }
            (Draining { deadline, then: DrainFor::Again, abandoned: true }, LockLost) => {
                (Draining { deadline, then: DrainFor::StandBy, abandoned: true }, vec![])
            }
            (
                Draining { then: DrainFor::StandBy, .. },
                SessionEnded { remedy: Remedy::Strategy },
            ) => (self.stand_by(now, Why::Standby), vec![ReleaseLock]),
            // Whatever ended it, it was asked to end; the next start finds what blocks it.
            (Draining { then: DrainFor::Stop, .. }, SessionEnded { .. }) => {
                (Stopped(ServiceOutcome::Clean), vec![ReleaseLock, Finished(ServiceOutcome::Clean)])
            }
            (Draining { deadline: before, abandoned, .. }, StopRequested { deadline }) => {
                let asked = if abandoned {
                    after(deadline.max(now), self.params.stop_grace)
                } else {
                    deadline
                };
                (Draining { deadline: asked.min(before), then: DrainFor::Stop, abandoned }, vec![])
            }
            (Draining { then, abandoned: false, .. }, DeadlineReached) => {
                let grace = match then {
                    DrainFor::StandBy | DrainFor::Strategy | DrainFor::Again => {
                        self.params.wedged_after
                    }
                    DrainFor::Stop => self.params.stop_grace,
                };
                let deadline = after(now, grace);
                (Draining { deadline, then, abandoned: true }, vec![AbandonSession])
            }
            (Draining { abandoned: true, .. }, DeadlineReached) => wedged(),

            // A lock that arrives after its request was given up is unused: release it.
            (state @ (Waiting { .. } | Down | Stopped(_)), LockAcquired) => {
                (state, vec![ReleaseLock])
            }
            // Late: the lock or the session that this speaks of has ended, or is ending.
            (
                state,
                LockAcquired
                | LockBusy
                | LockFailed
                | LockLost
                | PrimaryBack
                | BeginAgain
                | StreamStarted
                | Progressed
                | SessionFailing
                | SessionEnded { .. },
            ) => (state, vec![]),
            // Already stopped; and `step` lets no deadline through that is not there.
            (state, StopRequested { .. } | DeadlineReached) => (state, vec![]),
        }
    }

    /// A session ended unasked.
    fn unasked_end(&mut self, now: Instant) -> (LifecycleState, Vec<LifecycleAction>) {
        let outcome = match &mut self.params.strategy {
            LifecycleStrategy::Reconnect(backoff) => match backoff.next(&mut self.prng) {
                Some(wait) => {
                    let why = Why::Backoff { attempt: backoff.attempts() };
                    let waiting = LifecycleState::Waiting { until: after(now, wait), why };
                    return (waiting, vec![LifecycleAction::ReleaseLock]);
                }
                None => ServiceOutcome::GaveUp,
            },
            LifecycleStrategy::Exit { delay, code } => {
                ServiceOutcome::Exit { delay: *delay, code: *code }
            }
            LifecycleStrategy::Log => {
                return (LifecycleState::Down, vec![LifecycleAction::ReleaseLock]);
            }
        };
        (
            LifecycleState::Stopped(outcome),
            vec![LifecycleAction::ReleaseLock, LifecycleAction::Finished(outcome)],
        )
    }

    fn stand_by(&self, now: Instant, why: Why) -> LifecycleState {
        LifecycleState::Waiting { until: after(now, self.params.retry_every), why }
    }

    /// The stream is healthy: the next failure is a first one.
    fn settle(&mut self) {
        if let LifecycleStrategy::Reconnect(backoff) = &mut self.params.strategy {
            backoff.reset();
        }
    }

    fn settle_if_old(&mut self, now: Instant, state: LifecycleState) {
        if let LifecycleState::Streaming { since, .. } = state
            && self.params.healthy_after <= now.saturating_duration_since(since)
        {
            self.settle();
        }
    }
}

/// The lock is not released: the stuck thread may still act under it.
fn wedged() -> (LifecycleState, Vec<LifecycleAction>) {
    let outcome = ServiceOutcome::DrainTimedOut;
    (LifecycleState::Stopped(outcome), vec![LifecycleAction::Finished(outcome)])
}

#[cfg(test)]
mod tests;
