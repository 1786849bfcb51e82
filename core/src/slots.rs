//! Slots: where VMAs live, in memory that is theirs for ever (see [`arena`](crate::arena)).
//!
//! # Who may touch what in a slot
//!
//! | field | read under | written under |
//! |---|---|---|
//! | `lock` | nothing (atomics) | the transitions of [`lock`](crate::lock) |
//! | `space` | a reference (`refcnt` raised), or the mmap lock of the space it names | being free (before attach); alone at X+1 |
//! | `span`, `payload` | an admitted reference, X, or the mmap lock | being free; write-locked; alone at X+1 |
//! | `chain` | X; owning a reservation | X, in an edit or by the exclusion that has it; owning a reservation |
//! | `link` | what guards the arena (A3) | what guards the arena (A3) |
//!
//! # Invariants
//!
//! - **S1** `payload` is initialised exactly while the slot is attached and `space` does not say
//!   *reserved*, except in the hands of who has it alone ([`Emptied`]).
//! - **S2** A [`FreeSlot`] is the only handle to a slot whose count is 0.
//! - **S3** An [`Excluded`] list has added X to each of its VMAs. Whoever meets an X that is not
//!   its own leaves the VMA alone, so each stays attached to its space, unchanged.

use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::{iter, ptr};

use crate::arena::{Arena, Idx, Object, Usage, Users};
use crate::error::OutOfMemory;
use crate::facade::{
    AtomicU32, Cell, ConstPtr, Relaxed, check, const_unless_model, keep, passing_place,
    signal_fence,
};
use crate::hazard::{Hazard, Record, Registry};
use crate::ledger::{LEAVE_BEHIND, Step, TAKE_ON};
use crate::lock::{EditSeq, Refused, SpaceSeq, Ticket, VmaLock};
use crate::mm::{Mm, ReadSection, Section, SpaceId, WriteSection};
use crate::platform::Platform;
use crate::range::Span;

/// The slots of a slab, and the readers that publish which of them they visit.
pub struct Slots<T, P: Platform> {
    arena: Arena<Slot<T>, P>,
    /// Of all spaces on the slab: a reader that comes late is perhaps another space's.
    readers: Registry<P>,
}

impl<T, P: Platform> Slots<T, P> {
    const_unless_model! {
        pub fn new(users: Users) -> Self {
            Self { arena: Arena::new(users), readers: Registry::new(users) }
        }
    }

    /// The slot that `index` names.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn get(&self, index: Idx<Slot<T>>) -> &Slot<T> {
        self.arena.get(index)
    }

    /// The readers that publish.
    pub fn readers(&self) -> &Registry<P> {
        &self.readers
    }

    /// Excludes a VMA that nobody is inside of, counted or not.
    #[inline]
    fn exclude_idle(&self, lock: &VmaLock, section: &WriteSection<'_, P>) -> bool {
        if !lock.exclude_idle() {
            return false;
        }
        self.readers.count_in(section, iter::once(lock));
        let alone = lock.is_alone() || !keep(Step::LookAfterIdle);
        if !alone {
            // Nobody sleeps because of it: that takes the mmap lock.
            lock.readmit();
        }
        alone
    }

    /// How many slots there are and how many of them are in use.
    pub fn usage(&self) -> Usage {
        self.arena.usage()
    }
}

/// The place of one VMA. Aligned to a cache line, so that readers of one VMA do not disturb those
/// of the next.
#[repr(C, align(64))]
pub struct Slot<T> {
    lock: VmaLock,
    span: Cell<Span>,
    space: Cell<SpaceId>,
    payload: Cell<MaybeUninit<T>>,
    /// The next VMA of an [`Excluded`] list, or the next reservation that was left behind, plus 1; 0 at
    /// the end.
    chain: Cell<u32>,
    link: Cell<u32>,
}

impl<T> Object for Slot<T> {
    fn new() -> Self {
        Self {
            lock: VmaLock::new(),
            span: Cell::new(Span { start: 0, end: 0 }),
            space: Cell::new(SpaceId(0)),
            payload: Cell::new(MaybeUninit::uninit()),
            chain: Cell::new(0),
            link: Cell::new(0),
        }
    }

    fn link(&self) -> &Cell<u32> {
        &self.link
    }
}

// SAFETY: the cells are touched as the table above says; the payload is shared among readers
// (`Sync`) and taken out by whichever thread removes it (`Send`).
unsafe impl<T: Send + Sync> Sync for Slot<T> {}
// SAFETY: as for `Sync`; nothing in a slot belongs to a thread.
unsafe impl<T: Send + Sync> Send for Slot<T> {}

impl<T> Slot<T> {
    /// Whether its VMA looks write-locked; a hint.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn looks_locked(&self, seq: &SpaceSeq) -> bool {
        self.lock.looks_locked(seq)
    }

    /// Pretends that `readers` are inside.
    #[cfg(all(test, not(pervma_model)))]
    pub(crate) fn pretend_readers(&self, readers: u32) {
        self.lock.pretend_readers(readers);
    }

    /// A put that is no release.
    #[cfg(all(test, not(pervma_model)))]
    pub(crate) fn leave_unordered<P: Platform>(&self) {
        self.lock.leave_unordered::<P>();
    }
}

/// A reference to a slot, held: whatever is attached there stays attached. Dropping it is the put.
#[must_use]
pub struct Inside<'s, T, P: Platform> {
    slot: &'s Slot<T>,
    /// Where the visit was published, if it was not counted.
    published: Option<&'s Hazard>,
    _platform: PhantomData<P>,
}

/// Why a reader that was inside has left again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// The slot is another space's, or write-locked.
    Away,
    /// This range is reserved, since this edit.
    Reserved(Span, EditSeq),
}

impl<'s, T, P: Platform> Inside<'s, T, P> {
    /// Takes a reference: publishes it in `record` if there is one with a free hazard, else counts.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn enter(slot: &'s Slot<T>, record: Option<&'s Record>) -> Result<Self, Refused> {
        let Some(record) = record else { return Self::enter_counted(slot) };
        let Some(hazard) = record.publish(&slot.lock) else { return Self::enter_unpublished(slot) };
        let inside = Self { slot, published: Some(hazard), _platform: PhantomData };
        slot.lock.visit()?; // else it is taken back
        passing_place();
        Ok(inside)
    }

    #[cfg_attr(not(debug_assertions), inline(always))]
    fn enter_counted(slot: &'s Slot<T>) -> Result<Self, Refused> {
        slot.lock.enter()?;
        Ok(Self { slot, published: None, _platform: PhantomData })
    }

    #[cold]
    fn enter_unpublished(slot: &'s Slot<T>) -> Result<Self, Refused> {
        Self::enter_counted(slot)
    }

    /// Whether the VMA belongs to the space of `mm` and is not write-locked there.
    ///
    /// In this order: the sequence of one space says nothing about a VMA of another.
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn is_open(&self, mm: &Mm<P>) -> bool {
        let here = self.space() == mm.id() || !keep(Step::CheckSpace);
        here && self.slot.lock.unlocked(mm.seq())
    }

    #[cfg_attr(not(debug_assertions), inline(always))]
    fn space(&self) -> SpaceId {
        // SAFETY: `space` is written only while the slot is free or alone, and a reference excludes
        // both (L2).
        self.slot.space.with(|space| unsafe { *space })
    }

    /// Admits, if the VMA is open to readers of the space of `mm`.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn admit(self, mm: &Mm<P>) -> Option<Admitted<'s, T, P>> {
        self.is_open(mm).then_some(Admitted(self))
    }

    /// The same, or says why not.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn admit_or_turn(self, mm: &Mm<P>) -> Result<Admitted<'s, T, P>, Turned> {
        if self.is_open(mm) { Ok(Admitted(self)) } else { Err(self.turn(mm)) }
    }

    #[cold]
    fn turn(self, mm: &Mm<P>) -> Turned {
        let over = || self.slot.lock.unlocked(mm.seq()) || !keep(Step::CheckSeqReserved);
        if self.space() == mm.id().reserved() && over() {
            return Admitted(self).reserved();
        }
        Turned::Away
    }

    /// Admits with no look at the sequence. The read lock may outlive the section.
    ///
    /// # Safety
    ///
    /// `_section` holds the mmap lock of the space that the VMA is attached to. So no edit is
    /// under way and nobody has it write-locked.
    pub unsafe fn admit_locked(
        self,
        _section: &ReadSection<'_, P>,
    ) -> Result<Admitted<'s, T, P>, Turned> {
        if self.space().is_reserved() && keep(Step::CheckReserved) {
            return Err(Admitted(self).reserved());
        }
        Ok(Admitted(self))
    }
}

impl<T, P: Platform> Drop for Inside<'_, T, P> {
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn drop(&mut self) {
        match self.published {
            Some(hazard) => hazard.retract::<P>(&self.slot.lock),
            None => self.slot.lock.leave::<P>(),
        }
    }
}

/// A read-locked VMA: its fields are stable.
#[must_use]
pub struct Admitted<'s, T, P: Platform>(Inside<'s, T, P>);

impl<'s, T, P: Platform> Admitted<'s, T, P> {
    /// Its range.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn span(&self) -> Span {
        // SAFETY: admitted, so nobody write-locks or detaches it (L2), and only they write it.
        self.0.slot.span.with(|span| unsafe { *span })
    }

    /// The edit that last changed it.
    pub fn changed_by(&self) -> EditSeq {
        self.0.slot.lock.changed_by()
    }

    /// Leaves it, since it is only reserved.
    fn reserved(self) -> Turned {
        Turned::Reserved(self.span(), self.changed_by())
    }

    /// Its payload, open for reading while the pointer lives.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn payload(&self) -> ConstPtr<MaybeUninit<T>> {
        self.0.slot.payload.get()
    }

    /// The payload behind `opened`.
    ///
    /// # Safety
    ///
    /// `opened` came from [`payload`](Self::payload) of this same read lock.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub unsafe fn deref<'a>(&'a self, opened: &'a ConstPtr<MaybeUninit<T>>) -> &'a T {
        // SAFETY: the pointer is the slot's payload, shared for as long as the read lock (L2).
        let payload = unsafe { &*opened.as_ptr() };
        // SAFETY: S1: attached and not reserved, so initialised.
        unsafe { payload.assume_init_ref() }
    }

    /// The slot, to be tried first next time.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn slot(&self) -> &'s Slot<T> {
        self.0.slot
    }

    /// The same read lock, for longer than the compiler can see.
    ///
    /// # Safety
    ///
    /// It is dropped before the slab, and was counted.
    pub unsafe fn outliving(self) -> Admitted<'static, T, P>
    where
        T: 'static,
    {
        let slot = ptr::from_ref(self.0.slot);
        assert!(self.0.published.is_none(), "a visit belongs to its thread");
        core::mem::forget(self);
        // SAFETY: slots stay where they are while the slab lives (A2), as the caller promises.
        let slot = unsafe { &*slot };
        Admitted(Inside { slot, published: None, _platform: PhantomData })
    }
}

/// What the tree leads to while the mmap lock is held: a VMA or a reservation, attached to that
/// space for as long as the section.
pub struct Entry<'m, T> {
    slot: &'m Slot<T>,
    index: Idx<Slot<T>>,
}

impl<'m, T> Entry<'m, T> {
    /// What a word of the tree leads to.
    ///
    /// # Safety
    ///
    /// The slot is attached to the space whose mmap lock is held for `'m`, and while the result
    /// or anything borrowed from it lives, no other handle gives unique access to its payload.
    pub unsafe fn new(slot: &'m Slot<T>, index: Idx<Slot<T>>, _section: &'m impl Section) -> Self {
        Self { slot, index }
    }

    /// Its range.
    pub fn span(&self) -> Span {
        // SAFETY: written only by the holder of the mmap lock for writing, which is either us or
        // nobody.
        self.slot.span.with(|span| unsafe { *span })
    }

    /// Its name in the arena.
    pub fn index(&self) -> Idx<Slot<T>> {
        self.index
    }

    /// Whether somebody excludes readers.
    pub fn is_excluded(&self) -> bool {
        self.slot.lock.is_excluded()
    }

    /// Whether the range is only reserved.
    pub fn is_reserved(&self) -> bool {
        // SAFETY: as for `span`.
        self.slot.space.with(|space| unsafe { *space }).is_reserved()
    }

    /// The VMA, unless the range is only reserved.
    pub fn vma(self) -> Option<Attached<'m, T>> {
        let Self { slot, index } = self;
        (!self.is_reserved()).then_some(Attached { slot, index })
    }

    /// Empties it in the drop of its space: waits for late readers of other spaces, and where an
    /// exclusion or a reservation was forgotten, takes it over.
    pub fn take_at_end<P: Platform>(
        self,
        slots: &Slots<T, P>,
        section: &WriteSection<'_, P>,
    ) -> (Option<T>, Emptied<'m, T>) {
        if !self.is_excluded() {
            self.slot.lock.exclude();
            slots.readers.count_in(section, iter::once(&self.slot.lock));
        }
        if keep(Step::DrainOnDrop) {
            self.slot.lock.wait_alone::<P>(None);
        }
        let emptied = Emptied { slot: self.slot, index: self.index, gated: false };
        // SAFETY: alone, and nobody else has a handle.
        (self.vma().map(|vma| unsafe { vma.take() }), emptied)
    }
}

/// A thread that an exclusion has refused, about to sleep. It holds nothing.
pub struct Sleeper<'s, T> {
    slot: &'s Slot<T>,
    ticket: Ticket,
}

impl<'s, T> Sleeper<'s, T> {
    /// Announces it at the gate of an excluded entry; `None` if the exclusion is over.
    pub fn register<P: Platform>(slots: &'s Slots<T, P>, entry: Entry<'_, T>) -> Option<Self> {
        let slot = slots.get(entry.index);
        Some(Self { slot, ticket: slot.lock.register()? })
    }

    /// Lets the mmap lock go and sleeps until the exclusion is over.
    pub fn sleep<P: Platform>(self, section: impl Section) {
        let kept = if keep(Step::SleepOutside) {
            drop(section);
            None
        } else {
            Some(section)
        };
        self.slot.lock.sleep::<P>(self.ticket);
        drop(kept);
    }
}

/// A VMA whose fields are stable: the mmap lock is held for `'m`, or we exclude it.
pub struct Attached<'m, T> {
    slot: &'m Slot<T>,
    index: Idx<Slot<T>>,
}

impl<'m, T> Attached<'m, T> {
    /// Its range.
    pub fn span(&self) -> Span {
        // SAFETY: written only by the holder of the mmap lock for writing, which is either us or
        // nobody, and not while it is excluded.
        self.slot.span.with(|span| unsafe { *span })
    }

    /// Its payload.
    pub fn payload(&self) -> &'m T {
        // SAFETY: as for `span`; unique access is excluded by the contract of `Entry::new`.
        let payload = self.slot.payload.with(|payload| unsafe { &*payload });
        // SAFETY: S1: attached and not reserved, so initialised.
        unsafe { payload.assume_init_ref() }
    }

    /// Whether somebody excludes readers.
    pub fn is_excluded(&self) -> bool {
        self.slot.lock.is_excluded()
    }

    /// Write-locks it until the end of the edit, waiting for its readers; `None` if somebody
    /// excludes it.
    #[doc(alias("vma_start_write"))]
    pub fn start_write<P: Platform>(
        self,
        slots: &Slots<T, P>,
        section: &WriteSection<'_, P>,
    ) -> Option<WriteLocked<'m, T>> {
        let lock = &self.slot.lock;
        if lock.is_excluded() {
            return None;
        }
        if !lock.is_locked_by(section.edit()) {
            lock.exclude();
            slots.readers.count_in(section, iter::once(lock));
            lock.wait_alone::<P>(None);
            lock.lock_until_end_of(section.edit());
        }
        Some(WriteLocked(self))
    }

    /// The same, if it has no readers just now.
    pub fn try_start_write<P: Platform>(
        self,
        slots: &Slots<T, P>,
        section: &WriteSection<'_, P>,
    ) -> Option<WriteLocked<'m, T>> {
        let lock = &self.slot.lock;
        if !lock.is_locked_by(section.edit()) {
            if !slots.exclude_idle(lock, section) {
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
    /// The caller has the VMA alone, and puts another in or detaches it.
    unsafe fn take(self) -> T {
        // SAFETY: alone: nobody else reads or writes it.
        let payload = self.slot.payload.with_mut(|payload| unsafe { payload.read() });
        // SAFETY: S1: it was initialised, and is taken here.
        unsafe { payload.assume_init() }
    }
}

/// An attached VMA, write-locked by the running edit: no reader is in it or comes in (L3).
pub struct WriteLocked<'m, T>(Attached<'m, T>);

impl<T> WriteLocked<'_, T> {
    /// Its range.
    pub fn span(&self) -> Span {
        self.0.span()
    }

    /// Its payload.
    pub fn payload(&self) -> &T {
        self.0.payload()
    }

    /// Its payload, alone.
    pub fn payload_mut(&mut self) -> &mut T {
        // SAFETY: L3: no reader is inside; the contract of `Entry::new` excludes other handles.
        let payload = self.0.slot.payload.with_mut(|payload| unsafe { &mut *payload });
        // SAFETY: S1: attached and not reserved, so initialised.
        unsafe { payload.assume_init_mut() }
    }
}

/// VMAs that we keep readers out of, linked through their slots. Dropping the list lets the readers
/// in again, with nothing changed; that needs no lock.
///
/// An edit makes one for the VMAs that it is about to change; an exclusion keeps one while it waits
/// without the mmap lock.
#[must_use]
pub struct Excluded<'s, T, P: Platform> {
    slots: &'s Slots<T, P>,
    first: Option<Idx<Slot<T>>>,
    last: Option<Idx<Slot<T>>>,
    /// Whether it outlives its edit, so that somebody may sleep on the gates.
    gated: bool,
    /// It belongs to the thread that made it: its thread's record says that it excludes.
    _thread: PhantomData<*const ()>,
}

impl<'s, T, P: Platform> Excluded<'s, T, P> {
    /// An empty list.
    pub fn new(slots: &'s Slots<T, P>, gated: bool) -> Self {
        Self { slots, first: None, last: None, gated, _thread: PhantomData }
    }

    /// Excludes `vma` and appends it; `false` if somebody excludes it already.
    #[inline]
    pub fn push(&mut self, vma: Attached<'_, T>, section: &WriteSection<'_, P>) -> bool {
        let lock = &vma.slot.lock;
        let pushed = self.push_uncounted(&vma);
        if pushed {
            self.slots.readers.count_in(section, iter::once(lock));
        }
        pushed
    }

    /// Excludes and appends, on an empty list, what `each` gives to its argument. That says whether it
    /// could be done, as [`push`](Self::push) does. Registered readers are looked for once.
    pub fn push_all(
        &mut self,
        section: &WriteSection<'_, P>,
        each: impl FnOnce(&mut dyn FnMut(Attached<'_, T>) -> bool),
    ) {
        check(self.first.is_none(), "what is on the list was looked for already");
        each(&mut |vma| self.push_uncounted(&vma));
        self.slots.readers.count_in(section, self.all().map(|index| &self.slots.get(index).lock));
    }

    /// Excludes and appends one; its registered readers must be counted before anyone waits.
    #[inline]
    fn push_uncounted(&mut self, vma: &Attached<'_, T>) -> bool {
        if vma.is_excluded() {
            return false;
        }
        vma.slot.lock.exclude();
        self.append(vma.index);
        true
    }

    /// Takes in one more VMA if it can be had: waiting for its readers in an edit's list, only if
    /// there are none in an exclusion's.
    #[inline]
    pub fn join(&mut self, vma: Attached<'_, T>, section: &WriteSection<'_, P>) -> bool {
        if !self.gated {
            return self.push(vma, section);
        }
        let idle = self.slots.exclude_idle(&vma.slot.lock, section);
        if idle {
            self.append(vma.index);
        }
        idle
    }

    #[inline]
    fn append(&mut self, index: Idx<Slot<T>>) {
        self.set_next(index, None);
        match self.last {
            Some(last) => self.set_next(last, Some(index)),
            None => self.first = Some(index),
        }
        self.last = Some(index);
    }

    fn set_next(&self, index: Idx<Slot<T>>, next: Option<Idx<Slot<T>>>) {
        let next = next.map_or(0, |next| next.raw() + 1);
        // SAFETY: S3: we have X on it, so the link is ours.
        self.slots.get(index).chain.with_mut(|chain| unsafe { *chain = next });
    }

    fn next(&self, index: Idx<Slot<T>>) -> Option<Idx<Slot<T>>> {
        // SAFETY: S3: we have X on it, so the link is ours.
        let next = self.slots.get(index).chain.with(|chain| unsafe { *chain });
        // SAFETY: stored by `set_next`, out of an index (A1).
        next.checked_sub(1).map(|raw| unsafe { Idx::from_raw(raw) })
    }

    /// The VMAs. Readers may still be inside.
    pub fn iter(&self) -> impl Iterator<Item = Attached<'_, T>> {
        self.all().map(|index| Attached { slot: self.slots.get(index), index })
    }

    fn all(&self) -> impl Iterator<Item = Idx<Slot<T>>> + Clone {
        iter::successors(self.first, |index| self.next(*index))
    }

    /// Waits until the readers of all of them have left; `false` if the deadline came first.
    pub fn wait(&self, deadline: Option<P::Deadline>) -> bool {
        self.iter().all(|vma| vma.slot.lock.wait_alone::<P>(deadline))
    }

    /// Whether the readers of all of them have left.
    pub fn is_alone(&self) -> bool {
        self.iter().all(|vma| vma.slot.lock.is_alone())
    }

    /// Write-locks all of them until the end of the edit, waiting for their readers.
    pub fn start_write(mut self, section: &WriteSection<'_, P>) {
        while let Some(index) = self.first {
            let lock = &self.slots.get(index).lock;
            lock.wait_alone::<P>(None);
            self.first = self.next(index);
            lock.lock_until_end_of(section.edit());
        }
    }

    /// What the mutant without a list of its own believes: that all in the range is its own.
    #[cfg(pervma_model)]
    pub fn take_over<'m>(&mut self, entries: impl Iterator<Item = Entry<'m, T>>)
    where
        T: 'm,
    {
        (self.first, self.last) = (None, None);
        entries.for_each(|entry| self.append(entry.index));
    }

    /// Takes the first VMA off the list, once it is alone: its range, its payload, and what is left
    /// to be filled again or detached.
    #[inline]
    pub fn take_first(&mut self) -> Option<(Span, T, Emptied<'s, T>)> {
        let index = self.first?;
        self.first = self.next(index);
        if self.first.is_none() {
            self.last = None;
        }
        let slot = self.slots.get(index);
        slot.lock.wait_alone::<P>(None);
        let vma = Attached { slot, index };
        // SAFETY: alone, and the list was the only handle.
        let (span, payload) = (vma.span(), unsafe { vma.take() });
        Some((span, payload, Emptied { slot, index, gated: self.gated }))
    }
}

impl<T, P: Platform> Drop for Excluded<'_, T, P> {
    /// Lets the readers in again.
    fn drop(&mut self) {
        while let Some(index) = self.first {
            let lock = &self.slots.get(index).lock;
            if keep(Step::LinkBeforeEnd) {
                self.first = self.next(index);
            }
            if keep(Step::GiveBack) {
                end_exclusion::<P>(lock, self.gated, VmaLock::readmit);
            }
            if !keep(Step::LinkBeforeEnd) {
                self.first = self.next(index);
            }
        }
        signal_fence(); // an exclusion's thread forgets it then, not before
    }
}

/// Ends an exclusion, then opens the gate for those who may sleep there.
fn end_exclusion<P: Platform>(lock: &VmaLock, gated: bool, end: impl FnOnce(&VmaLock)) {
    if gated && !keep(Step::OpenLast) {
        lock.open_gate::<P>();
    }
    end(lock);
    if gated && keep(Step::OpenLast) {
        lock.open_gate::<P>();
    }
}

/// An attached slot that we have alone and whose payload was taken out. It must be filled or
/// detached: until then nobody enters.
#[must_use]
pub struct Emptied<'s, T> {
    slot: &'s Slot<T>,
    index: Idx<Slot<T>>,
    gated: bool,
}

impl<'s, T> Emptied<'s, T> {
    /// Makes it a VMA of the space under edit, write-locked until the edit ends.
    pub fn fill<P: Platform>(self, section: &WriteSection<'_, P>, span: Span, payload: T) {
        // SAFETY: alone at X+1 until `publish`; it was taken out before (S1).
        self.slot.payload.with_mut(|at| unsafe { at.write(MaybeUninit::new(payload)) });
        self.publish(section, section.space_id(), span);
    }

    /// Makes it a reservation of the space under edit, write-locked until the edit ends.
    pub fn reserve<P: Platform>(
        self,
        section: &WriteSection<'_, P>,
        span: Span,
    ) -> Reserved<'s, T> {
        let (slot, index) = (self.slot, self.index);
        self.publish(section, section.space_id().reserved(), span);
        Reserved { slot, index }
    }

    fn publish<P: Platform>(self, section: &WriteSection<'_, P>, owner: SpaceId, span: Span) {
        let Self { slot, gated, .. } = self;
        // SAFETY: alone at X+1 until `readmit`.
        slot.space.with_mut(|space| unsafe { *space = owner });
        // SAFETY: as above.
        slot.span.with_mut(|at| unsafe { *at = span });
        end_exclusion::<P>(&slot.lock, gated, |lock| lock.lock_until_end_of(section.edit()));
    }

    /// Detaches it and gives the slot to `slots`. The tree no longer leads here.
    #[inline]
    pub fn detach<P: Platform>(self, slots: &Slots<T, P>, section: &WriteSection<'_, P>) {
        if !keep(Step::FreeDetached) {
            slots.arena.free(self.index, section);
        }
        end_exclusion::<P>(&self.slot.lock, self.gated, VmaLock::detach);
        if keep(Step::FreeDetached) {
            slots.arena.free(self.index, section);
        }
    }
}

/// The owner's handle to a reserved slot.
pub struct Reserved<'s, T> {
    slot: &'s Slot<T>,
    index: Idx<Slot<T>>,
}

impl<'s, T> Reserved<'s, T> {
    /// Its range.
    pub fn span(&self) -> Span {
        // SAFETY: written before it was attached, and nobody but the owner changes it.
        self.slot.span.with(|span| unsafe { *span })
    }

    /// Leaves it to the next edit: the owner's handle goes onto the list that begins at `head`.
    pub fn leave_behind(self, head: &AtomicU32) {
        let mut next = head.load(Relaxed("the exchange that follows decides"));
        loop {
            // SAFETY: nobody else has a handle, and nobody excludes a reservation but its owner.
            self.slot.chain.with_mut(|chain| unsafe { *chain = next });
            match head.compare_exchange(next, self.index.raw() + 1, LEAVE_BEHIND) {
                Ok(_) => return,
                Err(now) => next = now,
            }
        }
    }

    /// Takes what was left behind on the list that begins at `head`.
    pub fn take_on<P: Platform>(
        slots: &'s Slots<T, P>,
        head: &AtomicU32,
    ) -> impl Iterator<Item = Self> {
        let mut next = head.swap(0, TAKE_ON);
        iter::from_fn(move || {
            // SAFETY: stored by `leave_behind`, out of an index (A1).
            let index = unsafe { Idx::from_raw(next.checked_sub(1)?) };
            let slot = slots.get(index);
            // SAFETY: the handle is ours now.
            next = slot.chain.with(|chain| unsafe { *chain });
            Some(Self { slot, index })
        })
    }

    /// Has it alone: waits for lookups that are on their way out again.
    pub fn alone<P: Platform>(
        &self,
        slots: &Slots<T, P>,
        section: &WriteSection<'_, P>,
    ) -> Emptied<'s, T> {
        self.slot.lock.exclude();
        slots.readers.count_in(section, iter::once(&self.slot.lock));
        self.slot.lock.wait_alone::<P>(None);
        Emptied { slot: self.slot, index: self.index, gated: false }
    }
}

/// A slot with nothing in it, ours to fill or to [`give_back`](Self::give_back). One that is dropped
/// is used again by nobody.
#[must_use]
pub struct FreeSlot<'a, T, P: Platform> {
    slots: &'a Slots<T, P>,
    index: Idx<Slot<T>>,
}

impl<'a, T, P: Platform> FreeSlot<'a, T, P> {
    /// A free slot of `slots`.
    #[inline]
    pub fn alloc(
        slots: &'a Slots<T, P>,
        section: &WriteSection<'_, P>,
    ) -> Result<Self, OutOfMemory> {
        Ok(Self { slots, index: slots.arena.alloc(section)? })
    }

    /// Makes it free again. The tree does not lead here.
    pub fn give_back(self, section: &WriteSection<'_, P>) {
        self.slots.arena.free(self.index, section);
    }

    /// The name it will be linked by.
    pub fn index(&self) -> Idx<Slot<T>> {
        self.index
    }

    /// Attaches a VMA to the space under edit, write-locked: nobody enters before the edit ends.
    pub fn attach(self, section: &WriteSection<'_, P>, span: Span, payload: T) {
        let slot = self.slots.get(self.index);
        // SAFETY: S2: the count is 0, so the fields are ours. What was there before is not
        // initialised (S1).
        slot.payload.with_mut(|at| unsafe { at.write(MaybeUninit::new(payload)) });
        self.publish(section, section.space_id(), span);
    }

    /// Attaches a reservation, write-locked.
    pub fn reserve(self, section: &WriteSection<'_, P>, span: Span) -> Reserved<'a, T> {
        let (slot, index) = (self.slots.get(self.index), self.index);
        self.publish(section, section.space_id().reserved(), span);
        Reserved { slot, index }
    }

    fn publish(self, section: &WriteSection<'_, P>, owner: SpaceId, span: Span) {
        let slot = self.slots.get(self.index);
        check(slot.lock.is_detached(), "a slot is used again whose count is not 0");
        // SAFETY: S2, as in `attach`.
        slot.space.with_mut(|space| unsafe { *space = owner });
        // SAFETY: S2, as above.
        slot.span.with_mut(|at| unsafe { *at = span });
        slot.lock.attach(section.edit());
    }
}
