//! Pages touched by several threads in random order, each touch timed and each page checked.

use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pervma_pager::Region;

use crate::error::Error;
use crate::input::{Input, PAGE};
use crate::latency::Latency;
use crate::memory;
use crate::order::Order;
use crate::progress::Progress;

/// Memory whose pages are made present when they are touched, or a file that is read instead.
pub(crate) trait Pages: Sync {
    /// Waits until the first byte of the page at this offset can be used.
    fn touch(&self, at: usize, page: &mut [u8]) -> Result<(), Error>;

    /// The whole page, which has just been touched.
    fn copy(&self, at: usize, page: &mut [u8]);
}

impl Pages for Region {
    fn touch(&self, at: usize, page: &mut [u8]) -> Result<(), Error> {
        self.read(at, &mut page[..1]);
        Ok(())
    }

    fn copy(&self, at: usize, page: &mut [u8]) {
        self.read(at, page);
    }
}

/// Ordinary reads: a touch reads a page from the file.
impl Pages for Input {
    fn touch(&self, at: usize, page: &mut [u8]) -> Result<(), Error> {
        self.read(at, page)
    }

    fn copy(&self, _at: usize, _page: &mut [u8]) {}
}

/// What is touched, what it must hold, and by how many threads it is touched.
#[derive(Clone, Copy)]
pub(crate) struct Touching<'a> {
    /// What each page must hold.
    pub(crate) input: &'a Input,
    /// Bytes.
    pub(crate) len: usize,
    /// No more than there are pages.
    pub(crate) threads: usize,
    pub(crate) order: Order,
}

/// The times of touches, and whether the bytes matched.
#[derive(Clone, Debug)]
pub(crate) struct Touched {
    pub(crate) latency: Latency,
    /// From the first touch to the last check.
    pub(crate) wall: Duration,
    /// The time of the touches themselves, of the thread that touched longest.
    pub(crate) touching: Duration,
    /// The sum of that over all threads.
    pub(crate) sum: Duration,
    /// Whether each page held what the file does.
    pub(crate) matches: bool,
}

impl Touched {
    fn none() -> Self {
        let zero = Duration::ZERO;
        Self { latency: Latency::new(), wall: zero, touching: zero, sum: zero, matches: true }
    }

    fn merge(&mut self, other: &Self) {
        self.latency.merge(&other.latency);
        self.touching = self.touching.max(other.touching);
        self.sum += other.sum;
        self.matches &= other.matches;
    }
}

impl Touching<'_> {
    /// Touches each page once.
    pub(crate) fn run(&self, pages: &impl Pages, progress: &Progress) -> Result<Touched, Error> {
        let count = self.len.div_ceil(PAGE);
        let share = count.div_ceil(self.threads);
        // No thread begins before all have started: they wait for this lock. If one cannot be
        // started, nothing is touched and the others end.
        let begin = Mutex::new(false);
        let started = Barrier::new(2);
        thread::scope(|scope| {
            let mut begins = lock(&begin);
            let mut workers = Vec::with_capacity(self.threads);
            for number in 0..self.threads {
                let (begin, started) = (&begin, &started);
                let work = move || {
                    started.wait();
                    let indices = number * share..count.min((number + 1) * share);
                    if *lock(begin) {
                        self.touch(pages, indices, count, progress)
                    } else {
                        Ok(Touched::none())
                    }
                };
                let worker = memory::headroom()
                    .and_then(|()| thread::Builder::new().spawn_scoped(scope, work))
                    .map_err(|reason| Error::Thread { number: number + 1, reason })?;
                // One at a time: each finds address space for what it allocates as it starts.
                started.wait();
                workers.push(worker);
            }
            let start = Instant::now();
            *begins = true;
            drop(begins);
            let mut touched = Touched::none();
            for worker in workers {
                touched.merge(&join(worker.join())?);
            }
            touched.wall = start.elapsed();
            Ok(touched)
        })
    }

    /// Touches one thread's share. Only the first touch of each page is timed.
    fn touch(
        &self,
        pages: &impl Pages,
        indices: std::ops::Range<usize>,
        count: usize,
        progress: &Progress,
    ) -> Result<Touched, Error> {
        let mut touched = Touched::none();
        let (mut copy, mut expected) = ([0; PAGE], [0; PAGE]);
        for index in indices {
            let page = self.order.at(index);
            let at = page * PAGE;
            let len = PAGE.min(self.len - at);
            let (copy, expected) = (&mut copy[..len], &mut expected[..len]);
            let start = Instant::now();
            pages.touch(at, copy)?;
            let time = start.elapsed();
            touched.sum += time;
            touched.latency.add(page, count, time);
            pages.copy(at, copy);
            self.input.read(at, expected)?;
            touched.matches &= copy == expected;
            progress.one_more(index);
        }
        touched.touching = touched.sum;
        Ok(touched)
    }
}

pub(crate) fn join<V>(joined: thread::Result<V>) -> V {
    match joined {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
