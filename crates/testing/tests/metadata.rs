//! What it takes to know where pages are, at the size of a large model: 32 sequences of 131,072 tokens, 80 layers of 8
//! KV heads, a step that selects 256 pages, caches of 1,536 rows (beta 5). No K or V is allocated.
//!
//! Two levels: a row table a sequence, which all layers and heads share, and a tag and an age a frame, of the pool's
//! rows alone. What grows with context times layers times heads is the flat map, which nothing here is.
//!
//! Estimated beforehand were 157 MB for the cache rows' frames, and 264 MB with those of summaries and pinned rows.
//! Built, the first is the same, and the second is 263.5 MB: the backend keeps a tag and an age for every row of the
//! pool (its slots are a row's frames, whatever the row is for), and a sequence has 13 pinned rows (6 of its sink,
//! window and tail, 7 promised for what the tail grows by), where 18 had been assumed. Row tables and the allocator's
//! counts had been left out: they add 12 MB, and the flat map is 4.9 times all of it together.

use backend::cpu::{CpuBackend, CpuOptions};
use backend::{Backend, MemoryUse, Rope, RuntimeShape};
use kv::bucketed_lru::{Eviction, Tag};
use kv::{Demand, Geometry, HeldRows, Indexing, Promise, Residence, RowId, SequenceKv, SummaryKey, Tiers, budget};
use sparse::Specs;

/// Llama-3.1-70B's.
const GEOMETRY: Geometry = Geometry { layers: 80, kv_heads: 8, head_dim: 128 };

const SEQUENCES: usize = 32;

const TOKENS: usize = 131_072;

/// Of those, tokens that decode steps append.
const DECODED: usize = 1_024;

/// Bytes of metadata that are quoted for the flat layout of arXiv 2604.26837: taken over, neither derived nor checked.
const PAPERS_FLAT: u64 = 100_000_000_000;

fn shadowkv() -> Indexing {
    let specs = Specs::of(GEOMETRY);
    let algorithm = specs.by_name("shadowkv").expect("a known algorithm");
    let row_tokens = specs.get(algorithm).summary_row_tokens.expect("it keeps summaries");
    Indexing { key: SummaryKey { algorithm: algorithm.0, row_tokens }, selection: specs.get(algorithm).selection() }
}

fn demand(indexing: Indexing) -> Demand {
    Demand::alone(TOKENS - DECODED, TOKENS, indexing, Residence::Sparse)
}

/// All sequences at their ends, in tiers that have just the rows that admission promises them.
fn build() -> (Vec<SequenceKv>, Tiers) {
    let indexing = shadowkv();
    let demand = demand(indexing);
    let slots = budget::slots(demand.selected_most(), budget::BETA_TARGET, demand.cached_most());
    let counts = demand.total();
    let mut tiers = Tiers::new(SEQUENCES * (counts.pool() + slots), SEQUENCES * counts.dram);
    let sequence = |_| {
        let mut pool = tiers.pool.reserve(counts.pool() + slots).expect("it fits");
        let mut dram = tiers.dram.reserve(counts.dram).expect("it fits");
        let mut kv = SequenceKv::new(Residence::Full, Some(indexing));
        kv.promise(Promise::split(&mut pool, &mut dram, counts, slots), Residence::Sparse);
        assert_eq!(kv.prepare(demand.start, &mut tiers), [], "nothing is shared");
        kv.advance(demand.start);
        kv.mark_indexed(indexing.key, indexing.indexed_tokens(demand.start));
        kv.open_cache(&mut tiers);
        (0..DECODED).for_each(|_| drop(kv.append(&mut tiers)));
        kv
    };
    let sequences: Vec<SequenceKv> = (0..SEQUENCES).map(sequence).collect();
    for rows in [&tiers.pool, &tiers.dram] {
        let held = sequences.iter().flat_map(SequenceKv::held_rows);
        let promised = sequences.iter().flat_map(|kv| match rows.tier() {
            kv::Tier::Pool => kv.promised().pool().to_vec(),
            kv::Tier::Dram => vec![&kv.promised().dram],
        });
        rows.check_integrity(held, [], promised).expect("every row is accounted for");
    }
    (sequences, tiers)
}

/// The backend's own count for a pool.
fn tags_and_ages(pool_rows: usize, dram_rows: usize) -> u64 {
    let backend = CpuBackend::new(CpuOptions { threads: 1, ..CpuOptions::default() }).expect("a CPU");
    let shape = RuntimeShape {
        geometry: GEOMETRY,
        q_heads: 64,
        vocab: 128_256,
        pool_rows,
        dram_rows,
        eviction: Eviction::default(),
        max_lanes: SEQUENCES,
        max_tokens: TOKENS,
        rope: Rope { inv_freq: vec![1.0; GEOMETRY.head_dim / 2], attention_factor: 1.0 },
    };
    let plan = backend.runtime_plan(&shape);
    let MemoryUse { bytes, .. } = plan.iter().find(|line| line.name == "cache tags and ages").expect("a line of it");
    *bytes
}

/// One line: what it is, its bytes, and how many times as many a baseline takes.
fn line(what: &str, bytes: u64, baselines: [u64; 2]) -> String {
    let [flat, papers] = baselines.map(|baseline| baseline as f64 / bytes as f64);
    format!("{what:<58} {:>10.2} MB {flat:>9.1} {papers:>9.0}", bytes as f64 / 1e6)
}

#[test]
fn two_levels_of_metadata_take_a_fifth_of_a_flat_map() {
    assert_eq!(std::mem::size_of::<Tag>() + std::mem::size_of::<u8>(), 5, "a tag and an age");
    let (sequences, tiers) = build();
    let frames_a_row = GEOMETRY.layers * GEOMETRY.kv_heads;
    let pages = kv::geometry::pages(TOKENS);
    let of_all = |count: fn(HeldRows) -> usize| sequences.iter().map(|kv| count(kv.rows_by_kind())).sum::<usize>();
    let (cached, summary) = (of_all(|rows| rows.cache), of_all(|rows| rows.summary));
    let (pinned, dram) = (of_all(|rows| rows.kv), of_all(|rows| rows.dram));
    assert_eq!(sequences[0].indexing().map(|of| of.selection.selected_pages(TOKENS)), Some(256));
    assert_eq!(sequences[0].cache().slots().len(), 1_536);
    assert_eq!([cached, summary, dram + pinned], [32 * 1_536, 32 * 1_024, 32 * pages]);

    let flat = (SEQUENCES * pages * frames_a_row * 4) as u64;
    let cache_frames = tags_and_ages(cached, dram);
    let all_frames = tags_and_ages(tiers.pool.total(), dram);
    let entry = std::mem::size_of::<RowId>();
    let held: usize = sequences.iter().map(|kv| kv.held_rows().count()).sum();
    // The scheduler's tables, and the lanes' copies of them.
    let tables = (2 * held * entry) as u64;
    // Two counts of references a row, and its place on the free list.
    let allocator = (3 * 4 * (tiers.pool.total() + tiers.dram.total())) as u64;
    let all = all_frames + tables + allocator;
    let baselines = [flat, PAPERS_FLAT];
    println!("{:<58} {:>13} {:>9} {:>9}", "", "", "flat map", "paper's");
    for (what, bytes) in [
        ("tags and ages of the cache rows", cache_frames),
        ("tags and ages of all rows of the pool", all_frames),
        ("row tables of both tiers, twice", tables),
        ("allocators of both tiers", allocator),
        ("all together", all),
        ("baseline: flat map, 4 B a page of every layer and head", flat),
        ("baseline: flat layout quoted for arXiv 2604.26837", PAPERS_FLAT),
    ] {
        println!("{}", line(what, bytes, baselines));
    }
    println!("rows of a sequence: {} cache, {} summary", cached / SEQUENCES, summary / SEQUENCES);
    println!("its pages: {} in the pool, {} in host memory", pinned / SEQUENCES, dram / SEQUENCES);

    assert_eq!(flat, 1_342_177_280);
    assert_eq!(cache_frames, 157_286_400);
    assert_eq!(all_frames, 5 * (tiers.pool.total() * frames_a_row) as u64);
    assert_eq!(all_frames, 263_475_200);
    assert!(8.5 <= flat as f64 / cache_frames as f64 && 5.0 <= flat as f64 / all_frames as f64);
    assert!(tables + allocator < all_frames / 20, "tables are small beside frames: {tables} + {allocator}");
    assert!(4.8 <= flat as f64 / all as f64 && 360.0 <= PAPERS_FLAT as f64 / all as f64);
    let mut tiers = tiers;
    sequences.into_iter().for_each(|kv| kv.release(&mut tiers));
    assert_eq!(tiers.pool.available(), tiers.pool.total(), "every row comes back");
}
