//! sample, score_tokens, and what prefills bring back: records in pinned memory that a ticket takes with it.

use crate::abi::{LaneOutputArgument, Pointer, TOP_MAX};
use crate::driver::Pinned;
use crate::kernels::{Launch, arg};
use crate::runtime::{CudaRuntime, view};
use backend::{BackendError, Batch, LaneOutput, Retrieved, RuntimeShape, SampleTarget, TokenScore, View};
use kv::{LaneId, TokenId};

/// Blocks that scan a row of logits.
const PARTS: usize = 16;

/// Their threads.
const SCAN_THREADS: usize = 512;

/// Rows that one launch of `score_tokens` takes: what a prefill puts through the output matrix at once.
const SCORE_ROWS: usize = 64;

/// Bytes of a row's scratch, beside its list of tokens.
const HEAD_BYTES: usize = 8192 + 4 * 8192;

/// Tickets that may be in flight.
const TICKETS: usize = 2;

/// Tokens of the largest vocabulary: sums of a filter's weights have 32 bits.
pub(crate) const VOCAB_MOST: i32 = 1 << 18;

/// Bytes of the most rows' scores, with as many most likely tokens as can be.
const SCORES_BYTES: usize = SCORE_ROWS * score_bytes(TOP_MAX);

/// Places for them that are pinned together.
const SLAB_PLACES: usize = 64;

/// Places that two tickets can hold, each with the scores of one part of a prompt.
const fn score_places(max_tokens: usize) -> usize {
    TICKETS * max_tokens.div_ceil(SCORE_ROWS)
}

/// Scratch of `sample` and `score_tokens`.
pub(crate) fn scratch_bytes(lanes: usize, vocab: usize) -> usize {
    HEAD_BYTES * lanes.max(SCORE_ROWS) + 4 * lanes * vocab
}

/// Bytes of one token's score.
const fn score_bytes(top: usize) -> usize {
    16 + 8 * top
}

/// `Target` of kernels/sample.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct TargetArgument {
    /// Lanes, then their records' numbers; 0 for the active lanes.
    lanes: Pointer,
    records: Pointer,
}

/// See [`backend::Runtime`].
pub(crate) fn sample(rt: &CudaRuntime, logits: View<'_>, target: SampleTarget<'_>) {
    let (n, target) = match target {
        SampleTarget::Lanes => (rt.rows(Batch::Lanes), TargetArgument { lanes: 0, records: 0 }),
        SampleTarget::Prefill(lanes) => {
            let (places, records) = rt.prefilled.lock().expect("no sample panicked").claim(lanes.len());
            let words: Vec<u32> = lanes.iter().map(|lane| u32::from(lane.0)).chain(places).collect();
            (lanes.len(), TargetArgument { lanes: rt.upload(&words), records })
        }
    };
    let logits = logits_of(rt, logits, "sample");
    for kernel in ["sample_scan", "sample_bins", "sample_draw"] {
        let how = Launch { kernel, grid: [PARTS, n, 1], threads: SCAN_THREADS, shared: 0 };
        rt.run(how, &[arg(&rt.argument), arg(&logits), arg(&target)]);
    }
}

/// See [`backend::Runtime`].
pub(crate) fn score_tokens(rt: &CudaRuntime, logits: View<'_>, targets: &[TokenId], top: usize) {
    assert!(top <= TOP_MAX, "at most {TOP_MAX} most likely tokens");
    for (block, targets) in targets.chunks(SCORE_ROWS).enumerate() {
        let rows = View { row: logits.row + block * SCORE_ROWS, ..logits };
        let records = rt.prefilled.lock().expect("no sample panicked").claim_scores(targets.len(), top);
        let records = records.unwrap_or_else(|error| {
            rt.note(Err(error));
            0
        });
        let how = Launch { kernel: "score_tokens", grid: [PARTS, targets.len(), 1], threads: SCAN_THREADS, shared: 0 };
        let (targets, top) = (rt.upload(targets), top as i32);
        let rows = logits_of(rt, rows, "score_tokens");
        rt.run(how, &[arg(&rt.argument), arg(&rows), arg(&targets), arg(&top), arg(&records)]);
    }
}

fn logits_of(rt: &CudaRuntime, logits: View<'_>, op: &str) -> crate::abi::ViewArgument {
    let logits = view(logits);
    assert_eq!(logits.cols, rt.argument.vocab, "{op}: the logits are as wide as the vocabulary");
    assert_eq!(logits.is_bf16, 0, "{op}: logits are f32");
    logits
}

/// A lane's output as the host has it.
pub(crate) fn lane_output(argument: &LaneOutputArgument) -> LaneOutput {
    let top = argument.top_tokens.iter().zip(&argument.top_logprobs).take(argument.top_count as usize);
    LaneOutput {
        lane: LaneId(argument.lane as u16),
        token: argument.token as TokenId,
        logprob: argument.logprob,
        top: top.map(|(token, logprob)| (*token as TokenId, *logprob)).collect(),
        exact_tokens: argument.exact_tokens as usize,
        retrieved: Retrieved { hits: argument.hits.into(), misses: argument.misses.into() },
        attention_mass: (0.0 <= argument.mass).then_some(argument.mass),
    }
}

/// Where prefills' outputs land, and who has which place. Both are bounded by what two tickets can hold: an output for
/// every lane each, and the scores of one part of a prompt, which is no longer than a sequence.
pub(crate) struct Prefilled {
    /// `[2 * max_lanes]` records.
    outputs: Pinned,
    /// Records that nobody has.
    free_outputs: Vec<u32>,
    /// Places of [`SCORES_BYTES`], [`SLAB_PLACES`] each, pinned when first needed: few requests ask for scores.
    slabs: Vec<Pinned>,
    /// Places (numbers over all slabs) that nobody has.
    free_scores: Vec<usize>,
    /// Most places that may be taken.
    places: usize,
    /// What the next ticket takes.
    open: Closed,
}

/// What a ticket brings back, in call order.
#[derive(Default)]
pub(crate) struct Closed {
    outputs: Vec<u32>,
    scores: Vec<Scores>,
}

/// One launch of `score_tokens`.
struct Scores {
    place: usize,
    count: usize,
    top: usize,
}

impl Prefilled {
    /// Pins the outputs' records.
    pub(crate) fn new(shape: &RuntimeShape) -> Result<Self, BackendError> {
        let outputs = TICKETS * shape.max_lanes;
        Ok(Prefilled {
            outputs: Pinned::new(outputs * size_of::<LaneOutputArgument>())?,
            free_outputs: (0..outputs as u32).rev().collect(),
            slabs: Vec::new(),
            free_scores: Vec::new(),
            places: score_places(shape.max_tokens),
            open: Closed::default(),
        })
    }

    /// Numbers of `count` records for the open ticket, and where they are counted from.
    fn claim(&mut self, count: usize) -> (Vec<u32>, Pointer) {
        let kept = self.free_outputs.len().checked_sub(count);
        let claimed = self.free_outputs.split_off(kept.expect("tickets are collected before lanes start again"));
        self.open.outputs.extend(&claimed);
        (claimed, self.outputs.device)
    }

    /// A place for `count` scores of the open ticket.
    fn claim_scores(&mut self, count: usize, top: usize) -> Result<Pointer, BackendError> {
        let taken = self.slabs.len() * SLAB_PLACES - self.free_scores.len();
        assert!(taken < self.places, "at most {} scores are in flight", self.places * SCORE_ROWS);
        if self.free_scores.is_empty() {
            let first = self.slabs.len() * SLAB_PLACES;
            self.slabs.push(Pinned::new(SLAB_PLACES * SCORES_BYTES)?);
            self.free_scores.extend((first..first + SLAB_PLACES).rev());
        }
        let place = self.free_scores.pop().expect("a slab has places");
        self.open.scores.push(Scores { place, count, top });
        Ok(self.slabs[place / SLAB_PLACES].device + (place % SLAB_PLACES * SCORES_BYTES) as u64)
    }

    /// Ends the open ticket: it brings back what was claimed since the one before it.
    pub(crate) fn close(&mut self) -> Closed {
        std::mem::take(&mut self.open)
    }

    /// Reads what a ticket brings back; what was launched before it is done.
    pub(crate) fn take(&mut self, closed: Closed) -> (Vec<LaneOutput>, Vec<TokenScore>) {
        let records = self.outputs.host.cast::<LaneOutputArgument>();
        // SAFETY: numbers below the count of records; the device wrote them before the ticket's event.
        let output = |number: &u32| lane_output(&unsafe { records.add(*number as usize).read_volatile() });
        let outputs = closed.outputs.iter().map(output).collect();
        let scores = closed.scores.iter().flat_map(|scores| self.read_scores(scores)).collect();
        self.free_outputs.extend(&closed.outputs);
        self.free_scores.extend(closed.scores.iter().map(|scores| scores.place));
        (outputs, scores)
    }

    fn read_scores(&self, scores: &Scores) -> Vec<TokenScore> {
        let (words, top) = (score_bytes(scores.top) / 4, scores.top);
        let slab = &self.slabs[scores.place / SLAB_PLACES];
        // SAFETY: a place of the slab, whose records are aligned to 4 bytes; the device wrote them before the event.
        let record = |n: usize| unsafe {
            let first = slab.host.add(scores.place % SLAB_PLACES * SCORES_BYTES).cast::<u32>().add(n * words);
            std::slice::from_raw_parts(first, words)
        };
        let score = |n: usize| {
            let record = record(n);
            let (tokens, logprobs) = record[4..].split_at(top);
            TokenScore {
                token: record[0],
                logprob: f32::from_bits(record[1]),
                rank: record[2],
                top: tokens.iter().zip(logprobs).map(|(token, bits)| (*token, f32::from_bits(*bits))).collect(),
            }
        };
        (0..scores.count).map(score).collect()
    }
}
