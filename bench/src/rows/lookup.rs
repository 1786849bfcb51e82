//! Find, lock and unlock.

use std::hint::black_box;

use super::Figures;
use crate::contest::{Batch, Bound, Contest, Effort, Goal};
use crate::layout::{self, Build, Layout};
use crate::peers::{Array, CountPair, Find, ParkingLot, Pervma, Reader, each_map};
use crate::report::{Table, all, over};

/// VMAs, and what pervma may take of parking_lot's time.
const SIZES: [(usize, f64); 3] = [(16, 0.6), (1_000, 0.5), (65_000, 0.7)];

pub(crate) fn measure(effort: &Effort) -> Figures {
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for (build, built) in
        [(Build::Ascending, "built in order"), (Build::Random, "built by random insertion")]
    {
        let mut times = Table::new(format!("VMAs, {built}"), "ns");
        let mut ratios =
            Table::new(format!("VMAs, {built}: time over {}'s", ParkingLot::NAME), "ratio");
        for (size, limit) in SIZES {
            let layout = Layout { vmas: size };
            let vmas = layout.build(build);
            let mut contest = Contest::new();
            each_map!(M => contest.enter(M::NAME, lookups(M::of(&vmas), effort)));
            contest.enter(Array::NAME, lookups(Array::of(&vmas), effort));
            contest.enter(CountPair::NAME, lookups(CountPair::of(&vmas), effort));
            let outcome =
                contest.run(&format!("lookup, {size} {built}"), effort.rounds, |random| {
                    layout::addresses(random, effort.batch, 0..size, layout::vma)
                });
            times.point(size, all(&outcome, 0));
            ratios.point(size, over(&outcome, 0, ParkingLot::NAME));
            let what = format!("{size} VMAs, {built}: pervma over {}", ParkingLot::NAME);
            goals.extend(
                outcome
                    .ratio((<Pervma>::NAME, 0), (ParkingLot::NAME, 0))
                    .map(|ratio| Goal::new(what, Bound::AtMost(limit), ratio)),
            );
        }
        tables.extend([times, ratios]);
    }
    let about = "Find the range that holds a random mapped address, keep it, read its payload, let \
                 go. One thread; new addresses in each round, the same for all.";
    (about, tables, goals)
}

/// A turn that looks all addresses up.
pub(crate) fn lookups<F: Find>(map: F, effort: &Effort) -> impl FnMut(&Vec<usize>) -> Vec<f64> {
    let mut batch = Batch::new(effort);
    move |addresses| {
        let mut reader = map.reader();
        vec![batch.time(addresses, |&addr| {
            black_box(reader.read(addr));
        })]
    }
}
