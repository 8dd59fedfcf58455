//! Decides about KV and never touches its bytes: units, geometry, rows, row tables, selection arithmetic.
//!
//! Pure: same calls, same answers. No IO, no clock, no threads, no device (ARCHITECTURE.md, invariant 1).

pub mod unit;

pub mod geometry;

pub mod page_entry;

pub mod selection;

pub use geometry::{Geometry, PAGE_TOKENS};
pub use page_entry::PageEntry;
pub use selection::Selection;
pub use unit::{LaneId, RowId, SequenceId, TokenId};
