//! Rounds: fresh memory, touched once, in random order.

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pervma_pager::{FileSource, FrozenRegion, MemorySource, Options};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::bare::{self, BareRegion, Filling};
use super::plan::{Case, From, Mode, PAGE, Plan};

/// Times of the bare handler and of pervma, in ns per page, one of each per round.
#[derive(Debug)]
pub(crate) struct Samples {
    pub(crate) case: Case,
    pub(crate) bare: Vec<f64>,
    pub(crate) pervma: Vec<f64>,
}

/// The same bytes in memory and in a file.
struct Content {
    bytes: Arc<[u8]>,
    file: Arc<File>,
}

impl Plan {
    /// Runs all rounds. The two take turns, so that what slows the machine down for a while slows
    /// both of them down.
    ///
    /// # Errors
    ///
    /// The kernel's: no userfaultfd, no memory, no temporary file.
    pub(crate) fn run(&self) -> Result<Vec<Samples>, Box<dyn Error>> {
        let mut random = StdRng::seed_from_u64(1);
        let mut bytes = vec![0; self.pages * PAGE];
        random.fill(bytes.as_mut_slice());
        let mut file = tempfile::tempfile()?;
        file.write_all(&bytes)?;
        let content = Content { bytes: bytes.into(), file: Arc::new(file) };

        let empty = |case| Samples { case, bare: vec![], pervma: vec![] };
        let mut samples: Vec<_> = Case::all().into_iter().map(empty).collect();
        let mut order: Vec<usize> = (0..self.pages).collect();
        for round in 0..=self.rounds {
            for sample in &mut samples {
                order.shuffle(&mut random);
                let case = sample.case;
                let bare = || touch(&content.bare(case)?, case, &order);
                let pervma = || touch(&content.pervma(case)?, case, &order);
                // Another one goes first in every round.
                let (bare, pervma) = if round % 2 == 0 {
                    (bare()?, pervma()?)
                } else {
                    let pervma = pervma()?;
                    (bare()?, pervma)
                };
                // The first round warms up.
                if round > 0 {
                    let per_page = |time: Duration| time.as_nanos() as f64 / self.pages as f64;
                    sample.bare.push(per_page(bare));
                    sample.pervma.push(per_page(pervma));
                }
            }
        }
        Ok(samples)
    }
}

impl Content {
    fn bare(&self, case: Case) -> Result<BareRegion, Box<dyn Error>> {
        let filling = match case.from {
            From::Memory => Filling::Bytes(Arc::clone(&self.bytes)),
            From::File => Filling::File(Arc::clone(&self.file)),
        };
        BareRegion::map(self.bytes.len(), case.granule, case.mode, filling)
    }

    fn pervma(&self, case: Case) -> Result<FrozenRegion, Box<dyn Error>> {
        let options = Options::new().granule(case.granule);
        let live = match (case.from, case.mode) {
            (From::Memory, mode) => {
                let source = MemorySource::new(Arc::clone(&self.bytes));
                match mode {
                    Mode::Signal => options.map(source)?,
                    Mode::Thread => options.handler_threads(1).map(source)?,
                }
            }
            (From::File, mode) => {
                let source = FileSource::new(self.file.try_clone()?)?;
                match mode {
                    Mode::Signal => options.map(source)?,
                    Mode::Thread => options.handler_threads(1).map(source)?,
                }
            }
        };
        Ok(live.freeze()?)
    }
}

/// Touches the pages, dealt to the threads, and adds up the threads' times.
fn touch(memory: &[u8], case: Case, order: &[usize]) -> Result<Duration, Box<dyn Error>> {
    thread::scope(|threads| {
        let deal = order.chunks(order.len().div_ceil(case.threads));
        let workers: Vec<_> = deal
            .map(|pages| {
                threads.spawn(move || {
                    bare::prepare_thread(case.granule);
                    let start = Instant::now();
                    for &page in pages {
                        black_box(memory[page * PAGE]);
                    }
                    start.elapsed()
                })
            })
            .collect();
        let mut sum = Duration::ZERO;
        for worker in workers {
            sum += worker.join().map_err(|_| "a thread panicked")?;
        }
        Ok(sum)
    })
}
