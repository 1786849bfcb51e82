//! Read locks for guards: with the payload open, and with a handle that keeps the space alive.
#![expect(unsafe_code, reason = "a payload is read under its read lock")]

use alloc::sync::Arc;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use crate::identity::SpaceId;
use crate::lock::Refused;
use crate::map::Map;
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

/// Keeps a payload where it is, and as it is.
///
/// # Safety
///
/// As long as the value lives, wherever it is moved to, the payload stays in its place, and nothing
/// has unique access to it.
pub(crate) unsafe trait Pin {
    type Payload;

    fn payload(&self) -> &Self::Payload;
}

// SAFETY: a payload lies in its slot, and its read lock keeps writers out (L2).
unsafe impl<T, P: Platform> Pin for Pinned<'_, T, P> {
    type Payload = T;

    fn payload(&self) -> &T {
        self.payload()
    }
}

// SAFETY: as for `Pinned`, which it has.
unsafe impl<S, T: 'static, P: Platform> Pin for OwnedPin<S, T, P> {
    type Payload = T;

    fn payload(&self) -> &T {
        self.pinned().payload()
    }
}

/// A part of a payload, and what keeps it there.
pub(crate) struct Part<N, U: ?Sized> {
    part: NonNull<U>,
    pin: N,
}

impl<N: Pin, U: ?Sized> Part<N, U> {
    /// The part that `find` finds.
    pub(crate) fn new(pin: N, find: impl FnOnce(&N::Payload) -> &U) -> Self {
        Self { part: NonNull::from(find(pin.payload())), pin }
    }

    /// A part of this part.
    pub(crate) fn map<V: ?Sized>(self, find: impl FnOnce(&U) -> &V) -> Part<N, V> {
        Part { part: NonNull::from(find(self.get())), pin: self.pin }
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> &U {
        // SAFETY: a part of the payload, or static: whatever a function finds that knows nothing of
        // the payload's lifetime. `Pin` keeps it.
        unsafe { self.part.as_ref() }
    }

    pub(crate) fn pin(&self) -> &N {
        &self.pin
    }
}

// SAFETY: it stands for a `&U` beside the pin.
unsafe impl<N: Send, U: Sync + ?Sized> Send for Part<N, U> {}
// SAFETY: as for `Send`.
unsafe impl<N: Sync, U: Sync + ?Sized> Sync for Part<N, U> {}

/// A value with references to what ends before a function ends that it was passed to: a union, so
/// that these are no references of an argument.
struct MayDangle<V>(MaybeUninit<V>);

impl<V> MayDangle<V> {
    fn new(value: V) -> Self {
        Self(MaybeUninit::new(value))
    }

    #[inline(always)]
    fn get(&self) -> &V {
        // SAFETY: `new` has initialised it, and only the drop takes it.
        unsafe { self.0.assume_init_ref() }
    }
}

impl<V> Drop for MayDangle<V> {
    fn drop(&mut self) {
        // SAFETY: initialised, and not used again.
        unsafe { self.0.assume_init_drop() };
    }
}

/// A counted read lock, and a handle that keeps its space alive.
pub(crate) struct OwnedPin<S, T: 'static, P: Platform> {
    // Released before the space goes: fields are dropped in this order. Where the handle is the
    // last one, the slot goes with the space.
    pinned: MayDangle<Pinned<'static, T, P>>,
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
        Ok(Self { pinned: MayDangle::new(Pinned::new(read_lock)), space })
    }

    /// One more of a VMA of that space, whose `map` it is; `None` if it is of another.
    pub(crate) fn share(
        pinned: &Pinned<'_, T, P>,
        space: Arc<S>,
        map: impl for<'s> FnOnce(&'s S) -> &'s Map<T, P>,
    ) -> Option<Result<Self, Refused>> {
        if map(&space).state().id() != pinned.space() {
            return None;
        }
        let shared = pinned.read_lock.again().map(|read_lock| {
            // SAFETY: `again` counts it. The identity is that of one space only, which was compared
            // while it was there, so this is that space's slab: its own, or one of which it has a
            // handle. It lives as long as the space, whose handle is dropped after the lock.
            let read_lock = unsafe { read_lock.outliving() };
            Self { pinned: MayDangle::new(Pinned::new(read_lock)), space }
        });
        Some(shared)
    }

    /// One more of the same VMA.
    pub(crate) fn again(&self) -> Result<Self, Refused> {
        let pinned = MayDangle::new(self.pinned().again()?);
        Ok(Self { pinned, space: Arc::clone(&self.space) })
    }

    #[inline(always)]
    pub(crate) fn pinned(&self) -> &Pinned<'static, T, P> {
        self.pinned.get()
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
