//! The root of a tree.

use super::node::{FANOUT, Node, Target, TreeWord};
use crate::lock::{EditSeq, NodeVersion, Watermark};
use crate::sync::{AtomicU64, Relaxed, const_unless_model};

/// As many nodes as a path can have: every node but the root keeps [`SPARSE`](super::node::SPARSE)
/// entries or more, and with four of them each, thirteen levels hold as many entries as an arena
/// has objects. The small nodes of tests are deeper.
pub(crate) const MAX_DEPTH: usize = if FANOUT < 16 { 32 } else { 16 };

/// The root of a tree; the nodes are in an arena.
pub(crate) struct BTree {
    root: TreeWord,
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
                version: NodeVersion::new(),
                shape: AtomicU64::new(0),
            }
        }
    }

    pub(super) fn set_root(&self, edit: EditSeq, target: Target<'_>) {
        self.version.set(edit);
        self.root.link(target);
    }

    /// Whether the root has not changed since the edits up to `watermark`.
    pub(super) fn root_is_unchanged(&self, watermark: Watermark) -> bool {
        self.version.is_covered_by(watermark)
    }

    /// The target of the root: a node, or nothing.
    #[inline(always)]
    pub(super) fn root_target(&self) -> Target<'_> {
        self.root.follow()
    }

    /// The root, unless the tree is empty.
    #[inline]
    pub(crate) fn root(&self) -> Option<&Node> {
        self.root.follow().node()
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
