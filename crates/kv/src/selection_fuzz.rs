//! Selection at every length modulo 48, for both Index units, windows and all budgets that matter.

use crate::selection::Selected;
use crate::{PAGE_TOKENS, Selection};

fn selections() -> impl Iterator<Item = Selection> {
    let axes = [8, 48].into_iter().flat_map(|unit| [32, 64].map(|window| (unit, window)));
    let budgets = [0.0, 0.008, 0.0156, 0.06, 0.12, 0.5, 1.0];
    axes.flat_map(move |(index_unit_tokens, window_tokens)| {
        budgets.into_iter().flat_map(move |budget| {
            [(8, 0, 0), (8, 64, 2048), (1, 64, 0), (40, 0, 300)].map(|(sink_tokens, floor_tokens, min_context)| {
                Selection { index_unit_tokens, sink_tokens, window_tokens, budget, floor_tokens, min_context }
            })
        })
    })
}

/// Ranges that each cover every residue modulo 48, around the places where something begins, and far out.
fn lengths() -> impl Iterator<Item = usize> {
    (0..700).chain(2000..2100).chain(4090..4150).chain(32_760..32_820).chain(131_000..131_075)
}

fn check(selection: &Selection, len: usize) {
    let (unit, indexed) = (selection.index_unit_tokens, selection.indexed_tokens(len));
    let name = || format!("{selection:?} at {len}");
    assert_eq!(indexed, selection.indexed_pages(len) * PAGE_TOKENS, "{}", name());
    assert_eq!(indexed % unit, 0, "whole Index units: {}", name());
    assert!(indexed == 0 || indexed + selection.window_tokens + 2 <= len, "the window stays exact: {}", name());
    let gained = selection.indexed_tokens(len + 1) - indexed;
    assert!(gained == 0 || gained == unit, "a step indexes at most one unit: {}", name());
    assert!(len < indexed + selection.window_tokens + 2 + unit, "nothing waits for longer than a unit: {}", name());
    assert!(selection.exact_tokens(len) <= len, "{}", name());
    assert_eq!(selection.selects_from() <= len, matches!(selection.at(len), Selected::Pages { .. }), "{}", name());
    match selection.at(len) {
        Selected::AllExact(_) => {
            assert!(len < selection.min_context || indexed <= selection.sink_pages() * PAGE_TOKENS, "{}", name());
            assert_eq!(selection.exact_tokens(len), len, "{}", name());
        }
        Selected::Pages { sink, indexed: b, k } => {
            assert!(selection.min_context <= len, "{}", name());
            assert_eq!((sink, b), (selection.sink_pages(), selection.indexed_pages(len)), "{}", name());
            assert!(1 <= k && k <= b - sink, "{}", name());
            assert!(selection.floor_tokens.div_ceil(PAGE_TOKENS).min(b - sink) <= k, "the floor: {}", name());
            let exact = (sink + k) * PAGE_TOKENS + len - b * PAGE_TOKENS;
            assert_eq!(selection.exact_tokens(len), exact, "{}", name());
            if selection.budget == 1.0 {
                assert_eq!(k, b - sink, "a budget of 100 % selects every candidate: {}", name());
            }
        }
    }
}

#[test]
fn selection_holds_at_every_length_modulo_48() {
    let residues: std::collections::BTreeSet<usize> = lengths().map(|len| len % 48).collect();
    assert_eq!(residues.len(), 48);
    for selection in selections() {
        for len in lengths() {
            check(&selection, len);
        }
    }
}

#[test]
fn more_budget_never_selects_less() {
    for len in lengths() {
        for unit in [8, 48] {
            let at = |budget| {
                let selection = Selection {
                    index_unit_tokens: unit,
                    sink_tokens: 8,
                    window_tokens: 64,
                    budget,
                    floor_tokens: 64,
                    min_context: 0,
                };
                selection.exact_tokens(len)
            };
            let exact: Vec<usize> = [0.0, 0.01, 0.1, 0.3, 1.0].map(at).to_vec();
            assert!(exact.is_sorted(), "{exact:?} at {len}");
            assert_eq!(exact[4], len);
        }
    }
}
