//! Threads that edit at the same time, without and with threads that look up.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::edits::Pair;
use super::pace::pace;
use crate::comparison::{Bound, Comparison, Effort, Goal, Outcome};
use crate::layout::{self, Build, Layout};
use crate::maps::{Find, Map, ParkingLot, Pervma, PervmaOutside, each_map};
use crate::report::{Figures, Table, all, over};
use crate::summary::per_mille;

const VMAS: usize = 1_000;

/// Lookups between two looks at the clock.
const STRETCH: usize = 16;

/// Places of an editor, or addresses of a reader, gone through again and again.
const PLACES: usize = 4_096;

/// How many threads edit, and how many look up beside them.
const CROWDS: [(usize, usize); 4] = [(1, 0), (2, 0), (4, 0), (2, 2)];

/// What the slowest of two threads is to have of an equal share, in per cent: 40 of all edits.
const SHARE: f64 = 80.0;

/// What one thread can time of pairs before it needs more memory.
const TIMES: usize = 1 << 18;

/// The measures of a crowd.
const MEASURES: usize = 4;
const PAIRS: usize = 0;
const TAIL: usize = 1;
const SLOWEST: usize = 2;
const LOOKUPS: usize = 3;

pub(crate) fn measure(effort: &Effort) -> Figures {
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for pair in [Pair::InsertRemove, Pair::SplitMerge] {
        let name = pair.name();
        let vmas = Layout { vmas: VMAS }.build(Build::Random);
        let mut comparison = Comparison::new();
        each_map!(M => comparison.add(M::NAME, turns(M::of(&vmas), pair, effort.span)));
        let outside = PervmaOutside::of(&vmas);
        comparison.add(PervmaOutside::NAME, turns(outside, pair, effort.span));
        let outcome =
            comparison.run(&format!("contended edits, {name}"), effort.rounds, |random| {
                let numbers = layout::numbers(random, 4 * PLACES, 0..VMAS);
                let of =
                    |editor| numbers.iter().copied().filter(move |number| number % 4 == editor);
                Input {
                    editors: [0, 1, 2, 3].map(|editor| of(editor).collect()),
                    readers: [0, 1]
                        .map(|_| layout::addresses(random, PLACES, 0..VMAS, layout::vma)),
                }
            });
        let mut table = |title: &str, unit, measure, crowds: &[usize]| {
            let mut table = Table::new(format!("{name}: {title}"), unit);
            for &crowd in crowds {
                let (editors, readers) = CROWDS[crowd];
                let readers =
                    if readers == 0 { String::new() } else { format!(", {readers} look up") };
                let case = format!("{editors} edit{readers}");
                table.case(case, all(&outcome, crowd * MEASURES + measure));
            }
            tables.push(table);
        };
        table("pairs", "pairs per µs, all threads together", PAIRS, &[0, 1, 2, 3]);
        table("p99.9 of a pair", "µs", TAIL, &[0, 1, 2, 3]);
        table("the slowest thread", "per cent of an equal share", SLOWEST, &[1, 2, 3]);
        table("lookups", "lookups per µs, all threads together", LOOKUPS, &[3]);
        let mut ratios = Table::new(format!("{name}: pairs over {}'s", ParkingLot::NAME), "ratio");
        for (crowd, (editors, _)) in CROWDS.into_iter().enumerate().take(3) {
            ratios.point(editors, over(&outcome, crowd * MEASURES + PAIRS, ParkingLot::NAME));
        }
        tables.push(ratios);
        goals.extend([1, 2, 3].into_iter().filter_map(|crowd| goal(&outcome, name, crowd, PAIRS)));
        goals.extend(goal(&outcome, name, 3, LOOKUPS));
        goals.extend(together(&outcome, name));
    }
    let about = "Threads that make pairs of changes without pause, as in the benchmark of edits, each at every \
                 fourth of 1,000 VMAs: 1, 2, 4 of them, and 2 beside 2 threads that look up any \
                 address. They start at a barrier, edit for 5 ms that do not count and for 20 ms that do; for 1 ms and 3 ms \
                 with --quick. With more threads than processors, some are not running at any time. Percentiles are of pairs \
                 timed one by one, the timer included.";
    (about, tables, goals)
}

/// That pervma does at least as much as the other.
fn goal(outcome: &Outcome, name: &str, crowd: usize, measure: usize) -> Option<Goal> {
    let (editors, readers) = CROWDS[crowd];
    let (what, measure) =
        (if measure == PAIRS { "pairs" } else { "lookups" }, crowd * MEASURES + measure);
    Goal::ratio(
        format!(
            "{name}, {editors} edit, {readers} look up: pervma's {what} over {}'s",
            ParkingLot::NAME
        ),
        Bound::AtLeast(1.0),
        outcome,
        (<Pervma>::NAME, measure),
        (ParkingLot::NAME, measure),
    )
}

/// That two threads edit at least as fast as one, that neither has much less of it, and that none
/// waits longer than for the map's lock.
fn together(outcome: &Outcome, name: &str) -> impl Iterator<Item = Goal> {
    const ONE: usize = 0;
    const TWO: usize = MEASURES;
    let pervma = |measure| (<Pervma>::NAME, measure);
    let tail = (ParkingLot::NAME, TWO + TAIL);
    let goals = [
        Goal::ratio(
            format!("{name}, 2 edit: pervma's pairs over those of 1"),
            Bound::AtLeast(1.0),
            outcome,
            pervma(TWO + PAIRS),
            pervma(ONE + PAIRS),
        ),
        Goal::summary(
            format!("{name}, 2 edit: the slower one, per cent of an equal share"),
            Bound::AtLeast(SHARE),
            outcome,
            pervma(TWO + SLOWEST),
        ),
        Goal::ratio(
            format!("{name}, 2 edit: p99.9 of a pair, pervma over {}", ParkingLot::NAME),
            Bound::AtMost(1.0),
            outcome,
            pervma(TWO + TAIL),
            tail,
        ),
    ];
    goals.into_iter().flatten()
}

struct Input {
    editors: [Vec<usize>; 4],
    readers: [Vec<usize>; 2],
}

fn turns<M: Map>(map: M, pair: Pair, span: Duration) -> impl FnMut(&Input) -> Vec<f64> {
    move |input| {
        let crowds = CROWDS.into_iter();
        crowds
            .flat_map(|(editors, readers)| {
                crowd(&map, pair, &input.editors[..editors], &input.readers[..readers], span)
            })
            .collect()
    }
}

/// What threads do in `span`, one for each list.
fn crowd<M: Map>(
    map: &M,
    pair: Pair,
    editors: &[Vec<usize>],
    readers: &[Vec<usize>],
    span: Duration,
) -> [f64; MEASURES] {
    let start = &Barrier::new(editors.len() + readers.len());
    thread::scope(|threads| {
        let edit = |numbers| threads.spawn(move || edit(map, pair, numbers, span, start));
        let look = |addresses| {
            threads.spawn(move || {
                start.wait();
                1e3 / map.with_reader(|reader| pace(reader, addresses, STRETCH, span))
            })
        };
        let editors: Vec<_> = editors.iter().map(|numbers| edit(numbers)).collect();
        let readers: Vec<_> = readers.iter().map(|addresses| look(addresses)).collect();
        // A thread that has panicked has said so.
        let edited: Vec<Edited> =
            editors.into_iter().filter_map(|editor| editor.join().ok()).collect();
        let begin = edited.iter().map(|edited| edited.begin).min();
        let end = edited.iter().map(|edited| edited.end).max();
        let pairs = edited.iter().map(|edited| edited.times.len());
        let (all, fewest) = (pairs.clone().sum::<usize>() as f64, pairs.min().unwrap_or(0) as f64);
        let share = fewest / (all / edited.len() as f64) * 100.0;
        let micros =
            begin.zip(end).map_or(f64::NAN, |(begin, end)| (end - begin).as_nanos() as f64 / 1e3);
        let mut times: Vec<u64> = edited.into_iter().flat_map(|edited| edited.times).collect();
        times.sort_unstable();
        let lookups = readers.into_iter().map(|reader| reader.join().unwrap_or(f64::NAN)).sum();
        [all / micros, per_mille(&times, 999) as f64 / 1e3, share, lookups]
    })
}

/// What a thread has edited.
struct Edited {
    begin: Instant,
    end: Instant,
    /// Of the pairs, in ns.
    times: Vec<u64>,
}

fn edit(map: &impl Map, pair: Pair, numbers: &[usize], span: Duration, start: &Barrier) -> Edited {
    // Memory that was touched: else the slowest pairs are those in which its pages fault.
    let mut times = vec![u64::MAX; TIMES];
    times.clear();
    start.wait();
    let counts_from = Instant::now() + span / 4;
    let mut begin = Instant::now();
    let mut end = begin;
    for &number in numbers.iter().cycle() {
        pair.run(map, number);
        let now = Instant::now();
        if end < counts_from {
            begin = now;
        } else {
            times.push((now - end).as_nanos() as u64);
        }
        end = now;
        if end - begin >= span {
            break;
        }
    }
    Edited { begin, end, times }
}
