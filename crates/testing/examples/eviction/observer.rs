//! An algorithm around another that writes down what it selects. Works where ops run at once, as on the CPU.

use crate::recording::Step;
use backend::{AlgorithmId, IndexUnits, Runtime, View};
use kv::selection::Selected;
use kv::{LaneId, RowId, Selection};
use sparse::{Algorithm, AttendBuffers};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// What was seen: `[layer][KV head][step]`.
pub(crate) type Seen = Vec<Vec<Vec<Step>>>;

/// What observers share.
pub(crate) struct Notebook {
    /// The one lane that decodes.
    pub(crate) lane: LaneId,
    /// What it selects by.
    pub(crate) selection: Selection,
    /// The page of each row.
    pub(crate) pages: HashMap<RowId, u32>,
    /// What was seen.
    pub(crate) seen: Mutex<Seen>,
}

/// The observer.
pub(crate) struct Observer {
    /// The algorithm that runs.
    pub(crate) inner: Box<dyn Algorithm>,
    /// Where it is written down.
    pub(crate) notebook: Arc<Notebook>,
}

impl Notebook {
    fn write_down(&self, runtime: &dyn Runtime, layer: usize) {
        let scores = runtime.read_page_scores(self.lane, true);
        let mut seen = self.seen.lock().expect("no observer panicked");
        let heads = seen[layer].len();
        let indexed = scores.len() / heads;
        for (head, steps) in seen[layer].iter_mut().enumerate() {
            let list = runtime.read_page_list(self.lane, head);
            let last = list.last().expect("a step attends its own token");
            let len = self.pages[&last.row()] as usize * kv::PAGE_TOKENS + last.first() + last.count();
            let Selected::Pages { sink, indexed: b, k } = self.selection.at(len) else {
                panic!("at {len} tokens nothing is selected")
            };
            assert_eq!(b, indexed, "the list's end is the lane's length");
            let pages: Vec<u32> = list.iter().map(|entry| self.pages[&entry.row()]).collect();
            let pages: Vec<u32> = pages.into_iter().filter(|page| (sink..b).contains(&(*page as usize))).collect();
            assert_eq!(pages.len(), k, "k pages are selected");
            steps.push(Step { pages, scores: scores[head * indexed..][sink..b].to_vec() });
        }
    }
}

impl Algorithm for Observer {
    fn index(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, units: IndexUnits<'_>) {
        self.inner.index(runtime, id, layer, units);
    }

    fn select(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>) {
        self.inner.select(runtime, id, layer, q);
        self.notebook.write_down(runtime, layer);
    }

    fn attend(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>, buffers: &AttendBuffers) {
        self.inner.attend(runtime, id, layer, q, buffers);
    }

    fn estimate(
        &self,
        runtime: &dyn Runtime,
        id: AlgorithmId,
        layer: usize,
        q: View<'_>,
        buffers: &AttendBuffers,
    ) -> bool {
        self.inner.estimate(runtime, id, layer, q, buffers)
    }
}
