//! Removals and edits while a reader stays where it is.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::comparison::{Bound, Comparison, Effort, Goal};
use crate::layout::{self, Build, Layout, Vma};
use crate::maps::{Find, Map, Pervma, PervmaOutside, Reader, each_map};
use crate::report::{Figures, Table, all, growth};

const VMAS: usize = 1_000;

/// How long a reader stays.
const STAY: Duration = Duration::from_millis(2);

/// From when a removal is about to begin until it surely waits.
const SETTLE: Duration = Duration::from_micros(500);

/// Pairs whose time is measured: short beside the stay.
const PAIRS: usize = 20;

/// What "not delayed" may cost.
const LIMIT: f64 = 1.1;

/// The numbers of VMAs: where the reader stays, and behind which pairs are made.
const READER: usize = 100;
const PAIRS_AT: usize = 700;

const QUIET: usize = 0;
const BESIDE_READER: usize = 1;
const BESIDE_REMOVAL: usize = 2;

pub(crate) fn measure(effort: &Effort) -> Figures {
    let vmas = Layout { vmas: VMAS }.build(Build::Random);
    let mut comparison = Comparison::new();
    each_map!(M => comparison.add(M::NAME, turns(M::of(&vmas))));
    comparison.add(PervmaOutside::NAME, turns(PervmaOutside::of(&vmas)));
    let outcome = comparison.run("removal", effort.rounds, |_| ());

    let mut times = Table::new("20 pairs of insert + remove", "ns a pair");
    times.case("quiet", all(&outcome, QUIET));
    times.case("reader in another VMA", all(&outcome, BESIDE_READER));
    times.case("and its removal waits", all(&outcome, BESIDE_REMOVAL));
    let mut ratios = Table::new("over quiet", "ratio");
    ratios.case("reader in another VMA", growth(&outcome, BESIDE_READER, QUIET));
    ratios.case("and its removal waits", growth(&outcome, BESIDE_REMOVAL, QUIET));
    let goal = |what: &str, name: &str, measure| {
        Goal::ratio(what, Bound::AtMost(LIMIT), &outcome, (name, measure), (name, QUIET))
    };
    let goals = [
        goal(
            "pervma: removal in A while a reader stays in B, over quiet",
            <Pervma>::NAME,
            BESIDE_READER,
        ),
        goal(
            "pervma, waiting outside: another edit while a removal waits, over quiet",
            PervmaOutside::NAME,
            BESIDE_REMOVAL,
        ),
    ];
    let about = "A thread inserts and removes a page twenty times: while no other thread works; while another thread reads a VMA \
                 elsewhere, for 2 ms; and while, in addition, a third removes the VMA that is being read. \
                 In the quiet case the other threads are there, and only sleep.";
    (about, vec![times, ratios], goals.into_iter().flatten().collect())
}

fn turns<M: Map>(map: M) -> impl FnMut(&()) -> Vec<f64> {
    move |()| {
        [(false, false), (true, false), (true, true)]
            .map(|(reads, removes)| pairs(&map, reads, removes))
            .to_vec()
    }
}

/// ns a pair, while a reader stays in a VMA, or a removal of that VMA waits for it.
fn pairs(map: &impl Map, reads: bool, removes: bool) -> f64 {
    let (begin, here) = (Barrier::new(2), Barrier::new(3));
    let removed = Vma { range: layout::vma(READER), payload: READER as u64 };
    let each = thread::scope(|threads| {
        threads.spawn(|| {
            begin.wait();
            let stay = || {
                here.wait();
                thread::sleep(STAY);
            };
            if reads {
                map.with_reader(|reader| reader.visit(removed.range.start, |_| stay()));
            } else {
                stay();
            }
        });
        threads.spawn(|| {
            here.wait();
            if removes {
                map.remove(removed.range.clone());
            }
        });
        let run = || {
            let start = Instant::now();
            for _ in 0..PAIRS {
                let guest = layout::guest(PAIRS_AT);
                map.insert(guest.clone());
                map.remove(guest.range);
            }
            start.elapsed()
        };
        run();
        begin.wait();
        here.wait();
        // No sleep: caches and branch predictors stay as the pairs have left them.
        let settling = Instant::now();
        while settling.elapsed() < SETTLE {
            std::hint::spin_loop();
        }
        run().as_nanos() as f64 / PAIRS as f64
    });
    if removes {
        map.insert(removed);
    }
    each
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_as_before() {
        fn restores<M: Map>() {
            let map = M::of(&Layout { vmas: VMAS }.build(Build::Ascending));
            for (reads, removes) in [(false, false), (true, false), (true, true)] {
                assert!(pairs(&map, reads, removes) > 0.0);
                map.with_reader(|reader| {
                    assert_eq!(reader.read(layout::vma(READER).start), Some(READER as u64));
                    assert_eq!(reader.read(layout::guest(PAIRS_AT).range.start), None);
                });
            }
        }
        each_map!(M => restores::<M>());
    }
}
