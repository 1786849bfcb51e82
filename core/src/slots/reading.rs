//! Operations of readers on a slot that a walk has found: acquire, validate, read, release.
#![expect(unsafe_code, reason = "fields are read under a read lock")]

use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr;

use super::slot::Slot;
use crate::hazard::{Hazard, Record, Registry};
use crate::identity::SpaceId;
use crate::lock::{EditSeq, Refused};
use crate::mm::{MmapRead, SpaceState};
use crate::platform::Platform;
use crate::range::Span;
use crate::step::Step;
use crate::sync::{ConstPtr, barrier_point, keep};
use crate::vma_id::{VmaId, VmaVersion};

/// A reference to a slot: what is attached there stays attached. Dropping it releases it.
#[must_use]
pub(crate) struct Reference<'s, T, P: Platform> {
    slot: &'s Slot<T>,
    /// The hazard pointer, if it was published and not counted.
    published: Option<&'s Hazard>,
    _platform: PhantomData<P>,
}

/// Why a reference was not enough for a read lock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// The slot is another space's, or write-locked.
    Locked,
    /// The range is only reserved.
    Reserved(Span),
}

impl<'s, T, P: Platform> Reference<'s, T, P> {
    /// Acquires a reference: publishes it in `record` if there is one, of `readers`, that is not
    /// idle and has a free hazard pointer, else counts it.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn acquire<'r>(
        slot: &'s Slot<T>,
        record: Option<&'s Record>,
        readers: impl FnOnce() -> &'r Registry<P>,
    ) -> Result<Self, Refused>
    where
        P: 'r,
    {
        let Some(record) = record else { return Self::acquire_counted(slot) };
        let Some(hazard) = record.publish::<P>(&slot.lock) else {
            readers().resume(record);
            return Self::acquire_beyond_record(slot);
        };
        let reference = Self { slot, published: Some(hazard), _platform: PhantomData };
        slot.lock.test_published()?; // else it is retracted
        barrier_point();
        Ok(reference)
    }

    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(super) fn acquire_counted(slot: &'s Slot<T>) -> Result<Self, Refused> {
        slot.lock.try_acquire()?;
        Ok(Self { slot, published: None, _platform: PhantomData })
    }

    /// One more reference to the same slot, counted.
    fn again(&self) -> Result<Self, Refused> {
        self.slot.lock.acquire_again()?;
        Ok(Self { slot: self.slot, published: None, _platform: PhantomData })
    }

    #[cold]
    fn acquire_beyond_record(slot: &'s Slot<T>) -> Result<Self, Refused> {
        Self::acquire_counted(slot)
    }

    #[cfg_attr(not(debug_assertions), inline(always))]
    fn space(&self) -> SpaceId {
        // SAFETY: this is a reference.
        unsafe { self.slot.space() }
    }

    /// Whether the VMA belongs to the space of `state` and is not write-locked there.
    ///
    /// In this order: the sequence of one space says nothing about a VMA of another.
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn is_open(&self, state: &SpaceState<P>) -> bool {
        let here = self.space() == state.id() || !keep(Step::CheckSpace);
        here && self.slot.lock.is_unlocked(state.seq())
    }

    /// The read lock, if the VMA is open to readers of the space of `state`.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn admit(self, state: &SpaceState<P>) -> Option<ReadLocked<'s, T, P>> {
        self.is_open(state).then_some(ReadLocked(self))
    }

    /// The read lock, or why there is none.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn admit_or_reject(
        self,
        state: &SpaceState<P>,
    ) -> Result<ReadLocked<'s, T, P>, Rejected> {
        if self.is_open(state) { Ok(ReadLocked(self)) } else { Err(self.reject(state)) }
    }

    #[cold]
    fn reject(self, state: &SpaceState<P>) -> Rejected {
        let unlocked = || self.slot.lock.is_unlocked(state.seq()) || !keep(Step::CheckSeqReserved);
        if self.space() == state.id().reserved() && unlocked() {
            return ReadLocked(self).reject_reserved();
        }
        Rejected::Locked
    }

    /// The read lock, with no look at the sequence. It may outlive the section.
    ///
    /// # Safety
    ///
    /// `_section` holds the mmap lock of the space that the VMA is attached to. So no edit is
    /// under way and no VMA is write-locked.
    pub(crate) unsafe fn admit_under_mmap_lock(
        self,
        _section: &MmapRead<'_, P>,
    ) -> Result<ReadLocked<'s, T, P>, Rejected> {
        if self.space().is_reserved() && keep(Step::CheckReserved) {
            return Err(ReadLocked(self).reject_reserved());
        }
        Ok(ReadLocked(self))
    }
}

impl<T, P: Platform> Drop for Reference<'_, T, P> {
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn drop(&mut self) {
        match self.published {
            Some(hazard) => hazard.release::<P>(&self.slot.lock),
            None => self.slot.lock.release::<P>(),
        }
    }
}

/// A read-locked VMA: its fields are stable.
#[must_use]
pub(crate) struct ReadLocked<'s, T, P: Platform>(Reference<'s, T, P>);

impl<'s, T, P: Platform> ReadLocked<'s, T, P> {
    /// One more read lock of the same VMA, counted.
    pub(crate) fn again(&self) -> Result<Self, Refused> {
        self.0.again().map(Self)
    }

    /// The range.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn span(&self) -> Span {
        // SAFETY: read-locked, so nothing write-locks or detaches it (L2), and only that writes it.
        self.0.slot.span.with(|span| unsafe { *span })
    }

    /// The space it belongs to.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn space(&self) -> SpaceId {
        self.0.space()
    }

    /// The identity.
    pub(crate) fn id(&self) -> VmaId {
        // SAFETY: this is a read lock.
        unsafe { self.0.slot.vma_id() }
    }

    /// The identity and version.
    pub(crate) fn version(&self) -> VmaVersion {
        VmaVersion { vma: self.id(), changed_by: self.changed_by() }
    }

    /// The edit that last changed it.
    pub(crate) fn changed_by(&self) -> EditSeq {
        self.0.slot.lock.changed_by()
    }

    /// Releases it, since it is only reserved.
    fn reject_reserved(self) -> Rejected {
        Rejected::Reserved(self.span())
    }

    /// Its payload, open for reading while the pointer lives.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn payload(&self) -> ConstPtr<MaybeUninit<T>> {
        self.0.slot.payload.get()
    }

    /// The payload behind `opened`.
    ///
    /// # Safety
    ///
    /// `opened` came from [`payload`](Self::payload) of this same read lock.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) unsafe fn deref<'a>(&'a self, opened: &'a ConstPtr<MaybeUninit<T>>) -> &'a T {
        // SAFETY: the pointer is the slot's payload, shared for as long as the read lock (L2).
        let payload = unsafe { &*opened.as_ptr() };
        // SAFETY: S1: attached and not reserved, so initialised.
        unsafe { payload.assume_init_ref() }
    }

    /// The slot, to be tried first next time.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn slot(&self) -> &'s Slot<T> {
        self.0.slot
    }

    /// This read lock with a longer lifetime.
    ///
    /// # Safety
    ///
    /// It is dropped before the slab, and was counted.
    pub(crate) unsafe fn outliving(self) -> ReadLocked<'static, T, P>
    where
        T: 'static,
    {
        let slot = ptr::from_ref(self.0.slot);
        assert!(self.0.published.is_none(), "a published read lock belongs to its thread");
        core::mem::forget(self);
        // SAFETY: slots stay where they are while the slab lives (A2), as the caller promises.
        let slot = unsafe { &*slot };
        ReadLocked(Reference { slot, published: None, _platform: PhantomData })
    }
}
