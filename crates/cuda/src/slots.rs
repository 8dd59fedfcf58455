//! Where the tags and ages of lanes' cache rows lie: in groups of neighbours, so that blocks which work on different
//! lanes' slots never meet in a sector of memory, whichever rows the slots have.
//!
//! Nobody says when a lane has ended. But a row is in one cache at a time, so a lane whose row joins another's cache
//! has no slots any more: lanes' lists of rows are disjoint, and there is always a group for whoever needs one.

use kv::{LaneId, RowId};

/// Slots of a group: `GROUP_SLOTS` of kernels/runtime.cuh.
pub(crate) const GROUP_SLOTS: usize = 32;

/// Groups that serve any caches of a pool.
pub(crate) fn groups(pool_rows: usize, max_lanes: usize) -> usize {
    pool_rows.div_ceil(GROUP_SLOTS) + max_lanes
}

/// All lanes' slots.
pub(crate) struct Slots {
    lanes: Vec<Lane>,
    /// Of each pool row, whose cache it is in.
    owners: Vec<Option<LaneId>>,
    /// Last in, first out.
    free: Vec<u32>,
}

/// One lane's: the slots' rows, and the groups that serve them.
#[derive(Clone, Default)]
struct Lane {
    rows: Vec<RowId>,
    groups: Vec<u32>,
}

impl Slots {
    /// None yet.
    pub(crate) fn new(pool_rows: usize, max_lanes: usize) -> Self {
        let free = (0..groups(pool_rows, max_lanes) as u32).rev().collect();
        Slots { lanes: vec![Lane::default(); max_lanes], owners: vec![None; pool_rows], free }
    }

    /// How many a lane has.
    pub(crate) fn count(&self, lane: LaneId) -> usize {
        self.lanes[lane.at()].rows.len()
    }

    /// The groups of a lane's slots.
    pub(crate) fn groups(&self, lane: LaneId) -> &[u32] {
        &self.lanes[lane.at()].groups
    }

    /// A lane keeps its first `keep` slots and gets others behind them.
    pub(crate) fn change(&mut self, lane: LaneId, keep: usize, join: impl Iterator<Item = RowId>) {
        self.cut(lane, keep);
        for row in join {
            if let Some(ended) = self.owners[row.at()].replace(lane) {
                assert_ne!(ended, lane, "{row} joins the cache that it is in");
                self.cut(ended, 0);
                self.owners[row.at()] = Some(lane);
            }
            self.lanes[lane.at()].rows.push(row);
        }
        let Lane { rows, groups } = &mut self.lanes[lane.at()];
        while groups.len() < rows.len().div_ceil(GROUP_SLOTS) {
            groups.push(self.free.pop().expect("caches have no more rows than the pool"));
        }
    }

    fn cut(&mut self, lane: LaneId, keep: usize) {
        let Lane { rows, groups } = &mut self.lanes[lane.at()];
        rows.drain(keep..).for_each(|row| self.owners[row.at()] = None);
        self.free.extend(groups.drain(keep.div_ceil(GROUP_SLOTS)..).rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(range: std::ops::Range<u32>) -> impl Iterator<Item = RowId> {
        range.map(RowId)
    }

    #[test]
    fn a_lane_whose_row_joins_another_cache_has_ended() {
        let (a, b) = (LaneId(0), LaneId(1));
        let mut slots = Slots::new(100, 2);
        slots.change(a, 0, rows(0..40));
        assert_eq!(slots.groups(a), [0, 1]);
        slots.change(b, 0, rows(50..90));
        slots.change(b, 33, rows(90..100));
        assert_eq!((slots.count(b), slots.groups(b)), (43, &[2, 3][..]));
        slots.change(b, 10, rows(39..41));
        assert_eq!((slots.count(a), slots.count(b), slots.groups(b)), (0, 12, &[2][..]));
        for _ in 0..100 {
            slots.change(a, 0, rows(0..39));
            slots.change(b, 0, rows(0..100));
            assert_eq!((slots.count(a), slots.groups(b).len()), (0, 4));
        }
    }
}
