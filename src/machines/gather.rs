//! How long to let the kernel gather before the next read of a busy stream.
//!
//! The walsender sends each message separately, and each one wakes a waiting reader: both pay for a
//! context switch for a hundred bytes. A reader that lets a fraction of a millisecond pass first
//! finds hundreds of messages, and the walsender, which is one core's worth of decoding, is not
//! disturbed. A stream that is not busy is read at once: a single row must not wait.

use std::time::{Duration, Instant};

/// Shorter than a walsender of any speed needs to fill a receive buffer of the usual size.
const PAUSE: Duration = Duration::from_micros(500);
/// Blocks that follow each other within this make a stream busy.
const BUSY_WITHIN: Duration = Duration::from_millis(2);
/// A block of this size justified its read, and more may follow: it is most of what a read can
/// return.
const LARGE_BYTES: usize = 96 * 1024;

#[derive(Debug, Default)]
pub struct Gather {
    last_read_at: Option<Instant>,
}

impl Gather {
    /// `bytes` were read. How long to pause before the next read.
    pub fn on_read(&mut self, now: Instant, bytes: usize) -> Option<Duration> {
        let last = self.last_read_at.replace(now);
        let is_busy = last.is_some_and(|last| now.saturating_duration_since(last) <= BUSY_WITHIN);
        (is_busy && bytes < LARGE_BYTES).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn only_a_busy_stream_is_kept_waiting() {
        let (mut gather, t0) = (Gather::default(), Instant::now());
        assert_eq!(gather.on_read(t0, 100), None, "the first after silence");
        assert_eq!(gather.on_read(t0 + ms(1), 100), Some(PAUSE));
        assert_eq!(gather.on_read(t0 + ms(2), 100), Some(PAUSE));
        assert_eq!(gather.on_read(t0 + ms(5), 100), None, "every third millisecond is not busy");
        assert_eq!(gather.on_read(t0 + ms(6), LARGE_BYTES), None, "there may be more at once");
        assert_eq!(gather.on_read(t0 + ms(6), 100), Some(PAUSE));
    }

    #[test]
    fn the_pause_itself_does_not_make_a_stream_look_quiet() {
        assert!(PAUSE + ms(1) < BUSY_WITHIN);
    }
}
