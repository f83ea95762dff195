//! How far replication has come, and how much of that may be reported to Postgres.
//!
//! It knows nothing of rows but that there are some, and it confirms nothing itself:
//! [`super::confirm`] decides when.

use std::collections::VecDeque;
use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::wal::Lsn;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A batch as it was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub id: BatchId,
    pub rows: u64,
    /// A fork of the timeline at or above this leaves every commit of the batch in place. It may
    /// reach ClickHouse only after a state row with this `upper` did.
    pub upper_lsn: Lsn,
}

/// Follows transactions from the wire to ClickHouse. One for each session.
///
/// Its owner reports everything in the order of the wire; only flushes may end in any order, and a
/// batch may be cut anywhere, inside of a transaction too. A commit is *durable* once its end was
/// seen and every batch up to the one that holds its last row is; only an unbroken run of durable
/// commits moves `flushed`.
///
/// Each batch remembers only the last commit that waits for it, so memory is bounded by the
/// batches in flight, however many transactions those hold.
#[derive(Debug)]
pub struct Progress {
    /// The end of the last WAL heard of, by commit or by keepalive.
    received: Lsn,
    flushed: Lsn,
    last_commit: Option<Lsn>,
    /// The commit record's LSN of the open transaction.
    open_commit: Option<Lsn>,
    /// The contents of the batch that is being gathered.
    gathering: Gathered,
    /// Batches that were cut and are not part of the durable run yet, oldest first, ids adjacent.
    in_flight: VecDeque<InFlight>,
    next_batch: u64,
    unflushed_rows: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Gathered {
    rows: u64,
    /// The end of the last commit that waits for this batch.
    end_lsn: Option<Lsn>,
    upper: Lsn,
}

#[derive(Debug)]
struct InFlight {
    gathered: Gathered,
    durable: bool,
}

impl Progress {
    /// A session begins; everything up to `confirmed` is durable. What Postgres streams again from
    /// below it (its own memory of the slot is written lazily) is welcome.
    pub fn resume(confirmed: Lsn) -> Progress {
        Progress {
            received: confirmed,
            flushed: confirmed,
            last_commit: None,
            open_commit: None,
            gathering: Gathered::default(),
            in_flight: VecDeque::new(),
            next_batch: 0,
            unflushed_rows: 0,
        }
    }

    /// A transaction begins whose commit record starts at `commit_lsn`: `Begin` says so, because a
    /// transaction is streamed when it has committed.
    pub fn on_begin(&mut self, commit_lsn: Lsn) -> Result<(), Disorder> {
        if self.open_commit.is_some() {
            return Err(Disorder::BeginInside { commit_lsn });
        }
        self.open_commit = Some(commit_lsn);
        Ok(())
    }

    /// A row of the open transaction was added to the batch that is being gathered.
    #[inline]
    pub fn on_row(&mut self) -> Result<(), Disorder> {
        let commit_lsn = self.open_commit.ok_or(Disorder::RowOutside)?;
        self.gathering.rows += 1;
        self.unflushed_rows += 1;
        // A fork cannot lie inside of a record, so one above its first byte spares the commit.
        let above = Lsn(commit_lsn.0.saturating_add(1));
        self.gathering.upper = self.gathering.upper.max(above);
        Ok(())
    }

    pub fn on_commit(&mut self, end_lsn: Lsn) -> Result<(), Disorder> {
        let commit_lsn = self.open_commit.ok_or(Disorder::CommitOutside { end_lsn })?;
        if end_lsn <= commit_lsn {
            return Err(Disorder::CommitTooShort { commit_lsn, end_lsn });
        }
        if let Some(before) = self.last_commit
            && end_lsn <= before
        {
            return Err(Disorder::CommitBackwards { before, end_lsn });
        }
        self.open_commit = None;
        self.last_commit = Some(end_lsn);
        self.received = self.received.max(end_lsn);
        if 0 < self.gathering.rows {
            self.gathering.end_lsn = Some(end_lsn);
            self.gathering.upper = self.gathering.upper.max(end_lsn);
        } else if let Some(newest) = self.in_flight.back_mut() {
            // No row waits to be cut, so the newest batch holds the last row this commit waits for.
            newest.gathered.end_lsn = Some(end_lsn);
        }
        self.settle();
        Ok(())
    }

    /// Postgres has streamed everything up to `wal_end`. At the start of a stream this may lie
    /// below what is confirmed, because decoding begins earlier.
    pub fn on_keepalive(&mut self, wal_end: Lsn) {
        self.received = self.received.max(wal_end);
        self.settle();
    }

    /// The gathered batch leaves for ClickHouse.
    pub fn on_batch_cut(&mut self) -> Cut {
        let gathered = std::mem::take(&mut self.gathering);
        let id = BatchId(self.next_batch);
        self.next_batch += 1;
        self.in_flight.push_back(InFlight { gathered, durable: false });
        Cut { id, rows: gathered.rows, upper_lsn: gathered.upper }
    }

    /// A batch is durable in ClickHouse.
    pub fn on_flushed(&mut self, id: BatchId) -> Result<(), Disorder> {
        let oldest = self.next_batch - self.in_flight.len() as u64;
        let batch =
            id.0.checked_sub(oldest)
                .and_then(|at| usize::try_from(at).ok())
                .and_then(|at| self.in_flight.get_mut(at))
                .filter(|batch| !batch.durable)
                .ok_or(Disorder::NotInFlight { id })?;
        batch.durable = true;
        self.unflushed_rows -= batch.gathered.rows;
        while let Some(batch) = self.in_flight.pop_front_if(|batch| batch.durable) {
            if let Some(end_lsn) = batch.gathered.end_lsn {
                self.flushed = self.flushed.max(end_lsn);
            }
        }
        self.settle();
        Ok(())
    }

    pub fn received(&self) -> Lsn {
        self.received
    }

    /// Every change up to here is durable and may be reported to Postgres. It never moves back.
    ///
    /// A busy stream stops at the last durable commit. An idle one follows the keepalives, so that
    /// a quiet table does not pin WAL and a shutdown of Postgres does not wait for us.
    pub fn flushed(&self) -> Lsn {
        self.flushed
    }

    /// Nothing is un-flushed and no transaction is open.
    pub fn is_idle(&self) -> bool {
        self.open_commit.is_none() && self.gathering.rows == 0 && self.in_flight.is_empty()
    }

    /// Rows that were received and are not durable, whether cut or not.
    pub fn unflushed_rows(&self) -> u64 {
        self.unflushed_rows
    }

    fn settle(&mut self) {
        if self.is_idle() {
            self.flushed = self.flushed.max(self.received);
        }
    }
}

/// The input is impossible on a stream in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disorder {
    BeginInside { commit_lsn: Lsn },
    RowOutside,
    CommitOutside { end_lsn: Lsn },
    CommitTooShort { commit_lsn: Lsn, end_lsn: Lsn },
    CommitBackwards { before: Lsn, end_lsn: Lsn },
    NotInFlight { id: BatchId },
}

impl std::error::Error for Disorder {}

impl fmt::Display for Disorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disorder::BeginInside { commit_lsn } => {
                write!(f, "transaction {commit_lsn} begins inside of another")
            }
            Disorder::RowOutside => f.write_str("row outside of a transaction"),
            Disorder::CommitOutside { end_lsn } => {
                write!(f, "commit that ends at {end_lsn} without a begin")
            }
            Disorder::CommitTooShort { commit_lsn, end_lsn } => {
                write!(f, "commit that begins at {commit_lsn} ends at {end_lsn}")
            }
            Disorder::CommitBackwards { before, end_lsn } => {
                write!(f, "commit that ends at {end_lsn} comes after one that ends at {before}")
            }
            Disorder::NotInFlight { id } => write!(f, "batch {id} is flushed but not in flight"),
        }
    }
}

impl From<Disorder> for Error {
    fn from(disorder: Disorder) -> Error {
        let kind = match disorder {
            Disorder::NotInFlight { .. } => ErrorKind::Bug,
            Disorder::BeginInside { .. }
            | Disorder::RowOutside
            | Disorder::CommitOutside { .. }
            | Disorder::CommitTooShort { .. }
            | Disorder::CommitBackwards { .. } => ErrorKind::Protocol,
        };
        Error::new(kind, "follow the order of the stream").because(disorder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::prng::Prng;

    /// A transaction whose commit record is one byte long.
    fn transaction(progress: &mut Progress, rows: usize, end_lsn: u64) {
        progress.on_begin(Lsn(end_lsn - 1)).unwrap();
        for _ in 0..rows {
            progress.on_row().unwrap();
        }
        progress.on_commit(Lsn(end_lsn)).unwrap();
    }

    #[test]
    fn keepalive_is_confirmed_only_while_idle() {
        let mut progress = Progress::resume(Lsn(10));
        progress.on_keepalive(Lsn(20));
        assert_eq!(progress.flushed(), Lsn(20), "exactly, never one more");
        transaction(&mut progress, 1, 30);
        progress.on_keepalive(Lsn(40));
        assert_eq!(progress.flushed(), Lsn(20), "a row waits to be cut");
        let cut = progress.on_batch_cut();
        assert_eq!(progress.flushed(), Lsn(20), "a batch is in flight");
        progress.on_flushed(cut.id).unwrap();
        assert_eq!(progress.flushed(), Lsn(40), "idle again");
    }

    #[test]
    fn an_open_transaction_holds_the_keepalive_back() {
        let mut progress = Progress::resume(Lsn(10));
        progress.on_begin(Lsn(50)).unwrap();
        progress.on_keepalive(Lsn(50));
        assert_eq!(progress.flushed(), Lsn(10));
        progress.on_row().unwrap();
        let cut = progress.on_batch_cut();
        progress.on_flushed(cut.id).unwrap();
        progress.on_keepalive(Lsn(50));
        assert_eq!(progress.flushed(), Lsn(10), "durable rows of a commit that was not seen");
        progress.on_commit(Lsn(60)).unwrap();
        assert_eq!(progress.flushed(), Lsn(60), "no row is left to wait for");
    }

    #[test]
    fn a_commit_waits_for_every_batch_of_its_transaction() {
        let mut progress = Progress::resume(Lsn(0));
        progress.on_begin(Lsn(20)).unwrap();
        progress.on_row().unwrap();
        let first = progress.on_batch_cut();
        progress.on_row().unwrap();
        let second = progress.on_batch_cut();
        progress.on_commit(Lsn(30)).unwrap();
        progress.on_flushed(second.id).unwrap();
        assert_eq!(progress.flushed(), Lsn(0));
        progress.on_flushed(first.id).unwrap();
        assert_eq!(progress.flushed(), Lsn(30));
    }

    #[test]
    fn a_commit_does_not_wait_for_the_next_transaction_in_its_batch() {
        let mut progress = Progress::resume(Lsn(0));
        transaction(&mut progress, 1, 10);
        progress.on_begin(Lsn(19)).unwrap();
        progress.on_row().unwrap();
        let cut = progress.on_batch_cut();
        progress.on_row().unwrap();
        progress.on_flushed(cut.id).unwrap();
        assert_eq!(progress.flushed(), Lsn(10));
    }

    #[test]
    fn flushes_out_of_order_wait_for_the_oldest() {
        let mut progress = Progress::resume(Lsn(0));
        transaction(&mut progress, 1, 10);
        let first = progress.on_batch_cut();
        transaction(&mut progress, 1, 20);
        let second = progress.on_batch_cut();
        progress.on_flushed(second.id).unwrap();
        assert_eq!((progress.flushed(), progress.unflushed_rows()), (Lsn(0), 1));
        progress.on_flushed(first.id).unwrap();
        assert_eq!((progress.flushed(), progress.unflushed_rows()), (Lsn(20), 0));
    }

    #[test]
    fn a_commit_without_rows_moves_at_once_or_behind_the_batches_before_it() {
        let mut progress = Progress::resume(Lsn(0));
        transaction(&mut progress, 0, 10);
        assert_eq!(progress.flushed(), Lsn(10));
        transaction(&mut progress, 1, 20);
        let cut = progress.on_batch_cut();
        transaction(&mut progress, 0, 30);
        assert_eq!(progress.flushed(), Lsn(10));
        progress.on_begin(Lsn(39)).unwrap();
        progress.on_flushed(cut.id).unwrap();
        assert_eq!(progress.flushed(), Lsn(30));
    }

    #[test]
    fn what_is_streamed_again_moves_nothing_back() {
        let mut progress = Progress::resume(Lsn(100));
        progress.on_keepalive(Lsn(40));
        transaction(&mut progress, 1, 50);
        let cut = progress.on_batch_cut();
        progress.on_flushed(cut.id).unwrap();
        assert_eq!((progress.received(), progress.flushed()), (Lsn(100), Lsn(100)));
        transaction(&mut progress, 1, 60);
        let cut = progress.on_batch_cut();
        progress.on_begin(Lsn(69)).unwrap();
        progress.on_flushed(cut.id).unwrap();
        assert_eq!(progress.flushed(), Lsn(100), "nor while busy");
    }

    #[test]
    fn a_cut_knows_the_fork_that_its_commits_survive() {
        let mut progress = Progress::resume(Lsn(0));
        transaction(&mut progress, 1, 10);
        assert_eq!(progress.on_batch_cut().upper_lsn, Lsn(10));
        transaction(&mut progress, 1, 20);
        progress.on_begin(Lsn(25)).unwrap();
        progress.on_row().unwrap();
        assert_eq!(
            progress.on_batch_cut().upper_lsn,
            Lsn(26),
            "the open one's record begins at 25"
        );
        progress.on_row().unwrap();
        progress.on_commit(Lsn(40)).unwrap();
        transaction(&mut progress, 0, 50);
        let cut = progress.on_batch_cut();
        assert_eq!((cut.upper_lsn, cut.rows), (Lsn(50), 1));
    }

    #[test]
    fn a_broken_order_is_an_error_and_changes_nothing() {
        let mut progress = Progress::resume(Lsn(0));
        assert_eq!(progress.on_row(), Err(Disorder::RowOutside));
        let end_lsn = Lsn(9);
        assert_eq!(progress.on_commit(end_lsn), Err(Disorder::CommitOutside { end_lsn }));
        let id = BatchId(0);
        assert_eq!(progress.on_flushed(id), Err(Disorder::NotInFlight { id }));
        transaction(&mut progress, 1, 20);
        progress.on_begin(Lsn(20)).unwrap();
        let commit_lsn = Lsn(20);
        assert_eq!(progress.on_begin(Lsn(1)), Err(Disorder::BeginInside { commit_lsn: Lsn(1) }));
        let too_short = Disorder::CommitTooShort { commit_lsn, end_lsn: Lsn(20) };
        assert_eq!(progress.on_commit(Lsn(20)), Err(too_short));
        let newer = progress.on_batch_cut().id;
        progress.on_flushed(newer).unwrap();
        assert_eq!(progress.on_flushed(newer), Err(Disorder::NotInFlight { id: newer }));
        assert_eq!(progress.flushed(), Lsn(20));
        assert!(!progress.is_idle());

        let mut progress = Progress::resume(Lsn(0));
        transaction(&mut progress, 0, 20);
        progress.on_begin(Lsn(10)).unwrap();
        let backwards = Disorder::CommitBackwards { before: Lsn(20), end_lsn: Lsn(20) };
        assert_eq!(progress.on_commit(Lsn(20)), Err(backwards));
    }

    #[test]
    fn a_broken_order_reads_as_one_line() {
        let disorder = Disorder::CommitBackwards { before: Lsn(32), end_lsn: Lsn(16) };
        let error = Error::from(disorder);
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert_eq!(
            error.to_string(),
            "follow the order of the stream: commit that ends at 0/10 comes after one that ends \
             at 0/20"
        );
        assert_eq!(Error::from(Disorder::NotInFlight { id: BatchId(1) }).kind(), ErrorKind::Bug);
    }

    /// The truth, kept plainly: every row and where it is.
    #[derive(Default)]
    struct Shadow {
        /// For each commit seen: its end, and the rows it needs durable.
        commits: Vec<(u64, usize)>,
        /// For each row, in order of the wire: its batch, and whether it is durable.
        rows: Vec<(Option<BatchId>, bool)>,
    }

    impl Shadow {
        fn durable_run(&self) -> usize {
            self.rows.iter().take_while(|(_, durable)| *durable).count()
        }
    }

    /// Goal: whatever the order, nothing that is not durable is ever covered by `flushed`, it never
    /// moves back, and it is held back by nothing but what is not durable.
    #[test]
    fn covers_no_commit_before_it_is_durable() {
        for seed in 0..500 {
            let mut prng = Prng::from_seed(seed);
            let mut progress = Progress::resume(Lsn(0));
            let mut shadow = Shadow::default();
            let (mut wal_end, mut heard, mut open, mut last) = (0, 0, None, Lsn(0));
            let mut in_flight = Vec::new();
            for _ in 0..300 {
                wal_end += 1 + prng.below(5);
                match prng.below(8) {
                    0 | 1 => match open.take() {
                        None => {
                            progress.on_begin(Lsn(wal_end)).unwrap();
                            open = Some(wal_end);
                        }
                        Some(_) => {
                            progress.on_commit(Lsn(wal_end)).unwrap();
                            shadow.commits.push((wal_end, shadow.rows.len()));
                            heard = wal_end;
                        }
                    },
                    2 | 3 if open.is_some() => {
                        progress.on_row().unwrap();
                        shadow.rows.push((None, false));
                    }
                    // Postgres counts an open transaction as streamed up to its commit record.
                    4 => {
                        let at = open.unwrap_or(wal_end);
                        progress.on_keepalive(Lsn(at));
                        heard = heard.max(at);
                    }
                    5 => {
                        let id = progress.on_batch_cut().id;
                        shadow.rows.iter_mut().for_each(|row| row.0 = row.0.or(Some(id)));
                        in_flight.push(id);
                    }
                    _ if in_flight.is_empty() => (),
                    _ => {
                        let at = prng.below(in_flight.len() as u64) as usize;
                        let id = in_flight.remove(at);
                        progress.on_flushed(id).unwrap();
                        for row in shadow.rows.iter_mut().filter(|row| row.0 == Some(id)) {
                            row.1 = true;
                        }
                    }
                }
                let flushed = progress.flushed();
                assert!(last <= flushed, "seed {seed}: moved back");
                last = flushed;
                let run = shadow.durable_run();
                for &(end_lsn, needs) in &shadow.commits {
                    let covered = end_lsn <= flushed.0;
                    assert!(!covered || needs <= run, "seed {seed}: {flushed} covers {end_lsn}");
                }
                assert!(open.is_none_or(|commit_lsn| flushed.0 <= commit_lsn), "seed {seed}");
                // Nothing but an older batch in flight may hold a commit back; an empty one counts.
                if in_flight.is_empty() {
                    let durable = shadow.commits.iter().filter(|(_, needs)| *needs <= run);
                    let newest = durable.map(|&(end_lsn, _)| end_lsn).max().unwrap_or(0);
                    assert!(newest <= flushed.0, "seed {seed}: {newest} held back at {flushed}");
                }
                let idle = open.is_none() && in_flight.is_empty() && run == shadow.rows.len();
                assert_eq!(progress.is_idle(), idle, "seed {seed}");
                assert!(!idle || flushed == Lsn(heard), "seed {seed}: idle, yet not at {heard}");
                let waiting = shadow.rows.iter().filter(|(_, durable)| !durable).count();
                assert_eq!(progress.unflushed_rows(), waiting as u64, "seed {seed}");
            }
        }
    }
}
