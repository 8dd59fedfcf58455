//! `SequenceKv`, `KeptPrefix` and `Demand` against a naive model that writes every token into a pool of its own.
//!
//! The pool's cells say which (sequence history, position) they hold. A sequence is right when reading through its
//! table gives its own history; forks that share too much or copy too little, and rows freed too early, read wrongly.

use crate::noise::Noise;
use crate::{
    Demand, Growth, Indexing, KeptPrefix, PAGE_TOKENS, Presence, Promise, Residence, RowCopies, RowCounts, RowId, Rows,
    Selection, SequenceKv, SummaryKey, Tier, Tiers,
};
use std::collections::BTreeMap;

/// What a row holds: the tag of each token written there; summaries hold the tag of their token too.
type Cells = BTreeMap<RowId, Vec<u64>>;

struct Naive {
    kv: SequenceKv,
    /// The tags of all tokens so far.
    history: Vec<u64>,
    end: usize,
}

/// A kept prefix and the tags of its tokens.
type Kept = (KeptPrefix, Vec<u64>);

/// What a request begins with.
enum Origin<'a> {
    Nothing,
    Parent(&'a mut Naive),
    Kept(&'a Kept),
}

const KEYS: [SummaryKey; 3] = [key(1, 128), key(2, 64), key(3, 48)];

const fn key(algorithm: u8, row_tokens: usize) -> SummaryKey {
    SummaryKey { algorithm, row_tokens }
}

fn indexing(noise: &mut Noise) -> Option<Indexing> {
    let (index_unit_tokens, key) = [(8, KEYS[0]), (8, KEYS[1]), (48, KEYS[2])][noise.below(3)];
    let selection = Selection {
        index_unit_tokens,
        sink_tokens: 8,
        window_tokens: [32, 64][noise.below(2)],
        budget: 0.1,
        floor_tokens: 0,
        min_context: [0, 150][noise.below(2)],
    };
    (0 < noise.below(4)).then_some(Indexing { key, selection })
}

/// Writes K and V (or the summary) of one token.
fn write(cells: &mut Cells, rows: &[RowId], row_tokens: usize, position: usize, tag: u64) {
    let row = cells.entry(rows[position / row_tokens]).or_default();
    row.resize(128, 0);
    row[position % row_tokens] = tag;
}

fn verify(cells: &Cells, naive: &Naive, seed: u64) {
    let in_dram = naive.kv.held_rows().filter(|row| row.tier() == Tier::Dram).count();
    assert_eq!(naive.kv.rows_by_kind().dram, in_dram, "seed {seed}: rows by tier");
    for (position, &tag) in naive.history.iter().enumerate() {
        let row = naive.kv.kv_rows()[position / PAGE_TOKENS];
        assert_eq!(cells[&row][position % PAGE_TOKENS], tag, "seed {seed}: K and V of position {position}");
    }
    let Some(indexing) = naive.kv.indexing() else { return };
    let (key, rows) = (indexing.key, naive.kv.decode_summary_rows());
    assert!(indexing.indexed_tokens(naive.kv.len()) <= naive.kv.indexed(key), "seed {seed}: too few summaries");
    for position in 0..indexing.indexed_tokens(naive.kv.len()) {
        let row = rows[position / key.row_tokens];
        assert_eq!(cells[&row][position % key.row_tokens], naive.history[position], "seed {seed}: summary");
    }
}

/// A kept prefix reads its history, whatever became of the sequence that it was kept of.
fn verify_kept(cells: &Cells, (prefix, history): &Kept, seed: u64) {
    assert_eq!(prefix.tokens(), history.len(), "seed {seed}");
    for (position, &tag) in history.iter().enumerate() {
        let row = prefix.kv_rows()[position / PAGE_TOKENS];
        assert_eq!(cells[&row][position % PAGE_TOKENS], tag, "seed {seed}: kept K and V of position {position}");
    }
    for key in KEYS {
        for (at, &row) in prefix.summary_rows(key).iter().enumerate() {
            let tokens = at * key.row_tokens..(at + 1) * key.row_tokens;
            assert_eq!(cells[&row][..key.row_tokens], history[tokens], "seed {seed}: kept summary row {at}");
        }
    }
}

/// Summaries of `indexed..target` written from the history.
fn index(cells: &mut Cells, kv: &mut SequenceKv, history: &[u64], indexing: Indexing, target: usize) {
    for (position, &tag) in history.iter().enumerate().take(target).skip(kv.indexed(indexing.key)) {
        write(cells, kv.summary_rows(indexing.key), indexing.key.row_tokens, position, tag);
    }
    kv.mark_indexed(indexing.key, target);
}

fn prefill(cells: &mut Cells, tiers: &mut Tiers, naive: &mut Naive, end: usize, tag: &mut u64) {
    copy(cells, naive.kv.prepare(end, tiers));
    for position in naive.kv.len()..end {
        *tag += 1;
        naive.history.push(*tag);
        write(cells, naive.kv.kv_rows(), PAGE_TOKENS, position, *tag);
    }
    naive.kv.advance(end - naive.kv.len());
    if let Some(indexing) = naive.kv.indexing() {
        index(cells, &mut naive.kv, &naive.history, indexing, indexing.indexed_tokens(end));
    }
}

fn decode(cells: &mut Cells, tiers: &mut Tiers, naive: &mut Naive, tag: &mut u64) {
    let before = naive.kv.indexing().map_or(0, |indexing| indexing.indexed_tokens(naive.kv.len()));
    let Growth { kv, summary, left } = naive.kv.append(tiers);
    copy(cells, left.into_iter().map(|page| (page.source, page.target)).collect());
    assert!(kv.is_none_or(|(at, row)| naive.kv.kv_rows()[at] == row && at == (naive.kv.len() - 1) / PAGE_TOKENS));
    assert!(summary.is_none_or(|(at, row)| naive.kv.decode_summary_rows()[at] == row));
    *tag += 1;
    naive.history.push(*tag);
    write(cells, naive.kv.kv_rows(), PAGE_TOKENS, naive.kv.len() - 1, *tag);
    if let Some(indexing) = naive.kv.indexing() {
        for position in before..indexing.indexed_tokens(naive.kv.len()) {
            let (rows, row_tokens) = (naive.kv.decode_summary_rows(), indexing.key.row_tokens);
            write(cells, rows, row_tokens, position, naive.history[position]);
        }
    }
}

fn copy(cells: &mut Cells, copies: RowCopies) {
    for (source, target) in copies {
        let copied = cells[&source].clone();
        cells.insert(target, copied);
    }
}

fn reserve(tiers: &mut Tiers, wanted: RowCounts) -> Option<Promise> {
    let mut pool = tiers.pool.reserve(wanted.pool()).ok()?;
    let Ok(mut dram) = tiers.dram.reserve(wanted.dram) else {
        tiers.pool.give_back(pool);
        return None;
    };
    Some(Promise::split(&mut pool, &mut dram, wanted, 0))
}

fn fork(
    cells: &mut Cells,
    tiers: &mut Tiers,
    parent: &Naive,
    at: usize,
    demand: &Demand,
    first: bool,
) -> Option<Naive> {
    let wanted = if first { demand.first() } else { demand.further() };
    let promise = reserve(tiers, wanted)?;
    let (kv, copies) = parent.kv.fork(at, demand.indexing, demand.residence, promise, tiers);
    copy(cells, copies);
    Some(Naive { kv, history: parent.history[..at].to_vec(), end: demand.end })
}

/// A request on top of `origin`: its first choice, and the further ones, all at the start of decode.
fn begin(noise: &mut Noise, cells: &mut Cells, tiers: &mut Tiers, origin: Origin<'_>, tag: &mut u64) -> Vec<Naive> {
    let indexing = indexing(noise);
    let (prefix, prefix_cached, kept) = match &origin {
        Origin::Nothing => (0, 0..0, None),
        Origin::Parent(parent) => (parent.kv.len(), parent.kv.pages_in_dram(), None),
        Origin::Kept((kept, _)) => {
            let at = noise.below(kept.tokens() / PAGE_TOKENS + 1) * PAGE_TOKENS;
            (at, 0..0, Some(SequenceKv::behind(kept, at, indexing, tiers)))
        }
    };
    let indexed = match (&kept, indexing) {
        (_, None) => 0,
        (Some(kv), Some(indexing)) => kv.indexed(indexing.key),
        (None, Some(indexing)) => indexing.indexed_tokens(prefix),
    };
    let start = prefix + usize::from(prefix == 0) + noise.below(300);
    let (end, choices) = (start + noise.below(120) + 1, 1 + noise.below(3));
    let residence = [Residence::Full, Residence::Sparse][noise.below(1 + usize::from(indexing.is_some()))];
    let demand = Demand { prefix, prefix_cached, indexed, start, end, choices, indexing, residence };
    let mut first = match (origin, kept) {
        (Origin::Parent(parent), _) => {
            if let Some(indexing) = indexing {
                let missing = parent.kv.missing_summary_rows(prefix, &indexing);
                let Ok(mut promise) = tiers.pool.reserve(missing) else { return Vec::new() };
                parent.kv.add_summary_rows(prefix, &indexing, tiers, &mut promise);
                tiers.pool.give_back(promise);
                index(cells, &mut parent.kv, &parent.history, indexing, indexing.indexed_tokens(prefix));
            }
            match fork(cells, tiers, parent, prefix, &demand, true) {
                Some(child) => child,
                None => return Vec::new(),
            }
        }
        (origin, kept) => {
            let history = if let Origin::Kept((_, tags)) = origin { tags[..prefix].to_vec() } else { Vec::new() };
            let mut kv = kept.unwrap_or_else(|| SequenceKv::new(Residence::Full, indexing));
            match reserve(tiers, demand.first()) {
                Some(promise) => kv.promise(promise, residence),
                None => {
                    kv.release(tiers);
                    return Vec::new();
                }
            }
            Naive { kv, history, end }
        }
    };
    prefill(cells, tiers, &mut first, start, tag);
    let mut choices = vec![first];
    for _ in 1..demand.choices {
        choices.extend(fork(cells, tiers, &choices[0], start, &demand, false));
    }
    choices
}

/// Prefixes are kept, cut, joined and let go.
fn change_kept(noise: &mut Noise, rows: &mut Rows, live: &[Naive], kept: &mut Vec<Kept>) {
    let at = noise.below(kept.len().max(1));
    match noise.below(4) {
        0 | 1 if !live.is_empty() => {
            let naive = &live[noise.below(live.len())];
            if naive.kv.kv_rows().iter().any(|row| row.tier() == Tier::Dram) {
                return;
            }
            let tokens = noise.below(naive.kv.len() / PAGE_TOKENS + 1) * PAGE_TOKENS;
            kept.push((KeptPrefix::of(&naive.kv, tokens, rows), naive.history[..tokens].to_vec()));
        }
        2 if at < kept.len() => {
            let (mut prefix, mut history) = kept.swap_remove(at);
            let other = kept.iter().find(|(_, other)| other.starts_with(&history) || history.starts_with(other));
            if let Some((other, _)) = other {
                prefix.adopt(other, rows);
            }
            history.truncate(noise.below(history.len() / PAGE_TOKENS + 1) * PAGE_TOKENS);
            prefix.cut(history.len(), rows);
            kept.push((prefix, history));
        }
        3 if at < kept.len() => kept.swap_remove(at).0.release(rows),
        _ => {}
    }
}

fn check(tiers: &Tiers, live: &[Naive], kept: &[Kept]) -> Result<(), String> {
    let held = || live.iter().flat_map(|naive| naive.kv.held_rows());
    let pool = live.iter().flat_map(|naive| naive.kv.promised().pool());
    tiers.pool.check_integrity(held(), kept.iter().map(|(prefix, _)| prefix), pool)?;
    tiers.dram.check_integrity(held(), [], live.iter().map(|naive| &naive.kv.promised().dram))
}

/// A fully resident sequence gives its rows up, bit by bit; a sparsely resident one gets other slots.
fn change_residence(noise: &mut Noise, cells: &mut Cells, tiers: &mut Tiers, naive: &mut Naive) {
    let Some(indexing) = naive.kv.indexing() else { return };
    if naive.kv.presence() != Presence::Here {
        return;
    }
    if naive.kv.residence() == Residence::Sparse {
        if noise.below(2) == 0 {
            let rows = noise.below(8).min(tiers.pool.available());
            let rows = tiers.pool.reserve(rows).expect("so many are available");
            naive.kv.grow_cache(rows, tiers);
        } else {
            naive.kv.cut_cache(noise.below(naive.kv.cache().slots().len() + 1), tiers);
        }
        return;
    }
    let selection = indexing.selection;
    if naive.kv.cache().prepared() == 0 {
        let pages = selection.cached_end(naive.end.max(naive.kv.len() + 1)) - selection.sink_pages();
        let Ok(rows) = tiers.dram.reserve(pages.saturating_sub(naive.kv.promised().dram.rows())) else { return };
        naive.kv.extend(Promise { dram: rows, ..Promise::default() });
    }
    let copies = naive.kv.offload(noise.below(12), tiers);
    copy(cells, copies);
    match noise.below(4) {
        0 => naive.kv.forget_offloaded(tiers),
        1 if naive.kv.pages_to_offload() == 0 && naive.kv.selects() => {
            let emptied = naive.kv.make_sparse(noise.below(20), tiers);
            for (row, page) in emptied.slots {
                assert_eq!(cells[&row], cells[&naive.kv.kv_rows()[page]], "a slot holds its page");
            }
        }
        _ => {}
    }
}

/// A fully resident sequence leaves the pool and comes back, bit by bit, and may turn round on the way.
fn change_presence(noise: &mut Noise, cells: &mut Cells, tiers: &mut Tiers, naive: &mut Naive) {
    if naive.kv.residence() == Residence::Sparse || 1 < naive.kv.summaries().len() {
        return;
    }
    let rows = 1 + noise.below(12);
    let leaves = match naive.kv.presence() {
        Presence::Here => {
            if 0 < naive.kv.cache().prepared() {
                return;
            }
            let places = naive.kv.missing(naive.end.max(naive.kv.len())).dram;
            let Ok(dram) = tiers.dram.reserve(places) else { return };
            naive.kv.extend(Promise { dram, ..Promise::default() });
            true
        }
        Presence::Away => {
            come_back(tiers, naive);
            if naive.kv.presence() == Presence::Away {
                return;
            }
            false
        }
        Presence::Leaving => true,
        Presence::Returning => noise.below(4) == 0,
    };
    let moves = if leaves { naive.kv.park(rows, tiers) } else { naive.kv.unpark(rows, tiers) };
    assert!(moves.copies.len() <= rows, "no more rows move than are asked for");
    for (at, row) in moves.kv {
        assert_eq!(naive.kv.kv_rows()[at], row);
    }
    for (at, row) in moves.summary {
        assert_eq!(naive.kv.decode_summary_rows()[at], row);
    }
    copy(cells, moves.copies);
}

/// Rows of the pool to its end are promised to one that is away, if there are so many.
fn come_back(tiers: &mut Tiers, naive: &mut Naive) {
    let missing = RowCounts { dram: 0, ..naive.kv.missing(naive.end.max(naive.kv.len())) };
    if let Some(promise) = reserve(tiers, missing) {
        naive.kv.extend(promise);
    }
}

fn run(seed: u64) {
    let mut noise = Noise(seed);
    let total = 40 + noise.below(400);
    let (mut tiers, mut cells, mut tag) = (Tiers::new(total, noise.below(500)), Cells::new(), 0);
    let (mut live, mut kept): (Vec<Naive>, Vec<Kept>) = Default::default();
    for _ in 0..120 {
        let at = noise.below(live.len().max(1));
        match noise.below(16) {
            0 => live.extend(begin(&mut noise, &mut cells, &mut tiers, Origin::Nothing, &mut tag)),
            1 if at < live.len() && live[at].kv.presence() == Presence::Here => {
                let mut parent = live.swap_remove(at);
                live.extend(begin(&mut noise, &mut cells, &mut tiers, Origin::Parent(&mut parent), &mut tag));
                live.push(parent);
            }
            4 if !kept.is_empty() => {
                let origin = Origin::Kept(&kept[noise.below(kept.len())]);
                live.extend(begin(&mut noise, &mut cells, &mut tiers, origin, &mut tag));
            }
            5 | 6 => change_kept(&mut noise, &mut tiers.pool, &live, &mut kept),
            2 if at < live.len() => live.swap_remove(at).kv.release(&mut tiers),
            7 | 8 if at < live.len() => change_residence(&mut noise, &mut cells, &mut tiers, &mut live[at]),
            14 | 15 if at < live.len() => change_presence(&mut noise, &mut cells, &mut tiers, &mut live[at]),
            3 if at < live.len() && live[at].kv.presence() == Presence::Here => {
                live[at].kv.settle(&mut tiers);
                live[at].end = 0;
            }
            _ => {
                let here = |naive: &&mut Naive| naive.kv.presence() == Presence::Here;
                for naive in live.iter_mut().filter(here).filter(|naive| naive.kv.len() < naive.end) {
                    decode(&mut cells, &mut tiers, naive, &mut tag);
                }
            }
        }
        live.iter().for_each(|naive| verify(&cells, naive, seed));
        kept.iter().for_each(|kept| verify_kept(&cells, kept, seed));
        check(&tiers, &live, &kept).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    // Every promise is enough for its sequence's end: `append` would have panicked otherwise. Who is away comes back
    // when all others have ended.
    live.sort_by_key(|naive| naive.kv.presence() != Presence::Here);
    for naive in live.iter_mut().filter(|naive| naive.kv.presence() != Presence::Here) {
        copy(&mut cells, naive.kv.park(usize::MAX, &mut tiers).copies);
    }
    for mut naive in live {
        if naive.kv.presence() != Presence::Here {
            kept.drain(..).for_each(|(prefix, _)| prefix.release(&mut tiers.pool));
            come_back(&mut tiers, &mut naive);
            copy(&mut cells, naive.kv.unpark(usize::MAX, &mut tiers).copies);
            verify(&cells, &naive, seed);
        }
        while naive.kv.len() < naive.end {
            decode(&mut cells, &mut tiers, &mut naive, &mut tag);
        }
        naive.kv.release(&mut tiers);
    }
    let Tiers { mut pool, dram } = tiers;
    assert_eq!(pool.available() + pool.spare(), total, "seed {seed}: what is not free is spare");
    kept.into_iter().for_each(|(prefix, _)| prefix.release(&mut pool));
    assert_eq!(pool.available(), total, "seed {seed}: rows leak");
    assert_eq!(dram.available(), dram.total(), "seed {seed}: rows of host memory leak");
}

#[test]
fn sequences_read_their_own_history() {
    for seed in 0..150 {
        run(seed);
    }
}
