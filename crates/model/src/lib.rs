//! One decoder driven by the model's configuration, and the files that it comes in.
//!
//! [`open`] reads and checks everything but the weights: configuration, tensor list, tokenizer, chat template, sampling
//! defaults. What this decoder cannot run is refused there, by field and value, and never later.
//! No environment variable is read here, and nothing is fetched from a network.

mod source;

mod config;
mod error;
mod generation;

mod checkpoint;
mod gguf;
mod tensor;
mod tensor_list;

mod chat;
mod tokenizer;

mod decoder;
mod forward;

pub mod bundled;
pub mod needle_text;

mod file;
mod folder;
mod json;

pub use chat::{ChatInput, ChatTemplate, Message};
pub use checkpoint::Checkpoint;
pub use config::{Architecture, ModelConfig, RopeConfig};
pub use decoder::{Decoder, DecoderLimits};
pub use error::Error;
pub use forward::{Forward, PASSES_MAX, PassView, ScoreView};
pub use generation::Generation;
pub use source::{ModelSource, Opened, WeightSource, open, open_gguf_bytes, open_with};
pub use tensor_list::TensorSpec;
pub use tokenizer::{Detokenizer, Tokenizer, UnknownWords};
