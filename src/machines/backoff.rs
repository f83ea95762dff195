//! How long to wait before the next attempt, and when to stop trying.

use std::time::Duration;

use super::prng::Prng;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffLimits {
    /// The wait before the second attempt; it doubles from there.
    pub delay_min: Duration,
    pub delay_max: Duration,
    /// 0 is unlimited.
    pub attempts_max: u32,
}

/// Waits `min(delay_min * 2^(n-1), delay_max)`, less up to a tenth, before attempt `n` again.
///
/// The jitter lies below the wait, so that `delay_max` means what it says; it is there so that two
/// services that lost the same server do not return in lock-step.
#[derive(Debug, Clone)]
pub struct Backoff {
    limits: BackoffLimits,
    attempts: u32,
}

impl Backoff {
    pub fn new(limits: BackoffLimits) -> Backoff {
        Backoff { limits, attempts: 0 }
    }

    /// The wait before the next attempt; `None` once `attempts_max` waits were given since `reset`.
    pub fn next(&mut self, prng: &mut Prng) -> Option<Duration> {
        let BackoffLimits { delay_min, delay_max, attempts_max } = self.limits;
        if attempts_max != 0 && attempts_max <= self.attempts {
            return None;
        }
        let factor = 1u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        let wait = delay_min.saturating_mul(factor).min(delay_max);
        let tenth_ns = u64::try_from((wait / 10).as_nanos()).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(prng.below(tenth_ns.saturating_add(1)));
        self.attempts = self.attempts.saturating_add(1);
        Some(wait.saturating_sub(jitter))
    }

    /// How many waits were given since `reset`.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BackoffLimits = BackoffLimits {
        delay_min: Duration::from_secs(1),
        delay_max: Duration::from_secs(60),
        attempts_max: 0,
    };

    #[test]
    fn doubles_to_the_maximum_with_at_most_a_tenth_less() {
        for seed in 0..200 {
            let mut prng = Prng::from_seed(seed);
            let mut backoff = Backoff::new(LIMITS);
            for full_s in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
                let full = Duration::from_secs(full_s);
                let wait = backoff.next(&mut prng).unwrap();
                assert!(full * 9 / 10 <= wait && wait <= full, "seed {seed}: {wait:?}");
            }
            assert_eq!(backoff.attempts(), 9);
            backoff.reset();
            assert!(backoff.next(&mut prng).unwrap() <= LIMITS.delay_min, "seed {seed}");
        }
    }

    #[test]
    fn two_seeds_do_not_move_in_lock_step() {
        let next = |seed| Backoff::new(LIMITS).next(&mut Prng::from_seed(seed));
        assert_ne!(next(1), next(2));
    }

    #[test]
    fn gives_up_after_attempts_max_and_starts_over_after_reset() {
        let mut prng = Prng::from_seed(0);
        let mut backoff = Backoff::new(BackoffLimits { attempts_max: 3, ..LIMITS });
        for _ in 0..3 {
            assert!(backoff.next(&mut prng).is_some());
        }
        assert_eq!(backoff.next(&mut prng), None);
        assert_eq!(backoff.next(&mut prng), None);
        backoff.reset();
        assert!(backoff.next(&mut prng).is_some());
    }

    #[test]
    fn no_setting_and_no_number_of_attempts_overflows() {
        let mut prng = Prng::from_seed(0);
        let settings = [
            (Duration::ZERO, Duration::ZERO),
            (Duration::MAX, Duration::MAX),
            (Duration::from_nanos(1), Duration::MAX),
            (Duration::from_secs(9), Duration::from_secs(3)),
        ];
        for (delay_min, delay_max) in settings {
            let mut backoff = Backoff::new(BackoffLimits { delay_min, delay_max, attempts_max: 0 });
            for _ in 0..100 {
                assert!(backoff.next(&mut prng).unwrap() <= delay_max);
            }
        }
    }
}
