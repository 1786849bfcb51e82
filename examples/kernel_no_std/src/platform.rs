//! What a kernel lends to its address spaces: a lock, memory, time, a way to wait, and the state of
//! the running processor.

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use pervma::{Platform, SlabMemory, ThreadState, WaitWord};

use crate::machine;

/// The platform. It is a name only: all of its functions are static.
pub(crate) enum Kernel {}

// SAFETY: a processor's state is lent on that processor only, where threads are not switched while
// it matters; nothing here unwinds.
unsafe impl Platform for Kernel {
    /// The mmap lock, and the lock of slabs: any lock with the traits of the crate `lock_api`.
    type Lock = spin::rwlock::RwLock<(), Pause>;

    type Memory = Pool;

    /// In ticks of the timer.
    type Deadline = u64;

    /// Waits until the word has changed. Here a processor that waits has nothing better to do; a
    /// kernel with a scheduler puts the thread on a queue of this word, looks at the word once
    /// more, and sleeps.
    fn wait(word: &WaitWord, seen: u32, deadline: Option<u64>) -> bool {
        while word.value() == seen {
            if deadline.is_some_and(|at| ticks() >= at) {
                return false;
            }
            machine::pause();
        }
        true
    }

    /// Waiters look at the word themselves. A kernel with a scheduler takes one off the word's
    /// queue; readers call this, perhaps in an interrupt, so the queue may not have a lock.
    fn wake(_word: &WaitWord) {}

    fn wake_all(_word: &WaitWord) {}

    /// The state of what is running: here of the processor, since this kernel does not switch
    /// threads while a guard or an edit lives. One that does keeps a [`ThreadState`] in each
    /// thread.
    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        static PROCESSORS: [ThreadState; machine::PROCESSORS] =
            [const { ThreadState::new() }; machine::PROCESSORS];
        PROCESSORS.get(machine::processor()).map(f)
    }
}

/// Waits for a moment while another processor has the raw lock.
pub(crate) struct Pause;

impl spin::RelaxStrategy for Pause {
    fn relax() {
        machine::pause();
    }
}

static TICKS: AtomicU64 = AtomicU64::new(0);

/// The time, in ticks of the timer.
pub(crate) fn ticks() -> u64 {
    TICKS.load(Relaxed)
}

/// Is called by the interrupt of the timer.
pub(crate) fn tick() {
    TICKS.fetch_add(1, Relaxed);
}

/// The memory of slabs: so many bytes of the kernel's image, and no more. Slots and tree nodes are
/// taken from it in chunks, and used again, but not returned while a slab lives.
pub(crate) enum Pool {}

/// The bytes that there are.
pub(crate) const POOL: usize = 64 << 10;

#[repr(align(4096))]
struct Memory(UnsafeCell<MaybeUninit<[u8; POOL]>>);

// SAFETY: each byte is given out once, to a single owner; nothing else touches the memory.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new(MaybeUninit::uninit()));
static USED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: `USED` only rises, so what lies between its old value and its new one was not given out
// before; the memory is a static, so it stays. Larger alignments than that of the static are
// refused.
unsafe impl SlabMemory for Pool {
    fn alloc(layout: Layout) -> *mut u8 {
        let place = |used: usize| {
            let start = used.checked_next_multiple_of(layout.align())?;
            let end = start.checked_add(layout.size())?;
            (end <= POOL && layout.align() <= align_of::<Memory>()).then_some((start, end))
        };
        // Relaxed: it divides the bytes up, and publishes none of them.
        let taken = USED.fetch_update(Relaxed, Relaxed, |used| Some(place(used)?.1));
        match taken.ok().and_then(place) {
            Some((start, _)) => MEMORY.0.get().cast::<u8>().wrapping_add(start),
            None => ptr::null_mut(),
        }
    }

    /// A slab gives its chunks back when it is dropped. Those of this kernel never are.
    unsafe fn dealloc(_chunk: *mut u8, _layout: Layout) {}
}
