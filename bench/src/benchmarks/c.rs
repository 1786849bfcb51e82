//! Lookups through the interface for C, beside Rust's and what C++ has.
#![expect(clippy::disallowed_types, reason = "a flag that stops a thread")]

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::comparison::{Bound, Comparison, Effort, Goal};
use crate::foreign::{self, Loaded, OURS, PEERS};
use crate::layout::{self, Build, Layout};
use crate::maps::{Find, Map, Pervma, Reader};
use crate::report::{Figures, Table, all};

const SIZES: [usize; 3] = [16, 1_000, 65_000];

/// What a lookup through C may take beyond Rust's, in ns.
const LIMIT: f64 = 5.0;

/// Lookups between two looks at the clock, and pairs between two looks at the flag.
const STRETCH: usize = 256;

/// The measures of a turn.
const ONE: usize = 0;
const TWO: usize = 1;
const BUSY: usize = 2;
const MEASURES: [(usize, &str); 3] =
    [(ONE, "one thread"), (TWO, "two threads, each"), (BUSY, "one thread, beside a writer")];

/// What both languages do, many times a call.
trait Lookups: Sync {
    fn read_all(&self, addresses: &[usize]) -> u64;
    fn insert_and_remove(&self, guests: &[layout::Vma]);
}

impl Lookups for Pervma {
    fn read_all(&self, addresses: &[usize]) -> u64 {
        self.with_reader(|reader| {
            let found = addresses.iter().map(|&addr| reader.read(addr));
            found.fold(0, |sum: u64, found| sum.wrapping_add(found.map_or(0, |n| n + 1)))
        })
    }

    fn insert_and_remove(&self, guests: &[layout::Vma]) {
        for guest in guests {
            self.insert(guest.clone());
            self.remove(guest.range.clone());
        }
    }
}

impl Lookups for foreign::Map {
    fn read_all(&self, addresses: &[usize]) -> u64 {
        Self::read_all(self, addresses)
    }

    fn insert_and_remove(&self, guests: &[layout::Vma]) {
        let guests: Vec<_> = guests.iter().cloned().map(foreign::Vma::from).collect();
        Self::insert_and_remove(self, &guests);
    }
}

struct Input {
    /// For each of two threads.
    addresses: [Vec<usize>; 2],
    guests: Vec<layout::Vma>,
}

pub(crate) fn measure(effort: &Effort) -> Figures {
    let loaded = match Loaded::new() {
        Ok(loaded) => loaded,
        Err(why) => {
            eprintln!("ABSENT: the interface for C: {why}");
            let about = "ABSENT: a C++ compiler, or the library for C beside this program.";
            return (about, vec![], vec![]);
        }
    };
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for (_, name) in MEASURES {
        tables.push(Table::new(format!("VMAs, {name}"), "ns a lookup"));
    }
    for size in SIZES {
        let vmas = Layout { vmas: size }.build(Build::Random);
        let mut comparison = Comparison::new();
        comparison.add(<Pervma>::NAME, turns(<Pervma>::of(&vmas), effort.span));
        for (number, name) in OURS.into_iter().enumerate() {
            comparison.add(name, turns(loaded.ours(number, &vmas), effort.span));
        }
        for (number, name) in PEERS.into_iter().enumerate() {
            comparison.add(name, turns(loaded.peer(number, &vmas), effort.span));
        }
        let outcome = comparison.run(&format!("c, {size} VMAs"), effort.rounds, |random| {
            let mut addresses = || layout::addresses(random, effort.batch, 0..size, layout::vma);
            let addresses = [addresses(), addresses()];
            let holes = layout::numbers(random, STRETCH, size / 4 * 3..size);
            Input { addresses, guests: holes.into_iter().map(layout::guest).collect() }
        });
        for ((measure, _), table) in MEASURES.into_iter().zip(&mut tables) {
            table.point(size, all(&outcome, measure));
        }
        let [copied, _, linked, _] = OURS;
        for of in [copied, linked] {
            if let Some(figure) = outcome.difference((of, ONE), (<Pervma>::NAME, ONE)) {
                let what = format!("{size} VMAs: {of}, ns beyond Rust's");
                goals.push(Goal::new(what, Bound::AtMost(LIMIT), figure));
            }
        }
        for (measure, name) in MEASURES {
            for (of, peer) in OURS.into_iter().flat_map(|of| PEERS.map(|to| (of, to))) {
                goals.extend(Goal::ratio(
                    format!("{size} VMAs, {name}: {of} over {peer}"),
                    Bound::AtMost(1.0),
                    &outcome,
                    (of, measure),
                    (peer, measure),
                ));
            }
        }
    }
    let about = "Random mapped addresses are looked up, and payloads read, in Rust and by a loop in C++ \
                 that calls the library for C, or has a std::map in its place. Two threads look up in the \
                 same map; the writer inserts a page into a hole and removes it, without pause, in the \
                 last quarter of the map. Each takes a fixed time: 20 ms, 3 ms with --quick.";
    (about, tables, goals)
}

fn turns(map: impl Lookups, span: Duration) -> impl FnMut(&Input) -> Vec<f64> {
    move |Input { addresses: [first, second], guests }| {
        // Caches hold what is the implementation's own.
        map.read_all(first);
        let one = pace(&map, first, span);
        let both = Barrier::new(2);
        let together = |addresses| {
            both.wait();
            pace(&map, addresses, span)
        };
        let two = thread::scope(|threads| {
            let other = threads.spawn(|| together(second));
            // A thread that has panicked has said so.
            (together(first) + other.join().unwrap_or(f64::NAN)) / 2.0
        });
        let (stop, running) = (AtomicBool::new(false), Barrier::new(2));
        let busy = thread::scope(|threads| {
            threads.spawn(|| {
                running.wait();
                // RELAXED: it only has to be seen some time.
                while !stop.load(Ordering::Relaxed) {
                    map.insert_and_remove(guests);
                }
            });
            running.wait();
            let busy = pace(&map, first, span);
            // RELAXED: see the load.
            stop.store(true, Ordering::Relaxed);
            busy
        });
        vec![one, two, busy]
    }
}

/// Looks the addresses up again and again for a span of time; ns a lookup.
fn pace(map: &impl Lookups, addresses: &[usize], span: Duration) -> f64 {
    let (mut done, start) = (0, Instant::now());
    loop {
        for stretch in addresses.chunks(STRETCH) {
            std::hint::black_box(map.read_all(stretch));
            done += stretch.len();
            let elapsed = start.elapsed();
            if elapsed >= span {
                return elapsed.as_nanos() as f64 / done as f64;
            }
        }
    }
}
