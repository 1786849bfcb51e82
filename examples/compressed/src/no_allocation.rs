//! The rule of signal handlers that is broken most easily, enforced: no allocation.
//!
//! An allocator's lock may be held by the very code that a fault has interrupted. So a source that
//! allocates on the fault path works for months, and then hangs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static FORBIDDEN: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, an allocation or a deallocation of its thread ends the process.
pub(crate) struct NoAllocation(());

impl NoAllocation {
    pub(crate) fn here() -> Self {
        FORBIDDEN.set(true);
        Self(())
    }
}

impl Drop for NoAllocation {
    fn drop(&mut self) {
        FORBIDDEN.set(false);
    }
}

/// The system's allocator, but for that.
struct Allocator;

fn check() {
    if FORBIDDEN.get() {
        std::process::abort();
    }
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        check();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;
