//! Whether a wait is to be given up, asked by whoever waits: a call on a server that hangs must not
//! outlive the work that it is for.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// By default never.
#[derive(Clone, Default)]
pub struct Halt(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl Halt {
    /// How often whoever waits asks.
    pub const LOOK_EVERY: Duration = Duration::from_millis(100);

    pub fn when(is_due: impl Fn() -> bool + Send + Sync + 'static) -> Halt {
        Halt(Some(Arc::new(is_due)))
    }

    pub fn is_due(&self) -> bool {
        self.0.as_ref().is_some_and(|is_due| is_due())
    }
}

/// It is no part of what a value that carries it says.
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
}
