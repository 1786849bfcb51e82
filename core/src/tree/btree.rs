//! The B-tree: one writer, changed in place; walkers that take no lock and trust nothing.
//!
//! # Guarantee
//!
//! [`BTree::walk`] and [`BTree::walk_from`] end after a number of steps that [`MAX_DEPTH`] bounds
//! and write nothing. While no edit is under way the one finds the entry with the largest key not
//! above the address, the other that with the smallest key not below it. During an edit they may
//! arrive anywhere, also in another space's tree, or nowhere; the caller finds out.
//!
//! All else is for the writer and takes a number of steps logarithmic in the entries.
//!
//! # Invariants, whenever no operation of the writer is under way
//!
//! - **T1** Keys ascend within a node; an inner entry's key is the smallest key below it.
//! - **T2** All leaves are equally deep, and no node but an empty root is empty: the root is the
//!   empty word then.
//! - **T3** Every word in a leaf is a slot that is attached to this tree's space.
//! - **T4** An inner entry's gap is the largest gap in its child. A leaf entry's gap is what the
//!   owner says: the free bytes from the end of that VMA to the start of the next.
//!
//! # How the writer works
//!
//! From the root down, in one pass: an insertion splits every full node it meets, a removal
//! refills every sparse one. Either leaves a valid tree at each step, so running out of memory in
//! the middle of an insertion changes nothing that a caller can see. An entry's new copy is linked
//! before the old one goes: that saves walkers retries, correctness does not rest on it.
//!
//! # Rejected
//!
//! Copying a node for each change: readers elsewhere gain nothing from it, since the end
//! validation is needed anyway, and the writer pays for the copy.

use crate::error::OutOfMemory;
use crate::facade::keep;
use crate::ledger::Step;
use crate::platform::Platform;
use crate::slots::{Arena, Idx};

use super::node::{FANOUT, Node, SPARSE, Target, TreeWord};

/// More nodes than any path has: every node but the root keeps [`SPARSE`] entries or more, and with
/// four of them each, sixteen levels hold the 2³⁰ entries that an arena can name.
pub const MAX_DEPTH: usize = 32;

/// The root of a tree; the nodes are in an arena.
pub struct BTree {
    root: TreeWord,
}

/// The way from the root to a leaf: nodes, and the entry taken in each.
struct Path {
    steps: [Option<(Idx<Node>, usize)>; MAX_DEPTH],
    len: usize,
}

impl Path {
    fn new() -> Self {
        Self { steps: [None; MAX_DEPTH], len: 0 }
    }

    fn push(&mut self, node: Idx<Node>, entry: usize) {
        self.steps[self.len] = Some((node, entry));
        self.len += 1;
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = (Idx<Node>, usize)> {
        self.steps[..self.len].iter().flatten().copied()
    }

    /// Restores T4 above `leaf`, at the end of this path, where a gap went from `old` to `new`; 0
    /// stands for no entry.
    fn gap_changed<'n, T: Platform>(
        &self,
        nodes: &'n Arena<Node, T>,
        leaf: &'n Node,
        old: usize,
        mut new: usize,
    ) {
        let mut child = leaf;
        for (node, entry) in self.iter().rev() {
            let node = nodes.get(node);
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
    crate::facade::const_unless_model! {
        pub fn new() -> Self {
            Self { root: TreeWord::empty() }
        }
    }

    /// The slot with the largest key not above `addr`, or nothing; see the guarantee.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn walk<T: Platform>(&self, nodes: &Arena<Node, T>, addr: usize) -> Option<u32> {
        let mut target = self.root.follow();
        for _ in 0..=MAX_DEPTH {
            match target {
                Target::Empty => return None,
                Target::Slot(slot) => return Some(slot),
                Target::Node(node) => {
                    let node = nodes.get(node);
                    let word = node.child(node.search(addr)?);
                    target = if keep(Step::TagInWord) {
                        word.follow()
                    } else {
                        word.follow_as(node.child(0))
                    };
                }
            }
        }
        None // only a walk through recycled nodes is that long
    }

    /// The slot with the smallest key not below `addr`, or nothing; see the guarantee.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn walk_from<T: Platform>(&self, nodes: &Arena<Node, T>, addr: usize) -> Option<u32> {
        let mut right = None; // the subtree next to the path
        let mut target = self.root.follow();
        for _ in 0..=MAX_DEPTH {
            let Target::Node(node) = target else { break };
            let node = nodes.get(node);
            let before = addr.checked_sub(1).and_then(|last| node.search(last));
            right = node.used(before.map_or(0, |entry| entry + 1)).or(right);
            let Some(entry) = before else { break };
            target = node.child(entry).follow();
        }
        // By T1 the smallest key below a node is below its first entry.
        let mut target = right?.follow();
        for _ in 0..=MAX_DEPTH {
            match target {
                Target::Empty => return None,
                Target::Slot(slot) => return Some(slot),
                Target::Node(node) => target = nodes.get(node).child(0).follow(),
            }
        }
        None // only a walk through recycled nodes is that long
    }

    /// The slot with the smallest key not below `from` that has `size` bytes of room after it.
    pub fn first_gap<T: Platform>(
        &self,
        nodes: &Arena<Node, T>,
        from: usize,
        size: usize,
    ) -> Option<u32> {
        let Target::Node(root) = self.root.follow() else { return None };
        find_gap(nodes, root, from, size, Side::Above)
    }

    /// The slot with the largest key below `below` that has `size` bytes of room after it.
    pub fn last_gap<T: Platform>(
        &self,
        nodes: &Arena<Node, T>,
        below: usize,
        size: usize,
    ) -> Option<u32> {
        let Target::Node(root) = self.root.follow() else { return None };
        find_gap(nodes, root, below, size, Side::Below)
    }

    /// Changes the gap of the entry with exactly this `key`, if there is one.
    pub fn set_gap<T: Platform>(&self, nodes: &Arena<Node, T>, key: usize, gap: usize) {
        let Target::Node(mut index) = self.root.follow() else { return };
        let mut path = Path::new();
        loop {
            let node = nodes.get(index);
            let Some(entry) = node.search(key) else { return };
            if let Some(child) = node.child_node(entry) {
                path.push(index, entry);
                index = child;
                continue;
            }
            if node.key(entry) == key {
                let old = node.gap(entry);
                node.set_gap(entry, gap);
                path.gap_changed(nodes, node, old, gap);
            }
            return;
        }
    }

    /// Inserts `slot` with its gap at `key`, which no entry has. When memory runs out nothing has
    /// changed.
    pub fn insert<T: Platform>(
        &self,
        nodes: &Arena<Node, T>,
        key: usize,
        slot: u32,
        gap: usize,
    ) -> Result<(), OutOfMemory> {
        let mut path = Path::new();
        let mut index = self.root_with_room(nodes, key)?;
        loop {
            let node = nodes.get(index);
            let mut entry = node.search(key).unwrap_or(0);
            let Some(mut child) = node.child_node(entry) else { break };
            if nodes.get(child).is_full() {
                split(nodes, node, entry, nodes.alloc()?, key);
                entry = node.search(key).unwrap_or(0);
                child = node.child_node(entry).unwrap_or(child);
            }
            path.push(index, entry);
            index = child;
        }
        let leaf = nodes.get(index);
        leaf.insert(key, Target::Slot(slot), gap);
        for (above, entry) in path.iter() {
            if key < nodes.get(above).key(entry) {
                nodes.get(above).set_key(entry, key);
            }
        }
        path.gap_changed(nodes, leaf, 0, gap);
        Ok(())
    }

    /// The root, made if there is none and split if it is full.
    fn root_with_room<T: Platform>(
        &self,
        nodes: &Arena<Node, T>,
        key: usize,
    ) -> Result<Idx<Node>, OutOfMemory> {
        let Target::Node(root) = self.root.follow() else {
            let root = nodes.alloc()?;
            nodes.get(root).clear();
            self.root.link(Target::Node(root));
            return Ok(root);
        };
        if !nodes.get(root).is_full() {
            return Ok(root);
        }
        let top = nodes.alloc()?;
        let right = match nodes.alloc() {
            Ok(right) => right,
            Err(error) => {
                nodes.free(top);
                return Err(error);
            }
        };
        let (node, child) = (nodes.get(top), nodes.get(root));
        node.clear();
        node.insert(child.key(0), Target::Node(root), child.max_gap());
        self.root.link(Target::Node(top));
        split(nodes, node, 0, right, key);
        Ok(top)
    }

    /// Removes the entry with exactly this `key`, if there is one.
    pub fn remove<T: Platform>(&self, nodes: &Arena<Node, T>, key: usize) {
        let Target::Node(mut index) = self.root.follow() else { return };
        let mut path = Path::new();
        let leaf = loop {
            let node = nodes.get(index);
            let Some(entry) = node.search(key) else { return };
            let Some(mut child) = node.child_node(entry) else { break node };
            let mut taken = entry;
            if nodes.get(child).len() <= SPARSE {
                refill(nodes, node, entry);
                taken = node.search(key).unwrap_or(0);
                child = node.child_node(taken).unwrap_or(child);
            }
            path.push(index, taken);
            index = child;
        };
        let Some(entry) = leaf.search(key).filter(|&entry| leaf.key(entry) == key) else { return };
        let gap = leaf.gap(entry);
        leaf.remove(entry);
        if leaf.len() != 0 {
            let smallest = leaf.key(0);
            for (above, entry) in path.iter() {
                if nodes.get(above).key(entry) == key {
                    nodes.get(above).set_key(entry, smallest);
                }
            }
        }
        path.gap_changed(nodes, leaf, gap, 0);
        self.lower_root(nodes);
    }

    /// Drops a root with a single child, or an empty one.
    fn lower_root<T: Platform>(&self, nodes: &Arena<Node, T>) {
        while let Target::Node(root) = self.root.follow() {
            let node = nodes.get(root);
            match (node.len(), node.child_node(0)) {
                (1, Some(child)) => self.root.link(Target::Node(child)),
                (0, _) => self.root.link(Target::Empty),
                _ => return,
            }
            nodes.free(root);
        }
    }
}

/// On which side of an address a search for room goes, away from it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Below,
    /// With the address itself.
    Above,
}

/// The slot below `index`, nearest to `addr` on that side, with a gap of `size` or more. Only the
/// subtree that `addr` is in can disappoint; by T4 every other one with such a gap has the slot.
fn find_gap<T: Platform>(
    nodes: &Arena<Node, T>,
    index: Idx<Node>,
    addr: usize,
    size: usize,
    side: Side,
) -> Option<u32> {
    let node = nodes.get(index);
    let middle = node.search(addr).unwrap_or(0);
    let fit = |entry: usize| match node.child(entry).follow() {
        _ if node.gap(entry) < size => None,
        Target::Empty => None,
        Target::Node(child) => find_gap(nodes, child, addr, size, side),
        Target::Slot(slot) => ((node.key(entry) >= addr) == (side == Side::Above)).then_some(slot),
    };
    match side {
        Side::Below => (0..=middle).rev().find_map(fit),
        Side::Above => (middle..node.len()).find_map(fit),
    }
}

/// Moves the upper part of `parent`'s full child at `entry` to the new node `right`, to make room
/// for `key`: half of it, or where keys come in order, all or nothing but one, since what is left
/// behind is never added to again.
fn split<T: Platform>(
    nodes: &Arena<Node, T>,
    parent: &Node,
    entry: usize,
    right: Idx<Node>,
    key: usize,
) {
    let Some(child) = parent.child_node(entry) else { return };
    let (left, new) = (nodes.get(child), nodes.get(right));
    let at = if key > left.key(FANOUT - 1) {
        FANOUT - 1
    } else if key < left.key(0) {
        1
    } else {
        FANOUT / 2
    };
    new.clear();
    left.copy_tail_to(at, new);
    parent.insert(new.key(0), Target::Node(right), new.max_gap());
    left.truncate(at);
    parent.set_gap(entry, left.max_gap());
}

/// Merges `parent`'s sparse child at `entry` with a neighbour, or takes entries from it.
fn refill<T: Platform>(nodes: &Arena<Node, T>, parent: &Node, entry: usize) {
    let at = entry.saturating_sub(1);
    let (Some(left), Some(right)) = (parent.child_node(at), parent.child_node(at + 1)) else {
        return;
    };
    let (l, r) = (nodes.get(left), nodes.get(right));
    let total = l.len() + r.len();
    if total <= FANOUT {
        if !keep(Step::FreeLast) {
            nodes.free(right);
        }
        r.copy_tail_to(0, l);
        parent.remove(at + 1);
        if keep(Step::FreeLast) {
            nodes.free(right);
        }
    } else {
        if l.len() < r.len() {
            for _ in l.len()..total / 2 {
                l.insert(r.key(0), r.child(0).follow(), r.gap(0));
                parent.set_key(at + 1, r.key(1));
                r.remove(0);
            }
        } else {
            let keep = total / 2;
            l.copy_tail_to(keep, r);
            parent.set_key(at + 1, r.key(0));
            l.truncate(keep);
        }
        parent.set_gap(at + 1, r.max_gap());
    }
    parent.set_gap(at, l.max_gap());
}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;
    use crate::platform::Std;
    use std::collections::BTreeMap;

    /// A key, its slot and its gap.
    type Entry = (usize, (u32, usize));

    impl BTree {
        /// Panics unless T1, T2 and T4 hold; returns the entries in order.
        pub fn checked<T: Platform>(&self, nodes: &Arena<Node, T>) -> Vec<Entry> {
            let mut entries = Vec::new();
            if let Target::Node(root) = self.root.follow() {
                check(nodes, root, &mut entries);
            }
            assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "T1: {entries:?}");
            entries
        }
    }

    /// The depth below `index`.
    fn check<T: Platform>(
        nodes: &Arena<Node, T>,
        index: Idx<Node>,
        entries: &mut Vec<Entry>,
    ) -> usize {
        let node = nodes.get(index);
        assert!((node.len()..FANOUT).all(|unused| node.key(unused) == super::super::node::NO_KEY));
        let mut depths = (0..node.len()).map(|entry| match node.child(entry).follow() {
            Target::Node(child) => {
                let smallest = entries.len();
                let depth = 1 + check(nodes, child, entries);
                let below = &entries[smallest..];
                assert_eq!(below[0].0, node.key(entry), "T1: the smallest key below");
                let largest = below.iter().map(|&(_, (_, gap))| gap).max();
                assert_eq!(largest, Some(node.gap(entry)), "T4: the largest gap below");
                depth
            }
            Target::Slot(slot) => {
                entries.push((node.key(entry), (slot, node.gap(entry))));
                0
            }
            Target::Empty => panic!("an empty word in use"),
        });
        let Some(depth) = depths.next() else { panic!("T2: an empty node") };
        assert!(depths.all(|other| other == depth), "T2: leaves at unequal depths");
        depth
    }

    /// A small generator; the seed is in the message of what fails.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, below: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % below
        }
    }

    /// The model `recycled_node` found this: the new root took the old inner node for what it was.
    #[test]
    fn an_inner_node_comes_back_as_the_root_of_another_tree() {
        let nodes = Arena::<Node, Std>::new();
        let (tree, other) = (BTree::new(), BTree::new());
        for key in 0..=FANOUT {
            tree.insert(&nodes, key, key as u32, 0).unwrap();
        }
        for key in 1..=FANOUT {
            tree.remove(&nodes, key); // until one leaf is left, and the inner node is free
        }
        other.insert(&nodes, 90, 9, 7).unwrap();
        let entries = (tree.checked(&nodes), other.checked(&nodes));
        assert_eq!(entries, (vec![(0, (0, 0))], vec![(90, (9, 7))]));
    }

    /// What a walker can meet where nodes are recycled under it.
    #[test]
    fn a_walk_in_circles_ends() {
        let (nodes, tree) = (Arena::<Node, Std>::new(), BTree::new());
        let root = nodes.alloc().unwrap();
        nodes.get(root).clear();
        for key in 1..=FANOUT {
            nodes.get(root).insert(key, Target::Node(root), 0);
        }
        tree.root.link(Target::Node(root));
        for addr in [0, 1, 2, usize::MAX] {
            assert_eq!((tree.walk(&nodes, addr), tree.walk_from(&nodes, addr)), (None, None));
        }
    }

    #[test]
    fn long_random_edits_agree_with_a_map() {
        let (seeds, steps) = if cfg!(miri) { (1, 200) } else { (30, 6_000) };
        for seed in 0..seeds {
            // Two trees in one arena, so that the nodes of one become those of the other.
            let (nodes, trees) = (Arena::<Node, Std>::new(), [BTree::new(), BTree::new()]);
            let (mut maps, mut dice) = ([BTreeMap::new(), BTreeMap::new()], Dice(seed));
            for step in 0..steps {
                let which = dice.roll(2) as usize;
                let (tree, map) = (&trees[which], &mut maps[which]);
                // Grows and shrinks in turn, so that every depth is passed both ways.
                let insert = dice.roll(10)
                    < if (step / 500 + which as u32).is_multiple_of(2) { 7 } else { 3 };
                let key = dice.roll(400) as usize * 10;
                // Few sizes, so that a node often has its largest gap twice.
                let (gap, size) = (dice.roll(8) as usize, dice.roll(9) as usize);
                if insert && !map.contains_key(&key) {
                    tree.insert(&nodes, key, step, gap).unwrap();
                    map.insert(key, (step, gap));
                } else if !insert {
                    tree.remove(&nodes, key);
                    map.remove(&key);
                }
                let (key, gap) = (dice.roll(400) as usize * 10, dice.roll(8) as usize);
                tree.set_gap(&nodes, key, gap);
                map.entry(key).and_modify(|entry| entry.1 = gap);

                let probe = dice.roll(4_100) as usize;
                let found = [
                    tree.walk(&nodes, probe),
                    tree.walk_from(&nodes, probe),
                    tree.first_gap(&nodes, probe, size),
                    tree.last_gap(&nodes, probe, size),
                ];
                let roomy = |entry: &(_, &(_, usize))| entry.1.1 >= size;
                let expected = [
                    map.range(..=probe).next_back(),
                    map.range(probe..).next(),
                    map.range(probe..).find(roomy),
                    map.range(..probe).rfind(roomy),
                ];
                let expected = expected.map(|entry| entry.map(|(_, &(slot, _))| slot));
                assert_eq!(found, expected, "seed {seed}, step {step}");
                if step % 50 == 0 {
                    let entries: Vec<_> = map.clone().into_iter().collect();
                    assert_eq!(tree.checked(&nodes), entries, "seed {seed}, step {step}");
                }
            }
            for (tree, map) in trees.iter().zip(maps) {
                for key in map.into_keys() {
                    tree.remove(&nodes, key);
                    tree.checked(&nodes);
                }
            }
            assert_eq!(nodes.usage().in_use, 0, "an empty tree has no nodes");
        }
    }
}
