//! The middle of many samples, and how far they spread.

use serde::{Deserialize, Serialize};

/// Median and quartiles.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) upper_quartile: f64,
}

impl Summary {
    /// `None` without samples, or where one is not a number.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        if sorted.is_empty() || sorted.iter().any(|sample| !sample.is_finite()) {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let at = |quarters: usize| sorted[(sorted.len() - 1) * quarters / 4];
        Some(Self { median: at(2), lower_quartile: at(1), upper_quartile: at(3) })
    }

    /// Of what is counted, not sampled.
    pub(crate) fn exactly(figure: f64) -> Self {
        Self { median: figure, lower_quartile: figure, upper_quartile: figure }
    }
}

/// The smallest of `sorted` that so many thousandths of them do not exceed.
///
/// # Panics
///
/// Without samples.
pub(crate) fn per_mille<T: Copy>(sorted: &[T], thousandths: usize) -> T {
    sorted[(sorted.len() * thousandths).div_ceil(1000).max(1) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter() {
        let summary = Summary::of([5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!(
            (summary.lower_quartile, summary.median, summary.upper_quartile),
            (2.0, 3.0, 4.0)
        );
        assert!(Summary::of([]).is_none());
        assert!(Summary::of([1.0, f64::NAN]).is_none());
    }

    #[test]
    fn percentiles() {
        let sorted: Vec<u64> = (1..=2000).collect();
        assert_eq!(
            [500, 990, 999, 1000].map(|at| per_mille(&sorted, at)),
            [1000, 1980, 1998, 2000]
        );
        assert_eq!(per_mille(&[7], 999), 7);
        assert_eq!(per_mille(&[7, 8], 0), 7);
    }
}
