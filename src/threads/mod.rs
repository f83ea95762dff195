//! The threads: each file is one thread, or shared by two of them. They wait, step a machine, and
//! act.
//!
//! [`supervisor`] starts the [`coordinator`]s, each of which runs one [`session`] after another.
//! What a session runs is in the folders: [`start`], then [`stream`], with [`watch`] next to it.
//!
//! A thread is a loop without decisions of its own: where a new `if` is about what to do next, it
//! belongs in a machine, with a test that needs no thread. Every wait has a deadline and sees the
//! end of the session.

pub mod board;
pub mod coordinator;
pub mod event;
pub mod http;
pub mod lock_keeper;
pub mod presence;
mod service_manager;
pub mod session;
pub mod start;
pub mod stream;
pub mod supervisor;
pub mod watch;

use std::thread::{Builder, JoinHandle};

use parking_lot::Mutex;

use crate::machines::lifecycle::ServiceOutcome;
use crate::machines::undecodable::Undecodable;

/// What a service remembers from one session to the next.
#[derive(Debug, Default)]
pub struct AcrossSessions {
    pub told: watch::failover_readiness::Reported,
    pub last_seen: watch::primary_probe::LastSeen,
    pub tables: start::tables_seen::TablesSeen,
    pub undecodable: Mutex<Undecodable>,
}

/// How one service ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    pub service: usize,
    pub outcome: ServiceOutcome,
}

/// Identifies this process, for operators of several.
pub fn instance() -> String {
    let pid = std::process::id();
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(host) => format!("{} pid {pid}", host.trim()),
        Err(_) => format!("pid {pid}"),
    }
}

/// A thread with a name. That the system has no thread left at start is not survivable.
pub fn spawn_named(name: String, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    Builder::new().name(name).spawn(work).expect("the system has room for a few threads")
}
