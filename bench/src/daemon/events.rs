//! Faults in one region while another one is disturbed: removals, a slow source.

use std::error::Error;
use std::fs::File;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pervma_pager::Source;
use pervma_serve::{MemoryFile, Options, Pager};

use super::client::{Client, Command, Memory};
use super::content;
use super::content::Slow;
use super::handlers::Handler;
use super::setup::{Errors, add, start};
use crate::comparison::{Bound, Comparison, Effort, Goal, Outcome};
use crate::layout::PAGE;
use crate::report::{Figures, Table, all};

/// What a source takes where it is slow, and its name.
const SOURCES: [(&str, Duration); 3] = [
    ("0", Duration::ZERO),
    ("100 µs", Duration::from_micros(100)),
    ("10 ms", Duration::from_millis(10)),
];
const VERY_SLOW: Duration = Duration::from_secs(2);
/// Before touches are timed while a very slow source is waited for.
const PAUSE: Duration = Duration::from_millis(50);

const PERVMA: &str = "pervma";
const ONE_LOCK: &str = "one lock";
const FLOOR: &str = "floor";
const TOLD: &str = "pervma, removals beside it";
const NOT_TOLD: &str = "pervma, discards that are not told";
const SLOW: &str = "pervma, a source of 2 s beside it";
const QUIET: &str = "pervma, quiet";

/// Threads that serve.
const WORKERS: usize = 2;
/// One lock has so many, that none of them is what is waited for.
const LOCKED_WORKERS: usize = 4;

/// Pages of region B: a half is touched, the other one discarded.
const BESIDE: usize = 8192;

const HALF: usize = 0;
const P99: usize = 1;
const P999: usize = 2;
const RATE: usize = 3;

/// How often it is measured, and for how long.
#[derive(Clone, Copy)]
struct Plan {
    rounds: usize,
    /// Of region A that are touched in a round, at most.
    pages: usize,
    span: Duration,
}

impl Plan {
    fn of(effort: &Effort) -> Self {
        Self { rounds: effort.rounds.div_ceil(4), pages: effort.pages / 2, span: effort.span * 10 }
    }

    /// Pages of region A. Those that were touched are not touched again: where removals are told,
    /// they would be zeros.
    fn region(self) -> usize {
        (self.rounds + 1) * self.pages
    }

    fn bytes(self) -> usize {
        (self.region() + BESIDE) * PAGE
    }
}

pub(crate) fn measure(effort: &Effort) -> Result<Figures, Box<dyn Error>> {
    let plan = Plan::of(effort);
    let file = content::file(plan.bytes())?;
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for (name, delay) in SOURCES {
        let outcome = same_descriptor(plan, &file, delay)?;
        let title = format!("1,000 REMOVEs/s on the same descriptor, whose source takes {name}");
        tables.extend(quantiles(&title, &outcome));
        let mut rate = Table::new(format!("{title}: removals"), "in a second");
        rate.case("told", all(&outcome, RATE));
        tables.push(rate);
        let ratio = |what: &str, bound, of: (&str, usize), to: (&str, usize)| {
            Goal::ratio(format!("{title}: {what}"), bound, &outcome, of, to)
        };
        if delay.is_zero() {
            let over = [(ONE_LOCK, 1.0), (FLOOR, 1.5)];
            goals.extend(over.into_iter().filter_map(|(other, most)| {
                let what = format!("p99 of pervma over {other}");
                ratio(&what, Bound::AtMost(most), (PERVMA, P99), (other, P99))
            }));
        } else if delay >= Duration::from_millis(10) {
            let what = "p99 of one lock over pervma";
            goals.extend(ratio(what, Bound::AtLeast(5.0), (ONE_LOCK, P99), (PERVMA, P99)));
        }
    }
    for (title, outcome, busy, quiet, most) in [
        (
            "1,000 REMOVEs/s on another descriptor",
            other_descriptor(plan, &file)?,
            TOLD,
            NOT_TOLD,
            1.5,
        ),
        ("a source of 2 s in another region", slow_source(plan, &file)?, SLOW, QUIET, 1.2),
    ] {
        tables.extend(quantiles(title, &outcome));
        let what = format!("{title}: p99 over the same without");
        let bound = Bound::AtMost(most);
        goals.extend(Goal::ratio(what, bound, &outcome, (busy, P99), (quiet, P99)));
    }
    let about = "A thread of another process touches pages of region A in random order, and times each. Region \
                 B is beside it: a thread touches one of its pages every millisecond, or as soon as the last one \
                 has come from the source, which takes as long as is said, for B alone; another thread discards \
                 1,000 pages of it a second. A fault fills 4 KiB. pervma has two workers. One lock is what the \
                 best-known handler does: a reader-writer lock around what was removed, whose read side is held to \
                 search, to read the source and to fill, in four threads, so that none is missing where one \
                 waits for the source; it is taken exclusively for each removal. The floor has two threads, \
                 takes no lock, keeps nothing of what was removed (its zeros are wrong), and fills again until \
                 the kernel does not refuse it.";
    Ok((about, tables, goals))
}

fn quantiles(title: &str, outcome: &Outcome) -> [Table; 1] {
    let mut table = Table::new(title, "µs a fault");
    for (name, measure) in [("p50", HALF), ("p99", P99), ("p99.9", P999)] {
        table.case(name, all(outcome, measure));
    }
    [table]
}

/// A number for each round.
fn rounds() -> impl FnMut(&mut rand::rngs::StdRng) -> usize {
    let mut round = 0;
    move |_| {
        round += 1;
        round - 1
    }
}

/// Times touches of region A of a round.
fn times(
    client: &Client,
    memory: Memory,
    plan: Plan,
    round: usize,
) -> Result<[f64; 3], Box<dyn Error>> {
    let Plan { pages, span, .. } = plan;
    let (of, first, seed) = (memory.number, round * pages, round as u64);
    let times = client.times(&Command::Time { memory: of, first, pages, span, seed })?;
    Ok([times.half, times.p99, times.p999])
}

/// Begins to disturb region B, which is behind the region A of this memory.
fn disturb(
    client: &Client,
    memory: Memory,
    plan: Plan,
    round: usize,
    discards: bool,
) -> Result<(), Box<dyn Error>> {
    // More than are touched or discarded in a round.
    let skip = round * plan.span.as_millis() as usize * 5 / 4;
    let (of, first, pages) = (memory.number, plan.region(), BESIDE);
    client.took(&Command::Disturb { memory: of, first, pages, skip, discards })?;
    Ok(())
}

/// Gives back what was touched in a round.
fn discard(
    client: &Client,
    memory: Memory,
    plan: Plan,
    round: usize,
) -> Result<(), Box<dyn Error>> {
    let (of, first, pages) = (memory.number, round * plan.pages, plan.pages);
    client.took(&Command::Discard { memory: of, first, pages })?;
    Ok(())
}

fn pager() -> Result<Pager, Box<dyn Error>> {
    start(Options::new().workers(WORKERS).granule(PAGE))
}

fn same_descriptor(plan: Plan, file: &File, delay: Duration) -> Result<Outcome, Box<dyn Error>> {
    let client = Client::start()?;
    let slow = slow(plan, file, delay)?;
    let errors = Errors::default();
    let mut comparison = Comparison::new();
    let turn = |memory: Memory| {
        let (client, errors) = (&client, &errors);
        move |round: &usize| {
            errors.measures(|| {
                disturb(client, memory, plan, *round, true)?;
                let times = times(client, memory, plan, *round)?;
                let rate = client.stop()?;
                discard(client, memory, plan, *round)?;
                Ok([&times[..], &[rate]].concat())
            })
        }
    };
    let mapped = client.map(0, plan.bytes(), true)?;
    comparison.add(PERVMA, turn(mapped.0));
    let pager = pager()?;
    add(&pager, mapped, Arc::clone(&slow))?;
    let mut handlers = Vec::new();
    for (number, (name, lock, threads)) in
        [(ONE_LOCK, true, LOCKED_WORKERS), (FLOOR, false, WORKERS)].into_iter().enumerate()
    {
        let mapped = client.map(number + 1, plan.bytes(), true)?;
        comparison.add(name, turn(mapped.0));
        handlers.push(Handler::shared(mapped, Arc::clone(&slow), lock, threads)?);
    }
    let outcome = comparison.run("removals on the same descriptor", plan.rounds, rounds());
    errors.first()?;
    drop(client);
    Ok(outcome)
}

fn slow(plan: Plan, file: &File, delay: Duration) -> Result<Arc<dyn Source>, Box<dyn Error>> {
    let file = Arc::new(MemoryFile::new(file.try_clone()?)?);
    Ok(Arc::new(Slow { file, from: (plan.region() * PAGE) as u64, delay }))
}

/// Region A has a userfaultfd of its own.
fn other_descriptor(plan: Plan, file: &File) -> Result<Outcome, Box<dyn Error>> {
    let client = Client::start()?;
    let source = slow(plan, file, Duration::ZERO)?;
    let errors = Errors::default();
    let mut comparison = Comparison::new();
    let mut pagers = Vec::new();
    for (number, (name, removes)) in [(TOLD, true), (NOT_TOLD, false)].into_iter().enumerate() {
        let quiet = client.map(2 * number, plan.bytes(), false)?;
        let disturbed = client.map(2 * number + 1, plan.bytes(), removes)?;
        let (a, b) = (quiet.0, disturbed.0);
        let (client, errors) = (&client, &errors);
        comparison.add(name, move |round: &usize| {
            errors.measures(|| {
                disturb(client, b, plan, *round, true)?;
                let times = times(client, a, plan, *round)?;
                client.stop()?;
                discard(client, a, plan, *round)?;
                Ok(times.to_vec())
            })
        });
        let pager = pager()?;
        add(&pager, quiet, Arc::clone(&source))?;
        add(&pager, disturbed, Arc::clone(&source))?;
        pagers.push(pager);
    }
    let outcome = comparison.run("removals on another descriptor", plan.rounds, rounds());
    errors.first()?;
    drop(client);
    Ok(outcome)
}

/// One pager serves both, so that where its threads run decides nothing between the two.
fn slow_source(plan: Plan, file: &File) -> Result<Outcome, Box<dyn Error>> {
    let client = Client::start()?;
    let mapped = client.map(0, plan.bytes(), false)?;
    let memory = mapped.0;
    let pager = pager()?;
    add(&pager, mapped, slow(plan, file, VERY_SLOW)?)?;
    let errors = Errors::default();
    let mut comparison = Comparison::new();
    for (name, is_slow) in [(SLOW, true), (QUIET, false)] {
        let (client, errors) = (&client, &errors);
        comparison.add(name, move |round: &usize| {
            errors.measures(|| {
                if is_slow {
                    disturb(client, memory, plan, *round, false)?;
                }
                // Threads have begun then.
                thread::sleep(PAUSE);
                let times = times(client, memory, plan, *round)?;
                if is_slow {
                    client.stop()?;
                }
                discard(client, memory, plan, *round)?;
                Ok(times.to_vec())
            })
        });
    }
    let outcome = comparison.run("a slow source in another region", plan.rounds, rounds());
    errors.first()?;
    drop(client);
    Ok(outcome)
}
