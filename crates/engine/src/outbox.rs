//! From notices to readers: tokens become text, text is checked for stop strings, times are noted.
//!
//! Owned by the step loop. A reader can end its own request (by its text, by being slow or gone), never delay another.

use crate::event::{AbortReason, Event, FinishReason, Finished, Timings, TokenEvent};
use crate::request::{Request, RequestId};
use crate::scheduler::{Notice, Output, Span};
use crate::stop::{StopCheck, StopStrings};
use kv::{SequenceId, TokenId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Turns one completion's tokens into text.
pub trait TextStream: Send {
    /// Text that is certain with this token (maybe none: half a character).
    fn push(&mut self, token: TokenId) -> String;

    /// What was still held back.
    fn finish(&mut self) -> String;
}

/// What a request says of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// Whether special tokens have no text.
    pub skip_special: bool,
    /// The prompt's last tokens, where the text goes on with theirs; at most [`BEFORE_TOKENS_MAX`].
    pub before: Vec<TokenId>,
}

/// As many tokens as tell how a text goes on.
pub const BEFORE_TOKENS_MAX: usize = 8;

impl TextOptions {
    fn of(request: &Request) -> Self {
        let tokens = if request.joins_prompt { request.tokens() } else { &[] };
        let before = tokens[tokens.len().saturating_sub(BEFORE_TOKENS_MAX)..].to_vec();
        TextOptions { skip_special: request.skip_special, before }
    }
}

/// Makes a text stream for every completion.
pub type TextFactory = Arc<dyn Fn(&TextOptions) -> Box<dyn TextStream> + Send + Sync>;

/// Where a request's events go.
pub trait EventSink: Send {
    /// Never blocks.
    fn send(&mut self, event: Event) -> Delivered;
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The reader will get it.
    Taken,
    /// The reader has let its bound fill; its request is aborted.
    Full,
    /// Nobody reads any more.
    Gone,
}

/// What a delivery means for the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feedback {
    /// A completion's text came to a stop string.
    Stopped(SequenceId),
    /// A request's reader is slow or gone.
    Unread(RequestId, AbortReason),
}

/// Every request's reader.
#[derive(Default)]
pub struct Outbox {
    texts: Option<TextFactory>,
    letters: BTreeMap<RequestId, Letter>,
}

/// One request's reader and texts.
struct Letter {
    sink: Box<dyn EventSink>,
    submitted_at: f64,
    admitted_at: Option<f64>,
    choices: Vec<Choice>,
    /// Set when the reader let its bound fill or left; it is told only how its choices ended.
    unread: bool,
}

/// One completion on its way to text.
struct Choice {
    text: Option<Box<dyn TextStream>>,
    stops: StopStrings,
    /// Tokens before which no stop string counts.
    min_tokens: usize,
    /// Tokens so far; grows by `push`.
    tokens: usize,
    stopped: bool,
    finished: bool,
}

impl Outbox {
    /// Readers of text, where `texts` says how tokens become text.
    pub fn new(texts: Option<TextFactory>) -> Self {
        Outbox { texts, letters: BTreeMap::new() }
    }

    /// Whether stop strings can be seen.
    pub fn has_text(&self) -> bool {
        self.texts.is_some()
    }

    /// A request that was taken, and its reader.
    pub fn open(&mut self, id: RequestId, request: &Request, mut sink: Box<dyn EventSink>, now: f64) {
        let options = TextOptions::of(request);
        let choice = || Choice {
            text: self.texts.as_ref().map(|texts| texts(&options)),
            stops: StopStrings::new(&request.stop_strings),
            min_tokens: request.sampling.min_tokens,
            tokens: 0,
            stopped: false,
            finished: false,
        };
        let choices = (0..request.choices).map(|_| choice()).collect();
        // A reader that is gone already is noticed with its first real event.
        sink.send(Event::Accepted { request: id });
        self.letters.insert(id, Letter { sink, submitted_at: now, admitted_at: None, choices, unread: false });
    }

    /// Requests that were admitted with a plan.
    pub fn admitted(&mut self, requests: &[RequestId], now: f64) {
        for id in requests {
            if let Some(letter) = self.letters.get_mut(id) {
                letter.admitted_at = Some(now);
            }
        }
    }

    /// Sends what happened, in order.
    pub fn deliver(&mut self, notices: Vec<Notice>, now: f64) -> Vec<Feedback> {
        let mut feedback = Vec::new();
        for notice in notices {
            let id = notice.request();
            let Some(letter) = self.letters.get_mut(&id) else { continue };
            let Some(event) = letter.event(notice, now, &mut feedback) else { continue };
            let over = matches!(event, Event::Refused(_));
            letter.send(id, event, &mut feedback);
            if over || letter.choices.iter().all(|choice| choice.finished) {
                self.letters.remove(&id);
            }
        }
        feedback
    }

    /// The engine cannot go on.
    pub fn fail_all(&mut self, message: &str) {
        for (_, mut letter) in std::mem::take(&mut self.letters) {
            letter.sink.send(Event::Failed(message.to_string()));
        }
    }
}

impl Letter {
    /// What the reader is told; `None` where it needs not be.
    fn event(&mut self, notice: Notice, now: f64, feedback: &mut Vec<Feedback>) -> Option<Event> {
        Some(match notice {
            Notice::Prefill { done, total, .. } => Event::Prefill { done, total },
            Notice::Scored { tokens, .. } => Event::PromptLogprobs(tokens),
            Notice::Refused { refusal, .. } => Event::Refused(Box::new(refusal)),
            Notice::Held { choice, sequence, tokens, .. } => Event::Held { choice, sequence, tokens },
            Notice::Token { sequence, choice, output, .. } => {
                let of = &mut self.choices[choice as usize];
                let stopped = of.stopped;
                let text = of.push(output.token);
                if stopped {
                    return None;
                }
                if of.stopped {
                    feedback.push(Feedback::Stopped(sequence));
                }
                Event::Token(Box::new(token_event(choice, output, text)))
            }
            Notice::Finished { choice, reason, error, usage, attention, decoded, .. } => {
                let timings = self.timings(decoded, now);
                let of = &mut self.choices[choice as usize];
                let (text, reason) = of.finish(reason);
                Event::Finished(Box::new(Finished { choice, reason, error, text, usage, attention, timings }))
            }
        })
    }

    fn send(&mut self, id: RequestId, event: Event, feedback: &mut Vec<Feedback>) {
        if self.unread && !matches!(event, Event::Finished(_) | Event::Refused(_)) {
            return;
        }
        let reason = match self.sink.send(event) {
            Delivered::Taken => return,
            Delivered::Full => AbortReason::SlowReader,
            Delivered::Gone => AbortReason::Caller,
        };
        if !std::mem::replace(&mut self.unread, true) {
            feedback.push(Feedback::Unread(id, reason));
        }
    }

    fn timings(&self, decoded: Option<(usize, Span)>, now: f64) -> Timings {
        let admitted = self.admitted_at.unwrap_or(now);
        let (decode_steps, Span { began, ended }) = decoded.unwrap_or((0, Span { began: now, ended: now }));
        let (queued, prefill, decode) = (admitted - self.submitted_at, began - admitted, ended - began);
        Timings { queued, prefill, decode, decode_steps, started: began, ended }
    }
}

impl Choice {
    /// A token that ends the completion is text like any other, unless it is special and the request skips those.
    fn push(&mut self, token: TokenId) -> String {
        self.tokens += 1;
        if self.stopped {
            return String::new();
        }
        let Some(text) = &mut self.text else { return String::new() };
        let text = text.push(token);
        if self.tokens < self.min_tokens {
            return self.stops.pass(&text);
        }
        match self.stops.push(&text) {
            StopCheck::Continue(text) => text,
            StopCheck::Stopped(text) => {
                self.stopped = true;
                text
            }
        }
    }

    /// The rest of the text, and why it really ended: the last token may have completed a stop string.
    fn finish(&mut self, reason: FinishReason) -> (String, FinishReason) {
        self.finished = true;
        if self.stopped {
            return (String::new(), FinishReason::StopString);
        }
        let rest = self.text.as_mut().map_or_else(String::new, |text| text.finish());
        if self.tokens < self.min_tokens {
            return (self.stops.pass(&rest) + &self.stops.finish(), reason);
        }
        match self.stops.push(&rest) {
            StopCheck::Continue(text) => (text + &self.stops.finish(), reason),
            StopCheck::Stopped(text) => (text, FinishReason::StopString),
        }
    }
}

fn token_event(choice: u32, output: Output, text: String) -> TokenEvent {
    let Output { token, logprob, top, exact_tokens, attention_mass } = output;
    TokenEvent { choice, token, logprob, top, text, exact_tokens, attention_mass }
}
