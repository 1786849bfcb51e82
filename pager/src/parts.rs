//! A range that is handed to the kernel in as many parts as the kernel has mappings there.
//!
//! A VMA of ours can be several of the kernel's: what it was split for is over, but the kernel
//! does not merge its own again, or the application has asked for something (advice, a lock, a
//! policy) for a part of it. Calls that take a range of one mapping refuse the whole range then.

use std::ops::Range;

/// What is left of a range, and how much of it is tried at a time.
///
/// The amount is halved when the kernel refuses it and doubled when it does not, so that a range of
/// one mapping takes one call, and each seam a few more.
#[derive(Debug)]
pub(crate) struct Parts {
    left: Range<usize>,
    page_size: usize,
    /// Bytes, whole pages.
    most: usize,
}

impl Parts {
    /// Of a range of whole pages.
    pub(crate) fn new(range: Range<usize>, page_size: usize) -> Self {
        Self { most: range.len(), left: range, page_size }
    }

    /// What to try next.
    pub(crate) fn next(&self) -> Option<Range<usize>> {
        let end = self.left.end.min(self.left.start.saturating_add(self.most));
        (self.left.start < end).then_some(self.left.start..end)
    }

    /// So many bytes of it are done.
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.left.start += bytes;
        self.most = self.most.saturating_mul(2);
    }

    /// It was refused as a whole: less of it is to be tried. `false` if it was one page.
    pub(crate) fn halve(&mut self) -> bool {
        let tried = self.most.min(self.left.len());
        if tried <= self.page_size {
            return false;
        }
        self.most = tried / 2 / self.page_size * self.page_size;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    /// The parts in which a range is taken by a kernel whose mappings end at these pages, and how
    /// many calls that takes.
    fn taken(range: Range<usize>, seams: &[usize]) -> (Vec<Range<usize>>, usize) {
        let mut parts = Parts::new(range.start * PAGE..range.end * PAGE, PAGE);
        let (mut taken, mut calls) = (Vec::new(), 0);
        while let Some(part) = parts.next() {
            calls += 1;
            let pages = part.start / PAGE..part.end / PAGE;
            assert_eq!(pages.start * PAGE..pages.end * PAGE, part, "whole pages");
            if seams.iter().any(|&seam| pages.start < seam && seam < pages.end) {
                assert!(parts.halve(), "one page is never refused");
            } else {
                parts.advance(part.len());
                taken.push(pages);
            }
        }
        (taken, calls)
    }

    #[test]
    fn one_mapping_takes_one_call() {
        for seams in [&[][..], &[3, 515]] {
            let (parts, calls) = taken(3..515, seams);
            assert_eq!((parts[0].clone(), parts.len(), calls), (3..515, 1, 1));
        }
    }

    #[test]
    fn every_page_is_taken_once_and_in_order() {
        for seams in [&[1][..], &[300], &[7, 8, 9], &[1, 511], &[255, 256, 257]] {
            let (parts, calls) = taken(0..512, seams);
            assert_eq!(parts.first().unwrap().start, 0);
            assert_eq!(parts.last().unwrap().end, 512);
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(calls <= 40 * seams.len(), "{calls} calls for {seams:?}");
        }
        let all: Vec<_> = (0..512).collect();
        let (parts, calls) = taken(0..512, &all);
        assert_eq!(parts.len(), 512);
        assert!(calls <= 2 * 512 + 10, "{calls}");
    }

    #[test]
    fn a_page_that_is_refused_ends_it() {
        let mut parts = Parts::new(0..PAGE, PAGE);
        assert!(!parts.halve());
    }
}
