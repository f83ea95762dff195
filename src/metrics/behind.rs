//! How far replication is behind the server: the end of its WAL, what is not durable yet, and since
//! when.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::overview::RetainedWal;
use crate::wal::{Lsn, PgTime};

/// Looks at the server that replication has not caught up with; more than this many lose every
/// second one, and with it some precision of how the lag shrinks.
const PENDING_MAX: usize = 256;
/// No commit is waiting.
const NONE: i64 = i64::MIN;

/// A reading of the server's WAL.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ServerWal {
    /// How far its WAL is on its disk.
    pub lsn: Lsn,
    pub retained: RetainedWal,
}

#[derive(Debug)]
pub struct Behind {
    /// Commit time of the oldest transaction whose rows are read and not durable.
    oldest_unflushed: AtomicI64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    last: Option<(ServerWal, SystemTime)>,
    /// Positions that the server had then and that are not durable yet, oldest first.
    pending: VecDeque<(Instant, Lsn)>,
}

impl Default for Behind {
    fn default() -> Behind {
        Behind { oldest_unflushed: AtomicI64::new(NONE), seen: Mutex::default() }
    }
}

impl Behind {
    pub fn set_oldest_unflushed(&self, committed_at: Option<PgTime>) {
        self.oldest_unflushed.store(committed_at.map_or(NONE, |at| at.0), Relaxed);
    }

    pub fn on_server(&self, now: Instant, at: SystemTime, wal: ServerWal) {
        self.seen.lock().on_server(now, at, wal);
    }

    /// The server's WAL when last read, and when that was.
    pub fn server(&self) -> Option<(ServerWal, SystemTime)> {
        self.seen.lock().last
    }

    /// The longest time that changes in Postgres may have been waiting to be durable. Between two
    /// readings of the server it covers only received changes.
    pub fn lag(&self, now: Instant, time: SystemTime, flushed: Lsn) -> Duration {
        let by_look = self.seen.lock().lag(now, flushed);
        let by_commit = match self.oldest_unflushed.load(Relaxed) {
            NONE => Duration::ZERO,
            micros => PgTime(micros).age(PgTime::of(time)),
        };
        by_look.max(by_commit)
    }
}

impl Seen {
    fn on_server(&mut self, now: Instant, at: SystemTime, wal: ServerWal) {
        self.last = Some((wal, at));
        // A server that went back in time, as after a failover, has no more to wait for.
        self.pending.retain(|(_, lsn)| *lsn <= wal.lsn);
        if PENDING_MAX <= self.pending.len() {
            let mut nth = 0;
            self.pending.retain(|_| {
                nth += 1;
                nth % 2 == 1
            });
        }
        self.pending.push_back((now, wal.lsn));
    }

    fn lag(&mut self, now: Instant, flushed: Lsn) -> Duration {
        while self.pending.front().is_some_and(|(_, lsn)| *lsn <= flushed) {
            self.pending.pop_front();
        }
        self.pending.front().map_or(Duration::ZERO, |(at, _)| now.saturating_duration_since(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wal(lsn: u64) -> ServerWal {
        ServerWal { lsn: Lsn(lsn), ..ServerWal::default() }
    }

    #[test]
    fn lag_counts_from_the_first_look_that_is_not_durable() {
        let (start, time) = (Instant::now(), SystemTime::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let behind = Behind::default();
        assert_eq!(behind.lag(start, time, Lsn(0)), Duration::ZERO);
        behind.on_server(at(0), time, wal(10));
        behind.on_server(at(15), time, wal(20));
        assert_eq!(behind.lag(at(20), time, Lsn(5)), Duration::from_secs(20));
        assert_eq!(behind.lag(at(20), time, Lsn(10)), Duration::from_secs(5));
        assert_eq!(behind.lag(at(20), time, Lsn(20)), Duration::ZERO);
        assert_eq!(behind.server(), Some((wal(20), time)));
    }

    #[test]
    fn a_commit_that_waits_counts_by_its_own_time() {
        let (start, time) = (Instant::now(), SystemTime::now());
        let behind = Behind::default();
        behind.set_oldest_unflushed(Some(PgTime::of(time)));
        let later = time + Duration::from_secs(7);
        assert_eq!(behind.lag(start, later, Lsn(0)).as_secs(), 7);
        behind.set_oldest_unflushed(None);
        assert_eq!(behind.lag(start, later, Lsn(0)), Duration::ZERO);
    }

    #[test]
    fn a_server_that_went_back_is_not_waited_for() {
        let (start, time) = (Instant::now(), SystemTime::now());
        let behind = Behind::default();
        behind.on_server(start, time, wal(100));
        let later = start + Duration::from_secs(1);
        behind.on_server(later, time, wal(50));
        assert_eq!(behind.lag(later, time, Lsn(50)), Duration::ZERO);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_keeps_its_beginning() {
        let (start, time) = (Instant::now(), SystemTime::now());
        let behind = Behind::default();
        for n in 0..100_000 {
            behind.on_server(start + Duration::from_secs(n), time, wal(n + 1));
        }
        assert!(behind.seen.lock().pending.len() <= PENDING_MAX);
        let now = start + Duration::from_secs(100_000);
        assert_eq!(behind.lag(now, time, Lsn(0)).as_secs(), 100_000);
    }
}
