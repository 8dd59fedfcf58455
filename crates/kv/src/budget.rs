//! How many cache rows each sequence gets: a pure function of the sequences and the pool.
//!
//! A step's selected pages are mandatory; what lies beyond them buffers pages for the steps to come. With `k` pages
//! selected, `k (1 + beta)` slots keep most of what is selected again (hit ratio over beta: `benches/`). So rows go
//! where they save most fetches:
//!
//! - with room, a sequence is fully resident and fetches nothing;
//! - under pressure, fully resident ones become sparsely resident first (down to `BETA_TARGET` they lose few hits), the
//!   one that frees most rows first;
//! - then every sequence is lowered to one common beta, never below `BETA_FLOOR`;
//! - below that nobody is admitted: who waits is next when rows come back, and nobody overtakes.
//!
//! Betas are counted in eighths, so that every number is whole.

/// Slots that a sparsely resident sequence is meant to have, in eighths of the pages that a step selects beyond those.
pub const BETA_TARGET: usize = 8 * 5;

/// Slots that it has at least.
pub const BETA_FLOOR: usize = 8;

/// A sequence grows only by at least this share of its slots (an eighth): fewer are not worth a change.
const GROWTH_LEAST: usize = 8;

/// A running sequence, as the budget sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stake {
    /// The most pages that one of its steps selects.
    pub selected: usize,
    /// Slots beyond which another one is of no use: as many as it has pages in host memory, in the end or now.
    pub most: usize,
    /// What it has.
    pub holds: Holds,
}

/// What a sequence has beyond the rows that every sequence needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Every page, and rows promised for those to come: so many rows come free, the cache's not taken off, when it
    /// becomes sparsely resident.
    Everything {
        /// Rows of pages that would leave, and promised ones that a tail does not need.
        rows: usize,
    },
    /// So many cache rows.
    Slots(usize),
    /// It cannot change: its steps read everything, or it changes already.
    Fixed,
}

/// A sequence gets other slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which of the stakes.
    pub stake: usize,
    /// Slots from now on.
    pub slots: usize,
}

/// Whether room can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is room, for so many slots.
    Now {
        /// Slots of the one that asks.
        slots: usize,
    },
    /// There will be when these have changed.
    After(Vec<Change>),
    /// Only when others have ended.
    Later,
}

/// Slots at a beta, at most `most`.
pub fn slots(selected: usize, beta: usize, most: usize) -> usize {
    (selected + (selected * beta).div_ceil(8)).min(most)
}

/// One that asks for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Rows beside its slots.
    pub fixed: usize,
    /// The most pages that its steps select, all choices together; 0 for one that has no slots.
    pub selected: usize,
    /// Slots beyond which another one is of no use.
    pub most: usize,
}

/// Who gives how much, so that one more fits.
pub fn make_room(free: usize, wish: Wish, stakes: &[Stake]) -> Room {
    let Wish { fixed, selected, most } = wish;
    let target = slots(selected, BETA_TARGET, most);
    if fixed + target <= free {
        return Room::Now { slots: target };
    }
    let mut full: Vec<(usize, usize)> = Vec::new();
    for (at, stake) in stakes.iter().enumerate() {
        if let Holds::Everything { rows } = stake.holds {
            full.push((at, rows.saturating_sub(stake.slots(BETA_TARGET))));
        }
    }
    full.retain(|(_, gain)| 0 < *gain);
    full.sort_by_key(|(at, gain)| (std::cmp::Reverse(*gain), *at));
    let mut room = free;
    let mut changes = Vec::new();
    for (at, gain) in full {
        changes.push(Change { stake: at, slots: stakes[at].slots(BETA_TARGET) });
        room += gain;
        if fixed + target <= room {
            return Room::After(changes);
        }
    }
    let level = (BETA_FLOOR..BETA_TARGET).rev().find(|beta| {
        fixed + slots(selected, *beta, most) <= free + stakes.iter().map(|stake| stake.gain(*beta)).sum::<usize>()
    });
    match level {
        None => Room::Later,
        Some(level) => lower(free, wish, stakes, level),
    }
}

/// Everybody above the common level comes down to it.
fn lower(free: usize, wish: Wish, stakes: &[Stake], level: usize) -> Room {
    let own = slots(wish.selected, level, wish.most);
    if wish.fixed + own <= free {
        return Room::Now { slots: own };
    }
    let above = stakes.iter().enumerate().filter(|(_, stake)| 0 < stake.gain(level));
    Room::After(above.map(|(at, stake)| Change { stake: at, slots: stake.slots(level) }).collect())
}

/// Who gets how much of `free` rows that nobody waits for: the ones with the fewest slots for what they select first.
pub fn grow(free: usize, stakes: &[Stake]) -> Vec<Change> {
    let wanted = |beta: usize| {
        let grown = stakes.iter().enumerate().filter_map(move |(at, stake)| match stake.holds {
            Holds::Slots(has) => Some((at, has, stake.slots(beta))),
            Holds::Everything { .. } | Holds::Fixed => None,
        });
        grown.filter(|(_, has, slots)| has < slots)
    };
    let cost = |beta: usize| wanted(beta).map(|(_, has, slots)| slots - has).sum::<usize>();
    // The cost grows with beta, up to where everybody has all there are of use.
    let (mut fits, mut over) = (0, 8 * (1 << 20));
    while fits + 1 < over {
        let middle = (fits + over) / 2;
        if cost(middle) <= free { fits = middle } else { over = middle }
    }
    let worth = |(_, has, slots): &(usize, usize, usize)| has / GROWTH_LEAST < slots - has;
    wanted(fits).filter(worth).map(|(at, _, slots)| Change { stake: at, slots }).collect()
}

impl Stake {
    /// Slots at a beta.
    fn slots(&self, beta: usize) -> usize {
        slots(self.selected, beta, self.most)
    }

    /// Rows that come free when it is lowered to a beta.
    fn gain(&self, beta: usize) -> usize {
        let left = self.slots(beta);
        match self.holds {
            Holds::Everything { rows } => rows.saturating_sub(left),
            Holds::Slots(has) => has.saturating_sub(left),
            Holds::Fixed => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(fixed: usize, selected: usize) -> Wish {
        Wish { fixed, selected, most: 10_000 }
    }

    fn full(selected: usize, rows: usize) -> Stake {
        Stake { selected, most: 10_000, holds: Holds::Everything { rows } }
    }

    fn sparse(selected: usize, slots: usize) -> Stake {
        Stake { selected, most: 10_000, holds: Holds::Slots(slots) }
    }

    #[test]
    fn with_room_nobody_gives_anything() {
        assert_eq!(make_room(100, wish(10, 15), &[full(10, 500)]), Room::Now { slots: 90 });
        assert_eq!(make_room(100, wish(100, 0), &[]), Room::Now { slots: 0 });
    }

    #[test]
    fn the_fully_resident_one_with_most_rows_gives_first() {
        let stakes = [full(10, 300), full(10, 500), sparse(10, 200)];
        assert_eq!(make_room(50, wish(40, 10), &stakes), Room::After(vec![Change { stake: 1, slots: 60 }]));
    }

    #[test]
    fn then_all_come_down_to_one_level_but_not_below_the_floor() {
        let stakes = [sparse(10, 60), sparse(20, 120)];
        // 40 + 10 (1 + b) <= 30 + (60 - 10 (1 + b)) + (120 - 20 (1 + b)): b = 3.25, and one eighth less in whole slots
        let Room::After(changes) = make_room(30, wish(40, 10), &stakes) else { panic!("there is room after changes") };
        assert_eq!(changes, [Change { stake: 0, slots: 42 }, Change { stake: 1, slots: 83 }]);
        assert_eq!(make_room(30, wish(200, 10), &stakes), Room::Later);
        let fixed = Stake { selected: 10, most: 10_000, holds: Holds::Fixed };
        assert_eq!(make_room(30, wish(40, 10), &[fixed]), Room::Later);
    }

    #[test]
    fn what_is_left_goes_to_those_with_least() {
        let changes = grow(100, &[sparse(10, 20), sparse(10, 60), full(10, 900)]);
        assert_eq!(changes, [Change { stake: 0, slots: 90 }, Change { stake: 1, slots: 90 }]);
        assert_eq!(grow(100, &[Stake { most: 64, ..sparse(10, 60) }]), [], "four more are not worth a change");
        assert_eq!(grow(3, &[sparse(100, 110)]), []);
    }

    /// Rows are never promised twice: what `make_room` says fits, and what `grow` gives is there.
    #[test]
    fn changes_add_up() {
        let mut noise = crate::noise::Noise(7);
        for _ in 0..20_000 {
            let stake = |noise: &mut crate::noise::Noise| {
                let selected = 1 + noise.below(64);
                match noise.below(3) {
                    0 => full(selected, noise.below(3000)),
                    1 => sparse(selected, selected + noise.below(12 * selected)),
                    _ => Stake { selected, most: 10_000, holds: Holds::Fixed },
                }
            };
            let stakes: Vec<Stake> = (0..noise.below(9)).map(|_| stake(&mut noise)).collect();
            let (free, fixed, selected) = (noise.below(800), noise.below(900), noise.below(40));
            let freed = |changes: &[Change]| -> usize {
                let of = |change: &Change| match stakes[change.stake].holds {
                    Holds::Everything { rows } => rows.checked_sub(change.slots).expect("rows come free"),
                    Holds::Slots(has) => has.checked_sub(change.slots).expect("slots come free"),
                    Holds::Fixed => panic!("a fixed stake changes"),
                };
                changes.iter().map(of).sum()
            };
            match make_room(free, wish(fixed, selected), &stakes) {
                Room::Now { slots: own } => {
                    assert!(fixed + own <= free && slots(selected, BETA_FLOOR, 10_000) <= own);
                }
                Room::After(changes) => {
                    assert!(changes.iter().all(|c| slots(stakes[c.stake].selected, BETA_FLOOR, 10_000) <= c.slots));
                    assert!(
                        fixed + slots(selected, BETA_FLOOR, 10_000) <= free + freed(&changes),
                        "who waits fits then"
                    );
                }
                Room::Later => {
                    let most: usize = stakes.iter().map(|stake| stake.gain(BETA_FLOOR)).sum();
                    assert!(free + most < fixed + slots(selected, BETA_FLOOR, 10_000), "nobody waits in vain");
                }
            }
            let grown: usize = grow(free, &stakes)
                .iter()
                .map(|change| match stakes[change.stake].holds {
                    Holds::Slots(has) => change.slots - has,
                    _ => panic!("only slots grow"),
                })
                .sum();
            assert!(grown <= free);
        }
    }
}
