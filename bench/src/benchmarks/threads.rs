//! Threads that look up at the same time.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use super::pace::pace;
use crate::comparison::{Bound, Comparison, Effort, Goal, Outcome};
use crate::layout::{self, Build, Layout};
use crate::maps::{
    Array, CountPair, CursorOfReader, Find, OwnCounts, Pervma, PervmaCursor, PervmaRegistered,
    each_map, each_registered,
};
use crate::report::{Figures, Table, all, gains, growth};

const VMAS: usize = 1_000;

/// Lookups between two looks at the clock.
const STRETCH: usize = 256;

/// Addresses of a thread, looked up again and again.
const ADDRESSES: usize = 16 * STRETCH;

/// What two threads gain over one, over what they do where they share nothing.
const GOAL: f64 = 0.95;

/// What is timed of threads, in spans, after one that is not: they are all running then, and the
/// scheduler has found a processor for each.
const SPANS: u32 = 3;

pub(crate) fn different(effort: &Effort) -> Figures {
    let counts = counts();
    let most = counts[counts.len() - 1];
    let block = VMAS / most;
    let (tables, outcome) = measure(effort, &counts, "different VMAs", |random, thread| {
        layout::addresses(random, ADDRESSES, thread * block..(thread + 1) * block, layout::vma)
    });
    let goals = goals(&outcome, "different VMAs", &[<Pervma>::NAME, <PervmaRegistered>::NAME]);
    let about = "Threads look up random addresses, each in its own part of 1,000 VMAs (built by random \
                 insertion). They start at a barrier, run for 20 ms that do not count and for 60 ms that \
                 do; for 3 ms and 9 ms with --quick. The floor is what the machine leaves to threads that share nothing: \
                 each counts in memory of its own, no two threads in the same pair of lines. Where it gains little itself, other \
                 work had the second processor.";
    (about, tables, goals)
}

pub(crate) fn same(effort: &Effort) -> Figures {
    let (tables, outcome) = measure(effort, &counts(), "the same VMA", |random, _| {
        layout::addresses(random, ADDRESSES, VMAS / 2..VMAS / 2 + 1, layout::vma)
    });
    let registered = [<PervmaRegistered>::NAME, <Pervma<CursorOfReader>>::NAME];
    let goals = goals(&outcome, "the same VMA", &registered);
    let about = "Threads look up random addresses of the same VMA, one of 1,000, for as long as in `different` \
                 and beside the same floor. Registered readers publish what they visit instead of counting, and \
                 leave it to edits to make them pass a barrier, or (fences) pass one themselves, twice a \
                 lookup. Counted ones take turns at the line of the VMA's count, so they have no goal.";
    (about, tables, goals)
}

/// That these gain almost as much by the second thread as those that share nothing.
fn goals(outcome: &Outcome, kind: &str, names: &[&str]) -> Vec<Goal> {
    let goal = |&name: &&str| {
        Goal::gain_over(
            format!("2 threads, {kind}: throughput over one thread's, over the floor's: {name}"),
            Bound::AtLeast(GOAL),
            outcome,
            (name, OwnCounts::NAME),
            (0, 1),
        )
    };
    names.iter().filter_map(goal).collect()
}

/// 1, 2, 4, … as many as there are processors, and at least 2.
fn counts() -> Vec<usize> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    [1, 2, 4, 8, 16].into_iter().filter(|&count| count <= cpus.max(2)).collect()
}

fn measure(
    effort: &Effort,
    counts: &[usize],
    kind: &str,
    mut addresses: impl FnMut(&mut rand::rngs::StdRng, usize) -> Vec<usize>,
) -> (Vec<Table>, Outcome) {
    let vmas = Layout { vmas: VMAS }.build(Build::Random);
    let mut comparison = Comparison::new();
    each_map!(M => comparison.add(M::NAME, rates(M::of(&vmas), counts, effort.span)));
    let cursors = PervmaCursor::of(&vmas);
    comparison.add(PervmaCursor::NAME, rates(cursors, counts, effort.span));
    each_registered!(M => comparison.add(M::NAME, rates(M::of(&vmas), counts, effort.span)));
    comparison.add(Array::NAME, rates(Array::of(&vmas), counts, effort.span));
    comparison.add(CountPair::NAME, rates(CountPair::of(&vmas), counts, effort.span));
    comparison.add(OwnCounts::NAME, rates(OwnCounts::of(&vmas), counts, effort.span));
    let outcome = comparison.run(&format!("threads, {kind}"), effort.rounds, |random| {
        let most = counts.iter().copied().max().unwrap_or(1);
        (0..most).map(|thread| addresses(random, thread)).collect()
    });
    let mut rates = Table::new(format!("threads, {kind}"), "lookups per µs, all threads together");
    let mut scaling = Table::new(format!("threads, {kind}: over one thread"), "ratio");
    let mut floor =
        Table::new(format!("threads, {kind}: over one thread, over the floor's"), "ratio");
    for (measure, &count) in counts.iter().enumerate() {
        rates.point(count, all(&outcome, measure));
        scaling.point(count, growth(&outcome, measure, 0));
        if measure > 0 {
            floor.point(count, gains(&outcome, (0, measure), OwnCounts::NAME));
        }
    }
    (vec![rates, scaling, floor], outcome)
}

/// A turn that measures the throughput of each number of threads.
fn rates<F: Find>(
    map: F,
    counts: &[usize],
    span: Duration,
) -> impl FnMut(&Vec<Vec<usize>>) -> Vec<f64> {
    move |addresses| counts.iter().map(|&count| rate(&map, &addresses[..count], span)).collect()
}

/// Lookups per µs of one thread for each list of addresses.
fn rate<F: Find>(map: &F, addresses: &[Vec<usize>], span: Duration) -> f64 {
    let barrier = &Barrier::new(addresses.len());
    let run = |addresses: &[usize]| {
        map.with_reader(|reader| {
            barrier.wait();
            pace(reader, addresses, STRETCH, span);
            1e3 / pace(reader, addresses, STRETCH, SPANS * span)
        })
    };
    thread::scope(|threads| {
        let workers: Vec<_> =
            addresses.iter().map(|addresses| threads.spawn(|| run(addresses))).collect();
        // A thread that has panicked has said so.
        workers.into_iter().map(|worker| worker.join().unwrap_or(f64::NAN)).sum()
    })
}
