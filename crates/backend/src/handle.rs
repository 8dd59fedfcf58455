//! Opaque handles: only the backend that made one looks inside; the last clone frees the memory.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A device array of `rows` x `cols` activations, in the backend's own activation type (f32 on the CPU).
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<dyn Any + Send + Sync>,
    rows: usize,
    cols: usize,
}

impl Buffer {
    /// Wraps a backend's own array.
    pub fn new(inner: Arc<dyn Any + Send + Sync>, rows: usize, cols: usize) -> Self {
        Buffer { inner, rows, cols }
    }

    /// The backend's own array, if `T` is what it put in.
    pub fn downcast<T: Any>(&self) -> Option<&T> {
        self.inner.downcast_ref()
    }

    /// First extent.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Second extent.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The buffer from `row` on.
    pub fn from_row(&self, row: usize) -> View<'_> {
        assert!(row <= self.rows, "view from row {row} of a buffer of {} rows", self.rows);
        View { buffer: self, row }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer[{} x {}]", self.rows, self.cols)
    }
}

/// A [`Buffer`] from one of its rows on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The array.
    pub buffer: &'a Buffer,
    /// First row seen.
    pub row: usize,
}

impl<'a> From<&'a Buffer> for View<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        View { buffer, row: 0 }
    }
}

/// Attention over a part of the keys, mergeable: normalised output and log-sum-exp of the scaled logits.
#[derive(Clone, Debug)]
pub struct Partial {
    /// `[lanes, q_heads * head_dim]`, divided by its own sum of weights; zero where `lse` is -inf.
    pub output: Buffer,
    /// `[lanes, q_heads]`; -inf for an empty part.
    pub lse: Buffer,
}

/// A prepared weight: fused, packed and owned by the backend.
#[derive(Clone)]
pub struct Weight {
    inner: Arc<dyn Any + Send + Sync>,
    shape: [usize; 2],
}

impl Weight {
    /// Wraps a backend's own prepared weight; `shape` is `[out, in]`, or `[1, n]` for a vector.
    pub fn new(inner: Arc<dyn Any + Send + Sync>, shape: [usize; 2]) -> Self {
        Weight { inner, shape }
    }

    /// The backend's own form, if `T` is what it put in.
    pub fn downcast<T: Any>(&self) -> Option<&T> {
        self.inner.downcast_ref()
    }

    /// Output features (1 for a vector).
    pub fn out_features(&self) -> usize {
        self.shape[0]
    }

    /// Input features (the length of a vector).
    pub fn in_features(&self) -> usize {
        self.shape[1]
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight[{} x {}]", self.shape[0], self.shape[1])
    }
}
