//! The slot of one VMA, and all slots of a slab.
//!
//! # Who may touch what in a slot
//!
//! | field | read under | written under |
//! |---|---|---|
//! | `lock` | nothing (atomics) | the transitions of [`lock`](crate::lock) |
//! | `space` | a reference (`refcnt` raised), or the mmap lock of the space it names | being free (before attach); drained |
//! | `generation` | as `space` | drained, about to be detached |
//! | `span`, `payload` | a read lock, one's own X, or the mmap lock | being free; write-locked; drained |
//! | `link` | what the list is guarded by that the slot is on: the guard of the arena (A3) for the free list; one's own X for an [`Excluded`](super::Excluded) list; owning the reservation for the deferred releases. On no list (S5): one's own X | the same, and between being free and attached |
//!
//! # Invariants
//!
//! - **S1** `payload` is initialised exactly while the slot is attached and `space` does not say
//!   *reserved*, except while an [`Emptied`](super::Emptied) has the slot.
//! - **S2** A [`FreeSlot`](super::FreeSlot) is the only handle to a slot whose count is 0.
//! - **S3** An [`Excluded`](super::Excluded) list has set X in each of its VMAs. A thread that
//!   finds X set by another does not change the VMA, so each stays attached to its space,
//!   unchanged.
//! - **S4** A slot is attached at most once under each `generation`.
//! - **S5** The `link` of an attached VMA that is on no list is its own index, complemented: a
//!   number that no list stores. It is so from when the slot is allocated; only a reservation that
//!   was given up keeps the link of its list.
#![expect(unsafe_code, reason = "slots are shared among threads as the table above says")]

use core::mem::MaybeUninit;

use crate::arena::{Arena, Idx, Object, Usage, Users};
use crate::hazard::Registry;
use crate::identity::SpaceId;
use crate::lock::{SpaceSeq, VmaLock};
use crate::mm::EditSection;
use crate::platform::Platform;
use crate::range::Span;
use crate::step::Step;
use crate::sync::{Cell, check, const_unless_model, keep};
use crate::vma_id::VmaId;

/// The size of the largest payload, in bytes. A change without optimisation has some 60 of them on
/// the stack: one of 2 MiB, as threads have it, is enough then.
const MAX_PAYLOAD: usize = 16 << 10;

/// The slots of a slab, and the readers that publish which of them they read.
pub(crate) struct Slots<T, P: Platform> {
    arena: Arena<Slot<T>, P>,
    /// Registered readers of all spaces on the slab: a late reader may be one of another space.
    readers: Registry<P>,
}

impl<T, P: Platform> Slots<T, P> {
    const_unless_model! {
        pub(crate) fn new(users: Users) -> Self {
            const { assert!(size_of::<T>() <= MAX_PAYLOAD, "larger payloads belong in a `Box`") };
            Self { arena: Arena::new(users), readers: Registry::new(users) }
        }
    }

    /// The slots as an arena.
    pub(crate) fn arena(&self) -> &Arena<Slot<T>, P> {
        &self.arena
    }

    /// The slot that `index` names, for an editor.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn get(&self, index: Idx<Slot<T>>) -> &Slot<T> {
        self.arena.get(index)
    }

    /// The registered readers.
    pub(crate) fn readers(&self) -> &Registry<P> {
        &self.readers
    }

    /// Makes new, after a fork, in the child, what other threads may have held of all spaces on the
    /// slab.
    ///
    /// # Safety
    ///
    /// The caller is the only thread of its process, has just forked, and is in no call of a slab.
    pub(crate) unsafe fn renew(&self, section: &EditSection<'_, P>) {
        // SAFETY: as the caller says.
        unsafe { self.arena.renew() };
        // SAFETY: as the caller says.
        unsafe { self.readers.forget_others(section) };
    }

    /// Excludes a VMA that has no reader, counted or registered.
    #[inline]
    pub(super) fn try_exclude_idle(&self, lock: &VmaLock, section: &EditSection<'_, P>) -> bool {
        if !lock.try_exclude_idle() {
            return false;
        }
        self.readers.transfer_readers(section, core::iter::once(lock));
        let drained = lock.is_drained() || !keep(Step::ScanIdle);
        if !drained {
            // No thread sleeps because of it: that takes the mmap lock.
            lock.clear_excluded();
        }
        drained
    }

    /// How many slots there are, and how many of them are in use.
    pub(crate) fn usage(&self) -> Usage {
        self.arena.usage()
    }
}

/// The place of one VMA. Aligned to a cache line, so that readers of one VMA do not disturb those
/// of the next; while there are few, they do not share a pair of lines either.
#[repr(C, align(64))]
pub(crate) struct Slot<T> {
    pub(super) lock: VmaLock,
    pub(super) span: Cell<Span>,
    pub(super) space: Cell<SpaceId>,
    pub(super) payload: Cell<MaybeUninit<T>>,
    /// The next slot on the list that this one is on, plus 1, or 0 at the end; on none, see S5.
    pub(super) link: Cell<u32>,
    /// How many VMAs have lived here before.
    pub(super) generation: Cell<u32>,
    made: Cell<()>,
}

// A VMA with a payload of 16 bytes takes one cache line.
const _: () = assert!(cfg!(pervma_model) || size_of::<Slot<[u64; 2]>>() == 64);

impl<T> Object for Slot<T> {
    /// Half of what the first seven chunks hold. Slots of more than one line are not placed apart.
    const APART: u16 = if size_of::<Self>() == 64 { 1016 } else { 0 };

    fn new() -> Self {
        Self {
            lock: VmaLock::new(),
            span: Cell::new(Span { start: 0, end: 0 }),
            space: Cell::new(SpaceId::NONE),
            payload: Cell::new(MaybeUninit::uninit()),
            link: Cell::new(0),
            generation: Cell::new(0),
            made: Cell::new(()),
        }
    }

    fn link(&self) -> &Cell<u32> {
        &self.link
    }

    fn made(&self) -> &Cell<()> {
        &self.made
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
    pub(crate) fn looks_locked<E, L>(&self, seq: &SpaceSeq<E, L>) -> bool {
        self.lock.looks_locked(seq)
    }

    /// The space that the VMA belongs to.
    ///
    /// # Safety
    ///
    /// The caller has a reference, or the mmap lock of the space that the slot is attached to.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(super) unsafe fn space(&self) -> SpaceId {
        // SAFETY: written while the slot is free or drained, and both a reference (L2) and the mmap
        // lock exclude that, but for the holder of the lock itself.
        self.space.with(|space| unsafe { *space })
    }

    /// The identity of the VMA that lives here.
    ///
    /// # Safety
    ///
    /// The caller has a read lock, or the mmap lock of the space that the slot is attached to.
    pub(super) unsafe fn vma_id(&self) -> VmaId {
        // SAFETY: as the caller says.
        let space = unsafe { self.space() };
        // SAFETY: a read lock keeps it (L2), and so does the mmap lock.
        let start = self.span.with(|span| unsafe { (*span).start });
        // SAFETY: written as `space` is.
        let generation = self.generation.with(|generation| unsafe { *generation });
        VmaId { space, start, slot: self.lock.name(), generation }
    }

    /// Ends the generation of a drained VMA that is about to be detached; whether there is no other
    /// left for this slot.
    #[inline]
    pub(super) fn end_generation(&self) -> bool {
        if !keep(Step::CountGenerations) {
            return false;
        }
        self.generation.with_mut(|generation| {
            // SAFETY: drained: no other thread reads or writes it.
            let next = unsafe { *generation }.wrapping_add(1);
            // SAFETY: drained, as for the read.
            unsafe { *generation = next };
            next == 0
        })
    }

    /// Its index, of a slot that is on no list.
    ///
    /// # Safety
    ///
    /// The link is the caller's.
    #[inline]
    pub(super) unsafe fn index(&self) -> Idx<Self> {
        // SAFETY: as the caller says.
        let raw = self.link.with(|link| unsafe { !*link });
        check(raw < 1 << 30, "S5: a slot without its index");
        // SAFETY: S5: the complement of an index, which came here with the link (A1).
        unsafe { Idx::from_raw(raw) }
    }

    /// Notes its index: it is on no list (S5).
    ///
    /// # Safety
    ///
    /// The link is the caller's.
    #[inline]
    pub(super) unsafe fn set_index(&self, index: Idx<Self>) {
        // SAFETY: as the caller says.
        self.link.with_mut(|link| unsafe { *link = !index.raw() });
    }

    /// Pretends that so many VMAs have lived here.
    #[cfg(all(test, not(pervma_model)))]
    pub(crate) fn pretend_generation(&self, generation: u32) {
        // SAFETY: the test's other threads do not look.
        self.generation.with_mut(|at| unsafe { *at = generation });
    }

    /// Pretends that the VMA has `readers`.
    #[cfg(all(test, not(pervma_model)))]
    pub(crate) fn pretend_readers(&self, readers: u32) {
        self.lock.pretend_readers(readers);
    }

    /// A release of a reference that is no release.
    #[cfg(all(test, not(pervma_model)))]
    pub(crate) fn release_unordered<P: Platform>(&self) {
        self.lock.release_unordered::<P>();
    }
}
