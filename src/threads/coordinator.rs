//! `coordinator/<service>`: drives the lifecycle of one service. It waits for events or the
//! machine's deadline, steps the machine, and carries out its outputs; it never blocks on anything
//! else.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::event::Event;
use super::lock_keeper::{self, LeaderLock, LockRequest};
use super::session::Session;
use super::watch::primary_probe::PrimaryProbe;
use super::{AcrossSessions, Finished, session, spawn_named};
use crate::config::{ServiceConfig, Strategy};
use crate::delivery::lease_watch::LeaseWatch;
use crate::error::{Error, ErrorKind, Remedy};
use crate::health::{Attempts, Condition, Health};
use crate::machines::backoff::{Backoff, BackoffLimits};
use crate::machines::lease;
use crate::machines::lifecycle::{
    self, DrainFor, Lifecycle, LifecycleAction, LifecycleInput, LifecycleState, ServiceOutcome, Why,
};
use crate::machines::prng::Prng;
use crate::metrics::ServiceMetrics;
use crate::overview::{ServiceState, Who};
use crate::telling::tell;

/// The stream thread, the lock keeper and the supervisor each send at most a few at a time.
const EVENTS_MAX: usize = 16;

/// A stream that has run this long is healthy, even if no row came.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// How long an abandoned session may take to end: its threads wait at most for one request.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// How long a lock keeper may take to release the lock after a stop.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(2);
/// Far above the longest single wait of any thread.
const WEDGED_AFTER: Duration = Duration::from_secs(120);

pub struct Coordinator {
    pub config: Arc<ServiceConfig>,
    pub metrics: Arc<ServiceMetrics>,
    pub health: Arc<Health>,
    /// Where the supervisor hears how the service ended.
    pub finished: Sender<Finished>,
    pub index: usize,
}

/// A running coordinator.
pub struct Handle {
    pub events: Sender<Event>,
    pub thread: JoinHandle<()>,
}

impl Coordinator {
    pub fn spawn(self) -> Handle {
        let (events, inbox) = bounded(EVENTS_MAX);
        let to_self = events.clone();
        let name = format!("coordinator/{}", self.config.name.as_str());
        let thread = spawn_named(name, move || self.run(&inbox, &to_self));
        Handle { events, thread }
    }

    fn run(self, inbox: &Receiver<Event>, to_self: &Sender<Event>) {
        // A coordinator that panics must not leave the process waiting for it.
        let mut end = EndGuard {
            finished: self.finished.clone(),
            said: Finished { service: self.index, outcome: ServiceOutcome::DrainTimedOut },
        };
        let config = Arc::clone(&self.config);
        let service = config.name.as_str();
        let now = Instant::now();
        let machine = Lifecycle::new(now, self.params(), Prng::from_seed(fastrand::u64(..)));
        let lease = Arc::new(LeaseWatch::default());
        let (requests, keeper, keeper_ended) =
            self.spawn_lock_keeper(to_self.clone(), Arc::clone(&lease));
        let mut running = Running {
            machine,
            requests,
            to_self: to_self.clone(),
            session: None,
            lease,
            last_error: None,
            has_started: false,
            leader: Who::Unknown,
            memory: Arc::default(),
            primary_probe: None,
            has_streamed: false,
            ended_at: now,
            with: self,
        };
        running.publish();
        let outcome = running.drive(inbox);
        let Running { requests, .. } = running;
        if outcome == ServiceOutcome::DrainTimedOut {
            // The stuck thread may still act under the lock: so it expires with its TTL. The
            // process is about to exit.
            std::mem::forget(requests);
        } else {
            drop(requests);
            match keeper_ended.recv_timeout(KEEPER_TIMEOUT) {
                Err(RecvTimeoutError::Timeout) if outcome == ServiceOutcome::Clean => {
                    // The process is about to exit: a thread that waits does not hold it up.
                    log::warn!(
                        "{service}: no answer about the leader lock; the lock expires with its TTL"
                    );
                }
                _ if keeper.join().is_err() => {
                    log::error!("{service}: the lock keeper panicked");
                }
                _ => {}
            }
        }
        end.said.outcome = outcome;
    }

    fn params(&self) -> lifecycle::LifecycleParams {
        let config = &self.config;
        let strategy = match config.strategy {
            Strategy::Reconnect => {
                lifecycle::LifecycleStrategy::Reconnect(Backoff::new(BackoffLimits {
                    delay_min: config.reconnect.delay_min,
                    delay_max: config.reconnect.delay_max,
                    attempts_max: config.reconnect.attempts_max,
                }))
            }
            Strategy::Exit { delay, code } => lifecycle::LifecycleStrategy::Exit { delay, code },
            Strategy::Log => lifecycle::LifecycleStrategy::Log,
        };
        let lease = lease::LeaseParams::new(
            config.lock.term,
            config.lock.extend_every,
            config.lock.retry_every,
        );
        lifecycle::LifecycleParams {
            strategy,
            retry_every: config.lock.retry_every,
            healthy_after: HEALTHY_AFTER,
            handover: lease.margin,
            stop_grace: STOP_GRACE,
            wedged_after: WEDGED_AFTER,
        }
    }

    fn spawn_lock_keeper(
        &self,
        events: Sender<Event>,
        lease: Arc<LeaseWatch>,
    ) -> (Sender<LockRequest>, JoinHandle<()>, Receiver<()>) {
        let (requests, inbox) = lock_keeper::requests();
        let config = Arc::clone(&self.config);
        let lock = LeaderLock::of(&config);
        let service = config.name.as_str();
        let (end, ended) = bounded::<()>(0);
        let thread = spawn_named(format!("lock_keeper/{service}"), move || {
            let _end = end;
            lock_keeper::run(&config, lock, &lease, &inbox, &events);
        });
        (requests, thread, ended)
    }
}

/// Reports to the supervisor how the service ended, in every case.
struct EndGuard {
    finished: Sender<Finished>,
    said: Finished,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        // The supervisor outlives its services.
        let _ = self.finished.send(self.said);
    }
}

struct Running {
    with: Coordinator,
    machine: Lifecycle,
    requests: Sender<LockRequest>,
    to_self: Sender<Event>,
    session: Option<Session>,
    lease: Arc<LeaseWatch>,
    last_error: Option<(String, Option<String>)>,
    has_started: bool,
    leader: Who,
    memory: Arc<AcrossSessions>,
    /// Present while the service waits to reconnect.
    primary_probe: Option<PrimaryProbe>,
    has_streamed: bool,
    /// When the last stream ended, or the first was tried for.
    ended_at: Instant,
}

impl Running {
    fn service(&self) -> &str {
        self.with.config.name.as_str()
    }

    fn drive(&mut self, inbox: &Receiver<Event>) -> ServiceOutcome {
        loop {
            let event = match self.machine.deadline() {
                Some(at) => inbox.recv_deadline(at),
                None => inbox.recv().map_err(RecvTimeoutError::from),
            };
            let input = match event {
                Ok(Event::Lifecycle(input)) => input,
                Ok(Event::SessionEnded(error)) => self.on_session_ended(error),
                Ok(Event::Pulse(answers)) => {
                    // Full: earlier answers are not read yet, and say the same.
                    let _ = answers.try_send(self.with.index);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => LifecycleInput::DeadlineReached,
                Err(RecvTimeoutError::Disconnected) => {
                    unreachable!("the coordinator holds a sender of its own inbox")
                }
            };
            self.publish_leader(input);
            let before = self.machine.state();
            let actions = self.machine.step(Instant::now(), input);
            if self.machine.state() != before {
                self.report(before);
                self.publish();
                self.look_out();
            }
            for action in actions {
                if let Some(outcome) = self.perform(action) {
                    return outcome;
                }
            }
        }
    }

    fn perform(&mut self, action: LifecycleAction) -> Option<ServiceOutcome> {
        match action {
            LifecycleAction::AcquireLock => self.request(LockRequest::Acquire),
            LifecycleAction::ReleaseLock => {
                self.with.metrics.is_leader.lower();
                self.with.health.publish_leader(self.service(), Who::Unknown);
                self.request(LockRequest::Release);
            }
            LifecycleAction::StartSession => {
                self.with.metrics.is_leader.raise();
                self.session = Some(session::spawn(
                    Arc::clone(&self.with.config),
                    Arc::clone(&self.with.metrics),
                    Arc::clone(&self.with.health),
                    Arc::clone(&self.lease),
                    self.to_self.clone(),
                    !std::mem::replace(&mut self.has_started, true),
                    Arc::clone(&self.memory),
                ));
            }
            LifecycleAction::DrainSession { deadline } => {
                log::debug!(
                    "{}: draining for at most {:.1} s",
                    self.service(),
                    deadline.saturating_duration_since(Instant::now()).as_secs_f64()
                );
                if let Some(session) = &self.session {
                    session.drain();
                }
            }
            LifecycleAction::AbandonSession => {
                if let Some(session) = &self.session {
                    session.abandon();
                }
            }
            LifecycleAction::Finished(outcome) => return Some(outcome),
        }
        None
    }

    fn request(&self, request: LockRequest) {
        // The keeper ends only when this channel closes, and takes requests in bounded time.
        if self.requests.send(request).is_err() {
            log::error!("{}: the lock keeper has ended", self.service());
        }
    }

    fn on_session_ended(&mut self, error: Option<Error>) -> LifecycleInput {
        if matches!(
            self.machine.state(),
            LifecycleState::Streaming { .. } | LifecycleState::Draining { .. }
        ) {
            self.ended_at = Instant::now();
            self.has_streamed = true;
        }
        let ended = match self.session.take() {
            Some(session) => session.join(),
            None => Ok(()),
        };
        let error = match ended {
            Ok(()) => error,
            Err(panic) => Some(panic),
        };
        let Some(error) = error else {
            return LifecycleInput::SessionEnded { remedy: Remedy::Strategy };
        };
        tell(log::Level::Error, self.service(), format_args!("{error}"), error.hint_text());
        self.with.health.report_error(self.service(), &error.to_string(), error.hint_text());
        self.last_error = Some((error.to_string(), error.hint_text().map(str::to_owned)));
        // An error that may be fixed on the other side by the next attempt is not one of the WAL.
        if let (Some(place), ErrorKind::Protocol | ErrorKind::Setup) = (error.place(), error.kind())
        {
            self.memory.undecodable.lock().on_error(place, &error.to_string());
        }
        if error.kind() == ErrorKind::Bug {
            log::error!("{}: this is a bug of walhouse; please report it", self.service());
        }
        LifecycleInput::SessionEnded { remedy: error.remedy() }
    }

    /// One line for each change of state that an operator would want to know of.
    fn report(&self, before: LifecycleState) {
        let service = self.service();
        match self.machine.state() {
            LifecycleState::Waiting { until, why: Why::Backoff { attempt } } => {
                let wait = until.saturating_duration_since(Instant::now());
                log::warn!(
                    "{service}: reconnecting in {:.1} s (attempt {attempt})",
                    wait.as_secs_f64()
                );
                self.with.metrics.reconnects.inc();
            }
            LifecycleState::Streaming { .. } if matches!(before, LifecycleState::Starting) => {
                log::info!("{service}: streaming");
            }
            LifecycleState::Draining { then: DrainFor::StandBy, abandoned: false, .. } => {
                log::warn!("{service}: no longer leading; finishing the work in hand");
            }
            LifecycleState::Draining { then: DrainFor::Stop, abandoned: false, .. } => {
                log::info!("{service}: stopping; finishing the work in hand");
            }
            LifecycleState::Draining { then: DrainFor::Again, abandoned: false, .. } => {
                log::info!("{service}: finishing the work in hand, to begin again");
            }
            // The reason is logged when it has ended.
            LifecycleState::Draining { then: DrainFor::Strategy, .. } => {}
            LifecycleState::Draining { abandoned: true, .. } => {
                log::warn!("{service}: out of time; giving up the work in hand");
            }
            LifecycleState::Down => {
                log::error!("{service}: the stream stays down (error strategy `log`)");
            }
            LifecycleState::Stopped(ServiceOutcome::GaveUp) => {
                log::error!("{service}: stopped: the allowed reconnect attempts are used up");
            }
            LifecycleState::Stopped(ServiceOutcome::Halted) => {
                log::error!("{service}: stopped until an operator has decided");
            }
            LifecycleState::Stopped(ServiceOutcome::Exit { delay, code }) => log::error!(
                "{service}: exiting with code {code} within {:.1} s (error strategy `exit`)",
                delay.as_secs_f64()
            ),
            LifecycleState::Stopped(ServiceOutcome::DrainTimedOut) => {
                log::error!("{service}: a thread does not end; exiting");
            }
            LifecycleState::Stopped(ServiceOutcome::Clean) => log::info!("{service}: stopped"),
            LifecycleState::Waiting { .. }
            | LifecycleState::Acquiring
            | LifecycleState::Withdrawing { .. }
            | LifecycleState::Starting
            | LifecycleState::Streaming { .. } => {}
        }
    }

    /// Posts a probe of the primary for the time of a backoff.
    fn look_out(&mut self) {
        let waits = matches!(
            self.machine.state(),
            LifecycleState::Waiting { why: Why::Backoff { .. }, .. }
        );
        if !waits {
            self.primary_probe = None;
        } else if self.primary_probe.is_none() {
            let config = &self.with.config;
            self.primary_probe = Some(PrimaryProbe::spawn(
                self.service(),
                &config.postgres,
                &config.slot,
                &self.memory.last_seen,
                Arc::clone(&self.with.metrics),
                self.to_self.clone(),
            ));
        }
    }

    fn publish(&self) {
        let state = self.machine.state();
        let (shown, reason) = match state {
            LifecycleState::Waiting { why: Why::Backoff { .. }, .. } => {
                (ServiceState::BackingOff, None)
            }
            LifecycleState::Waiting { why: Why::Standby, .. } => {
                let reason = match self.leader {
                    Who::Another => "another instance leads",
                    _ => "waiting for the leader lock",
                };
                (ServiceState::StandingBy, Some(reason))
            }
            LifecycleState::Waiting { why: Why::LockUnreachable, .. } => {
                (ServiceState::StandingBy, Some("the leader lock is unreachable"))
            }
            // Asking for the lock is part of standing by, or of the backoff before it.
            LifecycleState::Acquiring => return,
            LifecycleState::Starting => (ServiceState::Starting, Some("this process leads")),
            LifecycleState::Streaming { .. } => {
                (ServiceState::Streaming, Some("the stream is open"))
            }
            LifecycleState::Draining { then, .. } => {
                let reason = match then {
                    DrainFor::StandBy => "the leader lock was lost",
                    DrainFor::Strategy => "the stream failed",
                    DrainFor::Again => "the source has changed",
                    DrainFor::Stop => "asked to stop",
                };
                (ServiceState::Draining, Some(reason))
            }
            LifecycleState::Withdrawing { .. } => (ServiceState::Draining, Some("asked to stop")),
            LifecycleState::Stopped(ServiceOutcome::Clean) => {
                (ServiceState::Stopped, Some("asked to stop"))
            }
            LifecycleState::Down
            | LifecycleState::Stopped(
                ServiceOutcome::GaveUp
                | ServiceOutcome::Halted
                | ServiceOutcome::Exit { .. }
                | ServiceOutcome::DrainTimedOut,
            ) => (ServiceState::Failed, None),
        };
        let (error, hint) = self.last_error.clone().unzip();
        let attempts = match state {
            LifecycleState::Waiting { why: Why::Backoff { attempt }, .. } => {
                Some(Attempts { count: attempt, first: !self.has_streamed, since: self.ended_at })
            }
            _ => None,
        };
        let hint = hint.flatten().filter(|_| shown == ServiceState::Failed);
        let reason = reason.map(str::to_owned).or(error);
        self.with
            .health
            .publish(self.service(), Condition { state: shown, reason, hint, attempts });
    }

    /// The leader, by the answers about the lock.
    fn publish_leader(&mut self, input: LifecycleInput) {
        self.leader = match input {
            LifecycleInput::LockAcquired => Who::ThisProcess,
            LifecycleInput::LockBusy => Who::Another,
            LifecycleInput::LockFailed | LifecycleInput::LockLost => Who::Unknown,
            _ => return,
        };
        self.with.health.publish_leader(self.service(), self.leader);
    }
}
