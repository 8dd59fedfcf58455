//! Decides about KV and never touches its bytes: units, geometry, rows, row tables, residency, budgets, selection
//! arithmetic, eviction.
//!
//! Pure: same calls, same answers. No IO, no clock, no threads, no device (ARCHITECTURE.md, invariant 1).

pub mod unit;

pub mod geometry;

pub mod page_entry;

pub mod selection;

pub mod bucketed_lru;

pub mod rows;

pub mod tiers;

pub mod row_table;

pub mod promise;

pub mod sequence;

pub mod residency;

pub mod parking;

pub mod kept_prefix;

pub mod demand;

pub mod budget;

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
pub use parking::{Moves, Presence};
pub use promise::Promise;
pub use residency::{Cache, Emptied, Residence};
pub use row_table::RowTable;
pub use rows::{Reservation, Rows, Shortage};
pub use selection::Selection;
pub use sequence::{Growth, HeldRows, Indexing, Move, RowCopies, SequenceKv, SummaryKey};
pub use tiers::Tiers;
pub use unit::{LaneId, RowId, SequenceId, Tier, TokenId};
