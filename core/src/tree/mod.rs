//! The VMAs of one space, in order of their addresses: the B-tree joined to the slots.
//!
//! [`btree`] knows keys and words only and has no unsafe code. Here a word of a leaf becomes a
//! slot again, by tree invariant T3: every word in a leaf is a slot attached to this tree's space,
//! as long as the mmap lock is held and no operation of its holder is half done.

mod btree;
mod node;

use crate::arena::Idx;
use crate::error::OutOfMemory;
use crate::lock::{Refused, Settled};
use crate::mm::{ReadSection, Section, WriteSection};
use crate::platform::Platform;
use crate::range::Span;
use crate::slab::Slab;
use crate::slots::{Admitted, Entry, Excluded, FreeSlot, Inside, Sleeper, Slot, Turned};

use btree::{BTree, Position, Shape};

pub use btree::{Passed, PassedDown, PassedOn, Trail};
pub use node::Node;

/// The tree of one space. Always used with the slab of that space.
pub struct Tree {
    btree: BTree,
}

/// Why a VMA was not read-locked, with the mmap lock held for reading.
pub enum Blocked<'s, T> {
    /// As many readers as its count can hold.
    Busy,
    /// The range is only reserved.
    Reserved,
    /// An exclusion has it: let the mmap lock go, sleep, look again.
    Excluded(Sleeper<'s, T>),
    /// Something changed meanwhile: look again at once.
    Changed,
}

/// Why no slot was linked.
#[derive(Debug)]
pub enum Unlinked {
    /// Something is there.
    Taken,
    OutOfMemory,
}

impl From<OutOfMemory> for Unlinked {
    fn from(OutOfMemory: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl Tree {
    crate::facade::const_unless_model! {
        pub fn new() -> Self {
            Self { btree: BTree::new() }
        }
    }

    /// Walks, with no lock, to the slot that may hold `addr`. It may have been recycled meanwhile;
    /// during an edit it may be any slot of the slab, or nothing.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn walk<'s, T, P: Platform>(
        &self,
        slab: &'s Slab<T, P>,
        addr: usize,
        trail: &mut impl Trail<'s>,
    ) -> Option<&'s Slot<T>> {
        let raw = self.btree.walk(slab.node_arena(), addr, trail)?;
        // SAFETY: out of a word of the tree, loaded with acquire.
        Some(slab.slots().get(unsafe { Idx::from_raw(raw) }))
    }

    /// Walks, with no lock, to the first slot at or above `addr`; as little reliable.
    pub fn walk_from<'s, T, P: Platform>(
        &self,
        slab: &'s Slab<T, P>,
        addr: usize,
        trail: &mut impl Trail<'s>,
    ) -> Option<&'s Slot<T>> {
        let raw = self.btree.walk_from(slab.node_arena(), addr, trail)?;
        // SAFETY: out of a word of the tree, loaded with acquire.
        Some(slab.slots().get(unsafe { Idx::from_raw(raw) }))
    }

    /// Whether what walks found is what the tree held when the edits up to `settled` were over, and
    /// until after each of its nodes was passed.
    pub fn is_settled<const MOST: usize>(
        &self,
        passed: &Passed<'_, MOST>,
        settled: Settled,
    ) -> bool {
        self.btree.is_settled(passed, settled)
    }

    /// What starts at `addr` or last before it.
    pub fn floor<'m, T, P: Platform>(
        &self,
        slab: &'m Slab<T, P>,
        section: &'m impl Section,
        addr: usize,
    ) -> Option<Entry<'m, T>> {
        let entry = entry(slab, section, self.btree.walk(slab.node_arena(), addr, &mut ())?);
        (entry.span().start <= addr).then_some(entry)
    }

    /// What starts at `addr` or first after it.
    pub fn first_from<'m, T, P: Platform>(
        &self,
        slab: &'m Slab<T, P>,
        section: &'m impl Section,
        addr: usize,
    ) -> Option<Entry<'m, T>> {
        Some(entry(slab, section, self.btree.walk_from(slab.node_arena(), addr, &mut ())?))
    }

    /// What starts at `addr` or first after it and has `size` free bytes behind it.
    pub fn first_gap<'m, T, P: Platform>(
        &self,
        slab: &'m Slab<T, P>,
        section: &'m impl Section,
        addr: usize,
        size: usize,
    ) -> Option<Entry<'m, T>> {
        Some(entry(slab, section, self.btree.first_gap(slab.node_arena(), addr, size)?))
    }

    /// What starts last before `addr` and has `size` free bytes behind it.
    pub fn last_gap<'m, T, P: Platform>(
        &self,
        slab: &'m Slab<T, P>,
        section: &'m impl Section,
        addr: usize,
        size: usize,
    ) -> Option<Entry<'m, T>> {
        Some(entry(slab, section, self.btree.last_gap(slab.node_arena(), addr, size)?))
    }

    /// Read-locks the VMA of `entry`; the read lock may outlive the section.
    pub fn read_lock<'s, T, P: Platform>(
        &self,
        slab: &'s Slab<T, P>,
        section: &ReadSection<'_, P>,
        entry: Entry<'_, T>,
    ) -> Result<Admitted<'s, T, P>, Blocked<'s, T>> {
        if entry.is_excluded() {
            let sleeper = Sleeper::register(slab.slots(), entry);
            return Err(sleeper.map_or(Blocked::Changed, Blocked::Excluded));
        }
        match Inside::enter(slab.slots().get(entry.index()), None) {
            // SAFETY: T3: the slot is attached to this tree's space, whose mmap lock is held.
            Ok(inside) => match unsafe { inside.admit_locked(section) } {
                Ok(admitted) => Ok(admitted),
                Err(Turned::Reserved(..)) => Err(Blocked::Reserved),
                Err(Turned::Away) => Err(Blocked::Changed),
            },
            Err(Refused::Busy) => Err(Blocked::Busy),
            Err(Refused::Contended | Refused::Excluded | Refused::Detached) => {
                Err(Blocked::Changed)
            }
        }
    }

    /// The tree for the holder of the section.
    #[inline]
    pub fn editor<'s, 'm, T, P: Platform>(
        &'m self,
        slab: &'s Slab<T, P>,
        section: &'m WriteSection<'m, P>,
    ) -> Editor<'s, 'm, T, P> {
        Editor { btree: &self.btree, slab, section, at: None, shape: self.btree.shape() }
    }
}

/// A tree in the hands of who edits its space. It goes from where it was last, as long as no node was
/// split or refilled meanwhile.
pub struct Editor<'s: 'm, 'm, T, P: Platform> {
    btree: &'m BTree,
    slab: &'s Slab<T, P>,
    section: &'m WriteSection<'m, P>,
    /// Where it was last; good while the tree has this shape. What of the user's runs in an edit can
    /// change that: it may end a reservation.
    at: Option<Position<'s>>,
    shape: Shape,
}

impl<'s: 'm, 'm, T, P: Platform> Editor<'s, 'm, T, P> {
    /// What is held.
    #[inline]
    pub fn section(&self) -> &'m WriteSection<'m, P> {
        self.section
    }

    /// The entry with the largest key not above `addr`, or else the first.
    #[inline]
    fn seek(&mut self, addr: usize) -> Option<&mut Position<'s>> {
        let (nodes, shape) = (self.slab.node_arena(), self.btree.shape());
        if self.shape != shape {
            (self.at, self.shape) = (None, shape);
        }
        let at = match &mut self.at {
            Some(at) => at,
            none => none.insert(Position::at_root(self.btree.root(nodes)?)),
        };
        at.seek(nodes, addr);
        Some(at)
    }

    /// Shows what has a byte in `span`, in order of address and in one walk, as long as `visit` says so.
    /// Nothing of the user's may run meanwhile.
    #[inline]
    pub fn visit(&mut self, span: Span, mut visit: impl FnMut(Entry<'m, T>) -> bool) {
        let (slab, section) = (self.slab, self.section);
        let Some(at) = self.seek(span.start) else { return };
        while let Some(slot) = at.slot() {
            let entry = entry(slab, section, slot);
            let vma = entry.span();
            // The first may lie before the span.
            let shown = vma.start < span.end && (vma.end <= span.start || visit(entry));
            if !shown || !at.next(slab.node_arena()) {
                return;
            }
        }
    }

    /// What holds `addr`.
    #[inline]
    pub fn holding(&mut self, addr: usize) -> Option<Entry<'m, T>> {
        let slot = self.seek(addr)?.slot()?;
        let entry = entry(self.slab, self.section, slot);
        entry.span().contains(addr).then_some(entry)
    }

    /// Links a free slot for `span`, if nothing is there, to be attached at once: a walker that gets
    /// here finds it detached, or locked. Else nothing has changed.
    #[inline]
    pub fn link_free(&mut self, span: Span) -> Result<FreeSlot<'s, T, P>, Unlinked> {
        match self.seek(span.start) {
            Some(at) if !at.is_free(span) => Err(Unlinked::Taken),
            _ => self.link_here(span),
        }
    }

    /// Links a free slot for `span`, whose start is no other's, as [`link_free`](Self::link_free)
    /// does. The gaps are right if nothing else is in the span.
    pub fn link(&mut self, span: Span) -> Result<FreeSlot<'s, T, P>, Unlinked> {
        self.seek(span.start);
        self.link_here(span)
    }

    /// Links a free slot where the start of `span` was sought.
    #[inline]
    fn link_here(&mut self, span: Span) -> Result<FreeSlot<'s, T, P>, Unlinked> {
        let slot = FreeSlot::alloc(self.slab.slots(), self.section)?;
        let raw = slot.index().raw();
        if let Some(at) = self.at.as_ref().filter(|at| at.has_room()) {
            at.insert(self.section.edit(), span.start, raw, span.len());
            return Ok(slot);
        }
        let nodes = self.slab.node_arena();
        match self.btree.insert(nodes, self.section, span.start, raw, span.len()) {
            Ok(()) => Ok(slot),
            Err(OutOfMemory) => {
                slot.give_back(self.section);
                Err(Unlinked::OutOfMemory)
            }
        }
    }

    /// Takes the entry at `start` out. Its room, but for what is `kept` of it by what lies before, goes
    /// to the gap before it.
    #[inline]
    pub fn unlink(&mut self, start: usize, kept: usize) {
        self.seek(start);
        self.unlink_here(start, kept);
    }

    /// Takes the entry at `start` out, which was sought.
    #[inline]
    fn unlink_here(&mut self, start: usize, kept: usize) {
        match &self.at {
            Some(at) if at.key() == start && at.is_spare() => at.remove(self.section.edit(), kept),
            _ => self.btree.remove(self.slab.node_arena(), self.section, start, kept),
        }
    }

    /// Takes out the VMA at `span`, waiting for its readers, if there is exactly one and nobody else
    /// excludes it; else nothing has changed.
    #[inline]
    pub fn take_whole(&mut self, span: Span) -> Option<T> {
        let slot = self.seek(span.start)?.slot()?;
        let entry = entry(self.slab, self.section, slot);
        if entry.span() != span {
            return None;
        }
        let mut alone = Excluded::new(self.slab.slots(), false);
        alone.push(entry.vma()?, self.section).then_some(())?;
        let (_, payload, emptied) = alone.take_first()?;
        self.unlink_here(span.start, 0);
        emptied.detach(self.slab.slots(), self.section);
        Some(payload)
    }

    /// Sets the gaps right after changes within `hull`: those of all that start in it, and where
    /// nothing starts with it, that of the last entry before it.
    pub fn settle(&mut self, hull: Span) {
        let (slab, section) = (self.slab, self.section);
        let Some(at) = self.seek(hull.start) else { return };
        while let Some(slot) = at.slot() {
            let span = entry(slab, section, slot).span();
            if span.start >= hull.end {
                break; // the first of all, and behind the hull
            }
            let next = at.next_key().unwrap_or(usize::MAX);
            at.set_gap(next - span.end);
            if next >= hull.end {
                break;
            }
            at.next(slab.node_arena());
        }
    }
}

#[cfg(all(test, not(pervma_model)))]
impl Tree {
    /// Panics unless all invariants of the tree hold, its keys are its VMAs' starts, and its gaps
    /// what is free behind them.
    pub fn check<T, P: Platform>(&self, slab: &Slab<T, P>, section: &WriteSection<'_, P>) {
        let mut end = usize::MAX;
        for (key, (slot, gap)) in self.btree.checked(slab.node_arena()).into_iter().rev() {
            let span = entry(slab, section, slot).span();
            assert_eq!((span.start, span.end + gap), (key, end), "a gap is not what is free");
            end = span.start;
        }
    }
}

fn entry<'m, T, P: Platform>(
    slab: &'m Slab<T, P>,
    section: &'m impl Section,
    raw: u32,
) -> Entry<'m, T> {
    // SAFETY: out of a word of the tree, loaded with acquire.
    let index = unsafe { Idx::from_raw(raw) };
    // SAFETY: T3, and the section is one of this tree's space. Unique access to a payload is given
    // out only by `Edit`, which is borrowed mutably for as long.
    unsafe { Entry::new(slab.slots().get(index), index, section) }
}
