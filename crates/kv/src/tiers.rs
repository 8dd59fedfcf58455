//! The rows of every tier together.

use crate::{RowId, Rows, Tier};

/// The allocators, one a tier.
#[derive(Debug)]
pub struct Tiers {
    /// The device's rows.
    pub pool: Rows,
    /// Host memory's rows.
    pub dram: Rows,
}

impl Tiers {
    /// So many rows in each, all free.
    pub fn new(pool_rows: usize, dram_rows: usize) -> Self {
        Tiers { pool: Rows::new(Tier::Pool, pool_rows), dram: Rows::new(Tier::Dram, dram_rows) }
    }

    /// One tier's rows.
    pub fn of(&mut self, tier: Tier) -> &mut Rows {
        match tier {
            Tier::Pool => &mut self.pool,
            Tier::Dram => &mut self.dram,
        }
    }

    /// One more reference to a row.
    pub fn share(&mut self, row: RowId) {
        self.of(row.tier()).share(row);
    }

    /// One reference less to a row.
    pub fn release(&mut self, row: RowId) {
        self.of(row.tier()).release(row);
    }
}
