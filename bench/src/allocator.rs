//! An allocator that counts bytes while a benchmark measures memory.
#![expect(unsafe_code, reason = "is an allocator")]
#![expect(clippy::disallowed_types, reason = "counts that no protocol uses")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering::Relaxed};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);

/// Bytes that were allocated since counting began, less those given back.
static BYTES: AtomicIsize = AtomicIsize::new(0);

/// Runs `work`, and returns by how many bytes what is allocated has grown. Only one thread may
/// allocate meanwhile.
pub(crate) fn growth<R>(work: impl FnOnce() -> R) -> (R, isize) {
    // RELAXED, here and below: one thread.
    BYTES.store(0, Relaxed);
    COUNTS.store(true, Relaxed);
    let result = work();
    COUNTS.store(false, Relaxed);
    (result, BYTES.load(Relaxed))
}

impl Counting {
    #[inline(always)]
    fn count(plus: usize, minus: usize) {
        if COUNTS.load(Relaxed) {
            BYTES.fetch_add(plus.wrapping_sub(minus).cast_signed(), Relaxed);
        }
    }
}

// SAFETY: the system's allocator, which is asked for the same.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count(size, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        Self::count(0, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}
