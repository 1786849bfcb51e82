//! Many clients of one daemon.

use std::error::Error;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pervma_serve::{MemoryFile, Options};

use super::client::{Client, Command};
use super::content;
use super::handlers::Handler;
use super::setup::{Errors, add, start};
use crate::allocator;
use crate::comparison::{Bound, Comparison, Effort, Goal};
use crate::layout::PAGE;
use crate::report::{Figures, Table, all};
use crate::summary::Summary;

const CLIENTS: usize = 100;

/// The number of a client's memory that a handler has.
const SERVED_BY_PERVMA: usize = 0;
const SERVED_BY_MINIMAL: usize = 1;

const PERVMA: &str = "pervma";
const MINIMAL: &str = "minimal, poll";

const ONE: usize = 0;
const ALL: usize = 1;

pub(crate) fn measure(effort: &Effort) -> Result<Figures, Box<dyn Error>> {
    let pages = effort.pages / 4;
    let file = content::file(pages * PAGE)?;
    let source = Arc::new(MemoryFile::new(file.try_clone()?)?);
    let clients: Result<Vec<_>, _> = (0..CLIENTS).map(|_| Client::start()).collect();
    let clients = clients?;
    let pager = start(Options::new().workers(2).granule(PAGE))?;
    let (mut served, mut minimal) = (Vec::new(), Vec::new());
    for client in &clients {
        served.push(client.map(SERVED_BY_PERVMA, pages * PAGE, false)?);
        minimal.push(client.map(SERVED_BY_MINIMAL, pages * PAGE, false)?);
    }
    let resident = resident()?;
    let (added, bytes) = allocator::growth(|| {
        served.into_iter().try_for_each(|served| add(&pager, served, source.clone()).map(drop))
    });
    added?;
    let _handler = Handler::minimal(minimal, &file, PAGE, Duration::ZERO)?;
    // Each is served once.
    touch(&clients, SERVED_BY_PERVMA, pages, 0)?;
    let resident = self::resident()?.saturating_sub(resident);

    let errors = Errors::default();
    let mut comparison = Comparison::new();
    for (name, memory) in [(PERVMA, SERVED_BY_PERVMA), (MINIMAL, SERVED_BY_MINIMAL)] {
        let (clients, errors) = (&clients, &errors);
        comparison.add(name, move |seed: &u64| {
            errors.measures(|| {
                let one = touch(&clients[..1], memory, pages, *seed)?;
                let all = touch(clients, memory, pages / 16, *seed)?;
                Ok(vec![one, all])
            })
        });
    }
    let rounds = effort.rounds.div_ceil(4);
    let outcome = comparison.run("many clients", rounds, rand::RngExt::random::<u64>);
    errors.first()?;
    let mut rates = Table::new("all clients together", "faults a second");
    rates.case("1 client", all(&outcome, ONE));
    rates.case(format!("{CLIENTS} clients"), all(&outcome, ALL));
    let mut memory = Table::new(format!("memory of a client, of {CLIENTS}"), "bytes");
    let each = |bytes: f64| Some(Summary::exactly(bytes / CLIENTS as f64));
    memory.case("allocated for it", [(PERVMA, each(bytes as f64))]);
    memory.case("resident when all were served", [(PERVMA, each(resident as f64))]);
    let goal = Goal::ratio(
        format!("faults/s of {CLIENTS} clients over those of one: pervma"),
        Bound::AtLeast(1.0),
        &outcome,
        (PERVMA, ALL),
        (PERVMA, ONE),
    );
    drop(clients);
    let about = "A hundred processes whose memory one pager serves, with two workers; a fault fills 4 KiB. One thread of \
                 each touches pages in random order, of one process, or of all at once. The minimal handler is \
                 a thread that polls all descriptors.";
    Ok((about, vec![rates, memory], goal.into_iter().collect()))
}

/// Faults a second, while so many pages of each client are touched.
fn touch(
    clients: &[Client],
    memory: usize,
    pages: usize,
    seed: u64,
) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    for client in clients {
        client.tell(&Command::Touch { memory, granule: PAGE, count: pages, threads: 1, seed })?;
    }
    for client in clients {
        client.wait()?;
    }
    let took = start.elapsed();
    for client in clients {
        client.took(&Command::Discard { memory, first: 0, pages })?;
    }
    Ok((clients.len() * pages) as f64 / took.as_secs_f64())
}

/// Bytes of this process that are in memory, but for files.
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no RssAnon")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}
