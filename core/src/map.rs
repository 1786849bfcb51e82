//! One space: its state, its tree and its slab, bound together.
//!
//! Here a word of a leaf becomes a slot again, and a slot a word. Everything above works with
//! [`Map`], with what it lends under the mmap lock ([`Vmas`], [`MapRead`], [`MapWrite`]) and with
//! the [`WriteCursor`] of an edit.
//!
//! # Invariants
//!
//! - **M1** The state, the tree and the slab of a map are used with each other only: nothing lends
//!   one of them to another map's operation.
//! - **M2** A [`Vmas`] exists only while its map's mmap lock is held, by the thread that has it.
//! - **T3** (of [`btree`](crate::btree)) Every word in a leaf is a slot attached to this map's
//!   space, as long as the mmap lock is held and no operation of its holder is half done.
#![expect(unsafe_code, reason = "words of the tree become slots again, by T3")]

use alloc::sync::Arc;
use core::marker::PhantomData;
use core::mem;
use core::ops::{Deref, Range};

use crate::btree::{AnySlot, BTree, Leaf, Position, RecordPath, Run, Shape, VisitedPath, Wanted};
use crate::error::OutOfMemory;
use crate::host::DefaultPlatform;
use crate::lock::Watermark;
use crate::mm::{EditGuard, EditSection, MmapRead, SpaceState};
use crate::platform::Platform;
use crate::range::{EVERYTHING, RangeError, Span};
use crate::slab::{Slab, SlabRef};
use crate::slots::{Emptied, Entry, Excluded, FreeSlot, Reserved, Slot, Slots};
use crate::step::Step;
use crate::sync::{AtomicU32, Relaxed, const_unless_model, keep};

/// The VMAs of one space.
pub(crate) struct Map<T, P: Platform> {
    state: SpaceState<P>,
    tree: BTree,
    slab: SlabRef<T, P>,
    granularity: usize,
    /// Not 0 if it was abandoned after a fork.
    abandoned: AtomicU32,
}

// Two pairs of lines for editors, of which one is the slab's, and two that lookups load; readers
// write to one of them. Where locks are larger than the futex's, the slab takes one more.
const _: () = assert!(
    cfg!(pervma_model)
        || !cfg!(all(feature = "std", any(target_os = "linux", target_os = "android")))
        || size_of::<Map<u64, DefaultPlatform>>() <= 512
);

const ABANDONED: Relaxed = Relaxed("set by the only thread of a process");

impl<T, P: Platform> Map<T, P> {
    const_unless_model! {
        /// An empty map with a slab of its own.
        pub(crate) fn new(granularity: usize) -> Self {
            Self::on(granularity, SlabRef::own())
        }
    }

    const_unless_model! {
        fn on(granularity: usize, slab: SlabRef<T, P>) -> Self {
            Self {
                state: SpaceState::new(),
                tree: BTree::new(),
                slab,
                granularity,
                abandoned: AtomicU32::new(0),
            }
        }
    }

    /// An empty map on a slab that others share.
    pub(crate) fn new_in(granularity: usize, slab: Arc<Slab<T, P>>) -> Self {
        Self::on(granularity, SlabRef::Shared(slab))
    }

    /// An empty map like this one: on the same slab if that is shared.
    pub(crate) fn empty_copy(&self) -> Self {
        match &self.slab {
            SlabRef::Own(_) => Self::new(self.granularity),
            SlabRef::Shared(slab) => Self::new_in(self.granularity, Arc::clone(slab)),
        }
    }

    /// The granularity: the ends of every range are multiples of it. A power of two.
    #[inline(always)]
    pub(crate) fn granularity(&self) -> usize {
        self.granularity
    }

    /// Checks a range for a change.
    #[inline]
    pub(crate) fn span(&self, range: Range<usize>) -> Result<Span, RangeError> {
        Span::check(range, self.granularity)
    }

    #[inline(always)]
    pub(crate) fn state(&self) -> &SpaceState<P> {
        &self.state
    }

    /// How many VMAs there are.
    pub(crate) fn len(&self) -> usize {
        if self.is_abandoned() { 0 } else { self.state.vmas() }
    }

    #[inline(always)]
    pub(crate) fn slab(&self) -> &Slab<T, P> {
        self.slab.get()
    }

    /// Abandons the map after a fork: nothing is found in it any more, and its drop leaves
    /// everything as it is.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(1, ABANDONED);
        self.state.replace_identity();
    }

    /// Whether it was abandoned.
    #[inline]
    pub(crate) fn is_abandoned(&self) -> bool {
        // Models do not fork, and have no steps to spare for it.
        !cfg!(pervma_model) && self.abandoned.load(ABANDONED) != 0
    }

    /// Walks, with no lock, to the slot that may hold `addr`. It may have been recycled meanwhile;
    /// during an edit it may be any slot of the slab, or none.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn walk<'s>(
        &'s self,
        addr: usize,
        path: &mut impl RecordPath<'s>,
    ) -> Option<&'s Slot<T>> {
        let slot = self.tree.walk(addr, path)?;
        // SAFETY: A1: out of a word of the tree, loaded with acquire; of this slab, by M1.
        Some(unsafe { slot.get() })
    }

    /// The leaf at the end of a walk to `addr`.
    pub(crate) fn leaf(&self, addr: usize) -> Leaf<'_> {
        let mut leaf = Leaf::none();
        self.tree.walk(addr, &mut leaf);
        leaf
    }

    /// Whether the leaf at the end of a walk to `addr` shows that a hole is there, above the VMA in
    /// `below`, which is read-locked and ends at `addr` or before.
    pub(crate) fn shows_hole<'n>(
        &self,
        below: &Slot<T>,
        addr: usize,
        leaf: impl FnOnce() -> Leaf<'n>,
    ) -> bool {
        let owned = matches!(self.slab, SlabRef::Own(_)) || !keep(Step::CheckLeafOwned);
        owned && leaf().shows_hole(AnySlot::of(below), addr, self.state.seq())
    }

    /// Walks, with no lock, to the first slot at or above `addr`; as little reliable.
    pub(crate) fn walk_from<'s>(
        &'s self,
        addr: usize,
        path: &mut impl RecordPath<'s>,
    ) -> Option<&'s Slot<T>> {
        let slot = self.tree.walk_from(addr, path)?;
        // SAFETY: as in `walk`.
        Some(unsafe { slot.get() })
    }

    /// Whether what walks found is what the map held when the edits up to `watermark` were
    /// completed, and until after each of its nodes was visited.
    pub(crate) fn is_unchanged<const MAX: usize>(
        &self,
        path: &VisitedPath<'_, MAX>,
        watermark: Watermark,
    ) -> bool {
        self.tree.is_unchanged(path, watermark)
    }

    /// Waits for the mmap lock for reading.
    pub(crate) fn read(&self) -> MapRead<'_, T, P> {
        MapRead { section: self.state.read(), vmas: Vmas::new(self) }
    }

    /// Waits for the mmap lock for writing, begins an edit, and releases the reservations that were
    /// deferred to it.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn write(&self) -> MapWrite<'_, T, P> {
        self.begin(self.state.write())
    }

    /// As [`write`](Self::write), unless it would have to wait for the mmap lock.
    pub(crate) fn try_write(&self) -> Option<MapWrite<'_, T, P>> {
        Some(self.begin(self.state.try_write()?))
    }

    /// As [`write`](Self::write), unless it would have to wait longer than until `deadline`.
    pub(crate) fn write_until(&self, deadline: P::Deadline) -> Option<MapWrite<'_, T, P>> {
        Some(self.begin(self.state.write_until(deadline)?))
    }

    #[cfg_attr(not(debug_assertions), inline(always))]
    fn begin<'s>(&'s self, section: EditGuard<'s, P>) -> MapWrite<'s, T, P> {
        if !self.state.deferred().looks_empty() {
            self.drain_deferred(section.again());
        }
        let edit = MapWrite { vmas: Vmas::new(self), section };
        #[cfg(all(test, not(pervma_model)))]
        edit.check();
        edit
    }

    #[cold]
    fn drain_deferred(&self, section: EditSection<'_, P>) {
        let vmas = Vmas::new(self);
        let mut cursor = WriteCursor::new(&vmas, &section);
        for slot in Reserved::drain(self.slab().slots(), self.state.deferred()) {
            cursor.release(&slot);
        }
    }

    /// Runs `f` in the edit that the running thread has open, else in a new one.
    pub(crate) fn within_edit<'s, R>(
        &'s self,
        f: impl FnOnce(&mut WriteCursor<'s, '_, T, P>) -> R,
    ) -> R {
        if self.state.edited_by_me() { self.in_own_edit(f) } else { f(&mut self.write().cursor()) }
    }

    /// As [`within_edit`](Self::within_edit), unless it would have to wait for the mmap lock.
    pub(crate) fn within_edit_at_once<'s, R>(
        &'s self,
        f: impl FnOnce(&mut WriteCursor<'s, '_, T, P>) -> R,
    ) -> Option<R> {
        if self.state.edited_by_me() {
            return Some(self.in_own_edit(f));
        }
        Some(f(&mut self.try_write()?.cursor()))
    }

    fn in_own_edit<'s, R>(&'s self, f: impl FnOnce(&mut WriteCursor<'s, '_, T, P>) -> R) -> R {
        self.state.in_own_edit(|section| f(&mut WriteCursor::new(&Vmas::new(self), section)))
    }

    /// Removes what has the smallest address, in an edit of its own, and gives its payload out if
    /// it had one; waits for readers of other spaces that are late on a shared slab.
    fn pop(&self) -> Option<Option<T>> {
        let edit = self.write();
        let entry = edit.first_from(0)?;
        let start = entry.span().start;
        let (payload, emptied) = entry.take_at_end(self.slab().slots(), &edit.section);
        edit.cursor().detach(start, false, emptied);
        Some(payload)
    }
}

/// The slot, for a word of the tree.
fn erased<T>(slot: &FreeSlot<'_, T>) -> AnySlot {
    AnySlot::of(slot.slot())
}

/// The entry that a word of a leaf leads to.
///
/// # Safety
///
/// It is a word of the tree of a map, whose slab is there for `'s` and whose mmap lock is held for
/// `'m`.
#[inline]
unsafe fn entry<'s: 'm, 'm, T>(slot: AnySlot) -> Entry<'s, 'm, T> {
    // SAFETY: A1: out of a word of the tree, loaded with acquire; of this slab, by M1.
    let slot = unsafe { slot.get() };
    // SAFETY: T3, as the caller says. Unique access to a payload is given out only by `Edit`, which
    // is borrowed mutably for as long.
    unsafe { Entry::new(slot) }
}

impl<T, P: Platform> Drop for Map<T, P> {
    fn drop(&mut self) {
        /// Goes on when a payload's destructor panics.
        struct Rest<I: Iterator>(I);

        impl<I: Iterator> Rest<I> {
            fn drop_all(&mut self) {
                self.0.by_ref().for_each(drop);
            }
        }

        impl<I: Iterator> Drop for Rest<I> {
            fn drop(&mut self) {
                self.drop_all();
            }
        }

        if self.is_abandoned() {
            mem::forget(mem::replace(&mut self.slab, SlabRef::own()));
            return;
        }
        match &self.slab {
            // Nothing else looks at the slots or the tree: they end as they are.
            SlabRef::Own(_) => {
                let _edit = self.write();
                let mut at = self.tree.seek(0);
                let payloads = core::iter::from_fn(move || {
                    let here = at.as_mut()?;
                    // SAFETY: a word of this map's tree, whose mmap lock is held.
                    let entry = unsafe { entry::<T>(here.slot()?) };
                    if !here.next() {
                        at = None;
                    }
                    // SAFETY: this is the drop of the space that the slab is part of, and it comes
                    // by each entry once.
                    Some(unsafe { entry.take_last() })
                });
                Rest(payloads).drop_all();
            }
            SlabRef::Shared(_) => Rest(core::iter::from_fn(|| self.pop())).drop_all(),
        }
    }
}

/// The VMAs of a space while the mmap lock is held: what [`View`](crate::View) and
/// [`Edit`](crate::Edit) have in common.
///
/// ```
/// use pervma::{AddressSpace, Vmas};
///
/// fn mapped_bytes(vmas: &Vmas<'_, &str>) -> usize {
///     vmas.iter().map(|(range, _)| range.len()).sum()
/// }
///
/// let space = AddressSpace::new(4096);
/// let mut edit = space.edit()?;
/// edit.insert(0x1000..0x3000, "text")?;
/// assert_eq!(mapped_bytes(&edit), 0x2000);
/// assert_eq!(mapped_bytes(&edit.downgrade()), 0x2000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Vmas<'s, T, P: Platform = DefaultPlatform> {
    map: &'s Map<T, P>,
    // Neither `Send` nor `Sync`: the mmap lock belongs to its thread (M2).
    _thread: PhantomData<*const ()>,
}

impl<'s, T, P: Platform> Vmas<'s, T, P> {
    /// The VMAs of a map whose mmap lock is held by the value that the result is part of (M2).
    #[inline]
    fn new(map: &'s Map<T, P>) -> Self {
        Self { map, _thread: PhantomData }
    }

    #[inline]
    pub(crate) fn map(&self) -> &'s Map<T, P> {
        self.map
    }

    /// The entry that a word of the tree leads to.
    #[inline]
    fn entry(&self, slot: AnySlot) -> Entry<'s, '_, T> {
        // SAFETY: a word of this map's tree; by M2 its mmap lock is held as long as `self` is
        // borrowed.
        unsafe { entry(slot) }
    }

    /// The entry that starts at `addr` or last before it.
    pub(crate) fn floor(&self, addr: usize) -> Option<Entry<'s, '_, T>> {
        let entry = self.entry(self.map.tree.walk(addr, &mut ())?);
        (entry.span().start <= addr).then_some(entry)
    }

    /// The entry that holds `addr`.
    pub(crate) fn holding(&self, addr: usize) -> Option<Entry<'s, '_, T>> {
        self.floor(addr).filter(|entry| entry.span().contains(addr))
    }

    /// The entry that starts at `addr` or first after it.
    pub(crate) fn first_from(&self, addr: usize) -> Option<Entry<'s, '_, T>> {
        Some(self.entry(self.map.tree.walk_from(addr, &mut ())?))
    }

    /// The last VMA that starts below `addr`.
    pub(crate) fn last_before(&self, mut addr: usize) -> Option<Entry<'s, '_, T>> {
        loop {
            let entry = self.floor(addr.checked_sub(1)?)?;
            if !entry.is_reserved() {
                return Some(entry);
            }
            addr = entry.span().start;
        }
    }

    /// The entries with a byte in `span`, in order of address.
    pub(crate) fn entries(&self, span: Span) -> impl Iterator<Item = Entry<'s, '_, T>> {
        // Each step looks anew: between two of them the thread may end a reservation of its own.
        let mut last_end = None;
        core::iter::from_fn(move || {
            let entry = match last_end {
                None => self.holding(span.start).or_else(|| self.first_from(span.start)),
                Some(from) => self.first_from(from),
            };
            let entry = entry.filter(|entry| entry.span().start < span.end)?;
            last_end = Some(entry.span().end);
            Some(entry)
        })
    }

    /// The first entry that is followed by such a gap.
    pub(crate) fn first_gap(&self, wanted: Wanted) -> Option<Entry<'s, '_, T>> {
        Some(self.entry(self.map.tree.first_gap(wanted)?))
    }

    /// The last entry that is followed by such a gap.
    pub(crate) fn last_gap(&self, wanted: Wanted) -> Option<Entry<'s, '_, T>> {
        Some(self.entry(self.map.tree.last_gap(wanted)?))
    }
}

/// A map with its mmap lock held for reading.
pub(crate) struct MapRead<'s, T, P: Platform> {
    vmas: Vmas<'s, T, P>,
    section: MmapRead<'s, P>,
}

impl<'s, T, P: Platform> MapRead<'s, T, P> {
    #[inline]
    pub(crate) fn section(&self) -> &MmapRead<'s, P> {
        &self.section
    }
}

impl<'s, T, P: Platform> Deref for MapRead<'s, T, P> {
    type Target = Vmas<'s, T, P>;

    #[inline]
    fn deref(&self) -> &Vmas<'s, T, P> {
        &self.vmas
    }
}

/// A map in an edit: its mmap lock held for writing.
pub(crate) struct MapWrite<'s, T, P: Platform> {
    vmas: Vmas<'s, T, P>,
    section: EditGuard<'s, P>,
}

impl<'s, T, P: Platform> Deref for MapWrite<'s, T, P> {
    type Target = Vmas<'s, T, P>;

    #[inline]
    fn deref(&self) -> &Vmas<'s, T, P> {
        &self.vmas
    }
}

impl<'s, T, P: Platform> MapWrite<'s, T, P> {
    #[inline]
    pub(crate) fn section(&self) -> &EditSection<'s, P> {
        &self.section
    }

    /// The tree for the editor.
    #[inline]
    pub(crate) fn cursor(&self) -> WriteCursor<'s, '_, T, P> {
        WriteCursor::new(&self.vmas, &self.section)
    }

    /// Ends the edit after a fork, in the child, with nothing left of what other threads held.
    ///
    /// # Safety
    ///
    /// The caller is the only thread of its process, forked in this edit, and is in no call of a
    /// slab. No exclusion was there, and no guard of the space from before is used again.
    pub(crate) unsafe fn end_in_child(self) {
        let Self { vmas, section } = self;
        let map = vmas.map();
        for entry in vmas.entries(EVERYTHING) {
            // SAFETY: as the caller says.
            unsafe { entry.forget_readers() };
        }
        // SAFETY: as the caller says.
        unsafe { map.slab().slots().renew(&section) };
        // SAFETY: as the caller says.
        unsafe { map.slab().node_arena().renew() };
        // SAFETY: as the caller says: the edit is the section's.
        unsafe { map.state().end_in_child(section) };
    }

    /// Ends the edit and keeps the lock for reading, with no other edit in between.
    pub(crate) fn downgrade(self) -> MapRead<'s, T, P> {
        MapRead { vmas: self.vmas, section: self.section.downgrade() }
    }
}

/// The tree in the hands of the thread that edits its space. It goes from where it was last, as
/// long as no node was split or refilled meanwhile.
pub(crate) struct WriteCursor<'s: 'm, 'm, T, P: Platform> {
    map: &'s Map<T, P>,
    /// The map's.
    slab: &'s Slab<T, P>,
    section: &'m EditSection<'m, P>,
    /// Where it was last; good while the tree has this shape. User code that runs in an edit can
    /// change that: it may end a reservation.
    at: Option<Position<'s>>,
    shape: Shape,
}

impl<'s: 'm, 'm, T, P: Platform> WriteCursor<'s, 'm, T, P> {
    #[inline]
    fn new(vmas: &Vmas<'s, T, P>, section: &'m EditSection<'_, P>) -> Self {
        let map = vmas.map;
        Self { map, slab: map.slab(), section, at: None, shape: map.tree.shape() }
    }

    #[inline]
    pub(crate) fn map(&self) -> &'s Map<T, P> {
        self.map
    }

    /// The VMAs as a whole, for as long as the section is borrowed.
    #[inline]
    pub(crate) fn vmas(&self) -> Vmas<'m, T, P> {
        Vmas::new(self.map)
    }

    #[inline]
    pub(crate) fn slots(&self) -> &'s Slots<T, P> {
        self.slab.slots()
    }

    #[inline]
    pub(crate) fn section(&self) -> &'m EditSection<'m, P> {
        self.section
    }

    /// The entry with the largest key not above `addr`, or else the first.
    #[inline]
    fn seek(&mut self, addr: usize) -> Option<&mut Position<'s>> {
        let shape = self.map.tree.shape();
        if self.shape != shape {
            (self.at, self.shape) = (None, shape);
        }
        let at = match &mut self.at {
            Some(at) => {
                at.leave_for(addr);
                at
            }
            none => none.insert(Position::at_root(self.map.tree.root()?)),
        };
        at.seek(addr);
        Some(at)
    }

    /// As [`seek`](Self::seek), for an entry that is probably near.
    #[inline]
    fn go_on_to(&mut self, addr: usize) {
        let is_good = self.shape == self.map.tree.shape();
        if !self.at.as_mut().is_some_and(|at| is_good && at.step_to(addr)) {
            self.seek(addr);
        }
    }

    /// Shows what has a byte in `span`, in order of address and in one walk, as long as `visit`
    /// says so. No user code may run meanwhile.
    #[inline]
    pub(crate) fn visit(&mut self, span: Span, mut visit: impl FnMut(Entry<'s, 'm, T>) -> bool) {
        let Some(at) = self.seek(span.start) else { return };
        while let Some(slot) = at.slot() {
            // SAFETY: a word of this map's tree; the section is borrowed for `'m`.
            let entry: Entry<'s, 'm, T> = unsafe { entry(slot) };
            let vma = entry.span();
            // The first may lie before the span.
            let shown = vma.start < span.end && (vma.end <= span.start || visit(entry));
            if !shown || !at.next() {
                return;
            }
        }
    }

    /// The entry that was sought.
    #[inline(always)]
    fn here(&self) -> Option<Entry<'s, 'm, T>> {
        let slot = self.at.as_ref()?.slot()?;
        // SAFETY: a word of this map's tree; the section is borrowed for `'m`.
        Some(unsafe { entry(slot) })
    }

    /// The entry that holds `addr`, which is probably near.
    #[inline]
    pub(crate) fn holding(&mut self, addr: usize) -> Option<Entry<'s, 'm, T>> {
        self.go_on_to(addr);
        self.here().filter(|entry| entry.span().contains(addr))
    }

    /// A free slot for this edit, which [`exchange`](Self::exchange) will link.
    #[cold]
    pub(crate) fn alloc(&self) -> Result<FreeSlot<'s, T>, OutOfMemory> {
        FreeSlot::alloc(self.slab.slots(), self.section)
    }

    /// Whether nothing is in `span`. Its start was sought then, as
    /// [`link_sought`](Self::link_sought) needs.
    #[inline]
    pub(crate) fn seek_free(&mut self, span: Span) -> bool {
        self.seek(span.start).is_none_or(|at| at.is_free(span))
    }

    /// Links a free slot for `span`, whose start is no other's, to be attached at once: a walker
    /// that gets here finds it detached, or locked. The gaps are right if nothing else is in the
    /// span. When memory runs out nothing has changed.
    #[inline(always)]
    pub(crate) fn link(&mut self, span: Span) -> Result<FreeSlot<'s, T>, OutOfMemory> {
        self.go_on_to(span.start);
        self.link_sought(span)
    }

    /// As [`link`](Self::link), where the start of `span` was sought last.
    #[inline(always)]
    pub(crate) fn link_sought(&mut self, span: Span) -> Result<FreeSlot<'s, T>, OutOfMemory> {
        let slot = FreeSlot::alloc(self.slab.slots(), self.section)?;
        if let Some(at) = self.at.as_ref().filter(|at| !at.leaf_is_full()) {
            at.insert(self.section.edit(), span.start, erased(&slot), span.len());
            return Ok(slot);
        }
        match self.insert_beyond_leaf(span, erased(&slot)) {
            Ok(()) => Ok(slot),
            Err(OutOfMemory) => {
                slot.give_back(self.slab.slots(), self.section);
                Err(OutOfMemory)
            }
        }
    }

    /// Inserts a slot for `span`, which was sought, where the leaf is full or there is none.
    fn insert_beyond_leaf(&mut self, span: Span, slot: AnySlot) -> Result<(), OutOfMemory> {
        let (tree, nodes) = (&self.map.tree, self.slab.node_arena());
        if let Some(at) = &mut self.at
            && tree.split_leaf(nodes, self.section, at, span.start)?
        {
            self.shape = tree.shape();
            at.insert(self.section.edit(), span.start, slot, span.len());
            return Ok(());
        }
        tree.insert(nodes, self.section, span.start, slot, span.len())
    }

    /// Links a free slot for `span`, to be attached at once, if nothing is there; where it follows
    /// what this function linked last, without a search. When memory runs out nothing has changed.
    pub(crate) fn link_in_run(
        &mut self,
        run: &mut Option<Run>,
        span: Span,
    ) -> Result<Option<FreeSlot<'s, T>>, OutOfMemory> {
        let is_good = self.shape == self.map.tree.shape();
        let goes_on = run.as_mut().filter(|run| is_good && run.goes_on_with(span));
        let is_free = goes_on.is_some();
        if let (Some(run), Some(at)) = (goes_on, &mut self.at)
            && !at.leaf_is_full()
        {
            let slot = FreeSlot::alloc(self.slab.slots(), self.section)?;
            run.insert(at, self.section.edit(), erased(&slot), span);
            return Ok(Some(slot));
        }
        if !is_free && !self.seek_free(span) {
            return Ok(None);
        }
        let slot = self.link_sought(span)?;
        *run = self.seek(span.start).map(|at| Run::begin(at, span));
        Ok(Some(slot))
    }

    /// Takes the entry at `start` out of the tree. What it held is `kept` by the entry before, or
    /// else becomes part of the gap before it.
    #[inline]
    pub(crate) fn unlink(&mut self, start: usize, kept: bool) {
        self.go_on_to(start);
        self.unlink_sought(start, kept);
    }

    /// As [`unlink`](Self::unlink), where `start` was sought last and nothing has waited since.
    #[inline]
    fn unlink_sought(&mut self, start: usize, kept: bool) {
        match &self.at {
            Some(at) if at.key() == start && at.leaf_is_not_sparse() => {
                at.remove(self.section.edit(), kept);
            }
            _ => self.map.tree.remove(self.slab.node_arena(), self.section, start, kept),
        }
    }

    /// Takes the entry at `start` out of the tree, as [`unlink`](Self::unlink) does, and detaches
    /// it.
    #[inline]
    pub(crate) fn detach(&mut self, start: usize, kept: bool, emptied: Emptied<'s, T>) {
        self.unlink(start, kept);
        emptied.detach(self.slab.slots(), self.section);
    }

    /// Detaches the entry at `start`, and links `slot` in its place.
    pub(crate) fn exchange(
        &mut self,
        start: usize,
        emptied: Emptied<'s, T>,
        slot: &FreeSlot<'s, T>,
    ) {
        let edit = self.section.edit();
        if let Some(at) = self.seek(start) {
            at.relink(edit, erased(slot));
        }
        emptied.detach(self.slab.slots(), self.section);
    }

    /// Takes out the VMA at `span`, waiting for its readers, if there is exactly one and no other
    /// thread excludes it; else nothing has changed.
    #[inline]
    pub(crate) fn take_whole(&mut self, span: Span) -> Option<T> {
        self.seek(span.start);
        let entry = self.here()?;
        if entry.span() != span {
            return None;
        }
        let slots = self.slab.slots();
        let mut excluded = Excluded::new(slots, false);
        excluded.push(entry.vma()?, self.section).then_some(())?;
        let mut waited = false;
        let (_, payload, emptied) = excluded.take_first(|| waited = true)?;
        if waited {
            // Meanwhile the platform may have ended a reservation.
            self.unlink(span.start, false);
        } else {
            self.unlink_sought(span.start, false);
        }
        emptied.detach(slots, self.section);
        self.section.count_vmas(1, 0);
        Some(payload)
    }

    /// Ends a reservation.
    #[cold]
    pub(crate) fn release(&mut self, slot: &Reserved<'s, T>) {
        self.map.tree.new_shape(); // for a cursor that has the thread's edit
        let span = slot.span();
        self.unlink(span.start, false);
        let slots = self.slab.slots();
        slot.exclude(slots, self.section).detach(slots, self.section);
        self.update_gaps(span);
    }

    /// Sets the gaps right after changes within `span`: those of all that start in it, and where
    /// nothing starts with it, that of the last entry before it.
    pub(crate) fn update_gaps(&mut self, span: Span) {
        let Some(at) = self.seek(span.start) else { return };
        while let Some(slot) = at.slot() {
            // SAFETY: a word of this map's tree; the section is held.
            let vma = unsafe { entry::<T>(slot) }.span();
            if vma.start >= span.end {
                break; // the first of all, and behind the span
            }
            let next = at.next_key().unwrap_or(usize::MAX);
            at.set_gap(next - vma.end);
            if next >= span.end {
                break;
            }
            at.next();
        }
    }
}

#[cfg(all(test, not(pervma_model)))]
impl<T, P: Platform> MapWrite<'_, T, P> {
    /// Panics unless all invariants of the tree hold, its keys are its VMAs' starts, and its gaps
    /// what is free behind them.
    fn check(&self) {
        let map = self.vmas.map;
        let mut end = usize::MAX;
        for (key, (slot, gap)) in map.tree.checked().into_iter().rev() {
            let span = self.vmas.entry(slot).span();
            assert_eq!((span.start, span.end + gap), (key, end), "a gap is not what is free");
            end = span.start;
        }
    }
}
