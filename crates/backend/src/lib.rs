//! The compute contract (ARCHITECTURE.md, "The contract of a step") and its complete CPU implementation.
//!
//! A [`Backend`] owns memory and weights; a [`Runtime`] owns one pool, its lanes and workspaces, and runs the ops.
//! Callers hold opaque handles that free themselves and never see where the bytes are.

pub mod tensor;

pub mod handle;

pub mod shape;

pub mod mask;

pub mod step;

pub mod contract;

pub mod fuse;

pub mod sketch;

pub mod made_up;

pub mod reference;

pub mod cpu;

pub use contract::{
    Backend, BackendError, Batch, EstimateSource, HeadNorms, IndexUnits, Inspect, KvTarget, PageSource, PrefillForm,
    Rotations, Runtime, SampleTarget, TokenSource, VectorSummary, WeightPart, WeightRole,
};
pub use handle::{Buffer, Partial, View, Weight};
pub use mask::TokenMask;
pub use shape::{DeviceInfo, MemoryUse, Rope, RuntimeShape};
pub use step::{
    AlgorithmId, AlgorithmSet, BIAS_MOST, CacheChange, FirstInput, HomeDelta, LaneOutput, LaneStart, PENALTY_MOST,
    Retrieved, RowCopy, RowDelta, RowTableKind, Sampling, StepInput, StepKey, StepOutput, TEMPERATURE_LEAST,
    TEMPERATURE_MOST, Ticket, TokenScore,
};
pub use tensor::{Tensor, TensorData};
