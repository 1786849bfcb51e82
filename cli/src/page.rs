//! `pervma page`: every page of a file, faulted in from several threads in random order.

use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::sync::{Barrier, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pervma_pager::{FileSource, InSignal, LiveRegion, OnFailure, Options, Source};
use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};

use crate::args::{Mode, PageOptions};
use crate::churn::{Churned, churn};
use crate::error::Error;
use crate::input::{Input, hex};
use crate::memory;
use crate::progress::Progress;
use crate::report::Report;

/// The size of a page in bytes.
pub(crate) const PAGE: usize = 4096;

/// For so long a churned region is read again and again, until enough has been faulted twice.
const PATIENCE: Duration = Duration::from_secs(60);

/// A page of the region by its offset, and where its copy goes.
type Task<'a> = (usize, &'a mut [u8]);

/// Pages the file and reports how that went.
pub(crate) fn run(options: &PageOptions) -> Result<Report, Error> {
    let threads = options.threads.or(thread::available_parallelism().ok());
    let input = Input::open(options.file.as_deref())?;
    let region = map(&input, options)?;
    let bytes = region.len();
    let pages = bytes.div_ceil(PAGE);
    // No more threads than pages: the others would have nothing to touch.
    let threads = threads.map_or(1, NonZeroUsize::get).min(pages);
    let mut copy = zeros(bytes)?;

    let before = pervma_pager::stats();
    let paged = Paging { region: &region, threads, churn: options.churn }.run(&mut copy)?;
    let (serves_system_calls, most_resident) =
        (region.serves_system_calls(), region.most_resident());
    // All of its faults are counted then.
    drop(region);
    let counted = pervma_pager::stats() - before;

    let mut hash = Sha256::new();
    hash.update(&copy);
    let file_sha256 = input.sha256()?;
    if input.size()? < bytes as u64 {
        return Err(Error::Shortened { file: input.path });
    }
    Ok(Report {
        sha256: hex(hash),
        file_sha256,
        file: input.path,
        bytes,
        pages,
        threads,
        mode: options.mode,
        granule: options.granule.bytes(),
        serves_system_calls,
        resident: options.resident,
        most_resident,
        touching: paged.touching,
        first_faults: if options.churn { paged.first_faults } else { counted.faults },
        same_again: paged.same_again,
        counted,
        churned: paged.churned,
    })
}

/// Maps the file, if there is memory for it and for its copy.
fn map(input: &Input, options: &PageOptions) -> Result<LiveRegion, Error> {
    let file = input.reopen()?;
    let source = FileSource::new(file)
        .map_err(|reason| Error::Source { file: input.path.clone(), reason })?;
    let bytes = source.size();
    let resident = options.resident.map_or(bytes, |resident| bytes.min(resident as u64));
    let needed = bytes.saturating_add(resident);
    if let Some(available) = memory::available()
        && needed > available
    {
        return Err(Error::TooLarge { file: input.path.clone(), bytes, needed, available });
    }
    // The process ends with it, and so does the text.
    let gone = Box::leak(
        format!("pervma: {}\n", Error::Shortened { file: input.path.clone() }).into_boxed_str(),
    );
    let how: Options<InSignal> = Options::new()
        .granule(options.granule.bytes())
        .on_failure(OnFailure::exit(crate::BAD_INPUT.into(), gone));
    let how = options.resident.map_or(how.clone(), |bytes| how.resident(bytes));
    Ok(match options.mode {
        Mode::Signal => how.map(source)?,
        Mode::Thread => how.in_thread().map(source)?,
    })
}

fn zeros(bytes: usize) -> Result<Vec<u8>, Error> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(bytes).map_err(|_| Error::NoMemory { bytes })?;
    zeros.resize(bytes, 0);
    Ok(zeros)
}

/// How the pages are read.
struct Paging<'a> {
    region: &'a LiveRegion,
    threads: usize,
    churn: bool,
}

/// How that went.
struct Paged {
    /// The time of the first touches, all threads together.
    touching: Duration,
    /// Faults until every page was touched.
    first_faults: u64,
    /// Whether what was read again was the same.
    same_again: bool,
    churned: Option<Churned>,
}

impl Paging<'_> {
    /// Copies every page to its place, in random order, dealt to the threads.
    fn run(&self, copy: &mut [u8]) -> Result<Paged, Error> {
        // The pages at the end are the churning thread's own.
        let own = if self.churn { copy.len() / 16 / PAGE * PAGE } else { 0 };
        let others = (copy.len() - own) / PAGE * PAGE;
        let others = if own == 0 { copy.len() } else { others };
        let (copy, own_copy) = copy.split_at_mut(others);

        let mut pages: Vec<Task<'_>> = Vec::new();
        let count = others.div_ceil(PAGE);
        let bytes = count.saturating_mul(size_of::<Task<'_>>());
        pages.try_reserve_exact(count).map_err(|_| Error::NoMemory { bytes })?;
        pages.extend((0..).step_by(PAGE).zip(copy.chunks_mut(PAGE)));
        pages.shuffle(&mut rand::rng());
        let progress = Progress::of(pages.len());
        let threads = self.threads.min(count);
        let share = pages.len().div_ceil(threads);
        self.region.read(others, own_copy);

        // The pages are dealt when all threads are there, who wait for this lock. If one cannot be
        // started there is nothing to deal, and the others end.
        let hands = Mutex::new([].chunks_mut(share));
        let ready = Barrier::new(2);
        let next_hand = || lock(&hands).next().unwrap_or_default();
        let done = OnceLock::new();
        let (passed, passes) = mpsc::channel();
        thread::scope(|scope| {
            let mut dealing = lock(&hands);
            // Whatever happens, nobody waits for the end.
            let ending = Ending(&done);
            let mut workers = Vec::with_capacity(threads);
            for number in 1..=threads {
                let (ready, next_hand, progress, done) = (&ready, &next_hand, &progress, &done);
                let passed = passed.clone();
                let work = move || {
                    ready.wait();
                    let hand = next_hand();
                    let touching = self.touch(hand, progress);
                    // The other end waits for all of them.
                    let _ = passed.send(());
                    (touching, !self.churn || self.reread(hand, passed, done))
                };
                let worker = memory::headroom()
                    .and_then(|()| thread::Builder::new().spawn_scoped(scope, work))
                    .map_err(|reason| Error::Thread { number, reason })?;
                // One at a time: what a thread allocates as it starts must find its room.
                ready.wait();
                workers.push(worker);
            }
            drop(passed);
            let churner = self.churn.then(|| {
                let (own, expected, done) = (others..others + own_copy.len(), &*own_copy, &done);
                thread::Builder::new()
                    .spawn_scoped(scope, move || churn(self.region, own, expected, done))
                    .map_err(|reason| Error::Thread { number: threads + 1, reason })
            });
            let churner = churner.transpose()?;
            let before = pervma_pager::stats();
            *dealing = pages.chunks_mut(share);
            drop(dealing);

            // Of those that have panicked nothing comes.
            let passes = || (0..threads).all(|_| passes.recv().is_ok());
            passes();
            let first_faults = (pervma_pager::stats() - before).faults;
            if self.churn {
                passes();
                self.wait_for_churn(before);
            }
            drop(ending);

            let churned = churner.map(|churner| join(churner.join())).transpose()?;
            let mut touching = Duration::ZERO;
            let mut same_again = true;
            for worker in workers {
                let (time, same) = join(worker.join());
                touching += time;
                same_again &= same;
            }
            Ok(Paged { touching, first_faults, same_again, churned })
        })
    }

    /// One thread's hand of pages: the first touch of each is the fault, and all that is timed.
    fn touch(&self, hand: &mut [Task<'_>], progress: &Progress) -> Duration {
        let mut touching = Duration::ZERO;
        for (at, copy) in hand {
            let start = Instant::now();
            self.region.read(*at, &mut [0]);
            touching += start.elapsed();
            self.region.read(*at, copy);
            progress.one_more();
        }
        touching
    }

    /// Reads the pages of a hand again, and once more, until `done`; tells when all were read
    /// again, and returns whether they were always the same.
    fn reread(&self, hand: &[Task<'_>], passed: mpsc::Sender<()>, done: &OnceLock<()>) -> bool {
        let mut page = [0; PAGE];
        let mut is_same = |(at, copy): &Task<'_>| {
            let page = &mut page[..copy.len()];
            self.region.read(*at, page);
            page == &**copy
        };
        let same_again = hand.iter().all(&mut is_same);
        // As above.
        let _ = passed.send(());
        drop(passed);
        let mut undone = hand.iter().cycle().take_while(|_| done.get().is_none());
        same_again && undone.all(is_same)
    }

    /// Waits until the region was churned enough, or for so long that it will never be.
    fn wait_for_churn(&self, before: pervma_pager::Stats) {
        let pages = self.region.len().div_ceil(PAGE);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if Report::is_churned(&(pervma_pager::stats() - before), pages) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Tells the others that it is over.
struct Ending<'a>(&'a OnceLock<()>);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.get_or_init(|| ());
    }
}

fn join<V>(joined: thread::Result<V>) -> V {
    match joined {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
