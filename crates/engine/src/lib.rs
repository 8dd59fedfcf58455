//! Sequences, the scheduler (plans are plain data), the step loop and metrics.

pub mod config;

pub mod request;

pub mod constraint;

pub mod event;

pub mod cost;

pub mod plan;

mod prefill;

mod sequence;

pub mod scheduler;

pub mod metrics;

pub mod footprint;

pub mod stop;

pub mod outbox;

pub mod clock;

pub mod step;

pub mod handle;

pub mod engine;

pub use backend::TokenMask;
pub use clock::{Clock, SystemClock};
pub use config::{DECODE_SHARE_MAX, EVENTS_MAX, EngineConfig, MESSAGES_MAX, PROMPT_LOGPROBS_MAX, pool_rows};
pub use constraint::{Constraint, ConstraintFactory};
pub use cost::CostModel;
pub use engine::Engine;
pub use event::{
    AbortReason, Attended, AttentionUsed, Event, FinishReason, Finished, PromptToken, Timings, TokenEvent, Usage,
};
pub use footprint::{Footprint, Stage};
pub use handle::{RequestHandle, Waited};
pub use metrics::Metrics;
pub use model::{Forward, PASSES_MAX, PassView, ScoreView};
pub use outbox::{Delivered, EventSink, Outbox, TextFactory, TextOptions, TextStream};
pub use plan::Plan;
pub use request::{Attention, Feed, Refusal, Request, RequestId, Source};
pub use scheduler::{Notice, Outcome, Scheduler};
pub use step::{Progress, Steps};
