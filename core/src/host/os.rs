//! The platform of a program with an operating system.
#![expect(unsafe_code, reason = "the contract of `Platform` is kept here")]

use core::alloc::Layout;

#[cfg(any(target_os = "linux", target_os = "android"))]
use super::futex::Left;
use super::lock::StdLock;
use crate::memory::{GlobalMemory, SlabMemory};
use crate::platform::Platform;
use crate::sync::WaitWord;
use crate::thread::ThreadState;

/// The platform of a program with an operating system. It comes with the feature `std`.
///
/// - The mmap lock is one word on the futex on Linux and Android, and elsewhere `parking_lot`'s.
/// - Threads sleep on the futex on Linux and Android, and elsewhere in `parking_lot_core`'s queues.
///   Waking takes a lock of such a queue, so outside of Linux a guard must not be dropped in a
///   signal handler.
/// - A thread's state is a constant-initialised thread-local without a destructor. In a shared
///   library that was loaded at run time, the first use of a thread-local by a thread may allocate,
///   so there a thread that reads in signal handlers should read once before.
/// - The barrier for registered readers is `membarrier(2)` on Linux and Android, where the kernel
///   has it (4.14) and no filter forbids it to the thread that registers. If one forbids it to a
///   thread that edits later, the process aborts.
#[derive(Debug)]
pub enum StdPlatform {}

// SAFETY: only its own thread uses a thread-local, and its memory is reused after the thread has
// ended. The futex reads its word. Nothing here unwinds.
unsafe impl Platform for StdPlatform {
    type Lock = StdLock;
    type Memory = StdMemory;
    type Deadline = std::time::Instant;

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn wait(word: &WaitWord, seen: u32, deadline: Option<std::time::Instant>) -> bool {
        let left = match deadline {
            None => Left::Any,
            Some(deadline) => Left::until(deadline),
        };
        let time = match left {
            Left::Any => None,
            Left::Time(time) => Some(time),
            Left::Nothing => return false,
        };
        // Every outcome (woken, changed before, interrupted, timed out) means: look again.
        super::futex::wait(word, seen, time.as_ref());
        true
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn wait(word: &WaitWord, seen: u32, deadline: Option<std::time::Instant>) -> bool {
        super::park::wait(word, seen, deadline)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn wake(word: &WaitWord) {
        super::futex::wake_one(word);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn wake_all(word: &WaitWord) {
        super::futex::wake_all(word);
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn wake(word: &WaitWord) {
        super::park::wake(word);
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn wake_all(word: &WaitWord) {
        super::park::wake_all(word);
    }

    fn lock_until(lock: &StdLock, deadline: std::time::Instant) -> bool {
        lock.lock_exclusive_until(deadline)
    }

    #[inline(always)]
    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        std::thread_local! {
            static STATE: ThreadState = const { ThreadState::new() };
        }
        Some(STATE.with(f))
    }

    /// Elsewhere a child would find `parking_lot`'s queues as other threads left them.
    const FORKS: bool = cfg!(any(target_os = "linux", target_os = "android"));

    #[cfg(any(target_os = "linux", target_os = "android"))]
    unsafe fn renew(lock: &StdLock) {
        lock.renew();
    }

    /// Registers the process for `membarrier(2)`.
    #[cfg(all(any(target_os = "linux", target_os = "android"), not(miri)))]
    fn prepare_barrier() -> bool {
        use rustix::thread::{MembarrierCommand, membarrier};

        // Tried once: what a filter forbids is not relied on.
        membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
            && membarrier(MembarrierCommand::PrivateExpedited).is_ok()
    }

    #[cfg(all(any(target_os = "linux", target_os = "android"), not(miri)))]
    fn barrier() {
        use rustix::thread::{MembarrierCommand, membarrier};

        // A child process may have to register anew.
        let done = membarrier(MembarrierCommand::PrivateExpedited).is_ok();
        if !done && !Self::prepare_barrier() {
            // Readers rely on it, and nothing else would do.
            std::process::abort();
        }
    }
}

/// Slab memory out of the global allocator, in huge pages where the kernel has them.
///
/// On Linux and Android a chunk of 2 MiB or more is aligned to that, and advised to be in huge
/// pages (`madvise(2)`, `MADV_HUGEPAGE`): a large space takes fewer page faults to fill, and fewer
/// entries of the TLB.
#[derive(Debug)]
pub enum StdMemory {}

/// The size of a huge page, on most machines.
const HUGE: usize = 2 << 20;

impl StdMemory {
    /// What is asked of the global allocator for a chunk.
    fn aligned(chunk: Layout) -> Layout {
        let align = if Self::huge_part(chunk) == 0 { 1 } else { HUGE };
        chunk.align_to(align).unwrap_or(chunk)
    }

    /// How much of a chunk, from its beginning, is to be in huge pages.
    fn huge_part(chunk: Layout) -> usize {
        let has_advice = cfg!(all(any(target_os = "linux", target_os = "android"), not(miri)));
        if has_advice { chunk.size() / HUGE * HUGE } else { 0 }
    }
}

// SAFETY: the memory is `GlobalMemory`'s, whose contents and place advice does not change.
unsafe impl SlabMemory for StdMemory {
    fn alloc(layout: Layout) -> *mut u8 {
        let chunk = GlobalMemory::alloc(Self::aligned(layout));
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if !chunk.is_null() && Self::huge_part(layout) != 0 {
            use rustix::mm::{Advice, madvise};

            let (pages, len) = (chunk.cast(), Self::huge_part(layout));
            // SAFETY: these pages are the chunk's alone, and advice does not touch what they hold.
            // Where it is refused, they are small.
            let _ = unsafe { madvise(pages, len, Advice::LinuxHugepage) };
        }
        chunk
    }

    unsafe fn dealloc(chunk: *mut u8, layout: Layout) {
        // SAFETY: as the caller says; it was allocated with this layout.
        unsafe { GlobalMemory::dealloc(chunk, Self::aligned(layout)) }
    }
}
