//! Walks of readers, which take no lock and trust nothing.

use super::node::{AnySlot, Node};
use super::root::{BTree, MAX_DEPTH};
use crate::ledger::HOLE_CHECK;
use crate::lock::{SpaceSeq, Watermark};
use crate::step::Step;
use crate::sync::{fence, keep};

/// Where a walk records the nodes that it visits.
pub(crate) trait RecordPath<'n> {
    /// Whether the path will be validated. Else a walk to an address below all entries may as well
    /// end at the first one.
    const VALIDATED: bool;

    /// The walk is about to read this node.
    fn visit(&mut self, node: &'n Node);
}

/// No path, for a walk that is not validated: what it finds is checked.
impl RecordPath<'_> for () {
    const VALIDATED: bool = false;

    #[inline(always)]
    fn visit(&mut self, _node: &Node) {}
}

/// The last node that a walk has visited.
pub(crate) struct Leaf<'n>(Option<&'n Node>);

impl Leaf<'_> {
    /// No node yet.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Whether this leaf, the end of a walk to `addr`, shows that nothing begins between the VMA in
    /// `below` and there. That VMA is read-locked, so it stays in the tree, and it ends at `addr`
    /// or before.
    ///
    /// Where the edit of the leaf's version has completed, and the version is the same afterwards,
    /// the leaf is read as that edit has left it: in the tree, since it has entries (T6), and with
    /// nothing between neighbours (T1). No other space may use the tree's nodes: the number of an
    /// edit of its own, which says nothing here, could be the same.
    pub(crate) fn shows_hole<E, L>(
        &self,
        below: AnySlot,
        addr: usize,
        seq: &SpaceSeq<E, L>,
    ) -> bool {
        let Some(leaf) = self.0 else { return false };
        let edit = leaf.version().edit();
        if !seq.is_completed(edit) && keep(Step::CheckLeafCompleted) {
            return false;
        }
        let entry = leaf.search(addr);
        let met = leaf.child(entry).follow().slot() == Some(below) || !keep(Step::CheckLeafEntry);
        // What follows the last entry is in another leaf.
        let shown = met && leaf.used(entry + 1).is_some();
        before_versions();
        shown && (leaf.version().edit() == edit || !keep(Step::CheckLeafAgain))
    }
}

impl<'n> RecordPath<'n> for Leaf<'n> {
    const VALIDATED: bool = false;

    #[inline(always)]
    fn visit(&mut self, node: &'n Node) {
        self.0 = Some(node);
    }
}

/// The nodes that walks have visited, at most so many: so that "nothing is mapped there" can be
/// validated.
pub(crate) struct VisitedPath<'n, const MAX: usize> {
    nodes: [Option<&'n Node>; MAX],
    len: usize,
}

/// The path of a walk to an address.
pub(crate) type PathDown<'n> = VisitedPath<'n, MAX_DEPTH>;

/// The path of a walk to an address, and of one to the next entry: down, and down again beside
/// that.
pub(crate) type PathToNext<'n> = VisitedPath<'n, { 3 * (MAX_DEPTH + 1) }>;

impl<'n, const MAX: usize> VisitedPath<'n, MAX> {
    /// No node yet.
    pub(crate) fn empty() -> Self {
        Self { nodes: [None; _], len: 0 }
    }

    /// The last one.
    pub(crate) fn leaf(&self) -> Leaf<'n> {
        Leaf(self.nodes.iter().take(self.len).copied().last().flatten())
    }
}

impl<'n, const MAX: usize> RecordPath<'n> for VisitedPath<'n, MAX> {
    const VALIDATED: bool = true;

    fn visit(&mut self, node: &'n Node) {
        // There is a place: walks are that short.
        debug_assert!(self.len < MAX, "a walk has visited {MAX} nodes");
        if let Some(place) = self.nodes.get_mut(self.len) {
            *place = Some(node);
        }
        self.len += 1;
    }
}

/// Between what was read of nodes and their versions.
fn before_versions() {
    fence(HOLE_CHECK);
}

impl BTree {
    /// Whether what walks found is what the tree held when the edits up to `watermark` were
    /// completed: since then, until after it was visited, none of the nodes has changed.
    ///
    /// From the last node up to the root: a node is this tree's for as long as what led to it is
    /// unchanged, and before it can be another's, that was changed.
    pub(crate) fn is_unchanged<const MAX: usize>(
        &self,
        path: &VisitedPath<'_, MAX>,
        watermark: Watermark,
    ) -> bool {
        before_versions();
        let root = || self.root_is_unchanged(watermark);
        let mut nodes = path.nodes.iter().take(path.len).flatten();
        if keep(Step::CheckUpwards) {
            nodes.rev().all(|node| node.version().is_covered_by(watermark)) && root()
        } else {
            root() && nodes.all(|node| node.version().is_covered_by(watermark))
        }
    }

    /// The slot with the largest key not above `addr`, or nothing; see the guarantee.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn walk<'n, R: RecordPath<'n>>(
        &'n self,
        addr: usize,
        path: &mut R,
    ) -> Option<AnySlot> {
        let mut target = self.root_target();
        if R::VALIDATED {
            let root = target.node()?;
            if !root.is_up_to(0, addr) {
                path.visit(root);
                return None; // by T1 they are all above
            }
        }
        for _ in 0..MAX_DEPTH {
            let Some(node) = target.node() else { break };
            path.visit(node);
            let word = node.child(node.search(addr));
            target =
                if keep(Step::TagInWord) { word.follow() } else { word.follow_as(node.child(0)) };
        }
        target.slot() // only a walk through recycled nodes is so long that it ends at one of those
    }

    /// The slot with the smallest key not below `addr`, or nothing; see the guarantee.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn walk_from<'n>(
        &'n self,
        addr: usize,
        path: &mut impl RecordPath<'n>,
    ) -> Option<AnySlot> {
        let mut right = None; // the subtree next to the path
        let mut target = self.root_target();
        for _ in 0..=MAX_DEPTH {
            let Some(node) = target.node() else { break };
            path.visit(node);
            let before = addr.checked_sub(1).map(|last| (node.search(last), last));
            let before = before.filter(|&(entry, last)| node.is_up_to(entry, last));
            right = node.used(before.map_or(0, |(entry, _)| entry + 1)).or(right);
            let Some((entry, _)) = before else { break };
            target = node.child(entry).follow();
        }
        // By T1 the smallest key below a node is below its first entry.
        let mut target = right?.follow();
        for _ in 0..=MAX_DEPTH {
            let Some(node) = target.node() else { break };
            path.visit(node);
            target = node.child(0).follow();
        }
        target.slot()
    }
}
