//! Entries in the running thread's held-lock record, and the marks of a signal handler and of a
//! slab.

use core::marker::PhantomData;

use crate::identity::SpaceId;
use crate::platform::Platform;
use crate::sync::signal_fence;
use crate::thread::{HeldLocks, Row, ThreadState};

/// Which of a thread's records.
pub(crate) trait Kind {
    fn of(thread: &ThreadState) -> &HeldLocks;
}

/// Read locks and views.
pub(crate) enum Guards {}

/// Exclusions.
pub(crate) enum Exclusions {}

impl Kind for Guards {
    #[inline(always)]
    fn of(thread: &ThreadState) -> &HeldLocks {
        &thread.guards
    }
}

impl Kind for Exclusions {
    fn of(thread: &ThreadState) -> &HeldLocks {
        &thread.exclusions
    }
}

/// An entry in the running thread's record, removed when it is dropped.
pub(crate) struct Held<K: Kind, P: Platform> {
    row: Row,
    // The record is the thread's own.
    _thread: PhantomData<(*const (), K, P)>,
}

impl<K: Kind, P: Platform> Held<K, P> {
    // As for a lookup: unoptimised, a frame of its own.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn record(space: SpaceId) -> Self {
        let row = P::with_thread(|thread| K::of(thread).record(space));
        Self { row: row.unwrap_or(Row::NONE), _thread: PhantomData }
    }

    /// Whether the running thread has one in `space` on record.
    #[inline]
    pub(crate) fn any(space: SpaceId) -> bool {
        P::with_thread(|thread| K::of(thread).any(space)).unwrap_or(false)
    }
}

impl<K: Kind, P: Platform> Drop for Held<K, P> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.row != Row::NONE {
            P::with_thread(|thread| K::of(thread).forget(self.row));
        }
    }
}

/// Marks the running thread as being inside a signal handler.
///
/// While it lives, the thread must not wait: whatever takes a lock of this crate (an edit, the slow
/// path of a blocking read, the end of a space) panics, which in an `extern "C"` handler ends the
/// process. That turns "this path never locks" from a promise into a check. What is not checked is
/// an [`Edit`](crate::Edit) that was begun before: its changes wait for readers.
///
/// A guard that a handler takes must be dropped before the handler returns. Else the thread's
/// record of guards may be wrong, and with it the errors that report self-deadlocks.
///
/// ```should_panic
/// use pervma::{AddressSpace, HandlerScope, StdPlatform};
///
/// let space: AddressSpace<&str> = AddressSpace::new(4096);
/// let _handler = HandlerScope::<StdPlatform>::enter();
/// let _ = space.edit(); // would wait
/// ```
#[derive(Debug)]
#[must_use]
pub struct HandlerScope<P: Platform> {
    // Belongs to the thread that made it.
    _thread: PhantomData<(*const (), P)>,
}

impl<P: Platform> HandlerScope<P> {
    /// Marks the thread until the scope is dropped. Scopes nest.
    ///
    /// ```
    /// use pervma::{HandlerScope, StdPlatform};
    ///
    /// let scope = HandlerScope::<StdPlatform>::enter();
    /// assert!(HandlerScope::<StdPlatform>::active());
    /// # drop(scope);
    /// ```
    pub fn enter() -> Self {
        P::with_thread(ThreadState::enter_handler);
        signal_fence();
        Self { _thread: PhantomData }
    }

    /// Whether the running thread is inside a marked handler.
    ///
    /// ```
    /// use pervma::{HandlerScope, StdPlatform};
    ///
    /// assert!(!HandlerScope::<StdPlatform>::active());
    /// let scope = HandlerScope::<StdPlatform>::enter();
    /// assert!(HandlerScope::<StdPlatform>::active());
    /// drop(scope);
    /// assert!(!HandlerScope::<StdPlatform>::active());
    /// ```
    pub fn active() -> bool {
        P::with_thread(ThreadState::in_handler).unwrap_or(false)
    }

    /// Panics inside a marked handler: the caller is about to take the mmap lock, or to wait.
    pub(crate) fn assert_may_wait() {
        assert!(!Self::active(), "what may wait was called inside a signal handler");
    }
}

impl<P: Platform> Drop for HandlerScope<P> {
    fn drop(&mut self) {
        signal_fence();
        P::with_thread(ThreadState::leave_handler);
    }
}

/// Marks the running thread as asking for the memory or the lock of a slab, in the middle of a
/// change. The program's global allocator, which may be called (a lock that waits may need memory
/// too), can do anything that is safe: what is dropped there must not join the edit that the thread
/// has open.
pub(crate) struct SlabScope<P: Platform> {
    // Belongs to the thread that made it.
    _thread: PhantomData<(*const (), P)>,
}

impl<P: Platform> SlabScope<P> {
    /// Marks the thread until the scope is dropped.
    #[inline(never)] // inlined, it would cost all changes registers
    pub(crate) fn enter() -> Self {
        P::with_thread(ThreadState::enter_slab);
        signal_fence();
        Self { _thread: PhantomData }
    }

    /// Whether the running thread is marked.
    pub(crate) fn active() -> bool {
        P::with_thread(ThreadState::in_slab).unwrap_or(false)
    }
}

impl<P: Platform> Drop for SlabScope<P> {
    fn drop(&mut self) {
        signal_fence();
        P::with_thread(ThreadState::leave_slab);
    }
}
