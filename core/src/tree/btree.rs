//! The B-tree: one writer, changed in place; walkers that take no lock and trust nothing.
//!
//! # Guarantee
//!
//! [`BTree::walk`] ends after at most [`MAX_DEPTH`] steps, writes nothing, and while no edit is
//! under way finds the entry with the largest key not above the address. During an edit it may
//! arrive anywhere, also in another space's tree; the caller finds out.
//!
//! # Invariants, whenever no operation of the writer is under way
//!
//! - **T1** Keys ascend within a node; an inner entry's key is the smallest key below it.
//! - **T2** All leaves are equally deep, and no node but an empty root is empty: the root is the
//!   empty word then.
//! - **T3** Every word in a leaf is a slot that is attached to this tree's space.
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

    fn iter(&self) -> impl Iterator<Item = (Idx<Node>, usize)> {
        self.steps[..self.len].iter().flatten().copied()
    }
}

impl BTree {
    crate::facade::const_unless_model! {
        pub fn new() -> Self {
            Self { root: TreeWord::empty() }
        }
    }

    /// The slot with the largest key not above `addr`, or nothing; see the guarantee.
    #[inline(always)]
    pub fn walk<T: Platform>(&self, nodes: &Arena<Node, T>, addr: usize) -> Option<u32> {
        let mut target = self.root.follow();
        for _ in 0..=MAX_DEPTH {
            match target {
                Target::Empty => return None,
                Target::Slot(slot) => return Some(slot),
                Target::Node(node) => {
                    let node = nodes.get(node);
                    target = node.child(node.search(addr)?).follow();
                }
            }
        }
        None // only a walk through recycled nodes is that long
    }

    /// The slot with the smallest key not below `addr`. For the writer.
    pub fn first_from<T: Platform>(&self, nodes: &Arena<Node, T>, addr: usize) -> Option<u32> {
        let mut right = Target::Empty; // the subtree next to the path
        let mut target = self.root.follow();
        while let Target::Node(index) = target {
            let node = nodes.get(index);
            match node.search(addr) {
                Some(entry) if node.key(entry) != addr => {
                    if entry + 1 < node.len() {
                        right = node.child(entry + 1).follow();
                    }
                    target = node.child(entry).follow();
                }
                // By T1 the key is the smallest below that entry.
                Some(entry) => return first(nodes, node.child(entry).follow()),
                None => return first(nodes, target),
            }
        }
        first(nodes, right)
    }

    /// Inserts `slot` at `key`, which no entry has. When memory runs out nothing has changed.
    pub fn insert<T: Platform>(
        &self,
        nodes: &Arena<Node, T>,
        key: usize,
        slot: u32,
    ) -> Result<(), OutOfMemory> {
        let mut path = Path::new();
        let mut index = self.root_with_room(nodes)?;
        loop {
            let node = nodes.get(index);
            let mut entry = node.search(key).unwrap_or(0);
            let Some(mut child) = node.child_node(entry) else { break };
            if nodes.get(child).is_full() {
                split(nodes, node, entry, nodes.alloc()?);
                entry = node.search(key).unwrap_or(0);
                child = node.child_node(entry).unwrap_or(child);
            }
            path.push(index, entry);
            index = child;
        }
        nodes.get(index).insert(key, Target::Slot(slot));
        for (above, entry) in path.iter() {
            if key < nodes.get(above).key(entry) {
                nodes.get(above).set_key(entry, key);
            }
        }
        Ok(())
    }

    /// The root, made if there is none and split if it is full.
    fn root_with_room<T: Platform>(
        &self,
        nodes: &Arena<Node, T>,
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
        let node = nodes.get(top);
        node.clear();
        node.insert(nodes.get(root).key(0), Target::Node(root));
        self.root.link(Target::Node(top));
        split(nodes, node, 0, right);
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
        match leaf.search(key) {
            Some(entry) if leaf.key(entry) == key => leaf.remove(entry),
            _ => return,
        }
        if leaf.len() != 0 {
            let smallest = leaf.key(0);
            for (above, entry) in path.iter() {
                if nodes.get(above).key(entry) == key {
                    nodes.get(above).set_key(entry, smallest);
                }
            }
        }
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

/// The slot with the smallest key below `target`.
fn first<T: Platform>(nodes: &Arena<Node, T>, mut target: Target) -> Option<u32> {
    loop {
        match target {
            Target::Empty => return None,
            Target::Slot(slot) => return Some(slot),
            Target::Node(node) => target = nodes.get(node).child(0).follow(),
        }
    }
}

/// Moves the upper half of `parent`'s full child at `entry` to the new node `right`.
fn split<T: Platform>(nodes: &Arena<Node, T>, parent: &Node, entry: usize, right: Idx<Node>) {
    let Some(child) = parent.child_node(entry) else { return };
    let (left, new) = (nodes.get(child), nodes.get(right));
    new.clear();
    left.copy_tail_to(FANOUT / 2, new);
    parent.insert(new.key(0), Target::Node(right));
    left.truncate(FANOUT / 2);
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
    } else if l.len() < r.len() {
        for _ in l.len()..total / 2 {
            l.insert(r.key(0), r.child(0).follow());
            parent.set_key(at + 1, r.key(1));
            r.remove(0);
        }
    } else {
        let keep = total / 2;
        l.copy_tail_to(keep, r);
        parent.set_key(at + 1, r.key(0));
        l.truncate(keep);
    }
}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;
    use crate::platform::Std;
    use std::collections::BTreeMap;

    impl BTree {
        /// Panics unless T1 and T2 hold; returns the entries in order.
        fn checked(&self, nodes: &Arena<Node, Std>) -> Vec<(usize, u32)> {
            let mut entries = Vec::new();
            if let Target::Node(root) = self.root.follow() {
                check(nodes, root, &mut entries);
            }
            assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "T1: {entries:?}");
            entries
        }
    }

    /// The depth below `index`.
    fn check(nodes: &Arena<Node, Std>, index: Idx<Node>, entries: &mut Vec<(usize, u32)>) -> usize {
        let node = nodes.get(index);
        assert!((node.len()..FANOUT).all(|unused| node.key(unused) == super::super::node::NO_KEY));
        let mut depths = (0..node.len()).map(|entry| match node.child(entry).follow() {
            Target::Node(child) => {
                let smallest = entries.len();
                let depth = 1 + check(nodes, child, entries);
                assert_eq!(entries[smallest].0, node.key(entry), "T1: the smallest key below");
                depth
            }
            Target::Slot(slot) => {
                entries.push((node.key(entry), slot));
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
            tree.insert(&nodes, key, key as u32).unwrap();
        }
        for key in 1..=FANOUT {
            tree.remove(&nodes, key); // until one leaf is left, and the inner node is free
        }
        other.insert(&nodes, 90, 9).unwrap();
        assert_eq!((tree.checked(&nodes), other.checked(&nodes)), (vec![(0, 0)], vec![(90, 9)]));
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
                if insert && !map.contains_key(&key) {
                    tree.insert(&nodes, key, step).unwrap();
                    map.insert(key, step);
                } else if !insert {
                    tree.remove(&nodes, key);
                    map.remove(&key);
                }
                let probe = dice.roll(4_100) as usize;
                let at_or_below = map.range(..=probe).next_back().map(|(_, &slot)| slot);
                assert_eq!(tree.walk(&nodes, probe), at_or_below, "seed {seed}, step {step}");
                let from = map.range(probe..).next().map(|(_, &slot)| slot);
                assert_eq!(tree.first_from(&nodes, probe), from, "seed {seed}, step {step}");
                if step % 50 == 0 {
                    let entries: Vec<_> = map.iter().map(|(&key, &slot)| (key, slot)).collect();
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
