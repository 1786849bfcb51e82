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
//!   a word of the tree that is loaded with acquire (NODE_LINK, NODE_FOLLOW); so the table, the
//!   chunk pointer and the object's first initialisation are visible to the thread that holds it.
//!   An index is only used with the arena that allocated it: a [`Map`](crate::map::Map) has one
//!   slab for life.
//! - **A2** A chunk is never freed, moved or opened for unique access before the arena is dropped,
//!   nor is the table, which lies in front of the first.
//! - **A3** An arena's state, every `link` and the allocation of chunks are guarded by the arena's
//!   lock; or, where only one space uses it ([`Users::OneSpace`]), by the mmap lock of that space,
//!   which is held for writing whenever that space allocates and frees.
//! - **A4** What lookups need of an arena is copied to a line that edits do not write: a [`Table`]
//!   that is a map's changes once, in an edit of that map, before the first index is stored in a
//!   word of its tree; so it is visible wherever an index is (A1).

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
use crate::sync::{AtomicU32, Cell, Relaxed, check, const_unless_model, keep};

/// Objects in the first chunk; each further chunk is twice as large, so that no more than half of
/// what there is was never used, or three quarters where objects are placed apart. Small under the
/// models, so that a second chunk is reached.
const FIRST_CHUNK: u32 = if cfg!(pervma_model) { 2 } else { 16 };

/// Bits of an index that say which chunk: those that a mask takes.
const CHUNK_BITS: u32 = 5;

/// Chunks in an arena: the place in the last still fits beside the chunk, and both beside the
/// two-bit tag of a word of the tree.
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
    /// How many of the first are placed apart, one in each pair of places; as many follow in the
    /// other places, and then all others, one behind the other. For objects of one cache line that
    /// different threads write to: processors fetch lines in pairs.
    const APART: u16 = 0;

    /// An object in its first state.
    fn new() -> Self;
    /// The next free object, when this one is free.
    fn link(&self) -> &Cell<u32>;
}

/// Type-stable memory for objects of one kind.
///
/// It is changed by every edit, and lookups do not touch it: they have a copy of its table (A4).
pub(crate) struct Arena<O, P: Platform> {
    table: Table<O>,
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

/// Where the chunks of an arena are; nowhere until it has one, so that a space without a VMA takes
/// no memory for them. The arena has one table, and each map that lives there a copy.
pub(crate) struct Table<O>(Cell<*mut ChunkPtr<O>>);

/// Where a chunk is; a table has [`CHUNKS`] of them.
type ChunkPtr<O> = Cell<*mut O>;

/// The chunks of an arena, for a thread that has an index into them.
pub(crate) struct Chunks<'a, O>(*const ChunkPtr<O>, PhantomData<&'a O>);

impl<O> Clone for Chunks<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<O> Copy for Chunks<'_, O> {}

impl<'a, O> Chunks<'a, O> {
    /// The object that `index` names.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn get(self, index: Idx<O>) -> &'a O {
        let (chunk, offset) = index.place();
        // SAFETY: A1: there is a table, with a place for each chunk that an index names; A2.
        let at = unsafe { chunk_ptr(self.0, chunk) };
        // SAFETY: A1: the chunk pointer was written before the index came to us.
        let base = at.with(|base| unsafe { *base });
        check(!base.is_null(), "a node is taken for a VMA, or a VMA for a node");
        // SAFETY: A1: the object lies within its chunk.
        let object = unsafe { base.add(offset) };
        // SAFETY: A1: it is initialised; A2: it stays, and is only ever shared.
        unsafe { &*object }
    }
}

/// The place of a chunk's pointer in a table.
///
/// # Safety
///
/// The table was made, and is there for `'a`; `chunk` is below [`CHUNKS`].
#[cfg_attr(not(debug_assertions), inline(always))]
unsafe fn chunk_ptr<'a, O>(table: *const ChunkPtr<O>, chunk: usize) -> &'a ChunkPtr<O> {
    // SAFETY: a table has so many places.
    let at = unsafe { table.add(chunk) };
    // SAFETY: they were initialised when it was made, and are only ever shared.
    unsafe { &*at }
}

impl<O> Table<O> {
    const_unless_model! {
        pub(crate) fn empty() -> Self {
            Self(Cell::new(ptr::null_mut()))
        }
    }

    /// The chunks, for the holder of any index into them.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn chunks(&self, _index: Idx<O>) -> Chunks<'_, O> {
        // SAFETY: A1, or A4 of a copy: it was written before the index came to us.
        Chunks(self.0.with(|table| unsafe { *table }), PhantomData)
    }

    /// The object that `index` names.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn get(&self, index: Idx<O>) -> &O {
        self.chunks(index).get(index)
    }

    /// Becomes a copy of the table of `arena`, from which `index` is, unless it is one. The section
    /// is one of the space that the copy is of, in whose tree no index was stored before (A4).
    pub(crate) fn copy<P: Platform>(
        &self,
        arena: &Arena<O, P>,
        index: Idx<O>,
        _section: &EditSection<'_, P>,
    ) {
        // SAFETY: written below only, and in an edit of the same space.
        if self.0.with(|table| unsafe { *table }).is_null() {
            let Chunks(table, _) = arena.table.chunks(index);
            // SAFETY: A4: the section excludes other edits, and lookups have no index yet.
            self.0.with_mut(|at| unsafe { *at = table.cast_mut() });
        }
    }
}

// SAFETY: a table leads to shared references to objects only; its cells are touched as A1, A3 and
// A4 say.
unsafe impl<O: Send + Sync> Sync for Table<O> {}
// SAFETY: as for `Sync`; nothing in it belongs to a thread.
unsafe impl<O: Send + Sync> Send for Table<O> {}

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

// What is stored in a word of the tree has 30 bits, and the mask names each chunk.
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
                table: Table::empty(),
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
        self.table.get(index)
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
        let table = self.table.0.with(|table| unsafe { *table });
        // SAFETY: made with the first chunk (A2).
        let at = unsafe { chunk_ptr(table, chunk) };
        // SAFETY: as for the table.
        let base = at.with(|base| unsafe { *base });
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
                unsafe { at.write(Cell::new(ptr::null_mut())) };
            }
            // SAFETY: A3. Others look for the table only with an index, and there is none (A1).
            self.table.0.with_mut(|at| unsafe { *at = table });
        }
        // SAFETY: A3; it is written nowhere but above.
        let table = self.table.0.with(|table| unsafe { *table });
        // SAFETY: made with the first chunk (A2).
        let at = unsafe { chunk_ptr(table, chunk) };
        // SAFETY: the objects begin so far into the memory.
        let base = unsafe { memory.add(objects) }.cast::<O>();
        // SAFETY: A3. Others look only at chunks of which they hold an index, and of this one there
        // is none (A1).
        at.with_mut(|at| unsafe { *at = base });
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
    /// harm: it shows what it did by its last store to the state. Of its stores the child may have
    /// some and not others, and then it initialises an object once more, whose index nobody has, or
    /// never uses it again, or counts one too many or too few in use.
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
        let table = self.table.0.with(|table| unsafe { *table });
        if table.is_null() {
            return;
        }
        let base = |chunk| {
            // SAFETY: it was made, and is freed last.
            let at = unsafe { chunk_ptr(table, chunk) };
            // SAFETY: `&mut self`: no other thread looks.
            at.with(|base| unsafe { *base })
        };
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
