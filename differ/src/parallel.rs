//! Calls of several threads on one model, and the order in which they could have been made.
//!
//! Each round prepares a map, lets two to four threads make some calls each, with a backing that
//! takes its time, and then looks for an order of the calls in which a model on which they are made
//! one by one gives the same results and ends in the same state: mappings, flags, groups of
//! anonymous memory, counts, the pages that are present, the end of the heap. A call comes before
//! another in it if it had ended before that began. The order is that of the ends, if that is one,
//! and else it is searched for; a round without one is a failure.
//!
//! What comes of it is a list of steps, in which the rounds follow each other, for
//! [`replay`](crate::replay()) on the kernel.
//!
//! What the rounds do not have, though calls are known to meet in a wrong way there (`Mm`): choices
//! of addresses beside what frees a better one for an unfinished `mremap`.
//!
//! What else they do not have, and why that is safe:
//!
//! - *Files*: for what happens at the same time they are as shared memory, but for `msync`, which
//!   changes nothing.
//! - *Several forks' children at once*: a child is another map, which the parent does not know of.
//! - *`mincore`*, between whose look at the map and whose touch of the result other calls may come,
//!   as in Linux: it changes nothing but what a touch does.
//! - *Changes of limits between calls*: they are set before a round, so that calls of it meet them.
//! - *Sealed memory* is not in the list for the kernel, which could not unmap it after the round.
#![expect(clippy::disallowed_types, reason = "a clock of the tester, in no product")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;

use pervma_linux::{
    Access, Backing, Config, Errno, Limits, Mm, Part, Refusal, Source, StdPlatform, Work, abi::*,
};

use crate::model::make;
use crate::op::Op;
use crate::outcome::Outcome;
use crate::random::Random;

/// The pages that calls are about.
const WINDOWS: Range<usize> = 0x1000_0000..0x1000_0000 + 64 * PAGE;

/// Calls of several threads, in rounds.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// The seed of the first round; the next has the next number.
    pub seed: u64,
    /// How many rounds there are.
    pub rounds: usize,
}

/// What the rounds have come to.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// The calls that threads have made.
    pub calls: usize,
    /// The rounds whose order was not that of the ends of their calls.
    pub searched: usize,
    /// The calls whose backing refused.
    pub refused: usize,
    /// The steps of all rounds that the kernel can make, in their order.
    pub steps: Vec<Op>,
}

/// A call that a thread has made.
#[derive(Clone, Debug)]
struct Made {
    call: Call,
    outcome: Outcome,
    /// When it began and ended, by a clock that all threads share.
    time: Range<usize>,
}

/// A call, and whether the backing refuses work for it.
#[derive(Clone, Debug)]
struct Call {
    op: Op,
    refused: bool,
}

std::thread_local! {
    /// Whether the backing refuses work for this thread.
    static REFUSES: Cell<bool> = const { Cell::new(false) };
    /// For how long the backing works, in a unit of its own.
    static PACE: Cell<usize> = const { Cell::new(0) };
}

/// Pages that are present or not. Some of those of shared memory can never be.
#[derive(Debug, Default)]
struct Pages {
    present: Mutex<BTreeSet<usize>>,
    /// Where the backing takes its time; what it is at work on.
    working: Mutex<Vec<Range<usize>>>,
    slow: bool,
}

impl Pages {
    fn present(&self) -> std::sync::MutexGuard<'_, BTreeSet<usize>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes some time, in which no other work may come to the same pages.
    fn work(&self, range: Range<usize>) {
        let lock = || self.working.lock().unwrap_or_else(PoisonError::into_inner);
        let meets = |other: &Range<usize>| other.start < range.end && range.start < other.end;
        {
            let mut working = lock();
            assert!(!working.iter().any(meets), "two calls work on {range:x?}: {working:x?}");
            working.push(range.clone());
        }
        self.pause();
        let mut working = lock();
        let place = working.iter().position(|other| *other == range);
        place.map(|place| working.swap_remove(place));
    }

    /// Takes some time.
    fn pause(&self) {
        if !self.slow {
            return;
        }
        let pace = PACE.get();
        PACE.set(pace.wrapping_mul(25).wrapping_add(13));
        match pace / 8 % 4 {
            0 => {}
            1 => thread::yield_now(),
            _ => (0..pace % 64 * 32).for_each(|_| std::hint::spin_loop()),
        }
    }

    /// Whether no fault may be here: one waits for the work that is done on its page.
    fn is_worked_on(&self, page: usize) -> bool {
        let working = self.working.lock().unwrap_or_else(PoisonError::into_inner);
        working.iter().any(|range| range.contains(&page))
    }
}

impl Backing for Pages {
    fn prepare(&self, work: &[Work]) -> Result<(), Errno> {
        assert!(!work.is_empty(), "asked for nothing");
        if REFUSES.get() { Err(Errno::EIO) } else { Ok(()) }
    }

    fn fault(&self, part: Part<'_>, _: Access) -> Result<(), Refusal> {
        for page in part.range.clone().step_by(PAGE) {
            assert!(!self.is_worked_on(page), "a fault in {page:x}, which a call works on");
            self.pause();
            if matches!(part.vma.source, Source::SharedAnonymous(_)) && page / PAGE % 8 == 5 {
                return Err(Refusal::Bus);
            }
            self.present().insert(page);
        }
        Ok(())
    }

    fn unmap(&self, range: Range<usize>) {
        self.work(range.clone());
        self.present().retain(|page| !range.contains(page));
    }

    fn relocate(&self, from: Range<usize>, to: usize) {
        self.work(to..to + (from.end - from.start));
        self.work(from.clone());
        let mut present = self.present();
        let moved: Vec<usize> = present.range(from.clone()).copied().collect();
        present.retain(|page| !from.contains(page));
        present.extend(moved.into_iter().map(|page| page - from.start + to));
    }

    fn protect(&self, part: Part<'_>) {
        self.work(part.range);
    }

    fn copy(&self, part: Part<'_>, child: &Self) {
        self.work(part.range.clone());
        child.present().extend(self.present().range(part.range));
    }

    fn advise(&self, part: Part<'_>, advice: i32) -> Result<(), Errno> {
        self.pause();
        if advice == MADV_DONTNEED {
            self.present().retain(|page| !part.range.contains(page));
        }
        Ok(())
    }
}

type Model = Mm<Pages, StdPlatform>;

/// One round, before it is made.
struct Round {
    config: Config,
    limits: Option<Limits>,
    before: Vec<Op>,
    threads: Vec<Vec<Call>>,
}

impl Round {
    fn new(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let threads = 2 + random.below(3);
        // Each thread has a window of its own, far from the others or next to them, or they share
        // one.
        let (apart, len) = random.pick(&[(10, 8), (8, 8), (8, 8), (3, 8), (0, 6), (0, 4)]);
        let window = |thread: usize| {
            let start = WINDOWS.start + thread * apart * PAGE;
            start..start + len * PAGE
        };
        let mut config = Config { huge_pages: false, ..Config::default() };
        config.strict = random.one_in(16);
        if random.one_in(6) {
            config.max_map_count = 3 + random.below(20);
        }
        let limits = random.one_in(6).then(|| Limits {
            address_space: (16 + random.below(40)) as u64 * PAGE as u64,
            data: (16 + random.below(40)) as u64 * PAGE as u64,
            locked: (2 + random.below(20)) as u64 * PAGE as u64,
            ..config.limits
        });
        let before = (0..2 + random.below(3 * threads))
            .map(|number| op(random, &window(number % threads), true))
            .collect();
        let calls = if threads == 2 { 5 } else { 3 };
        let calls = |thread: usize, random: &mut Random| {
            let count = 1 + random.below(calls);
            let call =
                |_| Call { op: op(random, &window(thread), false), refused: random.one_in(12) };
            (0..count).map(call).collect()
        };
        let threads = (0..threads).map(|thread| calls(thread, random)).collect();
        Self { config, limits, before, threads }
    }

    /// A model as it is when the threads begin.
    fn begin(&self, slow: bool) -> Model {
        let mm = Mm::new(Pages { slow, ..Pages::default() }, self.config);
        for op in &self.before {
            step(&mm, op);
        }
        if let Some(limits) = self.limits {
            mm.set_limits(limits);
        }
        mm
    }

    /// Lets the threads make their calls. Returns these, and the state in which they end.
    fn run(&self, seed: u64) -> (Vec<Made>, String) {
        let mm = self.begin(true);
        let (clock, all) = (AtomicUsize::new(0), Barrier::new(self.threads.len()));
        let now = || clock.fetch_add(1, Ordering::SeqCst);
        let mut made = Vec::new();
        thread::scope(|scope| {
            let run = |(number, calls): (usize, &'_ Vec<Call>)| {
                let (mm, all, now) = (&mm, &all, &now);
                let calls = calls.clone();
                scope.spawn(move || {
                    PACE.set(seed as usize ^ (number * 7919));
                    all.wait();
                    let make = |call: Call| {
                        let begin = now();
                        let outcome = make_call(mm, &call);
                        Made { call, outcome, time: begin..now() }
                    };
                    calls.into_iter().map(make).collect::<Vec<_>>()
                })
            };
            let threads: Vec<_> = self.threads.iter().enumerate().map(run).collect();
            for thread in threads {
                match thread.join() {
                    Ok(calls) => made.extend(calls),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
        (made, state(&mm))
    }

    /// An order of the calls in which they give the same one by one.
    fn order(&self, made: &[Made], end: &str) -> Option<Vec<usize>> {
        let mut by_end: Vec<usize> = (0..made.len()).collect();
        by_end.sort_by_key(|number| made[*number].time.end);
        if self.gives_the_same(made, &by_end, end) {
            return Some(by_end);
        }
        self.search(made, &by_end, &mut Vec::new(), end)
    }

    /// Searches for the rest of an order.
    fn search(
        &self,
        made: &[Made],
        by_end: &[usize],
        order: &mut Vec<usize>,
        end: &str,
    ) -> Option<Vec<usize>> {
        if order.len() == made.len() {
            return self.gives_the_same(made, order, end).then(|| order.clone());
        }
        let left: Vec<usize> =
            by_end.iter().copied().filter(|number| !order.contains(number)).collect();
        for next in &left {
            let begin = made[*next].time.start;
            if left.iter().any(|other| made[*other].time.end < begin) {
                continue;
            }
            order.push(*next);
            if self.results_are_the_same(made, order).is_some()
                && let Some(found) = self.search(made, by_end, order, end)
            {
                return Some(found);
            }
            order.pop();
        }
        None
    }

    /// The model after these calls, if they give the same results one by one.
    fn results_are_the_same(&self, made: &[Made], order: &[usize]) -> Option<Model> {
        let mm = self.begin(false);
        let same = |number: &usize| {
            let made = &made[*number];
            make_call(&mm, &made.call) == made.outcome
        };
        order.iter().all(same).then_some(mm)
    }

    fn gives_the_same(&self, made: &[Made], order: &[usize], end: &str) -> bool {
        self.results_are_the_same(made, order).is_some_and(|mm| state(&mm) == end)
    }
}

fn make_call(mm: &Model, call: &Call) -> Outcome {
    REFUSES.set(call.refused);
    let outcome = step(mm, &call.op);
    REFUSES.set(false);
    outcome
}

/// Makes a step. The outcome of a fork is its child's state, too.
fn step(mm: &Model, op: &Op) -> Outcome {
    if let Op::Fork { .. } = op {
        let child = mm.fork(Pages::default());
        return Outcome::of(child.map(|child| hash(&state(&child))));
    }
    make(mm, op, None).unwrap_or(Outcome::Done)
}

/// A number for a text.
fn hash(text: &str) -> usize {
    text.bytes().fold(5381, |sum: usize, byte| sum.wrapping_mul(33) ^ usize::from(byte))
}

/// All that can be seen of a model, with numbers of objects and groups by their first appearance.
fn state(mm: &Model) -> String {
    let (mut text, mut groups, mut objects) = (String::new(), BTreeMap::new(), BTreeMap::new());
    let visited = mm.for_each(|range, vma| {
        let next = groups.len();
        let anon =
            vma.anon.map(|anon| (*groups.entry(anon.number).or_insert(next), anon.from_parent));
        let next = objects.len();
        let object = match &vma.source {
            Source::SharedAnonymous(_) => {
                vma.inode().map(|inode| *objects.entry(inode.number).or_insert(next))
            }
            _ => None,
        };
        let _ = writeln!(
            text,
            "{range:x?} {} {:x} {object:?} {anon:?} {:?}",
            vma.flags, vma.page_offset, vma.name
        );
    });
    let (counts, config) = (mm.counts(), mm.config());
    let _ = writeln!(text, "{visited:?} {counts:?} {:x} {}", config.layout.brk, config.future);
    let _ = writeln!(text, "{:x?}", mm.backing().present());
    text
}

/// A call in a window, or anywhere.
fn op(random: &mut Random, window: &Range<usize>, sets_up: bool) -> Op {
    let size = (window.end - window.start) / PAGE;
    let first = random.below(size);
    let len = (1 + random.below(size - first)).min(1 + random.below(size)) * PAGE;
    let addr = window.start + first * PAGE;
    let prot = random.pick(&[PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE]);
    let kinds: &[(usize, u32)] = if sets_up {
        &[(10, 0), (2, 2), (2, 11)]
    } else {
        &[
            (4, 0),
            (3, 1),
            (4, 2),
            (4, 3),
            (2, 4),
            (2, 5),
            (2, 6),
            (2, 7),
            (2, 8),
            (1, 9),
            (1, 10),
            (3, 11),
            (1, 12),
            (1, 13),
        ]
    };
    let kind = random.pick(&[MAP_PRIVATE, MAP_PRIVATE, MAP_PRIVATE | MAP_NORESERVE, MAP_SHARED]);
    let more = random.pick(&[0, 0, 0, MAP_POPULATE, MAP_LOCKED]);
    let grows = if random.one_in(12) { MAP_GROWSDOWN } else { 0 };
    let flags = kind | more | grows | MAP_ANONYMOUS;
    match random.weighted(kinds) {
        0 => Op::Mmap { addr, len, prot, flags: flags | MAP_FIXED, file: None, offset: 0 },
        1 => {
            let hint = random.pick(&[0, addr]);
            Op::Mmap { addr: hint, len, prot, flags, file: None, offset: 0 }
        }
        2 => {
            let grows = if random.one_in(16) { PROT_GROWSDOWN } else { 0 };
            Op::Mprotect { addr, len, prot: prot | grows }
        }
        3 => Op::Munmap { addr, len },
        4 => {
            let to = window.start + random.below(size) * PAGE;
            let flags = MREMAP_MAYMOVE
                | random.pick(&[MREMAP_FIXED, MREMAP_FIXED, MREMAP_FIXED | MREMAP_DONTUNMAP]);
            let new_len = random.pick(&[len, len, len + PAGE, PAGE]);
            Op::Mremap { addr, old_len: len, new_len, flags, new_addr: to }
        }
        5 => {
            let leaves = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
            let flags = random.pick(&[0, MREMAP_MAYMOVE, MREMAP_MAYMOVE, leaves]);
            let new_len = random.pick(&[PAGE, 2 * PAGE, len + PAGE, 4 * len]);
            let new_len = if flags == leaves { len } else { new_len };
            Op::Mremap { addr, old_len: len, new_len, flags, new_addr: 0 }
        }
        6 => Op::Madvise {
            addr,
            len,
            advice: random.pick(&[
                MADV_DONTNEED,
                MADV_POPULATE_READ,
                MADV_POPULATE_WRITE,
                MADV_RANDOM,
                MADV_NORMAL,
                MADV_DONTFORK,
            ]),
        },
        7 => Op::Mlock { addr, len },
        8 => Op::Munlock { addr, len },
        9 => {
            let heap = Config::default().layout.start_brk;
            Op::Brk { addr: heap + random.below(12) * PAGE + random.below(2) * 100 }
        }
        10 => match random.below(3) {
            0 => Op::Mlockall { flags: MCL_CURRENT },
            1 => Op::Mlockall { flags: MCL_FUTURE },
            _ => Op::Munlockall,
        },
        11 => Op::Touch { addr, access: random.pick(&[Access::Read, Access::Write]) },
        12 => Op::Fork { child_goes_on: false },
        _ => Op::Mseal { addr, len: PAGE, flags: 0 },
    }
}

impl Rounds {
    /// Makes the rounds.
    ///
    /// # Errors
    ///
    /// The first round whose calls have no order, as a text.
    ///
    /// # Panics
    ///
    /// When two calls work on one page at the same time, or a fault comes in between.
    pub fn run(self) -> Result<Orders, String> {
        let mut orders = Orders::default();
        for seed in (self.seed..).take(self.rounds) {
            let round = Round::new(seed);
            let (made, end) = round.run(seed);
            let Some(order) = round.order(&made, &end) else {
                return Err(round.show(seed, &made, &end));
            };
            let in_order = |(at, number): (usize, &usize)| {
                let later = order[at + 1..].iter();
                later.clone().all(|other| made[*number].time.end < made[*other].time.end)
            };
            orders.calls += made.len();
            orders.searched += usize::from(!order.iter().enumerate().all(in_order));
            orders.refused +=
                made.iter().filter(|made| made.outcome == Outcome::of(Err(Errno::EIO))).count();
            orders.add_steps(&round, &made, &order);
        }
        Ok(orders)
    }
}

impl Orders {
    /// Adds the steps of a round, if the kernel can make them, and what clears up after it.
    fn add_steps(&mut self, round: &Round, made: &[Made], order: &[usize]) {
        let is_plain = round.limits.is_none()
            && round.config.max_map_count == Config::default().max_map_count
            && !round.config.strict
            && made.iter().all(|made| !matches!(made.call.op, Op::Mseal { .. } | Op::Brk { .. }))
            && made.iter().all(|made| made.outcome != Outcome::of(Err(Errno::EIO)));
        if is_plain {
            self.steps.extend(round.before.iter().cloned());
            self.steps.extend(order.iter().map(|number| made[*number].call.op.clone()));
            self.steps.push(Op::Munlockall);
            let (addr, len) = (WINDOWS.start, WINDOWS.end - WINDOWS.start);
            self.steps.push(Op::Munmap { addr, len });
        }
    }
}

impl Round {
    /// What a failure shows.
    fn show(&self, seed: u64, made: &[Made], end: &str) -> String {
        let mut text = format!("no order of the calls of round {seed} gives the same\n");
        let _ = writeln!(
            text,
            "strict {}, limits {:?}, mappings {}, before: {:#?}",
            self.config.strict, self.limits, self.config.max_map_count, self.before
        );
        for Made { call, outcome, time } in made {
            let _ = writeln!(text, "{time:?} {:?} refused {}: {outcome}", call.op, call.refused);
        }
        let _ = writeln!(text, "it ends in\n{end}");
        text
    }
}
