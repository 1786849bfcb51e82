//! Counting faults and how their lookups ended.
#![expect(
    clippy::disallowed_types,
    reason = "statistics: relaxed counters that nothing is decided by"
)]

use std::cell::Cell;
use std::ops::Sub;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// More than the processors of most machines; threads beyond it share.
const SHARDS: usize = 64;

static COUNTERS: [Shard; SHARDS] = [const { Shard::new() }; SHARDS];

/// What the threads of this process have counted so far.
///
/// A thread that serves a region counts a fault just after it has woken the thread that waited for
/// it; when the region was dropped, everything of it is counted.
///
/// Snapshots are subtracted to count what lies between them, the earlier from the later; the
/// other way round gives zeros.
///
/// ```
/// use pervma_pager::{FrozenRegion, MemorySource, stats};
///
/// let region = FrozenRegion::map(MemorySource::new(vec![1; 3 * 4096]))?;
/// let before = stats();
/// assert_eq!(region[0] + region[4096] + region[4097], 3);
/// let counted = stats() - before;
/// assert!(counted.faults >= 2 && counted.lookups_first_try >= 2);
/// # Ok::<(), pervma_pager::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Faults of regions after which the page was present, filled by this fault or by another
    /// thread's at the same time; and first writes to pages whose writes are tracked.
    pub faults: u64,
    /// Pages of 4096 bytes that faults filled from a source; with granules, several a fault.
    pub pages: u64,
    /// Pages of 4096 bytes that came back to their regions and were not read again: they had gone
    /// to keep a bound, and their bytes were still kept.
    pub returned: u64,
    /// Accesses whose page could not be had.
    pub failures: u64,
    /// Pages of 4096 bytes that were given back to stay within a bound.
    pub evicted: u64,
    /// Pages of 4096 bytes that were written to their source.
    pub written_back: u64,
    /// Attempts to write pages to their source to keep a bound that failed.
    pub write_back_failures: u64,
    /// Lookups that found the region in their first walk.
    pub lookups_first_try: u64,
    /// Lookups that needed more walks.
    pub lookups_retried: u64,
    /// Lookups that changes in the address space kept from an answer: the thread rested and the
    /// access was repeated.
    pub lookups_slow: u64,
}

macro_rules! counters {
    ($($field:ident),* $(,)?) => {
        impl Sub for Stats {
            type Output = Self;

            fn sub(self, earlier: Self) -> Self {
                Self { $($field: self.$field.saturating_sub(earlier.$field)),* }
            }
        }

        /// What has been counted so far in this process, all threads together.
        #[must_use]
        pub fn stats() -> Stats {
            let mut sum = Stats::default();
            for shard in &COUNTERS {
                // RELAXED: a thread sees its own counts and those of the threads it has joined.
                $(sum.$field += shard.$field.load(Relaxed);)*
            }
            sum
        }

        /// The counters of the threads that share a shard, apart from all others (two lines, since
        /// processors fetch lines in pairs).
        #[repr(align(128))]
        pub(crate) struct Shard {
            $($field: AtomicU64,)*
        }

        impl Shard {
            const fn new() -> Self {
                Self { $($field: AtomicU64::new(0)),* }
            }
        }
    };
}

counters!(
    faults,
    pages,
    returned,
    failures,
    evicted,
    written_back,
    write_back_failures,
    lookups_first_try,
    lookups_retried,
    lookups_slow,
);

/// The running thread's number among the shards. Legal in a signal handler: a plain cell, dealt in
/// turn.
#[inline]
fn mine() -> usize {
    /// Not yet dealt.
    const NONE: usize = usize::MAX;
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(NONE) };
    }
    static NEXT: AtomicUsize = AtomicUsize::new(0);

    let mut mine = MINE.get();
    if mine == NONE {
        // RELAXED: the number only spreads threads.
        mine = NEXT.fetch_add(1, Relaxed) % SHARDS;
        MINE.set(mine);
    }
    mine
}

/// What has been counted of a region so far. Pages are counted in units of 4096 bytes.
///
/// A thread that serves a region counts just after it has let go on who waited for it.
///
/// ```
/// use pervma_pager::{MemorySource, Options};
///
/// let region = Options::new().map(MemorySource::new(vec![1; 8 * 4096]))?;
/// region.read(0, &mut [0; 2 * 4096]);
/// region.discard(0..4096)?;
/// let stats = region.stats();
/// assert_eq!((stats.faults, stats.pages, stats.given_back), (2, 2, 1));
/// assert_eq!(stats.resident, 4096);
/// # Ok::<(), pervma_pager::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionStats {
    /// Faults after which the page was present, and first writes to pages whose writes are tracked;
    /// also those that a thread has served for itself before an access
    /// ([`Region::read_checked`](crate::Region::read_checked) and its like).
    pub faults: u64,
    /// Pages that were filled from the source.
    pub pages: u64,
    /// Pages that came back and were not read again: they had gone to keep a bound, and their bytes
    /// were still kept.
    pub returned: u64,
    /// Pages that were given back: to keep a bound, by operations, by a move to other addresses.
    pub given_back: u64,
    /// Pages that were written to the source.
    pub written_back: u64,
    /// Accesses whose page could not be had.
    pub failures: u64,
    /// Attempts to write pages to the source to keep a bound that failed.
    pub write_back_failures: u64,
    /// Bytes that are present: what was filled and not given back. With a bound it is at most that,
    /// but for what is under way; [`Region::resident`](crate::Region::resident) counts that too.
    pub resident: u64,
}

/// The counters of a region.
#[derive(Debug, Default)]
pub(crate) struct Counters(Box<[RegionShard; Self::SHARDS]>);

/// Those of the threads that share them, in two lines of their own, as above.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct RegionShard {
    pub(crate) faults: Counter,
    pub(crate) pages: Counter,
    pub(crate) returned: Counter,
    pub(crate) given_back: Counter,
    pub(crate) written_back: Counter,
    pub(crate) failures: Counter,
    pub(crate) write_back_failures: Counter,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Relaxed);
    }
}

impl Counters {
    /// Fewer than those of the process: there are many regions.
    const SHARDS: usize = 8;

    /// The running thread's.
    #[inline]
    pub(crate) fn mine(&self) -> &RegionShard {
        &self.0[mine() % Self::SHARDS]
    }

    pub(crate) fn stats(&self) -> RegionStats {
        // RELAXED: as for the process.
        let sum = |counter: fn(&RegionShard) -> &Counter| {
            self.0.iter().map(|shard| counter(shard).0.load(Relaxed)).sum::<u64>()
        };
        // In this order: a page is given back after it was filled.
        let given_back = sum(|shard| &shard.given_back);
        let [pages, returned] = [sum(|shard| &shard.pages), sum(|shard| &shard.returned)];
        RegionStats {
            faults: sum(|shard| &shard.faults),
            pages,
            returned,
            given_back,
            written_back: sum(|shard| &shard.written_back),
            failures: sum(|shard| &shard.failures),
            write_back_failures: sum(|shard| &shard.write_back_failures),
            resident: (pages + returned).saturating_sub(given_back) * 4096,
        }
    }
}

impl Shard {
    /// The running thread's.
    #[inline]
    pub(crate) fn mine() -> &'static Self {
        &COUNTERS[mine()]
    }

    /// Counts a lookup that found the region after so many walks.
    #[inline]
    pub(crate) fn count_lookup(&self, walks: u32) {
        let counter = if walks == 1 { &self.lookups_first_try } else { &self.lookups_retried };
        counter.fetch_add(1, Relaxed);
    }

    /// Counts a lookup that got no answer.
    pub(crate) fn count_slow(&self) {
        self.lookups_slow.fetch_add(1, Relaxed);
    }

    /// Counts a fault whose page is present now.
    #[inline]
    pub(crate) fn count_fault(&self) {
        self.faults.fetch_add(1, Relaxed);
    }

    /// The faults of the threads that share the shard.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Relaxed)
    }

    /// Counts pages that a fault filled.
    #[inline]
    pub(crate) fn count_pages(&self, pages: usize) {
        self.pages.fetch_add(pages as u64, Relaxed);
    }

    /// Counts pages whose bytes were kept.
    #[inline]
    pub(crate) fn count_returned(&self, pages: usize) {
        self.returned.fetch_add(pages as u64, Relaxed);
    }

    /// Counts an access whose page cannot be had.
    pub(crate) fn count_failure(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    /// Counts pages that were given back.
    pub(crate) fn count_evicted(&self, pages: usize) {
        self.evicted.fetch_add(pages as u64, Relaxed);
    }

    /// Counts an attempt to write pages that failed.
    pub(crate) fn count_write_back_failure(&self) {
        self.write_back_failures.fetch_add(1, Relaxed);
    }

    /// Counts pages that were written to their source.
    pub(crate) fn count_written_back(&self, pages: usize) {
        self.written_back.fetch_add(pages as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_counts_shows() {
        let before = stats();
        let mine = Shard::mine();
        mine.count_lookup(1);
        mine.count_lookup(2);
        mine.count_slow();
        mine.count_fault();
        let counted = stats() - before;
        assert!(counted.faults >= 1 && counted.lookups_first_try >= 1);
        assert!(counted.lookups_retried >= 1 && counted.lookups_slow >= 1);
    }

    #[test]
    fn threads_get_shards_of_their_own() {
        let mine = std::ptr::from_ref(Shard::mine()).addr();
        let other = std::thread::spawn(|| std::ptr::from_ref(Shard::mine()).addr());
        assert_ne!(mine, other.join().unwrap());
    }
}
