//! The CPU backend against the references, on every instruction set present.

use backend::Backend;
use backend::cpu::{CpuBackend, CpuOptions, Isa};
use std::sync::Arc;
use testing::conformance::{Extent, MODEL_SUITES, MakeBackend, SELECTION_SUITES, Suite};

fn all_suites() -> impl Iterator<Item = &'static (&'static str, Suite)> {
    MODEL_SUITES.iter().chain(SELECTION_SUITES)
}

/// Runs a suite on every instruction set.
fn on_cpu(name: &str) {
    let (_, suite) = all_suites().find(|(suite, _)| *suite == name).expect("a suite of that name");
    for isa in Isa::ALL {
        if !isa.is_available() {
            println!("skipped on {}: this machine lacks it", isa.name());
            continue;
        }
        println!("{}", isa.name());
        let make = |threads| -> Arc<dyn Backend> {
            Arc::new(CpuBackend::new(CpuOptions { threads, isa }).expect("the instruction set is present"))
        };
        suite(MakeBackend::new(&make, Extent::Full));
    }
}

macro_rules! suites {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            on_cpu(stringify!($name));
        })*

        #[test]
        fn every_suite_is_a_test() {
            let names: Vec<&str> = all_suites().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

suites! {
    embed
    add_norm
    silu_mul
    gemm
    gemm_fuse
    staging
    qkv_append
    prefill_attend
    attend_row_tables
    attend_long_row_tables
    merge
    score_tokens
    sample_greedy
    sample_history
    sample_extremes
    sample_draws
    sample_targets
    sample_masks
    sample_first_masks
    sample_masked_draws
    pool_mean
    rotate_code
    refused_rotations
    score_dot
    score_codes
    score_codes_exact_integers
    group_reduce
    topk
    made_up_selection
    attend_page_lists
    estimate
    attention_mass
    residency
    residency_emptied
}
