//! What a call has the backing do.

use alloc::vec::Vec;
use core::ops::Range;

use smallvec::SmallVec;

use crate::backing::{Access, Backing, Part, Refusal, Work};
use crate::errno::Errno;
use crate::vma::Vma;

/// What the backing is asked for, in order.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    work: SmallVec<[Work; 1]>,
    /// Pages to be made present for writing when so much of the work is done.
    populate: Vec<(usize, Range<usize>, Vma)>,
}

impl Asked {
    pub(crate) fn push(&mut self, work: Work) -> Result<(), Errno> {
        self.work.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.work.push(work);
        Ok(())
    }

    /// Asks for the pages of a VMA that is at `range`, or is going to be.
    pub(crate) fn push_populate(&mut self, range: Range<usize>, vma: Vma) -> Result<(), Errno> {
        self.populate.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.populate.push((self.work.len(), range, vma));
        Ok(())
    }

    /// Whether it is the same about the same addresses.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        let is_as = |(a, b): (&Work, &Work)| match (a, b) {
            (Work::Unmap(a), Work::Unmap(b)) => a == b,
            (Work::Protect { range: a, .. }, Work::Protect { range: b, .. }) => a == b,
            (Work::Relocate { from, to }, Work::Relocate { from: other, to: there }) => {
                (from, to) == (other, there)
            }
            _ => false,
        };
        let populate = |asked: &Self| -> Vec<_> {
            asked.populate.iter().map(|(after, range, _)| (*after, range.clone())).collect()
        };
        self.work.len() == other.work.len()
            && self.work.iter().zip(&other.work).all(is_as)
            && populate(self) == populate(other)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.work.is_empty() && self.populate.is_empty()
    }

    /// Has it done, and returns what became of the pages.
    pub(crate) fn ask<B: Backing>(&self, backing: &B) -> Result<Vec<Result<(), Refusal>>, Errno> {
        let mut answers = Vec::new();
        answers.try_reserve_exact(self.populate.len()).map_err(|_| Errno::ENOMEM)?;
        backing.prepare(&self.work)?;
        let mut populate = self.populate.iter().peekable();
        for done in 0..=self.work.len() {
            while let Some((_, range, vma)) = populate.next_if(|(after, ..)| *after == done) {
                let part = Part::new(range, vma, range.clone());
                answers.push(backing.fault(part, Access::Write));
            }
            if let Some(work) = self.work.get(done) {
                work.ask(backing);
            }
        }
        Ok(answers)
    }
}
