//! Whether every service still makes progress: the condition for feeding the watchdog.
//!
//! Each service is asked at intervals, and answers as long as its coordinator handles messages. Its
//! state does not count: servers that are away come back without a restart of ours, and a service
//! that waits for an operator would wait again.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Pulse {
    /// Longer than this without an answer is wedged.
    patience: Duration,
    /// By service; `None` has ended.
    answered: Vec<Option<Instant>>,
}

impl Pulse {
    /// All services have just begun.
    pub fn new(now: Instant, services: usize, patience: Duration) -> Pulse {
        Pulse { patience, answered: vec![Some(now); services] }
    }

    pub fn on_answer(&mut self, now: Instant, service: usize) {
        if let Some(Some(answered)) = self.answered.get_mut(service) {
            *answered = now;
        }
    }

    /// It no longer has to answer.
    pub fn on_end(&mut self, service: usize) {
        if let Some(answered) = self.answered.get_mut(service) {
            *answered = None;
        }
    }

    pub fn is_alive(&self, now: Instant) -> bool {
        let hears = |answered: &Instant| now.saturating_duration_since(*answered) < self.patience;
        self.answered.iter().flatten().all(hears)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_alive_while_all_that_have_not_ended_answer() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(start, 2, Duration::from_secs(10));
        assert!(pulse.is_alive(at(9)));
        pulse.on_answer(at(9), 0);
        assert!(!pulse.is_alive(at(10)), "the other has not answered");
        pulse.on_answer(at(11), 1);
        assert!(pulse.is_alive(at(11)));
        assert!(!pulse.is_alive(at(19)), "the first is silent now");
        pulse.on_end(0);
        assert!(pulse.is_alive(at(19)));
        pulse.on_answer(at(19), 0);
        pulse.on_end(1);
        assert!(pulse.is_alive(at(99)), "nobody is left to wait for");
    }
}
