//! Who may begin: a request is admitted in arrival order, when the rows to its end and its lanes are there.
//!
//! With room for all of its pages it is fully resident. Otherwise, where its steps select and host memory has room for
//! its pages, it is admitted with its working set: summaries, sink, window, tail, and cache rows. Where there is no
//! room for that either, those that run give some (`residency`), and it waits until they have.

use super::{Notice, Scheduler};
use crate::prefill::{ParentIndex, Prefill, PrefillShape};
use crate::request::{Refusal, Request, RequestId, Source};
use crate::sequence::{Phase, Sequence};
use crate::{EngineConfig, PROMPT_LOGPROBS_MAX};
use backend::AlgorithmId;
use kv::budget::{self, BETA_FLOOR, Room, Wish};
use kv::{
    Demand, Indexing, LaneId, Promise, Reservation, Residence, RowCounts, SequenceId, SequenceKv, SummaryKey, TokenId,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What admission reserves.
struct Needs {
    demand: Demand,
    /// What the parent lacks, and keeps.
    parent: Option<ParentIndex>,
    parent_rows: usize,
    /// Pages that the steps of all choices select at most; none where nothing is decoded.
    selected: usize,
    /// Rows of host memory that each choice is parked in, should it have to be; none where rows are reserved to the
    /// end.
    places: usize,
}

/// Rows reserved for a whole request.
struct Reserved {
    needs: Needs,
    pool: Reservation,
    dram: Reservation,
    /// Cache rows of each choice, among those of the pool.
    slots: usize,
}

impl Needs {
    /// Rows of the pool, without cache rows.
    fn rows(&self) -> usize {
        self.demand.total().pool() + self.parent_rows
    }

    /// What one of the choices is promised.
    fn promise(&self, counts: RowCounts) -> RowCounts {
        RowCounts { dram: counts.dram + self.places, ..counts }
    }

    /// Rows of the pool with the fewest cache rows.
    fn rows_least(&self) -> usize {
        let Wish { fixed, selected, most } = self.wish();
        fixed + budget::slots(selected, BETA_FLOOR, most)
    }

    /// What is asked of the budget.
    fn wish(&self) -> Wish {
        let slots = match self.demand.residence {
            Residence::Full => 0,
            Residence::Sparse => self.demand.choices * self.demand.cached_most(),
        };
        let selected = if slots == 0 { 0 } else { self.selected };
        Wish { fixed: self.rows(), selected, most: slots }
    }
}

impl Scheduler {
    /// Admits from the head of the queue for as long as the head fits; nobody overtakes. What the prefix cache holds is
    /// in nobody's way.
    pub(super) fn admit_waiting(&mut self) {
        while let Some(&head) = self.waiting.front() {
            let request = self.requests[&head].request.clone();
            if self.lanes_free() < lanes(&request) || self.parent_is_busy(&request) || self.makes_room() {
                return;
            }
            // Those that run come first, and what is held may never come back.
            if self.is_short() || request.hold && self.sequences.values().any(|sequence| sequence.open) {
                return;
            }
            // Shared first, so that making room leaves these rows alone.
            let shared = self.share_prefix(&request);
            let Some((reserved, sequence)) = self.reserve_sequence(&request, shared) else { return };
            self.waiting.pop_front();
            self.admitted.push(head);
            self.admit(head, &request, reserved, sequence);
        }
    }

    /// The rows of a request, and the sequence that they are for. One whose pages go to host memory needs few rows of
    /// the pool, fewer than a prefix that it shares may keep others from: without the prefix it may fit.
    fn reserve_sequence(&mut self, request: &Request, shared: SequenceKv) -> Option<(Reserved, SequenceKv)> {
        if let Some(reserved) = self.reserve_rows(request, &shared) {
            return Some((reserved, shared));
        }
        let shares = !shared.is_empty() && request.parent().is_none();
        shared.release(&mut self.tiers);
        if !shares || self.config.dram_rows == 0 || self.makes_room() {
            return None;
        }
        let alone = SequenceKv::new(Residence::Full, self.indexing(request));
        self.reserve_rows(request, &alone).map(|reserved| (reserved, alone))
    }

    /// The rows of a request, or room is being made for them, or it has to wait.
    fn reserve_rows(&mut self, request: &Request, shared: &SequenceKv) -> Option<Reserved> {
        let (full, places) = self.full_needs(request, shared);
        if let Ok(pool) = self.prefixes.reserve(full.rows(), &mut self.tiers.pool) {
            return Some(Reserved { needs: full, pool, dram: places, slots: 0 });
        }
        // Who can be sparsely resident has no places to be parked in.
        let (needs, dram) = self.sparse_needs(request, shared, &full).unwrap_or((full, places));
        let (ids, stakes) = self.stakes();
        let free = self.tiers.pool.available() + self.tiers.pool.spare();
        match budget::make_room(free, needs.wish(), &stakes) {
            Room::Now { slots } => {
                let slots = slots / needs.demand.choices;
                let wanted = needs.rows() + needs.demand.choices * slots;
                let pool = self.prefixes.reserve(wanted, &mut self.tiers.pool).expect("spare rows are given up");
                return Some(Reserved { needs, pool, dram, slots });
            }
            Room::After(changes) => self.press(&ids, changes),
            Room::Later => {}
        }
        self.tiers.dram.give_back(dram);
        None
    }

    /// What a request needs with all of its pages in the pool: for a while, where host memory has room to park it, and
    /// to its end otherwise.
    fn full_needs(&mut self, request: &Request, shared: &SequenceKv) -> (Needs, Reservation) {
        let to_end = self.needs(request, Some(shared), Residence::Full);
        let end = to_end.demand.start + self.config.horizon_tokens;
        // Who can give up rows by becoming sparsely resident need not be parked.
        let may_be_open = self.may_be_open(request) && !self.may_be_sparse(request, &to_end.demand);
        if to_end.demand.end <= end || !may_be_open {
            return (to_end, Reservation::default());
        }
        let demand = Demand { end, ..to_end.demand.clone() };
        let places = kv::geometry::pages(end) + demand.indexing.map_or(0, |indexing| indexing.rows(end));
        match self.tiers.dram.reserve(demand.choices * places) {
            Ok(dram) => (Needs { demand, places, ..to_end }, dram),
            Err(_) => (to_end, Reservation::default()),
        }
    }

    /// What a request needs with its pages in host memory, and its rows there: where that takes fewer rows of the pool,
    /// and host memory has room.
    fn sparse_needs(&mut self, request: &Request, shared: &SequenceKv, full: &Needs) -> Option<(Needs, Reservation)> {
        if !self.may_be_sparse(request, &full.demand) {
            return None;
        }
        let needs = self.needs(request, Some(shared), Residence::Sparse);
        if full.rows() <= needs.rows_least() {
            return None;
        }
        let dram = self.tiers.dram.reserve(needs.demand.total().dram).ok()?;
        Some((needs, dram))
    }

    /// The prompt that the prefix cache is asked about: not one of which every token is scored.
    fn asked_prompt<'a>(&self, request: &'a Request) -> Option<&'a [TokenId]> {
        self.cached_prompt(request).filter(|_| request.prompt_logprobs.is_none())
    }

    /// The prompt that the prefix cache may keep: one that is the request's own and whole.
    pub(super) fn cached_prompt<'a>(&self, request: &'a Request) -> Option<&'a [TokenId]> {
        match &request.source {
            Source::Prompt(tokens) if self.config.prefix_cache && request.cache => Some(tokens),
            Source::Prompt(_) | Source::Fork { .. } => None,
        }
    }

    /// A sequence for a request, with the rows that its prompt has in the prefix cache; nothing is promised to it yet.
    fn share_prefix(&mut self, request: &Request) -> SequenceKv {
        let indexing = self.indexing(request);
        match self.asked_prompt(request) {
            Some(prompt) => self.prefixes.share(prompt, indexing, &mut self.tiers),
            None => SequenceKv::new(Residence::Full, indexing),
        }
    }

    /// Tells who waits for rows that nobody will free: all others have ended, and held sequences keep theirs until
    /// they are released, which may never be.
    pub(super) fn refuse_stuck(&mut self, notices: &mut Vec<Notice>) {
        self.admit_waiting();
        while let Some(&request) = self.waiting.front()
            && let Some(refusal) = self.stuck()
        {
            self.waiting.pop_front();
            self.requests.remove(&request);
            self.totals.refused += 1;
            notices.push(Notice::Refused { request, refusal });
            self.admit_waiting();
        }
    }

    /// Tells those who wait in vain, when nothing runs.
    pub(crate) fn refuse_waiting(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        self.refuse_stuck(&mut notices);
        notices
    }

    /// Why the queue's head, which does not fit, never will; `None` while others run or end.
    fn stuck(&mut self) -> Option<Refusal> {
        if self.makes_room() {
            return None;
        }
        let head = &self.requests[self.waiting.front()?].request;
        let rests = self.sequences.values().all(|sequence| matches!(sequence.phase, Phase::Held));
        let EngineConfig { pool_rows, row_bytes, .. } = self.config;
        let needs = self.least_needs(head);
        let (wanted_rows, in_dram) = (needs.rows_least(), needs.demand.total().dram);
        let held_rows = pool_rows - self.tiers.pool.available() - self.tiers.pool.spare();
        // Host memory that is still being made is room to come.
        let dram_rows = self.tiers.dram.available();
        let refusal = match dram_rows < in_dram {
            true => Refusal::NeverFitsDram { wanted_rows: in_dram, dram_rows, row_bytes },
            false => Refusal::HeldRows { wanted_rows, held_rows, pool_rows, row_bytes },
        };
        (rests && !self.dram_grows && self.retiring.is_empty()).then_some(refusal)
    }

    /// Whether a request can ever run.
    pub(super) fn check(&self, request: &Request) -> Result<(), Refusal> {
        let EngineConfig { max_model_len, max_lanes, pool_rows, row_bytes, vocab, .. } = self.config;
        let invalid = |why: &str| Refusal::Invalid(why.to_string());
        let Some(spec) = self.algorithms.get(usize::from(request.attention.algorithm.0)) else {
            return Err(invalid("the attention algorithm is not one of this model's"));
        };
        if spec.summary_row_tokens.is_some() && request.attention.selection.index_unit_tokens != spec.index_unit_tokens
        {
            return Err(invalid("the selection's Index unit is not the algorithm's"));
        }
        if request.tokens().is_empty() {
            return Err(invalid("the prompt has no tokens"));
        }
        if request.choices == 0 {
            return Err(invalid("at least one choice must be asked for"));
        }
        if let Some((field, token)) = request.named_tokens().find(|&(_, token)| vocab <= token as usize) {
            return Err(Refusal::UnknownToken { field, token, vocab });
        }
        request.sampling.check().map_err(Refusal::Invalid)?;
        let (top, suppressed) = (request.sampling.top_logprobs, request.sampling.suppressed.iter());
        if vocab < top {
            return Err(invalid(&format!("top_logprobs is {top} and the vocabulary has {vocab} tokens")));
        }
        if vocab <= suppressed.len() && suppressed.collect::<BTreeSet<_>>().len() == vocab {
            return Err(invalid("suppressed has every token of the vocabulary: none could be chosen"));
        }
        if let Some(parent) = request.parent()
            && (self.sequences.get(&parent).is_none_or(|held| !matches!(held.phase, Phase::Held))
                || self.released.contains(&parent))
        {
            return Err(Refusal::UnknownParent { parent });
        }
        check_prompt_logprobs(request, vocab)?;
        let prompt_tokens = self.prefix(request) + request.tokens().len();
        if max_model_len < prompt_tokens + usize::from(0 < request.max_tokens) {
            return Err(Refusal::PromptTooLong { prompt_tokens, max_model_len });
        }
        if request.decodes() && max_lanes < request.choices {
            return Err(Refusal::TooManyChoices { choices: request.choices, max_lanes });
        }
        // A parent's rows stay where they are while the fork runs, so they count as well.
        let held = request.parent().map(|parent| self.sequences[&parent].kv.rows_by_kind()).unwrap_or_default();
        let needs = self.least_needs(request);
        let wanted_rows = needs.rows_least() + held.kv + held.summary;
        if pool_rows < wanted_rows {
            return Err(Refusal::NeverFits { wanted_rows, pool_rows, row_bytes });
        }
        // What could not be made is not there; what is still being made will be.
        let dram_rows = if self.dram_grows { self.config.dram_rows } else { self.tiers.dram.total() };
        let wanted_rows = needs.demand.total().dram + held.dram;
        if dram_rows < wanted_rows {
            return Err(Refusal::NeverFitsDram { wanted_rows, dram_rows, row_bytes });
        }
        Ok(())
    }

    /// Whether a request's pages may be at home in host memory: its steps select, and nobody reads all of them.
    fn may_be_sparse(&self, request: &Request, demand: &Demand) -> bool {
        0 < self.config.dram_rows && demand.selects() && !request.measure_mass
    }

    /// What a request needs at least, alone: its working set where its pages can be in host memory.
    fn least_needs(&self, request: &Request) -> Needs {
        let full = self.needs(request, None, Residence::Full);
        if full.rows() <= self.config.pool_rows || !self.may_be_sparse(request, &full.demand) {
            return full;
        }
        let sparse = self.needs(request, None, Residence::Sparse);
        if sparse.rows_least() < full.rows() { sparse } else { full }
    }

    /// Tokens of a completion, as far as the context leaves room.
    pub(super) fn completion_max(&self, request: &Request) -> usize {
        let prompt = self.prefix(request) + request.tokens().len();
        request.max_tokens.min(self.config.max_model_len.saturating_sub(prompt))
    }

    /// Which summaries a request's decode follows.
    pub(super) fn indexing(&self, request: &Request) -> Option<Indexing> {
        let AlgorithmId(algorithm) = request.attention.algorithm;
        let row_tokens = self.algorithms[usize::from(algorithm)].summary_row_tokens?;
        Some(Indexing { key: SummaryKey { algorithm, row_tokens }, selection: request.attention.selection })
    }

    /// Tokens that a parent's rows hold.
    pub(super) fn prefix(&self, request: &Request) -> usize {
        request.parent().map_or(0, |parent| self.sequences[&parent].kv.len())
    }

    /// What a request reserves beside the rows that it shares.
    fn needs(&self, request: &Request, shared: Option<&SequenceKv>, residence: Residence) -> Needs {
        let parent_tokens = self.prefix(request);
        let prompt = parent_tokens + request.tokens().len();
        let prefix = parent_tokens + shared.map_or(0, SequenceKv::len);
        let indexing = self.indexing(request);
        let indexed = indexing.map_or(0, |indexing| match request.parent() {
            Some(_) => indexing.indexed_tokens(prefix),
            None => shared.map_or(0, |shared| shared.indexed(indexing.key)),
        });
        let in_dram = |parent| self.sequences[&parent].kv.pages_in_dram();
        let demand = Demand {
            prefix,
            prefix_cached: request.parent().map_or(0..0, in_dram),
            indexed,
            start: if request.feeds_by_decode() { prefix } else { prompt },
            end: prompt + self.completion_max(request) + 1,
            choices: request.choices,
            indexing,
            residence,
        };
        let parent = request.parent().zip(demand.indexing).map(|(parent, indexing)| {
            let from = self.sequences[&parent].kv.indexed(indexing.key);
            ParentIndex { parent, indexing, from, to: indexing.indexed_tokens(prefix).max(from) }
        });
        let parent_rows =
            parent.map_or(0, |part| self.sequences[&part.parent].kv.missing_summary_rows(prefix, &part.indexing));
        let selected = if request.decodes() { request.choices * demand.selected_most() } else { 0 };
        Needs { demand, parent, parent_rows, selected, places: 0 }
    }

    /// Whether the summaries that a fork needs are being made for another one: it shares them when they are there.
    fn parent_is_busy(&self, request: &Request) -> bool {
        request.parent().zip(self.indexing(request)).is_some_and(|(parent, indexing)| {
            let mut running = self.prefilling().filter_map(|(_, prefill)| prefill.parent_index());
            running.any(|part| part.parent == parent && part.indexing.key == indexing.key)
        })
    }

    fn admit(&mut self, id: RequestId, request: &Arc<Request>, reserved: Reserved, mut shared: SequenceKv) {
        let Reserved { needs, mut pool, mut dram, slots } = reserved;
        if let Some(part) = needs.parent {
            let parent = self.sequences.get_mut(&part.parent).expect("a waiting fork's parent is held");
            let mut rows = pool.split(needs.parent_rows);
            parent.kv.add_summary_rows(needs.demand.prefix, &part.indexing, &mut self.tiers, &mut rows);
            self.tiers.pool.give_back(rows);
        }
        let prefill = Box::new(Prefill::new(PrefillShape {
            layers: self.layers,
            pass_tokens: self.config.prefill_tokens,
            prefix: needs.demand.prefix,
            indexed: needs.demand.indexed,
            end: needs.demand.start,
            parent: needs.parent,
            indexing: needs.demand.indexing,
            scores: request.prompt_logprobs,
            samples: 0 < request.max_tokens && !request.feeds_by_decode() && request.forced.is_empty(),
        }));
        if let Some(prompt) = self.asked_prompt(request) {
            self.totals.prefix_queried += prompt.len() as u64;
            self.totals.prefix_hits += shared.len() as u64;
        }
        let residence = needs.demand.residence;
        shared.promise(Promise::split(&mut pool, &mut dram, needs.promise(needs.demand.first()), slots), residence);
        self.add_sequence(id, request, 0, &needs, shared, Phase::Prefilling(prefill));
        for choice in 1..request.choices as u32 {
            let mut kv = SequenceKv::new(residence, needs.demand.indexing);
            kv.promise(Promise::split(&mut pool, &mut dram, needs.promise(needs.demand.further()), slots), residence);
            self.add_sequence(id, request, choice, &needs, kv, Phase::Following);
        }
        self.tiers.pool.give_back(pool);
        self.tiers.dram.give_back(dram);
    }

    fn add_sequence(
        &mut self,
        request_id: RequestId,
        request: &Request,
        choice: u32,
        needs: &Needs,
        kv: SequenceKv,
        phase: Phase,
    ) {
        self.sequences_made += 1;
        let id = SequenceId(self.sequences_made);
        let lane = (0 < lanes(request)).then(|| self.take_lane(id));
        let mut tokens = match request.source {
            Source::Prompt(_) => Vec::new(),
            Source::Fork { parent, .. } => self.sequences[&parent].tokens[..needs.demand.prefix].to_vec(),
        };
        tokens.extend_from_slice(request.tokens());
        let (prompt_tokens, cached_tokens) = (tokens.len(), needs.demand.prefix);
        let group = self.requests.get_mut(&request_id).expect("an admitted request is known");
        group.alive.push(id);
        let constraint = group.constraints.pop();
        let sequence = Sequence {
            id,
            request: request_id,
            choice,
            tokens,
            prompt_tokens,
            cached_tokens,
            scores: Vec::new(),
            kv,
            lane,
            constraint,
            open: 0 < needs.places,
            phase,
        };
        self.sequences.insert(id, sequence);
    }

    fn take_lane(&mut self, id: SequenceId) -> LaneId {
        let at = self.lanes.iter().position(Option::is_none).expect("admission counted the free lanes");
        self.lanes[at] = Some(id);
        LaneId(u16::try_from(at).expect("lanes are numbered by u16"))
    }
}

/// Lanes that a request takes from its admission on.
fn lanes(request: &Request) -> usize {
    if request.decodes() { request.choices } else { 0 }
}

/// Whether a prompt's tokens can be scored as a request asks.
fn check_prompt_logprobs(request: &Request, vocab: usize) -> Result<(), Refusal> {
    let Some(top) = request.prompt_logprobs else { return Ok(()) };
    let most = PROMPT_LOGPROBS_MAX.min(vocab);
    match request.parent() {
        Some(_) => Err(Refusal::Invalid("prompt_logprobs is not for forks: their parents' tokens are not read".into())),
        None if most < top => Err(Refusal::Invalid(format!("prompt_logprobs is {top} and may be at most {most}"))),
        None => Ok(()),
    }
}
