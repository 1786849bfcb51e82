//! Where the writer is in the tree.

use super::node::{AnySlot, Node, SPARSE, Target};
use super::root::{BTree, MAX_DEPTH};
use crate::lock::EditSeq;
use crate::range::Span;

/// An entry of a leaf and the way to it from the root, for the writer; good while nothing changes
/// but that leaf.
pub(crate) struct Position<'n> {
    leaf: &'n Node,
    entry: usize,
    /// The nodes above the leaf, from the root on, and the entry taken in each. The first is the
    /// root also where the leaf is the root.
    nodes: [&'n Node; MAX_DEPTH],
    entries: [u8; MAX_DEPTH],
    /// How many there are.
    depth: usize,
}

impl<'n> Position<'n> {
    /// At the root, from where [`seek`](Self::seek) goes on. A position is made where it is used
    /// and not passed on: it is large.
    #[inline(always)]
    pub(crate) fn at_root(root: &'n Node) -> Self {
        let (nodes, entries) = ([root; MAX_DEPTH], [0; MAX_DEPTH]);
        Self { leaf: root, entry: 0, nodes, entries, depth: 0 }
    }

    /// Goes to the root, unless `addr` is among the keys of this leaf.
    #[inline]
    pub(crate) fn leave_for(&mut self, addr: usize) {
        let leaf = self.leaf;
        if addr < leaf.key(0) || leaf.key(leaf.len() - 1) < addr {
            (self.leaf, self.depth) = (self.nodes[0], 0);
        }
    }

    /// Goes to the entry with the largest key not above `addr`, or else to the first, of those that
    /// are below the last node.
    #[inline]
    pub(crate) fn seek(&mut self, addr: usize) {
        loop {
            self.entry = self.leaf.search(addr);
            let Some(child) = self.leaf.child_node(self.entry) else { return };
            self.descend(self.entry, child);
        }
    }

    /// Goes where [`seek`](Self::seek) does, entry by entry; `false` if that may be another leaf.
    #[inline]
    pub(crate) fn step_to(&mut self, addr: usize) -> bool {
        let (leaf, mut entry) = self.last();
        let last = leaf.len() - 1;
        while entry > 0 && addr < leaf.key(entry) {
            entry -= 1;
        }
        while entry < last && leaf.key(entry + 1) <= addr {
            entry += 1;
        }
        self.entry = entry;
        leaf.key(entry) <= addr && entry < last
    }

    /// Takes an entry of the last node, and goes on to the node below it.
    #[inline]
    pub(super) fn descend(&mut self, entry: usize, child: &'n Node) {
        self.nodes[self.depth] = self.leaf;
        self.entries[self.depth] = entry as u8;
        self.depth += 1;
        self.leaf = child;
    }

    /// Goes back to the node above the leaf.
    pub(super) fn ascend(&mut self) {
        self.depth -= 1;
        self.leaf = self.nodes[self.depth];
    }

    /// The leaf, and the entry.
    #[inline]
    pub(super) fn last(&self) -> (&'n Node, usize) {
        (self.leaf, self.entry)
    }

    /// The nodes above the leaf, from below, and the entry taken in each.
    #[inline]
    pub(super) fn above(&self) -> impl Iterator<Item = (&'n Node, usize)> {
        (0..self.depth).rev().map(|step| (self.nodes[step], usize::from(self.entries[step])))
    }

    /// The slot that the entry's word points to.
    #[inline]
    pub(crate) fn slot(&self) -> Option<AnySlot> {
        let (leaf, entry) = self.last();
        leaf.child(entry).follow().slot()
    }

    /// The key of the next entry.
    #[inline]
    pub(crate) fn next_key(&self) -> Option<usize> {
        let has_next = |&(node, entry): &(&Node, usize)| entry + 1 < node.len();
        // Where the next one is in another leaf, by T1.
        let above = || self.above().find(has_next);
        let (node, entry) = Some(self.last()).filter(has_next).or_else(above)?;
        Some(node.key(entry + 1))
    }

    /// Goes on to the next entry; `false` if there is none.
    #[inline]
    pub(crate) fn next(&mut self) -> bool {
        let (mut node, mut entry) = self.last();
        let mut depth = self.depth;
        while entry + 1 >= node.len() {
            let Some(above) = depth.checked_sub(1) else { return false };
            (node, entry, depth) = (self.nodes[above], usize::from(self.entries[above]), above);
        }
        (self.leaf, self.entry, self.depth) = (node, entry + 1, depth);
        while let Some(child) = self.leaf.child_node(self.entry) {
            self.descend(self.entry, child);
            self.entry = 0;
        }
        true
    }

    /// The key of the entry.
    #[inline]
    pub(crate) fn key(&self) -> usize {
        let (leaf, entry) = self.last();
        leaf.key(entry)
    }

    /// From the entry's key to the next entry's, in bytes.
    #[inline]
    pub(super) fn distance_to_next(&self) -> usize {
        self.next_key().unwrap_or(usize::MAX) - self.key()
    }

    /// Changes the entry's gap.
    #[inline]
    pub(crate) fn set_gap(&self, gap: usize) {
        self.update_gap(|_| gap);
    }

    #[inline]
    pub(super) fn update_gap(&self, new: impl FnOnce(usize) -> usize) {
        let (leaf, entry) = self.last();
        let old = leaf.gap(entry);
        let new = new(old);
        // Its size may be the same, and its place not.
        self.forget_notes();
        if old != new {
            leaf.set_gap(entry, new);
            self.gap_changed(old, new);
        }
    }

    /// Whether nothing is in `span`, to whose start this position was sought.
    #[inline]
    pub(crate) fn is_free(&self, span: Span) -> bool {
        let (leaf, entry) = self.last();
        if span.start < leaf.key(entry) {
            return span.end <= leaf.key(entry);
        }
        let next = self.next_key().unwrap_or(usize::MAX);
        next - leaf.gap(entry) <= span.start && span.end <= next
    }

    /// Whether no entry can be inserted into the leaf as it is.
    #[inline]
    pub(crate) fn leaf_is_full(&self) -> bool {
        self.last().0.is_full()
    }

    /// Inserts an entry beside this one, which is that with the largest key below the new one's, or
    /// else the first of all, into a leaf that is not [full](Self::leaf_is_full).
    #[inline(always)]
    pub(crate) fn insert(&self, edit: EditSeq, key: usize, slot: AnySlot, len: usize) {
        let (leaf, entry) = self.last();
        self.forget_notes();
        if key < leaf.key(entry) {
            let gap = (leaf.key(entry) - key).saturating_sub(len);
            leaf.insert(edit, key, Target::to_slot(slot), gap);
            self.above().for_each(|(above, entry)| above.set_key(edit, entry, key));
            self.gap_changed(0, gap);
        } else {
            let free = self.next_key().unwrap_or(usize::MAX) - key;
            let (old, gap) = (leaf.gap(entry), free.saturating_sub(len));
            let before = old.saturating_sub(free);
            leaf.set_gap(entry, before);
            leaf.insert(edit, key, Target::to_slot(slot), gap);
            self.gap_changed(old, gap.max(before));
        }
    }

    /// Inserts an entry right behind this one, with a gap before it and one behind, and goes there.
    /// The caller restores T4 above the leaf.
    #[inline]
    pub(super) fn insert_behind(
        &mut self,
        edit: EditSeq,
        key: usize,
        slot: AnySlot,
        [before, behind]: [usize; 2],
    ) {
        debug_assert!(!self.leaf.has_notes(), "what was inserted before has forgotten them");
        self.leaf.set_gap(self.entry, before);
        self.leaf.insert(edit, key, Target::to_slot(slot), behind);
        self.entry += 1;
    }

    /// Makes the entry's word point to another slot.
    #[inline]
    pub(crate) fn relink(&self, edit: EditSeq, slot: AnySlot) {
        let (leaf, entry) = self.last();
        leaf.relink(edit, entry, Target::to_slot(slot));
    }

    /// Whether the entry can be removed from the leaf as it is: it is not the first, and others are
    /// left.
    #[inline]
    pub(crate) fn leaf_is_not_sparse(&self) -> bool {
        let (leaf, entry) = self.last();
        entry > 0 && leaf.len() > SPARSE
    }

    /// By how much the gap before the entry grows when it is removed: by its own gap, and unless
    /// what it holds is `kept` by the entry before, by that too.
    #[inline]
    pub(super) fn freed(&self, kept: bool) -> usize {
        let (leaf, entry) = self.last();
        if kept { leaf.gap(entry) } else { self.distance_to_next() }
    }

    /// Removes an entry from a leaf that is [not sparse](Self::leaf_is_not_sparse), and goes to the
    /// next one if it is in the same leaf. The gap before it grows by what is
    /// [freed](Self::freed).
    #[inline(always)]
    pub(crate) fn remove(&self, edit: EditSeq, kept: bool) {
        let (leaf, entry) = self.last();
        self.forget_notes();
        let old = leaf.gap(entry).max(leaf.gap(entry - 1));
        let gap = leaf.gap(entry - 1).saturating_add(self.freed(kept));
        leaf.set_gap(entry - 1, gap);
        leaf.remove(edit, entry);
        self.gap_changed(old, gap);
    }

    /// Forgets what searches have noted of the leaf and above it; by T5 there is nothing to forget
    /// if the leaf has no note.
    #[inline(always)]
    pub(super) fn forget_notes(&self) {
        if self.leaf.has_notes() {
            self.forget_notes_of_path();
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn forget_notes_of_path(&self) {
        self.leaf.forget_notes();
        self.above().for_each(|(node, _)| node.forget_notes());
    }

    /// Restores T4 above the leaf, where a gap went from `old` to `new`; 0 stands for no entry.
    #[inline]
    pub(super) fn gap_changed(&self, old: usize, mut new: usize) {
        if old == new {
            return;
        }
        let (mut child, _) = self.last();
        for (node, entry) in self.above() {
            let before = node.gap(entry);
            if new < before {
                if old < before {
                    return; // neither was the largest
                }
                new = child.max_gap();
            }
            if new == before {
                return;
            }
            node.set_gap(entry, new);
            child = node;
        }
    }
}

impl BTree {
    /// The entry with the largest key not above `addr`, or else the first.
    #[inline]
    pub(crate) fn seek(&self, addr: usize) -> Option<Position<'_>> {
        let mut position = Position::at_root(self.root()?);
        position.seek(addr);
        Some(position)
    }
}
