//! Searches for a gap, for the holder of the mmap lock.

use super::node::Node;
use super::root::BTree;
use crate::arena::{Arena, Idx};
use crate::platform::Platform;

impl BTree {
    /// The slot with the smallest key not below `from` that has a gap of `size` bytes after it.
    pub(crate) fn first_gap<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        from: usize,
        size: usize,
    ) -> Option<u32> {
        let root = self.root_index()?;
        find_gap(nodes, root, from, size, Side::Above)
    }

    /// The slot with the largest key below `below` that has a gap of `size` bytes after it.
    pub(crate) fn last_gap<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        below: usize,
        size: usize,
    ) -> Option<u32> {
        let root = self.root_index()?;
        find_gap(nodes, root, below, size, Side::Below)
    }
}

/// On which side of an address a search for a gap goes, away from it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Below,
    /// With the address itself.
    Above,
}

/// The slot below `index`, nearest to `addr` on that side, with a gap of `size` or more. Only the
/// subtree that contains `addr` may have its fitting gaps on the wrong side; by T4 every other one
/// with such a gap has the slot.
fn find_gap<P: Platform>(
    nodes: &Arena<Node, P>,
    index: Idx<Node>,
    addr: usize,
    size: usize,
    side: Side,
) -> Option<u32> {
    let node = nodes.get(index);
    let middle = node.search(addr);
    let fit = |entry: usize| {
        if node.gap(entry) < size {
            return None;
        }
        let target = node.child(entry).follow();
        match target.node() {
            Some(child) => find_gap(nodes, child, addr, size, side),
            None => target.slot().filter(|_| (node.key(entry) >= addr) == (side == Side::Above)),
        }
    };
    match side {
        Side::Below => (0..=middle).rev().find_map(fit),
        Side::Above => (middle..node.len()).find_map(fit),
    }
}
