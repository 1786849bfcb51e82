//! Which pages of a mapping are held: what keeps the bound of their region leaves them alone.
//!
//! That a page is held is a flag of its record, which the threads that give pages back look at
//! while they exclude the page. A thread that holds a page finds it present under its VMA's read
//! lock only after the flag was set: whatever excludes the page after that sees the flag.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::records::Records;

/// What is held, by whom. Whoever locks it blocks signals: their handlers could wait for a thread
/// that excludes pages and waits for it.
#[derive(Debug, Default)]
pub(crate) struct Holds(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    last: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    /// Numbers of pages.
    pages: Range<usize>,
    how: Hold,
}

/// How pages are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// They are left alone by what keeps the bound.
    AgainstEviction,
    /// They are not given back at all.
    Pinned,
}

impl Holds {
    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something while no thread begins to hold pages, or ends it.
    pub(crate) fn locked(&self, work: impl FnOnce()) {
        let _list = self.list();
        work();
    }

    /// A new one, of no pages, from that page on. Its number.
    pub(crate) fn begin(&self, first: usize, how: Hold) -> u64 {
        let mut list = self.list();
        list.last += 1;
        let number = list.last;
        list.entries.push(Entry { number, pages: first..first, how });
        number
    }

    /// Holds the pages up to `end` as well, if as many as are not held already are let be held;
    /// whether they are.
    pub(crate) fn extend(
        &self,
        number: u64,
        end: usize,
        records: &Records,
        lets: impl FnOnce(usize) -> bool,
    ) -> bool {
        let mut list = self.list();
        let Some(entry) = list.entries.iter_mut().find(|entry| entry.number == number) else {
            return false;
        };
        let more = entry.pages.end..end;
        let are_let = lets(more.clone().filter(|&page| !records.is_held(page)).count());
        if are_let {
            records.hold(more);
            entry.pages.end = end;
        }
        are_let
    }

    /// The first of some pages that are pinned.
    pub(crate) fn pinned(&self, within: &Range<usize>) -> Option<Range<usize>> {
        let list = self.list();
        let pinned = list.entries.iter().filter(|entry| entry.how == Hold::Pinned);
        let within = pinned
            .map(|Entry { pages, .. }| pages.start.max(within.start)..pages.end.min(within.end));
        within.filter(|pages| !pages.is_empty()).min_by_key(|pages| pages.start)
    }

    /// Ends one; how many pages are held no longer, by others either. Or it has ended already.
    pub(crate) fn end(&self, number: u64, records: &Records) -> usize {
        self.end_if(|entry| entry.number == number, records)
    }

    /// Ends all of a kind; how many pages are held no longer.
    pub(crate) fn end_all(&self, how: Hold, records: &Records) -> usize {
        self.end_if(|entry| entry.how == how, records)
    }

    fn end_if(&self, is_over: impl Fn(&Entry) -> bool, records: &Records) -> usize {
        let mut list = self.list();
        let mut pages = 0;
        while let Some(at) = list.entries.iter().position(&is_over) {
            let entry = list.entries.swap_remove(at);
            for run in list.held_by_none(entry.pages) {
                pages += run.len();
                records.let_go(run);
            }
        }
        pages
    }
}

impl List {
    fn held_by_none(&self, run: Range<usize>) -> Vec<Range<usize>> {
        let mut rest = vec![run];
        for Entry { pages, .. } in &self.entries {
            let outside = |run: Range<usize>| {
                let before = run.start..run.end.min(pages.start);
                let behind = run.start.max(pages.end)..run.end;
                [before, behind]
            };
            rest = rest.into_iter().flat_map(outside).filter(|run| !run.is_empty()).collect();
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_held_as_long_as_any_holds_it() {
        let (holds, records) = (Holds::default(), Records::for_test(20));
        let held = || (0..20).filter(|&page| records.is_held(page)).collect::<Vec<_>>();
        let hold = |pages: Range<usize>, expected: usize| {
            let number = holds.begin(pages.start, Hold::AgainstEviction);
            assert!(holds.extend(number, pages.end, &records, |new| new == expected));
            number
        };
        let (all, inner, outer) = (hold(2..12, 10), hold(4..6, 0), hold(10..15, 3));
        assert_eq!(holds.end(all, &records), 6);
        assert_eq!(held(), [4, 5, 10, 11, 12, 13, 14]);
        assert_eq!(holds.end(all, &records), 0, "it has ended");
        let again = hold(0..20, 13);
        assert_eq!(holds.end(inner, &records), 0);
        assert_eq!(holds.end(again, &records), 15);
        assert_eq!(held(), [10, 11, 12, 13, 14]);
        assert!(!holds.extend(outer, 17, &records, |new| new != 2), "it is not let");
        assert_eq!(holds.end(outer, &records), 5);
        assert!(held().is_empty());
    }

    #[test]
    fn what_is_pinned_is_told_apart() {
        let (holds, records) = (Holds::default(), Records::for_test(20));
        let hold = |pages: Range<usize>, how| {
            let number = holds.begin(pages.start, how);
            assert!(holds.extend(number, pages.end, &records, |_| true));
            number
        };
        hold(0..20, Hold::AgainstEviction);
        let pin = hold(5..9, Hold::Pinned);
        hold(12..13, Hold::Pinned);
        assert_eq!(holds.pinned(&(0..20)), Some(5..9));
        assert_eq!(holds.pinned(&(8..20)), Some(8..9));
        assert_eq!(holds.pinned(&(9..12)), None);
        holds.end(pin, &records);
        assert_eq!(holds.pinned(&(0..20)), Some(12..13));
        assert_eq!(holds.end_all(Hold::AgainstEviction, &records), 19);
        assert!(records.is_held(12) && !records.is_held(11));
    }
}
