//! How far a command is, on stderr: one line that is written over on a terminal, a line now and
//! then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::mending::command::CommandProgress;

const BAR: usize = 24;
const EVERY_ON_TERMINAL: Duration = Duration::from_millis(100);
const EVERY_ELSEWHERE: Duration = Duration::from_secs(10);

pub(super) struct Display {
    name: String,
    is_terminal: bool,
    begun_at: Instant,
    state: Mutex<State>,
}

struct State {
    shown_at: Option<Instant>,
    width: usize,
}

impl Display {
    pub fn new(name: &str) -> Display {
        Display {
            name: name.to_owned(),
            is_terminal: std::io::stderr().is_terminal(),
            begun_at: Instant::now(),
            state: Mutex::new(State { shown_at: None, width: 0 }),
        }
    }

    pub fn show(&self, progress: &CommandProgress<'_>) {
        let every = if self.is_terminal { EVERY_ON_TERMINAL } else { EVERY_ELSEWHERE };
        let mut state = self.state.lock();
        let last = state.shown_at.unwrap_or(self.begun_at);
        if last.elapsed() < every {
            return;
        }
        state.shown_at = Some(Instant::now());
        let line = line(&self.name, progress, self.begun_at.elapsed(), self.is_terminal);
        let text = match self.is_terminal {
            true => format!("\r{line:<width$}", width = state.width),
            false => format!("{line}\n"),
        };
        state.width = line.len();
        // If stderr is closed there is nobody to report it to.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

impl Drop for Display {
    /// The line makes room for what follows.
    fn drop(&mut self) {
        let width = self.state.lock().width;
        if self.is_terminal && 0 < width {
            let _ = write!(std::io::stderr(), "\r{:width$}\r", "");
        }
    }
}

fn line(name: &str, progress: &CommandProgress<'_>, passed: Duration, with_bar: bool) -> String {
    let CommandProgress { what, fraction, left, rows } = *progress;
    let mut line = format!("{name}: {what}");
    if with_bar {
        let full = (fraction.clamp(0.0, 1.0) * BAR as f64) as usize;
        line.push_str(&format!(" [{}{}]", "#".repeat(full), " ".repeat(BAR - full)));
    }
    let per_second = rows as f64 / passed.as_secs_f64().max(0.001);
    line.push_str(&format!(" {:.0} %, {rows} at {per_second:.0}/s", fraction * 100.0));
    if let Some(left) = left {
        line.push_str(&format!(", about {} left", rounded(left)));
    }
    line
}

fn rounded(left: Duration) -> String {
    match left.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let left = Some(Duration::from_secs(150));
        let progress = CommandProgress { what: "rows", fraction: 0.5, left, rows: 300 };
        let passed = Duration::from_secs(3);
        assert_eq!(
            line("verify runs", &progress, passed, false),
            "verify runs: rows 50 %, 300 at 100/s, about 2 min left"
        );
        assert_eq!(
            line("verify runs", &CommandProgress { left: None, ..progress }, passed, true),
            "verify runs: rows [############            ] 50 %, 300 at 100/s"
        );
    }

    #[test]
    fn no_fraction_breaks_the_bar() {
        for fraction in [-1.0, f64::NAN, 7.0] {
            let progress = CommandProgress { what: "rows", fraction, left: None, rows: 0 };
            assert!(line("n", &progress, Duration::ZERO, true).contains(']'));
        }
    }
}
