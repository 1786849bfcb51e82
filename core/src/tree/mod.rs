//! The VMAs of one space, in order of their addresses: the B-tree joined to the slots.
//!
//! [`btree`] knows keys and words only and has no unsafe code. Here a word of a leaf becomes a
//! slot again, by tree invariant T3: every word in a leaf is a slot attached to this tree's space,
//! as long as the mmap lock is held.

#[cfg_attr(not(test), expect(dead_code, reason = "nobody asks for gaps yet"))]
mod btree;
mod node;

use crate::error::OutOfMemory;
use crate::lock::Refused;
use crate::mm::{ReadSection, WriteSection};
use crate::platform::Platform;
use crate::range::Span;
use crate::slab::Slab;
use crate::slots::{Admitted, Attached, FreeSlot, Idx, Inside, Slot};

use btree::BTree;

pub use node::Node;

/// The tree of one space. Always used with the slab of that space.
pub struct Tree {
    btree: BTree,
}

impl Tree {
    crate::facade::const_unless_model! {
        pub fn new() -> Self {
            Self { btree: BTree::new() }
        }
    }

    /// Walks, with no lock, to the slot that may hold `addr`. It may have been recycled meanwhile;
    /// during an edit it may be any slot of the slab, or nothing.
    #[inline(always)]
    pub fn walk<'s, P, T: Platform>(
        &self,
        slab: &'s Slab<P, T>,
        addr: usize,
    ) -> Option<&'s Slot<P>> {
        let raw = self.btree.walk(slab.node_arena(), addr)?;
        // SAFETY: out of a word of the tree, loaded with acquire.
        Some(slab.slot_arena().get(unsafe { Idx::from_raw(raw) }))
    }

    /// Read-locks the VMA with the largest start not above `addr`, with the mmap lock held for
    /// reading; the read lock may outlive it. `None` if there is no such VMA.
    pub fn read_locked<'s, P, T: Platform>(
        &self,
        slab: &'s Slab<P, T>,
        section: &ReadSection<'_, T>,
        addr: usize,
    ) -> Option<Result<Admitted<'s, P, T>, Refused>> {
        let inside = Inside::enter(self.walk(slab, addr)?);
        // SAFETY: T3: the slot is attached to this tree's space, whose mmap lock is held.
        Some(inside.map(|inside| unsafe { inside.admit_locked(section) }))
    }

    /// The VMA with the largest start not above `addr`, in an edit.
    pub fn floor<'m, P, T: Platform>(
        &self,
        slab: &'m Slab<P, T>,
        _section: &'m WriteSection<'_, T>,
        addr: usize,
    ) -> Option<Attached<'m, P>> {
        self.attached(slab, self.btree.walk(slab.node_arena(), addr)?)
    }

    /// The VMA with the smallest start not below `addr`, in an edit.
    pub fn first_from<'m, P, T: Platform>(
        &self,
        slab: &'m Slab<P, T>,
        _section: &'m WriteSection<'_, T>,
        addr: usize,
    ) -> Option<Attached<'m, P>> {
        self.attached(slab, self.btree.walk_from(slab.node_arena(), addr)?)
    }

    fn attached<'m, P, T: Platform>(
        &self,
        slab: &'m Slab<P, T>,
        raw: u32,
    ) -> Option<Attached<'m, P>> {
        // SAFETY: out of a word of the tree, loaded with acquire.
        let index = unsafe { Idx::from_raw(raw) };
        // SAFETY: T3, and the callers hold the mmap lock for `'m`. Unique access to a payload is
        // given out only by `Edit`, which is borrowed mutably for as long.
        Some(unsafe { Attached::new(slab.slot_arena().get(index), index) })
    }

    /// Inserts a VMA, write-locked by the edit. When memory runs out nothing has changed and the
    /// payload comes back.
    pub fn insert<P, T: Platform>(
        &self,
        slab: &Slab<P, T>,
        section: &WriteSection<'_, T>,
        span: Span,
        payload: P,
    ) -> Result<(), (OutOfMemory, P)> {
        let slot = match FreeSlot::alloc(slab.slot_arena()) {
            Ok(slot) => slot,
            Err(error) => return Err((error, payload)),
        };
        // Linked before it is attached: a walker that gets here finds it detached, or locked.
        match self.btree.insert(slab.node_arena(), span.start, slot.index().raw(), 0) {
            Ok(()) => slot.attach(section, span, payload),
            Err(error) => return Err((error, payload)),
        }
        Ok(())
    }

    /// Removes a VMA, waiting for its readers; gives its payload back. The slot is free for the
    /// next insertion.
    pub fn remove<P, T: Platform>(
        &self,
        slab: &Slab<P, T>,
        section: &WriteSection<'_, T>,
        vma: Attached<'_, P>,
    ) -> P {
        let vma = vma.start_write(section);
        self.btree.remove(slab.node_arena(), vma.span().start);
        vma.detach(slab.slot_arena())
    }
}
