//! The made-up device: rows of tags, staging, lanes, and a clock that every op moves. Checks how the contract is used.

use super::naive::{self, drawn, fold, tag};
use super::noise::Noise;
use backend::{
    AlgorithmId, CacheChange, FirstInput, LaneOutput, LaneStart, Retrieved, RowCopy, RowDelta, RowTableKind, StepInput,
    StepKey, StepOutput,
};
use engine::{PASSES_MAX, PassView};
use kv::bucketed_lru::{self, Eviction, Resolved, Scores, Tag};
use kv::{LaneId, PAGE_TOKENS, RowId, Tier, TokenId};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

/// Virtual seconds per amount of work.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// A token through a layer.
    pub linear: f64,
    /// A query token against a key token in a layer.
    pub attend: f64,
    /// A token copied or summarised in a layer.
    pub copy: f64,
    /// A prompt's sampling.
    pub sample: f64,
    /// A prompt's token that is scored.
    pub score: f64,
    /// A decode step.
    pub decode: f64,
    /// A lane of a decode step.
    pub lane: f64,
    /// Share by which everything varies.
    pub jitter: f64,
}

impl Default for Costs {
    fn default() -> Self {
        Costs {
            linear: 2e-5,
            attend: 2e-9,
            copy: 1e-7,
            sample: 1e-3,
            score: 3e-5,
            decode: 4e-3,
            lane: 2e-4,
            jitter: 0.2,
        }
    }
}

/// Everything the device remembers.
pub struct Device {
    layers: usize,
    /// Rows of the pool and of host memory.
    rows: [usize; 2],
    costs: Costs,
    state: Mutex<State>,
}

struct State {
    seconds: f64,
    noise: Noise,
    /// `[row][layer][token]`; host memory's rows are behind the pool's.
    kv: Vec<u64>,
    /// `[row][layer][token]`, of the tokens that a summary row describes.
    summaries: Vec<u64>,
    staging: [Staging; PASSES_MAX],
    lanes: Vec<Option<Lane>>,
    /// First tokens that were drawn, and scores, that are not collected.
    prefilled: StepOutput,
    /// Lanes of launched steps that are not collected, and the row that each writes: pushed by `decode`, popped by
    /// `collected`.
    in_flight: VecDeque<Vec<(LaneId, RowId)>>,
}

/// One pass's buffers.
#[derive(Default)]
struct Staging {
    /// The pass that works in it: its first position, end and tokens' tag.
    pass: Option<(usize, usize)>,
    layer: usize,
    /// Positions of `layer` that are done.
    done: usize,
    /// Tags of `layer`.
    tags: Vec<u64>,
    /// Hidden state of the prompt's last token behind the last layer: all tags in one number. Left by the last range
    /// of a prompt, gone when another pass begins, taken by `prefill_sample`.
    hidden: Option<u64>,
}

#[derive(Clone)]
struct Lane {
    start: LaneStart,
    /// What its cache rows hold, and since when: one layer and head for all.
    slots: (Vec<Tag>, Vec<u8>),
    len: usize,
    token: Option<TokenId>,
    steps: usize,
}

/// Tokens of the widest summary row.
const SUMMARY_TOKENS_MAX: usize = 128;

impl Device {
    /// A device with an empty pool.
    pub fn new(rows: [usize; 2], layers: usize, lanes: usize, costs: Costs, seed: u64) -> Self {
        let all: usize = rows.iter().sum();
        let state = State {
            seconds: 0.0,
            noise: Noise(seed),
            kv: vec![0; all * layers * PAGE_TOKENS],
            summaries: vec![0; all * layers * SUMMARY_TOKENS_MAX],
            staging: Default::default(),
            lanes: vec![None; lanes],
            prefilled: StepOutput::default(),
            in_flight: VecDeque::new(),
        };
        Device { layers, rows, costs, state: Mutex::new(state) }
    }

    pub(super) fn layers(&self) -> usize {
        self.layers
    }

    /// A row's place among those of all tiers.
    fn at(&self, row: RowId) -> usize {
        let (first, rows) = match row.tier() {
            Tier::Pool => (0, self.rows[0]),
            Tier::Dram => (self.rows[0], self.rows[1]),
        };
        assert!(row.at() < rows, "{row} of {rows}");
        first + row.at()
    }

    pub(super) fn copy_rows(&self, copies: &[RowCopy]) {
        let mut state = self.lock();
        for copy in copies {
            let (kv, summary) = (self.layers * PAGE_TOKENS, self.layers * SUMMARY_TOKENS_MAX);
            state.check_unused(copy.target);
            // The copy comes behind the step that writes its source: what comes behind the copy may use the row.
            state.in_flight.iter_mut().for_each(|step| step.retain(|(_, row)| *row != copy.source));
            let (source, target) = (self.at(copy.source), self.at(copy.target));
            state.kv.copy_within(source * kv..(source + 1) * kv, target * kv);
            state.summaries.copy_within(source * summary..(source + 1) * summary, target * summary);
            self.spend(&mut state, self.costs.copy * self.layers as f64);
        }
    }

    pub(super) fn start_lane(&self, start: &LaneStart) {
        let mut state = self.lock();
        assert_eq!(start.kv_rows.len(), start.len.div_ceil(PAGE_TOKENS), "{}: a table of whole pages", start.lane);
        let in_use = state.in_flight.iter().flatten().any(|(lane, _)| *lane == start.lane);
        assert!(!in_use, "{} is started while a step in flight uses it", start.lane);
        let slots = vec![(Tag::EMPTY, 0); start.cache_rows.len()].into_iter().unzip();
        let lane = Lane { start: start.clone(), slots, len: start.len, token: start.first.token(), steps: 0 };
        self.check_lane(&state, &lane);
        state.lanes[start.lane.at()] = Some(lane);
    }

    pub(super) fn change_cache(&self, change: &CacheChange) {
        let mut state = self.lock();
        let mut lane = state.lanes[change.lane.at()].clone().expect("a lane that changes was started");
        for &(page, row) in &change.moves {
            let before = std::mem::replace(&mut lane.start.kv_rows[page], row);
            assert_eq!(self.page(&state, before), self.page(&state, row), "{before} was copied to {row} before");
        }
        for &(at, row) in &change.summary_moves {
            let before = std::mem::replace(&mut lane.start.summary_rows[at], row);
            assert_eq!(self.summary(&state, before), self.summary(&state, row), "{before} was copied to {row} before");
        }
        assert!(change.keep <= lane.slots.0.len(), "slots stay that there are");
        for step in bucketed_lru::shrink(&mut lane.slots.0, &mut lane.slots.1, change.keep) {
            let rows = [step.from, step.to].map(|slot| lane.start.cache_rows[slot as usize]);
            self.copy_page(&mut state, rows[0], rows[1]);
        }
        lane.start.cache_rows.truncate(change.keep);
        lane.slots.0.truncate(change.keep);
        lane.slots.1.truncate(change.keep);
        for &(row, page) in &change.join {
            state.check_unused(row);
            lane.start.cache_rows.push(row);
            lane.slots.0.push(page.map_or(Tag::EMPTY, Tag::of));
            lane.slots.1.push(0);
        }
        state.lanes[change.lane.at()] = Some(lane);
        self.check_slots(&state, change.lane);
        self.spend(&mut state, self.costs.copy * change.join.len() as f64);
    }

    /// Selects some pages of host memory, and reads them through the cache.
    fn retrieve(&self, state: &mut State, key: StepKey, lane: &mut Lane) -> Retrieved {
        let (selection, id) = (lane.start.selection, lane.start.lane);
        let cached = selection.sink_pages()..selection.cached_end(lane.len);
        let in_dram = |page: &usize| lane.start.kv_rows[*page].tier() == Tier::Dram;
        let pages: Vec<usize> = (0..lane.start.kv_rows.len()).filter(in_dram).collect();
        if pages.is_empty() {
            return Retrieved::default();
        }
        assert!(key.retrieves, "{id}: pages in host memory are read by a step that fetches");
        assert_eq!(pages, cached.collect::<Vec<_>>(), "{id}: what may be selected is in host memory, nothing else");
        let k = selection.selected_pages(lane.len);
        let mut selected: Vec<u32> = (0..k).map(|_| pages[state.noise.below(pages.len())] as u32).collect();
        selected.sort_unstable();
        selected.dedup();
        let (tags, ages) = (&mut lane.slots.0, &mut lane.slots.1);
        assert!(k <= tags.len(), "{id}: {k} pages are selected and {} slots there", tags.len());
        let mut resolved = Resolved::default();
        bucketed_lru::resolve(&selected, tags, ages, Scores::default(), Eviction::Age, &mut resolved);
        for miss in &resolved.misses {
            let (home, slot) =
                (lane.start.kv_rows[selected[miss.at] as usize], lane.start.cache_rows[miss.slot as usize]);
            self.copy_page(state, home, slot);
        }
        let misses = resolved.misses.len() as u64;
        Retrieved { hits: selected.len() as u64 - misses, misses }
    }

    /// Every slot holds what its page's home holds.
    fn check_slots(&self, state: &State, id: LaneId) {
        let lane = state.lanes[id.at()].as_ref().expect("it was started");
        for (row, tag) in lane.start.cache_rows.iter().zip(&lane.slots.0) {
            let Some(page) = tag.page() else { continue };
            assert_eq!(self.page(state, *row), self.page(state, lane.start.kv_rows[page]), "{id}: the copy in {row}");
        }
    }

    fn page<'a>(&self, state: &'a State, row: RowId) -> &'a [u64] {
        let len = self.layers * PAGE_TOKENS;
        &state.kv[self.at(row) * len..(self.at(row) + 1) * len]
    }

    fn summary<'a>(&self, state: &'a State, row: RowId) -> &'a [u64] {
        let len = self.layers * SUMMARY_TOKENS_MAX;
        &state.summaries[self.at(row) * len..(self.at(row) + 1) * len]
    }

    fn copy_page(&self, state: &mut State, source: RowId, target: RowId) {
        let len = self.layers * PAGE_TOKENS;
        state.kv.copy_within(self.at(source) * len..(self.at(source) + 1) * len, self.at(target) * len);
    }

    pub(super) fn prefill_gather(&self, pass: &PassView<'_>, layer: usize) {
        let mut state = self.lock();
        self.begin_layer(&mut state, pass, layer);
        let tags: Vec<u64> = (0..pass.first).map(|at| self.kv(&state, pass.kv_rows, layer, at)).collect();
        assert!(tags.iter().all(|&tag| tag != 0), "a prefix is gathered before it is written");
        state.staging[pass.slot].tags = tags;
        self.spend(&mut state, self.costs.copy * pass.first as f64);
    }

    pub(super) fn prefill_layer(&self, pass: &PassView<'_>, layer: usize, tokens: Range<usize>) {
        let mut state = self.lock();
        if tokens.start == pass.first && pass.first == 0 {
            self.begin_layer(&mut state, pass, layer);
        }
        let staging = &mut state.staging[pass.slot];
        assert_eq!(staging.pass, Some((pass.first, pass.first + pass.tokens.len())), "one pass at a time in a slot");
        assert_eq!((staging.layer, staging.done), (layer, tokens.start), "ranges touch each other, layer after layer");
        assert_eq!(staging.tags.len(), tokens.start, "the prefix is gathered");
        for at in tokens.clone() {
            let before = at.checked_sub(1).map_or(0, |before| staging.tags[before]);
            staging.tags.push(tag(before, pass.tokens[at - pass.first]));
        }
        staging.done = tokens.end;
        if pass.last_pass && layer + 1 == self.layers && tokens.end == pass.first + pass.tokens.len() {
            staging.hidden = Some(staging.tags.iter().fold(0, |sum, &tag| fold(sum, tag)));
        }
        let (count, middle) = (tokens.len() as f64, (tokens.start + tokens.end) as f64 / 2.0);
        let score = pass.score.filter(|_| layer + 1 == self.layers);
        if let Some(score) = score {
            let scored = tokens.start..tokens.end.min(pass.first + score.targets.len());
            let of = |at: usize| naive::score(staging.tags[at], score.targets[at - pass.first], score.top);
            let scores: Vec<_> = scored.map(of).collect();
            state.prefilled.scores.extend(scores);
        }
        let seconds = if layer + 1 == self.layers && score.is_none() {
            // Of all tokens but the prompt's last, the last layer needs K and V only.
            count * self.costs.linear * 0.2
        } else {
            let score = if score.is_some() { self.costs.score } else { 0.0 };
            count * (self.costs.linear + self.costs.attend * middle + score)
        };
        self.spend(&mut state, seconds);
    }

    pub(super) fn prefill_scatter(&self, pass: &PassView<'_>, layer: usize) {
        let mut state = self.lock();
        let end = pass.first + pass.tokens.len();
        let staging = &state.staging[pass.slot];
        assert_eq!((staging.layer, staging.done), (layer, end), "a layer is scattered when it is done");
        let tags = staging.tags[pass.first..].to_vec();
        for (at, tag) in (pass.first..end).zip(tags) {
            state.check_unused(pass.kv_rows[at / PAGE_TOKENS]);
            let place = self.kv_place(pass.kv_rows[at / PAGE_TOKENS], layer, at);
            state.kv[place] = tag;
        }
        self.spend(&mut state, self.costs.copy * pass.tokens.len() as f64);
    }

    pub(super) fn index(
        &self,
        algorithm: AlgorithmId,
        layer: usize,
        kv_rows: &[RowId],
        summary_rows: &[RowId],
        tokens: Range<usize>,
    ) {
        let spec = &super::algorithms()[usize::from(algorithm.0)];
        let row_tokens = spec.summary_row_tokens.expect("dense has no Index");
        assert_eq!((tokens.start % spec.index_unit_tokens, tokens.end % spec.index_unit_tokens), (0, 0), "whole units");
        let mut state = self.lock();
        for at in tokens.clone() {
            let tag = self.kv(&state, kv_rows, layer, at);
            assert!(tag != 0, "position {at} is summarised before it is written");
            let place = self.summary_place(summary_rows[at / row_tokens], layer, at % row_tokens);
            state.summaries[place] = tag;
        }
        self.spend(&mut state, self.costs.copy * tokens.len() as f64);
    }

    pub(super) fn prefill_sample(&self, pass: &PassView<'_>, lanes: &[LaneId]) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let staging = &mut state.staging[pass.slot];
        let end = pass.first + pass.tokens.len();
        assert!(pass.last_pass && staging.pass == Some((pass.first, end)), "sampled in its own buffers");
        let hidden =
            staging.hidden.take().expect("sampled where the last layer has ended with the prompt's last token");
        let sum = self.read(state, pass.kv_rows, end);
        assert_eq!(hidden, sum, "sampled from its own prompt's hidden state");
        self.spend(state, self.costs.sample);
        let outputs = lanes.iter().map(|&id| {
            let lane = state.lanes[id.at()].as_mut().expect("a lane is started before it is sampled");
            assert!(lane.token.is_none() && lane.len == end, "{id}: started at its prompt's end, without a token");
            let token = drawn(sum, &lane.start.sampling, lane.start.mask.as_ref());
            lane.token = Some(token);
            output(id, token, end)
        });
        let outputs = outputs.collect();
        let before = std::mem::replace(&mut state.prefilled.prefilled, outputs);
        assert!(before.is_empty(), "one prompt's first tokens are collected at a time");
    }

    pub(super) fn take_prefilled(&self) -> StepOutput {
        std::mem::take(&mut self.lock().prefilled)
    }

    pub(super) fn decode(&self, key: StepKey, input: &StepInput) -> StepOutput {
        let mut state = self.lock();
        assert!(input.active.is_sorted_by(|a, b| a < b), "active lanes ascend: {:?}", input.active);
        assert!(!input.active.is_empty() && input.active.len() <= key.bucket, "a bucket holds the active lanes");
        assert!(input.rows.iter().all(|delta| input.active.contains(&delta.lane)), "rows of lanes that decode");
        assert!(input.forced.iter().all(|(lane, _)| input.active.contains(lane)), "tokens of lanes that decode");
        assert!(input.masks.iter().all(|(lane, _)| input.active.contains(lane)), "masks of lanes that decode");
        input.rows.iter().for_each(|delta| state.check_unused(delta.row));
        let outputs = input.active.iter().map(|&lane| self.decode_lane(&mut state, key, input, lane)).collect();
        let written = input.active.iter().map(|&lane| (lane, state.written_row(lane))).collect();
        state.in_flight.push_back(written);
        let lanes = self.costs.lane * input.active.len() as f64;
        self.spend(&mut state, self.costs.decode + lanes);
        StepOutput { lanes: outputs, ..StepOutput::default() }
    }

    /// A step without decode lanes is in flight.
    pub(super) fn fence(&self) {
        self.lock().in_flight.push_back(Vec::new());
    }

    /// The oldest step in flight is collected.
    pub(super) fn collected(&self) {
        self.lock().in_flight.pop_front().expect("a launched step is collected once");
    }

    fn decode_lane(&self, state: &mut State, key: StepKey, input: &StepInput, id: LaneId) -> LaneOutput {
        let mut lane = state.lanes[id.at()].clone().expect("a lane that decodes was started");
        assert!(key.algorithms.contains(lane.start.algorithm), "{id}: its algorithm is recorded");
        input.rows.iter().filter(|delta| delta.lane == id).for_each(|delta| lane.grow(delta));
        for moved in input.moves.iter().filter(|moved| moved.lane == id) {
            lane.start.kv_rows[moved.page] = moved.row;
        }
        let token = lane.token.expect("a lane that decodes has a token");
        let before = self.kv(state, &lane.start.kv_rows, 0, lane.len - 1);
        for layer in 0..self.layers {
            let place = self.kv_place(lane.start.kv_rows[lane.len / PAGE_TOKENS], layer, lane.len);
            state.kv[place] = tag(before, token);
        }
        lane.len += 1;
        lane.steps += 1;
        let sum = self.read(state, &lane.start.kv_rows, lane.len);
        let retrieved = self.retrieve(state, key, &mut lane);
        self.index_behind(state, &lane);
        self.check_lane(state, &lane);
        let forced = input.forced.iter().find(|(lane, _)| *lane == id).map(|(_, token)| *token);
        if let FirstInput::Prompt { outputs, .. } = lane.start.first {
            assert!(outputs < lane.steps || forced.is_some(), "{id}: outputs that are prompt are forced");
        }
        let mask = input.masks.iter().find(|(lane, _)| *lane == id).map(|(_, mask)| mask);
        assert!(forced.is_none() || mask.is_none(), "{id}: a forced token needs no mask");
        let token = forced.unwrap_or_else(|| drawn(sum, &lane.start.sampling, mask));
        lane.token = Some(token);
        let exact_tokens = lane.start.selection.exact_tokens(lane.len);
        state.lanes[id.at()] = Some(lane);
        self.check_slots(state, id);
        LaneOutput { retrieved, ..output(id, token, exact_tokens) }
    }

    /// What becomes indexed at the lane's next step.
    fn index_behind(&self, state: &mut State, lane: &Lane) {
        let Some(row_tokens) = row_tokens(lane) else { return };
        let selection = &lane.start.selection;
        for at in selection.indexed_tokens(lane.len)..selection.indexed_tokens(lane.len + 1) {
            for layer in 0..self.layers {
                let tag = self.kv(state, &lane.start.kv_rows, layer, at);
                let place = self.summary_place(lane.start.summary_rows[at / row_tokens], layer, at % row_tokens);
                state.summaries[place] = tag;
            }
        }
    }

    /// Every token has K and V in every layer, and a summary where the next step may select it.
    fn check_lane(&self, state: &State, lane: &Lane) {
        self.read(state, &lane.start.kv_rows, lane.len);
        let Some(row_tokens) = row_tokens(lane) else { return };
        for at in 0..lane.start.selection.indexed_tokens(lane.len + 1) {
            let row = lane.start.summary_rows[at / row_tokens];
            for layer in 0..self.layers {
                let (summary, tag) =
                    (self.summary_place(row, layer, at % row_tokens), self.kv(state, &lane.start.kv_rows, layer, at));
                assert_eq!(state.summaries[summary], tag, "{}: summary of position {at}", lane.start.lane);
            }
        }
    }

    /// All tags of `0..len` in one number, the same in every layer.
    fn read(&self, state: &State, kv_rows: &[RowId], len: usize) -> u64 {
        let sum_of = |layer| (0..len).fold(0, |sum, at| fold(sum, self.kv(state, kv_rows, layer, at)));
        let sum = sum_of(0);
        assert!((1..self.layers).all(|layer| sum_of(layer) == sum), "layers hold different tokens");
        sum
    }

    fn begin_layer(&self, state: &mut State, pass: &PassView<'_>, layer: usize) {
        let staging = &mut state.staging[pass.slot];
        let end = pass.first + pass.tokens.len();
        if layer == 0 {
            staging.pass = Some((pass.first, end));
        } else {
            assert_eq!(
                (staging.pass, staging.layer, staging.done),
                (Some((pass.first, end)), layer - 1, end),
                "in turn"
            );
        }
        staging.hidden = None;
        staging.layer = layer;
        staging.done = pass.first;
        staging.tags.clear();
    }

    fn kv(&self, state: &State, rows: &[RowId], layer: usize, at: usize) -> u64 {
        state.kv[self.kv_place(rows[at / PAGE_TOKENS], layer, at)]
    }

    fn kv_place(&self, row: RowId, layer: usize, at: usize) -> usize {
        (self.at(row) * self.layers + layer) * PAGE_TOKENS + at % PAGE_TOKENS
    }

    fn summary_place(&self, row: RowId, layer: usize, at: usize) -> usize {
        (self.at(row) * self.layers + layer) * SUMMARY_TOKENS_MAX + at
    }

    fn spend(&self, state: &mut State, seconds: f64) {
        state.seconds += seconds * (1.0 + self.costs.jitter * (2.0 * state.noise.share() - 1.0));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("one thread")
    }
}

impl State {
    /// A row that is handed out is written by no step in flight.
    fn check_unused(&self, row: RowId) {
        let used = self.in_flight.iter().flatten().any(|(_, written)| *written == row);
        assert!(!used, "{row} is handed out while a step in flight writes it");
    }

    fn written_row(&self, lane: LaneId) -> RowId {
        let lane = self.lanes[lane.at()].as_ref().expect("it has decoded");
        lane.start.kv_rows[(lane.len - 1) / PAGE_TOKENS]
    }
}

impl Lane {
    fn grow(&mut self, delta: &RowDelta) {
        let table = match delta.table {
            RowTableKind::Kv => &mut self.start.kv_rows,
            RowTableKind::Summary => &mut self.start.summary_rows,
        };
        assert_eq!(delta.index, table.len(), "{}: a row joins at its table's end", delta.lane);
        table.push(delta.row);
    }
}

impl engine::Clock for Device {
    fn seconds(&self) -> f64 {
        self.lock().seconds
    }
}

fn row_tokens(lane: &Lane) -> Option<usize> {
    super::algorithms()[usize::from(lane.start.algorithm.0)].summary_row_tokens
}

fn output(lane: LaneId, token: TokenId, exact_tokens: usize) -> LaneOutput {
    LaneOutput {
        lane,
        token,
        logprob: -1.0,
        top: Vec::new(),
        exact_tokens,
        retrieved: Retrieved::default(),
        attention_mass: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend::Sampling;
    use kv::Selection;

    /// Prefills a prompt but for its sampling.
    fn prefill(device: &Device, pass: &PassView<'_>) {
        for layer in 0..device.layers() {
            device.prefill_layer(pass, layer, 0..pass.tokens.len());
            device.prefill_scatter(pass, layer);
        }
        device.start_lane(&LaneStart {
            lane: LaneId(pass.slot as u16),
            algorithm: AlgorithmId(0),
            selection: Selection::dense(),
            len: pass.tokens.len(),
            first: FirstInput::Sampled,
            kv_rows: pass.kv_rows.to_vec(),
            summary_rows: Vec::new(),
            cache_rows: Vec::new(),
            sampling: Sampling::default(),
            prompt: Vec::new(),
            mask: None,
        });
    }

    /// Samples one prompt behind what `between` does with another one of the same length.
    fn sampled_behind(slot: usize, between: impl Fn(&Device, &PassView<'_>)) -> StepOutput {
        let device = Device::new([4, 0], 2, 2, Costs::default(), 0);
        let pass =
            PassView { slot: 0, tokens: &[1, 2, 3], first: 0, last_pass: true, kv_rows: &[RowId(0)], score: None };
        let other = PassView { slot, tokens: &[4, 5, 6], kv_rows: &[RowId(1)], ..pass };
        prefill(&device, &pass);
        between(&device, &other);
        device.prefill_sample(&pass, &[LaneId(0)]);
        device.take_prefilled()
    }

    #[test]
    fn another_slot_may_go_between_a_prompts_last_layer_and_its_sampling() {
        let alone = sampled_behind(1, |_, _| ());
        assert_eq!(sampled_behind(1, |device, other| device.prefill_layer(other, 0, 0..3)), alone);
        assert_eq!(sampled_behind(1, prefill), alone);
    }

    #[test]
    #[should_panic(expected = "sampled where the last layer has ended")]
    fn another_pass_in_the_same_slot_takes_the_hidden_state_away() {
        sampled_behind(0, |device, other| device.prefill_layer(other, 0, 0..3));
    }

    #[test]
    #[should_panic(expected = "sampled from its own prompt")]
    fn anothers_hidden_state_is_noticed() {
        sampled_behind(0, prefill);
    }
}
