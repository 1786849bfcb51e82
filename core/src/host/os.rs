//! The platform of a program with an operating system.
#![expect(unsafe_code, reason = "the contract of `Platform` is kept here")]

#[cfg(any(target_os = "linux", target_os = "android"))]
use super::futex::Left;
use super::lock::StdLock;
use crate::memory::GlobalMemory;
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
    type Memory = GlobalMemory;
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
