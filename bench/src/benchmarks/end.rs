//! What the end of an edit costs, by the number of VMAs that it has locked.

use std::time::Instant;

use crate::comparison::{Bound, Comparison, Effort, Goal};
use crate::layout::{self, Build, Layout};
use crate::maps::{Find, LockedEntries, Pervma};
use crate::report::{Figures, Table, all};

/// VMAs locked in one edit.
const LOCKED: [usize; 5] = [1, 16, 256, 4_096, 65_000];

/// The measure after those of the ends: what one VMA more adds, by the first and the last.
const EACH: usize = LOCKED.len();

/// ns that a locked VMA may add: less than any work for it would take. Not 0, since what the end
/// touches has left the nearest caches when tens of thousands of VMAs were locked before.
const LIMIT: f64 = 0.05;

pub(crate) fn measure(effort: &Effort) -> Figures {
    let vmas = Layout { vmas: LOCKED[LOCKED.len() - 1] }.build(Build::Random);
    let (space, entries) = (<Pervma>::of(&vmas).0, LockedEntries::of(&vmas));
    let mut comparison = Comparison::new();
    comparison.add(<Pervma>::NAME, |(): &()| {
        turn(|locked| {
            let edit = space.edit();
            assert!(edit.is_ok(), "this thread holds nothing");
            let Ok(mut edit) = edit else { return f64::NAN };
            for number in 0..locked {
                let lock = edit.write(layout::vma(number).start);
                assert!(lock.is_ok(), "no thread reads");
            }
            let start = Instant::now();
            drop(edit);
            start.elapsed().as_nanos() as f64
        })
    });
    comparison.add(LockedEntries::NAME, |(): &()| {
        turn(|locked| {
            let tree = entries.0.write();
            let range = layout::vma(0).start..layout::vma(locked).start;
            let locks: Vec<_> = tree.starting_in(range).map(|(_, entry)| entry.0.write()).collect();
            let start = Instant::now();
            drop(locks);
            drop(tree);
            start.elapsed().as_nanos() as f64
        })
    });
    let outcome = comparison.run("end of an edit", effort.rounds, |_| ());

    let mut times = Table::new("VMAs locked, of 65,000", "ns");
    for (measure, locked) in LOCKED.into_iter().enumerate() {
        times.point(locked, all(&outcome, measure));
    }
    let mut each = Table::new("what a locked VMA adds", "ns");
    each.case("each", all(&outcome, EACH));
    let goal = Goal::summary(
        "what a locked VMA adds to the end of pervma's edit, ns",
        Bound::AtMost(LIMIT),
        &outcome,
        (<Pervma>::NAME, EACH),
    );
    let about = "The end of an edit that has write-locked so many VMAs, timed by itself, the timer included. \
                 The baseline releases so many entry locks, one by one, and of the map's.";
    (about, vec![times, each], goal.into_iter().collect())
}

/// The ends with each number of VMAs locked, and what one of these adds.
fn turn(one: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut measures = LOCKED.map(|locked| middle(locked, || one(locked))).to_vec();
    let (first, last) = (0, LOCKED.len() - 1);
    let more = (LOCKED[last] - LOCKED[first]) as f64;
    measures.push((measures[last] - measures[first]) / more);
    measures
}

/// The mean of the middle half of several ends: one is as short as its timer is coarse. Fewer where
/// they take long to prepare.
fn middle(locked: usize, one: impl Fn() -> f64) -> f64 {
    let mut ends: Vec<_> = (0..(4_096 / locked).clamp(8, 64)).map(|_| one()).collect();
    ends.sort_by(f64::total_cmp);
    let middle = &ends[ends.len() / 4..ends.len() / 4 * 3];
    middle.iter().sum::<f64>() / middle.len() as f64
}
