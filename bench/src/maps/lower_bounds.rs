//! What a lookup costs at least: the count that keeps an entry, without finding it.
#![expect(clippy::disallowed_types, reason = "counts that no protocol uses")]

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Find, Reader};
use crate::layout::{BASE, STRIDE, Vma};

/// One count for everything, and nothing to find.
#[derive(Default)]
pub(crate) struct CountPair {
    count: AtomicU32,
}

impl Find for CountPair {
    const NAME: &'static str = "lower bound: one count pair";
    type Reader<'m> = &'m Self;

    fn of(_: &[Vma]) -> Self {
        Self::default()
    }

    #[inline(always)]
    fn with_reader<R>(&self, run: impl FnOnce(&mut &Self) -> R) -> R {
        run(&mut &*self)
    }
}

impl Reader for &CountPair {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        counted(&self.count, || visit(Some(addr as u64)))
    }
}

/// VMAs in an array, found by division.
pub(crate) struct Array(Vec<Counted>);

struct Counted {
    count: AtomicU32,
    range: Range<usize>,
    payload: u64,
}

impl Find for Array {
    const NAME: &'static str = "lower bound: array of counts";
    type Reader<'m> = &'m Self;

    fn of(vmas: &[Vma]) -> Self {
        let mut array: Vec<_> = vmas
            .iter()
            .map(|vma| Counted {
                count: AtomicU32::new(0),
                range: vma.range.clone(),
                payload: vma.payload,
            })
            .collect();
        array.sort_by_key(|vma| vma.range.start);
        Self(array)
    }

    #[inline(always)]
    fn with_reader<R>(&self, run: impl FnOnce(&mut &Self) -> R) -> R {
        run(&mut &*self)
    }
}

impl Reader for &Array {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        match self.0.get(addr.wrapping_sub(BASE) / STRIDE) {
            Some(vma) => {
                counted(&vma.count, || visit(vma.range.contains(&addr).then_some(vma.payload)))
            }
            None => visit(None),
        }
    }
}

/// A count for each VMA in memory of each thread's own: what is left to threads that share nothing.
pub(crate) struct OwnCounts {
    vmas: usize,
}

/// Processors fetch lines in pairs.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct TwoLines(AtomicU32);

impl OwnCounts {
    /// The counts of one more thread.
    pub(crate) fn counts(&self) -> Box<[TwoLines]> {
        (0..self.vmas).map(|_| TwoLines::default()).collect()
    }
}

impl Find for OwnCounts {
    const NAME: &'static str = "floor: counts of each thread's own";
    type Reader<'m> = Box<[TwoLines]>;

    fn of(vmas: &[Vma]) -> Self {
        Self { vmas: vmas.len() }
    }

    #[inline(always)]
    fn with_reader<R>(&self, run: impl FnOnce(&mut Box<[TwoLines]>) -> R) -> R {
        run(&mut self.counts())
    }
}

impl Reader for Box<[TwoLines]> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        match self.get(addr.wrapping_sub(BASE) / STRIDE) {
            Some(TwoLines(count)) => counted(count, || visit(Some(addr as u64))),
            None => visit(None),
        }
    }
}

#[inline(always)]
fn counted<R>(count: &AtomicU32, work: impl FnOnce() -> R) -> R {
    count.fetch_add(1, Ordering::Acquire);
    let result = work();
    count.fetch_sub(1, Ordering::Release);
    result
}
