//! Decides about KV and never touches its bytes: units, geometry, rows, row tables, selection arithmetic, eviction.
//!
//! Pure: same calls, same answers. No IO, no clock, no threads, no device (ARCHITECTURE.md, invariant 1).

pub mod unit;

pub mod geometry;

pub mod page_entry;

pub mod selection;

pub mod rows;

pub mod row_table;

pub mod sequence;

pub mod kept_prefix;

pub mod demand;

pub mod bucketed_lru;

#[cfg(test)]
mod noise;

#[cfg(test)]
mod rows_fuzz;

#[cfg(test)]
mod sequence_fuzz;

#[cfg(test)]
mod selection_fuzz;

#[cfg(test)]
mod bucketed_lru_fuzz;

pub use demand::{Demand, RowCounts};
pub use geometry::{Geometry, PAGE_TOKENS};
pub use kept_prefix::KeptPrefix;
pub use page_entry::PageEntry;
pub use row_table::RowTable;
pub use rows::{Reservation, Rows, Shortage};
pub use selection::Selection;
pub use sequence::{Growth, Indexing, SequenceKv, SummaryKey};
pub use unit::{LaneId, RowId, SequenceId, TokenId};
