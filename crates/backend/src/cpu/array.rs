//! Zeroed, page-aligned memory that ops share.

use crate::BackendError;
use memmap2::{MmapMut, MmapOptions};
use std::io;
use std::ops::Range;
use std::path::Path;
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
/// Ops run one after the other, and inside an op every element has one writer and no other reader: that is what makes
/// the shared `&mut` of [`Array::part`] sound, and why it is `unsafe`. Borrows cover exactly the elements asked for:
/// what a task reads by [`Array::slice`] may lie next to what another one writes.
///
/// Large arrays ask for huge pages: K and V are read a few KiB at a time from all over the pool, and with small pages
/// each visit begins with a walk of the page table.
pub struct Array<T: Plain> {
    start: NonNull<T>,
    len: usize,
    /// Owns the memory; from its first byte to `start` there is less than a huge page.
    _map: MmapMut,
}

/// Bytes of a huge page, and the least that asks for them.
const HUGE_PAGE: usize = 2 << 20;

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
        let bytes = len * size_of::<T>();
        let align = if bytes < HUGE_PAGE { 1 } else { HUGE_PAGE };
        let refused = |_| BackendError::OutOfMemory {
            what,
            bytes: bytes as u64,
            hint: "lower --kv-memory, --max-lanes or --prefill-tokens",
        };
        let mut map = MmapOptions::new().len(bytes.max(1) + align - 1).map_anon().map_err(refused)?;
        if align > 1 {
            ask_for_huge_pages(&map);
        }
        let first = map.as_mut_ptr();
        let start = first.wrapping_add(first.align_offset(align));
        let start = NonNull::new(start.cast::<T>()).expect("a mapping does not lie at zero");
        Ok(Array { start, len, _map: map })
    }

    /// `len` zeros in a file of `folder`, which has no name there and ends with the array: the system writes out what
    /// is not in use. Its space is reserved at once, so that no write can find the disk full.
    ///
    /// # Errors
    /// The folder does not take such a file.
    pub fn in_file(what: &'static str, len: usize, folder: &Path) -> Result<Self, BackendError> {
        let bytes = (len * size_of::<T>()).max(1);
        let refused = |error: io::Error| BackendError::Storage {
            what,
            bytes: bytes as u64,
            folder: folder.display().to_string(),
            why: error.to_string(),
        };
        let file = tempfile::tempfile_in(folder).map_err(refused)?;
        let reserve = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes as u64);
        reserve.map_err(|error| refused(error.into()))?;
        // SAFETY: nobody else can open a file without a name, so nobody shortens it.
        let mut map = unsafe { MmapMut::map_mut(&file) }.map_err(refused)?;
        let start = NonNull::new(map.as_mut_ptr().cast::<T>()).expect("a mapping does not lie at zero");
        Ok(Array { start, len, _map: map })
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

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All elements, to read, for arrays of which the running op writes none.
    pub fn all(&self) -> &[T] {
        // SAFETY: initialised by `zeros`; whoever writes by `part` has promised that nobody holds this.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The elements `range`, to read; others may be written meanwhile.
    ///
    /// # Safety
    /// Until the borrow ends, nobody writes these elements.
    #[inline]
    pub unsafe fn slice(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        // SAFETY: in bounds and initialised; without a writer by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.end - range.start) }
    }

    /// The elements `range`, to write.
    ///
    /// # Safety
    /// Until the borrow ends, nobody else reads or writes these elements, and nobody holds [`Array::all`].
    #[inline]
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

/// A request, not a need: where the system declines, the array works all the same.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(map: &MmapMut) {
    let _ = map.advise(memmap2::Advice::HugePage);
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_map: &MmapMut) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_what_was_written_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let array = Array::<u16>::in_file("a test", 5000, folder.path()).expect("it fits");
        // SAFETY: nobody else has the array.
        unsafe { array.part(4990..5000) }.fill(7);
        assert_eq!(array.all()[4988..4992], [0, 0, 7, 7]);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "the file has no name");
        let missing = folder.path().join("missing");
        let refused = Array::<u16>::in_file("a test", 5, &missing).err().expect("there is no such folder");
        assert!(refused.to_string().contains("missing"), "{refused}");
        let huge = Array::<u16>::in_file("a test", 1 << 60, folder.path()).err().expect("no disk is so large");
        assert!(huge.to_string().contains("--host-folder"), "{huge}");
    }

    #[test]
    fn a_read_may_lie_next_to_a_write() {
        let array = Array::of("a test", &[1_u32, 2, 3, 4, 5]).expect("memory");
        // SAFETY: no two of the three overlap.
        let (before, written, behind) = unsafe { (array.slice(0..2), array.part(2..3), array.slice(3..5)) };
        written[0] = before[1] + behind[0];
        assert_eq!(array.all(), [1, 2, 6, 4, 5]);
    }

    #[test]
    #[should_panic(expected = "4..6 of 5 elements")]
    fn nothing_behind_the_end_is_read() {
        let array = Array::<u16>::zeros("a test", 5).expect("memory");
        // SAFETY: nobody writes.
        let _ = unsafe { array.slice(4..6) };
    }
}
