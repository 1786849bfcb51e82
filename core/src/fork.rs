//! A space across fork(2).
//!
//! In a child there is one thread. What the others were doing stays undone: a lock that one of them
//! held is never released, a reader that one of them was is counted forever. So the thread that
//! forks first begins an edit in which no exclusion is left ([`AddressSpace::prepare_fork`]): the
//! tree and all VMAs are whole then, and what other threads may still hold are read locks, places
//! in queues, and locks of the slab. All of these the child makes new ([`PreparedFork::child`]).
//!
//! [`AddressSpace::prepare_fork`]: crate::AddressSpace::prepare_fork
#![expect(unsafe_code, reason = "that this is the child of a fork is the caller's word")]

use core::fmt;

use crate::host::DefaultPlatform;
use crate::map::MapWrite;
use crate::platform::Platform;

/// A space that is ready for the running thread to call fork(2), from
/// [`prepare_fork`](crate::AddressSpace::prepare_fork).
///
/// It is an edit that changes nothing: other edits, views and exclusions wait, readers go on. After
/// the fork the parent ends it by [`parent`](Self::parent), or by dropping it, and the child by
/// [`child`](Self::child), or, if it does not need the space, by forgetting it.
///
/// It belongs to the thread that made it. Handlers of `pthread_atfork(3)` keep it in a static that
/// only they use, from the first to the last of them: `core/tests/atfork.rs` in the repository
/// shows how.
#[must_use = "dropped, it lets the space change again"]
pub struct PreparedFork<'s, T, P: Platform = DefaultPlatform> {
    edit: MapWrite<'s, T, P>,
}

impl<'s, T, P: Platform> PreparedFork<'s, T, P> {
    pub(crate) fn new(edit: MapWrite<'s, T, P>) -> Self {
        Self { edit }
    }

    /// Goes on in the parent: the space can be changed again.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let prepared = space.prepare_fork()?;
    /// // the call of fork, here in the parent
    /// prepared.parent();
    /// space.insert(0x1000..0x2000, "text")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn parent(self) {}

    /// Goes on in the child: the space is whole, no other thread uses it, and all operations are
    /// possible.
    ///
    /// Read locks that there were, other threads' or forgotten ones, are over, and so are the
    /// registrations of other threads. What was reserved by others stays reserved. It takes time
    /// proportional to the VMAs and to the registered readers, does not wait, allocates nothing and
    /// makes no system call: it is legal between fork and exec, and so are lookups afterwards.
    ///
    /// ```no_run
    /// # unsafe extern "C" { safe fn fork() -> i32; safe fn _exit(status: i32) -> !; }
    /// static SPACE: pervma::AddressSpace<&str> = pervma::AddressSpace::new(4096);
    ///
    /// let prepared = SPACE.prepare_fork()?;
    /// if fork() == 0 {
    ///     // SAFETY: a child of fork has one thread, and no guard was made before.
    ///     unsafe { prepared.child() };
    ///     let known = SPACE.try_read(0x1000).is_ok(); // whatever other threads did
    ///     _exit(i32::from(!known));
    /// }
    /// prepared.parent();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    ///
    /// - The running thread is the only one of its process, a child that it forked while it had
    ///   this value, with a copy of the memory (so not by `vfork`).
    /// - No guard of the space that was made before the fork is used or dropped in the child,
    ///   whichever thread's it was, in particular no [`OwnedReadGuard`](crate::OwnedReadGuard).
    pub unsafe fn child(self) {
        // SAFETY: as the caller says. No exclusion was there when the edit began, and none begins
        // in it; the thread was in no call of a slab when it began.
        unsafe { self.edit.end_in_child() };
    }
}

impl<T, P: Platform> fmt::Debug for PreparedFork<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedFork").finish_non_exhaustive()
    }
}
