//! Ops on rows of activations, and `sample`.

use super::bed::{Bed, BedSpec, D, KV_HEADS, Q_HEADS, VOCAB};
use super::{Table, Work};
use backend::{Backend, Batch, Buffer, KvTarget, SampleTarget, TokenSource, WeightRole};
use cuda::CudaBackend;
use std::sync::Arc;

const HIDDEN: usize = 4096;

const MLP: usize = 14_336;

const QKV: usize = (Q_HEADS + 2 * KV_HEADS) * D;

/// Rows of a decode step, and of a prefill stride.
const ROWS: [usize; 2] = [20, 4096];

/// Layers, and buffers that repetitions take in turn.
const TURNS: usize = 8;

/// One row an op and number of rows.
pub(crate) fn measure(table: &mut Table<'_>, backend: &Arc<CudaBackend>) {
    let ops = ["embed", "add_norm", "silu_mul", "qkv_append", "sample", "scatter_layer", "gather_layer"];
    if !ops.iter().any(|op| table.wants(op)) {
        return;
    }
    let bed = Bed::new(backend, BedSpec { layers: TURNS, lanes: ROWS[0], tokens: 4096, summaries: false });
    for m in ROWS {
        add_norm(table, &bed, m);
        silu_mul(table, &bed, m);
    }
    embed(table, &bed);
    qkv_append(table, &bed);
    copies(table, &bed);
    sample(table, &bed);
}

/// Runs in a graph where it is one row a lane, and alone where it is a stride.
fn time(table: &mut Table<'_>, bed: &Bed, of: (&str, &str), m: usize, work: Work, record: &(dyn Fn(usize) + Sync)) {
    match m == ROWS[0] {
        true => table.step(bed, of, work, None, record),
        false => table.unit(bed, of, work, record),
    }
}

fn turns(make: impl Fn(u64) -> Buffer) -> Vec<Buffer> {
    (0..TURNS as u64).map(make).collect()
}

fn add_norm(table: &mut Table<'_>, bed: &Bed, m: usize) {
    let norm = bed.backend.random_weight(WeightRole::Norm, [1, HIDDEN], false, 1).expect("a norm");
    let x = turns(|seed| bed.full_noise(m, HIDDEN, seed));
    let (delta, out) = (bed.noise(m, HIDDEN, 9), bed.product(m, HIDDEN));
    let record = |i: usize| {
        let (x, delta) = ((&x[i % TURNS]).into(), Some((&delta).into()));
        bed.runtime.add_norm(Batch::Tokens(m), x, delta, &norm, 1e-5, (&out).into());
    };
    let work = Work::bytes(m * HIDDEN * (4 + 4 + 2 + 2));
    time(table, bed, ("add_norm", &format!("{m} x {HIDDEN}")), m, work, &record);
}

fn silu_mul(table: &mut Table<'_>, bed: &Bed, m: usize) {
    let gate_up = turns(|seed| if seed < 2 || m == ROWS[0] { bed.noise(m, 2 * MLP, seed) } else { bed.product(1, 1) });
    let (out, distinct) = (bed.product(m, MLP), if m == ROWS[0] { TURNS } else { 2 });
    let record = |i: usize| bed.runtime.silu_mul(Batch::Tokens(m), (&gate_up[i % distinct]).into(), (&out).into());
    time(table, bed, ("silu_mul", &format!("{m} x {MLP}")), m, Work::bytes(m * 3 * MLP * 2), &record);
}

fn embed(table: &mut Table<'_>, bed: &Bed) {
    let weight = bed.backend.random_weight(WeightRole::Embedding, [VOCAB, HIDDEN], false, 1).expect("a table");
    let tokens: Vec<u32> = (0..4096).map(|i| i * 31 % VOCAB as u32).collect();
    let out = bed.full_noise(tokens.len(), HIDDEN, 1);
    let record = |_| bed.runtime.embed(TokenSource::Given(&tokens), &weight, (&out).into());
    table.unit(bed, ("embed", &format!("{} x {HIDDEN}", tokens.len())), Work::bytes(4096 * HIDDEN * 6), &record);
}

fn qkv_append(table: &mut Table<'_>, bed: &Bed) {
    let [few, many] = ROWS;
    let (qkv, q) = (turns(|seed| bed.noise(few, QKV, seed)), bed.product(few, Q_HEADS * D));
    let record = |i: usize| {
        let (layer, qkv) = (i % TURNS, (&qkv[i % TURNS]).into());
        bed.runtime.qkv_append(layer, Batch::Lanes, qkv, None, KvTarget::Lanes, (&q).into());
    };
    table.step(bed, ("qkv_append", &format!("{few} lanes")), Work::bytes(few * QKV * 4), None, &record);
    let (qkv, q) = (bed.noise(many, QKV, 1), bed.product(many, Q_HEADS * D));
    let staging = bed.backend.staging(&bed.shape, many).expect("staging");
    let record = |_| {
        let target = KvTarget::Staging { staging: &staging, first: 0 };
        bed.runtime.qkv_append(0, Batch::Tokens(many), (&qkv).into(), None, target, (&q).into());
    };
    table.unit(bed, ("qkv_append", &format!("{many} tokens to staging")), Work::bytes(many * QKV * 4), &record);
}

fn copies(table: &mut Table<'_>, bed: &Bed) {
    let tokens = bed.spec.tokens;
    let staging = bed.backend.staging(&bed.shape, tokens).expect("staging");
    let work = Work::bytes(2 * tokens * KV_HEADS * D * 4);
    let rows = |i: usize| &bed.tables[i / TURNS % ROWS[0]][0];
    let shape = format!("{tokens} tokens");
    let scatter = |i: usize| bed.runtime.scatter_layer(&staging, i % TURNS, 0..tokens, rows(i));
    table.unit(bed, ("scatter_layer", &shape), work, &scatter);
    let gather = |i: usize| bed.runtime.gather_layer(&staging, i % TURNS, 0..tokens, rows(i));
    table.unit(bed, ("gather_layer", &shape), work, &gather);
}

fn sample(table: &mut Table<'_>, bed: &Bed) {
    let lanes = ROWS[0];
    let logits = turns(|seed| bed.full_noise(lanes, VOCAB, seed));
    let record = |i: usize| bed.runtime.sample((&logits[i % TURNS]).into(), SampleTarget::Lanes);
    for (how, sampling) in [("greedy", None), ("temperature 0.8, top_p 0.95", Some((0.8, 0.95)))] {
        bed.set_sampling(sampling);
        let shape = format!("{lanes} x {VOCAB}, {how}");
        table.step(bed, ("sample", &shape), Work::bytes(4 * lanes * VOCAB), None, &record);
    }
    bed.set_sampling(None);
}
