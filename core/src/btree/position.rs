//! Where the writer is in the tree.

use super::node::{Node, SPARSE, Target};
use super::root::{BTree, MAX_DEPTH};
use crate::arena::Arena;
use crate::lock::EditSeq;
use crate::platform::Platform;
use crate::range::Span;

/// An entry of a leaf and the way to it from the root, for the writer; good while nothing changes
/// but that leaf.
pub(crate) struct Position<'n> {
    /// The nodes on the way, and the entry taken in each.
    nodes: [&'n Node; MAX_DEPTH],
    entries: [u8; MAX_DEPTH],
    /// Which of them is the leaf.
    leaf: usize,
}

impl<'n> Position<'n> {
    /// At the root, from where [`seek`](Self::seek) goes on. A position is made where it is used
    /// and not passed on: it is large.
    #[inline(always)]
    pub(crate) fn at_root(root: &'n Node) -> Self {
        Self { nodes: [root; MAX_DEPTH], entries: [0; MAX_DEPTH], leaf: 0 }
    }

    /// Goes to the entry with the largest key not above `addr`, or else to the first. The nodes on
    /// the way here are what they were, but for entries of this leaf.
    #[inline]
    pub(crate) fn seek<P: Platform>(&mut self, nodes: &'n Arena<Node, P>, addr: usize) {
        let (mut node, _) = self.last();
        let here = node.key(0) <= addr && addr <= node.key(node.len() - 1);
        if !here {
            self.leaf = 0;
            node = self.nodes[0];
        }
        loop {
            let entry = node.search(addr);
            let Some(child) = node.child_node(entry) else {
                self.entries[self.leaf] = entry as u8;
                return;
            };
            node = nodes.get(child);
            self.descend(entry, node);
        }
    }

    /// Takes an entry of the last node, and goes on to the node below it.
    #[inline]
    pub(super) fn descend(&mut self, entry: usize, child: &'n Node) {
        self.entries[self.leaf] = entry as u8;
        self.leaf += 1;
        self.nodes[self.leaf] = child;
    }

    #[inline]
    fn step(&self, step: usize) -> (&'n Node, usize) {
        (self.nodes[step], usize::from(self.entries[step]))
    }

    /// The leaf, and the entry.
    #[inline]
    fn last(&self) -> (&'n Node, usize) {
        self.step(self.leaf)
    }

    /// The nodes above the leaf, from below, and the entry taken in each.
    #[inline]
    pub(super) fn above(&self) -> impl Iterator<Item = (&'n Node, usize)> {
        (0..self.leaf).rev().map(|step| self.step(step))
    }

    /// The node or slot that the entry's word points to.
    #[inline]
    pub(crate) fn slot(&self) -> Option<u32> {
        let (leaf, entry) = self.last();
        leaf.child(entry).follow().slot()
    }

    /// The deepest step behind whose entry there is another.
    #[inline]
    fn turn(&self) -> Option<usize> {
        (0..self.leaf + 1).rev().find(|&step| {
            let (node, entry) = self.step(step);
            entry + 1 < node.len()
        })
    }

    /// The key of the next entry.
    #[inline]
    pub(crate) fn next_key(&self) -> Option<usize> {
        // Where the next one is in another leaf, by T1.
        let (node, entry) = self.step(self.turn()?);
        Some(node.key(entry + 1))
    }

    /// Goes on to the next entry; `false` if there is none.
    #[inline]
    pub(crate) fn next<P: Platform>(&mut self, nodes: &'n Arena<Node, P>) -> bool {
        let Some(turn) = self.turn() else { return false };
        self.leaf = turn;
        self.entries[turn] += 1;
        let (mut node, mut entry) = self.last();
        while let Some(child) = node.child_node(entry) {
            (node, entry) = (nodes.get(child), 0);
            self.descend(usize::from(self.entries[self.leaf]), node);
            self.entries[self.leaf] = 0;
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
    #[inline]
    pub(crate) fn insert(&self, edit: EditSeq, key: usize, slot: u32, len: usize) {
        let (leaf, entry) = self.last();
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

    /// Makes the entry's word point to another slot.
    #[inline]
    pub(crate) fn relink(&self, edit: EditSeq, slot: u32) {
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

    /// Removes an entry from a leaf that is [not sparse](Self::leaf_is_not_sparse). The bytes up to
    /// the next entry, but for those that are `kept`, become part of the gap before it.
    #[inline]
    pub(crate) fn remove(&self, edit: EditSeq, kept: usize) {
        let (leaf, entry) = self.last();
        let old = leaf.gap(entry).max(leaf.gap(entry - 1));
        let gap = leaf.gap(entry - 1).saturating_add(self.distance_to_next().saturating_sub(kept));
        leaf.set_gap(entry - 1, gap);
        leaf.remove(edit, entry);
        self.gap_changed(old, gap);
    }

    /// Restores T4 above the leaf, where a gap went from `old` to `new`; 0 stands for no entry.
    #[inline]
    pub(super) fn gap_changed(&self, old: usize, mut new: usize) {
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
    pub(crate) fn seek<'n, P: Platform>(
        &self,
        nodes: &'n Arena<Node, P>,
        addr: usize,
    ) -> Option<Position<'n>> {
        let mut position = Position::at_root(self.root(nodes)?);
        position.seek(nodes, addr);
        Some(position)
    }
}
