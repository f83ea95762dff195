//! The threads: each file is one, or what two of them share. They wait, step a machine, and act.

pub mod as_of;
pub mod backfiller;
pub mod batch;
pub mod batcher;
pub mod board;
pub mod bystander;
pub mod confirmer;
pub mod coordinator;
pub mod debt;
pub mod flusher;
pub mod http;
pub mod landing;
pub mod lease_watch;
pub mod lock_keeper;
pub mod lookout;
pub mod mapped;
pub mod outage;
pub mod position;
pub mod prepare;
pub mod readiness;
pub mod repairer;
pub mod resume;
pub mod rival;
mod service_manager;
pub mod session;
pub mod shared;
pub mod slot_watch;
pub mod source_check;
pub mod supervisor;
pub mod teardown;
pub mod verifier;
pub mod wal_reader;
pub mod wal_watch;

use std::thread::{Builder, JoinHandle};

use crate::machines::lifecycle::Outcome;

/// What a service remembers from one session to the next.
#[derive(Debug, Default)]
pub struct Memory {
    pub told: readiness::Told,
    pub last_seen: lookout::LastSeen,
}

/// How one service ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    pub service: usize,
    pub outcome: Outcome,
}

/// Which process this is, for people who have several.
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
