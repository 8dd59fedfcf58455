//! Seeded random numbers: splitmix64, which is small, has no state to warm up and passes what a workload needs.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// The stream that these numbers name; streams of different names are independent.
    pub(crate) fn new(name: &[u64]) -> Self {
        let mut random = Random { state: 0x5350_494e_444c_4521 };
        for part in name {
            random.state = random.next() ^ part;
        }
        random
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..limit`, with a bias below 2^-32 for every limit that fits into 32 bits.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ_by_name() {
        let draw = |name: &[u64]| Random::new(name).next();
        assert_eq!(draw(&[1, 2]), draw(&[1, 2]));
        let names: [&[u64]; 5] = [&[1, 2], &[2, 1], &[1], &[1, 2, 0], &[0, 1, 2]];
        let mut drawn: Vec<u64> = names.into_iter().map(draw).collect();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 5);
    }

    #[test]
    fn numbers_fill_their_range_evenly() {
        let mut random = Random::new(&[7]);
        let mut seen = [0u32; 10];
        let mut sum = 0.0;
        for _ in 0..10_000 {
            seen[random.below(10) as usize] += 1;
            sum += random.unit();
        }
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
        assert!((0.48..0.52).contains(&(sum / 10_000.0)), "{sum}");
    }
}
