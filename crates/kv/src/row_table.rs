//! One table of one sequence: row `i` holds its logical page `i`, or its `i`-th summary row.
//!
//! A page's row says where the page is at home: in the pool, or in host memory (copies of it may be in cache rows).
//! Full rows that others share are read-only for all.

use crate::rows::{Reservation, Rows};
use crate::{RowId, Tier, Tiers};

/// Rows in the order of what they hold.
#[derive(Debug, Default)]
pub struct RowTable {
    /// Grows by `push`, `fork` and `sharing`, changed by `replace`, emptied by `release`.
    rows: Vec<RowId>,
    /// How many of them are in host memory: changed with them.
    in_dram: usize,
}

impl RowTable {
    /// The rows.
    pub fn rows(&self) -> &[RowId] {
        &self.rows
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// How many rows are in host memory.
    pub fn in_dram(&self) -> usize {
        self.in_dram
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row of its own and returns it.
    pub fn push(&mut self, rows: &mut Rows, from: &mut Reservation) -> RowId {
        let row = rows.take(from);
        self.rows.push(row);
        self.in_dram += usize::from(row.tier() == Tier::Dram);
        row
    }

    /// Adds rows until there are `len`.
    pub fn grow_to(&mut self, len: usize, rows: &mut Rows, from: &mut Reservation) {
        while self.rows.len() < len {
            self.push(rows, from);
        }
    }

    /// Puts `row`, whose reference it takes over, in the place of another one, whose reference it gives back.
    pub fn replace(&mut self, at: usize, row: RowId) -> RowId {
        let before = std::mem::replace(&mut self.rows[at], row);
        self.in_dram += usize::from(row.tier() == Tier::Dram);
        self.in_dram -= usize::from(before.tier() == Tier::Dram);
        before
    }

    /// A table that shares this one's first `full` rows.
    pub fn fork(&self, full: usize, tiers: &mut Tiers) -> RowTable {
        RowTable::sharing(&self.rows[..full], tiers)
    }

    /// A table that shares these full rows.
    pub fn sharing(shared: &[RowId], tiers: &mut Tiers) -> RowTable {
        shared.iter().for_each(|&row| tiers.share(row));
        RowTable { rows: shared.to_vec(), in_dram: shared.iter().filter(|row| row.tier() == Tier::Dram).count() }
    }

    /// Lets go of every row.
    pub fn release(self, tiers: &mut Tiers) {
        self.rows.into_iter().for_each(|row| tiers.release(row));
    }
}
