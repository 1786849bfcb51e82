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
//! | `space` | a reference (`refcnt` raised), or the mmap lock of the space it names | being free (before attach) |
//! | `span`, `payload` | an admitted reference, or the mmap lock | being free; write-locked; detached |
//! | `link` | the arena's lock | the arena's lock |
//!
//! # Invariants
//!
//! - **A1** An [`Idx`] names an object that its arena has allocated before. It travels from the
//!   thread that allocated it through the arena's lock, the mmap lock, or a release store into a
//!   word of the tree that is loaded with acquire (NODE_LINK, NODE_FOLLOW); so the chunk pointer
//!   and the object's first initialisation are visible to whoever holds it. An index is only used
//!   with the arena that made it: a tree refers to one slab for life.
//! - **A2** A chunk is never freed, moved or opened for unique access before the arena is dropped.
//! - **S1** `payload` is initialised exactly while the slot is attached (from just before attach
//!   until it is taken after detach).
//! - **S2** A [`FreeSlot`] is the only handle to a slot whose count is 0.

use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr;

use alloc::alloc::{Layout, alloc, dealloc};

use crate::error::OutOfMemory;
use crate::facade::{Cell, ConstPtr, MmapLock, const_unless_model, keep};
use crate::ledger::Step;
use crate::lock::{Glimpse, Refused, VmaLock};
use crate::mm::{Mm, ReadSection, SpaceId, WriteSection};
use crate::platform::Platform;
use crate::range::Span;
use crate::thread::HandlerScope;

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
    #[inline(always)]
    pub fn raw(self) -> u32 {
        self.0
    }

    /// An index out of a word of the tree.
    ///
    /// # Safety
    ///
    /// `raw` was stored there by [`raw`](Self::raw) and loaded with acquire, or under the mmap
    /// lock (A1).
    #[inline(always)]
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
    /// Guards `state`, every `link`, and the making of chunks.
    lock: MmapLock<T>,
    state: Cell<ArenaState>,
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
#[inline(always)]
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
        pub fn new() -> Self {
            Self {
                #[cfg(not(pervma_model))]
                chunks: [const { Cell::new(ptr::null_mut()) }; CHUNKS],
                #[cfg(pervma_model)]
                chunks: core::array::from_fn(|_| Cell::new(ptr::null_mut())),
                lock: MmapLock::new(),
                state: Cell::new(ArenaState { free: 0, made: 0, live: 0 }),
            }
        }
    }

    /// The object that `index` names.
    #[inline(always)]
    pub fn get(&self, index: Idx<O>) -> &O {
        let (chunk, offset) = place(index.0);
        debug_assert!(chunk < CHUNKS);
        // SAFETY: A1: the chunk pointer was written before the index came to us.
        let base = self.chunks[chunk].with(|base| unsafe { *base });
        // SAFETY: A1: the object lies within its chunk.
        let object = unsafe { base.add(offset) };
        // SAFETY: A1: it is initialised; A2: it stays, and is only ever shared.
        unsafe { &*object }
    }

    /// An object that nobody else was given: the one freed last, else a new one.
    pub fn alloc(&self) -> Result<Idx<O>, OutOfMemory> {
        let _lock = self.lock.write();
        // SAFETY: `state` is only touched under `lock`, which is held.
        let mut state = self.state.with(|state| unsafe { *state });
        let index = if state.free != 0 {
            let index = state.free - 1;
            // SAFETY: A1: it was allocated before, and came here through `lock`.
            let object = self.get(unsafe { Idx::from_raw(index) });
            // SAFETY: links are only touched under `lock`, which is held.
            state.free = object.link().with(|link| unsafe { *link });
            index
        } else {
            self.make(state.made)?;
            state.made += 1;
            state.made - 1
        };
        state.live += 1;
        // SAFETY: `state` is only touched under `lock`, which is held.
        self.state.with_mut(|at| unsafe { *at = state });
        Ok(Idx(index, PhantomData))
    }

    /// Makes object number `index`, and its chunk if it is the first in it.
    fn make(&self, index: u32) -> Result<(), OutOfMemory> {
        if index >= MOST_OBJECTS {
            return Err(OutOfMemory);
        }
        let (chunk, offset) = place(index);
        if offset == 0 {
            const { assert!(size_of::<O>() != 0) };
            // SAFETY: the layout's size is not zero: neither the object's nor the chunk's is.
            let base = unsafe { alloc(chunk_layout::<O>(chunk)?) }.cast::<O>();
            if base.is_null() {
                return Err(OutOfMemory);
            }
            // SAFETY: under `lock`; readers look only at chunks of which they hold an index, and
            // there is none of this chunk yet (A1).
            self.chunks[chunk].with_mut(|at| unsafe { *at = base });
        }
        // SAFETY: only written under `lock`, which is held.
        let base = self.chunks[chunk].with(|base| unsafe { *base });
        // SAFETY: `offset` lies within the chunk.
        let object = unsafe { base.add(offset) };
        // SAFETY: allocated above for this type, and not yet an object to anyone.
        unsafe { object.write(O::new()) };
        Ok(())
    }

    /// Makes `index`, which the caller was given by `alloc` and gives up, free again.
    pub fn free(&self, index: Idx<O>) {
        let _lock = self.lock.write();
        // SAFETY: `state` is only touched under `lock`, which is held.
        let mut state = self.state.with(|state| unsafe { *state });
        // SAFETY: links are only touched under `lock`, which is held.
        self.get(index).link().with_mut(|link| unsafe { *link = state.free });
        state.free = index.0 + 1;
        state.live -= 1;
        // SAFETY: `state` is only touched under `lock`, which is held.
        self.state.with_mut(|at| unsafe { *at = state });
    }

    /// How many objects were made, and how many of them are in use.
    pub fn usage(&self) -> Usage {
        HandlerScope::<T>::assert_may_wait();
        let _lock = self.lock.read();
        // SAFETY: `state` is only changed under `lock` held for writing.
        let state = self.state.with(|state| unsafe { *state });
        Usage { made: state.made as usize, in_use: state.live as usize }
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
        let made = self.state.with(|state| unsafe { (*state).made });
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
                unsafe { dealloc(base.cast(), layout) };
            }
        }
    }
}

// SAFETY: an arena hands out shared references and indices. Its cells are touched as invariant A1
// and the lock say, from any thread.
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
    link: Cell<u32>,
}

impl<P> Object for Slot<P> {
    fn new() -> Self {
        Self {
            lock: VmaLock::new(),
            span: Cell::new(Span { start: 0, end: 0 }),
            space: Cell::new(SpaceId(0)),
            payload: Cell::new(MaybeUninit::uninit()),
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
    #[inline(always)]
    pub fn looks_locked(&self, before: Glimpse) -> bool {
        self.lock.looks_locked(before)
    }

    /// Pretends that `readers` are inside.
    #[cfg(all(test, not(pervma_model)))]
    pub(crate) fn pretend_readers(&self, readers: u32) {
        self.lock.pretend_readers(readers);
    }
}

/// A reference to a slot, held: whatever is attached there stays attached. Dropping it is the put.
#[must_use]
pub struct Inside<'s, P, T: Platform> {
    slot: &'s Slot<P>,
    _platform: PhantomData<T>,
}

impl<'s, P, T: Platform> Inside<'s, P, T> {
    /// Takes a reference.
    #[inline(always)]
    pub fn enter(slot: &'s Slot<P>) -> Result<Self, Refused> {
        slot.lock.enter()?;
        Ok(Self { slot, _platform: PhantomData })
    }

    /// Checks that the VMA belongs to the space of `mm` and is not write-locked there.
    ///
    /// In this order: the sequence of one space says nothing about a VMA of another.
    #[inline(always)]
    pub fn admit(self, mm: &Mm<T>) -> Option<Admitted<'s, P, T>> {
        // SAFETY: `space` is written only while the slot is free, and a reference keeps it
        // attached (L2).
        let space = self.slot.space.with(|space| unsafe { *space });
        if space != mm.id() && keep(Step::CheckSpace) {
            return None;
        }
        self.slot.lock.unlocked(mm.seq()).then_some(Admitted(self))
    }

    /// Admits with no look at the sequence. The read lock may outlive the section.
    ///
    /// # Safety
    ///
    /// `_section` holds the mmap lock of the space that the VMA is attached to. So no edit is
    /// under way and nobody has it write-locked.
    pub unsafe fn admit_locked(self, _section: &ReadSection<'_, T>) -> Admitted<'s, P, T> {
        Admitted(self)
    }
}

impl<P, T: Platform> Drop for Inside<'_, P, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.slot.lock.leave::<T>();
    }
}

/// A read-locked VMA: its fields are stable.
#[must_use]
pub struct Admitted<'s, P, T: Platform>(Inside<'s, P, T>);

impl<P, T: Platform> Admitted<'_, P, T> {
    /// Its range.
    #[inline(always)]
    pub fn span(&self) -> Span {
        // SAFETY: admitted, so nobody write-locks or detaches it (L2), and only they write it.
        self.0.slot.span.with(|span| unsafe { *span })
    }

    /// Its payload, open for reading while the pointer lives.
    #[inline(always)]
    pub fn payload(&self) -> ConstPtr<MaybeUninit<P>> {
        self.0.slot.payload.get()
    }

    /// The payload behind `opened`.
    ///
    /// # Safety
    ///
    /// `opened` came from [`payload`](Self::payload) of this same read lock.
    #[inline(always)]
    pub unsafe fn deref<'a>(&'a self, opened: &'a ConstPtr<MaybeUninit<P>>) -> &'a P {
        // SAFETY: the pointer is the slot's payload, shared for as long as the read lock (L2).
        let payload = unsafe { &*opened.as_ptr() };
        // SAFETY: S1: attached, so initialised.
        unsafe { payload.assume_init_ref() }
    }
}

/// A VMA found in the tree with the mmap lock held: attached to that space, and it stays so for
/// as long as the section.
pub struct Attached<'m, P> {
    slot: &'m Slot<P>,
    index: Idx<Slot<P>>,
}

impl<'m, P> Attached<'m, P> {
    /// A VMA out of the tree.
    ///
    /// # Safety
    ///
    /// The slot is attached to the space whose mmap lock is held for `'m`, and while the result
    /// or anything borrowed from it lives, no other handle gives unique access to its payload.
    pub unsafe fn new(slot: &'m Slot<P>, index: Idx<Slot<P>>) -> Self {
        Self { slot, index }
    }

    /// Its range.
    pub fn span(&self) -> Span {
        // SAFETY: written only by the holder of the mmap lock for writing, which is either us or
        // nobody.
        self.slot.span.with(|span| unsafe { *span })
    }

    /// Its payload.
    pub fn payload(&self) -> &'m P {
        // SAFETY: as for `span`; unique access is excluded by the contract of `new`.
        let payload = self.slot.payload.with(|payload| unsafe { &*payload });
        // SAFETY: S1: attached, so initialised.
        unsafe { payload.assume_init_ref() }
    }

    /// Write-locks it until the end of the edit, waiting for its readers.
    pub fn start_write<T: Platform>(self, section: &WriteSection<'_, T>) -> WriteLocked<'m, P> {
        self.slot.lock.start_write::<T>(section.edit());
        WriteLocked(self)
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
        // SAFETY: L3: no reader is inside; the contract of `Attached::new` excludes other handles.
        let payload = self.0.slot.payload.with_mut(|payload| unsafe { &mut *payload });
        // SAFETY: S1: attached, so initialised.
        unsafe { payload.assume_init_mut() }
    }

    /// Detaches it, waiting for readers that came in only to find it locked; gives the payload
    /// back and the slot to `arena`. The tree no longer leads here.
    pub fn detach<T: Platform>(self, arena: &Arena<Slot<P>, T>) -> P {
        let Attached { slot, index } = self.0;
        slot.lock.detach::<T>();
        // SAFETY: detached: the count is 0, nobody else may touch the fields (L1).
        let payload = slot.payload.with_mut(|payload| unsafe { payload.read() });
        arena.free(index);
        // SAFETY: S1: it was initialised, and is taken here: the slot is free now.
        unsafe { payload.assume_init() }
    }
}

/// A slot with nothing in it, ours to fill. Dropping it gives it back.
#[must_use]
pub struct FreeSlot<'a, P, T: Platform> {
    arena: &'a Arena<Slot<P>, T>,
    index: Idx<Slot<P>>,
}

impl<'a, P, T: Platform> FreeSlot<'a, P, T> {
    /// A free slot of `arena`.
    pub fn alloc(arena: &'a Arena<Slot<P>, T>) -> Result<Self, OutOfMemory> {
        Ok(Self { arena, index: arena.alloc()? })
    }

    /// The name it will be linked by.
    pub fn index(&self) -> Idx<Slot<P>> {
        self.index
    }

    /// Attaches a VMA to the space under edit, write-locked: nobody enters before the edit ends.
    pub fn attach(self, section: &WriteSection<'_, T>, span: Span, payload: P) {
        let slot = self.arena.get(self.index);
        // SAFETY: S2: the count is 0, so the fields are ours.
        slot.space.with_mut(|space| unsafe { *space = section.space_id() });
        // SAFETY: S2, as above.
        slot.span.with_mut(|at| unsafe { *at = span });
        // SAFETY: S2, as above; what was there before is not initialised (S1).
        slot.payload.with_mut(|at| unsafe { at.write(MaybeUninit::new(payload)) });
        slot.lock.attach(section.edit());
        core::mem::forget(self);
    }
}

impl<P, T: Platform> Drop for FreeSlot<'_, P, T> {
    fn drop(&mut self) {
        self.arena.free(self.index);
    }
}
