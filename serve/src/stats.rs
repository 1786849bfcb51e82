//! What a pager counts.
#![expect(clippy::disallowed_types, reason = "numbers that guard no memory")]

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What is counted of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counter {
    Faults,
    Pages,
    Zeros,
    Ahead,
    Reads,
    Retries,
    Poisoned,
    Removes,
    Unmaps,
    Remaps,
    Forks,
}

pub(crate) const COUNTERS: usize = Counter::Forks as usize + 1;

/// Counts of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counters<'c>(&'c [AtomicU64; COUNTERS]);

impl<'c> Counters<'c> {
    pub(crate) fn of(counts: &'c [AtomicU64; COUNTERS]) -> Self {
        Self(counts)
    }

    pub(crate) fn add(self, counter: Counter, count: u64) {
        // RELAXED: here and below, numbers that guard nothing.
        self.0[counter as usize].fetch_add(count, Relaxed);
    }

    pub(crate) fn get(self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Relaxed)
    }

    pub(crate) fn stats(self) -> Stats {
        // RELAXED: as above.
        Stats::of_words(std::array::from_fn(|counter| self.0[counter].load(Relaxed)))
    }
}

/// Counts of a client, or of several together, since they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Faults that were answered with a page.
    pub faults: u64,
    /// Pages of 4096 bytes that were filled with bytes.
    pub pages: u64,
    /// Pages of 4096 bytes that were filled with zeros at no cost.
    pub zeros: u64,
    /// Granules that were filled ahead of faults, and pieces, of at most 64 KiB, of what was
    /// replayed.
    pub ahead: u64,
    /// Reads of the source that were waited for.
    pub reads: u64,
    /// Reads that failed, and were tried again.
    pub retries: u64,
    /// Pages, of their own size, that could not be had while the client was served otherwise.
    pub poisoned: u64,
    /// Ranges that were removed.
    pub removes: u64,
    /// Ranges that were unmapped.
    pub unmaps: u64,
    /// Ranges that moved.
    pub remaps: u64,
    /// Children that were forked.
    pub forks: u64,
}

impl Stats {
    pub(crate) fn to_words(self) -> [u64; COUNTERS] {
        let Self { faults, pages, zeros, ahead, reads, retries, poisoned, .. } = self;
        let Self { removes, unmaps, remaps, forks, .. } = self;
        [faults, pages, zeros, ahead, reads, retries, poisoned, removes, unmaps, remaps, forks]
    }

    /// In the order of [`Counter`].
    pub(crate) fn of_words(words: [u64; COUNTERS]) -> Self {
        let [faults, pages, zeros, ahead, reads, retries, poisoned, ..] = words;
        let [.., removes, unmaps, remaps, forks] = words;
        Self {
            faults,
            pages,
            zeros,
            ahead,
            reads,
            retries,
            poisoned,
            removes,
            unmaps,
            remaps,
            forks,
        }
    }
}

impl std::ops::AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        self.faults += other.faults;
        self.pages += other.pages;
        self.zeros += other.zeros;
        self.ahead += other.ahead;
        self.reads += other.reads;
        self.retries += other.retries;
        self.poisoned += other.poisoned;
        self.removes += other.removes;
        self.unmaps += other.unmaps;
        self.remaps += other.remaps;
        self.forks += other.forks;
    }
}

/// How long answers took, from when a fault was read: a histogram, exact to an eighth.
pub struct Latency {
    buckets: Box<[AtomicU64; BUCKETS]>,
}

/// Steps to each power of two.
const STEPS: u64 = 8;
const BUCKETS: usize = 64 * STEPS as usize;

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: Box::new([const { AtomicU64::new(0) }; BUCKETS]) }
    }
}

impl Latency {
    pub(crate) fn add(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(nanos)].fetch_add(1, Relaxed);
    }

    fn bucket(nanos: u64) -> usize {
        let power = nanos.max(STEPS).ilog2();
        let step = (nanos >> (power - STEPS.ilog2())).saturating_sub(STEPS);
        (u64::from(power - STEPS.ilog2()) * STEPS + step) as usize
    }

    /// The shortest time of a bucket, in nanoseconds.
    fn start(bucket: usize) -> u64 {
        let (power, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
        (STEPS + step) << power.min(60)
    }

    /// The times within which these shares of the answers were given, and of how many answers.
    #[must_use]
    pub fn quantiles<const N: usize>(&self, shares: [f64; N]) -> (u64, [Duration; N]) {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        let quantile = |share: f64| {
            let wanted = (share * all as f64).ceil() as u64;
            let mut seen = 0;
            let reaches = |count: &u64| {
                seen += count;
                seen >= wanted.max(1)
            };
            let bucket = counts.iter().position(reaches).unwrap_or(0);
            Duration::from_nanos(if all == 0 { 0 } else { Self::start(bucket + 1) })
        };
        (all, shares.map(quantile))
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, [half, most]) = self.quantiles([0.5, 0.99]);
        write!(f, "Latency({count}, {half:?}, {most:?})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact_to_an_eighth() {
        let latency = Latency::default();
        assert_eq!(latency.quantiles([0.5]), (0, [Duration::ZERO]));
        for micros in 1..=1000 {
            latency.add(Duration::from_micros(micros));
        }
        let (count, quantiles) = latency.quantiles([0.5, 0.99, 1.0]);
        assert_eq!(count, 1000);
        for (found, exact) in quantiles.into_iter().zip([500, 990, 1000]) {
            let exact = Duration::from_micros(exact);
            assert!(found >= exact && found <= exact * 9 / 8, "{found:?} for {exact:?}");
        }
    }

    #[test]
    fn every_time_has_a_bucket() {
        for nanos in [0, 1, 7, 8, 9, 15, 16, 1 << 40, u64::MAX] {
            let bucket = Latency::bucket(nanos);
            assert!(Latency::start(bucket) <= nanos.max(STEPS), "{nanos}");
            if bucket + 1 < BUCKETS && nanos < 1 << 60 {
                assert!(nanos < Latency::start(bucket + 1), "{nanos}");
            }
        }
    }
}
