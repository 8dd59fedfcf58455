//! The compute contract on NVIDIA GPUs: one captured graph per decode step, kernels embedded as machine code.
//!
//! Without the feature `cuda` this crate is empty: a machine without CUDA's compiler builds everything else.
//!
//! `kernels/<op>.cu` has an op's kernels, `src/<op>.rs` launches them; its truth is `backend/src/cpu/<op>.rs`.

#![cfg(feature = "cuda")]

pub mod abi;

mod driver;

mod kernels;

mod loader;

mod upload;

mod memory;

mod host_memory;

mod gemm;

mod cublas;

mod runtime;

mod step;

mod device;

mod attend;
mod attention_mass;
mod elementwise;
mod estimate;
mod group_reduce;
mod index;
mod inspect;
mod lanes;
mod merge;
mod ops;
mod prefill_attend;
mod qkv_append;
mod residency;
mod sample;
mod score;
mod slots;
mod staging;
mod tensor_map;
mod topk;

pub use device::{CudaBackend, CudaOptions, DeviceSummary, architectures, devices};
