//! Type-stable memory: slots for VMAs and nodes for trees, reused at once, never returned while
//! anyone may look.
//!
//! # Guarantee
//!
//! An object of an [`Arena`] is an object of that type from its first allocation until the arena
//! is dropped. So a reader that comes too late finds a valid slot, perhaps with another VMA in it,
//! perhaps of another space, and notices by checking; it is never waited for.
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
//! - **A1** An [`Idx`] names an object that its arena has allocated before. It travels from the
//!   thread that allocated it through what guards the arena, the mmap lock, or a release store into a
//!   word of the tree that is loaded with acquire (NODE_LINK, NODE_FOLLOW); so the chunk pointer
//!   and the object's first initialisation are visible to whoever holds it. An index is only used
//!   with the arena that made it: a tree refers to one slab for life.
//! - **A2** A chunk is never freed, moved or opened for unique access before the arena is dropped.
//! - **A3** An arena's state, every `link` and the making of chunks are guarded by the arena's lock;
//!   or, where it is one space's alone ([`Users::OneSpace`]), by the mmap lock of that space, which
//!   is held for writing whenever that space allocates and frees.
//! - **S1** `payload` is initialised exactly while the slot is attached and `space` does not say
//!   *reserved*, except in the hands of who has it alone ([`Emptied`]).
//! - **S2** A [`FreeSlot`] is the only handle to a slot whose count is 0.
//! - **S3** An [`Excluded`] list has added X to each of its VMAs. Whoever meets an X that is not
//!   its own leaves the VMA alone, so each stays attached to its space, unchanged.

use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr;

use core::alloc::Layout;

use crate::error::OutOfMemory;
use crate::facade::{
    AtomicU32, AtomicU64, Cell, ConstPtr, MmapLock, MmapWriteGuard, Relaxed, check,
    const_unless_model, keep,
};
use crate::ledger::{LEAVE_BEHIND, Step, TAKE_ON};
use crate::lock::{EditSeq, Line, Refused, SpaceSeq, Ticket, VmaLock};
use crate::memory::SlabMemory;
use crate::mm::{Mm, ReadSection, Section, SpaceId, WriteSection};
use crate::platform::Platform;
use crate::range::Span;

/// Objects in the first chunk; each further chunk is twice as large. Small under the models, so
/// that a second chunk is reached.
const FIRST_CHUNK: u32 = if cfg!(pervma_model) { 2 } else { 64 };

/// Chunks in an arena: enough for the 2³⁰ objects that a word of the tree can name.
const CHUNKS: usize = 25;

/// The most objects in an arena: an index shares its word with a two-bit tag.
const MOST_OBJECTS: u32 = 1 << 30;

/// The name of an object of one arena.
pub struct Idx<O>(u32, PhantomData<fn() -> O>);

impl<O> Clone for Idx<O> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<O> Copy for Idx<O> {}

impl<O> Idx<O> {
    /// The number, for a word of the tree.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn raw(self) -> u32 {
        self.0
    }

    /// An index out of a word of the tree.
    ///
    /// # Safety
    ///
    /// `raw` was stored there by [`raw`](Self::raw) and loaded with acquire, or under the mmap
    /// lock (A1).
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub unsafe fn from_raw(raw: u32) -> Self {
        Self(raw, PhantomData)
    }
}

/// What an arena holds.
pub trait Object {
    /// An object in its first state.
    fn new() -> Self;
    /// The next free object, when this one is free.
    fn link(&self) -> &Cell<u32>;
}

/// Type-stable memory for objects of one kind.
pub struct Arena<O, T: Platform> {
    chunks: [Cell<*mut O>; CHUNKS],
    users: Users,
    /// Written in every edit, so on no line that readers load.
    free: Line<FreeList<T>>,
}

/// What allocations change.
struct FreeList<T: Platform> {
    /// See A3.
    lock: MmapLock<T>,
    state: Cell<ArenaState>,
    /// How many objects were made, in the upper half, and how many are in use: for everybody.
    usage: AtomicU64,
}

/// Who allocates from an arena.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// One space, only in its edits.
    OneSpace,
    /// Any number of spaces.
    Spaces,
}

#[derive(Clone, Copy)]
struct ArenaState {
    /// The free object that was freed last, plus 1; 0 for none.
    free: u32,
    /// How many objects have ever been made.
    made: u32,
    /// How many are neither free nor unmade.
    live: u32,
}

/// Which chunk holds the object `index`, and where in it.
#[cfg_attr(not(debug_assertions), inline(always))]
const fn place(index: u32) -> (usize, usize) {
    let number = index + FIRST_CHUNK;
    let chunk = number.ilog2() - FIRST_CHUNK.ilog2();
    (chunk as usize, (number - (FIRST_CHUNK << chunk)) as usize)
}

fn chunk_layout<O>(chunk: usize) -> Result<Layout, OutOfMemory> {
    Layout::array::<O>((FIRST_CHUNK as usize) << chunk).map_err(|_| OutOfMemory)
}

impl<O: Object, T: Platform> Arena<O, T> {
    const_unless_model! {
        pub fn new(users: Users) -> Self {
            Self {
                #[cfg(not(pervma_model))]
                chunks: [const { Cell::new(ptr::null_mut()) }; CHUNKS],
                #[cfg(pervma_model)]
                chunks: core::array::from_fn(|_| Cell::new(ptr::null_mut())),
                users,
                free: Line(FreeList {
                    lock: MmapLock::new(),
                    state: Cell::new(ArenaState { free: 0, made: 0, live: 0 }),
                    usage: AtomicU64::new(0),
                }),
            }
        }
    }

    /// The object that `index` names.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn get(&self, index: Idx<O>) -> &O {
        let (chunk, offset) = place(index.0);
        debug_assert!(chunk < CHUNKS);
        // SAFETY: A1: the chunk pointer was written before the index came to us.
        let base = self.chunks[chunk].with(|base| unsafe { *base });
        check(!base.is_null(), "a node is taken for a VMA, or a VMA for a node");
        // SAFETY: A1: the object lies within its chunk.
        let object = unsafe { base.add(offset) };
        // SAFETY: A1: it is initialised; A2: it stays, and is only ever shared.
        unsafe { &*object }
    }

    /// What guards the arena, beside the section that the caller has (A3).
    #[inline]
    fn guard(&self, _section: &WriteSection<'_, T>) -> Option<MmapWriteGuard<'_, T>> {
        (self.users == Users::Spaces).then(|| self.free.0.lock.write())
    }

    /// An object that nobody else was given: the one freed last, else a new one. The section is one
    /// of the space that the object is for.
    #[inline]
    pub fn alloc(&self, section: &WriteSection<'_, T>) -> Result<Idx<O>, OutOfMemory> {
        let _guard = self.guard(section);
        // SAFETY: A3.
        let mut state = self.free.0.state.with(|state| unsafe { *state });
        let index = if state.free != 0 {
            let index = state.free - 1;
            // SAFETY: A1: it was allocated before, and came here under the guard.
            let object = self.get(unsafe { Idx::from_raw(index) });
            // SAFETY: A3.
            state.free = object.link().with(|link| unsafe { *link });
            index
        } else {
            self.make(state.made)?;
            state.made += 1;
            state.made - 1
        };
        state.live += 1;
        self.set_state(state);
        Ok(Idx(index, PhantomData))
    }

    /// Sets the state, for those who have the guard.
    #[inline]
    fn set_state(&self, state: ArenaState) {
        // SAFETY: A3.
        self.free.0.state.with_mut(|at| unsafe { *at = state });
        let usage = u64::from(state.made) << 32 | u64::from(state.live);
        self.free
            .0
            .usage
            .store(usage, Relaxed("a count to look at, which says nothing of the objects"));
    }

    /// Makes object number `index`, and its chunk if it is the first in it.
    #[cold]
    fn make(&self, index: u32) -> Result<(), OutOfMemory> {
        if index >= MOST_OBJECTS {
            return Err(OutOfMemory);
        }
        let (chunk, offset) = place(index);
        if offset == 0 {
            const { assert!(size_of::<O>() != 0) };
            let base = T::Memory::alloc(chunk_layout::<O>(chunk)?).cast::<O>();
            if base.is_null() {
                return Err(OutOfMemory);
            }
            // SAFETY: A3; readers look only at chunks of which they hold an index, and
            // there is none of this chunk yet (A1).
            self.chunks[chunk].with_mut(|at| unsafe { *at = base });
        }
        // SAFETY: only written here, so A3.
        let base = self.chunks[chunk].with(|base| unsafe { *base });
        // SAFETY: `offset` lies within the chunk.
        let object = unsafe { base.add(offset) };
        // SAFETY: allocated above for this type, and not yet an object to anyone.
        unsafe { object.write(O::new()) };
        Ok(())
    }

    /// Makes `index`, which the caller was given by `alloc` and gives up, free again.
    #[inline]
    pub fn free(&self, index: Idx<O>, section: &WriteSection<'_, T>) {
        let _guard = self.guard(section);
        // SAFETY: A3.
        let mut state = self.free.0.state.with(|state| unsafe { *state });
        // SAFETY: A3.
        self.get(index).link().with_mut(|link| unsafe { *link = state.free });
        state.free = index.0 + 1;
        state.live -= 1;
        self.set_state(state);
    }

    /// How many objects were made, and how many of them are in use.
    pub fn usage(&self) -> Usage {
        let usage = self.free.0.usage.load(Relaxed("the caller may be late anyway"));
        Usage { made: (usage >> 32) as usize, in_use: (usage as u32) as usize }
    }
}

/// How much of a slab's memory has been made and how much is in use, counted in objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Objects that exist, in use or free. Never falls.
    pub made: usize,
    /// Objects in use.
    pub in_use: usize,
}

impl<O, T: Platform> Drop for Arena<O, T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self`: nobody else looks.
        let made = self.free.0.state.with(|state| unsafe { (*state).made });
        for index in 0..made {
            let (chunk, offset) = place(index);
            // SAFETY: `&mut self`: nobody else looks.
            let base = self.chunks[chunk].with(|base| unsafe { *base });
            // SAFETY: object number `index` lies there.
            let object = unsafe { base.add(offset) };
            // SAFETY: it was made, and this is the end of A2.
            unsafe { ptr::drop_in_place(object) };
        }
        for (chunk, base) in self.chunks.iter().enumerate() {
            // SAFETY: `&mut self`: nobody else looks.
            let base = base.with(|base| unsafe { *base });
            if let (false, Ok(layout)) = (base.is_null(), chunk_layout::<O>(chunk)) {
                // SAFETY: allocated in `make` with this layout; its objects are dropped.
                unsafe { T::Memory::dealloc(base.cast(), layout) };
            }
        }
    }
}

// SAFETY: an arena hands out shared references and indices. Its cells are touched as invariants A1
// and A3 say, from any thread.
unsafe impl<O: Send + Sync, T: Platform> Sync for Arena<O, T> {}
// SAFETY: an arena owns its objects; nothing in it belongs to a thread.
unsafe impl<O: Send + Sync, T: Platform> Send for Arena<O, T> {}

/// The place of one VMA. Aligned to a cache line, so that readers of one VMA do not disturb those
/// of the next.
#[repr(C, align(64))]
pub struct Slot<P> {
    lock: VmaLock,
    span: Cell<Span>,
    space: Cell<SpaceId>,
    payload: Cell<MaybeUninit<P>>,
    /// The next VMA of an [`Excluded`] list, or the next reservation that was left behind, plus 1; 0 at
    /// the end.
    chain: Cell<u32>,
    link: Cell<u32>,
}

impl<P> Object for Slot<P> {
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
unsafe impl<P: Send + Sync> Sync for Slot<P> {}
// SAFETY: as for `Sync`; nothing in a slot belongs to a thread.
unsafe impl<P: Send + Sync> Send for Slot<P> {}

impl<P> Slot<P> {
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
    pub(crate) fn leave_unordered<T: Platform>(&self) {
        self.lock.leave_unordered::<T>();
    }
}

/// A reference to a slot, held: whatever is attached there stays attached. Dropping it is the put.
#[must_use]
pub struct Inside<'s, P, T: Platform> {
    slot: &'s Slot<P>,
    _platform: PhantomData<T>,
}

/// Why a reader that was inside has left again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// The slot is another space's, or write-locked.
    Away,
    /// This range is reserved, since this edit.
    Reserved(Span, EditSeq),
}

impl<'s, P, T: Platform> Inside<'s, P, T> {
    /// Takes a reference.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn enter(slot: &'s Slot<P>) -> Result<Self, Refused> {
        slot.lock.enter()?;
        Ok(Self { slot, _platform: PhantomData })
    }

    /// Checks that the VMA belongs to the space of `mm` and is not write-locked there.
    ///
    /// In this order: the sequence of one space says nothing about a VMA of another.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn admit(self, mm: &Mm<T>) -> Result<Admitted<'s, P, T>, Turned> {
        // SAFETY: `space` is written only while the slot is free or alone, and a reference excludes
        // both (L2).
        let space = self.slot.space.with(|space| unsafe { *space });
        if space != mm.id() && keep(Step::CheckSpace) {
            return Err(self.turn(mm, space));
        }
        if !self.slot.lock.unlocked(mm.seq()) {
            return Err(Turned::Away);
        }
        Ok(Admitted(self))
    }

    #[cold]
    fn turn(self, mm: &Mm<T>, space: SpaceId) -> Turned {
        let over = || self.slot.lock.unlocked(mm.seq()) || !keep(Step::CheckSeqReserved);
        if space == mm.id().reserved() && over() {
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
        _section: &ReadSection<'_, T>,
    ) -> Result<Admitted<'s, P, T>, Turned> {
        // SAFETY: as in `admit`.
        let space = self.slot.space.with(|space| unsafe { *space });
        if space.is_reserved() && keep(Step::CheckReserved) {
            return Err(Admitted(self).reserved());
        }
        Ok(Admitted(self))
    }
}

impl<P, T: Platform> Drop for Inside<'_, P, T> {
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn drop(&mut self) {
        self.slot.lock.leave::<T>();
    }
}

/// A read-locked VMA: its fields are stable.
#[must_use]
pub struct Admitted<'s, P, T: Platform>(Inside<'s, P, T>);

impl<'s, P, T: Platform> Admitted<'s, P, T> {
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
    pub fn payload(&self) -> ConstPtr<MaybeUninit<P>> {
        self.0.slot.payload.get()
    }

    /// The payload behind `opened`.
    ///
    /// # Safety
    ///
    /// `opened` came from [`payload`](Self::payload) of this same read lock.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub unsafe fn deref<'a>(&'a self, opened: &'a ConstPtr<MaybeUninit<P>>) -> &'a P {
        // SAFETY: the pointer is the slot's payload, shared for as long as the read lock (L2).
        let payload = unsafe { &*opened.as_ptr() };
        // SAFETY: S1: attached and not reserved, so initialised.
        unsafe { payload.assume_init_ref() }
    }

    /// The slot, to be tried first next time.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn slot(&self) -> &'s Slot<P> {
        self.0.slot
    }

    /// The same read lock, for longer than the compiler can see.
    ///
    /// # Safety
    ///
    /// It is dropped before the slab.
    pub unsafe fn outliving(self) -> Admitted<'static, P, T>
    where
        P: 'static,
    {
        let slot = ptr::from_ref(self.0.slot);
        core::mem::forget(self);
        // SAFETY: slots stay where they are while the slab lives (A2), as the caller promises.
        let slot = unsafe { &*slot };
        Admitted(Inside { slot, _platform: PhantomData })
    }
}

/// What the tree leads to while the mmap lock is held: a VMA or a reservation, attached to that
/// space for as long as the section.
pub struct Entry<'m, P> {
    slot: &'m Slot<P>,
    index: Idx<Slot<P>>,
}

impl<'m, P> Entry<'m, P> {
    /// What a word of the tree leads to.
    ///
    /// # Safety
    ///
    /// The slot is attached to the space whose mmap lock is held for `'m`, and while the result
    /// or anything borrowed from it lives, no other handle gives unique access to its payload.
    pub unsafe fn new(slot: &'m Slot<P>, index: Idx<Slot<P>>, _section: &'m impl Section) -> Self {
        Self { slot, index }
    }

    /// Its range.
    pub fn span(&self) -> Span {
        // SAFETY: written only by the holder of the mmap lock for writing, which is either us or
        // nobody.
        self.slot.span.with(|span| unsafe { *span })
    }

    /// Its name in the arena.
    pub fn index(&self) -> Idx<Slot<P>> {
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
    pub fn vma(self) -> Option<Attached<'m, P>> {
        let Self { slot, index } = self;
        (!self.is_reserved()).then_some(Attached { slot, index })
    }

    /// Empties it in the drop of its space: waits for late readers of other spaces, and where an
    /// exclusion or a reservation was forgotten, takes it over.
    pub fn take_at_end<T: Platform>(self) -> (Option<P>, Emptied<'m, P>) {
        if !self.is_excluded() {
            self.slot.lock.exclude();
        }
        if keep(Step::DrainOnDrop) {
            self.slot.lock.wait_alone::<T>(None);
        }
        let emptied = Emptied { slot: self.slot, index: self.index, gated: false };
        // SAFETY: alone, and nobody else has a handle.
        (self.vma().map(|vma| unsafe { vma.take() }), emptied)
    }
}

/// A thread that an exclusion has refused, about to sleep. It holds nothing.
pub struct Sleeper<'s, P> {
    slot: &'s Slot<P>,
    ticket: Ticket,
}

impl<'s, P> Sleeper<'s, P> {
    /// Announces it at the gate of an excluded entry; `None` if the exclusion is over.
    pub fn register<T: Platform>(
        arena: &'s Arena<Slot<P>, T>,
        entry: Entry<'_, P>,
    ) -> Option<Self> {
        let slot = arena.get(entry.index);
        Some(Self { slot, ticket: slot.lock.register()? })
    }

    /// Lets the mmap lock go and sleeps until the exclusion is over.
    pub fn sleep<T: Platform>(self, section: impl Section) {
        let kept = if keep(Step::SleepOutside) {
            drop(section);
            None
        } else {
            Some(section)
        };
        self.slot.lock.sleep::<T>(self.ticket);
        drop(kept);
    }
}

/// A VMA whose fields are stable: the mmap lock is held for `'m`, or we exclude it.
pub struct Attached<'m, P> {
    slot: &'m Slot<P>,
    index: Idx<Slot<P>>,
}

impl<'m, P> Attached<'m, P> {
    /// Its range.
    pub fn span(&self) -> Span {
        // SAFETY: written only by the holder of the mmap lock for writing, which is either us or
        // nobody, and not while it is excluded.
        self.slot.span.with(|span| unsafe { *span })
    }

    /// Its payload.
    pub fn payload(&self) -> &'m P {
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
    pub fn start_write<T: Platform>(
        self,
        section: &WriteSection<'_, T>,
    ) -> Option<WriteLocked<'m, P>> {
        let lock = &self.slot.lock;
        if lock.is_excluded() {
            return None;
        }
        if !lock.is_locked_by(section.edit()) {
            lock.exclude();
            lock.wait_alone::<T>(None);
            lock.lock_until_end_of(section.edit());
        }
        Some(WriteLocked(self))
    }

    /// The same, if it has no readers just now.
    pub fn try_start_write<T: Platform>(
        self,
        section: &WriteSection<'_, T>,
    ) -> Option<WriteLocked<'m, P>> {
        let lock = &self.slot.lock;
        if !lock.is_locked_by(section.edit()) {
            if !lock.exclude_idle() {
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
    unsafe fn take(self) -> P {
        // SAFETY: alone: nobody else reads or writes it.
        let payload = self.slot.payload.with_mut(|payload| unsafe { payload.read() });
        // SAFETY: S1: it was initialised, and is taken here.
        unsafe { payload.assume_init() }
    }
}

/// An attached VMA, write-locked by the running edit: no reader is in it or comes in (L3).
pub struct WriteLocked<'m, P>(Attached<'m, P>);

impl<P> WriteLocked<'_, P> {
    /// Its range.
    pub fn span(&self) -> Span {
        self.0.span()
    }

    /// Its payload.
    pub fn payload(&self) -> &P {
        self.0.payload()
    }

    /// Its payload, alone.
    pub fn payload_mut(&mut self) -> &mut P {
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
pub struct Excluded<'s, P, T: Platform> {
    arena: &'s Arena<Slot<P>, T>,
    first: Option<Idx<Slot<P>>>,
    last: Option<Idx<Slot<P>>>,
    /// Whether it outlives its edit, so that somebody may sleep on the gates.
    gated: bool,
}

impl<'s, P, T: Platform> Excluded<'s, P, T> {
    /// An empty list.
    pub fn new(arena: &'s Arena<Slot<P>, T>, gated: bool) -> Self {
        Self { arena, first: None, last: None, gated }
    }

    /// Excludes `vma` and appends it; `false` if somebody excludes it already.
    pub fn push(&mut self, vma: Attached<'_, P>, _section: &WriteSection<'_, T>) -> bool {
        if vma.is_excluded() {
            return false;
        }
        vma.slot.lock.exclude();
        self.append(vma.index);
        true
    }

    /// Takes in one more VMA if it can be had: waiting for its readers in an edit's list, only if
    /// there are none in an exclusion's.
    pub fn join(&mut self, vma: Attached<'_, P>, section: &WriteSection<'_, T>) -> bool {
        if !self.gated {
            return self.push(vma, section);
        }
        let idle = vma.slot.lock.exclude_idle();
        if idle {
            self.append(vma.index);
        }
        idle
    }

    fn append(&mut self, index: Idx<Slot<P>>) {
        self.set_next(index, None);
        match self.last {
            Some(last) => self.set_next(last, Some(index)),
            None => self.first = Some(index),
        }
        self.last = Some(index);
    }

    fn set_next(&self, index: Idx<Slot<P>>, next: Option<Idx<Slot<P>>>) {
        let next = next.map_or(0, |next| next.0 + 1);
        // SAFETY: S3: we have X on it, so the link is ours.
        self.arena.get(index).chain.with_mut(|chain| unsafe { *chain = next });
    }

    fn next(&self, index: Idx<Slot<P>>) -> Option<Idx<Slot<P>>> {
        // SAFETY: S3: we have X on it, so the link is ours.
        let next = self.arena.get(index).chain.with(|chain| unsafe { *chain });
        // SAFETY: stored by `set_next`, out of an index (A1).
        next.checked_sub(1).map(|raw| unsafe { Idx::from_raw(raw) })
    }

    /// The VMAs. Readers may still be inside.
    pub fn iter(&self) -> impl Iterator<Item = Attached<'_, P>> {
        let mut next = self.first;
        core::iter::from_fn(move || {
            let index = next?;
            next = self.next(index);
            Some(Attached { slot: self.arena.get(index), index })
        })
    }

    /// Waits until the readers of all of them have left; `false` if the deadline came first.
    pub fn wait(&self, deadline: Option<T::Deadline>) -> bool {
        self.iter().all(|vma| vma.slot.lock.wait_alone::<T>(deadline))
    }

    /// Whether the readers of all of them have left.
    pub fn is_alone(&self) -> bool {
        self.iter().all(|vma| vma.slot.lock.is_alone())
    }

    /// What the mutant without a list of its own believes: that all in the range is its own.
    #[cfg(pervma_model)]
    pub fn take_over<'m>(&mut self, entries: impl Iterator<Item = Entry<'m, P>>)
    where
        P: 'm,
    {
        (self.first, self.last) = (None, None);
        entries.for_each(|entry| self.append(entry.index));
    }

    /// Takes the first VMA off the list, once it is alone: its range, its payload, and what is left
    /// to be filled again or detached.
    #[inline]
    pub fn take_first(&mut self) -> Option<(Span, P, Emptied<'s, P>)> {
        let index = self.first?;
        self.first = self.next(index);
        if self.first.is_none() {
            self.last = None;
        }
        let slot = self.arena.get(index);
        slot.lock.wait_alone::<T>(None);
        let vma = Attached { slot, index };
        // SAFETY: alone, and the list was the only handle.
        let (span, payload) = (vma.span(), unsafe { vma.take() });
        Some((span, payload, Emptied { slot, index, gated: self.gated }))
    }
}

impl<P, T: Platform> Drop for Excluded<'_, P, T> {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl<P, T: Platform> Excluded<'_, P, T> {
    /// Lets the readers in again, and forgets the VMAs.
    pub fn give_up(&mut self) {
        self.last = None;
        while let Some(index) = self.first {
            let lock = &self.arena.get(index).lock;
            if keep(Step::LinkBeforeEnd) {
                self.first = self.next(index);
            }
            if keep(Step::GiveBack) {
                end_exclusion::<T>(lock, self.gated, VmaLock::readmit);
            }
            if !keep(Step::LinkBeforeEnd) {
                self.first = self.next(index);
            }
        }
    }
}

/// Ends an exclusion, then opens the gate for those who may sleep there.
fn end_exclusion<T: Platform>(lock: &VmaLock, gated: bool, end: impl FnOnce(&VmaLock)) {
    if gated && !keep(Step::OpenLast) {
        lock.open_gate::<T>();
    }
    end(lock);
    if gated && keep(Step::OpenLast) {
        lock.open_gate::<T>();
    }
}

/// An attached slot that we have alone and whose payload was taken out. It must be filled or
/// detached: until then nobody enters.
#[must_use]
pub struct Emptied<'s, P> {
    slot: &'s Slot<P>,
    index: Idx<Slot<P>>,
    gated: bool,
}

impl<'s, P> Emptied<'s, P> {
    /// Makes it a VMA of the space under edit, write-locked until the edit ends.
    pub fn fill<T: Platform>(self, section: &WriteSection<'_, T>, span: Span, payload: P) {
        // SAFETY: alone at X+1 until `publish`; it was taken out before (S1).
        self.slot.payload.with_mut(|at| unsafe { at.write(MaybeUninit::new(payload)) });
        self.publish(section, section.space_id(), span);
    }

    /// Makes it a reservation of the space under edit, write-locked until the edit ends.
    pub fn reserve<T: Platform>(
        self,
        section: &WriteSection<'_, T>,
        span: Span,
    ) -> Reserved<'s, P> {
        let (slot, index) = (self.slot, self.index);
        self.publish(section, section.space_id().reserved(), span);
        Reserved { slot, index }
    }

    fn publish<T: Platform>(self, section: &WriteSection<'_, T>, owner: SpaceId, span: Span) {
        let Self { slot, gated, .. } = self;
        // SAFETY: alone at X+1 until `readmit`.
        slot.space.with_mut(|space| unsafe { *space = owner });
        // SAFETY: as above.
        slot.span.with_mut(|at| unsafe { *at = span });
        end_exclusion::<T>(&slot.lock, gated, |lock| lock.lock_until_end_of(section.edit()));
    }

    /// Detaches it and gives the slot to `arena`. The tree no longer leads here.
    pub fn detach<T: Platform>(self, arena: &Arena<Slot<P>, T>, section: &WriteSection<'_, T>) {
        if !keep(Step::FreeDetached) {
            arena.free(self.index, section);
        }
        end_exclusion::<T>(&self.slot.lock, self.gated, VmaLock::detach);
        if keep(Step::FreeDetached) {
            arena.free(self.index, section);
        }
    }
}

/// The owner's handle to a reserved slot.
pub struct Reserved<'s, P> {
    slot: &'s Slot<P>,
    index: Idx<Slot<P>>,
}

impl<'s, P> Reserved<'s, P> {
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
            match head.compare_exchange(next, self.index.0 + 1, LEAVE_BEHIND) {
                Ok(_) => return,
                Err(now) => next = now,
            }
        }
    }

    /// Takes what was left behind on the list that begins at `head`.
    pub fn take_on<T: Platform>(
        arena: &'s Arena<Slot<P>, T>,
        head: &AtomicU32,
    ) -> impl Iterator<Item = Self> {
        let mut next = head.swap(0, TAKE_ON);
        core::iter::from_fn(move || {
            // SAFETY: stored by `leave_behind`, out of an index (A1).
            let index = unsafe { Idx::from_raw(next.checked_sub(1)?) };
            let slot = arena.get(index);
            // SAFETY: the handle is ours now.
            next = slot.chain.with(|chain| unsafe { *chain });
            Some(Self { slot, index })
        })
    }

    /// Has it alone: waits for lookups that are on their way out again.
    pub fn alone<T: Platform>(&self, _section: &WriteSection<'_, T>) -> Emptied<'s, P> {
        self.slot.lock.exclude();
        self.slot.lock.wait_alone::<T>(None);
        Emptied { slot: self.slot, index: self.index, gated: false }
    }
}

/// A slot with nothing in it, ours to fill or to [`give_back`](Self::give_back). One that is dropped
/// is used again by nobody.
#[must_use]
pub struct FreeSlot<'a, P, T: Platform> {
    arena: &'a Arena<Slot<P>, T>,
    index: Idx<Slot<P>>,
}

impl<'a, P, T: Platform> FreeSlot<'a, P, T> {
    /// A free slot of `arena`.
    pub fn alloc(
        arena: &'a Arena<Slot<P>, T>,
        section: &WriteSection<'_, T>,
    ) -> Result<Self, OutOfMemory> {
        Ok(Self { arena, index: arena.alloc(section)? })
    }

    /// Makes it free again. The tree does not lead here.
    pub fn give_back(self, section: &WriteSection<'_, T>) {
        self.arena.free(self.index, section);
    }

    /// The name it will be linked by.
    pub fn index(&self) -> Idx<Slot<P>> {
        self.index
    }

    /// Attaches a VMA to the space under edit, write-locked: nobody enters before the edit ends.
    pub fn attach(self, section: &WriteSection<'_, T>, span: Span, payload: P) {
        let slot = self.arena.get(self.index);
        // SAFETY: S2: the count is 0, so the fields are ours. What was there before is not
        // initialised (S1).
        slot.payload.with_mut(|at| unsafe { at.write(MaybeUninit::new(payload)) });
        self.publish(section, section.space_id(), span);
    }

    /// Attaches a reservation, write-locked.
    pub fn reserve(self, section: &WriteSection<'_, T>, span: Span) -> Reserved<'a, P> {
        let (slot, index) = (self.arena.get(self.index), self.index);
        self.publish(section, section.space_id().reserved(), span);
        Reserved { slot, index }
    }

    fn publish(self, section: &WriteSection<'_, T>, owner: SpaceId, span: Span) {
        let slot = self.arena.get(self.index);
        check(slot.lock.is_detached(), "a slot is used again whose count is not 0");
        // SAFETY: S2, as in `attach`.
        slot.space.with_mut(|space| unsafe { *space = owner });
        // SAFETY: S2, as above.
        slot.span.with_mut(|at| unsafe { *at = span });
        slot.lock.attach(section.edit());
    }
}
