//! Waiting for what happens: polling with a deadline, and a message that says what was waited for.
//! Nothing else in the tests sleeps.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine; a test that reaches it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

const POLL_FIRST: Duration = Duration::from_millis(2);
const POLL_LAST: Duration = Duration::from_millis(50);

/// The first value that `check` gives, if it comes in time.
pub fn within<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let started_at = Instant::now();
    let mut poll = POLL_FIRST;
    loop {
        if let Some(value) = check() {
            return Some(value);
        }
        if limit <= started_at.elapsed() {
            return None;
        }
        thread::sleep(poll);
        poll = (poll * 2).min(POLL_LAST);
    }
}

/// The first value that `check` gives.
#[track_caller]
pub fn until<T>(what: impl Display, limit: Duration, check: impl FnMut() -> Option<T>) -> T {
    within(limit, check).unwrap_or_else(|| panic!("waited {limit:?} in vain until {what}"))
}

#[track_caller]
pub fn until_true(what: impl Display, within: Duration, mut check: impl FnMut() -> bool) {
    until(what, within, || check().then_some(()));
}

/// For what must not happen: looks at it all the while.
#[track_caller]
pub fn stays_true(what: impl Display, during: Duration, mut check: impl FnMut() -> bool) {
    let started_at = Instant::now();
    while started_at.elapsed() < during {
        assert!(check(), "after {:?} it was no longer so that {what}", started_at.elapsed());
        thread::sleep(POLL_LAST);
    }
}
