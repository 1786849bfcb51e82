//! Numbers in random order, without a list of them.

/// The numbers below a limit, each once, in an order that a key decides.
///
/// A Feistel network over the next power of four permutes all numbers below that; a result that is
/// not below the limit is permuted again, until it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    count: u64,
    /// Bits in each half of a number.
    half: u32,
    key: u64,
}

impl Order {
    pub(crate) fn new(count: usize, key: u64) -> Self {
        let count = count as u64;
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Self { count, half: bits.div_ceil(2).max(1), key }
    }

    /// Returns the number that comes after `index` others.
    pub(crate) fn at(&self, index: usize) -> usize {
        let mut number = index as u64;
        loop {
            number = self.permuted(number);
            if number < self.count {
                // Below a count that was one.
                return number as usize;
            }
        }
    }

    fn permuted(&self, number: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (number >> self.half, number & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ mixed(right ^ self.key.rotate_left(16 * round)) & mask);
        }
        left << self.half | right
    }
}

/// Mixes the bits, as the last step of SplitMix64 does.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_comes_once() {
        for count in (1..70).chain([255, 256, 257, 5000, 65_536, 100_003]) {
            let order = Order::new(count, 7);
            let mut numbers: Vec<usize> = (0..count).map(|index| order.at(index)).collect();
            numbers.sort_unstable();
            assert!(numbers.into_iter().eq(0..count), "{count}");
        }
    }

    #[test]
    fn the_order_looks_random() {
        let order = |key| -> Vec<usize> {
            let order = Order::new(10_000, key);
            (0..10_000).map(|index| order.at(index)).collect()
        };
        let (one, other) = (order(1), order(2));
        let same_place = one.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(same_place < 10, "{same_place}");
        // A neighbour seldom follows, and about half of all steps go up.
        let neighbours = one.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 16).count();
        assert!(neighbours < 100, "{neighbours}");
        let up = one.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((4_800..5_200).contains(&up), "{up}");
    }
}
