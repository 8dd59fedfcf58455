//! Conformance suites: what every backend must pass, one file per op, as functions over a [`MakeBackend`].

use backend::Backend;

pub mod selection_rig;

pub mod attention_mass;
pub mod estimate;
pub mod group_reduce;
pub mod pool_mean;
pub mod rotate_code;
pub mod score_codes;
pub mod score_dot;
pub mod topk;

/// Makes a backend that spreads its work over this many threads (where that means something).
pub type MakeBackend<'a> = &'a dyn Fn(usize) -> Box<dyn Backend>;
