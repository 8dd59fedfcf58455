//! `Company`, which GPU checks rely on: every sequence in it says what it says alone, whoever sits a step out.

use backend::Sampling;
use backend::cpu::{CpuBackend, CpuOptions};
use kv::{Selection, TokenId};
use model::{ModelSource, needle_text};
use testing::company::{Company, Member};
use testing::rig::low_limits;
use testing::solo::Solo;

const STEPS: usize = 30;

#[test]
fn everybody_says_what_it_says_alone() {
    let opened = model::open(&ModelSource::Bundled).expect("the bundled model opens");
    let backend = CpuBackend::new(CpuOptions::default()).expect("the instruction set is present");
    let member = |algorithm, context| Member { algorithm, prompt: needle_text::document(context, 20, 3).ids() };
    let members = [member("dense", 180), member("sketch", 300), member("shadowkv", 211)];
    let alone: Vec<Vec<TokenId>> = members
        .iter()
        .map(|member| {
            let adjust = |selection: &mut Selection| {
                if member.algorithm != "dense" {
                    low_limits(selection);
                }
            };
            let most = member.prompt.len() + STEPS + 1;
            let mut solo = Solo::new(&backend, &opened, most, member.algorithm, adjust);
            solo.prefill(&member.prompt, member.prompt.len(), Sampling::default());
            (0..STEPS).map(|_| solo.step(None, false).token).collect()
        })
        .collect();
    for leave in [None, Some(4)] {
        let mut company = Company::new(&backend, &opened, &members, STEPS, low_limits);
        let steps = company.steps(STEPS, leave).expect("the device works");
        for (i, want) in alone.iter().enumerate() {
            // Outputs come in lane order, and only the first sequence ever sits out.
            let said = steps.iter().filter_map(|step| step.get((i + step.len()).checked_sub(members.len())?));
            let said: Vec<TokenId> = said.map(|output| output.token).collect();
            let left_out = leave.filter(|_| i == 0).map_or(0, |every| STEPS / every);
            assert_eq!(said, want[..STEPS - left_out], "sequence {i}, leave {leave:?}");
        }
    }
}
