//! How a sequence comes onto a lane: everything is uploaded, two small kernels put it in place.

use crate::abi::{LaneArgument, Pointer, SamplingArgument, SelectionArgument, TOP_MAX};
use crate::kernels::{Launch, arg};
use crate::residency;
use crate::runtime::CudaRuntime;
use backend::{FirstInput, LaneStart, Sampling};
use kv::{PAGE_TOKENS, RowId, Selection, TokenId};

/// `Start` of kernels/sample.cu: addresses are 0 for what is not there.
#[repr(C)]
#[derive(Clone, Copy)]
struct StartArgument {
    lane: Pointer,
    kv_rows: Pointer,
    summary_rows: Pointer,
    mask: Pointer,
    prompt: Pointer,
    biases: Pointer,
    suppressed: Pointer,
    id: i32,
    kv_count: i32,
    summary_count: i32,
    prompt_count: i32,
    bias_count: i32,
    suppressed_count: i32,
    /// The completion's first token where it is counted, or -1.
    given: i32,
}

/// See [`backend::Runtime`].
pub(crate) fn start_lane(rt: &CudaRuntime, start: &LaneStart) {
    // The prompt's Index runs aside.
    rt.join();
    let (sampling, pages) = (&start.sampling, rt.argument.max_pages as usize);
    assert!(start.lane.at() < rt.shape.max_lanes, "{} of {} lanes", start.lane, rt.shape.max_lanes);
    assert!(start.kv_rows.len() <= pages && start.summary_rows.len() <= pages, "tables of at most {pages} rows");
    assert!(sampling.top_logprobs <= TOP_MAX, "at most {TOP_MAX} most likely tokens");
    let lane = lane_argument(rt, start);
    let penalised = lane.sampling.penalised == 1;
    let prompt: &[TokenId] = if penalised { &start.prompt } else { &[] };
    let biases = biases(sampling);
    let given = match start.first {
        FirstInput::Given(token) if penalised => token as i32,
        _ => -1,
    };
    let argument = StartArgument {
        lane: upload(rt, &words_of(&lane)),
        kv_rows: upload(rt, &rows(&start.kv_rows)),
        summary_rows: upload(rt, &rows(&start.summary_rows)),
        mask: upload(rt, start.mask.as_ref().map_or(&[], |mask| mask.words())),
        prompt: upload(rt, prompt),
        biases: upload(rt, biases.as_flattened()),
        suppressed: upload(rt, &sampling.suppressed),
        id: i32::from(start.lane.0),
        kv_count: start.kv_rows.len() as i32,
        summary_count: start.summary_rows.len() as i32,
        prompt_count: prompt.len() as i32,
        bias_count: biases.len() as i32,
        suppressed_count: sampling.suppressed.len() as i32,
        given,
    };
    let how = Launch { kernel: "start_lane", grid: [32, 1, 1], threads: 256, shared: 0 };
    rt.run(how, &[arg(&rt.argument), arg(&argument)]);
    if 0 < rt.shape.dram_rows {
        residency::start_cache(rt, start.lane, &start.cache_rows);
    }
    if penalised || !biases.is_empty() || !sampling.suppressed.is_empty() {
        let how = Launch { kernel: "mark_lane", grid: [32, 1, 1], threads: 256, shared: 0 };
        rt.run(how, &[arg(&rt.argument), arg(&argument)]);
    }
}

/// Uploads words, if there are any.
fn upload(rt: &CudaRuntime, words: &[u32]) -> Pointer {
    if words.is_empty() { 0 } else { rt.upload(words) }
}

fn rows(table: &[RowId]) -> Vec<u32> {
    table.iter().map(|row| row.0).collect()
}

/// A lane's words as they lie in memory.
fn words_of(lane: &LaneArgument) -> Vec<u32> {
    let first = std::ptr::from_ref(lane).cast::<u32>();
    // SAFETY: the struct is `repr(C)` of 4- and 8-byte numbers without gaps between them.
    unsafe { std::slice::from_raw_parts(first, size_of::<LaneArgument>() / 4) }.to_vec()
}

fn lane_argument(rt: &CudaRuntime, start: &LaneStart) -> LaneArgument {
    let (token, generated, prompt_outputs) = match start.first {
        FirstInput::Sampled => (0, 0, 0),
        FirstInput::Given(token) => (token, 1, 0),
        FirstInput::Prompt { token, outputs } => (token, 0, outputs),
    };
    LaneArgument {
        algorithm: i32::from(start.algorithm.0),
        len: start.len as i32,
        token: token as i32,
        forced: -1,
        generated,
        prompt_outputs: prompt_outputs as i32,
        masked: start.mask.is_some().into(),
        mass_count: 0,
        selection: selection_argument(&start.selection),
        sampling: sampling_argument(&start.sampling, rt.shape.vocab),
        mass: 0.0,
    }
}

/// Numbers beyond every sequence stay so.
fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// A selection as kernels see it.
fn selection_argument(selection: &Selection) -> SelectionArgument {
    SelectionArgument {
        unit: int(selection.index_unit_tokens),
        sink_pages: int(selection.sink_pages()),
        floor_pages: int(selection.floor_tokens.div_ceil(PAGE_TOKENS)),
        min_context: int(selection.min_context),
        window: selection.window_tokens as i64,
        budget: selection.budget,
    }
}

/// Sampling as kernels see it; `top_k` is 0 where it keeps all of the vocabulary.
fn sampling_argument(s: &Sampling, vocab: usize) -> SamplingArgument {
    let penalised = s.repetition_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0;
    SamplingArgument {
        temperature: s.temperature,
        top_p: s.top_p,
        min_p: s.min_p,
        repetition: s.repetition_penalty,
        presence: s.presence_penalty,
        frequency: s.frequency_penalty,
        top_k: if s.top_k < vocab { s.top_k as i32 } else { 0 },
        top_count: s.top_logprobs.min(vocab) as i32,
        min_tokens: int(s.min_tokens),
        choice: s.choice as i32,
        seed_low: s.seed as u32,
        seed_high: (s.seed >> 32) as u32,
        penalised: penalised.into(),
        biased: (!s.logit_bias.is_empty()).into(),
        suppresses: (!s.suppressed.is_empty()).into(),
        reserved: 0,
    }
}

/// Token and bits of the bias, each token once.
fn biases(s: &Sampling) -> Vec<[u32; 2]> {
    let mut sums: Vec<(TokenId, f32)> = Vec::with_capacity(s.logit_bias.len());
    for (token, bias) in &s.logit_bias {
        match sums.iter_mut().find(|(known, _)| known == token) {
            Some((_, sum)) => *sum += bias,
            None => sums.push((*token, *bias)),
        }
    }
    sums.into_iter().map(|(token, sum)| [token, sum.to_bits()]).collect()
}
