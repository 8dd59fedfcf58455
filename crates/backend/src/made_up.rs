//! A made-up selection, of which a given share stays from step to step: the same on every device.
//!
//! ```text
//! candidates   |-- stratum 0 --|-- stratum 1 --| ... |-- stratum k-1 --|- never selected -|
//! selected            ^                 ^                     ^
//! ```
//!
//! Each selected page has a stratum of its own and another page of it from time to time: by chance, of the place, the
//! layer and the head, but every `1 / (1 - overlap)` steps. Strata stay where they are while the context grows.

/// What a selection is made up for.
#[derive(Clone, Copy, Debug)]
pub struct MadeUp {
    /// The lane.
    pub lane: u16,
    /// The layer.
    pub layer: usize,
    /// The KV head.
    pub head: usize,
    /// Share of the pages that stays from one step to the next.
    pub overlap: f32,
    /// The request's budget: how wide a stratum is.
    pub budget: f64,
}

impl MadeUp {
    /// The `n`-th of `k` selected pages among candidates `sink..indexed` in a step at `len`; ascending with `n`.
    pub fn page(&self, n: usize, k: usize, sink: usize, indexed: usize, len: usize) -> usize {
        let most = (indexed - sink) / k;
        let stratum = ((0.9 / self.budget.max(1e-6)) as usize).clamp(1, most.max(1));
        let seed = u32::from(self.lane)
            .wrapping_mul(0x9e37_79b9)
            .wrapping_add((self.layer as u32).wrapping_mul(0x85eb_ca6b))
            .wrapping_add((self.head as u32).wrapping_mul(0xc2b2_ae35));
        let place = mix(mix(seed) ^ (n as u32).wrapping_mul(0x27d4_eb2f));
        let changes = ((1.0 - self.overlap) * 65_536.0 + 0.5) as u64;
        let epoch = ((len as u64 * changes + u64::from(place & 0xffff)) >> 16) as u32;
        sink + n * stratum + mix(place.wrapping_add(epoch.wrapping_mul(0x1656_67b1))) as usize % stratum
    }
}

/// Spreads a number's bits (the finaliser of a 32-bit hash).
fn mix(x: u32) -> u32 {
    let x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    let x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_ascend_and_as_many_stay_as_asked_for() {
        for (overlap, budget, candidates) in [(0.9, 0.0156, 4000), (0.8, 0.008, 7000), (0.95, 0.0156, 2000)] {
            let k = (candidates as f64 * budget) as usize;
            let made_up = MadeUp { lane: 3, layer: 7, head: 2, overlap, budget };
            let at = |len| -> Vec<usize> { (0..k).map(|n| made_up.page(n, k, 1, candidates, len)).collect() };
            let (mut stayed, steps) = (0, 400);
            for len in 30_000..30_000 + steps {
                let (before, now) = (at(len), at(len + 1));
                assert!(now.is_sorted_by(|a, b| a < b) && now.iter().all(|page| (1..candidates).contains(page)));
                stayed += now.iter().filter(|page| before.binary_search(page).is_ok()).count();
            }
            let share = stayed as f32 / (steps * k) as f32;
            assert!((share - overlap).abs() < 0.02, "{share} of {overlap} stays");
        }
    }
}
