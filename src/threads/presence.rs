//! `presence/<service>`: with a leader lock in Redis, shows this instance to the others by a
//! session in Postgres, and while it stands by checks whether the holder of the lock shows itself.
//! Redis keeps the lock of a killed process for the rest of its TTL; Postgres drops its sessions at
//! once.
//!
//! It never delays the lock: the lock keeper reads the findings without waiting.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use parking_lot::{Condvar, Mutex};

use super::spawn_named;
use crate::config::ServiceConfig;
use crate::delivery::alongside::stopped;
use crate::delivery::connecting::application_name;
use crate::error::Result;
use crate::halt::Halt;
use crate::machines::backoff::{Backoff, BackoffLimits};
use crate::machines::prng::Prng;
use crate::machines::takeover::{Takeover, TakeoverVerdict};
use crate::postgres;
use crate::postgres::presence::Traces;
use crate::redis::value::shown;

/// How often a holder is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the own session is looked at; below `takeover::GONE_FOR`.
const PROVE_EVERY: Duration = Duration::from_secs(2);
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
/// A first acquire waits this long for the session, so that its lock says where to look.
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
const RECONNECT: BackoffLimits = BackoffLimits {
    delay_min: Duration::from_millis(500),
    delay_max: Duration::from_secs(15),
    attempts_max: 0,
};

/// Ends its thread when it is dropped.
pub struct Presence {
    shared: Arc<Shared>,
    /// Wakes the thread; ends it when it is dropped.
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the first attempt to connect has ended.
    tried: bool,
    stopped: bool,
    mark: Option<String>,
    /// The value of the lock that we wait for.
    value: Option<String>,
    /// Such a value whose holder is gone.
    gone: Option<String>,
}

impl Presence {
    pub fn spawn(config: Arc<ServiceConfig>, token: String) -> Presence {
        let (wake, wakes) = bounded(1);
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let name = format!("presence/{}", config.name.as_str());
        let thread = spawn_named(name, move || Watch::new(config, token, of_thread).run(&wakes));
        Presence { shared, wake: Some(wake), thread: Some(thread) }
    }

    /// Where to find our session, if there is one.
    pub fn mark(&self) -> Option<String> {
        let mut state = self.shared.state.lock();
        let until = Instant::now() + FIRST_TIMEOUT;
        while !state.tried && !self.shared.moved.wait_until(&mut state, until).timed_out() {}
        // Once is enough.
        state.tried = true;
        state.mark.clone()
    }

    /// Look for the holder of this value; `None` when there is none to wait for.
    pub fn watch(&self, value: Option<&str>) {
        let mut state = self.shared.state.lock();
        if state.value.as_deref() != value {
            state.value = value.map(str::to_owned);
            state.gone = None;
            if let (Some(wake), Some(_)) = (&self.wake, value) {
                // Full: it is about to check.
                let _ = wake.try_send(());
            }
        }
    }

    /// Whether, by the last check, the holder of exactly this value is gone.
    pub fn is_gone(&self, value: &str) -> bool {
        self.shared.state.lock().gone.as_deref() == Some(value)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.shared.state.lock().stopped = true;
        drop(self.wake.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a thread that shows this instance panicked");
        }
    }
}

/// The state of the thread.
struct Watch {
    config: Arc<ServiceConfig>,
    params: postgres::PostgresParams,
    application_name: String,
    token: String,
    shared: Arc<Shared>,
    session: Option<postgres::presence::PresenceSession>,
    machine: Takeover,
}

impl Watch {
    fn new(config: Arc<ServiceConfig>, token: String, shared: Arc<Shared>) -> Watch {
        let asked = Arc::clone(&shared);
        let halt = Halt::when(move || asked.state.lock().stopped);
        Watch {
            params: postgres::PostgresParams { halt, ..config.postgres.clone() },
            application_name: application_name(&config),
            config,
            token,
            shared,
            session: None,
            machine: Takeover::default(),
        }
    }

    fn run(mut self, wakes: &Receiver<()>) {
        let mut backoff = Backoff::new(RECONNECT);
        let mut prng = Prng::from_seed(fastrand::u64(..));
        loop {
            let outcome = self.turn(wakes);
            let wait = match outcome {
                Ok(wait) => {
                    backoff.reset();
                    wait
                }
                Err(error) => {
                    log::debug!("{}: {error}", self.config.name.as_str());
                    self.machine.forget();
                    let had_session = self.session.take().is_some();
                    let mut state = self.shared.state.lock();
                    (state.mark, state.gone, state.tried) = (None, None, true);
                    self.shared.moved.notify_all();
                    drop(state);
                    // One that breaks is made again at once: the others may be looking.
                    let wait = backoff.next(&mut prng).unwrap_or(RECONNECT.delay_max);
                    if had_session { Duration::ZERO } else { wait }
                }
            };
            match wakes.recv_timeout(wait) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Checks once; returns how long to wait for the next check.
    fn turn(&mut self, wakes: &Receiver<()>) -> Result<Duration> {
        let go_on = || match wakes.try_recv() {
            Err(TryRecvError::Disconnected) => Err(stopped()),
            Ok(()) | Err(TryRecvError::Empty) => Ok(()),
        };
        let deadline = Instant::now() + LOOK_TIMEOUT;
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let term = self.config.lock.term;
                let (params, token) = (&self.params, &self.token);
                let session = postgres::presence::PresenceSession::connect(
                    params, token, term, deadline, go_on,
                )?;
                let mut state = self.shared.state.lock();
                (state.mark, state.tried) = (Some(session.mark()), true);
                self.shared.moved.notify_all();
                drop(state);
                self.session.insert(session)
            }
        };
        let value = self.shared.state.lock().value.clone();
        let holder = value.as_deref().and_then(shown).filter(|shown| shown.mark == session.mark());
        let (Some(value), Some(holder)) = (&value, holder) else {
            self.machine.forget();
            session.prove(deadline)?;
            return Ok(if value.is_some() { LOOK_EVERY } else { PROVE_EVERY });
        };
        let traces = Traces {
            token: holder.token,
            slot: &self.config.slot,
            application_name: &self.application_name,
        };
        let asked_at = Instant::now();
        let look = session.look(traces, deadline)?;
        // Another server may have been promoted, and the holder be there by now.
        let is_gone = self.machine.on_look(asked_at, value, look) == TakeoverVerdict::Gone
            && session.is_on_primary(&self.params, deadline, go_on)?;
        let mut state = self.shared.state.lock();
        state.gone = (is_gone && state.value.as_ref() == Some(value)).then(|| value.clone());
        Ok(LOOK_EVERY)
    }
}
