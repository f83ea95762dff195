//! Runs the pieces of a pass on several workers: each takes the next piece, until all are done, one
//! fails, or the session ends.

use std::time::Instant;

use parking_lot::Mutex;

use super::recorder::Recorder;
use super::{RepairCursor, Repairer, SQL_TIMEOUT};
use crate::clickhouse::Client;
use crate::delivery::as_of::wait_until_flushed;
use crate::delivery::landing::Landing;
use crate::delivery::session_state::{PanicGuard, stopped};
use crate::error::{Error, ErrorKind, Result};
use crate::machines::repair::Pieces;
use crate::postgres::sql::Sql;
use crate::postgres::table_reader::AsOf;

/// One of the two passes.
pub trait Pass: Sync {
    /// What each piece weighs.
    fn weights(&self) -> Vec<u64>;

    fn do_piece(
        &self,
        worker: &mut Worker<'_>,
        recorder: &Recorder<'_>,
        piece: usize,
    ) -> Result<()>;

    /// What was done before these pieces, and what comes after them, where they are not all.
    fn others(&self) -> (u64, u64) {
        (0, 0)
    }

    /// Where the repair is once so many pieces from the first are done.
    fn position(&self, done: usize) -> RepairCursor;
}

/// What a worker has of its own.
pub struct Worker<'a> {
    pub with: &'a Repairer<'a>,
    pub sql: Sql,
    pub client: Client,
    /// By target table.
    pub landings: Vec<Landing>,
}

impl<'a> Worker<'a> {
    pub fn new(with: &'a Repairer<'a>) -> Result<Worker<'a>> {
        let delivery = with.delivery;
        Ok(Worker {
            with,
            sql: connect(with)?,
            client: Client::connect(delivery.clickhouse)?,
            landings: delivery.landings(with.mapping.targets()),
        })
    }

    /// Asks ClickHouse, again and again while it is away.
    pub fn ask<T>(
        &mut self,
        question: impl Fn(&mut Client, &dyn Fn() -> Instant) -> Result<T>,
    ) -> Result<T> {
        let (delivery, client) = (self.with.delivery, &mut self.client);
        let deadline = || Instant::now() + delivery.clickhouse.request_timeout;
        let hopeless = |error: &Error| error.kind() != ErrorKind::Unreachable;
        delivery.retry(|| question(client, &deadline), hopeless)
    }

    /// To be done before anything is written of what was read, and before it counts as done: see
    /// [`crate::delivery::as_of`]. A fork below is then noticed, and the repair begun anew.
    pub fn cover(&mut self, as_of: AsOf) -> Result<()> {
        let delivery = self.with.delivery;
        wait_until_flushed(&mut self.sql, delivery.shared, as_of, sql_deadline())?;
        (self.with.admit)(as_of.insert_lsn)
    }

    /// To be asked before every page.
    pub fn go_on(&self) -> Result<()> {
        self.with.delivery.shared.go_on()
    }
}

pub fn connect(with: &Repairer<'_>) -> Result<Sql> {
    with.primary.sql(with.application_name, sql_deadline())
}

pub fn sql_deadline() -> Instant {
    Instant::now() + SQL_TIMEOUT
}

/// What the workers of a pass share.
struct Bench<'a> {
    pieces: Mutex<Pieces>,
    failure: Mutex<Option<Error>>,
    recorder: &'a Recorder<'a>,
}

pub fn work(with: &Repairer<'_>, recorder: &Recorder<'_>, pass: &dyn Pass) -> Result<()> {
    let weights = pass.weights();
    let count = weights.len();
    let (before, later) = pass.others();
    let bench = Bench {
        pieces: Mutex::new(Pieces::new(Instant::now(), weights, 0).among(before, later)),
        failure: Mutex::new(None),
        recorder,
    };
    recorder.show(&bench.pieces.lock());
    std::thread::scope(|scope| {
        for n in 0..with.workers.min(count) {
            let bench = &bench;
            let name = format!("repairer-{n}/{}", with.delivery.service);
            let spawned = std::thread::Builder::new().name(name).spawn_scoped(scope, move || {
                let _guard = PanicGuard(with.delivery.shared);
                if let Err(error) = run_worker(with, bench, pass) {
                    bench.failure.lock().get_or_insert(error);
                }
            });
            if let Err(error) = spawned {
                bench.failure.lock().get_or_insert_with(|| {
                    Error::new(ErrorKind::Unreachable, "start a thread of the repair")
                        .because(error)
                });
            }
        }
    });
    let Bench { pieces, failure, .. } = bench;
    match failure.into_inner() {
        Some(error) => Err(error),
        None if pieces.into_inner().is_done() => Ok(()),
        None => Err(stopped()),
    }
}

fn run_worker(with: &Repairer<'_>, bench: &Bench<'_>, pass: &dyn Pass) -> Result<()> {
    let mut worker = Worker::new(with)?;
    loop {
        if bench.failure.lock().is_some() {
            return Ok(());
        }
        let Some(piece) = bench.pieces.lock().take() else { return Ok(()) };
        worker.go_on()?;
        pass.do_piece(&mut worker, bench.recorder, piece)?;
        let mut pieces = bench.pieces.lock();
        let grew = pieces.on_done(piece);
        bench.recorder.show(&pieces);
        if grew {
            // Under the lock: of two records the one that is further must be the later one.
            bench.recorder.advance(pass.position(pieces.done()))?;
        }
    }
}
