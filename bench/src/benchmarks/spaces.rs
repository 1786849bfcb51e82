//! Threads that edit at the same time, each in a space of its own.

use std::sync::Arc;

use pervma::{AddressSpace, Slab};

use super::edits::Pair;
use super::pace::{Paced, pace, pace_of, throughput};
use crate::comparison::{Bound, Comparison, Effort, Goal};
use crate::layout::{self, Build, Layout, PAGE};
use crate::maps::{Find, Map, OwnCounts, ParkingLot, Pervma};
use crate::report::{Figures, Table, all, gains, growth};

const VMAS: usize = 1_000;

/// Pairs between two looks at the clock.
const STRETCH: usize = 64;

/// Places of an editor, gone through again and again.
const PLACES: usize = 4_096;

const ONE_SLAB: &str = "pervma, both on one slab";

/// What two threads gain over one, over what they do where they share nothing.
const GOAL: f64 = 0.95;

/// The measures of a turn.
const ONE: usize = 0;
const TWO: usize = 1;

pub(crate) fn measure(effort: &Effort) -> Figures {
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for pair in [Pair::InsertRemove, Pair::SplitMerge] {
        let name = pair.name();
        let vmas = Layout { vmas: VMAS }.build(Build::Random);
        let slab = Arc::new(Slab::new());
        let sharing = || {
            let space = AddressSpace::new_in(PAGE, Arc::clone(&slab));
            let map = <Pervma>::around(space);
            vmas.iter().for_each(|vma| map.insert(vma.clone()));
            map
        };
        let own = || <Pervma>::of(&vmas);
        let locked = || ParkingLot::of(&vmas);
        let counts = || -> Paced<'_> {
            let mut counts = OwnCounts::of(&vmas).counts();
            Box::new(move |numbers, span| {
                let addresses: Vec<_> =
                    numbers.iter().map(|&number| layout::vma(number).start).collect();
                pace(&mut counts, &addresses, STRETCH, span)
            })
        };
        let span = effort.span;
        let mut comparison = Comparison::new();
        comparison
            .add(<Pervma>::NAME, throughput([own(), own()].map(|map| editor(map, pair)), span));
        comparison
            .add(ONE_SLAB, throughput([sharing(), sharing()].map(|map| editor(map, pair)), span));
        comparison.add(
            ParkingLot::NAME,
            throughput([locked(), locked()].map(|map| editor(map, pair)), span),
        );
        comparison.add(OwnCounts::NAME, throughput([counts(), counts()], span));
        let outcome = comparison.run(&format!("spaces, {name}"), effort.rounds, |random| {
            [(); 2].map(|()| layout::numbers(random, PLACES, 0..VMAS))
        });
        let mut rates =
            Table::new(format!("{name}, each thread in its own space"), "pairs per µs, together");
        rates.case("1 thread", all(&outcome, ONE));
        rates.case("2 threads", all(&outcome, TWO));
        let mut ratios = Table::new(format!("{name}: two threads over one"), "ratio");
        ratios.case("throughput", growth(&outcome, TWO, ONE));
        ratios.case("over the floor's", gains(&outcome, (ONE, TWO), OwnCounts::NAME));
        tables.extend([rates, ratios]);
        goals.extend(Goal::gain_over(
            format!(
                "{name}, 2 spaces with slabs of their own: throughput over one's, over the floor's"
            ),
            Bound::AtLeast(GOAL),
            &outcome,
            (<Pervma>::NAME, OwnCounts::NAME),
            (ONE, TWO),
        ));
    }
    let about = "Pairs of changes as in the benchmark of edits, by one thread, and by two, each in a space of its own of \
                 1,000 VMAs: with slabs of their own, on one slab, or maps under locks of their own. They start at a \
                 barrier, run for 20 ms that do not count and for 60 ms that do; for 3 ms and 9 ms with --quick. The \
                 floor is what the machine leaves to threads that share nothing: each counts in memory of its own.";
    (about, tables, goals)
}

fn editor<'a>(map: impl Map, pair: Pair) -> Paced<'a> {
    Box::new(move |numbers, span| pace_of(numbers, STRETCH, span, |&number| pair.run(&map, number)))
}
