//! The main thread: starts a coordinator for each service, hears signals and ends, and says with
//! which code the process exits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};

use super::coordinator::{Coordinator, Handle};
use super::event::Event;
use super::service_manager::ServiceManager;
use super::{Finished, spawn_named};
use crate::config::Config;
use crate::health::Health;
use crate::machines::lifecycle;
use crate::machines::supervisor::{
    Supervisor, SupervisorAction, SupervisorInput, SupervisorParams,
};
use crate::metrics::Metrics;

/// How long to wait for services past their deadline; more than a lifecycle's own grace.
const BACKSTOP: Duration = Duration::from_secs(5);
/// The time left for a shutdown when the work in hand is given up.
const SHUTDOWN_RESERVE: Duration = Duration::from_secs(4);
/// More than any sender sends before it gets an answer.
const SIGNALS_MAX: usize = 4;

/// Signals on their way to the main thread.
pub fn signals() -> (Sender<()>, Receiver<()>) {
    bounded(SIGNALS_MAX)
}

/// Runs all services to their end; the exit code.
pub fn run(
    config: Config,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
    signals: &Receiver<()>,
) -> u8 {
    let services = config.services.len();
    let (finished, ends) = bounded(services);
    let mut handles: Vec<Option<Handle>> = Vec::new();
    for (index, service) in config.services.into_iter().enumerate() {
        let coordinator = Coordinator {
            metrics: metrics.service(service.name.as_str()),
            config: Arc::new(service),
            health: Arc::clone(health),
            finished: finished.clone(),
            index,
        };
        handles.push(Some(coordinator.spawn()));
    }
    // Giving up the work in hand and the lock is part of the time that was promised.
    let reserve = SHUTDOWN_RESERVE.min(config.shutdown_timeout / 4);
    let shutdown_timeout = config.shutdown_timeout.saturating_sub(reserve);
    let params = SupervisorParams { shutdown_timeout, backstop: BACKSTOP };
    let mut machine = Supervisor::new(services, params);
    let mut manager = ServiceManager::started(services);
    let (answer, answers) = bounded(services * SIGNALS_MAX);
    let never = never();
    let mut signals = signals;
    loop {
        let wake_at =
            machine.deadline().map_or(manager.due_at(), |deadline| deadline.min(manager.due_at()));
        let input = select! {
            recv(signals) -> signal => match signal {
                Ok(()) => {
                    log::info!("signal received");
                    SupervisorInput::Signal
                }
                Err(_) => {
                    signals = &never;
                    continue;
                }
            },
            recv(ends) -> end => match end {
                Ok(Finished { service, outcome }) => {
                    manager.on_end(service);
                    join(handles.get_mut(service).and_then(Option::take), outcome);
                    SupervisorInput::ServiceFinished { service, outcome }
                }
                Err(_) => unreachable!("the main thread holds a sender of its own"),
            },
            recv(answers) -> service => {
                if let Ok(service) = service {
                    manager.on_answer(service);
                }
                continue;
            }
            default(wake_at.saturating_duration_since(Instant::now())) => {
                SupervisorInput::DeadlineReached
            }
        };
        let now = Instant::now();
        if manager.due_at() <= now && manager.turn(health) {
            for handle in handles.iter().flatten() {
                // Full: it will answer the earlier question, or it is stuck.
                let _ = handle.events.try_send(Event::Pulse(answer.clone()));
            }
        }
        if input == SupervisorInput::DeadlineReached && machine.deadline().is_none_or(|at| now < at)
        {
            continue;
        }
        for action in machine.step(now, input) {
            match action {
                SupervisorAction::StopServices { deadline } => {
                    manager.stopping();
                    let stop =
                        Event::Lifecycle(lifecycle::LifecycleInput::StopRequested { deadline });
                    for handle in handles.iter().flatten() {
                        tell(handle, stop_of(&stop));
                    }
                }
                SupervisorAction::Exit { code } => return code,
            }
        }
    }
}

fn stop_of(event: &Event) -> Event {
    match event {
        Event::Lifecycle(input) => Event::Lifecycle(*input),
        Event::SessionEnded(_) | Event::Pulse(_) => unreachable!("only inputs are told to all"),
    }
}

/// A coordinator reads its inbox at all times; the separate thread still keeps the main one free.
fn tell(handle: &Handle, event: Event) {
    let events = handle.events.clone();
    if let Err(full) = events.try_send(event) {
        spawn_named("stop".to_owned(), move || {
            let _ = events.send(full.into_inner());
        });
    }
}

fn join(handle: Option<Handle>, outcome: lifecycle::ServiceOutcome) {
    // A wedged service's threads do not end; the process does.
    if outcome != lifecycle::ServiceOutcome::DrainTimedOut
        && let Some(handle) = handle
        && handle.thread.join().is_err()
    {
        log::error!("a coordinator panicked");
    }
}
