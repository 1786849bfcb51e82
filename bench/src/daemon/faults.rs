//! What a fault takes, by granule, by the threads that fault, and by those that serve.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use pervma_serve::{MemoryFile, Options};

use super::client::{Client, Command, Memory};
use super::content;
use super::handlers::Handler;
use super::setup::{Errors, SPIN, add, cpu_time, start};
use crate::comparison::{Bound, Comparison, Effort, Goal, Outcome};
use crate::layout::PAGE;
use crate::report::{Figures, Table};

const GRANULES: [usize; 3] = [PAGE, 64 << 10, 2 << 20];

/// Threads that fault.
const THREADS: [usize; 3] = [1, 2, 4];

/// Bytes of memory.
const MEMORY: usize = 32 << 20;

const MINIMAL: [&str; 2] = ["minimal, poll", "minimal, spin"];
const PERVMA: [[&str; 3]; 2] = [
    ["pervma, 1 worker", "pervma, 2 workers", "pervma, 4 workers"],
    ["pervma, spin, 1 worker", "pervma, spin, 2 workers", "pervma, spin, 4 workers"],
];
const ONE_LOCK: &str = "one lock, 2 threads";
const SPINS: [Duration; 2] = [Duration::ZERO, SPIN];

/// What one thread and one worker are to keep of the minimal handler's faults a second.
const KEPT: f64 = 0.95;
/// What two threads and two workers are to add to them.
const MORE: f64 = 1.1;

pub(crate) fn measure(effort: &Effort) -> Result<Figures, Box<dyn Error>> {
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for granule in GRANULES {
        let outcome = compare(granule, effort)?;
        let title = format!("{} KiB a fault", granule >> 10);
        let mut times = Table::new(&title, "µs a fault");
        let mut rates = Table::new(format!("{title}: in a second"), "faults");
        let mut cpu = Table::new(format!("{title}: CPU time of the handler"), "µs a fault");
        for (column, threads) in THREADS.into_iter().enumerate() {
            let [time, rate, used] = [0, 1, 2].map(|measure| 3 * column + measure);
            for (table, measure) in [(&mut times, time), (&mut rates, rate), (&mut cpu, used)] {
                let names: Vec<_> = outcome.names().collect();
                let figures = names.iter().map(|name| (*name, outcome.summary(name, measure)));
                table.case(format!("{threads} faulting"), figures);
            }
        }
        tables.extend([times, rates, cpu]);
        let rate = |threads: usize| 3 * threads + 1;
        for (minimal, pervma) in MINIMAL.into_iter().zip(PERVMA) {
            let what = format!("{title}: faults/s of {} over {minimal}, 1 faulting", pervma[0]);
            let (of, to) = ((pervma[0], rate(0)), (minimal, rate(0)));
            goals.extend(Goal::ratio(what, Bound::AtLeast(KEPT), &outcome, of, to));
        }
        let (minimal, pervma) = (MINIMAL[0], PERVMA[0][1]);
        let what = format!("{title}: faults/s of {pervma} over {minimal}, 2 faulting");
        let (of, to) = ((pervma, rate(1)), (minimal, rate(1)));
        goals.extend(Goal::ratio(what, Bound::AtLeast(MORE), &outcome, of, to));
    }
    let about = "Page faults of another process, which touches a page of each granule in random order, by \
                 so many threads. The bytes are those of a file in the page cache. The minimal handler is a \
                 thread that reads a fault from a descriptor that is polled, and fills the granule from the \
                 file, which is mapped; it knows of no events. Those that spin poll for 50 µs after a \
                 fault before they sleep. \"One lock\" is described below `daemon-events`; it fills pages of 4 \
                 KiB only. A turn ends when all pages of the granules that were touched last are there.";
    Ok((about, tables, goals))
}

/// Three measures for each number of threads: µs a fault, faults a second, µs of CPU time a fault.
fn compare(granule: usize, effort: &Effort) -> Result<Outcome, Box<dyn Error>> {
    let file = content::file(MEMORY)?;
    let source = Arc::new(MemoryFile::new(file.try_clone()?)?);
    let client = Client::start()?;
    let count = (effort.pages / 16).min(MEMORY / granule);
    let errors = Errors::default();
    let mut comparison = Comparison::new();
    let mut number = 0;
    let mut map = || {
        number += 1;
        client.map(number - 1, MEMORY, false)
    };
    let turn = |memory: Memory| {
        let (client, errors) = (&client, &errors);
        move |seed: &u64| errors.measures(|| faults(client, memory, granule, count, *seed))
    };
    let (mut handlers, mut pagers) = (Vec::new(), Vec::new());
    for (spin, (minimal, pervma)) in SPINS.into_iter().zip(MINIMAL.into_iter().zip(PERVMA)) {
        let mapped = map()?;
        comparison.add(minimal, turn(mapped.0));
        handlers.push(Handler::minimal(vec![mapped], &file, granule, spin)?);
        for (name, workers) in pervma.into_iter().zip([1, 2, 4]) {
            let mapped = map()?;
            comparison.add(name, turn(mapped.0));
            let pager = start(Options::new().workers(workers).granule(granule).spin(spin))?;
            add(&pager, mapped, source.clone())?;
            pagers.push(pager);
        }
    }
    if granule == PAGE {
        let mapped = map()?;
        comparison.add(ONE_LOCK, turn(mapped.0));
        handlers.push(Handler::shared(mapped, source.clone(), true, 2)?);
    }
    let title = format!("faults of another process, {} KiB each", granule >> 10);
    let outcome = comparison.run(&title, effort.rounds, rand::RngExt::random::<u64>);
    errors.first()?;
    drop(client);
    Ok(outcome)
}

fn faults(
    client: &Client,
    memory: Memory,
    granule: usize,
    count: usize,
    seed: u64,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut measures = Vec::new();
    for threads in THREADS {
        let of = memory.number;
        let before = cpu_time();
        let took = client.took(&Command::Touch { memory: of, granule, count, threads, seed })?;
        let used = cpu_time() - before;
        client.took(&Command::Discard { memory: of, first: 0, pages: memory.len / PAGE })?;
        let each = |time: Duration| time.as_nanos() as f64 / 1e3 / count as f64;
        measures.extend([each(took), 1e6 / each(took), each(used)]);
    }
    Ok(measures)
}
