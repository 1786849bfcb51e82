//! What the library knows of a thread, and the platform of its spaces, which has that at hand.
//!
//! A `thread_local!` of a shared library is found by a call of the dynamic linker's, of which a
//! lookup would need several; and where the library was loaded by `dlopen`, the first one of a
//! thread allocates, which a signal handler must not. So it lies in static thread-local memory (the
//! TLS model `initial-exec`). Rust has no name for that yet: assembly defines it and finds it.
//! Where this is not known to work, it is a `thread_local!`.
#![expect(unsafe_code, reason = "defines thread-local memory, and is a platform")]
#![expect(clippy::disallowed_types, reason = "names of threads")]

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use address_space::{Platform, StdPlatform, ThreadState, WaitWord};

/// What the library knows of a thread.
#[repr(C)]
pub(crate) struct Thread {
    state: ThreadState,
    /// Its name; 0 as long as it has none.
    name: AtomicUsize,
    /// The address of a frame that runs a callback on this thread, the innermost; 0 if none does.
    pub(crate) callback: Cell<usize>,
    /// Which region's function runs on this thread, the innermost; 0 if none does.
    pub(crate) region: Cell<usize>,
    /// How many forks it has prepared, 0 or 1. It has locked the lists of handles for one.
    pub(crate) forks: Cell<usize>,
}

impl Thread {
    const fn new() -> Self {
        Self {
            state: ThreadState::new(),
            name: AtomicUsize::new(0),
            callback: Cell::new(0),
            region: Cell::new(0),
            forks: Cell::new(0),
        }
    }
}

#[cfg(all(
    target_env = "gnu",
    target_pointer_width = "64",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod place {
    use std::arch::{asm, global_asm};
    use std::mem::transmute;

    use super::Thread;

    global_asm!(
        ".pushsection .tbss.pervma_thread, \"awT\", %nobits",
        ".hidden pervma_thread",
        ".globl pervma_thread",
        ".type pervma_thread, %object",
        ".size pervma_thread, {size}",
        ".balign {align}",
        "pervma_thread: .zero {size}",
        ".popsection",
        size = const size_of::<Thread>(),
        align = const align_of::<Thread>(),
    );

    const _: () = {
        // SAFETY: as large, and it has no padding, or this would not compile.
        let bytes: [u8; size_of::<Thread>()] = unsafe { transmute(Thread::new()) };
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at] == 0, "a thread begins with zeroes");
            at += 1;
        }
    };

    /// Runs `f` with what is known of the running thread.
    #[inline(always)]
    pub(crate) fn with<R>(f: impl FnOnce(&Thread) -> R) -> R {
        let (pointer, offset): (usize, usize);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: reads the thread's pointer, and where from it the memory lies.
        unsafe {
            asm!(
                "mov {pointer}, qword ptr fs:[0]",
                "mov {offset}, qword ptr [rip + pervma_thread@GOTTPOFF]",
                pointer = out(reg) pointer,
                offset = out(reg) offset,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            asm!(
                "mrs {pointer}, tpidr_el0",
                "adrp {offset}, :gottprel:pervma_thread",
                "ldr {offset}, [{offset}, #:gottprel_lo12:pervma_thread]",
                pointer = out(reg) pointer,
                offset = out(reg) offset,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        let place = std::ptr::with_exposed_provenance::<Thread>(pointer.wrapping_add(offset));
        // SAFETY: memory of the running thread alone, which is there as long as the thread, large
        // and aligned enough; it began with zeroes, which are a `Thread`.
        f(unsafe { &*place })
    }
}

#[cfg(not(all(
    target_env = "gnu",
    target_pointer_width = "64",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
mod place {
    use super::Thread;

    thread_local! {
        static THREAD: Thread = const { Thread::new() };
    }

    /// Runs `f` with what is known of the running thread.
    #[inline(always)]
    pub(crate) fn with<R>(f: impl FnOnce(&Thread) -> R) -> R {
        THREAD.with(f)
    }
}

pub(crate) use place::with;

/// Names the running thread among all that ever were: a new one can have the memory of one that has
/// ended with an edit or a guard.
#[inline(always)]
pub(crate) fn name() -> usize {
    with(|thread| {
        // RELAXED: only the thread and its handlers use it.
        let name = thread.name.load(Relaxed);
        if name == 0 { named(thread) } else { name }
    })
}

#[cold]
fn named(thread: &Thread) -> usize {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    // RELAXED: a number that nobody else gets.
    let name = LAST.fetch_add(1, Relaxed) + 1;
    // RELAXED: as in `name`; a handler may have been here before.
    thread.name.compare_exchange(0, name, Relaxed, Relaxed).map_or_else(|before| before, |_| name)
}

/// The standard platform, but for where the state of a thread lies.
#[derive(Debug)]
pub(crate) enum Host {}

// SAFETY: what another platform does is done by it; and each thread has a state of its own, found
// without allocation.
unsafe impl Platform for Host {
    type Lock = <StdPlatform as Platform>::Lock;
    type Memory = <StdPlatform as Platform>::Memory;
    type Deadline = <StdPlatform as Platform>::Deadline;

    fn wait(word: &WaitWord, seen: u32, deadline: Option<Self::Deadline>) -> bool {
        StdPlatform::wait(word, seen, deadline)
    }

    fn wake(word: &WaitWord) {
        StdPlatform::wake(word);
    }

    fn wake_all(word: &WaitWord) {
        StdPlatform::wake_all(word);
    }

    fn lock_until(lock: &Self::Lock, deadline: Self::Deadline) -> bool {
        StdPlatform::lock_until(lock, deadline)
    }

    #[inline(always)]
    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        Some(with(|thread| f(&thread.state)))
    }

    const FORKS: bool = StdPlatform::FORKS;

    unsafe fn renew(lock: &Self::Lock) {
        // SAFETY: as the caller says.
        unsafe { StdPlatform::renew(lock) }
    }

    fn prepare_barrier() -> bool {
        StdPlatform::prepare_barrier()
    }

    fn barrier() {
        StdPlatform::barrier();
    }
}
