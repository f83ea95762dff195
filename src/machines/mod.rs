//! The decisions, as small machines: events go in, actions come out.
//!
//! Nothing here reads a clock, a channel, a random source or the environment: `now` is an argument
//! and jitter comes from a [`prng::Prng`] that the caller seeds. So tests play hours of failures in
//! milliseconds, and repeat a failing run from its seed.
//!
//! A new decision is a machine, or an input of one, and begins with a test that plays its events.
//! `tests/model` plays random histories of a simulated cluster against several at once.

use std::time::{Duration, Instant};

pub mod backoff;
pub mod batches;
pub mod catalog;
pub mod confirm;
pub mod gather;
pub mod lease;
pub mod lifecycle;
pub mod lineage;
pub mod portions;
pub mod prng;
pub mod progress;
pub mod pulse;
pub mod recovery;
pub mod removals;
pub mod repair;
pub mod salvage;
pub mod status;
pub mod supervisor;
pub mod takeover;
pub mod thinning;
pub mod undecodable;
pub mod verify;

/// `at + wait`, or far in the future where that would overflow: no setting may panic a machine.
fn after(at: Instant, wait: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    at.checked_add(wait).or_else(|| at.checked_add(FAR)).unwrap_or(at)
}
