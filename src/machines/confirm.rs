//! The pace of confirmations: when the state row is written, and what may be reported to Postgres
//! after it.
//!
//! Driven by the confirmer thread, which writes the row; [`super::status`] decides when to send a
//! status update to the walsender. Nothing here knows whether the row should be written at all:
//! [`super::lineage`] decided that before the session began.
//!
//! ```text
//!   flushed moved ---+                      (durable)
//!   reply requested -+-> next_write ----> on_written ----> Publish: confirmed -> wal_reader
//!   batch cut -------+    one at a time                             upper     -> flushers
//!   end -------------+
//! ```
//!
//! The row keeps two promises. `confirmed` is reported to Postgres only after a row that holds it
//! is durable, so the slot is never ahead of the state unless somebody else moved it. And a batch
//! may go to ClickHouse only after a row with its `upper` is durable, so after a fork we know what
//! ClickHouse may hold. `upper` is therefore reserved ahead, and made exact at the end.

use std::time::{Duration, Instant};

use super::after;
use crate::wal::Lsn;

#[derive(Debug, Clone, Copy)]
pub struct ConfirmParams {
    /// A confirmation moves this often while nobody asks for more.
    pub every: Duration,
    /// The pause after a write of the row that did not succeed.
    pub retry_every: Duration,
    /// How much WAL `upper` is reserved ahead, so that no flush waits for a write of its own.
    pub ahead_bytes: u64,
}

/// A requested reply causes a row at most this often: a server that asks with every transaction
/// must not make ClickHouse merge a part for each. A shutdown waits this long once.
const ASKED_EVERY: Duration = Duration::from_millis(100);

/// WAL that comes faster than one reservation per `every` doubles it, up to this many times.
const AHEAD_FACTOR_MAX: u64 = 16;

/// The two marks as the state row has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedMarks {
    pub confirmed: Lsn,
    pub upper_lsn: Lsn,
}

/// Up to where a durable row admits to what may be in ClickHouse: the gate that every flush passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved(pub Lsn);

#[derive(Debug)]
pub struct Confirm {
    params: ConfirmParams,
    /// Durable in the state table, and so published.
    recorded: RecordedMarks,
    writing: Option<Writing>,
    flushed: Lsn,
    /// The highest `upper` of any batch so far; `None` until this session has cut one.
    highest: Option<Lsn>,
    /// `upper` as the session found it: the lowest value it may return to, if no batch was cut.
    found_upper: Lsn,
    ahead_bytes: u64,
    reserved_at: Option<Instant>,
    moved_at: Option<Instant>,
    retry_at: Option<Instant>,
    asked: bool,
    ending: bool,
}

#[derive(Debug, Clone, Copy)]
struct Writing {
    row: RecordedMarks,
    asked: bool,
}

impl Reserved {
    /// Whether a batch with this `upper` may go to ClickHouse.
    pub fn covers(self, upper: Lsn) -> bool {
        upper <= self.0
    }
}

impl Confirm {
    /// A session begins with `recorded` durable in the state table.
    pub fn resume(recorded: RecordedMarks, params: ConfirmParams) -> Confirm {
        Confirm {
            params,
            recorded,
            writing: None,
            flushed: recorded.confirmed,
            highest: None,
            found_upper: recorded.upper_lsn,
            ahead_bytes: params.ahead_bytes,
            reserved_at: None,
            moved_at: None,
            retry_at: None,
            asked: false,
            ending: false,
        }
    }

    /// Everything up to here is durable in ClickHouse and may be confirmed.
    pub fn on_flushed(&mut self, flushed: Lsn) {
        self.flushed = self.flushed.max(flushed);
    }

    /// A batch was cut; its flush may begin once [`Confirm::reserved`] covers it.
    pub fn on_batch(&mut self, upper: Lsn) {
        self.highest = self.highest.max(Some(upper));
    }

    /// Postgres asked for a reply: what is flushed should be confirmed now.
    pub fn on_reply_requested(&mut self) {
        self.asked = true;
    }

    /// The session is over and no flush will begin any more: confirm the rest, make `upper` exact.
    pub fn on_end(&mut self) {
        self.ending = true;
    }

    /// The limit for flushers. The end may lower it: no flush begins after that.
    pub fn reserved(&self) -> Reserved {
        Reserved(self.recorded.upper_lsn)
    }

    /// What is durable in the state table, and so may be reported.
    pub fn recorded(&self) -> RecordedMarks {
        self.recorded
    }

    /// The row to write now. Answer with `on_written` or `on_write_failed`; until then it says
    /// nothing more.
    pub fn next_write(&mut self, now: Instant) -> Option<RecordedMarks> {
        if self.writing.is_some() || self.write_due_at(now)? > now {
            return None;
        }
        if !self.ending && self.is_reservation_low() {
            self.size_reservation(now);
        }
        let row = self.row();
        self.writing = Some(Writing { row, asked: std::mem::take(&mut self.asked) });
        Some(row)
    }

    /// The row is durable: report `confirmed` to Postgres, and let flushers write up to `upper`.
    pub fn on_written(&mut self, now: Instant) -> RecordedMarks {
        if let Some(Writing { row, .. }) = self.writing.take() {
            if self.recorded.confirmed < row.confirmed {
                self.moved_at = Some(now);
            }
            self.recorded = row;
        }
        self.retry_at = None;
        self.recorded
    }

    /// The row may or may not have been written: neither mark has moved for us. That is safe,
    /// because a row that is ahead of what we reported is only cautious.
    pub fn on_write_failed(&mut self, now: Instant) {
        if let Some(Writing { asked, .. }) = self.writing.take() {
            self.asked |= asked;
        }
        self.retry_at = Some(after(now, self.params.retry_every));
    }

    /// When to call `next_write` next. `None` while a write is under way.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.writing.is_some() { None } else { self.write_due_at(now) }
    }

    /// After `on_end`: nothing is left to write.
    pub fn is_settled(&self) -> bool {
        self.ending && self.writing.is_none() && self.row() == self.recorded
    }

    fn write_due_at(&self, now: Instant) -> Option<Instant> {
        let moved = self.recorded.confirmed < self.flushed;
        let at_once = match self.ending {
            true => self.row() != self.recorded,
            false => self.is_reservation_low(),
        };
        let due_at = if at_once {
            now
        } else if moved {
            let pause = if self.asked { ASKED_EVERY } else { self.params.every };
            self.moved_at.map_or(now, |at| after(at, pause.min(self.params.every)))
        } else {
            return None;
        };
        Some(self.retry_at.map_or(due_at, |at| at.max(due_at)))
    }

    /// Less than half of the reserve is left, or a batch is already waiting.
    fn is_reservation_low(&self) -> bool {
        self.highest.is_some_and(|highest| {
            let low = Lsn(highest.0.saturating_add(self.ahead_bytes / 2));
            self.recorded.upper_lsn < low && self.recorded.upper_lsn < self.reservation(highest)
        })
    }

    fn size_reservation(&mut self, now: Instant) {
        let hasty = self
            .reserved_at
            .is_some_and(|at| now.saturating_duration_since(at) < self.params.every);
        self.ahead_bytes = if hasty {
            let most = self.params.ahead_bytes.saturating_mul(AHEAD_FACTOR_MAX);
            self.ahead_bytes.saturating_mul(2).min(most)
        } else {
            self.params.ahead_bytes
        };
        self.reserved_at = Some(now);
    }

    fn reservation(&self, highest: Lsn) -> Lsn {
        Lsn(highest.0.saturating_add(self.ahead_bytes))
    }

    fn row(&self) -> RecordedMarks {
        let upper = match (self.ending, self.highest) {
            // Reservations only grow while a flush could rely on them.
            (false, Some(highest)) => self.recorded.upper_lsn.max(self.reservation(highest)),
            (false, None) => self.recorded.upper_lsn,
            (true, highest) => highest.map_or(self.found_upper, |at| at.max(self.found_upper)),
        };
        RecordedMarks { confirmed: self.flushed, upper_lsn: upper }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn marks(confirmed: u64, upper: u64) -> RecordedMarks {
        RecordedMarks { confirmed: Lsn(confirmed), upper_lsn: Lsn(upper) }
    }

    fn machine(recorded: RecordedMarks) -> Confirm {
        let params = ConfirmParams { every: s(10), retry_every: s(1), ahead_bytes: 16 * MIB };
        Confirm::resume(recorded, params)
    }

    #[test]
    fn a_confirmation_is_published_only_after_its_row_is_durable() {
        let t0 = Instant::now();
        let mut confirm = machine(marks(100, 90));
        assert_eq!(confirm.next_write(t0), None, "nothing moved");
        assert_eq!(confirm.deadline(t0), None);
        confirm.on_flushed(Lsn(200));
        assert_eq!(confirm.next_write(t0), Some(marks(200, 90)), "at once after silence");
        assert_eq!(confirm.recorded(), marks(100, 90));
        confirm.on_flushed(Lsn(300));
        assert_eq!(confirm.next_write(t0), None, "one write at a time");
        assert_eq!(confirm.on_written(t0 + s(1)), marks(200, 90));
    }

    #[test]
    fn confirmations_keep_the_pace_unless_asked() {
        let t0 = Instant::now();
        let mut confirm = machine(marks(0, 0));
        confirm.on_flushed(Lsn(1));
        confirm.next_write(t0);
        confirm.on_written(t0);
        confirm.on_flushed(Lsn(2));
        assert_eq!(confirm.deadline(t0), Some(t0 + s(10)));
        assert_eq!(confirm.next_write(t0 + s(9)), None);
        confirm.on_reply_requested();
        assert_eq!(confirm.deadline(t0), Some(t0 + ASKED_EVERY), "but not for each question");
        assert_eq!(confirm.next_write(t0 + s(1)), Some(marks(2, 0)));
        confirm.on_flushed(Lsn(3));
        confirm.on_written(t0 + s(1));
        assert_eq!(confirm.deadline(t0 + s(1)), Some(t0 + s(11)), "a question is answered once");
    }

    #[test]
    fn a_question_with_nothing_new_writes_nothing() {
        let t0 = Instant::now();
        let mut confirm = machine(marks(5, 5));
        confirm.on_reply_requested();
        assert_eq!((confirm.next_write(t0), confirm.deadline(t0)), (None, None));
        confirm.on_flushed(Lsn(6));
        assert_eq!(confirm.next_write(t0), Some(marks(6, 5)), "as soon as there is");
    }

    #[test]
    fn a_batch_waits_until_its_upper_is_reserved() {
        let t0 = Instant::now();
        let mut confirm = machine(marks(100, 100));
        assert!(!confirm.reserved().covers(Lsn(101)));
        confirm.on_batch(Lsn(101));
        let row = marks(100, 101 + 16 * MIB);
        assert_eq!(confirm.next_write(t0), Some(row));
        assert!(!confirm.reserved().covers(Lsn(101)), "not durable yet");
        assert_eq!(confirm.on_written(t0), row);
        assert!(confirm.reserved().covers(Lsn(101)) && confirm.reserved().covers(row.upper_lsn));
        assert!(!confirm.reserved().covers(Lsn(row.upper_lsn.0 + 1)));
    }

    #[test]
    fn the_reservation_is_renewed_before_it_is_used_up() {
        let t0 = Instant::now();
        let mut confirm = machine(marks(0, 0));
        confirm.on_batch(Lsn(1));
        confirm.next_write(t0);
        confirm.on_written(t0);
        confirm.on_batch(Lsn(8 * MIB));
        assert_eq!(confirm.next_write(t0 + s(60)), None, "half of it is left");
        confirm.on_batch(Lsn(9 * MIB));
        assert!(confirm.reserved().covers(Lsn(9 * MIB)), "no flush waits for it");
        assert_eq!(confirm.next_write(t0 + s(60)), Some(marks(0, 25 * MIB)));
    }

    #[test]
    fn fast_wal_reserves_further_ahead_and_slow_wal_less_again() {
        let t0 = Instant::now();
        let mut confirm = machine(marks(0, 0));
        let mut now = t0;
        let mut ahead = Vec::new();
        for wait in [0, 1, 1, 1, 1, 1, 60] {
            now += s(wait);
            let highest = Lsn(confirm.recorded().upper_lsn.0 + 1);
            confirm.on_batch(highest);
            let row = confirm.next_write(now).unwrap();
            ahead.push((row.upper_lsn.0 - highest.0) / MIB);
            confirm.on_written(now);
        }
        assert_eq!(ahead, [16, 32, 64, 128, 256, 256, 16]);
    }

    #[test]
    fn the_end_confirms_the_rest_and_makes_upper_exact() {
        let t0 = Instant::now();
        let mut confirm = machine(marks(0, 50));
        confirm.on_batch(Lsn(70));
        confirm.next_write(t0);
        confirm.on_written(t0);
        confirm.on_flushed(Lsn(90));
        confirm.on_end();
        assert!(!confirm.is_settled());
        assert_eq!(confirm.next_write(t0), Some(marks(90, 70)));
        assert!(!confirm.is_settled());
        assert_eq!(confirm.on_written(t0), marks(90, 70));
        assert!(confirm.is_settled());
        assert_eq!(confirm.next_write(t0), None);
    }

    #[test]
    fn an_end_without_batches_writes_nothing_but_what_is_new() {
        let t0 = Instant::now();
        let mut confirm = machine(marks(10, 50));
        confirm.on_end();
        assert!(confirm.is_settled());
        assert_eq!(confirm.next_write(t0), None);
    }

    #[test]
    fn a_write_that_did_not_succeed_is_tried_again_and_moves_nothing() {
        let t0 = Instant::now();
        let mut confirm = machine(marks(0, 0));
        confirm.on_flushed(Lsn(1));
        confirm.on_reply_requested();
        confirm.next_write(t0);
        confirm.on_write_failed(t0);
        assert_eq!(confirm.recorded(), marks(0, 0));
        assert_eq!(confirm.deadline(t0), Some(t0 + s(1)));
        assert_eq!(confirm.next_write(t0), None);
        confirm.on_end();
        assert_eq!(confirm.next_write(t0), None, "the end does not hammer either");
        assert_eq!(confirm.next_write(t0 + s(1)), Some(marks(1, 0)));
    }

    #[test]
    fn a_question_outlives_a_write_that_did_not_succeed() {
        let t0 = Instant::now();
        let mut confirm = machine(marks(0, 0));
        confirm.on_flushed(Lsn(1));
        confirm.next_write(t0);
        confirm.on_written(t0);
        confirm.on_flushed(Lsn(2));
        confirm.on_reply_requested();
        assert_eq!(confirm.next_write(t0 + s(1)), Some(marks(2, 0)));
        confirm.on_write_failed(t0 + s(1));
        assert_eq!(confirm.next_write(t0 + s(2)), Some(marks(2, 0)), "not at the next interval");
    }

    #[test]
    fn the_end_of_all_wal_does_not_spin() {
        let t0 = Instant::now();
        let mut confirm = machine(marks(0, 0));
        confirm.on_batch(Lsn(u64::MAX));
        assert_eq!(confirm.next_write(t0), Some(marks(0, u64::MAX)));
        confirm.on_written(t0);
        assert_eq!(confirm.deadline(t0), None);
    }

    /// Goal: in any order, with writes that fail: what is published was durable before, never moves
    /// back, covers no flush that began without it, and everything is confirmed in the end.
    #[test]
    fn nothing_is_told_before_it_is_recorded() {
        for seed in 0..1_000 {
            let mut prng = crate::machines::prng::Prng::from_seed(seed);
            let mut now = Instant::now();
            let mut confirm = machine(marks(0, 0));
            let (mut lsn, mut writing, mut table) = (0, None::<RecordedMarks>, marks(0, 0));
            let (mut flushed, mut waiting, mut begun) = (0, Vec::new(), 0);
            for turn in 0..300 {
                now += Duration::from_millis(prng.below(2_000));
                lsn += prng.below(MIB);
                if turn == 250 {
                    confirm.on_end();
                    waiting.clear();
                }
                match prng.below(5) {
                    0 if turn < 250 => {
                        confirm.on_batch(Lsn(lsn));
                        waiting.push(lsn);
                    }
                    1 if turn < 250 => {
                        flushed = lsn;
                        confirm.on_flushed(Lsn(lsn));
                    }
                    2 => confirm.on_reply_requested(),
                    _ => (),
                }
                if let Some(row) = writing.take() {
                    let before = confirm.recorded();
                    if prng.below(4) == 0 {
                        confirm.on_write_failed(now);
                        assert_eq!(confirm.recorded(), before, "seed {seed}");
                    } else {
                        table = row;
                        let told = confirm.on_written(now);
                        assert_eq!(told, table, "seed {seed}: told what is not recorded");
                        assert!(before.confirmed <= told.confirmed, "seed {seed}");
                        assert!(before.upper_lsn <= told.upper_lsn || 250 <= turn, "seed {seed}");
                    }
                }
                writing = confirm.next_write(now);
                assert!(writing.is_none_or(|row| row.confirmed <= Lsn(flushed)), "seed {seed}");
                waiting.retain(|&upper| {
                    let may = confirm.reserved().covers(Lsn(upper));
                    assert!(!may || Lsn(upper) <= table.upper_lsn, "seed {seed}");
                    begun = if may { begun.max(upper) } else { begun };
                    !may
                });
                assert!(
                    Lsn(begun) <= table.upper_lsn,
                    "seed {seed}: unreserved rows in ClickHouse"
                );
                let stuck = confirm.deadline(now).is_none() && writing.is_none();
                assert!(!stuck || waiting.is_empty(), "seed {seed}: a batch waits for ever");
                assert!(!stuck || table.confirmed == Lsn(flushed), "seed {seed}: unconfirmed");
            }
            assert!(confirm.is_settled(), "seed {seed}");
            assert_eq!(table.confirmed, Lsn(flushed), "seed {seed}");
        }
    }
}
