//! Zeroed, 64-byte aligned memory that ops share.

use crate::BackendError;
use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::ptr::NonNull;

/// Types whose all-zero bytes are a value and that need no drop.
///
/// # Safety
/// Both hold for the implementor.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for u8 {}
// SAFETY: numbers.
unsafe impl Plain for u16 {}
// SAFETY: numbers.
unsafe impl Plain for u32 {}

/// A fixed array that the ops of one runtime read and write in turn; untouched pages take no memory.
///
/// Ops run one after the other, and inside an op every element has one writer: that is what makes the shared
/// `&mut` of [`Array::part`] sound, and why it is `unsafe`.
pub struct Array<T: Plain> {
    start: NonNull<T>,
    len: usize,
    /// Where the elements are, if not on the heap.
    mapping: Option<MmapMut>,
}

/// Arrays from here on are mapped by themselves: zero without being written, and in huge pages where the system has
/// them, because the frames of a head lie a row apart and would miss the TLB each.
const MAPPED_LEAST: usize = 4 << 20;

// SAFETY: plain memory; who may touch it when is the contract of `part`.
unsafe impl<T: Plain> Send for Array<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Array<T> {}

impl<T: Plain> Array<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn zeros(what: &'static str, len: usize) -> Result<Self, BackendError> {
        let layout = Self::layout(len);
        let refused = BackendError::OutOfMemory {
            what,
            bytes: layout.size() as u64,
            hint: "lower --kv-memory, --max-lanes or --prefill-tokens",
        };
        if layout.size() >= MAPPED_LEAST {
            let Ok(mut mapping) = MmapMut::map_anon(layout.size()) else { return Err(refused) };
            #[cfg(target_os = "linux")]
            // A system without huge pages refuses the advice; then pages are small.
            let _ = mapping.advise(memmap2::Advice::HugePage);
            let start = NonNull::new(mapping.as_mut_ptr().cast::<T>()).expect("a mapping has an address");
            return Ok(Array { start, len, mapping: Some(mapping) });
        }
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) }.cast::<T>();
        NonNull::new(start).map(|start| Array { start, len, mapping: None }).ok_or(refused)
    }

    /// A copy of `elements`.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn of(what: &'static str, elements: &[T]) -> Result<Self, BackendError> {
        let array = Self::zeros(what, elements.len())?;
        // SAFETY: nobody else has the array yet.
        unsafe { array.part(0..elements.len()) }.copy_from_slice(elements);
        Ok(array)
    }

    fn layout(len: usize) -> Layout {
        let bytes = (len * size_of::<T>()).max(64);
        Layout::from_size_align(bytes, 64).expect("an array is smaller than the address space")
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, to read: no op that writes them may be running.
    pub fn all(&self) -> &[T] {
        // SAFETY: initialised by `zeros`; see the type on writers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The elements `range`, to write.
    ///
    /// # Safety
    /// Until the borrow ends, nobody else reads or writes these elements.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        // SAFETY: in bounds and initialised; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.end - range.start) }
    }

    /// The first element's address.
    pub fn as_ptr(&self) -> *const T {
        self.start.as_ptr()
    }
}

impl<T: Plain> Drop for Array<T> {
    fn drop(&mut self) {
        if self.mapping.is_none() {
            // SAFETY: allocated by `zeros` with this layout.
            unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) }
        }
    }
}
