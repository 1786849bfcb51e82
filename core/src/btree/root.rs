//! The root of a tree.

use super::node::{FANOUT, Node, Target, TreeWord};
use crate::arena::{Arena, Chunks, Idx, Table};
use crate::lock::{EditSeq, NodeVersion, Watermark};
use crate::mm::EditSection;
use crate::platform::Platform;
use crate::sync::{AtomicU64, Relaxed, const_unless_model};

/// As many nodes as a path can have: every node but the root keeps [`SPARSE`](super::node::SPARSE)
/// entries or more, and with four of them each, thirteen levels hold as many entries as an arena
/// has objects. The small nodes of tests are deeper.
pub(crate) const MAX_DEPTH: usize = if FANOUT < 16 { 32 } else { 16 };

/// The root of a tree; the nodes are in an arena.
pub(crate) struct BTree {
    root: TreeWord,
    /// Where the nodes are, as soon as there was one.
    nodes: Table<Node>,
    /// The edit that last changed the root.
    version: NodeVersion,
    /// See [`Shape`]; for the writer.
    shape: AtomicU64,
}

/// Which nodes a tree has, and how they hang together: a number that changes with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape(u64);

impl BTree {
    const_unless_model! {
        pub(crate) fn new() -> Self {
            Self {
                root: TreeWord::empty(),
                nodes: Table::empty(),
                version: NodeVersion::new(),
                shape: AtomicU64::new(0),
            }
        }
    }

    pub(super) fn set_root(&self, edit: EditSeq, target: Target) {
        self.version.set(edit);
        self.root.link(target);
    }

    /// Whether the root has not changed since the edits up to `watermark`.
    pub(super) fn root_is_unchanged(&self, watermark: Watermark) -> bool {
        self.version.is_covered_by(watermark)
    }

    /// The target of the root: a node, or nothing.
    #[inline(always)]
    pub(super) fn root_target(&self) -> Target {
        self.root.follow()
    }

    /// The index of the root, unless the tree is empty.
    #[inline]
    pub(super) fn root_index(&self) -> Option<Idx<Node>> {
        self.root.follow().node()
    }

    /// The root and all nodes, unless the tree is empty.
    #[inline]
    pub(crate) fn root(&self) -> Option<(&Node, Chunks<'_, Node>)> {
        let root = self.root_index()?;
        let nodes = self.nodes(root);
        Some((nodes.get(root), nodes))
    }

    /// The nodes, for the holder of the index of one of them.
    #[inline(always)]
    pub(super) fn nodes(&self, node: Idx<Node>) -> Chunks<'_, Node> {
        self.nodes.chunks(node)
    }

    /// Makes `root` the first root there is: from now on walkers find the nodes of its arena.
    pub(super) fn set_first_root<P: Platform>(
        &self,
        nodes: &Arena<Node, P>,
        section: &EditSection<'_, P>,
        root: Idx<Node>,
    ) {
        self.nodes.copy(nodes, root, section);
        self.set_root(section.edit(), Target::to_node(root));
    }

    /// The shape it has.
    #[inline]
    pub(crate) fn shape(&self) -> Shape {
        Shape(self.shape.load(Relaxed("only the writer changes the shape")))
    }

    /// No position is good any more.
    pub(crate) fn new_shape(&self) {
        self.shape.store(self.shape().0 + 1, Relaxed("only the writer asks for the shape"));
    }
}
