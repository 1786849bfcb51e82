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
    holds: Vec<Hold>,
}

#[derive(Debug)]
struct Hold {
    number: u64,
    /// Numbers of pages.
    pages: Range<usize>,
}

impl Holds {
    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new one, of no pages, from that page on. Its number.
    pub(crate) fn begin(&self, first: usize) -> u64 {
        let mut list = self.list();
        list.last += 1;
        let number = list.last;
        list.holds.push(Hold { number, pages: first..first });
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
        let Some(hold) = list.holds.iter_mut().find(|hold| hold.number == number) else {
            return false;
        };
        let more = hold.pages.end..end;
        let are_let = lets(more.clone().filter(|&page| !records.is_held(page)).count());
        if are_let {
            records.hold(more);
            hold.pages.end = end;
        }
        are_let
    }

    /// Ends one; how many pages are held no longer, by others either.
    pub(crate) fn end(&self, number: u64, records: &Records) -> usize {
        let mut list = self.list();
        let Some(at) = list.holds.iter().position(|hold| hold.number == number) else {
            return 0;
        };
        let hold = list.holds.swap_remove(at);
        let let_go = list.held_by_none(hold.pages);
        let_go
            .into_iter()
            .map(|run| {
                records.let_go(run.clone());
                run.len()
            })
            .sum()
    }
}

impl List {
    fn held_by_none(&self, run: Range<usize>) -> Vec<Range<usize>> {
        let mut rest = vec![run];
        for hold in &self.holds {
            let outside = |run: Range<usize>| {
                let before = run.start..run.end.min(hold.pages.start);
                let behind = run.start.max(hold.pages.end)..run.end;
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
        let (holds, records) = (Holds::default(), Records::new(20).unwrap());
        let held = || (0..20).filter(|&page| records.is_held(page)).collect::<Vec<_>>();
        let hold = |pages: Range<usize>, expected: usize| {
            let number = holds.begin(pages.start);
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
}
