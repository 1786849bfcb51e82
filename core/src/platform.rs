//! What the host provides: the mmap lock, sleeping and waking, and the state of the running thread.
#![expect(unsafe_code, reason = "a platform has a contract")]

#[cfg(not(pervma_model))]
use lock_api::RawRwLock as _;

use crate::memory::SlabMemory;
use crate::sync::WaitWord;
use crate::thread::ThreadState;

/// The host's side of an address space.
///
/// `StdPlatform` is the one for programs with an operating system. A kernel writes its own: its raw
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
///     type Lock = parking_lot::RawRwLock; // any that implements `RawRwLockDowngrade`
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
/// - [`with_thread`](Self::with_thread) lends each thread a state of its own, the same each time.
///   If it lends thread B the state of thread A while A has an edit open, B edits without the lock,
///   which is undefined behaviour.
/// - Once [`prepare_barrier`](Self::prepare_barrier) has returned `true`,
///   [`barrier`](Self::barrier) does what it says.
/// - [`wait`](Self::wait), [`wake`](Self::wake) and [`wake_all`](Self::wake_all) do not write to
///   the word, not through its address either: it is the count of the lock.
/// - If [`lock_until`](Self::lock_until) returns `true`, the thread has the lock for writing.
/// - If [`FORKS`](Self::FORKS) is `true`, it holds.
/// - None of the functions, nor those of the lock, uses an address space: they are called in the
///   middle of changes.
/// - None of the functions unwinds by itself, nor do those of the lock and of the memory: a change
///   of the tree may be half done.
pub unsafe trait Platform: Sized + 'static {
    /// The mmap lock. Only editors and readers on the slow path take it. An edit becomes a view
    /// without releasing it, so the raw lock has to implement [`lock_api::RawRwLockDowngrade`], as
    /// `parking_lot::RawRwLock` does, and `spin::RwLock<()>` with the features `rwlock` and
    /// `lock_api`.
    #[cfg(not(pervma_model))]
    type Lock: lock_api::RawRwLockDowngrade + Send + Sync;

    /// Where slabs get their memory. The lists that changes return come from the global allocator;
    /// lookups need neither.
    type Memory: SlabMemory;

    /// A point in time at which a wait gives up.
    type Deadline: Copy;

    /// Sleeps while `word` holds `seen`, at most until `deadline`; returns `false` when that has
    /// passed. It may return `true` at any time: the caller tests the word again.
    fn wait(word: &WaitWord, seen: u32, deadline: Option<Self::Deadline>) -> bool;

    /// Wakes a thread that sleeps on `word`, if one does.
    ///
    /// Runs where a reader releases a VMA, so perhaps in a signal handler: it must take no lock,
    /// allocate nothing and preserve `errno`.
    fn wake(word: &WaitWord);

    /// Wakes all threads that sleep on `word`. Runs where an exclusion ends.
    fn wake_all(word: &WaitWord);

    /// Acquires `lock` for writing, waiting at most until `deadline`, and trying at least once;
    /// whether it has.
    ///
    /// Without an implementation it spins, beside those that wait in the lock and before whom it
    /// does not come, and asks [`wait`](Self::wait) about the deadline, with a word that does not
    /// hold what was seen.
    #[cfg(not(pervma_model))]
    fn lock_until(lock: &Self::Lock, deadline: Self::Deadline) -> bool {
        let changed = WaitWord::new(1);
        loop {
            if lock.try_lock_exclusive() {
                return true;
            }
            core::hint::spin_loop();
            if !Self::wait(&changed, 0, Some(deadline)) {
                return false;
            }
        }
    }

    /// Runs `f` with the state of the running thread; `None` where threads cannot be told apart.
    ///
    /// It must not allocate and not run a lazy initialiser: readers in signal handlers call it.
    /// Without it, self-deadlocks are not reported.
    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R>;

    /// Whether spaces can go on in a child of fork(2); [`AddressSpace::prepare_fork`] is refused
    /// otherwise.
    ///
    /// If so, [`renew`](Self::renew) does what it says, [`wait`](Self::wait) and
    /// [`wake`](Self::wake) work in the child, and [`with_thread`](Self::with_thread) lends the
    /// thread that forked its state there, too.
    ///
    /// [`AddressSpace::prepare_fork`]: crate::AddressSpace::prepare_fork
    const FORKS: bool = false;

    /// Makes `lock` one that no thread holds or waits for, in a child of fork(2). It allocates
    /// nothing and does not wait.
    ///
    /// # Safety
    ///
    /// The caller is the only thread of its process, has just forked, and goes on as if it did not
    /// hold the lock.
    #[cfg(not(pervma_model))]
    unsafe fn renew(_lock: &Self::Lock) {}

    /// Prepares [`barrier`](Self::barrier); whether it can be relied on from now on. Asked at each
    /// registration of a [`Reader`](crate::Reader), which leaves its fences out if it is `true`.
    fn prepare_barrier() -> bool {
        false
    }

    /// Makes each running thread that may hold a [`Reader`](crate::Reader) pass a full memory
    /// barrier before it returns, and the calling thread too. Runs where a VMA is excluded, if such
    /// a reader is registered.
    fn barrier() {}
}
