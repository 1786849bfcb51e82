//! A sequential address space, as plain as it can be: what pervma must agree with.
//!
//! One sorted `Vec`, no locks, no tricks; every operation looks at every entry. Tests run the same
//! calls here and on [`pervma`](https://docs.rs/pervma) and compare results, errors included.
//!
//! ```
//! use pervma_oracle::{Oracle, Refused};
//!
//! let mut oracle = Oracle::new(4096);
//! oracle.insert(0x1000..0x3000, 'a').unwrap();
//! assert_eq!(oracle.insert(0x2000..0x4000, 'b'), Err((Refused::Overlap(0x1000..0x3000), 'b')));
//! assert_eq!(oracle.get(0x2fff), Some((0x1000..0x3000, &'a')));
//! assert_eq!(oracle.remove(0x0..0x3000), Ok(vec![(0x1000..0x3000, 'a')]));
//! ```
#![forbid(unsafe_code)]

use std::ops::Range;

/// Why an operation changed nothing. The first that applies, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The range ends before it starts.
    Overflow,
    /// The range holds no byte.
    Empty,
    /// This end of the range is no multiple of the granularity; the start is looked at first.
    Unaligned(usize),
    /// This VMA, the first that does, has a byte in the range.
    Overlap(Range<usize>),
    /// Nothing is mapped in the range.
    NotMapped,
    /// This VMA, the first that does, has bytes both inside and outside of the range.
    PartlyCovered(Range<usize>),
}

/// Disjoint ranges of addresses with payloads.
#[derive(Clone, Debug)]
pub struct Oracle<P> {
    granularity: usize,
    /// In ascending order, disjoint.
    vmas: Vec<(Range<usize>, P)>,
}

impl<P> Oracle<P> {
    /// An empty space whose ranges are aligned to `granularity` bytes.
    #[must_use]
    pub fn new(granularity: usize) -> Self {
        Self { granularity, vmas: Vec::new() }
    }

    /// Maps `range`.
    ///
    /// # Errors
    ///
    /// See [`Refused`]; the payload comes back.
    pub fn insert(&mut self, range: Range<usize>, payload: P) -> Result<(), (Refused, P)> {
        if let Err(refused) = self.check(&range) {
            return Err((refused, payload));
        }
        if let Some((existing, _)) = self.vmas.iter().find(|(vma, _)| overlap(vma, &range)) {
            return Err((Refused::Overlap(existing.clone()), payload));
        }
        self.vmas.push((range, payload));
        self.vmas.sort_by_key(|(vma, _)| vma.start);
        Ok(())
    }

    /// Unmaps everything in `range`; what was there, in order.
    ///
    /// # Errors
    ///
    /// See [`Refused`]; nothing has changed.
    pub fn remove(&mut self, range: Range<usize>) -> Result<Vec<(Range<usize>, P)>, Refused> {
        self.check(&range)?;
        let inside = |vma: &Range<usize>| overlap(vma, &range);
        let cut =
            |vma: &Range<usize>| inside(vma) && (vma.start < range.start || range.end < vma.end);
        if let Some((vma, _)) = self.vmas.iter().find(|(vma, _)| cut(vma)) {
            return Err(Refused::PartlyCovered(vma.clone()));
        }
        let (removed, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.vmas).into_iter().partition(|(vma, _)| inside(vma));
        self.vmas = kept;
        if removed.is_empty() { Err(Refused::NotMapped) } else { Ok(removed) }
    }

    /// The VMA that holds `addr`.
    #[must_use]
    pub fn get(&self, addr: usize) -> Option<(Range<usize>, &P)> {
        let (range, payload) = self.vmas.iter().find(|(vma, _)| vma.contains(&addr))?;
        Some((range.clone(), payload))
    }

    /// All VMAs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<usize>, &P)> {
        self.vmas.iter().map(|(range, payload)| (range.clone(), payload))
    }

    fn check(&self, range: &Range<usize>) -> Result<(), Refused> {
        if range.end < range.start {
            return Err(Refused::Overflow);
        }
        if range.start == range.end {
            return Err(Refused::Empty);
        }
        match [range.start, range.end].into_iter().find(|addr| addr % self.granularity != 0) {
            Some(addr) => Err(Refused::Unaligned(addr)),
            None => Ok(()),
        }
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}
