//! Memory that is filled before a thread asks for it: how fast, and what that does to faults.

use std::cell::RefCell;
use std::error::Error;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pervma_pager::sys::{CopyError, RemoteUserfaultfd};
use pervma_serve::working_set::{Touch, WorkingSet};
use pervma_serve::{ClientId, MemoryFile, Options, Pager};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::client::{Client, Command, Memory, Times};
use super::content::{self, Mapped};
use super::handlers::Handler;
use super::memory::let_others_go_first;
use super::setup::{Errors, add, start};
use crate::comparison::{Bound, Comparison, Effort, Goal, Outcome};
use crate::layout::PAGE;
use crate::report::{Figures, Table};

const THREADS: [usize; 2] = [1, 2];
const RESTORES: usize = 10;
/// Pages of a run that is replayed.
const RUN: usize = 3;
/// Bytes that bare copies fill at once where all is filled in order: as many as pervma does, which
/// looks between them whether faults wait.
const AT_ONCE: usize = 64 << 10;
/// Bytes that are touched beside a transfer.
const TOUCHED: usize = 16 << 20;

const BARE: &str = "bare COPY";
const PERVMA: &str = "pervma";

/// GB a second by so many threads, and how much more that is with the second one.
const IN_ORDER: [usize; 2] = [0, 1];
const RUNS: [usize; 2] = [2, 3];
const SCALING: usize = 4;
const MANY: usize = 5;

const NOTHING: &str = "faults alone";
const TRANSFER: &str = "beside a transfer";
const REPLAY: &str = "beside a replay";
/// The lower bounds of these: what the kernel and the scheduler make of it.
const BARE_IN_ORDER: &str = "beside bare COPY in order";
const BARE_RUNS: &str = "beside bare COPY of runs";

const HALF: usize = 0;
const P99: usize = 1;
const BUSY: usize = 2;
const SHARE: usize = 3;

pub(crate) fn measure(effort: &Effort) -> Result<Figures, Box<dyn Error>> {
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    let idle = idle(effort)?;
    let mut table = Table::new("the client is idle", "GB a second");
    let cases = [
        ("in order, 1 thread", IN_ORDER[0]),
        ("in order, 2 threads", IN_ORDER[1]),
        ("runs of 3 pages, 1 thread", RUNS[0]),
        ("runs of 3 pages, 2 threads", RUNS[1]),
    ];
    for (case, measure) in cases {
        table.case(case, [BARE, PERVMA].map(|name| (name, idle.summary(name, measure))));
    }
    tables.push(table);
    let mut table = Table::new("ten idle clients at once, in sum", "GB a second");
    table.case("in order, 2 threads each", [(PERVMA, idle.summary(PERVMA, MANY))]);
    tables.push(table);
    let mut ratio = |what: &str, least, of: usize, to: usize| {
        let goal = Bound::AtLeast(least);
        goals.extend(Goal::ratio(what, goal, &idle, (PERVMA, of), (BARE, to)));
    };
    let (two, bare) = (IN_ORDER[1], IN_ORDER[1]);
    ratio("bandwidth of a transfer by 2 threads over that of bare COPY by 2", 0.9, two, bare);
    ratio(
        "what the second thread adds to a replay of runs of 3 pages, over bare COPY's",
        0.9,
        SCALING,
        SCALING,
    );
    ratio(
        "bandwidth of ten transfers at once over that of bare COPY by 2 threads",
        0.8,
        MANY,
        bare,
    );

    let faults = faults(effort)?;
    let mut times = Table::new("a thread faults, page by page, in random order", "µs a fault");
    for (case, measure) in [("median", HALF), ("p99", P99)] {
        let names = [NOTHING, TRANSFER, REPLAY, BARE_IN_ORDER, BARE_RUNS];
        times.case(case, names.map(|name| (name, faults.summary(name, measure))));
    }
    let mut left = Table::new("what is filled meanwhile", "");
    let beside = [TRANSFER, REPLAY, BARE_IN_ORDER, BARE_RUNS];
    left.case("GB a second", beside.map(|name| (name, faults.summary(name, BUSY))));
    left.case("part of an idle client's", beside.map(|name| (name, faults.summary(name, SHARE))));
    tables.extend([times, left]);
    for (name, short, bare) in
        [(TRANSFER, "transfer", BARE_IN_ORDER), (REPLAY, "replay", BARE_RUNS)]
    {
        let what = format!("p99 of faults {name} over faults alone");
        goals.extend(Goal::ratio(what, Bound::AtMost(1.5), &faults, (name, P99), (NOTHING, P99)));
        let what = format!("bandwidth beside faults over that with an idle client: {short}");
        goals.extend(Goal::summary(what, Bound::AtLeast(0.5), &faults, (name, SHARE)));
        let what = format!("bandwidth beside faults over that of bare COPY beside them: {short}");
        goals.extend(Goal::ratio(what, Bound::AtLeast(0.8), &faults, (name, BUSY), (bare, BUSY)));
    }
    let about = "Memory of another process that is filled before it is touched, from a file in the page cache: in order, \
                 as what a restored process does not touch, and in runs of three pages in random order, as what was \
                 recorded. Bare COPY is threads that each fill a half from the file, which is mapped, and do nothing \
                 else: 64 KiB a call in order, and a run a call. Ten clients are ten processes, each filled by \
                 two threads. Beside faults: a thread touches pages of another part, one as soon as the last one has \
                 come; a fault fills 4 KiB, and has one worker. Beside bare COPY: the faults have the minimal handler of \
                 daemon-faults, and two threads copy in the scheduling class of those of pervma that fill ahead.";
    Ok((about, tables, goals))
}

/// Where a process has its memory, and its userfaultfd.
type Mapping = (Memory, OwnedFd);

/// A process that maps memory anew for each turn.
struct Maps {
    client: Client,
    count: usize,
}

impl Maps {
    fn start() -> Result<Self, Box<dyn Error>> {
        Ok(Self { client: Client::start()?, count: 0 })
    }

    fn map(&mut self, len: usize) -> Result<Mapping, Box<dyn Error>> {
        self.count += 1;
        self.client.map(self.count - 1, len, false)
    }

    /// Gives the memory of a turn back.
    fn discard(&self, memory: Memory) -> Result<(), Box<dyn Error>> {
        let (of, pages) = (memory.number, memory.len / PAGE);
        self.client.took(&Command::Discard { memory: of, first: 0, pages })?;
        Ok(())
    }
}

fn giga(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / 1e9 / took.as_secs_f64()
}

/// Pieces up to an end, in order.
fn in_order(len: usize) -> Vec<Range<usize>> {
    (0..len).step_by(AT_ONCE).map(|at| at..(at + AT_ONCE).min(len)).collect()
}

/// Runs of three pages up to an end, in random order.
fn runs(len: usize, seed: u64) -> Vec<Range<usize>> {
    let run = |start: usize| start..(start + RUN * PAGE).min(len);
    let mut runs: Vec<_> = (0..len).step_by(RUN * PAGE).map(run).collect();
    runs.shuffle(&mut StdRng::seed_from_u64(seed));
    runs
}

fn set(runs: &[Range<usize>]) -> WorkingSet {
    let pages = runs.iter().flat_map(|run| run.clone().step_by(PAGE));
    let touch = |page: usize| Touch { offset: page as u64, after: Duration::ZERO };
    WorkingSet { granule: PAGE as u64, source: None, touches: pages.map(touch).collect() }
}

/// Fills runs by so many threads.
fn bare(
    (memory, userfaultfd): Mapping,
    bytes: &Mapped,
    runs: &[Range<usize>],
    threads: usize,
) -> Result<Duration, Box<dyn Error>> {
    let userfaultfd = RemoteUserfaultfd::new(userfaultfd)?;
    let copy = |runs: &[Range<usize>]| {
        runs.iter().try_for_each(|run| -> Result<(), CopyError> {
            let bytes = bytes.part(run.start, run.len());
            userfaultfd.copy(memory.start + run.start, bytes, true)
        })
    };
    let start = Instant::now();
    let copied = thread::scope(|scope| {
        let parts = runs.chunks(runs.len().div_ceil(threads));
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || copy(part))).collect();
        let mut joined =
            threads.into_iter().map(|thread| thread.join().is_ok_and(|copied| copied.is_ok()));
        joined.all(|one| one)
    });
    let took = start.elapsed();
    copied.then_some(took).ok_or_else(|| "a bare copy has failed".into())
}

/// Waits until so many pages of a client were filled.
fn wait_for(pager: &Pager, client: ClientId, pages: u64) {
    while pager.stats(client).is_some_and(|stats| stats.pages < pages) {
        thread::sleep(Duration::from_micros(50));
    }
}

fn complete(pager: &Pager, client: ClientId) -> Result<(), Box<dyn Error>> {
    pager.complete(client).then_some(()).ok_or_else(|| "a transfer has failed".into())
}

fn idle(effort: &Effort) -> Result<Outcome, Box<dyn Error>> {
    let len = effort.pages * 8 * PAGE;
    let file = content::file(len)?;
    let (mapped, source) = (Mapped::new(&file)?, Arc::new(MemoryFile::new(file)?));
    let pagers: Result<Vec<_>, _> = THREADS
        .iter()
        .map(|&count| start(Options::new().fillers(count).replayers(count)))
        .collect();
    let pagers = pagers?;
    let others: Result<Vec<_>, _> = (0..RESTORES).map(|_| Maps::start()).collect();
    let (errors, mut others) = (Errors::default(), others?);
    let (mut bare_maps, mut maps) = (Maps::start()?, Maps::start()?);
    let in_order = in_order(len);
    let mut comparison = Comparison::new();
    comparison.add(BARE, |seed: &u64| {
        errors.measures(|| {
            let mut rates = Vec::new();
            for runs in [&in_order, &runs(len, *seed)] {
                for threads in THREADS {
                    let mapping = bare_maps.map(len)?;
                    let memory = mapping.0;
                    rates.push(giga(len, bare(mapping, &mapped, runs, threads)?));
                    bare_maps.discard(memory)?;
                }
            }
            rates.push(rates[RUNS[1]] / rates[RUNS[0]]);
            Ok(rates)
        })
    });
    comparison.add(PERVMA, |seed: &u64| {
        errors.measures(|| {
            let mut rates = Vec::new();
            let set = set(&runs(len, *seed));
            for replays in [false, true] {
                for pager in &pagers {
                    let mapping = maps.map(len)?;
                    let memory = mapping.0;
                    let client = add(pager, mapping, source.clone())?;
                    let begin = Instant::now();
                    if replays {
                        pager.replay(client, &set);
                        wait_for(pager, client, (len / PAGE) as u64);
                    } else {
                        complete(pager, client)?;
                    }
                    rates.push(giga(len, begin.elapsed()));
                    if replays {
                        complete(pager, client)?;
                    }
                    maps.discard(memory)?;
                }
            }
            rates.push(rates[RUNS[1]] / rates[RUNS[0]]);
            rates.push(many(&mut others, &pagers[1], &source, len / 4)?);
            Ok(rates)
        })
    });
    let outcome = comparison.run("filled ahead", effort.rounds, |random| random.random());
    errors.first()?;
    Ok(outcome)
}

/// Fills the memory of many processes at once: GB a second in sum.
fn many(
    all: &mut [Maps],
    pager: &Pager,
    source: &Arc<MemoryFile>,
    len: usize,
) -> Result<f64, Box<dyn Error>> {
    let mut clients = Vec::new();
    for maps in &mut *all {
        let mapping = maps.map(len)?;
        clients.push((mapping.0, add(pager, mapping, source.clone())?));
    }
    let begin = Instant::now();
    let all_filled = thread::scope(|scope| {
        let fill = |&(_, client): &(Memory, ClientId)| scope.spawn(move || pager.complete(client));
        let threads: Vec<_> = clients.iter().map(fill).collect();
        threads.into_iter().all(|one| one.join().unwrap_or(false))
    });
    let took = begin.elapsed();
    for (maps, (memory, _)) in all.iter().zip(&clients) {
        maps.discard(*memory)?;
    }
    let rate = giga(all.len() * len, took);
    all_filled.then_some(rate).ok_or_else(|| "a transfer has failed".into())
}

/// What is measured of faults beside something.
struct Beside<'b> {
    maps: &'b mut Maps,
    /// Bytes that are filled, and behind them those that are touched.
    filled: usize,
    span: Duration,
    seed: u64,
}

impl Beside<'_> {
    fn map(&mut self) -> Result<Mapping, Box<dyn Error>> {
        self.maps.map(self.filled + TOUCHED)
    }

    /// Has pages touched; returns times, and how long all took.
    fn touch(&self, memory: Memory) -> Result<(Times, Duration), Box<dyn Error>> {
        let (of, first, pages) = (memory.number, self.filled / PAGE, TOUCHED / PAGE);
        let begin = Instant::now();
        let command = Command::Time { memory: of, first, pages, span: self.span, seed: self.seed };
        let times = self.maps.client.times(&command)?;
        Ok((times, begin.elapsed()))
    }

    /// The measures: of so many bytes that were filled meanwhile, and the others later.
    fn measures(&self, touched: (Times, Duration), meanwhile: usize, later: Duration) -> Vec<f64> {
        let (times, busy) = touched;
        let rate = giga(meanwhile, busy);
        let idle = giga(self.filled - meanwhile.min(self.filled), later);
        vec![times.half, times.p99, rate, rate / idle]
    }

    /// With a pager of pervma's.
    fn pervma(
        mut self,
        name: &str,
        pager: &Pager,
        source: &Arc<MemoryFile>,
    ) -> Result<Vec<f64>, Box<dyn Error>> {
        let mapping = self.map()?;
        let memory = mapping.0;
        let client = add(pager, mapping, source.clone())?;
        let measures = thread::scope(|scope| -> Result<Vec<f64>, Box<dyn Error>> {
            if name == REPLAY {
                pager.replay(client, &set(&runs(self.filled, self.seed)));
            }
            let fill = || pager.complete(client);
            let filler = (name == TRANSFER).then(|| scope.spawn(fill));
            if name != NOTHING {
                // Beside faults, threads of the lowest class may get no time at all.
                wait_for(pager, client, 1);
            }
            let touched = self.touch(memory)?;
            let between = Instant::now();
            let stats = pager.stats(client).ok_or("all was filled before")?;
            let meanwhile = (stats.pages - stats.faults) as usize * PAGE;
            if name == REPLAY {
                wait_for(pager, client, stats.faults + (self.filled / PAGE) as u64);
            }
            filler.map(|filler| filler.join());
            Ok(self.measures(touched, meanwhile, between.elapsed()))
        })?;
        // What is left: nothing, or all.
        pager.fail(client);
        while pager.stats(client).is_some() {
            thread::sleep(Duration::from_millis(1));
        }
        self.maps.discard(memory)?;
        Ok(measures)
    }

    /// With a minimal handler, and threads that copy these runs and do nothing else, in the
    /// scheduling class of pervma's.
    fn bare(
        mut self,
        runs: &[Range<usize>],
        file: &File,
        bytes: &Mapped,
    ) -> Result<Vec<f64>, Box<dyn Error>> {
        let (memory, userfaultfd) = self.map()?;
        let for_copies = RemoteUserfaultfd::new(userfaultfd.try_clone()?)?;
        let handler = Handler::minimal(vec![(memory, userfaultfd)], file, PAGE, Duration::ZERO)?;
        let next = Mutex::new(0);
        let begun = || *next.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = || {
            let_others_go_first();
            loop {
                let mut at = next.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(run) = runs.get(*at) else { return true };
                *at += 1;
                drop(at);
                let part = bytes.part(run.start, run.len());
                if for_copies.copy(memory.start + run.start, part, true).is_err() {
                    return false;
                }
            }
        };
        let measures = thread::scope(|scope| -> Result<Vec<f64>, Box<dyn Error>> {
            let copiers = [(); 2].map(|()| scope.spawn(copy));
            while begun() == 0 {
                thread::sleep(Duration::from_micros(50));
            }
            let touched = self.touch(memory)?;
            let between = Instant::now();
            let meanwhile = runs[..begun()].iter().map(Range::len).sum();
            let copied = copiers.map(|copier| copier.join().unwrap_or(false));
            if copied != [true; 2] || meanwhile == self.filled {
                return Err("bare copies have failed, or all was copied before".into());
            }
            Ok(self.measures(touched, meanwhile, between.elapsed()))
        })?;
        drop(handler);
        self.maps.discard(memory)?;
        Ok(measures)
    }
}

fn faults(effort: &Effort) -> Result<Outcome, Box<dyn Error>> {
    // More than is filled while pages are touched.
    let filled = effort.pages * 32 * PAGE;
    let file = content::file(filled + TOUCHED)?;
    let mapped = Mapped::new(&file)?;
    let source = Arc::new(MemoryFile::new(file.try_clone()?)?);
    let pager = start(Options::new().workers(1).granule(PAGE).fillers(2).replayers(2))?;
    let maps = RefCell::new(Maps::start()?);
    let errors = Errors::default();
    let span = effort.span * 5;
    let mut comparison = Comparison::new();
    for name in [NOTHING, TRANSFER, REPLAY, BARE_IN_ORDER, BARE_RUNS] {
        let (maps, errors) = (&maps, &errors);
        let (pager, source, file, mapped) = (&pager, &source, &file, &mapped);
        comparison.add(name, move |&seed: &u64| {
            let mut maps = maps.borrow_mut();
            let beside = Beside { maps: &mut maps, filled, span, seed };
            errors.measures(|| match name {
                BARE_IN_ORDER => beside.bare(&in_order(filled), file, mapped),
                BARE_RUNS => beside.bare(&runs(filled, seed), file, mapped),
                _ => beside.pervma(name, pager, source),
            })
        });
    }
    let rounds = effort.rounds.div_ceil(3);
    let outcome = comparison.run("faults beside a transfer", rounds, |random| random.random());
    errors.first()?;
    Ok(outcome)
}
