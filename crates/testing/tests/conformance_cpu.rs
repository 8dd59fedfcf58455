//! The CPU backend against the references, on every instruction set present.

use backend::Backend;
use backend::cpu::{CpuBackend, CpuOptions, Isa};
use testing::conformance::{self as ops, MakeBackend};

/// Runs a suite on every instruction set.
fn on_cpu(suite: fn(MakeBackend<'_>)) {
    for isa in Isa::ALL {
        if !isa.is_available() {
            println!("skipped on {}: this machine lacks it", isa.name());
            continue;
        }
        let make = |threads| -> Box<dyn Backend> {
            Box::new(CpuBackend::new(CpuOptions { threads, isa }).expect("available"))
        };
        println!("{}", isa.name());
        suite(&make);
    }
}

macro_rules! suites {
    ($($name:ident: $suite:path;)*) => {
        $(#[test]
        fn $name() {
            on_cpu($suite);
        })*
    };
}

suites! {
    embed: ops::elementwise::embed;
    add_norm: ops::elementwise::add_norm;
    silu_mul: ops::elementwise::silu_mul;
    gemm: ops::gemm::gemm;
    gemm_fuse: ops::gemm::fuse;
    staging: ops::staging::round_trip;
    qkv_append: ops::qkv_append::qkv_append;
    prefill_attend: ops::prefill_attend::prefill_attend;
    attend_row_tables: ops::attend::row_tables;
    merge: ops::merge::merge;
    score_tokens: ops::score_tokens::score_tokens;
    sample_greedy: ops::sample::greedy;
    sample_history: ops::sample::history;
    sample_extremes: ops::sample::extremes;
    sample_draws: ops::sample::draws;
    sample_targets: ops::sample::targets;
    sample_masks: ops::sample::masks;
    sample_first_masks: ops::sample::first_masks;
    sample_masked_draws: ops::sample::masked_draws;
}
