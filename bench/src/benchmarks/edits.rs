//! Insert and remove; change a page and change it back.

use crate::comparison::{Batch, Bound, Comparison, Effort, Goal};
use crate::layout::{self, Build, Layout};
use crate::maps::{Find, Map, ParkingLot, Pervma, PervmaOutside, Relocate, StdLock, each_map};
use crate::report::{Figures, Table, all, over};

const SIZES: [usize; 3] = [16, 1_000, 65_000];

/// What is done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pair {
    InsertRemove,
    SplitMerge,
}

impl Pair {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::InsertRemove => "insert + remove",
            Self::SplitMerge => "split + merge",
        }
    }

    /// What it may take at 1,000 VMAs, in ns.
    fn limit(self) -> f64 {
        match self {
            Self::InsertRemove => 150.0,
            Self::SplitMerge => 250.0,
        }
    }

    /// What it may take of the best map's time, at each of the sizes.
    fn limits(self) -> [f64; 3] {
        match self {
            Self::InsertRemove => [1.0, 0.9, 0.7],
            Self::SplitMerge => [1.3, 1.0, 0.9],
        }
    }

    pub(super) fn run(self, map: &impl Map, number: usize) {
        match self {
            Self::InsertRemove => {
                let guest = layout::guest(number);
                map.insert(guest.clone());
                map.remove(guest.range);
            }
            Self::SplitMerge => {
                map.update(layout::middle(number), u64::MAX);
                map.update(layout::middle(number), number as u64);
            }
        }
    }
}

pub(crate) fn measure(effort: &Effort) -> Figures {
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for pair in [Pair::InsertRemove, Pair::SplitMerge] {
        let name = pair.name();
        let mut times = Table::new(format!("VMAs, {name}"), "ns a pair");
        let mut ratios =
            Table::new(format!("VMAs, {name}: time over {}'s", ParkingLot::NAME), "ratio");
        for (size, limit) in SIZES.into_iter().zip(pair.limits()) {
            let vmas = Layout { vmas: size }.build(Build::Random);
            let mut comparison = Comparison::new();
            each_map!(M => comparison.add(M::NAME, pairs(M::of(&vmas), pair, effort)));
            comparison.add(PervmaOutside::NAME, pairs(PervmaOutside::of(&vmas), pair, effort));
            let title = format!("edits, {size} VMAs, {name}");
            let outcome = comparison.run(&title, effort.rounds, |random| {
                layout::numbers(random, effort.batch, 0..size)
            });
            times.point(size, all(&outcome, 0));
            ratios.point(size, over(&outcome, 0, ParkingLot::NAME));
            if size == 1_000 {
                goals.extend(Goal::summary(
                    format!("{size} VMAs, {name}: pervma, ns"),
                    Bound::AtMost(pair.limit()),
                    &outcome,
                    (<Pervma>::NAME, 0),
                ));
            }
            for lock in [ParkingLot::NAME, StdLock::NAME] {
                goals.extend(Goal::ratio(
                    format!("{size} VMAs, {name}: pervma over {lock}"),
                    Bound::AtMost(limit),
                    &outcome,
                    (<Pervma>::NAME, 0),
                    (lock, 0),
                ));
            }
        }
        tables.extend([times, ratios]);
    }
    tables.push(relocations(effort));
    let about = "Pairs of changes at random places, which leave the map as it was: a page is inserted \
                 into a hole and removed; the second page of a VMA of four is given another payload, \
                 which makes three VMAs, and its own again, which merges them. Each change is an edit of \
                 its own. Baselines look for overlaps before they insert, and do the same work. SkipMap and \
                 TreeIndex cannot change several entries at once: readers may see a range half changed, \
                 and their writers take turns by a mutex. What is relocated is a VMA, to the hole behind it and back; \
                 maps without that operation have no figure.";
    (about, tables, goals)
}

/// A VMA is moved to the hole behind it, and back.
fn relocations(effort: &Effort) -> Table {
    let mut times = Table::new("VMAs, relocate + back", "ns a pair");
    for size in SIZES {
        let vmas = Layout { vmas: size }.build(Build::Random);
        let mut comparison = Comparison::new();
        comparison.add(<Pervma>::NAME, relocates(<Pervma>::of(&vmas), effort));
        comparison.add(PervmaOutside::NAME, relocates(PervmaOutside::of(&vmas), effort));
        comparison.add(ParkingLot::NAME, relocates(ParkingLot::of(&vmas), effort));
        comparison.add(StdLock::NAME, relocates(StdLock::of(&vmas), effort));
        let title = format!("edits, {size} VMAs, relocate");
        let outcome = comparison
            .run(&title, effort.rounds, |random| layout::numbers(random, effort.batch, 0..size));
        times.point(size, all(&outcome, 0));
    }
    times
}

fn relocates<M: Relocate>(map: M, effort: &Effort) -> impl FnMut(&Vec<usize>) -> Vec<f64> {
    let mut batch = Batch::new(effort);
    move |numbers| {
        let pair = |&number: &usize| {
            let (here, there) = (layout::vma(number), layout::hole(number));
            map.relocate(here.clone(), there.start);
            map.relocate(there, here.start);
        };
        vec![batch.time(numbers, pair)]
    }
}

fn pairs<M: Map>(map: M, pair: Pair, effort: &Effort) -> impl FnMut(&Vec<usize>) -> Vec<f64> {
    let mut batch = Batch::new(effort);
    move |numbers| vec![batch.time(numbers, |&number| pair.run(&map, number))]
}
