//! What the host lends: the mmap lock, waiting, and the identity of the running thread.

use crate::facade::WaitWord;
use crate::memory::SlabMemory;
use crate::thread::ThreadState;

/// The host's side of an address space.
///
/// [`StdPlatform`] is the one for programs with an operating system. A kernel writes its own: its raw
/// lock, a way to sleep on a word, and where a thread's [`ThreadState`] lives.
///
/// ```
/// use pervma::{AddressSpace, GlobalMemory, Platform, ThreadState, WaitWord};
///
/// /// Waits by spinning, and cannot tell threads apart.
/// enum Spinning {}
///
/// // SAFETY: nothing unwinds, no word is written to, and no states are lent.
/// unsafe impl Platform for Spinning {
///     type Lock = parking_lot::RawRwLock;
///     type Memory = GlobalMemory;
///     type Deadline = u64;
///
///     fn wait(word: &WaitWord, seen: u32, _deadline: Option<u64>) -> bool {
///         while word.value() == seen {
///             std::hint::spin_loop();
///         }
///         true
///     }
///     fn wake(_word: &WaitWord) {}
///     fn wake_all(_word: &WaitWord) {}
///     fn with_thread<R>(_: impl FnOnce(&ThreadState) -> R) -> Option<R> {
///         None
///     }
/// }
///
/// let space = AddressSpace::<&str, Spinning>::with_platform(4096);
/// space.edit()?.insert(0x1000..0x2000, "text")?;
/// assert_eq!(*space.try_read(0x1000)?, "text");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Safety
///
/// - [`with_thread`](Self::with_thread) lends each thread a state of its own: no other thread is lent
///   the same one, or one at the same address, before the thread has ended and all it did happens
///   before. Where a thread finds itself to be the editor of a space, it edits without a further lock.
/// - Once [`prepare_barrier`](Self::prepare_barrier) has returned `true`, [`barrier`](Self::barrier) does
///   what it says.
/// - [`wait`](Self::wait), [`wake`](Self::wake) and [`wake_all`](Self::wake_all) do not write to the
///   word, not through its address either: it is the count of the lock.
/// - None of the functions unwinds by itself, nor do those of the lock and of the memory: a change of
///   the tree may be half done.
pub unsafe trait Platform: Sized + 'static {
    /// The mmap lock. Only editors and readers on the slow path take it.
    #[cfg(not(pervma_model))]
    type Lock: lock_api::RawRwLockDowngrade + Send + Sync;

    /// Where slabs get their memory. The lists that changes return come from the global allocator;
    /// lookups need neither.
    type Memory: SlabMemory;

    /// A point in time at which a wait gives up.
    type Deadline: Copy;

    /// Sleeps while `word` holds `seen`, at most until `deadline`; `false` when that has passed.
    /// It may return `true` at any time, the caller looks again.
    fn wait(word: &WaitWord, seen: u32, deadline: Option<Self::Deadline>) -> bool;

    /// Wakes a thread that sleeps on `word`, if one does.
    ///
    /// Runs where a reader leaves, so perhaps in a signal handler: it must take no lock, allocate
    /// nothing and preserve `errno`.
    fn wake(word: &WaitWord);

    /// Wakes all threads that sleep on `word`. Runs where an exclusion ends.
    fn wake_all(word: &WaitWord);

    /// Runs `f` with the state of the running thread; `None` where threads cannot be told apart.
    ///
    /// It must not allocate and not run a lazy initialiser: readers in signal handlers call it.
    /// Without it, self-deadlocks are not reported.
    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R>;

    /// Prepares [`barrier`](Self::barrier); whether it can be relied on from now on. Asked at each
    /// registration of a [`Reader`](crate::Reader): one that was told so leaves its fences out.
    fn prepare_barrier() -> bool {
        false
    }

    /// Makes each running thread that may hold a [`Reader`](crate::Reader) pass a full memory barrier
    /// before it returns, and the calling thread too. Runs where a VMA is excluded, if such a reader is
    /// registered.
    fn barrier() {}
}

/// The platform of a program with an operating system.
///
/// The mmap lock is `parking_lot`'s; waiting is the futex on Linux and Android and a sleep of
/// 50 µs at a time elsewhere; a thread's state is a constant-initialised thread-local without a
/// destructor; the barrier for registered readers is `membarrier(2)` on Linux and Android, where the
/// kernel has it (4.14) and a filter does not forbid it to the thread that registers; if one forbids it to
/// a thread that edits, the process aborts. In a shared library that was loaded at run time, the first use of a thread-local
/// by a thread may allocate, so there a thread that reads in signal handlers should read once
/// before.
#[cfg(all(feature = "std", not(pervma_model)))]
#[derive(Debug)]
pub enum StdPlatform {}

#[cfg(all(feature = "std", not(pervma_model)))]
// SAFETY: a thread-local is its thread's alone, and its memory is handed on when the thread has
// ended. The futex reads its word. Nothing here unwinds.
unsafe impl Platform for StdPlatform {
    type Lock = parking_lot::RawRwLock;

    type Memory = crate::memory::GlobalMemory;
    type Deadline = std::time::Instant;

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn wait(word: &WaitWord, seen: u32, deadline: Option<std::time::Instant>) -> bool {
        use rustix::thread::futex;

        let left = deadline.map(|at| at.saturating_duration_since(std::time::Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return false;
        }
        // A time too long for the kernel's type is no deadline.
        let left = left.and_then(|left| futex::Timespec::try_from(left).ok());
        // Every outcome (woken, changed before, interrupted, timed out) means: look again.
        let _ = futex::wait(word.as_futex(), futex::Flags::PRIVATE, seen, left.as_ref());
        true
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn wait(word: &WaitWord, seen: u32, deadline: Option<std::time::Instant>) -> bool {
        while word.value() == seen {
            if deadline.is_some_and(|at| at <= std::time::Instant::now()) {
                return false;
            }
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        true
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn wake(word: &WaitWord) {
        // Fails only for an address that is not mapped, and slots stay mapped.
        let _ =
            rustix::thread::futex::wake(word.as_futex(), rustix::thread::futex::Flags::PRIVATE, 1);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn wake_all(word: &WaitWord) {
        // As in `wake`.
        let _ = rustix::thread::futex::wake(
            word.as_futex(),
            rustix::thread::futex::Flags::PRIVATE,
            i32::MAX as u32,
        );
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn wake(_word: &WaitWord) {}

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn wake_all(_word: &WaitWord) {}

    #[inline(always)]
    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        std::thread_local! {
            static STATE: ThreadState = const { ThreadState::new() };
        }
        Some(STATE.with(f))
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

/// The platform that types name when none is given.
#[cfg(all(feature = "std", not(pervma_model)))]
pub type DefaultPlatform = StdPlatform;

/// The platform that types name when none is given.
#[cfg(pervma_model)]
pub type DefaultPlatform = Model;

/// Declares a struct over a payload and a platform; the platform has a default where there is one.
macro_rules! with_default_platform {
    ($(#[$meta:meta])* pub struct $name:ident<$($lt:lifetime,)? T $(: $bound:lifetime)?, P> $body:tt) => {
        #[cfg(any(feature = "std", pervma_model))]
        $(#[$meta])*
        pub struct $name<$($lt,)? T $(: $bound)?, P: Platform = $crate::platform::DefaultPlatform> $body

        #[cfg(not(any(feature = "std", pervma_model)))]
        $(#[$meta])*
        pub struct $name<$($lt,)? T $(: $bound)?, P: Platform> $body
    };
}
pub(crate) use with_default_platform;

/// The platform of the models: the checker's threads, the stand-in futex.
#[cfg(pervma_model)]
#[derive(Debug)]
pub enum Model {}

#[cfg(pervma_model)]
// SAFETY: as for `StdPlatform`; a model that panics has failed.
unsafe impl Platform for Model {
    type Memory = crate::memory::GlobalMemory;
    /// Models do not measure time: the deadline passes at once.
    type Deadline = ();

    fn wait(word: &WaitWord, seen: u32, deadline: Option<()>) -> bool {
        if deadline.is_none() {
            word.futex_wait(seen);
        }
        deadline.is_none()
    }

    fn wake(word: &WaitWord) {
        word.futex_wake();
    }

    fn wake_all(word: &WaitWord) {
        word.futex_wake_all();
    }

    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        crate::facade::model::checker::thread_local! {
            static STATE: ThreadState = ThreadState::new();
        }
        Some(STATE.with(f))
    }

    fn prepare_barrier() -> bool {
        crate::facade::model::has_barrier()
    }

    fn barrier() {
        crate::facade::model::ask_for_barrier();
    }
}
