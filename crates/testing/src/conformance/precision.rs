//! What a backend's activation buffers keep, asked of the backend itself.

use backend::{Backend, Buffer, Runtime};

/// Half a step of bf16 at the largest value, in roundings (halves of a step) of f32.
pub const HALF_BF16: f64 = 65_536.0;

/// How an activation buffer keeps its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// `Backend::buffer`: f32.
    Full,
    /// `Backend::product_buffer`: what the device's matrix products take.
    Product,
}

/// Whether the backend's products take bf16: the model's buffers between ops are rounded so.
pub fn rounds_products(backend: &dyn Backend, runtime: &dyn Runtime) -> bool {
    let fine = 1.0 + 2.0_f32.powi(-12);
    let probe = backend.product_buffer("a test", 1, 1).expect("a buffer");
    runtime.write(&probe, &[fine]);
    match runtime.read(&probe)[..] {
        [kept] if kept == fine => false,
        [1.0] => true,
        ref other => panic!("a product buffer keeps {fine} as {other:?}: neither f32 nor bf16"),
    }
}

/// A buffer of a precision.
///
/// # Panics
/// No memory.
pub fn array(backend: &dyn Backend, precision: Precision, rows: usize, cols: usize) -> Buffer {
    let array = match precision {
        Precision::Full => backend.buffer("a test", rows, cols),
        Precision::Product => backend.product_buffer("a test", rows, cols),
    };
    array.expect("a buffer")
}

/// Elements as a product buffer keeps them.
pub fn as_products(backend: &dyn Backend, runtime: &dyn Runtime, elements: &[f32]) -> Vec<f32> {
    let held = array(backend, Precision::Product, 1, elements.len());
    runtime.write(&held, elements);
    runtime.read(&held)
}
