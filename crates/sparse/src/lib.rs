//! The attention algorithms, one file each: Index, Select and, where it must, Attend, written once as compositions of
//! backend ops. Nothing outside an algorithm's file knows which one runs.

pub mod algorithm;

pub mod reads;

pub mod registry;

mod dense;

mod shadowkv;

mod sketch;

mod made_up;

pub use algorithm::{Algorithm, AlgorithmSpec, AttendBuffers};
pub use made_up::MadeUp;
pub use reads::StepReads;
pub use registry::{Algorithms, Specs, UnknownAlgorithm};
pub use sketch::{default_rotation, rotation_parts};
