//! The machine when there is nothing else: one processor, an entry point, a few bytes of heap.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::panic::PanicInfo;
use core::ptr;

use spin::RwLock;

/// The most processors that there may be.
pub(crate) const PROCESSORS: usize = 1;

/// The number of the running processor. Where there are more, it is in a register: `gs`,
/// `tpidr_el1`, `tp`.
pub(crate) fn processor() -> usize {
    0
}

/// Waits for another processor for a moment.
pub(crate) fn pause() {
    core::hint::spin_loop();
}

/// Where the boot loader jumps to, with a stack.
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    if let Err(what) = crate::check_one_processor(&crate::INIT) {
        panic!("{what}");
    }
    halt()
}

/// Is called by the entry of the timer in the interrupt table.
#[unsafe(no_mangle)]
extern "C" fn timer_interrupt() {
    crate::platform::tick();
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    halt()
}

fn halt() -> ! {
    loop {
        pause();
    }
}

/// The global allocator, for the lists that an edit makes (what it has removed, for example).
/// Lookups never call it. It goes on from byte to byte, and starts over when nothing is in use.
struct Heap {
    bytes: UnsafeCell<MaybeUninit<[u8; HEAP]>>,
    state: RwLock<State>,
}

const HEAP: usize = 16 << 10;

struct State {
    used: usize,
    blocks: usize,
}

// SAFETY: only the owner of a block touches its bytes.
unsafe impl Sync for Heap {}

// SAFETY: under the lock, what lies behind `used` is in no other block, and `used` falls back only
// when no block is in use.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = self.bytes.get().cast::<u8>();
        let mut state = self.state.write();
        let free = base.wrapping_add(state.used);
        let start = state.used + free.align_offset(layout.align());
        if start.saturating_add(layout.size()) > HEAP {
            return ptr::null_mut();
        }
        state.used = start + layout.size();
        state.blocks += 1;
        base.wrapping_add(start)
    }

    unsafe fn dealloc(&self, _block: *mut u8, _layout: Layout) {
        let mut state = self.state.write();
        state.blocks -= 1;
        if state.blocks == 0 {
            state.used = 0;
        }
    }
}

#[global_allocator]
static ALLOCATOR: Heap = Heap {
    bytes: UnsafeCell::new(MaybeUninit::uninit()),
    state: RwLock::new(State { used: 0, blocks: 0 }),
};
