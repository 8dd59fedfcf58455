//! One entry of a page list: which tokens of which row Attend reads.

use crate::{PAGE_TOKENS, RowId};

/// `row:26 | first:3 | count-1:3`, most significant first. Shared bit for bit with the CUDA kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct PageEntry(pub u32);

const _: () = assert!(PAGE_TOKENS == 8, "the entry's fields are three bits wide");

impl PageEntry {
    /// Tokens `first..first + count` of the page in `row`, whose tier is not part of it:
    /// `1 <= count`, `first + count <= 8`.
    pub fn new(row: RowId, first: usize, count: usize) -> Self {
        debug_assert!(row.at() < 1 << 26 && 0 < count && first + count <= PAGE_TOKENS);
        PageEntry((row.at() as u32) << 6 | (first as u32) << 3 | (count as u32 - 1))
    }

    /// The row that holds the page.
    pub fn row(self) -> RowId {
        RowId(self.0 >> 6)
    }

    /// The first token read.
    pub fn first(self) -> usize {
        (self.0 >> 3 & 7) as usize
    }

    /// How many tokens are read.
    pub fn count(self) -> usize {
        (self.0 & 7) as usize + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_survive_packing() {
        for row in [0, 1, 77, (1 << 26) - 1] {
            for first in 0..PAGE_TOKENS {
                for count in 1..=PAGE_TOKENS - first {
                    let entry = PageEntry::new(RowId(row), first, count);
                    assert_eq!((entry.row(), entry.first(), entry.count()), (RowId(row), first, count));
                }
            }
        }
    }
}
