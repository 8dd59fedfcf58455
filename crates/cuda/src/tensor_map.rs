//! What the tensor memory accelerator (compute capability 9.0) is told of an array.

use crate::driver::check;
use crate::staging::Staging;
use backend::BackendError;
use cudarc::driver::sys;

/// Columns of the accelerator's tiles: 128 bytes of bf16, within which it exchanges pieces as products by wgmma read
/// them.
const COLUMNS: usize = 64;

/// `TensorMap` of kernels/hopper.cuh.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct TensorMap(sys::CUtensorMap);

const _: () = assert!(size_of::<TensorMap>() == 128, "a map is 128 bytes and its kernels take it by value");

impl TensorMap {
    /// Staging's first `tokens` as tiles of `box_tokens`, `[K or V of a head][columns / 64][tokens][64]`. Where a tile
    /// reaches behind `tokens` it gets zeros, not what lies there.
    pub(crate) fn of_staging(
        staging: &Staging,
        (kv_heads, tokens, head_dim): (usize, usize, usize),
        box_tokens: usize,
    ) -> Result<Self, BackendError> {
        let row_bytes = 2 * head_dim as u64;
        let halves = head_dim / COLUMNS;
        let extents = [COLUMNS as u64, tokens as u64, halves as u64, 2 * kv_heads as u64];
        let strides = [row_bytes, 2 * COLUMNS as u64, row_bytes * staging.capacity as u64];
        let tile = [COLUMNS as u32, box_tokens as u32, halves as u32, 1];
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: four extents, three strides, four extents of a tile, four steps of 1; the call writes the map, and
        // reads nothing of the array.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                extents.len() as u32,
                staging.data as *mut _,
                extents.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                [1; 4].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(encoded, "describing staging to the tensor memory accelerator")?;
        Ok(TensorMap(map))
    }
}
