//! What is promised to one sequence, so that it can grow to its end.

use crate::{Reservation, RowCounts, Tiers};

/// Rows of both tiers, promised and not taken yet.
#[derive(Debug, Default)]
#[must_use = "promised rows are taken or given back"]
pub struct Promise {
    /// For pages in the pool.
    pub kv: Reservation,
    /// For summaries, in the pool.
    pub summary: Reservation,
    /// For cache rows, in the pool; taken by `open_cache`.
    pub cache: Reservation,
    /// For pages in host memory.
    pub dram: Reservation,
}

impl Promise {
    /// Cuts a sequence's rows, and so many cache rows, out of what was reserved for its request.
    pub fn split(pool: &mut Reservation, dram: &mut Reservation, counts: RowCounts, slots: usize) -> Self {
        let (kv, summary, cache) = (pool.split(counts.kv), pool.split(counts.summary), pool.split(slots));
        Promise { kv, summary, cache, dram: dram.split(counts.dram) }
    }

    /// Gives back what is left.
    pub fn give_back(self, tiers: &mut Tiers) {
        tiers.pool.give_back(self.kv);
        tiers.pool.give_back(self.summary);
        tiers.pool.give_back(self.cache);
        tiers.dram.give_back(self.dram);
    }

    /// Rows of the pool among it.
    pub fn pool(&self) -> [&Reservation; 3] {
        [&self.kv, &self.summary, &self.cache]
    }
}
