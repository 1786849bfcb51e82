//! Ranges in a `BTreeMap`, for the implementations that lock or copy one.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::layout::Vma;

/// The range that starts at a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) end: usize,
    pub(crate) payload: u64,
}

impl Entry {
    /// The payload, if the range reaches beyond `addr`.
    #[inline(always)]
    pub(crate) fn at(&self, addr: usize) -> Option<u64> {
        (addr < self.end).then_some(self.payload)
    }

    /// Returns whether what starts at `start` with `payload` continues it.
    pub(crate) fn continues_with(&self, start: usize, payload: u64) -> bool {
        self.end == start && self.payload == payload
    }
}

/// How an entry is stored.
pub(crate) trait Cell {
    fn new(entry: Entry) -> Self;
    fn get(&self) -> Entry;
    fn set(&mut self, entry: Entry);

    /// Is called when it is out of the tree.
    fn retire(self);
}

impl Cell for Entry {
    fn new(entry: Entry) -> Self {
        entry
    }

    fn get(&self) -> Entry {
        *self
    }

    fn set(&mut self, entry: Entry) {
        *self = entry;
    }

    fn retire(self) {}
}

/// Entries by the start of their ranges.
#[derive(Clone, Debug)]
pub(crate) struct Tree<C = Entry>(BTreeMap<usize, C>);

impl<C> Default for Tree<C> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<C: Cell> Tree<C> {
    /// The last entry that starts at or below `addr`.
    #[inline(always)]
    pub(crate) fn floor(&self, addr: usize) -> Option<&C> {
        self.0.range(..=addr).next_back().map(|(_, cell)| cell)
    }

    /// Those that start in `range`, upwards.
    pub(crate) fn starting_in(&self, range: Range<usize>) -> impl Iterator<Item = (usize, &C)> {
        self.0.range(range).map(|(&start, cell)| (start, cell))
    }

    pub(crate) fn insert(&mut self, Vma { range, payload }: Vma) {
        let below = self.floor(range.end - 1);
        assert!(below.is_none_or(|below| below.get().end <= range.start), "the range is free");
        self.0.insert(range.start, C::new(Entry { end: range.end, payload }));
    }

    pub(crate) fn remove(&mut self, start: usize) -> C {
        match self.0.remove(&start) {
            Some(removed) => removed,
            None => unreachable!("what is removed is mapped"),
        }
    }

    /// See [`Relocate::relocate`](super::Relocate::relocate).
    pub(crate) fn relocate(&mut self, range: Range<usize>, to: usize) {
        let payload = self.remove(range.start).get().payload;
        let (mut start, mut end) = (to, to + range.len());
        let below = self.0.range(..end).next_back().map(|(&start, cell)| (start, cell.get()));
        if let Some((below, entry)) = below {
            assert!(entry.end <= to, "the range is free");
            if entry.continues_with(to, payload) {
                start = below;
            }
        }
        let right = self.0.get(&end).map(Cell::get).filter(|right| right.payload == payload);
        if let Some(right) = right {
            self.remove(end).retire();
            end = right.end;
        }
        self.0.insert(start, C::new(Entry { end, payload }));
    }

    /// Those that start in `range`, taken out.
    pub(crate) fn split_out(&mut self, range: Range<usize>) -> Self {
        let mut removed = self.0.split_off(&range.start);
        let mut above = removed.split_off(&range.end);
        self.0.append(&mut above);
        Self(removed)
    }

    /// See [`Map::update`](super::Map::update). One walk finds all that is concerned, down from the
    /// right neighbour.
    pub(crate) fn update(&mut self, range: Range<usize>, payload: u64) {
        let mut down = self.0.range_mut(..=range.end).rev().peekable();
        let right = down.next_if(|(start, _)| **start == range.end).map(|(_, cell)| cell.get());
        let Some((&start, cell)) = down.next() else { unreachable!("what is changed is mapped") };
        let left = if start == range.start { down.next() } else { None };
        let left =
            left.map(|(_, cell)| cell).filter(|cell| cell.get().continues_with(start, payload));

        let before = cell.get();
        let right = right.filter(|right| before.end == range.end && right.payload == payload);
        let (merges_left, merges_right) = (left.is_some(), right.is_some());
        let changed = Entry { end: right.map_or(range.end, |right| right.end), payload };
        match left {
            Some(left) => left.set(changed),
            None if start == range.start => cell.set(changed),
            None => cell.set(Entry { end: range.start, ..before }),
        }
        if merges_left {
            self.remove(start).retire();
        } else if start < range.start {
            self.0.insert(range.start, C::new(changed));
        }
        if merges_right {
            self.remove(range.end).retire();
        } else if range.end < before.end {
            self.0.insert(range.end, C::new(before));
        }
    }
}
