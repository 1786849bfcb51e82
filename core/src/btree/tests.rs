//! The tree by itself, beside a map.

use std::collections::BTreeMap;

use super::node::{FANOUT, NO_KEY, Node, Target};
use super::*;
use crate::arena::{Arena, Idx, Users};
use crate::host::StdPlatform;
use crate::mm::SpaceState;
use crate::platform::Platform;

/// A key, its slot and its gap.
type Entry = (usize, (u32, usize));

impl BTree {
    /// Panics unless T1, T2 and T4 hold; returns the entries in order.
    pub(crate) fn checked<P: Platform>(&self, nodes: &Arena<Node, P>) -> Vec<Entry> {
        let mut entries = Vec::new();
        if let Some(root) = self.root_index() {
            check(nodes, root, &mut entries);
        }
        assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "T1: {entries:?}");
        entries
    }
}

/// The depth below `index`.
fn check<P: Platform>(nodes: &Arena<Node, P>, index: Idx<Node>, entries: &mut Vec<Entry>) -> usize {
    let node = nodes.get(index);
    assert!((node.len()..FANOUT).all(|unused| node.key(unused) == NO_KEY));
    let mut depths = (0..node.len()).map(|entry| {
        let target = node.child(entry).follow();
        let Some(child) = target.node() else {
            let Some(slot) = target.slot() else { panic!("an empty word in use") };
            entries.push((node.key(entry), (slot, node.gap(entry))));
            return 0;
        };
        let smallest = entries.len();
        let depth = 1 + check(nodes, child, entries);
        let below = &entries[smallest..];
        assert_eq!(below[0].0, node.key(entry), "T1: the smallest key below");
        let largest = below.iter().map(|&(_, (_, gap))| gap).max();
        assert_eq!(largest, Some(node.gap(entry)), "T4: the largest gap below");
        depth
    });
    let Some(depth) = depths.next() else { panic!("T2: an empty node") };
    assert!(depths.all(|other| other == depth), "T2: leaves at unequal depths");
    depth
}

/// An arena, and what its writer holds.
fn arena() -> (Arena<Node, StdPlatform>, SpaceState<StdPlatform>) {
    (Arena::new(Users::OneSpace), SpaceState::new())
}

/// A small generator; the seed is in the message of what fails.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// The model `recycled_node` found this: the new root took the old inner node for what it was.
#[test]
fn an_inner_node_comes_back_as_the_root_of_another_tree() {
    let (nodes, state) = arena();
    let section = state.write();
    let (tree, other) = (BTree::new(), BTree::new());
    for key in 0..=FANOUT {
        tree.insert(&nodes, &section, key, key as u32, 1).unwrap();
    }
    for key in 1..=FANOUT {
        tree.remove(&nodes, &section, key, 0); // until one leaf is left, and the inner node is free
    }
    other.insert(&nodes, &section, 90, 9, usize::MAX - 97).unwrap();
    let entries = (tree.checked(&nodes), other.checked(&nodes));
    assert_eq!(entries, (vec![(0, (0, usize::MAX - 1))], vec![(90, (9, 7))]));
}

/// B34. What a walker can meet where nodes are recycled under it.
#[test]
fn a_walk_in_circles_ends() {
    let ((nodes, state), tree) = (arena(), BTree::new());
    let section = state.write();
    let root = nodes.alloc(&section).unwrap();
    nodes.get(root).clear(section.edit());
    for key in 1..=FANOUT {
        nodes.get(root).insert(section.edit(), key, Target::to_node(root), 0);
    }
    tree.set_root(section.edit(), Target::to_node(root));
    for addr in [0, 1, 2, usize::MAX] {
        assert_eq!(
            (
                tree.walk(&nodes, addr, &mut PathDown::empty()),
                tree.walk_from(&nodes, addr, &mut ())
            ),
            (None, None)
        );
    }
}

#[test]
fn long_random_edits_agree_with_a_map() {
    let (seeds, steps) = if cfg!(miri) { (1, 200) } else { (30, 6_000) };
    for seed in 0..seeds {
        // Two trees in one arena, so that the nodes of one become those of the other.
        let ((nodes, state), trees) = (arena(), [BTree::new(), BTree::new()]);
        let section = state.write();
        let (mut maps, mut dice) = ([BTreeMap::new(), BTreeMap::new()], Dice(seed));
        for step in 0..steps {
            let which = dice.roll(2) as usize;
            let (tree, map) = (&trees[which], &mut maps[which]);
            // Grows and shrinks in turn, so that every depth is passed both ways.
            let insert =
                dice.roll(10) < if (step / 500 + which as u32).is_multiple_of(2) { 7 } else { 3 };
            let key = dice.roll(400) as usize * 10;
            // Few lengths, so that a node often has its largest gap twice.
            let (len, size) = (1 + dice.roll(9) as usize, dice.roll(30) as usize);
            // In the leaf as it is, if that can be; or from the root, which always can.
            let at = tree.seek(&nodes, key).filter(|_| dice.roll(2) == 0);
            if insert && !map.contains_key(&key) {
                match at.filter(|at| !at.leaf_is_full()) {
                    Some(at) => at.insert(section.edit(), key, step, len),
                    None => tree.insert(&nodes, &section, key, step, len).unwrap(),
                }
                map.insert(key, (step, len));
            } else if !insert {
                match at.filter(|at| at.key() == key && at.leaf_is_not_sparse()) {
                    Some(at) => at.remove(section.edit(), 0),
                    None => tree.remove(&nodes, &section, key, 0),
                }
                map.remove(&key);
            }
            let (key, len) = (dice.roll(400) as usize * 10, 1 + dice.roll(9) as usize);
            if let Some(entry) = map.get_mut(&key) {
                let at = tree.seek(&nodes, key).unwrap();
                at.set_gap(at.distance_to_next() - len);
                entry.1 = len;
            }

            let mut entries: Vec<Entry> = Vec::new();
            for (&key, &(slot, len)) in map.iter().rev() {
                let next = entries.last().map_or(usize::MAX, |next| next.0);
                entries.push((key, (slot, next - key - len)));
            }
            entries.reverse();
            let probe = dice.roll(4_100) as usize;
            let found = [
                tree.walk(&nodes, probe, &mut PathDown::empty()),
                tree.walk_from(&nodes, probe, &mut ()),
                tree.first_gap(&nodes, probe, size),
                tree.last_gap(&nodes, probe, size),
            ];
            let split = |at: usize| entries.split_at(entries.partition_point(|e| e.0 < at));
            let ((below, from), (up_to, _)) = (split(probe), split(probe + 1));
            let fits = |entry: &&Entry| entry.1.1 >= size;
            let expected =
                [up_to.last(), from.first(), from.iter().find(fits), below.iter().rfind(fits)];
            let expected = expected.map(|entry| entry.map(|&(_, (slot, _))| slot));
            assert_eq!(found, expected, "seed {seed}, step {step}");
            let mut position = tree.seek(&nodes, probe);
            let from = map.range(..=probe).next_back().or(map.first_key_value());
            for (_, &(slot, _)) in from.iter().flat_map(|(from, _)| map.range(*from..)).take(9) {
                let position = position.as_mut().unwrap();
                assert_eq!(position.slot(), Some(slot), "seed {seed}, step {step}");
                let next = position.next_key();
                let moved = position.next(&nodes);
                assert_eq!(next.is_some(), moved, "seed {seed}, step {step}");
            }
            let addr = dice.roll(4_100) as usize;
            let from = map.range(..=addr).next_back().or(map.first_key_value());
            let slot = position.and_then(|mut position| {
                position.seek(&nodes, addr); // from where it is
                position.slot()
            });
            assert_eq!(slot, from.map(|(_, &(slot, _))| slot), "seed {seed}, step {step}");
            if step % 50 == 0 {
                assert_eq!(tree.checked(&nodes), entries, "seed {seed}, step {step}");
            }
        }
        for (tree, map) in trees.iter().zip(maps) {
            for key in map.into_keys() {
                tree.remove(&nodes, &section, key, 0);
                tree.checked(&nodes);
            }
        }
        assert_eq!(nodes.usage().in_use, 0, "an empty tree has no nodes");
    }
}
