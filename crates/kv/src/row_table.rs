//! One table of one sequence: row `i` holds its logical page `i`, or its `i`-th summary row.

use crate::RowId;
use crate::rows::{Reservation, Rows};

/// Rows in the order of what they hold.
///
/// ```text
/// 0             shared                     rows.len()
/// |- read-only --|---- this table's own ----|
/// ```
///
/// Rows below `shared` came from a fork's parent or a kept prefix; full rows that others share are read-only for all.
#[derive(Debug, Default)]
pub struct RowTable {
    /// Grows by `push`, `fork` and `sharing`; emptied by `release`.
    rows: Vec<RowId>,
    /// Set by `fork` and `sharing`.
    shared: usize,
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

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Rows at the start that another one filled.
    pub fn shared(&self) -> usize {
        self.shared
    }

    /// Adds a row of its own and returns it.
    pub fn push(&mut self, rows: &mut Rows, from: &mut Reservation) -> RowId {
        let row = rows.take(from);
        self.rows.push(row);
        row
    }

    /// Adds rows until there are `len`.
    pub fn grow_to(&mut self, len: usize, rows: &mut Rows, from: &mut Reservation) {
        while self.rows.len() < len {
            self.push(rows, from);
        }
    }

    /// A table that shares this one's first `full` rows.
    pub fn fork(&self, full: usize, rows: &mut Rows) -> RowTable {
        RowTable::sharing(&self.rows[..full], rows)
    }

    /// A table that shares these full rows.
    pub fn sharing(shared: &[RowId], rows: &mut Rows) -> RowTable {
        shared.iter().for_each(|&row| rows.share(row));
        RowTable { rows: shared.to_vec(), shared: shared.len() }
    }

    /// Lets go of every row.
    pub fn release(self, rows: &mut Rows) {
        self.rows.into_iter().for_each(|row| rows.release(row));
    }
}
