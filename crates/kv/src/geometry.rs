//! The sizes of pages, frames and rows; every other crate asks here and writes none of these numbers itself.

/// Tokens of one page. A constant: the page entry has 3 + 3 bits for a token range inside a page.
pub const PAGE_TOKENS: usize = 8;

/// Vectors of `head_dim` bf16 elements that one summary frame holds (a frame is `2 * PAGE_TOKENS` such vectors).
pub const FRAME_VECTORS: usize = 2 * PAGE_TOKENS;

/// Tokens whose 2-bit codes and statistics fill one summary frame (sketch, algorithms 5b).
pub const SKETCH_TOKENS: usize = 48;

/// Bytes of one stored K or V element (bf16).
pub const ELEMENT_BYTES: usize = 2;

/// What a KV row holds: the model's layers, KV heads and head size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Decoder layers.
    pub layers: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Elements of one key or value vector.
    pub head_dim: usize,
}

impl Geometry {
    /// Elements of one frame: K rows `[8][head_dim]`, then V rows `[8][head_dim]`.
    pub fn frame_elements(&self) -> usize {
        FRAME_VECTORS * self.head_dim
    }

    /// Bytes of one frame (a page of one layer and KV head).
    pub fn page_bytes(&self) -> usize {
        self.frame_elements() * ELEMENT_BYTES
    }

    /// Bytes of one row: a frame for every (layer, KV head).
    pub fn row_bytes(&self) -> usize {
        self.layers * self.kv_heads * self.page_bytes()
    }

    /// The frame's number in the pool: `(row * layers + layer) * kv_heads + head`.
    pub fn frame(&self, row: crate::RowId, layer: usize, head: usize) -> usize {
        debug_assert!(layer < self.layers && head < self.kv_heads);
        (row.at() * self.layers + layer) * self.kv_heads + head
    }
}

/// Pages that `tokens` tokens occupy.
pub fn pages(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}
