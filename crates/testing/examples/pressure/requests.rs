//! What is asked: a document each, and a question about it.

use backend::Sampling;
use engine::{Attention, Request, Source};
use kv::{Demand, Geometry, Indexing, Residence, SummaryKey};
use model::{Opened, needle_text};
use sparse::{AlgorithmSpec, Specs};

/// Sequences that decode at once.
pub(crate) const SEQUENCES: usize = 64;

/// Sequences whose K and V the pressed pool has room for.
pub(crate) const HELD_DENSE: usize = 16;

/// Tokens of a document.
pub(crate) const CONTEXT: usize = 16 << 10;

/// Tokens of an answer: what the turns take, and as much as the first sequences write while the last prompt is read.
pub(crate) const GENERATED: usize = 640;

/// Codes hidden in a document.
const FACTS: usize = 200;

/// All requests of one algorithm, its default selection.
pub(crate) struct Workload {
    /// In arrival order.
    pub(crate) requests: Vec<Request>,
    /// The model's algorithms.
    pub(crate) algorithms: Vec<AlgorithmSpec>,
    geometry: Geometry,
    indexing: Indexing,
}

/// Rows of all sequences, and of the pools.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Tokens of all prompts.
    pub(crate) prompt_tokens: usize,
    /// The longest sequence, in tokens.
    pub(crate) longest: usize,
    /// K and V of all sequences to their ends.
    pub(crate) kv_rows: usize,
    /// Their summaries.
    pub(crate) summary_rows: usize,
    /// K and V of `HELD_DENSE` sequences, the longest ones.
    pub(crate) pressed_rows: usize,
    /// Pages that a step of one sequence selects at most.
    pub(crate) selected: usize,
    /// Bytes of a page of one layer and KV head.
    pub(crate) page_bytes: usize,
    /// Bytes of a row.
    pub(crate) row_bytes: usize,
}

impl Workload {
    pub(crate) fn new(opened: &Opened, algorithm: &str, context: usize) -> Self {
        let geometry = opened.config().geometry();
        let specs = Specs::of(geometry);
        let id = specs.by_name(algorithm).expect("a known algorithm");
        let (spec, selection) = (specs.get(id), specs.get(id).selection());
        let row_tokens = spec.summary_row_tokens.expect("it keeps summaries");
        let indexing = Indexing { key: SummaryKey { algorithm: id.0, row_tokens }, selection };
        let request = |seed: u64| {
            let attention = Attention { algorithm: id, selection };
            let mut request = Request::new(Source::Prompt(prompt(context, seed)), attention, GENERATED);
            request.sampling = Sampling { temperature: 0.8, top_p: 0.95, seed, ..Sampling::default() };
            // Every sequence has rows of its own.
            request.cache = false;
            request.ignore_eos = true;
            request
        };
        let requests = (0..SEQUENCES as u64).map(request).collect();
        Workload { requests, algorithms: specs.all().to_vec(), geometry, indexing }
    }

    /// What the requests take, fully resident.
    pub(crate) fn sizes(&self) -> Sizes {
        let mut demands: Vec<Demand> = self.requests.iter().map(|request| self.demand(request)).collect();
        demands.sort_by_key(|demand| std::cmp::Reverse(demand.total().kv));
        let kv = |demands: &[Demand]| demands.iter().map(|demand| demand.total().kv).sum();
        Sizes {
            prompt_tokens: demands.iter().map(|demand| demand.start).sum(),
            longest: demands[0].end,
            kv_rows: kv(&demands),
            summary_rows: demands.iter().map(|demand| demand.total().summary).sum(),
            pressed_rows: kv(&demands[..HELD_DENSE]),
            selected: demands[0].selected_most(),
            page_bytes: self.geometry.page_bytes(),
            row_bytes: self.geometry.row_bytes(),
        }
    }

    fn demand(&self, request: &Request) -> Demand {
        let start = request.tokens().len();
        Demand::alone(start, start + GENERATED + 1, self.indexing, Residence::Full)
    }
}

fn prompt(context: usize, seed: u64) -> Vec<u32> {
    let document = needle_text::document(context, FACTS, seed);
    let mut tokens = document.ids();
    tokens.extend(needle_text::ids(&document.facts[FACTS / 2].question()));
    tokens
}
