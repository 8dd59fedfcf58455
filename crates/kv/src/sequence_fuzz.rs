//! `SequenceKv`, `KeptPrefix` and `Demand` against a naive model that writes every token into a pool of its own.
//!
//! The pool's cells say which (sequence history, position) they hold. A sequence is right when reading through its
//! table gives its own history; forks that share too much or copy too little, and rows freed too early, read wrongly.

use crate::noise::Noise;
use crate::{Demand, Growth, Indexing, KeptPrefix, PAGE_TOKENS, Rows, Selection, SequenceKv, SummaryKey};

/// What a cell holds: the tag of the token written there; summaries hold the tag of their token too.
type Cells = Vec<Vec<u64>>;

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
        min_context: 0,
    };
    (0 < noise.below(4)).then_some(Indexing { key, selection })
}

/// Writes K and V (or the summary) of one token.
fn write(cells: &mut Cells, rows: &[crate::RowId], row_tokens: usize, position: usize, tag: u64) {
    let row = &mut cells[rows[position / row_tokens].at()];
    row.resize(128, 0);
    row[position % row_tokens] = tag;
}

fn verify(cells: &Cells, naive: &Naive, seed: u64) {
    for (position, &tag) in naive.history.iter().enumerate() {
        let row = naive.kv.kv_rows()[position / PAGE_TOKENS];
        assert_eq!(cells[row.at()][position % PAGE_TOKENS], tag, "seed {seed}: K and V of position {position}");
    }
    let Some(indexing) = naive.kv.indexing() else { return };
    let (key, rows) = (indexing.key, naive.kv.decode_summary_rows());
    assert!(indexing.indexed_tokens(naive.kv.len()) <= naive.kv.indexed(key), "seed {seed}: too few summaries");
    for position in 0..indexing.indexed_tokens(naive.kv.len()) {
        let row = rows[position / key.row_tokens];
        assert_eq!(cells[row.at()][position % key.row_tokens], naive.history[position], "seed {seed}: summary");
    }
}

/// A kept prefix reads its history, whatever became of the sequence that it was kept of.
fn verify_kept(cells: &Cells, (prefix, history): &Kept, seed: u64) {
    assert_eq!(prefix.tokens(), history.len(), "seed {seed}");
    for (position, &tag) in history.iter().enumerate() {
        let row = prefix.kv_rows()[position / PAGE_TOKENS];
        assert_eq!(cells[row.at()][position % PAGE_TOKENS], tag, "seed {seed}: kept K and V of position {position}");
    }
    for key in KEYS {
        for (at, row) in prefix.summary_rows(key).iter().enumerate() {
            let tokens = at * key.row_tokens..(at + 1) * key.row_tokens;
            assert_eq!(cells[row.at()][..key.row_tokens], history[tokens], "seed {seed}: kept summary row {at}");
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

fn prefill(cells: &mut Cells, rows: &mut Rows, naive: &mut Naive, end: usize, tag: &mut u64) {
    naive.kv.prepare(end, rows);
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

fn decode(cells: &mut Cells, rows: &mut Rows, naive: &mut Naive, tag: &mut u64) {
    let before = naive.kv.indexing().map_or(0, |indexing| indexing.indexed_tokens(naive.kv.len()));
    let Growth { kv, summary } = naive.kv.append(rows);
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

fn fork(cells: &mut Cells, rows: &mut Rows, parent: &Naive, at: usize, demand: Demand, first: bool) -> Option<Naive> {
    let wanted = if first { demand.first() } else { demand.further() };
    let promise = rows.reserve(wanted.total()).ok()?;
    let (kv, copies) = parent.kv.fork(at, demand.indexing, promise, rows);
    for (source, target) in copies {
        cells[target.at()] = cells[source.at()].clone();
    }
    Some(Naive { kv, history: parent.history[..at].to_vec(), end: demand.end })
}

/// A request on top of `origin`: its first choice, and the further ones, all at the start of decode.
fn begin(noise: &mut Noise, cells: &mut Cells, rows: &mut Rows, origin: Origin<'_>, tag: &mut u64) -> Vec<Naive> {
    let indexing = indexing(noise);
    let (prefix, kept) = match &origin {
        Origin::Nothing => (0, None),
        Origin::Parent(parent) => (parent.kv.len(), None),
        Origin::Kept((kept, _)) => {
            let at = noise.below(kept.tokens() / PAGE_TOKENS + 1) * PAGE_TOKENS;
            (at, Some(SequenceKv::behind(kept, at, indexing, rows)))
        }
    };
    let indexed = match (&kept, indexing) {
        (_, None) => 0,
        (Some(kv), Some(indexing)) => kv.indexed(indexing.key),
        (None, Some(indexing)) => indexing.indexed_tokens(prefix),
    };
    let start = prefix + usize::from(prefix == 0) + noise.below(300);
    let (end, choices) = (start + noise.below(120) + 1, 1 + noise.below(3));
    let demand = Demand { prefix, indexed, start, end, choices, indexing };
    let mut first = match (origin, kept) {
        (Origin::Parent(parent), _) => {
            if let Some(indexing) = indexing {
                let missing = parent.kv.missing_summary_rows(prefix, &indexing);
                let Ok(mut promise) = rows.reserve(missing) else { return Vec::new() };
                parent.kv.add_summary_rows(prefix, &indexing, rows, &mut promise);
                rows.give_back(promise);
                index(cells, &mut parent.kv, &parent.history, indexing, indexing.indexed_tokens(prefix));
            }
            match fork(cells, rows, parent, prefix, demand, true) {
                Some(child) => child,
                None => return Vec::new(),
            }
        }
        (origin, kept) => {
            let history = if let Origin::Kept((_, tags)) = origin { tags[..prefix].to_vec() } else { Vec::new() };
            let mut kv = kept.unwrap_or_else(|| SequenceKv::new(crate::Reservation::default(), indexing));
            match rows.reserve(demand.first().total()) {
                Ok(promise) => kv.promise(promise),
                Err(_) => {
                    kv.release(rows);
                    return Vec::new();
                }
            }
            Naive { kv, history, end }
        }
    };
    prefill(cells, rows, &mut first, start, tag);
    let mut choices = vec![first];
    for _ in 1..demand.choices {
        choices.extend(fork(cells, rows, &choices[0], start, demand, false));
    }
    choices
}

/// Prefixes are kept, cut, joined and let go.
fn change_kept(noise: &mut Noise, rows: &mut Rows, live: &[Naive], kept: &mut Vec<Kept>) {
    let at = noise.below(kept.len().max(1));
    match noise.below(4) {
        0 | 1 if !live.is_empty() => {
            let naive = &live[noise.below(live.len())];
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

fn run(seed: u64) {
    let mut noise = Noise(seed);
    let total = 40 + noise.below(400);
    let (mut rows, mut cells, mut tag) = (Rows::new(total), vec![Vec::new(); total], 0);
    let (mut live, mut kept): (Vec<Naive>, Vec<Kept>) = Default::default();
    for _ in 0..120 {
        let at = noise.below(live.len().max(1));
        match noise.below(12) {
            0 => live.extend(begin(&mut noise, &mut cells, &mut rows, Origin::Nothing, &mut tag)),
            1 if at < live.len() => {
                let mut parent = live.swap_remove(at);
                live.extend(begin(&mut noise, &mut cells, &mut rows, Origin::Parent(&mut parent), &mut tag));
                live.push(parent);
            }
            4 if !kept.is_empty() => {
                let origin = Origin::Kept(&kept[noise.below(kept.len())]);
                live.extend(begin(&mut noise, &mut cells, &mut rows, origin, &mut tag));
            }
            5 | 6 => change_kept(&mut noise, &mut rows, &live, &mut kept),
            2 if at < live.len() => live.swap_remove(at).kv.release(&mut rows),
            3 if at < live.len() => {
                live[at].kv.settle(&mut rows);
                live[at].end = 0;
            }
            _ => {
                for naive in live.iter_mut().filter(|naive| naive.kv.len() < naive.end) {
                    decode(&mut cells, &mut rows, naive, &mut tag);
                }
            }
        }
        live.iter().for_each(|naive| verify(&cells, naive, seed));
        kept.iter().for_each(|kept| verify_kept(&cells, kept, seed));
        let tables = live.iter().flat_map(|naive| naive.kv.tables());
        rows.check_integrity(
            tables,
            kept.iter().map(|(prefix, _)| prefix),
            live.iter().map(|naive| naive.kv.reservation()),
        )
        .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    // Every promise is enough for its sequence's end: `append` would have panicked otherwise.
    for mut naive in live {
        while naive.kv.len() < naive.end {
            decode(&mut cells, &mut rows, &mut naive, &mut tag);
        }
        naive.kv.release(&mut rows);
    }
    assert_eq!(rows.available() + rows.spare(), total, "seed {seed}: what is not free is spare");
    kept.into_iter().for_each(|(prefix, _)| prefix.release(&mut rows));
    assert_eq!(rows.available(), total, "seed {seed}: rows leak");
}

#[test]
fn sequences_read_their_own_history() {
    for seed in 0..150 {
        run(seed);
    }
}
