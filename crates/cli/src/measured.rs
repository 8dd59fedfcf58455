//! What the golden questions say of a budget: whether it answers like dense attention does.

use crate::attention::Attention;
use crate::quantity::Share;
use serde_json::Value;

/// The last full run; README shows it as a table.
const GOLDEN: &str = include_str!("../../../benches/results/2026-11-26-golden.json");

/// Contexts with enough questions to tell.
const CONTEXTS: std::ops::RangeInclusive<u64> = 4_096..=32_768;

/// A share of the questions that is noise.
const NOISE: f64 = 0.015;

/// Budgets this near are the same one: 0.8 % was measured as 0.78 %.
const NEAR: f64 = 1.05;

/// One line of the run.
struct Measured {
    context: f64,
    budget: f64,
    accuracy: f64,
}

/// Says where a budget was measured to answer fewer questions than dense attention; the floor counts as budget where
/// it is more.
pub(crate) fn warning(attention: &Attention) -> Option<String> {
    let golden: Value = serde_json::from_str(GOLDEN).expect("the run is JSON");
    let lines = golden["results"].as_array().expect("it has results");
    let dense = measured(lines, "dense");
    let own = measured(lines, attention.name);
    let selection = &attention.selection;
    let worse = |of: &Measured| {
        if of.context < selection.min_context as f64 {
            return None;
        }
        let budget = selection.budget.max(selection.floor_tokens as f64 / of.context);
        let here = || own.iter().filter(|line| line.context == of.context);
        let below = here().filter(|line| line.budget <= budget * NEAR).max_by(|a, b| a.budget.total_cmp(&b.budget));
        let nearest = below.or(here().min_by(|a, b| a.budget.total_cmp(&b.budget)))?;
        Some((of.accuracy - nearest.accuracy, nearest))
    };
    let (loss, line) = dense.iter().filter_map(worse).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (NOISE < loss).then(|| {
        let (asked, known) = (Share(selection.budget), Share(line.budget));
        let (name, points, context) = (attention.name, loss * 100.0, line.context);
        format!(
            "{name} at {asked}: the nearest budget that was measured, {known}, answered {points:.0} points fewer \
             questions right than dense attention at {context} tokens"
        )
    })
}

/// The lines of one algorithm, which the run names with its budget: `sketch K2V2 0.0078`.
fn measured(lines: &[Value], name: &str) -> Vec<Measured> {
    let read = |line: &Value| {
        let mut words = line["attention"].as_str()?.split(' ');
        let known = words.next()? == name && CONTEXTS.contains(&line["context"].as_u64()?);
        let budget = words.next_back().map_or(Some(1.0), |word| word.parse().ok())?;
        let (context, accuracy) = (line["context"].as_f64()?, line["accuracy"].as_f64()?);
        known.then_some(Measured { context, budget, accuracy })
    };
    lines.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv::Selection;

    fn check(name: &'static str, budget: f64, floor_tokens: usize, expected: &str) {
        let selection = Selection { budget, floor_tokens, min_context: 2048, ..Selection::dense() };
        let attention = Attention { name, algorithm: backend::AlgorithmId(0), selection };
        let said = warning(&attention).unwrap_or_default();
        assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{name} {budget}: '{said}'");
    }

    #[test]
    fn budgets_that_answer_fewer_questions_are_told() {
        check("dense", 1.0, 0, "");
        check("shadowkv", 0.0156, 64, "the nearest budget that was measured, 6%, answered 16 points fewer");
        check("shadowkv", 0.13, 64, "12%, answered 7 points fewer questions right than dense attention at 4096 tokens");
        check("sketch", 0.008, 64, "");
        check("sketch", 0.008, 0, "0.78%, answered 4 points fewer questions right than dense attention at 4096 tokens");
        check("sketch", 0.03, 0, "");
    }
}
