//! Which ranges are mapped, and which addresses are asked for.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

pub(crate) const PAGE: usize = 4096;

/// From the start of a VMA to that of the next.
pub(crate) const STRIDE: usize = 8 * PAGE;

/// Of a VMA; a hole of the same length follows.
const LEN: usize = 4 * PAGE;

/// Where the first VMA starts.
pub(crate) const BASE: usize = 0x1000_0000;

/// A range and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vma {
    pub(crate) range: Range<usize>,
    pub(crate) payload: u64,
}

/// The order in which VMAs are inserted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Build {
    Ascending,
    Random,
}

/// So many VMAs of four pages, with holes of four pages between them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) vmas: usize,
}

impl Layout {
    /// The VMAs, in the order in which they are to be inserted.
    pub(crate) fn build(self, order: Build) -> Vec<Vma> {
        let mut vmas: Vec<_> = (0..self.vmas)
            .map(|number| Vma { range: vma(number), payload: number as u64 })
            .collect();
        if let Build::Random = order {
            vmas.shuffle(&mut StdRng::seed_from_u64(2));
        }
        vmas
    }

    /// What is mapped lies below.
    pub(crate) fn end(self) -> usize {
        BASE + self.vmas * STRIDE
    }
}

/// The range of a VMA.
pub(crate) fn vma(number: usize) -> Range<usize> {
    let start = BASE + number * STRIDE;
    start..start + LEN
}

/// The page in a VMA that is changed and changed back.
pub(crate) fn middle(number: usize) -> Range<usize> {
    let start = vma(number).start + PAGE;
    start..start + PAGE
}

/// The hole behind a VMA.
pub(crate) fn hole(number: usize) -> Range<usize> {
    vma(number).end..vma(number).end + LEN
}

/// What is inserted into that hole, and removed again: a page with holes on both sides.
pub(crate) fn guest(number: usize) -> Vma {
    let start = hole(number).start + PAGE;
    Vma { range: start..start + PAGE, payload: number as u64 }
}

/// Random addresses in the ranges that `range` makes of random ones of `numbers`.
pub(crate) fn addresses(
    random: &mut StdRng,
    count: usize,
    numbers: Range<usize>,
    range: impl Fn(usize) -> Range<usize>,
) -> Vec<usize> {
    let mut address = || {
        let number = random.random_range(numbers.clone());
        random.random_range(range(number))
    };
    (0..count).map(|_| address()).collect()
}

/// Random ones of `numbers`.
pub(crate) fn numbers(random: &mut StdRng, count: usize, numbers: Range<usize>) -> Vec<usize> {
    (0..count).map(|_| random.random_range(numbers.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_and_middles_lie_strictly_inside() {
        for number in [0, 1, 7] {
            let (vma, middle) = (vma(number), middle(number));
            assert!(vma.start < middle.start && middle.end < vma.end);
            let (hole, guest) = (hole(number), guest(number).range);
            assert!(hole.start < guest.start && guest.end < hole.end);
            assert_eq!(hole.end, super::vma(number + 1).start);
        }
    }
}
