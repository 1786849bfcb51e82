//! Far more threads than processors: readers, and one that edits.

use std::error::Error;
use std::hint::black_box;
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::edits::Pair;
use crate::comparison::{Bound, Comparison, Effort, Goal, Outcome};
use crate::layout::{self, Build, Layout};
use crate::machine::FewProcessors;
use crate::maps::{Find, Map, ParkingLot, Pervma, PervmaRegistered, Reader, Snapshots, StdLock};
use crate::report::{Figures, Table, all};
use crate::summary::per_mille;

const VMAS: usize = 1_000;

/// And one thread that edits: 64 in all.
const READERS: usize = 63;

/// Addresses of a reader, or places of the editor, gone through again and again.
const PLACES: usize = 1_024;

/// Rounds at most: each takes long, so that every thread has several turns at a processor.
const ROUNDS: usize = 5;

/// What counts, in spans, and before it what does not.
const SPANS: u32 = 64;
const SETTLES: u32 = 8;

/// One lookup of so many is timed by itself.
const TIMED: usize = 8;

/// Multiplications, one after the other, while what was found is kept.
const WORK: [(u64, &str); 2] = [(0, "no work"), (512, "512 multiplications a lookup")];

/// The measures of a turn.
const MEASURES: [(usize, &str, &str); 5] = [
    (P50, "p50 of a lookup and its work", "ns"),
    (P99, "p99 of a lookup and its work", "ns"),
    (P999, "p99.9 of a lookup and its work", "ns"),
    (LOOKUPS, "lookups", "lookups per µs, all threads together"),
    (PAIRS, "pairs of the editor", "pairs per ms"),
];
const P50: usize = 0;
const P99: usize = 1;
const P999: usize = 2;
const LOOKUPS: usize = 3;
const PAIRS: usize = 4;

/// # Errors
///
/// The kernel's.
pub(crate) fn measure(effort: &Effort) -> Result<Figures, Box<dyn Error>> {
    let _two = FewProcessors::first(2)?;
    let vmas = Layout { vmas: VMAS }.build(Build::Random);
    let mut tables = MEASURES.map(|(_, title, unit)| Table::new(title, unit));
    let mut goals = Vec::new();
    for (work, name) in WORK {
        let mut comparison = Comparison::new();
        let span = effort.span;
        type Registered = PervmaRegistered;
        comparison.add(<Pervma>::NAME, turns(<Pervma>::of(&vmas), work, span));
        comparison.add(Registered::NAME, turns(Registered::of(&vmas), work, span));
        comparison.add(ParkingLot::NAME, turns(ParkingLot::of(&vmas), work, span));
        comparison.add(StdLock::NAME, turns(StdLock::of(&vmas), work, span));
        comparison.add(Snapshots::NAME, turns(Snapshots::of(&vmas), work, span));
        let title = format!("64 threads, {name}");
        let outcome = comparison.run(&title, effort.rounds.min(ROUNDS), |random| Input {
            readers: (0..READERS)
                .map(|_| layout::addresses(random, PLACES, 0..VMAS, layout::vma))
                .collect(),
            editor: layout::numbers(random, PLACES, 0..VMAS),
        });
        for (table, (measure, ..)) in tables.iter_mut().zip(MEASURES) {
            table.case(name, all(&outcome, measure));
        }
        goals.extend(MEASURES[..=LOOKUPS].iter().filter_map(|&(measure, what, _)| {
            goal(&outcome, measure, &format!("64 threads, {name}: {what}"))
        }));
    }
    let about = "63 threads look up random addresses of 1,000 VMAs, and one inserts a page into any hole and removes \
                 it, without pause, all on two processors. Each lookup keeps what it has found for as long as its \
                 work takes: none, or 512 multiplications one after the other (0.6 to 0.8 µs). They start at a barrier, run \
                 for 0.16 s that do not count and for 1.28 s that do; for 24 ms and 0.19 s with --quick. Percentiles are of every eighth \
                 lookup of all threads, timed by itself, the timer included. Five rounds at most.";
    Ok((about, tables.into(), goals))
}

/// That pervma is ahead of the map under one lock.
fn goal(outcome: &Outcome, measure: usize, what: &str) -> Option<Goal> {
    let bound = if measure == LOOKUPS { Bound::AtLeast(1.0) } else { Bound::AtMost(1.0) };
    let what = format!("{what}, pervma over {}", ParkingLot::NAME);
    Goal::ratio(what, bound, outcome, (<Pervma>::NAME, measure), (ParkingLot::NAME, measure))
}

struct Input {
    readers: Vec<Vec<usize>>,
    editor: Vec<usize>,
}

/// What counts.
#[derive(Clone, Copy)]
struct Window {
    from: Instant,
    to: Instant,
}

impl Window {
    fn from_now(span: Duration) -> Self {
        let from = Instant::now() + SETTLES * span;
        Self { from, to: from + SPANS * span }
    }
}

fn turns<M: Map>(map: M, work: u64, span: Duration) -> impl FnMut(&Input) -> Vec<f64> {
    move |Input { readers, editor }| {
        let (map, start, window) = (&map, &Barrier::new(READERS + 1), &OnceLock::new());
        // The same for all, whenever each comes to run.
        let begin = || {
            start.wait();
            *window.get_or_init(|| Window::from_now(span))
        };
        thread::scope(|threads| {
            let look = |addresses| {
                threads
                    .spawn(move || map.with_reader(|reader| look(reader, addresses, work, begin())))
            };
            let readers: Vec<_> = readers.iter().map(|addresses| look(addresses)).collect();
            let editor = threads.spawn(move || edit(map, editor, begin()));
            // A thread that has panicked has said so.
            let looked = readers.into_iter().filter_map(|reader| reader.join().ok());
            let (lookups, times): (Vec<_>, Vec<_>) = looked.unzip();
            let mut times = times.concat();
            times.sort_unstable();
            let time = |thousandths| f64::from(per_mille(&times, thousandths));
            let micros = (SPANS * span).as_nanos() as f64 / 1e3;
            let lookups = lookups.into_iter().sum::<usize>() as f64;
            let pairs = editor.join().map_or(f64::NAN, f64::from);
            vec![time(500), time(990), time(999), lookups / micros, pairs / micros * 1e3]
        })
    }
}

/// How many lookups begin in the window, and the times of those that are timed, in ns: also of one
/// that the window ends before.
fn look(
    reader: &mut impl Reader,
    addresses: &[usize],
    work: u64,
    window: Window,
) -> (usize, Vec<u32>) {
    let mut look = |addr| {
        reader.visit(addr, |payload| {
            let mix = |mixed: u64, _| (mixed ^ (mixed >> 7)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            black_box((0..work).fold(payload.unwrap_or_default(), mix))
        });
    };
    let (mut lookups, mut times) = (0, Vec::new());
    for stretch in addresses.chunks(TIMED).cycle() {
        let start = Instant::now();
        if start >= window.to {
            break;
        }
        look(stretch[0]);
        let end = Instant::now();
        stretch[1..].iter().copied().for_each(&mut look);
        if end >= window.from {
            lookups += stretch.len();
            times.push(u32::try_from((end - start).as_nanos()).unwrap_or(u32::MAX));
        }
    }
    (lookups, times)
}

/// The pairs that begin in the window.
fn edit(map: &impl Map, numbers: &[usize], window: Window) -> u32 {
    let mut pairs = 0;
    for &number in numbers.iter().cycle() {
        let start = Instant::now();
        if start >= window.to {
            break;
        }
        Pair::InsertRemove.run(map, number);
        pairs += u32::from(start >= window.from);
    }
    pairs
}
