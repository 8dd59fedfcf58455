//! Ids and the one place where they become array positions.

use std::fmt;

/// A token of the vocabulary.
pub type TokenId = u32;

/// A running sequence's stable place in `0..max_lanes` of the backend's per-lane buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u16);

/// One page-sized frame for every (layer, KV head) of the pool. At most 2^26 rows, the width of a page entry's field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(pub u32);

/// One token stream; never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

impl LaneId {
    /// The lane as an array position.
    pub fn at(self) -> usize {
        usize::from(self.0)
    }
}

impl RowId {
    /// The row as an array position.
    pub fn at(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lane {}", self.0)
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {}", self.0)
    }
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}
