//! What the threads of one session share in addition to their channels: how to end, the progress of
//! each, and the two gates that a flush may have to wait at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::alongside::{Alongside, StopLevel, stopped};
use super::deleted_keys::DeletedKeys;
use super::lease_watch::{LeaseHold, LeaseWatch};
use super::marks::StreamMarks;
use crate::error::{Error, ErrorKind, Result};
use crate::halt::Halt;
use crate::machines::confirm::Reserved;
use crate::machines::progress::BatchId;
use crate::services::assemble::Updates;
use crate::wal::Lsn;

/// Shared by the threads of one session, and dropped with it.
#[derive(Debug)]
pub struct SessionState(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    moved: Condvar,
    lease: Arc<LeaseWatch>,
    marks: StreamMarks,
    deleted_keys: DeletedKeys,
}

/// Whatever the lease says.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(5);
/// How soon it is seen that the stream has come far enough.
const LOOK_AT_STREAM_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct State {
    stop: StopLevel,
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
    pub fn new(lease: Arc<LeaseWatch>) -> SessionState {
        let state = State {
            stop: StopLevel::Running,
            failure: None,
            durable_below: BatchId(0),
            reserved: Reserved(Lsn(0)),
            repairing: false,
        };
        let (moved, marks, deleted_keys) =
            (Condvar::new(), StreamMarks::default(), DeletedKeys::default());
        SessionState(Arc::new(Inner {
            state: Mutex::new(state),
            moved,
            lease,
            marks,
            deleted_keys,
        }))
    }

    /// The stream begins here; a durable state row admits to commits up to `reserved`.
    pub fn begin_stream(&self, resume: Lsn, reserved: Reserved) {
        self.0.marks.begin(resume);
        self.set_reserved(reserved);
    }

    pub fn marks(&self) -> &StreamMarks {
        &self.0.marks
    }

    /// Those of the deletes that looked their rows up while a repair runs.
    pub fn deleted_keys(&self) -> &DeletedKeys {
        &self.0.deleted_keys
    }

    /// Due once the session's end has come this far.
    pub fn halt(&self, at: StopLevel) -> Halt {
        let inner = Arc::clone(&self.0);
        Halt::when(move || at <= inner.stop_level())
    }
}

impl Inner {
    fn stop_level(&self) -> StopLevel {
        let mut state = self.state.lock();
        self.look_at_lease(&mut state);
        state.stop
    }

    /// Set by the lock keeper and checked before each action: a process that was stopped for a
    /// while must not write what it had in hand.
    fn look_at_lease(&self, state: &mut State) {
        let stop = match self.lease.standing(Instant::now()) {
            LeaseHold::Held => return,
            LeaseHold::Lost => StopLevel::Draining,
            LeaseHold::Over => StopLevel::Abandoned,
        };
        if state.stop < stop {
            state.stop = stop;
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

    fn advance(&self, stop: StopLevel) {
        let mut state = self.0.state.lock();
        state.stop = state.stop.max(stop);
        self.0.moved.notify_all();
    }

    /// Ends the session for this reason, unless it already ends for another.
    pub fn fail(&self, error: Error) {
        let mut state = self.0.state.lock();
        state.stop = StopLevel::Abandoned;
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

    /// From now on the stream carries whole rows, which a page may miss.
    pub fn begin_repair(&self) {
        self.0.state.lock().repairing = true;
    }

    /// What the stream's updates have to write in addition.
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

    /// When a waiting thread has to check the lease again: nothing wakes it for that.
    pub fn look_at(&self, now: Instant) -> Instant {
        let changes_at = self.0.lease.changes_at(now).unwrap_or(now + LOOK_AT_LEAST_EVERY);
        changes_at.min(now + LOOK_AT_LEAST_EVERY)
    }

    /// It has no deadline: it waits for another thread of the session, and whichever way that
    /// thread ends, the session is abandoned and this one woken.
    fn wait_until(&self, reached: impl Fn(&State) -> bool) -> Result<()> {
        let mut state = self.0.state.lock();
        while !reached(&state) {
            self.0.look_at_lease(&mut state);
            if state.stop == StopLevel::Abandoned {
                return Err(stopped());
            }
            self.0.moved.wait_until(&mut state, self.look_at(Instant::now()));
        }
        Ok(())
    }
}

impl Alongside for SessionState {
    fn stop_level(&self) -> StopLevel {
        self.0.stop_level()
    }

    fn pause(&self, until: Instant) -> Result<()> {
        let mut state = self.0.state.lock();
        loop {
            self.0.look_at_lease(&mut state);
            if state.stop == StopLevel::Abandoned {
                return Err(stopped());
            }
            let now = Instant::now();
            if until <= now {
                return Ok(());
            }
            self.0.moved.wait_until(&mut state, self.look_at(now).min(until));
        }
    }

    fn rest(&self, until: Instant) -> StopLevel {
        let mut state = self.0.state.lock();
        loop {
            self.0.look_at_lease(&mut state);
            let now = Instant::now();
            if state.stop != StopLevel::Running || until <= now {
                return state.stop;
            }
            self.0.moved.wait_until(&mut state, self.look_at(now).min(until));
        }
    }

    fn admit(&self, upper_lsn: Lsn) -> Result<()> {
        self.0.marks.set_upper(upper_lsn);
        self.wait_until(|state| state.reserved.covers(upper_lsn))
    }

    fn wait_for_stream(&self, lsn: Lsn) -> Result<()> {
        while self.0.marks.flushed() < lsn {
            self.rest(Instant::now() + LOOK_AT_STREAM_EVERY).go_on()?;
        }
        Ok(())
    }
}

/// Abandons the session if its thread panics, so that no other thread waits for it.
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

    fn session(reserved: Lsn) -> SessionState {
        let lease = LeaseWatch::default();
        lease.set(Instant::now() + Duration::from_secs(3600), Duration::ZERO);
        let session = SessionState::new(Arc::new(lease));
        session.begin_stream(Lsn(0), Reserved(reserved));
        session
    }

    #[test]
    fn a_lease_that_is_over_abandons_whoever_acts() {
        let lease = Arc::new(LeaseWatch::default());
        let now = Instant::now();
        lease.set(now + Duration::from_secs(3600), Duration::ZERO);
        let shared = SessionState::new(Arc::clone(&lease));
        assert_eq!(shared.stop_level(), StopLevel::Running);
        lease.set(now, Duration::from_secs(3600));
        assert_eq!(shared.stop_level(), StopLevel::Draining);
        lease.set(now, Duration::ZERO);
        assert!(shared.admit(Lsn(1)).is_err());
        assert_eq!(shared.stop_level(), StopLevel::Abandoned);
    }

    #[test]
    fn the_first_failure_is_the_reason() {
        let shared = session(Lsn(0));
        shared.fail(stopped());
        shared.fail(Error::new(ErrorKind::Protocol, "first"));
        shared.fail(Error::new(ErrorKind::Protocol, "second"));
        assert_eq!(shared.take_failure().expect("it failed").to_string(), "first");
        assert_eq!(shared.stop_level(), StopLevel::Abandoned);
        shared.drain();
        assert_eq!(shared.stop_level(), StopLevel::Abandoned, "it only moves on");
    }

    #[test]
    fn gates_open_for_those_who_wait_and_fail_when_abandoned() {
        let shared = session(Lsn(10));
        assert!(shared.admit(Lsn(10)).is_ok());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| shared.wait_for_batches_before(BatchId(2)));
            shared.set_durable_below(BatchId(1));
            shared.set_durable_below(BatchId(2));
            assert!(waiting.join().expect("no panic").is_ok());
            let waiting = scope.spawn(|| shared.admit(Lsn(11)));
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
