//! Runs the pieces of a pass on several workers: each takes the next piece, until all are done, one
//! fails, or the session ends.

use std::time::Instant;

use parking_lot::Mutex;

use super::recorder::Recorder;
use super::{RepairCursor, Repairer};
use crate::delivery::alongside::stopped;
use crate::delivery::session_state::PanicGuard;
use crate::error::{Error, ErrorKind, Result};
use crate::machines::repair::Pieces;
use crate::mending::worker::Worker;

/// One of the two passes.
pub trait Pass: Sync {
    /// The weight of each piece.
    fn weights(&self) -> Vec<u64>;

    fn do_piece(
        &self,
        worker: &mut Worker<'_>,
        recorder: &Recorder<'_>,
        piece: usize,
    ) -> Result<()>;

    /// The work before these pieces, and the work after them, if they are not all.
    fn others(&self) -> (u64, u64) {
        (0, 0)
    }

    /// Where the repair is once so many pieces from the first are done.
    fn position(&self, done: usize) -> RepairCursor;
}

/// Shared by the workers of a pass.
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
            let name = format!("repairer-{n}/{}", with.context.delivery.service);
            let spawned = std::thread::Builder::new().name(name).spawn_scoped(scope, move || {
                let _guard = PanicGuard(with.shared);
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
    let mut worker = Worker::new(&with.context)?;
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
