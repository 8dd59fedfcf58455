//! The truth of each op: plain loops over slices, one file per op.
//!
//! Every function is written once over [`Real`]: in f64 it is what an op should give, in f32 it is the plain
//! implementation of the same precision whose error the ops' own error is measured by (style: the error rule).

pub mod real;

pub mod attend;
pub mod elementwise;
pub mod estimate;
pub mod gemm;
pub mod group_reduce;
pub mod merge;
pub mod pool_mean;
pub mod qkv_append;
pub mod rotate_code;
pub mod sample;
pub mod score_codes;
pub mod score_dot;
pub mod score_tokens;
pub mod topk;

pub use real::Real;
