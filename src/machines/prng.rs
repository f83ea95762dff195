//! Seeded numbers for jitter and for tests, so that a run can be repeated from its seed.
//!
//! Not for secrets: one number reveals the rest.

/// SplitMix64: one word of state, every seed is a good one.
#[derive(Debug, Clone)]
pub struct Prng(u64);

impl Prng {
    pub fn from_seed(seed: u64) -> Prng {
        Prng(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..n`, or 0 if there is none.
    pub fn below(&mut self, n: u64) -> u64 {
        // The high half of a wide product: no division, and a bias too small for any use here.
        let wide = u128::from(self.next_u64()) * u128::from(n);
        (wide >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_published_numbers() {
        let mut prng = Prng::from_seed(1_234_567);
        let numbers = [prng.next_u64(), prng.next_u64(), prng.next_u64()];
        assert_eq!(
            numbers,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn below_reaches_every_number_and_never_the_bound() {
        let mut prng = Prng::from_seed(0);
        let mut seen = [0; 7];
        for _ in 0..7_000 {
            seen[prng.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|&times| 800 < times && times < 1_200), "{seen:?}");
        assert_eq!(prng.below(0), 0);
        assert_eq!(prng.below(1), 0);
    }
}
