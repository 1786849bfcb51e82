//! Searches for gaps.

use std::hint::black_box;
use std::ops::Range;

use pervma::GapSearch;

use crate::comparison::{Batch, Bound, Comparison, Effort, Goal};
use crate::layout::{self, BASE, Build, Layout, PAGE, STRIDE};
use crate::maps::{Find, ParkingLot, Pervma, Tree};
use crate::report::{Figures, Table, all};

const LAYOUT: Layout = Layout { vmas: 65_000 };

/// What is asked for, given where the search begins.
#[derive(Clone, Copy, Debug)]
enum Case {
    LastFromBelow,
    LastFromAbove,
    NoGap,
    Misaligned,
    /// As before, and each search follows changes elsewhere.
    MisalignedAfterChanges,
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::LastFromBelow => "last, from below",
            Self::LastFromAbove => "last, from above",
            Self::NoGap => "no gap",
            Self::Misaligned => "all misaligned",
            Self::MisalignedAfterChanges => "all misaligned, changes before",
        }
    }

    /// What it may take, in ns.
    fn limit(self) -> f64 {
        match self {
            Self::LastFromBelow | Self::LastFromAbove | Self::NoGap => 1_000.0,
            Self::Misaligned | Self::MisalignedAfterChanges => 5_000.0,
        }
    }

    /// The number is of the VMA at which the search begins.
    fn search(self, number: usize) -> GapSearch {
        // More than a hole between two VMAs has.
        let large = GapSearch::new(STRIDE);
        let (at, before, end) = (layout::vma(number).start, BASE - STRIDE, LAYOUT.end());
        match self {
            Self::LastFromBelow => large.within(at..end + STRIDE),
            Self::LastFromAbove => large.within(before..at).top_down(),
            Self::NoGap => large.within(at..end),
            Self::Misaligned | Self::MisalignedAfterChanges => {
                GapSearch::new(PAGE).aligned(STRIDE).within(at..end)
            }
        }
    }
}

pub(crate) fn measure(effort: &Effort) -> Figures {
    let mut times = Table::new("search", "ns");
    let mut goals = Vec::new();
    let vmas = LAYOUT.build(Build::Random);
    let (space, tree) = (<Pervma>::of(&vmas).0, ParkingLot::of(&vmas).0);
    for case in [
        Case::LastFromBelow,
        Case::LastFromAbove,
        Case::NoGap,
        Case::Misaligned,
        Case::MisalignedAfterChanges,
    ] {
        let mut comparison = Comparison::new();
        let (mut batch, space) = (Batch::new(effort), &space);
        comparison.add(<Pervma>::NAME, move |numbers: &Vec<usize>| {
            if let Case::MisalignedAfterChanges = case {
                return vec![batch.time(numbers, |&number| {
                    let edit = space.edit();
                    assert!(edit.is_ok(), "this thread holds nothing");
                    let Ok(mut edit) = edit else { return };
                    let guest = layout::guest(LAYOUT.vmas - number);
                    let changed = edit.insert(guest.range.clone(), guest.payload);
                    assert!(changed.is_ok(), "a hole is free");
                    assert!(edit.remove(guest.range).is_ok(), "what is mapped can be removed");
                    let found = black_box(edit.find_gap(&case.search(number)));
                    debug_assert!(found.is_err());
                })];
            }
            let view = space.view();
            assert!(view.is_ok(), "this thread holds nothing");
            let Ok(view) = view else { return vec![f64::NAN] };
            vec![batch.time(numbers, |&number| {
                let found = black_box(view.find_gap(&case.search(number)));
                let exists = matches!(case, Case::LastFromBelow | Case::LastFromAbove);
                debug_assert_eq!(found.is_ok(), exists);
            })]
        });
        if let Case::LastFromBelow = case {
            let (mut batch, tree) = (Batch::new(effort), &tree);
            comparison.add("BTreeMap, from hole to hole", move |numbers: &Vec<usize>| {
                let tree = tree.read();
                vec![batch.time(numbers, |&number| {
                    let within = layout::vma(number).start..LAYOUT.end() + STRIDE;
                    let found = black_box(linear(&tree, STRIDE, within));
                    debug_assert!(found.is_some());
                })]
            });
        }
        let title = format!("gap search, {}", case.name());
        let outcome = comparison.run(&title, effort.rounds, |random| {
            layout::numbers(random, effort.batch, 1..LAYOUT.vmas)
        });
        times.case(case.name(), all(&outcome, 0));
        goals.extend(Goal::summary(
            format!("{}: pervma, ns", case.name()),
            Bound::AtMost(case.limit()),
            &outcome,
            (<Pervma>::NAME, 0),
        ));
    }
    let about = "Searches among 65,000 VMAs that begin at a random one, in a view: the only gap large \
                 enough lies at the far end; there is none; all holes are large enough, but none of them \
                 holds an aligned place; and the same in an edit that has just inserted a page into a hole and \
                 removed it again, which the time includes.";
    (about, vec![times], goals)
}

/// The lowest free range of `size` bytes in `within`, whose start is mapped.
fn linear(tree: &Tree, size: usize, within: Range<usize>) -> Option<Range<usize>> {
    let mut free = within.start;
    for (start, entry) in tree.starting_in(within.clone()) {
        if start - free >= size {
            return Some(free..free + size);
        }
        free = entry.end;
    }
    (within.end - free >= size).then(|| free..free + size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_searches_find_the_same_gap() {
        let layout = Layout { vmas: 50 };
        let vmas = layout.build(Build::Random);
        let (space, tree) = (<Pervma>::of(&vmas).0, ParkingLot::of(&vmas).0);
        for size in [PAGE, 4 * PAGE, 5 * PAGE, STRIDE, 2 * STRIDE] {
            for number in [0, 1, 20, 49] {
                let within = layout::vma(number).start..layout.end() + STRIDE;
                let search = GapSearch::new(size).within(within.clone());
                let found = space.view().unwrap().find_gap(&search).ok();
                assert_eq!(found, linear(&tree.read(), size, within), "{size} from {number}");
            }
        }
    }

    #[test]
    fn the_cases_are_what_they_say() {
        let space = <Pervma>::of(&LAYOUT.build(Build::Ascending)).0;
        let find = |case: Case| space.view().unwrap().find_gap(&case.search(7)).ok();
        let last = LAYOUT.end() - 4 * PAGE;
        assert_eq!(find(Case::LastFromBelow), Some(last..last + STRIDE));
        assert_eq!(find(Case::LastFromAbove), Some(BASE - STRIDE..BASE));
        assert_eq!(find(Case::NoGap), None);
        assert_eq!(find(Case::Misaligned), None);
    }
}
