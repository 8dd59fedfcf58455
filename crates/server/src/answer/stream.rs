//! An answer as server-sent events: `data: {...}` a piece, comments where it is silent, `data: [DONE]` last.
//!
//! Frames are made when the connection asks for them, so a client that reads slowly leaves its events in the reader's
//! channel, whose bound ends its request, and a connection that closes drops everything.

use super::piece::Piece;
use super::usage::UsageSum;
use super::whole::aborted;
use super::{Envelope, Style};
use crate::app::App;
use crate::config::COMMENT_SECONDS;
use crate::error::ApiError;
use crate::reader::{PromptEvent, Reader};
use engine::{Event, FinishReason};
use futures_util::{Stream, stream};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Events that one frame may carry: those that came while the last one was written.
const FRAME_EVENTS_MAX: usize = 64;

/// The stream of one response.
pub(crate) struct Frames {
    app: Arc<App>,
    reader: Reader,
    style: Box<dyn Style>,
    envelope: Envelope,
    /// Whether usage is the last event.
    with_usage: bool,
    parsed: Instant,
    usage: UsageSum,
    /// By prompt, tokens read and to read.
    progress: Vec<(usize, usize)>,
    comments: Interval,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No token yet.
    Reading,
    Writing,
    Over,
}

impl Frames {
    pub(crate) fn new(
        app: Arc<App>,
        reader: Reader,
        style: Box<dyn Style>,
        envelope: Envelope,
        with_usage: bool,
        parsed: Instant,
    ) -> Self {
        let mut comments = interval(Duration::from_secs(COMMENT_SECONDS));
        comments.set_missed_tick_behavior(MissedTickBehavior::Delay);
        comments.reset();
        let (usage, progress, stage) = (UsageSum::default(), Vec::new(), Stage::Reading);
        Frames { app, reader, style, envelope, with_usage, parsed, usage, progress, comments, stage }
    }

    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<String, Infallible>> + Send {
        stream::unfold(self, |mut frames| async { frames.next().await.map(|frame| (Ok(frame), frames)) })
    }

    /// The next frame; `None` behind the last.
    async fn next(&mut self) -> Option<String> {
        let mut frame = String::new();
        while frame.is_empty() {
            if self.stage == Stage::Over {
                return None;
            }
            tokio::select! {
                biased;
                event = self.reader.next() => self.write(event, &mut frame),
                _ = self.comments.tick() => frame = self.comment(),
            }
            for _ in 0..FRAME_EVENTS_MAX {
                let Some(event) = self.reader.next_ready().filter(|_| self.stage != Stage::Over) else { break };
                self.write(Some(event), &mut frame);
            }
        }
        self.comments.reset();
        Some(frame)
    }

    fn write(&mut self, event: Option<Result<PromptEvent, ApiError>>, frame: &mut String) {
        match event {
            Some(Ok((prompt, Event::Prefill { done, total }))) => {
                self.progress.resize(self.progress.len().max(prompt + 1), (0, 0));
                self.progress[prompt] = (done, total);
            }
            Some(Ok((prompt, Event::PromptLogprobs(tokens)))) => self.style.prompt(prompt, tokens),
            Some(Ok((prompt, event))) => {
                if let Some(piece) = Piece::of(prompt, event) {
                    self.piece(piece, frame);
                }
            }
            Some(Err(error)) => self.end(frame, Some(&error)),
            None => self.end(frame, None),
        }
    }

    fn piece(&mut self, piece: Piece, frame: &mut String) {
        if self.stage == Stage::Reading {
            self.stage = Stage::Writing;
            if let Some(overhead) = self.reader.overhead(self.parsed) {
                self.app.measures.http_overhead.observe(overhead.as_secs_f64());
            }
        }
        if let Some(end) = &piece.end {
            if let FinishReason::Aborted(reason) = end.reason {
                return self.end(frame, Some(&aborted(reason, end)));
            }
            self.usage.add(piece.prompt, end);
        }
        for choice in self.style.deltas(piece) {
            let mut chunk = self.envelope.wrap(self.style.names().chunk, vec![choice]);
            if self.with_usage {
                chunk["usage"] = serde_json::Value::Null;
            }
            let _ = write!(frame, "data: {chunk}\n\n");
        }
    }

    fn end(&mut self, frame: &mut String, error: Option<&ApiError>) {
        self.stage = Stage::Over;
        match error {
            Some(error) => {
                let _ = write!(frame, "data: {}\n\n", error.body());
            }
            None if self.with_usage => {
                let mut chunk = self.envelope.wrap(self.style.names().chunk, Vec::new());
                chunk["usage"] = self.usage.to_json();
                let _ = write!(frame, "data: {chunk}\n\n");
            }
            None => {}
        }
        frame.push_str("data: [DONE]\n\n");
    }

    /// Keeps proxies from cutting a silent stream, and says how far the prompts are.
    fn comment(&self) -> String {
        let (done, total) = self.progress.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        match total {
            0 => ": waiting\n\n".into(),
            total if done == total => ": writing\n\n".into(),
            total => format!(": prefill {done}/{total}\n\n"),
        }
    }
}
