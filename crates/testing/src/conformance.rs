//! Conformance suites: what every backend must pass, one file per op, as functions over a [`MakeBackend`].
//!
//! The error rule: an op's largest error against the f64 reference is at most twice the error of the plain f32
//! reference, plus a stated number of roundings of the largest value. Lengths and shapes are awkward on purpose.
//!
//! What a backend rounds on purpose is added where it happens: a product buffer in bf16 is off by half a step of bf16
//! more, and so are softmax weights that tensor cores take as bf16. Inputs of products and of attention are drawn so
//! that the backend holds them exactly. Heads that a backend refuses are left out, but never 64, 96 or 128 elements and
//! groups of one to eight.

use backend::Backend;
use std::sync::Arc;

pub mod fixture;
pub mod heads;
pub mod precision;

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

pub mod residency;

/// The backend under test, and how much of it is tested.
#[derive(Clone, Copy)]
pub struct MakeBackend<'a> {
    make: &'a dyn Fn(usize) -> Arc<dyn Backend>,
    extent: Extent,
}

/// How many shapes a suite goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of them.
    Full,
    /// Few, for tools that watch every access and slow the device down by tens.
    Reduced,
}

impl<'a> MakeBackend<'a> {
    /// `make` gives a backend that spreads its work over this many threads (where that means something).
    pub fn new(make: &'a dyn Fn(usize) -> Arc<dyn Backend>, extent: Extent) -> Self {
        MakeBackend { make, extent }
    }

    /// A backend on this many threads.
    pub fn backend(&self, threads: usize) -> Arc<dyn Backend> {
        (self.make)(threads)
    }

    /// All of these, or the first and the last.
    pub fn some<T: Clone>(&self, all: &[T]) -> Vec<T> {
        match (self.extent, all) {
            (Extent::Reduced, [first, _, .., last]) => vec![first.clone(), last.clone()],
            _ => all.to_vec(),
        }
    }

    /// Whether only few shapes are wanted.
    pub fn is_reduced(&self) -> bool {
        self.extent == Extent::Reduced
    }
}

/// A suite; it panics where the backend does not conform.
pub type Suite = fn(MakeBackend<'_>);

/// Suites of what every model runs, by name.
pub const MODEL_SUITES: &[(&str, Suite)] = &[
    ("embed", elementwise::embed),
    ("add_norm", elementwise::add_norm),
    ("silu_mul", elementwise::silu_mul),
    ("gemm", gemm::gemm),
    ("gemm_fuse", gemm::fuse),
    ("staging", staging::round_trip),
    ("qkv_append", qkv_append::qkv_append),
    ("prefill_attend", prefill_attend::prefill_attend),
    ("attend_row_tables", attend::row_tables),
    ("attend_long_row_tables", attend::long_row_tables),
    ("merge", merge::merge),
    ("score_tokens", score_tokens::score_tokens),
    ("sample_greedy", sample::greedy),
    ("sample_history", sample::history),
    ("sample_extremes", sample::extremes),
    ("sample_draws", sample::draws),
    ("sample_targets", sample::targets),
    ("sample_masks", sample::masks),
    ("sample_first_masks", sample::first_masks),
    ("sample_masked_draws", sample::masked_draws),
];

/// Suites of Index, Select and what reads their results, by name.
pub const SELECTION_SUITES: &[(&str, Suite)] = &[
    ("pool_mean", pool_mean::pool_mean),
    ("rotate_code", rotate_code::rotate_code),
    ("refused_rotations", rotate_code::refused_rotations),
    ("score_dot", score_dot::score_dot),
    ("score_codes", score_codes::score_codes),
    ("score_codes_exact_integers", score_codes::exact_integers),
    ("group_reduce", group_reduce::group_reduce),
    ("topk", topk::topk),
    ("made_up_selection", topk::made_up_selection),
    ("attend_page_lists", attend::page_lists),
    ("estimate", estimate::estimate),
    ("attention_mass", attention_mass::attention_mass),
    ("residency", residency::residency),
    ("residency_emptied", residency::emptied),
];
