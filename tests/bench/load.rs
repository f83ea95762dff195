//! Rows at a fixed rate, each with the time of its commit in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::rows::{self, Variant};
use crate::service::Service;
use crate::support::database::{Database, detail};

/// Each on a connection of its own: one alone does not reach the higher rates.
const WRITERS: u64 = 2;
/// Transactions per second, up to which each row is one.
const TRANSACTIONS_MAX: u64 = 2000;

/// A load that is running. Rows are numbered from 1 on.
pub struct Load {
    writers: Vec<JoinHandle<Result<(), String>>>,
    stop: Sender<()>,
    written: Arc<AtomicU64>,
}

#[derive(Clone)]
struct Writer {
    service: Service,
    /// Of a transaction.
    rows: u64,
    every: Duration,
    transactions: u64,
    started_at: Instant,
    written: Arc<AtomicU64>,
    stopped: Receiver<()>,
}

impl Load {
    /// Ends by itself after `rows`.
    pub fn start(
        postgres: &Database,
        service: Service,
        rate: u32,
        rows: u64,
    ) -> Result<Load, String> {
        let rate = u64::from(rate);
        let per_transaction = rate.div_ceil(TRANSACTIONS_MAX);
        let (stop, stopped) = bounded(0);
        let written = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            service,
            rows: per_transaction,
            every: Duration::from_secs(1) / (rate / per_transaction) as u32,
            transactions: rows / per_transaction,
            started_at: Instant::now(),
            written: Arc::clone(&written),
            stopped,
        };
        let mut writers = Vec::new();
        for number in 0..WRITERS {
            let (client, writer) = (postgres.try_client(), writer.clone());
            let mut client = client.ok_or("connect to Postgres")?;
            writers.push(thread::spawn(move || {
                let written = writer.write(&mut client, number);
                written.map_err(|error| format!("write rows: {}", detail(&error)))
            }));
        }
        Ok(Load { writers, stop, written })
    }

    /// Committed rows, as a number; a writer may be a little ahead of another.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub fn is_over(&self) -> bool {
        self.writers.iter().all(JoinHandle::is_finished)
    }

    /// Ends the transactions at hand, and returns how many rows there are. Their numbers have no gap
    /// only if it had ended by itself.
    pub fn stop(self) -> Result<u64, String> {
        drop(self.stop);
        for writer in self.writers {
            writer.join().map_err(|_| "a writer panicked")??;
        }
        Ok(self.written.load(Ordering::Relaxed))
    }
}

impl Writer {
    /// Every so manieth transaction is this writer's. One that is late is not waited for, and the
    /// next ones make up for it.
    fn write(&self, client: &mut postgres::Client, number: u64) -> Result<(), postgres::Error> {
        let numbers = "generate_series($1::bigint, $2::bigint) g";
        let insert = client.prepare(&rows::insert(self.service, numbers, Variant::Stamped))?;
        for transaction in (number..self.transactions).step_by(WRITERS as usize) {
            let due_at = self.started_at + self.every * transaction as u32;
            if self.stopped.recv_deadline(due_at) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            let first = (transaction * self.rows) as i64 + 1;
            client.execute(&insert, &[&first, &(first + self.rows as i64 - 1)])?;
            self.written.fetch_add(self.rows, Ordering::Relaxed);
        }
        Ok(())
    }
}
