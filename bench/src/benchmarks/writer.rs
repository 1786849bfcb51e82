//! A reader beside a writer that never pauses.
#![expect(clippy::disallowed_types, reason = "a flag that stops a thread")]

use std::hint::black_box;
use std::ops::Range;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::pace::pace;
use crate::comparison::{Bound, Comparison, Effort, Goal};
use crate::layout::{self, Build, Layout};
use crate::maps::{Find, Map, Pervma, Reader, each_map};
use crate::report::{Figures, Table, all, growth};
use crate::summary::per_mille;

const VMAS: usize = 1_000;

/// Addresses of the reader, looked up again and again.
const ADDRESSES: usize = 4_096;

/// Lookups between two looks at the clock, and pairs between two looks at the flag.
const STRETCH: usize = 64;

/// The most lookups of a round that are timed one by one.
const SINGLE: usize = 1 << 18;

/// Where the two of them work: by the numbers of VMAs, or of the holes behind them.
#[derive(Clone, Copy, Debug)]
enum Place {
    Elsewhere,
    /// The four VMAs of the lowest addresses: no leaf, of whatever tree, has fewer entries.
    SameLeaf,
}

impl Place {
    fn reader(self) -> Range<usize> {
        match self {
            Self::Elsewhere => 0..VMAS / 2,
            Self::SameLeaf => 0..4,
        }
    }

    fn writer(self) -> Range<usize> {
        match self {
            Self::Elsewhere => VMAS / 4 * 3..VMAS,
            // Not the last: the next leaf may begin there.
            Self::SameLeaf => 1..2,
        }
    }
}

/// The measures of a turn: of the reader without a writer, of both, and of the writer.
const QUIET: [usize; 3] = [0, 1, 2];
const BUSY: [usize; 3] = [3, 4, 5];
const HINDERED: usize = 6;
const WRITER: usize = 7;

pub(crate) fn measure(effort: &Effort) -> Figures {
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for (place, mapped) in [
        (Place::Elsewhere, true),
        (Place::Elsewhere, false),
        (Place::SameLeaf, true),
        (Place::SameLeaf, false),
    ] {
        let title = match (place, mapped) {
            (Place::Elsewhere, true) => "writer elsewhere, mapped addresses",
            (Place::Elsewhere, false) => "writer elsewhere, holes",
            (Place::SameLeaf, true) => "writer in the same leaf, mapped addresses",
            (Place::SameLeaf, false) => "writer in the same leaf, holes",
        };
        let vmas = Layout { vmas: VMAS }.build(Build::Random);
        let mut comparison = Comparison::new();
        each_map!(M => comparison.add(M::NAME, turns(M::of(&vmas), effort.span)));
        let outcome = comparison.run(&format!("writer: {title}"), effort.rounds, |random| {
            let range = if mapped { layout::vma } else { layout::hole };
            let writers = place.writer();
            // Holes are those in which nothing is inserted.
            let mut numbers = layout::numbers(random, ADDRESSES, place.reader());
            if !mapped {
                numbers.retain(|number| !writers.contains(number));
            }
            let addresses = numbers
                .into_iter()
                .flat_map(|number| layout::addresses(random, 1, number..number + 1, range));
            Input { addresses: addresses.collect(), writers: layout::numbers(random, 256, writers) }
        });
        let mut times = Table::new(title, "ns a lookup");
        let mut ratios = Table::new(format!("{title}: over the same without a writer"), "ratio");
        let names = ["mean", "p99", "p99.9"];
        for ((name, quiet), busy) in names.into_iter().zip(QUIET).zip(BUSY) {
            times.case(format!("quiet {name}"), all(&outcome, quiet));
            times.case(format!("busy {name}"), all(&outcome, busy));
            ratios.case(name, growth(&outcome, busy, quiet));
        }
        let mut share = Table::new(format!("{title}: lookups hindered"), "per cent");
        let hindered = outcome.summary(<Pervma>::NAME, HINDERED);
        share.case("share", [(<Pervma>::NAME, hindered)]);
        let mut writer = Table::new(format!("{title}: the writer"), "ns a pair");
        writer.case("insert + remove", all(&outcome, WRITER));
        let mut ratio_goal = |measure: usize, name: &str, limit: f64| {
            goals.extend(Goal::ratio(
                format!("{title}: pervma's {name} over its quiet one"),
                Bound::AtMost(limit),
                &outcome,
                (<Pervma>::NAME, BUSY[measure]),
                (<Pervma>::NAME, QUIET[measure]),
            ));
        };
        match place {
            Place::Elsewhere => {
                ratio_goal(0, "mean", 1.2);
                ratio_goal(2, "p99.9", 2.0);
                goals.extend(Goal::summary(
                    format!("{title}: lookups that needed the slow path, per cent"),
                    Bound::AtMost(0.1),
                    &outcome,
                    (<Pervma>::NAME, HINDERED),
                ));
            }
            Place::SameLeaf => ratio_goal(0, "mean", if mapped { 2.0 } else { 2.5 }),
        }
        tables.extend([times, ratios, share, writer]);
    }
    let about = "One thread looks up random addresses, mapped or in holes, of 1,000 VMAs while another \
                 inserts a page into a hole and removes it, without pause: in the last quarter, the \
                 reader being in the first half; or between the four VMAs that are read. The mean is of \
                 lookups in a row; percentiles are of lookups timed one by one, the timer included. Each takes \
                 a fixed time: 20 ms, 3 ms with --quick. Hindered: a try_read that took more than one walk \
                 or returned Locked.";
    (about, tables, goals)
}

struct Input {
    addresses: Vec<usize>,
    /// Whose holes the writer takes one after the other.
    writers: Vec<usize>,
}

fn turns<M: Map>(map: M, span: Duration) -> impl FnMut(&Input) -> Vec<f64> {
    let mut samples = Vec::with_capacity(SINGLE);
    move |input| {
        let mut measures = Vec::with_capacity(8);
        measures.extend(times(&map, &input.addresses, span, &mut samples));
        let stop = AtomicBool::new(false);
        let running = Barrier::new(2);
        thread::scope(|threads| {
            let writer = threads.spawn(|| {
                running.wait();
                write(&map, &input.writers, &stop)
            });
            running.wait();
            measures.extend(times(&map, &input.addresses, span, &mut samples));
            measures.push(hindered(&map, &input.addresses, span));
            // RELAXED: it only has to be seen some time.
            stop.store(true, Ordering::Relaxed);
            measures.push(writer.join().unwrap_or(f64::NAN));
        });
        measures
    }
}

/// Inserts and removes until `stop` is set. Returns ns a pair.
fn write(map: &impl Map, numbers: &[usize], stop: &AtomicBool) -> f64 {
    let start = Instant::now();
    let mut pairs = 0;
    for stretch in numbers.chunks(STRETCH).cycle() {
        for &number in stretch {
            let guest = layout::guest(number);
            map.insert(guest.clone());
            map.remove(guest.range);
        }
        pairs += stretch.len();
        // RELAXED: see the store.
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    start.elapsed().as_nanos() as f64 / pairs as f64
}

/// Mean, p99 and p99.9 of lookups, in ns.
fn times<F: Find>(
    map: &F,
    addresses: &[usize],
    span: Duration,
    samples: &mut Vec<u64>,
) -> [f64; 3] {
    let mean = map.with_reader(|reader| {
        let mean = pace(reader, addresses, STRETCH, span);
        samples.clear();
        let begin = Instant::now();
        for &addr in addresses.iter().cycle().take(SINGLE) {
            let start = Instant::now();
            black_box(reader.read(addr));
            let end = Instant::now();
            samples.push((end - start).as_nanos() as u64);
            if end - begin >= span {
                break;
            }
        }
        mean
    });
    samples.sort_unstable();
    [mean, per_mille(samples, 990) as f64, per_mille(samples, 999) as f64]
}

/// The share of lookups that were hindered, in per cent; not a number where there is but one way.
fn hindered<F: Find>(map: &F, addresses: &[usize], span: Duration) -> f64 {
    map.with_reader(|reader| {
        let (mut done, mut hindered, start) = (0_u64, 0_u64, Instant::now());
        for stretch in addresses.chunks(STRETCH).cycle() {
            for &addr in stretch {
                match reader.hindered(addr) {
                    Some(was) => hindered += u64::from(was),
                    None => return f64::NAN,
                }
            }
            done += stretch.len() as u64;
            if start.elapsed() >= span {
                break;
            }
        }
        hindered as f64 / done as f64 * 100.0
    })
}
