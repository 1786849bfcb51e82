//! Read locks for guards: with the payload open, and with a handle that keeps the space alive.
#![expect(unsafe_code, reason = "a payload is read under its read lock")]

use alloc::sync::Arc;
use core::mem::MaybeUninit;

use crate::identity::SpaceId;
use crate::lock::Refused;
use crate::platform::Platform;
use crate::range::Span;
use crate::slots::{ReadLocked, Slot};
use crate::sync::ConstPtr;
use crate::vma_id::VmaVersion;

/// A read lock with its payload open for reading.
pub(crate) struct Pinned<'s, T, P: Platform> {
    // Closed before the lock is released: fields are dropped in this order.
    payload: ConstPtr<MaybeUninit<T>>,
    read_lock: ReadLocked<'s, T, P>,
}

impl<'s, T, P: Platform> Pinned<'s, T, P> {
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn new(read_lock: ReadLocked<'s, T, P>) -> Self {
        Self { payload: read_lock.payload(), read_lock }
    }

    /// One more of the same VMA, counted.
    pub(crate) fn again(&self) -> Result<Self, Refused> {
        self.read_lock.again().map(Self::new)
    }

    #[inline(always)]
    pub(crate) fn payload(&self) -> &T {
        // SAFETY: `payload` was opened by this read lock.
        unsafe { self.read_lock.deref(&self.payload) }
    }

    #[inline(always)]
    pub(crate) fn span(&self) -> Span {
        self.read_lock.span()
    }

    #[inline(always)]
    pub(crate) fn space(&self) -> SpaceId {
        self.read_lock.space()
    }

    pub(crate) fn version(&self) -> VmaVersion {
        self.read_lock.version()
    }

    /// The slot of the VMA.
    #[inline(always)]
    pub(crate) fn slot(&self) -> &'s Slot<T> {
        self.read_lock.slot()
    }
}

/// A counted read lock, and a handle that keeps its space alive.
pub(crate) struct OwnedPin<S, T: 'static, P: Platform> {
    // Released before the space goes: fields are dropped in this order.
    pinned: Pinned<'static, T, P>,
    space: Arc<S>,
}

impl<S, T: 'static, P: Platform> OwnedPin<S, T, P> {
    /// The read lock that `lock` takes in the space, which it counts.
    pub(crate) fn new<E>(
        space: Arc<S>,
        lock: impl for<'s> FnOnce(&'s S) -> Result<ReadLocked<'s, T, P>, E>,
    ) -> Result<Self, E> {
        // SAFETY: whatever `lock` returns borrows the space, for it works with any lifetime. The
        // space stays where it is, and alive, as long as the handle, which is dropped after it.
        let read_lock = unsafe { lock(&space)?.outliving() };
        Ok(Self { pinned: Pinned::new(read_lock), space })
    }

    /// One more of the same VMA.
    pub(crate) fn again(&self) -> Result<Self, Refused> {
        Ok(Self { pinned: self.pinned.again()?, space: Arc::clone(&self.space) })
    }

    #[inline(always)]
    pub(crate) fn pinned(&self) -> &Pinned<'static, T, P> {
        &self.pinned
    }

    pub(crate) fn space(&self) -> &Arc<S> {
        &self.space
    }
}

// SAFETY: a counted read lock may be released by any thread; the payload is only read (`Sync`), and
// with the space, payloads may be dropped (`Send`, which `S` has to be then).
unsafe impl<S: Send + Sync, T: Send + Sync + 'static, P: Platform> Send for OwnedPin<S, T, P> {}
// SAFETY: as for `Send`.
unsafe impl<S: Send + Sync, T: Send + Sync + 'static, P: Platform> Sync for OwnedPin<S, T, P> {}
