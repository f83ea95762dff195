//! Retries for ever, and says so in fewer and fewer lines.
//!
//! Nothing is dropped while a server is away: the caller blocks here, the channels behind it fill,
//! and Postgres is read no more until it is back.

use std::time::{Duration, Instant};

use super::shared::{Pace, Shared, stopped};
use crate::clickhouse::Refusal;
use crate::error::{Error, Result};
use crate::metrics::Outage;

const TRIES_OF_TABLES: u32 = 2;

#[derive(Debug, Clone, Copy)]
pub struct Delays {
    pub min: Duration,
    pub max: Duration,
    /// From this attempt on it is called an outage.
    pub outage_after: u32,
}

/// The tables are not what the session found when it began: no attempt of it can succeed, and the
/// next session looks at them again.
pub fn is_of_tables(error: &Error) -> bool {
    let refusal = error.cause().and_then(|cause| cause.downcast_ref::<Refusal>());
    refusal.is_some_and(Refusal::is_of_tables)
}

/// Does `attempt` until it succeeds or the session is given up. An error for which `hopeless` holds
/// is returned at once; one of the tables from the third on, since another host may have them.
pub fn retry<T>(
    shared: &Shared,
    delays: Delays,
    service: &str,
    outage: &Outage,
    mut on_retry: impl FnMut(),
    mut attempt: impl FnMut() -> Result<T>,
    hopeless: impl Fn(&Error) -> bool,
) -> Result<T> {
    let mut attempts = 0_u32;
    let mut since = None;
    loop {
        if shared.pace() == Pace::Abandoned {
            return Err(stopped());
        }
        match attempt() {
            Ok(value) => {
                if let Some(since) = since {
                    outage.lower();
                    let lasted = Instant::now().saturating_duration_since(since);
                    log::warn!("{service}: the outage is over after {:.1} s", lasted.as_secs_f64());
                }
                return Ok(value);
            }
            Err(error) if hopeless(&error) => {
                if since.is_some() {
                    outage.lower();
                }
                return Err(error);
            }
            Err(error) if TRIES_OF_TABLES <= attempts && is_of_tables(&error) => {
                if since.is_some() {
                    outage.lower();
                }
                return Err(error);
            }
            Err(error) => {
                attempts = attempts.saturating_add(1);
                on_retry();
                if attempts < delays.outage_after {
                    log::warn!("{service}: {error}; trying again (attempt {attempts})");
                } else {
                    outage.raise(error.to_string(), error.hint_text());
                    since.get_or_insert_with(Instant::now);
                    // The 3rd, 6th, 12th, 24th...: a long outage takes few lines.
                    let n = attempts / delays.outage_after.max(1);
                    if attempts.is_multiple_of(delays.outage_after.max(1)) && n.is_power_of_two() {
                        log::error!(
                            "{service}: outage: {error}; nothing is dropped, attempt {attempts}"
                        );
                        if let Some(hint) = error.hint_text() {
                            log::error!("{service}:   hint: {hint}");
                        }
                    }
                }
                let pause = shared.pause(Instant::now() + wait(delays, attempts));
                if pause.is_err() && since.is_some() {
                    outage.lower();
                }
                pause?;
            }
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
