//! `attend` over row tables and over page lists.

use super::MakeBackend;
use super::fixture::{ALGORITHM, Fixture, KeysValues, LAYER, Random, all_exact, check_error, check_lse};
use super::heads::{Heads, swept};
use super::precision::{HALF_BF16, Precision};
use super::selection_rig::{self, CODES, MEANS, Rig, RigSpec, selection};
use backend::reference::attend::attend as reference;
use backend::{Buffer, PageSource, Partial, Sampling, VectorSummary};

/// Lengths around pages and splits, all heads and groups.
pub fn row_tables(make: MakeBackend<'_>) {
    let awkward = [(1, 1, 16), (2, 2, 64), (1, 4, 128), (1, 8, 128), (3, 3, 80), (1, 7, 48), (2, 5, 32), (1, 2, 256)];
    let awkward = awkward.map(|(kv_heads, group, d)| Heads::new(kv_heads, group, d));
    for heads in swept(make, &awkward) {
        let all = [[1, 3, 113], [7, 8, 9], [1023, 511, 513], [512, 1, 1030]];
        // The longest ones show what the others cannot; the whole list goes over the awkward heads.
        let lengths =
            if awkward.contains(&heads) { make.some(&all) } else { all[..3].iter().copied().step_by(2).collect() };
        lengths.into_iter().for_each(|lengths| check(make, heads, lengths));
    }
}

/// Enough pages that a lane's list is cut into parts on any device, beside short lanes.
pub fn long_row_tables(make: MakeBackend<'_>) {
    for heads in [Heads::new(2, 4, 128), Heads::new(1, 8, 64), Heads::new(2, 3, 96)] {
        check(make, heads, [if make.is_reduced() { 3_001 } else { 40_001 }, 8, 5_000]);
    }
}

fn check(make: MakeBackend<'_>, heads: Heads, lengths: [usize; 3]) {
    let (d, q_heads) = (heads.head_dim, heads.q_heads());
    let longest = lengths.into_iter().max().expect("three");
    let fixture = Fixture::new(make, heads, lengths.len(), longest, 3);
    let mut random = Random(longest as u64 + d as u64);
    let lanes: Vec<KeysValues> = lengths.iter().map(|n| KeysValues::random(&mut random, heads, *n)).collect();
    for (lane, kv) in lanes.iter().enumerate() {
        fixture.fill_rows(&fixture.rows(lane, kv.tokens), kv);
    }
    let queries = fixture.as_products(&random.normals(3 * q_heads * d, 2.0));
    for precision in fixture.precisions() {
        let (q, _) = fixture.held(*precision, 3, q_heads * d, &queries);
        check_queries(&fixture, &lanes, *precision, &q, &queries);
    }
}

fn check_queries(fixture: &Fixture, lanes: &[KeysValues], precision: Precision, q: &Buffer, queries: &[f32]) {
    let (heads, runtime) = (fixture.heads, &fixture.runtime);
    let (d, q_heads, group) = (heads.head_dim, heads.q_heads(), heads.group);
    for (lane, kv) in lanes.iter().enumerate() {
        fixture.start(lane, kv.tokens - 1, all_exact(), Sampling::default());
    }
    let out = Partial { output: fixture.blank(3, q_heads * d), lse: fixture.blank(3, q_heads) };
    fixture.step(&[0, 1, 2], || {
        runtime.attend(ALGORITHM, LAYER, PageSource::RowTable, q.into(), &out);
    });
    let (output, lse) = (runtime.read(&out.output), runtime.read(&out.lse));
    for (lane, kv) in lanes.iter().enumerate() {
        for head in 0..heads.kv_heads {
            let first = lane * q_heads + head * group;
            let q = &queries[first * d..(first + group) * d];
            let (k, v) = kv.head(head, d);
            let ((plain, plain_lse), (exact, exact_lse)) = (reference::<f32>(q, k, v, d), reference::<f64>(q, k, v, d));
            let what = format!("attend of {heads:?} over {} tokens, {precision:?} queries", kv.tokens);
            // Normalising splits and joining them: a few roundings each.
            let roundings = 8.0 + fixture.weight_roundings();
            check_error(&what, &output[first * d..(first + group) * d], &plain, &exact, roundings);
            let lse = &lse[first..first + group];
            check_lse(&what, lse, &plain_lse, &exact_lse, 0.0 < fixture.weight_roundings());
        }
    }
}

/// The lists that Select wrote, of lanes of two algorithms in one step: short ones, whole ones, long ones.
pub fn page_lists(make: MakeBackend<'_>) {
    for heads in swept(make, &[Heads::new(2, 3, 48), Heads::new(2, 4, 128)]) {
        let lanes = vec![
            (MEANS, selection(8, 0.1), 301),
            (CODES, selection(48, 0.1), 304),
            (MEANS, selection(8, 1.0), 250),
            (CODES, selection(48, 0.02), 1500),
            (CODES, selection(48, 0.5), 20),
            (MEANS, selection(8, 0.3), 3001),
        ];
        check_lists(&Rig::new(make, &RigSpec { heads, lanes, seed: 11, threads: 2 }));
    }
}

fn check_lists(rig: &Rig) {
    let (layer, form) = (selection_rig::LAYER, VectorSummary::MeanKey);
    for lane in rig.lanes.iter().filter(|lane| lane.algorithm == MEANS) {
        let whole = (0, lane.selection.indexed_tokens(lane.len));
        rig.index(lane, &[whole], |rt, units| rt.pool_mean(MEANS, layer, units, form));
    }
    rig.index_codes();
    let out = rig.partial();
    rig.start();
    rig.step(|rt| {
        rt.score_dot(MEANS, layer, rig.q(), form);
        rt.score_codes(CODES, layer, rig.q(), &rig.rotations[0]);
        for algorithm in [MEANS, CODES] {
            rt.group_reduce(algorithm);
            rt.topk(algorithm);
            rt.attend(algorithm, layer, PageSource::PageList, rig.q(), &out);
        }
    });
    let (output, lse) = (rig.runtime.read(&out.output), rig.runtime.read(&out.lse));
    let d = rig.geometry.head_dim;
    let group = rig.q_heads / rig.geometry.kv_heads;
    for (i, lane) in rig.lanes.iter().enumerate() {
        for head in 0..rig.geometry.kv_heads {
            let row = |entry: kv::PageEntry| lane.kv_rows.iter().position(|row| *row == entry.row()).expect("its row");
            let list = rig.runtime.read_page_list(lane.lane, head);
            let tokens = |entry: &kv::PageEntry| 8 * row(*entry) * d..(8 * row(*entry) + entry.count()) * d;
            let listed = |all: &[f32]| list.iter().flat_map(|entry| all[tokens(entry)].to_vec()).collect::<Vec<f32>>();
            let (k, v) = (listed(rig.keys(lane, head)), listed(rig.values(lane, head)));
            let first = i * rig.q_heads + head * group;
            let q = &rig.queries[first * d..(first + group) * d];
            let ((plain, plain_lse), (exact, exact_lse)) =
                (reference::<f32>(q, &k, &v, d), reference::<f64>(q, &k, &v, d));
            let what = format!("attend of {} listed pages of {}, d {d}, group {group}", list.len(), lane.kv_rows.len());
            let roundings = 8.0 + if rig.rounds_products { HALF_BF16 } else { 0.0 };
            check_error(&what, &output[first * d..(first + group) * d], &plain, &exact, roundings);
            check_lse(&what, &lse[first..first + group], &plain_lse, &exact_lse, rig.rounds_products);
        }
    }
}
