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
//!   thread that allocated it through what guards the arena, or the mmap lock. So does the object's
//!   address, or through a release store into a word of the tree that is loaded with acquire
//!   (NODE_LINK, NODE_FOLLOW). So the table, the chunk pointer and the object's first
//!   initialisation are visible to the thread that has either. Neither is used with another arena,
//!   nor without it: a [`Map`](crate::map::Map) has one slab for life.
//! - **A2** A chunk is never freed, moved or opened for unique access before the arena is dropped,
//!   nor is the table, which lies in front of the first.
//! - **A3** An arena's state, the `link` of each free object and the allocation of chunks are
//!   guarded by the arena's lock; or, where only one space uses it ([`Users::OneSpace`]), by the
//!   mmap lock of that space, which is held for writing whenever that space allocates and frees.

#![expect(unsafe_code, reason = "objects are shared, under the invariants above")]

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
use crate::sync::{
    AtomicPtr, AtomicU32, Cell, Relaxed, check, const_unless_model, keep, signal_fence,
};

/// Objects in the first chunk; each further chunk is twice as large, so that no more than half of
/// what there is was never used, or three quarters where objects are placed apart. Small under the
/// models, so that a second chunk is reached.
const FIRST_CHUNK: u32 = if cfg!(pervma_model) { 2 } else { 16 };

/// Bits of an index that say which chunk: those that a mask takes.
const CHUNK_BITS: u32 = 5;

/// Chunks in an arena: the place in the last still fits beside the chunk.
const CHUNKS: usize = 22;

/// The name of an object of one arena.
pub(crate) struct Idx<O>(u32, PhantomData<fn() -> O>);

impl<O> Clone for Idx<O> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<O> Copy for Idx<O> {}

impl<O> Idx<O> {
    /// The number to store in a list: less than 2³⁰.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn raw(self) -> u32 {
        self.0
    }

    /// An index out of a list.
    ///
    /// # Safety
    ///
    /// `raw` was stored there by [`raw`](Self::raw), and came here as A1 says.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) unsafe fn from_raw(raw: u32) -> Self {
        Self(raw, PhantomData)
    }
}

/// A type of object that an arena can hold.
pub(crate) trait Object {
    /// How many of the first are placed apart, one in each pair of places; as many follow in the
    /// other places, and then all others, one behind the other. For objects of one cache line that
    /// different threads write to: processors fetch lines in pairs.
    const APART: u16 = 0;

    /// An object in its first state.
    fn new() -> Self;
    /// The next free object, when this one is free.
    fn link(&self) -> &Cell<u32>;
    /// Written as the object is made, and read by whoever has its address, for a checker.
    fn made(&self) -> &Cell<()>;
}

/// The object at an address.
///
/// # Safety
///
/// It is that of an object of an arena that is there for `'a`, and came here as A1 says.
#[cfg_attr(not(debug_assertions), inline(always))]
pub(crate) unsafe fn at<'a, O: Object>(object: *const O) -> &'a O {
    // SAFETY: A1: it is initialised; A2: it stays, and is only ever shared.
    let object = unsafe { &*object };
    object.made().with(|_| ());
    object
}

/// Type-stable memory for objects of one kind.
///
/// It is changed by every edit, and lookups do not touch it: they have addresses.
pub(crate) struct Arena<O, P: Platform> {
    /// Where the chunks are; nowhere until there is one, so that a space without a VMA takes no
    /// memory for them.
    table: Cell<*mut ChunkPtr<O>>,
    users: Users,
    /// The arena's lock (A3).
    lock: MmapLock<P>,
    state: Cell<ArenaState>,
    /// How many objects are [placed apart](Object::APART): with the state, but in the room beside
    /// `users`.
    apart: Cell<u16>,
    /// How many objects there are, and how many of them are in use: for any thread.
    capacity: AtomicU32,
    live: AtomicU32,
}

/// Where a chunk is; a table has [`CHUNKS`] of them.
type ChunkPtr<O> = AtomicPtr<O>;

const CHUNK: Relaxed = Relaxed(
    "visible with an index into the chunk, or an object of it (A1); any other is only compared",
);

/// The place of a chunk's pointer in a table.
///
/// # Safety
///
/// The table was made, and is there for `'a`; `chunk` is below [`CHUNKS`].
#[cfg_attr(not(debug_assertions), inline(always))]
unsafe fn chunk_ptr<'a, O>(table: *const ChunkPtr<O>, chunk: usize) -> &'a ChunkPtr<O> {
    // SAFETY: a table has so many places.
    let at = unsafe { table.add(chunk) };
    // SAFETY: they were initialised when it was made, and are only ever shared (A2).
    unsafe { &*at }
}

const COUNT: Relaxed = Relaxed("a count to look at, which says nothing of the objects");

/// Which spaces allocate from an arena.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    /// One space, only in its edits.
    OneSpace,
    /// Any number of spaces.
    Spaces,
}

struct ArenaState {
    /// The free object that was freed last, plus 1; 0 for none.
    free: u32,
    /// How many objects have ever been initialised.
    initialised: u32,
}

impl<O> Idx<O> {
    /// The index of the object that was initialised after `number` others, of which `apart` are
    /// placed apart, within the capacity.
    fn of(number: u32, apart: u16) -> Option<Self> {
        let apart = u32::from(apart);
        let dense = match number {
            first if first < apart => 2 * first,
            second if second < 2 * apart => 2 * (second - apart),
            other => other,
        };
        // In front of a chunk are as many as it holds itself, but for those of a first one.
        let dense = dense as usize + FIRST_CHUNK as usize;
        let chunk = (dense / FIRST_CHUNK as usize).ilog2() as usize;
        let mut place = dense - chunk_len(chunk);
        if number < 2 * apart {
            // In every other page the odd places come first: the even ones alone are in one half of
            // a cache's sets.
            place += (place / LINES_OF_PAGE + usize::from(number >= apart)) & 1;
        }
        (chunk < CHUNKS).then_some(Self((place << CHUNK_BITS | chunk) as u32, PhantomData))
    }

    /// Which chunk holds it, and where in it.
    #[cfg_attr(not(debug_assertions), inline(always))]
    const fn place(self) -> (usize, usize) {
        ((self.0 & ((1 << CHUNK_BITS) - 1)) as usize, (self.0 >> CHUNK_BITS) as usize)
    }
}

const fn chunk_len(chunk: usize) -> usize {
    (FIRST_CHUNK as usize) << chunk
}

// No pair lies in two chunks.
const _: () = assert!(FIRST_CHUNK.is_multiple_of(2));

const LINES_OF_PAGE: usize = 64;

/// Processors fetch lines in pairs.
const PAIR_OF_LINES: usize = 128;

/// The most objects that an arena holds.
pub(crate) const CAPACITY: usize = {
    let (mut chunk, mut sum) = (0, 0);
    while chunk < CHUNKS {
        sum += chunk_len(chunk);
        chunk += 1;
    }
    sum
};

// What is stored in a list has 30 bits, and the mask names each chunk.
const _: () = assert!(chunk_len(CHUNKS - 1) << CHUNK_BITS <= 1 << 30 && CHUNKS <= 1 << CHUNK_BITS);

/// The memory of a chunk, and how far into it the objects begin: in the first behind the table.
fn chunk_layout<O>(chunk: usize) -> Result<(Layout, usize), OutOfMemory> {
    let table = Layout::array::<ChunkPtr<O>>(if chunk == 0 { CHUNKS } else { 0 });
    let objects = Layout::array::<O>(chunk_len(chunk)).and_then(|all| all.align_to(PAIR_OF_LINES));
    table.and_then(|table| table.extend(objects?)).map_err(|_| OutOfMemory)
}

impl<O: Object, P: Platform> Arena<O, P> {
    const_unless_model! {
        pub(crate) fn new(users: Users) -> Self {
            Self {
                table: Cell::new(ptr::null_mut()),
                users,
                lock: MmapLock::new(),
                state: Cell::new(ArenaState { free: 0, initialised: 0 }),
                apart: Cell::new(O::APART),
                capacity: AtomicU32::new(0),
                live: AtomicU32::new(0),
            }
        }
    }

    /// The object that `index` names.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn get(&self, index: Idx<O>) -> &O {
        let (chunk, offset) = index.place();
        // SAFETY: A1: there is a table, and it was written before the index came to us.
        let table = self.table.with(|table| unsafe { *table });
        // SAFETY: A1: an index names one of its chunks.
        let base = unsafe { chunk_ptr(table, chunk) }.load(CHUNK);
        check(!base.is_null(), "an index of another arena");
        // SAFETY: A1: the object lies within its chunk.
        let object = unsafe { base.add(offset) };
        // SAFETY: A1: the index came so, and here is its address.
        unsafe { at(object) }
    }

    /// The index of an object of this arena.
    ///
    /// # Panics
    ///
    /// If it is another's.
    #[inline]
    pub(crate) fn index_of(&self, object: &O) -> Idx<O> {
        // From the last chunk, or the next one, since the last holds as many as all others. Which
        // that is a child of fork may know too late.
        let places = 2 * self.capacity.load(COUNT) / FIRST_CHUNK + 1;
        let last = (places.ilog2() as usize).min(CHUNKS - 1);
        // SAFETY: A1: there is a table, as there is an object.
        let table = self.table.with(|table| unsafe { *table });
        let index = (0..=last).rev().chain(last + 1..CHUNKS).find_map(|chunk| {
            // SAFETY: as for the table.
            let base = unsafe { chunk_ptr(table, chunk) }.load(CHUNK);
            let offset = ptr::from_ref(object).addr().wrapping_sub(base.addr()) / size_of::<O>();
            let is_there = !base.is_null() && offset < chunk_len(chunk);
            is_there.then_some(Idx((offset << CHUNK_BITS | chunk) as u32, PhantomData))
        });
        let Some(index) = index else { panic!("an object of another arena") };
        index
    }

    /// Guards the arena while the caller allocates and frees (A3): takes the lock of the arena,
    /// unless only one space uses it, whose mmap lock the section holds for writing.
    #[inline]
    fn guard(&self, _section: &EditSection<'_, P>) -> Option<RawWriteGuard<'_, P>> {
        (self.users == Users::Spaces).then(|| {
            let _scope = SlabScope::<P>::enter();
            self.lock.write()
        })
    }

    /// Allocates an object: the one freed last, else a new one. The section is one of the space
    /// that the object is for.
    #[inline(always)]
    pub(crate) fn alloc(&self, section: &EditSection<'_, P>) -> Result<Idx<O>, OutOfMemory> {
        let _guard = self.guard(section);
        // SAFETY: A3, by `_guard` and the section: no other thread allocates or frees meanwhile.
        let free = self.state.with(|state| unsafe { (*state).free });
        let index = if free != 0 {
            // SAFETY: A1: it was allocated before, and came here under the guard.
            let index = unsafe { Idx::from_raw(free - 1) };
            // SAFETY: A3, by the same; a free object's link is the arena's.
            let next = self.get(index).link().with(|link| unsafe { *link });
            // SAFETY: A3, by the same.
            self.state.with_mut(|state| unsafe { (*state).free = next });
            index
        } else {
            self.init()?
        };
        self.count(1);
        Ok(index)
    }

    /// Counts an object that is in use from now on, or with -1 one that is not; under the guard.
    #[inline]
    fn count(&self, change: i32) {
        self.live.store(self.live.load(COUNT).wrapping_add_signed(change), COUNT);
    }

    /// Initialises the next object, and allocates its chunk if it is the first in it. The caller is
    /// `alloc`, which holds what `guard` says (A3).
    #[cold]
    fn init(&self) -> Result<Idx<O>, OutOfMemory> {
        // SAFETY: A3.
        let number = self.state.with(|state| unsafe { (*state).initialised });
        // SAFETY: A3.
        let apart = self.apart.with(|apart| unsafe { *apart });
        let mut index = Idx::of(number, apart).ok_or(OutOfMemory)?;
        if let (chunk, 0) = index.place()
            && let Err(error) = self.add_chunk(chunk)
        {
            if number == 0 || u32::from(apart) <= number {
                return Err(error);
            }
            // No more are placed apart: there are the places between.
            let apart = number as u16;
            index = Idx::of(number, apart).ok_or(error)?;
            // SAFETY: A3.
            self.apart.with_mut(|at| unsafe { *at = apart });
        }
        let (chunk, offset) = index.place();
        // SAFETY: written nowhere but there, and guarded as here (A3).
        let table = self.table.with(|table| unsafe { *table });
        // SAFETY: made with the first chunk (A2).
        let base = unsafe { chunk_ptr(table, chunk) }.load(CHUNK);
        // SAFETY: `offset` lies within the chunk.
        let object = unsafe { base.add(offset) };
        // SAFETY: allocated above for this type, and no thread has its index yet.
        unsafe { object.write(O::new()) };
        // SAFETY: A3.
        self.state.with_mut(|state| unsafe { (*state).initialised = number + 1 });
        self.capacity.store(number + 1, COUNT);
        Ok(index)
    }

    /// Allocates a chunk, and with the first one the table. The caller is `init`: it is guarded
    /// (A3), and there is no index into this chunk yet.
    fn add_chunk(&self, chunk: usize) -> Result<(), OutOfMemory> {
        const { assert!(size_of::<O>() != 0) };
        let (layout, objects) = chunk_layout::<O>(chunk)?;
        let scope = SlabScope::<P>::enter();
        let memory = P::Memory::alloc(layout);
        drop(scope);
        if memory.is_null() {
            return Err(OutOfMemory);
        }
        if chunk == 0 {
            let table = memory.cast::<ChunkPtr<O>>();
            for chunk in 0..CHUNKS {
                // SAFETY: the memory of the first chunk begins with room for so many.
                let at = unsafe { table.add(chunk) };
                // SAFETY: ours, and of this type.
                unsafe { at.write(AtomicPtr::new(ptr::null_mut())) };
            }
            // SAFETY: A3. Others look for the table only with an object, and there is none (A1).
            self.table.with_mut(|at| unsafe { *at = table });
        }
        // SAFETY: A3; it is written nowhere but above.
        let table = self.table.with(|table| unsafe { *table });
        // SAFETY: the objects begin so far into the memory.
        let base = unsafe { memory.add(objects) }.cast::<O>();
        // SAFETY: made with the first chunk (A2).
        unsafe { chunk_ptr(table, chunk) }.store(base, CHUNK);
        Ok(())
    }

    /// Makes `index`, which the caller was given by `alloc` and gives up, free again.
    #[inline]
    pub(crate) fn free(&self, index: Idx<O>, section: &EditSection<'_, P>) {
        let _guard = self.guard(section);
        // SAFETY: A3, by `_guard` and the section: no other thread allocates or frees meanwhile.
        let free = self.state.with(|state| unsafe { (*state).free });
        // SAFETY: A3, by the same; the caller gave the object up, so its link is the arena's.
        self.get(index).link().with_mut(|link| unsafe { *link = free });
        signal_fence(); // see `renew`
        // SAFETY: A3, by the same.
        self.state.with_mut(|state| unsafe { (*state).free = index.0 + 1 });
        self.count(-1);
    }

    /// Shows all objects that were initialised; meanwhile no thread initialises one, or runs this.
    pub(crate) fn with_all<'a, R>(
        &'a self,
        section: &EditSection<'_, P>,
        run: impl FnOnce(All<'a, O, P>) -> R,
    ) -> R {
        let _guard = keep(Step::GuardRecords).then(|| self.guard(section));
        // SAFETY: A3: guarded as in `alloc`, and only looked at.
        let initialised = self.state.with(|state| unsafe { (*state).initialised });
        // SAFETY: A3, by the same.
        let apart = self.apart.with(|apart| unsafe { *apart });
        run(All { arena: self, rest: 0..initialised, apart })
    }

    /// Makes the arena's lock new after a fork, in the child.
    ///
    /// A thread that held it at the fork has stopped between any two of its steps. That does no
    /// harm: it shows what it did by its last store to the state. The child has its stores up to
    /// some point of the program, and then it initialises an object once more, whose index nobody
    /// has, or never uses it again, or counts one too many or too few in use. A link is written
    /// before the state that leads to it, and anew after the state that no longer does: fences for
    /// signal handlers keep the compiler from another order.
    ///
    /// # Safety
    ///
    /// The caller is the only thread of its process, has just forked, and does not guard the arena.
    pub(crate) unsafe fn renew(&self) {
        // SAFETY: as the caller says.
        unsafe { self.lock.renew() };
    }

    /// Whether there is an object, for any thread: late, but for what it knows of otherwise.
    #[inline]
    pub(crate) fn has_any(&self) -> bool {
        self.capacity.load(Relaxed("the caller has a reason why it may be late")) != 0
    }

    /// How many objects there are, and how many of them are in use.
    pub(crate) fn usage(&self) -> Usage {
        let in_use = self.live.load(COUNT) as usize;
        let capacity = self.capacity.load(COUNT) as usize;
        // Of what other threads do meanwhile, the one may show and not the other.
        Usage { capacity, in_use: in_use.min(capacity) }
    }
}

/// The objects of an arena.
pub(crate) struct All<'a, O, P: Platform> {
    arena: &'a Arena<O, P>,
    rest: Range<u32>,
    apart: u16,
}

impl<'a, O: Object, P: Platform> Iterator for All<'a, O, P> {
    type Item = &'a O;

    fn next(&mut self) -> Option<&'a O> {
        // It was initialised, as was known under the guard (A3).
        let number = self.rest.next()?;
        Idx::of(number, self.apart).map(|index| self.arena.get(index))
    }
}

impl<O, P: Platform> Clone for All<'_, O, P> {
    fn clone(&self) -> Self {
        Self { arena: self.arena, rest: self.rest.clone(), apart: self.apart }
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
        let table = self.table.with(|table| unsafe { *table });
        if table.is_null() {
            return;
        }
        // SAFETY: it was made, and is freed last.
        let base = |chunk| unsafe { chunk_ptr(table, chunk) }.load(CHUNK);
        // SAFETY: `&mut self`: no other thread looks.
        let initialised = self.state.with(|state| unsafe { (*state).initialised });
        // SAFETY: `&mut self`: no other thread looks.
        let apart = self.apart.with(|apart| unsafe { *apart });
        for index in (0..initialised).filter_map(|number| Idx::<O>::of(number, apart)) {
            let (chunk, offset) = index.place();
            // SAFETY: object number `index` lies there.
            let object = unsafe { base(chunk).add(offset) };
            // SAFETY: it was initialised, and this is the end of A2.
            unsafe { ptr::drop_in_place(object) };
        }
        const { assert!(!core::mem::needs_drop::<ChunkPtr<O>>()) };
        // The first one last: the table is part of it.
        for chunk in (0..CHUNKS).rev() {
            let base = base(chunk);
            if let (false, Ok((layout, objects))) = (base.is_null(), chunk_layout::<O>(chunk)) {
                // SAFETY: the objects begin so far into the chunk's memory.
                let memory = unsafe { base.cast::<u8>().sub(objects) };
                // SAFETY: allocated in `add_chunk` with this layout; its objects are dropped.
                unsafe { P::Memory::dealloc(memory, layout) };
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
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_number_has_a_place_of_its_own_until_there_is_none() {
        let place = |number| Idx::<u64>::of(number, 0).map(Idx::place);
        let (mut first, mut chunk) = (0_u32, 0);
        while chunk < CHUNKS {
            let len = chunk_len(chunk);
            assert_eq!(place(first), Some((chunk, 0)));
            assert_eq!(place(first + len as u32 - 1), Some((chunk, len - 1)));
            (first, chunk) = (first + len as u32, chunk + 1);
        }
        assert_eq!((first, place(first)), (67_108_848, None));
        assert!(Idx::<u64>::of(first - 1, 0).is_some_and(|last| last.raw() < 1 << 30));
    }

    #[test]
    fn the_first_objects_are_apart_and_the_next_are_between_them() {
        // As many as there are chunks for, where memory for the next was refused.
        for chunks in 1..8 {
            let apart = FIRST_CHUNK / 2 * ((1 << chunks) - 1);
            let place = |number| Idx::<u64>::of(number, apart as u16).map(Idx::place);
            let (mut seen, mut pairs, mut begun) = (HashSet::new(), HashSet::new(), 0);
            for number in 0..4 * apart {
                let (chunk, offset) = place(number).unwrap();
                assert!(seen.insert((chunk, offset)));
                assert!(chunk < begun || (chunk, offset) == (begun, 0), "the first of a chunk");
                begun = begun.max(chunk + 1);
                assert!(number >= apart || pairs.insert((chunk, offset / 2)), "two in a pair");
            }
            // Nowhere is a place left out.
            let dense = |number| Idx::<u64>::of(number, 0).map(Idx::place).unwrap();
            assert!((0..4 * apart).all(|number| seen.contains(&dense(number))));
            assert_eq!(place(67_108_848), None);
        }
    }
}
