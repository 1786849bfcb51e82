//! How long touches took: counted by length and by place, with no list of them.

use std::time::Duration;

/// Values below this are counted each by itself, larger ones with a precision of 1 in 32.
const EXACT: u64 = 64;
const STEPS: u64 = 32;

/// The number of parts of the file that are counted apart.
pub(crate) const PARTS: usize = 128;

/// Times in ns, counted by their length.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    longest: u64,
}

impl Histogram {
    pub(crate) fn add(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = bucket(ns);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.longest = self.longest.max(ns);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, other) in self.counts.iter_mut().zip(&other.counts) {
            *count += other;
        }
        self.longest = self.longest.max(other.longest);
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(crate) fn longest(&self) -> u64 {
        self.longest
    }

    /// Returns the time in ns that so many thousandths of all times do not exceed; 0 without any.
    pub(crate) fn per_mille(&self, thousandths: u64) -> u64 {
        let wanted = (u128::from(self.count()) * u128::from(thousandths)).div_ceil(1000).max(1);
        let mut sum = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            sum += u128::from(*count);
            if sum >= wanted {
                return (lowest(bucket + 1) - 1).min(self.longest);
            }
        }
        self.longest
    }

    /// Returns how many times there are from each power of two of ns up to the next, from the first
    /// that has some to the last.
    pub(crate) fn by_power(&self) -> Vec<(u64, u64)> {
        let mut powers: Vec<(u64, u64)> = Vec::new();
        for (bucket, &count) in self.counts.iter().enumerate() {
            let power = 1 << lowest(bucket).max(1).ilog2();
            match powers.last_mut() {
                Some((last, sum)) if *last == power => *sum += count,
                _ => powers.push((power, count)),
            }
        }
        let first = powers.iter().position(|(_, count)| *count > 0).unwrap_or(powers.len());
        let last = powers.iter().rposition(|(_, count)| *count > 0).map_or(first, |last| last + 1);
        powers[first..last].to_vec()
    }
}

fn bucket(ns: u64) -> usize {
    let bucket = if ns < EXACT {
        ns
    } else {
        let power = u64::from(ns.ilog2());
        EXACT + (power - 6) * STEPS + (ns >> (power - 5)) % STEPS
    };
    // Below 2,000.
    bucket as usize
}

/// Returns the shortest time in a bucket.
fn lowest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < EXACT {
        return bucket;
    }
    let (power, step) = ((bucket - EXACT) / STEPS + 6, (bucket - EXACT) % STEPS);
    // Of the bucket after the last one, nothing is in 64 bits.
    (STEPS + step).checked_shl((power - 5) as u32).filter(|_| power < 64).unwrap_or(u64::MAX)
}

/// The times of touches in a part of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) touches: u64,
    pub(crate) ns: u64,
    pub(crate) longest: u64,
}

/// The times of touches.
#[derive(Clone, Debug)]
pub(crate) struct Latency {
    pub(crate) histogram: Histogram,
    /// By place in the file.
    pub(crate) parts: [Part; PARTS],
}

impl Latency {
    pub(crate) fn new() -> Self {
        Self { histogram: Histogram::default(), parts: [Part::default(); PARTS] }
    }

    /// Counts a touch of one of so many pages.
    pub(crate) fn add(&mut self, page: usize, pages: usize, time: Duration) {
        self.histogram.add(time);
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let part = &mut self.parts[part_of(page, pages)];
        part.touches += 1;
        part.ns = part.ns.saturating_add(ns);
        part.longest = part.longest.max(ns);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.histogram.merge(&other.histogram);
        for (part, other) in self.parts.iter_mut().zip(&other.parts) {
            part.touches += other.touches;
            part.ns = part.ns.saturating_add(other.ns);
            part.longest = part.longest.max(other.longest);
        }
    }
}

fn part_of(page: usize, pages: usize) -> usize {
    let part = page as u128 * PARTS as u128 / (pages as u128).max(1);
    (part as usize).min(PARTS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(times: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        times.into_iter().for_each(|ns| histogram.add(Duration::from_nanos(ns)));
        histogram
    }

    #[test]
    fn buckets_follow_each_other_and_are_narrow() {
        for ns in (0..10_000).chain([1 << 20, (1 << 40) + 5, u64::MAX - 1, u64::MAX]) {
            let bucket = bucket(ns);
            let (low, next) = (lowest(bucket), lowest(bucket + 1));
            assert!(low <= ns && (ns < next || next == u64::MAX), "{ns}: {low}..{next}");
            assert!(next - low <= 1.max(low / STEPS), "{ns}: {low}..{next}");
        }
    }

    #[test]
    fn percentiles_are_exact_to_one_in_32() {
        let histogram = of(1..=100_000);
        for (thousandths, exact) in [(500, 50_000), (990, 99_000), (999, 99_900), (1000, 100_000)] {
            let found = histogram.per_mille(thousandths);
            assert!(exact <= found && found <= exact + exact / STEPS, "{found} for {exact}");
        }
        assert_eq!(of([7]).per_mille(999), 7);
        assert_eq!(of([]).per_mille(500), 0);
        assert_eq!(of([1 << 40]).per_mille(500), 1 << 40, "none is longer than the longest");
    }

    #[test]
    fn parts_together_are_the_whole() {
        let (mut one, mut other) = (of([1, 100, 5000]), of([2, 1 << 30]));
        one.merge(&other);
        assert_eq!((one.count(), one.longest()), (5, 1 << 30));
        other.merge(&of([1, 100, 5000]));
        assert_eq!(one.by_power(), other.by_power());
        assert_eq!(one.by_power().len(), 31);
        assert_eq!(one.by_power().iter().map(|(_, count)| count).sum::<u64>(), 5);
        assert_eq!(of([]).by_power(), []);
    }

    #[test]
    fn touches_are_counted_where_they_were() {
        let mut latency = Latency::new();
        for page in 0..3 {
            latency.add(page, 3, Duration::from_nanos(page as u64 + 1));
        }
        let taken: Vec<_> = latency.parts.iter().filter(|part| part.touches > 0).collect();
        assert_eq!(taken.iter().map(|part| part.ns).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(latency.parts[0].longest, 1);
        assert_eq!(part_of(usize::MAX - 1, usize::MAX), PARTS - 1);
    }
}
