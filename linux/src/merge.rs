//! Which VMAs merge.
//!
//! Two neighbours merge if they have equal flags, the same open file (not only the same inode),
//! equal names, and page offsets that continue each other. The page offset of private anonymous
//! memory is that of the address at which it was first mapped, so what was moved after it was
//! touched does not merge at its new place. What is special ([`VmFlags::SPECIAL`]) never merges.
//!
//! Also, the two must be able to share one [`AnonVma`]: if both have one it must be the same; if
//! only one of them has one, the other takes it over, unless it came from the parent of a fork.

use core::ops::Range;

use crate::flags::VmFlags;
use crate::vma::{AnonVma, Vma};

/// A range that is about to be mapped or changed, and what it is to be.
pub(crate) struct Proposed<'a> {
    pub(crate) range: Range<usize>,
    pub(crate) vma: &'a Vma,
    /// Whether its `anon_vma` may pass to a neighbour even if it came from the parent of a fork, as
    /// where `mremap` makes a VMA longer, which then merges with the next.
    pub(crate) hands_on: bool,
}

/// The neighbours that a proposed range merges with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) left: bool,
    pub(crate) right: bool,
}

/// Decides which of the VMAs before and behind the proposed range it merges with.
#[doc(alias("vma_merge_new_range", "vma_merge_existing_range"))]
pub(crate) fn decide(
    prev: Option<(&Range<usize>, &Vma)>,
    proposed: &Proposed<'_>,
    next: Option<(&Range<usize>, &Vma)>,
) -> Merge {
    let Proposed { range, vma, hands_on } = proposed;
    let fits = |neighbour: &Vma| {
        !vma.flags.any(VmFlags::SPECIAL)
            && alike(neighbour, vma)
            && anon_vmas_fit(neighbour.anon, vma.anon, *hands_on)
    };
    let left = prev
        .filter(|(at, prev)| prev.page_after(at.end - at.start) == vma.page_offset && fits(prev));
    let right = next.filter(|(_, next)| {
        vma.page_after(range.end - range.start) == next.page_offset && fits(next)
    });
    // Both fit the range in the middle. They must fit each other too.
    let right = right.filter(|(_, next)| {
        left.is_none_or(|(_, prev)| match (prev.anon, next.anon) {
            (Some(prev), Some(next)) => prev == next,
            _ => true,
        })
    });
    Merge { left: left.is_some(), right: right.is_some() }
}

/// Whether the two are the same except for their place and their `anon_vma`.
fn alike(a: &Vma, b: &Vma) -> bool {
    a.flags | VmFlags::MAYBE_GUARD == b.flags | VmFlags::MAYBE_GUARD
        && a.source == b.source
        && a.name == b.name
}

/// Whether the two can share one `anon_vma`.
#[doc(alias = "is_mergeable_anon_vma")]
fn anon_vmas_fit(neighbour: Option<AnonVma>, own: Option<AnonVma>, hands_on: bool) -> bool {
    match (neighbour, own) {
        (None, Some(own)) => !own.from_parent || hands_on,
        (Some(neighbour), None) => !neighbour.from_parent,
        (neighbour, own) => neighbour == own,
    }
}

/// The `anon_vma` that a VMA takes when it first needs one: that of the next VMA or else of the
/// previous one, if they differ only in what is allowed, so that `mprotect` can merge them later.
#[doc(alias = "find_mergeable_anon_vma")]
pub(crate) fn reusable_anon_vma(
    prev: Option<(&Range<usize>, &Vma)>,
    (range, vma): (&Range<usize>, &Vma),
    next: Option<(&Range<usize>, &Vma)>,
) -> Option<AnonVma> {
    let continues = |(at, a): (&Range<usize>, &Vma), b: &Vma| {
        let apart = !(VmFlags::ACCESS | VmFlags::MAYBE_GUARD);
        a.flags & apart == b.flags & apart
            && a.source == b.source
            && a.page_after(at.end - at.start) == b.page_offset
    };
    let from_next = next.filter(|(_, next)| continues((range, vma), next));
    let from_prev = prev.filter(|prev| continues(*prev, vma));
    let reusable =
        |(_, neighbour): (&Range<usize>, &Vma)| neighbour.anon.filter(|anon| !anon.from_parent);
    from_next.and_then(reusable).or_else(|| from_prev.and_then(reusable))
}
