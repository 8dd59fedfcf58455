//! The CPU backend: complete, the default, and the truth that other backends are tested against.
//!
//! Ops run at once, in call order, each spread over the threads of one pool. A result never depends on how work is
//! spread: every output element has one owner and one fixed order of operations (invariant 3).

#![allow(clippy::needless_range_loop, reason = "kernels index several arrays of registers at once")]

pub mod simd;

pub mod array;

pub mod threads;

pub mod weight;

pub mod lanes;

pub mod workspace;

pub mod runtime;

mod device;

mod dot;

mod softmax;

mod units;

mod philox;

pub mod rope;

mod scratch;

mod tile;

mod attend;
mod attention_mass;
mod elementwise;
mod estimate;
mod gemm;
mod group_reduce;
mod merge;
mod pool_mean;
mod prefill_attend;
mod qkv_append;
mod random;
mod rotate_code;
mod sample;
mod score_codes;
mod score_dot;
mod score_tokens;
mod staging;
mod topk;

mod retrieve;

mod made_up;

pub use device::{CpuBackend, CpuOptions};
pub use simd::Isa;
