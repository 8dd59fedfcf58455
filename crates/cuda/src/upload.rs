//! Small host arrays on their way to kernels: a pinned ring and its twin on the device; waits where the ring is full.

use crate::driver::{Event, Pinned, Stream, check};
use crate::memory::{Array, Budget};
use backend::BackendError;
use cudarc::driver::sys;
use std::sync::Arc;

/// Parts that are waited for one by one when the ring comes round.
const SEGMENTS: usize = 4;

/// The ring.
pub(crate) struct Uploads {
    pinned: Pinned,
    device: Array,
    /// Marks the end of what was enqueued with each segment, on both streams.
    events: Vec<[Event; 2]>,
    segment: usize,
    at: usize,
}

impl Uploads {
    /// Bytes of one segment, the largest upload, for sequences of `max_pages` pages.
    pub(crate) fn segment_bytes(max_pages: usize) -> usize {
        // A prompt's tokens, or a pass's, and two row tables beside them.
        (4 * (8 * max_pages + 2 * max_pages) + (1 << 16)).next_multiple_of(256)
    }

    /// All of the ring's bytes on the device.
    pub(crate) fn bytes(max_pages: usize) -> usize {
        SEGMENTS * Self::segment_bytes(max_pages)
    }

    pub(crate) fn new(budget: &Arc<Budget>, max_pages: usize) -> Result<Self, BackendError> {
        let bytes = Self::bytes(max_pages);
        let events = (0..SEGMENTS).map(|_| Ok([Event::new()?, Event::new()?])).collect::<Result<_, BackendError>>()?;
        let device = budget.array("uploads", bytes)?;
        Ok(Uploads { pinned: Pinned::new(bytes)?, device, events, segment: 0, at: 0 })
    }

    /// Enqueues a copy of `words` on the main stream; the address serves kernels that are enqueued on it, or aside,
    /// before two more segments are filled.
    pub(crate) fn words(&mut self, main: &Stream, side: &Stream, words: &[u32]) -> Result<u64, BackendError> {
        let segment_bytes = self.pinned.bytes / SEGMENTS;
        let bytes = size_of_val(words);
        assert!(bytes <= segment_bytes, "an upload of {bytes} bytes, at most {segment_bytes}");
        if segment_bytes < self.at + bytes {
            // What was launched since the last turn may read from the segment before as well.
            for segment in [self.segment, (self.segment + SEGMENTS - 1) % SEGMENTS] {
                let [on_main, on_side] = &self.events[segment];
                on_main.record(main)?;
                on_side.record(side)?;
            }
            self.segment = (self.segment + 1) % SEGMENTS;
            self.at = 0;
            self.events[self.segment].iter().try_for_each(Event::synchronize)?;
        }
        let offset = self.segment * segment_bytes + self.at;
        self.at = (self.at + bytes).next_multiple_of(256);
        let target = self.device.pointer + offset as u64;
        // SAFETY: the segment has room for these bytes, and whoever read them before is done: its event was waited for.
        unsafe {
            let source = self.pinned.host.add(offset);
            std::ptr::copy_nonoverlapping(words.as_ptr().cast::<u8>(), source, bytes);
            check(sys::cuMemcpyHtoDAsync_v2(target, source.cast(), bytes, main.raw), "an upload")?;
        }
        Ok(target)
    }
}
