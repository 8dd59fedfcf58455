//! `Rows` against a naive model: every row's owners as a plain count, every promise as a number.

use crate::noise::Noise;
use crate::{Reservation, RowTable, Tiers};

#[derive(Debug)]
enum Operation {
    Reserve(usize),
    GiveBack(usize),
    Split(usize),
    Push(usize, usize),
    Fork(usize, usize),
    Release(usize),
}

fn operation(noise: &mut Noise) -> Operation {
    let at = noise.below(8);
    match noise.below(12) {
        0 | 1 => Operation::Reserve(noise.below(12)),
        2 => Operation::GiveBack(at),
        3 => Operation::Split(at),
        4..=8 => Operation::Push(at, noise.below(8)),
        9 => Operation::Fork(at, noise.below(16)),
        _ => Operation::Release(at),
    }
}

/// Every holder of every row, by table; every promise.
#[derive(Default)]
struct Model {
    promised: Vec<usize>,
    tables: Vec<Vec<u32>>,
}

impl Model {
    fn free(&self, total: usize) -> usize {
        let mut held: Vec<u32> = self.tables.iter().flatten().copied().collect();
        held.sort_unstable();
        held.dedup();
        total - held.len()
    }
}

fn run(seed: u64) {
    let mut noise = Noise(seed);
    let total = 1 + noise.below(40);
    let (mut tiers, mut model) = (Tiers::new(total, 0), Model::default());
    let (mut promises, mut tables): (Vec<Reservation>, Vec<RowTable>) = Default::default();
    for turn in 0..400 {
        let operation = operation(&mut noise);
        match operation {
            Operation::Reserve(wanted) => {
                let available = model.free(total) - model.promised.iter().sum::<usize>();
                match tiers.pool.reserve(wanted) {
                    Ok(promise) => {
                        assert!(wanted <= available, "seed {seed} turn {turn}");
                        promises.push(promise);
                        model.promised.push(wanted);
                    }
                    Err(shortage) => {
                        assert!(available < wanted, "seed {seed} turn {turn}");
                        assert_eq!((shortage.wanted_rows, shortage.available_rows), (wanted, available));
                    }
                }
            }
            Operation::GiveBack(at) if at < promises.len() => {
                tiers.pool.give_back(promises.swap_remove(at));
                model.promised.swap_remove(at);
            }
            Operation::Split(at) if at < promises.len() => {
                let part = model.promised[at] / 2;
                let split = promises[at].split(part);
                promises.push(split);
                model.promised[at] -= part;
                model.promised.push(part);
            }
            Operation::Push(at, table) if at < promises.len() && 0 < model.promised[at] => {
                if tables.len() <= table {
                    tables.push(RowTable::default());
                    model.tables.push(Vec::new());
                }
                let table = table.min(tables.len() - 1);
                let row = tables[table].push(&mut tiers.pool, &mut promises[at]);
                assert!(
                    model.tables.iter().flatten().all(|&held| held != row.0),
                    "seed {seed}: {row} is handed out twice"
                );
                model.promised[at] -= 1;
                model.tables[table].push(row.0);
            }
            Operation::Fork(at, full) if at < tables.len() && tables.len() < 12 => {
                let full = full.min(tables[at].len());
                tables.push(tables[at].fork(full, &mut tiers));
                model.tables.push(model.tables[at][..full].to_vec());
            }
            Operation::Release(at) if at < tables.len() => {
                tables.swap_remove(at).release(&mut tiers);
                model.tables.swap_remove(at);
            }
            _ => {}
        }
        let held = tables.iter().flat_map(|table| table.rows()).copied();
        tiers
            .pool
            .check_integrity(held, [], &promises)
            .unwrap_or_else(|e| panic!("seed {seed} turn {turn} {operation:?}: {e}"));
        assert_eq!(tiers.pool.free(), model.free(total), "seed {seed} turn {turn}");
        assert_eq!(tiers.pool.reserved(), model.promised.iter().sum::<usize>(), "seed {seed} turn {turn}");
    }
    promises.into_iter().for_each(|promise| tiers.pool.give_back(promise));
    tables.into_iter().for_each(|table| table.release(&mut tiers));
    assert_eq!(tiers.pool.available(), total, "seed {seed}: rows leak");
}

#[test]
fn rows_equal_a_naive_model() {
    for seed in 0..300 {
        run(seed);
    }
}
