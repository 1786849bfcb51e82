//! `pervma page`: every page of a file, faulted in from several threads in random order.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pervma_pager::{FileSource, Region, Source};
use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};

use crate::args::PageOptions;
use crate::error::Error;
use crate::input::{Input, hex};
use crate::memory;
use crate::progress::Progress;
use crate::report::Report;

/// The size of a page in bytes.
pub(crate) const PAGE: usize = 4096;

/// A page of the region, and where its copy goes.
type Task<'a> = (&'a [u8], &'a mut [u8]);

/// Pages the file and reports how that went.
pub(crate) fn run(options: &PageOptions) -> Result<Report, Error> {
    let threads = options.threads.or(thread::available_parallelism().ok());
    let input = Input::open(options.file.as_deref())?;
    let region = map(&input)?;
    let bytes = region.len();
    // No more threads than pages: the others would have nothing to touch.
    let threads = threads.map_or(1, NonZeroUsize::get).min(bytes.div_ceil(PAGE));
    let mut copy = zeros(bytes)?;

    let before = pervma_pager::stats();
    let touching = touch_all(&region, &mut copy, threads)?;
    let counted = pervma_pager::stats() - before;

    let mut hash = Sha256::new();
    hash.update(&copy);
    Ok(Report {
        sha256: hex(hash),
        file_sha256: input.sha256()?,
        file: input.path,
        bytes,
        pages: bytes.div_ceil(PAGE),
        threads,
        touching,
        counted,
    })
}

/// Maps the file, if there is memory for it and for its copy.
fn map(input: &Input) -> Result<Region, Error> {
    let file = input.reopen()?;
    let source = FileSource::new(file)
        .map_err(|reason| Error::Source { file: input.path.clone(), reason })?;
    let bytes = source.size();
    let needed = bytes.saturating_mul(2);
    if let Some(available) = memory::available()
        && needed > available
    {
        return Err(Error::TooLarge { file: input.path.clone(), bytes, needed, available });
    }
    Ok(Region::map(source)?)
}

fn zeros(bytes: usize) -> Result<Vec<u8>, Error> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(bytes).map_err(|_| Error::NoMemory { bytes })?;
    zeros.resize(bytes, 0);
    Ok(zeros)
}

/// Copies every page to its place, in random order, dealt to the threads. Returns the time of the
/// touching reads, all threads together.
fn touch_all(region: &[u8], copy: &mut [u8], threads: usize) -> Result<Duration, Error> {
    let mut pages: Vec<Task<'_>> = Vec::new();
    let count = region.len().div_ceil(PAGE);
    let bytes = count.saturating_mul(size_of::<Task<'_>>());
    pages.try_reserve_exact(count).map_err(|_| Error::NoMemory { bytes })?;
    pages.extend(region.chunks(PAGE).zip(copy.chunks_mut(PAGE)));
    pages.shuffle(&mut rand::rng());
    let progress = Progress::of(pages.len());
    let share = pages.len().div_ceil(threads);

    // The pages are dealt when all threads are there, who wait for this lock. If one cannot be
    // started there is nothing to deal, and the others end.
    let hands = Mutex::new([].chunks_mut(share));
    let ready = Barrier::new(2);
    let next_hand = || lock(&hands).next().unwrap_or_default();
    thread::scope(|scope| {
        let mut dealing = lock(&hands);
        let mut workers = Vec::with_capacity(threads);
        for number in 1..=threads {
            let work = || {
                ready.wait();
                touch(next_hand(), &progress)
            };
            let worker = memory::headroom()
                .and_then(|()| thread::Builder::new().spawn_scoped(scope, work))
                .map_err(|reason| Error::Thread { number, reason })?;
            // One at a time: what a thread allocates as it starts must find its room.
            ready.wait();
            workers.push(worker);
        }
        *dealing = pages.chunks_mut(share);
        drop(dealing);
        let times = workers.into_iter().map(|worker| match worker.join() {
            Ok(time) => time,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        Ok(times.sum())
    })
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread's hand of pages: the first read of each is the fault, and all that is timed.
fn touch(hand: &mut [Task<'_>], progress: &Progress) -> Duration {
    let mut touching = Duration::ZERO;
    for (page, copy) in hand {
        let start = Instant::now();
        black_box(page[0]);
        touching += start.elapsed();
        copy.copy_from_slice(page);
        progress.one_more();
    }
    touching
}
