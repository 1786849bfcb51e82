//! Concurrent ordered maps. They change one key at a time: writers look before they change, so they
//! take turns, and readers may see a range half changed.

use std::ops::{Bound, Range};

use crossbeam_skiplist::SkipMap;
use parking_lot::Mutex;
use scc::tree_index::Proximity;
use scc::{Guard, TreeIndex};

use super::tree::Entry;
use super::{Find, Map, Reader};
use crate::layout::Vma;

/// The concurrent ordered map of another crate, from the starts of ranges.
pub(crate) trait Ordered: Default + Send + Sync {
    const NAME: &'static str;

    /// Shows the last entry that starts at or below `addr`, while its memory is kept.
    fn floor<R>(&self, addr: usize, visit: impl FnOnce(Option<(usize, &Entry)>) -> R) -> R;

    /// Inserts an entry, or replaces the one with the same start.
    fn set(&self, start: usize, entry: Entry);

    fn take(&self, start: usize);
}

impl Ordered for SkipMap<usize, Entry> {
    const NAME: &'static str = "crossbeam SkipMap (memory only)";

    #[inline(always)]
    fn floor<R>(&self, addr: usize, visit: impl FnOnce(Option<(usize, &Entry)>) -> R) -> R {
        let found = self.upper_bound(Bound::Included(&addr));
        visit(found.as_ref().map(|entry| (*entry.key(), entry.value())))
    }

    fn set(&self, start: usize, entry: Entry) {
        self.insert(start, entry);
    }

    fn take(&self, start: usize) {
        self.remove(&start);
    }
}

impl Ordered for TreeIndex<usize, Entry> {
    const NAME: &'static str = "scc TreeIndex (memory only)";

    #[inline(always)]
    fn floor<R>(&self, addr: usize, visit: impl FnOnce(Option<(usize, &Entry)>) -> R) -> R {
        let guard = Guard::new();
        // Faster than `range(..=addr)` from its end, which is linear above the last key.
        let found = match self.locate(&addr, &guard) {
            Proximity::Exact(at) | Proximity::Between(at) => at.get(),
            Proximity::Smaller(at) => at.get_back(),
            Proximity::Larger(_) | Proximity::Empty => None,
        };
        visit(found.map(|(start, entry)| (*start, entry)))
    }

    fn set(&self, start: usize, entry: Entry) {
        self.upsert_sync(start, entry);
    }

    fn take(&self, start: usize) {
        self.remove_sync(&start);
    }
}

#[derive(Default)]
pub(crate) struct Unlocked<O> {
    map: O,
    writers: Mutex<()>,
}

pub(crate) type Skiplist = Unlocked<SkipMap<usize, Entry>>;
pub(crate) type SccTree = Unlocked<TreeIndex<usize, Entry>>;

impl<O: Ordered + 'static> Find for Unlocked<O> {
    const NAME: &'static str = O::NAME;
    type Reader<'m> = &'m Self;

    fn of(vmas: &[Vma]) -> Self {
        let map = Self::default();
        vmas.iter().for_each(|vma| map.insert(vma.clone()));
        map
    }

    #[inline(always)]
    fn with_reader<R>(&self, run: impl FnOnce(&mut &Self) -> R) -> R {
        run(&mut &*self)
    }
}

impl<O: Ordered> Reader for &Unlocked<O> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        self.map.floor(addr, |found| visit(found.and_then(|(_, entry)| entry.at(addr))))
    }
}

impl<O: Ordered> Unlocked<O> {
    fn last(&self, addr: usize) -> Option<(usize, Entry)> {
        self.map.floor(addr, |found| found.map(|(start, entry)| (start, *entry)))
    }
}

impl<O: Ordered + 'static> Map for Unlocked<O> {
    fn insert(&self, Vma { range, payload }: Vma) {
        let _turn = self.writers.lock();
        let below = self.last(range.end - 1);
        assert!(below.is_none_or(|(_, below)| below.end <= range.start), "the range is free");
        self.map.set(range.start, Entry { end: range.end, payload });
    }

    fn remove(&self, range: Range<usize>) {
        let _turn = self.writers.lock();
        self.map.take(range.start);
    }

    fn update(&self, range: Range<usize>, payload: u64) {
        let _turn = self.writers.lock();
        let Some((start, before)) = self.last(range.start) else {
            unreachable!("what is changed is mapped")
        };
        let mut changed = Vma { range: range.clone(), payload };
        if range.end < before.end {
            self.map.set(range.end, before);
        } else if let Some((right, entry)) = self.last(range.end)
            && right == range.end
            && entry.payload == payload
        {
            changed.range.end = entry.end;
            self.map.take(right);
        }
        if start < range.start {
            self.map.set(start, Entry { end: range.start, ..before });
        } else if let Some((left, entry)) = start.checked_sub(1).and_then(|below| self.last(below))
            && entry.continues_with(start, payload)
        {
            changed.range.start = left;
            self.map.take(start);
        }
        self.map.set(changed.range.start, Entry { end: changed.range.end, payload });
    }
}
