//! The B-tree: one writer, changed in place; walkers that take no lock and trust nothing.
//!
//! # Guarantee
//!
//! [`BTree::walk`] and [`BTree::walk_from`] end after a number of steps that
//! [`MAX_DEPTH`](root::MAX_DEPTH) bounds, and write nothing. While no edit is under way the first
//! finds the entry with the largest key not above the address (or the first entry, if they are all
//! above and the walk is not going to be validated), the second the entry with the smallest key not
//! below it. During an edit they may find any entry, also one of another space's tree, or none; the
//! caller checks what they found.
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
//! - **T5** What is noted in a node holds for the gaps below it. Where a node has a note, so has
//!   every node below it: an edit looks for them in the leaf.
//! - **T6** A leaf that has left the tree has no used entry, until it is used again. (An inner node
//!   may have one: it leads to no slot.)
//!
//! # How the writer works
//!
//! Where the leaf is not full, or has entries enough without one, nothing changes but the leaf, and
//! above it gaps. A full leaf is split where the node above has room. Else from the root down, in
//! one pass: an insertion splits every full node it meets, a removal refills every sparse one.
//! Either leaves a valid tree at each step, so running out of memory in the middle of an insertion
//! changes nothing that a caller can see. An entry's new copy is linked before the old one goes:
//! that saves walkers retries, correctness does not rest on it.
//!
//! # Rejected
//!
//! Copying a node for each change: readers elsewhere gain nothing from it, since the end
//! validation is needed anyway, and the writer pays for the copy.

mod edit;
mod gap;
mod node;
mod position;
mod root;
mod run;
mod walk;

pub(crate) use gap::Wanted;
pub(crate) use node::{AnySlot, Node};
pub(crate) use position::Position;
pub(crate) use root::{BTree, Shape};
pub(crate) use run::Run;
pub(crate) use walk::{Leaf, PathDown, PathToNext, RecordPath, VisitedPath};

#[cfg(all(test, not(pervma_model)))]
mod tests;
