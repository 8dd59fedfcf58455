//! The CPU backend against the conformance suites of the selection ops, on every instruction set present.

use backend::Backend;
use backend::cpu::{CpuBackend, CpuOptions, Isa};
use testing::conformance;

fn each_isa(suite: impl Fn(conformance::MakeBackend<'_>)) {
    for isa in Isa::ALL {
        if !isa.is_available() {
            println!("skipped on {}: this machine lacks it", isa.name());
            continue;
        }
        suite(&|threads| -> Box<dyn Backend> {
            Box::new(CpuBackend::new(CpuOptions { threads, isa }).expect("the instruction set is present"))
        });
    }
}

#[test]
fn pool_mean() {
    each_isa(conformance::pool_mean::pool_mean);
}

#[test]
fn rotate_code() {
    each_isa(conformance::rotate_code::rotate_code);
}

#[test]
fn refused_rotations() {
    each_isa(conformance::rotate_code::refused_rotations);
}

#[test]
fn score_dot() {
    each_isa(conformance::score_dot::score_dot);
}

#[test]
fn score_codes() {
    each_isa(conformance::score_codes::score_codes);
}

#[test]
fn score_codes_exact_integers() {
    each_isa(conformance::score_codes::exact_integers);
}

#[test]
fn group_reduce() {
    each_isa(conformance::group_reduce::group_reduce);
}

#[test]
fn topk() {
    each_isa(conformance::topk::topk);
}

#[test]
fn estimate() {
    each_isa(conformance::estimate::estimate);
}

#[test]
fn attention_mass() {
    each_isa(conformance::attention_mass::attention_mass);
}
