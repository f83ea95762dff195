//! A write load as the applications make it, and worse: several connections, transactions of 1 to
//! 60 changes, rollbacks, savepoints, changed keys, rows deleted and made again, TOASTed values that
//! later updates leave alone.
//!
//! What is written follows from the seed; how the connections interleave does not. Each connection
//! mostly writes rows of its own, and some that all share. Every row version has a number of its
//! own: in `usageDurationMs` of runs, in the metadata of sessions. A connection that breaks is made
//! again, so the load goes on through a restart; what it wrote is then read from the database. That
//! may be less than it saw committed: a failover may have lost some of it.
//!
//! Only with `moves` a row changes a column of its sorting key: without REPLICA IDENTITY FULL the
//! stream does not tell from where, and the row stays under its old key as well.
//!
//! Not written, because what is expected would not follow from the last row alone: another
//! `createdAt` or payload for a row that is there, an owner given to a row that had none.

mod rows;
mod writer;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use writer::Writer;

use super::database::Database;
use super::wait::{PATIENCE, until};

#[derive(Debug, Clone, Copy)]
pub struct Workload {
    pub seed: u64,
    pub connections: u64,
    /// Transactions per second of all connections together; `None` is as fast as it goes.
    pub rate: Option<f64>,
    /// One value in this many is TOASTed; 0 is none.
    pub big_every: u64,
    pub changes_max: u64,
    pub moves: bool,
    pub sessions: bool,
    /// Any error ends the connection and no more, and a server is waited for without end: for a
    /// load that others break. Without it, what is not part of the load fails the test.
    pub endures: bool,
}

impl Workload {
    pub fn new(seed: u64) -> Workload {
        Workload {
            seed,
            connections: 3,
            rate: None,
            big_every: 12,
            changes_max: 60,
            moves: false,
            sessions: true,
            endures: false,
        }
    }

    /// Writes this many transactions and returns when they are committed or rolled back.
    pub fn run(self, postgres: &Database, transactions: u64) -> Written {
        let load = self.spawn(postgres, Some(transactions));
        load.join()
    }

    /// Writes until it is told to stop.
    pub fn start(self, postgres: &Database) -> Load {
        self.spawn(postgres, None)
    }

    fn spawn(self, postgres: &Database, transactions: Option<u64>) -> Load {
        let shared = Arc::new(Shared::default());
        let writers = (0..self.connections).map(|number| {
            let (shared, postgres) = (Arc::clone(&shared), postgres.clone());
            let share =
                |all: u64| all / self.connections + u64::from(number < all % self.connections);
            let transactions = transactions.map(share);
            let writer = Writer::new(self, number, postgres, shared);
            thread::Builder::new()
                .name(format!("writer-{number}"))
                .spawn(move || writer.run(transactions))
                .expect("a thread starts")
        });
        Load { writers: writers.collect(), shared }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: Mutex<bool>,
    stopped: Condvar,
    committed: AtomicU64,
    rolled_back: AtomicU64,
    changes: AtomicU64,
    reconnects: AtomicU64,
    versions: AtomicU64,
}

impl Shared {
    fn stop(&self) {
        *self.stop.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
        self.stopped.notify_all();
    }

    /// True once the load is told to stop; otherwise only after this long.
    fn stops_within(&self, wait: Duration) -> bool {
        let stop = self.stop.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let waited = self.stopped.wait_timeout_while(stop, wait, |stop| !*stop);
        *waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
    }
}

/// What a load wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub committed: u64,
    pub rolled_back: u64,
    /// In committed transactions.
    pub changes: u64,
    pub reconnects: u64,
}

/// A load that is running.
pub struct Load {
    writers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl Load {
    pub fn written(&self) -> Written {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Written {
            committed: load(&self.shared.committed),
            rolled_back: load(&self.shared.rolled_back),
            changes: load(&self.shared.changes),
            reconnects: load(&self.shared.reconnects),
        }
    }

    /// Until it has committed this many more transactions.
    #[track_caller]
    pub fn wait_for(&self, transactions: u64) {
        let enough = self.written().committed + transactions;
        until(format!("the load has committed {transactions} more"), PATIENCE, || {
            assert!(!self.writers.iter().all(JoinHandle::is_finished), "the load has ended");
            (enough <= self.written().committed).then_some(())
        });
    }

    /// Ends the transactions at hand, and then the load.
    #[track_caller]
    pub fn stop(self) -> Written {
        self.shared.stop();
        self.join()
    }

    #[track_caller]
    fn join(mut self) -> Written {
        for writer in self.writers.drain(..) {
            writer.join().expect("a writer of the load failed");
        }
        self.written()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop();
        for writer in self.writers.drain(..) {
            let _ = writer.join();
        }
    }
}
