//! A guest of KVM that touches its memory.

use std::cell::Cell;
use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pervma_serve::{MemoryFile, Options};

use super::client::{Client, Command, Memory};
use super::content;
use super::handlers::Handler;
use super::order::Order;
use super::setup::{Errors, add, cpu_time, start};
use crate::comparison::{Bound, Comparison, Effort, Goal};
use crate::layout::PAGE;
use crate::report::{Figures, Table, all};

const GRANULE: usize = 2 << 20;

/// Granules that pervma fills ahead.
const AHEAD: usize = 4;

const MINIMAL: &str = "minimal, 2 MiB";
const PERVMA: &str = "pervma";
const FILLED: &str = "nothing is missing";

const TIME: usize = 0;
const CPU: usize = 1;
const BEYOND: usize = 2;

/// Until what is filled ahead is filled, after the guest has touched all that it touches.
const SETTLE: Duration = Duration::from_millis(20);

const ABSENT: Figures = (
    "ABSENT: a guest of KVM, whose accesses a userfaultfd serves, cannot be had here.",
    Vec::new(),
    Vec::new(),
);

pub(crate) fn measure(effort: &Effort) -> Result<Figures, Box<dyn Error>> {
    let pages = effort.pages * 4;
    // Something is left to be filled ahead.
    let bytes = pages * PAGE / 2 * 3;
    let file = content::file(bytes)?;
    let source = Arc::new(MemoryFile::new(file.try_clone()?)?);
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for (order, name, most) in
        [(Order::Ascending, "in order", 0.8), (Order::Random, "in random order", 1.05)]
    {
        let client = Client::start()?;
        let minimal = client.map(0, bytes, false)?;
        let served = client.map(1, bytes, false)?;
        let filled = client.map(2, bytes, false)?;
        if !served.0.serves_system_calls {
            eprintln!(
                "NOT RUN: guests: no userfaultfd that serves the kernel's accesses may be had"
            );
            return Ok(ABSENT);
        }
        let errors = Errors::default();
        let pages_before = Cell::new(0);
        let (minimal_memory, memory, filled_memory) = (minimal.0, served.0, filled.0);
        let turn = |memory: Memory| -> Result<Vec<f64>, Box<dyn Error>> {
            let of = memory.number;
            let before = cpu_time();
            let took = client.took(&Command::Guest { memory: of, pages, order })?;
            thread::sleep(SETTLE);
            let used = cpu_time() - before;
            if of != filled_memory.number {
                client.took(&Command::Discard {
                    memory: of,
                    first: 0,
                    pages: memory.len / PAGE,
                })?;
            }
            let millis = |time: Duration| time.as_secs_f64() * 1e3;
            Ok(vec![millis(took), millis(used)])
        };
        let _handler = Handler::minimal(vec![minimal], &file, GRANULE, Duration::ZERO)?;
        let pager = start(Options::new().granule(GRANULE).ahead(AHEAD))?;
        let id = add(&pager, served, source.clone())?;
        add(&pager, filled, source.clone())?;
        if let Err(why) = client.took(&Command::Guest { memory: 0, pages: 1, order }) {
            eprintln!("NOT RUN: guests: {why}");
            return Ok(ABSENT);
        }
        client.took(&Command::Discard { memory: 0, first: 0, pages: bytes / PAGE })?;
        let mut comparison = Comparison::new();
        // In whole granules, of which there are as many as are touched.
        comparison.add(MINIMAL, |(): &()| {
            errors.measures(|| Ok([turn(minimal_memory)?, vec![0.0]].concat()))
        });
        comparison.add(PERVMA, |(): &()| {
            errors.measures(|| {
                let measures = turn(memory)?;
                let now = pager.stats(id).map_or(0, |stats| stats.pages);
                let beyond = (now - pages_before.replace(now)) as f64 - pages as f64;
                Ok([measures, vec![beyond * PAGE as f64 / f64::from(1 << 20)]].concat())
            })
        });
        // The first round, which does not count, fills it.
        comparison.add(FILLED, |(): &()| {
            errors.measures(|| Ok([turn(filled_memory)?, vec![0.0]].concat()))
        });
        let outcome = comparison.run(&format!("a guest, {name}"), effort.rounds, |_| ());
        errors.first()?;
        let title = format!("{} MiB, a word of each page, {name}", (pages * PAGE) >> 20);
        let mut times = Table::new(&title, "ms");
        times.case("all of it", all(&outcome, TIME));
        times.case("CPU time of the handler", all(&outcome, CPU));
        let mut beyond = Table::new(format!("{title}: filled, and not touched"), "MiB");
        beyond.case("beyond", all(&outcome, BEYOND));
        tables.extend([times, beyond]);
        let what = format!("{title}: pervma over the minimal handler");
        let bound = Bound::AtMost(most);
        goals.extend(Goal::ratio(what, bound, &outcome, (PERVMA, TIME), (MINIMAL, TIME)));
        drop(client);
    }
    let about = "A guest of KVM reads a word of each page of its memory, by a processor that does nothing else; \
                 half as much memory again lies behind what it touches. Both fill granules of 2 MiB from a file in the page cache: \
                 the minimal handler (see `daemon-faults`), and pervma with two workers, which fills four granules \
                 ahead where faults come in order. What is left where nothing is missing is KVM's, which has the \
                 guest's processor stop at its first access to each page.";
    Ok((about, tables, goals))
}
