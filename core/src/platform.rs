//! What the host lends: the mmap lock, waiting, and the identity of the running thread.

use crate::facade::WaitWord;
use crate::thread::ThreadState;

/// The host's side of an address space.
///
/// [`Std`] is the one for programs with an operating system. A kernel writes its own: its raw
/// lock, a way to sleep on a word, and where a thread's [`ThreadState`] lives.
pub trait Platform: Sized + 'static {
    /// The mmap lock. Only editors and readers on the slow path take it.
    #[cfg(not(pervma_model))]
    type Lock: lock_api::RawRwLock + Send + Sync;

    /// Sleeps while `word` holds `seen`; may return at any time, the caller looks again. It must
    /// not unwind: the VMA would stay excluded for ever.
    ///
    /// One thread at most waits on a word: the editor that waits for a VMA's readers.
    fn wait(word: &WaitWord, seen: u32);

    /// Wakes the thread that sleeps on `word`, if one does.
    ///
    /// Runs where a reader leaves, so perhaps in a signal handler: it must take no lock, allocate
    /// nothing and preserve `errno`.
    fn wake(word: &WaitWord);

    /// Runs `f` with the state of the running thread; `None` where threads cannot be told apart.
    ///
    /// It must not allocate and not run a lazy initialiser: readers in signal handlers call it.
    /// Without it, self-deadlocks are not reported.
    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R>;
}

/// The platform of a program with an operating system.
///
/// The mmap lock is `parking_lot`'s; waiting is the futex on Linux and Android and a sleep of
/// 50 µs at a time elsewhere; a thread's state is a constant-initialised thread-local without a
/// destructor. In a shared library that was loaded at run time, the first use of a thread-local
/// by a thread may allocate, so there a thread that reads in signal handlers should read once
/// before.
#[cfg(all(feature = "std", not(pervma_model)))]
#[derive(Debug)]
pub enum Std {}

#[cfg(all(feature = "std", not(pervma_model)))]
impl Platform for Std {
    type Lock = parking_lot::RawRwLock;

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn wait(word: &WaitWord, seen: u32) {
        // Every outcome (woken, changed before, interrupted) means: look again.
        let _ = rustix::thread::futex::wait(
            word.as_futex(),
            rustix::thread::futex::Flags::PRIVATE,
            seen,
            None,
        );
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn wait(word: &WaitWord, seen: u32) {
        while word.value() == seen {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn wake(word: &WaitWord) {
        // Fails only for an address that is not mapped, and slots stay mapped.
        let _ =
            rustix::thread::futex::wake(word.as_futex(), rustix::thread::futex::Flags::PRIVATE, 1);
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn wake(_word: &WaitWord) {}

    #[inline(always)]
    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        std::thread_local! {
            static STATE: ThreadState = const { ThreadState::new() };
        }
        Some(STATE.with(f))
    }
}

/// The platform that types name when none is given.
#[cfg(all(feature = "std", not(pervma_model)))]
pub type DefaultPlatform = Std;

/// The platform that types name when none is given.
#[cfg(pervma_model)]
pub type DefaultPlatform = Model;

/// Declares a struct over a payload and a platform; the platform has a default where there is one.
macro_rules! with_default_platform {
    ($(#[$meta:meta])* pub struct $name:ident<$($lt:lifetime,)? P, T> $body:tt) => {
        #[cfg(any(feature = "std", pervma_model))]
        $(#[$meta])*
        pub struct $name<$($lt,)? P, T: Platform = $crate::platform::DefaultPlatform> $body

        #[cfg(not(any(feature = "std", pervma_model)))]
        $(#[$meta])*
        pub struct $name<$($lt,)? P, T: Platform> $body
    };
}
pub(crate) use with_default_platform;

/// The platform of the models: loom's threads, the stand-in futex.
#[cfg(pervma_model)]
#[derive(Debug)]
pub enum Model {}

#[cfg(pervma_model)]
impl Platform for Model {
    fn wait(word: &WaitWord, seen: u32) {
        word.futex_wait(seen);
    }

    fn wake(word: &WaitWord) {
        word.futex_wake();
    }

    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        loom::thread_local! {
            static STATE: ThreadState = ThreadState::new();
        }
        Some(STATE.with(f))
    }
}
