//! Linux's mapping calls of one thread and of two, each in addresses of its own.

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use memmap2::{Mmap, MmapMut};
use pervma_linux::{Access, Backing, Config, Mm, NoBacking, Part, Refusal, StdPlatform, abi::*};

use super::pace::{Paced, pace_of, throughput};
use crate::comparison::{Bound, Comparison, Effort, Goal};
use crate::report::{Figures, Table, all, gains, growth};

/// The pages of a mapping.
const LEN: usize = 8 * PAGE;

/// Mappings between two looks at the clock.
const STRETCH: usize = 16;

/// What two threads gain over one, over what they do that only spin.
const GOAL: f64 = 0.9;

/// How long the backing works in a call, in µs.
const WORK: [u64; 3] = [0, 2, 20];

const PERVMA: &str = "pervma-linux";
const IDLE: &str = "pervma-linux, no backing";
const FLOOR: &str = "the backing's work only";
const HOST: &str = "pervma-linux on host memory";
const KERNEL: &str = "the kernel";

/// The measures of a turn.
const ONE: usize = 0;
const TWO: usize = 1;

/// A backing that spins in each of its methods.
struct Spin(Duration);

impl Spin {
    fn work(&self) {
        if !self.0.is_zero() {
            let begin = Instant::now();
            while begin.elapsed() < self.0 {
                std::hint::spin_loop();
            }
        }
    }
}

impl Backing for Spin {
    fn fault(&self, _: Part<'_>, _: Access) -> Result<(), Refusal> {
        self.work();
        Ok(())
    }

    fn protect(&self, _: Part<'_>) {
        self.work();
    }

    fn unmap(&self, _: std::ops::Range<usize>) {
        self.work();
    }
}

/// What stands for a page of a window on the host: memory that may be written, or not any more.
enum Page {
    Writable(MmapMut),
    ReadOnly(#[expect(dead_code, reason = "unmapped when it is dropped")] Mmap),
}

/// A backing that makes the host's calls, in each window for one page.
#[derive(Default)]
struct Host([Mutex<Option<Page>>; 2]);

impl Host {
    fn page(&self, addr: usize) -> std::sync::MutexGuard<'_, Option<Page>> {
        self.0[addr / WINDOW - 1].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backing for Host {
    fn fault(&self, part: Part<'_>, _: Access) -> Result<(), Refusal> {
        let mut memory = MmapMut::map_anon(LEN).map_err(|_| Refusal::OutOfMemory)?;
        memory[0] = 1;
        *self.page(part.range.start) = Some(Page::Writable(memory));
        Ok(())
    }

    fn protect(&self, part: Part<'_>) {
        let mut page = self.page(part.range.start);
        if let Some(Page::Writable(memory)) = page.take() {
            *page = memory.make_read_only().ok().map(Page::ReadOnly);
        }
    }

    fn unmap(&self, range: std::ops::Range<usize>) {
        *self.page(range.start) = None;
    }
}

/// Where the windows of threads begin, and how far they lie apart.
const WINDOW: usize = 1 << 32;

fn space<B: Backing>(backing: B) -> Mm<B, StdPlatform> {
    Mm::new(backing, Config::default())
}

/// Maps, touches, protects and unmaps.
fn round<B: Backing>(mm: &Mm<B, StdPlatform>, addr: usize) {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    let _ = black_box(mm.mmap(addr, LEN, PROT_READ | PROT_WRITE, flags, None, 0));
    let _ = black_box(mm.fault(addr, Access::Write));
    let _ = black_box(mm.mprotect(addr, LEN, PROT_READ));
    let _ = black_box(mm.munmap(addr, LEN));
}

/// Two threads that make rounds on `mm`, each in its window.
fn rounds<B: Backing + Sync>(mm: &Mm<B, StdPlatform>) -> [Paced<'_>; 2] {
    [1, 2].map(|window| -> Paced<'_> {
        Box::new(move |places, span| {
            pace_of(places, STRETCH, span, |place| round(mm, window * WINDOW + place * LEN))
        })
    })
}

fn floor(work: u64) -> [Paced<'static>; 2] {
    let spin = move || Spin(Duration::from_micros(work));
    [(); 2].map(|()| -> Paced<'static> {
        let backing = spin();
        Box::new(move |places, span| {
            pace_of(places, STRETCH, span, |_| (0..3).for_each(|_| backing.work()))
        })
    })
}

fn kernel() -> [Paced<'static>; 2] {
    [(); 2].map(|()| -> Paced<'static> {
        Box::new(|places, span| {
            pace_of(places, STRETCH, span, |_| {
                if let Ok(mut memory) = MmapMut::map_anon(LEN) {
                    memory[0] = 1;
                    drop(black_box(memory.make_read_only()));
                }
            })
        })
    })
}

pub(crate) fn measure(effort: &Effort) -> Figures {
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    let places: Vec<usize> = (0..64).map(|place| place * 2).collect();
    for work in WORK {
        let title = format!("the backing works {work} µs in a call");
        let (mm, idle) = (space(Spin(Duration::from_micros(work))), space(NoBacking));
        let host = space(Host::default());
        let span = effort.span;
        let mut comparison = Comparison::new();
        comparison.add(PERVMA, throughput(rounds(&mm), span));
        if work == 0 {
            comparison.add(IDLE, throughput(rounds(&idle), span));
            comparison.add(HOST, throughput(rounds(&host), span));
            comparison.add(KERNEL, throughput(kernel(), span));
        } else {
            comparison.add(FLOOR, throughput(floor(work), span));
        }
        let outcome = comparison
            .run(&format!("calls, {title}"), effort.rounds, |_| [places.clone(), places.clone()]);
        let mut rates = Table::new(title.clone(), "rounds per µs, together");
        rates.case("1 thread", all(&outcome, ONE));
        rates.case("2 threads", all(&outcome, TWO));
        let mut ratios = Table::new(format!("{title}: two threads over one"), "ratio");
        ratios.case("throughput", growth(&outcome, TWO, ONE));
        if work != 0 {
            ratios.case("over the floor's", gains(&outcome, (ONE, TWO), FLOOR));
            goals.extend(Goal::gain_over(
                format!("{title}, 2 threads: throughput over one's, over the floor's"),
                Bound::AtLeast(GOAL),
                &outcome,
                (PERVMA, FLOOR),
                (ONE, TWO),
            ));
        }
        tables.extend([rates, ratios]);
    }
    tables.push(fork_and_end(effort));
    let about = "Rounds of four calls on `pervma-linux`: memory of eight pages is mapped, a page of it is written, it is \
                 protected and unmapped; by one thread, and by two, each in addresses of its own. The backing works in \
                 three of the four, spinning. The floor spins as long, and maps nothing. Without a backing a call is one \
                 edit. The kernel makes the same on its own memory, and so does a backing that maps host memory for it. \
                 At last a space of 1,000 mappings is forked, and all of them are unmapped, as `execve` does.";
    (about, tables, goals)
}

/// Forks and ends a space of many mappings.
fn fork_and_end(effort: &Effort) -> Table {
    const MAPPINGS: usize = 1_000;
    fn times<B: Backing>(make: impl Fn() -> B) -> Vec<f64> {
        let mm = space(make());
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        for number in 1..=MAPPINGS {
            let addr = WINDOW + 2 * number * PAGE;
            let _ = mm.mmap(addr, PAGE, PROT_READ | PROT_WRITE, flags, None, 0);
            let _ = mm.fault(addr, Access::Write);
        }
        let each = |begin: Instant| begin.elapsed().as_nanos() as f64 / MAPPINGS as f64;
        let begin = Instant::now();
        let child = mm.fork(make());
        let forked = each(begin);
        let begin = Instant::now();
        let _ = black_box(mm.munmap(0, 1 << 46));
        let unmapped = each(begin);
        drop(black_box(child));
        vec![forked, unmapped]
    }
    let mut comparison = Comparison::new();
    comparison.add(PERVMA, |()| times(|| Spin(Duration::ZERO)));
    comparison.add(IDLE, |()| times(|| NoBacking));
    let outcome = comparison.run("calls, fork and end", effort.rounds, |_| ());
    let mut table = Table::new("1,000 mappings".to_owned(), "ns a mapping");
    table.case("fork", all(&outcome, 0));
    table.case("unmap all", all(&outcome, 1));
    table
}
