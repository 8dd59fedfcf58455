//! Conformance suites: what every backend must pass, one file per op, as functions over a [`MakeBackend`].
//!
//! The error rule: an op's largest error against the f64 reference is at most twice the error of the plain f32
//! reference, plus a stated number of roundings of the largest value. Lengths and shapes are awkward on purpose.

use backend::Backend;

pub mod fixture;

pub mod attend;
pub mod elementwise;
pub mod gemm;
pub mod merge;
pub mod prefill_attend;
pub mod qkv_append;
pub mod sample;
pub mod staging;

pub mod selection_rig;

pub mod attention_mass;
pub mod estimate;
pub mod group_reduce;
pub mod pool_mean;
pub mod rotate_code;
pub mod score_codes;
pub mod score_dot;
pub mod score_tokens;
pub mod topk;

/// Makes a backend that spreads its work over this many threads (where that means something).
pub type MakeBackend<'a> = &'a dyn Fn(usize) -> Box<dyn Backend>;
