//! Whether to give up a wait, checked by the waiting code: a call on a hanging server must not
//! outlast the work that it is for.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

/// By default never.
#[derive(Clone, Default)]
pub struct Halt(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl Halt {
    /// How often waiting code checks.
    pub const LOOK_EVERY: Duration = Duration::from_millis(100);

    pub fn when(is_due: impl Fn() -> bool + Send + Sync + 'static) -> Halt {
        Halt(Some(Arc::new(is_due)))
    }

    pub fn is_due(&self) -> bool {
        self.0.as_ref().is_some_and(|is_due| is_due())
    }

    /// Whether there is anything to ask for.
    pub fn may_be_due(&self) -> bool {
        self.0.is_some()
    }

    /// Runs a call that can be neither interrupted nor polled, and that ends by itself at `until`,
    /// on a thread that is abandoned when the halt is due.
    pub fn outlast<T: Send + 'static>(
        &self,
        until: Instant,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        if !self.may_be_due() {
            return Ok(work());
        }
        let (answer, answers) = bounded(1);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Nobody may be waiting any more.
            let _ = answer.send(work());
        })?;
        // Its own end comes first.
        let until = until + Halt::LOOK_EVERY;
        loop {
            let now = Instant::now();
            match answers.recv_deadline(until.min(now + Halt::LOOK_EVERY)) {
                Ok(done) => return Ok(done),
                Err(RecvTimeoutError::Timeout) if self.is_due() => return Err(given_up()),
                Err(RecvTimeoutError::Timeout) if until <= Instant::now() => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other(format!("thread `{name}` panicked")));
                }
            }
        }
    }
}

/// The error of a wait that was given up.
pub fn given_up() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "given up, to end in time")
}

/// It does not affect how the value that carries it prints.
impl PartialEq for Halt {
    fn eq(&self, _: &Halt) -> bool {
        true
    }
}

impl Eq for Halt {}

impl fmt::Debug for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Halt(when due)" } else { "Halt(never)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn it_is_due_when_its_question_says_so() {
        let due = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&due);
        let halt = Halt::when(move || asked.load(Ordering::Relaxed));
        assert!(!halt.is_due() && !Halt::default().is_due());
        due.store(true, Ordering::Relaxed);
        assert!(halt.clone().is_due());
    }

    #[test]
    fn what_knows_no_halt_is_left_to_its_thread_when_it_is_due() {
        let far = Instant::now() + Duration::from_secs(60);
        let (release, hangs) = bounded::<()>(0);
        let halt = Halt::when(|| true);
        let outcome = halt.outlast(far, "hangs", move || hangs.recv());
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        drop(release);
        assert_eq!(Halt::when(|| false).outlast(far, "ends", || 1).unwrap(), 1);
        assert_eq!(Halt::default().outlast(far, "is none", || 2).unwrap(), 2);
    }
}
