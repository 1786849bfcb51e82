//! Rounds: fresh memory, touched once, in random order.

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pervma_pager::{FileSource, MemorySource, Region};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::bare::{BareRegion, Filling};

/// The size of a page in bytes.
pub(crate) const PAGE: usize = 4096;

/// How much is measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Touched in each round.
    pub(crate) pages: usize,
}

/// What pervma is measured beside.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Floor {
    /// A memory source beside a handler that fills every page from the same one: the ioctl alone,
    /// without the cache misses of reading what is copied.
    IoctlOfOnePage,
    /// A memory source beside a handler that copies the same bytes.
    IoctlOfSameBytes,
    /// A file source beside a handler that reads the same file.
    PreadAndIoctl,
}

/// Times of the bare handler and of pervma, in ns per fault, one of each per round.
#[derive(Debug)]
pub(crate) struct Samples {
    pub(crate) floor: Floor,
    pub(crate) threads: usize,
    pub(crate) bare: Vec<f64>,
    pub(crate) pervma: Vec<f64>,
}

impl Plan {
    /// Runs all rounds. The ways take turns, so that whatever slows the machine down for a
    /// while hits all of them.
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
        let bytes: Arc<[u8]> = bytes.into();

        let mut samples = Vec::new();
        for threads in [1, 2] {
            for floor in [Floor::IoctlOfOnePage, Floor::IoctlOfSameBytes, Floor::PreadAndIoctl] {
                samples.push(Samples { floor, threads, bare: vec![], pervma: vec![] });
            }
        }
        let mut order: Vec<usize> = (0..self.pages).collect();
        for round in 0..=self.rounds {
            for sample in &mut samples {
                order.shuffle(&mut random);
                let deal = order.chunks(self.pages.div_ceil(sample.threads));
                let bare = || touch(&bare(sample.floor, &bytes, &file)?, deal.clone());
                let pervma = || touch(&pervma(sample.floor, &bytes, &file)?, deal.clone());
                // Who goes first changes with every round.
                let (bare, pervma) = if round % 2 == 0 {
                    (bare()?, pervma()?)
                } else {
                    let pervma = pervma()?;
                    (bare()?, pervma)
                };
                // The first round warms up.
                if round > 0 {
                    let per_fault = |time: Duration| time.as_nanos() as f64 / self.pages as f64;
                    sample.bare.push(per_fault(bare));
                    sample.pervma.push(per_fault(pervma));
                }
            }
        }
        Ok(samples)
    }
}

fn bare(floor: Floor, bytes: &Arc<[u8]>, file: &File) -> Result<BareRegion, Box<dyn Error>> {
    let filling = match floor {
        Floor::IoctlOfOnePage => Filling::OnePage(Box::new([1; PAGE])),
        Floor::IoctlOfSameBytes => Filling::Bytes(Arc::clone(bytes)),
        Floor::PreadAndIoctl => Filling::File(file.try_clone()?),
    };
    BareRegion::map(bytes.len() / PAGE, filling)
}

fn pervma(floor: Floor, bytes: &Arc<[u8]>, file: &File) -> Result<Region, Box<dyn Error>> {
    Ok(match floor {
        Floor::IoctlOfOnePage | Floor::IoctlOfSameBytes => {
            Region::map(MemorySource::new(Arc::clone(bytes)))?
        }
        Floor::PreadAndIoctl => Region::map(FileSource::new(file.try_clone()?)?)?,
    })
}

/// Touches the pages that each thread was dealt, and adds up the threads' times.
fn touch<'a>(
    memory: &[u8],
    deal: impl Iterator<Item = &'a [usize]>,
) -> Result<Duration, Box<dyn Error>> {
    thread::scope(|threads| {
        let workers: Vec<_> = deal
            .map(|pages| {
                threads.spawn(move || {
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
