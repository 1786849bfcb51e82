//! Insert and remove; change a page and change it back.

use crate::comparison::{Batch, Bound, Comparison, Effort, Goal};
use crate::layout::{self, Build, Layout};
use crate::maps::{Find, Map, ParkingLot, Pervma, PervmaOutside, StdLock, each_map};
use crate::report::{Figures, Table, all, over};

const SIZES: [usize; 3] = [16, 1_000, 65_000];

/// What is done, and what it may take at 1,000 VMAs, in ns.
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

    fn limit(self) -> f64 {
        match self {
            Self::InsertRemove => 150.0,
            Self::SplitMerge => 250.0,
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
        for size in SIZES {
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
                    Bound::AtMost(1.0),
                    &outcome,
                    (<Pervma>::NAME, 0),
                    (lock, 0),
                ));
            }
        }
        tables.extend([times, ratios]);
    }
    let about = "Pairs of changes at random places, which leave the map as it was: a page is inserted \
                 into a hole and removed; the second page of a VMA of four is given another payload, \
                 which makes three VMAs, and its own again, which merges them. Each change is an edit of \
                 its own. Baselines look for overlaps before they insert, and do the same work. SkipMap and \
                 TreeIndex cannot change several entries at once: readers may see a range half changed, \
                 and their writers take turns by a mutex.";
    (about, tables, goals)
}

fn pairs<M: Map>(map: M, pair: Pair, effort: &Effort) -> impl FnMut(&Vec<usize>) -> Vec<f64> {
    let mut batch = Batch::new(effort);
    move |numbers| vec![batch.time(numbers, |&number| pair.run(&map, number))]
}
