//! The CPU backend against the conformance suites of the selection ops, on every instruction set present.

use backend::Backend;
use backend::cpu::{CpuBackend, CpuOptions, Isa};
use std::sync::Arc;
use testing::conformance::{Extent, MakeBackend, SELECTION_SUITES};

/// Runs a suite on every instruction set.
fn on_cpu(name: &str) {
    let (_, suite) = SELECTION_SUITES.iter().find(|(suite, _)| *suite == name).expect("a suite of that name");
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
            let names: Vec<&str> = SELECTION_SUITES.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

suites! {
    pool_mean
    rotate_code
    refused_rotations
    score_dot
    score_codes
    score_codes_exact_integers
    group_reduce
    topk
    attend_page_lists
    estimate
    attention_mass
}
