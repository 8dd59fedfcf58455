//! What this crate reads: configurations, weights, tokenizers, templates. One binary, so that it links once.

mod bundled;
mod chat;
mod config;
mod generation;
mod gguf;
mod gguf_writer;
mod noise;
mod random;
mod refusals;
mod smollm2;
mod tiny;
mod tokenizer;
