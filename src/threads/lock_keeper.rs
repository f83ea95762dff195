//! `lock_keeper/<service>`: acquires, extends and releases the leader lock, and reports `LockLost`
//! in time to stop before another instance may start.
//!
//! It only decides which instance tries: the slot itself admits one walsender at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::event::Event;
use super::presence::Presence;
use crate::config::{LockConfig, LockKind, ServiceConfig};
use crate::delivery::lease_watch::LeaseWatch;
use crate::error::Result;
use crate::machines::lease::{self, Lease, LeaseStanding};
use crate::machines::lifecycle::LifecycleInput;
use crate::postgres::advisory_lock::AdvisoryLock;
use crate::redis::lock::{Extended, RedisLock};
use crate::telling::tell;
use crate::{postgres, redis};

/// One request to Redis or Postgres, when the lease does not set a nearer end.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);

/// The requests of the coordinator. `Acquire` is answered with one input; closing the channel
/// releases the lock and ends the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockRequest {
    Acquire,
    Release,
}

/// Requests under way: an acquire and the release that follows it.
const REQUESTS_MAX: usize = 4;

pub fn requests() -> (Sender<LockRequest>, Receiver<LockRequest>) {
    bounded(REQUESTS_MAX)
}

/// The lock of a service in Redis; no I/O yet.
pub fn redis_lock(config: &ServiceConfig, params: &redis::Params) -> RedisLock {
    RedisLock::new(params, &config.lock.key_prefix, &config.slot)
}

/// The leader lock, wherever it lives.
pub enum LeaderLock {
    Redis(RedisLock),
    /// The connection stays while we stand by, so that asking twice a second costs a query and not
    /// a session.
    Postgres {
        params: Box<postgres::PostgresParams>,
        slot: String,
        session: Option<AdvisoryLock>,
    },
}

enum Extension {
    Ours,
    Taken,
}

impl LeaderLock {
    /// That of a service; no I/O yet.
    pub fn of(config: &ServiceConfig) -> LeaderLock {
        match &config.lock.kind {
            LockKind::Redis(params) => LeaderLock::Redis(redis_lock(config, params)),
            LockKind::Postgres => LeaderLock::Postgres {
                params: Box::new(config.postgres.clone()),
                slot: config.slot.clone(),
                session: None,
            },
        }
    }

    pub fn try_acquire(&mut self, term: Duration, deadline: Instant) -> Result<bool> {
        match self {
            LeaderLock::Redis(lock) => lock.try_acquire(term, deadline),
            LeaderLock::Postgres { params, slot, session } => {
                // After an error it is dropped, and created again the next time.
                let mut lock = match session.take() {
                    Some(lock) => lock,
                    None => AdvisoryLock::connect(params, slot, term, deadline)?,
                };
                let held = lock.try_lock(deadline)?;
                *session = Some(lock);
                Ok(held)
            }
        }
    }

    /// Shows this instance to those that wait for the lock, and its holder to us. The lock in
    /// Postgres needs none: it ends with its session.
    fn presence(&mut self, config: &Arc<ServiceConfig>) -> Option<Presence> {
        let LeaderLock::Redis(lock) = self else { return None };
        match lock.token() {
            Ok(token) => Some(Presence::spawn(Arc::clone(config), token)),
            // The first acquire draws again, and says it.
            Err(_) => None,
        }
    }

    /// [`LeaderLock::try_acquire`], of a lock whose holder may be seen to be gone.
    fn try_acquire_watched(
        &mut self,
        service: &str,
        presence: Option<&Presence>,
        term: Duration,
        deadline: Instant,
    ) -> Result<bool> {
        let (LeaderLock::Redis(lock), Some(presence)) = (&mut *self, presence) else {
            return self.try_acquire(term, deadline);
        };
        lock.set_mark(presence.mark());
        let is_acquired = lock.try_acquire(term, deadline)?;
        let met = lock.met().map(str::to_owned);
        presence.watch(met.as_deref());
        match met {
            Some(met) if !is_acquired && presence.is_gone(&met) => {
                log::info!(
                    "{service}: the holder of the leader lock is gone: Postgres no longer has a \
                     session of it; clearing the lock"
                );
                presence.watch(None);
                lock.clear(&met, deadline)?;
                lock.try_acquire(term, deadline)
            }
            _ => Ok(is_acquired),
        }
    }

    fn extend(
        &mut self,
        presence: Option<&Presence>,
        term: Duration,
        deadline: Instant,
    ) -> Result<Extension> {
        if let (LeaderLock::Redis(lock), Some(presence)) = (&mut *self, presence) {
            lock.set_mark(presence.mark());
        }
        match self {
            LeaderLock::Redis(lock) => match lock.extend(term, deadline)? {
                Extended::Lost => Ok(Extension::Taken),
                Extended::Yes | Extended::Retaken => Ok(Extension::Ours),
            },
            LeaderLock::Postgres { session, .. } => match session {
                Some(lock) => lock.extend(deadline).map(|()| Extension::Ours),
                None => Ok(Extension::Taken),
            },
        }
    }

    pub fn release(&mut self, deadline: Instant) -> Result<()> {
        match self {
            LeaderLock::Redis(lock) => lock.release(deadline),
            LeaderLock::Postgres { session, .. } => match session.take() {
                Some(lock) => lock.release(deadline),
                None => Ok(()),
            },
        }
    }
}

pub fn run(
    config: &Arc<ServiceConfig>,
    mut lock: LeaderLock,
    watch: &LeaseWatch,
    requests: &Receiver<LockRequest>,
    events: &Sender<Event>,
) {
    let service = config.name.as_str();
    let LockConfig { term, extend_every, retry_every, additional, .. } = config.lock;
    let params = lease::LeaseParams::new(term, extend_every, retry_every);
    let mut lease: Option<Lease> = None;
    let mut keeper = Keeper {
        service,
        params,
        patience: term + additional,
        watch,
        presence: lock.presence(config),
        standing_by_since: None,
        said: false,
    };
    loop {
        // A lost lease stays until it is released, so that the lock is not left to its term.
        let deadline = lease.as_ref().and_then(Lease::deadline);
        let request = match deadline {
            Some(at) => requests.recv_deadline(at),
            None => requests.recv().map_err(RecvTimeoutError::from),
        };
        let now = Instant::now();
        match request {
            Ok(LockRequest::Acquire) => {
                let input = keeper.acquire(now, &mut lock, &mut lease);
                if events.send(Event::Lifecycle(input)).is_err() {
                    break;
                }
            }
            Ok(LockRequest::Release) => {
                lease = None;
                keeper.release(&mut lock);
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(held) = &mut lease
                    && keeper.keep(held, &mut lock)
                    && events.send(Event::Lifecycle(LifecycleInput::LockLost)).is_err()
                {
                    break;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if lease.is_some() {
        keeper.release(&mut lock);
    }
}

struct Keeper<'a> {
    service: &'a str,
    params: lease::LeaseParams,
    /// Longer than a dead leader's lock can live.
    patience: Duration,
    watch: &'a LeaseWatch,
    presence: Option<Presence>,
    standing_by_since: Option<Instant>,
    /// Whether this period of standing by was logged.
    said: bool,
}

impl Keeper<'_> {
    fn acquire(
        &mut self,
        asked_at: Instant,
        lock: &mut LeaderLock,
        lease: &mut Option<Lease>,
    ) -> LifecycleInput {
        let service = self.service;
        let (presence, until) = (self.presence.as_ref(), asked_at + TRY_TIMEOUT);
        match lock.try_acquire_watched(service, presence, self.params.term, until) {
            Ok(true) => {
                log::info!("{service}: leader lock acquired");
                let acquired = Lease::acquired(asked_at, self.params);
                self.watch.set(acquired.lost_at(), self.params.margin);
                *lease = Some(acquired);
                self.standing_by_since = None;
                self.said = false;
                LifecycleInput::LockAcquired
            }
            Ok(false) => {
                let since = *self.standing_by_since.get_or_insert(asked_at);
                if !self.said {
                    log::info!("{service}: another instance leads; standing by");
                    self.said = true;
                } else if self.patience <= asked_at.saturating_duration_since(since) {
                    // Another instance is alive and leads.
                    log::debug!("{service}: still standing by");
                    self.standing_by_since = Some(asked_at);
                }
                LifecycleInput::LockBusy
            }
            Err(error) => {
                if !self.said {
                    let line = format_args!("{error}; standing by until the lock can be reached");
                    tell(log::Level::Warn, service, line, error.hint_text());
                    self.said = true;
                }
                LifecycleInput::LockFailed
            }
        }
    }

    /// Extends the lease if it is due; true when it is lost.
    fn keep(&self, lease: &mut Lease, lock: &mut LeaderLock) -> bool {
        let service = self.service;
        let asked_at = Instant::now();
        match lease.standing(asked_at) {
            LeaseStanding::Held { .. } => return false,
            LeaseStanding::Lost => {
                log::warn!("{service}: leader lock lost: it could not be extended in time");
                return true;
            }
            LeaseStanding::ExtendDue => {}
        }
        let until = lease.try_deadline(asked_at).min(asked_at + TRY_TIMEOUT);
        match lock.extend(self.presence.as_ref(), self.params.term, until) {
            Ok(Extension::Ours) => {
                lease.on_extended(asked_at);
                self.watch.set(lease.lost_at(), self.params.margin);
            }
            Ok(Extension::Taken) => lease.on_taken(),
            Err(error) => {
                log::warn!("{service}: {error}; trying again while the lock lasts");
                lease.on_extend_failed(Instant::now());
            }
        }
        if lease.standing(Instant::now()) == LeaseStanding::Lost {
            log::warn!("{service}: leader lock lost");
            return true;
        }
        false
    }

    fn release(&self, lock: &mut LeaderLock) {
        self.watch.clear();
        match lock.release(Instant::now() + TRY_TIMEOUT) {
            Ok(()) => log::info!("{}: leader lock released", self.service),
            Err(error) => {
                log::warn!("{}: {error}; the lock expires with its TTL", self.service);
            }
        }
    }
}
