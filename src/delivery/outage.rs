//! Retries for ever, and says so in fewer and fewer lines.
//!
//! Nothing is dropped while a server is away: the caller blocks here, the channels behind it fill,
//! and Postgres is read no more until it is back.

use std::time::{Duration, Instant};

use super::alongside::{Alongside, StopLevel, stopped};
use log::Level;

use crate::clickhouse::Refusal;
use crate::error::{Error, ErrorKind, Result};
use crate::machines::thinning::Thinning;
use crate::metrics::Outage;
use crate::telling::tell_attempt;

const TRIES_OF_TABLES: u32 = 2;

#[derive(Debug, Clone, Copy)]
pub struct Delays {
    pub min: Duration,
    pub max: Duration,
    /// From this attempt on it is called an outage.
    pub outage_after: u32,
}

/// The tables have changed since the session began: no attempt can succeed, and the next session
/// reads them again.
pub fn is_of_tables(error: &Error) -> bool {
    let refusal = error.cause().and_then(|cause| cause.downcast_ref::<Refusal>());
    refusal.is_some_and(Refusal::is_of_tables)
}

/// An operation that keeps failing: logged, retried after a wait, and logged when it is over.
pub struct Episode<'a> {
    alongside: &'a dyn Alongside,
    delays: Delays,
    service: &'a str,
    outage: &'a Outage,
    attempts: u32,
    thinning: Thinning,
    since: Option<Instant>,
}

impl<'a> Episode<'a> {
    pub fn new(
        alongside: &'a dyn Alongside,
        delays: Delays,
        service: &'a str,
        outage: &'a Outage,
    ) -> Episode<'a> {
        Episode {
            alongside,
            delays,
            service,
            outage,
            attempts: 0,
            thinning: Thinning::default(),
            since: None,
        }
    }

    /// Waits, longer each time. An error: the session is given up; if the tables have changed, only
    /// from the third attempt on, since another host may have them.
    pub fn on_failed(&mut self, error: Error) -> Result<()> {
        let is_over = TRIES_OF_TABLES <= self.attempts && is_of_tables(&error);
        // Or asked to stop meanwhile.
        if is_over || error.kind() == ErrorKind::Stopped {
            self.end();
            return Err(error);
        }
        self.fail(&error, self.delays.outage_after)
    }

    /// The same, but the first failure already counts as an outage.
    pub fn on_held(&mut self, error: &Error) -> Result<()> {
        self.fail(error, 1)
    }

    fn fail(&mut self, error: &Error, outage_after: u32) -> Result<()> {
        self.attempts = self.attempts.saturating_add(1);
        let (service, attempts) = (self.service, self.attempts);
        if attempts < outage_after {
            log::warn!("{service}: {error}; trying again (attempt {attempts})");
        } else {
            self.outage.raise(error.to_string(), error.hint_text());
            self.since.get_or_insert_with(Instant::now);
            // The 3rd, 6th, 12th, 24th...
            if attempts.is_multiple_of(outage_after.max(1)) && self.thinning.on_repeat() {
                let of = (service, "outage: ");
                tell_attempt(Level::Error, of, error, "nothing is dropped", attempts);
            }
        }
        let pause = self.alongside.pause(Instant::now() + wait(self.delays, attempts));
        if pause.is_err() {
            self.end();
        }
        pause
    }

    pub fn on_success(&mut self) {
        self.attempts = 0;
        self.thinning.reset();
        if let Some(since) = self.end() {
            let lasted = Instant::now().saturating_duration_since(since);
            log::warn!("{}: the outage is over after {:.1} s", self.service, lasted.as_secs_f64());
        }
    }

    fn end(&mut self) -> Option<Instant> {
        let since = self.since.take();
        if since.is_some() {
            self.outage.lower();
        }
        since
    }
}

/// Does `attempt` until it succeeds or the session is given up. An error for which `hopeless` holds
/// is returned at once; one of the tables from the third on, since another host may have them.
pub fn retry<T>(
    alongside: &dyn Alongside,
    delays: Delays,
    service: &str,
    outage: &Outage,
    mut attempt: impl FnMut() -> Result<T>,
    hopeless: impl Fn(&Error) -> bool,
) -> Result<T> {
    let mut episode = Episode::new(alongside, delays, service, outage);
    loop {
        if alongside.stop_level() == StopLevel::Abandoned {
            return Err(stopped());
        }
        match attempt() {
            Ok(value) => {
                episode.on_success();
                return Ok(value);
            }
            Err(error) if hopeless(&error) => {
                episode.end();
                return Err(error);
            }
            Err(error) => episode.on_failed(error)?,
        }
    }
}

/// Doubles from `min` to `max`; up to a tenth less, so that flushers do not move in lock-step.
pub fn wait(delays: Delays, attempts: u32) -> Duration {
    let doubled = delays.min.saturating_mul(1 << attempts.saturating_sub(1).min(20));
    doubled.min(delays.max).mul_f64(1.0 - fastrand::f64() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum() {
        let delays = Delays {
            min: Duration::from_millis(100),
            max: Duration::from_secs(2),
            outage_after: 3,
        };
        for (attempt, most) in [(1, 100), (2, 200), (3, 400), (5, 1600), (6, 2000), (4000, 2000)] {
            let wait = wait(delays, attempt).as_millis();
            assert!(most * 9 / 10 <= wait && wait <= most, "{attempt}: {wait}");
        }
    }
}
