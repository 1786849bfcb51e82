//! Searches for a gap, for the holder of the mmap lock.
//!
//! Where a gap has to be aligned, the largest in its node says little. The first search for an
//! alignment finds out how large the gaps are when only their aligned part counts, and notes the
//! largest of each node; changes forget what is noted on their way from the root (T5).

use super::node::{AnySlot, Node};
use super::root::BTree;
use crate::range::Span;

/// The gap that is looked for in a tree.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// A part of the gap is in it.
    pub(crate) window: Span,
    /// How many bytes it has at least...
    pub(crate) size: usize,
    /// ... behind the first multiple of this power of two.
    pub(crate) align: usize,
}

impl BTree {
    /// The slot with the smallest key that is followed by such a gap.
    pub(crate) fn first_gap(&self, wanted: Wanted) -> Option<AnySlot> {
        Search { wanted, last: false }.find(self.root()?, usize::MAX)
    }

    /// The slot with the largest key that is followed by such a gap.
    pub(crate) fn last_gap(&self, wanted: Wanted) -> Option<AnySlot> {
        Search { wanted, last: true }.find(self.root()?, usize::MAX)
    }
}

struct Search {
    wanted: Wanted,
    last: bool,
}

impl Search {
    /// The first or last slot below `node`, whose last gap ends at `end`. Only the subtrees at the
    /// ends of the window may have their fitting gaps outside of it; by T4 and T5 every other one
    /// with such a gap has the slot.
    fn find(&self, node: &Node, end: usize) -> Option<AnySlot> {
        let Wanted { window, size, align } = self.wanted;
        let fit = |entry: usize| {
            let (start, end) = (node.key(entry), end_of(node, entry, end));
            if node.gap(entry) < size || start >= window.end || end <= window.start {
                return None;
            }
            let target = node.child(entry).follow();
            let Some(child) = target.node() else {
                let fits = aligned(node.gap(entry), end, align) >= size;
                return target.slot().filter(|_| fits);
            };
            if align > 1 {
                let inside = window.start <= start && end <= window.end;
                let known = child.noted(align.trailing_zeros());
                let largest = if inside { Some(self.largest(child, end)) } else { known };
                if largest.is_some_and(|largest| largest < size) {
                    return None;
                }
            }
            self.find(child, end)
        };
        let mut entries = 0..node.len();
        if self.last { entries.rev().find_map(fit) } else { entries.find_map(fit) }
    }

    /// The largest gap below `node` of those that are aligned, which is noted.
    fn largest(&self, node: &Node, end: usize) -> usize {
        let align = self.wanted.align;
        if let Some(known) = node.noted(align.trailing_zeros()) {
            return known;
        }
        let below = |entry| {
            let end = end_of(node, entry, end);
            match node.child_node(entry) {
                Some(child) => self.largest(child, end),
                None => aligned(node.gap(entry), end, align),
            }
        };
        let largest = (0..node.len()).map(below).max().unwrap_or(0);
        node.note(align.trailing_zeros(), largest);
        largest
    }
}

/// Where the last gap below an entry ends, in a node whose last one ends at `end`.
fn end_of(node: &Node, entry: usize, end: usize) -> usize {
    if entry + 1 < node.len() { node.key(entry + 1) } else { end }
}

/// How many bytes of a gap of `size` bytes, which ends at `end`, lie behind the first multiple of
/// `align`.
fn aligned(size: usize, end: usize, align: usize) -> usize {
    let start = (end - size).checked_add(align - 1).map(|start| start & !(align - 1));
    start.map_or(0, |start| end.saturating_sub(start))
}
