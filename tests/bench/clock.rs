//! Waiting, and the time that rows carry.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The clock that Postgres on this machine stamps its rows by.
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970")
}

/// The first value that `check` gives, if it comes in time; looks evenly, so that the error of what
/// is measured is known.
pub fn poll<T>(
    limit: Duration,
    every: Duration,
    mut check: impl FnMut() -> Option<T>,
) -> Option<T> {
    let started_at = Instant::now();
    loop {
        if let Some(value) = check() {
            return Some(value);
        }
        if limit <= started_at.elapsed() {
            return None;
        }
        thread::sleep(every);
    }
}

/// Where silence is what is measured.
pub fn pause(duration: Duration) {
    thread::sleep(duration);
}
