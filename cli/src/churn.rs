//! `page --churn`: a thread that changes the region and its neighbourhood while it is read.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pervma_pager::sys::Access;
use pervma_pager::{MemorySource, Options, Region};
use rand::RngExt;

use crate::error::Error;
use crate::input::{Input, PAGE};

/// The most pages that one change covers.
const MOST: usize = 16;

/// What the thread did.
#[derive(Debug, Default)]
pub(crate) struct Churned {
    /// Changes of the region, and regions mapped, changed and dropped beside it.
    pub(crate) ops: u64,
    pub(crate) time: Duration,
    /// Whether its own pages always had the bytes of the file.
    pub(crate) matches: bool,
}

/// Changes the region until `done`: discards pages that others read, and unmaps, maps, protects and
/// reads the pages of `own`, which no other thread reads.
pub(crate) fn churn(
    region: &Region,
    own: Range<usize>,
    input: &Input,
    done: &OnceLock<()>,
) -> Result<Churned, Error> {
    let start = Instant::now();
    let mut churned = Churned { matches: true, ..Churned::default() };
    let mut random = rand::rng();
    let mut buffers = [(); 2].map(|()| vec![0; MOST * PAGE]);
    let beside = MemorySource::new(vec![1; 4 * MOST * PAGE]);
    let others = 0..own.start;
    while done.get().is_none() {
        // Pages that others read may only be discarded, and protected as they are.
        if !others.is_empty() {
            let part = random_part(others.clone(), &mut random);
            region.discard(part.clone())?;
            region.protect(part, Access::Read)?;
            churned.ops += 2;
        }
        if !own.is_empty() {
            let part = random_part(own.clone(), &mut random);
            region.unmap(part.clone())?;
            region.map(part.clone())?;
            region.protect(part.clone(), Access::None)?;
            region.protect(part.clone(), Access::Read)?;
            churned.ops += 4;
            // Not always: reads are slow, and many changes are wanted.
            if random.random_range(0..8) == 0 {
                let [found, expected] = &mut buffers;
                let (found, expected) = (&mut found[..part.len()], &mut expected[..part.len()]);
                region.read(part.start, found);
                input.read(part.start, expected)?;
                churned.matches &= found == expected;
            }
        }
        if random.random_range(0..8) == 0 {
            let other = Options::new().map(beside.clone())?;
            other.unmap(MOST * PAGE..2 * MOST * PAGE)?;
            other.protect(2 * MOST * PAGE..3 * MOST * PAGE, Access::None)?;
            drop(other);
            churned.ops += 4;
        }
    }
    churned.time = start.elapsed();
    Ok(churned)
}

/// Returns some pages of a range of offsets; the range ends with a page, or with the region.
fn random_part(within: Range<usize>, random: &mut impl RngExt) -> Range<usize> {
    let pages = within.len().div_ceil(PAGE);
    let first = random.random_range(0..pages);
    let count = random.random_range(1..=MOST.min(pages - first));
    let start = within.start + first * PAGE;
    start..(start + count * PAGE).min(within.end)
}
