//! Find, lock and unlock.

use std::hint::black_box;

use super::Figures;
use crate::contest::{Batch, Bound, Contest, Effort, Goal};
use crate::layout::{self, Build, Layout};
use crate::peers::{
    Array, CountPair, CursorOfReader, Fences, Find, ParkingLot, Pervma, PervmaCursor,
    PervmaRegistered, Reader, each_map,
};
use crate::report::{Table, all, over};

/// VMAs, and what pervma may take of parking_lot's time: readers that count, and registered ones.
const SIZES: [(usize, f64, f64); 3] = [(16, 0.6, 0.5), (1_000, 0.5, 0.45), (65_000, 0.7, 0.65)];

/// What a registered reader's cursor may take of parking_lot's time.
const REGISTERED_CURSOR_LIMIT: f64 = 0.4;

/// What a cursor may take of the count pair's time.
const CURSOR_LIMIT: f64 = 1.2;

/// Nearby addresses: so many in a VMA, then as many in the next.
const NEARBY: usize = 64;

pub(crate) fn random(effort: &Effort) -> Figures {
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for (build, built) in
        [(Build::Ascending, "built in order"), (Build::Random, "built by random insertion")]
    {
        let mut times = Table::new(format!("VMAs, {built}"), "ns");
        let mut ratios =
            Table::new(format!("VMAs, {built}: time over {}'s", ParkingLot::NAME), "ratio");
        for (size, limit, registered_limit) in SIZES {
            let vmas = Layout { vmas: size }.build(build);
            let mut contest = Contest::new();
            each_map!(M => contest.enter(M::NAME, lookups(M::of(&vmas), effort)));
            type Registered = PervmaRegistered;
            type Fenced = PervmaRegistered<Fences>;
            contest.enter(Registered::NAME, lookups(Registered::of(&vmas), effort));
            contest.enter(Fenced::NAME, lookups(Fenced::of(&vmas), effort));
            contest.enter(Array::NAME, lookups(Array::of(&vmas), effort));
            contest.enter(CountPair::NAME, lookups(CountPair::of(&vmas), effort));
            let title = format!("lookup, {size} VMAs, {built}");
            let outcome = contest.run(&title, effort.rounds, |random| {
                layout::addresses(random, 2 * effort.batch, 0..size, layout::vma)
            });
            times.point(size, all(&outcome, 0));
            ratios.point(size, over(&outcome, 0, ParkingLot::NAME));
            for (who, limit) in [(<Pervma>::NAME, limit), (Registered::NAME, registered_limit)] {
                goals.extend(Goal::ratio(
                    format!("{size} VMAs, {built}: {who} over {}", ParkingLot::NAME),
                    Bound::AtMost(limit),
                    &outcome,
                    (who, 0),
                    (ParkingLot::NAME, 0),
                ));
            }
        }
        tables.extend([times, ratios]);
    }
    let about = "Find the range that holds a random mapped address, keep it, read its payload, let \
                 go. One thread; new addresses in each round, the same for all; a first half of them \
                 is not timed, so that caches hold the contestant's own.";
    (about, tables, goals)
}

pub(crate) fn cursor(effort: &Effort) -> Figures {
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for (kind, run_length) in [("the same VMA", usize::MAX), ("nearby addresses", NEARBY)] {
        let mut times = Table::new(format!("VMAs, {kind}"), "ns");
        for (size, ..) in SIZES {
            let vmas = Layout { vmas: size }.build(Build::Random);
            let mut contest = Contest::new();
            contest.enter(PervmaCursor::NAME, lookups(PervmaCursor::of(&vmas), effort));
            type Registered = Pervma<CursorOfReader>;
            type Fenced = Pervma<CursorOfReader, Fences>;
            contest.enter(Registered::NAME, lookups(Registered::of(&vmas), effort));
            contest.enter(Fenced::NAME, lookups(Fenced::of(&vmas), effort));
            contest.enter(<Pervma>::NAME, lookups(<Pervma>::of(&vmas), effort));
            contest.enter(ParkingLot::NAME, lookups(ParkingLot::of(&vmas), effort));
            contest.enter(CountPair::NAME, lookups(CountPair::of(&vmas), effort));
            let outcome =
                contest.run(&format!("cursor, {size} VMAs, {kind}"), effort.rounds, |random| {
                    let first = layout::numbers(random, 1, 0..size)[0];
                    let runs = (0..2 * effort.batch).step_by(run_length.min(2 * effort.batch));
                    let addresses = runs.enumerate().flat_map(|(run, from)| {
                        let number = (first + run) % size;
                        let count = run_length.min(2 * effort.batch - from);
                        layout::addresses(random, count, number..number + 1, layout::vma)
                    });
                    addresses.collect()
                });
            times.point(size, all(&outcome, 0));
            goals.extend(Goal::ratio(
                format!("{size} VMAs, {kind}: a cursor over one count pair"),
                Bound::AtMost(CURSOR_LIMIT),
                &outcome,
                (PervmaCursor::NAME, 0),
                (CountPair::NAME, 0),
            ));
            goals.extend(Goal::ratio(
                format!("{size} VMAs, {kind}: {} over {}", Registered::NAME, ParkingLot::NAME),
                Bound::AtMost(REGISTERED_CURSOR_LIMIT),
                &outcome,
                (Registered::NAME, 0),
                (ParkingLot::NAME, 0),
            ));
        }
        tables.push(times);
    }
    let about = "Lookups by a cursor: at random addresses of one VMA, and of 64 in a VMA before it \
                 goes on to the next. One thread.";
    (about, tables, goals)
}

/// A turn that looks all addresses up, and times the second half.
fn lookups<F: Find>(map: F, effort: &Effort) -> impl FnMut(&Vec<usize>) -> Vec<f64> {
    let mut batch = Batch::new(effort);
    move |addresses| {
        let (warm_up, timed) = addresses.split_at(addresses.len() / 2);
        map.with_reader(|reader| {
            for &addr in warm_up {
                black_box(reader.read(addr));
            }
            vec![batch.time(timed, |&addr| {
                black_box(reader.read(addr));
            })]
        })
    }
}
