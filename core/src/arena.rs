//! Type-stable memory: objects of one kind, reused at once, never returned while any thread may
//! look.
//!
//! # Guarantee
//!
//! An object of an [`Arena`] is an object of that type from its first allocation until the arena
//! is dropped. So a reader that comes too late finds a valid object, perhaps with another's
//! contents, and notices by checking; no writer waits for it.
//!
//! # Invariants
//!
//! - **A1** An [`Idx`] names an object that its arena has allocated before. It travels from the
//!   thread that allocated it through what guards the arena, the mmap lock, or a release store into
//!   a word of the tree that is loaded with acquire (NODE_LINK, NODE_FOLLOW); so the chunk pointer
//!   and the object's first initialisation are visible to the thread that holds it. An index is
//!   only used with the arena that allocated it: a [`Map`](crate::map::Map) has one slab for life.
//! - **A2** A chunk is never freed, moved or opened for unique access before the arena is dropped.
//! - **A3** An arena's state, every `link` and the allocation of chunks are guarded by the arena's
//!   lock; or, where only one space uses it ([`Users::OneSpace`]), by the mmap lock of that space,
//!   which is held for writing whenever that space allocates and frees.

#![expect(unsafe_code, reason = "objects are shared by index, under the invariants above")]

use core::alloc::Layout;
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr;

use crate::error::OutOfMemory;
use crate::held::SlabScope;
use crate::memory::SlabMemory;
use crate::mm::EditSection;
use crate::mmap_lock::{MmapLock, RawWriteGuard};
use crate::platform::Platform;
use crate::step::Step;
use crate::sync::{AtomicU64, Cell, Line, Relaxed, check, const_unless_model, keep};

/// Objects in the first chunk; each further chunk is four times as large. Small under the models,
/// so that a second chunk is reached.
const FIRST_CHUNK: u32 = if cfg!(pervma_model) { 2 } else { 64 };

/// Bits of an index that say which chunk: those that a mask takes.
const CHUNK_BITS: u32 = 4;

/// Chunks in an arena: the place in the last still fits beside the chunk, and both beside the
/// two-bit tag of a word of the tree.
const CHUNKS: usize = 11;

/// The name of an object of one arena.
pub(crate) struct Idx<O>(u32, PhantomData<fn() -> O>);

impl<O> Clone for Idx<O> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<O> Copy for Idx<O> {}

impl<O> Idx<O> {
    /// The number to store in a word of the tree: less than 2³⁰.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn raw(self) -> u32 {
        self.0
    }

    /// An index out of a word of the tree.
    ///
    /// # Safety
    ///
    /// `raw` was stored there by [`raw`](Self::raw) and loaded with acquire, or under the mmap
    /// lock (A1).
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) unsafe fn from_raw(raw: u32) -> Self {
        Self(raw, PhantomData)
    }
}

/// A type of object that an arena can hold.
pub(crate) trait Object {
    /// An object in its first state.
    fn new() -> Self;
    /// The next free object, when this one is free.
    fn link(&self) -> &Cell<u32>;
}

/// Type-stable memory for objects of one kind.
pub(crate) struct Arena<O, P: Platform> {
    /// The chunks, as many as the mask can name.
    chunks: [Cell<*mut O>; 1 << CHUNK_BITS],
    users: Users,
    /// Written in every edit, so on no line that readers load.
    free: Line<FreeList<P>>,
}

/// The state that allocations change.
struct FreeList<P: Platform> {
    /// The arena's lock (A3).
    lock: MmapLock<P>,
    state: Cell<ArenaState>,
    /// How many objects there are, in the upper half, and how many are in use: for any thread.
    usage: AtomicU64,
}

/// Which spaces allocate from an arena.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    /// One space, only in its edits.
    OneSpace,
    /// Any number of spaces.
    Spaces,
}

#[derive(Clone, Copy)]
struct ArenaState {
    /// The free object that was freed last, plus 1; 0 for none.
    free: u32,
    /// How many objects have ever been initialised.
    initialised: u32,
    /// How many of them are not free.
    live: u32,
}

impl<O> Idx<O> {
    /// The index of the object that was initialised after `number` others, within the capacity.
    fn of(number: u32) -> Option<Self> {
        let mut place = number as usize;
        for chunk in 0..CHUNKS {
            match place.checked_sub(chunk_len(chunk)) {
                Some(rest) => place = rest,
                None => return Some(Self((place << CHUNK_BITS | chunk) as u32, PhantomData)),
            }
        }
        None
    }

    /// Which chunk holds it, and where in it.
    #[cfg_attr(not(debug_assertions), inline(always))]
    const fn place(self) -> (usize, usize) {
        ((self.0 & ((1 << CHUNK_BITS) - 1)) as usize, (self.0 >> CHUNK_BITS) as usize)
    }
}

const fn chunk_len(chunk: usize) -> usize {
    (FIRST_CHUNK as usize) << (2 * chunk)
}

/// The most objects that an arena holds.
pub(crate) const CAPACITY: usize = {
    let (mut chunk, mut sum) = (0, 0);
    while chunk < CHUNKS {
        sum += chunk_len(chunk);
        chunk += 1;
    }
    sum
};

// What is stored in a word of the tree has 30 bits, and the mask names each chunk.
const _: () = assert!(chunk_len(CHUNKS - 1) << CHUNK_BITS <= 1 << 30 && CHUNKS <= 1 << CHUNK_BITS);

fn chunk_layout<O>(chunk: usize) -> Result<Layout, OutOfMemory> {
    Layout::array::<O>(chunk_len(chunk)).map_err(|_| OutOfMemory)
}

impl<O: Object, P: Platform> Arena<O, P> {
    const_unless_model! {
        pub(crate) fn new(users: Users) -> Self {
            Self {
                #[cfg(not(pervma_model))]
                chunks: [const { Cell::new(ptr::null_mut()) }; 1 << CHUNK_BITS],
                #[cfg(pervma_model)]
                chunks: core::array::from_fn(|_| Cell::new(ptr::null_mut())),
                users,
                free: Line(FreeList {
                    lock: MmapLock::new(),
                    state: Cell::new(ArenaState { free: 0, initialised: 0, live: 0 }),
                    usage: AtomicU64::new(0),
                }),
            }
        }
    }

    /// The object that `index` names.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn get(&self, index: Idx<O>) -> &O {
        let (chunk, offset) = index.place();
        // SAFETY: A1: the chunk pointer was written before the index came to us.
        let base = self.chunks[chunk].with(|base| unsafe { *base });
        check(!base.is_null(), "a node is taken for a VMA, or a VMA for a node");
        // SAFETY: A1: the object lies within its chunk.
        let object = unsafe { base.add(offset) };
        // SAFETY: A1: it is initialised; A2: it stays, and is only ever shared.
        unsafe { &*object }
    }

    /// Guards the arena while the caller allocates and frees (A3): takes the lock of the arena,
    /// unless only one space uses it, whose mmap lock the section holds for writing.
    #[inline]
    fn guard(&self, _section: &EditSection<'_, P>) -> Option<RawWriteGuard<'_, P>> {
        (self.users == Users::Spaces).then(|| {
            let _scope = SlabScope::<P>::enter();
            self.free.0.lock.write()
        })
    }

    /// Allocates an object: the one freed last, else a new one. The section is one of the space
    /// that the object is for.
    #[inline]
    pub(crate) fn alloc(&self, section: &EditSection<'_, P>) -> Result<Idx<O>, OutOfMemory> {
        let _guard = self.guard(section);
        // SAFETY: A3, by `_guard` and the section: no other thread allocates or frees meanwhile.
        let mut state = self.free.0.state.with(|state| unsafe { *state });
        let index = if state.free != 0 {
            // SAFETY: A1: it was allocated before, and came here under the guard.
            let index = unsafe { Idx::from_raw(state.free - 1) };
            // SAFETY: A3, by the same; a free object's link is the arena's.
            state.free = self.get(index).link().with(|link| unsafe { *link });
            index
        } else {
            let index = Idx::of(state.initialised).ok_or(OutOfMemory)?;
            self.init(index)?;
            state.initialised += 1;
            index
        };
        state.live += 1;
        self.set_state(state);
        Ok(index)
    }

    /// Sets the state, under the guard.
    #[inline]
    fn set_state(&self, state: ArenaState) {
        // SAFETY: A3: the two callers hold what `guard` says, until they return.
        self.free.0.state.with_mut(|at| unsafe { *at = state });
        let usage = u64::from(state.initialised) << 32 | u64::from(state.live);
        self.free
            .0
            .usage
            .store(usage, Relaxed("a count to look at, which says nothing of the objects"));
    }

    /// Initialises the object `index`, and allocates its chunk if it is the first in it.
    #[cold]
    fn init(&self, index: Idx<O>) -> Result<(), OutOfMemory> {
        let (chunk, offset) = index.place();
        if offset == 0 {
            const { assert!(size_of::<O>() != 0) };
            let layout = chunk_layout::<O>(chunk)?;
            let scope = SlabScope::<P>::enter();
            let base = P::Memory::alloc(layout).cast::<O>();
            drop(scope);
            if base.is_null() {
                return Err(OutOfMemory);
            }
            // SAFETY: A3: `alloc`, the only caller, holds what `guard` says. Readers look only at
            // chunks of which they hold an index, and there is none of this chunk yet (A1).
            self.chunks[chunk].with_mut(|at| unsafe { *at = base });
        }
        // SAFETY: written nowhere but above, and guarded as there.
        let base = self.chunks[chunk].with(|base| unsafe { *base });
        // SAFETY: `offset` lies within the chunk.
        let object = unsafe { base.add(offset) };
        // SAFETY: allocated above for this type, and no thread has its index yet.
        unsafe { object.write(O::new()) };
        Ok(())
    }

    /// Makes `index`, which the caller was given by `alloc` and gives up, free again.
    #[inline]
    pub(crate) fn free(&self, index: Idx<O>, section: &EditSection<'_, P>) {
        let _guard = self.guard(section);
        // SAFETY: A3, by `_guard` and the section: no other thread allocates or frees meanwhile.
        let mut state = self.free.0.state.with(|state| unsafe { *state });
        // SAFETY: A3, by the same; the caller gave the object up, so its link is the arena's.
        self.get(index).link().with_mut(|link| unsafe { *link = state.free });
        state.free = index.0 + 1;
        state.live -= 1;
        self.set_state(state);
    }

    /// Shows all objects that were initialised; meanwhile no thread initialises one, or runs this.
    pub(crate) fn with_all<'a, R>(
        &'a self,
        section: &EditSection<'_, P>,
        run: impl FnOnce(All<'a, O, P>) -> R,
    ) -> R {
        let _guard = keep(Step::GuardRecords).then(|| self.guard(section));
        // SAFETY: A3: guarded as in `alloc`, and only looked at.
        let initialised = self.free.0.state.with(|state| unsafe { (*state).initialised });
        run(All { arena: self, rest: 0..initialised })
    }

    /// Makes the arena's lock new after a fork, in the child.
    ///
    /// A thread that held it at the fork has stopped between any two of its steps. That does no
    /// harm: it shows what it did by its last store, of the state. Of this the child may have some
    /// words and not others, and then it initialises an object once more, whose index nobody has,
    /// or never uses it again, or counts one too many in use.
    ///
    /// # Safety
    ///
    /// The caller is the only thread of its process, has just forked, and does not guard the arena.
    pub(crate) unsafe fn renew(&self) {
        // SAFETY: as the caller says.
        unsafe { self.free.0.lock.renew() };
    }

    /// How many objects there are, and how many of them are in use.
    pub(crate) fn usage(&self) -> Usage {
        let usage = self.free.0.usage.load(Relaxed("the caller may be late anyway"));
        Usage { capacity: (usage >> 32) as usize, in_use: (usage as u32) as usize }
    }
}

/// The objects of an arena.
pub(crate) struct All<'a, O, P: Platform> {
    arena: &'a Arena<O, P>,
    rest: Range<u32>,
}

impl<'a, O: Object, P: Platform> Iterator for All<'a, O, P> {
    type Item = &'a O;

    fn next(&mut self) -> Option<&'a O> {
        // It was initialised, as was known under the guard (A3).
        self.rest.next().and_then(Idx::of).map(|index| self.arena.get(index))
    }
}

impl<O, P: Platform> Clone for All<'_, O, P> {
    fn clone(&self) -> Self {
        Self { arena: self.arena, rest: self.rest.clone() }
    }
}

/// How many objects of one kind a slab has memory for, and how many are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Objects that have memory, in use or free. Never falls.
    pub capacity: usize,
    /// Objects in use.
    pub in_use: usize,
}

impl<O, P: Platform> Drop for Arena<O, P> {
    fn drop(&mut self) {
        // SAFETY: `&mut self`: no other thread looks.
        let initialised = self.free.0.state.with(|state| unsafe { (*state).initialised });
        for index in (0..initialised).filter_map(Idx::<O>::of) {
            let (chunk, offset) = index.place();
            // SAFETY: `&mut self`: no other thread looks.
            let base = self.chunks[chunk].with(|base| unsafe { *base });
            // SAFETY: object number `index` lies there.
            let object = unsafe { base.add(offset) };
            // SAFETY: it was initialised, and this is the end of A2.
            unsafe { ptr::drop_in_place(object) };
        }
        for (chunk, base) in self.chunks.iter().enumerate() {
            // SAFETY: `&mut self`: no other thread looks.
            let base = base.with(|base| unsafe { *base });
            if let (false, Ok(layout)) = (base.is_null(), chunk_layout::<O>(chunk)) {
                // SAFETY: allocated in `init` with this layout; its objects are dropped.
                unsafe { P::Memory::dealloc(base.cast(), layout) };
            }
        }
    }
}

// SAFETY: an arena hands out shared references and indices. Its cells are touched as invariants A1
// and A3 say, from any thread.
unsafe impl<O: Send + Sync, P: Platform> Sync for Arena<O, P> {}
// SAFETY: an arena owns its objects; nothing in it belongs to a thread.
unsafe impl<O: Send + Sync, P: Platform> Send for Arena<O, P> {}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_place_of_its_own_until_there_is_none() {
        let place = |number| Idx::<u64>::of(number).map(Idx::place);
        let (mut first, mut chunk) = (0_u32, 0);
        while chunk < CHUNKS {
            let len = chunk_len(chunk);
            assert_eq!(place(first), Some((chunk, 0)));
            assert_eq!(place(first + len as u32 - 1), Some((chunk, len - 1)));
            (first, chunk) = (first + len as u32, chunk + 1);
        }
        assert_eq!((first, place(first)), (89_478_464, None));
        assert!(Idx::<u64>::of(first - 1).is_some_and(|last| last.raw() < 1 << 30));
    }
}
