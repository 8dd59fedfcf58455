//! What a collected step means: outputs become tokens, sequences end, rows come back.

use super::Scheduler;
use crate::event::{AbortReason, AttentionUsed, FinishReason, PromptToken, Usage};
use crate::plan::{Act, Plan, PrefillEnd};
use crate::request::{Refusal, RequestId};
use crate::sequence::Phase;
use backend::{LaneOutput, StepOutput, TokenScore};
use kv::{SequenceId, TokenId};

/// A step that was collected.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What had been planned.
    pub plan: Plan,
    /// What its unit took; `None` where it had none.
    pub unit_seconds: Option<f64>,
    /// What its decode step took; `None` where it had none.
    pub decode_seconds: Option<f64>,
    /// When the decode step ran; of no meaning where it had none.
    pub decode_span: Span,
    /// What the device gave back.
    pub output: StepOutput,
}

/// From when to when something ran, in seconds on the engine's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Span {
    /// Its start.
    pub began: f64,
    /// Its end.
    pub ended: f64,
}

/// What a reader is to be told, without text and times.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A prompt's progress.
    Prefill {
        /// Whose.
        request: RequestId,
        /// Tokens done.
        done: usize,
        /// Tokens to do.
        total: usize,
    },
    /// What the model says of a prompt.
    Scored {
        /// Whose.
        request: RequestId,
        /// The prompt's tokens, all of them.
        tokens: Vec<PromptToken>,
    },
    /// A completion's next token.
    Token {
        /// Whose.
        request: RequestId,
        /// The sequence, to end it.
        sequence: SequenceId,
        /// Which completion.
        choice: u32,
        /// What came out.
        output: Output,
    },
    /// A finished sequence keeps its rows.
    Held {
        /// Whose.
        request: RequestId,
        /// Which completion.
        choice: u32,
        /// The parent to be.
        sequence: SequenceId,
        /// Tokens with K and V.
        tokens: usize,
    },
    /// A request's wait is over: it can never run.
    Refused {
        /// Whose.
        request: RequestId,
        /// Why.
        refusal: Refusal,
    },
    /// A completion ended.
    Finished {
        /// Whose.
        request: RequestId,
        /// Which completion.
        choice: u32,
        /// Why.
        reason: FinishReason,
        /// What went wrong, where something of its own did.
        error: Option<String>,
        /// Tokens counted.
        usage: Usage,
        /// What ran.
        attention: AttentionUsed,
        /// Decode steps that ran for it, and from the first one's start to the last one's end; `None` for no step.
        decoded: Option<(usize, Span)>,
    },
}

impl Notice {
    /// Whose it is.
    pub fn request(&self) -> RequestId {
        match self {
            Notice::Prefill { request, .. }
            | Notice::Scored { request, .. }
            | Notice::Token { request, .. }
            | Notice::Held { request, .. }
            | Notice::Refused { request, .. }
            | Notice::Finished { request, .. } => *request,
        }
    }
}

/// A token and what the step said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Chosen or forced.
    pub token: TokenId,
    /// `None` where no step computed it.
    pub logprob: Option<f32>,
    /// The most likely tokens.
    pub top: Vec<(TokenId, f32)>,
    /// `None` for a prompt's first token.
    pub exact_tokens: Option<usize>,
    /// Where it was measured.
    pub attention_mass: Option<f32>,
}

impl Scheduler {
    /// Takes a step's outcome in; steps are committed in the order in which they were planned.
    pub fn commit(&mut self, outcome: Outcome) -> Vec<Notice> {
        let Outcome { mut plan, unit_seconds, decode_seconds, decode_span, output } = outcome;
        assert!(self.committed < plan.step && plan.step <= self.planned, "step {} is committed out of turn", plan.step);
        self.committed = plan.step;
        // Constraints write their next masks in place where nobody shares the last ones.
        plan.let_masks_go();
        self.learn(&plan, unit_seconds, decode_seconds);
        let mut notices = Vec::new();
        self.report_all(&plan, &mut notices);
        self.accept_scores(&plan, output.scores);
        self.accept_ends(&plan, output.prefilled, &mut notices);
        self.accept_decoded(&plan, output.lanes, decode_span, &mut notices);
        self.reclaim();
        self.refuse_stuck(&mut notices);
        notices
    }

    fn learn(&mut self, plan: &Plan, unit_seconds: Option<f64>, decode_seconds: Option<f64>) {
        if let Some(seconds) = unit_seconds {
            self.cost.observe(&plan.work, seconds);
        }
        decode_seconds.iter().for_each(|&seconds| self.cost.observe_decode(seconds));
        self.debts_in_flight.pop_front();
        let debt = self.debt_of(unit_seconds.unwrap_or(0.0), decode_seconds);
        self.decode_debt_seconds = if plan.decode.is_some() { (self.decode_debt_seconds + debt).max(0.0) } else { 0.0 };
    }

    fn report_all(&mut self, plan: &Plan, notices: &mut Vec<Notice>) {
        let mut last = None;
        for piece in &plan.pieces {
            if last.replace(piece.sequence) != Some(piece.sequence) {
                self.report_progress(piece.sequence, notices);
            }
        }
    }

    /// Scores go to the prompts whose pieces made them, in order.
    fn accept_scores(&mut self, plan: &Plan, scores: Vec<TokenScore>) {
        let mut scores = scores.into_iter();
        for piece in &plan.pieces {
            let Act::Layer { scored, .. } = &piece.act else { continue };
            let of_piece = scores.by_ref().take(*scored);
            match self.sequences.get_mut(&piece.sequence) {
                Some(sequence) => sequence.scores.extend(of_piece),
                // It ended while the step was in flight.
                None => of_piece.for_each(drop),
            }
        }
        assert!(scores.next().is_none(), "step {}: as many scores as were planned", plan.step);
    }

    /// A prompt has ended: what the model says of it is told before anything that follows.
    fn report_scores(&mut self, first: SequenceId, notices: &mut Vec<Notice>) {
        if !self.is_alive(first) || self.request_of(first).prompt_logprobs.is_none() {
            return;
        }
        let sequence = self.sequences.get_mut(&first).expect("it is alive");
        let (scores, request) = (std::mem::take(&mut sequence.scores), sequence.request);
        assert_eq!(scores.len() + 1, sequence.prompt_tokens, "{first}: every token but the first is scored");
        let begins = PromptToken { token: sequence.tokens[0], logprob: None, rank: None, top: Vec::new() };
        let tokens = std::iter::once(begins).chain(scores.into_iter().map(PromptToken::from)).collect();
        notices.push(Notice::Scored { request, tokens });
    }

    fn accept_ends(&mut self, plan: &Plan, sampled: Vec<LaneOutput>, notices: &mut Vec<Notice>) {
        let mut sampled = sampled.into_iter();
        for end in &plan.ends {
            end.sequences().first().iter().for_each(|&&first| self.report_scores(first, notices));
            match end {
                PrefillEnd::Sampled(sequences) => {
                    for (&id, output) in sequences.iter().zip(&mut sampled) {
                        self.accept(id, Output { exact_tokens: None, ..Output::from(output) }, notices);
                    }
                }
                PrefillEnd::Given(sequences, token) => {
                    for &id in sequences {
                        self.accept(id, Output::given(*token), notices);
                    }
                }
                PrefillEnd::Done(sequences) => {
                    for &id in sequences.iter().filter(|id| self.is_alive(**id)).collect::<Vec<_>>() {
                        self.finish(id, FinishReason::Length, notices);
                    }
                }
                PrefillEnd::Fed => {}
            }
        }
    }

    fn accept_decoded(&mut self, plan: &Plan, decoded: Vec<LaneOutput>, span: Span, notices: &mut Vec<Notice>) {
        let Some(planned) = &plan.decode else { return };
        assert_eq!(planned.sequences.len(), decoded.len(), "step {}: one output a lane", plan.step);
        for ((&id, &lane), output) in planned.sequences.iter().zip(&planned.input.active).zip(decoded) {
            assert_eq!(lane, output.lane, "step {}: outputs come in the order of the lanes", plan.step);
            if let Some(running) = self.sequences.get_mut(&id).and_then(|sequence| sequence.running_mut()) {
                running.count_step(span);
            }
            self.totals.retrieved += output.retrieved;
            if let Some(running) = self.sequences.get_mut(&id).and_then(|sequence| sequence.running_mut()) {
                running.retrieved += output.retrieved;
            }
            self.accept(id, output.into(), notices);
        }
    }

    /// One output of one sequence. A sequence that ended while the step was in flight has no use for it.
    fn accept(&mut self, id: SequenceId, output: Output, notices: &mut Vec<Notice>) {
        if !self.is_alive(id) {
            return;
        }
        let request = self.request_of(id);
        let sequence = self.sequences.get_mut(&id).expect("it is alive");
        let (owner, choice) = (sequence.request, sequence.choice);
        let running = sequence.running_mut().expect("only running sequences have outputs");
        let at = running.committed;
        running.committed += 1;
        if let Some(mass) = output.attention_mass.filter(|_| request.measure_mass) {
            running.mass = (running.mass.0 + f64::from(mass), running.mass.1 + 1);
        }
        let (silent, full, token) = (at < running.silent, running.committed == running.outputs_max, output.token);
        if !silent {
            let is_forced = super::decode::forced_output(&request, at).is_some();
            let is_stop = !is_forced && request.is_stop(output.token);
            sequence.tokens.push(output.token);
            self.totals.decode_tokens += 1;
            notices.push(Notice::Token { request: owner, sequence: id, choice, output });
            if is_stop {
                return self.finish(id, FinishReason::Stop, notices);
            }
        }
        if full {
            self.finish(id, FinishReason::Length, notices);
        } else if !silent && let Err(error) = self.follow(id, at, token) {
            self.end(id, FinishReason::Aborted(AbortReason::Constraint), Some(error), notices);
        }
    }

    /// Whether a sequence has not ended.
    fn is_alive(&self, id: SequenceId) -> bool {
        self.sequences.get(&id).is_some_and(|sequence| sequence.running().is_some())
    }

    /// Ends one running completion from outside: its text came to a stop string.
    pub fn finish_sequence(&mut self, id: SequenceId, reason: FinishReason) -> Vec<Notice> {
        let mut notices = Vec::new();
        if self.is_alive(id) {
            self.finish(id, reason, &mut notices);
            self.reclaim();
            self.refuse_stuck(&mut notices);
        }
        notices
    }

    /// Ends a request wherever it is: waiting, during prefill, or while it decodes. What it holds goes too: its caller
    /// may never have learned of it.
    pub fn abort(&mut self, id: RequestId, reason: AbortReason) -> Vec<Notice> {
        let mut notices = self.end_request(id, reason);
        self.refuse_stuck(&mut notices);
        notices
    }

    pub(super) fn end_request(&mut self, id: RequestId, reason: AbortReason) -> Vec<Notice> {
        let held = self.sequences.values().filter(|sequence| sequence.request == id);
        let held: Vec<SequenceId> =
            held.filter(|sequence| matches!(sequence.phase, Phase::Held)).map(|sequence| sequence.id).collect();
        let mut notices: Vec<Notice> = held.into_iter().flat_map(|sequence| self.end_held(sequence)).collect();
        let Some(group) = self.requests.get(&id) else { return notices };
        let (request, alive) = (group.request.clone(), group.alive.clone());
        if let Some(at) = self.waiting.iter().position(|&waiting| waiting == id) {
            self.waiting.remove(at);
            for choice in 0..request.choices as u32 {
                notices.push(self.never_ran(id, &request, choice, FinishReason::Aborted(reason)));
            }
            self.requests.remove(&id);
            self.totals.aborted += 1;
        }
        for sequence in alive {
            self.finish(sequence, FinishReason::Aborted(reason), &mut notices);
        }
        self.reclaim();
        notices
    }
}

impl From<LaneOutput> for Output {
    fn from(output: LaneOutput) -> Self {
        Output {
            token: output.token,
            logprob: Some(output.logprob),
            top: output.top,
            exact_tokens: Some(output.exact_tokens),
            attention_mass: output.attention_mass,
        }
    }
}

impl From<TokenScore> for PromptToken {
    fn from(score: TokenScore) -> Self {
        let TokenScore { token, logprob, rank, top } = score;
        PromptToken { token, logprob: Some(logprob), rank: Some(rank), top }
    }
}

impl Output {
    fn given(token: TokenId) -> Self {
        Output { token, logprob: None, top: Vec::new(), exact_tokens: None, attention_mass: None }
    }
}
