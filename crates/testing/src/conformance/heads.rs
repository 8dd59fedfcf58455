//! Heads that suites go through.

use super::MakeBackend;
use backend::{BackendError, Rope, RuntimeShape};
use kv::Geometry;

/// Heads of a fixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads per KV head.
    pub group: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

/// Where heads only fill a shape that a suite does not look at.
pub const ANY_HEADS: Heads = Heads { kv_heads: 1, group: 1, head_dim: 64 };

impl Heads {
    /// `kv_heads`, `group`, `head_dim`.
    pub const fn new(kv_heads: usize, group: usize, head_dim: usize) -> Self {
        Heads { kv_heads, group, head_dim }
    }

    /// Query heads.
    pub fn q_heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Every backend has these.
    fn is_common(&self) -> bool {
        [64, 96, 128].contains(&self.head_dim) && (1..=8).contains(&self.group)
    }

    /// Whether the backend has kernels for them.
    ///
    /// # Panics
    /// It refuses for another reason, or refuses what every backend must have.
    pub fn covered_by(&self, make: MakeBackend<'_>) -> bool {
        let shape = RuntimeShape {
            geometry: Geometry { layers: 1, kv_heads: self.kv_heads, head_dim: self.head_dim },
            q_heads: self.q_heads(),
            vocab: 3,
            pool_rows: 2,
            dram_rows: 0,
            eviction: kv::bucketed_lru::Eviction::Score,
            max_lanes: 1,
            max_tokens: 8,
            rope: Rope { inv_freq: vec![1.0; self.head_dim / 2], attention_factor: 1.0 },
        };
        match make.backend(1).runtime(&shape) {
            Ok(_) => true,
            Err(BackendError::Unsupported { .. }) if !self.is_common() => false,
            Err(error) => panic!("{self:?}: {error}"),
        }
    }
}

/// Those of `awkward` that the backend covers.
pub fn covered(make: MakeBackend<'_>, awkward: &[Heads]) -> Vec<Heads> {
    make.some(awkward).into_iter().filter(|heads| heads.covered_by(make)).collect()
}

/// The same, and 64, 96 and 128 elements with every group of one to eight.
pub fn swept(make: MakeBackend<'_>, awkward: &[Heads]) -> Vec<Heads> {
    let common: Vec<Heads> = [64, 96, 128]
        .into_iter()
        .flat_map(|d| (1..=8).map(move |group| Heads::new(1 + (group + d / 32) % 2, group, d)))
        .collect();
    let common = match make.is_reduced() {
        true => [Heads::new(2, 1, 64), Heads::new(1, 3, 96), Heads::new(2, 4, 128), Heads::new(1, 8, 128)].to_vec(),
        false => common,
    };
    let mut all = covered(make, awkward);
    all.extend(common.into_iter().filter(|heads| !awkward.contains(heads)));
    all
}
