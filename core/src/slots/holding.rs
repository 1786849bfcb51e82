//! Operations on a slot by the holder of the mmap lock, or by the thread that set X.
//!
//! The slots and the section that these functions take are those of one space: see invariant M1 of
//! [`map`](crate::map).
#![expect(unsafe_code, reason = "fields are read and written under the mmap lock, or X")]

use core::iter;
use core::marker::PhantomData;
use core::mem::MaybeUninit;

use super::reading::{ReadLocked, Reference, Rejected};
use super::slot::{Slot, Slots};
use crate::arena::Idx;
use crate::deferred::DeferredReleases;
use crate::error::OutOfMemory;
use crate::identity::SpaceId;
use crate::lock::{EventKey, Refused, VmaLock};
use crate::mm::{EditSection, MmapRead};
use crate::platform::Platform;
use crate::range::Span;
use crate::step::Step;
use crate::sync::{check, keep, signal_fence};
use crate::vma_id::VmaId;

/// An entry of the tree, while the mmap lock is held: a VMA or a reservation, attached to that
/// space for as long as `'m`. Its slot lives as long as `'s`.
pub(crate) struct Entry<'s, 'm, T> {
    slot: &'s Slot<T>,
    _section: PhantomData<&'m ()>,
}

impl<'s: 'm, 'm, T> Entry<'s, 'm, T> {
    /// The entry that a word of the tree leads to.
    ///
    /// # Safety
    ///
    /// It is attached to the space whose mmap lock is held for `'m`, and while the result or
    /// anything borrowed from it lives, no other handle gives unique access to its payload.
    #[inline]
    pub(crate) unsafe fn new(slot: &'s Slot<T>) -> Self {
        Self { slot, _section: PhantomData }
    }

    /// The range.
    pub(crate) fn span(&self) -> Span {
        // SAFETY: written only by the holder of the mmap lock for writing, which is either this
        // thread or none.
        self.slot.span.with(|span| unsafe { *span })
    }

    /// Whether X is set.
    pub(crate) fn is_excluded(&self) -> bool {
        self.slot.lock.is_excluded()
    }

    /// Whether the range is only reserved.
    pub(crate) fn is_reserved(&self) -> bool {
        // SAFETY: the mmap lock is held for `'m`.
        unsafe { self.slot.space() }.is_reserved()
    }

    /// The VMA, unless the range is only reserved.
    pub(crate) fn vma(self) -> Option<Attached<'s, 'm, T>> {
        let Self { slot, _section } = self;
        (!self.is_reserved()).then_some(Attached { slot, _section })
    }

    /// Acquires it for a reader that holds the mmap lock for reading; the read lock may outlive
    /// that.
    pub(crate) fn acquire<P: Platform>(
        self,
        section: &MmapRead<'_, P>,
    ) -> Result<Result<ReadLocked<'s, T, P>, Rejected>, Refused> {
        let reference = Reference::acquire_counted(self.slot)?;
        // SAFETY: the slot is attached to the space whose mmap lock is held for `'m`, which is this
        // section (M1).
        Ok(unsafe { reference.admit_under_mmap_lock(section) })
    }

    /// Makes its lock one that no reader has.
    ///
    /// # Safety
    ///
    /// The caller is the only thread of its process and has just forked, with the mmap lock held
    /// for writing. No exclusion has it, and no guard of it is used again.
    pub(crate) unsafe fn forget_readers(self) {
        self.slot.lock.forget_readers();
    }

    /// Announces that the caller is going to sleep until the exclusion of this entry has ended;
    /// `None` if it has.
    pub(crate) fn prepare_wait(self) -> Option<Waiter<'s, T>> {
        Some(Waiter { slot: self.slot, key: self.slot.lock.prepare_wait()? })
    }

    /// Empties it in the drop of its space: waits for late readers of other spaces, and where an
    /// exclusion or a reservation was forgotten, takes it over.
    pub(crate) fn take_at_end<P: Platform>(
        self,
        slots: &Slots<T, P>,
        section: &EditSection<'_, P>,
    ) -> (Option<T>, Emptied<'s, T>) {
        if !self.is_excluded() {
            self.slot.lock.exclude();
            slots.readers().transfer_readers(section, iter::once(&self.slot.lock));
        }
        if keep(Step::DrainOnDrop) {
            self.slot.lock.wait_drained::<P>(None);
        }
        let index = slots.arena().index_of(self.slot);
        let emptied = Emptied { slot: self.slot, index, outlives_edit: false };
        // SAFETY: drained, and there is no other handle.
        (self.vma().map(|vma| unsafe { vma.take() }), emptied)
    }
}

impl<T> Entry<'_, '_, T> {
    /// Takes the payload out, if it has one, and leaves the slot as it is.
    ///
    /// # Safety
    ///
    /// The space is being dropped, no other has its slab, and this is done once for each entry.
    pub(crate) unsafe fn take_last(self) -> Option<T> {
        // SAFETY: readers of this slab are readers of the space, of which no borrow is left; nor is
        // there another handle. What a forgotten guard counts is never looked at again.
        self.vma().map(|vma| unsafe { vma.take() })
    }
}

/// A thread that an exclusion has refused, about to sleep. It holds nothing.
pub(crate) struct Waiter<'s, T> {
    slot: &'s Slot<T>,
    key: EventKey,
}

impl<T> Waiter<'_, T> {
    /// Releases `lock`, the mmap lock, and sleeps until the exclusion has ended, at most until
    /// `deadline`; whether it has ended.
    pub(crate) fn wait<P: Platform>(self, lock: impl Sized, deadline: Option<P::Deadline>) -> bool {
        let kept = if keep(Step::SleepUnlocked) {
            drop(lock);
            None
        } else {
            Some(lock)
        };
        let notified = self.slot.lock.wait_notified::<P>(self.key, deadline);
        drop(kept);
        notified
    }
}

/// A VMA whose fields are stable: the mmap lock is held for `'m`, or the caller excludes it.
pub(crate) struct Attached<'s, 'm, T> {
    slot: &'s Slot<T>,
    _section: PhantomData<&'m ()>,
}

impl<'s: 'm, 'm, T> Attached<'s, 'm, T> {
    /// The range.
    pub(crate) fn span(&self) -> Span {
        // SAFETY: written only by the holder of the mmap lock for writing, which is either this
        // thread or none, and not while it is excluded.
        self.slot.span.with(|span| unsafe { *span })
    }

    /// The payload.
    pub(crate) fn payload(&self) -> &'m T {
        // SAFETY: written only by the holder of the mmap lock for writing, which is either this
        // thread or none; the contract of `Entry::new` excludes a `WriteLocked` of this thread.
        let payload = self.slot.payload.with(|payload| unsafe { &*payload });
        // SAFETY: S1: attached and not reserved, so initialised.
        unsafe { payload.assume_init_ref() }
    }

    /// The identity.
    pub(crate) fn id(&self) -> VmaId {
        // SAFETY: `Entry::new`: attached to a space whose mmap lock is held for `'m`.
        unsafe { self.slot.vma_id() }
    }

    /// Whether X is set.
    pub(crate) fn is_excluded(&self) -> bool {
        self.slot.lock.is_excluded()
    }

    /// How many readers it has, for its excluder.
    pub(crate) fn readers(&self) -> u32 {
        self.slot.lock.readers()
    }

    /// Write-locks it until the end of the edit, waiting for its readers; `None` if another thread
    /// excludes it.
    #[doc(alias("vma_start_write"))]
    pub(crate) fn start_write<P: Platform>(
        self,
        slots: &Slots<T, P>,
        section: &EditSection<'_, P>,
    ) -> Option<WriteLocked<'s, 'm, T>> {
        let lock = &self.slot.lock;
        if lock.is_excluded() {
            return None;
        }
        if !lock.is_locked_by(section.edit()) {
            lock.exclude();
            slots.readers().transfer_readers(section, iter::once(lock));
            lock.wait_drained::<P>(None);
            lock.lock_until_end_of(section.edit());
        }
        Some(WriteLocked(self))
    }

    /// As [`start_write`](Self::start_write), if it has no readers just now.
    pub(crate) fn try_start_write<P: Platform>(
        self,
        slots: &Slots<T, P>,
        section: &EditSection<'_, P>,
    ) -> Option<WriteLocked<'s, 'm, T>> {
        let lock = &self.slot.lock;
        if !lock.is_locked_by(section.edit()) {
            if !slots.try_exclude_idle(lock, section) {
                return None;
            }
            lock.lock_until_end_of(section.edit());
        }
        Some(WriteLocked(self))
    }

    /// Takes the payload out.
    ///
    /// # Safety
    ///
    /// The VMA is drained and the caller's, which puts another payload in or detaches it.
    unsafe fn take(self) -> T {
        // SAFETY: drained: no other thread reads or writes it.
        let payload = self.slot.payload.with_mut(|payload| unsafe { payload.read() });
        // SAFETY: S1: it was initialised, and is taken here.
        unsafe { payload.assume_init() }
    }
}

/// An attached VMA, write-locked by the running edit: no reader has it or is admitted (L3).
pub(crate) struct WriteLocked<'s, 'm, T>(Attached<'s, 'm, T>);

impl<'s: 'm, 'm, T> WriteLocked<'s, 'm, T> {
    /// The range.
    pub(crate) fn span(&self) -> Span {
        self.0.span()
    }

    /// The payload.
    pub(crate) fn payload(&self) -> &T {
        self.0.payload()
    }

    /// Its payload, for writing.
    pub(crate) fn payload_mut(&mut self) -> &mut T {
        // SAFETY: L3: no reader has it; the contract of `Entry::new` excludes other handles.
        let payload = self.0.slot.payload.with_mut(|payload| unsafe { &mut *payload });
        // SAFETY: S1: attached and not reserved, so initialised.
        unsafe { payload.assume_init_mut() }
    }
}

/// VMAs of one space in which the caller has set X, linked through their slots. Dropping the list
/// clears X, with nothing changed; that needs no lock.
///
/// An edit makes one for the VMAs that it is about to change; an exclusion keeps one while it waits
/// without the mmap lock.
#[must_use]
pub(crate) struct Excluded<'s, T, P: Platform> {
    slots: &'s Slots<T, P>,
    first: Option<Idx<Slot<T>>>,
    last: Option<Idx<Slot<T>>>,
    len: usize,
    /// Whether none of them can have a reader, as was seen when they came.
    is_idle: bool,
    /// Whether it outlives its edit, so that threads may sleep on the VMAs' event words.
    outlives_edit: bool,
    /// It belongs to the thread that made it: that thread's record says that it excludes.
    _thread: PhantomData<*const ()>,
}

impl<'s, T, P: Platform> Excluded<'s, T, P> {
    /// An empty list.
    #[inline]
    pub(crate) fn new(slots: &'s Slots<T, P>, outlives_edit: bool) -> Self {
        Self {
            slots,
            first: None,
            last: None,
            len: 0,
            is_idle: true,
            outlives_edit,
            _thread: PhantomData,
        }
    }

    /// Excludes `vma` and appends it; `false` if another thread excludes it already.
    #[inline]
    pub(crate) fn push(&mut self, vma: Attached<'_, '_, T>, section: &EditSection<'_, P>) -> bool {
        let lock = &vma.slot.lock;
        let pushed = self.push_unscanned(&vma);
        if pushed && self.slots.readers().transfer_readers(section, iter::once(lock)) {
            self.is_idle = false;
        }
        pushed
    }

    /// Excludes and appends, on an empty list, what `each` pushes. Registered readers are scanned
    /// for once.
    #[inline(always)]
    pub(crate) fn push_all(
        &mut self,
        section: &EditSection<'_, P>,
        each: impl FnOnce(&mut Pushed<'_, 's, T, P>),
    ) {
        check(self.first.is_none(), "the readers of what is on the list were transferred already");
        each(&mut Pushed(self));
        let locks = self.all().map(|index| &self.slots.get(index).lock);
        if self.slots.readers().transfer_readers(section, locks) {
            self.is_idle = false;
        }
    }

    /// Excludes and appends one; its registered readers must be transferred before the caller
    /// waits.
    #[inline]
    fn push_unscanned(&mut self, vma: &Attached<'_, '_, T>) -> bool {
        if vma.is_excluded() {
            return false;
        }
        vma.slot.lock.exclude();
        // SAFETY: S3: we have set X in it, so the link is ours.
        self.append(vma.slot, unsafe { vma.slot.index() });
        self.is_idle &= vma.slot.lock.is_drained();
        true
    }

    /// Takes in one more VMA if it has no reader and no other thread excludes it.
    #[inline]
    pub(crate) fn take_in_idle(
        &mut self,
        vma: Attached<'_, '_, T>,
        section: &EditSection<'_, P>,
    ) -> bool {
        let idle = self.slots.try_exclude_idle(&vma.slot.lock, section);
        if idle {
            // SAFETY: S3, as in `push_unscanned`.
            self.append(vma.slot, unsafe { vma.slot.index() });
        }
        idle
    }

    #[inline]
    fn append(&mut self, slot: &Slot<T>, index: Idx<Slot<T>>) {
        Self::set_next(slot, None);
        match self.last {
            Some(last) => Self::set_next(self.slots.get(last), Some(index)),
            None => self.first = Some(index),
        }
        self.last = Some(index);
        self.len += 1;
    }

    fn set_next(slot: &Slot<T>, next: Option<Idx<Slot<T>>>) {
        let next = next.map_or(0, |next| next.raw() + 1);
        // SAFETY: S3: we have set X in it, so the link is ours.
        slot.link.with_mut(|link| unsafe { *link = next });
    }

    fn next(&self, index: Idx<Slot<T>>) -> Option<Idx<Slot<T>>> {
        // SAFETY: S3: we have set X in it, so the link is ours.
        let next = self.slots.get(index).link.with(|link| unsafe { *link });
        // SAFETY: stored by `set_next`, out of an index (A1).
        next.checked_sub(1).map(|raw| unsafe { Idx::from_raw(raw) })
    }

    /// Takes a VMA off the list (S5); the one that is behind it.
    #[inline]
    fn take_off(&self, index: Idx<Slot<T>>) -> Option<Idx<Slot<T>>> {
        let next = self.next(index);
        // SAFETY: S3: we have set X in it, so the link is ours.
        unsafe { self.slots.get(index).set_index(index) };
        next
    }

    /// Puts the last VMA first, and so on.
    pub(crate) fn reverse(&mut self) {
        let mut rest = self.first;
        let mut reversed = None;
        while let Some(index) = rest {
            rest = self.next(index);
            Self::set_next(self.slots.get(index), reversed);
            reversed = Some(index);
        }
        (self.first, self.last) = (reversed, self.first);
    }

    /// The VMAs. Readers may still have them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Attached<'s, '_, T>> {
        self.all().map(|index| self.attached(index))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first one.
    #[inline]
    pub(crate) fn first(&self) -> Option<Attached<'s, '_, T>> {
        self.first.map(|index| self.attached(index))
    }

    /// The last one, which may be the first.
    #[inline]
    pub(crate) fn last(&self) -> Option<Attached<'s, '_, T>> {
        self.last.map(|index| self.attached(index))
    }

    fn attached(&self, index: Idx<Slot<T>>) -> Attached<'s, '_, T> {
        Attached { slot: self.slots.get(index), _section: PhantomData }
    }

    fn all(&self) -> impl Iterator<Item = Idx<Slot<T>>> + Clone {
        iter::successors(self.first, |index| self.next(*index))
    }

    /// Waits until the readers of all of them have released them; `false` if the deadline came
    /// first.
    #[inline]
    pub(crate) fn wait_drained(&self, deadline: Option<P::Deadline>) -> bool {
        self.is_idle || self.iter().all(|vma| vma.slot.lock.wait_drained::<P>(deadline))
    }

    /// Whether the readers of all of them have released them.
    pub(crate) fn is_drained(&self) -> bool {
        self.is_idle || self.iter().all(|vma| vma.slot.lock.is_drained())
    }

    /// Write-locks all of them until the end of the edit, waiting for their readers.
    pub(crate) fn start_write(mut self, section: &EditSection<'_, P>) {
        while let Some(index) = self.first {
            let lock = &self.slots.get(index).lock;
            lock.wait_drained::<P>(None);
            self.first = self.take_off(index);
            lock.lock_until_end_of(section.edit());
        }
    }

    /// For the mutant without a list of its own, which takes all VMAs in the range.
    #[cfg(pervma_model)]
    pub(crate) fn take_over<'m>(&mut self, entries: impl Iterator<Item = Entry<'s, 'm, T>>)
    where
        's: 'm,
        T: 'm,
    {
        (self.first, self.last, self.len, self.is_idle) = (None, None, 0, false);
        entries.for_each(|entry| self.append(entry.slot, self.slots.arena().index_of(entry.slot)));
    }

    /// Takes the first VMA off the list, once it is drained: its range, its payload, and what is
    /// left to be filled again or detached. Calls `waited` if there were readers to wait for.
    #[inline]
    pub(crate) fn take_first(
        &mut self,
        waited: impl FnOnce(),
    ) -> Option<(Span, T, Emptied<'s, T>)> {
        let index = self.first?;
        self.first = self.take_off(index);
        if self.first.is_none() {
            self.last = None;
        }
        self.len -= 1;
        let slot = self.slots.get(index);
        if !slot.lock.is_drained() {
            slot.lock.wait_drained::<P>(None);
            waited();
        }
        let vma = Attached { slot, _section: PhantomData };
        // SAFETY: drained, and the list was the only handle.
        let (span, payload) = (vma.span(), unsafe { vma.take() });
        Some((span, payload, Emptied { slot, index, outlives_edit: self.outlives_edit }))
    }
}

/// A list that several VMAs are pushed on. What their registered readers are is found out when the
/// last was pushed.
pub(crate) struct Pushed<'l, 's, T, P: Platform>(&'l mut Excluded<'s, T, P>);

impl<T, P: Platform> Pushed<'_, '_, T, P> {
    /// As [`Excluded::push`].
    #[inline]
    pub(crate) fn push(&mut self, vma: &Attached<'_, '_, T>) -> bool {
        self.0.push_unscanned(vma)
    }
}

impl<T, P: Platform> Drop for Excluded<'_, T, P> {
    /// Clears X in all of them.
    #[inline]
    fn drop(&mut self) {
        while let Some(index) = self.first {
            let lock = &self.slots.get(index).lock;
            if keep(Step::LinkBeforeClear) {
                self.first = self.take_off(index);
            }
            if keep(Step::ClearExcluded) {
                end_exclusion::<P>(lock, self.outlives_edit, VmaLock::clear_excluded);
            }
            if !keep(Step::LinkBeforeClear) {
                self.first = self.take_off(index);
            }
        }
        signal_fence(); // an exclusion's thread forgets it then, not before
    }
}

/// Ends an exclusion, then wakes those that may sleep because of it.
#[inline]
fn end_exclusion<P: Platform>(lock: &VmaLock, outlives_edit: bool, end: impl FnOnce(&VmaLock)) {
    if outlives_edit && !keep(Step::NotifyLast) {
        lock.notify::<P>();
    }
    end(lock);
    if outlives_edit && keep(Step::NotifyLast) {
        lock.notify::<P>();
    }
}

/// An attached and drained slot whose payload was taken out. It must be filled or detached: until
/// then no reader is admitted.
#[must_use]
pub(crate) struct Emptied<'s, T> {
    slot: &'s Slot<T>,
    index: Idx<Slot<T>>,
    outlives_edit: bool,
}

impl<T> Emptied<'_, T> {
    /// Makes it the VMA that it was, in the space under edit, write-locked until the edit ends.
    pub(crate) fn fill<P: Platform>(self, section: &EditSection<'_, P>, span: Span, payload: T) {
        let Self { slot, outlives_edit, .. } = self;
        // SAFETY: drained until X is cleared; the payload was taken out before (S1).
        slot.payload.with_mut(|at| unsafe { at.write(MaybeUninit::new(payload)) });
        // SAFETY: drained: no other thread reads or writes it until X is cleared, below.
        slot.space.with_mut(|space| unsafe { *space = section.space() });
        // SAFETY: as is `space`, until the same moment.
        slot.span.with_mut(|at| unsafe { *at = span });
        end_exclusion::<P>(&slot.lock, outlives_edit, |lock| {
            lock.lock_until_end_of(section.edit());
        });
    }

    /// Detaches it and gives the slot to `slots`. The tree no longer leads here.
    #[inline]
    pub(crate) fn detach<P: Platform>(self, slots: &Slots<T, P>, section: &EditSection<'_, P>) {
        let spent = self.slot.end_generation();
        if !keep(Step::FreeDetached) {
            slots.arena().free(self.index, section);
        }
        end_exclusion::<P>(&self.slot.lock, self.outlives_edit, VmaLock::detach);
        // S4: a slot whose generations are spent is never used again.
        if keep(Step::FreeDetached) && !spent {
            slots.arena().free(self.index, section);
        }
    }
}

/// The owner's handle to a reserved slot.
pub(crate) struct Reserved<'s, T> {
    slot: &'s Slot<T>,
    index: Idx<Slot<T>>,
}

impl<'s, T> Reserved<'s, T> {
    /// The range.
    pub(crate) fn span(&self) -> Span {
        // SAFETY: written before it was attached, and only the owner changes it.
        self.slot.span.with(|span| unsafe { *span })
    }

    /// Leaves it to the next edit.
    pub(crate) fn defer_release(self, deferred: &DeferredReleases) {
        deferred.push(self.index.raw(), |next| {
            // SAFETY: there is no other handle, and only its owner excludes a reservation.
            self.slot.link.with_mut(|link| unsafe { *link = next });
        });
    }

    /// Takes over what was left to this edit.
    pub(crate) fn drain<P: Platform>(
        slots: &'s Slots<T, P>,
        deferred: &DeferredReleases,
    ) -> impl Iterator<Item = Self> {
        let mut next = deferred.drain();
        iter::from_fn(move || {
            // SAFETY: pushed by `defer_release`, out of an index (A1).
            let index = unsafe { Idx::from_raw(next.checked_sub(1)?) };
            let slot = slots.get(index);
            // SAFETY: the handle is ours now.
            next = slot.link.with(|link| unsafe { *link });
            Some(Self { slot, index })
        })
    }

    /// Excludes it, and waits for lookups that are about to release it.
    pub(crate) fn exclude<P: Platform>(
        &self,
        slots: &Slots<T, P>,
        section: &EditSection<'_, P>,
    ) -> Emptied<'s, T> {
        self.slot.lock.exclude();
        slots.readers().transfer_readers(section, iter::once(&self.slot.lock));
        self.slot.lock.wait_drained::<P>(None);
        Emptied { slot: self.slot, index: self.index, outlives_edit: false }
    }
}

/// A free slot that the caller owns, to attach something or to [`give_back`](Self::give_back). One
/// that is dropped is never used again.
#[must_use]
pub(crate) struct FreeSlot<'s, T> {
    slot: &'s Slot<T>,
    index: Idx<Slot<T>>,
}

impl<'s, T> FreeSlot<'s, T> {
    /// A free slot of `slots`.
    #[inline(always)]
    pub(crate) fn alloc<P: Platform>(
        slots: &'s Slots<T, P>,
        section: &EditSection<'_, P>,
    ) -> Result<Self, OutOfMemory> {
        let index = slots.arena().alloc(section)?;
        let slot = slots.get(index);
        signal_fence(); // not before the arena has given it away: see `Arena::renew`
        // SAFETY: S2: it is ours, and so is its link while it is not free.
        unsafe { slot.set_index(index) };
        Ok(Self { slot, index })
    }

    /// Makes it free again. The tree does not lead here.
    pub(crate) fn give_back<P: Platform>(self, slots: &Slots<T, P>, section: &EditSection<'_, P>) {
        slots.arena().free(self.index, section);
    }

    /// The slot, for a word of the tree.
    #[inline]
    pub(crate) fn slot(&self) -> &'s Slot<T> {
        self.slot
    }

    /// Attaches a new VMA to the space under edit, write-locked: no reader is admitted before the
    /// edit ends.
    #[inline]
    pub(crate) fn attach<P: Platform>(self, section: &EditSection<'_, P>, span: Span, payload: T) {
        // SAFETY: S2: the count is 0, so the fields are ours. What was there before is not
        // initialised (S1).
        self.slot.payload.with_mut(|at| unsafe { at.write(MaybeUninit::new(payload)) });
        self.publish(section, section.space(), span);
    }

    /// Attaches a reservation, write-locked.
    pub(crate) fn reserve<P: Platform>(
        self,
        section: &EditSection<'_, P>,
        span: Span,
    ) -> Reserved<'s, T> {
        let Self { slot, index } = self;
        self.publish(section, section.space().reserved(), span);
        Reserved { slot, index }
    }

    #[inline]
    fn publish<P: Platform>(&self, section: &EditSection<'_, P>, owner: SpaceId, span: Span) {
        let slot = self.slot;
        check(slot.lock.is_detached(), "a slot is used again whose count is not 0");
        // SAFETY: S2, as in `attach`.
        slot.space.with_mut(|space| unsafe { *space = owner });
        // SAFETY: S2: the count is 0 until `attach`, so the fields are ours.
        slot.span.with_mut(|at| unsafe { *at = span });
        slot.lock.attach(section.edit());
    }
}
