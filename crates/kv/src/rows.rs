//! One tier's rows: which are free, who references the others, and how many are promised.
//!
//! ```text
//! 0                                                           rows
//! |-- referenced (count >= 1) --|---------- free list ----------|
//!    |- spare -|                |- reserved -|--- available ----|
//! ```
//!
//! A row is spare when only kept prefixes reference it: what the prefix cache can give up for whoever needs rows.
//!
//! Rows come only out of a [`Reservation`], so a sequence that was admitted can never find the pool empty. The order in
//! which rows are handed out is a function of the calls alone: the lowest rows first, then the last one freed.

use crate::{KeptPrefix, RowId, Tier};
use std::fmt;

/// The allocator of one tier's rows.
#[derive(Debug)]
pub struct Rows {
    /// Which tier's.
    tier: Tier,
    /// Per row: 0 = on the free list; +1 by `take`, `share` and `keep`, -1 by `release` and `let_go`.
    references: Vec<u32>,
    /// Per row: references of kept prefixes among them; +1 by `keep`, -1 by `let_go`.
    kept: Vec<u32>,
    /// Last in, first out; holds exactly the rows with no reference.
    free: Vec<RowId>,
    /// Rows of `free` promised to reservations: + by `reserve`, - by `take` and `give_back`.
    reserved: usize,
    /// Rows that have kept references and no others: + by `release`, - by `share` and `let_go`.
    spare: usize,
}

/// Rows promised to one owner. Not `Clone`; given back with [`Rows::give_back`], never dropped with rows in it.
#[derive(Debug, Default)]
#[must_use = "reserved rows are taken or given back"]
pub struct Reservation {
    rows: usize,
}

/// A reservation that could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Rows asked for.
    pub wanted_rows: usize,
    /// Rows that are neither referenced nor reserved.
    pub available_rows: usize,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows wanted, {} available", self.wanted_rows, self.available_rows)
    }
}

impl std::error::Error for Shortage {}

impl Rows {
    /// A tier of `rows` rows, all free.
    pub fn new(tier: Tier, rows: usize) -> Self {
        let mut all = Rows { tier, references: Vec::new(), kept: Vec::new(), free: Vec::new(), reserved: 0, spare: 0 };
        all.extend_to(rows);
        all
    }

    /// The tier has grown to `rows` rows (memory that was made meanwhile); it never shrinks.
    pub fn extend_to(&mut self, rows: usize) {
        assert!(rows <= 1 << 26, "a page entry has 26 bits for the row");
        let more = (self.total()..rows).rev().map(|row| RowId::of(self.tier, row as u32));
        // Rows that were used before are handed out first.
        self.free.splice(0..0, more.collect::<Vec<_>>());
        self.references.resize(rows.max(self.total()), 0);
        self.kept.resize(self.references.len(), 0);
    }

    /// Which tier's rows these are.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Rows of the tier.
    pub fn total(&self) -> usize {
        self.references.len()
    }

    /// Rows without a reference, promised ones included.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Rows promised and not yet taken.
    pub fn reserved(&self) -> usize {
        self.reserved
    }

    /// Rows that can still be promised.
    pub fn available(&self) -> usize {
        self.free.len() - self.reserved
    }

    /// Rows that only kept prefixes reference: not available, but they can be made so.
    pub fn spare(&self) -> usize {
        self.spare
    }

    /// Whether only kept prefixes reference a row.
    pub fn is_spare(&self, row: RowId) -> bool {
        0 < self.kept[row.at()] && self.kept[row.at()] == self.references[row.at()]
    }

    /// Promises `rows` rows.
    ///
    /// # Errors
    /// Fewer than that are available; nothing changes.
    pub fn reserve(&mut self, rows: usize) -> Result<Reservation, Shortage> {
        if self.available() < rows {
            return Err(Shortage { wanted_rows: rows, available_rows: self.available() });
        }
        self.reserved += rows;
        Ok(Reservation { rows })
    }

    /// A row out of `from`, with one reference. The caller's arithmetic guarantees that one is left.
    pub fn take(&mut self, from: &mut Reservation) -> RowId {
        assert!(0 < from.rows, "a row is taken out of a reservation that has none left");
        from.rows -= 1;
        self.reserved -= 1;
        let row = self.free.pop().expect("reserved rows are on the free list");
        debug_assert_eq!(self.references[row.at()], 0, "{row} is free and referenced");
        self.references[row.at()] = 1;
        row
    }

    /// Gives back what is left of a reservation.
    pub fn give_back(&mut self, mut reservation: Reservation) {
        self.reserved -= reservation.rows;
        reservation.rows = 0;
    }

    /// One more reference to a row that has some: it is read-only from now on.
    pub fn share(&mut self, row: RowId) {
        assert!(0 < self.references[row.at()], "{row} is shared but free");
        self.spare -= usize::from(self.is_spare(row));
        self.references[row.at()] += 1;
    }

    /// One reference less; the row is free when none is left.
    pub fn release(&mut self, row: RowId) {
        assert!(self.kept[row.at()] < self.references[row.at()], "{row} is released but free or kept");
        self.drop_reference(row);
        self.spare += usize::from(self.is_spare(row));
    }

    /// One more reference to a row that has some, a kept prefix's: what is spare and what is not stays so.
    pub fn keep(&mut self, row: RowId) {
        assert!(0 < self.references[row.at()], "{row} is kept but free");
        self.references[row.at()] += 1;
        self.kept[row.at()] += 1;
    }

    /// One kept reference less; the row is free when none is left.
    pub fn let_go(&mut self, row: RowId) {
        assert!(0 < self.kept[row.at()], "{row} is let go but not kept");
        self.spare -= usize::from(self.is_spare(row));
        self.kept[row.at()] -= 1;
        self.drop_reference(row);
        self.spare += usize::from(self.is_spare(row));
    }

    fn drop_reference(&mut self, row: RowId) {
        let references = &mut self.references[row.at()];
        *references -= 1;
        if *references == 0 {
            self.free.push(row);
        }
    }

    /// How many tables hold a row, kept prefixes' included.
    pub fn references(&self, row: RowId) -> u32 {
        self.references[row.at()]
    }

    /// How many tables of sequences hold a row.
    pub fn sequences(&self, row: RowId) -> u32 {
        self.references[row.at()] - self.kept[row.at()]
    }

    /// Recounts references, spare and free rows, and promises from every row that a sequence holds (those of other
    /// tiers are not counted), every kept prefix and every reservation that exists.
    ///
    /// # Errors
    /// Says what disagrees.
    pub fn check_integrity<'a>(
        &self,
        held: impl IntoIterator<Item = RowId>,
        prefixes: impl IntoIterator<Item = &'a KeptPrefix>,
        reservations: impl IntoIterator<Item = &'a Reservation>,
    ) -> Result<(), String> {
        let mut counted = vec![0u32; self.total()];
        for row in held.into_iter().filter(|row| row.tier() == self.tier) {
            counted[row.at()] += 1;
        }
        let others = counted.clone();
        for row in prefixes.into_iter().flat_map(|prefix| prefix.tables()).flatten() {
            counted[row.at()] += 1;
        }
        if let Some(row) = (0..self.total()).find(|&row| counted[row] - others[row] != self.kept[row]) {
            return Err(format!(
                "row {row}: {} kept references, counted {}",
                self.kept[row],
                counted[row] - others[row]
            ));
        }
        let spare = (0..self.total()).filter(|&row| 0 < counted[row] && others[row] == 0).count();
        if spare != self.spare {
            return Err(format!("{spare} rows are spare, {} counted", self.spare));
        }
        if let Some(row) = (0..self.total()).find(|&row| counted[row] != self.references[row]) {
            return Err(format!("row {row}: {} references, {} tables hold it", self.references[row], counted[row]));
        }
        let mut listed = vec![false; self.total()];
        for row in &self.free {
            if std::mem::replace(&mut listed[row.at()], true) {
                return Err(format!("{row} is on the free list twice"));
            }
        }
        if let Some(row) = (0..self.total()).find(|&row| listed[row] != (counted[row] == 0)) {
            return Err(format!("row {row}: {} tables hold it, on the free list: {}", counted[row], listed[row]));
        }
        let promised: usize = reservations.into_iter().map(Reservation::rows).sum();
        if promised != self.reserved || self.free.len() < self.reserved {
            return Err(format!("{promised} rows promised, {} counted, {} free", self.reserved, self.free.len()));
        }
        Ok(())
    }
}

impl Reservation {
    /// Rows that can still be taken.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Takes another reservation of the same tier in.
    pub fn join(&mut self, mut other: Reservation) {
        self.rows += std::mem::take(&mut other.rows);
    }

    /// Takes `rows` of the promised rows into a reservation of their own.
    pub fn split(&mut self, rows: usize) -> Reservation {
        assert!(rows <= self.rows, "{rows} rows split from a reservation of {}", self.rows);
        self.rows -= rows;
        Reservation { rows }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        debug_assert!(self.rows == 0 || std::thread::panicking(), "{} reserved rows leak", self.rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_lowest_first_then_last_freed_first() {
        let mut rows = Rows::new(Tier::Pool, 4);
        let mut reservation = rows.reserve(4).expect("four rows are free");
        let first: Vec<RowId> = (0..3).map(|_| rows.take(&mut reservation)).collect();
        assert_eq!(first, [RowId(0), RowId(1), RowId(2)]);
        rows.release(RowId(1));
        assert_eq!(rows.take(&mut reservation), RowId(1));
        assert_eq!(rows.available() + reservation.rows(), 1);
        rows.give_back(reservation);
        assert_eq!(rows.available(), 1);
    }

    #[test]
    fn a_shortage_names_both_numbers_and_changes_nothing() {
        let mut rows = Rows::new(Tier::Pool, 3);
        let held = rows.reserve(2).expect("three rows are free");
        let shortage = rows.reserve(2).expect_err("one is left");
        assert_eq!(shortage.to_string(), "2 rows wanted, 1 available");
        assert_eq!(rows.available(), 1);
        rows.give_back(held);
    }

    #[test]
    #[should_panic(expected = "leak")]
    fn a_dropped_promise_is_noticed() {
        let mut rows = Rows::new(Tier::Pool, 3);
        drop(rows.reserve(2).expect("three rows are free"));
    }
}
