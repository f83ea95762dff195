//! Log lines on their way to a writer that may block for ever: logging never waits.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex};

use crate::threads::spawn_named;

/// Some hundred KiB if the reader of stderr stops reading.
const LINES_MAX: usize = 4096;

pub struct LogQueue {
    lines: Sender<Vec<u8>>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    dropped: AtomicU64,
    /// Lines that are not written yet.
    pending: Mutex<u64>,
    written: Condvar,
}

impl LogQueue {
    pub fn start(writer: impl Write + Send + 'static) -> LogQueue {
        let (lines, queue) = bounded(LINES_MAX);
        let state = Arc::new(State::default());
        let of_thread = Arc::clone(&state);
        // It ends with the process, wherever it hangs.
        drop(spawn_named("log_writer".to_owned(), move || run(writer, &queue, &of_thread)));
        LogQueue { lines, state }
    }

    pub fn push(&self, line: &[u8]) {
        *self.state.pending.lock() += 1;
        if self.lines.try_send(line.to_vec()).is_err() {
            *self.state.pending.lock() -= 1;
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all that was pushed is written, at most so long.
    pub fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut pending = self.state.pending.lock();
        while 0 < *pending {
            if self.state.written.wait_until(&mut pending, deadline).timed_out() {
                return;
            }
        }
    }
}

fn run(mut writer: impl Write, queue: &Receiver<Vec<u8>>, state: &State) {
    for line in queue {
        // If stderr is closed, nobody wants the log.
        let _ = writer.write_all(&line).and_then(|()| writer.flush());
        let dropped = state.dropped.swap(0, Ordering::Relaxed);
        if 0 < dropped {
            let text = format!("{dropped} log lines were dropped: stderr was not read\n");
            let _ = writer.write_all(text.as_bytes());
        }
        *state.pending.lock() -= 1;
        state.written.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a line only when the test allows it.
    struct Slow {
        may: Receiver<()>,
        taken: Sender<String>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            if self.may.recv().is_err() {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            let _ = self.taken.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_that_blocks_holds_up_nobody_and_what_it_missed_is_counted() {
        let (allow, may) = bounded(2 * LINES_MAX);
        let (taken, lines) = bounded(2 * LINES_MAX);
        let queue = LogQueue::start(Slow { may, taken });
        queue.push(b"first\n");
        for n in 0..LINES_MAX + 7 {
            queue.push(format!("line {n}\n").as_bytes());
        }
        let begun_at = Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(begun_at.elapsed() < Duration::from_secs(10), "the way out is not blocked");
        for _ in 0..LINES_MAX + 8 {
            allow.send(()).expect("the writer lives");
        }
        queue.flush(Duration::from_secs(60));
        drop(allow);
        let text: String = lines.try_iter().collect();
        assert!(text.starts_with("first\n"), "{text:.80}");
        let dropped = text
            .lines()
            .find_map(|line| line.strip_suffix(" log lines were dropped: stderr was not read"));
        let dropped: usize = dropped.expect("it is told").parse().expect("a number");
        // The writer may have had one in hand already.
        assert!((6..=8).contains(&dropped), "{dropped}");
    }
}
