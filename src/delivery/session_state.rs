//! What the threads of one session see of each other beside their channels: how to end, and the
//! two gates a flush may have to wait at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::lease_watch::{LeaseHold, LeaseWatch};
use crate::error::{Error, ErrorKind, Result};
use crate::halt::Halt;
use crate::machines::confirm::Reserved;
use crate::machines::progress::BatchId;
use crate::machines::salvage::InsertFit;
use crate::machines::thinning::{Notes, Unsaid};
use crate::services::assemble::Updates;
use crate::wal::Lsn;

/// How far the session's end has come. It only moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopLevel {
    Running,
    /// Receive no more; flush and confirm what is complete.
    Draining,
    /// Give up the work in hand; what was not confirmed is streamed again.
    Abandoned,
}

impl StopLevel {
    /// An error once the session is to end, for work that the next one goes on with.
    pub fn go_on(self) -> Result<()> {
        match self {
            StopLevel::Running => Ok(()),
            StopLevel::Draining | StopLevel::Abandoned => Err(stopped()),
        }
    }
}

/// Shared by the threads of one session, and dropped with it.
#[derive(Debug)]
pub struct SessionState(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    moved: Condvar,
    lease: Arc<LeaseWatch>,
    /// By target table: what one flusher has found out about its size, the others need not.
    fits: Mutex<Vec<(&'static str, InsertFit)>>,
    /// What the log has been told of data that did not go through as it is, whoever met it.
    notes: Mutex<Notes>,
}

/// Whatever the lease says.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct State {
    pace: StopLevel,
    /// The first error of any thread; what follows it is its consequence.
    failure: Option<Error>,
    /// Every batch below this is durable.
    durable_below: BatchId,
    /// The *upper* LSN that a durable state row already admits to.
    reserved: Reserved,
    /// A repair runs, or one that was put off waits for the next session.
    repairing: bool,
}

impl SessionState {
    pub fn new(reserved: Lsn, lease: Arc<LeaseWatch>) -> SessionState {
        let state = State {
            pace: StopLevel::Running,
            failure: None,
            durable_below: BatchId(0),
            reserved: Reserved(reserved),
            repairing: false,
        };
        let (moved, fits, notes) = (Condvar::new(), Mutex::default(), Mutex::default());
        SessionState(Arc::new(Inner { state: Mutex::new(state), moved, lease, fits, notes }))
    }

    pub fn fit(&self, table: &str) -> InsertFit {
        let fits = self.0.fits.lock();
        fits.iter()
            .find(|(known, _)| *known == table)
            .map(|(_, fit)| fit.clone())
            .unwrap_or_default()
    }

    /// The latest one counts: it is worth no more than the INSERT that it came from.
    pub fn set_fit(&self, table: &'static str, fit: InsertFit) {
        let mut fits = self.0.fits.lock();
        match fits.iter_mut().find(|(known, _)| *known == table) {
            Some((_, known)) => *known = fit,
            None => fits.push((table, fit)),
        }
    }

    /// So much of this came once more. `Some`: the log is to say it.
    pub fn note(&self, of: String, amount: usize) -> Option<Unsaid> {
        self.0.notes.lock().on_note(of, amount, Instant::now())
    }

    pub fn pace(&self) -> StopLevel {
        self.0.pace()
    }

    /// Due once the session's end has come this far.
    pub fn halt(&self, at: StopLevel) -> Halt {
        let inner = Arc::clone(&self.0);
        Halt::when(move || at <= inner.pace())
    }
}

impl Inner {
    fn pace(&self) -> StopLevel {
        let mut state = self.state.lock();
        self.look_at_lease(&mut state);
        state.pace
    }

    /// What the lock keeper says, seen here first by whoever acts: a process that was stopped for a
    /// while must not write what it had in hand.
    fn look_at_lease(&self, state: &mut State) {
        let pace = match self.lease.standing(Instant::now()) {
            LeaseHold::Held => return,
            LeaseHold::Lost => StopLevel::Draining,
            LeaseHold::Over => StopLevel::Abandoned,
        };
        if state.pace < pace {
            state.pace = pace;
            self.moved.notify_all();
        }
    }
}

impl SessionState {
    pub fn drain(&self) {
        self.advance(StopLevel::Draining);
    }

    pub fn abandon(&self) {
        self.advance(StopLevel::Abandoned);
    }

    fn advance(&self, pace: StopLevel) {
        let mut state = self.0.state.lock();
        state.pace = state.pace.max(pace);
        self.0.moved.notify_all();
    }

    /// Ends the session for this reason, unless it already ends for another.
    pub fn fail(&self, error: Error) {
        let mut state = self.0.state.lock();
        state.pace = StopLevel::Abandoned;
        if state.failure.is_none() && error.kind() != ErrorKind::Stopped {
            state.failure = Some(error);
        }
        self.0.moved.notify_all();
    }

    pub fn has_failed(&self) -> bool {
        self.0.state.lock().failure.is_some()
    }

    pub fn take_failure(&self) -> Option<Error> {
        self.0.state.lock().failure.take()
    }

    pub fn set_durable_below(&self, id: BatchId) {
        let mut state = self.0.state.lock();
        state.durable_below = state.durable_below.max(id);
        self.0.moved.notify_all();
    }

    pub fn set_reserved(&self, reserved: Reserved) {
        let mut state = self.0.state.lock();
        state.reserved = reserved;
        self.0.moved.notify_all();
    }

    /// An error once the session is to end, for work that has not begun to flush anything.
    pub fn go_on(&self) -> Result<()> {
        self.pace().go_on()
    }

    /// From now on the stream brings whole what a page may miss.
    pub fn begin_repair(&self) {
        self.0.state.lock().repairing = true;
    }

    /// What the stream's updates have to write beside it.
    pub fn updates(&self) -> Updates {
        match self.0.state.lock().repairing {
            true => Updates::AsFirst,
            false => Updates::AsUpdates,
        }
    }

    pub fn end_repair(&self) {
        self.0.state.lock().repairing = false;
    }

    /// Waits until every batch before `id` is durable.
    pub fn wait_for_batches_before(&self, id: BatchId) -> Result<()> {
        self.wait_until(|state| id <= state.durable_below)
    }

    /// Waits until a durable state row admits that commits up to `upper` may be in ClickHouse.
    pub fn wait_for_reservation(&self, upper: Lsn) -> Result<()> {
        self.wait_until(|state| state.reserved.covers(upper))
    }

    /// When a thread that waits has to look at the lease again: nobody else tells it.
    pub fn look_at(&self, now: Instant) -> Instant {
        let changes_at = self.0.lease.changes_at(now).unwrap_or(now + LOOK_AT_LEAST_EVERY);
        changes_at.min(now + LOOK_AT_LEAST_EVERY)
    }

    /// Waits out `until`, or less when the session is abandoned.
    pub fn pause(&self, until: Instant) -> Result<()> {
        let mut state = self.0.state.lock();
        loop {
            self.0.look_at_lease(&mut state);
            if state.pace == StopLevel::Abandoned {
                return Err(stopped());
            }
            let now = Instant::now();
            if until <= now {
                return Ok(());
            }
            self.0.moved.wait_until(&mut state, self.look_at(now).min(until));
        }
    }

    /// Waits out `until`, or less when the session is about to end.
    pub fn rest(&self, until: Instant) -> StopLevel {
        let mut state = self.0.state.lock();
        loop {
            self.0.look_at_lease(&mut state);
            let now = Instant::now();
            if state.pace != StopLevel::Running || until <= now {
                return state.pace;
            }
            self.0.moved.wait_until(&mut state, self.look_at(now).min(until));
        }
    }

    /// No deadline of its own: what it waits for is another thread of the session, and every way
    /// in which that thread can end abandons the session and wakes this one.
    fn wait_until(&self, reached: impl Fn(&State) -> bool) -> Result<()> {
        let mut state = self.0.state.lock();
        while !reached(&state) {
            self.0.look_at_lease(&mut state);
            if state.pace == StopLevel::Abandoned {
                return Err(stopped());
            }
            self.0.moved.wait_until(&mut state, self.look_at(Instant::now()));
        }
        Ok(())
    }
}

/// The session was abandoned: not a failure of its own.
pub fn stopped() -> Error {
    Error::new(ErrorKind::Stopped, "give up the work in hand")
}

/// Abandons the session if its thread panics, so that nobody waits for it.
pub struct PanicGuard<'a>(pub &'a SessionState);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::new(ErrorKind::Bug, "run a thread of the session").because(
                format!(
                    "thread `{}` panicked",
                    std::thread::current().name().unwrap_or("without a name")
                ),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(reserved: Lsn) -> SessionState {
        let lease = LeaseWatch::default();
        lease.set(Instant::now() + Duration::from_secs(3600), Duration::ZERO);
        SessionState::new(reserved, Arc::new(lease))
    }

    #[test]
    fn a_lease_that_is_over_abandons_whoever_acts() {
        let lease = Arc::new(LeaseWatch::default());
        let now = Instant::now();
        lease.set(now + Duration::from_secs(3600), Duration::ZERO);
        let shared = SessionState::new(Lsn(0), Arc::clone(&lease));
        assert_eq!(shared.pace(), StopLevel::Running);
        lease.set(now, Duration::from_secs(3600));
        assert_eq!(shared.pace(), StopLevel::Draining);
        lease.set(now, Duration::ZERO);
        assert!(shared.wait_for_reservation(Lsn(1)).is_err());
        assert_eq!(shared.pace(), StopLevel::Abandoned);
    }

    #[test]
    fn the_first_failure_is_the_reason() {
        let shared = shared(Lsn(0));
        shared.fail(stopped());
        shared.fail(Error::new(ErrorKind::Protocol, "first"));
        shared.fail(Error::new(ErrorKind::Protocol, "second"));
        assert_eq!(shared.take_failure().expect("it failed").to_string(), "first");
        assert_eq!(shared.pace(), StopLevel::Abandoned);
        shared.drain();
        assert_eq!(shared.pace(), StopLevel::Abandoned, "the pace only moves on");
    }

    #[test]
    fn gates_open_for_those_who_wait_and_fail_when_abandoned() {
        let shared = shared(Lsn(10));
        assert!(shared.wait_for_reservation(Lsn(10)).is_ok());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| shared.wait_for_batches_before(BatchId(2)));
            shared.set_durable_below(BatchId(1));
            shared.set_durable_below(BatchId(2));
            assert!(waiting.join().expect("no panic").is_ok());
            let waiting = scope.spawn(|| shared.wait_for_reservation(Lsn(11)));
            let resting = scope.spawn(|| shared.rest(Instant::now() + Duration::from_secs(3600)));
            assert_eq!(shared.rest(Instant::now()), StopLevel::Running);
            shared.drain();
            assert_eq!(resting.join().expect("no panic"), StopLevel::Draining);
            let pausing = scope.spawn(|| shared.pause(Instant::now() + Duration::from_secs(3600)));
            shared.abandon();
            assert!(waiting.join().expect("no panic").is_err());
            assert!(pausing.join().expect("no panic").is_err());
        });
    }
}
