//! `slot_watch/<service>`: while the slot is created, which waits for other transactions and reacts
//! to nothing meanwhile, checks on its own connections whether the server is still there, and what
//! the slot waits for. A server that does not answer ends the wait, and so does a stop.

use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::delivery::alongside::{Alongside, StopLevel};
use crate::delivery::session_state::SessionState;
use crate::error::{ErrorKind, Result};
use crate::postgres::primary::Primary;
use crate::postgres::slot;
use crate::postgres::sql::Interrupt;

pub struct SlotWatch<'a> {
    pub service: &'a str,
    pub slot: &'a str,
    pub primary: &'a Primary,
    pub application_name: &'a str,
    /// The waiting process.
    pub backend_pid: i32,
    pub interrupt: Interrupt,
    pub receive_timeout: Duration,
    pub shared: &'a SessionState,
}

/// How soon a stop is noticed.
const NOTICE_EVERY: Duration = Duration::from_millis(100);
/// Cancels the creation on the server.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

/// The watch is over when this is dropped.
pub struct Watching<'scope> {
    stop: Option<Sender<()>>,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
}

impl<'a> SlotWatch<'a> {
    pub fn begin<'scope>(self, scope: &'scope Scope<'scope, 'a>) -> Watching<'scope> {
        let (stop, stops) = bounded::<()>(0);
        let builder = std::thread::Builder::new().name(format!("slot_watch/{}", self.service));
        let thread = builder.spawn_scoped(scope, move || self.run(&stops));
        if let Err(error) = &thread {
            // The wait has its own deadline, too.
            log::warn!("start a thread to watch the creation of a slot: {error}");
        }
        Watching { stop: Some(stop), thread: thread.ok() }
    }

    fn run(self, stops: &Receiver<()>) {
        let mut told = None;
        // Half of the time passes before the query, half may pass until the answer.
        let half = self.receive_timeout / 2;
        let mut look_at = Instant::now() + half;
        while let Err(RecvTimeoutError::Timeout) = stops.recv_timeout(NOTICE_EVERY) {
            if self.shared.stop_level() != StopLevel::Running {
                self.cancel();
                return;
            }
            if Instant::now() < look_at {
                continue;
            }
            look_at = Instant::now() + half;
            match self.look(Instant::now() + half) {
                Ok(None) => {}
                Ok(blocker) if blocker == told => {}
                Ok(Some(blocker)) => {
                    let (service, slot) = (self.service, self.slot);
                    log::warn!("{service}: slot `{slot}` waits for the end of {blocker}");
                    told = Some(blocker);
                }
                Err(error) if error.kind() == ErrorKind::Unreachable => {
                    log::warn!("{}: {error}; giving up slot `{}`", self.service, self.slot);
                    self.interrupt.interrupt();
                    return;
                }
                Err(error) => log::debug!("{}: {error}", self.service),
            }
        }
    }

    /// By the server, so that no unknown slot is left behind; or else by closing our end.
    fn cancel(&self) {
        let deadline = Instant::now() + CANCEL_TIMEOUT;
        let sql = self.primary.sql(self.application_name, deadline);
        let cancelled = sql.and_then(|mut sql| {
            let statement = format!("SELECT pg_cancel_backend({})", self.backend_pid);
            sql.execute("cancel the making of a slot", &statement, deadline)
        });
        if let Err(error) = cancelled {
            log::debug!("{}: {error}", self.service);
            self.interrupt.interrupt();
        }
    }

    fn look(&self, deadline: Instant) -> Result<Option<String>> {
        let mut sql = self.primary.sql(self.application_name, deadline)?;
        slot::blocker(&mut sql, self.backend_pid, deadline)
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the watch of a slot panicked");
        }
    }
}
