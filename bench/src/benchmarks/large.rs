//! Spaces of a hundred thousand to ten million VMAs: built, looked at, emptied and dropped.
#![expect(clippy::disallowed_types, reason = "a flag that ends a thread")]

use std::hint::black_box;
use std::ops::Range;
use std::panic::resume_unwind;
use std::slice;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use pervma::AddressSpace;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::comparison::{Bound, Comparison, Effort, Goal, Outcome};
use crate::layout::{self, Build, Layout, PAGE, Vma};
use crate::maps::{Find, Map, ParkingLot, Pervma, Reader};
use crate::report::{Figures, Table, all};
use crate::summary::Summary;

const BULK: usize = 0;
const RANDOM: usize = 1;
const LOOKUP: usize = 2;
const REMOVAL: usize = 3;
const LONGEST: usize = 4;
const OTHER_SPACE: usize = 5;
const DROP: usize = 6;

/// Each by the time of one VMA, but for the longest lookup.
const CASES: [(&str, usize); 5] = [
    ("built in order, by one edit", BULK),
    ("built in random order, by an edit each", RANDOM),
    ("a lookup", LOOKUP),
    ("all removed by one edit", REMOVAL),
    ("dropped", DROP),
];

/// What the longest lookup beside the removal of all others may take, in ms, and where it is.
const STEP: f64 = 1.0;
const LOOKED: [(usize, &str); 2] =
    [(LONGEST, "of a VMA elsewhere"), (OTHER_SPACE, "in another space")];

/// What goes over the VMAs in order, so that each is to take as long among more of them, and how
/// much longer one of the most may take than one of the fewest.
const LINEAR: [usize; 3] = [BULK, REMOVAL, DROP];
const LINEAR_LIMIT: f64 = 2.0;

/// ns a VMA.
const LIMITS: [(usize, &str, f64); 2] =
    [(DROP, "dropping, ns a VMA", 30.0), (BULK, "bulk load, ns a VMA", 50.0)];

/// What is measured here beside what each map can.
trait Large: Map {
    /// A map of these VMAs, which are in order.
    fn bulk(vmas: &[Vma]) -> Self;

    /// Unmaps all in a range.
    fn remove_all(&self, range: Range<usize>);
}

impl Large for Pervma {
    fn bulk(vmas: &[Vma]) -> Self {
        let space = AddressSpace::new(PAGE);
        let vmas = vmas.iter().map(|vma| (vma.range.clone(), vma.payload));
        let done = space.edit().map(|mut edit| edit.insert_all(vmas));
        assert!(matches!(done, Ok(Ok(()))), "free ranges can be mapped");
        Self::around(space)
    }

    fn remove_all(&self, range: Range<usize>) {
        self.remove(range);
    }
}

impl Large for ParkingLot {
    fn bulk(vmas: &[Vma]) -> Self {
        let map = Self(parking_lot::RwLock::default());
        let mut tree = map.0.write();
        vmas.iter().for_each(|vma| tree.insert(vma.clone()));
        drop(tree);
        map
    }

    fn remove_all(&self, range: Range<usize>) {
        let removed = self.0.write().split_out(range);
        // Not under the lock.
        drop(removed);
    }
}

/// What is built, and looked at.
struct Input {
    layout: Layout,
    in_order: Vec<Vma>,
    shuffled: Vec<Vma>,
    addresses: Vec<usize>,
}

pub(crate) fn measure(effort: &Effort) -> Figures {
    let is_quick = *effort == Effort::QUICK;
    // The larger, the fewer.
    let sizes = [(100_000, 7), (1_000_000, 3), (10_000_000, 1)];
    let sizes = if is_quick { [(1_000, 1), (10_000, 1), (100_000, 1)] } else { sizes };
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    let mut longest = LOOKED.map(|(_, which)| {
        Table::new(format!("longest lookup {which}, while all others are removed"), "ms")
    });
    let [.., (most, _)] = sizes;
    use_memory(most);
    let outcomes = sizes.map(|(vmas, rounds)| (vmas, of_size(vmas, rounds, effort)));
    for (vmas, outcome) in &outcomes {
        let mut table = Table::new(format!("{vmas} VMAs"), "ns a VMA");
        for (case, measure) in CASES {
            table.case(case, all(outcome, measure));
            let what = format!("{vmas} VMAs, {case}: pervma over parking_lot RwLock<BTreeMap>");
            let (of, to) = ((<Pervma>::NAME, measure), (ParkingLot::NAME, measure));
            goals.extend(Goal::ratio(what, Bound::AtMost(1.0), outcome, of, to));
        }
        tables.push(table);
        let of = |measure| (<Pervma>::NAME, measure);
        for (table, (measure, which)) in longest.iter_mut().zip(LOOKED) {
            table.case(format!("{vmas} VMAs"), all(outcome, measure));
            let what =
                format!("{vmas} VMAs: longest lookup {which} while all others are removed, ms");
            goals.extend(Goal::summary(what, Bound::AtMost(STEP), outcome, of(measure)));
        }
        for (measure, name, limit) in LIMITS {
            let what = format!("{vmas} VMAs: {name}");
            goals.extend(Goal::summary(what, Bound::AtMost(limit), outcome, of(measure)));
        }
    }
    tables.extend(longest);
    let [(fewest, of_fewest), _, (most, of_most)] = &outcomes;
    let mut linear = Table::new(format!("a VMA of {most} over one of {fewest}"), "ratio");
    for (case, measure) in CASES {
        let growth = |name| {
            let median = |outcome: &Outcome| Some(outcome.summary(name, measure)?.median);
            Some(Summary::exactly(median(of_most)? / median(of_fewest)?))
        };
        let names = [<Pervma>::NAME, ParkingLot::NAME];
        linear.case(case, names.map(|name| (name, growth(name))));
        if LINEAR.contains(&measure)
            && let Some(growth) = growth(<Pervma>::NAME)
        {
            let what = format!("{case}: a VMA of {most} over one of {fewest}");
            goals.push(Goal::new(what, Bound::AtMost(LINEAR_LIMIT), growth));
        }
    }
    tables.push(linear);
    let about = "One thread builds a map, in order under one lock (an edit, or the map's lock) or in random order, each \
                 insertion by itself, and looks random addresses up; removes all in one call, \
                 while another thread looks up a VMA behind them again and again, and one in another map, and times each lookup; and \
                 drops a map that is full. As much memory as all that takes is used once before.";
    (about, tables, goals)
}

/// Uses as much memory as so many VMAs will take, and gives it back. On a virtual machine the first
/// use of a page makes its host find one, which takes longer than all that is measured here.
fn use_memory(vmas: usize) {
    const BYTES_OF_VMA: usize = 300;
    drop(black_box(vec![1_u8; BYTES_OF_VMA * vmas]));
}

fn of_size(vmas: usize, rounds: usize, effort: &Effort) -> Outcome {
    let layout = Layout { vmas };
    let mut random = StdRng::seed_from_u64(4);
    let input = Input {
        layout,
        in_order: layout.build(Build::Ascending),
        shuffled: layout.build(Build::Random),
        addresses: layout::addresses(&mut random, 10 * effort.batch, 0..vmas, layout::vma),
    };
    let mut comparison = Comparison::new();
    comparison.add(<Pervma>::NAME, |(): &()| turn::<Pervma>(&input));
    comparison.add(ParkingLot::NAME, |(): &()| turn::<ParkingLot>(&input));
    comparison.run(&format!("{vmas} VMAs"), rounds, |_| ())
}

fn turn<M: Large>(input: &Input) -> Vec<f64> {
    let vmas = input.in_order.len();
    let (bulk, map) = timed(|| M::bulk(&input.in_order));
    let (dropped, ()) = timed(|| drop(map));
    let (random, map) = timed(|| M::of(&input.shuffled));
    let (lookup, ()) = timed(|| {
        map.with_reader(|reader| {
            for &addr in &input.addresses {
                assert!(reader.read(addr).is_some(), "it is mapped");
            }
        });
    });
    let (removal, longest) = removal(&map, input.layout);
    let [longest, other_space] = longest.map(|longest| longest.as_secs_f64() * 1e3);
    let each = |time: Duration| time.as_nanos() as f64 / vmas as f64;
    vec![
        each(bulk),
        each(random),
        lookup.as_nanos() as f64 / input.addresses.len() as f64,
        each(removal),
        longest,
        other_space,
        each(dropped),
    ]
}

fn timed<R>(run: impl FnOnce() -> R) -> (Duration, R) {
    let start = Instant::now();
    let result = run();
    (start.elapsed(), result)
}

/// The time of a removal of all, and of the longest lookups beside it: elsewhere, and in another
/// space.
fn removal<M: Large>(map: &M, layout: Layout) -> (Duration, [Duration; 2]) {
    let elsewhere = Vma { range: layout::vma(layout.vmas + 1), payload: 0 };
    map.insert(elsewhere.clone());
    let other = &M::of(slice::from_ref(&elsewhere));
    let addr = elsewhere.range.start;
    let (begin, is_over) = (Barrier::new(2), AtomicBool::new(false));
    thread::scope(|threads| {
        let longest = threads.spawn(|| {
            begin.wait();
            map.with_reader(|here| {
                other.with_reader(|there| {
                    let mut longest = [Duration::ZERO; 2];
                    // RELAXED: a flag that guards nothing.
                    while !is_over.load(Relaxed) {
                        let looked = [
                            timed(|| here.read(addr).is_some()),
                            timed(|| there.read(addr).is_some()),
                        ];
                        assert!(looked.iter().all(|(_, found)| *found), "both stay");
                        for (longest, (took, _)) in longest.iter_mut().zip(looked) {
                            *longest = took.max(*longest);
                        }
                    }
                    longest
                })
            })
        });
        begin.wait();
        let (took, ()) = timed(|| map.remove_all(layout::BASE..layout.end()));
        is_over.store(true, Relaxed);
        (took, longest.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
