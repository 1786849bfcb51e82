//! Clean pages that leave a region to keep its bound: what of them is kept, and what is known of
//! them afterwards.

use std::ops::Range;

use crate::budget::Budget;
use crate::copy;
use crate::kept::{Empty, Keeper};
use crate::mapping::{Mapping, PAGE};

/// Pages of which copies are made before they are given back, by the caller, who excludes them.
/// What was copied is forgotten if they [have not gone](Self::have_gone).
pub(crate) struct Leaving<'m> {
    mapping: &'m Mapping,
    /// Of a region that has a bound.
    keeper: Option<Keeper<'m>>,
    /// With whether they were hot, and where they are kept.
    pages: Vec<(usize, bool, Option<Empty<'m>>)>,
}

/// Where the bytes of pages are.
#[derive(Clone, Copy)]
pub(crate) enum From<'b> {
    /// At their places, where they may be read.
    Region,
    /// They were taken out.
    Bytes(&'b [u8]),
    /// They may not be looked at.
    Nowhere,
}

impl<'m> Leaving<'m> {
    pub(crate) fn new(mapping: &'m Mapping, part: &Range<usize>, from: From<'_>) -> Self {
        let budget = mapping.backing.share.as_ref().map(|share| share.budget().as_ref());
        let mut leaving = Self { mapping, keeper: budget.map(Budget::keeper), pages: Vec::new() };
        if let Some(budget) = budget {
            leaving.copy(budget, part, from);
        }
        leaving
    }

    fn copy(&mut self, budget: &Budget, part: &Range<usize>, from: From<'_>) {
        let Some(keeper) = &mut self.keeper else { return };
        let (mapping, pages) = (self.mapping, self.mapping.pages(part));
        let are_kept = mapping.backing.are_kept() && !matches!(from, From::Nowhere);
        // What is not there is no copy: the kernel may have it elsewhere, or another has given it
        // back.
        let mut present = vec![u8::from(are_kept); pages.len()];
        if are_kept && matches!(from, From::Region) {
            let asked = mapping.memory.which_are_resident(part.clone(), &mut present);
            if !asked {
                present.fill(0);
            }
        }
        for (page, present) in pages.clone().zip(present) {
            let is_hot = mapping.records.filled_at(page).is_some_and(|filling| filling.is_hot);
            let slot = if present & 1 == 1 {
                keeper.slot(mapping.kept_page(page), || budget.take_to_keep())
            } else {
                None
            };
            // Zeros take no memory where they come from, and would here.
            let slot = slot.filter(|slot| {
                let (words, at) = (keeper.words(slot), mapping.offsets(page..page + 1));
                let has_bytes = match from {
                    From::Region => copy::to_words(&mapping.memory, at.start, words),
                    From::Bytes(bytes) => {
                        copy::bytes_to_words(&bytes[(page - pages.start) * PAGE..][..PAGE], words)
                    }
                    From::Nowhere => false,
                };
                has_bytes || !mapping.backing.takes_zeros()
            });
            self.pages.push((page, is_hot, slot));
        }
    }

    /// They have gone, and their records say so.
    pub(crate) fn have_gone(mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        for (page, was_hot, slot) in self.pages.drain(..) {
            let of = self.mapping.kept_page(page);
            match slot {
                Some(slot) => {
                    keeper.fill(slot, of, self.mapping.records.time(page..page + 1), was_hot);
                }
                None => keeper.has_gone(of, was_hot),
            }
        }
    }
}
