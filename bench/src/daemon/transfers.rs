//! Memory that is filled before a thread asks for it: how fast, and what that does to faults.

use std::error::Error;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pervma_pager::sys::{CopyError, RemoteUserfaultfd};
use pervma_serve::working_set::{Touch, WorkingSet};
use pervma_serve::{ClientId, MemoryFile, Options, Pager};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::client::{Client, Command, Memory};
use super::content::{self, Mapped};
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
        let names = [NOTHING, TRANSFER, REPLAY];
        times.case(case, names.map(|name| (name, faults.summary(name, measure))));
    }
    let mut left = Table::new("what is filled meanwhile", "GB a second");
    left.case("beside faults", [TRANSFER, REPLAY].map(|name| (name, faults.summary(name, BUSY))));
    tables.extend([times, left]);
    for (name, short) in [(TRANSFER, "transfer"), (REPLAY, "replay")] {
        let what = format!("p99 of faults {name} over faults alone");
        goals.extend(Goal::ratio(what, Bound::AtMost(1.5), &faults, (name, P99), (NOTHING, P99)));
        let what = format!("bandwidth beside faults over that with an idle client: {short}");
        goals.extend(Goal::summary(what, Bound::AtLeast(0.5), &faults, (name, SHARE)));
    }
    let about = "Memory of another process that is filled before it is touched, from a file in the page cache: in order, \
                 as what a restored process does not touch, and in runs of three pages in random order, as what was \
                 recorded. Bare COPY is threads that each fill a half from the file, which is mapped, and do nothing \
                 else: 64 KiB a call in order, and a run a call. Ten clients are ten processes, each filled by \
                 two threads. Beside faults: a thread touches pages of another part, one as soon as the last one has \
                 come; a fault fills 4 KiB, and has one worker.";
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
    let in_order: Vec<_> =
        (0..len).step_by(AT_ONCE).map(|at| at..(at + AT_ONCE).min(len)).collect();
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

fn faults(effort: &Effort) -> Result<Outcome, Box<dyn Error>> {
    // More than is filled while pages are touched.
    let filled = effort.pages * 32 * PAGE;
    let len = filled + TOUCHED;
    let source = Arc::new(MemoryFile::new(content::file(len)?)?);
    let pager = start(Options::new().workers(1).granule(PAGE).fillers(2).replayers(2))?;
    let mut maps = Maps::start()?;
    let maps = std::cell::RefCell::new(&mut maps);
    let errors = Errors::default();
    let span = effort.span * 5;
    let (pager, source, errors_, maps) = (&pager, &source, &errors, &maps);
    let turn = |name: &'static str| {
        move |seed: &u64| {
            errors_.measures(|| {
                let mapping = maps.borrow_mut().map(len)?;
                let memory = mapping.0;
                let client = add(pager, mapping, source.clone())?;
                let (of, first, pages) = (memory.number, filled / PAGE, TOUCHED / PAGE);
                let time = Command::Time { memory: of, first, pages, span, seed: *seed };
                let measures = thread::scope(|scope| -> Result<Vec<f64>, Box<dyn Error>> {
                    let set = (name == REPLAY).then(|| set(&runs(filled, *seed)));
                    if let Some(set) = &set {
                        pager.replay(client, set);
                    }
                    let begin = Instant::now();
                    let fill = || pager.complete(client);
                    let filler = (name == TRANSFER).then(|| scope.spawn(fill));
                    let times = maps.borrow().client.times(&time)?;
                    let (busy, between) = (begin.elapsed(), Instant::now());
                    let stats = pager.stats(client).ok_or("all was filled before")?;
                    let meanwhile = (stats.pages - stats.faults) as usize * PAGE;
                    if name == REPLAY {
                        wait_for(pager, client, stats.faults + (filled / PAGE) as u64);
                    }
                    filler.map(|filler| filler.join());
                    let rate = giga(meanwhile, busy);
                    let idle = giga(filled - meanwhile.min(filled), between.elapsed());
                    Ok(vec![times.half, times.p99, rate, rate / idle])
                })?;
                // What is left: nothing, or all.
                pager.fail(client);
                while pager.stats(client).is_some() {
                    thread::sleep(Duration::from_millis(1));
                }
                maps.borrow().discard(memory)?;
                Ok(measures)
            })
        }
    };
    let mut comparison = Comparison::new();
    for name in [NOTHING, TRANSFER, REPLAY] {
        comparison.add(name, turn(name));
    }
    let rounds = effort.rounds.div_ceil(2);
    let outcome = comparison.run("faults beside a transfer", rounds, |random| random.random());
    errors.first()?;
    Ok(outcome)
}
