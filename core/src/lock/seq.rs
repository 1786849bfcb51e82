//! The sequence number of a space, the watermark of completed edits, and versions of tree nodes.
#![cfg_attr(
    not(pervma_model),
    expect(unreachable_pub, reason = "the models reach it through `internals`")
)]

use crate::ledger::{
    EDIT_BEGIN, EDIT_END, NODE_VERSION, READ_SEQ, READ_WATERMARK, VERSION_CHECK, WATERMARK_ADVANCE,
};
use crate::step::Step;
use crate::sync::{AtomicU64, Line, Relaxed, ScheduleHint, check, const_unless_model, keep};

/// The sequence number of a space: odd while an edit is under way.
///
/// It counts edits twice and has 64 bits, so no value repeats. The *watermark*, all edits up to
/// which are completed, is on a cache line that editors do not write. A reader that finds nothing
/// newer does not load the sequence, whose line a busy editor keeps taking away. The first reader
/// that does find something newer advances the watermark.
///
/// Each of the two lines has room for more that is used alike: `E`, which editors write and lookups
/// do not load, and `L`, which lookups load and editors do not write.
#[doc(alias = "mm_lock_seq")]
pub struct SpaceSeq<E = (), L = ()> {
    edits: Line<EditLine<E>>,
    lookups: Line<LookupLine<L>>,
    schedule: ScheduleHint,
}

/// The line of editors.
struct EditLine<E> {
    current: AtomicU64,
    beside: E,
}

/// The line of lookups.
struct LookupLine<L> {
    watermark: AtomicU64,
    beside: L,
}

/// The odd number that names an edit; only [`SpaceSeq::begin`] makes one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EditSeq(u64);

impl EditSeq {
    /// The number itself.
    #[inline(always)]
    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// An edit that a VMA names.
    #[inline(always)]
    pub(super) fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// All edits up to this number are completed.
#[derive(Clone, Copy, Debug)]
pub struct Watermark(u64);

impl Watermark {
    /// Whether `edit` is one of them.
    #[inline(always)]
    pub fn covers(self, edit: EditSeq) -> bool {
        edit.0 <= self.0
    }
}

/// The edit that last changed something which walkers read: a node of the tree, or its root.
///
/// It is stored before the change, so a walker that has met a store of the change sees it behind
/// HOLE_CHECK. Where a node has gone to another space, it is a number of that space, which says
/// nothing here; but a reader that sees it also sees the version of what led to the node.
pub struct NodeVersion(AtomicU64);

impl NodeVersion {
    const_unless_model! {
        /// The version of what no edit has changed.
        pub(crate) fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Announces changes by `edit`.
    #[inline]
    pub(crate) fn set(&self, edit: EditSeq) {
        if keep(Step::SetVersion) {
            self.0.store(edit.0, NODE_VERSION);
        }
    }

    /// The edit of the last change.
    #[inline]
    pub(crate) fn edit(&self) -> EditSeq {
        EditSeq(self.0.load(VERSION_CHECK))
    }

    /// Whether the edit of the last change is below `watermark`.
    #[inline]
    pub(crate) fn is_covered_by(&self, watermark: Watermark) -> bool {
        watermark.covers(self.edit()) || !keep(Step::CheckHole)
    }
}

impl<E, L> SpaceSeq<E, L> {
    const_unless_model! {
        /// The sequence of a space that was never edited, with what is to be on the line of editors
        /// and on that of lookups.
        pub fn new(edits: E, lookups: L) -> Self {
            Self {
                edits: Line(EditLine { current: AtomicU64::new(0), beside: edits }),
                lookups: Line(LookupLine { watermark: AtomicU64::new(0), beside: lookups }),
                schedule: ScheduleHint::new(),
            }
        }
    }

    /// What is on the line of editors.
    #[inline(always)]
    pub(crate) fn on_edit_line(&self) -> &E {
        &self.edits.0.beside
    }

    /// What is on the line of lookups.
    #[inline(always)]
    pub(crate) fn on_lookup_line(&self) -> &L {
        &self.lookups.0.beside
    }

    #[inline(always)]
    fn current(&self) -> &AtomicU64 {
        &self.edits.0.current
    }

    #[inline(always)]
    fn completed(&self) -> &AtomicU64 {
        &self.lookups.0.watermark
    }

    /// Begins an edit. The caller holds the mmap lock for writing.
    #[doc(alias = "mmap_write_lock")]
    #[inline]
    pub fn begin(&self) -> EditSeq {
        self.schedule.hint();
        let current = self.current();
        let even = current.load(Relaxed("stored under the mmap lock, which is held"));
        check(even.is_multiple_of(2), "one edit at a time");
        current.store(even + 1, EDIT_BEGIN);
        EditSeq(even + 1)
    }

    /// The edit that is under way, for the thread whose edit it is.
    pub(crate) fn running(&self) -> EditSeq {
        EditSeq(self.current().load(Relaxed("this thread stored it")))
    }

    /// Ends the edit that `begin` named, and with it all its write locks.
    #[doc(alias = "vma_end_write_all")]
    #[inline]
    pub fn end(&self, edit: EditSeq) {
        self.current().store(edit.0 + 1, EDIT_END);
    }

    /// Where the order of a walk and the begin of an edit matters, for a checker.
    #[inline(always)]
    pub(crate) fn schedule(&self) -> &ScheduleHint {
        &self.schedule
    }

    /// The watermark. What the edits up to it have written is visible.
    #[inline(always)]
    pub(crate) fn watermark(&self) -> Watermark {
        Watermark(self.completed().load(READ_WATERMARK))
    }

    /// Advances the watermark to the last edit that is completed by now, where `known` was not
    /// enough.
    #[cold]
    pub(crate) fn advance_watermark(&self, known: Watermark) -> Watermark {
        let current = self.current().load(READ_SEQ);
        // The edit with an odd number is not completed.
        let completed = if keep(Step::CheckEven) { current & !1 } else { current };
        // Nothing is stored that other readers know already. Several may store out of order: all
        // edits up to each of these numbers are completed.
        if completed > known.0 {
            self.completed().store(completed, WATERMARK_ADVANCE);
        }
        Watermark(completed)
    }

    /// Whether `edit` is completed, and what it wrote visible.
    #[inline(always)]
    pub(crate) fn is_completed(&self, edit: EditSeq) -> bool {
        let watermark = self.watermark();
        watermark.covers(edit) || self.advance_watermark(watermark).covers(edit)
    }

    /// Whether `edit` looks like the one under way. May be wrong either way.
    #[inline(always)]
    pub(super) fn looks_current(&self, edit: u64) -> bool {
        let watermark = self.completed().load(Relaxed("a hint: `is_completed` decides"));
        edit > watermark && edit == self.current().load(Relaxed("a hint, as above"))
    }
}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_covered_when_its_edit_is_completed_and_a_reader_has_looked() {
        let (seq, version) = (SpaceSeq::new((), ()), NodeVersion::new());
        assert!(version.is_covered_by(seq.watermark()), "never changed");
        let edit = seq.begin();
        version.set(edit);
        assert!(!version.is_covered_by(seq.advance_watermark(seq.watermark())), "under way");
        seq.end(edit);
        assert!(!version.is_covered_by(seq.watermark()), "no reader has looked");
        assert!(version.is_covered_by(seq.advance_watermark(seq.watermark())));
        assert!(version.is_covered_by(seq.watermark()), "the watermark stays");
        let next = seq.begin();
        assert!(version.is_covered_by(seq.advance_watermark(seq.watermark())), "another edit");
        seq.end(next);
    }
}
