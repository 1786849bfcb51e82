//! The VMAs of one space, in order of their addresses: the B-tree joined to the slots.
//!
//! [`btree`] knows keys and words only and has no unsafe code. Here a word of a leaf becomes a
//! slot again, by tree invariant T3: every word in a leaf is a slot attached to this tree's space,
//! as long as the mmap lock is held and no operation of its holder is half done.

mod btree;
mod node;

use crate::error::OutOfMemory;
use crate::lock::Refused;
use crate::mm::{ReadSection, Section, WriteSection};
use crate::platform::Platform;
use crate::range::Span;
use crate::slab::Slab;
use crate::slots::{Admitted, Entry, FreeSlot, Idx, Inside, Reserved, Sleeper, Slot, Turned};

use btree::{BTree, Position};

pub use node::Node;

/// The tree of one space. Always used with the slab of that space.
pub struct Tree {
    btree: BTree,
}

/// Why a VMA was not read-locked, with the mmap lock held for reading.
pub enum Blocked<'s, P> {
    /// As many readers as its count can hold.
    Busy,
    /// The range is only reserved.
    Reserved,
    /// An exclusion has it: let the mmap lock go, sleep, look again.
    Excluded(Sleeper<'s, P>),
    /// Something changed meanwhile: look again at once.
    Changed,
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
    pub fn walk<'s, P, T: Platform>(
        &self,
        slab: &'s Slab<P, T>,
        addr: usize,
    ) -> Option<&'s Slot<P>> {
        let raw = self.btree.walk(slab.node_arena(), addr)?;
        // SAFETY: out of a word of the tree, loaded with acquire.
        Some(slab.slot_arena().get(unsafe { Idx::from_raw(raw) }))
    }

    /// Walks, with no lock, to the first slot at or above `addr`; as little reliable.
    pub fn walk_from<'s, P, T: Platform>(
        &self,
        slab: &'s Slab<P, T>,
        addr: usize,
    ) -> Option<&'s Slot<P>> {
        let raw = self.btree.walk_from(slab.node_arena(), addr)?;
        // SAFETY: out of a word of the tree, loaded with acquire.
        Some(slab.slot_arena().get(unsafe { Idx::from_raw(raw) }))
    }

    /// What starts at `addr` or last before it.
    pub fn floor<'m, P, T: Platform>(
        &self,
        slab: &'m Slab<P, T>,
        section: &'m impl Section,
        addr: usize,
    ) -> Option<Entry<'m, P>> {
        Some(entry(slab, section, self.btree.walk(slab.node_arena(), addr)?))
    }

    /// What starts at `addr` or first after it.
    pub fn first_from<'m, P, T: Platform>(
        &self,
        slab: &'m Slab<P, T>,
        section: &'m impl Section,
        addr: usize,
    ) -> Option<Entry<'m, P>> {
        Some(entry(slab, section, self.btree.walk_from(slab.node_arena(), addr)?))
    }

    /// What starts at `addr` or first after it and has `size` free bytes behind it.
    pub fn first_gap<'m, P, T: Platform>(
        &self,
        slab: &'m Slab<P, T>,
        section: &'m impl Section,
        addr: usize,
        size: usize,
    ) -> Option<Entry<'m, P>> {
        Some(entry(slab, section, self.btree.first_gap(slab.node_arena(), addr, size)?))
    }

    /// What starts last before `addr` and has `size` free bytes behind it.
    pub fn last_gap<'m, P, T: Platform>(
        &self,
        slab: &'m Slab<P, T>,
        section: &'m impl Section,
        addr: usize,
        size: usize,
    ) -> Option<Entry<'m, P>> {
        Some(entry(slab, section, self.btree.last_gap(slab.node_arena(), addr, size)?))
    }

    /// Read-locks the VMA of `entry`; the read lock may outlive the section.
    pub fn read_lock<'s, P, T: Platform>(
        &self,
        slab: &'s Slab<P, T>,
        section: &ReadSection<'_, T>,
        entry: Entry<'_, P>,
    ) -> Result<Admitted<'s, P, T>, Blocked<'s, P>> {
        if entry.is_excluded() {
            let sleeper = Sleeper::register(slab.slot_arena(), entry);
            return Err(sleeper.map_or(Blocked::Changed, Blocked::Excluded));
        }
        match Inside::enter(slab.slot_arena().get(entry.index())) {
            // SAFETY: T3: the slot is attached to this tree's space, whose mmap lock is held.
            Ok(inside) => match unsafe { inside.admit_locked(section) } {
                Ok(admitted) => Ok(admitted),
                Err(Turned::Reserved(_)) => Err(Blocked::Reserved),
                Err(Turned::Away) => Err(Blocked::Changed),
            },
            Err(Refused::Busy) => Err(Blocked::Busy),
            Err(Refused::Contended | Refused::Excluded | Refused::Detached) => {
                Err(Blocked::Changed)
            }
        }
    }

    /// Inserts a VMA where nothing is, write-locked by the edit. When memory runs out nothing has
    /// changed and the payload comes back.
    pub fn insert<P, T: Platform>(
        &self,
        slab: &Slab<P, T>,
        section: &WriteSection<'_, T>,
        span: Span,
        payload: P,
    ) -> Result<(), (OutOfMemory, P)> {
        match self.link(slab, section, span) {
            Ok(slot) => slot.attach(section, span, payload),
            Err(error) => return Err((error, payload)),
        }
        Ok(())
    }

    /// Reserves a range where nothing is. When memory runs out nothing has changed.
    pub fn reserve<'s, P, T: Platform>(
        &self,
        slab: &'s Slab<P, T>,
        section: &WriteSection<'_, T>,
        span: Span,
    ) -> Result<Reserved<'s, P>, OutOfMemory> {
        Ok(self.link(slab, section, span)?.reserve(section, span))
    }

    /// Links a free slot for `span`, whose start is no other's, to be attached at once: a walker that
    /// gets here finds it detached, or locked. The gaps are right if nothing else is in the span.
    pub fn link<'s, P, T: Platform>(
        &self,
        slab: &'s Slab<P, T>,
        section: &WriteSection<'_, T>,
        span: Span,
    ) -> Result<FreeSlot<'s, P, T>, OutOfMemory> {
        let slot = FreeSlot::alloc(slab.slot_arena(), section)?;
        let raw = slot.index().raw();
        match self.btree.insert(slab.node_arena(), section, span.start, raw, span.len()) {
            Ok(()) => Ok(slot),
            Err(error) => {
                slot.give_back(section);
                Err(error)
            }
        }
    }

    /// Takes the entry at `start` out; its room goes to the gap before it.
    pub fn unlink<P, T: Platform>(
        &self,
        slab: &Slab<P, T>,
        section: &WriteSection<'_, T>,
        start: usize,
    ) {
        self.btree.remove(slab.node_arena(), section, start);
    }

    /// The entries from the one that holds `addr` on, or else from the next, in one walk.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn from<'m, P, T: Platform, S: Section>(
        &self,
        slab: &'m Slab<P, T>,
        section: &'m S,
        addr: usize,
    ) -> Entries<'m, P, T, S> {
        let at = self.btree.seek(slab.node_arena(), addr);
        let mut entries = Entries { slab, section, at, behind: false };
        let before = |entry: Entry<'_, P>| entry.span().end <= addr;
        entries.behind = entries.here().is_some_and(before);
        entries
    }

    /// Sets the gaps right after changes within `hull`: that of the last entry before it, and those
    /// of all that start in it.
    pub fn settle<P, T: Platform>(
        &self,
        slab: &Slab<P, T>,
        section: &WriteSection<'_, T>,
        hull: Span,
    ) {
        let nodes = slab.node_arena();
        let before = hull.start.saturating_sub(1);
        let Some(mut position) = self.btree.seek(nodes, before) else { return };
        while let Some(slot) = position.slot() {
            let span = entry(slab, section, slot).span();
            if span.start >= hull.end {
                break; // the first of all, and behind the hull
            }
            let next = position.next_key().unwrap_or(usize::MAX);
            position.set_gap(next - span.end);
            if next >= hull.end {
                break;
            }
            position.next(nodes);
        }
    }
}

/// Entries in order of address. For as long as nobody changes the tree: nothing of the user's may run
/// meanwhile.
pub struct Entries<'m, P, T: Platform, S> {
    slab: &'m Slab<P, T>,
    section: &'m S,
    at: Option<Position<'m>>,
    /// Whether the entry there has had its turn.
    behind: bool,
}

impl<'m, P, T: Platform, S: Section> Entries<'m, P, T, S> {
    fn here(&self) -> Option<Entry<'m, P>> {
        let slot = self.at.as_ref()?.slot()?;
        Some(entry(self.slab, self.section, slot))
    }
}

impl<'m, P, T: Platform, S: Section> Iterator for Entries<'m, P, T, S> {
    type Item = Entry<'m, P>;

    fn next(&mut self) -> Option<Entry<'m, P>> {
        if self.behind && !self.at.as_mut()?.next(self.slab.node_arena()) {
            self.at = None;
        }
        self.behind = true;
        self.here()
    }
}

#[cfg(all(test, not(pervma_model)))]
impl Tree {
    /// Panics unless all invariants of the tree hold, its keys are its VMAs' starts, and its gaps
    /// what is free behind them.
    pub fn check<P, T: Platform>(&self, slab: &Slab<P, T>, section: &WriteSection<'_, T>) {
        let mut end = usize::MAX;
        for (key, (slot, gap)) in self.btree.checked(slab.node_arena()).into_iter().rev() {
            let span = entry(slab, section, slot).span();
            assert_eq!((span.start, span.end + gap), (key, end), "a gap is not what is free");
            end = span.start;
        }
    }
}

fn entry<'m, P, T: Platform>(
    slab: &'m Slab<P, T>,
    section: &'m impl Section,
    raw: u32,
) -> Entry<'m, P> {
    // SAFETY: out of a word of the tree, loaded with acquire.
    let index = unsafe { Idx::from_raw(raw) };
    // SAFETY: T3, and the section is one of this tree's space. Unique access to a payload is given
    // out only by `Edit`, which is borrowed mutably for as long.
    unsafe { Entry::new(slab.slot_arena().get(index), index, section) }
}
