//! Find, lock and unlock.

use std::cell::RefCell;
use std::hint::black_box;

use crate::comparison::{Batch, Bound, Comparison, Effort, Goal};
use crate::layout::{self, Build, Layout};
use crate::maps::{
    Array, CountPair, CursorOfReader, Fences, Find, ParkingLot, Pervma, PervmaCursor,
    PervmaRegistered, Reader, each_map,
};
use crate::report::{Figures, Table, all, over};

/// So many VMAs, and what pervma may take of parking_lot's time.
struct Size {
    vmas: usize,
    warm: Limits,
    /// After other work has had the caches.
    cold: Option<Limits>,
}

/// What readers that count may take, and registered ones.
type Limits = [f64; 2];

const SIZES: [Size; 3] = [
    Size { vmas: 16, warm: [0.55, 0.5], cold: None },
    Size { vmas: 1_000, warm: [0.38, 0.45], cold: Some([0.45, 0.45]) },
    Size { vmas: 65_000, warm: [0.5, 0.5], cold: Some([0.95, 0.85]) },
];

/// What a registered reader's cursor may take of parking_lot's time.
const REGISTERED_CURSOR_LIMIT: f64 = 0.4;

/// What a cursor may take of the count pair's time.
const CURSOR_LIMIT: f64 = 1.2;

/// Nearby addresses: so many in a VMA, then as many in the next.
const NEARBY: usize = 64;

/// The measures of a turn: once caches hold what the implementation uses, and after other work.
const WARM: usize = 0;
const COLD: usize = 1;

/// How often each VMA is met on average before lookups at random addresses are timed again.
const VISITS: usize = 4;

/// Words of 16 MiB, of which other work changes one in each line: more than a processor's own
/// caches hold.
const OTHER_WORK: usize = 1 << 21;

/// Words of a line.
const LINE: usize = 8;

/// Memory in which other work is done.
type OtherWork = RefCell<Vec<u64>>;

/// Addresses of a round: those that are timed first, after other work, those that are not timed,
/// and those that are timed then.
struct Input {
    cold: Vec<usize>,
    warm_up: Vec<usize>,
    warm: Vec<usize>,
}

pub(crate) fn random(effort: &Effort) -> Figures {
    let other_work = &OtherWork::new(vec![1; OTHER_WORK]);
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for (build, built) in
        [(Build::Ascending, "built in order"), (Build::Random, "built by random insertion")]
    {
        let mut times = Table::new(format!("VMAs, {built}"), "ns");
        let mut ratios =
            Table::new(format!("VMAs, {built}: time over {}'s", ParkingLot::NAME), "ratio");
        let mut cold = Table::new(format!("VMAs, {built}: after other work"), "ns");
        let mut cold_ratios = Table::new(
            format!("VMAs, {built}: after other work, time over {}'s", ParkingLot::NAME),
            "ratio",
        );
        for Size { vmas: size, warm: limits, cold: cold_limits } in SIZES {
            let vmas = Layout { vmas: size }.build(build);
            let mut comparison = Comparison::new();
            each_map!(M => comparison.add(M::NAME, lookups(M::of(&vmas), other_work, effort)));
            type Registered = PervmaRegistered;
            type Fenced = PervmaRegistered<Fences>;
            comparison.add(Registered::NAME, lookups(Registered::of(&vmas), other_work, effort));
            comparison.add(Fenced::NAME, lookups(Fenced::of(&vmas), other_work, effort));
            comparison.add(Array::NAME, lookups(Array::of(&vmas), other_work, effort));
            comparison.add(CountPair::NAME, lookups(CountPair::of(&vmas), other_work, effort));
            let title = format!("lookup, {size} VMAs, {built}");
            let outcome = comparison.run(&title, effort.rounds, |random| {
                let mut addresses = |count| layout::addresses(random, count, 0..size, layout::vma);
                Input {
                    cold: addresses(effort.batch),
                    warm_up: addresses(VISITS * size),
                    warm: addresses(effort.batch),
                }
            });
            times.point(size, all(&outcome, WARM));
            ratios.point(size, over(&outcome, WARM, ParkingLot::NAME));
            cold.point(size, all(&outcome, COLD));
            cold_ratios.point(size, over(&outcome, COLD, ParkingLot::NAME));
            for (measure, when, limits) in
                [(WARM, "", Some(limits)), (COLD, ", after other work", cold_limits)]
            {
                let names = [<Pervma>::NAME, Registered::NAME];
                for (name, limit) in names.into_iter().zip(limits.into_iter().flatten()) {
                    goals.extend(Goal::ratio(
                        format!("{size} VMAs, {built}{when}: {name} over {}", ParkingLot::NAME),
                        Bound::AtMost(limit),
                        &outcome,
                        (name, measure),
                        (ParkingLot::NAME, measure),
                    ));
                }
            }
        }
        tables.extend([times, ratios, cold, cold_ratios]);
    }
    let about = "Find the range that holds a random mapped address, keep it, read its payload, \
                 release it. One thread; new addresses in each round, the same for all. Timed after other work, \
                 which has changed a word in each line of 16 MiB, and again after so many lookups that \
                 each VMA was met four times on average, when caches hold the implementation's own.";
    (about, tables, goals)
}

pub(crate) fn cursor(effort: &Effort) -> Figures {
    let other_work = &OtherWork::new(vec![1; OTHER_WORK]);
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for (kind, run_length) in [("the same VMA", usize::MAX), ("nearby addresses", NEARBY)] {
        let mut times = Table::new(format!("VMAs, {kind}"), "ns");
        let mut cold = Table::new(format!("VMAs, {kind}: after other work"), "ns");
        for Size { vmas: size, .. } in SIZES {
            let vmas = Layout { vmas: size }.build(Build::Random);
            let mut comparison = Comparison::new();
            comparison
                .add(PervmaCursor::NAME, lookups(PervmaCursor::of(&vmas), other_work, effort));
            type Registered = Pervma<CursorOfReader>;
            type Fenced = Pervma<CursorOfReader, Fences>;
            comparison.add(Registered::NAME, lookups(Registered::of(&vmas), other_work, effort));
            comparison.add(Fenced::NAME, lookups(Fenced::of(&vmas), other_work, effort));
            comparison.add(<Pervma>::NAME, lookups(<Pervma>::of(&vmas), other_work, effort));
            comparison.add(ParkingLot::NAME, lookups(ParkingLot::of(&vmas), other_work, effort));
            comparison.add(CountPair::NAME, lookups(CountPair::of(&vmas), other_work, effort));
            let outcome =
                comparison.run(&format!("cursor, {size} VMAs, {kind}"), effort.rounds, |random| {
                    let first = layout::numbers(random, 1, 0..size)[0];
                    let mut addresses = || {
                        let runs = (0..effort.batch).step_by(run_length.min(effort.batch));
                        let addresses = runs.enumerate().flat_map(|(run, from)| {
                            let number = (first + run) % size;
                            let count = run_length.min(effort.batch - from);
                            layout::addresses(random, count, number..number + 1, layout::vma)
                        });
                        addresses.collect()
                    };
                    Input { cold: addresses(), warm_up: Vec::new(), warm: addresses() }
                });
            times.point(size, all(&outcome, WARM));
            cold.point(size, all(&outcome, COLD));
            goals.extend(Goal::ratio(
                format!("{size} VMAs, {kind}: a cursor over one count pair"),
                Bound::AtMost(CURSOR_LIMIT),
                &outcome,
                (PervmaCursor::NAME, WARM),
                (CountPair::NAME, WARM),
            ));
            goals.extend(Goal::ratio(
                format!("{size} VMAs, {kind}: {} over {}", Registered::NAME, ParkingLot::NAME),
                Bound::AtMost(REGISTERED_CURSOR_LIMIT),
                &outcome,
                (Registered::NAME, WARM),
                (ParkingLot::NAME, WARM),
            ));
        }
        tables.extend([times, cold]);
    }
    let about = "Lookups by a cursor: at random addresses of one VMA, and of 64 in a VMA before it \
                 goes on to the next. One thread. Timed after other work, as in `lookup`, and once more at other \
                 addresses of the same VMAs: goals are of those.";
    (about, tables, goals)
}

/// A turn that looks all addresses up.
fn lookups<F: Find>(
    map: F,
    other_work: &OtherWork,
    effort: &Effort,
) -> impl FnMut(&Input) -> Vec<f64> {
    let mut batches = [(); 2].map(|()| Batch::new(effort));
    move |Input { cold, warm_up, warm }| {
        for word in other_work.borrow_mut().iter_mut().step_by(LINE) {
            *word = word.wrapping_mul(3);
        }
        map.with_reader(|reader| {
            let mut read = |addr: &usize| {
                black_box(reader.read(*addr));
            };
            let [first, last] = &mut batches;
            let cold = first.time(cold, &mut read);
            warm_up.iter().for_each(&mut read);
            vec![last.time(warm, read), cold]
        })
    }
}
