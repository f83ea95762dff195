//! Notifies systemd, if it has started the process: ready, a status line, stopping, and signs of
//! life for its watchdog.
//!
//! Without systemd nothing happens. Errors are not logged: it notifies again, and systemd's
//! watchdog judges by itself.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::health::Health;
use crate::machines::pulse::Pulse;

/// Without a watchdog the status is still sent this often.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// A sign of life that comes late must not end the process.
const SIGNS_PER_PATIENCE: u32 = 4;

pub struct ServiceManager {
    every: Duration,
    due_at: Instant,
    /// `None`: there is no watchdog.
    pulse: Option<Pulse>,
    said: Option<String>,
}

impl ServiceManager {
    /// All threads run.
    pub fn started(services: usize) -> ServiceManager {
        let patience = sd_notify::watchdog_enabled();
        let every = patience.map_or(STATUS_EVERY, |patience| {
            STATUS_EVERY.min(patience / SIGNS_PER_PATIENCE).max(Duration::from_millis(1))
        });
        let now = Instant::now();
        let pulse = patience.map(|patience| Pulse::new(now, services, patience / 2));
        tell(&[NotifyState::Ready]);
        ServiceManager { every, due_at: now, pulse, said: None }
    }

    /// When [`ServiceManager::turn`] wants to be called.
    pub fn due_at(&self) -> Instant {
        self.due_at
    }

    pub fn on_answer(&mut self, service: usize) {
        if let Some(pulse) = &mut self.pulse {
            pulse.on_answer(Instant::now(), service);
        }
    }

    pub fn on_end(&mut self, service: usize) {
        if let Some(pulse) = &mut self.pulse {
            pulse.on_end(service);
        }
    }

    /// True if it is time to ask the services for a sign of life.
    pub fn turn(&mut self, health: &Health) -> bool {
        let now = Instant::now();
        self.due_at = now + self.every;
        if self.pulse.as_ref().is_some_and(|pulse| pulse.is_alive(now)) {
            tell(&[NotifyState::Watchdog]);
        }
        let status = health.summary();
        if self.said.as_ref() != Some(&status) {
            tell(&[NotifyState::Status(&status)]);
            self.said = Some(status);
        }
        self.pulse.is_some()
    }

    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        log::debug!("tell systemd: {error}");
    }
}
