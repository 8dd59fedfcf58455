//! The events of one HTTP request, which may be several requests of the engine: one a prompt.
//!
//! Concurrency: the engine's thread writes and never waits; an async task reads. Between them is one channel of
//! `EVENTS_MAX` places a completion. A reader that lets it fill is aborted by the engine and told so; a reader that is
//! dropped aborts what still runs.

use crate::app::App;
use crate::error::ApiError;
use crate::live::Seat;
use crate::measures::Measures;
use engine::{Delivered, EVENTS_MAX, Event, EventSink, Request, RequestId};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, error::TrySendError};

/// An event, and which of the prompts it belongs to.
pub(crate) type PromptEvent = (usize, Event);

/// The reading end.
pub(crate) struct Reader {
    app: Arc<App>,
    events: mpsc::Receiver<PromptEvent>,
    /// Came while other prompts were not accepted yet.
    early: VecDeque<PromptEvent>,
    /// Each prompt's request, and its choices that have not ended.
    open: Vec<(RequestId, usize)>,
    shared: Arc<Shared>,
    submitted: Instant,
}

/// What both ends see.
#[derive(Default)]
struct Shared {
    /// When the engine gave the first token.
    first_token: OnceLock<Instant>,
    /// The channel was full: the engine has aborted a request.
    overflowed: AtomicBool,
}

/// The engine's end, for one prompt.
struct Sink {
    prompt: usize,
    events: mpsc::Sender<PromptEvent>,
    shared: Arc<Shared>,
    measures: Arc<Measures>,
    seat: Seat,
    submitted: Instant,
    /// When each choice got its last token.
    last_token: Vec<Option<Instant>>,
}

impl Reader {
    /// Submits `requests` and waits until the engine has taken them all; `prompt` is the parameter that named them.
    ///
    /// # Errors
    /// One was refused; the others are aborted.
    pub(crate) async fn submit(
        app: &Arc<App>,
        requests: Vec<Request>,
        seats: Vec<Seat>,
        prompt: &str,
    ) -> Result<Self, ApiError> {
        let completions: usize = requests.iter().map(|request| request.choices).sum();
        let (sender, events) = mpsc::channel(EVENTS_MAX * completions);
        let (shared, submitted) = (Arc::new(Shared::default()), Instant::now());
        let mut reader =
            Reader { app: app.clone(), events, early: VecDeque::new(), open: Vec::new(), shared, submitted };
        for (prompt_index, (request, seat)) in requests.into_iter().zip(seats).enumerate() {
            let choices = request.choices;
            let sink = Sink {
                prompt: prompt_index,
                events: sender.clone(),
                shared: reader.shared.clone(),
                measures: app.measures.clone(),
                seat,
                submitted,
                last_token: vec![None; choices],
            };
            let id = app.engine.submit_to(request, Box::new(sink)).map_err(|no| ApiError::refused(&no, prompt))?;
            reader.open.push((id, choices));
        }
        drop(sender);
        let mut waiting = reader.open.len();
        while 0 < waiting {
            match reader.events.recv().await {
                Some((_, Event::Accepted { .. })) => waiting -= 1,
                Some((at, Event::Refused(refusal))) => {
                    reader.open[at].1 = 0;
                    return Err(ApiError::refused(&refusal, prompt));
                }
                Some((_, Event::Failed(why))) => return Err(ApiError::internal(format!("the engine failed: {why}"))),
                Some(event) => reader.early.push_back(event),
                None => return Err(reader.stopped()),
            }
        }
        Ok(reader)
    }

    /// The next event; `None` when every choice has ended. Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// The engine failed, refused a request that waited, or aborted one that was read too slowly.
    pub(crate) async fn next(&mut self) -> Option<Result<PromptEvent, ApiError>> {
        if self.open.iter().all(|(_, choices)| *choices == 0) {
            return None;
        }
        let next = match self.early.pop_front() {
            // Of what the engine has aborted nobody needs the rest.
            _ if self.shared.overflowed.load(Ordering::Relaxed) => None,
            Some(event) => Some(event),
            None => self.events.recv().await,
        };
        Some(self.seen(next))
    }

    /// The next event where one is there already.
    pub(crate) fn next_ready(&mut self) -> Option<Result<PromptEvent, ApiError>> {
        let next = self.early.pop_front().or_else(|| self.events.try_recv().ok())?;
        Some(self.seen(Some(next)))
    }

    /// What HTTP added before the first token, once there is one.
    pub(crate) fn overhead(&self, parsed: Instant) -> Option<Duration> {
        let engine = self.shared.first_token.get()?.duration_since(self.submitted);
        Some(parsed.elapsed().saturating_sub(engine))
    }

    /// The engine's thread has ended without a last word to this request.
    fn stopped(&self) -> ApiError {
        let why = self.app.engine.failure().map_or(String::new(), |why| format!(": {why}"));
        ApiError::internal(format!("the engine has stopped{why}"))
    }

    fn seen(&mut self, next: Option<PromptEvent>) -> Result<PromptEvent, ApiError> {
        let Some((at, event)) = next else {
            return Err(match self.shared.overflowed.load(Ordering::Relaxed) {
                true => ApiError::internal(format!(
                    "the answer was not read in time: {EVENTS_MAX} events of each completion waited"
                ))
                .code("slow_reader"),
                false => self.stopped(),
            });
        };
        match event {
            Event::Finished(_) => self.open[at].1 -= 1,
            Event::Refused(refusal) => {
                self.open[at].1 = 0;
                return Err(ApiError::refused(&refusal, "prompt"));
            }
            Event::Failed(why) => {
                self.open.iter_mut().for_each(|(_, choices)| *choices = 0);
                return Err(ApiError::internal(format!("the engine failed: {why}")));
            }
            _ => {}
        }
        Ok((at, event))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for (id, choices) in &self.open {
            if 0 < *choices {
                self.app.engine.abort(*id);
            }
        }
    }
}

impl Sink {
    fn measure(&mut self, event: &Event) {
        match event {
            Event::Prefill { done, .. } => self.seat.read(*done),
            Event::Token(token) => {
                let (now, choice) = (Instant::now(), token.choice as usize);
                self.seat.wrote();
                self.shared.first_token.get_or_init(|| now);
                match self.last_token[choice].replace(now) {
                    Some(last) => self.measures.inter_token.observe((now - last).as_secs_f64()),
                    None => self.measures.time_to_first_token.observe((now - self.submitted).as_secs_f64()),
                }
            }
            Event::Finished(finished) => self.measures.finish(finished),
            _ => {}
        }
    }
}

impl EventSink for Sink {
    fn send(&mut self, event: Event) -> Delivered {
        self.measure(&event);
        match self.events.try_send((self.prompt, event)) {
            Ok(()) => Delivered::Taken,
            Err(TrySendError::Closed(_)) => Delivered::Gone,
            Err(TrySendError::Full(_)) => {
                if !self.shared.overflowed.swap(true, Ordering::Relaxed) {
                    self.measures.slow_readers.fetch_add(1, Ordering::Relaxed);
                }
                Delivered::Full
            }
        }
    }
}
