//! A node of the tree: keys and words that readers walk through while the one writer changes them.
#![expect(unsafe_code, reason = "a word of the tree becomes a node again")]

use core::marker::PhantomData;
use core::mem::offset_of;
use core::ptr;

use crate::arena::{Object, at};
use crate::ledger::{NODE_FOLLOW, NODE_KEY, NODE_LINK};
use crate::lock::{EditSeq, NodeVersion};
use crate::step::Step;
use crate::sync::{
    AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Cell, Relaxed, check, const_unless_model, keep,
};

/// Entries in a node. Small in tests and under the models, so that nodes split, merge and are
/// recycled after a few operations.
pub(crate) const FANOUT: usize = if cfg!(any(test, pervma_model)) { 4 } else { 16 };

/// A node that falls to this many entries is refilled before anything is removed below it.
pub(crate) const SPARSE: usize = FANOUT / 4;

/// The key of an unused entry. No VMA starts here: a half-open range cannot.
pub(crate) const NO_KEY: usize = usize::MAX;

const WRITERS: Relaxed = Relaxed("only the writer asks, and only the writer changes it");

/// Alignments for which a node has a note. Alignments that share a place take turns.
const NOTES: usize = if cfg!(pervma_model) { 2 } else { 4 };

/// The bits of a note that hold a size; above them is the logarithm of an alignment, never 0.
const SIZE_BITS: u32 = 58;

/// The size in a note that stands for all from here on. An address space has few gaps so large.
const HUGE: u64 = (1 << SIZE_BITS) - 1;

const UNDER_MMAP_LOCK: Relaxed =
    Relaxed("noted under the mmap lock, and forgotten under it held for writing");

/// Where a slot is. Of what type it is the tree's owner knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AnySlot(*const ());

impl AnySlot {
    #[inline]
    pub(crate) fn of<O: Object>(slot: &O) -> Self {
        const { assert!(align_of::<O>() >= 16) };
        Self(ptr::from_ref(slot).cast())
    }

    /// The slot.
    ///
    /// # Safety
    ///
    /// As for [`at`]: it is one of these objects, and came here as A1 says.
    #[inline(always)]
    pub(crate) unsafe fn get<'a, O: Object>(self) -> &'a O {
        // SAFETY: as the caller says.
        unsafe { at(self.0.cast()) }
    }

    /// One of which the tree is never asked for more than the address.
    #[cfg(all(test, not(pervma_model)))]
    pub(super) fn fake(number: usize) -> Self {
        Self(ptr::without_provenance(number << 6))
    }
}

/// What a word of the tree points to. The kind is part of the word, so a walker that meets a
/// recycled node never takes a node for a VMA. Kept as it is stored, and taken apart when it is
/// asked.
///
/// | value | meaning |
/// |---|---|
/// | 0 | nothing |
/// | an address, and [`NODE`] | the node that is there |
/// | an address, and [`SLOT`] | the slot that is there |
#[derive(Clone, Copy)]
pub(crate) struct Target<'n>(*const (), PhantomData<&'n Node>);

/// The kinds of words; addresses of nodes and slots have room for four bits. Two would be enough:
/// the others are for [`check`].
const NODE: usize = 0b0101;
const SLOT: usize = 0b1010;
/// The bits of a kind that are asked for.
const KIND: usize = 0b0011;

impl<'n> Target<'n> {
    pub(crate) const NOTHING: Self = Self(ptr::null(), PhantomData);

    #[inline]
    pub(crate) fn to_node(node: &'n Node) -> Self {
        Self(ptr::from_ref(node).wrapping_byte_add(NODE).cast(), PhantomData)
    }

    #[inline]
    pub(crate) fn to_slot(slot: AnySlot) -> Self {
        Self(slot.0.wrapping_byte_add(SLOT), PhantomData)
    }

    #[inline(always)]
    fn is(self, kind: usize) -> bool {
        let is = self.0.addr() & kind & KIND != 0;
        check(
            !is || self.0.addr() & kind == kind,
            "a node is taken for a VMA, or a VMA for a node",
        );
        is
    }

    /// The node, if it is one.
    #[inline(always)]
    pub(crate) fn node(self) -> Option<&'n Node> {
        // SAFETY: put in by `to_node`, and loaded with acquire (A1), in a tree whose owner keeps
        // the arena as long (M1).
        self.is(NODE).then(|| unsafe { at(self.0.wrapping_byte_sub(NODE).cast()) })
    }

    /// The slot, if it is one.
    #[inline(always)]
    pub(crate) fn slot(self) -> Option<AnySlot> {
        self.is(SLOT).then(|| AnySlot(self.0.wrapping_byte_sub(SLOT)))
    }
}

/// A word of the tree.
pub(crate) struct TreeWord(AtomicPtr<()>);

impl TreeWord {
    const_unless_model! {
        pub(crate) fn empty() -> Self {
            Self(AtomicPtr::new(ptr::null_mut()))
        }
    }

    /// Loads the word as a walker does: what it points to is visible.
    #[inline(always)]
    pub(crate) fn follow(&self) -> Target<'_> {
        Target(self.0.load(NODE_FOLLOW), PhantomData)
    }

    /// For a mutant that takes the kind of all words in a node from one of them.
    pub(crate) fn follow_as(&self, first: &Self) -> Target<'_> {
        let kind = first.follow().0.addr() & KIND;
        Target(self.follow().0.map_addr(|word| word & !KIND | kind), PhantomData)
    }

    /// Stores what the word points to.
    #[inline]
    pub(crate) fn link(&self, target: Target<'_>) {
        self.0.store(target.0.cast_mut(), NODE_LINK);
    }
}

/// Up to [`FANOUT`] entries in ascending order of their keys, then unused ones with [`NO_KEY`].
///
/// In a leaf an entry is the start of a VMA and its slot; above, the smallest key below a child
/// and the child. Entries shift in place: to the right child first and then key, to the left key
/// first and then child, so that a walker finds every entry that stays, once or twice. That saves
/// retries; whatever a walker finds is checked.
#[repr(C, align(64))]
pub(crate) struct Node {
    keys: [AtomicUsize; FANOUT],
    children: [TreeWord; FANOUT],
    /// In a leaf the gap after a VMA; above, the largest gap below a child. For the writer.
    gaps: [AtomicUsize; FANOUT],
    /// How many entries are used; for the writer.
    len: AtomicU32,
    /// Whether there is a note: 1 or 0.
    noted: AtomicU32,
    /// Notes of searches: an alignment, and the largest gap below that is aligned so.
    notes: [AtomicU64; NOTES],
    /// The edit that last changed a key or a word. For walkers that have not found what they seek.
    version: NodeVersion,
    link: Cell<u32>,
    made: Cell<()>,
}

const _: () = assert!(align_of::<Node>() >= 16);

// Gaps change more often than keys do, and walkers never ask for them: no line holds both. (The
// nodes of tests are too small for that.)
const _: () = assert!(FANOUT < 16 || offset_of!(Node, gaps).is_multiple_of(64));

impl Object for Node {
    fn new() -> Self {
        Self {
            keys: core::array::from_fn(|_| AtomicUsize::new(NO_KEY)),
            children: core::array::from_fn(|_| TreeWord::empty()),
            gaps: core::array::from_fn(|_| AtomicUsize::new(0)),
            len: AtomicU32::new(0),
            noted: AtomicU32::new(0),
            notes: core::array::from_fn(|_| AtomicU64::new(0)),
            version: NodeVersion::new(),
            link: Cell::new(0),
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

// SAFETY: `link` is touched only under the guard of the arena, all else that has a value is atomic.
unsafe impl Sync for Node {}
// SAFETY: nothing in a node belongs to a thread.
unsafe impl Send for Node {}

impl Node {
    /// The last entry whose key is not above `addr`, or else the first one, for a walker: what it
    /// finds in the middle of a change may be wrong, never out of bounds.
    ///
    /// First the group of keys, then the key in the group, both by counting: no branch depends on a
    /// key, since in a random lookup such a branch is mispredicted at every node. In 32 bits, so
    /// that the compiler counts before it scales, and not in the address of the word.
    #[inline(always)]
    pub(crate) fn search(&self, addr: usize) -> usize {
        const GROUP: usize = 4;
        // The last address is in no half-open range; unused entries must not match it.
        let addr = addr.min(NO_KEY - 1);
        let up_to = |entry| u32::from(self.walker_key(entry) <= addr);
        let group =
            (1..FANOUT / GROUP).map(|group| up_to(group * GROUP)).sum::<u32>() * GROUP as u32;
        let first = group as usize;
        (group + (first + 1..first + GROUP).map(up_to).sum::<u32>()) as usize
    }

    /// Whether an entry lies at or below `addr`, for a walker: the first one need not.
    #[inline(always)]
    pub(crate) fn is_up_to(&self, entry: usize, addr: usize) -> bool {
        self.walker_key(entry) <= addr
    }

    #[inline(always)]
    fn walker_key(&self, entry: usize) -> usize {
        self.keys[entry].load(Relaxed(
            "a wrong turn is noticed at its end: HOLE_CHECK for a hole, the range check for a VMA",
        ))
    }

    /// The word of an entry.
    #[inline(always)]
    pub(crate) fn child(&self, entry: usize) -> &TreeWord {
        &self.children[entry]
    }

    /// The word of an entry that looks used, for a walker; `None` also past the last entry.
    #[inline(always)]
    pub(crate) fn used(&self, entry: usize) -> Option<&TreeWord> {
        (entry < FANOUT && self.walker_key(entry) != NO_KEY).then(|| self.child(entry))
    }

    /// The version: the edit that last changed it.
    #[inline]
    pub(crate) fn version(&self) -> &NodeVersion {
        &self.version
    }

    // What follows is for the writer.

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len.load(WRITERS) as usize
    }

    #[inline]
    pub(crate) fn key(&self, entry: usize) -> usize {
        self.keys[entry].load(WRITERS)
    }

    #[inline]
    pub(crate) fn gap(&self, entry: usize) -> usize {
        self.gaps[entry].load(WRITERS)
    }

    /// The largest gap of all entries.
    pub(crate) fn max_gap(&self) -> usize {
        (0..self.len()).map(|entry| self.gap(entry)).max().unwrap_or(0)
    }

    /// The largest gap below that is aligned to `1 << shift`, if a search has noted it, or
    /// [`usize::MAX`] for a huge one.
    pub(crate) fn noted(&self, shift: u32) -> Option<usize> {
        let note = self.notes[shift as usize % NOTES].load(UNDER_MMAP_LOCK);
        let size = note & HUGE;
        let size = if size == HUGE { usize::MAX } else { size as usize };
        (note >> SIZE_BITS == u64::from(shift)).then_some(size)
    }

    /// Notes it.
    pub(crate) fn note(&self, shift: u32, largest: usize) {
        let note = u64::from(shift) << SIZE_BITS | (largest as u64).min(HUGE);
        self.notes[shift as usize % NOTES].store(note, UNDER_MMAP_LOCK);
        self.noted.store(1, UNDER_MMAP_LOCK);
    }

    /// Whether there is any note.
    #[inline(always)]
    pub(crate) fn has_notes(&self) -> bool {
        self.noted.load(UNDER_MMAP_LOCK) != 0
    }

    /// Forgets all notes: a gap below is about to change.
    pub(crate) fn forget_notes(&self) {
        for note in &self.notes {
            note.store(0, UNDER_MMAP_LOCK);
        }
        self.noted.store(0, UNDER_MMAP_LOCK);
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.len() == FANOUT
    }

    /// The node below an entry; `None` in a leaf.
    #[inline]
    pub(crate) fn child_node(&self, entry: usize) -> Option<&Self> {
        self.children[entry].follow().node()
    }

    /// Changes the key of an entry, in `edit`.
    #[inline]
    pub(crate) fn set_key(&self, edit: EditSeq, entry: usize, key: usize) {
        if keep(Step::SetVersionForKey) {
            self.version.set(edit);
        }
        self.store_key(entry, key);
    }

    #[inline]
    fn store_key(&self, entry: usize, key: usize) {
        self.keys[entry].store(key, NODE_KEY);
    }

    #[inline]
    pub(crate) fn set_gap(&self, entry: usize, gap: usize) {
        self.gaps[entry].store(gap, WRITERS);
    }

    /// Empties a node fresh from its arena, where it may have been an inner node of another tree:
    /// the first word is what tells an empty leaf from an inner node.
    pub(crate) fn clear(&self, edit: EditSeq) {
        self.version.set(edit);
        self.forget_notes();
        self.children[0].link(Target::NOTHING);
        for entry in 0..FANOUT {
            self.store_key(entry, NO_KEY);
        }
        self.len.store(0, WRITERS);
    }

    /// Makes the word of an entry point to something else.
    pub(crate) fn relink(&self, edit: EditSeq, entry: usize, target: Target<'_>) {
        self.version.set(edit);
        self.children[entry].link(target);
    }

    /// Inserts an entry at its place in a node that is not full.
    pub(crate) fn insert(&self, edit: EditSeq, key: usize, target: Target<'_>, gap: usize) {
        self.version.set(edit);
        let len = self.len();
        let mut at = len;
        while at > 0 && self.key(at - 1) > key {
            self.children[at].link(self.children[at - 1].follow());
            self.store_key(at, self.key(at - 1));
            self.set_gap(at, self.gap(at - 1));
            at -= 1;
        }
        self.children[at].link(target);
        self.store_key(at, key);
        self.set_gap(at, gap);
        self.len.store(len as u32 + 1, WRITERS);
    }

    /// Removes an entry.
    pub(crate) fn remove(&self, edit: EditSeq, at: usize) {
        self.version.set(edit);
        let len = self.len();
        for entry in at..len - 1 {
            self.store_key(entry, self.key(entry + 1));
            self.children[entry].link(self.children[entry + 1].follow());
            self.set_gap(entry, self.gap(entry + 1));
        }
        self.forget(len - 1);
    }

    /// Forgets all entries from `len` on.
    pub(crate) fn truncate(&self, edit: EditSeq, len: usize) {
        self.version.set(edit);
        self.forget(len);
    }

    /// As [`truncate`](Self::truncate), in a node whose version was set.
    fn forget(&self, len: usize) {
        for entry in (len..self.len()).rev() {
            self.store_key(entry, NO_KEY);
        }
        self.len.store(len as u32, WRITERS);
    }

    /// Copies the entries from `from` on to the end of `other`, which has space for them.
    pub(crate) fn copy_tail_to(&self, edit: EditSeq, from: usize, other: &Self) {
        for entry in from..self.len() {
            other.insert(edit, self.key(entry), self.children[entry].follow(), self.gap(entry));
        }
    }
}
