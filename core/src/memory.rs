//! Where slabs get their memory.
#![expect(unsafe_code, reason = "the global allocator has a contract")]

use core::alloc::Layout;

/// A source of memory for slabs, which take it in chunks and keep it until they are dropped.
///
/// Each chunk has room for twice as many as the one before of its kind (VMAs, nodes, registered
/// readers), so a bounded pool can refuse the next when it is half full. VMAs that take one cache
/// line each, up to the first 1,016, are placed one in each pair of lines, so the next chunk is
/// asked for when half of their places are free; if it is refused, these are used.
///
/// # Safety
///
/// `alloc` returns null or memory of the layout that nothing else uses until it is given to
/// `dealloc`, and that stays where it is meanwhile. Neither unwinds, nor uses an address space: a
/// change of the slab may be half done.
pub unsafe trait SlabMemory {
    /// A chunk of `layout`; null when there is none, or for a size of 0, which no slab asks for.
    fn alloc(layout: Layout) -> *mut u8;

    /// Takes a chunk back.
    ///
    /// # Safety
    ///
    /// `chunk` came from `alloc` with the same `layout`, and is not used any more.
    unsafe fn dealloc(chunk: *mut u8, layout: Layout);
}

/// Slab memory out of the global allocator.
///
/// That may look addresses up, and change spaces, but none on the same shared slab: it would wait
/// for itself.
///
/// ```
/// use pervma::{GlobalMemory, SlabMemory};
/// use std::alloc::Layout;
///
/// assert!(GlobalMemory::alloc(Layout::new::<()>()).is_null()); // no memory of size 0
/// ```
#[derive(Debug)]
pub enum GlobalMemory {}

// SAFETY: the global allocator's contract. What it would change of the space that is being changed
// is refused (`OwnEdit`), or left to the next edit (`SlabScope`).
unsafe impl SlabMemory for GlobalMemory {
    fn alloc(layout: Layout) -> *mut u8 {
        if layout.size() == 0 {
            return core::ptr::null_mut();
        }
        // SAFETY: the size is not 0.
        unsafe { alloc::alloc::alloc(layout) }
    }

    unsafe fn dealloc(chunk: *mut u8, layout: Layout) {
        // SAFETY: handed on to the caller.
        unsafe { alloc::alloc::dealloc(chunk, layout) }
    }
}
