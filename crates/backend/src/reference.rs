//! The truth of each op: plain loops over slices, one file per op.
//!
//! Every function is written once over [`Real`]: in f64 it is what an op should give, in f32 it is the plain
//! implementation of the same precision whose error the ops' own error is measured by (style: the error rule).

pub mod real;

pub mod attend;
pub mod elementwise;
pub mod gemm;
pub mod merge;
pub mod qkv_append;
pub mod sample;

pub use real::Real;
