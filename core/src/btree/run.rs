//! Insertions one behind the other: the writer stays where it is.

use super::node::{AnySlot, Node};
use super::position::Position;
use super::root::MAX_DEPTH;
use crate::lock::EditSeq;
use crate::range::Span;

/// What the writer knows of the entry that it inserted last, to insert the next one behind it with
/// no search.
pub(crate) struct Run {
    /// What is free behind that entry.
    free: Span,
    /// The largest gap of the other entries in its leaf, and in each node above it, from below;
    /// once there was a second insertion.
    others: Option<[usize; MAX_DEPTH + 1]>,
}

impl Run {
    /// Begins a run with the entry of `span`, at which the position is.
    #[inline]
    pub(crate) fn begin(at: &Position<'_>, span: Span) -> Self {
        let next = at.next_key().unwrap_or(usize::MAX);
        Self { free: Span { start: span.end, end: next }, others: None }
    }

    /// Whether `span` follows the last entry, and no other does before it ends.
    #[inline]
    pub(crate) fn goes_on_with(&self, span: Span) -> bool {
        self.free.start <= span.start && span.end <= self.free.end
    }

    /// Inserts what the run [goes on with](Self::goes_on_with) into a leaf that is not full. The
    /// position is at the entry before, and goes to the new one.
    #[inline]
    pub(crate) fn insert(
        &mut self,
        at: &mut Position<'_>,
        edit: EditSeq,
        slot: AnySlot,
        span: Span,
    ) {
        let others = self.others.get_or_insert_with(|| {
            let mut others = [0; MAX_DEPTH + 1];
            let path = core::iter::once(at.last()).chain(at.above());
            for (largest, (node, taken)) in others.iter_mut().zip(path) {
                *largest = max_gap_beside(node, taken);
            }
            others
        });
        let before = span.start - self.free.start;
        self.free.start = span.end;
        at.insert_behind(edit, span.start, slot, [before, self.free.len()]);
        others[0] = others[0].max(before);
        let mut largest = others[0].max(self.free.len());
        for ((node, entry), others) in at.above().zip(&others[1..]) {
            if node.gap(entry) == largest {
                return;
            }
            node.set_gap(entry, largest);
            largest = largest.max(*others);
        }
    }
}

/// The largest gap of the entries but one.
fn max_gap_beside(node: &Node, taken: usize) -> usize {
    let others = (0..node.len()).filter(|&entry| entry != taken);
    others.map(|entry| node.gap(entry)).max().unwrap_or(0)
}
