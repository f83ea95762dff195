//! The progress of the session: written by the batcher and the reader, read by the confirmer, and
//! the other way for what is confirmed. Single numbers that only grow, so no lock is needed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::wal::Lsn;

#[derive(Debug)]
pub struct StreamMarks {
    received: AtomicU64,
    flushed: AtomicU64,
    /// No commit above this can have a row in ClickHouse.
    upper_lsn: AtomicU64,
    /// Rows became durable since the confirmer last looked.
    rows_flushed: AtomicBool,
    /// Postgres asked for a reply since the confirmer last looked.
    asked: AtomicBool,
    confirmed: AtomicU64,
    /// No transaction that is still to come has written anything below this.
    restart_lsn: AtomicU64,
    /// Wakes the confirmer. One place is enough: a second wake says nothing new.
    wake: Sender<()>,
    wakes: Receiver<()>,
}

impl Default for StreamMarks {
    fn default() -> StreamMarks {
        let (wake, wakes) = bounded(1);
        StreamMarks {
            received: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            upper_lsn: AtomicU64::new(0),
            rows_flushed: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            confirmed: AtomicU64::new(0),
            restart_lsn: AtomicU64::new(0),
            wake,
            wakes,
        }
    }
}

impl StreamMarks {
    /// The stream begins where everything is durable.
    pub(super) fn begin(&self, resume: Lsn) {
        for mark in [&self.received, &self.flushed, &self.confirmed] {
            mark.store(resume.0, Ordering::Release);
        }
    }

    pub fn received(&self) -> Lsn {
        Lsn(self.received.load(Ordering::Acquire))
    }

    pub fn flushed(&self) -> Lsn {
        Lsn(self.flushed.load(Ordering::Acquire))
    }

    pub fn confirmed(&self) -> Lsn {
        Lsn(self.confirmed.load(Ordering::Acquire))
    }

    /// `None` until a batch was cut.
    pub fn upper(&self) -> Option<Lsn> {
        Some(Lsn(self.upper_lsn.load(Ordering::Acquire))).filter(|upper| Lsn(0) < *upper)
    }

    pub fn set_progress(&self, received: Lsn, flushed: Lsn) {
        self.received.store(received.0, Ordering::Release);
        if self.flushed.swap(flushed.0, Ordering::AcqRel) != flushed.0 {
            self.wake();
        }
    }

    pub fn set_upper(&self, upper: Lsn) {
        if self.upper_lsn.fetch_max(upper.0, Ordering::AcqRel) < upper.0 {
            self.wake();
        }
    }

    pub fn set_rows_flushed(&self) {
        self.rows_flushed.store(true, Ordering::Release);
    }

    pub fn take_rows_flushed(&self) -> bool {
        self.rows_flushed.swap(false, Ordering::AcqRel)
    }

    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        self.wake();
    }

    pub fn take_asked(&self) -> bool {
        self.asked.swap(false, Ordering::AcqRel)
    }

    pub fn set_confirmed(&self, confirmed: Lsn) {
        self.confirmed.fetch_max(confirmed.0, Ordering::AcqRel);
    }

    pub fn restart_lsn(&self) -> Lsn {
        Lsn(self.restart_lsn.load(Ordering::Acquire))
    }

    /// As the server shows it of our slot while we stream from it.
    pub fn set_restart_lsn(&self, restart_lsn: Lsn) {
        self.restart_lsn.fetch_max(restart_lsn.0, Ordering::AcqRel);
    }

    pub fn wake(&self) {
        // Full: it is already going to wake.
        let _ = self.wake.try_send(());
    }

    pub fn wakes(&self) -> &Receiver<()> {
        &self.wakes
    }
}
