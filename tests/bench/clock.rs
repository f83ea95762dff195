//! Waiting, and the time that rows carry.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The clock that Postgres on this machine stamps its rows by.
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970")
}

/// The first value that `check` gives, if it comes in time; looks evenly, so that the error of what
/// is measured is known.
pub fn poll<T>(limit: Duration, every: Duration, check: impl FnMut() -> Option<T>) -> Option<T> {
    poll_at(limit, |_| every, check)
}

/// The same where to look costs who is measured: rarer as time passes, with an error of a hundredth.
pub fn poll_rarely<T>(limit: Duration, check: impl FnMut() -> Option<T>) -> Option<T> {
    poll_at(limit, |elapsed| (elapsed / 100).max(Duration::from_millis(10)), check)
}

fn poll_at<T>(
    limit: Duration,
    every: impl Fn(Duration) -> Duration,
    mut check: impl FnMut() -> Option<T>,
) -> Option<T> {
    let started_at = Instant::now();
    loop {
        if let Some(value) = check() {
            return Some(value);
        }
        let elapsed = started_at.elapsed();
        if limit <= elapsed {
            return None;
        }
        thread::sleep(every(elapsed));
    }
}

/// Where silence is what is measured.
pub fn pause(duration: Duration) {
    thread::sleep(duration);
}
