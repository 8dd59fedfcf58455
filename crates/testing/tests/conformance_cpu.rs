//! The CPU backend against the references, on every instruction set present.

use backend::Backend;
use backend::cpu::{CpuBackend, CpuOptions, Isa};
use std::sync::Arc;
use testing::conformance::{Extent, MODEL_SUITES, MakeBackend};

/// Runs a suite on every instruction set.
fn on_cpu(name: &str) {
    let (_, suite) = MODEL_SUITES.iter().find(|(suite, _)| *suite == name).expect("a suite of that name");
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
            let names: Vec<&str> = MODEL_SUITES.iter().map(|(name, _)| *name).collect();
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
}
