//! Which granules are being read from a source: one thread reads, those that want the same wait.
//! Granules of a source in memory that are being copied are noted as well: others do not wait for
//! them, but copy the page that they want.
//!
//! That a granule is being read is a hint, and decides only who reads it. What was read is in the
//! kernel's page tables when the read is over, and a thread that has waited makes its access again.
#![expect(
    clippy::disallowed_types,
    reason = "the kernel sleeps by plain words, which say what is being read and guard none of the bytes"
)]

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rustix::thread::{Timespec, futex};

use crate::sys::Errno;
use crate::wakeup::nap;

/// The reads of a region that are under way.
#[derive(Debug)]
pub(crate) struct Reads {
    /// Each has the name of the granule that is being read among those of its number, modulo how
    /// many words there are, or 0.
    words: Box<[AtomicU32]>,
}

/// Threads sleep by the word.
const AWAITED: u32 = 1 << 31;
/// No handler thread reads, but one that will not look for faults that were left to it.
const ALONE: u32 = 1 << 30;
/// What is no name.
const FLAGS: u32 = AWAITED | ALONE;
/// A read that takes longer is not waited for: its thread may have been ended in the middle of it.
const PATIENCE: Timespec = if cfg!(test) {
    Timespec { tv_sec: 0, tv_nsec: 20_000_000 }
} else {
    Timespec { tv_sec: 10, tv_nsec: 0 }
};

/// A read that is under way, until it is dropped.
pub(crate) struct Reading<'a> {
    /// `None` if another granule has it: then others do not see this read, and may read as well.
    word: Option<&'a AtomicU32>,
}

impl Reads {
    /// So many words are enough for reads of random granules seldom to meet.
    const MOST: usize = 1024;

    /// Of a region of so many granules, or of more if it becomes longer.
    pub(crate) fn new(granules: usize) -> Self {
        let words = granules.min(Self::MOST);
        Self { words: std::iter::repeat_with(AtomicU32::default).take(words).collect() }
    }

    /// The word of a granule, and the granule's name there.
    fn place(&self, granule: usize) -> Option<(&AtomicU32, u32)> {
        let times = granule.checked_div(self.words.len())?;
        let word = &self.words[granule % self.words.len()];
        Some((word, (times % (ALONE as usize - 1)) as u32 + 1))
    }

    /// The running thread reads a granule; `None` if another one does. Faults in it may be left to
    /// a handler thread only.
    #[inline]
    pub(crate) fn begin(&self, granule: usize, is_handler_thread: bool) -> Option<Reading<'_>> {
        let Some((word, name)) = self.place(granule) else {
            return Some(Reading { word: None });
        };
        let how = if is_handler_thread { name } else { name | ALONE };
        // RELAXED: here and below, it says what is being read, and nothing of the bytes.
        match word.compare_exchange(0, how, Relaxed, Relaxed) {
            Ok(_) => Some(Reading { word: Some(word) }),
            Err(now) if now & !FLAGS == name => None,
            Err(_) => Some(Reading { word: None }),
        }
    }

    /// Whether a thread reads a granule.
    pub(crate) fn are_under_way(&self, granule: usize) -> bool {
        self.place(granule).is_some_and(|(word, name)| word.load(Relaxed) & !FLAGS == name)
    }

    /// Whether a handler thread reads a granule, to which faults in it may be left.
    pub(crate) fn takes_faults(&self, granule: usize) -> bool {
        self.place(granule).is_some_and(|(word, name)| word.load(Relaxed) & !AWAITED == name)
    }

    /// Waits until the read of a granule is over. One that takes too long is taken to be over: the
    /// next thread that wants the granule reads it.
    pub(crate) fn wait(&self, granule: usize) {
        let Some((word, name)) = self.place(granule) else { return };
        let await_it = |now: u32| (now & !FLAGS == name).then_some(now | AWAITED);
        let Ok(before) = word.fetch_update(Relaxed, Relaxed, await_it) else { return };
        let awaited = before | AWAITED;
        match futex::wait(word, futex::Flags::PRIVATE, awaited, Some(&PATIENCE)) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::TIMEDOUT) => {
                if word.compare_exchange(awaited, 0, Relaxed, Relaxed).is_ok() {
                    wake_all(word);
                }
            }
            // A filter: the access is made again from time to time.
            Err(_) => nap(),
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some(word) = self.word
            && word.swap(0, Relaxed) & AWAITED != 0
        {
            wake_all(word);
        }
    }
}

fn wake_all(word: &AtomicU32) {
    // Fails for addresses that are none.
    let _ = futex::wake(word, futex::Flags::PRIVATE, u32::MAX >> 1);
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn one_thread_reads_a_granule() {
        let reads = Reads::new(10);
        let reading = reads.begin(3, true);
        assert!(reading.is_some() && reads.begin(3, true).is_none() && reads.takes_faults(3));
        assert!(reads.begin(4, true).is_some() && !reads.takes_faults(4));
        drop(reading);
        assert!(!reads.takes_faults(3));
        reads.wait(3);
        assert!(reads.begin(3, true).is_some());
    }

    #[test]
    fn granules_of_one_word_do_not_wait_for_each_other() {
        let reads = Reads::new(usize::MAX);
        let first = reads.begin(7, true);
        let second = reads.begin(7 + Reads::MOST, true);
        assert!(first.is_some() && second.is_some());
        drop(second);
        assert!(reads.takes_faults(7) && !reads.takes_faults(7 + Reads::MOST));
        reads.wait(7 + Reads::MOST);
        assert!(
            Reads::new(0).begin(5, true).is_some(),
            "nothing is read, and nothing is waited for"
        );
    }

    #[test]
    fn a_thread_that_does_not_come_back_is_not_waited_for() {
        let reads = Reads::new(10);
        std::mem::forget(reads.begin(3, true));
        while reads.takes_faults(3) {
            reads.wait(3);
        }
        assert!(reads.begin(3, true).is_some(), "the next one reads");
    }

    #[test]
    fn a_thread_that_serves_no_others_is_waited_for_and_left_no_faults() {
        let reads = Reads::new(10);
        let reading = reads.begin(3, false);
        assert!(reading.is_some() && reads.begin(3, true).is_none());
        assert!(!reads.takes_faults(3));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| reads.wait(3));
            drop(reading);
            waiting.join().unwrap();
        });
        assert!(reads.begin(3, true).is_some());
    }

    #[test]
    fn all_waiters_are_woken() {
        const ROUNDS: usize = 1000;
        let reads = Reads::new(1);
        let barrier = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        barrier.wait();
                        reads.wait(0);
                        barrier.wait();
                    }
                });
            }
            for _ in 0..ROUNDS {
                let reading = reads.begin(0, true);
                barrier.wait();
                drop(reading);
                barrier.wait();
            }
        });
    }
}
