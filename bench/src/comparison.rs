//! Implementations take turns, round by round; ratios are computed round by round.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::summary::{Summary, per_mille};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    /// Short operations timed as one, at most.
    pub(crate) batch: usize,
    /// What a batch takes at most, and what a measurement of fixed time takes.
    pub(crate) span: Duration,
    /// Pairs of changes after which memory is looked at again.
    pub(crate) pairs: usize,
    /// Pages that fault in a round.
    pub(crate) pages: usize,
}

impl Effort {
    pub(crate) const FULL: Self = Self {
        rounds: 51,
        batch: 20_000,
        span: Duration::from_millis(20),
        pairs: 1_000_000,
        pages: 4_096,
    };

    pub(crate) const QUICK: Self = Self {
        rounds: 3,
        batch: 2_000,
        span: Duration::from_millis(3),
        pairs: 100_000,
        pages: 1_024,
    };
}

type Turn<'a, I> = Box<dyn FnMut(&I) -> Vec<f64> + 'a>;

/// Implementations, each with what it does in a turn: out of the round's input, which is the same
/// for all, it makes one or more measures.
pub(crate) struct Comparison<'a, I> {
    implementations: Vec<(&'static str, Turn<'a, I>)>,
}

impl<'a, I> Comparison<'a, I> {
    pub(crate) fn new() -> Self {
        Self { implementations: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &'static str, turn: impl FnMut(&I) -> Vec<f64> + 'a) {
        self.implementations.push((name, Box::new(turn)));
    }

    /// Runs all rounds, after one that warms up. Another implementation begins in each.
    pub(crate) fn run(
        mut self,
        title: &str,
        rounds: usize,
        mut prepare: impl FnMut(&mut StdRng) -> I,
    ) -> Outcome {
        let mut random = StdRng::seed_from_u64(1);
        let mut samples: Vec<_> = self
            .implementations
            .iter()
            .map(|(name, _)| (*name, Vec::with_capacity(rounds)))
            .collect();
        let count = self.implementations.len();
        for round in 0..=rounds {
            progress(format_args!("{title}: round {round} of {rounds}"));
            let input = prepare(&mut random);
            for turn in 0..count {
                let index = (round + turn) % count;
                let measures = (self.implementations[index].1)(&input);
                if round > 0 {
                    samples[index].1.push(measures);
                }
            }
        }
        progress(format_args!(""));
        Outcome(samples)
    }
}

/// Shows a line of progress on a terminal.
fn progress(text: std::fmt::Arguments<'_>) {
    let mut stderr = stderr();
    if stderr.is_terminal() {
        // What cannot be shown is not needed.
        let _ = write!(stderr, "\r\x1b[K{text}");
        let _ = stderr.flush();
    }
}

/// The measures of all rounds, by implementation.
#[derive(Debug)]
pub(crate) struct Outcome(Vec<(&'static str, Vec<Vec<f64>>)>);

impl Outcome {
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(name, _)| *name)
    }

    fn measures(&self, name: &str, measure: usize) -> Option<impl Iterator<Item = f64>> {
        let (_, rounds) = self.0.iter().find(|(implementation, _)| *implementation == name)?;
        Some(rounds.iter().map(move |measures| measures[measure]))
    }

    /// `None` where an implementation does not have the measure.
    pub(crate) fn summary(&self, name: &str, measure: usize) -> Option<Summary> {
        Summary::of(self.measures(name, measure)?)
    }

    /// What so many thousandths of the rounds do not exceed; all 1000 do not exceed the worst.
    pub(crate) fn per_mille(&self, name: &str, measure: usize, thousandths: usize) -> Option<f64> {
        let mut sorted: Vec<f64> = self.measures(name, measure)?.collect();
        sorted.sort_by(f64::total_cmp);
        (!sorted.is_empty()).then(|| per_mille(&sorted, thousandths))
    }

    /// One measure over another.
    pub(crate) fn ratio(&self, of: (&str, usize), to: (&str, usize)) -> Option<Summary> {
        let (of, to) = (self.measures(of.0, of.1)?, self.measures(to.0, to.1)?);
        Summary::of(of.zip(to).map(|(of, to)| of / to))
    }

    /// What an implementation gains from one measure to another, over what the floor gains there.
    pub(crate) fn gain_over(
        &self,
        of: &str,
        floor: &str,
        (from, to): (usize, usize),
    ) -> Option<Summary> {
        let gain = |name| {
            let (from, to) = (self.measures(name, from)?, self.measures(name, to)?);
            Some(to.zip(from).map(|(to, from)| to / from))
        };
        Summary::of(gain(of)?.zip(gain(floor)?).map(|(gain, most)| gain / most))
    }

    /// How much one measure is beyond another.
    pub(crate) fn difference(&self, of: (&str, usize), to: (&str, usize)) -> Option<Summary> {
        let (of, to) = (self.measures(of.0, of.1)?, self.measures(to.0, to.1)?);
        Summary::of(of.zip(to).map(|(of, to)| of - to))
    }
}

/// Times short operations together: as many as fit into a span, by the time of the last ones.
#[derive(Debug)]
pub(crate) struct Batch {
    span: Duration,
    fits: usize,
}

impl Batch {
    pub(crate) fn new(effort: &Effort) -> Self {
        Self { span: effort.span, fits: 1 }
    }

    /// Returns the time of an operation, in ns.
    pub(crate) fn time<T>(&mut self, inputs: &[T], operation: impl FnMut(&T)) -> f64 {
        let inputs = &inputs[..self.fits.min(inputs.len())];
        let start = Instant::now();
        inputs.iter().for_each(operation);
        let each = start.elapsed().as_nanos() as f64 / inputs.len() as f64;
        self.fits = ((self.span.as_nanos() as f64 / each) as usize).max(1);
        each
    }
}

/// Returns what reading the clock twice adds to an operation that is timed by itself, in ns.
pub(crate) fn timer_cost() -> Option<Summary> {
    Summary::of((0..10_001).map(|_| Instant::now().elapsed().as_nanos() as f64))
}

/// A bound that a figure ought to keep.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) bound: Bound,
    pub(crate) figure: Summary,
    /// By its median.
    pub(crate) holds: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    /// How far beyond the bound a figure is, as a part of it; not above 0 where it keeps it.
    pub(crate) fn missed_by(self, figure: f64) -> f64 {
        match self {
            // Where nothing is allowed, what there is is the miss.
            Self::AtMost(0.0) => figure,
            Self::AtMost(bound) => figure / bound - 1.0,
            Self::AtLeast(bound) => 1.0 - figure / bound,
        }
    }
}

impl Goal {
    pub(crate) fn new(what: impl Into<String>, bound: Bound, figure: Summary) -> Self {
        let holds = bound.missed_by(figure.median) <= 0.0;
        Self { what: what.into(), bound, figure, holds }
    }

    /// For a measure of an implementation, if it has it.
    pub(crate) fn summary(
        what: impl Into<String>,
        bound: Bound,
        outcome: &Outcome,
        of: (&str, usize),
    ) -> Option<Self> {
        Some(Self::new(what, bound, outcome.summary(of.0, of.1)?))
    }

    /// For what an implementation gains from one measure to another, over what the floor does.
    pub(crate) fn gain_over(
        what: impl Into<String>,
        bound: Bound,
        outcome: &Outcome,
        (of, floor): (&str, &str),
        measures: (usize, usize),
    ) -> Option<Self> {
        Some(Self::new(what, bound, outcome.gain_over(of, floor, measures)?))
    }

    /// For one measure over another.
    pub(crate) fn ratio(
        what: impl Into<String>,
        bound: Bound,
        outcome: &Outcome,
        of: (&str, usize),
        to: (&str, usize),
    ) -> Option<Self> {
        Some(Self::new(what, bound, outcome.ratio(of, to)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn implementations_take_turns_and_the_first_round_does_not_count() {
        let order = std::cell::RefCell::new(Vec::new());
        let mut comparison = Comparison::new();
        for name in ["a", "b", "c"] {
            let order = &order;
            comparison.add(name, move |input: &f64| {
                order.borrow_mut().push(name);
                vec![*input, if name == "b" { 2.0 * input } else { f64::NAN }]
            });
        }
        let mut input = 0.0;
        let outcome = comparison.run("test", 3, |_| {
            input += 1.0;
            input
        });
        assert_eq!(order.borrow().concat(), "abcbcacababc");
        assert_eq!(outcome.names().collect::<String>(), "abc");
        // 2, 3 and 4: the 1 was the warm-up's.
        assert_eq!(outcome.summary("c", 0).map(|summary| summary.median), Some(3.0));
        assert_eq!(
            [0, 500, 1000].map(|at| outcome.per_mille("b", 1, at)),
            [Some(4.0), Some(6.0), Some(8.0)]
        );
        assert!(outcome.summary("c", 1).is_none(), "it does not have the measure");
        assert!(outcome.summary("d", 0).is_none());
        let ratio = outcome.ratio(("b", 1), ("a", 0)).unwrap();
        assert_eq!((ratio.lower_quartile, ratio.upper_quartile), (2.0, 2.0));
        let halved = outcome.gain_over("b", "b", (0, 1)).unwrap();
        assert_eq!(halved.median, 1.0, "as much as itself");
        assert!(outcome.gain_over("b", "c", (0, 1)).is_none(), "the floor does not have it");
    }

    #[test]
    fn bounds_are_kept_at_the_bound() {
        let at = |figure| Summary::of([figure]).unwrap();
        assert!(Goal::new("", Bound::AtMost(0.5), at(0.5)).holds);
        assert!(!Goal::new("", Bound::AtMost(0.0), at(0.1)).holds);
        assert!(Goal::new("", Bound::AtMost(0.0), at(0.0)).holds);
        assert!(!Goal::new("", Bound::AtLeast(1.9), at(1.8)).holds);
        assert_eq!(Bound::AtMost(2.0).missed_by(3.0), 0.5);
        assert_eq!(Bound::AtLeast(2.0).missed_by(1.0), 0.5);
    }
}
