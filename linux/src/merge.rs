//! Which VMAs become one.
//!
//! Two neighbours merge if nothing tells them apart: equal flags, the same open file (not only the
//! same inode), equal names, and page offsets that continue each other. Memory of the process's own
//! is offset by the address at which it was first mapped, so what was moved after it was touched does
//! not merge at its new place.
//!
//! Beside that, pages of their own must be able to live in one group ([`AnonVma`]): if both have a
//! group it must be the same; if one has, the other takes it over, unless that group came from a
//! fork's parent.

use core::ops::Range;

use crate::flags::VmFlags;
use crate::vma::{AnonVma, Vma};

/// A range that is about to be mapped, or about to look different, and where its pages come from.
pub(crate) struct Proposed<'a> {
    pub(crate) range: Range<usize>,
    pub(crate) vma: &'a Vma,
    /// Whether the group of its own may be handed on even if it came from a fork's parent: so when
    /// `mremap` makes a VMA longer, which then swallows the next.
    pub(crate) hands_on: bool,
}

/// With whom the proposed range merges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) left: bool,
    pub(crate) right: bool,
}

/// Decides for the VMAs that end and start where the proposed range starts and ends.
#[doc(alias("vma_merge_new_range", "vma_merge_existing_range"))]
pub(crate) fn decide(
    prev: Option<(&Range<usize>, &Vma)>,
    proposed: &Proposed<'_>,
    next: Option<(&Range<usize>, &Vma)>,
) -> Merge {
    let Proposed { range, vma, hands_on } = proposed;
    let fits =
        |neighbour: &Vma| alike(neighbour, vma) && groups_fit(neighbour.anon, vma.anon, *hands_on);
    let left = prev
        .filter(|(at, prev)| prev.page_after(at.end - at.start) == vma.page_offset && fits(prev));
    let right = next.filter(|(_, next)| {
        vma.page_after(range.end - range.start) == next.page_offset && fits(next)
    });
    // Both fit the range in the middle; they must fit each other too.
    let right = right.filter(|(_, next)| {
        left.is_none_or(|(_, prev)| match (prev.anon, next.anon) {
            (Some(prev), Some(next)) => prev == next,
            _ => true,
        })
    });
    Merge { left: left.is_some(), right: right.is_some() }
}

/// Whether nothing that is seen from outside tells the two apart.
fn alike(a: &Vma, b: &Vma) -> bool {
    a.flags | VmFlags::MAYBE_GUARD == b.flags | VmFlags::MAYBE_GUARD
        && a.source == b.source
        && a.name == b.name
}

/// Whether the pages of both can live in the group of one.
#[doc(alias = "is_mergeable_anon_vma")]
fn groups_fit(neighbour: Option<AnonVma>, own: Option<AnonVma>, hands_on: bool) -> bool {
    match (neighbour, own) {
        (None, Some(own)) => !own.from_parent || hands_on,
        (Some(neighbour), None) => !neighbour.from_parent,
        (neighbour, own) => neighbour == own,
    }
}

/// The group that `vma` joins when it first needs one: that of the next VMA or else of the previous,
/// if only what is allowed tells them apart, so that `mprotect` may merge them later.
#[doc(alias = "find_mergeable_anon_vma")]
pub(crate) fn group_to_join(
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
        |(_, neighbour): (&Range<usize>, &Vma)| neighbour.anon.filter(|group| !group.from_parent);
    from_next.and_then(reusable).or_else(|| from_prev.and_then(reusable))
}
