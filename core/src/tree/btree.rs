//! The B-tree: one writer, changed in place; walkers that take no lock and trust nothing.
//!
//! # Guarantee
//!
//! [`BTree::walk`] and [`BTree::walk_from`] end after a number of steps that [`MAX_DEPTH`] bounds
//! and write nothing. While no edit is under way the one finds the entry with the largest key not
//! above the address (or the first, if they are all above and the trail is not asked), the other that
//! with the smallest key not below it. During an edit they may
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
//! Where the leaf has room for an entry, or entries enough without one, nothing changes but the leaf,
//! and above it gaps. Else from the root down, in one pass: an insertion splits every full node it
//! meets, a removal refills every sparse one. Either leaves a valid tree at each step, so running
//! out of memory in the middle of an insertion changes nothing that a caller can see. An entry's new
//! copy is linked before the old one goes: that saves walkers retries, correctness does not rest on
//! it.
//!
//! # Rejected
//!
//! Copying a node for each change: readers elsewhere gain nothing from it, since the end
//! validation is needed anyway, and the writer pays for the copy.

use crate::arena::{Arena, Idx};
use crate::error::OutOfMemory;
use crate::facade::{AtomicU64, Relaxed, fence, keep};
use crate::ledger::{HOLE_CHECK, Step};
use crate::lock::{EditSeq, Settled, Stamp};
use crate::mm::WriteSection;
use crate::platform::Platform;
use crate::range::Span;

use super::node::{FANOUT, Node, SPARSE, Target, TreeWord};

/// As many nodes as a path can have: every node but the root keeps [`SPARSE`] entries or more, and
/// with four of them each, thirteen levels hold as many entries as an arena has objects. The small
/// nodes of tests are deeper.
pub const MAX_DEPTH: usize = if FANOUT < 16 { 32 } else { 16 };

/// The root of a tree; the nodes are in an arena.
pub struct BTree {
    root: TreeWord,
    /// The edit that last changed the root.
    stamp: Stamp,
    /// See [`Shape`]; for the writer.
    shape: AtomicU64,
}

/// Where a walk leaves word of the nodes it passes.
pub trait Trail<'n> {
    /// Whether it will be asked if "nothing is there" was right. Else a walk to an address below all
    /// entries may as well end at the first one.
    const ASKED: bool;

    /// The walk is about to read this node.
    fn pass(&mut self, node: &'n Node);
}

/// A walk that is not asked whether it was right: what it finds is checked.
impl Trail<'_> for () {
    const ASKED: bool = false;

    #[inline(always)]
    fn pass(&mut self, _node: &Node) {}
}

/// The nodes that walks have passed, at most so many: so that "nothing is there" can be checked.
pub struct Passed<'n, const MOST: usize> {
    nodes: [Option<&'n Node>; MOST],
    len: usize,
}

/// Of a walk to an address.
pub type PassedDown<'n> = Passed<'n, MAX_DEPTH>;

/// Of a walk to an address, and one to the next entry: down, and down again beside that.
pub type PassedOn<'n> = Passed<'n, { 3 * (MAX_DEPTH + 1) }>;

impl<const MOST: usize> Passed<'_, MOST> {
    /// No node yet.
    pub fn none() -> Self {
        Self { nodes: [None; _], len: 0 }
    }
}

impl<'n, const MOST: usize> Trail<'n> for Passed<'n, MOST> {
    const ASKED: bool = true;

    fn pass(&mut self, node: &'n Node) {
        // There is a place: walks are that short.
        debug_assert!(self.len < MOST, "a walk has passed {MOST} nodes");
        if let Some(place) = self.nodes.get_mut(self.len) {
            *place = Some(node);
        }
        self.len += 1;
    }
}

/// Which nodes a tree has, and how they hang together: a number that changes with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape(u64);

/// An entry of a leaf and the way to it from the root, for the writer; good while nothing changes but
/// that leaf.
pub struct Position<'n> {
    /// The nodes on the way, and the entry taken in each.
    nodes: [&'n Node; MAX_DEPTH],
    entries: [u8; MAX_DEPTH],
    /// Which of them is the leaf.
    leaf: usize,
}

impl<'n> Position<'n> {
    /// At the root, from where [`seek`](Self::seek) goes on. A position is made where it is used and
    /// not passed on: it is large.
    #[inline(always)]
    pub fn at_root(root: &'n Node) -> Self {
        Self { nodes: [root; MAX_DEPTH], entries: [0; MAX_DEPTH], leaf: 0 }
    }

    /// Goes to the entry with the largest key not above `addr`, or else to the first. The nodes on
    /// the way here are what they were, but for entries of this leaf.
    #[inline]
    pub fn seek<P: Platform>(&mut self, nodes: &'n Arena<Node, P>, addr: usize) {
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
    fn descend(&mut self, entry: usize, child: &'n Node) {
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
    fn above(&self) -> impl Iterator<Item = (&'n Node, usize)> {
        (0..self.leaf).rev().map(|step| self.step(step))
    }

    /// What the entry's word points to.
    #[inline]
    pub fn slot(&self) -> Option<u32> {
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
    pub fn next_key(&self) -> Option<usize> {
        // Where the next one is in another leaf, by T1.
        let (node, entry) = self.step(self.turn()?);
        Some(node.key(entry + 1))
    }

    /// Goes on to the next entry; `false` if there is none.
    #[inline]
    pub fn next<P: Platform>(&mut self, nodes: &'n Arena<Node, P>) -> bool {
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
    pub fn key(&self) -> usize {
        let (leaf, entry) = self.last();
        leaf.key(entry)
    }

    /// From the entry's key to the next entry's.
    #[inline]
    fn room(&self) -> usize {
        self.next_key().unwrap_or(usize::MAX) - self.key()
    }

    /// Changes the entry's gap.
    #[inline]
    pub fn set_gap(&self, gap: usize) {
        self.update_gap(|_| gap);
    }

    #[inline]
    fn update_gap(&self, new: impl FnOnce(usize) -> usize) {
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
    pub fn is_free(&self, span: Span) -> bool {
        let (leaf, entry) = self.last();
        if span.start < leaf.key(entry) {
            return span.end <= leaf.key(entry);
        }
        let next = self.next_key().unwrap_or(usize::MAX);
        next - leaf.gap(entry) <= span.start && span.end <= next
    }

    /// Whether an entry can be inserted into the leaf as it is.
    #[inline]
    pub fn has_room(&self) -> bool {
        !self.last().0.is_full()
    }

    /// Inserts an entry beside this one, which is that with the largest key below the new one's, or
    /// else the first of all, into a leaf that [`has_room`](Self::has_room).
    #[inline]
    pub fn insert(&self, edit: EditSeq, key: usize, slot: u32, len: usize) {
        let (leaf, entry) = self.last();
        if key < leaf.key(entry) {
            let gap = (leaf.key(entry) - key).saturating_sub(len);
            leaf.insert(edit, key, Target::to_slot(slot), gap);
            self.above().for_each(|(above, entry)| above.set_key(edit, entry, key));
            self.gap_changed(0, gap);
        } else {
            let room = self.next_key().unwrap_or(usize::MAX) - key;
            let (old, gap) = (leaf.gap(entry), room.saturating_sub(len));
            let before = old.saturating_sub(room);
            leaf.set_gap(entry, before);
            leaf.insert(edit, key, Target::to_slot(slot), gap);
            self.gap_changed(old, gap.max(before));
        }
    }

    /// Whether the entry can be removed from the leaf as it is.
    #[inline]
    pub fn is_spare(&self) -> bool {
        let (leaf, entry) = self.last();
        entry > 0 && leaf.len() > SPARSE
    }

    /// Removes an entry that [`is_spare`](Self::is_spare). Its room, but for what is `kept` of it, goes
    /// to the gap before it.
    #[inline]
    pub fn remove(&self, edit: EditSeq, kept: usize) {
        let (leaf, entry) = self.last();
        let old = leaf.gap(entry).max(leaf.gap(entry - 1));
        let gap = leaf.gap(entry - 1).saturating_add(self.room().saturating_sub(kept));
        leaf.set_gap(entry - 1, gap);
        leaf.remove(edit, entry);
        self.gap_changed(old, gap);
    }

    /// Restores T4 above the leaf, where a gap went from `old` to `new`; 0 stands for no entry.
    #[inline]
    fn gap_changed(&self, old: usize, mut new: usize) {
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
    crate::facade::const_unless_model! {
        pub fn new() -> Self {
            Self { root: TreeWord::empty(), stamp: Stamp::new(), shape: AtomicU64::new(0) }
        }
    }

    fn set_root(&self, edit: EditSeq, target: Target) {
        self.stamp.set(edit);
        self.root.link(target);
    }

    /// Whether what walks found is what the tree held when the edits up to `settled` were over: since
    /// then, until after it was passed, none of the nodes has changed.
    ///
    /// From the last node up to the root: a node is this tree's for as long as what led to it is
    /// unchanged, and before it can be another's, that was changed.
    pub fn is_settled<const MOST: usize>(
        &self,
        passed: &Passed<'_, MOST>,
        settled: Settled,
    ) -> bool {
        fence(HOLE_CHECK);
        let root = || self.stamp.is_settled(settled);
        let mut nodes = passed.nodes.iter().take(passed.len).flatten();
        if keep(Step::CheckUpwards) {
            nodes.rev().all(|node| node.stamp().is_settled(settled)) && root()
        } else {
            root() && nodes.all(|node| node.stamp().is_settled(settled))
        }
    }

    /// The slot with the largest key not above `addr`, or nothing; see the guarantee.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn walk<'n, P: Platform, Tr: Trail<'n>>(
        &self,
        nodes: &'n Arena<Node, P>,
        addr: usize,
        trail: &mut Tr,
    ) -> Option<u32> {
        let mut target = self.root.follow();
        if Tr::ASKED {
            let root = nodes.get(target.node()?);
            if !root.is_up_to(0, addr) {
                trail.pass(root);
                return None; // by T1 they are all above
            }
        }
        for _ in 0..MAX_DEPTH {
            let Some(node) = target.node() else { break };
            let node = nodes.get(node);
            trail.pass(node);
            let word = node.child(node.search(addr));
            target =
                if keep(Step::TagInWord) { word.follow() } else { word.follow_as(node.child(0)) };
        }
        target.slot() // only a walk through recycled nodes is so long that it ends at one of those
    }

    /// The slot with the smallest key not below `addr`, or nothing; see the guarantee.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn walk_from<'n, P: Platform>(
        &self,
        nodes: &'n Arena<Node, P>,
        addr: usize,
        trail: &mut impl Trail<'n>,
    ) -> Option<u32> {
        let mut right = None; // the subtree next to the path
        let mut target = self.root.follow();
        for _ in 0..=MAX_DEPTH {
            let Some(node) = target.node() else { break };
            let node = nodes.get(node);
            trail.pass(node);
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
            let node = nodes.get(node);
            trail.pass(node);
            target = node.child(0).follow();
        }
        target.slot()
    }

    /// The slot with the smallest key not below `from` that has `size` bytes of room after it.
    pub fn first_gap<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        from: usize,
        size: usize,
    ) -> Option<u32> {
        let root = self.root.follow().node()?;
        find_gap(nodes, root, from, size, Side::Above)
    }

    /// The slot with the largest key below `below` that has `size` bytes of room after it.
    pub fn last_gap<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        below: usize,
        size: usize,
    ) -> Option<u32> {
        let root = self.root.follow().node()?;
        find_gap(nodes, root, below, size, Side::Below)
    }

    /// The shape it has.
    #[inline]
    pub fn shape(&self) -> Shape {
        Shape(self.shape.load(Relaxed("only the writer changes the shape")))
    }

    fn new_shape(&self) {
        self.shape.store(self.shape().0 + 1, Relaxed("only the writer asks for the shape"));
    }

    /// The root, unless the tree is empty.
    #[inline]
    pub fn root<'n, P: Platform>(&self, nodes: &'n Arena<Node, P>) -> Option<&'n Node> {
        self.root.follow().node().map(|root| nodes.get(root))
    }

    /// The entry with the largest key not above `addr`, or else the first.
    #[inline]
    pub fn seek<'n, P: Platform>(
        &self,
        nodes: &'n Arena<Node, P>,
        addr: usize,
    ) -> Option<Position<'n>> {
        let mut position = Position::at_root(self.root(nodes)?);
        position.seek(nodes, addr);
        Some(position)
    }

    /// Inserts `slot` at `key`, which no entry has, with `len` bytes from there taken. The room that is
    /// left behind them becomes its gap, and that much of the gap before it goes. When memory runs
    /// out nothing has changed.
    ///
    /// Where the leaf has room, [`Position::insert`] does the same.
    #[cold]
    pub fn insert<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        section: &WriteSection<'_, P>,
        key: usize,
        slot: u32,
        len: usize,
    ) -> Result<(), OutOfMemory> {
        self.new_shape();
        self.insert_from_root(nodes, section, key, slot)?;
        let room = self.seek(nodes, key).map_or(0, |at| {
            let room = at.room();
            at.set_gap(room.saturating_sub(len));
            room
        });
        self.update_gap_before(nodes, key, |gap| gap.saturating_sub(room));
        Ok(())
    }

    /// Changes the gap of the last entry before `key`, if there is one.
    fn update_gap_before<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        key: usize,
        new: impl FnOnce(usize) -> usize,
    ) {
        let before = key.checked_sub(1).and_then(|addr| self.seek(nodes, addr));
        if let Some(before) = before.filter(|before| before.key() < key) {
            before.update_gap(new);
        }
    }

    /// Inserts `slot` at `key`, with no gap, making room on the way down.
    fn insert_from_root<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        section: &WriteSection<'_, P>,
        key: usize,
        slot: u32,
    ) -> Result<(), OutOfMemory> {
        let mut node = nodes.get(self.root_with_room(nodes, section, key)?);
        let mut position = Position::at_root(node);
        loop {
            let mut entry = node.search(key);
            let Some(mut child) = node.child_node(entry) else { break };
            if nodes.get(child).is_full() {
                split(nodes, section.edit(), node, entry, nodes.alloc(section)?, key);
                entry = node.search(key);
                child = node.child_node(entry).unwrap_or(child);
            }
            node = nodes.get(child);
            position.descend(entry, node);
        }
        node.insert(section.edit(), key, Target::to_slot(slot), 0);
        for (above, entry) in position.above() {
            if key < above.key(entry) {
                above.set_key(section.edit(), entry, key);
            }
        }
        Ok(())
    }

    /// The root, made if there is none and split if it is full.
    fn root_with_room<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        section: &WriteSection<'_, P>,
        key: usize,
    ) -> Result<Idx<Node>, OutOfMemory> {
        let Some(root) = self.root.follow().node() else {
            let root = nodes.alloc(section)?;
            nodes.get(root).clear(section.edit());
            self.set_root(section.edit(), Target::to_node(root));
            return Ok(root);
        };
        if !nodes.get(root).is_full() {
            return Ok(root);
        }
        let top = nodes.alloc(section)?;
        let right = match nodes.alloc(section) {
            Ok(right) => right,
            Err(error) => {
                nodes.free(top, section);
                return Err(error);
            }
        };
        let (node, child) = (nodes.get(top), nodes.get(root));
        node.clear(section.edit());
        node.insert(section.edit(), child.key(0), Target::to_node(root), child.max_gap());
        self.set_root(section.edit(), Target::to_node(top));
        split(nodes, section.edit(), node, 0, right, key);
        Ok(top)
    }

    /// Removes the entry with exactly this `key`, if there is one. Its room, but for what is `kept` of
    /// it, goes to the gap before it.
    ///
    /// Where the entry is spare, [`Position::remove`] does the same.
    #[cold]
    pub fn remove<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        section: &WriteSection<'_, P>,
        key: usize,
        kept: usize,
    ) {
        let Some(at) = self.seek(nodes, key).filter(|at| at.key() == key) else { return };
        let room = at.room().saturating_sub(kept);
        self.new_shape();
        self.remove_from_root(nodes, section, key);
        self.update_gap_before(nodes, key, |gap| gap.saturating_add(room));
    }

    /// Removes the entry with this `key`, refilling sparse nodes on the way down.
    fn remove_from_root<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        section: &WriteSection<'_, P>,
        key: usize,
    ) {
        let Some(root) = self.root.follow().node() else { return };
        let mut node = nodes.get(root);
        let mut position = Position::at_root(node);
        loop {
            let mut entry = node.search(key);
            let Some(mut child) = node.child_node(entry) else { break };
            if nodes.get(child).len() <= SPARSE {
                refill(nodes, section, node, entry);
                entry = node.search(key);
                child = node.child_node(entry).unwrap_or(child);
            }
            node = nodes.get(child);
            position.descend(entry, node);
        }
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
    fn lower_root<P: Platform>(&self, nodes: &Arena<Node, P>, section: &WriteSection<'_, P>) {
        while let Some(root) = self.root.follow().node() {
            let node = nodes.get(root);
            match (node.len(), node.child_node(0)) {
                (1, Some(child)) => self.set_root(section.edit(), Target::to_node(child)),
                (0, _) => self.set_root(section.edit(), Target::NOTHING),
                _ => return,
            }
            nodes.free(root, section);
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

/// Moves the upper part of `parent`'s full child at `entry` to the new node `right`, to make room
/// for `key`: half of it, or where keys come in order, as little or as much as there may be, since
/// what is left behind is never added to again.
fn split<P: Platform>(
    nodes: &Arena<Node, P>,
    edit: EditSeq,
    parent: &Node,
    entry: usize,
    right: Idx<Node>,
    key: usize,
) {
    let Some(child) = parent.child_node(entry) else { return };
    let (left, new) = (nodes.get(child), nodes.get(right));
    let at = if key > left.key(FANOUT - 1) {
        FANOUT - SPARSE
    } else if key < left.key(0) {
        SPARSE
    } else {
        FANOUT / 2
    };
    new.clear(edit);
    left.copy_tail_to(edit, at, new);
    parent.insert(edit, new.key(0), Target::to_node(right), new.max_gap());
    left.truncate(edit, at);
    parent.set_gap(entry, left.max_gap());
}

/// Merges `parent`'s sparse child at `entry` with a neighbour, or takes entries from it.
fn refill<P: Platform>(
    nodes: &Arena<Node, P>,
    section: &WriteSection<'_, P>,
    parent: &Node,
    entry: usize,
) {
    let at = entry.saturating_sub(1);
    let (Some(left), Some(right)) = (parent.child_node(at), parent.child_node(at + 1)) else {
        return;
    };
    let (l, r, edit) = (nodes.get(left), nodes.get(right), section.edit());
    let total = l.len() + r.len();
    if total <= FANOUT {
        if !keep(Step::FreeLast) {
            nodes.free(right, section);
        }
        r.copy_tail_to(edit, 0, l);
        parent.remove(edit, at + 1);
        if keep(Step::FreeLast) {
            nodes.free(right, section);
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

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;
    use crate::arena::Users;
    use crate::mm::Mm;
    use crate::platform::StdPlatform;
    use crate::slab::OWNER;
    use std::collections::BTreeMap;

    /// A key, its slot and its gap.
    type Entry = (usize, (u32, usize));

    impl BTree {
        /// Panics unless T1, T2 and T4 hold; returns the entries in order.
        pub fn checked<P: Platform>(&self, nodes: &Arena<Node, P>) -> Vec<Entry> {
            let mut entries = Vec::new();
            if let Some(root) = self.root.follow().node() {
                check(nodes, root, &mut entries);
            }
            assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "T1: {entries:?}");
            entries
        }
    }

    /// The depth below `index`.
    fn check<P: Platform>(
        nodes: &Arena<Node, P>,
        index: Idx<Node>,
        entries: &mut Vec<Entry>,
    ) -> usize {
        let node = nodes.get(index);
        assert!((node.len()..FANOUT).all(|unused| node.key(unused) == super::super::node::NO_KEY));
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
    fn arena() -> (Arena<Node, StdPlatform>, Mm<StdPlatform>) {
        (Arena::new(Users::OneSpace), Mm::new(OWNER))
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
        let (nodes, mm) = arena();
        let section = mm.write();
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

    /// What a walker can meet where nodes are recycled under it.
    #[test]
    fn a_walk_in_circles_ends() {
        let ((nodes, mm), tree) = (arena(), BTree::new());
        let section = mm.write();
        let root = nodes.alloc(&section).unwrap();
        nodes.get(root).clear(section.edit());
        for key in 1..=FANOUT {
            nodes.get(root).insert(section.edit(), key, Target::to_node(root), 0);
        }
        tree.set_root(section.edit(), Target::to_node(root));
        for addr in [0, 1, 2, usize::MAX] {
            assert_eq!(
                (
                    tree.walk(&nodes, addr, &mut PassedDown::none()),
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
            let ((nodes, mm), trees) = (arena(), [BTree::new(), BTree::new()]);
            let section = mm.write();
            let (mut maps, mut dice) = ([BTreeMap::new(), BTreeMap::new()], Dice(seed));
            for step in 0..steps {
                let which = dice.roll(2) as usize;
                let (tree, map) = (&trees[which], &mut maps[which]);
                // Grows and shrinks in turn, so that every depth is passed both ways.
                let insert = dice.roll(10)
                    < if (step / 500 + which as u32).is_multiple_of(2) { 7 } else { 3 };
                let key = dice.roll(400) as usize * 10;
                // Few lengths, so that a node often has its largest gap twice.
                let (len, size) = (1 + dice.roll(9) as usize, dice.roll(30) as usize);
                // In the leaf as it is, if that can be; or from the root, which always can.
                let at = tree.seek(&nodes, key).filter(|_| dice.roll(2) == 0);
                if insert && !map.contains_key(&key) {
                    match at.filter(Position::has_room) {
                        Some(at) => at.insert(section.edit(), key, step, len),
                        None => tree.insert(&nodes, &section, key, step, len).unwrap(),
                    }
                    map.insert(key, (step, len));
                } else if !insert {
                    match at.filter(|at| at.key() == key && at.is_spare()) {
                        Some(at) => at.remove(section.edit(), 0),
                        None => tree.remove(&nodes, &section, key, 0),
                    }
                    map.remove(&key);
                }
                let (key, len) = (dice.roll(400) as usize * 10, 1 + dice.roll(9) as usize);
                if let Some(entry) = map.get_mut(&key) {
                    let at = tree.seek(&nodes, key).unwrap();
                    at.set_gap(at.room() - len);
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
                    tree.walk(&nodes, probe, &mut PassedDown::none()),
                    tree.walk_from(&nodes, probe, &mut ()),
                    tree.first_gap(&nodes, probe, size),
                    tree.last_gap(&nodes, probe, size),
                ];
                let split = |at: usize| entries.split_at(entries.partition_point(|e| e.0 < at));
                let ((below, from), (up_to, _)) = (split(probe), split(probe + 1));
                let roomy = |entry: &&Entry| entry.1.1 >= size;
                let expected = [
                    up_to.last(),
                    from.first(),
                    from.iter().find(roomy),
                    below.iter().rfind(roomy),
                ];
                let expected = expected.map(|entry| entry.map(|&(_, (slot, _))| slot));
                assert_eq!(found, expected, "seed {seed}, step {step}");
                let mut position = tree.seek(&nodes, probe);
                let from = map.range(..=probe).next_back().or(map.first_key_value());
                for (_, &(slot, _)) in from.iter().flat_map(|(from, _)| map.range(*from..)).take(9)
                {
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
}
