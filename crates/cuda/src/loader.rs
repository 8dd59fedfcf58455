//! Weights on their way to the device: while one piece is copied over the link, the next is read from its file.

use crate::driver::{Event, Pinned, Stream, check};
use crate::memory::Array;
use backend::BackendError;
use cudarc::driver::sys;

/// Bytes of a piece.
const PIECE_BYTES: usize = 16 << 20;

/// Two pinned pieces in turn.
pub(crate) struct Loader {
    pieces: [(Pinned, Event); 2],
    turn: usize,
}

impl Loader {
    pub(crate) fn new() -> Result<Self, BackendError> {
        let piece = || Ok((Pinned::new(PIECE_BYTES)?, Event::new()?));
        Ok(Loader { pieces: [piece()?, piece()?], turn: 0 })
    }

    /// Enqueues a copy of `bytes` to `at`; they may be dropped afterwards.
    pub(crate) fn copy(&mut self, stream: &Stream, array: &Array, at: usize, bytes: &[u8]) -> Result<(), BackendError> {
        assert!(at + bytes.len() <= array.bytes, "{} bytes at {at} of {}", bytes.len(), array.bytes);
        for (i, part) in bytes.chunks(PIECE_BYTES).enumerate() {
            let (piece, copied) = &self.pieces[self.turn];
            self.turn = 1 - self.turn;
            copied.synchronize()?;
            let target = array.pointer + (at + i * PIECE_BYTES) as u64;
            // SAFETY: the piece has room, and its last copy was waited for; the array has these bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), piece.host, part.len());
                let result = sys::cuMemcpyHtoDAsync_v2(target, piece.host.cast(), part.len(), stream.raw);
                check(result, "copying weights to the GPU")?;
            }
            copied.record(stream)?;
        }
        Ok(())
    }
}
