//! When to say what repeats: the 1st, 2nd, 4th, 8th... time, so that what goes on for ever takes
//! few lines.

/// Attempts in a row that fail, until one succeeds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Thinning {
    times: u32,
}

impl Thinning {
    /// Once more. True: that is to be said.
    pub fn on_repeat(&mut self) -> bool {
        self.times = self.times.saturating_add(1);
        self.times.is_power_of_two()
    }

    pub fn times(&self) -> u32 {
        self.times
    }

    /// It succeeded. Returns how often it had not.
    pub fn reset(&mut self) -> u32 {
        std::mem::take(&mut self.times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_is_said_twice_as_late_each_time_until_it_succeeds() {
        let mut thinning = Thinning::default();
        let mut said = |count: usize| -> Vec<u32> {
            (0..count).filter_map(|_| thinning.on_repeat().then_some(thinning.times())).collect()
        };
        assert_eq!(said(20), [1, 2, 4, 8, 16]);
        assert_eq!(said(20), [32]);
        assert_eq!(thinning.reset(), 40);
        assert!(thinning.on_repeat());
        let mut at_the_end = Thinning { times: u32::MAX - 1 };
        assert!(!at_the_end.on_repeat() && !at_the_end.on_repeat());
    }
}
