//! The tree by itself, beside a map.

use std::collections::{BTreeMap, BTreeSet};
use std::ptr;

use super::node::{FANOUT, NO_KEY, Node, Target};
use super::*;
use crate::arena::{Arena, Users};
use crate::host::StdPlatform;
use crate::mm::{EditSection, SpaceState};
use crate::range::Span;

/// A key, its slot and its gap.
type Entry = (usize, (AnySlot, usize));

impl BTree {
    /// Panics unless T1, T2, T4 and T5 hold; returns the entries in order.
    pub(crate) fn checked(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        if let Some(root) = self.root() {
            check(root, usize::MAX, &mut entries);
        }
        assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "T1: {entries:?}");
        entries
    }
}

/// The depth below `node`, whose last gap ends at `end`.
fn check(node: &Node, end: usize, entries: &mut Vec<Entry>) -> usize {
    assert!((node.len()..FANOUT).all(|unused| node.key(unused) == NO_KEY));
    let first = entries.len();
    let mut depths = (0..node.len()).map(|entry| {
        let end = if entry + 1 < node.len() { node.key(entry + 1) } else { end };
        let target = node.child(entry).follow();
        let Some(child) = target.node() else {
            let Some(slot) = target.slot() else { panic!("an empty word in use") };
            entries.push((node.key(entry), (slot, node.gap(entry))));
            return 0;
        };
        let smallest = entries.len();
        assert!(child.has_notes() || !node.has_notes(), "T5: none below a node that has notes");
        let depth = 1 + check(child, end, entries);
        let below = &entries[smallest..];
        assert_eq!(below[0].0, node.key(entry), "T1: the smallest key below");
        let largest = below.iter().map(|&(_, (_, gap))| gap).max();
        assert_eq!(largest, Some(node.gap(entry)), "T4: the largest gap below");
        depth
    });
    let Some(depth) = depths.next() else { panic!("T2: an empty node") };
    assert!(depths.all(|other| other == depth), "T2: leaves at unequal depths");
    for shift in 1..usize::BITS {
        if let Some(noted) = node.noted(shift) {
            assert!(node.has_notes(), "T5: a note that would not be forgotten");
            let ends = entries[first + 1..].iter().map(|next| next.0).chain([end]);
            let gaps = entries[first..].iter().zip(ends);
            let largest = gaps.map(|(entry, end)| aligned(entry.1.1, end, 1 << shift)).max();
            let huge = |size: usize| size as u64 >= (1 << 58) - 1;
            let largest = largest.map(|size| if huge(size) { usize::MAX } else { size });
            assert_eq!(largest, Some(noted), "T5: the largest gap aligned to 1 << {shift}");
        }
    }
    depth
}

/// How many bytes of a gap are left where it begins at a multiple of `align`.
fn aligned(gap: usize, end: usize, align: usize) -> usize {
    (end - gap).checked_next_multiple_of(align).map_or(0, |start| end.saturating_sub(start))
}

/// Panics unless T6 holds where `trees` are all that have nodes of the arena.
fn check_left(
    nodes: &Arena<Node, StdPlatform>,
    section: &EditSection<'_, StdPlatform>,
    trees: &[BTree],
) {
    fn reach(node: &Node, reached: &mut BTreeSet<*const Node>) {
        reached.insert(ptr::from_ref(node));
        let below = (0..node.len()).filter_map(|entry| node.child_node(entry));
        below.for_each(|below| reach(below, reached));
    }
    let mut reached = BTreeSet::new();
    trees.iter().filter_map(BTree::root).for_each(|root| reach(root, &mut reached));
    nodes.with_all(section, |all| {
        for node in all.filter(|&node| !reached.contains(&ptr::from_ref(node))) {
            let is_leaf = node.child(0).follow().slot().is_some();
            assert!(!is_leaf || node.key(0) == NO_KEY, "T6: a leaf has left with entries");
        }
    });
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
        tree.insert(&nodes, &section, key, AnySlot::fake(key), 1).unwrap();
    }
    for key in 1..=FANOUT {
        // Until one leaf is left, and the inner node is free.
        tree.remove(&nodes, &section, key, false);
    }
    other.insert(&nodes, &section, 90, AnySlot::fake(9), usize::MAX - 97).unwrap();
    let entries = (tree.checked(), other.checked());
    assert_eq!(
        entries,
        (vec![(0, (AnySlot::fake(0), usize::MAX - 1))], vec![(90, (AnySlot::fake(9), 7))])
    );
}

/// B34. What a walker can meet where nodes are recycled under it.
#[test]
fn a_walk_in_circles_ends() {
    let ((nodes, state), tree) = (arena(), BTree::new());
    let section = state.write();
    let root = nodes.get(nodes.alloc(&section).unwrap());
    root.clear(section.edit());
    for key in 1..=FANOUT {
        root.insert(section.edit(), key, Target::to_node(root), 0);
    }
    tree.set_root(section.edit(), Target::to_node(root));
    for addr in [0, 1, 2, usize::MAX] {
        assert_eq!(
            (tree.walk(addr, &mut PathDown::empty()), tree.walk_from(addr, &mut ())),
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
        let mut maps = [BTreeMap::<usize, (AnySlot, usize)>::new(), BTreeMap::new()];
        let mut dice = Dice(seed);
        for step in 0..steps {
            let which = dice.roll(2) as usize;
            let (tree, map) = (&trees[which], &mut maps[which]);
            let new = AnySlot::fake(step as usize);
            // Grows and shrinks in turn, so that every depth is passed both ways.
            let insert =
                dice.roll(10) < if (step / 500 + which as u32).is_multiple_of(2) { 7 } else { 3 };
            let key = dice.roll(400) as usize * 10;
            // Few lengths, so that a node often has its largest gap twice.
            let (len, size) = (1 + dice.roll(9) as usize, dice.roll(30) as usize);
            // In the leaf as it is, if that can be; or from the root, which always can.
            let at = tree.seek(key).filter(|_| dice.roll(2) == 0);
            if insert && !map.contains_key(&key) {
                match at.filter(|at| !at.leaf_is_full()) {
                    Some(at) => at.insert(section.edit(), key, new, len),
                    None => tree.insert(&nodes, &section, key, new, len).unwrap(),
                }
                // Where it lies in what the entry before holds, that ends here.
                if let Some((before, held)) = map.range_mut(..key).next_back() {
                    held.1 = held.1.min(key - before);
                }
                map.insert(key, (new, len));
            } else if !insert {
                let kept = dice.roll(2) == 0;
                match at.filter(|at| at.key() == key && at.leaf_is_not_sparse()) {
                    Some(at) => at.remove(section.edit(), kept),
                    None => tree.remove(&nodes, &section, key, kept),
                }
                if let Some((_, len)) = map.remove(&key).filter(|_| kept)
                    && let Some((_, held)) = map.range_mut(..key).next_back()
                {
                    held.1 += len;
                }
            }
            let (key, len) = (dice.roll(400) as usize * 10, 1 + dice.roll(9) as usize);
            if let Some(entry) = map.get_mut(&key) {
                let at = tree.seek(key).unwrap();
                at.set_gap(at.distance_to_next() - len);
                entry.1 = len;
            }

            let mut entries: Vec<Entry> = Vec::new();
            for (&key, &(slot, len)) in map.iter().rev() {
                let next = entries.last().map_or(usize::MAX, |next| next.0);
                entries.push((key, (slot, next - key - len)));
            }
            entries.reverse();
            if step % 8 == 0 {
                check_left(&nodes, &section, &trees);
            }
            let probe = dice.roll(4_100) as usize;
            // More alignments than a node has notes.
            let (to, align) = (probe + dice.roll(4_100) as usize, 1 << dice.roll(7));
            let end = if dice.roll(4) == 0 { usize::MAX } else { to };
            let wanted = Wanted { window: Span { start: probe, end }, size, align };
            let found = [
                tree.walk(probe, &mut PathDown::empty()),
                tree.walk_from(probe, &mut ()),
                tree.first_gap(wanted),
                tree.last_gap(wanted),
            ];
            let split = |at: usize| entries.split_at(entries.partition_point(|e| e.0 < at));
            let ((_, from), (up_to, _)) = (split(probe), split(probe + 1));
            let ends = entries.iter().skip(1).map(|next| next.0).chain([usize::MAX]);
            let fits = |&(&(key, (_, gap)), after): &(&Entry, usize)| {
                key < end && probe < after && size <= gap && size <= aligned(gap, after, align)
            };
            let fitting: Vec<_> = entries.iter().zip(ends).filter(fits).map(|fit| fit.0).collect();
            let [first, last] = [fitting.first(), fitting.last()].map(|fit| fit.copied());
            let expected = [up_to.last(), from.first(), first, last];
            let expected = expected.map(|entry| entry.map(|&(_, (slot, _))| slot));
            assert_eq!(found, expected, "seed {seed}, step {step}");
            let mut position = tree.seek(probe);
            let from = map.range(..=probe).next_back().or(map.first_key_value());
            for (_, &(slot, _)) in from.iter().flat_map(|(from, _)| map.range(*from..)).take(9) {
                let position = position.as_mut().unwrap();
                assert_eq!(position.slot(), Some(slot), "seed {seed}, step {step}");
                let next = position.next_key();
                let moved = position.next();
                assert_eq!(next.is_some(), moved, "seed {seed}, step {step}");
            }
            let addr = dice.roll(4_100) as usize;
            let from = map.range(..=addr).next_back().or(map.first_key_value());
            let slot = position.and_then(|mut position| {
                // From where it is.
                if dice.roll(2) == 0 || !position.step_to(addr) {
                    position.leave_for(addr);
                    position.seek(addr);
                }
                position.slot()
            });
            assert_eq!(slot, from.map(|(_, &(slot, _))| slot), "seed {seed}, step {step}");
            if step % 50 == 0 {
                assert_eq!(tree.checked(), entries, "seed {seed}, step {step}");
            }
        }
        for (tree, map) in trees.iter().zip(maps) {
            for key in map.into_keys() {
                tree.remove(&nodes, &section, key, false);
                tree.checked();
            }
        }
        assert_eq!(nodes.usage().in_use, 0, "an empty tree has no nodes");
    }
}
