//! When to send off the batch that is being gathered.
//!
//! It only counts; the rows live with the caller. A batch may end inside a transaction:
//! [`super::progress`] decides what may then be confirmed.

use std::time::{Duration, Instant};

use super::after;

#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    pub rows_max: usize,
    /// The limit of one batch. Memory is this times the flushers plus one for the open batch.
    pub bytes_max: usize,
    pub age_max: Duration,
}

/// Enough rows shorten the interval to this part of it, not to nothing: ClickHouse pays for every
/// insert with a part that it must merge, and a flood of rows would make hundreds a second.
const HASTE: u32 = 10;

/// Paces the cuts: a quiet table's row leaves at once, a busy one's rows travel together.
///
/// A cut always waits for a free flusher. Until then rows go on gathering, past `rows_max` too:
/// larger inserts are what a slow ClickHouse needs. Only `bytes_max` stops the reading.
#[derive(Debug)]
pub struct Batches {
    limits: BatchLimits,
    open: Option<OpenBatch>,
    last_cut_at: Option<Instant>,
    /// The last cut had enough rows: what follows may be the end of a burst.
    last_was_full: bool,
    draining: bool,
}

/// Rows and bytes gathered since the last cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenBatch {
    pub rows: usize,
    pub bytes: usize,
    pub opened_at: Instant,
    /// When the last of them came.
    pub grew_at: Instant,
}

impl Batches {
    pub fn new(limits: BatchLimits) -> Batches {
        Batches { limits, open: None, last_cut_at: None, last_was_full: false, draining: false }
    }

    /// `rows` more rows of `bytes` were added to the open batch.
    pub fn push(&mut self, now: Instant, rows: usize, bytes: usize) {
        let new = OpenBatch { rows: 0, bytes: 0, opened_at: now, grew_at: now };
        let open = self.open.get_or_insert(new);
        open.grew_at = now;
        open.rows = open.rows.saturating_add(rows);
        open.bytes = open.bytes.saturating_add(bytes);
    }

    /// Whether to cut now. `flushers_free` counts flushers that could take the batch at once.
    pub fn ready(&self, now: Instant, flushers_free: usize) -> bool {
        let Some(open) = &self.open else { return false };
        let due = self.draining || self.limits.bytes_max <= open.bytes || self.due_at(open) <= now;
        0 < flushers_free && due
    }

    /// Whether to stop receiving until the open batch has been cut.
    pub fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| self.limits.bytes_max <= open.bytes)
    }

    /// When to call `ready` next; it may be in the past. `None` while there is nothing to cut, and
    /// while no flusher is free: then it is a flush's end that wakes the caller, not time.
    pub fn deadline(&self, flushers_free: usize) -> Option<Instant> {
        let open = self.open.as_ref().filter(|_| 0 < flushers_free)?;
        Some(self.due_at(open))
    }

    /// The open batch was handed to a flusher; the next one begins empty.
    pub fn cut(&mut self, now: Instant) -> Option<OpenBatch> {
        let open = self.open.take()?;
        self.last_cut_at = Some(now);
        self.last_was_full = self.limits.rows_max <= open.rows;
        Some(open)
    }

    /// The stream is ending: the batch leaves as soon as a flusher is free.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// An interval after the last cut; after silence that has passed, so at once. Never later than
    /// `age_max` after the first row, because the last cut came before that row.
    ///
    /// The last rows of a burst are too few to leave for their number. They do not wait out the
    /// interval either: once no more come they leave, which is one more insert for each burst, and
    /// not sooner after the last one than in a flood.
    fn due_at(&self, open: &OpenBatch) -> Instant {
        let soon = self.limits.age_max / HASTE;
        let many = self.limits.rows_max <= open.rows;
        let wait = if many { soon } else { self.limits.age_max };
        match self.last_cut_at {
            Some(at) if self.last_was_full => {
                after(at, soon).max(after(open.grew_at, soon)).min(after(at, wait))
            }
            Some(at) => after(at, wait),
            // A stream begins with the rows that piled up before it. If the first row went alone,
            // all others of that backlog would wait for the whole interval.
            None => after(open.opened_at, soon),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BatchLimits =
        BatchLimits { rows_max: 100, bytes_max: 1_000, age_max: Duration::from_millis(50) };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_first_row_after_silence_leaves_at_once() {
        let t0 = Instant::now();
        let mut batches = Batches::new(LIMITS);
        assert!(!batches.ready(t0, 1), "nothing to cut");
        batches.push(t0, 1, 10);
        let open = OpenBatch { rows: 1, bytes: 10, opened_at: t0, grew_at: t0 };
        assert_eq!(batches.cut(t0), Some(open));
        assert_eq!(batches.cut(t0), None);
        batches.push(t0 + ms(50), 1, 10);
        assert!(batches.ready(t0 + ms(50), 1), "an interval of silence has passed");
    }

    #[test]
    fn what_a_stream_begins_with_travels_together_and_soon() {
        let t0 = Instant::now();
        let mut batches = Batches::new(LIMITS);
        batches.push(t0, 1, 10);
        assert!(!batches.ready(t0, 1), "more of the backlog is on its way");
        batches.push(t0 + ms(3), 50, 10);
        assert_eq!(batches.deadline(1), Some(t0 + ms(5)));
        assert!(batches.ready(t0 + ms(5), 1));
    }

    #[test]
    fn later_rows_travel_together_at_the_interval() {
        let t0 = Instant::now();
        let mut batches = Batches::new(LIMITS);
        batches.push(t0, 1, 1);
        batches.cut(t0);
        batches.push(t0 + ms(10), 1, 1);
        batches.push(t0 + ms(40), 1, 1);
        assert_eq!(batches.deadline(1), Some(t0 + ms(50)));
        assert!(!batches.ready(t0 + ms(49), 1));
        assert!(batches.ready(t0 + ms(50), 1));
    }

    #[test]
    fn rows_bytes_and_draining_cut_before_the_interval() {
        let t0 = Instant::now();
        let mut batches = Batches::new(LIMITS);
        batches.push(t0, 1, 1);
        batches.cut(t0);
        batches.push(t0, 99, 1);
        assert!(!batches.ready(t0, 1));
        assert_eq!(batches.deadline(1), Some(t0 + ms(50)));
        batches.push(t0, 1, 1);
        assert_eq!(batches.deadline(1), Some(t0 + ms(5)));
        assert!(!batches.ready(t0 + ms(4), 1), "a flood of rows does not make a flood of inserts");
        assert!(batches.ready(t0 + ms(5), 1), "rows");
        assert!(!batches.is_full(), "rows alone do not stop the reading");
        let t0 = t0 + ms(5);
        batches.cut(t0);
        batches.push(t0, 1, 1_000);
        assert!(batches.ready(t0, 1) && batches.is_full(), "bytes");
        batches.cut(t0);
        batches.push(t0, 1, 1);
        assert!(!batches.ready(t0, 1));
        batches.drain();
        assert!(batches.ready(t0, 1), "draining");
    }

    #[test]
    fn the_end_of_a_burst_does_not_wait_out_the_interval() {
        let t0 = Instant::now();
        let mut batches = Batches::new(LIMITS);
        batches.push(t0, 100, 1);
        batches.cut(t0);
        batches.push(t0 + ms(1), 30, 1);
        batches.push(t0 + ms(4), 30, 1);
        assert_eq!(batches.deadline(1), Some(t0 + ms(9)), "five without another row");
        batches.push(t0 + ms(8), 1, 1);
        assert_eq!(batches.deadline(1), Some(t0 + ms(13)));
        assert!(batches.ready(t0 + ms(13), 1));
        batches.cut(t0 + ms(13));
        batches.push(t0 + ms(14), 1, 1);
        assert_eq!(batches.deadline(1), Some(t0 + ms(63)), "one more insert, and no others");
    }

    /// Goal: at a steady 1,000 rows a second and after it no row waits for long, and inserts are as
    /// few as without the haste at the end: ten a second, and one for each burst.
    #[test]
    fn bursts_of_a_thousand_rows_a_second_are_soon_there_in_few_inserts() {
        let limits = BatchLimits { rows_max: 100, bytes_max: 1 << 20, age_max: ms(1_000) };
        let t0 = Instant::now();
        let (mut batches, mut waits, mut cuts) = (Batches::new(limits), Vec::new(), 0);
        let (mut came, bursts) = (Vec::new(), 7);
        for step in 0..bursts * 5_000_u64 {
            let now = t0 + ms(step);
            // A second and a bit of rows, then silence.
            if step % 5_000 < 1_037 {
                batches.push(now, 1, 1);
                came.push(now);
            }
            if batches.ready(now, 1) {
                batches.cut(now);
                cuts += 1;
                waits.extend(came.drain(..).map(|came| now - came));
            }
        }
        waits.sort_unstable();
        assert!(came.is_empty());
        assert!(waits[waits.len() / 2] <= ms(75), "{:?}", waits[waits.len() / 2]);
        assert!(waits[waits.len() - 1] <= ms(200), "{:?}", waits[waits.len() - 1]);
        assert!(cuts <= bursts * 12, "{cuts}");
    }

    #[test]
    fn a_cut_waits_for_a_free_flusher_without_spinning() {
        let t0 = Instant::now();
        let mut batches = Batches::new(LIMITS);
        batches.push(t0, 500, 2_000);
        batches.drain();
        assert!(!batches.ready(t0 + ms(500), 0));
        assert_eq!(batches.deadline(0), None);
        assert!(batches.is_full());
        assert!(batches.ready(t0 + ms(500), 1));
    }

    /// Goal: no row waits longer than `age_max` while a flusher is free, and cuts that no limit
    /// forces are an interval apart.
    #[test]
    fn rows_leave_in_time_and_cuts_keep_their_distance() {
        for seed in 0..500 {
            let mut prng = crate::machines::prng::Prng::from_seed(seed);
            let mut now = Instant::now();
            let mut batches = Batches::new(LIMITS);
            let mut last_cut = None;
            for _ in 0..200 {
                let next = now + ms(prng.below(40));
                while let Some(at) = batches.deadline(1).filter(|&at| at <= next) {
                    now = now.max(at);
                    assert!(batches.ready(now, 1), "seed {seed}: a deadline without a cause");
                    let open = batches.cut(now).unwrap();
                    assert!(now - open.opened_at <= LIMITS.age_max, "seed {seed}: late");
                    if let Some(before) = last_cut {
                        assert!(LIMITS.age_max <= now - before, "seed {seed}: hasty");
                    }
                    last_cut = Some(now);
                }
                now = next;
                batches.push(now, 1, 1);
            }
        }
    }
}
