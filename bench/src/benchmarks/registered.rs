//! What registered readers cost edits.
#![expect(clippy::disallowed_types, reason = "a flag that ends a thread")]

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::comparison::{Batch, Bound, Comparison, Effort, Goal};
use crate::layout::{self, Build, Layout};
use crate::maps::{Fences, Find, Host, Map, PervmaRegistered, Reader, register};
use crate::report::{Figures, Table, all};

const VMAS: usize = 1_000;

/// Readers that are registered.
const READERS: [usize; 4] = [0, 1, 4, 16];

/// What an edit may take beside as many as that which are idle, over what it takes beside none:
/// nothing that can be measured.
const IDLE_LIMIT: f64 = 1.05;

/// The VMA that the other thread reads: no edit changes it.
const ELSEWHERE: usize = VMAS - 1;

/// What an edit does.
#[derive(Clone, Copy)]
enum Edit {
    /// Write-locks one VMA.
    Lock,
    /// Inserts one; the next removes it.
    InsertRemove,
}

const EDITS: [(Edit, &str); 2] =
    [(Edit::Lock, "write-lock one VMA"), (Edit::InsertRemove, "insert + remove")];

pub(crate) fn measure(effort: &Effort) -> Figures {
    let vmas = Layout { vmas: VMAS }.build(Build::Random);
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for (edit, what) in EDITS {
        for (busy, beside) in
            [(false, "no thread running"), (true, "beside one that reads elsewhere")]
        {
            let mut comparison = Comparison::new();
            type Barriers = PervmaRegistered;
            type Fenced = PervmaRegistered<Fences>;
            comparison.add(Barriers::NAME, costs(Barriers::of(&vmas), edit, busy, effort));
            comparison.add(Fenced::NAME, costs(Fenced::of(&vmas), edit, busy, effort));
            let title = format!("{what}, {beside}");
            let outcome = comparison.run(&title, effort.rounds, |random| {
                layout::numbers(random, effort.batch, 0..ELSEWHERE)
            });
            let mut times = Table::new(format!("registered readers, {title}"), "ns");
            for (measure, readers) in READERS.into_iter().enumerate() {
                times.point(readers, all(&outcome, measure));
            }
            tables.push(times);
            if !busy {
                let most = READERS.len() - 1;
                goals.extend(Goal::ratio(
                    format!("{what}, beside {} idle registered readers over none", READERS[most]),
                    Bound::AtMost(IDLE_LIMIT),
                    &outcome,
                    (Barriers::NAME, most),
                    (Barriers::NAME, 0),
                ));
            }
        }
    }
    let about = "What an edit pays for readers that are registered with its slab, in a space of 1,000 VMAs: \
                 an edit that write-locks one, and a pair of edits that inserts one and removes it. \
                 Where readers rely on barriers, a thread that excludes readers makes every running thread of \
                 the process pass one, by a system call that sends interrupts; with fences it does not. \
                 In both cases it looks through the places of all registered readers. A thread that reads \
                 elsewhere is the last of those that are registered, or counts if none is.";
    (about, tables, goals)
}

/// The time of an edit with each number of registered readers.
fn costs<T: Host>(
    map: PervmaRegistered<T>,
    edit: Edit,
    busy: bool,
    effort: &Effort,
) -> impl FnMut(&Vec<usize>) -> Vec<f64> {
    let mut batches = READERS.map(|_| Batch::new(effort));
    move |numbers| {
        let each = READERS.iter().zip(&mut batches);
        each.map(|(&readers, batch)| {
            let idle = if busy { readers.saturating_sub(1) } else { readers };
            let registered: Vec<_> = (0..idle).map(|_| register(&map.0)).collect();
            let mut time = || batch.time(numbers, |&number| run(&map, edit, number));
            let time = if busy { beside_reader(&map, readers > 0, &mut time) } else { time() };
            drop(registered);
            time
        })
        .collect()
    }
}

fn run<T: Host>(map: &PervmaRegistered<T>, edit: Edit, number: usize) {
    match edit {
        Edit::Lock => {
            let addr = layout::vma(number).start;
            let locked = map.0.edit().map(|mut edit| edit.write(addr).map(drop));
            assert!(matches!(locked, Ok(Ok(()))), "what is mapped can be locked");
        }
        Edit::InsertRemove => {
            let guest = layout::guest(number);
            map.insert(guest.clone());
            map.remove(guest.range);
        }
    }
}

/// Runs `time` while another thread reads elsewhere.
fn beside_reader<T: Host>(
    map: &PervmaRegistered<T>,
    registers: bool,
    time: impl FnOnce() -> f64,
) -> f64 {
    let (begin, stop) = (Barrier::new(2), AtomicBool::new(false));
    let read = |reader: &mut dyn FnMut() -> Option<u64>| {
        begin.wait();
        while !stop.load(Ordering::Relaxed) {
            (0..64).for_each(|_| {
                black_box(reader());
            });
        }
    };
    thread::scope(|threads| {
        threads.spawn(|| {
            let addr = layout::vma(ELSEWHERE).start;
            if registers {
                map.with_reader(|reader| read(&mut || reader.read(addr)));
            } else {
                read(&mut || Reader::read(&mut &map.0, addr));
            }
        });
        begin.wait();
        let time = time();
        stop.store(true, Ordering::Relaxed);
        time
    })
}
