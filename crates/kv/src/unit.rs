//! Ids and the one place where they become array positions.

use std::fmt;

/// A token of the vocabulary.
pub type TokenId = u32;

/// A running sequence's stable place in `0..max_lanes` of the backend's per-lane buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u16);

/// One page-sized frame for every (layer, KV head), in one of the tiers: a plain number names a row of the pool, one
/// that [`RowId::dram`] makes a row of host memory. At most 2^26 rows a tier, the width of a page entry's field.
/// Shared bit for bit with the CUDA kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(pub u32);

/// Where rows lie: every tier is an array of the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The device's memory (on a CPU a byte-capped part of memory): what attention reads.
    Pool,
    /// Host memory: what a step can fetch from.
    Dram,
}

/// Set in the numbers of rows of the Dram tier.
const DRAM: u32 = 1 << 31;

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
    /// Row `at` of the Dram tier.
    pub fn dram(at: u32) -> Self {
        RowId(DRAM | at)
    }

    /// Row `at` of a tier.
    pub fn of(tier: Tier, at: u32) -> Self {
        match tier {
            Tier::Pool => RowId(at),
            Tier::Dram => RowId::dram(at),
        }
    }

    /// The tier that the row is in.
    pub fn tier(self) -> Tier {
        if self.0 & DRAM == 0 { Tier::Pool } else { Tier::Dram }
    }

    /// The row as a position in its tier's array.
    pub fn at(self) -> usize {
        (self.0 & !DRAM) as usize
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lane {}", self.0)
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tier() {
            Tier::Pool => write!(f, "row {}", self.at()),
            Tier::Dram => write!(f, "host row {}", self.at()),
        }
    }
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}
