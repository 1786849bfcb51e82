//! What a reader does in a signal handler: it takes no lock and allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};

use pervma::{AddressSpace, HandlerScope, ReadError, StdPlatform};

/// Ends the process when memory is asked for, or given back, inside a marked handler.
struct NotInHandlers;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for NotInHandlers {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        assert_outside();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        assert_outside();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

fn assert_outside() {
    if HandlerScope::<StdPlatform>::active() {
        std::process::abort();
    }
}

#[global_allocator]
static ALLOCATOR: NotInHandlers = NotInHandlers;

/// B16.
#[test]
fn a_lookup_neither_locks_nor_allocates_whatever_its_outcome() {
    let space = AddressSpace::new(4096);
    space.edit().unwrap().insert(0x1000..0x2000, String::from("payload")).unwrap();
    let mut edit = space.edit().unwrap();
    edit.insert(0x8000..0x9000, String::from("locked")).unwrap();

    let handler = HandlerScope::<StdPlatform>::enter();
    let found = space.try_read(0x1000).map(|vma| vma.len());
    let locked = space.try_read(0x8000).map(drop);
    let hole = space.try_read(0x5000).map(drop);
    drop(handler);

    assert_eq!(found, Ok(7));
    assert_eq!(locked, Err(ReadError::OwnEdit { addr: 0x8000 }));
    assert_eq!(hole, Err(ReadError::OwnEdit { addr: 0x5000 }));
}
