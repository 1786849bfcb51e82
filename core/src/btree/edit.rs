//! Insertions and removals that change nodes above the leaf.

use super::node::{AnySlot, FANOUT, Node, SPARSE, Target};
use super::position::Position;
use super::root::BTree;
use crate::arena::Arena;
use crate::error::OutOfMemory;
use crate::lock::EditSeq;
use crate::mm::EditSection;
use crate::platform::Platform;
use crate::step::Step;
use crate::sync::keep;

impl BTree {
    /// Splits the leaf of `at`, which is full, where the node above has room, and goes to the entry
    /// that [`Position::insert`] needs for `key`; whether it has. When memory runs out nothing has
    /// changed.
    pub(crate) fn split_leaf<'n, P: Platform>(
        &self,
        nodes: &'n Arena<Node, P>,
        section: &EditSection<'_, P>,
        at: &mut Position<'n>,
        key: usize,
    ) -> Result<bool, OutOfMemory> {
        let above = at.above().next();
        let Some((parent, entry)) = above.filter(|(parent, _)| !parent.is_full()) else {
            return Ok(false);
        };
        let right = nodes.get(nodes.alloc(section)?);
        self.new_shape();
        at.forget_notes();
        split(section.edit(), parent, entry, right, key);
        at.ascend();
        at.seek(key);
        Ok(true)
    }

    /// Inserts `slot` at `key`, which no entry has, with `len` bytes from there taken. What is free
    /// behind them becomes its gap, and the gap before it ends at `key`. When memory runs out
    /// nothing has changed.
    ///
    /// Where the leaf is not full, or [can be split](Self::split_leaf), [`Position::insert`] does
    /// the same.
    #[cold]
    pub(crate) fn insert<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        section: &EditSection<'_, P>,
        key: usize,
        slot: AnySlot,
        len: usize,
    ) -> Result<(), OutOfMemory> {
        self.new_shape();
        self.insert_from_root(nodes, section, key, slot)?;
        let distance = self.seek(key).map_or(0, |at| {
            let distance = at.distance_to_next();
            at.set_gap(distance.saturating_sub(len));
            distance
        });
        self.update_gap_before(key, |gap| gap.saturating_sub(distance));
        Ok(())
    }

    /// Changes the gap of the last entry before `key`, if there is one.
    fn update_gap_before(&self, key: usize, new: impl FnOnce(usize) -> usize) {
        let before = key.checked_sub(1).and_then(|addr| self.seek(addr));
        if let Some(before) = before.filter(|before| before.key() < key) {
            before.update_gap(new);
        }
    }

    /// Inserts `slot` at `key`, with no gap, splitting full nodes on the way down.
    fn insert_from_root<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        section: &EditSection<'_, P>,
        key: usize,
        slot: AnySlot,
    ) -> Result<(), OutOfMemory> {
        let mut node = self.root_not_full(nodes, section, key)?;
        let mut position = Position::at_root(node);
        loop {
            let mut entry = node.search(key);
            let Some(mut child) = node.child_node(entry) else { break };
            if child.is_full() {
                let right = nodes.get(nodes.alloc(section)?);
                split(section.edit(), node, entry, right, key);
                entry = node.search(key);
                child = node.child_node(entry).unwrap_or(child);
            }
            node = child;
            position.descend(entry, node);
        }
        position.forget_notes_of_path();
        node.insert(section.edit(), key, Target::to_slot(slot), 0);
        for (above, entry) in position.above() {
            if key < above.key(entry) {
                above.set_key(section.edit(), entry, key);
            }
        }
        Ok(())
    }

    /// The root, made if there is none and split if it is full.
    fn root_not_full<'n, P: Platform>(
        &'n self,
        nodes: &'n Arena<Node, P>,
        section: &EditSection<'_, P>,
        key: usize,
    ) -> Result<&'n Node, OutOfMemory> {
        let Some(root) = self.root() else {
            let root = nodes.get(nodes.alloc(section)?);
            root.clear(section.edit());
            self.set_root(section.edit(), Target::to_node(root));
            return Ok(root);
        };
        if !root.is_full() {
            return Ok(root);
        }
        let top = nodes.alloc(section)?;
        let right = match nodes.alloc(section) {
            Ok(right) => nodes.get(right),
            Err(error) => {
                nodes.free(top, section);
                return Err(error);
            }
        };
        let top = nodes.get(top);
        top.clear(section.edit());
        top.insert(section.edit(), root.key(0), Target::to_node(root), root.max_gap());
        self.set_root(section.edit(), Target::to_node(top));
        split(section.edit(), top, 0, right, key);
        Ok(top)
    }

    /// Removes the entry with exactly this `key`, if there is one. The gap before it grows by what
    /// is [freed](Position::freed).
    ///
    /// Where the leaf is not sparse, [`Position::remove`] does the same.
    #[cold]
    pub(crate) fn remove<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        section: &EditSection<'_, P>,
        key: usize,
        kept: bool,
    ) {
        let Some(at) = self.seek(key).filter(|at| at.key() == key) else { return };
        let freed = at.freed(kept);
        self.new_shape();
        self.remove_from_root(nodes, section, key);
        self.update_gap_before(key, |gap| gap.saturating_add(freed));
    }

    /// Removes the entry with this `key`, refilling sparse nodes on the way down.
    fn remove_from_root<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        section: &EditSection<'_, P>,
        key: usize,
    ) {
        let Some(mut node) = self.root() else { return };
        let mut position = Position::at_root(node);
        loop {
            let mut entry = node.search(key);
            let Some(mut child) = node.child_node(entry) else { break };
            if child.len() <= SPARSE {
                refill(nodes, section, node, entry);
                entry = node.search(key);
                child = node.child_node(entry).unwrap_or(child);
            }
            node = child;
            position.descend(entry, node);
        }
        position.forget_notes_of_path();
        let entry = node.search(key);
        let gap = node.gap(entry);
        node.remove(section.edit(), entry);
        if node.len() != 0 {
            let smallest = node.key(0);
            for (above, entry) in position.above() {
                if above.key(entry) == key {
                    above.set_key(section.edit(), entry, smallest);
                }
            }
        }
        position.gap_changed(gap, 0);
        self.lower_root(nodes, section);
    }

    /// Drops a root with a single child, or an empty one.
    fn lower_root<P: Platform>(&self, nodes: &Arena<Node, P>, section: &EditSection<'_, P>) {
        while let Some(root) = self.root() {
            match (root.len(), root.child_node(0)) {
                (1, Some(child)) => self.set_root(section.edit(), Target::to_node(child)),
                (0, _) => self.set_root(section.edit(), Target::NOTHING),
                _ => return,
            }
            nodes.free(nodes.index_of(root), section);
        }
    }
}

/// Moves the upper part of `parent`'s full child at `entry` to the new node `right`, so that `key`
/// fits: half of it, or where keys come in order, as little or as much as there may be, since
/// what is left behind is never added to again.
fn split(edit: EditSeq, parent: &Node, entry: usize, right: &Node, key: usize) {
    let Some(left) = parent.child_node(entry) else { return };
    left.forget_notes();
    let at = if key > left.key(FANOUT - 1) {
        FANOUT - SPARSE
    } else if key < left.key(0) {
        SPARSE
    } else {
        FANOUT / 2
    };
    right.clear(edit);
    left.copy_tail_to(edit, at, right);
    parent.insert(edit, right.key(0), Target::to_node(right), right.max_gap());
    left.truncate(edit, at);
    parent.set_gap(entry, left.max_gap());
}

/// Merges `parent`'s sparse child at `entry` with a neighbour, or takes entries from it.
fn refill<P: Platform>(
    nodes: &Arena<Node, P>,
    section: &EditSection<'_, P>,
    parent: &Node,
    entry: usize,
) {
    let at = entry.saturating_sub(1);
    let (Some(l), Some(r)) = (parent.child_node(at), parent.child_node(at + 1)) else { return };
    let edit = section.edit();
    l.forget_notes();
    r.forget_notes();
    let total = l.len() + r.len();
    if total <= FANOUT {
        if !keep(Step::FreeLast) {
            nodes.free(nodes.index_of(r), section);
        }
        r.copy_tail_to(edit, 0, l);
        parent.remove(edit, at + 1);
        if keep(Step::EmptyMerged) {
            r.truncate(edit, 0); // T6
        }
        if keep(Step::FreeLast) {
            nodes.free(nodes.index_of(r), section);
        }
    } else {
        if l.len() < r.len() {
            for _ in l.len()..total / 2 {
                l.insert(edit, r.key(0), r.child(0).follow(), r.gap(0));
                parent.set_key(edit, at + 1, r.key(1));
                r.remove(edit, 0);
            }
        } else {
            let keep = total / 2;
            l.copy_tail_to(edit, keep, r);
            parent.set_key(edit, at + 1, r.key(0));
            l.truncate(edit, keep);
        }
        parent.set_gap(at + 1, r.max_gap());
    }
    parent.set_gap(at, l.max_gap());
}
